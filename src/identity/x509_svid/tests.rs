use std::time::Duration;

use proptest::prelude::*;

use super::testing::TestAuthority;
use super::*;
use crate::identity::workload_api::Identities;

const NOW: Timestamp = Timestamp::from_secs(1_795_435_200);
const HOUR: Duration = Duration::from_secs(3600);
const REPORT: &str = "spiffe://example.org/report";

type Bundles = BTreeMap<TrustDomain, Arc<X509Bundle>>;

fn world() -> (TestAuthority, Bundles, BTreeSet<TrustDomain>) {
    let authority = TestAuthority::new("example.org", NOW);
    let mut identities = Identities::default();
    authority.trust(&mut identities);
    (authority, identities.x509_bundles, ["example.org".parse().unwrap()].into())
}

#[test]
fn a_valid_svid_yields_its_spiffe_id_and_expiry() {
    let (authority, bundles, accepted) = world();
    let svid = authority.issue(REPORT, NOW, NOW + HOUR);
    let claims = verify(&svid.chain, &bundles, &accepted, NOW).unwrap();
    assert_eq!((claims.spiffe_id().as_str(), claims.expires_at()), (REPORT, NOW + HOUR));
    assert_eq!(claims.fingerprint().len(), 64);
    // the root's own end comes first
    let svid = authority.issue(REPORT, NOW, NOW + HOUR * 100);
    assert_eq!(verify(&svid.chain, &bundles, &accepted, NOW).unwrap().expires_at(), NOW + HOUR * 24);
}

#[test]
fn never_uses_the_bundle_of_another_trust_domain() {
    let (_, mut bundles, mut accepted) = world();
    let partner = TestAuthority::new("partner.example", NOW);
    bundles.insert("partner.example".parse().unwrap(), Arc::new(X509Bundle::from_der([partner.root()]).unwrap()));
    let impostor = partner.issue(REPORT, NOW, NOW + HOUR);
    assert_eq!(verify(&impostor.chain, &bundles, &accepted, NOW), Err(X509SvidError::UnknownIssuer));
    let foreign = partner.issue("spiffe://partner.example/report", NOW, NOW + HOUR);
    assert_eq!(verify(&foreign.chain, &bundles, &accepted, NOW), Err(X509SvidError::TrustDomain));
    accepted.insert("partner.example".parse().unwrap());
    assert!(verify(&foreign.chain, &bundles, &accepted, NOW).is_ok());
}

#[test]
fn verifies_a_peer_again_when_its_bundle_changes() {
    let (authority, mut bundles, accepted) = world();
    let svid = authority.issue(REPORT, NOW, NOW + HOUR);
    let peer = PeerSvid::verify(svid.chain, &bundles, &accepted, NOW).unwrap();
    assert_eq!(peer.still_holds(&bundles, &accepted, NOW), Ok(()));
    assert_eq!(peer.still_holds(&bundles, &accepted, NOW + HOUR), Err(X509SvidError::Expired));
    assert_eq!(peer.still_holds(&bundles, &BTreeSet::new(), NOW), Err(X509SvidError::TrustDomain));
    assert_eq!(peer.still_holds(&Bundles::new(), &accepted, NOW), Err(X509SvidError::NoBundle));
    let next = TestAuthority::new("example.org", NOW);
    for (roots, holds) in [
        (vec![authority.root(), next.root()], Ok(())),
        (vec![next.root()], Err(X509SvidError::UnknownIssuer)),
        (vec![], Err(X509SvidError::NoBundle)),
    ] {
        bundles.insert("example.org".parse().unwrap(), Arc::new(X509Bundle::from_der(&roots).unwrap()));
        // both authorities have one name: what fails then is the signature
        let judged = peer.still_holds(&bundles, &accepted, NOW);
        assert!(judged == holds || roots.len() == 1 && judged == Err(X509SvidError::Signature), "{judged:?}");
    }
}

