//! Track it, take it back. `Minted` → [`Issued`].
//!
//! - [`record`]: what is known of a lease, never the secret.
//! - [`journal`]: the durable record, written before a credential is asked for and again before it is served.
//! - [`issued`]: a credential that may be served.
//! - [`revoke`]: what is to be taken back, and when it is tried next.
//! - [`stranded`]: what nobody could take back, because its provider is out of reach.

pub mod issued;
pub mod journal;
pub mod record;
pub mod revoke;
pub mod stranded;

pub use crate::id::LeaseId;
pub use issued::Issued;
pub use record::{LeaseEnding, LeaseRecord, LeaseState, Outcome};
