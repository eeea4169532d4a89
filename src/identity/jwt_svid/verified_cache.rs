//! Tokens that were verified before, so that a caller which presents one token many times costs one signature check.
//!
//! INVARIANT: an answer from memory is the answer that [`super::verify`] would give at the same moment. What is
//! remembered holds for exactly these bytes (by SHA-256), this verifier's audience, and the very bundle that verified
//! them: a bundle that was replaced, even by its equal, or withdrawn, forgets. Times are checked anew each time. Only
//! tokens that verified are remembered, so that nobody without a signed token can fill the memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use aws_lc_rs::digest::{SHA256, digest};

use super::{Claims, JwtBundle, JwtSvidError, MAX_TOKEN, Times, check_form_and_signature};
use crate::clock::Timestamp;
use crate::identity::{SpiffeId, TrustDomain};

/// The most tokens of one generation; two generations are kept. A pod's workloads use a handful.
const GENERATION: usize = 512;

type Key = [u8; 32];

/// Verifies JWT-SVIDs for one audience, and remembers which it has verified.
pub struct Verifier {
    audience: String,
    cache: Mutex<VerifiedCache>,
}

/// The tokens used lately. When `young` is full it becomes `old`, and what was old is forgotten.
#[derive(Default)]
struct VerifiedCache {
    young: HashMap<Key, VerifiedToken>,
    old: HashMap<Key, VerifiedToken>,
}

#[derive(Clone)]
struct VerifiedToken {
    spiffe_id: SpiffeId,
    times: Times,
    /// Weak, so that a withdrawn bundle is not kept; a weak pointer's address is not used again while it lives.
    bundle: Weak<JwtBundle>,
}

impl Verifier {
    /// A verifier of tokens whose only audience is `audience`.
    pub fn new(audience: String) -> Self {
        Self { audience, cache: Mutex::default() }
    }

