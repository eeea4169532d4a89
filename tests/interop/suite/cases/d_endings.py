"""Access ends with its task: by its holder, its hold, policy, the identity, an operator; and when the real S3 stops it."""

import os
import signal
import time

from ..harness import Daemon, case, http_call, run, wait_until
from ..sidecar import seconds_until
from ..spire import spiffe_id
from ..world import INTRUDER_UID, REPORT, REPORT_UID, WITHDRAWN, WITHDRAWN_UID

NEEDS = ("spire", "rgw", "sidemint")
KEY = "c-42/report.txt"


@case("an ended task is refused at once, and its credential is refused by S3 by usable_until", NEEDS)
def replay(world):
    task = world.shared().task(REPORT_UID, "ledger-read")
    got = task.credentials().expect(200).json()
    assert world.rgw.read(got, KEY) == 200, "the credential works while the task lives"
    assert 0 < seconds_until(got["Expiration"]) <= 30, got["Expiration"]
    report = task.end()
    (lease,) = report["leases"]
    assert lease["outcome"] == "expires" and report["reason"] == "done", report
    left = seconds_until(lease["usable_until"])
    assert 0 < left <= 31, f"usable for {left:.1f} s after the end, the decision says 30 s"
    assert task.credentials().status in (401, 403), "an ended task was served"
    assert task.end() == report, "the report of the end changed"
    # Kept and replayed: STS let it live 900 s, the session policy's cut is what ends it.
    assert world.rgw.read(got, KEY) == 200, "refused before usable_until: it would not show what the cut does"
    wait_until("S3 to refuse the replayed credential", lambda: world.rgw.read(got, KEY) == 403, left + 3, 0.25)
    early = seconds_until(lease["usable_until"])
    assert early < 2, f"refused {early:.1f} s before usable_until"
    assert world.rgw.read(got, KEY) == 403


@case("every credential that was served is refused by S3 within max_residual of its last mint", NEEDS)
def across_mints(world):
    task = world.shared().task(REPORT_UID, "ledger-read")
    served = {}

    def collect():
        got = task.credentials().expect(200).json()
        served[got["AccessKeyId"]] = got
        return len(served) == 2

    wait_until("a re-mint", collect, 40, 0.5)
    report = task.end()
    last = max(seconds_until(lease["usable_until"]) for lease in report["leases"])
    assert last <= 31, report
    dead = lambda: all(world.rgw.read(got, KEY) == 403 for got in served.values())  # noqa: E731
    wait_until("both credentials to be dead", dead, last + 3, 0.5)


@case("exec killed with -9 ends its task within 12 s, and its command is told to stop", NEEDS)
def exec_killed(world):
    sidecar = world.shared()
    mark = f"sleep-{os.getpid()}"
    ask = ["--scope", "ledger-read", "--param", "customer=c-42", "--label", mark]
    pid_file = world.folder / "child.pid"
    pid_file.touch()
    pid_file.chmod(0o666)
    argv = [world.sidemint, "exec", *ask, "--", "sh", "-c", f"echo $$ >{pid_file}; exec sleep 300"]
    held = Daemon("exec", argv, world.folder / "exec.log", env=world.command_env(sidecar), uid=REPORT_UID).start()
    child = int(wait_until("the command to run", lambda: pid_file.read_text().strip(), 20))
    task = wait_until(
        "the decision", lambda: [r["task"] for r in sidecar.audit_records() if r.get("label") == mark and r["event"] == "decision"], 5
    )[0]
    world.begun.append((sidecar, task))

    def view():
        listed = sidecar.status()["task_list"]
        return next((t for t in listed if t["id"] == task), None)

    assert view()["state"] == "active" and view()["hold"], view()
    held.kill(signal.SIGKILL)
    begun = time.monotonic()

    def over():
        found = [r for r in sidecar.audit_records() if r["event"] == "end" and r.get("task") == task]
        return found and found[0]

    ended = wait_until("the task to end", over, 14)
    took = time.monotonic() - begun
    assert ended["reason"] == "hold_gone", ended
    assert took <= 12.5, f"it took {took:.1f} s"
    wait_until("the command to stop", lambda: not os.path.exists(f"/proc/{child}") or state_of(child) == "Z", 5)


