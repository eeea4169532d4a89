//! How the log is kept: `[audit]` of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::Rotation;
use crate::config::section::{Environment, Invalid, Section};
use crate::config::values;

/// Where audit lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Appended to a file, created with mode 0600.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// How the log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the lines go.
    pub output: Output,
    /// When a file is full or old, and how many stay.
    pub rotation: Rotation,
    /// A checkpoint at least after so many lines.
    pub checkpoint_every: u32,
    /// A checkpoint at least after this time, when there were lines.
    pub checkpoint_interval: Duration,
    /// Whether a line must be on the disk, not only with the system, before what it records may happen.
    pub sync: bool,
    /// How many refusals at the door are written a second; ten times as many at once.
    pub refusals: u32,
}

impl Settings {
    /// What holds where nothing is configured, for `output`.
    pub fn new(output: Output) -> Self {
        Self { output, ..Self::from(AuditSection::default()) }
    }
}

/// `[audit]` as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AuditSection {
    #[serde(deserialize_with = "output")]
    output: Output,
    #[serde(deserialize_with = "values::size::<_, 4096>")]
    rotate_size: u64,
    #[serde(deserialize_with = "values::optional_duration::<_, 60_000>")]
    rotate_age: Option<Duration>,
    keep: usize,
    #[serde(deserialize_with = "values::positive")]
    checkpoint_every: u32,
    #[serde(deserialize_with = "values::duration::<_, 1000>")]
    checkpoint_interval: Duration,
    sync: bool,
    #[serde(deserialize_with = "values::positive")]
    refusals: u32,
}

impl Default for AuditSection {
    fn default() -> Self {
        Self {
            output: Output::Stdout,
            rotate_size: 64 * 1024 * 1024,
            rotate_age: None,
            keep: 8,
            checkpoint_every: 1000,
            checkpoint_interval: Duration::from_secs(60),
            sync: false,
            refusals: 20,
        }
    }
}

impl From<AuditSection> for Settings {
    fn from(section: AuditSection) -> Self {
        let AuditSection { output, checkpoint_every, checkpoint_interval, sync, refusals, .. } = section;
        let rotation = Rotation { size: section.rotate_size, age: section.rotate_age, keep: section.keep };
        Self { output, rotation, checkpoint_every, checkpoint_interval, sync, refusals }
    }
}

impl Section for AuditSection {
    type Settings = Settings;

    fn validate(self, _: &Environment) -> Result<Settings, Invalid> {
        Ok(self.into())
    }
}

fn output<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Output, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "stdout" => Ok(Output::Stdout),
        "off" => Ok(Output::Off),
        path if path.contains('/') => Ok(Output::File(path.into())),
        _ => Err(serde::de::Error::custom("write \"stdout\", \"off\" or a path")),
    }
}
