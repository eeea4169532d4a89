//! The whole exchange against a real HTTP server on loopback that speaks STS's XML, and the table of its errors.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::exchange::{AwsCredential, Credential, Revocation};
use crate::identity::workload_api::{Identities, WorkloadApi, WorkloadApiError};
use crate::policy::ResolvedGrant;
use crate::retry::Jitter;
use crate::secret::Secret;

const NOW: &str = "2026-11-23T16:00:00Z";
const CALLER: &str = "spiffe://example.org/ns/finance/sa/report";
const ROLE: &str = "arn:aws:iam::111122223333:role/team/ledger";
const SESSION: &str = "smt-01jabcdefghjkmnpqrstvwxyz0";
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0LWNhbmFyeQ.c2lnbmF0dXJl";

// ---- the STS ----

type Body = BoxBody<Bytes, std::io::Error>;

/// What the server does with one request.
#[derive(Debug, Clone)]
enum Reply {
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Never answers.
    Hang,
    /// Closes the connection without a word.
    Close,
    /// Sends half an answer and closes the connection.
    Half,
}

/// One request as it came over the wire.
#[derive(Debug, Clone)]
struct Seen {
    method: String,
    path: String,
    headers: http::HeaderMap,
    form: BTreeMap<String, String>,
    raw: String,
}

/// A scripted STS: replies in order, the last one again and again.
#[derive(Debug)]
struct Sts {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Sts {
    async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let replies = Arc::new(Mutex::new(replies.into_iter().collect::<VecDeque<_>>()));
        let record = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (replies, record) = (Arc::clone(&replies), Arc::clone(&record));
                let service = service_fn(move |request| serve(request, Arc::clone(&replies), Arc::clone(&record)));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    request: http::Request<Incoming>,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    record: Arc<Mutex<Vec<Seen>>>,
) -> Result<http::Response<Body>, std::io::Error> {
    let (head, body) = request.into_parts();
    let raw = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let form = raw.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (decode(k), decode(v))).collect();
    let path = head.uri.path_and_query().unwrap().to_string();
    record.lock().unwrap().push(Seen { method: head.method.to_string(), path, headers: head.headers, form, raw });
    let reply = {
        let mut replies = replies.lock().unwrap();
        if replies.len() > 1 { replies.pop_front().unwrap() } else { replies.front().unwrap().clone() }
    };
    match reply {
        Reply::Answer(status, headers, body) => {
            let mut response = http::Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {});
            Ok(response.body(body.boxed()).unwrap())
        }
        Reply::Hang => std::future::pending().await,
        Reply::Close => Err(std::io::ErrorKind::ConnectionReset.into()),
        Reply::Half => {
            let text = success(&Given::default());
            let half = Frame::data(Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]));
            let frames = tokio_stream::iter([Ok(half), Err(std::io::ErrorKind::ConnectionReset.into())]);
            let response = http::Response::builder().header("content-length", text.len());
            Ok(response.body(StreamBody::new(frames).boxed()).unwrap())
        }
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let hex: Vec<u8> = rest.by_ref().take(2).collect();
            u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
        } else {
            byte
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// What a successful answer holds; the default is right for the default order.
#[derive(Debug, Clone)]
struct Given {
    key: &'static str,
    secret: &'static str,
    token: &'static str,
    expiration: String,
    user: String,
    tail: String,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            key: "ASIAEXAMPLE",
            secret: "secret-access-key-canary",
            token: "session-token-canary",
            expiration: "2026-11-23T16:15:00Z".to_owned(),
            user: format!(
                "<Arn>arn:aws:sts::111122223333:assumed-role/ledger/{SESSION}</Arn><AssumedRoleId>AROA:{SESSION}</AssumedRoleId>"
            ),
            tail: format!(
                "<SubjectFromWebIdentityToken>{CALLER}</SubjectFromWebIdentityToken><Audience>sts.amazonaws.com</Audience>"
            ),
        }
    }
}

fn success(given: &Given) -> String {
    format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleWithWebIdentityResult>\
         <Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{}</Expiration></Credentials><AssumedRoleUser>{}</AssumedRoleUser>{}\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        given.key, given.secret, given.token, given.expiration, given.user, given.tail
    )
}

fn ok(given: &Given) -> Reply {
    Reply::Answer(200, vec![], success(given))
}

fn error(status: u16, code: &str) -> Reply {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>body-canary {TOKEN}</Message></Error><RequestId>r</RequestId></ErrorResponse>"
    );
    Reply::Answer(status, vec![], body)
}

/// As Ceph RGW writes it.
fn bare_error(status: u16, code: &str) -> Reply {
    let body =
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><RequestId>r</RequestId></Error>");
    Reply::Answer(status, vec![], body)
}

