//! Configuration: one file plus the environment → validated settings, each stage its own.
//!
//! A section is a struct that serde reads (`section::Section`); its fields are its keys. Every key can stand in the TOML
//! file as `[section] key`, or in the environment as `SIDEMINT_SECTION_KEY`, which wins. Unknown keys are refused.
//! `config/sidemint.toml` documents each.

mod identity;
mod limits;
mod log;
mod mtls;
mod pod_task;
mod policy;
pub(crate) mod section;
mod server;
mod shutdown;
mod state;
pub(crate) mod values;
mod written;

use std::path::Path;

use serde::Deserialize;

use self::section::{Environment, Invalid, Section};
use crate::audit;
use crate::exchange;

pub use self::identity::IdentitySettings;
pub use self::limits::LimitSettings;
pub use self::log::{LogFormat, LogSettings};
pub use self::mtls::MtlsSettings;
pub use self::pod_task::PodTaskSettings;
pub use self::policy::{PolicyPlace, PolicySettings, RepositoryPlace, RepositorySettings, repository_place};
pub use self::server::{AdminSettings, ServerSettings};
pub use self::shutdown::{AtShutdown, ShutdownSettings};
pub use self::state::{StateSettings, default_state_directory};

const PREFIX: &str = "SIDEMINT_";

/// Declares the sections, in the order of `config/sidemint.toml`: name, what is written, what it is validated into.
macro_rules! sections {
    ($($(#[$doc:meta])+ $name:ident: $section:ty => $settings:ty,)+) => {
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Sections {
            $($name: $section,)+
        }

        /// Everything `serve` needs to know.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Config {
            $($(#[$doc])+ pub $name: $settings,)+
        }

        impl Sections {
            fn validate(self, environment: &Environment) -> Result<Config, ConfigError> {
                Ok(Config {
                    $($name: self.$name.validate(environment).map_err(|e| ConfigError::of_section(stringify!($name), &e))?,)+
                })
            }
        }
    };
}

sections! {
    /// The workloads' listeners.
    server: ServerSettings => ServerSettings,
    /// The workloads' mutual TLS listener, where one is configured.
    mtls: mtls::MtlsSection => Option<MtlsSettings>,
    /// The operators' listeners.
    admin: AdminSettings => AdminSettings,
    /// Identity.
    identity: identity::IdentitySection => IdentitySettings,
    /// Policy.
    policy: policy::PolicySection => PolicySettings,
    /// AWS.
    aws: exchange::aws::settings::AwsSection => exchange::aws::Settings,
    /// Vault or OpenBao, where one is configured.
    vault: exchange::vault::settings::VaultSection => Option<exchange::vault::Settings>,
    /// Where the journal lives, and whose credentials may be abandoned.
    state: state::StateSection => StateSettings,
    /// The audit log.
    audit: audit::settings::AuditSection => audit::Settings,
    /// Logging.
    log: LogSettings => LogSettings,
    /// What happens to tasks at SIGTERM.
    shutdown: ShutdownSettings => ShutdownSettings,
    /// The pod task, where one is configured.
    pod_task: Option<pod_task::PodTaskSection> => Option<PodTaskSettings>,
    /// Limits.
    limits: LimitSettings => LimitSettings,
}

/// Why the configuration cannot be used: one line that names the key and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    fn of_key(section: &str, key: &str, what: &str) -> Self {
        Self(format!("{section}.{key} (or {}): {what}", variable_name(section, key)))
    }

    fn of_section(section: &str, invalid: &Invalid) -> Self {
        Self::of_key(section, invalid.key, &invalid.what)
    }
}

impl Config {
    /// Reads the file, if one is named, and the environment.
    ///
    /// # Errors
    /// The first thing that is wrong, in one line that says the fix.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = match file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| ConfigError(format!("{}: {e}: check --config", path.display())))?,
        };
        let name = file.map(|path| path.display().to_string()).unwrap_or_default();
        Self::parse(&text, &name, environment)
    }

    /// The same from a text; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        text: &str,
        name: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let environment = environment.into_iter().collect();
        written::read::<Sections>(text, name, &environment)?.validate(&environment)
    }
}

/// Every key as section and name, in the order of the file.
pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    written::keys_of::<Sections>().into_iter()
}

/// The environment variable of a key.
pub fn variable_name(section: &str, key: &str) -> String {
    format!("{PREFIX}{}_{}", section.to_ascii_uppercase(), key.to_ascii_uppercase())
}

#[cfg(test)]
mod tests;
