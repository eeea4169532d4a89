"""SIGKILL under load at named points, restart, and the ledgers joined: the provider's own, the clients', the sidecar's.

A proxy on the sidecar's way to the provider is where most points are: it knows what was asked and answered, and can hold
either back until the sidecar is dead. What can still be used is for the provider itself to say: RGW is asked to serve the
credential, OpenBao for its leases, PostgreSQL for its roles.
"""

import http.client
import http.server
import json
import os
import random
import re
import signal
import threading
import time
import urllib.parse
from datetime import datetime

from ..harness import case, from_b64url, http_call, wait_until
from ..sidecar import Sidecar
from ..spire import spiffe_id
from ..world import BATCH, BATCH_UID, REPORT, REPORT_UID

NEEDS_RGW = ("spire", "rgw", "sidemint")
NEEDS_BAO = ("spire", "openbao", "sidemint")
KEY = "c-42/report.txt"
FEW = 40
CLIENT_POINTS = ("any", "starting", "begin-sent", "begun", "asked", "served", "end-sent", "end-acknowledged")


def kills():
    return int(os.environ.get("CRASH_KILLS") or FEW)


def seed():
    return int(os.environ.get("CRASH_SEED") or 0)


def instant(text):
    """Seconds since the epoch of an RFC 3339 time; Python reads no more than six digits of a fraction."""
    text = re.sub(r"(\.\d{6})\d+", r"\1", text.replace("Z", "+00:00"))
    return datetime.fromisoformat(text).timestamp()


class Gate:
    """Tells when the armed point has been passed often enough; there a server stands still until the kill is done."""

    def __init__(self):
        self.lock = threading.Lock()
        self.point, self.before, self.hit, self.released = None, 0, threading.Event(), threading.Event()

    def arm(self, point, before):
        with self.lock:
            self.point, self.before = point, before
            self.hit, self.released = threading.Event(), threading.Event()
            return self.hit

    def release(self):
        with self.lock:
            self.point = None
            self.released.set()

    def passed(self, point):
        """Whether this is the one; then the event that says that the sidecar is dead."""
        with self.lock:
            if self.point != point:
                return None
            if self.before:
                self.before -= 1
                return None
            self.point = None
            self.hit.set()
            return self.released

    def stop_at(self, point):
        released = self.passed(point)
        if released:
            released.wait(30)


class Proxy(http.server.ThreadingHTTPServer):
    """Hands every request on to `upstream`; `note(method, path, headers, body, answer)` keeps the books."""

    daemon_threads = True

    def __init__(self, upstream, gate, before, note, after):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.gate, self.before, self.note, self.after = upstream, gate, before, note, after
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A sidecar that was killed in the middle of a request is what this is about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path
        point = server.before(path)
        if point:
            server.gate.stop_at(point)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "content-length")}
        answer = http_call(self.command, server.upstream, path, headers, body or None, deadline=20)
        server.note(path, headers, body, answer)
        point = server.after(path, answer)
        if point:
            server.gate.stop_at(point)
        server.gate.passed("answered")
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do


