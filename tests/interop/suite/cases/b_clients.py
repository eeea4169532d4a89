"""Unmodified clients: their default credential chain, told only where the endpoint is and who they are."""

import http.client
import json
import os
import ssl

from ..harness import case, run
from ..rgw import BUCKET
from ..sidecar import SIDECAR_UID, Sidecar, Task
from ..spire import spiffe_id
from ..world import ALONE, ALONE_UID, REPORT, REPORT_UID

ALLOWED, REFUSED = f"{BUCKET}/c-42/report.txt", f"{BUCKET}/c-43/report.txt"
ASK = ["--scope", "ledger-read", "--param", "customer=c-42"]
# The scope's credentials live 30 s and are minted again at half their life: a client that works this long sees two.
ACROSS_A_REMINT = 20


def boto3(world, seconds):
    return [world.have["PYTHON"], world.public / "reader.py", seconds, ALLOWED, REFUSED]


def cli(world, seconds):
    return ["sh", world.public / "reader.sh", world.have["AWS_CLI"], seconds, ALLOWED, REFUSED]


def javascript(world, seconds):
    return [world.have["NODE"], world.public / "reader.mjs", seconds, ALLOWED, REFUSED]


CLIENTS = [("boto3", boto3, "python"), ("the AWS CLI", cli, "python"), ("the AWS SDK for JavaScript", javascript, "node")]


def mints(sidecar, label):
    """How many credentials were minted for the task with this label, as the audit log says."""
    records = sidecar.audit_records()
    tasks = {r["task"] for r in records if r.get("label") == label and r["event"] == "decision"}
    assert len(tasks) == 1, f"{len(tasks)} decisions with label {label}"
    return len([r for r in records if r["event"] == "mint" and r["outcome"] == "minted" and r.get("task") in tasks])


def check(done, at_least=1):
    said = json.loads(done.ok().out)
    assert said["reads"] >= at_least, said
    assert said["refused"] == 403, f"the other customer's object: {said} {done.err[-500:]}"
    return said


def by_exec(name, argv):
    def body(world):
        sidecar, label = world.shared(), f"exec {name}"
        wrapped = [world.sidemint, "exec", *ASK, "--label", label, "--", *argv(world, ACROSS_A_REMINT)]
        done = run(wrapped, uid=REPORT_UID, env=world.command_env(sidecar), deadline=ACROSS_A_REMINT + 60)
        said = check(done, at_least=5)
        assert mints(sidecar, label) >= 2, "the credential was not minted again while the client ran"
        if said["keys"] is not None:
            assert len(said["keys"]) >= 2, f"the client kept to one credential: {said}"

    return body


