//! `[shutdown]`: what SIGTERM does.

use std::time::Duration;

use serde::Deserialize;

use super::section::complete_as_read;
use super::values;

/// `[shutdown]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownSettings {
    /// What becomes of tasks.
    pub tasks: AtShutdown,
    /// How long to go on serving after SIGTERM, where containers stop in no order.
    #[serde(deserialize_with = "values::duration::<_, 0>")]
    pub linger: Duration,
}

/// What becomes of tasks when the sidecar stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtShutdown {
    /// They end with it.
    End,
    /// They go on when it starts again.
    Keep,
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        Self { tasks: AtShutdown::End, linger: Duration::ZERO }
    }
}

complete_as_read!(ShutdownSettings);
