//! Why the broker refuses, with the status for metrics and audit. What the outside is told is the server's business.

use crate::audit::AuditError;
use crate::clock::Distrust;
use crate::exchange::Provider;
use crate::identity::task_token::NoRandomness;
use crate::identity::{AuthenticationError, SpiffeId};
use crate::journal::JournalError;
use crate::policy::Denial;
use crate::task::{EndReason, MintError, ProviderSet};

/// Why a task did not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The caller did not prove who it is.
    #[error("not authenticated: {0}")]
    Unauthenticated(#[from] AuthenticationError),
    /// The token of the parent task is of no running task.
    #[error("the parent task is not running")]
    ParentGone,
    /// The parent task is somebody else's, or not the one whose token was presented.
    #[error("the parent task is not the caller's")]
    ForeignParent,
    /// The Workload API has not answered yet, so nobody can be authenticated.
    #[error("the Workload API has not answered yet")]
    NotReady,
    /// The caller is real, but the Workload API does not give its identity to this sidecar as well.
    #[error("the Workload API gives this sidecar no SVID for {0}: register the ID for the sidecar too")]
    NotServed(SpiffeId),
    /// Policy says no.
    #[error("denied: {}: {}", .0.reason.as_str(), .0.detail)]
    Denied(Denial),
    /// No policy is loaded.
    #[error("no policy is loaded")]
    NoPolicy,
    /// The sidecar is being stopped.
    #[error("the sidecar is being stopped")]
    Closing,
    /// A provider of the scope is not configured here.
    #[error("the provider {0} of this scope is not configured")]
    NoProvider(Provider),
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another request")]
    Conflict,
    /// As many tasks as are allowed are remembered.
    #[error("too many tasks")]
    TooMany,
    /// As many tasks of this caller run as may.
    #[error("too many tasks of this caller")]
    TooManyOfCaller,
    /// It could not be made durable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It could not be audited.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// No unguessable token could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// Nobody knows what time it is.
    #[error("the time is in doubt: {0}")]
    ClockUntrusted(#[from] Distrust),
}

impl BeginError {
    /// The words of `sidemint_denials_total{reason}` beside those of [`crate::policy::DenialReason`].
    pub const KINDS: [&'static str; 14] = [
        "not_ready",
        "unauthenticated",
        "parent_gone",
        "foreign_parent",
        "identity_not_served",
        "no_policy",
        "closing",
        "no_provider",
        "conflict",
        "too_many_tasks",
        "too_many_tasks_of_caller",
        "not_recorded",
        "no_randomness",
        "clock_untrusted",
    ];

    /// The stable status for metrics and audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "unauthenticated",
            Self::ParentGone => "parent_gone",
            Self::ForeignParent => "foreign_parent",
            Self::NotReady => "not_ready",
            Self::NotServed(_) => "identity_not_served",
            Self::Denied(denial) => denial.reason.as_str(),
            Self::NoPolicy => "no_policy",
            Self::Closing => "closing",
            Self::NoProvider(_) => "no_provider",
            Self::Conflict => "conflict",
            Self::TooMany => "too_many_tasks",
            Self::TooManyOfCaller => "too_many_tasks_of_caller",
            Self::Journal(_) | Self::Audit(_) => "not_recorded",
            Self::NoRandomness(_) => "no_randomness",
            Self::ClockUntrusted(_) => "clock_untrusted",
        }
    }
}

/// Why a task has no credential to serve.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialsError {
    /// No task has this token.
    #[error("no task has this token")]
    UnknownToken,
    /// The task has ended.
    #[error("the task has ended: {0}")]
    TaskEnded(EndReason),
    /// None could be minted.
    #[error(transparent)]
    Mint(MintError),
}

/// Why a request that names no provider cannot be for one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoSoleProvider {
    /// The task's scope grants something at each of these.
    #[error("the scope has several providers")]
    Several(ProviderSet),
    /// The task has no credential to serve, whoever gives it.
    #[error(transparent)]
    Refused(#[from] CredentialsError),
}

impl From<MintError> for CredentialsError {
    fn from(error: MintError) -> Self {
        match error {
            MintError::TaskEnded(reason) => Self::TaskEnded(reason),
            other => Self::Mint(other),
        }
    }
}

/// Why a task cannot be shown to or ended by whoever asked.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The evidence is not trusted, or the token is of no task.
    #[error("not authenticated: {0}")]
    Unauthenticated(String),
    /// There is no such task, or it is somebody else's: the same answer.
    #[error("no such task")]
    NotFound,
}
