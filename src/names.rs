//! The names of scopes, grants and parameters.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text is not a valid name for a scope, grant or parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct NameError(&'static str);

pub(crate) fn is_segment(segment: &str, max: usize) -> bool {
    let first = segment.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    first && segment.len() <= max && segment.bytes().all(allowed)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(NameError($rule)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A scope's id: its path below `scopes/`, without the ending, e.g. `ledger-read` or `finance/ledger-read`.
    ScopeId,
    "1 to 8 segments of a-z 0-9 - _ joined by '/', at most 128 characters",
    |text| text.len() <= 128 && text.split('/').count() <= 8 && text.split('/').all(|s| is_segment(s, 64))
);
name!(
    /// A grant's id: its path below `grants/`, without the ending.
    GrantId,
    "1 to 8 segments of a-z 0-9 - _ joined by '/', at most 128 characters",
    |text| text.len() <= 128 && text.split('/').count() <= 8 && text.split('/').all(|s| is_segment(s, 64))
);
name!(
    /// The name of a scope's parameter: a letter, then letters, digits and `_`, at most 32; so that it is also a Cedar identifier.
    ParamName,
    "a letter a-z, then a-z 0-9 _, at most 32 characters",
    |text| {
        text.len() <= 32
            && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    }
);
