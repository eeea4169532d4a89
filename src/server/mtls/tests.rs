use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ProtocolVersion, SignatureScheme, SupportedProtocolVersion};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use super::*;
use crate::audit::Audit;
use crate::broker::{Limits, Parts};
use crate::clock::ManualClock;
use crate::exchange::{Exchange, ExchangeError, MintOrder, Minted, Provider};
use crate::identity::Authenticator;
use crate::identity::task_token::TokenHash;
use crate::identity::workload_api::WorkloadApi;
use crate::identity::workload_api::testing::FakeWorkloadApi;
use crate::identity::x509_svid::testing::{TestAuthority, TestSvid};
use crate::journal::DiskJournal;
use crate::policy::LoadOptions;
use crate::policy::cache::PolicyCache;
use crate::policy::repository::DirectorySource;
use crate::server::dialect::{self, Action, Dialect, Presented, Resource};
use crate::server::guard::Rules;
use crate::server::problem::Problem;
use crate::server::{Listener, ListenerLimits, Server, json as json_answer, serve};
use http::Request;
use http::header::HeaderName;

mod corpus;

const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_250);
const HOUR: Duration = Duration::from_secs(3600);
const REPORT: &str = "spiffe://example.org/ns/finance/sa/report";
const OTHER: &str = "spiffe://example.org/ns/finance/sa/other";
const TASK: &str = r#"{"scope":"ledger-read","params":{"customer":"c-42"}}"#;

/// No test here mints.
#[derive(Debug)]
struct NoExchange;

#[async_trait]
impl Exchange for NoExchange {
    fn provider(&self) -> Provider {
        Provider::Aws
    }

    async fn mint(&self, _order: &MintOrder) -> Result<Minted, ExchangeError> {
        Err(ExchangeError::Refused { detail: "no test here mints".into() })
    }
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A sidecar with a listener of mutual TLS on loopback.
struct World {
    clock: ManualClock,
    api: Arc<FakeWorkloadApi>,
    authority: TestAuthority,
    broker: Arc<Broker>,
    audit: Text,
    address: SocketAddr,
    _stop: watch::Sender<bool>,
    directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::federated(&[]).await
    }

    async fn federated(federated: &[&str]) -> Self {
        Self::with(federated, ListenerLimits::default()).await
    }

    async fn with(federated: &[&str], limits: ListenerLimits) -> Self {
        let clock = ManualClock::at(NOW);
        let shared: SharedClock = Arc::new(clock.clone());
        let api = FakeWorkloadApi::new(Arc::clone(&shared), &[]);
        let authority = TestAuthority::new("example.org", NOW);
        api.update(|identities| {
            authority.trust(identities);
            authority.give(identities, REPORT, NOW, NOW + HOUR);
            authority.give(identities, OTHER, NOW, NOW + HOUR);
        });
        let federated: BTreeSet<TrustDomain> = federated.iter().map(|name| name.parse().unwrap()).collect();
        let directory = tempfile::tempdir().unwrap();
        let policy = directory.path().join("policy");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/policy/basic"), &policy);
        let cache = PolicyCache::new(Arc::new(DirectorySource::new(policy)), LoadOptions::default());
        cache.reload_now(NOW).await;
        let (journal, recovered) = DiskJournal::open(directory.path()).unwrap();
        let audit = Text::default();
        let parts = Parts {
            authenticator: Authenticator::new(api.clone(), "sidemint".into()).with_federated(federated.clone()),
            exchanges: [(Provider::Aws, Arc::new(NoExchange) as Arc<dyn Exchange>)].into(),
            workload_api: api.clone(),
            policy: Arc::new(cache),
            journal: Arc::new(journal),
            audit: Arc::new(Audit::to(Box::new(audit.clone())).unwrap()),
            metrics: Arc::new(crate::app::metrics().unwrap()),
            jitter: Arc::new(crate::retry::SystemJitter),
            limits: Limits { tasks: 100, mint: HOUR, wait: HOUR, ..Limits::default() },
            clock: Arc::clone(&shared),
        };
        let broker = Broker::new(parts, recovered);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = MtlsSettings { address, spiffe_id: None, federated };
        let mtls = Arc::new(Mtls::new(Arc::clone(&broker), &settings));
        let dialects = [&dialect::ALL[..], &[&ELSEWHERE]].concat();
        let server = Arc::new(Server::with_dialects(&dialects, Arc::clone(&broker), address).unwrap());
        let (stop, stopping) = watch::channel(false);
        let handle = move |request, peer| Arc::clone(&server).handle(request, peer);
        tokio::spawn(serve(Listener::Mtls(listener, mtls), limits, shared, stopping, handle));
        Self { clock, api, authority, broker, audit, address, _stop: stop, directory }
    }

