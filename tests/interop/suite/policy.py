"""The policy directory of the suite, with the digests that a decision needs."""

import hashlib
import json

from .harness import write
from .rgw import AUDIENCE, BUCKET, ROLE_ARN


FOLDERS = ("owners", "boundaries", "decisions", "scopes", "grants", "kill")


def policy_files(directory):
    """Every policy file of a working repository, by its name as a target."""
    found = {}
    for folder in FOLDERS:
        for path in (directory / folder).rglob("*"):
            if path.is_file() and not path.name.endswith(".tests.toml"):
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found


def digest(text):
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class PolicyDirectory:
    """`decisions/`, `scopes/`, `grants/`, `boundaries/` as the sidecar reads them."""

    def __init__(self, folder):
        self.folder = folder
        for part in ("", "decisions", "scopes", "grants", "boundaries"):
            (folder / part).mkdir(mode=0o755, exist_ok=True)

    def scope(self, name, principals, max_task="10m", max_residual="30s", customers=("c-42",), more=""):
        """Writes one scope: who may begin it, for which customers, and how long access may outlive it."""
        scope = SCOPE
        grant = GRANT.format(role=ROLE_ARN, bucket=BUCKET, audience=AUDIENCE)
        write(self.folder / "scopes" / f"{name}.toml", scope)
        write(self.folder / "grants" / f"{name}-aws.toml", grant)
        write(self.folder / "decisions" / f"{name}.cedar", self.rules(name, principals, customers))
        write(
            self.folder / "decisions" / f"{name}.toml",
            DECISION.format(
                max_task=max_task, max_residual=max_residual, scope=digest(scope), name=name, grant=digest(grant), more=more
            ),
        )

    def database(self, name, principals, role, audience, max_residual):
        """Writes one scope that reads a dynamic secret of OpenBao."""
        scope = SCOPE.split("[params]")[0]
        grant = VAULT_GRANT.format(role=role, audience=audience)
        rules = self.rules(name, principals, ()).replace("\nwhen { [].contains(context.asserted.params.customer) }", "")
        decision = DECISION.replace("{name}-aws", "{name}-vault").format(
            max_task="10m", max_residual=max_residual, scope=digest(scope), name=name, grant=digest(grant), more=""
        )
        write(self.folder / "scopes" / f"{name}.toml", scope)
        write(self.folder / "grants" / f"{name}-vault.toml", grant)
        write(self.folder / "decisions" / f"{name}.cedar", rules)
        write(self.folder / "decisions" / f"{name}.toml", decision)

    def rules(self, name, principals, customers):
        return "".join(
            RULE.format(name=name, number=number, principal=principal, customers=json.dumps(list(customers)))
            for number, principal in enumerate(principals)
        )

    def permit(self, name, principals, customers=("c-42",)):
        """Replaces who may begin `name`. Without principals nobody may."""
        rules = self.rules(name, principals, customers) or NOBODY.format(name=name)
        write(self.folder / "decisions" / f"{name}.cedar", rules)


SCOPE = """schema = 1
purpose = "A report reads one customer's ledger"
business_owner = "finance-data"
justification = "The nightly report shows each customer's balance"
evidence = "CHG-4711"

[params]
customer = { type = "segment", max = 32 }
"""

GRANT = """schema = 1
provider = "aws"
role_arn = "{role}"
audience = "{audience}"

[[session_policy.Statement]]
Effect = "Allow"
Action = ["s3:GetObject"]
Resource = ["arn:aws:s3:::{bucket}/${{param.customer}}/*"]
"""

VAULT_GRANT = """schema = 1
provider = "vault"
role = "{role}"
audience = "{audience}"
read = "database/creds/ro"
accept_role_scope = true
"""

DECISION = """schema = 1
tier = "baseline"
kind = "machine"
decision_owner = "identity-governance"
review_by = 2099-01-01
max_task = "{max_task}"
max_residual = "{max_residual}"
{more}
scope = "{scope}"
grants = {{ {name}-aws = "{grant}" }}
"""

RULE = """@id("{name}-{number}")
permit (principal == Workload::"{principal}", action == Action::"begin", resource == Scope::"{name}")
when {{ {customers}.contains(context.asserted.params.customer) }};
"""

NOBODY = """@id("{name}-nobody")
permit (principal == Workload::"spiffe://nobody.test/nobody", action == Action::"begin", resource == Scope::"{name}");
"""
