"""A real SPIRE server, agent and OIDC discovery provider, and the issuer in front that RGW can read."""

import base64
import datetime
import json
import os
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from .harness import Daemon, free_port, from_b64url, http_call, run, wait_until

TRUST_DOMAIN = "example.org"
NODE = f"spiffe://{TRUST_DOMAIN}/node"


class Spire:
    """One trust domain, with one agent on this machine."""

    def __init__(self, folder, binaries):
        self.bin = binaries
        self.folder = folder / "spire"
        self.server_data = self.folder / "server"
        self.agent_data = self.folder / "agent"
        self.public = self.folder / "public"
        for made in (self.folder, self.server_data, self.agent_data, self.public):
            made.mkdir(mode=0o755)
        os.chmod(self.server_data, 0o700)
        os.chmod(self.agent_data, 0o700)
        self.server_port, self.oidc_port, self.issuer_port = free_port(), free_port(), free_port()
        self.issuer = f"http://127.0.0.1:{self.issuer_port}"
        self.server_socket = self.server_data / "api.sock"
        self.agent_socket = self.public / "api.sock"
        self.workload_api = f"unix://{self.agent_socket}"
        self.server = self._daemon("spire-server", "server.conf", SERVER)
        self.oidc = self._daemon("oidc-discovery-provider", "oidc.conf", OIDC)
        self.agent = None
        self.shim = None

    def _daemon(self, program, name, text, extra=()):
        config = self.folder / name
        config.write_text(
            text.format(
                server=self.server_data,
                agent=self.agent_data,
                public=self.public,
                server_port=self.server_port,
                oidc_port=self.oidc_port,
                issuer=self.issuer,
                trust_domain=TRUST_DOMAIN,
            )
        )
        argv = [f"{self.bin}/{program}", "run", "-config", config, *extra]
        if program == "oidc-discovery-provider":
            argv = [f"{self.bin}/{program}", "-config", config]
        return Daemon(program, argv, self.folder / f"{program}.log")

    def start_server(self):
        self.server.start()
        wait_until("SPIRE server", lambda: self.ctl("healthcheck").code == 0, 60, 0.2)
        self.oidc.start()
        discovery = "/.well-known/openid-configuration"
        oidc = f"http://127.0.0.1:{self.oidc_port}"
        wait_until("OIDC discovery provider", lambda: http_call("GET", oidc, discovery).status == 200, 30)
        self.shim = IssuerShim(self)
        wait_until("issuer shim", lambda: http_call("GET", self.issuer, "/keys").json()["keys"], 30)
        return self

    def start_agent(self):
        """Starts the agent; the first time with a join token, later with what it kept."""
        extra = []
        if not (self.agent_data / "keys.json").exists():
            token = self.ctl("token", "generate", "-spiffeID", NODE).ok().out.split()[-1]
            extra = ["-joinToken", token]
        self.agent = self._daemon("spire-agent", "agent.conf", AGENT, extra).start()
        check = [f"{self.bin}/spire-agent", "healthcheck", "-socketPath", self.agent_socket]
        wait_until("SPIRE agent", lambda: run(check).code == 0, 60, 0.2)
        return self

    def stop(self):
        for daemon in (self.agent, self.oidc, self.server):
            if daemon:
                daemon.stop()
        if self.shim:
            self.shim.close()

    def daemons(self):
        return [d for d in (self.server, self.agent, self.oidc) if d]

    def ctl(self, *words):
        """`spire-server WORDS`: the last word before the first option is where the socket goes."""
        words = list(words)
        at = next((i for i, word in enumerate(words) if str(word).startswith("-")), len(words))
        return run([f"{self.bin}/spire-server", *words[:at], "-socketPath", self.server_socket, *words[at:]])

    def register(self, path, uid, x509_ttl=None, jwt_ttl=None):
        """Gives the SPIFFE ID of `path` to the processes of `uid`. Returns the entry's id."""
        extra = ["-x509SVIDTTL", str(x509_ttl)] if x509_ttl else []
        extra += ["-jwtSVIDTTL", str(jwt_ttl)] if jwt_ttl else []
        made = self.ctl(
            "entry", "create", "-parentID", NODE, "-spiffeID", spiffe_id(path), "-selector", f"unix:uid:{uid}", *extra, "-output", "json"
        ).ok()
        return json.loads(made.out)["results"][0]["entry"]["id"]

    def remove(self, entry):
        self.ctl("entry", "delete", "-entryID", entry).ok()

    def jwt_svid(self, uid, audience, spiffe=None):
        """A JWT-SVID as the workload of `uid` gets it from the agent."""
        chosen = ["-spiffeID", spiffe] if spiffe else []
        argv = [f"{self.bin}/spire-agent", "api", "fetch", "jwt", "-audience", audience, *chosen]
        out = run([*argv, "-socketPath", self.agent_socket, "-output", "json"], uid=uid).ok().out
        return json.loads(out)[0]["svids"][0]["svid"]

    def x509_ids(self, uid):
        """The SPIFFE IDs that the agent gives to `uid` now."""
        argv = [f"{self.bin}/spire-agent", "api", "fetch", "x509", "-socketPath", self.agent_socket, "-output", "json"]
        done = run(argv, uid=uid)
        return {svid["spiffe_id"] for svid in json.loads(done.out)["svids"]} if done.code == 0 else set()

    def mint_jwt(self, path, audiences, ttl):
        """A JWT-SVID straight from the server, with any audiences and life."""
        words = [word for audience in audiences for word in ("-audience", audience)]
        return self.ctl("jwt", "mint", "-spiffeID", spiffe_id(path), *words, "-ttl", ttl).ok().out.strip()

    def active_key(self):
        """The id of the key that signs JWT-SVIDs now."""
        out = self.ctl("localauthority", "jwt", "show", "-output", "json").ok().out
        return json.loads(out)["active"]["authority_id"]

    def prepare_jwt_key(self):
        """Makes the next JWT signing key, published but not signing yet. Returns its id."""
        made = self.ctl("localauthority", "jwt", "prepare", "-output", "json").ok()
        return json.loads(made.out)["prepared_authority"]["authority_id"]

    def activate_jwt_key(self, key):
        """Lets `key` sign from now on; the one before stays published."""
        self.ctl("localauthority", "jwt", "activate", "-authorityID", key).ok()
        assert self.active_key() == key

    def agent_jwt_keys(self, uid):
        """The ids of the keys in the agent's JWT bundle of the own trust domain."""
        argv = [f"{self.bin}/spire-agent", "api", "fetch", "jwt", "-audience", "any", "-socketPath", self.agent_socket, "-output", "json"]
        answers = json.loads(run(argv, uid=uid).ok().out)
        bundles = next(answer["bundles"] for answer in answers if "bundles" in answer)
        document = base64.b64decode(bundles[f"spiffe://{TRUST_DOMAIN}"])
        return {key["kid"] for key in json.loads(document)["keys"]}


