//! What a caller asks for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Params, ScopeId};

/// What a caller asks for when it begins a task. Everything in it is a claim of the caller, not verified (`context.asserted`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The scope, by id.
    pub scope: ScopeId,
    /// The scope's parameters.
    #[serde(default)]
    pub params: Params,
    /// Why, in the caller's words; break-glass needs it.
    #[serde(default)]
    pub reason: Option<String>,
    /// An approval, for tiers that need one.
    #[serde(default)]
    pub approval: Option<String>,
    /// How long the task may last, where less than the decision's `max_task` is wanted.
    #[serde(default)]
    pub ttl: Option<Duration>,
}
