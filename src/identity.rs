//! Who is asking? Evidence → [`Caller`].
//!
//! - [`spiffe_id`]: the names, parsed strictly.
//! - [`workload_api`]: the seam to the SPIFFE Workload API and its real client: our own SVIDs, the trust bundles.
//! - [`jwt_svid`]: what makes a JWT-SVID acceptable.
//! - [`x509_svid`]: what makes an X.509-SVID acceptable.
//! - [`task_token`]: the opaque token that stands for a running task.

pub mod jwt_svid;
pub(crate) mod metrics;
pub mod spiffe_id;
pub mod task_token;
pub mod workload_api;
pub mod x509_svid;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::secret::Secret;

use jwt_svid::JwtSvidError;
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
use workload_api::WorkloadApi;
use x509_svid::{PeerSvid, X509SvidError};

/// What a request brings to prove who sent it.
#[derive(Debug)]
pub enum Evidence {
    /// A JWT-SVID, presented as `Authorization: Bearer` (SPIFFE JWT-SVID §5.2).
    JwtSvid(Secret),
    /// An X.509-SVID whose key the peer proved to hold when its connection began.
    X509Svid(Arc<PeerSvid>),
    /// The sidecar itself, for the pod task of its own configuration, under one of its own SPIFFE IDs.
    Pod(SpiffeId),
}

/// How a caller proved its SPIFFE ID. Policy sees it as `context.verified.proof`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// A JWT-SVID whose only audience is this broker.
    JwtSvid,
    /// An X.509-SVID over mutual TLS.
    X509Svid,
    /// The sidecar began the task of its configuration; the shared mount is the proof.
    Pod,
}

impl Proof {
    /// The stable label for policy, audit and journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JwtSvid => "jwt-svid",
            Self::X509Svid => "x509-svid",
            Self::Pod => "pod",
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The authenticated workload behind one request. Made only by [`Authenticator::authenticate`] and, for a task that
/// is decided again, from the record that a first authentication left (`Caller::recorded`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    spiffe_id: SpiffeId,
    proof: Proof,
    until: Timestamp,
}

impl Caller {
    /// The caller of a task begun earlier, as its record tells: its identity was proved when the task began.
    pub(crate) fn recorded(spiffe_id: SpiffeId, proof: Proof, until: Timestamp) -> Self {
        Self { spiffe_id, proof, until }
    }

    /// The SPIFFE ID that was proved.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// How it was proved.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// When the evidence itself lapses (the SVID's own expiry), UTC.
    pub fn until(&self) -> Timestamp {
        self.until
    }
}

/// Why evidence was not trusted. Outside it is always `unauthenticated`; the kind is for metrics and audit.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// The JWT-SVID breaks a rule of the SPIFFE JWT-SVID specification, or one of ours that is stricter.
    #[error(transparent)]
    JwtSvid(#[from] JwtSvidError),
    /// The X.509-SVID breaks a rule of the SPIFFE X509-SVID specification or of RFC 5280, or no longer holds.
    #[error(transparent)]
    X509Svid(#[from] X509SvidError),
    /// The JWT-SVID is genuine, but its trust domain is neither ours nor one of `identity.federated`.
    #[error("the trust domain of the JWT-SVID is neither ours nor one of identity.federated")]
    TrustDomain,
    /// The pod task's SPIFFE ID is not among the identities of this sidecar.
    #[error("the Workload API gives this sidecar no SVID for {0}")]
    NoSvid(SpiffeId),
}

impl AuthenticationError {
    /// A stable label of a closed set, for metrics and audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JwtSvid(error) => error.kind(),
            Self::X509Svid(error) => error.kind(),
            Self::TrustDomain => "trust_domain",
            Self::NoSvid(_) => "no_svid",
        }
    }
}

/// Accepts or refuses evidence, by the trust bundles that the Workload API gives.
#[derive(Debug)]
pub struct Authenticator {
    workload_api: Arc<dyn WorkloadApi>,
    verifier: jwt_svid::Verifier,
    federated: BTreeSet<TrustDomain>,
    federated_jwt: BTreeSet<TrustDomain>,
}

impl Authenticator {
    /// Accepts JWT-SVIDs whose only audience is `audience`, which must not be empty.
    pub fn new(workload_api: Arc<dyn WorkloadApi>, audience: String) -> Self {
        debug_assert!(!audience.is_empty(), "configuration refuses an empty audience");
        let verifier = jwt_svid::Verifier::new(audience);
        Self { workload_api, verifier, federated: BTreeSet::new(), federated_jwt: BTreeSet::new() }
    }

    /// Accepts X.509-SVIDs of these trust domains too, beside those of our own.
    #[must_use]
    pub fn with_federated(self, federated: BTreeSet<TrustDomain>) -> Self {
        Self { federated, ..self }
    }

    /// Accepts JWT-SVIDs of these trust domains too, beside those of our own.
    #[must_use]
    pub fn with_federated_jwt(self, federated_jwt: BTreeSet<TrustDomain>) -> Self {
        Self { federated_jwt, ..self }
    }

    /// The one way from evidence to a [`Caller`].
    ///
    /// # Errors
    /// Says which rule the evidence broke; any doubt is an error.
    pub fn authenticate(&self, evidence: &Evidence, now: Timestamp) -> Result<Caller, AuthenticationError> {
        let identities = self.workload_api.identities();
        match evidence {
            Evidence::JwtSvid(token) => {
                // exposed: the signature is checked over the token's own bytes
                let claims = self.verifier.verify(token.expose(), &identities.jwt_bundles, now)?;
                if !identities.accepts(claims.spiffe_id.trust_domain(), &self.federated_jwt, now) {
                    return Err(AuthenticationError::TrustDomain);
                }
                Ok(Caller { spiffe_id: claims.spiffe_id, proof: Proof::JwtSvid, until: claims.expires_at })
            }
            Evidence::X509Svid(peer) => {
                peer.still_holds(&identities.x509_bundles, &identities.accepted(&self.federated, now), now)?;
                let claims = peer.claims();
                let until = claims.expires_at();
                Ok(Caller { spiffe_id: claims.spiffe_id().clone(), proof: Proof::X509Svid, until })
            }
            Evidence::Pod(spiffe_id) => match identities.svid(spiffe_id, now) {
                Some(svid) => Ok(Caller { spiffe_id: spiffe_id.clone(), proof: Proof::Pod, until: svid.expires_at }),
                None => Err(AuthenticationError::NoSvid(spiffe_id.clone())),
            },
        }
    }
}
