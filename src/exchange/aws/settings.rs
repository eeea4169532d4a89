//! `[aws]` of the configuration.

use serde::Deserialize;

use super::Settings;
use crate::config::section::{Environment, Invalid, Section};
use crate::retry::Rate;

/// `[aws]` as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AwsSection {
    sts_endpoint: Option<String>,
    region: String,
    audience: String,
}

impl Default for AwsSection {
    fn default() -> Self {
        let Settings { sts_endpoint, region, audience, rate: _ } = Settings::default();
        Self { sts_endpoint, region, audience }
    }
}

impl Section for AwsSection {
    type Settings = Settings;

    /// The rate is one of `[limits]`.
    fn validate(self, _: &Environment) -> Result<Settings, Invalid> {
        let Self { sts_endpoint, region, audience } = self;
        Ok(Settings { sts_endpoint, region, audience, rate: Rate::default() })
    }
}
