//! What is durable of a task.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::end_reason::EndReason;
use crate::id::TaskId;
use crate::identity::task_token::TokenHash;
use crate::identity::{Proof, SpiffeId};
use crate::lease::record::{LeaseEnding, LeaseFacts};
use crate::policy::{Ask, PolicyVersion, Tier};

/// What a task's end left behind. Told again, unchanged, however often it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Why it ended.
    pub reason: EndReason,
    /// When, UTC.
    pub ended_at: Timestamp,
    /// What became of its leases.
    pub leases: Vec<LeaseEnding>,
}

impl Ending {
    /// Puts what is known of `lease` now into its line: the provider's word may come after the end.
    pub fn tell(&mut self, lease: &LeaseFacts) {
        if let Some(line) = self.leases.iter_mut().find(|line| line.id == lease.id) {
            *line = lease.into();
        }
    }
}

/// An idempotency key that a task was begun with, and the request that came with it; both as SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key.
    pub key: [u8; 32],
    /// The body.
    pub body: [u8; 32],
}

/// What is durable of a task. No secret: the token only as its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its id.
    pub id: TaskId,
    /// Whose it is.
    pub owner: SpiffeId,
    /// How the owner proved itself when it began.
    pub proof: Proof,
    /// When that proof lapsed or lapses, UTC.
    pub proved_until: Timestamp,
    /// What was asked for.
    pub ask: Ask,
    /// The caller's free text for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The task whose token began this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<TaskId>,
    /// Whether it ends when nobody holds it.
    pub hold: bool,
    /// The hash of its token.
    pub token: TokenHash,
    /// The idempotency key it was begun with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Box<Idempotency>>,
    /// The tier of the decision that let it begin.
    pub tier: Tier,
    /// The policy version of that decision.
    pub policy_version: PolicyVersion,
    /// When it began, UTC.
    pub begun_at: Timestamp,
    /// When it must end, UTC.
    pub deadline: Timestamp,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Box<Ending>>,
}
