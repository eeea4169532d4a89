//! `[limits]`: what is refused rather than queued without end.

use std::time::Duration;

use serde::Deserialize;

use super::section::complete_as_read;
use super::values;
use crate::retry::Rate;

/// `[limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Tasks that are remembered.
    #[serde(deserialize_with = "values::positive")]
    pub tasks: usize,
    /// Running tasks of one caller.
    #[serde(deserialize_with = "values::positive")]
    pub tasks_per_caller: usize,
    /// Credentials asked for in a minute for one caller.
    #[serde(deserialize_with = "values::positive")]
    pub mints_per_caller: u32,
    /// Requests of one caller that wait for a provider at a time.
    #[serde(deserialize_with = "values::positive")]
    pub waits_per_caller: usize,
    /// Streams that hold tasks of one caller at a time.
    #[serde(deserialize_with = "values::positive")]
    pub holds_per_caller: usize,
    /// Connections at a time, per listener.
    #[serde(deserialize_with = "values::positive")]
    pub connections: usize,
    /// Requests that are answered at a time.
    #[serde(deserialize_with = "values::positive")]
    pub requests: usize,
    /// How long one exchange may take.
    #[serde(deserialize_with = "values::duration::<_, 1000>")]
    pub mint: Duration,
    /// How long a request waits for an exchange.
    #[serde(deserialize_with = "values::duration::<_, 1000>")]
    pub wait: Duration,
    /// Exchanges per second at one provider.
    #[serde(deserialize_with = "values::positive")]
    pub upstream_rate: u32,
    /// Exchanges at once at one provider.
    #[serde(deserialize_with = "values::positive")]
    pub upstream_burst: u32,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            tasks: 10_000,
            tasks_per_caller: 1000,
            mints_per_caller: 600,
            waits_per_caller: 1000,
            holds_per_caller: 500,
            connections: 2048,
            requests: 2048,
            mint: Duration::from_secs(15),
            wait: Duration::from_secs(10),
            upstream_rate: 10,
            upstream_burst: 20,
        }
    }
}

impl LimitSettings {
    /// How often one provider may be asked.
    pub fn upstream(&self) -> Rate {
        Rate { interval: Duration::from_secs(1) / self.upstream_rate, burst: self.upstream_burst }
    }
}

complete_as_read!(LimitSettings);
