//! An X.509 authority for tests, of any trust domain.

use std::sync::Arc;
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::X509Bundle;
use crate::clock::Timestamp;
use crate::identity::workload_api::{Identities, OwnSvid, SvidKey};
use crate::identity::{SpiffeId, TrustDomain};

/// A root that signs leaves itself.
pub(crate) struct TestAuthority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
}

/// A leaf and its key.
pub(crate) struct TestSvid {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: Vec<u8>,
}

impl TestAuthority {
    /// A root valid for a day around `now`.
    pub(crate) fn new(trust_domain: &str, now: Timestamp) -> Self {
        let day = Duration::from_secs(24 * 3600);
        let mut params = params(&format!("spiffe://{trust_domain}"), now - day, now + day);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, trust_domain);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self { trust_domain: trust_domain.parse().unwrap(), issuer: Issuer::new(params, key), root }
    }

    /// Signs an SVID that names `uri`, valid from a minute before `now` until `until`.
    pub(crate) fn issue(&self, uri: &str, now: Timestamp, until: Timestamp) -> TestSvid {
        let mut params = params(uri, now - Duration::from_secs(60), until);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        TestSvid { chain: vec![leaf.der().to_vec()], key: key.serialize_der() }
    }

    /// The root in DER.
    pub(crate) fn root(&self) -> &[u8] {
        &self.root
    }

    /// Makes it the only authority of its trust domain.
    pub(crate) fn trust(&self, identities: &mut Identities) {
        let bundle = X509Bundle::from_der([&self.root]).unwrap();
        identities.x509_bundles.insert(self.trust_domain.clone(), Arc::new(bundle));
    }

    /// Gives the sidecar `spiffe_id` until `until`, in place of an SVID that it has for it.
    pub(crate) fn give(&self, identities: &mut Identities, spiffe_id: &str, now: Timestamp, until: Timestamp) {
        let svid = self.issue(spiffe_id, now, until);
        let spiffe_id: SpiffeId = spiffe_id.parse().unwrap();
        let expires_at = until.floor_to_second();
        let key = SvidKey::new(svid.chain, &svid.key, expires_at).unwrap();
        let own = OwnSvid { spiffe_id: spiffe_id.clone(), expires_at, hint: None };
        match identities.svids.iter_mut().find(|svid| svid.spiffe_id == spiffe_id) {
            Some(svid) => *svid = own,
            None => identities.svids.push(own),
        }
        identities.keys.insert(spiffe_id, Arc::new(key));
    }
}

fn params(uri: &str, from: Timestamp, until: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Sidemint tests");
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from.as_secs());
    params.not_after = epoch + Duration::from_secs(until.as_secs());
    params
}
