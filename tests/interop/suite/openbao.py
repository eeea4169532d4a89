"""A real OpenBao with its database engine, and the PostgreSQL whose roles it makes and drops."""

import os
import pwd
import secrets

from .harness import Daemon, free_port, http_call, run, wait_until


def _user():
    """PostgreSQL refuses to run as root, and as a uid without a name."""
    names = {user.pw_name: user.pw_uid for user in pwd.getpwall()}
    return names.get("postgres", names["nobody"])


UID = _user()
AUDIENCE = "vault"
ROOT_TOKEN_TTL = "45s"
LEDGER = """
path "database/creds/ro" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "sys/leases/lookup" { capabilities = ["update"] }
"""


class OpenBao:
    """Both on loopback, under a uid of their own, in a folder that goes with the suite."""

    def __init__(self, folder, bao, postgres_bin):
        self.bao, self.bin = bao, postgres_bin
        self.folder = folder / "openbao"
        self.folder.mkdir(mode=0o755)
        os.chown(self.folder, UID, UID)
        self.port, self.postgres_port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.root = "root-" + secrets.token_hex(8)
        self.env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8"}
        self.running = []

    def start(self, issuer, subjects):
        data = self.folder / "data"
        initdb = [f"{self.bin}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"]
        run(initdb, uid=UID, env=self.env).ok()
        # A role that was made must show its password, and one past its VALID UNTIL is refused.
        (data / "pg_hba.conf").write_text("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        postgres = [f"{self.bin}/postgres", "-D", data, "-h", "127.0.0.1", "-p", self.postgres_port, "-k", self.folder, "-c", "fsync=off"]
        self._start("postgres", postgres, self.env)
        wait_until("PostgreSQL", lambda: self.sql("SELECT 1") == "1", 30)
        bao = [self.bao, "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={self.root}", f"-dev-listen-address=127.0.0.1:{self.port}"]
        self._start("openbao", bao, self.env)
        wait_until("OpenBao", lambda: http_call("GET", self.address, "/v1/sys/health").status == 200, 60)
        self._set_up(issuer, subjects)
        return self

    def _start(self, name, argv, env):
        self.running.append(Daemon(name, argv, self.folder / f"{name}.log", env=env, uid=UID).start())

    def _set_up(self, issuer, subjects):
        self.write("sys/auth/jwt", type="jwt")
        self.write("auth/jwt/config", jwks_url=f"{issuer}/keys", bound_issuer=issuer)
        self.write("sys/policies/acl/ledger", policy=LEDGER)
        self.role("ledger", subjects)
        self.role("batch", subjects, token_type="batch")
        self.role("long", subjects, token_ttl="1h")
        self.write("sys/mounts/database", type="database")
        self.write(
            "database/config/pg",
            plugin_name="postgresql-database-plugin",
            connection_url=f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{self.postgres_port}/postgres?sslmode=disable",
            allowed_roles="ro",
            username="postgres",
            password="unused",
        )
        create = "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';"
        self.write("database/roles/ro", db_name="pg", creation_statements=[create], default_ttl="1h", max_ttl="2h")

    def role(self, name, subjects, **more):
        settings = {
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": [AUDIENCE],
            "bound_claims": {"sub": subjects},
            "token_policies": ["ledger"],
            "token_ttl": ROOT_TOKEN_TTL,
            "token_type": "service",
            "clock_skew_leeway": -1,
            "expiration_leeway": -1,
            **more,
        }
        self.write(f"auth/jwt/role/{name}", **settings)

    def write(self, path, **body):
        http_call("POST", self.address, f"/v1/{path}", {"X-Vault-Token": self.root}, body).expect(200, 204)

    def sql(self, statement):
        psql = [f"{self.bin}/psql", "-h", "127.0.0.1", "-p", self.postgres_port, "-U", "postgres", "-d", "postgres", "-XAtc", statement]
        return run(psql, uid=UID, env=self.env).ok().out.strip()

    def roles(self):
        """The roles that OpenBao has made and not dropped."""
        return set(self.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'").split())

    def log_in(self, got):
        """Whether PostgreSQL lets the secret's user in by its password."""
        data = got["data"]
        psql = [f"{self.bin}/psql", "-h", "127.0.0.1", "-p", self.postgres_port, "-U", data["username"], "-d", "postgres", "-XAtc", "SELECT current_user"]
        done = run(psql, uid=UID, env={**self.env, "PGPASSWORD": data["password"]})
        return done.code == 0 and done.out.strip() == data["username"]

    def leases(self):
        """How many leases OpenBao itself counts."""
        answer = http_call("LIST", self.address, "/v1/sys/leases/lookup/database/creds/ro", {"X-Vault-Token": self.root})
        return len(answer.json()["data"]["keys"]) if answer.status == 200 else 0

    def stop(self):
        for daemon in reversed(self.running):
            daemon.stop()
