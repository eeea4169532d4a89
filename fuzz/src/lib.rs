//! What several fuzz targets need: a signing key, a Workload API, a clock, a policy that permits, a server that answers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::json;
use sidemint::clock::{Clock, Timestamp};
use sidemint::identity::jwt_svid::JwtBundle;
use sidemint::identity::workload_api::{Identities, JwtSvid, OwnSvid, WorkloadApi, WorkloadApiError};
use sidemint::identity::{SpiffeId, TrustDomain};
use sidemint::retry::Jitter;
use sidemint::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The moment at which every target plays.
pub const NOW: Timestamp = Timestamp::from_secs(1_795_452_513);
/// The audience of the sidecar.
pub const AUDIENCE: &str = "sidemint";
/// A workload that the policy of [`policy_files`] names.
pub const REPORT: &str = "spiffe://example.org/ns/finance/sa/report";
/// The `kid` of [`KEY`].
pub const KID: &str = "fuzz";

/// A signing key of this process alone: nothing that a corpus holds was ever signed by it.
pub static KEY: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());

/// The trust bundle of `example.org`: the public half of [`KEY`].
pub static BUNDLES: LazyLock<BTreeMap<TrustDomain, Arc<JwtBundle>>> = LazyLock::new(|| {
    let (x, y) = KEY.public_key().as_ref()[1..].split_at(32);
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let key = json!({"kty": "EC", "crv": "P-256", "kid": KID, "x": encode(x), "y": encode(y)});
    let bundle = JwtBundle::parse(json!({"keys": [key]}).to_string().as_bytes()).unwrap();
    [("example.org".parse().unwrap(), Arc::new(bundle))].into()
});

/// A compact JWS over these exact bytes, with a valid signature of [`KEY`].
pub fn sign(header: &[u8], claims: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = KEY.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// The header that SPIRE writes.
pub fn good_header() -> String {
    json!({"alg": "ES256", "kid": KID, "typ": "JWT"}).to_string()
}

/// The claims that SPIRE writes, for `audience`.
pub fn good_claims(audience: &str) -> String {
    json!({"sub": REPORT, "aud": [audience], "iat": NOW.as_secs(), "exp": NOW.as_secs() + 300}).to_string()
}

/// A Workload API that has answered: [`REPORT`] is ours, `example.org` is trusted.
pub struct FixedWorkloadApi(watch::Sender<Arc<Identities>>);

impl fmt::Debug for FixedWorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FixedWorkloadApi")
    }
}

impl FixedWorkloadApi {
    /// One that never changes.
    pub fn new() -> Arc<Self> {
        let svid = |id: &str| OwnSvid {
            spiffe_id: id.parse().unwrap(),
            expires_at: NOW + Duration::from_secs(3600),
            hint: None,
        };
        let svids = vec![svid(REPORT), svid("spiffe://example.org/ns/audit/sa/a"), svid("spiffe://other.example/x")];
        let identities = Identities { svids, jwt_bundles: BUNDLES.clone(), known: true, ..Identities::default() };
        Arc::new(Self(watch::Sender::new(Arc::new(identities))))
    }
}

#[async_trait]
impl WorkloadApi for FixedWorkloadApi {
    fn identities(&self) -> Arc<Identities> {
        self.0.borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<Identities>> {
        self.0.subscribe()
    }

    async fn fetch_jwt_svid(
        &self,
        spiffe_id: &SpiffeId,
        audience: &str,
        _limit: Duration,
    ) -> Result<JwtSvid, WorkloadApiError> {
        let token = Secret::new(sign(good_header().as_bytes(), good_claims(audience).as_bytes()));
        Ok(JwtSvid { spiffe_id: spiffe_id.clone(), token, expires_at: NOW + Duration::from_secs(300) })
    }
}

/// The policy of `tests/fixtures/policy/basic` for the scope `ledger-read`, by path.
pub fn policy_files() -> BTreeMap<String, Bytes> {
    macro_rules! file {
        ($path:literal) => {
            ($path.to_owned(), Bytes::from_static(include_bytes!(concat!("../../tests/fixtures/policy/basic/", $path))))
        };
    }
    BTreeMap::from([
        file!("boundaries/security.cedar"),
        file!("decisions/ledger-read.cedar"),
        file!("decisions/ledger-read.toml"),
        file!("grants/ledger-read-aws.toml"),
        file!("scopes/ledger-read.toml"),
    ])
}

/// `data` up to the first `NUL` and what comes after it.
pub fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

/// Stands still during an input. Nobody waits for less than a time-out, and a time-out never comes: a hang is libFuzzer's to
/// find.
#[derive(Debug)]
pub struct Still;

/// How many inputs there were.
static INPUTS: AtomicU64 = AtomicU64::new(1);

/// Lets an hour pass between two inputs, so that a provider whose circuit was open after the one is asked about the other.
pub fn next_input() {
    INPUTS.fetch_add(1, Ordering::Relaxed);
}

#[async_trait]
impl Clock for Still {
    fn now(&self) -> Timestamp {
        NOW
    }
    fn boot(&self) -> Duration {
        Duration::from_secs(3600 * INPUTS.load(Ordering::Relaxed))
    }
    async fn sleep(&self, duration: Duration) {
        if !duration.is_zero() {
            std::future::pending::<()>().await;
        }
    }
}

/// No jitter: whoever would try again later tries again at once.
#[derive(Debug)]
pub struct AtOnce;

impl Jitter for AtOnce {
    fn fraction(&self) -> f64 {
        0.0
    }
}

/// Answers every request that comes to `listener` with the bytes of the moment.
pub async fn serve_http(listener: TcpListener, answer: impl Fn() -> Vec<u8> + Clone + Send + 'static) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(serve(stream, answer.clone()));
    }
}

async fn serve(mut stream: TcpStream, answer: impl Fn() -> Vec<u8>) {
    let mut seen = Vec::new();
    loop {
        let whole = seen.windows(4).position(|four| four == b"\r\n\r\n").and_then(|end| {
            let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
            let length = head.split("content-length:").nth(1).map(|rest| rest.lines().next()?.trim().parse().ok());
            let length: usize = length.unwrap_or(Some(0))?;
            (seen.len() >= end + 4 + length).then_some(end + 4 + length)
        });
        match whole {
            Some(length) => {
                seen.drain(..length);
                if stream.write_all(&answer()).await.is_err() {
                    return;
                }
            }
            None => match stream.read_buf(&mut seen).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
        }
    }
}