// ---- the Workload API ----

/// Gives a JWT-SVID of whom it is asked for, and remembers for which audience.
#[derive(Debug)]
struct Agent {
    asked: Mutex<Vec<(SpiffeId, String)>>,
    outcome: fn(&SpiffeId) -> Result<JwtSvid, WorkloadApiError>,
}

fn svid_of(spiffe_id: &SpiffeId) -> Result<JwtSvid, WorkloadApiError> {
    let expires_at = now() + Duration::from_secs(300);
    Ok(JwtSvid { spiffe_id: spiffe_id.clone(), token: Secret::new(TOKEN.to_owned()), expires_at })
}

#[async_trait]
impl WorkloadApi for Agent {
    fn identities(&self) -> Arc<Identities> {
        Arc::default()
    }

    fn watch(&self) -> watch::Receiver<Arc<Identities>> {
        watch::channel(Arc::default()).1
    }

    async fn fetch_jwt_svid(&self, id: &SpiffeId, audience: &str, _: Duration) -> Result<JwtSvid, WorkloadApiError> {
        self.asked.lock().unwrap().push((id.clone(), audience.to_owned()));
        (self.outcome)(id)
    }
}

// ---- the stage ----

#[derive(Debug)]
struct NoJitter;

impl Jitter for NoJitter {
    fn fraction(&self) -> f64 {
        0.0
    }
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn context(agent: &Arc<Agent>, clock: &ManualClock) -> Context {
    Context { workload_api: Arc::clone(agent) as _, clock: Arc::new(clock.clone()), jitter: Arc::new(NoJitter) }
}

struct World {
    sts: Sts,
    agent: Arc<Agent>,
    clock: ManualClock,
    aws: AwsSts,
}

impl World {
    async fn new(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::with_agent(replies, svid_of).await
    }

    async fn with_agent(
        replies: impl IntoIterator<Item = Reply>,
        outcome: fn(&SpiffeId) -> Result<JwtSvid, WorkloadApiError>,
    ) -> Self {
        let sts = Sts::start(replies).await;
        let agent = Arc::new(Agent { asked: Mutex::default(), outcome });
        let clock = ManualClock::at(now());
        let settings = Settings { sts_endpoint: Some(format!("http://{}", sts.address)), ..Settings::default() };
        let aws = AwsSts::new(settings, context(&agent, &clock)).unwrap();
        Self { sts, agent, clock, aws }
    }

    /// Mints by `order` while the clock is stepped by `step` whenever somebody sleeps on it.
    async fn mint_stepping(&self, order: &MintOrder, step: Duration) -> Result<Minted, ExchangeError> {
        let mint = self.aws.mint(order);
        tokio::pin!(mint);
        loop {
            // Client and server share this thread: after so many turns whatever could happen without time has happened.
            for _ in 0..100 {
                tokio::select! {
                    biased;
                    done = &mut mint => return done,
                    () = tokio::task::yield_now() => {}
                }
            }
            assert!(self.clock.sleepers() > 0, "it waits for something else than the clock");
            self.clock.advance(step);
        }
    }
}

fn order() -> MintOrder {
    order_with(|_, _| {})
}

fn order_with(change: impl FnOnce(&mut MintOrder, &mut AwsGrant)) -> MintOrder {
    let mut grant = AwsGrant {
        role_arn: ROLE.to_owned(),
        session_policy: Some(
            json!({"Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::ledger/c 42+/*"]}]}),
        ),
        region: None,
        audience: None,
    };
    let placeholder = ProviderGrant::Aws(grant.clone());
    let mut order = MintOrder {
        caller: CALLER.parse().unwrap(),
        session_name: SESSION.to_owned(),
        grant: ResolvedGrant {
            id: "ledger-read-aws".parse().unwrap(),
            max_session: Duration::from_secs(3600),
            outlives: Default::default(),
            provider: placeholder,
        },
        dead_by: now() + Duration::from_secs(300),
        max_life: Duration::from_secs(300),
        limit: Duration::from_secs(20),
    };
    change(&mut order, &mut grant);
    order.grant.provider = ProviderGrant::Aws(grant);
    order
}

/// Nothing that came in a body or a token may be in what we say about it.
fn assert_silent(said: &impl std::fmt::Debug) {
    let said = format!("{said:?}");
    for canary in ["canary", TOKEN, "eyJ"] {
        assert!(!said.contains(canary), "{said}");
    }
}

/// The same JSON, without any space between its tokens (in whichever order serde_json keeps members).
fn assert_compact(text: &str, expected: &serde_json::Value) {
    let sent: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(&sent, expected);
    assert_eq!(text, sent.to_string());
}

