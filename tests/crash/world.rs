//! What outlives every kill: the SPIFFE authority, the clouds with their own books, and the policy. All of it is in this
//! process; the sidecar is not.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sidemint::clock::{SystemClock, Timestamp};
use sidemint::dev::Running;
use sidemint::dev::authority::{self, Authority, workload_api};
use sidemint::dev::cloud::{self, Cloud, Session, iam, sts};
use sidemint::identity::SpiffeId;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;

use crate::gate::{Gate, Point};
use crate::ledger::Mint;
use crate::vault::{self, Vault};

const STS_AUDIENCE: &str = "sts.amazonaws.com";
/// The workloads.
pub(crate) const WHO: [&str; 4] = ["one", "two", "three", "four"];
/// The most that a decision lets a credential outlive its task.
const MAX_RESIDUAL: &str = "40s";

/// Gone, folder and all, when it is dropped.
pub(crate) struct World {
    pub(crate) authority: Arc<Authority>,
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) vault: Arc<Vault>,
    pub(crate) gate: Arc<Gate>,
    /// Where STS and Vault listen.
    pub(crate) sts: String,
    pub(crate) vault_address: String,
    ends: Mutex<BTreeMap<String, Timestamp>>,
    servers: Vec<tokio::task::JoinHandle<()>>,
    _workload_api: Running,
    folder: tempfile::TempDir,
}

/// The SPIFFE ID of a workload.
pub(crate) fn spiffe_id(who: usize) -> SpiffeId {
    format!("spiffe://crash.test/{}", WHO[who]).parse().unwrap()
}

fn role(who: usize) -> String {
    format!("arn:aws:iam::111122223333:role/{}", WHO[who])
}

fn object(who: usize) -> String {
    format!("arn:aws:s3:::ledger/{}/report", WHO[who])
}

