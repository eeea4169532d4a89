//! A first working repository: keys for every role, two owners, one scope that is decided on and signed, and its tests.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use super::super::document::Digest;
use super::super::repository::metadata::{LocalKey, Signer as _};
use super::keys::KeySource;
use super::sign::{self, Request};
use super::workspace::Workspace;
use super::{PublishError, cannot, write_file};
use crate::clock::{Clock, Timestamp};

/// Every role with the names of its keys, its threshold, its life, and who holds the keys.
const ROLES: [(&str, &[&str], u32, &str, &str); 9] = [
    ("root", &["root-1", "root-2", "root-3"], 2, "365days", "three people who never sign anything else; offline"),
    ("targets", &["charter-1", "charter-2", "charter-3"], 2, "365days", "the charter: who the owners are; offline"),
    ("security", &["security"], 1, "180days", "security: boundaries/"),
    ("governance", &["governance"], 1, "180days", "identity governance: decisions/"),
    ("business-owners", &["business-owners"], 1, "180days", "business owners: scopes/"),
    ("implementers", &["implementers"], 1, "180days", "identity and access management: grants/"),
    ("incident", &["incident"], 1, "180days", "incident response: kill/"),
    ("snapshot", &["snapshot"], 1, "30days", "whoever runs `policy publish`"),
    ("timestamp", &["timestamp"], 1, "1day", "the machine that runs `policy heartbeat`; with it, make this 10m"),
];

const SCOPE: &str = r#"schema = 1
purpose = "Nightly report reads one customer's ledger"
business_owner = "finance-data"
justification = "The report is a contractual duty towards each customer"
evidence = "CHG-0001"

[params]
customer = { type = "segment", max = 32 }
"#;

const GRANT: &str = r#"schema = 1
provider = "aws"
role_arn = "arn:aws:iam::111122223333:role/ledger"

[[session_policy.Statement]]
Effect = "Allow"
Action = ["s3:GetObject"]
Resource = ["arn:aws:s3:::ledger/${param.customer}/*"]
"#;

const RULES: &str = r#"// The nightly report reads the two customers that it reports on.
@id("report-reads-ledger")
permit (
  principal == Workload::"spiffe://example.org/ns/finance/sa/report",
  action == Action::"begin",
  resource == Scope::"ledger-read"
)
when { ["c-42", "c-43"].contains(context.asserted.params.customer) };
"#;

const BOUNDARY: &str = r#"// Nobody from outside, whatever a decision says.
@id("own-trust-domain-only")
forbid (principal, action == Action::"begin", resource)
unless { context.verified.trust_domain == "example.org" };
"#;

const CHARTER: &str = r#"# How long access goes on while no newer signature can be had; also how long a kill could be withheld.
schema = 1
orphan_grace = "7days"

[max_staleness]
baseline = "24h"
elevated = "1h"
break-glass = "24h"
"#;

const KILL: &str = "# What is stopped now; `sidemint policy kill` writes it.\nschema = 1\n";

const IGNORE: &str = "# Private keys belong on their holders' machines, not here.\nkeys/\n";

/// What `policy new` made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// How many private keys lie in `keys/`.
    pub keys: usize,
    /// The scope that is decided on.
    pub scope: &'static str,
}

