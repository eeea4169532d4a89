//! The keys that may sign a role, by what they are and not by what they are called.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use data_encoding::HEXLOWER_PERMISSIVE;
use sigstore_tuf::{Key, Root};

use crate::policy::repository::fault::Fault;
use crate::policy::standing::TOP_ROLES;

/// RFC 8410: a `SubjectPublicKeyInfo` of an Ed25519 key, up to the key.
const ED25519: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// RFC 5480: the same of an uncompressed point on P-256, up to the coordinates.
const P256: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

/// A public key in the one form that it can have here, so that one key under two names is seen to be one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Material {
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
}

impl Material {
    /// What `key` is. Other schemes, and other encodings of the same key, are refused rather than compared.
    fn of(key: &Key) -> Result<Self, &'static str> {
        let public = key.keyval.public.trim();
        match key.scheme.as_str() {
            "ed25519" if !public.starts_with('-') => digits(public).map(Self::Ed25519).ok_or("is not 64 hex digits"),
            "ed25519" => after(public, &ED25519, 32).map(Self::Ed25519).ok_or("is no PEM of an Ed25519 public key"),
            "ecdsa-sha2-nistp256" => after(public, &P256, 64).map(Self::P256).ok_or("is no PEM of a P-256 public key"),
            _ => Err("is neither ed25519 nor ecdsa-sha2-nistp256"),
        }
    }
}

fn digits(text: &str) -> Option<Vec<u8>> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().filter(|raw| raw.len() == 32)
}

/// The `length` bytes behind `prefix` in the one PEM block that `text` is.
fn after(text: &str, prefix: &[u8], length: usize) -> Option<Vec<u8>> {
    let body = text.strip_prefix("-----BEGIN PUBLIC KEY-----")?.strip_suffix("-----END PUBLIC KEY-----")?;
    let body: String = body.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    let der = STANDARD.decode(body).ok()?;
    let raw = der.strip_prefix(prefix)?;
    (raw.len() == length).then(|| raw.to_vec())
}

/// The keys of the four top-level roles.
///
/// # Errors
/// As for [`of_role`].
pub(super) fn of_top(root: &Root) -> Result<BTreeSet<Material>, Fault> {
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
) -> Result<BTreeSet<Material>, Fault> {
    let mut found = BTreeSet::new();
    for id in ids {
        let key = keys.get(id).ok_or_else(|| Fault::malformed(format!("{role}: its key {id} is not given")))?;
        let material = Material::of(key).map_err(|why| Fault::malformed(format!("{role}: its key {id} {why}")))?;
        if !found.insert(material) {
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

    fn key(scheme: &str, public: &str) -> Key {
        let json = serde_json::json!({"keytype": "x", "scheme": scheme, "keyval": {"public": public}});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn one_key_is_one_key_in_hex_of_either_case_and_in_pem() {
        let raw = [0xab; 32];
        let hex = "ab".repeat(32);
        let pem = STANDARD.encode([&ED25519[..], &raw].concat());
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n");
        let forms = [hex.clone(), hex.to_uppercase(), pem];
        for form in &forms {
            assert_eq!(Material::of(&key("ed25519", form)), Ok(Material::Ed25519(raw.to_vec())));
        }
        let keys =
            BTreeMap::from([("a".to_owned(), key("ed25519", &forms[0])), ("b".to_owned(), key("ed25519", &forms[2]))]);
        let fault = of_role("security", &["a".to_owned(), "b".to_owned()], 2, &keys).unwrap_err();
        assert!(fault.message().contains("twice"), "{fault}");
    }

    #[test]
    fn other_schemes_and_other_forms_are_refused() {
        let compressed = STANDARD.encode([0x30, 0x39, 0x02]);
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{compressed}\n-----END PUBLIC KEY-----");
        for (scheme, public) in [
            ("rsassa-pss-sha256", "x"),
            ("ed25519", "abc"),
            ("ed25519", "zz"),
            ("ed25519", &pem),
            ("ecdsa-sha2-nistp256", &pem),
            ("ecdsa-sha2-nistp256", ""),
        ] {
            assert!(Material::of(&key(scheme, public)).is_err(), "{scheme} {public}");
        }
        assert!(of_role("r", &[], 1, &BTreeMap::new()).is_err());
        assert!(of_role("r", &["a".to_owned()], 1, &BTreeMap::new()).is_err());
    }
}
