//! The seam to where a signed repository's files lie: [`Fetch`], and a local directory behind it.
//! What comes through is untrusted bytes; nothing here verifies anything but size.

use std::fmt;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Reads files of a TUF repository by their name below it, e.g. `metadata/timestamp.json`.
#[async_trait]
pub trait Fetch: Send + Sync + fmt::Debug {
    /// The file `name`, at most `limit` bytes. Where `seen` is the tag of the bytes that the caller has, the answer may
    /// be that they are still the same.
    ///
    /// # Errors
    /// Anything but the file, its absence or its being unchanged.
    async fn get(&self, name: &str, limit: u64, seen: Option<&Tag>) -> Result<Answer, FetchError>;

    /// How long the source asked us to wait, counted from now; `None` when it did not.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// What the source said of the file that it gave last, where that was [`Answer::Absent`] and it said more: `403` is
    /// also what a server answers that lets nobody in.
    fn note(&self) -> Option<String> {
        None
    }
}

/// What tells two states of a file apart: an HTTP entity tag (RFC 9110 §8.8.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(pub String);

/// A file, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its bytes are those of the tag that was seen.
    Unchanged,
    /// There is no such file.
    Absent,
    /// The file is there.
    Body {
        /// The whole file, within the limit that was asked for.
        bytes: Bytes,
        /// Their tag, where the source gives one.
        tag: Option<Tag>,
    },
}

/// Why a file could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Nobody answers, or not in time.
    #[error("{name}: unreachable: {why}")]
    Unreachable {
        /// The file's name below the repository.
        name: String,
        /// What happened, for the log.
        why: String,
    },
    /// Somebody answers, but not with the file: a status, a redirect, a broken body.
    #[error("{name}: {why}")]
    Refused {
        /// The file's name below the repository.
        name: String,
        /// What happened, for the log.
        why: String,
    },
    /// The file is larger than it may be.
    #[error("{name}: larger than {limit} bytes")]
    TooLarge {
        /// The file's name below the repository.
        name: String,
        /// The most that was allowed, in bytes.
        limit: u64,
    },
}

/// A repository in a local directory: `DIR/metadata`, `DIR/targets`.
#[derive(Debug, Clone)]
pub struct DirectoryFetch {
    directory: PathBuf,
}

impl DirectoryFetch {
    /// Reads files below `directory`, which need not exist yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Answer, FetchError> {
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(FetchError::Refused { name: name.to_owned(), why: "is no name of a file".to_owned() });
        }
        let file = match std::fs::File::open(self.directory.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Answer::Absent),
            Err(error) => return Err(FetchError::Unreachable { name: name.to_owned(), why: error.to_string() }),
        };
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| FetchError::Unreachable { name: name.to_owned(), why: error.to_string() })?;
        if bytes.len() as u64 > limit {
            return Err(FetchError::TooLarge { name: name.to_owned(), limit });
        }
        Ok(Answer::Body { bytes: bytes.into(), tag: None })
    }
}

#[async_trait]
impl Fetch for DirectoryFetch {
    async fn get(&self, name: &str, limit: u64, _: Option<&Tag>) -> Result<Answer, FetchError> {
        let (this, owned) = (self.clone(), name.to_owned());
        let work = tokio::task::spawn_blocking(move || this.read(&owned, limit));
        work.await.unwrap_or_else(|_| {
            Err(FetchError::Unreachable { name: name.to_owned(), why: "the reader was cut off".to_owned() })
        })
    }
}
