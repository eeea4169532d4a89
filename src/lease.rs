//! Track it, revoke it: what is known of each credential, from the intent to its end.
//!
//! - [`record`]: what is known of a lease, never the secret.
//! - [`life`]: what may become of it: the one place where its state changes.
//! - [`revoke`]: what is to be revoked, and when it is tried next.
//! - [`stranded`]: what nobody could revoke, because its provider is out of reach.

pub mod life;
pub mod record;
pub mod revoke;
pub mod stranded;

pub use crate::id::LeaseId;
pub use life::LeaseRecord;
pub use record::{LeaseEnding, LeaseFacts, LeaseState, Outcome};
