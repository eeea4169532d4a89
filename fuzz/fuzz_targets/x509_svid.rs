//! A chain as a TLS peer presents it, its certificates each behind two bytes of length: no bytes break the verifier, and
//! what it accepts names whom the leaf's own bytes name, in a trust domain that is accepted.
#![no_main]

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sidemint::clock::Timestamp;
use sidemint::identity::TrustDomain;
use sidemint::identity::x509_svid::{MAX_CHAIN, X509Bundle, verify};

/// The day of the corpus whose chains are the seeds.
const NOON: Timestamp = Timestamp::from_secs(1_795_435_200);

static ROOT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let roots: Value = serde_json::from_str(include_str!("../../tests/corpus/spiffe-x509/roots.json")).unwrap();
    STANDARD.decode(roots["root"].as_str().unwrap()).unwrap()
});
static ACCEPTED: LazyLock<BTreeSet<TrustDomain>> = LazyLock::new(|| ["example.org".parse().unwrap()].into());

fn chain(mut data: &[u8]) -> Vec<&[u8]> {
    let mut chain = Vec::new();
    while let [high, low, rest @ ..] = data {
        let length = (usize::from(*high) * 256 + usize::from(*low)).min(rest.len());
        let (certificate, rest) = rest.split_at(length);
        chain.push(certificate);
        data = rest;
    }
    chain
}

fuzz_target!(|data: &[u8]| {
    let chain = chain(data);
    // also with a root that came with the chain: the reader of bundles and the path from a stranger's root
    let own = chain.last().copied().unwrap_or_default();
    for root in [ROOT.as_slice(), own] {
        let bundle = X509Bundle::from_der([root]).unwrap();
        let bundles = [("example.org".parse().unwrap(), Arc::new(bundle))].into();
        let Ok(claims) = verify(&chain, &bundles, &ACCEPTED, NOON) else { continue };
        let id = claims.spiffe_id();
        assert!(chain.len() <= MAX_CHAIN && id.trust_domain().as_str() == "example.org");
        assert!(chain[0].windows(id.as_str().len()).any(|window| window == id.as_str().as_bytes()));
        assert!(claims.expires_at() > NOON);
    }
});