    /// An SVID of this trust domain, good for half an hour.
    fn svid(&self, spiffe_id: &str) -> TestSvid {
        self.authority.issue(spiffe_id, NOW, NOW + HOUR / 2)
    }

    async fn connect(&self, client: ClientConfig) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("sidemint.invalid").unwrap(), stream).await
    }

    /// Connects, and sends one request: in TLS 1.3 a client learns only then whether it was accepted.
    async fn call(&self, client: ClientConfig) -> Result<(Connection, u16), String> {
        let stream = self.connect(client).await.map_err(|error| error.to_string())?;
        let mut connection = Connection::over(stream).await?;
        let (status, _) = connection.send("GET", "/v1/tasks", None, "").await?;
        Ok((connection, status))
    }

    async fn refused(&self, client: ClientConfig, kind: &str) {
        let before = self.outcome(kind);
        assert!(self.call(client).await.is_err(), "{kind}: must be refused");
        until(kind, || self.outcome(kind) == before + 1).await;
        assert_eq!(self.outcome("ok"), 0, "{kind}");
        until("the audit line", || self.audit_lines().iter().any(|line| line["reason"] == kind)).await;
        let lines = self.audit_lines();
        let line = lines.iter().find(|line| line["reason"] == kind).unwrap();
        assert_eq!((&line["event"], &line["outcome"]), (&json!("refusal"), &json!("refused")));
        assert!(line["detail"].as_str().unwrap().contains("127.0.0.1"), "{line}");
    }

    fn outcome(&self, kind: &str) -> u64 {
        self.counter(&format!("sidemint_tls_handshakes_total{{outcome=\"{kind}\"}} "))
    }

    /// Waits until the connection of `spiffe_id` was ended, for `reason` and for nothing else, and told as `word`.
    async fn ended(&self, spiffe_id: &str, reason: &str, word: &str) {
        let count = |reason: &str| self.counter(&format!("sidemint_connections_ended_total{{reason=\"{reason}\"}} "));
        until(reason, || count(reason) == 1).await;
        assert_eq!(ENDINGS.iter().map(|reason| count(reason)).sum::<u64>(), 1);
        let line = || self.audit_lines().into_iter().find(|line| line["event"] == "connection");
        until("the audit line", || line().is_some()).await;
        let line = line().unwrap();
        let told = [&line["outcome"], &line["reason"], &line["spiffe_id"]];
        assert_eq!(told, [&json!("ended"), &json!(word), &json!(spiffe_id)]);
    }

    fn counter(&self, series: &str) -> u64 {
        let page = self.broker.parts().metrics.registry().page().unwrap();
        let page = String::from_utf8(page).unwrap();
        let value = page.lines().find_map(|line| line.strip_prefix(series));
        value.unwrap_or_else(|| panic!("no series {series}")).parse().unwrap()
    }

    fn audit_lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.audit.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..200_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
    panic!("it never came to this: {what}");
}

struct Connection {
    sender: SendRequest<Full<bytes::Bytes>>,
    open: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Connection {
    async fn over(stream: tokio_rustls::client::TlsStream<TcpStream>) -> Result<Self, String> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        Ok(Self { sender, open: tokio::spawn(connection) })
    }

    async fn send(
        &mut self,
        method: &str,
        path: &str,
        bearer: Option<&str>,
        body: &str,
    ) -> Result<(u16, Value), String> {
        let mut request = Request::builder().method(method).uri(path).header("host", "sidemint.example");
        if let Some(bearer) = bearer {
            request = request.header("authorization", bearer);
        }
        let request = request.header("content-type", "application/json").body(Full::from(body.to_owned())).unwrap();
        let answer = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Returns once the server has ended the connection.
    async fn over_now(self) {
        until("the server ends the connection", || self.open.is_finished()).await;
    }
}

/// Trusts any server, and remembers whom it showed.
#[derive(Debug)]
struct TrustsAny(Arc<WebPkiServerVerifier>, Arc<Mutex<Vec<Vec<u8>>>>);

impl ServerCertVerifier for TrustsAny {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.1.lock().unwrap().push(leaf.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

struct Client {
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    root: Vec<u8>,
}

impl Client {
    fn new(world: &World) -> Self {
        Self { seen: Arc::default(), root: world.authority.root().to_vec() }
    }

    fn with(&self, svid: Option<&TestSvid>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone().into()).unwrap();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustsAny(verifier, Arc::clone(&self.seen))));
        let Some(svid) = svid else { return builder.with_no_client_auth() };
        let chain = svid.chain.iter().cloned().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.clone()));
        builder.with_client_auth_cert(chain, key).unwrap()
    }
}

