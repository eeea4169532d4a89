//! The name of a lease that is journalled: enough to log in again and revoke it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::provider::vault::VaultGrant;

/// A lease, and where it was read. No secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaseHandle {
    /// The lease's id.
    pub lease: String,
    /// The accessor of the token that read it.
    pub accessor: String,
    /// The address of its Vault.
    pub address: String,
    /// The namespace, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Where the auth method that logged in is mounted.
    pub mount: String,
    /// The role that was logged in to.
    pub role: String,
    /// The audience of the JWT-SVID.
    pub audience: String,
}

impl LeaseHandle {
    /// Reads the JSON that [`fmt::Display`] writes; `None` where it is none of a lease.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Whether what `grant` gives, in this namespace, is what this lease is of.
    pub(super) fn is_of(&self, grant: &VaultGrant, namespace: Option<&str>) -> bool {
        let given_by = (self.mount.as_str(), self.role.as_str(), self.audience.as_str(), self.namespace.as_deref());
        let of_path = self.lease.strip_prefix(&grant.read).is_some_and(|rest| rest.starts_with('/'));
        of_path && given_by == (&grant.mount, &grant.role, &grant.audience, namespace)
    }
}

impl fmt::Display for LeaseHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Texts always serialise.
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}
