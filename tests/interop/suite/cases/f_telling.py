"""What operators see: metrics, a real scrape, the audit log; and that no secret is in any of it."""

import json
import os
import subprocess

from ..harness import Daemon, case, free_port, http_call, run, wait_until
from ..sidecar import SIDECAR_UID
from ..spire import spiffe_id
from ..world import INTRUDER_UID, REPORT, REPORT_UID

NEEDS = ("spire", "rgw", "sidemint")


@case("promtool finds nothing wrong with the metrics", (*NEEDS, "prometheus"))
def lint(world):
    text = world.shared().metrics()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, timeout=30)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("sidemint_")]
    assert done.returncode == 0 and not ours, done.stdout + done.stderr


@case("a real Prometheus scrapes the sidecar, and finds tasks, mints and refusals", (*NEEDS, "prometheus"))
def scrape(world):
    sidecar, port = world.shared(), free_port()
    folder = world.folder / "prometheus"
    folder.mkdir()
    config = folder / "prometheus.yml"
    target = sidecar.admin.removeprefix("http://")
    config.write_text(
        f"global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: sidemint\n  static_configs: [{{targets: ['{target}']}}]\n"
    )
    run(["promtool", "check", "config", config]).ok()
    argv = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    prometheus = Daemon("prometheus", argv, folder / "log").start()
    task = sidecar.task(REPORT_UID, "ledger-read")
    task.credentials().expect(200)
    sidecar.begin(INTRUDER_UID, "ledger-read").expect(403)

    def value(query):
        from urllib.parse import quote

        found = http_call("GET", f"http://127.0.0.1:{port}", f"/api/v1/query?query={quote(query)}").expect(200).json()
        return float(found["data"]["result"][0]["value"][1])

    try:
        wait_until("the target to be up", lambda: value('up{job="sidemint"}') == 1, 30, 0.5)
        wait_until("the task to be counted", lambda: value("sum(sidemint_tasks_active)") >= 1, 10, 0.5)
        assert value('sum(sidemint_mints_total{outcome="minted"})') >= 1
        assert value("sum(sidemint_denials_total)") >= 1
        assert value("sidemint_policy_version") >= 0 if "sidemint_policy_version" in sidecar.metrics() else True
        names = http_call("GET", f"http://127.0.0.1:{port}", "/api/v1/label/__name__/values").json()["data"]
        assert "sidemint_build_info" in names and "process_resident_memory_bytes" in names, names
        series = http_call("GET", f"http://127.0.0.1:{port}", "/api/v1/series?match[]=%7Bjob%3D%22sidemint%22%7D").json()["data"]
        labels = json.dumps(series)
        assert "spiffe://" not in labels and task.id not in labels, "an identity or task in a label"
    finally:
        prometheus.stop()
    task.end()


@case("the audit log has every decision, mint and end of every task that the suite began", NEEDS)
def audit(world):
    if world._shared is None or not world.begun:
        task = world.shared().task(REPORT_UID, "ledger-read")
        task.credentials().expect(200)
        task.end()
    for sidecar, task in world.begun:
        lines = [r for r in sidecar.audit_records() if r.get("task") == task]
        events = [r["event"] for r in lines]
        assert events.count("decision") >= 1 and lines[0]["event"] == "decision", (task, events)
        assert lines[0]["outcome"] == "permit" and lines[0]["request_id"] and lines[0]["policy_version"], lines[0]
        assert lines[0]["rule_ids"], lines[0]
        assert events.count("end") <= 1, (task, events)
    ended = {r["task"]: r for s, _ in world.begun for r in s.audit_records() if r["event"] == "end"}
    shared = world.shared()
    for view in shared.status()["task_list"]:
        if view["state"] == "ended":
            assert view["id"] in ended, f"no audit line for the end of {view['id']}"
            assert view["reason"] == ended[view["id"]]["reason"], view
        mints = [r for r in shared.audit_records() if r["event"] == "mint" and r["outcome"] == "minted" and r["task"] == view["id"]]
        assert {m["lease"] for m in mints} >= {lease["id"] for lease in view["leases"] if lease["state"] != "intent"}, view
        assert all(m["session_name"] and m["usable_until"] for m in mints), mints
    assert {spiffe_id(REPORT)} <= {r.get("spiffe_id") for r in shared.audit_records()}


@case("no secret that was seen is in a log, the audit log, the journal, a metric or a page", NEEDS)
def secrets(world):
    sidecar = world.shared()
    task = sidecar.task(REPORT_UID, "ledger-read")
    task.credentials().expect(200)
    assert len(world.secrets) >= 4, "no secrets seen: this would show nothing"
    places = {"metrics": sidecar.metrics().encode()}
    for path in ("/", "/status", "/readyz"):
        places[path] = http_call("GET", sidecar.admin, path).body
    places["operator status"] = http_call("GET", f"unix://{sidecar.admin_socket}", "/status").body
    places["task view"] = json.dumps(task.show()).encode()
    for found in world.sidecars:
        for path in [*found.folder.glob("*.log"), found.audit, *found.state.rglob("*")]:
            if path.is_file():
                places[str(path.relative_to(world.folder))] = path.read_bytes()
    assert any(name.endswith(".jsonl") for name in places) and any("/state/" in name for name in places), sorted(places)
    # Of a JWT its signature is the secret; of everything else the whole.
    wanted = {secret.rsplit(".", 1)[-1].encode() if secret.count(".") == 2 else secret.encode() for secret in world.secrets}
    leaks = [name for name, content in places.items() for secret in wanted if len(secret) > 8 and secret in content]
    assert not leaks, f"a secret in {sorted(set(leaks))}"
    task.end()


@case("doctor finds nothing wrong where the sidecar runs, and names the missing agent where it does not", NEEDS)
def doctor(world):
    sidecar = world.shared()
    argv = [world.sidemint, "doctor", "--config", sidecar.config, "--output", "json"]
    # The ports and the journal are the running sidecar's: asked about free ones.
    free = [f"--{name}=127.0.0.1:{free_port()}" for name in ("http", "admin")]
    state = world.folder / "doctor-state"
    state.mkdir(mode=0o700)
    os.chown(state, SIDECAR_UID, SIDECAR_UID)
    done = run([*argv, *free, f"--state={state}"], uid=SIDECAR_UID, env=world.bare_env(), deadline=60)
    assert done.code == 0, f"exit {done.code}: {done.out[-1500:]} {done.err[-300:]}"
    done = run([*argv, *free, f"--state={state}", "--workload-api", "unix:///nowhere/api.sock"], uid=SIDECAR_UID, env=world.bare_env())
    assert done.code != 0 and "nowhere" in done.out, f"exit {done.code}: {done.out[-1500:]}"


@case("policy lint finds nothing wrong with the suite's policy, and finds an edited scope", ("spire", "rgw", "sidemint"))
def policy_lint(world):
    import shutil

    argv = [world.sidemint, "policy", "lint", "--policy"]
    done = run([*argv, world.policy.folder], env=world.bare_env())
    assert done.code == 0, done.out + done.err
    copy = world.folder / "policy-edited"
    shutil.copytree(world.policy.folder, copy)
    with (copy / "scopes" / "ledger-read.toml").open("a") as scope:
        scope.write("# edited after the decision\n")
    done = run([*argv, copy], env=world.bare_env())
    assert done.code == 1 and "ledger-read" in done.out + done.err, f"exit {done.code}: {done.out} {done.err}"
