//! What the commands that write policy share: the time that they go by, and the keys that sign.

use std::path::PathBuf;
use std::time::Duration;

use crate::cli::{CliError, Exit};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::policy::publish::PublishError;
use crate::policy::publish::keys::{KeySource, SIGNER_TIMEOUT};
use crate::policy::publish::release::OnlineKeys;

/// A time to go by.
#[derive(Debug, clap::Args)]
pub(super) struct Time {
    /// Go by this time (RFC 3339, UTC) instead of now; for drills
    #[arg(long, value_name = "TIME", hide_short_help = true)]
    at: Option<Timestamp>,
}

impl Time {
    pub(super) fn now(&self) -> Timestamp {
        self.at.unwrap_or_else(|| SystemClock.now())
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Signer {
    /// The private key: PKCS#8 PEM, Ed25519 or P-256
    #[arg(long, value_name = "FILE.pem", conflicts_with = "signer")]
    key: Option<PathBuf>,
    /// A command that signs: it gets the bytes on standard input and prints the signature in hex or base64
    #[arg(long, value_name = "COMMAND")]
    signer: Option<String>,
    /// How long the command may take
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "signer")]
    signer_timeout: Option<Duration>,
}

impl Signer {
    pub(super) fn source(&self) -> Option<KeySource> {
        let timeout = self.signer_timeout.unwrap_or(SIGNER_TIMEOUT);
        let command = self.signer.clone().map(|command| KeySource::Command { command, timeout });
        self.key.clone().map(KeySource::File).or(command)
    }
}

/// The keys that sign at publication.
#[derive(Debug, clap::Args)]
pub(super) struct Online {
    /// The private key of the role snapshot; may be repeated [default: DIR/keys/NAME.pem]
    #[arg(long, value_name = "FILE.pem")]
    snapshot_key: Vec<PathBuf>,
    /// A command that signs for snapshot
    #[arg(long, value_name = "COMMAND")]
    snapshot_signer: Vec<String>,
    /// The private key of the role timestamp; may be repeated [default: DIR/keys/NAME.pem]
    #[arg(long, value_name = "FILE.pem")]
    timestamp_key: Vec<PathBuf>,
    /// A command that signs for timestamp
    #[arg(long, value_name = "COMMAND")]
    timestamp_signer: Vec<String>,
}

impl Online {
    pub(super) fn keys(&self) -> OnlineKeys {
        OnlineKeys {
            snapshot: sources(&self.snapshot_key, &self.snapshot_signer),
            timestamp: sources(&self.timestamp_key, &self.timestamp_signer),
        }
    }
}

pub(super) fn sources(files: &[PathBuf], commands: &[String]) -> Vec<KeySource> {
    let command = |command: &String| KeySource::Command { command: command.clone(), timeout: SIGNER_TIMEOUT };
    files.iter().cloned().map(KeySource::File).chain(commands.iter().map(command)).collect()
}

pub(super) fn failed(error: PublishError) -> CliError {
    CliError::new(Exit::Failed, error.to_string())
}
