//! `[vault]` of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::Settings;
use crate::config::section::{Environment, Invalid, Section};
use crate::config::values;
use crate::provider::vault::is_plain_path;
use crate::retry::Rate;

/// `[vault]` as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct VaultSection {
    address: Option<String>,
    ca: Option<PathBuf>,
    namespace: Option<String>,
    #[serde(deserialize_with = "values::duration::<_, 1000>")]
    timeout: Duration,
    #[serde(deserialize_with = "values::positive")]
    rate: u32,
    #[serde(deserialize_with = "values::positive")]
    revocation_rate: u32,
}

impl Default for VaultSection {
    fn default() -> Self {
        Self {
            address: None,
            ca: None,
            namespace: None,
            timeout: Duration::from_secs(5),
            rate: 10,
            revocation_rate: 200,
        }
    }
}

impl Section for VaultSection {
    type Settings = Option<Settings>;

    fn validate(self, _: &Environment) -> Result<Self::Settings, Invalid> {
        let Self { address, ca, namespace, timeout, rate, revocation_rate } = self;
        if namespace.as_deref().is_some_and(|name| !is_plain_path(name)) {
            return Err(Invalid::new("namespace", "write segments of A-Z a-z 0-9 . _ - joined by /"));
        }
        let Some(address) = address else {
            if ca.is_none() && namespace.is_none() {
                return Ok(None);
            }
            return Err(Invalid::new("address", "write https://HOST[:PORT], or remove the other keys of [vault]"));
        };
        let second = Duration::from_secs(1);
        let rate = Rate { interval: second / rate, burst: rate.saturating_mul(2) };
        let revocation_rate = Rate { interval: second / revocation_rate, burst: revocation_rate };
        Ok(Some(Settings { address, ca, namespace, timeout, rate, revocation_rate }))
    }
}
