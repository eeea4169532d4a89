"""Signed policy between two programs: python-tuf reads what Sidemint publishes, and Sidemint publishes what python-tuf signs."""

import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from ..harness import case, run
from ..policy import policy_files

NEEDS = ("sidemint", "python")


class Publishing:
    """A working repository of its own, with the commands that its owners run."""

    def __init__(self, world, name):
        self.world = world
        self.directory, self.out = world.folder / name / "repo", world.folder / name / "out"
        self.directory.parent.mkdir()
        run([world.sidemint, "policy", "new", self.directory], env=world.bare_env()).ok()

    def policy(self, *words):
        return run([self.world.sidemint, "policy", *words], env=self.world.bare_env())

    def sign(self, role, key):
        return self.policy("sign", "--policy", self.directory, "--role", role, "--key", key)

    def publish(self):
        return self.policy("publish", "--policy", self.directory, "--to", self.out)

    def key(self, name):
        return self.directory / "keys" / f"{name}.pem"

    def new_key(self, name, *algorithm):
        """A key made by openssl, and its line for repository.toml."""
        private = self.key(name)
        subprocess.run(["openssl", "genpkey", *algorithm, "-out", private], check=True, capture_output=True)
        private.chmod(0o600)
        public = subprocess.run(["openssl", "pkey", "-in", private, "-pubout"], check=True, capture_output=True, text=True).stdout
        return f'{name} = """\n{public}"""\n'

    def settings(self, *replacements):
        place = self.directory / "repository.toml"
        text = place.read_text()
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new, 1)
        place.write_text(text)

    def files(self):
        return policy_files(self.directory)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """The folder behind a plain web server on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def read_all(out, state, names):
    """Every target as python-tuf's Updater gives it, from the state that it keeps at `state`."""
    from tuf.ngclient import Updater

    state.mkdir(exist_ok=True)
    with served(out) as base, tempfile.TemporaryDirectory() as downloads:
        anchor = (out / "metadata" / "1.root.json").read_bytes()
        updater = Updater(
            metadata_dir=str(state),
            metadata_base_url=f"{base}/metadata/",
            target_base_url=f"{base}/targets/",
            target_dir=downloads,
            bootstrap=anchor,
        )
        updater.refresh()
        read = {}
        for name in names:
            info = updater.get_targetinfo(name)
            assert info is not None, f"python-tuf finds no {name}"
            read[name] = Path(updater.download_target(info, f"{downloads}/target")).read_bytes()
        return read


def append_signature(file, private):
    """What a key holder with python-tuf does: one more signature on a staged role."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata
    from tuf.api.serialization.json import JSONSerializer

    metadata = Metadata.from_file(str(file))
    signer = CryptoSigner(load_pem_private_key(private.read_bytes(), None))
    metadata.sign(signer, append=True)
    metadata.to_file(str(file), JSONSerializer(compact=False))
    return metadata


@case("python-tuf reads every file of what is published, through a heartbeat, a kill, a rotated root and a department", NEEDS)
def python_tuf_reads(world):
    publishing = Publishing(world, "tuf-reads")
    out, state = publishing.out, world.folder / "tuf-reads" / "client"
    publishing.publish().ok()
    files = publishing.files()
    assert len(files) == 9 and read_all(out, state, files) == files
    publishing.policy("heartbeat", "--to", out, "--timestamp-key", publishing.key("timestamp")).ok()
    assert read_all(out, state, files) == files

    killed = publishing.policy(
        "kill", "--policy", publishing.directory, "--to", out, "--all", "--reason", "drill", "--key", publishing.key("incident")
    )
    killed.ok()
    files = publishing.files()
    assert b"all = true" in files["kill/list.toml"] and read_all(out, state, files) == files

    # A P-256 key takes the place of a lost one, and business owners get a department.
    root = publishing.new_key("root-4", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    finance = publishing.new_key("finance", "-algorithm", "ed25519")
    publishing.settings(
        ("\n[roles.root]", f"{root}{finance}\n[roles.root]"),
        ('["root-1", "root-2", "root-3"]', '["root-4", "root-2", "root-3"]'),
    )
    with (publishing.directory / "repository.toml").open("a") as settings:
        settings.write(
            '\n[roles.finance]\nparent = "business-owners"\npaths = ["scopes/finance/*"]\n'
            'keys = ["finance"]\nthreshold = 1\nexpires = "90days"\n'
        )
    scope = (publishing.directory / "scopes" / "ledger-read.toml").read_text()
    department = publishing.directory / "scopes" / "finance"
    department.mkdir()
    (department / "close.toml").write_text(scope)
    signed = [("root", "root-2"), ("root", "root-3"), ("root", "root-4")]
    for role, key in (*signed, ("business-owners", "business-owners"), ("finance", "finance")):
        publishing.sign(role, publishing.key(key)).ok()
    refused = publishing.publish()
    assert refused.code == 1 and "would suspend finance/close" in refused.err, refused.err
    publishing.policy("publish", "--policy", publishing.directory, "--to", out, "--suspend", "finance/close").ok()
    files = publishing.files()
    assert "scopes/finance/close.toml" in files and read_all(out, state, files) == files
    assert read_all(out, world.folder / "tuf-reads" / "fresh", files) == files
    assert json.loads((state / "root.json").read_text())["signed"]["version"] == 2


@case("what python-tuf signs, alone or as one of two, is published, and what it signs with another's key is not", NEEDS)
def python_tuf_signs(world):
    publishing = Publishing(world, "tuf-signs")
    publishing.publish().ok()
    # The charter needs two of three: one by us, one by python-tuf with a P-256 key, on a copy of the file elsewhere.
    line = publishing.new_key("charter-4", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    publishing.settings(("\n[roles.root]", f"{line}\n[roles.root]"), ('"charter-3"]', '"charter-4"]'))
    for key in ("root-1", "root-2"):
        publishing.sign("root", publishing.key(key)).ok()
    owner = publishing.directory / "owners" / "finance-data.toml"
    owner.write_text(owner.read_text().replace("Finance data", "Finance"))
    publishing.sign("targets", publishing.key("charter-1")).ok()
    refused = publishing.publish()
    assert refused.code == 1 and "targets: 1 of 2 signatures" in refused.err, refused.err
    staged = publishing.directory / "metadata" / "targets.json"
    elsewhere = world.folder / "tuf-signs" / "targets.json"
    shutil.copy(staged, elsewhere)
    append_signature(elsewhere, publishing.key("governance"))
    shutil.copy(elsewhere, staged)
    refused = publishing.publish()
    assert refused.code == 1 and "targets: 1 of 2 signatures" in refused.err, refused.err
    metadata = append_signature(elsewhere, publishing.key("charter-4"))
    assert len(metadata.signatures) == 3
    shutil.copy(elsewhere, staged)
    publishing.publish().ok()

    # A role that python-tuf alone signs: ours are taken off first.
    rules = publishing.directory / "decisions" / "ledger-read.cedar"
    rules.write_text(rules.read_text() + "// reviewed\n")
    publishing.sign("governance", publishing.key("governance")).ok()
    staged = publishing.directory / "metadata" / "governance.json"
    bare = json.loads(staged.read_text())
    bare["signatures"] = []
    staged.write_text(json.dumps(bare))
    refused = publishing.publish()
    assert refused.code == 1 and "governance: 0 of 1 signatures" in refused.err, refused.err
    append_signature(staged, publishing.key("governance"))
    publishing.publish().ok()
    files = publishing.files()
    assert read_all(publishing.out, world.folder / "tuf-signs" / "client", files) == files
