//! A Workload API for tests: it issues real, verifiable JWT-SVIDs with its own keys, also hostile ones, fails and hangs
//! on demand, and remembers every token it made so that a test can search for leaks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "used by tests only: a panic here is a failed test"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::sync::watch;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::RSAPublicKey;

use super::{Identities, JwtSvid, OwnSvid, WorkloadApi, WorkloadApiError};
use crate::clock::{SharedClock, Timestamp, within};
use crate::identity::jwt_svid::JwtBundle;
use crate::identity::{SpiffeId, TrustDomain};
use crate::secret::Secret;

/// A private key that signs tokens.
pub struct SigningKey {
    kid: String,
    pair: Pair,
}

enum Pair {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    P521(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key for `kty`: `P-256`, `P-384`, `P-521` or `RSA` (2,048 bits).
    pub fn generate(kty: &str, kid: &str) -> Self {
        let pair = match kty {
            "P-256" => Pair::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
            "P-384" => Pair::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()),
            "P-521" => Pair::P521(EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap()),
            "RSA" => Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            other => panic!("no key type {other}"),
        };
        Self { kid: kid.to_owned(), pair }
    }

    /// The `kid` under which [`jwks`] lists it.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The algorithm that it signs with unless told otherwise.
    pub fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::P256(_) => "ES256",
            Pair::P384(_) => "ES384",
            Pair::P521(_) => "ES512",
            Pair::Rsa(_) => "RS256",
        }
    }

    /// The public key as a JWK, without `use` and `alg`, as SPIRE gives it on the Workload API.
    pub fn jwk(&self) -> Value {
        let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let ec = |pair: &EcdsaKeyPair, curve: &str| {
            let (x, y) = pair.public_key().as_ref().split_at(1).1.split_at((pair.public_key().as_ref().len() - 1) / 2);
            json!({"kty": "EC", "kid": self.kid, "crv": curve, "x": base64(x), "y": base64(y)})
        };
        match &self.pair {
            Pair::P256(pair) => ec(pair, "P-256"),
            Pair::P384(pair) => ec(pair, "P-384"),
            Pair::P521(pair) => ec(pair, "P-521"),
            Pair::Rsa(pair) => {
                let (_, key) = RSAPublicKey::from_der(pair.public_key().as_ref()).unwrap();
                let unsigned = |number: &[u8]| base64(number.strip_prefix(&[0]).unwrap_or(number));
                json!({"kty": "RSA", "kid": self.kid, "n": unsigned(key.modulus), "e": unsigned(key.exponent)})
            }
        }
    }

    /// Signs these exact texts of header and claims. `algorithm` chooses the RSA scheme; the header may say another.
    pub fn sign_text(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = match &self.pair {
            Pair::P256(pair) | Pair::P384(pair) | Pair::P521(pair) => {
                pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec()
            }
            Pair::Rsa(pair) => {
                let scheme: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(scheme, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
                signature
            }
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Signs `claims` under the header that SPIRE writes.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "kid": self.kid, "typ": "JWT"});
        self.sign_text(self.algorithm(), &header.to_string(), &claims.to_string())
    }
}

/// The JWK Set of these keys.
pub fn jwks<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> Vec<u8> {
    let keys: Vec<Value> = keys.into_iter().map(SigningKey::jwk).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

/// The claims that SPIRE writes.
pub fn claims(spiffe_id: &str, audience: &str, issued_at: Timestamp, life: Duration) -> Value {
    json!({"sub": spiffe_id, "aud": [audience], "iat": issued_at.as_secs(), "exp": (issued_at + life).as_secs()})
}

/// How the fake answers a fetch.
#[derive(Debug, Clone, Default)]
pub enum OnFetch {
    /// A new JWT-SVID if the identity is issued here, else `Denied`.
    #[default]
    Answer,
    /// The same, but only after this time on the fake's clock.
    After(Duration),
    /// It never answers.
    Hang,
    /// `Unavailable`.
    Unavailable,
    /// `Denied`, whoever asks.
    Denied,
    /// `Invalid`.
    Invalid,
}

/// A [`WorkloadApi`] in memory, on a clock of the test's choosing.
pub struct FakeWorkloadApi {
    clock: SharedClock,
    identities: watch::Sender<Arc<Identities>>,
    state: Mutex<State>,
}

struct State {
    keys: BTreeMap<TrustDomain, SigningKey>,
    life: Duration,
    on_fetch: OnFetch,
    fetches: Vec<(SpiffeId, String)>,
    secrets: Vec<String>,
    serial: u64,
}

impl fmt::Debug for FakeWorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeWorkloadApi").field("identities", &self.identities.borrow()).finish_non_exhaustive()
    }
}

