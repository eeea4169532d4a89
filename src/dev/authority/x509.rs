//! The X.509 authority (SPIFFE X509-SVID §2–§4): a self-signed CA that names the trust domain, and leaves that name a
//! workload.

use bytes::Bytes;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::time::Duration;

use super::AuthorityError;
use crate::clock::Timestamp;
use crate::identity::{SpiffeId, TrustDomain};
use crate::secret::SecretBytes;

/// How long the CA lives. It is never replaced: the whole authority lives for one run of `demo` or `dev`.
const CA_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far certificates are dated back, for peers whose clock is a little behind.
const BACKDATE: Duration = Duration::from_secs(10);

/// One X.509-SVID, ready for the wire.
#[derive(Debug, Clone)]
pub struct Svid {
    /// Whom it names.
    pub spiffe_id: SpiffeId,
    /// The leaf certificate, DER; the root signs it directly.
    pub certificate: Bytes,
    /// Its private key, PKCS#8 DER; wiped when the last clone goes.
    pub private_key: PrivateKey,
}

/// A private key on its way to the workload: shared, wiped with its last user, silent in `Debug`.
#[derive(Clone)]
pub struct PrivateKey(Bytes);

impl PrivateKey {
    /// The PKCS#8 DER. Say at each call why it must be seen.
    pub fn expose(&self) -> Bytes {
        self.0.clone()
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// The trust domain's root.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
}

impl CertificateAuthority {
    /// A new root for `trust_domain`, valid from `now`.
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn new(trust_domain: &TrustDomain, now: Timestamp) -> Result<Self, AuthorityError> {
        let mut params = parameters(&format!("spiffe://{trust_domain}"), now, now + CA_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, trust_domain.as_str());
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?.der().to_vec();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// The root certificate, DER: the trust bundle.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Signs an SVID for `spiffe_id`, with a new key, good until `until`.
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn issue(&self, spiffe_id: &SpiffeId, now: Timestamp, until: Timestamp) -> Result<Svid, AuthorityError> {
        let mut params = parameters(spiffe_id.as_str(), now, until)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Svid {
            spiffe_id: spiffe_id.clone(),
            certificate: certificate.der().to_vec().into(),
            private_key: PrivateKey(SecretBytes::new(key.serialize_der()).into_body()),
        })
    }
}

/// What root and leaves share: exactly one URI SAN (X509-SVID §2), a subject, whole-second validity.
fn parameters(uri: &str, now: Timestamp, until: Timestamp) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).map_err(failed)?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "US");
    params.distinguished_name.push(DnType::OrganizationName, "Sidemint dev");
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs((now - BACKDATE).as_secs());
    params.not_after = epoch + Duration::from_secs(until.as_secs());
    Ok(params)
}

fn failed(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Crypto(error.to_string())
}