fn client(world: &World, svid: &TestSvid) -> ClientConfig {
    Client::new(world).with(Some(svid), &[&rustls::version::TLS13])
}

#[tokio::test]
async fn a_workload_begins_lists_shows_and_ends_its_task_by_its_x509_svid_alone() {
    let world = World::new().await;
    let (mut connection, status) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    assert_eq!(status, 200);
    let (status, begun) = connection.send("POST", "/v1/tasks", None, TASK).await.unwrap();
    assert_eq!((status, begun["spiffe_id"].as_str()), (201, Some(REPORT)), "{begun}");
    let task = begun["id"].as_str().unwrap();
    let (_, listed) = connection.send("GET", "/v1/tasks", None, "").await.unwrap();
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 1);
    let (status, shown) = connection.send("GET", &format!("/v1/tasks/{task}"), None, "").await.unwrap();
    assert_eq!((status, shown["state"].as_str()), (200, Some("active")));
    let (status, ended) = connection.send("DELETE", &format!("/v1/tasks/{task}"), None, "").await.unwrap();
    assert_eq!((status, ended["reason"].as_str()), (200, Some("done")));
    let lines = world.audit_lines();
    let decision = lines.iter().find(|line| line["event"] == "decision").unwrap();
    assert_eq!((&decision["proof"], &decision["spiffe_id"]), (&json!("x509-svid"), &json!(REPORT)));
    assert_eq!(world.outcome("ok"), 1);
}

#[tokio::test]
async fn a_workload_unknown_to_the_sidecar_may_connect_but_not_begin() {
    let world = World::new().await;
    let stranger = world.svid("spiffe://example.org/stranger");
    let (mut connection, status) = world.call(client(&world, &stranger)).await.unwrap();
    assert_eq!(status, 200);
    let (status, body) = connection.send("POST", "/v1/tasks", None, TASK).await.unwrap();
    assert_eq!(status, 403, "{body}");
}

/// A dialect whose token stands in a header of its own.
static ELSEWHERE: Dialect = Dialect {
    label: "elsewhere",
    below: "/elsewhere",
    rules: Rules::GENERAL,
    presented: |parts| match dialect::one(&parts.headers, &HeaderName::from_static("x-identity-header")) {
        Ok(text) => TokenHash::of(text).map_or(Presented::Unusable, Presented::Token),
        Err(other) => other,
    },
    resources: &[Resource {
        path: "/elsewhere/token",
        methods: &[(
            http::Method::GET,
            Action::Other(|_, _| Box::pin(async { Ok(json_answer(http::StatusCode::OK, &json!({}))) })),
        )],
    }],
    refusal: Problem::answer,
    provider: None,
    variables: &[],
    displaced: &[],
};

