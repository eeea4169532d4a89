//! The key that signs checkpoints: Ed25519, made once, kept in the state directory.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::durable_file;

/// The length of a signature, in bytes (RFC 8032 §5.1.6).
pub(super) const SIGNATURE_BYTES: usize = 64;
const FILE: &str = "audit-key.pk8";
const PREFIX: &str = "ed25519:";
/// An Ed25519 key in PKCS#8 has less than 100 bytes.
const MAX_FILE: u64 = 1024;

/// A public key, written `ed25519:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Whether `signature` over `message` was made with this key.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write ed25519: and 64 hexadecimal digits, as `sidemint audit key` prints them")]
pub struct NotAKey;

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let digits = text.strip_prefix(PREFIX).ok_or(NotAKey)?;
        let bytes = HEXLOWER.decode(digits.as_bytes()).map_err(|_| NotAKey)?;
        bytes.try_into().map(Self).map_err(|_| NotAKey)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The private key.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// The key in `directory`.
    ///
    /// # Errors
    /// When there is none, others than its owner may read it, or it is no Ed25519 key.
    pub fn load(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new().read(true).custom_flags(super::no_follow()).open(&path).map_err(named)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.mode() & 0o077 != 0 {
            let what = "the audit log's key may be read by others: chmod 600 it, or remove it to have a new one made";
            return Err(named(io::Error::new(io::ErrorKind::PermissionDenied, what)));
        }
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Self::from_pkcs8(&bytes).map_err(named)
    }

    /// The key in `directory`, made now where there is none yet (mode 0600).
    ///
    /// # Errors
    /// As [`SigningKey::load`], and when it cannot be made.
    pub fn load_or_create(directory: &Path) -> io::Result<Self> {
        match Self::load(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(directory),
            other => other,
        }
    }

    fn create(directory: &Path) -> io::Result<Self> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| io::Error::other("no random bytes for the audit log's key"))?;
        durable_file::replace(&directory.join(FILE), document.as_ref(), 0o600)?;
        Self::from_pkcs8(document.as_ref())
    }

    fn from_pkcs8(bytes: &[u8]) -> io::Result<Self> {
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidData, "is not an Ed25519 key: remove it to have a new one made");
        let pair = Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| invalid())?;
        let public = PublicKey(pair.public_key().as_ref().try_into().map_err(|_| invalid())?);
        Ok(Self { pair, public })
    }

    /// The other half, for everyone.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn creates_the_key_once_and_readable_by_its_owner_only() {
        let state = tempfile::tempdir().unwrap();
        let first = SigningKey::load_or_create(state.path()).unwrap();
        let again = SigningKey::load_or_create(state.path()).unwrap();
        assert_eq!(first.public(), again.public());
        let path = state.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(first.public().to_string().parse(), Ok(first.public()));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = SigningKey::load_or_create(state.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn rejects_a_key_file_that_is_a_link_or_not_a_key() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE);
        std::os::unix::fs::symlink(state.path().join("elsewhere"), &path).unwrap();
        assert!(SigningKey::load(state.path()).is_err_and(|e| e.kind() != io::ErrorKind::NotFound));
        fs::remove_file(&path).unwrap();
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap().write_all(b"no key").unwrap();
        assert!(SigningKey::load(state.path()).unwrap_err().to_string().contains("not an Ed25519 key"));
    }
}