class Load:
    """Clients that begin, use and end tasks whatever becomes of the sidecar, and what they were told and received."""

    def __init__(self, world, sidecar, gate, scopes, vault):
        self.world, self.sidecar, self.gate, self.scopes, self.vault = world, sidecar, gate, scopes, vault
        self.lock, self.stop, self.seen = threading.Lock(), threading.Event(), []
        self.tasks, self.received, self.svids = {}, [], {}
        self.threads = []

    def start(self, clients, rng):
        for number in range(clients):
            uid, owner, scope = self.scopes[number % len(self.scopes)]
            thread = threading.Thread(target=self.client, args=(uid, owner, scope, random.Random(rng.random())), daemon=True)
            thread.start()
            self.threads.append(thread)

    def finish(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)

    def svid(self, uid):
        with self.lock:
            token, until = self.svids.get(uid, (None, 0))
            if time.monotonic() > until:
                token = self.world.spire.jwt_svid(uid, "sidemint")
                self.world.secret(token)
                self.svids[uid] = (token, time.monotonic() + 8)
            return token

    def call(self, method, path, proof, body=None):
        """An answer, or None where the sidecar died before it came."""
        try:
            return http_call(method, self.sidecar.http, path, {"Authorization": f"Bearer {proof}"}, body, deadline=20)
        except (OSError, ValueError, http.client.HTTPException):
            return None

    def soon(self, point):
        timer = threading.Timer(0.001, self.gate.passed, [point])
        timer.daemon = True
        timer.start()

    def client(self, uid, owner, scope, rng):
        mine, over = [], []
        while not self.stop.is_set():
            try:
                self.step(uid, owner, scope, rng, mine, over)
            except Exception as error:  # a client that crashed has seen something
                self.saw(f"a client crashed: {type(error).__name__}: {error}")
                return
            time.sleep(rng.uniform(0.005, 0.03))

    def saw(self, what):
        with self.lock:
            self.seen.append(what)

    def step(self, uid, owner, scope, rng, mine, over):
        choice = rng.random()
        now = time.time()
        for task in [task for task in mine if self.tasks[task]["deadline"] + 2 < now]:
            mine.remove(task)
            over.append(task)
        if not mine or (choice < 0.25 and len(mine) < 3):
            self.soon("begin-sent")
            params = {} if self.vault else {"customer": "c-42"}
            ttl = f"{rng.randint(8, 25)}s" if rng.random() < 0.5 else "5m"
            answer = self.call("POST", "/v1/tasks", self.svid(uid), {"scope": scope, "params": params, "ttl": ttl})
            if answer is None or answer.status in (429, 503):
                return
            if answer.status != 201:
                return self.saw(f"a begin was answered {answer.status}: {answer.body[:300]!r}")
            begun = answer.json()
            self.world.secret(begun["token"])
            known = {"owner": owner, "token": begun["token"], "deadline": instant(begun["expires_at"]), "end_asked": False, "report": None}
            with self.lock:
                self.tasks[begun["id"]] = known
            mine.append(begun["id"])
            self.gate.passed("begun")
        elif choice < 0.75:
            self.soon("asked")
            self.credentials(rng.choice(mine))
        elif choice < 0.9:
            task = rng.choice(mine)
            self.soon("end-sent")
            if self.end(task):
                mine.remove(task)
                over.append(task)
                # At once, while this sidecar may still have it in memory.
                self.credentials(task)
        elif over:
            self.credentials(rng.choice(over[-4:]))

    def credentials(self, task):
        known = self.tasks[task]
        sent, ended = time.time(), known["report"]
        path = f"/v1/tasks/{task}/credentials?provider=vault" if self.vault else "/v1/aws/credentials"
        answer = self.call("GET", path, known["token"])
        if answer is None or answer.status != 200:
            refused = answer is not None and answer.status in (401, 403, 404, 409)
            if refused and not known["end_asked"] and time.time() + 9 < known["deadline"]:
                self.saw(f"a running task was refused: {answer.status} {answer.body[:200]!r}")
            return
        got = answer.json()
        told = sent + got["lease_duration"] if self.vault else instant(got["Expiration"])
        self.world.secret(*([got["data"]["password"]] if self.vault else [got["SecretAccessKey"], got["Token"]]))
        with self.lock:
            self.received.append({"task": task, "key": got["lease_id" if self.vault else "AccessKeyId"], "got": got})
        if ended is not None:
            self.saw(f"served late, after the acknowledged end of {task}")
        if sent >= told or sent >= known["deadline"]:
            self.saw(f"served late: asked at {sent}, told {told}, deadline {known['deadline']}")
        self.gate.passed("served")

    def end(self, task):
        known = self.tasks[task]
        known["end_asked"] = True
        answer = self.call("DELETE", f"/v1/tasks/{task}", known["token"])
        if answer is None or answer.status != 200:
            return False
        known["report"] = {"at": time.time(), **answer.json()}
        self.gate.passed("end-acknowledged")
        return True


