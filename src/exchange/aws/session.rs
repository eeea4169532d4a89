//! The name of one session of a role.

use std::fmt;

use crate::provider::aws::arn::Role;

/// A session as AWS names it: `arn:PARTITION:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssumedRole(Box<str>);

impl AssumedRole {
    /// Reads an ARN; `None` where it is not that of a session.
    pub fn read(arn: &str) -> Option<Self> {
        let (_, session) = Role::parse_session(arn)?;
        (!session.is_empty()).then(|| Self(arn.into()))
    }

    /// Its ARN.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AssumedRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
