"""Runs the cases, one after the other, and says how each went."""

import importlib
import pkgutil
import shutil
import os
import signal
import sys
import time
import traceback

from . import cases as case_files
from .harness import CASES, Skip
from .world import World


def load():
    for module in sorted(pkgutil.iter_modules(case_files.__path__), key=lambda found: found.name):
        importlib.import_module(f"{case_files.__name__}.{module.name}")


def main(words):
    load()
    chosen = [c for c in CASES if not words or any(word in c.name for word in words)]
    if words == ["--list"]:
        print("\n".join(c.name for c in CASES))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    counts = {"ok": 0, "FAIL": 0, "skip": 0}
    world = World()
    try:
        begun = time.monotonic()
        try:
            world.start()
            print(f"tier: {tier(world)} (up in {time.monotonic() - begun:.1f} s, folder {world.folder})", flush=True)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print("FAIL the world starts", flush=True)
            show_logs(world)
            counts["FAIL"] += len(chosen)
            chosen = []
        for found in chosen:
            counts[run_case(world, found)] += 1
    finally:
        world.stop()
        if counts["FAIL"] and os.environ.get("SIDEMINT_INTEROP_KEEP"):
            print(f"kept {world.folder}")
        else:
            shutil.rmtree(world.folder, ignore_errors=True)
    print(f"{counts['ok']} passed, {counts['FAIL']} failed, {counts['skip']} skipped", flush=True)
    return 1 if counts["FAIL"] or not counts["ok"] else 0


def tier(world):
    real = [f"SPIRE {world.have['SPIRE'].rsplit('/spire-', 1)[-1].rsplit('-', 1)[0]}"] if "spire" not in world.absent else []
    real += [f"Ceph RGW {world.have['RGW']}"] if world.rgw else []
    real += ["OpenBao with PostgreSQL"] if world.openbao else []
    missing = [f"without {part}: {why}" for part, why in world.absent.items()]
    return "; ".join([" + ".join(real) or "embedded authority and cloud only", *missing])


def run_case(world, found):
    begun = time.monotonic()
    try:
        world.require(*found.needs)
        found.run(world)
        outcome, why = "ok", ""
    except Skip as skipped:
        outcome, why = "skip", f": {skipped}"
    except Exception as error:
        outcome, why = "FAIL", f": {type(error).__name__}: {error}"
        where = traceback.extract_tb(error.__traceback__)
        why += "".join(f"\n       at {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.line}" for frame in where[1:])
    print(f"{outcome:4} {found.name} ({time.monotonic() - begun:.1f} s){why}", flush=True)
    if outcome == "FAIL":
        show_logs(world)
    return outcome


def show_logs(world, lines=15):
    """The last lines of every part's log; RGW says why it refused only there."""
    latest = [s.daemon for s in world.sidecars[-1:] if s.daemon]
    shown = [d for d in world.daemons() if d.running() or d in latest]
    for daemon in shown:
        state = "running" if daemon.running() else f"ended {daemon.process and daemon.process.returncode}"
        print(f"  --- {daemon.name} ({state})\n" + "\n".join("  | " + line[:400] for line in daemon.tail(lines).splitlines()))
    if world.rgw:
        log = world.rgw.folder / "log" / "client.rgw.log"
        if log.exists():
            print("  --- rgw log\n" + "\n".join("  | " + line[:300] for line in log.read_text(errors="replace").splitlines()[-lines:]))
    for sidecar in world.sidecars[-2:]:
        if sidecar.audit.exists():
            text = sidecar.audit.read_text(errors="replace").splitlines()[-6:]
            print(f"  --- {sidecar.name} audit\n" + "\n".join("  | " + line[:500] for line in text))
    sys.stdout.flush()


sys.exit(main(sys.argv[1:]))
