"""Waiting with deadlines, processes stopped by their own pid, plain HTTP, and the list of cases."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable


class Skip(Exception):
    """A case that cannot run here; its text says why."""


@dataclass
class Case:
    """One behaviour. `needs` names the parts of the world without which it is skipped."""

    name: str
    run: Callable
    needs: tuple


CASES: list[Case] = []


def case(name, needs=("spire", "rgw")):
    """Registers a function of the world as the case `name`, a sentence about behaviour."""

    def register(function):
        CASES.append(Case(name, function, tuple(needs)))
        return function

    return register


def wait_until(what, probe, deadline=15.0, step=0.1):
    """Calls `probe` until it returns something true, and returns that. What it raises counts as "not yet"."""
    end = time.monotonic() + deadline
    last = "never true"
    while True:
        try:
            value = probe()
            if value:
                return value
            last = f"last value {value!r}"
        except (OSError, ValueError, KeyError, IndexError, AssertionError, http.client.HTTPException) as error:
            last = f"last error {type(error).__name__}: {error}"
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:.0f} s for {what}; {last}"[:600])
        time.sleep(step)


def free_port():
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_user(uid, groups=()):
    """The words before a command that run it under `uid`, with its own group and `groups` only."""
    if uid is None:
        return []
    more = [f"--groups={','.join(str(g) for g in groups)}"] if groups else ["--clear-groups"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", *more]


@dataclass
class Daemon:
    """A process of this suite, with its log. It dies with the suite, and is stopped by its own pid."""

    name: str
    argv: list
    log: Path
    env: dict | None = None
    uid: int | None = None
    groups: tuple = ()
    process: subprocess.Popen | None = field(default=None, repr=False)

    def start(self):
        argv = [*as_user(self.uid, self.groups), *map(str, self.argv)]
        # The process dies when the suite is killed, also where that happens without a chance to clean up.
        argv = ["setpriv", "--pdeathsig=KILL", *argv] if not argv[0] == "setpriv" else [argv[0], "--pdeathsig=KILL", *argv[1:]]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd="/", start_new_session=True
            )
        return self

    @property
    def pid(self):
        return self.process.pid

    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self, number=signal.SIGKILL):
        """Sends one signal; SIGKILL also waits for the end."""
        if self.running():
            self.process.send_signal(number)
            if number == signal.SIGKILL:
                self.process.wait(10)

    def stop(self, deadline=10.0):
        """SIGTERM, then SIGKILL at the deadline. Returns (exit code, seconds)."""
        if not self.running():
            return (None if self.process is None else self.process.returncode), 0.0
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(10)
        return code, time.monotonic() - begun

    def tail(self, lines=40):
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"({error})"


@dataclass
class Done:
    """What a command did."""

    argv: list
    code: int
    out: str
    err: str

    def ok(self):
        if self.code != 0:
            raise AssertionError(f"{self.argv[0]} … exit {self.code}: {self.err.strip()[-1500:] or self.out.strip()[-1500:]}")
        return self


def run(argv, uid=None, groups=(), env=None, deadline=60.0):
    """Runs a command to its end, without input."""
    argv = [str(word) for word in argv]
    try:
        done = subprocess.run(
            [*as_user(uid, groups), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd="/",
            timeout=deadline,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as slow:
        raise AssertionError(f"{argv[0]} … took longer than {deadline:.0f} s: {(slow.stderr or b'')[-500:]}") from slow
    return Done(argv, done.returncode, done.stdout, done.stderr)


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)

    def expect(self, *statuses):
        if self.status not in statuses:
            raise AssertionError(f"wanted status {statuses}, got {self.status}: {self.body[:400]!r}")
        return self


class _Unix(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def connection(address, deadline):
    """A connection to `http://host:port` or `unix:///path`."""
    if address.startswith("unix://"):
        return _Unix(address.removeprefix("unix://"), deadline)
    where = urllib.parse.urlsplit(address)
    return http.client.HTTPConnection(where.hostname, where.port, timeout=deadline)


def http_call(method, address, path, headers=None, body=None, deadline=15.0):
    """One request on its own connection; a `dict` body is sent as JSON. Ignores every proxy variable."""
    headers = dict(headers or {})
    if isinstance(body, dict):
        body = json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
    link = connection(address, deadline)
    try:
        link.request(method, path, body=body, headers=headers)
        answer = link.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        link.close()


def b64url(data):
    """Base64 for URLs without padding, of bytes or of a value as JSON."""
    if not isinstance(data, bytes):
        data = json.dumps(data, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_b64url(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def write(path, text, mode=0o644, uid=0, gid=0):
    """Writes a file in one step: no reader sees half of it."""
    path = Path(path)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.chmod(fresh, mode)
    os.chown(fresh, uid, gid)
    os.replace(fresh, path)
    return path