#[test]
fn a_bundle_skips_what_cannot_be_a_root_and_has_limits() {
    let (authority, _, _) = world();
    let leaf = authority.issue(REPORT, NOW, NOW + HOUR);
    let bundle = X509Bundle::from_der([authority.root(), &leaf.chain[0], b"nonsense"]).unwrap();
    assert_eq!((bundle.roots().count(), bundle.ignored()), (1, 2));
    assert!(X509Bundle::from_der([&leaf.chain[0]]).unwrap().is_empty());
    assert_eq!(X509Bundle::from_der(vec![authority.root(); bundle::MAX_ROOTS + 1]), Err(BundleTooLarge));
    assert_eq!(X509Bundle::from_der([vec![0; bundle::MAX_BUNDLE + 1]]), Err(BundleTooLarge));
}

#[test]
fn every_kind_is_listed_once() {
    let kinds: BTreeSet<_> = X509SvidError::KINDS.into();
    assert_eq!(kinds.len(), X509SvidError::KINDS.len());
}

/// One way to spoil a chain.
#[derive(Debug, Clone)]
enum Edit {
    Flip(prop::sample::Index, u8),
    Remove(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Cut(prop::sample::Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, bits)| Edit::Flip(at, bits)),
        1 => (any::<prop::sample::Index>(), 1_u8..8).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, new)| Edit::Insert(at, new)),
        1 => any::<prop::sample::Index>().prop_map(Edit::Cut),
    ]
}

fn apply(der: &mut Vec<u8>, edit: &Edit) {
    match edit {
        Edit::Flip(at, bits) => {
            let at = at.index(der.len());
            der[at] ^= bits;
        }
        Edit::Remove(at, count) => {
            let at = at.index(der.len());
            der.drain(at..der.len().min(at + usize::from(*count)));
        }
        Edit::Insert(at, new) => {
            let at = at.index(der.len());
            der.splice(at..at, new.iter().copied());
        }
        Edit::Cut(at) => der.truncate(at.index(der.len())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// A leaf that differs in any byte is refused: nothing of it is outside its signature but the signature itself.
    #[test]
    fn never_panics_and_accepts_no_mutant(edits in prop::collection::vec(edit(), 1..4)) {
        use std::sync::LazyLock;
        static WORLD: LazyLock<(Vec<Vec<u8>>, Bundles, BTreeSet<TrustDomain>)> = LazyLock::new(|| {
            let (authority, bundles, accepted) = world();
            (authority.issue(REPORT, NOW, NOW + HOUR).chain, bundles, accepted)
        });
        let (chain, bundles, accepted) = &*WORLD;
        let mut mutant = chain.clone();
        for edit in &edits {
            if !mutant[0].is_empty() {
                apply(&mut mutant[0], edit);
            }
        }
        prop_assume!(mutant != *chain);
        prop_assert!(verify(&mutant, bundles, accepted, NOW).is_err());
        // as a root it may be left out or not, and never panics
        let _ = X509Bundle::from_der(&mutant);
    }

    #[test]
    fn never_panics_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let (bundles, accepted) = (Bundles::new(), BTreeSet::new());
        prop_assert!(verify(&[bytes], &bundles, &accepted, NOW).is_err());
    }

    /// The library's reader and ours: what ours takes, the library's takes too, bar what is unknown to one of them: the
    /// library also reads CRL distribution points, which are an unknown extension to us (`second_opinion` refuses then).
    #[test]
    fn rejects_whatever_the_library_cannot_parse(edits in prop::collection::vec(edit(), 1..3)) {
        use std::sync::LazyLock;
        static LEAF: LazyLock<Vec<u8>> = LazyLock::new(|| world().0.issue(REPORT, NOW, NOW + HOUR).chain.remove(0));
        let mut der = LEAF.clone();
        edits.iter().for_each(|edit| if !der.is_empty() { apply(&mut der, edit) });
        const CRL_DISTRIBUTION_POINTS: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x1f];
        prop_assume!(!der.windows(5).any(|bytes| bytes == CRL_DISTRIBUTION_POINTS));
        if let Ok(ours) = Certificate::parse(&der) && !ours.extensions.unknown_critical {
            let theirs = rustls::pki_types::CertificateDer::from(der.as_slice());
            prop_assert!(webpki::EndEntityCert::try_from(&theirs).is_ok(), "{der:02x?}");
        }
    }
}
