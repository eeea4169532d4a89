//! Single questions to the Workload API, over the `spiffe` crate's client.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spiffe::WorkloadApiClient;
use spiffe::transport::{GrpcStatusCode, TransportError};

use super::endpoint::Endpoint;
use super::socket::{self, ClientError};
use super::{JwtSvid, OwnSvid, SvidKey, WorkloadApiError};
use crate::clock::{SharedClock, within};
use crate::identity::jwt_svid::inspect;
use crate::identity::x509_svid::{X509Bundle, own_leaf};
use crate::identity::{SpiffeId, TrustDomain};
use crate::secret::{Secret, SecretBytes};

/// The longest hint that is kept, in bytes (SPIFFE Workload API §8).
const MAX_HINT: usize = 1024;
/// The longest error text that is passed on, in characters.
const MAX_ERROR: usize = 300;

/// What kind of trouble the Workload API gives, by what to do about it (SPIFFE Workload API §4.2, Endpoint §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No identity is issued to us, or no more: drop what we hold.
    Denied,
    /// The request itself is refused or unknown: asking again soon is of no use.
    Rejected,
    /// Not reachable or not able now.
    Unavailable,
    /// Served by somebody who is not trusted.
    Untrusted,
    /// The answer lacks a mandatory field or cannot be read: discard it.
    BadMessage,
}

impl Trouble {
    pub(super) fn of(error: &ClientError) -> Self {
        use spiffe::WorkloadApiError as E;
        let error = match error {
            ClientError::Untrusted(_) => return Self::Untrusted,
            ClientError::Api(error) => error,
        };
        match error {
            E::NoIdentityIssued | E::PermissionDenied(_) => Self::Denied,
            E::Transport(TransportError::Status(status)) => match status.code() {
                GrpcStatusCode::InvalidArgument | GrpcStatusCode::Unimplemented => Self::Rejected,
                _ => Self::Unavailable,
            },
            E::Transport(_) | E::MissingEndpointSocket | E::NotUnicodeEndpointSocket(_) | E::Endpoint(_) => {
                Self::Unavailable
            }
            // every other variant is about the contents of an answer
            _ => Self::BadMessage,
        }
    }
}

/// The text of `error` and its causes, on one line and cut to a decent length.
pub(super) fn describe(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // tonic's own form of a status says the same once more
        if !text.contains(&next) && !next.starts_with("code: ") {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR).collect()
}

fn refusal(error: &ClientError) -> WorkloadApiError {
    let text = describe(error);
    match Trouble::of(error) {
        Trouble::Denied => WorkloadApiError::Denied(text),
        Trouble::Unavailable => WorkloadApiError::Unavailable(text),
        Trouble::Untrusted => WorkloadApiError::Untrusted(text),
        Trouble::Rejected | Trouble::BadMessage => WorkloadApiError::Invalid(text),
    }
}

/// A client for single questions. It keeps its connection and makes a new one when that one fails.
pub struct Client {
    endpoint: Endpoint,
    agent: Option<u32>,
    clock: SharedClock,
    connection: Mutex<Option<WorkloadApiClient>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// One X.509-SVID with its private key, for `sidemint svid x509`.
#[derive(Debug)]
pub struct X509Material {
    /// Whom it names, when it expires, and its hint.
    pub svid: OwnSvid,
    /// The certificates in DER, the leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The private key, PKCS#8 DER.
    pub private_key: SecretBytes,
    /// The certificates of its own trust domain's X.509 bundle in DER.
    pub bundle: Vec<Vec<u8>>,
}

impl Client {
    /// A client of the Workload API at `endpoint`; it connects when it is first used. [`socket`] says who may serve it, beside
    /// the user `agent`.
    pub fn new(endpoint: Endpoint, agent: Option<u32>, clock: SharedClock) -> Self {
        Self { endpoint, agent, clock, connection: Mutex::new(None) }
    }

