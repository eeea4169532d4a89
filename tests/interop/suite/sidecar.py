"""`sidemint serve` under its own uid, and what a workload or operator asks of it."""

import json
import os
import time

from .harness import Answer, Daemon, as_user, free_port, http_call, run, wait_until
from .rgw import AUDIENCE

SIDECAR_UID = 2001


class Sidecar:
    """One sidecar with its own ports, journal, audit file and configuration. It may be started again."""

    def __init__(self, world, name, workload_api=None, sts=None, pod_task=None, shutdown="end", uid=SIDECAR_UID, policy=None, vault=None, mtls=False):
        self.world, self.name, self.uid = world, name, uid
        self.folder = world.folder / name
        self.folder.mkdir(mode=0o755)
        os.chown(self.folder, uid, uid)
        self.http_port, self.admin_port = free_port(), free_port()
        self.http = f"http://127.0.0.1:{self.http_port}"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        self.mtls_port = free_port() if mtls else None
        self.admin_socket = self.folder / "admin.sock"
        self.socket = self.folder / "broker.sock"
        self.audit = self.folder / "audit.jsonl"
        self.state = self.folder / "state"
        self.state.mkdir(mode=0o700)
        os.chown(self.state, uid, uid)
        self.config = self.folder / "sidemint.toml"
        pod = ""
        if pod_task:
            params = "".join(f"{key} = {json.dumps(value)}\n" for key, value in pod_task["params"].items())
            rest = "".join(f"{key} = {json.dumps(value)}\n" for key, value in pod_task.items() if key != "params")
            pod = f"[pod_task]\n{rest}[pod_task.params]\n{params}"
        self.config.write_text(
            CONFIG.format(
                http=self.http_port,
                admin=self.admin_port,
                folder=self.folder,
                workload_api=workload_api or world.spire.workload_api,
                policy=policy or f'directory = "{world.policy.folder}"\ntrust = "unsigned"\npoll = "1s"',
                sts=sts or world.rgw.endpoint,
                audience=AUDIENCE,
                shutdown=shutdown,
                pod=pod,
                mtls=f'[mtls]\naddress = "127.0.0.1:{self.mtls_port}"\n' if mtls else "",
                vault=f'[vault]\naddress = "{vault}"\n' if vault else "",
            )
        )
        self.daemon = None
        self.starts = 0
        world.sidecars.append(self)

    def start(self, ready=30.0):
        self.starts += 1
        log = self.folder / f"serve-{self.starts}.log"
        argv = [self.world.sidemint, "serve", "--config", self.config]
        self.daemon = Daemon(f"{self.name}-{self.starts}", argv, log, env=self.world.bare_env(), uid=self.uid).start()
        if ready:
            self.wait_ready(ready)
        return self

    def wait_ready(self, deadline=30.0):
        def probe():
            assert self.daemon.running(), f"sidemint serve ended with {self.daemon.process.returncode}: {self.daemon.tail(8)}"
            return self.readyz().status == 200

        wait_until(f"{self.name} to be ready", probe, deadline)
        return self

    def readyz(self):
        return http_call("GET", self.admin, "/readyz", deadline=5)

    def stop(self, deadline=10.0):
        return self.daemon.stop(deadline) if self.daemon else (None, 0.0)

    def status(self):
        """The operator's view, through the admin socket."""
        return http_call("GET", f"unix://{self.admin_socket}", "/status").expect(200).json()

    def metrics(self):
        return http_call("GET", self.admin, "/metrics").expect(200).body.decode()

    def metric(self, name, **labels):
        """The sum of all samples of `name` that carry `labels`."""
        total = 0.0
        for line in self.metrics().splitlines():
            if not line.startswith(name) or line[len(name)] not in "{ ":
                continue
            if all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def begin(self, uid, scope, token=None, **ask) -> Answer:
        """`POST /v1/tasks` with a JWT-SVID of the workload `uid`."""
        token = token or self.world.spire.jwt_svid(uid, "sidemint")
        self.world.secret(token)
        ask.setdefault("params", {"customer": "c-42"})
        answer = http_call("POST", self.http, "/v1/tasks", {"Authorization": f"Bearer {token}"}, {"scope": scope, **ask})
        if answer.status == 201:
            task = answer.json()
            self.world.secret(task["token"])
            self.world.begun.append((self, task["id"]))
        return answer

    def task(self, uid, scope, **ask) -> "Task":
        return Task(self, self.begin(uid, scope, **ask).expect(201).json())

    def credentials(self, token, scheme=""):
        """The AWS container dialect, as an SDK asks it."""
        answer = http_call("GET", self.http, "/v1/aws/credentials", {"Authorization": scheme + token, "Accept": "application/json"})
        if answer.status == 200:
            got = answer.json()
            self.world.secret(got["SecretAccessKey"], got["Token"])
        return answer

    def audit_records(self):
        return [json.loads(line) for line in self.audit.read_text().splitlines() if line]


class Task:
    """A begun task, in the hand of its holder."""

    def __init__(self, sidecar, begun):
        self.sidecar = sidecar
        self.id, self.token, self.environment = begun["id"], begun["token"], begun["environment"]
        self.begun = begun

    def call(self, method, path=""):
        return http_call(method, self.sidecar.http, f"/v1/tasks/{self.id}{path}", {"Authorization": f"Bearer {self.token}"})

    def show(self):
        return self.call("GET").expect(200).json()

    def credentials(self):
        return self.sidecar.credentials(self.token)

    def end(self):
        return self.call("DELETE").expect(200).json()

    def ended(self, deadline=15.0, reason=None):
        """Waits until the task has ended; returns its view."""

        def probe():
            view = self.show()
            return view if view["state"] == "ended" else None

        view = wait_until(f"task {self.id} to end", probe, deadline)
        assert reason is None or view["reason"] == reason, f"ended for {view['reason']!r}, not for {reason!r}"
        return view


def seconds_until(instant):
    """Seconds from now to an RFC 3339 instant in UTC."""
    import datetime

    return datetime.datetime.fromisoformat(instant.replace("Z", "+00:00")).timestamp() - time.time()


CONFIG = """
[server]
http = "127.0.0.1:{http}"
unix_socket = "{folder}/broker.sock"

[admin]
http = "127.0.0.1:{admin}"
unix_socket = "{folder}/admin.sock"

[identity]
workload_api = "{workload_api}"
audience = "sidemint"

[policy]
{policy}

[aws]
sts_endpoint = "{sts}"
region = "us-east-1"
audience = "{audience}"

[state]
directory = "{folder}/state"

[audit]
output = "{folder}/audit.jsonl"

[log]
level = "info"
format = "json"

[shutdown]
tasks = "{shutdown}"

{mtls}
{vault}
{pod}
"""
