//! SPIFFE IDs and trust domains (SPIFFE-ID §2), parsed strictly: what is not canonical is refused, never repaired.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest SPIFFE ID that every implementation must support, in bytes (SPIFFE-ID §2.3).
const MAX_SPIFFE_ID: usize = 2048;
/// The longest trust domain name, in bytes (SPIFFE-ID §2.3).
const MAX_TRUST_DOMAIN: usize = 255;
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
    /// The bare name, without `spiffe://`.
    pub fn as_str(&self) -> &str {
        &self.0
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_canonical_ids_and_gives_their_parts() {
        for (text, domain, path) in [
            ("spiffe://example.org/report", "example.org", "report"),
            ("spiffe://example.org/ns/finance/sa/report", "example.org", "ns/finance/sa/report"),
            (
                "spiffe://example.org/9eebccd2-12bf-40a6-b262-65fe0487d453",
                "example.org",
                "9eebccd2-12bf-40a6-b262-65fe0487d453",
            ),
            ("spiffe://a/b", "a", "b"),
            ("spiffe://192.0.2.1/a", "192.0.2.1", "a"),
            ("spiffe://-._0/A.b_c-D", "-._0", "A.b_c-D"),
            ("spiffe://example.org/...", "example.org", "..."),
            ("spiffe://example.org/.a/a./a..b", "example.org", ".a/a./a..b"),
            ("spiffe://spiffe/spiffe", "spiffe", "spiffe"),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!((id.trust_domain().as_str(), id.path(), id.as_str()), (domain, path, text));
        }
    }

    #[test]
    fn rejects_what_is_not_canonical() {
        for (text, error) in [
            ("", SpiffeIdError::Scheme),
            ("spiffe", SpiffeIdError::Scheme),
            ("spiffe:/example.org/a", SpiffeIdError::Scheme),
            ("SPIFFE://example.org/a", SpiffeIdError::Scheme),
            ("Spiffe://example.org/a", SpiffeIdError::Scheme),
            ("https://example.org/a", SpiffeIdError::Scheme),
            (" spiffe://example.org/a", SpiffeIdError::Scheme),
            ("example.org/a", SpiffeIdError::Scheme),
            ("spiffe://", SpiffeIdError::TrustDomain),
            ("spiffe:///a", SpiffeIdError::TrustDomain),
            ("spiffe://Example.org/a", SpiffeIdError::TrustDomain),
            ("spiffe://exämple.org/a", SpiffeIdError::TrustDomain),
            ("spiffe://xn--exmple%2eorg/a", SpiffeIdError::TrustDomain),
            ("spiffe://user@example.org/a", SpiffeIdError::TrustDomain),
            ("spiffe://user:pass@example.org/a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org:8443/a", SpiffeIdError::TrustDomain),
            ("spiffe://[2001:db8::1]/a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org?a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org#a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org\\a/b", SpiffeIdError::TrustDomain),
            ("spiffe://example.org\n/a", SpiffeIdError::TrustDomain),
            ("spiffe://example.org", SpiffeIdError::NoPath),
            ("spiffe://example.org/", SpiffeIdError::Path),
            ("spiffe://example.org//a", SpiffeIdError::Path),
            ("spiffe://example.org/a/", SpiffeIdError::Path),
            ("spiffe://example.org/a//b", SpiffeIdError::Path),
            ("spiffe://example.org/.", SpiffeIdError::Path),
            ("spiffe://example.org/..", SpiffeIdError::Path),
            ("spiffe://example.org/a/./b", SpiffeIdError::Path),
            ("spiffe://example.org/a/../b", SpiffeIdError::Path),
            ("spiffe://example.org/a%2fb", SpiffeIdError::Path),
            ("spiffe://example.org/%61", SpiffeIdError::Path),
            ("spiffe://example.org/a b", SpiffeIdError::Path),
            ("spiffe://example.org/a\0", SpiffeIdError::Path),
            ("spiffe://example.org/a\n", SpiffeIdError::Path),
            ("spiffe://example.org/a?b", SpiffeIdError::Path),
            ("spiffe://example.org/a#b", SpiffeIdError::Path),
            ("spiffe://example.org/a:b", SpiffeIdError::Path),
            ("spiffe://example.org/a*", SpiffeIdError::Path),
            ("spiffe://example.org/ä", SpiffeIdError::Path),
            ("spiffe://example.org/а", SpiffeIdError::Path), // Cyrillic
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn has_the_lengths_of_the_specification() {
        let longest = format!("spiffe://example.org/{}", "a".repeat(MAX_SPIFFE_ID - 21));
        assert_eq!(longest.len(), MAX_SPIFFE_ID);
        assert!(longest.parse::<SpiffeId>().is_ok());
        assert_eq!(format!("{longest}a").parse::<SpiffeId>(), Err(SpiffeIdError::TooLong));
        let domain = "a".repeat(MAX_TRUST_DOMAIN);
        assert!(format!("spiffe://{domain}/a").parse::<SpiffeId>().is_ok());
        assert_eq!(format!("spiffe://{domain}a/a").parse::<SpiffeId>(), Err(SpiffeIdError::TooLong));
    }

    #[test]
    fn distinguishes_ids_that_look_alike() {
        let id: SpiffeId = "spiffe://example.org/foo".parse().unwrap();
        for other in [
            "spiffe://example.org/foobar",
            "spiffe://example.org/foo/bar",
            "spiffe://example.org/Foo",
            "spiffe://example.org.evil/foo",
            "spiffe://evil.example.org/foo",
            "spiffe://example/org/foo",
        ] {
            assert_ne!(id, other.parse().unwrap(), "{other}");
        }
        let evil: SpiffeId = "spiffe://example.org.evil/foo".parse().unwrap();
        assert_ne!(id.trust_domain(), evil.trust_domain());
    }

    #[test]
    fn a_trust_domain_has_neither_path_nor_port() {
        assert_eq!("example.org".parse::<TrustDomain>().unwrap().as_str(), "example.org");
        for text in ["", "spiffe://example.org", "example.org/", "example.org/a", "Example.org", "example.org:80"] {
            assert!(text.parse::<TrustDomain>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_keeps_every_byte_of_what_it_accepts(
            text in prop_oneof![any::<String>(), "spiffe://[a-zA-Z0-9._%@:-]{0,12}(/[A-Za-z0-9._%-]{0,6}){0,4}"],
        ) {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(&id.to_string(), &text);
                prop_assert_eq!(format!("spiffe://{}/{}", id.trust_domain(), id.path()), text);
            }
        }

        #[test]
        fn reads_every_id_of_the_grammar(text in "spiffe://[a-z0-9._-]{1,30}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}){1,5}") {
            let id: SpiffeId = text.parse().unwrap();
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), id);
        }
    }
}
