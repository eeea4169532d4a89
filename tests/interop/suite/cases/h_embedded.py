"""The embedded authority and cloud (`sidemint dev`) with the same clients: what is left of the suite where SPIRE cannot be had."""

import json
import os
from contextlib import contextmanager

from ..harness import Daemon, case, http_call, run, wait_until
from ..world import REPORT_UID

REPORT, INTRUDER = "spiffe://dev.test/report", "spiffe://dev.test/intruder"
ASK = ["--scope", "ledger-read", "--param", "customer=c-42"]


@contextmanager
def dev(world):
    """`sidemint dev` under a workload's uid; gives the environment that it wrote."""
    folder = world.folder / f"dev-{len(list(world.folder.glob('dev-*')))}"
    folder.mkdir()
    os.chown(folder, REPORT_UID, REPORT_UID)
    env = world.bare_env(TMPDIR=str(folder))
    up = Daemon("dev", [world.sidemint, "dev", "--env-file", folder / "env"], folder / "log", env=env, uid=REPORT_UID).start()
    try:

        def written():
            assert up.running(), up.tail()
            return (folder / "env").exists()

        wait_until("sidemint dev", written, 40)
        pairs = [line.split("=", 1) for line in (folder / "env").read_text().splitlines()]
        yield {**env, **dict(pairs)}, folder
    finally:
        code, took = up.stop()
    assert code == 0, f"dev ended with {code} after {took:.1f} s: {up.tail()}"


def objects(env, folder):
    """Two objects that the embedded store really has, one for each customer: named by the dev world's own listing."""
    log = (folder / "log").read_text()
    allowed = next(word for word in log.split() if word.startswith("s3://ledger/c-42/")).removeprefix("s3://")
    return allowed, allowed.replace("c-42", "c-43")


def reads(name, argv):
    def body(world):
        with dev(world) as (env, folder):
            allowed, refused = objects(env, folder)
            wrapped = [world.sidemint, "exec", "--spiffe-id", REPORT, *ASK, "--", *argv(world), allowed, refused]
            said = json.loads(run(wrapped, uid=REPORT_UID, env=env, deadline=60).ok().out)
            assert (said["reads"], said["refused"]) == (1, 403), said

    return body


case("boto3 reads from the embedded cloud and is refused another customer's object", ("sidemint", "python"))(
    reads("boto3", lambda world: [world.have["PYTHON"], world.public / "reader.py", 0])
)
case("the AWS CLI reads from the embedded cloud and is refused another customer's object", ("sidemint", "python"))(
    reads("cli", lambda world: ["sh", world.public / "reader.sh", world.have["AWS_CLI"], 0])
)
case("the AWS SDK for JavaScript reads from the embedded cloud and is refused another's object", ("sidemint", "node"))(
    reads("javascript", lambda world: [world.have["NODE"], world.public / "reader.mjs", 0])
)


@case("in the embedded world the wrong identity, audience and signature are refused, and an ended task", ("sidemint",))
def refusals(world):
    with dev(world) as (env, _):

        def svid(identity, audience):
            argv = [world.sidemint, "svid", "jwt", "--audience", audience, "--spiffe-id", identity, "--output", "json"]
            return json.loads(run(argv, uid=REPORT_UID, env=env).ok().out)

        def begin(token):
            body = {"scope": "ledger-read", "params": {"customer": "c-42"}}
            return http_call("POST", env["SIDEMINT_HTTP"], "/v1/tasks", {"Authorization": f"Bearer {token}"}, body)

        def token(identity, audience="sidemint"):
            said = svid(identity, audience)
            return said.get("token") or said.get("svid") or said["jwt"]

        good = token(REPORT)
        begin(token(INTRUDER)).expect(403)
        begin(token(REPORT, "sts.amazonaws.com")).expect(401)
        begin(good[:-6] + ("AAAAAA" if not good.endswith("AAAAAA") else "BBBBBB")).expect(401)
        task = begin(good).expect(201).json()
        holder = {"Authorization": task["token"]}
        http_call("GET", env["SIDEMINT_HTTP"], "/v1/aws/credentials", holder).expect(200)
        end = http_call("DELETE", env["SIDEMINT_HTTP"], f"/v1/tasks/{task['id']}", {"Authorization": f"Bearer {task['token']}"})
        end.expect(200)
        http_call("GET", env["SIDEMINT_HTTP"], "/v1/aws/credentials", holder).expect(401, 403)
