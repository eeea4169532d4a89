//! Why a task ended. Below journal and task, which both name it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its holder said so.
    Done,
    /// Nobody held it for ten seconds.
    HoldGone,
    /// Its time was up.
    Deadline,
    /// It was not used for as long as its decision allows.
    Idle,
    /// Policy no longer permits it.
    PolicyChanged,
    /// The kill list stops it.
    Killed,
    /// The Workload API no longer gives its identity to this sidecar.
    IdentityWithdrawn,
    /// Its parent task ended.
    ParentEnded,
    /// An operator ended it.
    Operator,
    /// The sidecar was stopped.
    Shutdown,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::HoldGone,
        Self::Deadline,
        Self::Idle,
        Self::PolicyChanged,
        Self::Killed,
        Self::IdentityWithdrawn,
        Self::ParentEnded,
        Self::Operator,
        Self::Shutdown,
    ];

    /// The label in answers, metrics, journal and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::HoldGone => "hold_gone",
            Self::Deadline => "deadline",
            Self::Idle => "idle",
            Self::PolicyChanged => "policy_changed",
            Self::Killed => "killed",
            Self::IdentityWithdrawn => "identity_withdrawn",
            Self::ParentEnded => "parent_ended",
            Self::Operator => "operator",
            Self::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
