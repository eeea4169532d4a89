"""A policy repository that python-tuf alone makes: its keys, its metadata, its layout on disk."""

import hashlib
import os
from datetime import datetime, timedelta, timezone

# Who answers for which folder; `owners/` is the charter's own.
OWNERS = {
    "security": "boundaries",
    "governance": "decisions",
    "business-owners": "scopes",
    "implementers": "grants",
    "incident": "kill",
}
# Below the business owners, with a key of its own.
DEPARTMENT, ITS_SCOPES = "finance", "scopes/ledger-"


class TufRepository:
    """Signs policy files by role and writes what a web server would serve, `metadata/` and `targets/`."""

    def __init__(self, out):
        from securesystemslib.signer import CryptoSigner

        self.out, self.versions, self.roots = out, {}, 0
        # Both algorithms that a repository may use, beside each other in one role.
        new = lambda number: CryptoSigner.generate_ecdsa() if number % 2 else CryptoSigner.generate_ed25519()
        alone = ["timestamp", "snapshot", *OWNERS, DEPARTMENT]
        self.signers = {role: [new(number)] for number, role in enumerate(alone)}
        self.signers |= {role: [new(number) for number in range(3)] for role in ("root", "targets")}
        for folder in ("metadata", "targets"):
            (out / folder).mkdir(parents=True)
        self.sign_root()

    def sign_root(self, *, replace=None):
        """The next root; `replace` names the role that gets new keys, which the old root's keys sign too."""
        from securesystemslib.signer import CryptoSigner
        from tuf.api.metadata import Root

        before = list(self.signers["root"]) if self.roots else []
        if replace:
            self.signers[replace] = [CryptoSigner.generate_ed25519() for _ in self.signers[replace]]
        self.roots += 1
        root = Root(version=self.roots, expires=until(365), consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            for signer in self.signers[role]:
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = 2 if len(self.signers[role]) > 1 else 1
        signers = {signer.public_key.keyid: signer for signer in (*before[:2], *self.signers["root"][:2])}
        self.write(root, f"{self.roots}.root", signers.values())

    def write(self, signed, name, signers):
        from tuf.api.metadata import Metadata

        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        place = self.out / "metadata" / f"{name}.json"
        aside = place.with_suffix(".new")
        aside.write_bytes(metadata.to_bytes())
        os.chmod(aside, 0o644)
        aside.rename(place)

    def put(self, files):
        """The files as targets, by their digests."""
        from tuf.api.metadata import TargetFile

        targets = {}
        for name, content in files.items():
            folder, _, last = name.rpartition("/")
            place = self.out / "targets" / folder
            place.mkdir(parents=True, exist_ok=True)
            file = place / f"{hashlib.sha256(content).hexdigest()}.{last}"
            file.write_bytes(content)
            os.chmod(file, 0o644)
            targets[name] = TargetFile.from_data(name, content, ["sha256"])
        return targets

    def sign_role(self, role, files, delegations=None, signers=None):
        from tuf.api.metadata import Targets

        self.versions[role] = self.versions.get(role, 0) + 1
        signed = Targets(version=self.versions[role], expires=until(90), targets=self.put(files), delegations=delegations)
        chosen = signers or self.signers[role][:2]
        self.write(signed, f"{self.versions[role]}.{role}", chosen)

    def delegations(self, roles):
        """Delegations to `roles`, a name and its patterns each, to one key each."""
        from tuf.api.metadata import DelegatedRole, Delegations

        keys = {self.signers[role][0].public_key.keyid: self.signers[role][0].public_key for role in roles}
        delegated = {
            role: DelegatedRole(role, [self.signers[role][0].public_key.keyid], 1, terminating=True, paths=paths)
            for role, paths in roles.items()
        }
        return Delegations(keys=keys, roles=delegated)

    def sign(self, files):
        """Every role anew, with the department's scopes under a key of their own."""
        part = lambda folder: {name: content for name, content in files.items() if name.startswith(f"{folder}/")}
        department = {name: content for name, content in files.items() if name.startswith(ITS_SCOPES)}
        self.sign_role("targets", part("owners"), self.delegations({role: [f"{f}/*", f"{f}/*/*"] for role, f in OWNERS.items()}))
        for role, folder in OWNERS.items():
            if role == "business-owners":
                scopes = {name: content for name, content in part(folder).items() if name not in department}
                self.sign_role(role, scopes, self.delegations({DEPARTMENT: [f"{ITS_SCOPES}*"]}))
            else:
                self.sign_role(role, part(folder))
        self.sign_role(DEPARTMENT, department)
        self.tell()

    def tell(self):
        """Snapshot, then timestamp: from here on clients see what was signed."""
        from tuf.api.metadata import MetaFile, Snapshot, Timestamp

        self.versions["snapshot"] = self.versions.get("snapshot", 0) + 1
        self.versions["timestamp"] = self.versions.get("timestamp", 0) + 1
        online = ("snapshot", "timestamp")
        meta = {f"{role}.json": MetaFile(version=version) for role, version in self.versions.items() if role not in online}
        snapshot = Snapshot(version=self.versions["snapshot"], expires=until(30), meta=meta)
        self.write(snapshot, f"{self.versions['snapshot']}.snapshot", self.signers["snapshot"])
        timestamp = Timestamp(
            version=self.versions["timestamp"], expires=until(1), snapshot_meta=MetaFile(version=self.versions["snapshot"])
        )
        self.write(timestamp, "timestamp", self.signers["timestamp"])


def until(days):
    return (datetime.now(timezone.utc) + timedelta(days=days)).replace(microsecond=0)
