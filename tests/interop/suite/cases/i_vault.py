"""Dynamic secrets of a real OpenBao: a role in PostgreSQL is there while its task lives, and gone with it."""

import shutil
import signal
import time

from ..harness import case, http_call, wait_until
from ..sidecar import Sidecar, seconds_until
from ..world import REPORT_UID

NEEDS = ("spire", "openbao", "sidemint")


def secret(world, task, expect=200):
    answer = task.call("GET", "/credentials?provider=vault").expect(expect)
    got = answer.json()
    if expect == 200:
        world.secret(got["data"]["password"])
    return got


def sidecar(world, name):
    return Sidecar(world, name, sts="http://127.0.0.1:1", shutdown="keep", vault=world.openbao.address).start()


@case("a role of PostgreSQL made by OpenBao is there while its task lives and gone when it has ended", NEEDS)
def gone_with_the_task(world):
    bao, served = world.openbao, sidecar(world, "vault")
    before = bao.roles()
    task = served.task(REPORT_UID, "database-read", params={})
    got = secret(world, task)
    assert set(got) == {"lease_id", "lease_duration", "renewable", "data"}, set(got)
    assert 20 <= got["lease_duration"] <= 45 and got["lease_id"].startswith("database/creds/ro/"), got["lease_duration"]
    (made,) = bao.roles() - before
    assert made == got["data"]["username"] and bao.log_in(got)
    assert secret(world, task)["lease_id"] == got["lease_id"], "served from memory"
    until = float(bao.sql(f"SELECT extract(epoch FROM rolvaliduntil) FROM pg_roles WHERE rolname = '{made}'"))
    assert until - time.time() <= 50, "the engine's own life of 1 h was shortened to the law's"
    report = task.end()
    (lease,) = report["leases"]
    assert lease["outcome"] == "revoked" and lease["usable_until"] <= report["ended_at"][:19] + "~", report
    assert bao.roles() == before and not bao.log_in(got) and bao.leases() == 0
    assert task.end() == report, "the report of the end changed"
    assert served.metric("sidemint_revocations_total", provider="vault", outcome="revoked") == 1
    assert served.metric("sidemint_revocations_outstanding", provider="vault") == 0
    served.stop()


@case("a task that lives longer than max_residual keeps the same role of PostgreSQL, and it is gone after the end", NEEDS)
def renewed_in_place(world):
    bao, served = world.openbao, sidecar(world, "vault-renewed")
    before = bao.roles()
    task = served.task(REPORT_UID, "database-read", params={})
    got = secret(world, task)
    read = time.monotonic()
    made = got["data"]["username"]
    # Nobody asks for it meanwhile: the decision says 50 s, the role's tokens live 45 s.
    while time.monotonic() - read < 75:
        assert bao.log_in(got), f"the role does not work {time.monotonic() - read:.0f} s after it was read"
        until = float(bao.sql(f"SELECT extract(epoch FROM rolvaliduntil) FROM pg_roles WHERE rolname = '{made}'"))
        # The engine lets a role be valid for 5 s more than its lease, at whose end OpenBao drops it.
        left = until - time.time()
        assert left <= 50 + 5, f"it lives {left:.1f} s, longer than the law of life allows"
        time.sleep(1)
    again = secret(world, task)
    assert (again["lease_id"], again["data"]) == (got["lease_id"], got["data"]) and again["lease_duration"] >= 10, again["lease_duration"]
    assert bao.roles() - before == {made} and bao.leases() == 1
    renewed = served.metric("sidemint_mints_total", provider="vault", tier="baseline", outcome="renewed")
    assert renewed >= 2, renewed
    assert served.metric("sidemint_mints_total", provider="vault", tier="baseline", outcome="minted") == 1
    report = task.end()
    assert [lease["outcome"] for lease in report["leases"]] == ["revoked"], report
    assert bao.roles() == before and not bao.log_in(got) and bao.leases() == 0
    served.stop()


@case("a sidecar that is killed and started again takes the role back by a new login", NEEDS)
def taken_back_after_a_crash(world):
    bao, served = world.openbao, sidecar(world, "vault-crash")
    before = bao.roles()
    task = served.task(REPORT_UID, "database-read", params={})
    got = secret(world, task)
    served.daemon.kill(signal.SIGKILL)
    assert len(bao.roles() - before) == 1
    served.start()
    report = task.end()
    assert report["leases"][0]["outcome"] == "revoked", report
    assert bao.roles() == before and not bao.log_in(got)
    served.stop()


@case("when sidecar and disk vanish together the role is gone within max_residual", NEEDS)
def gone_by_itself(world):
    bao, served = world.openbao, sidecar(world, "vault-gone")
    before = bao.roles()
    task = served.task(REPORT_UID, "database-read", params={})
    got = secret(world, task)
    minted = time.monotonic()
    served.daemon.kill(signal.SIGKILL)
    shutil.rmtree(served.state)
    assert len(bao.roles() - before) == 1 and bao.log_in(got)
    wait_until("OpenBao to drop the role by itself", lambda: bao.roles() == before, 60, 0.5)
    took = time.monotonic() - minted
    assert took <= 50 + 3, f"{took:.1f} s, the decision says 50 s"
    assert not bao.log_in(got)


@case("a role of OpenBao that gives batch tokens, or tokens that live too long, is refused", NEEDS)
def outside_the_law(world):
    bao, served = world.openbao, sidecar(world, "vault-law")
    before = bao.roles()
    for scope, why in (("database-batch", "batch"), ("database-long", "lower token_ttl")):
        task = served.task(REPORT_UID, scope, params={})
        assert secret(world, task, 403)["code"] == "denied"
        failed = [line for line in served.audit_records() if line["event"] == "mint" and line.get("task") == task.id]
        assert why in failed[-1]["detail"], failed
        assert task.end()["leases"] == []
    assert bao.roles() == before
    served.stop()


@case("an OpenBao that is gone when a task ends is told once it is back, and nothing is called revoked before", NEEDS)
def told_when_it_is_back(world):
    bao, served = world.openbao, sidecar(world, "vault-down")
    before = bao.roles()
    task = served.task(REPORT_UID, "database-read", params={})
    secret(world, task)
    (daemon,) = [d for d in bao.running if d.name == "openbao"]
    daemon.kill(signal.SIGSTOP)
    try:
        report = task.end()
        assert report["leases"][0]["outcome"] == "expires", report
        assert 0 < seconds_until(report["leases"][0]["usable_until"]) <= 51
        assert served.metric("sidemint_revocations_outstanding", provider="vault") == 1
    finally:
        daemon.kill(signal.SIGCONT)
    wait_until("the role to be gone", lambda: bao.roles() == before, 30, 0.25)
    wait_until("the report to say so", lambda: task.end()["leases"][0]["outcome"] == "revoked", 10)
    served.stop()