#[tokio::test]
async fn a_connection_takes_no_token_of_another_workload_wherever_a_dialect_has_it() {
    let world = World::new().await;
    let (mut report, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    let (mut other, _) = world.call(client(&world, &world.svid(OTHER))).await.unwrap();
    let (_, begun) = report.send("POST", "/v1/tasks", None, TASK).await.unwrap();
    let token = begun["token"].as_str().unwrap();
    let ask = async |connection: &mut Connection, name: &str, values: &[&str]| {
        let mut request = Request::get("/elsewhere/token").header("host", "sidemint.example");
        for value in values {
            request = request.header(name, *value);
        }
        let answer = connection.sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        answer.status().as_u16()
    };
    const NAME: &str = "x-identity-header";
    assert_eq!(ask(&mut report, NAME, &[token]).await, 200);
    assert_eq!(ask(&mut other, NAME, &[token]).await, 401);
    assert_eq!(ask(&mut other, NAME, &[]).await, 200);
    assert_eq!(ask(&mut other, NAME, &[token, token]).await, 401, "which one it is, nobody can tell");
    assert_eq!(ask(&mut other, NAME, &["smt_none"]).await, 401);
    // what the dialect does not read is no proof of anything, and opens nothing
    assert_eq!(ask(&mut other, "authorization", &[token]).await, 200);
}

#[tokio::test]
async fn a_connection_of_one_workload_takes_no_token_or_svid_of_another() {
    let world = World::new().await;
    let (mut report, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    let (mut other, _) = world.call(client(&world, &world.svid(OTHER))).await.unwrap();
    let (_, begun) = report.send("POST", "/v1/tasks", None, TASK).await.unwrap();
    let (task, token) = (begun["id"].as_str().unwrap(), begun["token"].as_str().unwrap());
    let path = format!("/v1/tasks/{task}");
    for bearer in [format!("Bearer {token}"), token.to_owned(), format!("bearer {token}")] {
        for path in [&path, "/v1/aws/credentials"] {
            let (status, _) = other.send("GET", path, Some(&bearer), "").await.unwrap();
            assert_eq!(status, 401, "{path} with {}", &bearer[..10]);
        }
    }
    world.api.trust("example.org".parse().unwrap());
    let foreign = format!("Bearer {}", world.api.issue(REPORT, "sidemint"));
    assert_eq!(other.send("GET", &path, Some(&foreign), "").await.unwrap().0, 401);
    // what is its own still works
    let bearer = format!("Bearer {token}");
    assert_eq!(report.send("GET", &path, Some(&bearer), "").await.unwrap().0, 200);
    assert_eq!(report.send("GET", &path, Some(&foreign), "").await.unwrap().0, 200);
    // and without a bearer the other sees nothing of it
    assert_eq!(other.send("GET", &path, None, "").await.unwrap().0, 404);
}

impl World {
    /// Puts a version of the policy in force in which no rule permits [`REPORT`] anything.
    async fn forbid(&self) {
        let rules = self.directory.path().join("policy/decisions/ledger-read.cedar");
        let text = std::fs::read_to_string(&rules).unwrap();
        let changed = text.replace("sa/report\"", "sa/nobody\"");
        assert_ne!(changed, text);
        std::fs::write(&rules, changed).unwrap();
        let outcome = self.broker.parts().policy.reload_now(NOW).await;
        assert_eq!(outcome, crate::policy::cache::RefreshOutcome::Loaded);
    }
}

#[tokio::test]
async fn decides_each_request_by_the_current_policy_and_closes_after_a_new_one() {
    let world = World::new().await;
    let mut stream = world.connect(client(&world, &world.svid(REPORT))).await.unwrap();
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        TASK.len()
    );
    let answer = async |stream: &mut tokio_rustls::client::TlsStream<TcpStream>| {
        let mut bytes = vec![0; 64 * 1024];
        let read = stream.read(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..read].to_vec()).unwrap()
    };
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(TASK.as_bytes()).await.unwrap();
    let begun = answer(&mut stream).await;
    assert!(begun.starts_with("HTTP/1.1 201 ") && !begun.contains("connection: close"), "{begun}");
    // A request that is under way when the version changes is decided by the new one, and answered.
    stream.write_all(head.as_bytes()).await.unwrap();
    until("its body is waited for", || world.clock.sleepers() == 2).await;
    world.forbid().await;
    world.ended(REPORT, "policy", "policy_changed").await;
    stream.write_all(TASK.as_bytes()).await.unwrap();
    let refused = answer(&mut stream).await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("connection: close"), "{refused}");
    assert_eq!(answer(&mut stream).await, "");
}

