"""Incidents at AWS: the Deny that Sidemint prints, put on a role of a real RGW by the commands that it prints."""

import json
import shlex

from ..harness import case, run
from ..sidecar import SIDECAR_UID
from ..world import REPORT_UID
from .e_signed import Repository

NEEDS = ("sidemint", "spire", "rgw", "python")
KEY = "c-42/report.txt"


def shell(world, line):
    """Runs a printed line as an administrator of the account would, told only where IAM is and who it is."""
    tools = world.have["AWS_CLI"].rsplit("/", 1)[0]
    env = world.bare_env(
        AWS_ENDPOINT_URL=world.rgw.endpoint, AWS_DEFAULT_REGION="us-east-1", AWS_ACCESS_KEY_ID="ADMINAK", AWS_SECRET_ACCESS_KEY="ADMINSK"
    )
    env["PATH"] = f"{tools}:{env['PATH']}"
    return run(["sh", "-c", line], env=env).ok()


def printed(text):
    """The two commands of a text: how to put the Deny on, and how to take it off."""
    lines = [line.strip() for line in text.splitlines()]
    (apply,) = [line for line in lines if line.startswith("aws iam put-role-policy ")]
    (remove,) = [line for line in lines if line.startswith("aws iam delete-role-policy ")]
    return apply, remove


def read(world, got):
    return world.rgw.read(got, KEY)


@case("the Deny that `task end` prints stops that session at its next request; another session of the role reads on", NEEDS)
def one_session(world):
    sidecar = world.shared()
    ended, other = sidecar.task(REPORT_UID, "ledger-minute"), sidecar.task(REPORT_UID, "ledger-minute")
    stolen, good = ended.credentials().expect(200).json(), other.credentials().expect(200).json()
    end = [world.sidemint, "task", "end", ended.id, "--print-aws-deny"]
    told = run(end, uid=REPORT_UID, env=world.command_env(sidecar)).ok().out
    assert "role app" in told and "expires: usable until" in told, told
    assert (read(world, stolen), read(world, good)) == (200, 200), "ending alone stops nothing at AWS"
    apply, remove = printed(told)
    shell(world, apply)
    try:
        assert read(world, stolen) == 403, "the denied session's next request"
        assert read(world, good) == 200, "the other session of the role"
        late = sidecar.task(REPORT_UID, "ledger-minute")
        assert read(world, late.credentials().expect(200).json()) == 200, "a session that began after it"
        again = run(end, uid=REPORT_UID, env=world.command_env(sidecar)).ok().out
        assert again == told, "what is printed of a task that has ended differs"
    finally:
        shell(world, remove)
    assert read(world, stolen) == 200, "taken off before usable_until, the access is back: the text says so"
    for task in (other, late):
        task.end()


@case("an operator ends and denies a task by the admin socket, from the JSON alone", NEEDS)
def by_the_operator(world):
    sidecar = world.shared()
    task, other = sidecar.task(REPORT_UID, "ledger-minute"), sidecar.task(REPORT_UID, "ledger-minute")
    stolen, good = task.credentials().expect(200).json(), other.credentials().expect(200).json()
    end = [world.sidemint, "task", "end", task.id, "--operator", "--print-aws-deny", "--output", "json"]
    env = world.bare_env(SIDEMINT_ADMIN=f"unix://{sidecar.admin_socket}")
    told = json.loads(run(end, uid=SIDECAR_UID, env=env).ok().out)
    assert told["reason"] == "operator" and task.show()["state"] == "ended", told
    (deny,) = told["aws_deny"]["denies"]
    (lease,) = told["leases"]
    assert deny["role_name"] == "app" and deny["leases"] == [lease["id"]] and deny["remove_after"] > lease["usable_until"], deny
    shell(world, shlex.join(deny["apply"]))
    try:
        assert (read(world, stolen), read(world, good)) == (403, 200)
    finally:
        shell(world, shlex.join(deny["remove"]))
    other.end()


@case("the Deny of a kill entry stops what is out in its scope, or its one task, and no other scope of the role", NEEDS)
def of_an_entry(world):
    repository, sidecar = Repository(world, "incident-policy"), world.shared()
    killed, twin, other = (sidecar.task(REPORT_UID, scope) for scope in ("ledger-read", "ledger-read", "ledger-minute"))
    tasks = (killed, twin, other)
    for words, expected in ((("--scope", "ledger-read"), [403, 403, 200]), (("--task", killed.id), [403, 200, 200])):
        where = ["--policy", repository.directory, "--to", repository.out, "--key", repository.key("incident")]
        told = repository.policy("kill", *where, *words, "--reason", "a drill", "--print-aws-deny").out
        apply, remove = printed(told)
        # Fresh ones each time, of the same sessions: they live for 30 s.
        got = [task.credentials().expect(200).json() for task in tasks]
        shell(world, apply)
        try:
            found = [read(world, credentials) for credentials in got]
            assert found == expected, (found, told)
        finally:
            shell(world, remove)
    for task in tasks:
        task.end()
