//! `[pod_task]`: a task that the sidecar begins by itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::section::{Environment, Invalid, Section};
use super::values;
use crate::identity::SpiffeId;
use crate::policy::{ParamName, ScopeId};

/// `[pod_task]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodTaskSettings {
    /// The scope.
    pub scope: ScopeId,
    /// Whose task it is; the sidecar's default SVID where none is named.
    pub spiffe_id: Option<SpiffeId>,
    /// Where the token is written.
    pub token_file: PathBuf,
    /// Whether a new task is begun when this one's time is up.
    pub renew: bool,
    /// How long each task lasts, where less than the decision allows is wanted.
    pub ttl: Option<Duration>,
    /// The reason to state, for break-glass.
    pub reason: Option<String>,
    /// The scope's parameters.
    pub params: BTreeMap<ParamName, String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PodTaskSection {
    scope: Option<ScopeId>,
    spiffe_id: Option<SpiffeId>,
    token_file: Option<PathBuf>,
    renew: Option<bool>,
    #[serde(deserialize_with = "values::optional_duration::<_, 60_000>")]
    ttl: Option<Duration>,
    reason: Option<String>,
    params: BTreeMap<ParamName, String>,
}

impl Section for PodTaskSection {
    type Settings = PodTaskSettings;

    fn validate(self, _: &Environment) -> Result<Self::Settings, Invalid> {
        let missing = |key| move || Invalid::new(key, "a pod task needs it");
        Ok(PodTaskSettings {
            scope: self.scope.ok_or_else(missing("scope"))?,
            spiffe_id: self.spiffe_id,
            token_file: self.token_file.ok_or_else(missing("token_file"))?,
            renew: self.renew.unwrap_or(true),
            ttl: self.ttl,
            reason: self.reason,
            params: self.params,
        })
    }
}