class IssuerShim:
    """SPIRE's own discovery document and keys, on the issuer's port, in the form that RGW 16 reads: it takes the key from
    an `x5c` certificate and only from the first key of the list. Nothing is trusted here that SPIRE does not publish."""

    def __init__(self, spire):
        self.spire = spire
        self.signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.certificates = {}
        shim = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802 (the name is the library's)
                try:
                    body = json.dumps(shim.answer(urllib.parse.urlsplit(self.path).path)).encode()
                    self.send_response(200)
                except Exception as error:  # an answer of any kind is better than a hung STS
                    body = json.dumps({"error": str(error)}).encode()
                    self.send_response(502)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", spire.issuer_port), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path):
        upstream = http_call("GET", f"http://127.0.0.1:{self.spire.oidc_port}", path, deadline=5).expect(200).json()
        if path.endswith("openid-configuration"):
            return {**upstream, "issuer": self.spire.issuer, "jwks_uri": f"{self.spire.issuer}/keys"}
        active = self.spire.active_key()
        keys = sorted(upstream["keys"], key=lambda key: key["kid"] != active)
        return {"keys": [{**key, "alg": "RS256", "use": "sig", "x5c": [self.certificate(key)]} for key in keys if key["kty"] == "RSA"]}

    def certificate(self, key):
        """A certificate over SPIRE's public key. RGW reads the key out of it and checks nothing else."""
        if key["kid"] not in self.certificates:
            n, e = (int.from_bytes(from_b64url(key[part]), "big") for part in "ne")
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "interop issuer")])
            now = datetime.datetime.now(datetime.timezone.utc)
            made = (
                x509.CertificateBuilder()
                .subject_name(name)
                .issuer_name(name)
                .public_key(rsa.RSAPublicNumbers(e, n).public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(minutes=5))
                .not_valid_after(now + datetime.timedelta(days=1))
                .sign(self.signer, hashes.SHA256())
            )
            from cryptography.hazmat.primitives.serialization import Encoding

            self.certificates[key["kid"]] = base64.b64encode(made.public_bytes(Encoding.DER)).decode()
        return self.certificates[key["kid"]]


def spiffe_id(path):
    return f"spiffe://{TRUST_DOMAIN}/{path}"


SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{server_port}"
  socket_path = "{server}/api.sock"
  trust_domain = "{trust_domain}"
  data_dir = "{server}"
  ca_ttl = "2h"
  default_x509_svid_ttl = "10m"
  default_jwt_svid_ttl = "3m"
  jwt_issuer = "{issuer}"
  jwt_key_type = "rsa-2048" # RGW 16 verifies RS256 only
  log_level = "INFO"
}}
plugins {{
  DataStore "sql" {{
    plugin_data {{
      database_type = "sqlite3"
      connection_string = "{server}/datastore.sqlite3"
    }}
  }}
  KeyManager "disk" {{
    plugin_data {{
      keys_path = "{server}/keys.json"
    }}
  }}
  NodeAttestor "join_token" {{
    plugin_data {{}}
  }}
}}
"""

AGENT = """
agent {{
  data_dir = "{agent}"
  server_address = "127.0.0.1"
  server_port = "{server_port}"
  trust_domain = "{trust_domain}"
  insecure_bootstrap = true
  socket_path = "{public}/api.sock"
  log_level = "INFO"
}}
plugins {{
  NodeAttestor "join_token" {{
    plugin_data {{}}
  }}
  KeyManager "disk" {{
    plugin_data {{
      directory = "{agent}"
    }}
  }}
  WorkloadAttestor "unix" {{
    plugin_data {{}}
  }}
}}
"""

OIDC = """
log_level = "info"
domains = ["127.0.0.1"]
insecure_addr = "127.0.0.1:{oidc_port}"
allow_insecure_scheme = true
jwt_issuer = "{issuer}"
server_api {{
  address = "unix://{server}/api.sock"
}}
"""
