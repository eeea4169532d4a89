//! May it? [`Caller`](crate::identity::Caller) + [`Ask`] → [`Permit`] or [`Denial`].
//!
//! - [`repository`]: the seam to where policy files come from, and the directory that is one such place.
//! - [`cache`]: the policy in force, reloaded as a whole or not at all.
//! - `snapshot`: one immutable, validated policy; `ask`, `decide`, `permit`, `denial`: a decision on it.
//! - [`charter`]: `owners/`: who answers for what, until when, and how stale a policy may get.
//! - [`document`]: the TOML files, parsed into types that cannot hold nonsense.
//! - [`kill`]: `kill/`: what is stopped now.
//! - [`standing`]: when the signatures expire: fresh, stale, expired.
//! - `publish`: how owners sign and publish a version: the working repository behind `sidemint policy` (feature `author`).
//! - [`rules`]: Cedar: the schema, the guardrails, one slice of rules per scope.
//! - `slices`: those slices that are in use.
//! - `worker`: where a policy is verified and loaded, out of the way of what serves.
//! - `load`: files → [`Policy`], where a bad file suspends its scope.
//! - `lint`: what is allowed and still worth a second look.
//! - `problem`: what may be wrong with policy files.
//!
//! A decision is a pure function of (policy snapshot, caller, ask, now).

mod ask;
pub mod cache;
pub mod charter;
mod decide;
mod denial;
pub mod document;
pub mod kill;
mod lint;
mod load;
pub mod metrics;
mod permit;
mod problem;
pub mod public_key;
#[cfg(feature = "author")]
pub mod publish;
pub mod repository;
pub mod rules;
mod signers;
mod slices;
mod snapshot;
pub mod standing;
mod tier;
mod worker;

pub use ask::Ask;
pub use denial::{Denial, DenialReason};
pub use load::LoadOptions;
pub use permit::{Caps, Digests, Kept, Permit, ResolvedGrant};
pub use problem::{PolicyError, Problem, kind};
pub use snapshot::{Policy, PolicyVersion};
pub use tier::Tier;

pub use crate::names::{GrantId, ParamName, ScopeId};
pub use crate::params::{MAX_PARAM_LENGTH, ParamSpec, ParamType, Params};
pub use crate::provider::Provider;
pub use crate::toml_file::DocumentError;

#[cfg(test)]
mod signed_tests;
#[cfg(test)]
mod tests;