impl World {
    pub(crate) async fn start() -> Self {
        let folder =
            tempfile::Builder::new().prefix("crash-").permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
        let clock: sidemint::clock::SharedClock = Arc::new(SystemClock);
        let sts_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let vault_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sts = format!("http://{}", sts_listener.local_addr().unwrap());
        let vault_address = format!("http://{}", vault_listener.local_addr().unwrap());
        let settings = authority::Settings {
            trust_domain: "crash.test".parse().unwrap(),
            identities: (0..WHO.len()).map(spiffe_id).collect(),
            issuer: sts.clone(),
            x509_ttl: authority::Settings::X509_TTL,
            jwt_ttl: authority::Settings::JWT_TTL,
        };
        let authority = Authority::new(settings, Arc::clone(&clock)).unwrap();
        let socket = folder.path().join("workload-api.sock");
        let workload_api = workload_api::serve(&authority, &socket).unwrap();
        let roles = (0..WHO.len()).map(cloud_role).collect();
        let settings = cloud::Settings {
            issuer: sts.clone(),
            audiences: vec![STS_AUDIENCE.into()],
            region: "us-east-1".into(),
            roles,
        };
        let keys = Arc::clone(&authority);
        let cloud = Cloud::new(settings, Arc::new(move || keys.jwks()), clock);
        let (vault, gate) = (Arc::new(Vault::default()), Arc::new(Gate::default()));
        write_policy(&folder.path().join("policy"));
        let (its_cloud, its_gate) = (Arc::clone(&cloud), Arc::clone(&gate));
        let sts_server = serve(sts_listener, move |request| {
            let (cloud, gate) = (Arc::clone(&its_cloud), Arc::clone(&its_gate));
            async move { exchange(&cloud, &gate, request).await }
        });
        let (its_vault, its_gate) = (Arc::clone(&vault), Arc::clone(&gate));
        let vault_server = serve(vault_listener, move |request| {
            let (vault, gate) = (Arc::clone(&its_vault), Arc::clone(&its_gate));
            async move { vault.answer(&gate, request).await.map(|body| Full::new(body).boxed_unsync()) }
        });
        Self {
            authority,
            cloud,
            vault,
            gate,
            sts,
            vault_address,
            ends: Mutex::default(),
            servers: vec![sts_server, vault_server],
            _workload_api: workload_api,
            folder,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything that either cloud ever gave out, as it stands now.
    pub(crate) fn mints(&self) -> Vec<Mint> {
        let mut ends = self.ends.lock().unwrap();
        let mint = |session: Arc<Session>| {
            let ends_at = *ends.entry(session.access_key_id.clone()).or_insert_with(|| self.true_end(&session));
            let task = session.session_name.rsplit('.').next().unwrap_or_default().to_owned();
            Mint {
                key: session.access_key_id.clone(),
                subject: session.subject.clone(),
                group: task.clone(),
                task: Some(task),
                minted_at: session.issued_at,
                ends_at,
                revoked: false,
            }
        };
        let mut mints: Vec<_> = self.cloud.minted().into_iter().map(mint).collect();
        mints.extend(self.vault.mints());
        mints
    }

    /// When the store first refuses what the session is for, by its own evaluation of role and session policy.
    fn true_end(&self, session: &Session) -> Timestamp {
        let who = WHO.iter().position(|who| session.subject.ends_with(&format!("/{who}"))).unwrap();
        let role = self.cloud.settings().roles.iter().find(|role| role.arn == session.role_arn).unwrap();
        let (resource, user_id) = (object(who), session.user_id());
        let works = |now: u64| {
            let request = iam::Request {
                action: "s3:GetObject",
                resource: &resource,
                now: Timestamp::from_millis(now),
                token_issued_at: session.issued_at,
                user_id: &user_id,
                prefix: None,
            };
            iam::allows(&role.policy, session.policy.as_ref(), &request)
        };
        let (mut good, mut bad) = (session.issued_at.as_millis(), session.expires_at.as_millis());
        assert!(works(good), "a session that never works: {session:?}");
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if works(middle) { good = middle } else { bad = middle }
        }
        Timestamp::from_millis(bad)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

fn cloud_role(who: usize) -> cloud::Role {
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::ledger/*"}]});
    cloud::Role {
        arn: role(who),
        id: format!("AROACRASH{who}"),
        trusted_subject: spiffe_id(who).to_string(),
        trusted_audience: STS_AUDIENCE.into(),
        max_session: Duration::from_secs(3600),
        policy: iam::Policy::parse(&policy.to_string()).unwrap(),
    }
}

/// Serves whole requests until it is aborted; a connection ends with its other side.
fn serve<F, A>(listener: TcpListener, answer: F) -> tokio::task::JoinHandle<()>
where
    F: Fn(Request<Bytes>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<UnsyncBoxBody<Bytes, std::convert::Infallible>>> + Send + 'static,
{
    tokio::spawn(async move {
        // Dropped with the server: what stands still at a point ends with it too.
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(answer(Request::from_parts(head, body)).await)
                }
            });
            connections.spawn(async move {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

/// The embedded STS, with the points before it mints, after it, in the middle of its answer and behind it.
async fn exchange(
    cloud: &Cloud,
    gate: &Gate,
    request: Request<Bytes>,
) -> Response<UnsyncBoxBody<Bytes, std::convert::Infallible>> {
    if request.uri().path() == "/" {
        gate.stop_at(Point::IntentDurable).await;
    }
    let response = sts::answer(cloud, &request);
    if !response.status().is_success() || request.uri().path() != "/" {
        return response.map(|body| Full::new(body).boxed_unsync());
    }
    gate.stop_at(Point::Minted).await;
    if gate.pass(Point::HalfAnswered) {
        return response.map(|body| {
            let half = body.slice(..body.len() / 2);
            let rest = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>());
            let first = tokio_stream::once(Ok(Frame::data(half)));
            StreamBody::new(first.chain(rest)).boxed_unsync()
        });
    }
    gate.pass(Point::Answered);
    response.map(|body| Full::new(body).boxed_unsync())
}

/// One scope at each provider for each workload.
fn write_policy(directory: &Path) {
    for folder in ["scopes", "grants", "decisions", "boundaries"] {
        std::fs::create_dir_all(directory.join(folder)).unwrap();
    }
    for (who, name) in WHO.iter().enumerate() {
        let scope =
            "schema = 1\npurpose = \"Kills\"\nbusiness_owner = \"finance-data\"\njustification = \"None survives\"\n";
        let aws = format!(
            "schema = 1\nprovider = \"aws\"\nrole_arn = \"{}\"\n\n[[session_policy.Statement]]\nEffect = \"Allow\"\n\
             Action = [\"s3:GetObject\"]\nResource = [\"{}\"]\n",
            role(who),
            object(who),
        );
        let vault = format!(
            "schema = 1\nprovider = \"vault\"\nrole = \"app\"\naudience = \"{}\"\nread = \"database/creds/app\"\n\
             accept_role_scope = true\n",
            vault::AUDIENCE,
        );
        for (provider, grant) in [("aws", aws), ("vault", vault)] {
            let id = format!("{name}-{provider}");
            let rules = format!(
                "@id(\"{id}\")\npermit (principal == Workload::\"{}\", action == Action::\"begin\", resource == \
                 Scope::\"{id}\");\n",
                spiffe_id(who),
            );
            let decision = format!(
                "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"identity-governance\"\n\
                 review_by = 2099-01-01\nmax_task = \"1h\"\nmax_residual = \"{MAX_RESIDUAL}\"\nscope = \"{}\"\n\
                 grants = {{ {id} = \"{}\" }}\n",
                digest_of(scope),
                digest_of(&grant),
            );
            let files = [
                (format!("scopes/{id}.toml"), scope),
                (format!("grants/{id}.toml"), &grant),
                (format!("decisions/{id}.cedar"), &rules),
                (format!("decisions/{id}.toml"), &decision),
            ];
            for (path, text) in files {
                std::fs::write(directory.join(path), text).unwrap();
            }
        }
    }
}

fn digest_of(text: &str) -> String {
    let hex: String = digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
