//! What makes an X.509-SVID acceptable (SPIFFE X509-SVID §5): our own rules for the leaf, then path validation by the
//! roots of the leaf's own trust domain and no others.
//!
//! - `der`, `certificate`: strict readers; what is not understood exactly is refused.
//! - `path`, `constraints`: RFC 5280 §6.1, URI name constraints included.
//! - [`bundle`]: the roots of one trust domain.
//! - [`handshake`]: SVIDs in TLS, on either side.

pub mod bundle;
mod certificate;
mod constraints;
mod der;
pub mod handshake;
mod path;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;

use super::{SpiffeId, SpiffeIdError, TrustDomain};
use crate::clock::Timestamp;

pub use bundle::{BundleTooLarge, X509Bundle};
use certificate::{Certificate, Name};

/// The most certificates in a chain, the leaf included.
pub const MAX_CHAIN: usize = 7;
/// The largest chain, in bytes of DER.
pub const MAX_CHAIN_BYTES: usize = 64 * 1024;

/// Why a chain is refused. What the outside is told is always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum X509SvidError {
    /// There is no certificate.
    #[error("no certificate was presented")]
    NoCertificate,
    /// More than [`MAX_CHAIN`] certificates or [`MAX_CHAIN_BYTES`] bytes.
    #[error("the chain is too large: at most {MAX_CHAIN} certificates and {MAX_CHAIN_BYTES} bytes")]
    TooLarge,
    /// A certificate is not DER, or not what RFC 5280 says a certificate is.
    #[error("a certificate cannot be read: {0}")]
    Malformed(&'static str),
    /// A certificate is not of version 3.
    #[error("a certificate is not of version 3")]
    Version,
    /// A certificate has one extension twice (RFC 5280 §4.2).
    #[error("a certificate has one extension twice")]
    DuplicateExtension,
    /// A subject alternative name has a member that cannot be read.
    #[error("a subject alternative name cannot be read")]
    SubjectAltName,
    /// The leaf names no URI (X509-SVID §2).
    #[error("the leaf has no URI in its subject alternative name")]
    NoUri,
    /// The leaf names more than one URI (X509-SVID §2).
    #[error("the leaf has more than one URI in its subject alternative name")]
    ManyUris,
    /// The leaf's URI is not a workload's SPIFFE ID (X509-SVID §3.1, §5.2).
    #[error("the leaf's URI is not a workload's SPIFFE ID: {0}")]
    SpiffeId(#[from] SpiffeIdError),
    /// The leaf is a CA (X509-SVID §5.2).
    #[error("the leaf is a CA certificate")]
    LeafIsCa,
    /// The leaf may sign certificates or CRLs (X509-SVID §5.2).
    #[error("the leaf's key usage has keyCertSign or cRLSign")]
    LeafSigns,
    /// The leaf's key usage is missing, not critical or without digitalSignature (X509-SVID §4.3).
    #[error("the leaf's key usage is missing, not critical, or lacks digitalSignature")]
    KeyUsage,
    /// The leaf's extended key usage lacks serverAuth or clientAuth (X509-SVID §4.4).
    #[error("the leaf's extended key usage lacks serverAuth or clientAuth")]
    ExtendedKeyUsage,
    /// The leaf's trust domain is neither ours nor configured.
    #[error("the trust domain is neither ours nor one of mtls.federated")]
    TrustDomain,
    /// The Workload API gives no bundle for the leaf's trust domain, or one without a usable root (Workload API §4.6).
    #[error("there is no X.509 bundle for the trust domain, or none of its certificates can be a root")]
    NoBundle,
    /// The leaf is not valid yet.
    #[error("the leaf is not valid yet; compare the clocks")]
    NotYetValid,
    /// The leaf has expired.
    #[error("the leaf has expired")]
    Expired,
    /// An intermediate or root is not valid yet.
    #[error("an intermediate or root is not valid yet")]
    CaNotYetValid,
    /// An intermediate or root has expired.
    #[error("an intermediate or root has expired")]
    CaExpired,
    /// A certificate of the path has a critical extension that is unknown here (RFC 5280 §4.2).
    #[error("a certificate has an unknown critical extension")]
    CriticalExtension,
    /// No certificate presented and no root of the trust domain issued it.
    #[error("the chain leads to no root of the trust domain's bundle")]
    UnknownIssuer,
    /// An issuer is not a CA, or may not sign certificates.
    #[error("an issuer is not a CA, or its key usage lacks keyCertSign")]
    NotACa,
    /// An intermediate has an extended key usage without clientAuth.
    #[error("an intermediate's extended key usage lacks clientAuth")]
    CaExtendedKeyUsage,
    /// There are more CAs below a CA than it allows.
    #[error("the path is longer than a CA allows")]
    PathLength,
    /// A name is excluded or not permitted by a CA's name constraints.
    #[error("a name is not permitted by a CA's name constraints")]
    NameConstraints,
    /// A name cannot be judged, because its form or the constraint's is not supported.
    #[error("a CA constrains names of a form that is not supported here")]
    NameConstraintForm,
    /// A signature or key of a kind that is not trusted.
    #[error("a signature or key is of a kind that is not trusted")]
    Algorithm,
    /// An RSA key of fewer than 2,048 bits, or more than 8,192.
    #[error("an RSA key is shorter than 2048 bits or longer than 8192")]
    WeakKey,
    /// A signature is not its issuer's.
    #[error("a signature does not verify")]
    Signature,
    /// Too many possible paths.
    #[error("the chain allows too many paths")]
    TooComplex,
    /// Our own path validation accepts the chain and the library's does not.
    #[error("the second path validation refuses the chain")]
    SecondOpinion,
}

impl X509SvidError {
    /// Every label that [`X509SvidError::kind`] can be.
    pub const KINDS: [&'static str; 31] = [
        "no_certificate",
        "too_large",
        "malformed",
        "version",
        "duplicate_extension",
        "subject_alt_name",
        "no_uri",
        "many_uris",
        "spiffe_id",
        "leaf_is_ca",
        "leaf_signs",
        "key_usage",
        "extended_key_usage",
        "trust_domain",
        "no_bundle",
        "not_yet_valid",
        "expired",
        "ca_not_yet_valid",
        "ca_expired",
        "critical_extension",
        "unknown_issuer",
        "not_a_ca",
        "ca_extended_key_usage",
        "path_length",
        "name_constraints",
        "name_constraint_form",
        "algorithm",
        "weak_key",
        "signature",
        "too_complex",
        "second_opinion",
    ];

    /// A stable label of a closed set, for metrics and audit.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::TooLarge => "too_large",
            Self::Malformed(_) => "malformed",
            Self::Version => "version",
            Self::DuplicateExtension => "duplicate_extension",
            Self::SubjectAltName => "subject_alt_name",
            Self::NoUri => "no_uri",
            Self::ManyUris => "many_uris",
            Self::SpiffeId(_) => "spiffe_id",
            Self::LeafIsCa => "leaf_is_ca",
            Self::LeafSigns => "leaf_signs",
            Self::KeyUsage => "key_usage",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::TrustDomain => "trust_domain",
            Self::NoBundle => "no_bundle",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::CaNotYetValid => "ca_not_yet_valid",
            Self::CaExpired => "ca_expired",
            Self::CriticalExtension => "critical_extension",
            Self::UnknownIssuer => "unknown_issuer",
            Self::NotACa => "not_a_ca",
            Self::CaExtendedKeyUsage => "ca_extended_key_usage",
            Self::PathLength => "path_length",
            Self::NameConstraints => "name_constraints",
            Self::NameConstraintForm => "name_constraint_form",
            Self::Algorithm => "algorithm",
            Self::WeakKey => "weak_key",
            Self::Signature => "signature",
            Self::TooComplex => "too_complex",
            Self::SecondOpinion => "second_opinion",
        }
    }
}

