//! The path of a dynamic secret as a Vault grant writes it: segments that may hold `${param.NAME}`.
//!
//! As in a session policy, parameters are filled into parsed segments, never into text that is parsed afterwards: a
//! value's characters (`[A-Za-z0-9._-]`) can neither end a segment nor, together with what stands around it, make one
//! that means "here" or "above" (threat T10).

use std::collections::{BTreeMap, BTreeSet};

use crate::params::{self, Part};
use crate::provider::{DocumentError, ParamName, ParamSpec, Params};

/// The longest path, in characters, with every parameter at its longest.
const MAX_PATH: usize = 512;
/// Engines that are Vault's own: what is read there is no credential of a workload, and may be a way to more rights.
const RESERVED: [&str; 4] = ["sys", "auth", "identity", "cubbyhole"];

/// A path, checked; parameters not yet filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretPath {
    text: String,
    params: BTreeSet<ParamName>,
}

impl SecretPath {
    /// Reads `database/creds/ro` or `database/creds/ledger-${param.customer}`.
    ///
    /// # Errors
    /// Anything but such segments, two of them at least, or a path of one of Vault's own engines.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let segments: Vec<Vec<Part<'_>>> = text.split('/').map(segment).collect::<Option<_>>().ok_or_else(|| {
            DocumentError::invalid(
                "read must be segments of A-Z a-z 0-9 . _ - and ${param.NAME} joined by '/', e.g. database/creds/ro",
            )
        })?;
        if segments.len() < 2 {
            return Err(DocumentError::invalid("read must be the engine's mount and what is read below it"));
        }
        // Not only at the front: before an engine's mount the path may name a namespace (`team/sys/…`), and a value
        // there could name one of these, too.
        for parts in segments.iter().rev().skip(1) {
            match parts.as_slice() {
                [Part::Text(text)] if !RESERVED.contains(text) => {}
                [Part::Text(_)] => {
                    let message = format!("read must not be below {}: those are Vault's own", RESERVED.join(", "));
                    return Err(DocumentError::invalid(message));
                }
                _ => {
                    return Err(DocumentError::invalid("read may have a parameter in its last segment only"));
                }
            }
        }
        let names = segments.into_iter().flatten().filter_map(|part| match part {
            Part::Param(name) => Some(name),
            Part::Text(_) | Part::Unknown(_) => None,
        });
        Ok(Self { text: text.to_owned(), params: names.collect() })
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The parameters it uses.
    pub fn params(&self) -> &BTreeSet<ParamName> {
        &self.params
    }

    /// Checks that a scope declares every parameter used and that the path stays within 512 characters.
    ///
    /// # Errors
    /// Says what to shorten or declare.
    pub fn check_params(&self, declared: &BTreeMap<ParamName, ParamSpec>) -> Result<(), DocumentError> {
        if let Some(name) = self.params.iter().find(|name| !declared.contains_key(*name)) {
            let message = format!("read uses ${{param.{name}}}, which the scope does not declare");
            return Err(DocumentError::invalid(message));
        }
        if self.fill(&params::longest(declared)).len() > MAX_PATH {
            let message =
                format!("read can become longer than {MAX_PATH} characters: shorten it, or the parameters' max");
            return Err(DocumentError::invalid(message));
        }
        Ok(())
    }

    /// The path with `values` filled in. Values were accepted by their [`ParamSpec`] before.
    pub fn fill(&self, values: &Params) -> String {
        params::fill(&self.text, values)
    }
}

/// One segment's parts; `None` where it is no segment, or could become `.` or `..`.
fn segment(text: &str) -> Option<Vec<Part<'_>>> {
    let parts: Vec<_> = params::parts(text).collect();
    let literal: String =
        parts.iter().filter_map(|part| if let Part::Text(text) = part { Some(*text) } else { None }).collect();
    // A value is never "." or "..", but "." and a value of "." would be: so text beside a parameter is not dots alone.
    let only_dots = !literal.is_empty() && literal.bytes().all(|b| b == b'.');
    let known = !parts.iter().any(|part| matches!(part, Part::Unknown(_)));
    (!parts.is_empty() && known && !only_dots && is_plain(&literal)).then_some(parts)
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether `text` is one or more plain segments joined by `/`: a mount, or a namespace.
pub(crate) fn is_plain_path(text: &str) -> bool {
    let plain = |segment: &str| !matches!(segment, "" | "." | "..") && is_plain(segment);
    text.len() <= MAX_PATH && text.split('/').all(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::params::ParamType;

    fn values(pairs: &[(&str, &str)]) -> Params {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), (*value).to_owned())).collect()
    }

    #[test]
    fn fills_parameters_into_segments() {
        let path = SecretPath::parse("database/creds/ledger-${param.customer}").unwrap();
        assert_eq!(path.fill(&values(&[("customer", "c-42")])), "database/creds/ledger-c-42");
        assert_eq!(path.params().iter().map(ParamName::as_str).collect::<Vec<_>>(), ["customer"]);
        let whole = SecretPath::parse("team/database/creds/${param.a}").unwrap();
        assert_eq!(whole.fill(&values(&[("a", "${param.a}")])), "team/database/creds/${param.a}", "never filled twice");
    }

    #[test]
    fn rejects_what_is_not_a_path_of_a_dynamic_secret() {
        for wrong in [
            "",
            "creds",
            "/database/creds/ro",
            "database/creds/",
            "database//ro",
            "database/../sys",
            "database/./ro",
            "database/creds/r o",
            "database/creds/ro?x=1",
            "database/creds/%2e%2e",
            "database/creds/ro#",
            "sys/creds/x",
            "auth/token/create",
            "identity/oidc/token",
            "cubbyhole/a",
            "${param.a}/creds/ro",
            "database/${a}",
            "database/${param.A}",
            "database/${param.a",
            "database/.${param.a}",
            "database/${param.a}.",
            "database\\x/y",
            "team/sys/leases",
            "team/auth/token/create",
            "team/${param.a}/creds",
            "database/cr${param.a}/ro",
        ] {
            assert!(SecretPath::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_scope_must_declare_what_it_uses_and_keep_it_short() {
        let path = SecretPath::parse("database/creds/${param.a}").unwrap();
        let spec = |max| ParamSpec { kind: ParamType::Segment, max };
        let declared = |name: &str, max| BTreeMap::from([(name.parse::<ParamName>().unwrap(), spec(max))]);
        assert!(path.check_params(&declared("a", 32)).is_ok());
        assert!(path.check_params(&declared("b", 32)).unwrap_err().message.contains("${param.a}"));
        let long = SecretPath::parse(&format!("database/{}/${{param.a}}", "x".repeat(400))).unwrap();
        assert!(long.check_params(&declared("a", 256)).is_err());
    }

    proptest! {
        #[test]
        fn no_value_leaves_its_segment(text in "[a-z.${}/_-]{0,40}|database/[.a-z-]{0,4}\\$\\{param\\.a\\}[.a-z-]{0,4}", value in "[A-Za-z0-9._-]{1,8}") {
            let spec = ParamSpec { kind: ParamType::Segment, max: 8 };
            if let (Ok(path), true) = (SecretPath::parse(&text), spec.accepts(&value)) {
                let filled = path.fill(&values(&[("a", &value)]));
                prop_assert_eq!(filled.matches('/').count(), text.matches('/').count());
                prop_assert!(filled.split('/').all(|segment| !matches!(segment, "." | "..")), "{}", filled);
            }
        }
    }
}
