//! Track it, take it back. `Minted` → [`Issued`].
//!
//! - [`record`]: what is known of a lease, never the secret.
//! - [`life`]: what may become of it: the one place where its state changes.
//! - [`journal`]: the durable record, written before a credential is asked for and again before it is served.
//! - [`issued`]: a credential that may be served.
//! - [`revoke`]: what is to be taken back, and when it is tried next.
//! - [`stranded`]: what nobody could take back, because its provider is out of reach.

pub mod issued;
pub mod journal;
pub mod life;
pub mod record;
pub mod revoke;
pub mod stranded;

pub use crate::id::LeaseId;
pub use issued::Issued;
pub use life::LeaseRecord;
pub use record::{LeaseEnding, LeaseFacts, LeaseState, Outcome};
