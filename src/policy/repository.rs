//! Where policy files come from.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::PolicyVersion;

/// All policy files of one version, by path (`decisions/ledger-read.toml`), exactly as published.
#[derive(Debug, Clone, Default)]
pub struct PolicyFiles {
    /// The bytes of each file.
    pub files: BTreeMap<String, Bytes>,
}

/// A source could not give policy files.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PolicySourceError(pub String);

/// The seam to where policy comes from.
#[async_trait]
pub trait PolicySource: Send + Sync + fmt::Debug {
    /// The files as they are now, or `None` when they are still those of version `seen`.
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Option<PolicyFiles>, PolicySourceError>;
}

/// The policy in force, reloaded as its source changes.
#[derive(Debug)]
pub struct PolicyCache {
    current: arc_swap::ArcSwapOption<super::Policy>,
}

impl PolicyCache {
    /// The policy in force, if one was ever loaded.
    pub fn current(&self) -> Option<std::sync::Arc<super::Policy>> {
        self.current.load_full()
    }
}
