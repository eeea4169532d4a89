//! Path validation (RFC 5280 §6.1) from a leaf to a root of its own trust domain's bundle.
//!
//! Ours, because the library's refuses every URI name constraint; the library is asked all the same, for a second
//! opinion on the path that was found ([`second_opinion`]). Where RFC 5280 leaves a choice the stricter one is taken:
//! names are compared byte by byte, and self-issued certificates count towards path lengths and obey name constraints.

use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, UnixTime,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::X509SvidError;
use super::certificate::Certificate;
use super::constraints;

/// The most signatures that are checked for one chain.
const MAX_SIGNATURES: usize = 100;

/// The signatures that are trusted: ECDSA on P-256 and P-384, RSA PKCS #1 v1.5 from 2,048 bits with SHA-2, Ed25519.
static ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 8] = [
    webpki::aws_lc_rs::ECDSA_P256_SHA256,
    webpki::aws_lc_rs::ECDSA_P256_SHA384,
    webpki::aws_lc_rs::ECDSA_P384_SHA256,
    webpki::aws_lc_rs::ECDSA_P384_SHA384,
    webpki::aws_lc_rs::ED25519,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA256,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA384,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA512,
];

/// A path that holds: the certificates from the leaf up, the root last.
pub(super) type Path<'a, 'c> = Vec<&'a Certificate<'c>>;

/// Finds a path from `leaf` over `intermediates`, in any order, to one of `roots`, valid at `now` (seconds since 1970).
///
/// # Errors
/// When there is none: what is wrong with the first candidate that was one by name.
pub(super) fn find<'a, 'c>(
    leaf: &'a Certificate<'c>,
    intermediates: &'a [Certificate<'c>],
    roots: &'a [Certificate<'c>],
    now: i64,
) -> Result<Path<'a, 'c>, X509SvidError> {
    check_time(leaf, now, X509SvidError::NotYetValid, X509SvidError::Expired)?;
    check_any(leaf)?;
    let mut search = Search { intermediates, roots, now, signatures: 0 };
    let mut path = vec![leaf];
    search.extend(&mut path)?;
    second_opinion(&path, now)?;
    Ok(path)
}

struct Search<'a, 'c> {
    intermediates: &'a [Certificate<'c>],
    roots: &'a [Certificate<'c>],
    now: i64,
    signatures: usize,
}

impl<'a, 'c> Search<'a, 'c> {
    /// Goes on from the last certificate of `path` to a root, or leaves `path` as it was.
    fn extend(&mut self, path: &mut Path<'a, 'c>) -> Result<(), X509SvidError> {
        let mut why = X509SvidError::UnknownIssuer;
        let (roots, intermediates) = (self.roots, self.intermediates);
        for (issuer, is_root) in roots.iter().map(|ca| (ca, true)).chain(intermediates.iter().map(|ca| (ca, false))) {
            let Some(child) = path.last().copied() else { return Err(why) };
            let known = path.iter().any(|before| before.subject == issuer.subject && before.key == issuer.key);
            if issuer.subject != child.issuer || known {
                continue;
            }
            path.push(issuer);
            match self.step(path, child, issuer, is_root) {
                Ok(()) => return Ok(()),
                Err(X509SvidError::TooComplex) => return Err(X509SvidError::TooComplex),
                Err(error) if why == X509SvidError::UnknownIssuer => why = error,
                Err(_) => {}
            }
            path.pop();
        }
        Err(why)
    }

    /// Whether `issuer`, the last of `path`, may have signed `child` and did; then on, unless it is a root.
    fn step(
        &mut self,
        path: &mut Path<'a, 'c>,
        child: &Certificate<'c>,
        issuer: &Certificate<'c>,
        is_root: bool,
    ) -> Result<(), X509SvidError> {
        check_time(issuer, self.now, X509SvidError::CaNotYetValid, X509SvidError::CaExpired)?;
        if is_root {
            check_root(issuer)?
        } else {
            check_intermediate(issuer)?
        }
        // between it and the leaf: all but those two
        let below = path.len().saturating_sub(2);
        let limit = issuer.extensions.basic_constraints.and_then(|constraints| constraints.path_length);
        if limit.is_some_and(|limit| below > limit) {
            return Err(X509SvidError::PathLength);
        }
        self.signatures += 1;
        if self.signatures > MAX_SIGNATURES {
            return Err(X509SvidError::TooComplex);
        }
        check_signature(child, issuer)?;
        if is_root { constraints::check(path) } else { self.extend(path) }
    }
}

/// What holds for a root: it may sign certificates. A root without key usage may (RFC 5280 §6.1.4 (n)); many private
/// roots above SPIRE have none.
pub(super) fn check_root(root: &Certificate<'_>) -> Result<(), X509SvidError> {
    check_any(root)?;
    if !root.is_ca() || root.extensions.key_usage.is_some_and(|usage| !usage.key_cert_sign()) {
        return Err(X509SvidError::NotACa);
    }
    Ok(())
}

/// What holds for an intermediate: it says itself that it may sign certificates (X509-SVID §4.3), and may do so for
/// clients.
fn check_intermediate(ca: &Certificate<'_>) -> Result<(), X509SvidError> {
    check_any(ca)?;
    if !ca.is_ca() || !ca.extensions.key_usage.is_some_and(|usage| usage.key_cert_sign()) {
        return Err(X509SvidError::NotACa);
    }
    if ca.extensions.extended_key_usage.is_some_and(|usage| !usage.client_auth) {
        return Err(X509SvidError::CaExtendedKeyUsage);
    }
    Ok(())
}

