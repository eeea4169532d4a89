//! The seam to the SPIFFE Workload API, and its real client.
//!
//! - [`endpoint`]: the address, in the forms of SPIFFE Workload Endpoint §4.
//! - [`client`]: single questions: a JWT-SVID, our X.509-SVIDs.
//! - [`streams`]: the state, kept current: [`SpiffeWorkloadApi`].
//! - `testing`: a fake for tests.

pub mod client;
pub mod endpoint;
pub mod streams;
#[cfg(any(test, feature = "dev"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::jwt_svid::JwtBundle;
use super::{SpiffeId, TrustDomain};
use crate::clock::Timestamp;
use crate::secret::Secret;

pub use streams::SpiffeWorkloadApi;

/// One X.509-SVID of this sidecar, without its private key: enough to know that the identity is ours and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSvid {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The leaf certificate's `notAfter`, UTC.
    pub expires_at: Timestamp,
    /// The operator's hint, where the Workload API gives one.
    pub hint: Option<String>,
}

/// Everything the Workload API says now. Each update replaces the whole: what is absent is withdrawn (Workload API §4.4).
#[derive(Debug, Clone, Default)]
pub struct Identities {
    /// Our identities, the default one first.
    pub svids: Vec<OwnSvid>,
    /// The keys that may sign JWT-SVIDs, by trust domain. Never pooled.
    pub jwt_bundles: BTreeMap<TrustDomain, Arc<JwtBundle>>,
    /// Whether the Workload API has answered at all since start, on the stream of SVIDs and on the stream of bundles.
    pub known: bool,
}

impl Identities {
    /// Our unexpired SVID for `spiffe_id`.
    pub fn svid(&self, spiffe_id: &SpiffeId, now: Timestamp) -> Option<&OwnSvid> {
        self.svids.iter().find(|svid| svid.spiffe_id == *spiffe_id && svid.expires_at > now)
    }
}

/// A JWT-SVID fetched for one audience.
#[derive(Debug)]
pub struct JwtSvid {
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// The compact JWS.
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