    /// The address of the Workload API that it asks.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Fetches a JWT-SVID for `audience`: of `spiffe_id`, or of our default identity.
    ///
    /// Whether the token is what was asked for is checked; its signature is not, since it is ours and its audience checks it.
    ///
    /// # Errors
    /// `Unavailable` also when `limit` has passed; `Invalid` when the answer names another identity or audience, or
    /// has expired.
    pub async fn fetch_jwt_svid(
        &self,
        spiffe_id: Option<&SpiffeId>,
        audience: &str,
        limit: Duration,
    ) -> Result<JwtSvid, WorkloadApiError> {
        let token = self.in_time(limit, self.ask_for_token(spiffe_id, audience)).await?;
        // exposed: its claims are read to see that it is the token that was asked for
        let told = inspect(token.expose()).map_err(|error| WorkloadApiError::Invalid(error.to_string()))?;
        if spiffe_id.is_some_and(|asked| *asked != told.spiffe_id) {
            return Err(WorkloadApiError::Invalid("the JWT-SVID names another SPIFFE ID than was asked for".into()));
        }
        if told.audience != audience {
            return Err(WorkloadApiError::Invalid("the JWT-SVID has another audience than was asked for".into()));
        }
        if told.expires_at <= self.clock.now() {
            return Err(WorkloadApiError::Invalid("the JWT-SVID has expired already; compare the clocks".into()));
        }
        Ok(JwtSvid { spiffe_id: told.spiffe_id, token, expires_at: told.expires_at })
    }

    /// Fetches our X.509-SVIDs with their private keys, the default one first.
    ///
    /// # Errors
    /// As [`Client::fetch_jwt_svid`].
    pub async fn fetch_x509_svids(&self, limit: Duration) -> Result<Vec<X509Material>, WorkloadApiError> {
        let context = self
            .in_time(limit, async {
                let connection = self.connect().await?;
                connection.fetch_x509_context().await.map_err(|error| refusal(&error.into()))
            })
            .await?;
        let material = context.svids().iter().filter_map(|svid| {
            let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain());
            Some(X509Material {
                svid: own_svid(svid)?,
                chain: svid.cert_chain().iter().map(|certificate| certificate.as_bytes().to_vec()).collect(),
                private_key: SecretBytes::new(svid.private_key().as_bytes().to_vec()),
                bundle: bundle
                    .map(|bundle| bundle.authorities().iter().map(|root| root.as_bytes().to_vec()).collect())
                    .unwrap_or_default(),
            })
        });
        Ok(material.collect())
    }

    async fn in_time<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, WorkloadApiError>>,
    ) -> Result<T, WorkloadApiError> {
        within(&*self.clock, limit, work).await.unwrap_or_else(|| {
            let limit = humantime::format_duration(limit);
            Err(WorkloadApiError::Unavailable(format!("no answer within {limit}")))
        })
    }

    async fn ask_for_token(&self, spiffe_id: Option<&SpiffeId>, audience: &str) -> Result<Secret, WorkloadApiError> {
        let spiffe_id = match spiffe_id.map(|id| spiffe::SpiffeId::new(id.as_str())) {
            None => None,
            Some(Ok(id)) => Some(id),
            Some(Err(error)) => return Err(WorkloadApiError::Invalid(error.to_string())),
        };
        if let Some(connection) = self.kept() {
            match connection.fetch_jwt_token([audience], spiffe_id.as_ref()).await.map_err(ClientError::from) {
                Ok(token) => return Ok(Secret::new(token)),
                // the agent may have been restarted since: ask once more over a new connection
                Err(error) if Trouble::of(&error) == Trouble::Unavailable => self.keep(None),
                Err(error) => return Err(refusal(&error)),
            }
        }
        let connection = self.connect().await?;
        let token = connection.fetch_jwt_token([audience], spiffe_id.as_ref()).await;
        let token = token.map_err(|error| refusal(&error.into()))?;
        self.keep(Some(connection));
        Ok(Secret::new(token))
    }

    async fn connect(&self) -> Result<WorkloadApiClient, WorkloadApiError> {
        socket::client(&self.endpoint, self.agent).await.map_err(|error| refusal(&error))
    }

    fn kept(&self) -> Option<WorkloadApiClient> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, connection: Option<WorkloadApiClient>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }
}

