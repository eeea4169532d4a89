//! JWT-SVID verification (SPIFFE JWT-SVID §2–§5, with the stricter rules listed here).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{SpiffeId, TrustDomain};
use crate::clock::Timestamp;

/// The JWT authorities of one trust domain: verification keys by `kid`.
#[derive(Debug, Default)]
pub struct JwtBundle {}

/// What a verified JWT-SVID says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `sub`.
    pub spiffe_id: SpiffeId,
    /// `exp`, UTC.
    pub expires_at: Timestamp,
}

/// Which rule a token broke.
#[derive(Debug, thiserror::Error)]
pub enum JwtSvidError {
    /// Not a compact JWS.
    #[error("malformed")]
    Malformed,
}

impl JwtSvidError {
    /// A stable word of a closed set, for metrics and audit.
    pub fn kind(&self) -> &'static str {
        "malformed"
    }
}

/// Verifies `token`: strict form, key of the token's own trust domain, signature, then the claims at `now`.
///
/// # Errors
/// Names the first rule that the token broke.
pub fn verify(
    _token: &str,
    _bundles: &BTreeMap<TrustDomain, Arc<JwtBundle>>,
    _audience: &str,
    _now: Timestamp,
) -> Result<Claims, JwtSvidError> {
    Err(JwtSvidError::Malformed)
}