/// What holds for each certificate of a path.
fn check_any(certificate: &Certificate<'_>) -> Result<(), X509SvidError> {
    if certificate.extensions.unknown_critical {
        return Err(X509SvidError::CriticalExtension);
    }
    certificate.key.check()
}

/// Valid from `not_before` to `not_after`, both included (RFC 5280 §4.1.2.5).
fn check_time(
    certificate: &Certificate<'_>,
    now: i64,
    too_soon: X509SvidError,
    too_late: X509SvidError,
) -> Result<(), X509SvidError> {
    if now < certificate.not_before {
        Err(too_soon)
    } else if now > certificate.not_after {
        Err(too_late)
    } else {
        Ok(())
    }
}

fn check_signature(child: &Certificate<'_>, issuer: &Certificate<'_>) -> Result<(), X509SvidError> {
    let algorithm = algorithm(child, issuer).ok_or(X509SvidError::Algorithm)?;
    algorithm.verify_signature(issuer.key.bits, child.tbs, child.signature).map_err(|_| X509SvidError::Signature)
}

/// The trusted algorithm by which `issuer` would have signed `child`.
fn algorithm(child: &Certificate<'_>, issuer: &Certificate<'_>) -> Option<&'static dyn SignatureVerificationAlgorithm> {
    ALGORITHMS.iter().copied().find(|algorithm| is_for(*algorithm, child, issuer))
}

fn is_for(algorithm: &dyn SignatureVerificationAlgorithm, child: &Certificate<'_>, issuer: &Certificate<'_>) -> bool {
    algorithm.signature_alg_id().as_ref() == child.signature_algorithm
        && algorithm.public_key_alg_id().as_ref() == issuer.key.algorithm
}

/// An algorithm for the second opinion on a path that was found: the signatures of that path have been verified by this
/// very algorithm, and are not computed again; any other is.
#[derive(Debug)]
struct Once<'p> {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    path: &'p [&'p Certificate<'p>],
}

impl Once<'_> {
    fn has_verified(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.path.iter().zip(self.path.iter().skip(1)).any(|(child, issuer)| {
            is_for(self.algorithm, child, issuer)
                && issuer.key.bits == key
                && child.tbs == message
                && child.signature == signature
        })
    }
}

impl SignatureVerificationAlgorithm for Once<'_> {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        if self.has_verified(key, message, signature) {
            return Ok(());
        }
        self.algorithm.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

/// What the library says of the path found: it must find nothing wrong with it either. Only its refusal of name
/// constraints does not count where there are URI name constraints: it refuses all of those, after everything else has
/// passed. `path` is one whose signatures [`check_signature`] has verified.
fn second_opinion(path: &Path<'_, '_>, now: i64) -> Result<(), X509SvidError> {
    let once = ALGORITHMS.map(|algorithm| Once { algorithm, path });
    let algorithms = once.each_ref().map(|algorithm| algorithm as &dyn SignatureVerificationAlgorithm);
    let [leaf, between @ .., root] = path.as_slice() else { return Err(X509SvidError::SecondOpinion) };
    let (leaf, root) = (CertificateDer::from(leaf.der), CertificateDer::from(root.der));
    let between: Vec<_> = between.iter().map(|ca| CertificateDer::from(ca.der)).collect();
    let seconds = u64::try_from(now).map_err(|_| X509SvidError::SecondOpinion)?;
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let anchors = [anchor_from_trusted_cert(&root).map_err(|_| X509SvidError::SecondOpinion)?];
    let end_entity = EndEntityCert::try_from(&leaf).map_err(|_| X509SvidError::SecondOpinion)?;
    let said = end_entity.verify_for_usage(&algorithms, &anchors, &between, time, KeyUsage::client_auth(), None, None);
    match said {
        Ok(_) => Ok(()),
        Err(webpki::Error::NameConstraintViolation) if constraints::any_on_uris(path) => Ok(()),
        Err(_) => Err(X509SvidError::SecondOpinion),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::identity::x509_svid::testing::TestAuthority;

    #[test]
    fn the_second_verifier_checks_every_signature_outside_the_path() {
        let now = Timestamp::from_secs(1_795_435_200);
        let authority = TestAuthority::new("example.org", now);
        let issue = |path| authority.issue(path, now, now + std::time::Duration::from_secs(60)).chain.remove(0);
        let (leaf, other) = (issue("spiffe://example.org/a"), issue("spiffe://example.org/b"));
        let [leaf, other, root] = [&leaf, &other, authority.root()].map(|der| Certificate::parse(der).unwrap());
        let path = vec![&leaf, &root];
        let signs = algorithm(&leaf, &root).unwrap();
        let once = Once { algorithm: signs, path: &path };
        assert!(once.has_verified(root.key.bits, leaf.tbs, leaf.signature));
        assert!(once.verify_signature(root.key.bits, leaf.tbs, leaf.signature).is_ok());
        // right, but not of this path: computed
        assert!(!once.has_verified(root.key.bits, other.tbs, other.signature));
        assert!(once.verify_signature(root.key.bits, other.tbs, other.signature).is_ok());
        for (key, message, signature) in [
            (other.key.bits, leaf.tbs, leaf.signature),
            (root.key.bits, other.tbs, leaf.signature),
            (root.key.bits, leaf.tbs, other.signature),
            (root.key.bits, leaf.tbs, &leaf.signature[1..]),
        ] {
            assert!(once.verify_signature(key, message, signature).is_err());
        }
        let foreign = ALGORITHMS.iter().copied().filter(|algorithm| !is_for(*algorithm, &leaf, &root));
        for algorithm in foreign {
            assert!(!Once { algorithm, path: &path }.has_verified(root.key.bits, leaf.tbs, leaf.signature));
        }
    }
}
