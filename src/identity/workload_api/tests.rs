//! The real client against an agent of the tests: a gRPC server on a Unix socket that says what a test tells it to.
#![cfg(feature = "dev")]

mod hostile;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, BoxStream, Service, http};
use tonic::server::Grpc;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::client::Client;
use super::streams::{Health, OPENING};
use super::testing::{SigningKey, claims, jwks};
use super::*;
use crate::clock::Clock;
use crate::identity::x509_svid;

const REPORT: &str = "spiffe://example.org/report";
const OTHER: &str = "spiffe://example.org/other";
const NOW: Timestamp = Timestamp::from_secs(1_795_452_513);
/// The notAfter of the agent's leaves: 2027-01-01.
const NOT_AFTER: Timestamp = Timestamp::from_secs(1_798_761_600);
/// A limit that the impatient clock never reaches.
const NEVER: Duration = OPENING;

/// A clock whose waits are over at once, and that remembers them. Only waits of [`NEVER`] never end, unless it is told so.
#[derive(Debug, Default)]
struct Impatient {
    waits: Mutex<Vec<Duration>>,
    /// Whether the time for an opening passes too.
    openings_end: AtomicBool,
}

#[async_trait]
impl Clock for Impatient {
    fn now(&self) -> Timestamp {
        NOW
    }

    fn boot(&self) -> Duration {
        Duration::from_secs(3600)
    }

