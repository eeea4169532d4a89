//! The opaque bearer token of a running task: `smt_` and 256 random bits in base64url. Only its SHA-256 is kept.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// What every task token begins with, so that scanners can find one that leaked.
pub const PREFIX: &str = "smt_";
/// The length of a token in bytes: the prefix and 43 base64url characters.
pub const LENGTH: usize = PREFIX.len() + 43;

/// The SHA-256 of a task token: what is stored, looked up and journalled in its place.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash([u8; 32]);

impl std::hash::Hash for TokenHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // A few bytes of a hash tell as much in a table as all of them.
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl TokenHash {
    /// The hash under which a presented token would be stored; `None` when the text cannot be a task token.
    pub fn of(presented: &str) -> Option<Self> {
        if presented.len() != LENGTH || !presented.starts_with(PREFIX) {
            return None;
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, presented.as_bytes()).as_ref());
        Some(Self(hash))
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// The system's random source failed; nothing that needs an unguessable value may go on.
#[derive(Debug, thiserror::Error)]
#[error("the system's random source failed")]
pub struct NoRandomness;

/// Makes a new token and its hash.
///
/// # Errors
/// Only when the system gives no random bytes.
pub fn generate() -> Result<(Secret, TokenHash), NoRandomness> {
    let mut bits = zeroize::Zeroizing::new([0u8; 32]);
    random(bits.as_mut())?;
    let mut token = String::with_capacity(LENGTH);
    token.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(bits.as_ref(), &mut token);
    let hash = TokenHash::of(&token).ok_or(NoRandomness)?;
    Ok((Secret::new(token), hash))
}

/// Fills `buffer` from the system's random source.
///
/// # Errors
/// Only when the system gives no random bytes.
pub fn random(buffer: &mut [u8]) -> Result<(), NoRandomness> {
    SystemRandom::new().fill(buffer).map_err(|_| NoRandomness)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_hash_and_only_by_its_exact_text() {
        let (token, hash) = generate().unwrap();
        assert_eq!(TokenHash::of(token.expose()), Some(hash));
        assert_eq!(TokenHash::of(&format!("{}\n", token.expose())), None);
        assert_eq!(TokenHash::of("smt_short"), None);
        let (other, _) = generate().unwrap();
        assert_ne!(TokenHash::of(other.expose()), Some(hash));
    }
}