async fn refused(replies: impl IntoIterator<Item = Reply>) -> (ExchangeError, Vec<Seen>) {
    let world = World::new(replies).await;
    let error = world.aws.mint(&order()).await.unwrap_err();
    assert_silent(&error);
    (error, world.sts.seen())
}

// ---- what is sent ----

#[tokio::test]
async fn sends_the_callers_token_and_a_cut_compact_policy_and_nothing_else() {
    let world = World::new([ok(&Given::default())]).await;
    let minted = world.aws.mint(&order()).await.unwrap();

    let [request] = &world.sts.seen()[..] else { panic!("one request") };
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/"));
    assert_eq!(request.headers.get("authorization"), None);
    assert_eq!(request.headers["content-type"], "application/x-www-form-urlencoded");
    let expected = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", ROLE),
        ("RoleSessionName", SESSION),
        ("WebIdentityToken", TOKEN),
        ("DurationSeconds", "900"),
    ];
    let mut form = request.form.clone();
    let policy = form.remove("Policy").unwrap();
    assert_eq!(form, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    let statement = json!({
        "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::ledger/c 42+/*"],
        "Condition": {"DateLessThan": {"aws:CurrentTime": "2026-11-23T16:05:00Z"}},
    });
    assert_compact(&policy, &json!({"Version": "2012-10-17", "Statement": [statement]}));
    assert!(!request.raw.contains('+'), "Ceph RGW refuses + for a space: {}", request.raw);

    assert_eq!(*world.agent.asked.lock().unwrap(), [(CALLER.parse().unwrap(), "sts.amazonaws.com".to_owned())]);
    assert_eq!(minted.usable_until, order().dead_by);
    assert_eq!(minted.revocability.class(), Revocation::Expire);
    assert_eq!(
        minted.revocability.handle().to_string(),
        format!("arn:aws:sts::111122223333:assumed-role/ledger/{SESSION}")
    );
    let Credential::Aws(AwsCredential { access_key_id, secret_access_key, session_token, account_id }) =
        &minted.credential
    else {
        panic!("from AWS")
    };
    assert!(access_key_id.matches("ASIAEXAMPLE"));
    assert!(secret_access_key.matches("secret-access-key-canary"));
    assert!(session_token.matches("session-token-canary"));
    assert_eq!(account_id.as_deref(), Some("111122223333"));
    assert_silent(&minted);
}

#[tokio::test]
async fn limits_a_long_session_by_its_duration_instead_of_a_cut() {
    let given = Given { expiration: "2026-11-23T16:19:40Z".to_owned(), ..Given::default() };
    let world = World::new([ok(&given)]).await;
    let order = order_with(|order, _| order.dead_by = now() + Duration::from_secs(1200));
    let minted = world.aws.mint(&order).await.unwrap();
    let [request] = &world.sts.seen()[..] else { panic!("one request") };
    assert_eq!(request.form["DurationSeconds"], "1180", "20 s may pass before STS answers");
    assert!(!request.form["Policy"].contains("CurrentTime"));
    assert_eq!(minted.usable_until, "2026-11-23T16:19:40Z".parse().unwrap());
    assert!(minted.usable_until <= order.dead_by);
}

#[tokio::test]
async fn adds_the_cut_to_a_grant_of_the_whole_role_or_sends_no_policy() {
    let world = World::new([ok(&Given::default())]).await;
    world.aws.mint(&order_with(|_, grant| grant.session_policy = None)).await.unwrap();
    let statement = json!({
        "Effect": "Allow", "Action": "*", "Resource": "*",
        "Condition": {"DateLessThan": {"aws:CurrentTime": "2026-11-23T16:05:00Z"}},
    });
    assert_compact(&world.sts.seen()[0].form["Policy"], &json!({"Version": "2012-10-17", "Statement": [statement]}));

    let given = Given { expiration: "2026-11-23T16:50:00Z".to_owned(), ..Given::default() };
    let world = World::new([ok(&given)]).await;
    let order = order_with(|order, grant| {
        order.dead_by = now() + Duration::from_secs(3600);
        grant.session_policy = None;
    });
    world.aws.mint(&order).await.unwrap();
    assert!(!world.sts.seen()[0].form.contains_key("Policy"), "an empty Policy would be no narrowing at RGW");
}

#[tokio::test]
async fn asks_for_the_grants_own_audience() {
    let given = Given { tail: "<Audience>sts.test</Audience>".to_owned(), ..Given::default() };
    let world = World::new([ok(&given)]).await;
    world.aws.mint(&order_with(|_, grant| grant.audience = Some("sts.test".to_owned()))).await.unwrap();
    assert_eq!(world.agent.asked.lock().unwrap()[0].1, "sts.test");
}

