"""A sidecar that reads its policy from a signed repository over HTTPS: trusted once, killed within 35 s, offline after."""

import contextlib
import functools
import http.server
import os
import ssl
import subprocess
import threading
import time

from ..harness import case, run, wait_until, write
from ..policy import PolicyDirectory, policy_files
from ..sidecar import SIDECAR_UID, Sidecar
from ..spire import spiffe_id
from ..tuf import TufRepository
from ..world import REPORT, REPORT_UID

NEEDS = ("sidemint", "spire", "rgw")
# What docs/publishing.md#kill promises: a poll of 30 s, and 5 s for the rest.
KILLED_WITHIN = 35


class Repository:
    """A working repository, what it publishes, and a web server for that with a certificate of a private CA."""

    def __init__(self, world, name):
        self.world, self.folder = world, world.folder / name
        self.folder.mkdir()
        self.directory, self.out = self.folder / "repo", self.folder / "out"
        self.policy("new", self.directory)
        PolicyDirectory(self.directory).scope("ledger-read", [spiffe_id(REPORT)])
        for role in ("governance", "business-owners", "implementers"):
            self.policy("sign", "--policy", self.directory, "--role", role, "--key", self.key(role), "--restart")
        (self.directory / "decisions" / "ledger-read.tests.toml").unlink(missing_ok=True)
        self.publish()
        self.root = self.folder / "root.json"
        write(self.root, (self.out / "metadata" / "1.root.json").read_text())
        self.ca, self.requests = self.folder / "ca.pem", []

    def policy(self, *words):
        return run([self.world.sidemint, "policy", *words], env=self.world.bare_env()).ok()

    def key(self, name):
        return self.directory / "keys" / f"{name}.pem"

    def publish(self):
        self.policy("publish", "--policy", self.directory, "--to", self.out)

    def kill(self, *words):
        self.policy("kill", "--policy", self.directory, "--to", self.out, "--key", self.key("incident"), *words)

    @contextlib.contextmanager
    def served(self, port=0):
        """The published files behind HTTPS on loopback; gives the port."""
        certificate, key = self.folder / "server.pem", self.folder / "server.key"
        if not certificate.exists():
            openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
            ca = [*openssl, "-subj", "/CN=policy test CA", "-keyout", self.folder / "ca.key", "-out", self.ca]
            subprocess.run(ca, check=True, capture_output=True)
            more = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
            signed = ["-CA", self.ca, "-CAkey", self.folder / "ca.key", "-keyout", key, "-out", certificate]
            subprocess.run([*openssl, "-subj", "/CN=localhost", *more, *signed], check=True, capture_output=True)
            os.chmod(self.ca, 0o644)
        seen = self.requests

        class Files(http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                seen.append(self.path)

        handler = functools.partial(Files, directory=str(self.out))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()

    def settings(self, port):
        return f'repository = "https://localhost:{port}"\nroot = "{self.root}"\nca = "{self.ca}"'


@case("a signed policy over HTTPS is trusted once on purpose; a kill works within 35 s, survives a restart offline, and is lifted", NEEDS)
def signed(world):
    repository = Repository(world, "signed-policy")
    with repository.served() as port:
        sidecar = Sidecar(world, "signed", policy=repository.settings(port)).start(ready=0)
        refused = wait_until("a reason", lambda: (a := sidecar.readyz()).status == 503 and b"policy trust" in a.body and a, 20)
        assert refused.status == 503
        sidecar.begin(REPORT_UID, "ledger-read").expect(503)
        sidecar.stop()

        trust(sidecar, repository.root, f"https://localhost:{port}", "--ca", repository.ca)
        sidecar.start()
        task, other = sidecar.task(REPORT_UID, "ledger-read"), sidecar.task(REPORT_UID, "ledger-read")
        task.credentials().expect(200)
        version = sidecar.metric("sidemint_policy_version")
        assert version >= 1 and sidecar.metric("sidemint_policy_state", state="fresh") == 1, sidecar.metrics()
        decisions = [r for r in sidecar.audit_records() if r["event"] == "decision" and r["outcome"] == "permit"]
        assert decisions and decisions[-1]["policy_version"].startswith(f"{version:.0f}-"), decisions[-1:]

        repository.kill("--task", other.id, "--reason", "a laptop was stolen")
        other.ended(KILLED_WITHIN, "killed")
        task.credentials().expect(200)
        repository.kill("--scope", "ledger-read", "--reason", "the bucket leaks")
        since = time.monotonic()
        task.ended(KILLED_WITHIN, "killed")
        print(f"killed {time.monotonic() - since:.1f} s after publication")
        sidecar.begin(REPORT_UID, "ledger-read").expect(403)
        assert task.credentials().status in (401, 403, 409)
        assert sidecar.metric("sidemint_denials_total", reason="killed") >= 1
        killed = [r for r in sidecar.audit_records() if r.get("reason") == "killed"]
        assert any("the bucket leaks" in (r.get("detail") or "") for r in killed), killed[-2:]
        sidecar.stop()

    # Nobody serves the repository: what is kept is verified again, the kill list with it.
    sidecar.start()
    sidecar.begin(REPORT_UID, "ledger-read").expect(403)
    sidecar.stop()

    with repository.served(port):
        sidecar.start()
        for entry in repository_entries(repository):
            repository.policy("kill", "--policy", repository.directory, "--to", repository.out, "--key", repository.key("incident"), "--lift", entry)
        again = wait_until("the scope to begin again", lambda: (a := sidecar.begin(REPORT_UID, "ledger-read")).status == 201 and a, KILLED_WITHIN)
        again.expect(201)
        repository.requests.clear()
        before = sidecar.metric("sidemint_policy_refreshes_total", outcome="unchanged")
        wait_until("a look without changes", lambda: sidecar.metric("sidemint_policy_refreshes_total", outcome="unchanged") > before, 40, 0.5)
        assert len(repository.requests) <= 2, repository.requests
        sidecar.stop()


def trust(sidecar, root, repository, *more):
    """An operator's step on a new machine: from here on this root is the anchor."""
    words = ["policy", "trust", "--root", root, "--repository", repository, *more, "--state", sidecar.state, "--yes"]
    trusted = run([sidecar.world.sidemint, *words], uid=SIDECAR_UID, env=sidecar.world.bare_env()).ok()
    assert "trusted" in trusted.out, trusted.out


def repository_entries(repository):
    """The ids of the kill list's entries."""
    text = (repository.directory / "kill" / "list.toml").read_text()
    return [line.split('"')[1] for line in text.splitlines() if line.startswith("id = ")]


STOPPED = """schema = 1
[[stop]]
id = "drill"
reason = "python-tuf says so"
scope = "ledger-read"
"""


@case("a repository that python-tuf alone makes is followed through changes, a kill and rotated keys; what another key signs is not", (*NEEDS, "python"))
def made_by_python_tuf(world):
    files = policy_files(Repository(world, "python-tuf").directory)
    made = TufRepository(world.folder / "python-tuf" / "made")
    made.sign(files)
    root = made.out / "metadata" / "1.root.json"
    sidecar = Sidecar(world, "tuf-made", policy=f'repository = "{made.out}"\nroot = "{root}"\npoll = "1s"')
    trust(sidecar, root, made.out)
    sidecar.start()
    task = sidecar.task(REPORT_UID, "ledger-read")
    credential = task.credentials().expect(200).json()
    assert world.rgw.read(credential, "c-42/report.txt") == 200

    def adopted(version):
        wait_until(f"version {version}", lambda: sidecar.metric("sidemint_policy_version") == version, 15)

    adopted(1)
    # New keys for the roles that are online and for the root; the task goes on.
    for role in ("timestamp", "snapshot", "root"):
        made.sign_root(replace=role)
    made.sign({**files, "decisions/ledger-read.cedar": files["decisions/ledger-read.cedar"] + b"// reviewed\n"})
    adopted(2)
    task.credentials().expect(200)

    # A key that the charter does not name: nothing of it is taken, what was in force stays.
    refused = sidecar.metric("sidemint_policy_refreshes_total", outcome="refused")
    made.sign_role("incident", {"kill/list.toml": STOPPED.encode()}, signers=made.signers["governance"])
    made.tell()
    wait_until("the refusal", lambda: sidecar.metric("sidemint_policy_refreshes_total", outcome="refused") > refused, 15)
    assert sidecar.metric("sidemint_policy_version") == 2
    task.credentials().expect(200)

    made.sign_role("incident", {"kill/list.toml": STOPPED.encode()})
    made.tell()
    task.ended(15, "killed")
    sidecar.begin(REPORT_UID, "ledger-read").expect(403)
    sidecar.stop()
    # Root 4 is what it starts from, without another `policy trust`.
    sidecar.start()
    sidecar.begin(REPORT_UID, "ledger-read").expect(403)
    made.sign_role("incident", {"kill/list.toml": b"schema = 1\n"})
    made.tell()
    again = wait_until("the scope to begin again", lambda: (a := sidecar.begin(REPORT_UID, "ledger-read")).status == 201 and a, 15)
    again.expect(201)
    sidecar.stop()