/// Makes a working repository at `directory`, which must be absent or empty.
///
/// # Errors
/// The directory holds something, or cannot be written.
pub async fn create(directory: &Path, clock: &dyn Clock, now: Timestamp) -> Result<Made, PublishError> {
    refuse_full(directory)?;
    fs::create_dir_all(directory).map_err(|error| cannot(directory, "made", &error))?;
    let mut settings = String::from(
        "# Who signs what. A key's name says who holds it. After a change: `sidemint policy sign --role root` for the\n\
         # four top-level roles, else `--role targets` (or the role above a department), then publish.\nschema = 1\n\n[keys]\n",
    );
    let mut roles = String::new();
    let mut made = 0;
    let place = directory.join("keys");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&place).map_err(|e| cannot(&place, "made", &e))?;
    for (role, keys, threshold, life, who) in ROLES {
        for name in keys {
            let (key, pem) = LocalKey::generate().map_err(|error| PublishError::Key(error.to_string()))?;
            // exposed: it is written to a file that its owner alone may read
            write_file(&place.join(format!("{name}.pem")), pem.expose().as_bytes(), 0o600)?;
            // Writing to a String cannot fail.
            let _ = writeln!(settings, "{name} = \"{}\"", key.public().keyval.public);
            made += 1;
        }
        let names = keys.iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ");
        let _ = write!(
            roles,
            "\n[roles.{role}] # {who}\nkeys = [{names}]\nthreshold = {threshold}\nexpires = \"{life}\"\n"
        );
    }
    let review = (now + Duration::from_secs(90 * 24 * 3600)).to_string();
    let review = review.get(..10).unwrap_or("2027-02-01");
    let owner = |name: &str, mail: &str| format!("schema = 1\nname = \"{name}\"\nmail = \"{mail}\"\n");
    let files = [
        (".gitignore", IGNORE.to_owned()),
        ("repository.toml", settings + &roles),
        ("owners/charter.toml", CHARTER.to_owned()),
        ("owners/identity-governance.toml", owner("Identity governance", "identity-governance@example.org")),
        ("owners/finance-data.toml", owner("Finance data", "finance-data@example.org")),
        ("boundaries/security.cedar", BOUNDARY.to_owned()),
        ("scopes/ledger-read.toml", SCOPE.to_owned()),
        ("grants/ledger-read-aws.toml", GRANT.to_owned()),
        ("decisions/ledger-read.toml", decision(review)),
        ("decisions/ledger-read.cedar", RULES.to_owned()),
        ("decisions/ledger-read.tests.toml", tests(now)),
        ("kill/list.toml", KILL.to_owned()),
    ];
    for (name, text) in files {
        write_file(&directory.join(name), text.as_bytes(), 0o644)?;
    }
    sign_all(&Workspace::open(directory)?, clock, now).await?;
    Ok(Made { keys: made, scope: "ledger-read" })
}

fn refuse_full(directory: &Path) -> Result<(), PublishError> {
    match fs::read_dir(directory).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(PublishError::Files(format!("{}: is not empty; name a new folder", directory.display()))),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(cannot(directory, "read", &error)),
    }
}

fn decision(review: &str) -> String {
    format!(
        "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"identity-governance\"\nreview_by = {review}\n\
         max_task = \"8h\"\nmax_residual = \"20m\"\nscope = \"{}\"\ngrants = {{ ledger-read-aws = \"{}\" }}\n",
        Digest::of(SCOPE.as_bytes()),
        Digest::of(GRANT.as_bytes())
    )
}

fn tests(now: Timestamp) -> String {
    let at = now.floor_to_second();
    format!(
        r#"# What governance meant; `sidemint policy test --policy DIR` asks the real policy.
schema = 1

[[case]]
name = "the report reads a customer that it reports on"
caller = "spiffe://example.org/ns/finance/sa/report"
params = {{ customer = "c-42" }}
at = {at}
expect = "permit"
rules = ["report-reads-ledger"]

[[case]]
name = "the report reads no other customer"
caller = "spiffe://example.org/ns/finance/sa/report"
params = {{ customer = "c-99" }}
at = {at}
expect = "deny"
denial = "not_permitted"

[[case]]
name = "another workload reads nothing"
caller = "spiffe://example.org/ns/finance/sa/intruder"
params = {{ customer = "c-42" }}
at = {at}
expect = "deny"
denial = "not_permitted"

[[case]]
name = "nobody from another trust domain"
caller = "spiffe://other.example/ns/finance/sa/report"
params = {{ customer = "c-42" }}
at = {at}
expect = "deny"

[[case]]
name = "a task lasts no longer than the decision says"
caller = "spiffe://example.org/ns/finance/sa/report"
params = {{ customer = "c-42" }}
ttl = "9h"
at = {at}
expect = "deny"
denial = "ttl_too_long"
"#
    )
}

/// Signs every role that is signed offline, with as many keys as it needs.
async fn sign_all(workspace: &Workspace, clock: &dyn Clock, now: Timestamp) -> Result<(), PublishError> {
    for (role, keys, threshold, ..) in ROLES.iter().filter(|(role, ..)| !matches!(*role, "snapshot" | "timestamp")) {
        for name in keys.iter().take(usize::try_from(*threshold).unwrap_or(usize::MAX)) {
            let key = KeySource::File(workspace.directory().join("keys").join(format!("{name}.pem")));
            let request = Request { role, key: &key, expires: None, restart: false, published: None, now };
            sign::sign(workspace, &request, clock).await?;
        }
    }
    Ok(())
}
