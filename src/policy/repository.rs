//! Where policy files come from: the seam [`PolicySource`].
//!
//! - [`directory`]: an unsigned directory, for development.
//! - [`signed`]: a signed repository: refreshed, verified, remembered, kept.
//! - [`trusted`]: what makes its bytes trustworthy; [`fault`]: why they are not.
//! - [`high_water`], [`store`]: what is remembered of it, on disk.
//! - [`fetch`]: the seam to the files of a signed repository.
//! - [`http`]: those files behind HTTPS.
//! - [`metadata`]: what a publisher writes: TUF roles, keys, signatures.
//! - [`path_pattern`]: which names a delegation is for.
//! - [`schedule`]: when to refresh again.
//! - [`sample`]: a whole signed repository in memory, for tests and benches.

pub mod directory;
pub mod fault;
pub mod fetch;
pub mod high_water;
pub mod http;
pub mod metadata;
pub mod path_pattern;
#[cfg(any(test, feature = "dev"))]
pub mod sample;
pub mod schedule;
pub mod signed;
pub mod store;
pub mod trusted;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use super::document::Digest;
use super::standing::{RoleName, Standing};
use super::{PolicyVersion, Problem};
pub use directory::{DirectorySource, MAX_FILE, MAX_FILES, MAX_TOTAL, TESTS};

/// All policy files of one version, by path (`decisions/ledger-read.toml`), exactly as published.
///
/// INVARIANT: a source puts a file here only if the owner of its folder published it (docs/policy.md): for a signed source
/// the role that owns the folder, for a directory whoever may write there. What reads the files trusts a path's folder.
#[derive(Debug, Clone)]
pub struct PolicyFiles {
    /// The bytes of each file.
    pub files: BTreeMap<String, Bytes>,
    /// Their version: equal versions have equal files.
    pub version: PolicyVersion,
    /// What the signatures say, where the files are signed.
    pub signed: Option<Signed>,
}

/// What a signed source knows beside the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The snapshot's version number.
    pub snapshot: u64,
    /// The version of the role `incident`: the kill list's epoch, which never goes back.
    pub incident: u64,
    /// Which role published each file.
    pub publishers: BTreeMap<String, RoleName>,
    /// Who delegated to each role but `targets`.
    pub delegators: BTreeMap<RoleName, RoleName>,
    /// When each role expires.
    pub standing: Standing,
    /// Names that a role lists and that are not its own: not loaded, told.
    pub stray: Vec<Problem>,
}

impl Signed {
    /// `role`, who delegated to it, and so on up to the charter.
    pub fn chain<'a>(&'a self, role: &'a RoleName) -> impl Iterator<Item = &'a RoleName> {
        // No longer than there are roles, whatever a source says.
        std::iter::successors(Some(role), |role| self.delegators.get(*role)).take(self.delegators.len() + 1)
    }
}

impl PolicyFiles {
    /// Files without a publisher's version; theirs is `dir-` and 16 hex digits of a digest over paths and bytes.
    pub fn unsigned(files: BTreeMap<String, Bytes>) -> Self {
        let mut whole = Vec::new();
        for (path, bytes) in &files {
            // A path has no line break (a source sees to it), and a digest is of fixed length: no two sets write the same.
            whole.extend_from_slice(format!("{} {path}\n", Digest::of(bytes)).as_bytes());
        }
        let hex = Digest::of(&whole).hex();
        let version = PolicyVersion(format!("dir-{}", hex.get(..16).unwrap_or(&hex)).into());
        Self { files, version, signed: None }
    }
}

/// A source could not give policy files.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PolicySourceError {
    /// What happened and how to fix it.
    pub message: String,
    /// Whether something was there and was refused (a bad signature, a rollback), and not merely out of reach.
    pub refused: bool,
}

impl PolicySourceError {
    /// The source is out of reach.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { message: message.into(), refused: false }
    }

    /// The source gave something that must not be trusted.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { message: message.into(), refused: true }
    }
}

/// What a refresh found.
#[derive(Debug)]
pub enum Fetched {
    /// Still the files of the version that was seen, and nothing is to be said of them.
    Unchanged,
    /// Still the files of the version that was seen, and its roles expire then (a heartbeat).
    Confirmed(Standing),
    /// Files of another version.
    New(PolicyFiles),
}

/// What a version is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// It is in force.
    Whole,
    /// It was refused or could not be kept, and its kill list holds over the version that is in force.
    KillList,
}

/// What was in use before, where the newest version cannot be.
#[derive(Debug)]
pub struct Previous {
    /// The version that was put into force last.
    pub files: PolicyFiles,
    /// The version, refused for something else, whose kill list held over it.
    pub kill: Option<PolicyFiles>,
}

/// The seam to where policy comes from.
#[async_trait]
pub trait PolicySource: Send + Sync + fmt::Debug {
    /// The files as they are now, or that they are still those of version `seen`.
    ///
    /// # Errors
    /// When they cannot be had, or must not be trusted; what is in force stays.
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError>;

    /// Says that the version that was fetched last is in use, so that [`PolicySource::previous`] can give it again. What is
    /// said of any other version changes nothing. Where it cannot be remembered, [`PolicySource::notes`] tell it.
    async fn used(&self, _version: &PolicyVersion, _as: Use) {}

    /// What was in use last, also before a restart; for when the newest version is refused for what its files say.
    ///
    /// # Errors
    /// When it was remembered and cannot be had or must not be trusted: not a part of it may be used then.
    async fn previous(&self) -> Result<Option<Previous>, PolicySourceError> {
        Ok(None)
    }

    /// The kill list of a version that was refused or could not be kept, where that list is good in itself and newer than
    /// those of the versions in use: the files below `kill/`, as long as no later version is in use. It may stop more than
    /// what is in force, and never less. Where it is used, [`PolicySource::used`] is told so.
    async fn stopping(&self) -> Option<PolicyFiles> {
        None
    }

    /// Whether what it gives is signed.
    fn signed(&self) -> bool {
        false
    }

    /// How long the source asked us to wait, counted from now; `None` when it did not.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// What is odd about the source and harms nothing, for status; one line each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}