/// What we keep of one message about X.509.
#[derive(Debug, Default)]
pub(super) struct X509State {
    pub(super) svids: Vec<OwnSvid>,
    pub(super) keys: BTreeMap<SpiffeId, Arc<SvidKey>>,
    pub(super) bundles: BTreeMap<TrustDomain, Arc<X509Bundle>>,
}

impl X509State {
    pub(super) fn of(context: &spiffe::X509Context) -> Self {
        let mut keys = BTreeMap::new();
        for svid in context.svids() {
            if let Some((spiffe_id, key)) = svid_key(svid) {
                // of two SVIDs with one name the first counts (SPIFFE Workload API §5.2.1)
                keys.entry(spiffe_id).or_insert(key);
            }
        }
        Self { svids: own_svids(context), keys, bundles: x509_bundles(context.bundle_set()) }
    }
}

/// The key of one X.509-SVID; `None`, reported, when it cannot be used for TLS.
fn svid_key(svid: &spiffe::X509Svid) -> Option<(SpiffeId, Arc<SvidKey>)> {
    let (spiffe_id, expires_at) = own_leaf(svid.leaf().as_bytes()).ok()?;
    let chain = svid.cert_chain().iter().map(|certificate| certificate.as_bytes().to_vec()).collect();
    match SvidKey::new(chain, svid.private_key().as_bytes(), expires_at) {
        Ok(key) => Some((spiffe_id, Arc::new(key))),
        Err(error) => {
            tracing::error!(%spiffe_id, %error, "the key of this X.509-SVID cannot be used for mutual TLS");
            None
        }
    }
}

/// The X.509 bundles by trust domain. A trust domain that our grammar refuses, or whose bundle is too large, is left
/// out: nothing of it verifies.
fn x509_bundles(set: &spiffe::X509BundleSet) -> BTreeMap<TrustDomain, Arc<X509Bundle>> {
    let mut kept = BTreeMap::new();
    for (name, bundle) in set.iter() {
        let trust_domain: TrustDomain = match name.as_str().parse() {
            Ok(trust_domain) => trust_domain,
            Err(error) => {
                tracing::error!(%error, "the Workload API gave an X.509 bundle for a trust domain that is not canonical: left out");
                continue;
            }
        };
        match X509Bundle::from_der(bundle.authorities().iter().map(|root| root.as_bytes())) {
            Ok(bundle) => {
                if bundle.ignored() > 0 || bundle.is_empty() {
                    tracing::warn!(%trust_domain, ?bundle, "not every certificate of the X.509 bundle can be a root");
                }
                kept.insert(trust_domain, Arc::new(bundle));
            }
            Err(error) => {
                tracing::error!(%error, %trust_domain, "the X.509 bundle is refused: no certificate of this trust domain is trusted");
            }
        }
    }
    kept
}

/// What we keep of our X.509-SVIDs, the default one first. Of two with one hint only the first has it (SPIFFE Workload
/// API §5.2.1).
fn own_svids(context: &spiffe::X509Context) -> Vec<OwnSvid> {
    let mut kept: Vec<OwnSvid> = Vec::new();
    for mut svid in context.svids().iter().filter_map(|svid| own_svid(svid)) {
        if kept.iter().any(|earlier| earlier.hint == svid.hint) {
            svid.hint = None;
        }
        kept.push(svid);
    }
    kept
}

/// What we keep of one X.509-SVID; `None`, reported, when its leaf names no SPIFFE ID in canonical form.
fn own_svid(svid: &spiffe::X509Svid) -> Option<OwnSvid> {
    match own_leaf(svid.leaf().as_bytes()) {
        Ok((spiffe_id, expires_at)) => {
            let hint = svid.hint().filter(|hint| hint.len() <= MAX_HINT).map(str::to_owned);
            Some(OwnSvid { spiffe_id, expires_at, hint })
        }
        Err(error) => {
            tracing::error!(%error, "the Workload API gave an X.509-SVID that is not used");
            None
        }
    }
}
