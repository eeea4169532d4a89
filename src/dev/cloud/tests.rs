//! The cloud as its clients see it: through the AWS SDK, over real sockets, with tokens that the embedded authority
//! signed. The store is asked with requests that the SDK's own signer signed.

use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sts::error::ProvideErrorMetadata;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityOutput;
use aws_smithy_http_client::Builder;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::clock::{Clock as _, ManualClock, SystemClock};
use crate::dev::Running;
use crate::dev::authority::{self, Authority};
use crate::dev::bucket::{Bucket, BucketError};
use crate::identity::SpiffeId;

const ROLE: &str = "arn:aws:iam::111122223333:role/ledger";
const AUDIENCE: &str = "sts.amazonaws.com";

struct Bench {
    authority: Arc<Authority>,
    cloud: Arc<Cloud>,
    clock: ManualClock,
    sts: aws_sdk_sts::Client,
    sts_endpoint: String,
    store: std::net::SocketAddr,
    _running: [Running; 2],
}

impl Bench {
    async fn start() -> Self {
        // Starts where the machine's clock is, because the SDK signs with that one, and then moves by hand.
        let clock = ManualClock::at(SystemClock.now());
        let settings = authority::Settings {
            trust_domain: "dev.test".parse().unwrap(),
            identities: vec![id("report"), id("intruder")],
            issuer: "https://dev.test".into(),
            x509_ttl: authority::Settings::X509_TTL,
            jwt_ttl: authority::Settings::JWT_TTL,
        };
        let authority = Authority::new(settings, Arc::new(clock.clone())).unwrap();
        let policy = json!({"Statement": {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": ["arn:aws:s3:::ledger", "arn:aws:s3:::ledger/*"]}});
        let role = Role {
            arn: ROLE.into(),
            id: "AROAEXAMPLE".into(),
            trusted_subject: id("report").to_string(),
            trusted_audience: AUDIENCE.into(),
            max_session: Duration::from_secs(3600),
            policy: iam::Policy::parse(&policy.to_string()).unwrap(),
        };
        let settings = Settings {
            issuer: "https://dev.test".into(),
            audiences: vec![AUDIENCE.into(), "other".into()],
            region: "us-east-1".into(),
            roles: vec![role],
        };
        let keys = Arc::clone(&authority);
        let cloud = Cloud::new(settings, Arc::new(move || keys.jwks()), Arc::new(clock.clone()));
        for key in ["c-42/2026-11.csv", "c-42/old/2025.csv", "c-43/2026-11.csv"] {
            assert!(cloud.put("ledger", key, key));
        }
        let (sts_listener, s3_listener) = (loopback().await, loopback().await);
        let sts_endpoint = format!("http://{}", sts_listener.local_addr().unwrap());
        let store = s3_listener.local_addr().unwrap();
        let _running = [
            http::serve(&cloud, sts_listener, sts::MAX_BODY, sts::answer).unwrap(),
            http::serve(&cloud, s3_listener, s3::MAX_BODY, s3::answer).unwrap(),
        ];
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&sts_endpoint)
            .retry_config(aws_sdk_sts::config::retry::RetryConfig::disabled())
            .http_client(Builder::new().build_http())
            .build();
        let sts = aws_sdk_sts::Client::from_conf(config);
        Self { authority, cloud, clock, sts, sts_endpoint, store, _running }
    }

    fn token(&self, name: &str, audience: &str) -> String {
        self.authority.jwt_svid(&id(name), &[audience.to_owned()]).unwrap().unwrap().expose().to_owned()
    }

    /// Assumes the role; `Err` is the error code.
    async fn assume(&self, ask: Ask) -> Result<AssumeRoleWithWebIdentityOutput, String> {
        let token = ask.token.unwrap_or_else(|| self.token("report", AUDIENCE));
        self.sts
            .assume_role_with_web_identity()
            .role_arn(ask.role)
            .role_session_name(ask.name)
            .web_identity_token(token)
            .set_duration_seconds(ask.duration)
            .set_policy(ask.policy)
            .send()
            .await
            .map_err(|error| error.code().unwrap_or("none").to_owned())
    }

    async fn s3(&self, ask: Ask) -> Bucket {
        let granted = self.assume(ask).await.unwrap();
        let given = granted.credentials().unwrap();
        self.s3_as(given.access_key_id(), given.secret_access_key(), given.session_token())
    }

    fn s3_as(&self, key: &str, secret: &str, token: &str) -> Bucket {
        let credentials = Credentials::new(key, secret, Some(token.to_owned()), None, "test");
        Bucket { store: self.store, region: "us-east-1".into(), name: "ledger".into(), credentials }
    }

    /// The ledger's newest entry.
    fn newest(&self) -> Arc<Session> {
        self.cloud.minted().pop().unwrap()
    }
}

struct Ask {
    role: &'static str,
    name: &'static str,
    token: Option<String>,
    duration: Option<i32>,
    policy: Option<String>,
}

const PLAIN: Ask = Ask { role: ROLE, name: "sm-task-1", token: None, duration: None, policy: None };

fn id(name: &str) -> SpiffeId {
    format!("spiffe://dev.test/{name}").parse().unwrap()
}

async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// The error code of a refusal.
fn code<T>(answer: Result<T, BucketError>) -> Result<T, String> {
    answer.map_err(|error| match error {
        BucketError::Refused(code) => code,
        BucketError::NoAnswer(detail) => panic!("no answer: {detail}"),
    })
}

/// Reads an object; `Err` is the error code. Signed at the machine's own time, as the SDK does.
async fn read(s3: &Bucket, key: &str) -> Result<Vec<u8>, String> {
    code(s3.get(&SystemClock, key).await).map(|content| content.to_vec())
}

/// Writes an object; `Err` is the error code.
async fn write(s3: &Bucket, key: &str, content: &'static str) -> Result<(), String> {
    code(s3.send(&SystemClock, "PUT", key, &[], content.into()).await).map(drop)
}

/// `ListObjectsV2`: the answer's document; `Err` is the error code.
async fn list(s3: &Bucket, query: &[(&str, &str)]) -> Result<String, String> {
    let query = [&[("list-type", "2")], query].concat();
    code(s3.send(&SystemClock, "GET", "", &query, Bytes::new()).await).map(|answer| answer.text())
}

fn only(customer: &str) -> Option<String> {
    let get = format!("arn:aws:s3:::ledger/{customer}/*");
    Some(
        json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": get},
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::ledger",
             "Condition": {"StringLike": {"s3:prefix": format!("{customer}/*")}}},
        ]})
        .to_string(),
    )
}

#[tokio::test]
async fn a_trusted_token_becomes_a_session_with_awss_answer() {
    let bench = Bench::start().await;
    let policy = only("c-42");
    let size = i32::try_from(policy.as_ref().unwrap().len()).unwrap();
    let granted = bench.assume(Ask { duration: Some(900), policy, ..PLAIN }).await.unwrap();
    let given = granted.credentials().unwrap();
    assert!(given.access_key_id().starts_with("ASIA") && given.access_key_id().len() == 20);
    assert_eq!(given.expiration().secs(), (bench.clock.now() + Duration::from_secs(900)).as_secs() as i64);
    let user = granted.assumed_role_user().unwrap();
    assert_eq!(user.arn(), "arn:aws:sts::111122223333:assumed-role/ledger/sm-task-1");
    assert_eq!(user.assumed_role_id(), "AROAEXAMPLE:sm-task-1");
    assert_eq!(granted.subject_from_web_identity_token(), Some("spiffe://dev.test/report"));
    assert_eq!(granted.audience(), Some(AUDIENCE));
    assert_eq!(granted.provider(), Some("arn:aws:iam::111122223333:oidc-provider/dev.test"));
    #[allow(deprecated, reason = "the SDK's newer field replaces it; the element is still what STS documents")]
    let packed = granted.packed_policy_size();
    assert_eq!(packed, Some((size * 100 + 2047) / 2048));
    let kept = bench.newest();
    assert_eq!((kept.session_name.as_str(), kept.access_key_id.as_str()), ("sm-task-1", given.access_key_id()));
    assert!(kept.session_token.matches(given.session_token()));
}

#[tokio::test]
async fn rejects_tokens_with_the_codes_that_aws_has_for_them() {
    let bench = Bench::start().await;
    let with = |token: String| Ask { token: Some(token), ..PLAIN };
    let good = bench.token("report", AUDIENCE);
    let (signed, _) = good.rsplit_once('.').unwrap();
    let (header, _) = good.split_once('.').unwrap();
    let stranger = Bench::start().await.token("report", AUDIENCE);
    let intruders = bench.token("intruder", AUDIENCE);
    let spliced = format!("{header}.{}", intruders.split_once('.').unwrap().1);
    let refused = [
        (with(stranger), "InvalidIdentityToken"),
        (with(format!("{signed}.AAAA")), "InvalidIdentityToken"),
        (with(spliced.replacen('.', ".e30", 1)), "InvalidIdentityToken"),
        (with("not-a-token".into()), "InvalidIdentityToken"),
        (with(bench.token("report", "sidemint")), "InvalidIdentityToken"),
        (with(bench.token("report", "other")), "AccessDenied"),
        (with(intruders), "AccessDenied"),
        (Ask { role: "arn:aws:iam::111122223333:role/unknown", ..PLAIN }, "AccessDenied"),
        (with("x".repeat(20_001)), "ValidationError"),
        (Ask { duration: Some(899), ..PLAIN }, "ValidationError"),
        (Ask { duration: Some(3601), ..PLAIN }, "ValidationError"),
        (Ask { name: "a/b", ..PLAIN }, "ValidationError"),
        (Ask { name: "a", ..PLAIN }, "ValidationError"),
        (Ask { policy: Some(String::new()), ..PLAIN }, "ValidationError"),
        (Ask { policy: Some(" ".repeat(2049)), ..PLAIN }, "ValidationError"),
        (Ask { policy: Some("{".into()), ..PLAIN }, "MalformedPolicyDocument"),
    ];
    for (number, (ask, code)) in refused.into_iter().enumerate() {
        assert_eq!(bench.assume(ask).await.map(|_| ()), Err(code.to_owned()), "case {number}");
    }
    bench.clock.advance(Duration::from_secs(301));
    assert_eq!(bench.assume(with(good)).await.map(|_| ()), Err("ExpiredTokenException".to_owned()));
    assert!(bench.cloud.minted().is_empty());
}

#[tokio::test]
async fn a_token_of_a_revoked_key_is_refused() {
    let bench = Bench::start().await;
    let old = bench.token("report", AUDIENCE);
    bench.authority.rotate_jwt_key(true).unwrap();
    let refused = bench.assume(Ask { token: Some(old), ..PLAIN }).await.map(|_| ());
    assert_eq!(refused, Err("InvalidIdentityToken".to_owned()));
    bench.assume(PLAIN).await.unwrap();
}

#[tokio::test]
async fn a_session_reads_only_what_role_and_session_policy_both_allow() {
    let bench = Bench::start().await;
    let s3 = bench.s3(Ask { policy: only("c-42"), ..PLAIN }).await;
    assert_eq!(read(&s3, "c-42/2026-11.csv").await.unwrap(), b"c-42/2026-11.csv");
    let head = s3.send(&SystemClock, "HEAD", "c-42/2026-11.csv", &[], Bytes::new()).await.unwrap();
    assert_eq!(head.headers["content-length"], "16");
    assert_eq!(read(&s3, "c-43/2026-11.csv").await, Err("AccessDenied".into()));
    // A missing key looks the same as a forbidden one to who may not list the whole bucket.
    assert_eq!(read(&s3, "c-43/none").await, Err("AccessDenied".into()));
    assert_eq!(read(&s3, "c-42/none").await, Err("AccessDenied".into()));
    assert_eq!(write(&s3, "c-42/new", "x").await, Err("AccessDenied".into()));
    assert!(bench.cloud.object("ledger", "c-42/new").is_none());

    let unnarrowed = bench.s3(PLAIN).await;
    assert!(read(&unnarrowed, "c-43/2026-11.csv").await.is_ok());
    assert_eq!(read(&unnarrowed, "c-43/none").await, Err("NoSuchKey".into()));
}

#[tokio::test]
async fn lists_only_below_the_prefix_that_the_session_may_see() {
    let bench = Bench::start().await;
    let s3 = bench.s3(Ask { policy: only("c-42"), ..PLAIN }).await;
    let below = async |prefix: &str| list(&s3, &[("delimiter", "/"), ("prefix", prefix)]).await;
    let found = below("c-42/").await.unwrap();
    let between = |open: &str, close: &str| -> Vec<String> {
        found.split(open).skip(1).filter_map(|rest| rest.split_once(close)).map(|(text, _)| text.to_owned()).collect()
    };
    let folders = between("<CommonPrefixes><Prefix>", "</Prefix>");
    assert_eq!((between("<Key>", "</Key>"), folders), (vec!["c-42/2026-11.csv".into()], vec!["c-42/old/".into()]));
    assert_eq!(below("c-43/").await, Err("AccessDenied".into()));
    assert_eq!(list(&s3, &[]).await, Err("AccessDenied".into()));
}

#[tokio::test]
async fn puts_objects_where_the_role_allows_it() {
    let bench = Bench::start().await;
    let writer = json!({"Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::ledger/*"}});
    assert!(bench.cloud.set_role_policy(ROLE, iam::Policy::parse(&writer.to_string()).unwrap()));
    let s3 = bench.s3(PLAIN).await;
    write(&s3, "new ü+/x", "data").await.unwrap();
    assert_eq!(read(&s3, "new ü+/x").await.unwrap(), b"data");
    let elsewhere = Bucket { name: "other".into(), ..s3 };
    assert_eq!(write(&elsewhere, "x", "data").await, Err("AccessDenied".into()));
}

#[tokio::test]
async fn rejects_a_session_from_its_cut_on_before_its_expiry() {
    let bench = Bench::start().await;
    let cut = bench.clock.now().floor_to_second() + Duration::from_secs(30);
    let policy = json!({"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::ledger/*",
        "Condition": {"DateLessThan": {"aws:CurrentTime": cut.to_string()}}}});
    let s3 = bench.s3(Ask { policy: Some(policy.to_string()), ..PLAIN }).await;
    assert!(read(&s3, "c-42/2026-11.csv").await.is_ok());
    bench.clock.advance(cut.since(bench.clock.now()) - Duration::from_millis(1));
    assert!(read(&s3, "c-42/2026-11.csv").await.is_ok());
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(read(&s3, "c-42/2026-11.csv").await, Err("AccessDenied".into()));
    assert!(bench.newest().expires_at > bench.clock.now());
}

#[tokio::test]
async fn reports_an_expired_session_as_expired() {
    let bench = Bench::start().await;
    let s3 = bench.s3(Ask { duration: Some(900), ..PLAIN }).await;
    bench.clock.advance(Duration::from_secs(899));
    assert!(read(&s3, "c-42/2026-11.csv").await.is_ok());
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!(read(&s3, "c-42/2026-11.csv").await, Err("ExpiredToken".into()));
}

#[tokio::test]
async fn a_deny_on_the_role_stops_one_session_and_not_the_other() {
    let bench = Bench::start().await;
    let (first, second) = (bench.s3(PLAIN).await, bench.s3(Ask { name: "sm-task-2", ..PLAIN }).await);
    let deny = json!({"Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::ledger/*"},
        {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"StringLike": {"aws:userid": "*:sm-task-1"}}},
    ]});
    assert!(bench.cloud.set_role_policy(ROLE, iam::Policy::parse(&deny.to_string()).unwrap()));
    assert_eq!(read(&first, "c-42/2026-11.csv").await, Err("AccessDenied".into()));
    assert!(read(&second, "c-42/2026-11.csv").await.is_ok());
}

#[tokio::test]
async fn rejects_signatures_of_another_session() {
    let bench = Bench::start().await;
    bench.assume(PLAIN).await.unwrap();
    let first = bench.newest();
    bench.assume(Ask { name: "sm-task-2", ..PLAIN }).await.unwrap();
    let second = bench.newest();
    let (key, secret, token) = (&first.access_key_id, first.secret_access_key.expose(), first.session_token.expose());
    let object = "c-42/2026-11.csv";
    assert!(read(&bench.s3_as(key, secret, token), object).await.is_ok());
    let refused = [
        (bench.s3_as(key, second.secret_access_key.expose(), token), "SignatureDoesNotMatch"),
        (bench.s3_as(key, secret, second.session_token.expose()), "InvalidToken"),
        (bench.s3_as("ASIAAAAAAAAAAAAAAAAA", secret, token), "InvalidAccessKeyId"),
    ];
    for (client, code) in refused {
        assert_eq!(read(&client, object).await, Err(code.into()));
    }
    bench.clock.advance(sigv4::MAX_SKEW + Duration::from_secs(2));
    assert_eq!(read(&bench.s3_as(key, secret, token), object).await, Err("RequestTimeTooSkewed".into()));
}

#[tokio::test]
async fn answers_other_requests_without_harm() {
    let bench = Bench::start().await;
    let status = |method: &str, uri: &str, body: &'static str, answer: http::Answer| {
        let request = ::http::Request::builder().method(method).uri(uri).body(Bytes::from_static(body.as_bytes()));
        let response = answer(&bench.cloud, &request.unwrap());
        (response.status().as_u16(), String::from_utf8_lossy(response.body()).into_owned())
    };
    assert_eq!(status("GET", "/", "", sts::answer).0, 405);
    assert_eq!(status("GET", "/nothing", "", sts::answer).0, 404);
    assert!(
        status("POST", "/", "Action=GetCallerIdentity&Version=2011-06-15", sts::answer).1.contains("InvalidAction")
    );
    let twice = "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&Policy=a&Policy=b";
    assert!(status("POST", "/", twice, sts::answer).1.contains("ValidationError"));
    let unsigned = status("GET", "/ledger/c-42/2026-11.csv?x=%3Cb%3E", "", s3::answer);
    assert_eq!(unsigned.0, 403);
    assert!(unsigned.1.contains("<Code>AccessDenied</Code>"));
    assert_eq!(status("HEAD", "/ledger/c-42/2026-11.csv", "", s3::answer), (403, String::new()));
    let discovery = status("GET", "/.well-known/openid-configuration", "", sts::answer);
    assert!(discovery.1.contains("https://dev.test/keys"), "{}", discovery.1);
    assert_eq!(status("GET", "/keys", "", sts::answer).1.as_bytes(), bench.authority.jwks());
}

#[tokio::test]
async fn rejects_bodies_over_the_limit_and_public_listeners() {
    use http_body_util::Full;
    let bench = Bench::start().await;
    let stream = tokio::net::TcpStream::connect(bench.sts_endpoint.trim_start_matches("http://")).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request =
        ::http::Request::post("/").header("host", "x").body(Full::new(Bytes::from(vec![b'a'; sts::MAX_BODY + 1])));
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), 413);
    connection.abort();

    let everywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
    assert!(http::serve(&bench.cloud, everywhere, 1, sts::answer).is_err());
}
