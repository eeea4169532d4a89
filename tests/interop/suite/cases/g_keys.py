"""SPIRE's JWT signing key changes. Last of all: RGW reads one key only, so it refuses what the old key signed meanwhile."""

import json

from ..harness import case, from_b64url, wait_until
from ..world import BATCH_UID, INTRUDER_UID, REPORT_UID

NEEDS = ("spire", "rgw", "sidemint")


def key_of(token):
    return json.loads(from_b64url(token.split(".")[0]))["kid"]


@case("SPIRE's JWT signing key is rotated: tokens of the old and of the new key are both accepted, and minting goes on", NEEDS)
def key_rotation(world):
    sidecar = world.shared()
    # An agent that an earlier case killed may be back for some seconds before the sidecar asks it again.
    wait_until("both streams of the Workload API", lambda: sidecar.status()["workload_api"]["connected"], 60, 0.5)
    old = world.spire.jwt_svid(REPORT_UID, "sidemint")
    fresh = world.spire.prepare_jwt_key()
    wait_until("the agent to publish the next key", lambda: fresh in world.spire.agent_jwt_keys(INTRUDER_UID), 30, 0.5)
    world.spire.activate_jwt_key(fresh)
    assert key_of(old) != fresh
    sidecar.task(REPORT_UID, "ledger-read", token=old).end()

    def new_token():
        token = world.spire.jwt_svid(BATCH_UID, "sidemint")
        return token if key_of(token) == fresh else None

    new = wait_until("the agent to give tokens of the new key", new_token, 45, 1)
    sidecar.task(BATCH_UID, "ledger-batch", token=new).end()
    task = sidecar.task(BATCH_UID, "ledger-batch")
    got = wait_until("a credential by a token of the new key", lambda: (a := task.credentials()).status == 200 and a.json(), 60, 1)
    assert world.rgw.read(got, "c-42/report.txt") == 200
    task.end()