    async fn sleep(&self, duration: Duration) {
        if duration != NEVER {
            self.waits.lock().unwrap().push(duration);
        } else if !self.openings_end.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct X509Response {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct X509Entry {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    chain: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

#[derive(Clone, PartialEq, Message)]
struct BundlesResponse {
    #[prost(map = "string, bytes", tag = "1")]
    bundles: std::collections::HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct JwtRequest {
    #[prost(string, repeated, tag = "1")]
    audience: Vec<String>,
    #[prost(string, tag = "2")]
    spiffe_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct JwtResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<JwtEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct JwtEntry {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(string, tag = "2")]
    svid: String,
}

/// What a stream says now, and goes on saying to whoever opens it.
type Said<T> = watch::Sender<Result<T, Status>>;
type OnToken = Box<dyn Fn(&JwtRequest) -> Option<Result<String, Status>> + Send>;

/// The agent's mind, which outlives its process.
struct Mind {
    x509: Said<X509Response>,
    bundles: Said<BundlesResponse>,
    token: Mutex<OnToken>,
    asked: AtomicUsize,
}

#[derive(Clone)]
struct Handler(Arc<Mind>);

impl Service<http::Request<Body>> for Handler {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mind = Arc::clone(&self.0);
        Box::pin(async move {
            let marks: Vec<_> = request.headers().get_all("workload.spiffe.io").iter().collect();
            if marks != ["true"] {
                return Ok(Status::invalid_argument("security header missing from request").into_http());
            }
            Ok(match request.uri().path() {
                "/SpiffeWorkloadAPI/FetchX509SVID" => {
                    Grpc::new(ProstCodec::default()).server_streaming(Follow(mind.x509.clone()), request).await
                }
                "/SpiffeWorkloadAPI/FetchJWTBundles" => {
                    Grpc::new(ProstCodec::default()).server_streaming(Follow(mind.bundles.clone()), request).await
                }
                "/SpiffeWorkloadAPI/FetchJWTSVID" => Grpc::new(ProstCodec::default()).unary(Token(mind), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

struct Follow<T>(Said<T>);

impl<T: Clone + Send + Sync + 'static> Service<Request<Empty>> for Follow<T> {
    type Response = Response<BoxStream<T>>;
    type Error = Status;
    type Future = std::future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        let mut states = self.0.subscribe();
        states.mark_changed();
        let (sender, messages) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while states.changed().await.is_ok() {
                let state = states.borrow_and_update().clone();
                let last = state.is_err();
                if sender.send(state).await.is_err() || last {
                    break;
                }
            }
        });
        std::future::ready(Ok(Response::new(Box::pin(ReceiverStream::new(messages)))))
    }
}

struct Token(Arc<Mind>);

impl Service<Request<JwtRequest>> for Token {
    type Response = Response<JwtResponse>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<JwtRequest>) -> Self::Future {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let answer = (self.0.token.lock().unwrap())(request.get_ref());
        Box::pin(async move {
            let Some(answer) = answer else { return std::future::pending().await };
            let entry = JwtEntry { spiffe_id: request.get_ref().spiffe_id.clone(), svid: answer? };
            Ok(Response::new(JwtResponse { svids: vec![entry] }))
        })
    }
}

/// An agent: its mind, its socket and, while it runs, its process (a runtime of its own, so that it can be killed).
struct Agent {
    mind: Arc<Mind>,
    directory: tempfile::TempDir,
    process: Option<Runtime>,
    key: SigningKey,
}

impl Agent {
    fn new() -> Self {
        let key = SigningKey::generate("P-256", "agent");
        let mind = Mind {
            x509: Said::new(Ok(svids(&[REPORT]))),
            bundles: Said::new(Ok(bundles(&[("spiffe://example.org", &jwks([&key]))]))),
            token: Mutex::new(Box::new(|_| Some(Err(Status::unavailable("not told what to say"))))),
            asked: AtomicUsize::new(0),
        };
        Self { mind: Arc::new(mind), directory: tempfile::tempdir().unwrap(), process: None, key }
    }

    fn running() -> Self {
        let mut agent = Self::new();
        agent.run();
        agent
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn run(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(self.socket()).unwrap()
        };
        let handler = Handler(Arc::clone(&self.mind));
        runtime
            .spawn(tonic::transport::Server::builder().serve_with_incoming(handler, UnixListenerStream::new(listener)));
        self.process = Some(runtime);
    }

    /// Like kill -9: its connections break, its socket file stays.
    fn kill(&mut self) {
        self.process.take().unwrap().shutdown_background();
    }

    fn says(&self, said: Result<X509Response, Status>) {
        drop(self.mind.x509.send_replace(said));
    }

    fn publishes(&self, said: Result<BundlesResponse, Status>) {
        drop(self.mind.bundles.send_replace(said));
    }

    fn answers(&self, answer: impl Fn(&JwtRequest) -> Option<Result<String, Status>> + Send + 'static) {
        *self.mind.token.lock().unwrap() = Box::new(answer);
    }

    /// Answers every question for a token with one of these claims.
    fn issues(&self, claims: &serde_json::Value) {
        let token = self.key.sign(claims);
        self.answers(move |_| Some(Ok(token.clone())));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }
}

fn svids(ids: &[&str]) -> X509Response {
    X509Response { svids: ids.iter().map(|id| entry(id, "")).collect() }
}

/// One X.509-SVID with the shape that SPIRE gives it.
fn entry(id: &str, hint: &str) -> X509Entry {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_key = KeyPair::generate().unwrap();
    let root = ca.self_signed(&ca_key).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.not_after = rcgen::date_time_ymd(2027, 1, 1);
    leaf.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    X509Entry {
        spiffe_id: id.into(),
        chain: leaf.der().to_vec(),
        key: key.serialize_der(),
        bundle: root.der().to_vec(),
        hint: hint.into(),
    }
}

fn bundles(entries: &[(&str, &[u8])]) -> BundlesResponse {
    BundlesResponse { bundles: entries.iter().map(|(id, jwks)| ((*id).to_owned(), jwks.to_vec())).collect() }
}

fn start(agent: &Agent) -> (Arc<SpiffeWorkloadApi>, Arc<Impatient>) {
    let clock = Arc::new(Impatient::default());
    (SpiffeWorkloadApi::start(&agent.address(), None, clock.clone()).unwrap(), clock)
}

/// Lets everything run until `condition` holds.
async fn until(api: &SpiffeWorkloadApi, condition: impl Fn(&Identities, &Health) -> bool) {
    for _ in 0..2_000_000 {
        if condition(&api.identities(), &api.health()) {
            return;
        }
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
    panic!("it never came: {:?} {:?}", api.identities(), api.health());
}

fn ids(identities: &Identities) -> Vec<&str> {
    identities.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect()
}

fn domains(identities: &Identities) -> Vec<&str> {
    identities.jwt_bundles.keys().map(TrustDomain::as_str).collect()
}

fn complete(identities: &Identities) -> bool {
    identities.known && !identities.svids.is_empty() && !identities.jwt_bundles.is_empty()
}

#[tokio::test]
async fn learns_svids_and_bundles_and_verifies_with_them() {
    let agent = Agent::running();
    let (api, _) = start(&agent);
    until(&api, |identities, health| complete(identities) && health.connected() && health.last_error().is_none()).await;
    let identities = api.identities();
    assert_eq!(identities.svids, [OwnSvid { spiffe_id: REPORT.parse().unwrap(), expires_at: NOT_AFTER, hint: None }]);
    assert!(identities.svid(&REPORT.parse().unwrap(), NOT_AFTER).is_none(), "an expired SVID does not count");
    let token = agent.key.sign(&claims(REPORT, "sidemint", NOW, Duration::from_secs(300)));
    assert!(crate::identity::jwt_svid::verify(&token, &identities.jwt_bundles, "sidemint", NOW).is_ok());
}

#[tokio::test]
async fn each_message_replaces_all_earlier_state() {
    let agent = Agent::running();
    agent.says(Ok(svids(&[REPORT, OTHER])));
    let (api, _) = start(&agent);
    until(&api, |identities, _| ids(identities) == [REPORT, OTHER] && domains(identities) == ["example.org"]).await;
    let mut changes = api.watch();
    changes.mark_unchanged();

    agent.says(Ok(svids(&[OTHER])));
    until(&api, |identities, _| ids(identities) == [OTHER]).await;
    assert!(changes.has_changed().unwrap());

    agent.publishes(Ok(bundles(&[("spiffe://other.org", &jwks([&agent.key]))])));
    until(&api, |identities, _| domains(identities) == ["other.org"]).await;
    assert_eq!(ids(&api.identities()), [OTHER], "the other half stays");
}

#[tokio::test]
async fn keys_and_x509_bundles_come_and_go_with_the_svids() {
    let agent = Agent::running();
    agent.says(Ok(svids(&[REPORT, "spiffe://other.org/a"])));
    let (api, _) = start(&agent);
    until(&api, |identities, _| identities.keys.len() == 2 && identities.x509_bundles.len() == 2).await;
    let identities = api.identities();
    let key = &identities.keys[&REPORT.parse().unwrap()];
    assert_eq!(key.expires_at(), NOT_AFTER);
    // what was kept goes together: the chain verifies by the bundle of its own trust domain
    let accepted = identities.accepted(&BTreeSet::new(), NOW);
    assert_eq!(accepted.len(), 2);
    let claims = x509_svid::verify(&key.certified().cert, &identities.x509_bundles, &accepted, NOW).unwrap();
    assert_eq!(claims.spiffe_id().as_str(), REPORT);
    assert!(identities.accepted(&BTreeSet::new(), NOT_AFTER).is_empty(), "an expired SVID makes no trust domain ours");

    agent.says(Ok(svids(&[OTHER])));
    until(&api, |identities, _| identities.keys.keys().map(SpiffeId::as_str).eq([OTHER])).await;
    assert!(api.identities().x509_bundles.keys().map(TrustDomain::as_str).eq(["example.org"]));

    agent.says(Err(Status::permission_denied("no identity issued")));
    until(&api, |identities, _| identities.keys.is_empty() && identities.x509_bundles.is_empty()).await;
}

#[tokio::test]
async fn drops_a_key_that_does_not_match_the_leaf() {
    let agent = Agent::running();
    let mut said = svids(&[REPORT, OTHER]);
    said.svids[0].key = said.svids[1].key.clone();
    agent.says(Ok(said));
    let (api, _) = start(&agent);
    until(&api, |identities, _| !identities.keys.is_empty()).await;
    assert!(api.identities().keys.keys().map(SpiffeId::as_str).eq([OTHER]));
}

#[tokio::test]
async fn an_emptied_bundle_revokes_its_keys() {
    let agent = Agent::running();
    let (api, _) = start(&agent);
    until(&api, |identities, _| complete(identities)).await;
    agent.publishes(Ok(bundles(&[("spiffe://example.org", br#"{"keys":[]}"#)])));
    until(&api, |identities, _| identities.jwt_bundles.values().all(|bundle| bundle.is_empty())).await;
    assert_eq!(domains(&api.identities()), ["example.org"]);
}

#[tokio::test]
async fn drops_the_state_of_a_stream_on_permission_denied_and_restores_it() {
    let agent = Agent::running();
    let (api, _) = start(&agent);
    until(&api, |identities, _| complete(identities)).await;

    agent.says(Err(Status::permission_denied("no identity issued")));
    until(&api, |identities, _| identities.svids.is_empty()).await;
    assert_eq!(domains(&api.identities()), ["example.org"], "bundles have a stream of their own");
    assert!(api.identities().known);
    assert!(api.health().last_error().unwrap().contains("no identity issued"));

    agent.publishes(Err(Status::permission_denied("not for you")));
    until(&api, |identities, health| identities.jwt_bundles.is_empty() && !health.connected()).await;

    agent.says(Ok(svids(&[OTHER])));
    agent.publishes(Ok(bundles(&[("spiffe://example.org", &jwks([&agent.key]))])));
    until(&api, |identities, health| complete(identities) && health.last_error().is_none()).await;
    assert_eq!(ids(&api.identities()), [OTHER]);
}

#[tokio::test]
async fn counts_a_first_refusal_as_an_answer() {
    let agent = Agent::running();
    agent.says(Err(Status::permission_denied("no identity issued")));
    let (api, _) = start(&agent);
    until(&api, |identities, _| identities.known).await;
    assert!(api.identities().svids.is_empty());
}

#[tokio::test]
async fn knows_nothing_until_both_streams_have_answered() {
    let agent = Agent::running();
    agent.publishes(Err(Status::unavailable("starting")));
    let (api, _) = start(&agent);
    until(&api, |identities, health| !identities.svids.is_empty() && health.jwt_bundles.last_error.is_some()).await;
    assert!(!api.identities().known);
    agent.publishes(Ok(bundles(&[("spiffe://example.org", &jwks([&agent.key]))])));
    until(&api, |identities, _| identities.known).await;
}

#[tokio::test]
async fn keeps_what_it_has_while_the_agent_is_unavailable() {
    let agent = Agent::running();
    let (api, clock) = start(&agent);
    until(&api, |identities, _| complete(identities)).await;
    agent.says(Err(Status::unavailable("shedding")));
    agent.publishes(Err(Status::unknown("shedding")));
    let tried = clock.waits.lock().unwrap().len();
    until(&api, |_, health| !health.connected() && clock.waits.lock().unwrap().len() > tried + 10).await;
    assert!(complete(&api.identities()));
}

#[tokio::test]
async fn discards_a_message_without_mandatory_fields_and_continues_the_stream() {
    let agent = Agent::running();
    let (api, clock) = start(&agent);
    until(&api, |identities, _| complete(identities)).await;
    let without_key = X509Response { svids: vec![X509Entry { key: Vec::new(), ..entry(OTHER, "") }] };
    for message in [X509Response { svids: Vec::new() }, without_key] {
        agent.says(Ok(message));
        until(&api, |_, health| health.svids.last_error.is_some()).await;
        assert_eq!(ids(&api.identities()), [REPORT]);
        agent.says(Ok(svids(&[REPORT])));
        until(&api, |_, health| health.svids.last_error.is_none()).await;
    }
    agent.publishes(Ok(bundles(&[])));
    until(&api, |_, health| health.jwt_bundles.last_error.is_some()).await;
    assert!(complete(&api.identities()) && api.health().connected());
    assert!(clock.waits.lock().unwrap().is_empty(), "nothing was opened again");
}

#[tokio::test]
async fn reconnects_when_the_socket_comes_late_and_when_it_was_recreated() {
    let mut agent = Agent::new();
    let (api, _) = start(&agent);
    until(&api, |_, health| health.svids.last_error.is_some() && health.jwt_bundles.last_error.is_some()).await;
    assert!(!api.identities().known);

    agent.run();
    until(&api, |identities, health| complete(identities) && health.connected()).await;

    agent.kill();
    until(&api, |_, health| !health.svids.connected && !health.jwt_bundles.connected).await;
    assert_eq!(ids(&api.identities()), [REPORT], "an agent that is gone withdraws nothing");

    std::fs::remove_file(agent.socket()).unwrap();
    agent.says(Ok(svids(&[OTHER])));
    agent.run();
    until(&api, |identities, health| ids(identities) == [OTHER] && health.connected() && health.last_error().is_none())
        .await;
}

#[tokio::test]
async fn reconnects_at_once_then_with_jittered_backoff() {
    let agent = Agent::new();
    let (api, clock) = start(&agent);
    until(&api, |_, _| clock.waits.lock().unwrap().len() >= 40).await;
    drop(api);
    // two supervisors wait side by side: the nth wait of each lies between half of its step and the whole
    let waits = clock.waits.lock().unwrap().clone();
    let mut sorted = waits.clone();
    sorted.sort();
    assert!((50..=100).contains(&sorted[0].as_millis()), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(5)), "{waits:?}");
    assert!(waits.iter().filter(|wait| **wait >= Duration::from_millis(2500)).count() >= 10, "{waits:?}");
    let distinct: std::collections::BTreeSet<_> = waits.iter().collect();
    assert!(distinct.len() > waits.len() / 2, "jitter: {waits:?}");
}

#[tokio::test]
async fn retries_a_request_unknown_to_the_agent_slowly() {
    for code in [Code::Unimplemented, Code::InvalidArgument] {
        let agent = Agent::running();
        let (api, clock) = start(&agent);
        until(&api, |identities, _| complete(identities)).await;
        agent.says(Err(Status::new(code, "not here")));
        until(&api, |_, _| clock.waits.lock().unwrap().len() >= 3).await;
        assert!(clock.waits.lock().unwrap().iter().all(|wait| *wait >= Duration::from_secs(15)));
        assert_eq!(ids(&api.identities()), [REPORT]);
    }
}

#[tokio::test]
async fn skips_invalid_spiffe_ids_and_keeps_the_rest() {
    let agent = Agent::running();
    agent.says(Ok(X509Response {
        svids: vec![
            entry("spiffe://EXAMPLE.org/a", ""),
            entry(REPORT, "internal"),
            entry(OTHER, "internal"),
            entry("spiffe://example.org/long", &"h".repeat(1025)),
        ],
    }));
    let (api, _) = start(&agent);
    until(&api, |identities, _| complete(identities)).await;
    let identities = api.identities();
    assert_eq!(ids(&identities), [REPORT, OTHER, "spiffe://example.org/long"]);
    let hints: Vec<_> = identities.svids.iter().map(|svid| svid.hint.as_deref()).collect();
    assert_eq!(hints, [Some("internal"), None, None]);
}

#[tokio::test]
async fn dropping_it_ends_its_streams() {
    let agent = Agent::running();
    let (api, _) = start(&agent);
    until(&api, |identities, _| complete(identities)).await;
    let mut watch = api.watch();
    drop(api);
    while watch.changed().await.is_ok() {}
}

async fn fetch(client: &Client) -> Result<JwtSvid, WorkloadApiError> {
    client.fetch_jwt_svid(Some(&REPORT.parse().unwrap()), "sts.amazonaws.com", NEVER).await
}

fn client(socket: &Path) -> Client {
    let address = format!("unix://{}", socket.display());
    Client::new(address.parse().unwrap(), None, Arc::new(Impatient::default()))
}

#[tokio::test]
async fn fetches_a_jwt_svid_for_the_audience_and_identity_asked() {
    let agent = Agent::running();
    let token = agent.key.sign(&claims(REPORT, "sts.amazonaws.com", NOW, Duration::from_secs(300)));
    let expected = token.clone();
    agent.answers(move |request| {
        assert_eq!(
            (request.spiffe_id.as_str(), &request.audience[..]),
            (REPORT, &["sts.amazonaws.com".to_owned()][..])
        );
        Some(Ok(token.clone()))
    });
    let svid = fetch(&client(&agent.socket())).await.unwrap();
    assert!(svid.token.matches(&expected));
    assert_eq!((svid.spiffe_id.as_str(), svid.expires_at), (REPORT, NOW + Duration::from_secs(300)));
    assert!(!format!("{svid:?}").contains(&expected));
}

#[tokio::test]
async fn rejects_a_token_that_is_not_what_was_asked_for() {
    let agent = Agent::running();
    let client = client(&agent.socket());
    let good = claims(REPORT, "sts.amazonaws.com", NOW, Duration::from_secs(300));
    for (claim, value) in [
        ("sub", json!(OTHER)),
        ("sub", json!("spiffe://example.org")),
        ("aud", json!(["sidemint"])),
        ("aud", json!(["sts.amazonaws.com", "sidemint"])),
        ("exp", json!(NOW.as_secs())),
        ("exp", json!(null)),
        ("exp", json!("2027")),
    ] {
        let mut claims = good.clone();
        claims[claim] = value.clone();
        agent.issues(&claims);
        let refused = fetch(&client).await;
        assert!(matches!(refused, Err(WorkloadApiError::Invalid(_))), "{claim} {value}: {refused:?}");
    }
    agent.answers(|_| Some(Ok("hunter2".into())));
    let refused = fetch(&client).await.unwrap_err();
    assert!(matches!(refused, WorkloadApiError::Invalid(_)) && !refused.to_string().contains("hunter2"));
    agent.answers(|_| Some(Ok(String::new())));
    assert!(matches!(fetch(&client).await, Err(WorkloadApiError::Invalid(_))));
}

#[tokio::test]
async fn distinguishes_refusals_from_outages() {
    let agent = Agent::running();
    let client = client(&agent.socket());
    for code in [Code::Unavailable, Code::Unknown, Code::Internal, Code::DeadlineExceeded, Code::ResourceExhausted] {
        agent.answers(move |_| Some(Err(Status::new(code, "later\nplease"))));
        let error = fetch(&client).await.unwrap_err();
        assert!(matches!(&error, WorkloadApiError::Unavailable(text) if text.contains("later please")), "{error:?}");
    }
    agent.answers(|_| Some(Err(Status::permission_denied("no identity issued"))));
    assert!(matches!(fetch(&client).await, Err(WorkloadApiError::Denied(_))));
    agent.answers(|_| Some(Err(Status::invalid_argument("what?"))));
    assert!(matches!(fetch(&client).await, Err(WorkloadApiError::Invalid(_))));
    // never answered: the limit ends it
    agent.answers(|_| None);
    let late = client.fetch_jwt_svid(None, "sidemint", Duration::from_secs(5)).await;
    assert!(matches!(&late, Err(WorkloadApiError::Unavailable(text)) if text.contains("5s")), "{late:?}");
}

#[tokio::test]
async fn a_fetch_survives_a_restart_of_the_agent() {
    let mut agent = Agent::running();
    agent.issues(&claims(REPORT, "sts.amazonaws.com", NOW, Duration::from_secs(300)));
    let client = client(&agent.socket());
    assert!(fetch(&client).await.is_ok());
    agent.kill();
    std::fs::remove_file(agent.socket()).unwrap();
    assert!(matches!(fetch(&client).await, Err(WorkloadApiError::Unavailable(_))));
    agent.run();
    assert!(fetch(&client).await.is_ok());
    assert!(fetch(&client).await.is_ok());
    assert_eq!(agent.mind.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn fetches_x509_svids_with_key_and_bundle() {
    let agent = Agent::running();
    let said = svids(&[REPORT, OTHER]);
    agent.says(Ok(said.clone()));
    let material = client(&agent.socket()).fetch_x509_svids(NEVER).await.unwrap();
    assert_eq!(material.len(), 2);
    for (material, entry) in material.iter().zip(&said.svids) {
        assert_eq!((material.svid.spiffe_id.as_str(), material.svid.expires_at), (entry.spiffe_id.as_str(), NOT_AFTER));
        assert_eq!(material.chain, std::slice::from_ref(&entry.chain));
        assert_eq!(material.private_key.as_ref(), entry.key);
    }
    agent.says(Err(Status::permission_denied("no identity issued")));
    assert!(matches!(client(&agent.socket()).fetch_x509_svids(NEVER).await, Err(WorkloadApiError::Denied(_))));
}
