//! What may be wrong with policy files.

use std::fmt;

use serde::Serialize;

/// The closed set of [`Problem::kind`].
pub mod kind {
    pub use crate::toml_file::kind::{INVALID, PARSE, PROVIDER, UNKNOWN_SCHEMA};

    /// Cedar that does not parse or validate, or a rule where it may not be.
    pub const RULE: &str = "rule";
    /// A file that another names is not there.
    pub const MISSING: &str = "missing";
    /// Nobody decided on it yet.
    pub const UNDECIDED: &str = "undecided";
    /// It changed after it was decided on.
    pub const DIGEST_MISMATCH: &str = "digest_mismatch";
    /// A file's name is no id, or its folder is not one that this version enforces.
    pub const FILE_NAME: &str = "file_name";
    /// A role lists a file that another one owns: it is not loaded.
    pub const NOT_OWNER: &str = "not_owner";
    /// It names an owner who has no file below `owners/`.
    pub const OWNER: &str = "owner";
    /// Access would outlive the decision's `max_residual`, which does not accept it.
    pub const RESIDUAL: &str = "residual";
    /// The source itself cannot be read.
    pub const UNREADABLE: &str = "unreadable";
    /// Allowed, and worth a second look.
    pub const WARNING: &str = "warning";
}

/// One thing wrong with one policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's path in the policy repository, e.g. `scopes/ledger-read.toml`.
    pub file: String,
    /// A stable label of a closed set ([`Problem::KINDS`]), for metrics.
    pub kind: &'static str,
    /// What is wrong and what fixes it.
    pub message: String,
}

impl Problem {
    /// Every kind, for metrics that must exist before they first happen.
    pub const KINDS: [&'static str; 14] = [
        kind::PARSE,
        kind::UNKNOWN_SCHEMA,
        kind::INVALID,
        kind::RULE,
        kind::PROVIDER,
        kind::MISSING,
        kind::UNDECIDED,
        kind::DIGEST_MISMATCH,
        kind::FILE_NAME,
        kind::NOT_OWNER,
        kind::OWNER,
        kind::RESIDUAL,
        kind::UNREADABLE,
        kind::WARNING,
    ];

    pub(crate) fn new(file: impl Into<String>, kind: &'static str, message: impl Into<String>) -> Self {
        Self { file: file.into(), kind, message: message.into() }
    }
}

/// `scopes/ledger-read.toml: lacks schema = 1`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.message)
    }
}

/// A policy that was refused as a whole.
#[derive(Debug, thiserror::Error)]
#[error("policy refused: {} problem(s), the first: {}", problems.len(), problems.first().map_or_else(String::new, ToString::to_string))]
pub struct PolicyError {
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}
