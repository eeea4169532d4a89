//! The record of a lease: everything about a minted credential but the secret.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::exchange::{Handle, Provider, Revocation};
use crate::id::{LeaseId, TaskId};
use crate::policy::GrantId;

/// Where a lease is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// Journalled before the exchange; whether a credential exists is not known yet, or never became known.
    Intent,
    /// The provider gave a credential.
    Issued,
    /// Its task has ended; the credential may still be usable at its provider.
    Ending,
    /// The provider killed it.
    Revoked,
    /// It has died by itself.
    Expired,
}

impl LeaseState {
    /// The status in answers, journal and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Issued => "issued",
            Self::Ending => "ending",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }

    /// Whether nothing more can happen to it.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Revoked | Self::Expired)
    }
}

/// What is known of one credential, never the secret itself. In a [`LeaseRecord`](super::LeaseRecord) it changes by
/// the events of its life alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredLease")]
pub struct LeaseFacts {
    /// Its id.
    pub id: LeaseId,
    /// The task that owns it.
    pub task: TaskId,
    /// Who gave it.
    pub provider: Provider,
    /// The grant it implements.
    pub grant: GrantId,
    /// The session name under which the provider knows it.
    pub session_name: Arc<str>,
    /// Where it is in its life.
    pub state: LeaseState,
    /// How it can be revoked.
    pub revocation: Revocation,
    /// When the intent was recorded, UTC.
    pub opened_at: Timestamp,
    /// The end of its residual access, UTC: its own end, and the life of what its session policy lets it make
    /// ([`Outlives`](crate::provider::Outlives)). For an intent it is the latest that the order allows.
    pub usable_until: Timestamp,
    /// Whether it may have opened or created what has no end that anybody told (a connection, a key).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open_ended: bool,
    /// Where its provider was asked, where there can be several
    /// ([`Exchange::location`](crate::exchange::Exchange::location)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Arc<str>>,
    /// The provider's name for it, once known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Handle>,
    /// Whether the provider was told to take it back and cannot say when it will have: nothing more can be done.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub requested: bool,
}

/// [`LeaseFacts`] as they are read: which provider's the handle is stands beside it.
#[derive(Deserialize)]
struct StoredLease {
    id: LeaseId,
    task: TaskId,
    provider: Provider,
    grant: GrantId,
    session_name: Arc<str>,
    state: LeaseState,
    revocation: Revocation,
    opened_at: Timestamp,
    usable_until: Timestamp,
    #[serde(default)]
    open_ended: bool,
    #[serde(default)]
    place: Option<Arc<str>>,
    #[serde(default)]
    upstream: Option<String>,
    #[serde(default)]
    requested: bool,
}

impl From<StoredLease> for LeaseFacts {
    fn from(stored: StoredLease) -> Self {
        Self {
            id: stored.id,
            task: stored.task,
            provider: stored.provider,
            grant: stored.grant,
            session_name: stored.session_name,
            state: stored.state,
            revocation: stored.revocation,
            opened_at: stored.opened_at,
            usable_until: stored.usable_until,
            open_ended: stored.open_ended,
            place: stored.place,
            upstream: stored.upstream.map(|text| Handle::read(stored.provider, &text)),
            requested: stored.requested,
        }
    }
}

/// What became of one lease when its task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEnding {
    /// The lease.
    pub id: LeaseId,
    /// Its provider.
    pub provider: Provider,
    /// `revoked`, or `expires`: it was only dropped here and can be used until `usable_until`.
    pub outcome: Outcome,
    /// The end of its residual access, UTC.
    pub usable_until: Timestamp,
    /// Whether it may have opened or created what outlives even that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_ended: bool,
}

/// One line per lease that could still be used or was the last of its provider: the one place where what is told of an end
/// comes from, to its caller, in the audit log and in `sidemint_residual_access_seconds`.
pub fn report<'a>(leases: impl IntoIterator<Item = &'a LeaseFacts>) -> Vec<LeaseEnding> {
    leases.into_iter().map(LeaseEnding::from).collect()
}

impl From<&LeaseFacts> for LeaseEnding {
    fn from(lease: &LeaseFacts) -> Self {
        let outcome = match lease.state {
            LeaseState::Revoked => Outcome::Revoked,
            LeaseState::Intent | LeaseState::Issued | LeaseState::Ending | LeaseState::Expired => Outcome::Expires,
        };
        let LeaseFacts { id, provider, usable_until, open_ended, .. } = lease.clone();
        Self { id, provider, outcome, usable_until, open_ended }
    }
}

impl LeaseEnding {
    /// For how long it can be used, or could, after its task's end at `ended_at`.
    pub fn residual(&self, ended_at: Timestamp) -> Duration {
        self.usable_until.since(ended_at)
    }
}

/// How a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The provider killed it.
    Revoked,
    /// It dies by itself.
    Expires,
}

impl Outcome {
    /// The status in metrics and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expires => "expires",
        }
    }
}