impl FakeWorkloadApi {
    /// A Workload API that has answered and issues `spiffe_ids` (the first is the default), each with an X.509-SVID of
    /// one hour; their trust domains get an ES256 key and a bundle. JWT-SVIDs live 5 minutes.
    pub fn new(clock: SharedClock, spiffe_ids: &[&str]) -> Arc<Self> {
        let state = State {
            keys: BTreeMap::new(),
            life: Duration::from_secs(300),
            on_fetch: OnFetch::Answer,
            fetches: Vec::new(),
            secrets: Vec::new(),
            serial: 0,
        };
        let fake = Self {
            clock,
            identities: watch::Sender::new(Arc::new(Identities { known: true, ..Identities::default() })),
            state: Mutex::new(state),
        };
        fake.set_identities(spiffe_ids);
        Arc::new(fake)
    }

    /// A Workload API that has not answered yet.
    pub fn silent(clock: SharedClock) -> Arc<Self> {
        let fake = Self::new(clock, &[]);
        fake.update(|identities| identities.known = false);
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Replaces the identities, each with an hour from now; trust domains seen first get a key and a bundle.
    pub fn set_identities(&self, spiffe_ids: &[&str]) {
        let expires_at = self.clock.now() + Duration::from_secs(3600);
        let ids: Vec<SpiffeId> = spiffe_ids.iter().map(|id| id.parse().expect("a SPIFFE ID")).collect();
        for id in &ids {
            self.trust(id.trust_domain().clone());
        }
        let svids = ids.into_iter().map(|spiffe_id| OwnSvid { spiffe_id, expires_at, hint: None }).collect();
        self.update(|identities| {
            identities.svids = svids;
            identities.known = true;
        });
    }

    /// Takes one identity away, as deleting its registration entry does.
    pub fn withdraw(&self, spiffe_id: &str) {
        self.update(|identities| identities.svids.retain(|svid| svid.spiffe_id.as_str() != spiffe_id));
    }

    /// Takes every identity and every bundle away, as `PermissionDenied` on both streams does.
    pub fn withdraw_all(&self) {
        self.update(|identities| {
            identities.svids.clear();
            identities.jwt_bundles.clear();
        });
    }

    /// Publishes a bundle for `trust_domain` with a key of its own, unless it has one.
    pub fn trust(&self, trust_domain: TrustDomain) {
        let bundle = {
            let mut state = self.state();
            let known = state.keys.contains_key(&trust_domain);
            if known && self.identities.borrow().jwt_bundles.contains_key(&trust_domain) {
                return;
            }
            let key = state.keys.entry(trust_domain.clone()).or_insert_with(|| SigningKey::generate("P-256", "fake"));
            JwtBundle::parse(&jwks([&*key])).unwrap()
        };
        self.update(|identities| {
            identities.jwt_bundles.insert(trust_domain, Arc::new(bundle));
        });
    }

    /// Changes the state in any other way.
    pub fn update(&self, change: impl FnOnce(&mut Identities)) {
        self.identities.send_modify(|identities| change(Arc::make_mut(identities)));
    }

    /// Sets the life of the JWT-SVIDs that it issues.
    pub fn set_life(&self, life: Duration) {
        self.state().life = life;
    }

    /// Sets how fetches are answered from now on.
    pub fn on_fetch(&self, behaviour: OnFetch) {
        self.state().on_fetch = behaviour;
    }

    /// A JWT-SVID of any workload, also one that is not an identity here: what a caller would present.
    pub fn issue(&self, spiffe_id: &str, audience: &str) -> String {
        let life = self.state().life;
        let claims = claims(spiffe_id, audience, self.clock.now(), life);
        self.issue_claims(spiffe_id.parse::<SpiffeId>().expect("a SPIFFE ID").trust_domain(), claims)
    }

    /// Signs any claims with the key of `trust_domain`, which must be trusted. A serial number makes each token unique.
    pub fn issue_claims(&self, trust_domain: &TrustDomain, mut claims: Value) -> String {
        let mut state = self.state();
        state.serial += 1;
        let serial = state.serial;
        if let Some(claims) = claims.as_object_mut() {
            claims.entry("jti").or_insert_with(|| json!(format!("fake-{serial}")));
        }
        let token = state.keys.get(trust_domain).expect("a trusted domain").sign(&claims);
        state.secrets.push(token.clone());
        token
    }

    /// Signs these exact texts of header and claims with the key of `trust_domain`.
    pub fn issue_text(&self, trust_domain: &TrustDomain, header: &str, claims: &str) -> String {
        let mut state = self.state();
        let token = state.keys.get(trust_domain).expect("a trusted domain").sign_text("ES256", header, claims);
        state.secrets.push(token.clone());
        token
    }

    /// The fetches so far: whom for and for which audience.
    pub fn fetches(&self) -> Vec<(SpiffeId, String)> {
        self.state().fetches.clone()
    }

    /// Every token it ever made; none of them may appear in a log, error, journal, metric or answer.
    pub fn secrets(&self) -> Vec<String> {
        self.state().secrets.clone()
    }

    async fn answer(&self, spiffe_id: &SpiffeId, audience: &str) -> Result<JwtSvid, WorkloadApiError> {
        let behaviour = {
            let mut state = self.state();
            state.fetches.push((spiffe_id.clone(), audience.to_owned()));
            state.on_fetch.clone()
        };
        match behaviour {
            OnFetch::Answer => {}
            OnFetch::After(delay) => self.clock.sleep(delay).await,
            OnFetch::Hang => std::future::pending().await,
            OnFetch::Unavailable => return Err(WorkloadApiError::Unavailable("the fake was told so".into())),
            OnFetch::Denied => return Err(WorkloadApiError::Denied("the fake was told so".into())),
            OnFetch::Invalid => return Err(WorkloadApiError::Invalid("the fake was told so".into())),
        }
        let now = self.clock.now();
        if self.identities().svid(spiffe_id, now).is_none() {
            return Err(WorkloadApiError::Denied("no identity issued".into()));
        }
        let token = Secret::new(self.issue(spiffe_id.as_str(), audience));
        let expires_at = (now + self.state().life).floor_to_second();
        Ok(JwtSvid { spiffe_id: spiffe_id.clone(), token, expires_at })
    }
}

#[async_trait]
impl WorkloadApi for FakeWorkloadApi {
    fn identities(&self) -> Arc<Identities> {
        self.identities.borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<Identities>> {
        self.identities.subscribe()
    }

    async fn fetch_jwt_svid(
        &self,
        spiffe_id: &SpiffeId,
        audience: &str,
        limit: Duration,
    ) -> Result<JwtSvid, WorkloadApiError> {
        within(&*self.clock, limit, self.answer(spiffe_id, audience))
            .await
            .unwrap_or_else(|| Err(WorkloadApiError::Unavailable("no answer in time".into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::identity::{AuthenticationError, Authenticator, Evidence, Proof};

    const REPORT: &str = "spiffe://example.org/report";
    const NOW: Timestamp = Timestamp::from_secs(1_795_452_513);
    const LIMIT: Duration = Duration::from_secs(5);

    fn fake() -> (Arc<FakeWorkloadApi>, ManualClock) {
        let clock = ManualClock::at(NOW);
        (FakeWorkloadApi::new(Arc::new(clock.clone()), &[REPORT]), clock)
    }

    #[tokio::test]
    async fn what_it_fetches_and_issues_is_trusted_and_remembered() {
        let (fake, _) = fake();
        let authenticator = Authenticator::new(fake.clone(), "sidemint".into());
        let fetched = fake.fetch_jwt_svid(&REPORT.parse().unwrap(), "sidemint", LIMIT).await.unwrap();
        let until = fetched.expires_at;
        assert!(fake.secrets().iter().any(|secret| fetched.token.matches(secret)));
        let caller = authenticator.authenticate(&Evidence::JwtSvid(fetched.token), NOW).unwrap();
        assert_eq!((caller.spiffe_id().as_str(), caller.proof(), caller.until()), (REPORT, Proof::JwtSvid, until));
        let other = fake.issue("spiffe://example.org/intruder", "sidemint");
        let caller = authenticator.authenticate(&Evidence::JwtSvid(Secret::new(other)), NOW).unwrap();
        assert_eq!(caller.spiffe_id().as_str(), "spiffe://example.org/intruder");
        assert_eq!((fake.fetches().len(), fake.secrets().len()), (1, 2));
    }

    #[test]
    fn the_authenticator_refuses_by_the_rule_that_was_broken() {
        let (fake, _) = fake();
        let authenticator = Authenticator::new(fake.clone(), "sidemint".into());
        let refused =
            |token: String| authenticator.authenticate(&Evidence::JwtSvid(Secret::new(token)), NOW).unwrap_err().kind();
        let domain = "example.org".parse().unwrap();
        assert_eq!(refused(fake.issue(REPORT, "sts.amazonaws.com")), "aud");
        assert_eq!(refused(fake.issue_claims(&domain, claims(REPORT, "sidemint", NOW - LIMIT, LIMIT))), "expired");
        assert_eq!(refused(fake.issue_text(&domain, r#"{"alg":"none"}"#, "{}")), "alg");
        fake.withdraw_all();
        assert_eq!(refused(fake.issue(REPORT, "sidemint")), "no_bundle");
    }

    #[test]
    fn a_federated_domains_jwt_svid_is_trusted_only_where_it_is_configured() {
        let (fake, _) = fake();
        let partner: TrustDomain = "partner.example".parse().unwrap();
        // As the Workload API does for every domain that the server federates with.
        fake.trust(partner.clone());
        let token = || Evidence::JwtSvid(Secret::new(fake.issue("spiffe://partner.example/report", "sidemint")));
        let alone = Authenticator::new(fake.clone(), "sidemint".into());
        let error = alone.authenticate(&token(), NOW).unwrap_err();
        assert!(matches!(error, AuthenticationError::TrustDomain) && error.kind() == "trust_domain");
        // The list for X.509-SVIDs is another one.
        let by_x509 = Authenticator::new(fake.clone(), "sidemint".into()).with_federated([partner.clone()].into());
        assert!(by_x509.authenticate(&token(), NOW).is_err());
        let configured = Authenticator::new(fake.clone(), "sidemint".into()).with_federated_jwt([partner].into());
        let caller = configured.authenticate(&token(), NOW).unwrap();
        assert_eq!(caller.spiffe_id().as_str(), "spiffe://partner.example/report");
        // Our own domain is ours as long as we have an SVID of it.
        let own = || Evidence::JwtSvid(Secret::new(fake.issue(REPORT, "sidemint")));
        assert!(configured.authenticate(&own(), NOW).is_ok());
        fake.withdraw(REPORT);
        assert!(matches!(configured.authenticate(&own(), NOW), Err(AuthenticationError::TrustDomain)));
    }

    #[tokio::test]
    async fn a_pod_is_trusted_only_while_its_svid_is_issued_and_unexpired() {
        let (fake, _) = fake();
        let authenticator = Authenticator::new(fake.clone(), "sidemint".into());
        let pod = Evidence::Pod(REPORT.parse().unwrap());
        let end = NOW + Duration::from_secs(3600);
        assert_eq!(authenticator.authenticate(&pod, NOW).unwrap().until(), end);
        assert!(matches!(authenticator.authenticate(&pod, end), Err(AuthenticationError::NoSvid(_))));
        fake.withdraw(REPORT);
        assert_eq!(authenticator.authenticate(&pod, NOW).unwrap_err().kind(), "no_svid");
        let denied = fake.fetch_jwt_svid(&REPORT.parse().unwrap(), "sidemint", LIMIT).await;
        assert!(matches!(denied, Err(WorkloadApiError::Denied(_))));
    }

    #[tokio::test]
    async fn a_fetch_that_hangs_ends_at_its_limit() {
        let (fake, clock) = fake();
        fake.on_fetch(OnFetch::Hang);
        let asking = fake.clone();
        let fetch =
            tokio::spawn(async move { asking.fetch_jwt_svid(&REPORT.parse().unwrap(), "sidemint", LIMIT).await });
        while clock.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        clock.advance(LIMIT);
        assert!(matches!(fetch.await.unwrap(), Err(WorkloadApiError::Unavailable(_))));
    }
}
