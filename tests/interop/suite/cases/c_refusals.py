"""Who is refused, and that each refusal is told, counted and written down."""

import hashlib
import hmac
import json
import time

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from ..harness import b64url, case, from_b64url, http_call, wait_until
from ..spire import spiffe_id
from ..world import ALONE_UID, INTRUDER_UID, REPORT, REPORT_UID

NEEDS = ("spire", "rgw", "sidemint")


def refused(world, answer, status, code, event):
    """An error as the contract has it, and the audit record with its request id."""
    sidecar = world.shared()
    answer.expect(status)
    problem = answer.json()
    assert answer.headers["content-type"].startswith("application/problem+json"), answer.headers
    assert (problem["status"], problem["code"]) == (status, code), problem
    request = answer.headers["x-request-id"]
    assert problem["request_id"] == request, problem
    found = wait_until("the audit record", lambda: [r for r in sidecar.audit_records() if r.get("request_id") == request], 5)
    assert [r["event"] for r in found] == [event], found
    return found[0]


@case("a workload that no rule permits is denied, told nothing of the policy, counted and audited", NEEDS)
def wrong_uid(world):
    sidecar = world.shared()
    before = sidecar.metric("sidemint_denials_total")
    answer = sidecar.begin(INTRUDER_UID, "ledger-read")
    record = refused(world, answer, 403, "denied", "decision")
    assert record["outcome"] == "deny" and "intruder" in record["spiffe_id"], record
    assert b"ledger-read-0" not in answer.body, "policy text in an answer"
    assert sidecar.metric("sidemint_denials_total") == before + 1


@case("an unknown scope is answered like a denied one", NEEDS)
def unknown_scope(world):
    sidecar = world.shared()
    unknown, denied = sidecar.begin(REPORT_UID, "no-such-scope"), sidecar.begin(INTRUDER_UID, "ledger-read")

    def bare(answer):
        return {k: v for k, v in answer.json().items() if k != "request_id"}

    assert (unknown.status, bare(unknown)) == (denied.status, bare(denied))


@case("a parameter that policy does not allow, or that could widen a resource, is refused", NEEDS)
def parameters(world):
    sidecar = world.shared()
    refused(world, sidecar.begin(REPORT_UID, "ledger-read", params={"customer": "c-43"}), 403, "denied", "decision")
    for hostile in ("c-4?", "*", "c-42/*", "../c-43", "${aws:userid}", "", "c-42\n", "c" * 33):
        answer = sidecar.begin(REPORT_UID, "ledger-read", params={"customer": hostile})
        assert answer.status == 400 and answer.json()["code"] == "invalid_request", (hostile, answer)
    for params in ({}, {"customer": "c-42", "more": "x"}, {"customer": 42}):
        answer = sidecar.begin(REPORT_UID, "ledger-read", params=params)
        assert answer.status == 400, (params, answer)


@case("an identity that the sidecar does not hold may not begin, though a rule permits it", NEEDS)
def not_held(world):
    answer = world.shared().begin(ALONE_UID, "ledger-read")
    assert answer.status in (401, 403), answer
    assert answer.headers["x-request-id"]


@case("a token for another audience, or for two, is refused", NEEDS)
def wrong_audience(world):
    sidecar = world.shared()
    other = world.spire.jwt_svid(REPORT_UID, "sts.test")
    two = world.spire.mint_jwt(REPORT, ["sidemint", "sts.test"], "60s")
    for token in (other, two):
        record = refused(world, sidecar.begin(REPORT_UID, "ledger-read", token=token), 401, "unauthenticated", "decision")
        assert (record["outcome"], record["reason"]) == ("deny", "unauthenticated"), record


@case("an expired token is refused", NEEDS)
def expired(world):
    sidecar = world.shared()
    world.secret(world.expired_jwt)
    claims = json.loads(from_b64url(world.expired_jwt.split(".")[1]))
    assert claims["exp"] < time.time(), claims
    # A verifier may allow for skewed clocks, but for no more than a minute.
    body = {"scope": "ledger-read", "params": {"customer": "c-42"}}
    header = {"Authorization": f"Bearer {world.expired_jwt}"}
    past = claims["exp"] + 60 - time.time()
    if past > 0:
        wait_until("the token to be older than any skew", lambda: time.time() > claims["exp"] + 60, past + 5, 1)
    answer = http_call("POST", sidecar.http, "/v1/tasks", header, body)
    refused(world, answer, 401, "unauthenticated", "decision")