#[tokio::test]
async fn closes_idle_connections_on_a_policy_change_and_a_new_one_shows_the_end() {
    let world = World::new().await;
    let (mut connection, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    let (status, begun) = connection.send("POST", "/v1/tasks", None, TASK).await.unwrap();
    assert_eq!(status, 201, "{begun}");
    let (task, token) = (begun["id"].as_str().unwrap(), begun["token"].as_str().unwrap());
    // A refresh that finds nothing new ends nothing.
    world.broker.parts().policy.reload_now(NOW).await;
    assert_eq!(connection.send("GET", "/v1/tasks", None, "").await.unwrap().0, 200);
    world.forbid().await;
    connection.over_now().await;
    world.ended(REPORT, "policy", "policy_changed").await;
    let (mut connection, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    assert_eq!(connection.send("POST", "/v1/tasks", None, TASK).await.unwrap().0, 403);
    assert_eq!(connection.send("GET", "/v1/aws/credentials", Some(token), "").await.unwrap().0, 401);
    let (status, shown) = connection.send("GET", &format!("/v1/tasks/{task}"), None, "").await.unwrap();
    assert_eq!((status, shown["reason"].as_str()), (200, Some("policy_changed")));
}

#[tokio::test]
async fn rejects_proxy_headers_over_mutual_tls_too() {
    let world = World::new().await;
    let (mut connection, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    let request = Request::get("/v1/tasks").header("host", "a").header("x-forwarded-for", "192.0.2.1");
    let answer = connection.sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 403);
}

#[tokio::test]
async fn rejects_a_client_without_a_certificate() {
    let world = World::new().await;
    let client = Client::new(&world).with(None, &[&rustls::version::TLS13]);
    world.refused(client, "no_client_certificate").await;
}

#[tokio::test]
async fn rejects_every_version_before_tls_1_3() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    // a ClientHello of TLS 1.2 as any client of that version writes it, without the extension that offers more
    let hello = [
        &[0x16, 0x03, 0x01, 0x00, 0x3f, 0x01, 0x00, 0x00, 0x3b, 0x03, 0x03][..],
        &[0x5a; 32],
        &[0x00, 0x00, 0x02, 0xc0, 0x2b, 0x01, 0x00, 0x00, 0x10],
        // signature_algorithms: ecdsa_secp256r1_sha256; supported_groups: secp256r1
        &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03, 0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17],
    ]
    .concat();
    stream.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // a fatal alert: protocol_version
    assert_eq!(answer, [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 70]);
    until("counted", || world.outcome("incompatible") == 1).await;
}

#[tokio::test]
async fn rejects_a_client_that_speaks_only_http_2() {
    let world = World::new().await;
    let mut config = client(&world, &world.svid(REPORT));
    config.alpn_protocols = vec![b"h2".to_vec()];
    world.refused(config, "incompatible").await;
}

#[tokio::test]
async fn rejects_another_trust_domain_unless_configured_with_its_own_roots() {
    let partner = TestAuthority::new("partner.example", NOW);
    let workload = partner.issue("spiffe://partner.example/report", NOW, NOW + HOUR);
    let impostor = partner.issue(REPORT, NOW, NOW + HOUR);

    let world = World::new().await;
    world.api.update(|identities| partner.trust(identities));
    world.refused(client(&world, &workload), "trust_domain").await;
    world.refused(client(&world, &impostor), "unknown_issuer").await;

    let world = World::federated(&["partner.example"]).await;
    world.refused(client(&world, &workload), "no_bundle").await;
    world.api.update(|identities| partner.trust(identities));
    world.refused(client(&world, &impostor), "unknown_issuer").await;
    assert_eq!(world.call(client(&world, &workload)).await.unwrap().1, 200);
}

#[tokio::test]
async fn rejects_svids_that_the_tls_library_alone_would_accept() {
    let world = World::new().await;
    for (uri, kind) in [("spiffe://example.org", "spiffe_id"), ("https://example.org/a", "spiffe_id")] {
        let world = World::new().await;
        world.refused(client(&world, &world.svid(uri)), kind).await;
    }
    let expired = world.authority.issue(REPORT, NOW, NOW - Duration::from_secs(2));
    world.refused(client(&world, &expired), "expired").await;
}

#[tokio::test]
async fn rejects_every_client_while_the_sidecar_has_no_svid() {
    let world = World::new().await;
    world.api.update(|identities| identities.keys.clear());
    world.refused(client(&world, &world.svid(REPORT)), "no_svid").await;
}

#[tokio::test]
async fn drops_a_silent_peer_after_five_seconds() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    until("the timer is armed", || world.clock.sleepers() > 0).await;
    world.clock.advance(HANDSHAKE);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes.is_empty());
    until("counted", || world.outcome("timed_out") == 1).await;
}

