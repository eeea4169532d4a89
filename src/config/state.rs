//! `[state]`: what survives a restart.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::section::{Environment, Invalid, Section};
use crate::policy::Provider;

/// `[state]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSettings {
    /// Where the journal lives.
    pub directory: PathBuf,
    /// Providers whose live credentials may expire by themselves where nobody can revoke them any more.
    pub abandon: BTreeSet<Provider>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StateSection {
    directory: Option<PathBuf>,
    abandon: BTreeSet<Provider>,
}

impl Section for StateSection {
    type Settings = StateSettings;

    fn validate(self, environment: &Environment) -> Result<Self::Settings, Invalid> {
        let directory = self.directory.or_else(|| default_state_directory(|name| environment.get(name).cloned()));
        let directory =
            directory.ok_or_else(|| Invalid::new("directory", "name a directory that survives restarts"))?;
        Ok(StateSettings { directory, abandon: self.abandon })
    }
}

/// Where the state is when nothing is configured: `STATE_DIRECTORY`, else below `XDG_STATE_HOME`, else below `HOME`.
pub fn default_state_directory(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let below = |name: &str, rest: &str| {
        variable(name).filter(|directory| directory.starts_with('/')).map(|directory| Path::new(&directory).join(rest))
    };
    below("STATE_DIRECTORY", "")
        .or_else(|| below("XDG_STATE_HOME", "sidemint"))
        .or_else(|| below("HOME", ".local/state/sidemint"))
}