#[tokio::test]
async fn rejects_an_order_that_cannot_be_expressed_before_anything_is_sent() {
    type Change = fn(&mut MintOrder, &mut AwsGrant);
    let changes: [(&str, Change); 11] = [
        ("dead already", |order, _| order.dead_by = now()),
        ("dead long ago", |order, _| order.dead_by = Timestamp::from_secs(1)),
        ("dead in a moment", |order, _| order.dead_by = now() + Duration::from_millis(4999)),
        ("plus in the name", |order, _| order.session_name = "smt+1".to_owned()),
        ("short name", |order, _| order.session_name = "s".to_owned()),
        ("long name", |order, _| order.session_name = "s".repeat(65)),
        ("not a role", |_, grant| grant.role_arn = "arn:aws:iam::111122223333:user/x".to_owned()),
        ("empty policy", |_, grant| grant.session_policy = Some(json!({}))),
        ("large policy", |_, grant| {
            grant.session_policy = Some(json!({"Statement": {"Effect": "Allow", "Action": "x".repeat(2048)}}))
        }),
        ("region with a host", |_, grant| grant.region = Some("evil.test/".to_owned())),
        ("no audience", |_, grant| grant.audience = Some(String::new())),
    ];
    let world = World::new([ok(&Given::default())]).await;
    for (case, change) in changes {
        let error = world.aws.mint(&order_with(change)).await.unwrap_err();
        assert_eq!(error.kind(), "inexpressible", "{case}: {error}");
    }
    assert!(world.sts.seen().is_empty());
    assert!(world.agent.asked.lock().unwrap().is_empty());
}

// ---- the errors ----

#[tokio::test]
async fn retries_or_reports_each_error_as_the_table_says() {
    // status, code, bare (as Ceph RGW writes it), calls, kind
    let table = [
        (400, "IDPCommunicationError", false, 4, "unavailable"),
        (400, "ExpiredTokenException", false, 2, "refused"),
        (400, "InvalidIdentityToken", false, 2, "refused"),
        (403, "IDPRejectedClaim", false, 1, "refused"),
        (403, "AccessDenied", false, 1, "refused"),
        (403, "AccessDenied", true, 1, "refused"),
        (400, "PackedPolicyTooLarge", false, 1, "inexpressible"),
        (400, "PackedPolicyTooLarge", true, 1, "inexpressible"),
        (400, "MalformedPolicyDocument", false, 1, "inexpressible"),
        (400, "ValidationError", false, 1, "inexpressible"),
        (400, "InvalidArgument", true, 1, "inexpressible"),
        (403, "RegionDisabledException", false, 1, "refused"),
        (400, "Throttling", false, 4, "unavailable"),
        (429, "TooManyRequestsException", false, 4, "unavailable"),
        (429, "AccessDenied", true, 4, "unavailable"),
        (500, "InternalFailure", false, 4, "unavailable"),
        (503, "ServiceUnavailable", true, 4, "unavailable"),
        (400, "NeverHeardOfIt", false, 1, "refused"),
        (405, "MethodNotAllowed", true, 1, "refused"),
    ];
    for (status, code, bare, calls, kind) in table {
        let reply = if bare { bare_error(status, code) } else { error(status, code) };
        let (error, seen) = refused([reply]).await;
        assert_eq!((error.kind(), seen.len()), (kind, calls), "{code} {status}: {error}");
        assert!(error.to_string().ends_with(&format!("{code} (HTTP {status})")), "{error}");
    }
}

#[tokio::test]
async fn recovers_after_a_transient_failure() {
    for first in
        [error(400, "Throttling"), error(400, "IDPCommunicationError"), error(502, "x"), Reply::Half, Reply::Close]
    {
        let world = World::new([first.clone(), ok(&Given::default())]).await;
        assert!(world.aws.mint(&order()).await.is_ok(), "{first:?}");
        assert_eq!(world.sts.seen().len(), 2, "{first:?}");
    }
}

