//! The world of `demo` and `dev`, all in one folder of mode 0700: the authority, the cloud with something worth reading in
//! it, and policy files that let one workload read it.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use serde_json::json;
use tokio::net::TcpListener;

use super::Running;
use super::authority::{self, Authority, AuthorityError, workload_api};
use super::cloud::{self, Cloud, http, iam, s3, sts};
use crate::clock::{SharedClock, Timestamp};
use crate::identity::SpiffeId;

/// The trust domain of the embedded authority.
pub const TRUST_DOMAIN: &str = "dev.test";
/// The workload that policy lets read; the authority's default identity.
pub const REPORT: &str = "spiffe://dev.test/report";
/// A workload that policy lets do nothing.
pub const INTRUDER: &str = "spiffe://dev.test/intruder";
/// The sidecar's own identity.
pub const SIDEMINT: &str = "spiffe://dev.test/sidemint";
/// The region of the embedded cloud.
pub const REGION: &str = "us-east-1";
/// The audience that the embedded STS takes: that of AWS.
pub const STS_AUDIENCE: &str = "sts.amazonaws.com";
/// The role that reads the bucket [`BUCKET`].
pub const ROLE: &str = "arn:aws:iam::111122223333:role/ledger";
/// The bucket.
pub const BUCKET: &str = "ledger";
/// What is in the bucket.
pub const OBJECTS: [(&str, &str); 3] = [
    ("c-42/2026-11.csv", "day,amount\n2026-11-01,420.00\n2026-11-02,42.42\n"),
    ("c-43/2026-11.csv", "day,amount\n2026-11-01,430.00\n"),
    ("c-99/2026-11.csv", "day,amount\n2026-11-01,990.00\n"),
];
/// The scope that the policy files know.
pub const SCOPE: &str = "ledger-read";

const SCOPE_FILE: &str = r#"schema = 1
purpose = "The nightly report reads one customer's ledger"
business_owner = "finance-data"
justification = "The report is the month's closing statement to the customer"

[params]
customer = { type = "segment", max = 32 }
"#;

const GRANT_FILE: &str = r#"schema = 1
provider = "aws"
role_arn = "arn:aws:iam::111122223333:role/ledger"

[[session_policy.Statement]]
Effect = "Allow"
Action = ["s3:GetObject"]
Resource = ["arn:aws:s3:::ledger/${param.customer}/*"]

[[session_policy.Statement]]
Effect = "Allow"
Action = ["s3:ListBucket"]
Resource = ["arn:aws:s3:::ledger"]
[session_policy.Statement.Condition.StringLike]
"s3:prefix" = ["${param.customer}/*"]
"#;

const RULES_FILE: &str = r#"@id("report-reads-ledger")
permit (principal == Workload::"spiffe://dev.test/report", action == Action::"begin", resource == Scope::"ledger-read")
when { ["c-42", "c-43"].contains(context.asserted.params.customer) };
"#;

/// Why the world could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// A file, folder or listener.
    #[error("{what}: {source}")]
    Io {
        /// What could not be made.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The role's policy of this file is wrong: a mistake of ours.
    #[error("the embedded role: {0}")]
    Role(#[from] iam::Malformed),
}

impl WorldError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }
}

/// Everything but the sidecar. Gone, folder and all, when it is dropped.
#[derive(Debug)]
pub struct World {
    /// Who names the workloads.
    pub authority: Arc<Authority>,
    /// Who gives and checks credentials.
    pub cloud: Arc<Cloud>,
    /// Where STS listens, `http://127.0.0.1:PORT`; also the issuer of the JWT-SVIDs.
    pub sts_endpoint: String,
    /// Where the object store listens.
    pub s3_endpoint: String,
    socket: PathBuf,
    _running: [Running; 3],
    folder: tempfile::TempDir,
}

