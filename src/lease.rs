//! Track it, take it back. `Minted` → [`Issued`].
//!
//! - [`record`]: what is known of a lease, never the secret.
//! - [`journal`]: the durable record, written before a credential is asked for and again before it is served.
//! - [`issued`]: a credential that may be served.

pub mod issued;
pub mod journal;
pub mod record;

pub use crate::id::LeaseId;
pub use issued::Issued;
pub use record::{LeaseEnding, LeaseRecord, LeaseState, Outcome};