# A sidecar's times are whole milliseconds: an answer within the one that OpenBao counts from ends with its beginning.
MILLISECOND = 0.001


def unmatched(needed, there):
    """The latest of `needed` that finds no partner of its own in `there` that is at least as late."""
    needed, there = sorted(needed, reverse=True), sorted(there, reverse=True)
    return next((end for at, end in enumerate(needed) if at >= len(there) or there[at] + MILLISECOND < end), None)


def join(load, tasks, usable, status, now):
    """What is wrong, in sentences, of the `tasks` known before the status was asked for: `usable` gives for each group of
    leases the ends that the provider itself keeps."""
    wrong, load.seen = load.seen, []
    views = {view["id"]: view for view in status["task_list"]}
    groups = {}
    for view in views.values():
        group = "vault" if load.vault else view["id"]
        lines = [lease for lease in view["leases"] if lease["state"] not in ("revoked", "expired")]
        groups.setdefault(group, []).extend(instant(lease["usable_until"]) for lease in lines)
    for group, ends in usable.items():
        missing = unmatched([end for end in ends if end > now], groups.get(group, []))
        if missing is not None:
            wrong.append(f"a lease is lost: {group} has {sorted(groups.get(group, []))}, one works until {missing} of {sorted(ends)}")
    for task in tasks:
        known = load.tasks[task]
        view = views.get(task)
        if view is None:
            if not known["end_asked"] and known["deadline"] > now:
                wrong.append(f"a task is lost: {task} {known['deadline']}")
            continue
        if view["spiffe_id"] != known["owner"]:
            wrong.append(f"{task} is of {view['spiffe_id']} now")
        reason = view.get("reason")
        fine = (view["state"] == "active") or (reason == "done" and known["end_asked"]) or (reason == "deadline" and known["deadline"] <= now)
        if not fine:
            wrong.append(f"{task} was ended by nobody: {reason}")
    return wrong


def campaign(load, sidecar, gate, points, usable, more, rng):
    """Kills, starts and joins. `usable()` asks the provider, `more(status)` gives further complaints."""
    met = {}
    for kill in range(1, kills() + 1):
        point = rng.choice(points)
        plan = f"CRASH_SEED={seed()}, kill {kill} at {point}"
        if point == "starting":
            sidecar.daemon.kill(signal.SIGKILL)
            sidecar.start(ready=0)
            time.sleep(rng.uniform(0, 0.5))
        elif point != "any":
            came = gate.arm(point, rng.randrange(4)).wait(2.5)
            met[point] = met.get(point, 0) + came
        spread = {"any": 0.4, "begin-sent": 0.012, "asked": 0.012, "end-sent": 0.012, "answered": 0.015}
        time.sleep(rng.uniform(0, spread.get(point, 0.002)))
        assert sidecar.daemon.running(), f"{plan}: it had ended by itself: {sidecar.daemon.tail(8)}"
        sidecar.daemon.kill(signal.SIGKILL)
        gate.release()
        sidecar.start()
        # What clients were told, and what the provider has, before the sidecar's own account: that must know as much.
        with load.lock:
            tasks, ended = list(load.tasks), {task for task, known in load.tasks.items() if known["report"]}
        left = usable()
        status = sidecar.status()
        wrong = join(load, tasks, left, status, time.time())
        back = [view["id"] for view in status["task_list"] if view["id"] in ended and view["state"] == "active"]
        wrong += [f"an acknowledged end is lost: {task}" for task in back] + more(status)
        assert not wrong, f"{plan}: " + "; ".join(wrong[:5])
    return met


def told_of(load, key):
    """Until when the report of its task's end said that a credential can be used; None where there is no such report."""
    task = next(got["task"] for got in load.received if got["key"] == key)
    report = load.tasks[task]["report"]
    return max(instant(line["usable_until"]) for line in report["leases"]) if report else None


