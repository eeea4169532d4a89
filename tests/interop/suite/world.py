"""What the cases run in: SPIRE, RGW, one shared sidecar, Prometheus, and workloads under their own uids."""

import os
import shutil
import tempfile
from pathlib import Path

from .harness import Skip, run, wait_until
from .openbao import AUDIENCE, OpenBao
from .policy import PolicyDirectory
from .rgw import Rgw
from .sidecar import SIDECAR_UID, Sidecar
from .spire import Spire, spiffe_id

# Workloads, each with its own uid. The sidecar's uid is given the IDs that it may exchange.
REPORT_UID, INTRUDER_UID, ALONE_UID, BATCH_UID, WITHDRAWN_UID, LEGACY_UID = 2002, 2003, 2005, 2006, 2007, 2008
POD_GROUP = 2100
REPORT, INTRUDER, ALONE, BATCH, WITHDRAWN, POD = (
    f"ns/finance/sa/{name}" for name in ("report", "intruder", "alone", "batch", "withdrawn", "pod")
)
SHORT_SVID = 30  # seconds: BATCH's SVIDs, so that they rotate while a case watches


class World:
    """Starts what the environment says can be had; a case that needs more is skipped with the reason."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="smi-", dir="/tmp"))
        os.chmod(self.folder, 0o755)
        self.have = {name: os.environ.get(name) for name in ("SPIRE", "RGW", "PROMETHEUS", "PYTHON", "AWS_CLI", "NODE", "NODE_MODULES", "GO_SPIFFE", "OPENBAO", "POSTGRES")}
        self.sidemint = self.folder / "bin" / "sidemint"
        self.sidecars, self.begun, self.secrets = [], [], set()
        self.openbao = self.spire = self.rgw = self.policy = self._shared = None
        self.entries = {}
        self.public = self.folder / "clients"
        self.absent = {}

    def start(self):
        for part in ("SPIRE", "RGW", "PROMETHEUS", "PYTHON", "NODE", "GO_SPIFFE", "OPENBAO", "POSTGRES"):
            if not self.have[part]:
                self.absent[part.lower()] = os.environ.get(f"MISSING_{part}") or f"setup did not find {part}"
        if "postgres" in self.absent:
            self.absent.setdefault("openbao", self.absent["postgres"])
        self._copy_programs()
        if "rgw" not in self.absent and "spire" not in self.absent:
            self.rgw = Rgw(self.folder).start()
        if "spire" not in self.absent:
            self._start_spire()
        if "openbao" not in self.absent and "spire" not in self.absent:
            self.openbao = OpenBao(self.folder, self.have["OPENBAO"], self.have["POSTGRES"]).start(self.spire.issuer, [spiffe_id(REPORT)])
        self._write_policy()
        if self.rgw:
            self.rgw.seed(self.spire.issuer, [spiffe_id(path) for path in (REPORT, BATCH, WITHDRAWN, POD)])
        return self

    def _copy_programs(self):
        """The binary and the clients' scripts, where every uid can reach them."""
        self.sidemint.parent.mkdir(mode=0o755)
        built = os.environ.get("SIDEMINT_BIN")
        if built and Path(built).exists():
            shutil.copy(built, self.sidemint)
            os.chmod(self.sidemint, 0o755)
        else:
            self.absent["sidemint"] = "no sidemint binary was built"
        if self.sidemint.exists() and "--config" not in run([self.sidemint, "serve", "--help"], env=self.bare_env()).out:
            self.absent["sidemint"] = "this sidemint has no `serve`"
        self.public.mkdir(mode=0o755)
        here = Path(__file__).resolve().parent.parent / "clients"
        for script in ("reader.py", "reader.mjs", "reader.sh"):
            shutil.copy(here / script, self.public / script)
            os.chmod(self.public / script, 0o644)
        if self.have["NODE_MODULES"]:
            (self.public / "node_modules").symlink_to(self.have["NODE_MODULES"])

    def _start_spire(self):
        self.spire = Spire(self.folder, self.have["SPIRE"]).start_server()
        # Minted now, so that it is long expired when a case uses it.
        self.expired_jwt = self.spire.mint_jwt(REPORT, ["sidemint"], "1s")
        self.spire.start_agent()
        for path, uid in ((REPORT, REPORT_UID), (INTRUDER, INTRUDER_UID), (WITHDRAWN, WITHDRAWN_UID)):
            self.spire.register(path, uid)
            self.entries[path] = self.spire.register(path, SIDECAR_UID)
        for uid in (BATCH_UID, SIDECAR_UID):
            self.spire.register(BATCH, uid, x509_ttl=SHORT_SVID, jwt_ttl=SHORT_SVID)
        self.spire.register(ALONE, ALONE_UID)
        self.spire.register(POD, SIDECAR_UID)
        expected = {spiffe_id(path) for path in (REPORT, INTRUDER, WITHDRAWN, BATCH, POD)}
        wait_until("the agent to know every entry", lambda: self.spire.x509_ids(SIDECAR_UID) == expected, 30, 0.5)
        wait_until("the workload's entry", lambda: self.spire.x509_ids(REPORT_UID) == {spiffe_id(REPORT)}, 30, 0.5)

    def _write_policy(self):
        self.policy = PolicyDirectory(self.folder / "policy")
        report, batch, withdrawn, pod, alone = map(spiffe_id, (REPORT, BATCH, WITHDRAWN, POD, ALONE))
        self.policy.scope("ledger-read", [report, alone], max_residual="30s")
        self.policy.scope("ledger-minute", [report, batch], max_residual="45s")
        self.policy.scope("ledger-batch", [batch], max_residual="30s")
        self.policy.scope("ledger-withdrawn", [withdrawn])
        self.policy.scope("ledger-changing", [report])
        self.policy.scope("ledger-pod", [pod])
        for name, role in (("database-read", "ledger"), ("database-batch", "batch"), ("database-long", "long")):
            self.policy.database(name, [report], role, AUDIENCE, max_residual="50s")

    def shared(self) -> Sidecar:
        """The sidecar that most cases use, started when first needed."""
        if self._shared is None:
            self._shared = Sidecar(self, "shared").start()
        return self._shared

    def stop(self):
        for sidecar in self.sidecars:
            sidecar.stop()
        if self.spire:
            self.spire.stop()
        if self.rgw:
            self.rgw.stop()
        if self.openbao:
            self.openbao.stop()

    def daemons(self):
        found = [s.daemon for s in self.sidecars if s.daemon]
        return found + (self.spire.daemons() if self.spire else []) + (self.rgw.daemons() if self.rgw else []) + (self.openbao.running if self.openbao else [])

    def secret(self, *texts):
        """Remembers a secret that no log, journal, metric or page may hold."""
        self.secrets.update(texts)

    def require(self, *parts):
        for part in parts:
            if part in self.absent:
                raise Skip(self.absent[part])

    def bare_env(self, **more):
        """An environment with nothing in it that the suite did not put there."""
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8", **more}

    def client_env(self, **more):
        """What a workload's AWS client is told: the region and where S3 is, nothing about credentials."""
        return self.bare_env(AWS_REGION="us-east-1", AWS_ENDPOINT_URL_S3=self.rgw.endpoint, **more)

    def command_env(self, sidecar, **more):
        """What `sidemint exec` and `sidemint task` are told."""
        return self.client_env(SIDEMINT_HTTP=sidecar.http, SPIFFE_ENDPOINT_SOCKET=self.spire.workload_api, **more)