#[tokio::test]
async fn a_token_that_sts_refuses_is_fetched_again_once() {
    let replies = [error(400, "ExpiredTokenException"), ok(&Given::default())];
    let world = World::new(replies).await;
    assert!(world.aws.mint(&order()).await.is_ok());
    assert_eq!(world.agent.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn rejects_answers_that_are_not_from_sts() {
    let answer = |status, body: &str| Reply::Answer(status, vec![], body.to_owned());
    let redirect = Reply::Answer(307, vec![("location", "http://127.0.0.1:9/".to_owned())], String::new());
    let whole = success(&Given::default());
    let cases = [
        (answer(200, ""), "unusable"),
        (answer(200, "canary"), "unusable"),
        (answer(200, "<html>canary</html>"), "unusable"),
        (answer(200, &whole[..whole.len() / 2]), "unusable"),
        (answer(200, &whole.replace("2026-11-23T16:15:00Z", "tomorrow")), "unusable"),
        (answer(200, &format!("{whole}{}", " ".repeat(MAX_ANSWER))), "unusable"),
        (answer(204, ""), "unusable"),
        (redirect, "unusable"),
        (answer(400, "canary"), "refused"),
        (answer(403, ""), "refused"),
        (answer(404, "<html><Code>canary</Code></html>"), "refused"),
    ];
    for (reply, kind) in cases {
        let (error, seen) = refused([reply.clone()]).await;
        assert_eq!((error.kind(), seen.len()), (kind, 1), "{error} {reply:?}");
    }
}

#[tokio::test]
async fn treats_a_broken_answer_as_transient() {
    for reply in [Reply::Half, Reply::Close] {
        let (error, seen) = refused([reply]).await;
        assert_eq!((error.kind(), seen.len()), ("unavailable", 4), "{error}");
    }
}

#[tokio::test]
async fn stays_uncertain_when_a_refusal_follows_a_try_that_may_have_minted() {
    for lost in [Reply::Close, Reply::Half, error(500, "InternalFailure"), error(504, "x")] {
        for last in [error(403, "AccessDenied"), error(400, "PackedPolicyTooLarge"), error(400, "InvalidIdentityToken")]
        {
            let (error, seen) = refused([lost.clone(), last.clone()]).await;
            assert!(!error.is_certain(), "{lost:?} {last:?}: {error}");
            assert!(error.to_string().ends_with("after a try that may have minted"), "{error}");
            assert!(seen.len() > 1, "{lost:?} {last:?}");
        }
    }
    for certain in [error(429, "x"), error(400, "Throttling"), error(400, "IDPCommunicationError")] {
        let (refused, _) = refused([certain.clone(), error(403, "AccessDenied")]).await;
        assert!(refused.is_certain(), "{certain:?}: {refused}");
    }
}

#[tokio::test]
async fn stays_uncertain_when_the_svid_is_gone_after_a_try_that_may_have_minted() {
    static FETCHED: AtomicUsize = AtomicUsize::new(0);
    let once = |id: &SpiffeId| match FETCHED.fetch_add(1, Ordering::Relaxed) {
        0 => svid_of(id),
        _ => Err(WorkloadApiError::Denied("no entry any more".to_owned())),
    };
    let error = World::with_agent([Reply::Close], once).await.aws.mint(&order()).await.unwrap_err();
    assert!(matches!(error, ExchangeError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn treats_a_refused_connection_as_transient() {
    let world = World::new([Reply::Hang]).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let settings = Settings { sts_endpoint: Some(format!("http://{free}")), ..Settings::default() };
    let aws = AwsSts::new(settings, context(&world.agent, &world.clock)).unwrap();
    let error = aws.mint(&order()).await.unwrap_err();
    assert_eq!(error.to_string(), "provider unavailable: no connection to STS (network, DNS or TLS)");
}

#[tokio::test]
async fn times_out_a_hanging_sts_at_the_limit_of_the_order() {
    let world = World::new([Reply::Hang]).await;
    let began = world.clock.boot();
    let error = world.mint_stepping(&order(), Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), "unavailable");
    let took = world.clock.boot() - began;
    assert!(took >= Duration::from_secs(16) && took <= order().limit, "{took:?}");
    assert!(world.sts.seen().len() > 1, "one hanging call does not eat the time for the others");
}

#[tokio::test]
async fn retry_after_is_honoured_and_handed_on_when_it_is_too_long() {
    let throttled = |after: &str| match error(400, "Throttling") {
        Reply::Answer(status, _, body) => Reply::Answer(status, vec![("retry-after", after.to_owned())], body),
        other => other,
    };
    let world = World::new([throttled("7"), ok(&Given::default())]).await;
    let began = world.clock.boot();
    world.mint_stepping(&order(), Duration::from_millis(500)).await.unwrap();
    assert!(world.clock.boot() - began >= Duration::from_secs(7));

    let world = World::new([throttled("60")]).await;
    let ExchangeError::Unavailable { retry_after, .. } = world.aws.mint(&order()).await.unwrap_err() else {
        panic!("unavailable")
    };
    assert_eq!(retry_after, Some(Duration::from_secs(60)));
    let error = world.aws.mint(&order()).await.unwrap_err();
    assert!(matches!(error, ExchangeError::NotAsked { .. }), "{error}");
    assert_eq!(world.sts.seen().len(), 1, "nobody else calls before the time has come");
}

#[tokio::test]
async fn one_token_bucket_limits_all_calls_to_one_sts() {
    let mut world = World::new([ok(&Given::default())]).await;
    world.aws.settings.rate = Rate { interval: Duration::from_secs(60), burst: 2 };
    for region in ["eu-west-1", "us-east-1"] {
        world.aws.mint(&order_with(|_, grant| grant.region = Some(region.to_owned()))).await.unwrap();
    }
    let error = world.aws.mint(&order()).await.unwrap_err();
    let ExchangeError::NotAsked { retry_after, .. } = error else { panic!("{error}") };
    assert_eq!(retry_after, Duration::from_secs(60));
    assert_eq!(world.sts.seen().len(), 2);
}

// ---- the credentials ----

#[tokio::test]
async fn a_credential_that_is_expired_empty_or_foreign_is_unusable() {
    type Change = fn(&mut Given);
    let changes: [(&str, Change); 19] = [
        ("no key", |g| g.key = ""),
        ("no secret", |g| g.secret = ""),
        ("no token", |g| g.token = ""),
        ("token with a space", |g| g.token = "a b"),
        ("no expiration", |g| g.expiration = "1970-01-01T00:00:00Z".to_owned()),
        ("before 1970", |g| g.expiration = "1960-01-01T00:00:00Z".to_owned()),
        ("expired", |g| g.expiration = NOW.to_owned()),
        ("shorter than asked, so the clocks differ", |g| g.expiration = "2026-11-23T16:14:29Z".to_owned()),
        ("longer than asked", |g| g.expiration = "2026-11-23T16:15:31Z".to_owned()),
        ("year 9999", |g| g.expiration = "9999-12-31T23:59:59Z".to_owned()),
        ("no user", |g| g.user = String::new()),
        ("other account", |g| g.user = g.user.replace("111122223333", "111122223334")),
        ("other role", |g| g.user = g.user.replace("/ledger/", "/admin/")),
        ("other session", |g| g.user = g.user.replace(SESSION, "smt-other")),
        ("user, not a role", |g| g.user = "<Arn>arn:aws:iam::111122223333:user/ledger</Arn>".to_owned()),
        ("other subject", |g| g.tail = g.tail.replace("/report", "/intruder")),
        ("cut subject of a short name", |g| g.tail = g.tail.replace("/report", "")),
        ("other audience", |g| g.tail = g.tail.replace("sts.amazonaws.com", "other")),
        ("no answer at all", |g| (g.user, g.tail) = (String::new(), String::new())),
    ];
    for (case, change) in changes {
        let mut given = Given::default();
        change(&mut given);
        let (error, seen) = refused([ok(&given)]).await;
        assert_eq!((error.kind(), seen.len()), ("unusable", 1), "{case}: {error}");
    }
}

#[tokio::test]
async fn a_credential_as_ceph_rgw_gives_it_is_usable() {
    let given = Given {
        expiration: "2026-11-23T16:15:00.123456789Z".to_owned(),
        user: format!("<Arn>arn:aws:sts:::assumed-role/app/{SESSION}</Arn><AssumeRoleId>x:{SESSION}</AssumeRoleId>"),
        tail: "<PackedPolicySize>100</PackedPolicySize>".to_owned(),
        ..Given::default()
    };
    let world = World::new([ok(&given)]).await;
    let minted =
        world.aws.mint(&order_with(|_, grant| grant.role_arn = "arn:aws:iam:::role/app".to_owned())).await.unwrap();
    let Credential::Aws(credential) = &minted.credential else { panic!("from AWS") };
    assert_eq!(credential.account_id, None);
}

#[tokio::test]
async fn a_subject_cut_at_255_characters_is_still_a_long_named_caller() {
    let caller = format!("spiffe://example.org/{}", "a".repeat(300));
    for (subject, usable) in [(&caller[..255], true), (&caller[..254], false), (caller.as_str(), true)] {
        let tail = format!("<SubjectFromWebIdentityToken>{subject}</SubjectFromWebIdentityToken>");
        let world = World::new([ok(&Given { tail, ..Given::default() })]).await;
        let order = order_with(|order, _| order.caller = caller.parse().unwrap());
        assert_eq!(world.aws.mint(&order).await.is_ok(), usable, "{} characters", subject.len());
    }
}

#[tokio::test]
async fn rejects_a_credential_that_arrives_after_its_own_cut() {
    let throttled = Reply::Answer(429, vec![("retry-after", "7".to_owned())], String::new());
    let world = World::new([throttled, ok(&Given::default())]).await;
    let order = order_with(|order, _| order.dead_by = now() + Duration::from_secs(6));
    let error = world.mint_stepping(&order, Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "unusable answer: it came after the end of its own life");
    assert_eq!(world.sts.seen().len(), 2);
}

// ---- the SVID ----

#[tokio::test]
async fn without_an_svid_of_the_caller_nothing_is_sent() {
    type Outcome = fn(&SpiffeId) -> Result<JwtSvid, WorkloadApiError>;
    let outcomes: [(Outcome, bool); 6] = [
        (|_| Err(WorkloadApiError::Unavailable("no agent".to_owned())), true),
        (|_| Err(WorkloadApiError::Denied("no entry".to_owned())), false),
        (|_| Err(WorkloadApiError::Invalid("nonsense".to_owned())), true),
        (|id| Ok(JwtSvid { expires_at: now(), ..svid_of(id)? }), true),
        (|_| svid_of(&"spiffe://example.org/sidemint".parse().unwrap()), false),
        (|id| Ok(JwtSvid { token: Secret::new("x".repeat(20_001)), ..svid_of(id)? }), false),
    ];
    for (case, (outcome, expected)) in outcomes.into_iter().enumerate() {
        let world = World::with_agent([ok(&Given::default())], outcome).await;
        let error = world.aws.mint(&order()).await.unwrap_err();
        assert!(matches!(error, ExchangeError::NoSvid { passing, .. } if passing == expected), "{case}: {error}");
        assert!(world.sts.seen().is_empty());
    }
}

// ---- leaks ----

/// Collects whatever is logged.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_line_at_any_level_holds_a_token_or_a_key() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let world = World::new([error(400, "Throttling"), ok(&Given::default())]).await;
    world.aws.mint(&order()).await.unwrap();
    for reply in [error(400, "InvalidIdentityToken"), Reply::Answer(200, vec![], "canary".to_owned())] {
        World::new([reply]).await.aws.mint(&order()).await.unwrap_err();
    }
    drop(guard);
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("STS"), "the log was on");
    let leaks: Vec<_> = logged.lines().filter(|l| [TOKEN, "canary"].iter().any(|secret| l.contains(secret))).collect();
    assert!(leaks.is_empty(), "{} of {} lines: {leaks:#?}", leaks.len(), logged.lines().count());
}

// ---- settings ----

#[tokio::test]
async fn https_means_tls_and_never_falls_back_to_plain_text() {
    let mut world = World::new([ok(&Given::default())]).await;
    world.aws.settings.sts_endpoint = Some(format!("https://{}", world.sts.address));
    let error = world.aws.mint(&order()).await.unwrap_err();
    assert_eq!(error.kind(), "unavailable", "{error}");
    assert!(world.sts.seen().is_empty());
}

/// Puts TLS before `sts`, with a certificate for `name` that `issuer` signed and that ends in `year`; where it listens.
async fn behind_tls(sts: &Sts, issuer: &Issuer<'_, KeyPair>, name: &str, year: i32) -> SocketAddr {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap().der().clone();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, upstream) = (listener.local_addr().unwrap(), sts.address);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut upstream = tokio::net::TcpStream::connect(upstream).await?;
                tokio::io::copy_bidirectional(&mut stream, &mut upstream).await
            });
        }
    });
    address
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let root = STANDARD.encode(params.self_signed(&key).unwrap().der());
    let root = format!("-----BEGIN CERTIFICATE-----\n{root}\n-----END CERTIFICATE-----\n");
    (Issuer::new(params, key), root)
}

