//! One difference between two versions of a file, and whether it lets more through.

use toml::Value;

/// Which way a difference goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It lets more through.
    Wider,
    /// It lets less through.
    Narrower,
    /// It lets through something else, or nothing changes for tasks.
    Other,
}

impl Direction {
    pub(crate) const fn of(wider: bool) -> Self {
        if wider { Self::Wider } else { Self::Narrower }
    }

    /// The stable label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wider => "wider",
            Self::Narrower => "narrower",
            Self::Other => "other",
        }
    }

    /// In brackets, behind a line.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Wider => " (wider)",
            Self::Narrower => " (narrower)",
            Self::Other => "",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What, e.g. `Action s3:PutObject added`.
    pub what: String,
    /// Which way it goes.
    pub direction: Direction,
}

pub(crate) fn difference(what: impl Into<String>, direction: Direction) -> Difference {
    Difference { what: what.into(), direction }
}

/// A value on one line.
pub(crate) fn one_line(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
