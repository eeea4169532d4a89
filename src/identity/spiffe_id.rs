//! SPIFFE IDs and trust domains (SPIFFE-ID §2), parsed strictly: what is not canonical is refused, never repaired.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest SPIFFE ID that every implementation must support, in bytes (SPIFFE-ID §2.3).
pub const MAX_SPIFFE_ID: usize = 2048;
/// The longest trust domain name, in bytes (SPIFFE-ID §2.3).
pub const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID or trust domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than 2,048 bytes, or a trust domain longer than 255.
    #[error("too long")]
    TooLong,
    /// The scheme is not exactly `spiffe://`.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// The trust domain is empty or has a character outside `[a-z0-9._-]`.
    #[error("trust domain must be one or more of a-z 0-9 . _ -")]
    TrustDomain,
    /// The path has an empty, `.` or `..` segment, a trailing slash, or a character outside `[A-Za-z0-9._-]`.
    #[error("path must be segments of A-Z a-z 0-9 . _ -, none of them empty, '.' or '..'")]
    Path,
    /// A workload's ID needs a path; this names a whole trust domain.
    #[error("names a trust domain, not a workload")]
    NoPath,
}

/// The name of a trust domain, e.g. `example.org`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the form in which the Workload API names trust domains: `spiffe://example.org` (Workload API §5.1).
    ///
    /// # Errors
    /// Refuses any other scheme, a path, and names outside the grammar.
    pub fn from_id(text: &str) -> Result<Self, SpiffeIdError> {
        let name = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        name.parse()
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, SpiffeIdError> {
        if name.len() > MAX_TRUST_DOMAIN {
            return Err(SpiffeIdError::TooLong);
        }
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(SpiffeIdError::TrustDomain);
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's SPIFFE ID, e.g. `spiffe://example.org/ns/finance/sa/report`. It always has a path.
///
/// Compared byte by byte; cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    whole: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// The whole ID, as written.
    pub fn as_str(&self) -> &str {
        &self.whole
    }

    /// The trust domain it belongs to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path without its first slash, e.g. `ns/finance/sa/report`.
    pub fn path(&self) -> &str {
        self.whole.get(SCHEME.len() + self.trust_domain.as_str().len() + 1..).unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_SPIFFE_ID {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let Some((domain, path)) = rest.split_once('/') else {
            rest.parse::<TrustDomain>()?;
            return Err(SpiffeIdError::NoPath);
        };
        let trust_domain = domain.parse()?;
        if !path.split('/').all(is_segment) {
            return Err(SpiffeIdError::Path);
        }
        Ok(Self { whole: text.into(), trust_domain })
    }
}

fn is_segment(segment: &str) -> bool {
    let allowed = |b: u8| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.whole)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.whole)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
