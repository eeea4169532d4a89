//! A dynamic secret as Vault's own API answers it: what a client of Vault reads, it can read here.

use serde::Serialize;
use serde_json::value::RawValue;

use super::problem::{Problem, SOON};
use super::{Answer, Dialect, Server, aws};
use crate::exchange::VaultSecret;
use crate::lease::Issued;

/// The members of Vault's answer that mean something here. Never renewable by its reader: the broker does that while the task
/// lives.
#[derive(Serialize)]
struct Wire<'a> {
    lease_id: &'a str,
    lease_duration: u64,
    renewable: bool,
    data: &'a RawValue,
}

/// The answer that serves `secret`: its life is told in whole seconds from now, by the rule of every `Expiration`.
pub(super) fn found(server: &Server, issued: &Issued, secret: &VaultSecret, id: &str) -> Answer {
    let parts = server.broker().parts();
    let lease_duration = issued.told_life(parts.clock.now(), parts.clock.boot()).as_secs();
    // exposed: this is the answer to the task that owns the secret
    match serde_json::from_str::<&RawValue>(secret.data.expose()) {
        Ok(data) if lease_duration > 0 => {
            let wire = Wire { lease_id: &secret.lease_id, lease_duration, renewable: false, data };
            aws::found_as(aws::write_out(&wire).into_body())
        }
        _ => {
            let problem = Problem::unavailable("provider_unavailable", "The provider has not answered yet.", SOON);
            server.refuse(Dialect::Native, id, &problem, "less than a second of the secret is left".into())
        }
    }
}
