"""The sidecar's own life: restarts, signals, the agent's absence, rotation, and the pod task."""

import json
import os
import signal
import threading
import time

from ..harness import Daemon, case, http_call, run, wait_until
from ..rgw import BUCKET
from ..sidecar import SIDECAR_UID, Sidecar, seconds_until
from ..spire import spiffe_id
from ..world import BATCH_UID, LEGACY_UID, POD, POD_GROUP, REPORT_UID

NEEDS = ("spire", "rgw", "sidemint")
KEY = "c-42/report.txt"


@case("SIGTERM with tasks running exits 0 within 2 s, and the tasks have ended when it is back", NEEDS)
def terminated(world):
    sidecar = Sidecar(world, "terminated").start()
    task = sidecar.task(REPORT_UID, "ledger-read")
    task.credentials().expect(200)
    code, took = sidecar.stop()
    assert code == 0, f"exit {code}: {sidecar.daemon.tail(5)}"
    assert took <= 2.0, f"it took {took:.2f} s"
    ended = [r for r in sidecar.audit_records() if r["event"] == "end" and r["task"] == task.id]
    assert len(ended) == 1 and ended[0]["reason"] == "shutdown", ended
    sidecar.start()
    assert task.show()["reason"] == "shutdown"
    assert task.credentials().status in (401, 403)
    sidecar.stop()


@case("SIGTERM with shutdown.tasks = keep leaves the tasks for the next start", NEEDS)
def kept(world):
    sidecar = Sidecar(world, "kept", shutdown="keep").start()
    task = sidecar.task(REPORT_UID, "ledger-read")
    code, took = sidecar.stop()
    assert code == 0 and took <= 2.0, (code, took)
    sidecar.start()
    assert task.show()["state"] == "active"
    task.credentials().expect(200)
    task.end()
    sidecar.stop()


@case("killed with -9 and restarted, the task goes on with its token and a new credential", NEEDS)
def restarted(world):
    sidecar = Sidecar(world, "restarted").start()
    task, gone = sidecar.task(REPORT_UID, "ledger-read"), sidecar.task(REPORT_UID, "ledger-read")
    before = task.credentials().expect(200).json()
    report = gone.end()
    sidecar.daemon.kill(signal.SIGKILL)
    # Nothing that could be used lies in the journal.
    for path in sidecar.state.rglob("*"):
        if path.is_file():
            stored = path.read_bytes()
            for secret in (task.token, before["SecretAccessKey"], before["Token"]):
                assert secret.encode() not in stored, f"a secret in {path.name}"
    sidecar.start()
    view = task.show()
    assert view["state"] == "active" and view["expires_at"] == task.begun["expires_at"], view
    after = task.credentials().expect(200).json()
    assert after["AccessKeyId"] != before["AccessKeyId"], "a credential survived the kill"
    assert world.rgw.read(after, KEY) == 200 and world.rgw.read(after, "c-43/report.txt") == 403
    # What was minted before the kill is still accounted for.
    assert len(task.show()["leases"]) == 2, task.show()["leases"]
    assert gone.end() == report, "the report of an end changed over the restart"
    assert gone.credentials().status in (401, 403)
    ending = task.end()
    assert len(ending["leases"]) == 2, ending
    sidecar.stop()


@case("exec holds its task again after the sidecar was killed with -9 and restarted", NEEDS)
def held_again(world):
    sidecar = Sidecar(world, "held").start()
    script = f"sleep 25; exec {world.have['PYTHON']} {world.public}/reader.py 0 {BUCKET}/{KEY}"
    argv = [world.sidemint, "exec", "--scope", "ledger-read", "--param", "customer=c-42", "--", "sh", "-c", script]
    held = Daemon("exec", argv, world.folder / "held.log", env=world.command_env(sidecar), uid=REPORT_UID).start()
    wait_until("the task", lambda: [t for t in sidecar.status()["task_list"] if t["state"] == "active"], 15)
    sidecar.daemon.kill(signal.SIGKILL)
    sidecar.start()
    assert held.process.wait(45) == 0, held.tail()
    assert json.loads(held.tail().splitlines()[-1])["reads"] == 1, held.tail()
    wait_until("the task to have ended", lambda: any(r["event"] == "end" and r["reason"] == "done" for r in sidecar.audit_records()), 5)
    sidecar.stop()