/// What a verified X.509-SVID says. Made only by [`verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Claims {
    spiffe_id: SpiffeId,
    expires_at: Timestamp,
    fingerprint: [u8; 32],
}

impl X509Claims {
    /// Whom the leaf names.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// The earliest `notAfter` of the path, the root's included, UTC.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The SHA-256 digest of the leaf's DER, in lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        HEXLOWER.encode(&self.fingerprint)
    }
}

/// Verifies `chain` (DER, leaf first, intermediates in any order) at `now`: its leaf is an X.509-SVID of one of the
/// `accepted` trust domains, and leads to a root of that trust domain's own bundle.
///
/// # Errors
/// The first rule that it breaks; any doubt is an error.
pub fn verify(
    chain: &[impl AsRef<[u8]>],
    bundles: &BTreeMap<TrustDomain, Arc<X509Bundle>>,
    accepted: &BTreeSet<TrustDomain>,
    now: Timestamp,
) -> Result<X509Claims, X509SvidError> {
    let size = chain.iter().fold(0_usize, |sum, der| sum.saturating_add(der.as_ref().len()));
    if chain.len() > MAX_CHAIN || size > MAX_CHAIN_BYTES {
        return Err(X509SvidError::TooLarge);
    }
    let (leaf, rest) = chain.split_first().ok_or(X509SvidError::NoCertificate)?;
    let leaf = Certificate::parse(leaf.as_ref())?;
    let spiffe_id = spiffe_id(&leaf)?;
    check_leaf(&leaf)?;
    let intermediates = rest.iter().map(|der| Certificate::parse(der.as_ref())).collect::<Result<Vec<_>, _>>()?;
    // INVARIANT: the only roots from here on are those of the leaf's own trust domain.
    if !accepted.contains(spiffe_id.trust_domain()) {
        return Err(X509SvidError::TrustDomain);
    }
    let bundle = bundles.get(spiffe_id.trust_domain()).ok_or(X509SvidError::NoBundle)?;
    if bundle.is_empty() {
        return Err(X509SvidError::NoBundle);
    }
    let roots = bundle.roots().map(Certificate::parse).collect::<Result<Vec<_>, _>>()?;
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let path = path::find(&leaf, &intermediates, &roots, seconds)?;
    let until = path.iter().map(|certificate| certificate.not_after).min().unwrap_or_default();
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, leaf.der).as_ref());
    Ok(X509Claims { spiffe_id, expires_at: Timestamp::from_secs(until.try_into().unwrap_or_default()), fingerprint })
}

