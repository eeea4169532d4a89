//! How a version of policy is signed and published: the library behind `sidemint policy new|sign|publish|heartbeat|kill`.
//!
//! A *working repository* (`DIR`) holds the owners' files, `repository.toml` (who signs what) and `metadata/`, where
//! signatures are gathered. A *published repository* (`OUT`) is the TUF repository that sidecars read.
//!
//! - [`workspace`]: the working repository: `repository.toml`, the files, what is staged.
//! - [`keys`]: private keys in files, and commands that ask a KMS or an HSM.
//! - [`sign`]: one key holder adds one signature to one role.
//! - [`published`]: what a client finds at `OUT`, verified as a sidecar would.
//! - [`release`]: the gate and the order of writing: everything, then the timestamp.
//! - [`heartbeat`]: a new timestamp over the same snapshot.
//! - [`kill`]: an entry of the kill list, published at once.
//! - [`table`]: what governance meant, asked of the real policy.
//! - [`difference`]: what changed in a scope or grant, in plain words.
//! - [`new`]: a first working repository.

mod content;
pub mod difference;
pub mod heartbeat;
pub mod keys;
pub mod kill;
pub mod new;
pub mod published;
pub mod release;
pub mod sign;
pub mod table;
pub mod workspace;

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use bytes::Bytes;

use crate::durable_file;

/// Why something was not signed or published; each text says how to fix it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// `repository.toml` says what cannot be.
    #[error("{0}")]
    Settings(String),
    /// A file cannot be read or written, or is not what it should be.
    #[error("{0}")]
    Files(String),
    /// A key, or the command that stands for one, is wrong or does not sign.
    #[error("{0}")]
    Key(String),
    /// Signatures are missing, or are over something else.
    #[error("{0}")]
    Signatures(String),
    /// The version would be refused by sidecars, or would stop what runs today.
    #[error("{0}")]
    Refused(String),
}

impl PublishError {
    /// The stable label of its kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Settings(_) => "settings",
            Self::Files(_) => "files",
            Self::Key(_) => "key",
            Self::Signatures(_) => "signatures",
            Self::Refused(_) => "refused",
        }
    }
}

/// The largest metadata file that is read, in bytes.
pub const MAX_METADATA: u64 = 5_000_000;

fn cannot(path: &Path, what: &str, error: &io::Error) -> PublishError {
    PublishError::Files(format!("{}: cannot be {what}: {error}", path.display()))
}

/// The bytes of a file, at most `limit`; `None` where there is none.
fn read_file(path: &Path, limit: u64) -> Result<Option<Bytes>, PublishError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(path, "read", &error)),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| cannot(path, "read", &error))?;
    if bytes.len() as u64 > limit {
        return Err(PublishError::Files(format!("{}: larger than {limit} bytes", path.display())));
    }
    Ok(Some(bytes.into()))
}

/// Writes a file durably, and the folder above it where there is none.
fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PublishError> {
    let write = || {
        fs::create_dir_all(durable_file::folder_of(path))?;
        durable_file::replace(path, bytes, mode)
    };
    write().map_err(|error| cannot(path, "written", &error))
}
