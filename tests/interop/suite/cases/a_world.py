"""The world without Sidemint: what is refused later is refused by these parts, so they must be shown to refuse and allow."""

from ..harness import case, run
from ..rgw import BUCKET
from ..spire import spiffe_id
from ..world import INTRUDER, INTRUDER_UID, LEGACY_UID, REPORT_UID, SIDECAR_UID

NARROW = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [f"arn:aws:s3:::{BUCKET}/c-42/*"]}


@case("a workload's own SVID gets credentials that a session policy narrows")
def sts_narrows(world):
    token = world.spire.jwt_svid(REPORT_UID, "sts.test")
    got = world.rgw.assume(token, "by-hand", NARROW)
    assert world.rgw.read(got, "c-42/report.txt") == 200
    assert world.rgw.read(got, "c-43/report.txt") == 403


@case("the STS refuses the SVID of a workload that its role does not trust, and of another audience")
def sts_refuses(world):
    for token in (world.spire.jwt_svid(INTRUDER_UID, "sts.test"), world.spire.jwt_svid(REPORT_UID, "sidemint")):
        try:
            world.rgw.assume(token, "by-hand", NARROW)
        except Exception as refused:
            assert "AccessDenied" in str(refused) or "403" in str(refused) or "Unknown" in str(refused), refused
        else:
            raise AssertionError("the STS took a token that it must refuse")


@case("SPIRE gives no SVID to a uid without an entry, and the sidecar's uid those of its workloads", needs=("spire",))
def spire_attests(world):
    assert world.spire.x509_ids(LEGACY_UID) == set()
    assert spiffe_id(INTRUDER) in world.spire.x509_ids(SIDECAR_UID)
    agent = f"{world.spire.bin}/spire-agent"
    fetch = [agent, "api", "fetch", "jwt", "-audience", "sts.test", "-socketPath", world.spire.agent_socket]
    assert run(fetch, uid=LEGACY_UID).code != 0