def by_request(name, argv, by_file):
    def body(world):
        sidecar = world.shared()
        task = sidecar.task(REPORT_UID, "ledger-read")
        told = dict(task.environment)
        if by_file:
            token = world.folder / f"token-{task.id}"
            token.write_text(told.pop("AWS_CONTAINER_AUTHORIZATION_TOKEN"))
            token.chmod(0o444)
            told["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = str(token)
        assert set(told) <= {"AWS_CONTAINER_CREDENTIALS_FULL_URI", *(k for k in told if "AUTHORIZATION_TOKEN" in k)}, told
        check(run(argv(world, 0), uid=REPORT_UID, env=world.client_env(**told)))
        task.end()

    return body


for client, argv, part in CLIENTS:
    needs = ("spire", "rgw", "sidemint", part)
    case(f"{client} under exec reads across a re-mint and is refused another customer's object", needs)(by_exec(client, argv))
    case(f"{client} with the environment of a begun task reads, and is refused another's", needs)(by_request(client, argv, False))
    case(f"{client} with the task's token in a file reads, and is refused another's", needs)(by_request(client, argv, True))


def x509_svid(world, uid, name):
    """The folder with the X.509-SVID of the workload `uid`, as its own command writes it."""
    folder = world.folder / f"svid-{name}"
    folder.mkdir(mode=0o700)
    os.chown(folder, uid, uid)
    asked = [world.sidemint, "svid", "x509", "--write", folder, "--workload-api", world.spire.workload_api]
    run(asked, uid=uid, env=world.bare_env()).ok()
    world.secret("".join((folder / "svid_key.pem").read_text().splitlines()[1:-1]))
    return folder


def over_mtls(sidecar, trusted, shown):
    """Asks for a task by Python's own TLS, which knows nothing of SPIFFE. Returns the status, the answer, and who served."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # an SVID names no host: who it is is read below
    context.load_verify_locations(trusted / "bundle.pem")
    if shown:
        context.load_cert_chain(shown / "svid.pem", shown / "svid_key.pem")
    link = http.client.HTTPSConnection("127.0.0.1", sidecar.mtls_port, timeout=15, context=context)
    try:
        body = json.dumps({"scope": "ledger-read", "params": {"customer": "c-42"}})
        link.request("POST", "/v1/tasks", body=body, headers={"Content-Type": "application/json"})
        served_by = dict(link.sock.getpeercert()["subjectAltName"])["URI"]
        answer = link.getresponse()
        return answer.status, json.loads(answer.read()), served_by
    finally:
        link.close()


@case("a workload begins a task over mutual TLS by the X.509-SVID that SPIRE gave it; no certificate, and who is not held here, are refused", ("spire", "rgw", "sidemint"))
def mutual_tls(world):
    sidecar = Sidecar(world, "mtls", mtls=True).start()
    report = x509_svid(world, REPORT_UID, "report")
    status, begun, served_by = over_mtls(sidecar, report, report)
    assert status == 201, begun
    world.secret(begun["token"])
    assert begun["spiffe_id"] == spiffe_id(REPORT), begun
    assert served_by in world.spire.x509_ids(SIDECAR_UID), served_by
    task = Task(sidecar, begun)
    task.credentials().expect(200)
    begin = next(r for r in sidecar.audit_records() if r.get("task") == task.id and r["event"] == "decision")
    assert begin["proof"] == "x509-svid", begin
    task.end()

    # SPIRE knows this workload too, but gives the sidecar no such identity.
    alone = x509_svid(world, ALONE_UID, "alone")
    status, problem, _ = over_mtls(sidecar, alone, alone)
    assert (status, problem["code"]) == (403, "denied"), problem
    refused = [r for r in sidecar.audit_records() if r.get("request_id") == problem["request_id"]]
    assert [(r["outcome"], r["spiffe_id"]) for r in refused] == [("deny", spiffe_id(ALONE))], refused
    # Without a certificate there is no connection at all.
    try:
        status, answer, _ = over_mtls(sidecar, report, None)
        raise AssertionError(f"answered without a certificate: {status} {answer}")
    except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
        pass
    sidecar.stop()


@case("eight clients at once share one mint", ("spire", "rgw", "sidemint"))
def single_flight(world):
    from concurrent.futures import ThreadPoolExecutor

    task = world.shared().task(REPORT_UID, "ledger-read")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: task.credentials().expect(200).json(), range(8)))
    assert len({a["AccessKeyId"] for a in answers}) == 1, "several credentials for one task at once"
    assert len(task.show()["leases"]) == 1, task.show()["leases"]
    task.end()


@case("the workload's own commands begin, list, show and end a task", ("spire", "rgw", "sidemint"))
def commands(world):
    sidecar = world.shared()
    env = world.command_env(sidecar)

    def sidemint(*words):
        return run([world.sidemint, *words], uid=REPORT_UID, env=env, deadline=30)

    begun = json.loads(sidemint("task", "begin", *ASK, "--output", "json").ok().out)
    world.secret(begun["token"])
    world.begun.append((sidecar, begun["id"]))
    listed = json.loads(sidemint("task", "list", "--output", "json").ok().out)
    assert begun["id"] in {t["id"] for t in listed["tasks"]}, listed
    shown = json.loads(sidemint("task", "show", begun["id"], "--output", "json").ok().out)
    assert shown["state"] == "active" and shown["scope"] == "ledger-read", shown
    json.loads(sidemint("task", "end", begun["id"], "--output", "json").ok().out)
    shown = json.loads(sidemint("task", "show", begun["id"], "--output", "json").ok().out)
    assert shown["state"] == "ended" and shown["reason"] == "done", shown
    denied = sidemint("task", "begin", "--scope", "ledger-read", "--param", "customer=c-43")
    assert denied.code == 3, f"exit {denied.code}: {denied.err}"
    assert "smt_" not in denied.err


@case("exec returns the command's exit code, and 3 without running it when policy denies", ("spire", "rgw", "sidemint"))
def exec_codes(world):
    env = world.command_env(world.shared())
    wrap = [world.sidemint, "exec", "--scope", "ledger-read", "--param"]
    done = run([*wrap, "customer=c-42", "--", "sh", "-c", "exit 7"], uid=REPORT_UID, env=env)
    assert done.code == 7, f"exit {done.code}: {done.err}"
    ran = world.folder / "shared-proof"
    done = run([*wrap, "customer=c-43", "--", "sh", "-c", f"echo ran; touch {ran}"], uid=REPORT_UID, env=env)
    assert done.code == 3 and "ran" not in done.out, f"exit {done.code}: {done.out} {done.err}"


@case("exec gives the command its token by file only, readable by nobody else", ("spire", "rgw", "sidemint"))
def exec_environment(world):
    env = world.command_env(world.shared(), AWS_ACCESS_KEY_ID="left", AWS_SECRET_ACCESS_KEY="over", NO_PROXY="corp.test")
    script = 'env; stat -c "%a %u" "$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"; tr "\\0" " " </proc/$PPID/cmdline'
    wrapped = [world.sidemint, "exec", *ASK, "--", "sh", "-c", script]
    out = run(wrapped, uid=REPORT_UID, env=env).ok().out
    assert "smt_" not in out, "a task token in the environment or the arguments"
    assert "AWS_ACCESS_KEY_ID=" not in out and "AWS_SECRET_ACCESS_KEY=" not in out, "left-over keys win over the endpoint"
    assert f"600 {REPORT_UID}" in out or f"400 {REPORT_UID}" in out, out
    no_proxy = next(line for line in out.splitlines() if line.startswith("NO_PROXY="))
    assert "corp.test" in no_proxy and "127.0.0.1" in no_proxy, no_proxy
