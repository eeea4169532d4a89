//! The seam to the SPIFFE Workload API, and its real client.
//!
//! - [`endpoint`]: the address, in the forms of SPIFFE Workload Endpoint §4.
//! - [`socket`]: the connection, and whether it is the agent who serves it.
//! - [`client`]: single questions: a JWT-SVID, our X.509-SVIDs.
//! - [`streams`]: the state, kept current: [`SpiffeWorkloadApi`].
//! - `testing`: a fake for tests.

pub mod client;
pub mod endpoint;
pub mod socket;
pub mod streams;
#[cfg(any(test, feature = "dev"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::jwt_svid::JwtBundle;
use super::x509_svid::X509Bundle;
use super::{SpiffeId, TrustDomain};
use crate::clock::Timestamp;
use crate::secret::Secret;

pub use streams::SpiffeWorkloadApi;

/// One X.509-SVID of this sidecar, without its private key: enough to know that the identity is ours and when it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSvid {
    /// The identity that it proves.
    pub spiffe_id: SpiffeId,
    /// The leaf certificate's `notAfter`, UTC.
    pub expires_at: Timestamp,
    /// The operator's hint, where the Workload API gives one.
    pub hint: Option<String>,
}

/// What it takes to prove one of our X.509-SVIDs in a TLS handshake: its chain, and its private key inside the
/// cryptographic library, which wipes it when the last user lets go.
pub struct SvidKey {
    certified: Arc<CertifiedKey>,
    expires_at: Timestamp,
}

impl SvidKey {
    /// From the certificates in DER, leaf first, and the PKCS #8 key, of which no copy is kept outside the library.
    ///
    /// # Errors
    /// Says why when the key cannot be used, or is not the leaf's.
    pub fn new(chain: Vec<Vec<u8>>, pkcs8: &[u8], expires_at: Timestamp) -> Result<Self, rustls::Error> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
        let certified = CertifiedKey::new(chain.into_iter().map(CertificateDer::from).collect(), key);
        certified.keys_match()?;
        Ok(Self { certified: Arc::new(certified), expires_at })
    }

    /// For the TLS library.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The leaf's `notAfter`, UTC.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

impl fmt::Debug for SvidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidKey").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Everything the Workload API says now. Each update replaces the whole: what is absent is withdrawn (Workload API §4.4).
#[derive(Debug, Clone, Default)]
pub struct Identities {
    /// Our identities, the default one first.
    pub svids: Vec<OwnSvid>,
    /// The keys that may sign JWT-SVIDs, by trust domain. Never pooled.
    pub jwt_bundles: BTreeMap<TrustDomain, Arc<JwtBundle>>,
    /// The roots of X.509-SVIDs, by trust domain: our own and federated ones. Never pooled.
    pub x509_bundles: BTreeMap<TrustDomain, Arc<X509Bundle>>,
    /// The keys of `svids`, where they can be used.
    pub keys: BTreeMap<SpiffeId, Arc<SvidKey>>,
    /// Whether the Workload API has answered at all since start, on the stream of SVIDs and on the stream of bundles.
    pub known: bool,
}

impl Identities {
    /// Our unexpired SVID for `spiffe_id`.
    pub fn svid(&self, spiffe_id: &SpiffeId, now: Timestamp) -> Option<&OwnSvid> {
        self.svids.iter().find(|svid| svid.spiffe_id == *spiffe_id && svid.expires_at > now)
    }

    /// The SVID to show in a handshake, with its key: that of `spiffe_id`, or our default one. None where it cannot be used.
    pub fn shown(&self, spiffe_id: Option<&SpiffeId>, now: Timestamp) -> Option<(SpiffeId, Arc<SvidKey>)> {
        let own = match spiffe_id {
            Some(spiffe_id) => spiffe_id,
            None => &self.svids.first()?.spiffe_id,
        };
        self.svid(own, now)?;
        let key = self.keys.get(own).filter(|key| key.expires_at() > now)?;
        Some((own.clone(), Arc::clone(key)))
    }

    /// Whether `spiffe_id` is still an identity of ours: we have its unexpired SVID, and the Workload API still gives a bundle of
    /// its trust domain (of either kind: the two come on streams of their own, and one may be silent).
    pub fn vouch_for(&self, spiffe_id: &SpiffeId, now: Timestamp) -> bool {
        let domain = spiffe_id.trust_domain();
        let trusted = self.jwt_bundles.contains_key(domain) || self.x509_bundles.contains_key(domain);
        trusted && self.svid(spiffe_id, now).is_some()
    }

    /// Whether SVIDs of this trust domain are accepted: it is that of one of our own unexpired SVIDs, or in `federated`. That
    /// the Workload API gives its bundle says only that somebody federates with it, not that we do.
    pub fn accepts(&self, trust_domain: &TrustDomain, federated: &BTreeSet<TrustDomain>, now: Timestamp) -> bool {
        let ours = |svid: &OwnSvid| svid.expires_at > now && svid.spiffe_id.trust_domain() == trust_domain;
        self.svids.iter().any(ours) || federated.contains(trust_domain)
    }

    /// The trust domains whose X.509-SVIDs are accepted: those of our own unexpired SVIDs, and `federated`.
    pub fn accepted(&self, federated: &BTreeSet<TrustDomain>, now: Timestamp) -> BTreeSet<TrustDomain> {
        let own = self.svids.iter().filter(|svid| svid.expires_at > now);
        own.map(|svid| svid.spiffe_id.trust_domain().clone()).chain(federated.iter().cloned()).collect()
    }
}

/// A JWT-SVID fetched for one audience.
#[derive(Debug)]
pub struct JwtSvid {
    /// The identity that it proves (`sub`).
    pub spiffe_id: SpiffeId,
    /// The token itself: a compact JWS, and a secret.
    pub token: Secret,
    /// Its `exp`, UTC.
    pub expires_at: Timestamp,
}

/// Why the Workload API gave no JWT-SVID.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadApiError {
    /// No connection, time-out, or the agent says it is not able now: try again.
    #[error("the Workload API is unavailable: {0}")]
    Unavailable(String),
    /// The agent issues no such identity to this process.
    #[error("the Workload API issues no such identity here: {0}")]
    Denied(String),
    /// Somebody else than the agent seems to serve its socket: nothing was asked.
    #[error("the Workload API is not trusted: {0}")]
    Untrusted(String),
    /// The agent answered something that is not a usable JWT-SVID.
    #[error("the Workload API answered nonsense: {0}")]
    Invalid(String),
}

/// The seam to the Workload API.
#[async_trait]
pub trait WorkloadApi: Send + Sync + fmt::Debug {
    /// The latest full state.
    fn identities(&self) -> Arc<Identities>;

    /// The same, as a stream of replacements.
    fn watch(&self) -> watch::Receiver<Arc<Identities>>;

    /// Fetches a JWT-SVID of `spiffe_id` for `audience`, new or cached by the agent, within `limit`.
    async fn fetch_jwt_svid(
        &self,
        spiffe_id: &SpiffeId,
        audience: &str,
        limit: Duration,
    ) -> Result<JwtSvid, WorkloadApiError>;
}