    /// As [`super::verify`] for this audience.
    ///
    /// # Errors
    /// Names the first rule that the token broke.
    pub fn verify(
        &self,
        token: &str,
        bundles: &BTreeMap<TrustDomain, Arc<JwtBundle>>,
        now: Timestamp,
    ) -> Result<Claims, JwtSvidError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtSvidError::Oversize);
        }
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let known = self.cache().find(&key).filter(|known| {
            let bundle = bundles.get(known.spiffe_id.trust_domain());
            bundle.is_some_and(|bundle| std::ptr::eq(Arc::as_ptr(bundle), known.bundle.as_ptr()))
        });
        if let Some(VerifiedToken { spiffe_id, times, .. }) = known {
            times.check(now)?;
            return Ok(Claims { spiffe_id, expires_at: times.expires_at });
        }
        let (spiffe_id, times, bundle) = check_form_and_signature(token, bundles, &self.audience)?;
        times.check(now)?;
        let known = VerifiedToken { spiffe_id: spiffe_id.clone(), times, bundle: Arc::downgrade(bundle) };
        self.cache().remember(key, known);
        Ok(Claims { spiffe_id, expires_at: times.expires_at })
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, VerifiedCache> {
        // Whatever stands in the maps was verified; a panic in between leaves at most a token out.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VerifiedCache {
    fn find(&mut self, key: &Key) -> Option<VerifiedToken> {
        if let Some(known) = self.young.get(key) {
            return Some(known.clone());
        }
        let known = self.old.remove(key)?;
        self.remember(*key, known.clone());
        Some(known)
    }

    fn remember(&mut self, key: Key, known: VerifiedToken) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, known);
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("audience", &self.audience).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{LEEWAY, MAX_LIFETIME, verify};
    use super::*;
    use crate::identity::workload_api::testing::{SigningKey, claims, jwks};

    const ID: &str = "spiffe://example.org/ns/finance/sa/report";
    const NOW: Timestamp = Timestamp::from_secs(1_795_452_513);
    const LIFE: Duration = Duration::from_secs(300);

    type Bundles = BTreeMap<TrustDomain, Arc<JwtBundle>>;

    fn bundles(keys: &[&SigningKey]) -> Bundles {
        let bundle = JwtBundle::parse(&jwks(keys.iter().copied())).unwrap();
        [("example.org".parse().unwrap(), Arc::new(bundle))].into()
    }

    fn verifier() -> Verifier {
        Verifier::new("sidemint".into())
    }

    fn remembered(verifier: &Verifier) -> usize {
        let cache = verifier.cache();
        cache.young.len() + cache.old.len()
    }

    #[test]
    fn a_cached_token_is_trusted_as_long_as_it_would_be_anew_and_no_longer() {
        let key = SigningKey::generate("P-256", "k");
        let (verifier, bundles) = (verifier(), bundles(&[&key]));
        let token = key.sign(&claims(ID, "sidemint", NOW, LIFE));
        assert!(verifier.verify(&token, &bundles, NOW).is_ok());
        assert_eq!(remembered(&verifier), 1);
        let milli = Duration::from_millis(1);
        for at in [
            NOW,
            NOW + LIFE - milli,
            NOW + LIFE,
            NOW + LIFE + milli,
            NOW - LEEWAY,
            NOW - LEEWAY - milli,
            NOW + LIFE - MAX_LIFETIME,
            NOW + LIFE - MAX_LIFETIME - milli,
        ] {
            assert_eq!(verifier.verify(&token, &bundles, at), verify(&token, &bundles, "sidemint", at), "{at}");
        }
        assert_eq!(verifier.verify(&token, &bundles, NOW + LIFE), Err(JwtSvidError::Expired));
    }

    #[test]
    fn a_cached_token_is_refused_once_its_bundle_has_changed_or_gone() {
        let (key, other) = (SigningKey::generate("P-256", "k"), SigningKey::generate("P-256", "k"));
        let (verifier, first) = (verifier(), bundles(&[&key]));
        let token = key.sign(&claims(ID, "sidemint", NOW, LIFE));
        assert!(verifier.verify(&token, &first, NOW).is_ok());
        assert_eq!(verifier.verify(&token, &Bundles::new(), NOW), Err(JwtSvidError::NoBundle));
        assert_eq!(verifier.verify(&token, &bundles(&[]), NOW), Err(JwtSvidError::UnknownKey));
        assert_eq!(verifier.verify(&token, &bundles(&[&other]), NOW), Err(JwtSvidError::Signature));
        drop(first);
        assert_eq!(verifier.verify(&token, &bundles(&[&other]), NOW), Err(JwtSvidError::Signature));
        assert!(verifier.verify(&token, &bundles(&[&key]), NOW).is_ok());
    }

    #[test]
    fn what_was_refused_is_not_remembered_and_a_changed_token_is_another() {
        let key = SigningKey::generate("P-256", "k");
        let (verifier, bundles) = (verifier(), bundles(&[&key]));
        let foreign = key.sign(&claims(ID, "another", NOW, LIFE));
        for _ in 0..2 {
            assert_eq!(verifier.verify(&foreign, &bundles, NOW), Err(JwtSvidError::Audience));
        }
        let token = key.sign(&claims(ID, "sidemint", NOW, LIFE));
        assert_eq!(verifier.verify(&token, &bundles, NOW + LIFE), Err(JwtSvidError::Expired));
        assert_eq!(remembered(&verifier), 0);
        assert!(verifier.verify(&token, &bundles, NOW).is_ok());
        for changed in [format!("{token}A"), format!("{token} "), token.replacen("ey", "eY", 1)] {
            assert!(verifier.verify(&changed, &bundles, NOW).is_err());
        }
        assert_eq!(remembered(&verifier), 1);
        assert_eq!(verifier.verify(&"a".repeat(MAX_TOKEN + 1), &bundles, NOW), Err(JwtSvidError::Oversize));
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_in_use() {
        let known = |n: usize| VerifiedToken {
            spiffe_id: format!("{ID}/{n}").parse().unwrap(),
            times: Times { expires_at: NOW + LIFE, starts_at: NOW },
            bundle: Weak::new(),
        };
        let key = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            key
        };
        let mut cache = VerifiedCache::default();
        cache.remember(key(0), known(0));
        for n in 1..10 * GENERATION {
            cache.remember(key(n), known(n));
            assert!(cache.find(&key(0)).is_some());
            assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION);
        }
        assert!(cache.find(&key(1)).is_none());
    }
}