@case("killed again and again under load beside RGW: no lease lost, nothing served late or to another, each dead at RGW when told", NEEDS_RGW)
def beside_rgw(world):
    gate, mints, rng = Gate(), [], random.Random(f"rgw {seed()}")

    def note(path, headers, body, answer):
        if answer.status != 200 or b"AssumeRoleWithWebIdentity" not in body:
            return
        asked = {k: v[0] for k, v in urllib.parse.parse_qs(body.decode()).items()}
        text = answer.body.decode()
        one = lambda name: re.search(f"<{name}>([^<]*)</{name}>", text).group(1)
        policy = json.loads(asked["Policy"])
        cuts = {s["Condition"]["DateLessThan"]["aws:CurrentTime"] for s in policy["Statement"]}
        claims = json.loads(from_b64url(asked["WebIdentityToken"].split(".")[1]))
        mints.append(
            {
                "key": one("AccessKeyId"),
                "credential": {name: one(name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")},
                "task": asked["RoleSessionName"].rsplit(".", 1)[1],
                "subject": claims["sub"],
                "end": min(instant(one("Expiration")), max(map(instant, cuts))),
            }
        )
        world.secret(one("SecretAccessKey"), one("SessionToken"))

    proxy = Proxy(world.rgw.endpoint, gate, lambda _: "intent-durable", note, lambda _, answer: "minted" if answer.status == 200 else None)
    sidecar = Sidecar(world, "crash-rgw", sts=proxy.address).start()
    report, batch = (REPORT_UID, spiffe_id(REPORT), "ledger-read"), (BATCH_UID, spiffe_id(BATCH), "ledger-batch")
    load = Load(world, sidecar, gate, [report, batch], vault=False)
    load.start(6, rng)

    def usable():
        groups = {}
        for mint in list(mints):
            groups.setdefault(mint["task"], []).append(mint["end"])
        return groups

    def more(_):
        by_key, wrong = {mint["key"]: mint for mint in list(mints)}, []
        for got in list(load.received):
            mint = by_key.get(got["key"])
            if mint is None or mint["task"] != got["task"] or mint["subject"] != load.tasks[got["task"]]["owner"]:
                wrong.append(f"served across identities or tasks: {got['key']} of {mint and mint['subject']} to {got['task']}")
        return wrong

    points = (*CLIENT_POINTS, "intent-durable", "minted", "answered")
    try:
        met = campaign(load, sidecar, gate, points, usable, more, rng)
        # One more of each life, alive now, and what RGW itself says of it at its end.
        fresh = [sidecar.task(REPORT_UID, "ledger-read"), sidecar.task(BATCH_UID, "ledger-batch")]
        got = [task.credentials().expect(200).json() for task in fresh]
        lost = [mint for mint in mints if mint["key"] not in {r["key"] for r in load.received} and mint["end"] > time.time() + 5]
        for credential in [*got, *(mint["credential"] for mint in lost[-3:])]:
            assert world.rgw.read(credential, KEY) == 200, "it was to be alive, or its end shows nothing"
        ends = [max(instant(line["usable_until"]) for line in task.end()["leases"]) for task in fresh]
    finally:
        load.finish()
    served = {got["key"]: got["got"] for got in load.received}
    watched = [(credential, end) for credential, end in zip(got, ends)]
    watched += [(mint["credential"], mint["end"]) for mint in lost[-3:]]
    watched += [(served[key], end) for key in list(served)[-40:] if (end := told_of(load, key)) is not None]
    for credential, end in watched:
        wait_until("the end that was told", lambda: time.time() > end + 1, 60, 0.2)
        assert world.rgw.read(credential, KEY) == 403, "RGW serves a credential after the end that was told"
    assert len(load.received) > kills() and any(known["report"] for known in load.tasks.values()), "there was no load"
    assert len(watched) >= 5, "too little was watched to its end"
    print(f"     {kills()} kills, {len(load.tasks)} tasks, {len(mints)} minted, {len(load.received)} received, {len(watched)} tried at RGW; met {met}")
    sidecar.stop()
    proxy.shutdown()


@case("killed again and again under load beside OpenBao: no lease lost, and every role of PostgreSQL gone when told", NEEDS_BAO)
def beside_openbao(world):
    gate, made, rng, bao = Gate(), {}, random.Random(f"bao {seed()}"), world.openbao
    before_roles = bao.roles()

    def note(path, headers, body, answer):
        if answer.status == 200 and path.startswith("/v1/database/creds/"):
            lease = answer.json()
            token = next(v for k, v in headers.items() if k.lower() == "x-vault-token")
            made[lease["lease_id"]] = {"token": token, "user": lease["data"]["username"], "gone": False}
            world.secret(lease["data"]["password"], token)

    def before(path):
        return {"/v1/auth/jwt/login": "login-called", "/v1/sys/leases/revoke": "revoke-called"}.get(path)

    def after(path, answer):
        if path.startswith("/v1/database/creds/"):
            return "lease-made"
        return "revoked" if path == "/v1/sys/leases/revoke" else None

    def root(path, **body):
        return http_call("POST", bao.address, f"/v1/{path}", {"X-Vault-Token": bao.root}, body)

    def ends_at(lease):
        """When OpenBao itself will end a lease, which is no later than its token; None when it is gone."""
        known = made[lease]
        if known["gone"]:
            return None
        found = [root("sys/leases/lookup", lease_id=lease), root("auth/token/lookup", token=known["token"])]
        known["gone"] = any(answer.status != 200 for answer in found)
        return None if known["gone"] else min(instant(answer.json()["data"]["expire_time"]) for answer in found)

    proxy = Proxy(bao.address, gate, before, note, after)
    sidecar = Sidecar(world, "crash-bao", sts="http://127.0.0.1:1", shutdown="keep", vault=proxy.address).start()
    load = Load(world, sidecar, gate, [(REPORT_UID, spiffe_id(REPORT), "database-read")], vault=True)
    load.start(4, rng)

    def usable():
        return {"vault": [end for lease in list(made) if (end := ends_at(lease)) is not None]}

    def more(_):
        wrong = [f"{got['key']} was never made" for got in list(load.received) if got["key"] not in made]
        owner = {}
        for got in list(load.received):
            if owner.setdefault(got["key"], got["task"]) != got["task"]:
                wrong.append(f"{got['key']} was served to two tasks")
        with load.lock:
            ended = {task: known["report"] for task, known in load.tasks.items() if known["report"]}
        there = bao.roles()
        for lease, task in owner.items():
            # A report where everything is revoked leaves nothing of its task in PostgreSQL.
            revoked = task in ended and all(line["outcome"] == "revoked" for line in ended[task]["leases"])
            if revoked and lease in made and made[lease]["user"] in there:
                wrong.append(f"called revoked, and PostgreSQL still has {made[lease]['user']}")
        return wrong

    points = (*CLIENT_POINTS, "login-called", "lease-made", "answered", "revoke-called", "revoked")
    try:
        met = campaign(load, sidecar, gate, points, usable, more, rng)
    finally:
        load.finish()
    for task, known in load.tasks.items():
        if known["deadline"] > time.time() and not known["report"]:
            load.end(task)
    # What is known by its lease goes at once, what was lost in an answer within max_residual.
    wait_until("PostgreSQL to have no role of ours", lambda: bao.roles() <= before_roles, 60, 0.5)
    wait_until("nothing to be outstanding", lambda: sidecar.metric("sidemint_revocations_outstanding", provider="vault") == 0, 15)
    assert bao.leases() == 0, "OpenBao has leases left"
    assert len(load.received) > kills() and any(known["report"] for known in load.tasks.values()), "there was no load"
    print(f"     {kills()} kills, {len(load.tasks)} tasks, {len(made)} leases made, {len(load.received)} received; met {met}")
    sidecar.stop()
    proxy.shutdown()