/// An X.509-SVID that a peer proved to hold in a TLS handshake, with what it was verified by.
pub struct PeerSvid {
    chain: Vec<Vec<u8>>,
    claims: X509Claims,
    bundle: Arc<X509Bundle>,
}

impl PeerSvid {
    /// Verifies `chain` as [`verify`] does. Whether the peer holds the leaf's key is for the handshake to prove.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn verify(
        chain: Vec<Vec<u8>>,
        bundles: &BTreeMap<TrustDomain, Arc<X509Bundle>>,
        accepted: &BTreeSet<TrustDomain>,
        now: Timestamp,
    ) -> Result<Self, X509SvidError> {
        let claims = verify(&chain, bundles, accepted, now)?;
        let bundle = bundles.get(claims.spiffe_id.trust_domain()).ok_or(X509SvidError::NoBundle)?;
        Ok(Self { bundle: Arc::clone(bundle), chain, claims })
    }

    /// What the verified leaf says.
    pub fn claims(&self) -> &X509Claims {
        &self.claims
    }

    /// Judges it anew. Cheap while the bundle is the one that it was verified by; else the whole chain is verified.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn still_holds(
        &self,
        bundles: &BTreeMap<TrustDomain, Arc<X509Bundle>>,
        accepted: &BTreeSet<TrustDomain>,
        now: Timestamp,
    ) -> Result<(), X509SvidError> {
        let trust_domain = self.claims.spiffe_id.trust_domain();
        if now >= self.claims.expires_at {
            return Err(X509SvidError::Expired);
        }
        if !accepted.contains(trust_domain) {
            return Err(X509SvidError::TrustDomain);
        }
        match bundles.get(trust_domain) {
            None => Err(X509SvidError::NoBundle),
            Some(bundle) if Arc::ptr_eq(bundle, &self.bundle) || *bundle == self.bundle => Ok(()),
            Some(_) => verify(&self.chain, bundles, accepted, now).map(|_| ()),
        }
    }
}

impl fmt::Debug for PeerSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerSvid").field("claims", &self.claims).finish_non_exhaustive()
    }
}

/// The leaf's one URI (X509-SVID §2), which is a workload's SPIFFE ID (§3.1).
fn spiffe_id(leaf: &Certificate<'_>) -> Result<SpiffeId, X509SvidError> {
    let mut uris = leaf.extensions.names.iter().filter_map(|name| match name {
        Name::Uri(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (None, _) => Err(X509SvidError::NoUri),
        (Some(uri), None) => Ok(uri.parse::<SpiffeId>()?),
        (Some(_), Some(_)) => Err(X509SvidError::ManyUris),
    }
}

/// The SPIFFE ID and the `notAfter` of an SVID of our own, of which nothing else is checked: its peers do that. The `spiffe`
/// crate would accept and repair an ID in upper case.
///
/// # Errors
/// The leaf cannot be read, or names no workload's SPIFFE ID in canonical form.
pub(super) fn own_leaf(der: &[u8]) -> Result<(SpiffeId, Timestamp), X509SvidError> {
    let leaf = Certificate::parse(der)?;
    Ok((spiffe_id(&leaf)?, Timestamp::from_secs(leaf.not_after.try_into().unwrap_or_default())))
}

/// The rules for a leaf's other extensions (X509-SVID §4.3, §4.4, §5.2), which no TLS library applies.
fn check_leaf(leaf: &Certificate<'_>) -> Result<(), X509SvidError> {
    if leaf.is_ca() {
        return Err(X509SvidError::LeafIsCa);
    }
    let usage = leaf.extensions.key_usage;
    if usage.is_some_and(|usage| usage.key_cert_sign() || usage.crl_sign()) {
        return Err(X509SvidError::LeafSigns);
    }
    if !usage.is_some_and(|usage| usage.critical && usage.digital_signature()) {
        return Err(X509SvidError::KeyUsage);
    }
    if leaf.extensions.extended_key_usage.is_some_and(|usage| !usage.server_auth || !usage.client_auth) {
        return Err(X509SvidError::ExtendedKeyUsage);
    }
    Ok(())
}