@case("a second sidecar on the same journal, port or socket refuses to start with exit 1 or 2 and one clear line", NEEDS)
def second(world):
    sidecar = world.shared()
    done = run([world.sidemint, "serve", "--config", sidecar.config], uid=SIDECAR_UID, env=world.bare_env(), deadline=20)
    assert done.code in (1, 2, 4), f"exit {done.code}: {done.err}"
    # The running one is none the worse for it.
    task = sidecar.task(REPORT_UID, "ledger-read")
    assert http_call("GET", f"unix://{sidecar.socket}", f"/v1/tasks/{task.id}", {"Authorization": f"Bearer {task.token}"}).status == 200
    assert os.path.exists(sidecar.admin_socket)
    task.end()


@case("a pod task: another uid reads its token through the group, its unmodified client works, a restart adopts it", NEEDS)
def pod_task(world):
    folder = world.folder / "pod-token"
    folder.mkdir()
    os.chown(folder, SIDECAR_UID, POD_GROUP)
    os.chmod(folder, 0o2750)
    token_file = folder / "token"
    wanted = {
        "scope": "ledger-pod",
        "spiffe_id": spiffe_id(POD),
        "token_file": str(token_file),
        "renew": True,
        "ttl": "5m",
        "params": {"customer": "c-42"},
    }
    sidecar = Sidecar(world, "pod", pod_task=wanted).start()
    stat = os.stat(token_file)
    assert (stat.st_mode & 0o777, stat.st_gid) == (0o440, POD_GROUP), (oct(stat.st_mode), stat.st_gid)
    token = token_file.read_text()
    world.secret(token)
    assert token.startswith("smt_") and not token.endswith("\n"), "SDKs send the file as it is"
    told = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{sidecar.http}/v1/aws/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token_file),
    }
    argv = [world.have["PYTHON"], world.public / "reader.py", 0, f"{BUCKET}/{KEY}", f"{BUCKET}/c-43/report.txt"]
    said = json.loads(run(argv, uid=LEGACY_UID, groups=(POD_GROUP,), env=world.client_env(**told)).ok().out)
    assert (said["reads"], said["refused"]) == (1, 403), said
    outside = run(["cat", token_file], uid=LEGACY_UID)
    assert outside.code != 0 and "smt_" not in outside.out, "the token is readable without the group"
    sidecar.daemon.kill(signal.SIGKILL)
    sidecar.start()
    assert token_file.read_text() == token, "the pod's task was not adopted"
    sidecar.credentials(token).expect(200)
    code, _ = sidecar.stop()
    assert code == 0


@case("a denied pod task leaves the sidecar up but not ready, with the reason, until policy permits it", NEEDS)
def pod_denied(world):
    folder = world.folder / "denied-token"
    folder.mkdir()
    os.chown(folder, SIDECAR_UID, POD_GROUP)
    os.chmod(folder, 0o2750)
    wanted = {"scope": "ledger-pod", "spiffe_id": spiffe_id(POD), "token_file": str(folder / "token"), "params": {"customer": "c-42"}}
    world.policy.permit("ledger-pod", [])
    try:
        sidecar = Sidecar(world, "pod-denied", pod_task=wanted).start(ready=0)
        wait_until("the listener", lambda: http_call("GET", sidecar.admin, "/livez").status == 200, 15)
        reasons = wait_until("the reason", lambda: (r := sidecar.readyz()).status == 503 and "pod" in r.body.decode() and r.body, 10)
        assert len(reasons.strip()) > 0
        assert not (folder / "token").exists()
    finally:
        world.policy.permit("ledger-pod", [spiffe_id(POD)])
    sidecar.wait_ready(40)
    world.secret((folder / "token").read_text())
    sidecar.stop()


@case("SVIDs rotate under load, and no request fails", NEEDS)
def rotation(world):
    sidecar = world.shared()
    stop, failures, counts = threading.Event(), [], {"served": 0, "begun": 0, "read": 0}
    task = sidecar.task(BATCH_UID, "ledger-batch", ttl="5m")
    minted, expiries = set(), set()

    def guarded(name, step):
        def loop():
            while not stop.is_set():
                try:
                    step()
                    counts[name] += 1
                except Exception as error:
                    failures.append(f"{name} at {time.strftime('%H:%M:%S')}: {error}")
                    time.sleep(0.5)

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    def serve():
        got = task.credentials().expect(200).json()
        assert seconds_until(got["Expiration"]) > 0, "an expired credential was served"
        minted.add(got["AccessKeyId"])
        time.sleep(0.02)

    def begin():
        new = sidecar.task(BATCH_UID, "ledger-batch")
        new.end()
        time.sleep(0.1)

    def read():
        got = task.credentials().expect(200).json()
        assert world.rgw.read(got, KEY) == 200, "S3 refused a served credential"
        time.sleep(0.1)

    threads = [guarded("served", serve), guarded("served", serve), guarded("begun", begin), guarded("read", read)]
    end = time.monotonic() + 50
    try:
        while time.monotonic() < end and len(failures) < 20:
            expiries.add(sidecar.metric("sidemint_svid_expiry_timestamp_seconds", kind="x509"))
            time.sleep(1)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not failures, f"{len(failures)} of {counts}: {failures[:3]}"
    assert len(expiries) >= 3, f"the sidecar's X.509-SVIDs did not rotate twice in 50 s: {sorted(expiries)}"
    assert len(minted) >= 3, f"{len(minted)} credentials in 50 s of 30 s each"
    assert counts["begun"] >= 10 and counts["served"] >= 200, counts
    task.end()