@case("forged tokens are refused: foreign keys, changed claims, no or symmetric signature, foreign trust domain", NEEDS)
def forged(world):
    sidecar = world.shared()
    header, claims, signature = world.spire.jwt_svid(REPORT_UID, "sidemint").split(".")
    head, said = json.loads(from_b64url(header)), json.loads(from_b64url(claims))
    foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def signed(head, said, key=foreign):
        text = f"{b64url(head)}.{b64url(said)}"
        return f"{text}.{b64url(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    keys = http_call("GET", world.spire.issuer, "/keys").json()["keys"]
    n, e = (int.from_bytes(from_b64url(next(k for k in keys if k["kid"] == head["kid"])[part]), "big") for part in "ne")
    public = rsa.RSAPublicNumbers(e, n).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    symmetric = f"{b64url({**head, 'alg': 'HS256'})}.{claims}"
    flipped = bytearray(from_b64url(signature))
    flipped[-1] ^= 1
    forgeries = {
        "signed by a foreign key with the real key's id": signed(head, said),
        "signed by a key that it brings along": signed(
            {**head, "jwk": {"kty": "RSA", "n": b64url(foreign.public_key().public_numbers().n.to_bytes(256, "big")), "e": "AQAB"}}, said
        ),
        "of another subject": f"{header}.{b64url({**said, 'sub': spiffe_id('ns/finance/sa/batch')})}.{signature}",
        "made to live longer": f"{header}.{b64url({**said, 'exp': said['exp'] + 3600})}.{signature}",
        "without signature": f"{b64url({**head, 'alg': 'none'})}.{claims}.",
        "with an empty signature": f"{header}.{claims}.",
        "keyed by the public key": f"{symmetric}.{b64url(hmac.new(pem, symmetric.encode(), hashlib.sha256).digest())}",
        "with one bit flipped": f"{header}.{claims}.{b64url(bytes(flipped))}",
        "of another trust domain": signed(head, {**said, "sub": "spiffe://elsewhere.test/ns/finance/sa/report"}),
        "with an unknown key id": signed({**head, "kid": "no-such-key"}, said),
    }
    for kind, token in forgeries.items():
        answer = sidecar.begin(REPORT_UID, "ledger-read", token=token)
        assert answer.status == 401 and answer.json()["code"] == "unauthenticated", (kind, answer)
    genuine = sidecar.begin(REPORT_UID, "ledger-read", token=f"{header}.{claims}.{signature}").expect(201)
    http_call("DELETE", sidecar.http, f"/v1/tasks/{genuine.json()['id']}", {"Authorization": f"Bearer {genuine.json()['token']}"}).expect(200)


@case("a task's token opens that task only, and nobody else's SVID ends it", NEEDS)
def foreign_tokens(world):
    sidecar = world.shared()
    mine, other = sidecar.task(REPORT_UID, "ledger-read"), sidecar.task(REPORT_UID, "ledger-read")
    answer = http_call("DELETE", sidecar.http, f"/v1/tasks/{mine.id}", {"Authorization": f"Bearer {other.token}"})
    assert answer.status in (401, 403, 404), answer
    intruder = world.spire.jwt_svid(INTRUDER_UID, "sidemint")
    answer = http_call("DELETE", sidecar.http, f"/v1/tasks/{mine.id}", {"Authorization": f"Bearer {intruder}"})
    assert answer.status in (401, 403, 404), answer
    assert mine.show()["state"] == "active"
    for task in (mine, other):
        task.end()


@case("the credentials endpoint refuses who brings no token, a wrong one, an SVID, or comes through a proxy or browser", NEEDS)
def endpoint_guards(world):
    sidecar = world.shared()
    task = sidecar.task(REPORT_UID, "ledger-read")
    path = "/v1/aws/credentials"
    good = {"Authorization": task.token}
    wrong = {
        "no token": {},
        "a made-up token": {"Authorization": "smt_" + "A" * 43},
        "a JWT-SVID": {"Authorization": world.spire.jwt_svid(REPORT_UID, "sidemint")},
        "a forwarded request": {**good, "X-Forwarded-For": "10.0.0.1"},
        "a page's request": {**good, "Origin": "http://evil.test"},
        "a rebound name": {**good, "Host": "evil.test"},
    }
    for kind, headers in wrong.items():
        answer = http_call("GET", sidecar.http, path, headers)
        assert answer.status in (401, 403), (kind, answer)
        assert b"AccessKeyId" not in answer.body, kind
        assert answer.headers["content-type"] == "application/json", (kind, answer.headers)
    assert sidecar.credentials(task.token).status == 200
    assert sidecar.credentials(task.token, scheme="Bearer ").status == 200
    task.end()
