//! The one type for secrets: tokens, keys and cloud credentials.
//!
//! A [`Secret`] is wiped when dropped and cannot be printed, serialised or copied by accident: it has no `Display`,
//! `Serialize` or `Clone`, and its `Debug` says nothing. Share one with `Arc`. [`Secret::expose`] is the only way in,
//! and each call of it says why.

use std::{fmt, io};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::Serialize;
use zeroize::Zeroizing;

/// UTF-8 text that must not leak.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `text`; its buffer is wiped on drop.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself. Say at each call why it must be seen.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in constant time for texts of equal length.
    pub fn matches(&self, other: &str) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), other.as_bytes()).is_ok()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Bytes that hold a secret, wiped when the last user lets go; made to be shared as a ready response body.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of `bytes`; the buffer is wiped on drop.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// JSON of what holds secrets. `wire` must be of strings, numbers and times, which always serialise. It is measured first:
    /// a buffer that grows is moved, and left behind unwiped; one too large is kept as long as the task.
    pub fn of_json(wire: &impl Serialize) -> Self {
        let mut length = Length(0);
        let _ = serde_json::to_writer(&mut length, wire);
        let mut bytes = Vec::with_capacity(length.0);
        let _ = serde_json::to_writer(&mut bytes, wire);
        Self::new(bytes)
    }

    /// A cheaply shared body over these bytes; the buffer is wiped when its last clone is dropped.
    pub fn into_body(self) -> bytes::Bytes {
        bytes::Bytes::from_owner(self)
    }
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRef<[u8]> for SecretBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_never_holds_the_secret() {
        let secret = Secret::new("hunter2".into());
        assert!(!format!("{secret:?} {:?}", SecretBytes::new(b"hunter2".to_vec())).contains("hunter2"));
        assert!(secret.matches("hunter2"));
        assert!(!secret.matches("hunter3"));
        assert!(!secret.matches("hunter22"));
    }
}