#[tokio::test]
async fn issues_no_session_tickets_and_resumes_no_session() {
    let world = World::new().await;
    let mut config = client(&world, &world.svid(REPORT));
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    for _ in 0..3 {
        let stream = world.connect(config.clone()).await.unwrap();
        let connection = stream.get_ref().1;
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert!(!connection.is_early_data_accepted());
        let mut connection = Connection::over(stream).await.unwrap();
        assert_eq!(connection.send("GET", "/v1/tasks", None, "").await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn presents_a_rotated_svid_at_once_and_keeps_connections() {
    let world = World::new().await;
    let client = Client::new(&world);
    let svid = world.svid(REPORT);
    let config = || client.with(Some(&svid), &[&rustls::version::TLS13]);
    let (mut first, _) = world.call(config()).await.unwrap();
    world.api.update(|identities| world.authority.give(identities, REPORT, NOW, NOW + HOUR * 2));
    let (_second, _) = world.call(config()).await.unwrap();
    let seen = client.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert_ne!(seen[0], seen[1]);
    assert_eq!(first.send("GET", "/v1/tasks", None, "").await.unwrap().0, 200);
}

#[tokio::test]
async fn closes_a_connection_with_its_requests_when_the_peers_svid_expires() {
    let world = World::new().await;
    let (mut connection, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    let (_, begun) = connection.send("POST", "/v1/tasks", None, TASK).await.unwrap();
    let (task, token) = (begun["id"].as_str().unwrap(), begun["token"].as_str().unwrap());
    let request = Request::post(format!("/v1/tasks/{task}/hold")).header("host", "a");
    let request = request.header("authorization", format!("Bearer {token}")).body(Full::default()).unwrap();
    let mut beats = connection.sender.send_request(request).await.unwrap().into_body();
    assert!(beats.frame().await.unwrap().is_ok());
    world.clock.advance(HOUR / 2 - Duration::from_secs(1));
    until("it still beats", || world.clock.sleepers() > 0).await;
    assert!(beats.frame().await.unwrap().is_ok());
    world.clock.advance(Duration::from_secs(1));
    while let Some(Ok(_)) = beats.frame().await {}
    connection.over_now().await;
    world.ended(REPORT, "peer_expired", "expired").await;
}

#[tokio::test]
async fn setting_the_wall_clock_back_does_not_lengthen_a_connection() {
    let world = World::new().await;
    let (connection, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    until("the timer is armed", || world.clock.sleepers() > 0).await;
    world.clock.set_wall(NOW - HOUR / 4);
    world.clock.advance(HOUR / 2);
    connection.over_now().await;
}

#[tokio::test]
async fn a_connection_ends_when_its_root_leaves_the_bundle_and_not_when_one_joins() {
    let world = World::new().await;
    let (mut connection, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    let next = TestAuthority::new("example.org", NOW);
    let bundle = |roots: &[&[u8]]| Arc::new(crate::identity::x509_svid::X509Bundle::from_der(roots).unwrap());
    let both = bundle(&[world.authority.root(), next.root()]);
    world.api.update(|identities| {
        identities.x509_bundles.insert("example.org".parse().unwrap(), both);
    });
    assert_eq!(connection.send("GET", "/v1/tasks", None, "").await.unwrap().0, 200);
    world.api.update(|identities| {
        identities.x509_bundles.insert("example.org".parse().unwrap(), bundle(&[next.root()]));
    });
    connection.over_now().await;
    world.ended(REPORT, "bundle", "signature").await;
}

#[tokio::test]
async fn a_connection_ends_when_our_identity_or_every_bundle_is_withdrawn() {
    type Case = (fn(&mut Identities), [&'static str; 2]);
    let cases: [Case; 2] = [
        (|identities| identities.svids.retain(|svid| svid.spiffe_id.as_str() != REPORT), ["own_svid", "no_svid"]),
        (|identities| identities.x509_bundles.clear(), ["bundle", "no_bundle"]),
    ];
    for (change, [reason, word]) in cases {
        let world = World::new().await;
        let (connection, _) = world.call(client(&world, &world.svid(OTHER))).await.unwrap();
        world.api.update(change);
        connection.over_now().await;
        world.ended(OTHER, reason, word).await;
    }
}

#[tokio::test]
async fn closes_a_connection_when_our_svid_expires_and_reports_it_as_ours() {
    let world = World::new().await;
    world.api.update(|identities| world.authority.give(identities, REPORT, NOW, NOW + HOUR / 4));
    let (connection, _) = world.call(client(&world, &world.svid(OTHER))).await.unwrap();
    until("the timer is armed", || world.clock.sleepers() > 0).await;
    world.clock.advance(HOUR / 4);
    connection.over_now().await;
    world.ended(OTHER, "own_svid", "own_expired").await;
}

#[tokio::test]
async fn counts_and_audits_a_handshake_that_was_evicted() {
    let world = World::with(&[], ListenerLimits { connections: 1, ..ListenerLimits::default() }).await;
    let mut silent = TcpStream::connect(world.address).await.unwrap();
    until("it is waited for", || world.clock.sleepers() > 0).await;
    assert_eq!(world.call(client(&world, &world.svid(REPORT))).await.unwrap().1, 200);
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!((world.outcome("no_room"), world.outcome("timed_out"), world.outcome("ok")), (1, 0, 1));
    until("the audit line", || world.audit_lines().iter().any(|line| line["reason"] == "no_room")).await;
}

#[tokio::test]
async fn a_federated_workload_cannot_see_or_end_tasks_of_its_namesake() {
    let partner = TestAuthority::new("partner.example", NOW);
    let namesake = partner.issue("spiffe://partner.example/ns/finance/sa/report", NOW, NOW + HOUR);
    let world = World::federated(&["partner.example"]).await;
    world.api.update(|identities| partner.trust(identities));
    let (mut ours, _) = world.call(client(&world, &world.svid(REPORT))).await.unwrap();
    let (_, begun) = ours.send("POST", "/v1/tasks", None, TASK).await.unwrap();
    let (path, token) = (format!("/v1/tasks/{}", begun["id"].as_str().unwrap()), begun["token"].as_str().unwrap());

    let (mut theirs, _) = world.call(client(&world, &namesake)).await.unwrap();
    let (status, listed) = theirs.send("GET", "/v1/tasks", None, "").await.unwrap();
    assert_eq!((status, listed), (200, json!({ "tasks": [] })));
    for method in ["GET", "DELETE"] {
        assert_eq!(theirs.send(method, &path, None, "").await.unwrap().0, 404);
    }
    let bearer = format!("Bearer {token}");
    for (method, path) in [("GET", path.clone()), ("DELETE", path.clone()), ("POST", format!("{path}/hold"))] {
        assert_eq!(theirs.send(method, &path, Some(&bearer), "").await.unwrap().0, 401, "{method} {path}");
    }
    assert_eq!(theirs.send("GET", "/v1/aws/credentials", Some(token), "").await.unwrap().0, 401);
    // Trusted, and still nobody whom this sidecar serves.
    let (status, refused) = theirs.send("POST", "/v1/tasks", None, TASK).await.unwrap();
    assert_eq!((status, refused["code"].as_str()), (403, Some("denied")));
    let told = |line: &Value| line["reason"] == "identity_not_served" && line["spiffe_id"].is_string();
    assert!(world.audit_lines().iter().any(told), "{:?}", world.audit_lines().last());
    assert_eq!(ours.send("GET", &path, None, "").await.unwrap().1["state"], "active");
}

/// The private part of a P-256 key in PKCS #8, in every form in which it could be written somewhere.
fn forms(key: &[u8]) -> Vec<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let scalar = &key[36..68];
    let mut forms = vec![scalar[..16].to_vec(), scalar[16..].to_vec()];
    for bytes in [&scalar[..16], &scalar[16..]] {
        forms.push(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into());
        forms.push(bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>().into());
        forms.push(format!("{bytes:?}").replace(['[', ']'], "").into());
        // Base64 of the scalar or of the whole: at each offset. A line of PEM ends with the 48th byte.
        for offset in 0..3 {
            let part = &bytes[offset..offset + 9];
            forms.extend([STANDARD.encode(part), URL_SAFE_NO_PAD.encode(part)].map(Vec::from));
        }
    }
    forms
}

fn files_below(directory: &Path, bytes: &mut Vec<u8>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, bytes),
            false => bytes.extend(std::fs::read(path).unwrap()),
        }
    }
}

#[tokio::test]
async fn no_private_key_is_written_anywhere_whatever_fails() {
    let log = Text::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(Mutex::new(sink))
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let world = World::with(&["partner.example"], ListenerLimits { connections: 2, ..ListenerLimits::default() }).await;
    let mut keys = Vec::new();
    let mut told = String::new();
    let mut give = |until: Timestamp| {
        let svid = world.authority.issue(REPORT, NOW, until);
        let key = SvidKey::new(svid.chain.clone(), &svid.key, until.floor_to_second()).unwrap();
        world.api.update(|identities| {
            identities.keys.insert(REPORT.parse().unwrap(), Arc::new(key));
        });
        keys.push(svid.key);
    };
    give(NOW + HOUR / 2);
    // Keys that are none, or another certificate's.
    let (one, other) = (world.svid(REPORT), world.svid(REPORT));
    for key in [&other.key[..], &one.key[..one.key.len() - 1], &[&one.key[..], &[0]].concat(), b"no key"] {
        told += &format!("{:?}\n", SvidKey::new(one.chain.clone(), key, NOW + HOUR).err());
    }
    // Peers that are refused, each for another reason; one that says nothing, one that speaks no TLS.
    let stranger = TestAuthority::new("partner.example", NOW).issue("spiffe://partner.example/a", NOW, NOW + HOUR);
    let expired = world.authority.issue(REPORT, NOW, NOW - Duration::from_secs(2));
    for svid in [&stranger, &expired] {
        told += &format!("{:?}\n", world.call(client(&world, svid)).await.err());
    }
    let nobody = Client::new(&world).with(None, &[&rustls::version::TLS13]);
    told += &format!("{:?}\n", world.call(nobody).await.err());
    let mut plain = TcpStream::connect(world.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    let mut silent = TcpStream::connect(world.address).await.unwrap();
    until("the timer is armed", || world.clock.sleepers() > 0).await;
    world.clock.advance(HANDSHAKE);
    let _ = silent.read_to_end(&mut answer).await;
    // One that is heard, sends what is no request, and sees our key rotated, our policy and its own bundle change.
    let peer = world.svid(OTHER);
    let mut stream = world.connect(client(&world, &peer)).await.unwrap();
    stream.write_all(b"\0\0\r\n\r\n").await.unwrap();
    let _ = stream.read_to_end(&mut answer).await;
    let (mut connection, _) = world.call(client(&world, &peer)).await.unwrap();
    told += &format!("{:?}\n", connection.send("POST", "/v1/tasks", None, TASK).await);
    give(NOW + HOUR / 4);
    world.forbid().await;
    connection.over_now().await;
    let (connection, _) = world.call(client(&world, &peer)).await.unwrap();
    world.clock.advance(HOUR / 4);
    connection.over_now().await;
    told += &format!("{:?}\n", world.call(client(&world, &peer)).await.err());
    world.api.update(|identities| identities.keys.clear());
    told += &format!("{:?}\n", world.call(client(&world, &peer)).await.err());

    keys.extend([one.key, other.key, stranger.key, expired.key, peer.key]);
    let metrics = world.broker.parts().metrics.registry().page().unwrap();
    let debug = format!("{:?} {:?}", world.broker, world.api.identities());
    let mut files = Vec::new();
    files_below(world.directory.path(), &mut files);
    let (audit, log) = (world.audit.0.lock().unwrap().clone(), log.0.lock().unwrap().clone());
    let sizes = [log.len(), audit.len(), files.len(), metrics.len(), debug.len(), answer.len()];
    assert!(sizes.iter().all(|size| *size > 0), "something was written to each: {sizes:?}");
    let places = [
        ("the audit log", audit),
        ("the log", log),
        ("the metrics", metrics),
        ("Debug", debug.into()),
        ("the files", files),
        ("what peers were told", [told.into_bytes(), answer].concat()),
    ];
    // A character for each byte: text is searched fast.
    let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
    let places = places.map(|(place, bytes)| (place, text(&bytes)));
    for form in keys.iter().flat_map(|key| forms(key)) {
        for (place, written) in &places {
            assert!(!written.contains(&text(&form)), "{place} holds a part of a private key");
        }
    }
    // The search finds what is there.
    let pem = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(&keys[0])
    };
    let found = |bytes: &[u8]| forms(&keys[0]).iter().any(|form| text(bytes).contains(&text(form)));
    assert!(found(&keys[0]) && found(pem.as_bytes()) && found(format!("{:?}", keys[0]).as_bytes()));
}

#[tokio::test]
async fn no_key_of_ours_is_in_any_debug_text() {
    let world = World::new().await;
    let identities = world.api.identities();
    let svid = world.svid(REPORT);
    let key = SvidKey::new(svid.chain.clone(), &svid.key, NOW).unwrap();
    let text = format!("{identities:?} {key:?} {:?}", key.certified());
    // the private scalar stands at this place of a P-256 PKCS #8 key; searched as Debug writes bytes
    let scalar: Vec<String> = svid.key[36..68].iter().map(u8::to_string).collect();
    assert!(!text.contains(&scalar[..4].join(", ")), "{text}");
}
