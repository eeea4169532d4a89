//! A dynamic secret, as Vault's own API answers it: what a client of Vault reads, it can read here.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::exchange::credential::Validity;
use crate::secret::{Secret, SecretBytes};

/// A dynamic secret of Vault or OpenBao.
#[derive(Debug)]
pub struct VaultSecret {
    /// The lease's id: a name, no secret.
    pub lease_id: String,
    /// The member `data` as it came: the text of a JSON object.
    pub data: Secret,
}

/// The members of Vault's answer that mean something here. Never renewable by its reader: the broker does that while the task
/// lives.
#[derive(Serialize)]
struct Wire<'a> {
    lease_id: &'a str,
    /// Whole seconds from now.
    lease_duration: u64,
    renewable: bool,
    data: &'a RawValue,
}

impl VaultSecret {
    /// The answer of Vault to reading the secret; `None` when less than a second of it is left.
    pub(in crate::exchange) fn answer(&self, validity: Validity) -> Option<SecretBytes> {
        let lease_duration = validity.left.as_secs();
        // exposed: this is the answer to the task that owns the secret
        let data = serde_json::from_str::<&RawValue>(self.data.expose()).ok()?;
        let wire = Wire { lease_id: &self.lease_id, lease_duration, renewable: false, data };
        (lease_duration > 0).then(|| SecretBytes::of_json(&wire))
    }
}