def state_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@case("a running task ends when its rule is taken out of the policy directory", NEEDS)
def policy_changed(world):
    sidecar = world.shared()
    task, other = sidecar.task(REPORT_UID, "ledger-changing"), sidecar.task(REPORT_UID, "ledger-read")
    got = task.credentials().expect(200).json()
    try:
        world.policy.permit("ledger-changing", [])
        task.ended(15, "policy_changed")
        assert task.credentials().status in (401, 403)
        assert sidecar.begin(REPORT_UID, "ledger-changing").status == 403
    finally:
        world.policy.permit("ledger-changing", [spiffe_id(REPORT)])
    assert other.show()["state"] == "active", "a change of one scope ended a task of another"
    wait_until("the scope to be permitted again", lambda: permitted(sidecar, "ledger-changing"), 15, 0.5)
    wait_until("S3 to refuse what was left", lambda: world.rgw.read(got, KEY) == 403, 33, 0.5)
    other.end()


def permitted(sidecar, scope):
    answer = sidecar.begin(REPORT_UID, scope)
    if answer.status == 201:
        token = {"Authorization": f"Bearer {answer.json()['token']}"}
        http_call("DELETE", sidecar.http, f"/v1/tasks/{answer.json()['id']}", token).expect(200)
    return answer.status == 201


@case("a decision whose scope was edited after it is suspended, its task ends, the other scopes go on", NEEDS)
def digest_mismatch(world):
    sidecar = world.shared()
    task = sidecar.task(REPORT_UID, "ledger-changing")
    edited = world.policy.folder / "scopes" / "ledger-changing.toml"
    kept = edited.read_text()
    try:
        edited.write_text(kept.replace("one customer's", "every customer's"))
        task.ended(15, "policy_changed")
        assert sidecar.begin(REPORT_UID, "ledger-changing").status == 403
        suspended = http_call("GET", sidecar.admin, "/status").json()["policy"]["suspended"]
        assert list(suspended) == ["ledger-changing"], suspended
        assert sidecar.metric("sidemint_scopes_suspended") == 1
        assert permitted(sidecar, "ledger-read")
    finally:
        edited.write_text(kept)
    wait_until("the scope to come back", lambda: permitted(sidecar, "ledger-changing"), 15, 0.5)


@case("the SPIRE entry of the sidecar's identity is deleted: its tasks end, others go on, and a new entry heals it", NEEDS)
def identity_withdrawn(world):
    sidecar = world.shared()
    task, other = sidecar.task(WITHDRAWN_UID, "ledger-withdrawn"), sidecar.task(REPORT_UID, "ledger-read")
    task.credentials().expect(200)
    world.spire.remove(world.entries[WITHDRAWN])
    task.ended(30, "identity_withdrawn")
    assert task.credentials().status in (401, 403)
    assert sidecar.begin(WITHDRAWN_UID, "ledger-withdrawn").status in (401, 403)
    assert other.show()["state"] == "active"
    other.credentials().expect(200)
    other.end()
    world.entries[WITHDRAWN] = world.spire.register(WITHDRAWN, 2001)

    def healed():
        answer = sidecar.begin(WITHDRAWN_UID, "ledger-withdrawn")
        return answer.status == 201

    wait_until("the identity to be back", healed, 30, 1)


@case("an operator ends any task through the admin socket, and only there", NEEDS)
def operator(world):
    sidecar = world.shared()
    task = sidecar.task(REPORT_UID, "ledger-read")
    assert http_call("DELETE", sidecar.admin, f"/v1/tasks/{task.id}").status in (403, 404, 405)
    mode = os.stat(sidecar.admin_socket).st_mode & 0o777
    assert mode == 0o600, oct(mode)
    outside = run(
        ["curl", "-sS", "--max-time", "5", "--unix-socket", sidecar.admin_socket, "http://localhost/status"], uid=INTRUDER_UID
    )
    assert outside.code != 0, "another uid reached the operator's socket"
    http_call("DELETE", f"unix://{sidecar.admin_socket}", f"/v1/tasks/{task.id}").expect(200)
    task.ended(2, "operator")


@case("a task ends at its own deadline, also when nobody asks, and its credential with it", NEEDS)
def deadline(world):
    sidecar = world.shared()
    task = sidecar.task(REPORT_UID, "ledger-read", ttl="8s")
    begun = time.monotonic()
    got = task.credentials().expect(200).json()
    assert seconds_until(got["Expiration"]) <= 8.1, got["Expiration"]
    task.ended(12, "deadline")
    assert time.monotonic() - begun < 10
    wait_until("S3 to refuse", lambda: world.rgw.read(got, KEY) == 403, 4, 0.25)


@case("a task with too little time left for a credential is refused in the SDKs' words: 401 or 403", NEEDS)
def too_late(world):
    task = world.shared().task(REPORT_UID, "ledger-read", ttl="3s")
    answer = task.credentials()
    assert answer.status in (401, 403), answer
    task.ended(8, "deadline")
