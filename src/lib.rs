//! Sidemint: a sidecar that mints just-enough cloud credentials. **Access belongs to a task, and ends with it.**
//!
//! # The map
//! A request walks down this list; each stage may name the types of those before it, never of those after it.
//!
//! ```text
//!            who?          may it?          mint            track, revoke
//! request → identity ───→ policy ───→ exchange ───→ lease ───→ response
//!           Evidence       Caller       Permit       Minted     Issued
//!           → Caller       → Permit     → Minted     → Issued
//! ```
//!
//! | read | for |
//! |---|---|
//! | [`broker`] | the main path itself, three verbs: begin a task, serve its credentials, end it |
//! | [`server`] | the listeners: who may connect ([`server::guard`]), one file per dialect, what refusals look like |
//! | [`api`] | the requests and answers of `/v1`, for the server and for the commands |
//! | [`identity`] | evidence → caller: JWT-SVIDs, task tokens, the Workload API |
//! | [`policy`] | caller and ask → permit or denial: files that their owners signed ([`policy::repository`]), Cedar rules, the version in force |
//! | [`provider`] | what policy must know of a provider: its grant file, what outlives it, what it narrows; one leaf per provider, pure, below policy |
//! | [`exchange`] | permit → minted credential: one file per provider |
//! | [`lease`] | minted → issued: what may be served, its expiry, and the journal |
//! | [`task`] | what all of it belongs to: states, deadline, how it ends |
//! | [`audit`], [`metrics`] | what is told about it |
//! | [`pod_task`] | the task that the sidecar begins by itself, for unmodified images |
//! | [`http_client`] | whatever we ask over HTTP ourselves: limits, proxy, TLS with roots or SVIDs |
//! | [`config`], [`app`] | settings, and the only file that picks real implementations and joins them |
//! | [`cli`] | the commands, one file each |
//! | [`clock`], [`secret`], [`id`] | time as a value, secrets as a type, unguessable names; they know nothing of the rest |
//! | `dev` | an embedded SPIFFE authority and cloud for `demo` and `dev` (feature `dev`; `serve` cannot reach it) |
//!
//! Five seams (traits) lead outside: [`clock::Clock`], [`identity::workload_api::WorkloadApi`],
//! [`policy::repository::PolicySource`], [`exchange::Exchange`], [`journal::Journal`]. The rest is plain code. A decision is a
//! pure function of policy snapshot, caller, ask and time; a request uses one snapshot from beginning to end.
//!
//! # The invariants, and what keeps them
//! - **I1. Nothing is served after its end.** Serving asks the task's state under its lock ([`broker::Broker::credentials`]);
//!   ending sets that state and drops the credentials first, and only then records, answers and audits
//!   ([`broker::Broker::end`]). A credential is live until [`task::Issued::advertised_expiry`], judged at each request by the wall
//!   clock and by the time since boot, never by a timer.
//! - **I2. A task gets what was minted for it, and nothing else.** A credential is reached through the hash of its task's own
//!   token, and lives in that task's own slot per provider; there is no cache across tasks. The exchange shows the provider an
//!   SVID of the task's owner ([`exchange::MintOrder`]).
//! - **I3. Recorded before it exists, recorded before it is seen.** A [`journal::Receipt`] is made only by a durable write, and
//!   [`task::Issued::new`] takes one. The order (decide, intent durable, exchange, outcome durable, check again, serve) stands
//!   in one function of `broker/mint.rs`.
//! - **I4. Nothing minted is forgotten.** Every lease stays in the task's report and in the journal until its provider has let it
//!   die; an intent whose answer was lost counts as usable until the moment it was asked to die by. Said to be
//!   revoked is only what a provider revoked; the rest says its `usable_until`.
//!
//! Below all of them, the law of life: no credential is asked to live longer than its decision's `max_residual`, so access dies
//! though pod, disk and node be gone.
//!
//! # Absent on purpose
//! - **Other providers than AWS web identity and Vault**: a line in the list of [`provider`], a leaf there and a file in [`exchange`] each.
//! - **Approvals**: `approval_required` as an answer and the `elevated` tier have their labels and no way to be met yet.
//! - **A store shared by sidecars**: by the law of life none is needed.
//! - **Source addresses, process ids and headers as proof**: they never will be.

pub mod api;
pub mod app;
pub mod audit;
mod background;
pub mod broker;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
mod durable_file;
mod end_reason;
pub mod exchange;
pub mod hardening;
pub mod http_client;
pub mod id;
pub mod identity;
pub mod journal;
pub mod lease;
pub mod metrics;
mod names;
mod params;
pub mod pod_task;
pub mod policy;
pub mod provider;
pub mod retry;
pub mod secret;
pub mod server;
pub mod task;
pub mod timekeeper;
mod toml_file;
