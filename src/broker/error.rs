//! Why the broker refuses, with the word for metrics and audit. What the outside is told is the server's business.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::AuditError;
use crate::exchange::{ExchangeError, Provider};
use crate::identity::task_token::NoRandomness;
use crate::identity::{AuthenticationError, SpiffeId};
use crate::lease::journal::JournalError;
use crate::policy::Denial;
use crate::task::EndReason;

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
    /// A provider of the scope is not configured here.
    #[error("the provider {0} of this scope is not configured")]
    NoProvider(Provider),
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another request")]
    Conflict,
    /// As many tasks as are allowed are remembered.
    #[error("too many tasks")]
    TooMany,
    /// It could not be made durable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It could not be audited.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// No unguessable token could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl BeginError {
    /// The words of `sidemint_denials_total{reason}` beside those of [`DenialReason`].
    pub const KINDS: [&'static str; 11] = [
        "not_ready",
        "unauthenticated",
        "parent_gone",
        "foreign_parent",
        "identity_not_served",
        "no_policy",
        "no_provider",
        "conflict",
        "too_many_tasks",
        "not_recorded",
        "no_randomness",
    ];

    /// The stable word for metrics and audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "unauthenticated",
            Self::ParentGone => "parent_gone",
            Self::ForeignParent => "foreign_parent",
            Self::NotReady => "not_ready",
            Self::NotServed(_) => "identity_not_served",
            Self::Denied(denial) => denial.reason.as_str(),
            Self::NoPolicy => "no_policy",
            Self::NoProvider(_) => "no_provider",
            Self::Conflict => "conflict",
            Self::TooMany => "too_many_tasks",
            Self::Journal(_) | Self::Audit(_) => "not_recorded",
            Self::NoRandomness(_) => "no_randomness",
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
    Mint(#[from] MintError),
}

/// Why nothing was minted. Cloned to everyone who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MintError {
    /// The scope grants nothing at this provider.
    #[error("the task's scope grants nothing at {0}")]
    NoGrant(Provider),
    /// The task ended, or policy stopped permitting it, before the credential could be served.
    #[error("the task ended meanwhile: {0}")]
    TaskEnded(EndReason),
    /// No policy is loaded.
    #[error("no policy is loaded")]
    NoPolicy,
    /// So little of the task is left that no credential would be of use.
    #[error("too little of the task is left")]
    TooLate,
    /// The provider, or the way to it.
    #[error("{0}")]
    Exchange(Arc<ExchangeError>),
    /// It could not be made durable or audited.
    #[error("not recorded: {0}")]
    NotRecorded(String),
    /// The exchange takes longer than the request waits; it goes on.
    #[error("the exchange is still under way")]
    StillMinting,
}

impl MintError {
    /// The stable word for metrics and audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoGrant(_) => "no_grant",
            Self::TaskEnded(_) => "task_ended",
            Self::NoPolicy => "no_policy",
            Self::TooLate => "too_late",
            Self::Exchange(error) => error.kind(),
            Self::NotRecorded(_) => "not_recorded",
            Self::StillMinting => "still_minting",
        }
    }

    /// Whether the same request may succeed later, and when at the earliest.
    pub fn retry_after(&self) -> Option<Duration> {
        const SOON: Duration = Duration::from_secs(1);
        match self {
            Self::NoPolicy | Self::NotRecorded(_) | Self::StillMinting => Some(SOON),
            Self::Exchange(error) => match &**error {
                ExchangeError::Unavailable { retry_after, .. } => Some(retry_after.unwrap_or(SOON)),
                ExchangeError::Unusable { .. } | ExchangeError::NoSvid { passing: true, .. } => Some(SOON),
                ExchangeError::Refused { .. }
                | ExchangeError::Inexpressible { .. }
                | ExchangeError::NoSvid { passing: false, .. } => None,
            },
            Self::NoGrant(_) | Self::TaskEnded(_) | Self::TooLate => None,
        }
    }
}

/// Why a task cannot be shown to or ended by whoever asked.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The evidence is not believed, or the token is of no task.
    #[error("not authenticated: {0}")]
    Unauthenticated(String),
    /// There is no such task, or it is somebody else's: the same answer.
    #[error("no such task")]
    NotFound,
}