#[tokio::test]
async fn sends_nothing_to_an_sts_with_an_untrusted_certificate() {
    let ((known, root), (unknown, _)) = (authority("known"), authority("unknown"));
    let rows = [
        ("good", &known, "127.0.0.1", 4000, true),
        ("of an unknown authority", &unknown, "127.0.0.1", 4000, false),
        ("that has expired", &known, "127.0.0.1", 2020, false),
        ("for another address", &known, "127.0.0.2", 4000, false),
        ("for a name", &known, "sts.amazonaws.com", 4000, false),
    ];
    for (what, issuer, name, year, trusted) in rows {
        let mut world = World::new([ok(&Given::default())]).await;
        let address = behind_tls(&world.sts, issuer, name, year).await;
        world.aws.settings.sts_endpoint = Some(format!("https://{address}"));
        world.aws.http_client = http_client(TrustStore::empty().with_pem_certificate(root.as_bytes())).unwrap();
        match world.aws.mint(&order()).await {
            Ok(_) => assert!(trusted, "a certificate {what}"),
            Err(error) => {
                assert!(!trusted, "a certificate {what}: {error}");
                assert_eq!(
                    error.to_string(),
                    "provider unavailable: no connection to STS (network, DNS or TLS)",
                    "{what}"
                );
            }
        }
        assert_eq!(world.sts.seen().len(), usize::from(trusted), "{what}");
    }
    // The machine's own roots do not know it either.
    let mut world = World::new([ok(&Given::default())]).await;
    let address = behind_tls(&world.sts, &known, "127.0.0.1", 4000).await;
    world.aws.settings.sts_endpoint = Some(format!("https://{address}"));
    world.aws.http_client = http_client(TrustStore::default()).unwrap();
    assert_eq!(world.aws.mint(&order()).await.unwrap_err().kind(), "unavailable");
    assert!(world.sts.seen().is_empty());
}