@case("a sidecar started before the agent says why it is not ready, and becomes ready when the agent does", NEEDS)
def before_the_agent(world):
    sidecar = Sidecar(world, "early")
    world.spire.agent.stop()
    try:
        sidecar.start(ready=0)
        wait_until("the listener", lambda: http_call("GET", sidecar.admin, "/livez").status == 200, 15)
        answer = sidecar.readyz()
        assert answer.status == 503 and answer.body.strip(), answer
        assert sidecar.metrics()
        refused = http_call("POST", sidecar.http, "/v1/tasks", {"Authorization": "Bearer x.y.z"}, {"scope": "ledger-read"})
        assert refused.status in (401, 503), refused
    finally:
        world.spire.start_agent()
    sidecar.wait_ready(45)
    task = sidecar.task(REPORT_UID, "ledger-read")
    assert world.rgw.read(task.credentials().expect(200).json(), KEY) == 200
    task.end()
    sidecar.stop()


@case("the agent is killed: serving goes on until the credential's end, never past it, and heals with the agent", NEEDS)
def agent_killed(world):
    sidecar = Sidecar(world, "orphaned").start()
    task, short = sidecar.task(REPORT_UID, "ledger-minute"), sidecar.task(BATCH_UID, "ledger-minute")
    last = task.credentials().expect(200).json()
    short.credentials().expect(200)
    world.spire.agent.kill(signal.SIGKILL)
    killed = time.monotonic()
    try:
        # What the sidecar has (its credential, and perhaps one more by a JWT-SVID that still lives) must carry it; then it
        # must refuse. REPORT's JWT-SVIDs live 180 s.
        while time.monotonic() - killed < 240:
            answer = task.credentials()
            if answer.status != 200:
                break
            last = answer.json()
            assert seconds_until(last["Expiration"]) > 0, "an expired credential was served"
            assert world.rgw.read(last, KEY) == 200, "S3 refused a served credential"
            time.sleep(0.5)
        else:
            raise AssertionError("still served 240 s after the agent's end")
        served = time.monotonic() - killed
        assert served >= 35, f"served for {served:.0f} s of the credential's 40 s, then {answer}"
        assert seconds_until(last["Expiration"]) < 2, f"refused {seconds_until(last['Expiration']):.1f} s before the credential's end"
        assert answer.status == 503, answer
        assert task.show()["state"] == "active", task.show()
        # An SVID that expired without renewal is a withdrawn identity.
        short.ended(5, "identity_withdrawn")
        wait_until("S3 to refuse the last credential", lambda: world.rgw.read(last, KEY) == 403, 15, 0.5)
    finally:
        world.spire.start_agent()
    wait_until("the task to be served again", lambda: task.credentials().status == 200, 60, 0.5)
    task.end()
    sidecar.stop()


@case("the STS hangs or is gone: begun tasks get 503 soon, and credentials when it is back", NEEDS)
def sts_gone(world):
    gateway = next(d for d in world.rgw.running if d.name == "radosgw")
    sidecar = Sidecar(world, "waiting").start()
    task = sidecar.task(REPORT_UID, "ledger-read")
    gateway.kill(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        answer = http_call("GET", sidecar.http, "/v1/aws/credentials", {"Authorization": task.token}, deadline=40)
        took = time.monotonic() - begun
        assert answer.status == 503, answer
        assert took < 30, f"the client waited {took:.0f} s"
        assert http_call("GET", sidecar.admin, "/livez", deadline=2).status == 200
    finally:
        gateway.kill(signal.SIGCONT)
    wait_until("credentials", lambda: task.credentials().status == 200, 60, 0.5)
    assert sidecar.metric("sidemint_mints_total", outcome="minted") >= 1
    task.end()
    sidecar.stop()
