//! How much ceremony a decision asks for.

use serde::{Deserialize, Serialize};

/// How much ceremony a decision asks for (`baseline`, `elevated`, `break-glass`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Ordinary access.
    Baseline,
    /// Needs an approval.
    Elevated,
    /// Needs a reason, is loud, is reviewed.
    BreakGlass,
}

impl Tier {
    /// Every tier.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Elevated, Self::BreakGlass];

    /// The label in files, metrics and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Elevated => "elevated",
            Self::BreakGlass => "break-glass",
        }
    }
}