#[test]
fn plain_http_is_for_loopback_only() {
    for (url, outcome) in [
        ("https://sts.example.org", Ok(true)),
        ("https://sts.example.org:8443/", Ok(true)),
        ("http://127.0.0.1:8000", Ok(false)),
        ("http://127.3.2.1", Ok(false)),
        ("http://[::1]:8000", Ok(false)),
        ("http://localhost:4566", Ok(false)),
        ("http://sts.example.org", Err(SettingsError::PlainHttp)),
        ("http://169.254.169.254", Err(SettingsError::PlainHttp)),
        ("http://127.0.0.1.example.org", Err(SettingsError::PlainHttp)),
        ("http://localhost.example.org", Err(SettingsError::PlainHttp)),
        ("http://0.0.0.0:8000", Err(SettingsError::PlainHttp)),
        ("http://127.0.0.1@example.org", Err(SettingsError::Endpoint)),
        ("https://user:pass@example.org", Err(SettingsError::Endpoint)),
        ("https://example.org/path", Err(SettingsError::Endpoint)),
        ("https://example.org?query", Err(SettingsError::Endpoint)),
        ("https://example.org#fragment", Err(SettingsError::Endpoint)),
        ("ftp://example.org", Err(SettingsError::Endpoint)),
        ("sts.example.org", Err(SettingsError::Endpoint)),
        ("/", Err(SettingsError::Endpoint)),
        ("", Err(SettingsError::Endpoint)),
    ] {
        assert_eq!(check_endpoint(url), outcome, "{url}");
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_construction() {
    let made = |change: fn(&mut Settings)| {
        let mut settings = Settings { sts_endpoint: Some("http://127.0.0.1:9".to_owned()), ..Settings::default() };
        change(&mut settings);
        let agent = Arc::new(Agent { asked: Mutex::default(), outcome: svid_of });
        AwsSts::new(settings, context(&agent, &ManualClock::at(now()))).map(|_| ()).unwrap_err()
    };
    assert_eq!(made(|s| s.sts_endpoint = Some("http://sts.example.org".to_owned())), SettingsError::PlainHttp);
    assert_eq!(made(|s| s.audience.clear()), SettingsError::Audience);
    for region in ["", "US-EAST-1", "us-east-1.evil.test", "-", "us-east-1-", "a/b"] {
        assert!(!is_region(region), "{region}");
    }
    assert_eq!(made(|s| s.region.clear()), SettingsError::Region);
}

#[tokio::test]
async fn without_an_endpoint_the_region_s_own_sts_is_asked() {
    use aws_sdk_sts::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
    for region in ["us-east-1", "eu-central-1"] {
        let params = Params::builder().region(region).build().unwrap();
        let endpoint = DefaultResolver::new().resolve_endpoint(&params).await.unwrap();
        assert_eq!(endpoint.url(), format!("https://sts.{region}.amazonaws.com"));
    }
}

proptest! {
    #[test]
    fn the_law_of_life_holds_however_late_sts_answers(secs in 0_u64..100_000, ms in 0_u64..1000, limit in 0_u64..60_000, late in 0.0..1.0) {
        let limit = Duration::from_millis(limit);
        let dead_by = now() + Duration::from_millis(secs * 1000 + ms);
        match Life::plan(dead_by, now(), limit) {
            None => prop_assert!(dead_by.since(now()) < MIN_LIFE),
            Some(Life { duration, cut }) => {
                prop_assert!((MIN_SESSION..=MAX_SESSION).contains(&duration) && duration.subsec_nanos() == 0);
                let expiration = now() + limit.mul_f64(late) + duration;
                let dead = cut.map_or(expiration, |cut| cut.min(expiration));
                prop_assert!(dead <= dead_by);
                prop_assert!(dead + Duration::from_secs(1) + limit >= dead_by.min(now() + MAX_SESSION), "no more is taken away than needed");
            }
        }
    }
}