impl World {
    /// Starts authority and cloud on `clock`, in a new folder below the system's folder for temporary files.
    ///
    /// # Errors
    /// When a file or a loopback port cannot be had.
    pub async fn start(clock: SharedClock) -> Result<Self, WorldError> {
        let folder = tempfile::Builder::new()
            .prefix("sidemint-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(WorldError::io("cannot make a temporary folder"))?;
        let (sts_listener, sts_endpoint) = loopback().await?;
        let (s3_listener, s3_endpoint) = loopback().await?;
        let authority = Authority::new(
            authority::Settings {
                trust_domain: known(TRUST_DOMAIN),
                identities: vec![known(REPORT), known(INTRUDER), known(SIDEMINT)],
                issuer: sts_endpoint.clone(),
                x509_ttl: authority::Settings::X509_TTL,
                jwt_ttl: authority::Settings::JWT_TTL,
            },
            Arc::clone(&clock),
        )?;
        let socket = folder.path().join("workload-api.sock");
        let workload_api = workload_api::serve(&authority, &socket)?;
        let keys = Arc::clone(&authority);
        let cloud = Cloud::new(cloud_settings(&sts_endpoint)?, Arc::new(move || keys.jwks()), Arc::clone(&clock));
        for (key, content) in OBJECTS {
            cloud.put(BUCKET, key, content);
        }
        let listening = || WorldError::io("cannot listen on loopback");
        let sts = http::serve(&cloud, sts_listener, sts::MAX_BODY, sts::answer).map_err(listening())?;
        let s3 = http::serve(&cloud, s3_listener, s3::MAX_BODY, s3::answer).map_err(listening())?;
        write_policy(&folder.path().join("policy"), clock.now())?;
        Ok(Self { authority, cloud, sts_endpoint, s3_endpoint, socket, _running: [workload_api, sts, s3], folder })
    }

    /// The folder of everything that the world and its sidecar write.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `SPIFFE_ENDPOINT_SOCKET`.
    pub fn workload_api(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The policy files that came with this world.
    pub fn policy_directory(&self) -> PathBuf {
        self.folder.path().join("policy")
    }
}

/// Reads a name that this file spells out.
#[allow(clippy::expect_used, reason = "constants of this file, each parsed by a test")]
fn known<T: std::str::FromStr<Err = crate::identity::spiffe_id::SpiffeIdError>>(name: &str) -> T {
    name.parse().expect("a valid name")
}

async fn loopback() -> Result<(TcpListener, String), WorldError> {
    let listening = || WorldError::io("cannot listen on loopback");
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(listening())?;
    let address = listener.local_addr().map_err(listening())?;
    Ok((listener, format!("http://{address}")))
}

fn cloud_settings(issuer: &str) -> Result<cloud::Settings, WorldError> {
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": format!("arn:aws:s3:::{BUCKET}/*")},
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": format!("arn:aws:s3:::{BUCKET}")},
    ]});
    let role = cloud::Role {
        arn: ROLE.into(),
        id: "AROADEVTESTLEDGER0001".into(),
        trusted_subject: known::<SpiffeId>(REPORT).to_string(),
        trusted_audience: STS_AUDIENCE.into(),
        max_session: Duration::from_secs(3600),
        policy: iam::Policy::parse(&policy.to_string())?,
    };
    let audiences = vec![STS_AUDIENCE.into()];
    Ok(cloud::Settings { issuer: issuer.to_owned(), audiences, region: REGION.into(), roles: vec![role] })
}

/// Writes the policy of this world: one decision, bound by digest to its scope and grant, to be reviewed in half a year.
fn write_policy(directory: &Path, now: Timestamp) -> Result<(), WorldError> {
    let review_by = (now + Duration::from_secs(180 * 24 * 3600)).to_string();
    let review_by = review_by.get(..10).unwrap_or_default();
    let decision = format!(
        r#"schema = 1
tier = "baseline"
kind = "machine"
decision_owner = "identity-governance"
review_by = {review_by}
max_task = "8h"
max_residual = "30s"
scope = "{}"
grants = {{ ledger-read-aws = "{}" }}
"#,
        digest_of(SCOPE_FILE),
        digest_of(GRANT_FILE),
    );
    let files = [
        ("scopes/ledger-read.toml", SCOPE_FILE),
        ("grants/ledger-read-aws.toml", GRANT_FILE),
        ("decisions/ledger-read.cedar", RULES_FILE),
        ("decisions/ledger-read.toml", decision.as_str()),
    ];
    for folder in ["scopes", "grants", "decisions", "boundaries"] {
        let folder = directory.join(folder);
        std::fs::create_dir_all(&folder).map_err(WorldError::io(folder.display().to_string()))?;
    }
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(WorldError::io(path.display().to_string()))?;
    }
    Ok(())
}

fn digest_of(text: &str) -> String {
    format!("sha256:{}", HEXLOWER.encode(digest(&SHA256, text.as_bytes()).as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SystemClock};

    #[tokio::test]
    async fn stands_up_with_everything_in_a_private_folder_and_leaves_nothing() {
        let world = World::start(Arc::new(SystemClock)).await.unwrap();
        let folder = world.folder().to_owned();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let names: Vec<_> = world.authority.identities().iter().map(ToString::to_string).collect();
        assert_eq!(names, [REPORT, INTRUDER, SIDEMINT]);
        let client = spiffe::WorkloadApiClient::connect_to(world.workload_api()).await.unwrap();
        assert_eq!(client.fetch_all_x509_svids().await.unwrap().len(), 3);
        assert!(world.cloud.object(BUCKET, "c-42/2026-11.csv").is_some());
        drop(world);
        assert!(!folder.exists());
    }

    #[test]
    fn the_decision_names_the_digests_of_the_files_beside_it_and_a_review_in_the_future() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::at("2026-11-23T18:00:00Z".parse().unwrap());
        write_policy(folder.path(), crate::clock::Clock::now(&clock)).unwrap();
        let decision = std::fs::read_to_string(folder.path().join("decisions/ledger-read.toml")).unwrap();
        let decision: toml::Table = decision.parse().unwrap();
        for (name, digest) in [
            ("scopes/ledger-read.toml", &decision["scope"]),
            ("grants/ledger-read-aws.toml", &decision["grants"]["ledger-read-aws"]),
        ] {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
            assert_eq!(digest.as_str(), Some(digest_of(&text).as_str()));
            text.parse::<toml::Table>().unwrap();
        }
        assert_eq!(decision["review_by"].to_string(), "2027-05-22");
        assert_eq!(decision["max_residual"].as_str(), Some("30s"));
    }
}
