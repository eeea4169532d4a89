//! The keys that may sign a role, by what they are and not by what they are called.

use std::collections::{BTreeMap, BTreeSet};

use sigstore_tuf::{Key, Root};

use crate::policy::public_key::PublicKey;
use crate::policy::repository::fault::Fault;
use crate::policy::standing::TOP_ROLES;

/// The keys of the four top-level roles.
///
/// # Errors
/// As for [`of_role`].
pub(super) fn of_top(root: &Root) -> Result<BTreeSet<PublicKey>, Fault> {
    let mut all = BTreeSet::new();
    for role in TOP_ROLES {
        let Some(keys) = root.role(role) else { continue };
        all.extend(of_role(role, &keys.keyids, keys.threshold, &root.keys)?);
    }
    Ok(all)
}

/// The keys of `role`: each is there, each is another one, and enough of them can sign (specification §4.2, §6.1: the
/// threshold counts keys, and a key's id is only a name for it).
pub(super) fn of_role(
    role: &str,
    ids: &[String],
    threshold: usize,
    keys: &BTreeMap<String, Key>,
) -> Result<BTreeSet<PublicKey>, Fault> {
    let mut found = BTreeSet::new();
    for id in ids {
        let key = keys.get(id).ok_or_else(|| Fault::malformed(format!("{role}: its key {id} is not given")))?;
        // Other schemes, and other encodings of the same key, are refused rather than compared.
        let key = PublicKey::from_tuf(&key.scheme, &key.keyval.public)
            .map_err(|why| Fault::malformed(format!("{role}: its key {id} {why}")))?;
        if !found.insert(key) {
            return Err(Fault::malformed(format!("{role}: its key {id} is there twice, and would count as two")));
        }
    }
    if threshold == 0 || threshold > found.len() {
        let message = format!("{role}: its threshold is {threshold} of {} keys", found.len());
        return Err(Fault::malformed(message));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(public: &str) -> Key {
        let json = serde_json::json!({"keytype": "x", "scheme": "ed25519", "keyval": {"public": public}});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn one_key_under_two_names_is_refused() {
        let hex = "ab".repeat(32);
        let keys = BTreeMap::from([("a".to_owned(), key(&hex)), ("b".to_owned(), key(&hex.to_uppercase()))]);
        let fault = of_role("security", &["a".to_owned(), "b".to_owned()], 2, &keys).unwrap_err();
        assert!(fault.message().contains("twice"), "{fault}");
    }

    #[test]
    fn too_few_keys_and_keys_that_are_not_given_are_refused() {
        assert!(of_role("r", &[], 1, &BTreeMap::new()).is_err());
        assert!(of_role("r", &["a".to_owned()], 1, &BTreeMap::new()).is_err());
        let wrong = BTreeMap::from([("a".to_owned(), key("zz"))]);
        assert!(of_role("r", &["a".to_owned()], 1, &wrong).is_err());
    }
}
