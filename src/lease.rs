//! Track it, take it back. `Minted` → [`Issued`].
//!
//! - [`journal`]: the durable record, written before a credential is asked for and again before it is served.
//! - [`table`]: the tasks in memory and how to find them.
//! - [`reaper`]: what ends tasks and leases when their time has come.

pub mod journal;
pub mod reaper;
pub mod table;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::exchange::{Credential, Minted, Provider, Revocation};
use crate::policy::GrantId;
use crate::secret::SecretBytes;
use crate::task::TaskId;

use journal::Receipt;

/// The id of a lease: `l-` and 128 random bits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(Arc<str>);

impl LeaseId {
    /// A new, unguessable id.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, crate::identity::task_token::NoRandomness> {
        crate::task::random_id("l-").map(|id| Self(id.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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
    /// Whether nothing more can happen to it.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Revoked | Self::Expired)
    }
}

/// The record of one credential, never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Its id.
    pub id: LeaseId,
    /// The task that owns it.
    pub task: TaskId,
    /// Who gave it.
    pub provider: Provider,
    /// The grant it implements.
    pub grant: GrantId,
    /// The session name under which the provider knows it.
    pub session_name: String,
    /// Where it is in its life.
    pub state: LeaseState,
    /// How it can be taken back.
    pub revocation: Revocation,
    /// When the intent was recorded, UTC.
    pub opened_at: Timestamp,
    /// The end of its residual access, UTC. For an intent it is the latest that the order allows.
    pub usable_until: Timestamp,
    /// The provider's name for it, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
}

/// A credential that may be served: it is journalled, and its task was still permitted after the exchange.
pub struct Issued {
    lease: LeaseId,
    credential: Credential,
    issued_at: Timestamp,
    usable_until: Timestamp,
    told_expiry: Timestamp,
    body: OnceLock<Bytes>,
}

/// The margin between the expiry told and the real one is at most this.
const MARGIN: Duration = Duration::from_secs(15);
/// Lives this long or longer are minted again at a fixed distance from their end, shorter ones at half their life.
const LONG_LIFE: Duration = Duration::from_secs(12 * 60);
/// That distance: just over botocore's mandatory window of 10 minutes, so that its callers never block on a refresh.
const REMINT_BEFORE: Duration = Duration::from_secs(10 * 60 + 30);

impl Issued {
    /// The one way from a minted credential to one that may be served: its `issued` record is durable.
    pub fn new(lease: LeaseId, minted: Minted, deadline: Timestamp, now: Timestamp, _durable: &Receipt) -> Self {
        let end = minted.usable_until.min(deadline);
        let life = end.since(now);
        Self {
            lease,
            credential: minted.credential,
            issued_at: now,
            usable_until: minted.usable_until,
            told_expiry: (end - MARGIN.min(life / 10)).floor_to_second(),
            body: OnceLock::new(),
        }
    }

    /// The lease it belongs to.
    pub fn lease(&self) -> &LeaseId {
        &self.lease
    }

    /// The secret itself, for the dialect that writes it out.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// When it stops working at its provider, UTC.
    pub fn usable_until(&self) -> Timestamp {
        self.usable_until
    }

    /// The expiry to tell the workload, UTC, whole seconds: the earliest of the provider's, the cut and the task's end,
    /// less min(15 s, a tenth of its life). From this moment on it is not served.
    pub fn told_expiry(&self) -> Timestamp {
        self.told_expiry
    }

    /// Whether it may still be served at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        now < self.told_expiry
    }

    /// Whether it is time to mint its successor in the background.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let life = self.usable_until.since(self.issued_at);
        let left = self.usable_until.since(now);
        if life >= LONG_LIFE { left < REMINT_BEFORE } else { left < life / 2 }
    }

    /// The response body for it, written by `render` on first use and then shared.
    pub fn body(&self, render: impl FnOnce(&Self) -> SecretBytes) -> Bytes {
        self.body.get_or_init(|| render(self).into_body()).clone()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("lease", &self.lease).field("told_expiry", &self.told_expiry).finish()
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
    /// The word in metrics and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expires => "expires",
        }
    }
}
