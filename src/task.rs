//! A task: one piece of work, begun by a caller in one scope. It owns every credential minted for it and ends once.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::exchange::Provider;
use crate::identity::task_token::{self, NoRandomness, TokenHash};
use crate::identity::{Caller, Proof, SpiffeId};
use crate::lease::{Issued, LeaseEnding, LeaseRecord};
use crate::policy::{Ask, Permit, Policy, PolicyVersion, Tier};

/// How long a held task lives on when nobody holds it.
pub const HOLD_GRACE: Duration = Duration::from_secs(10);
/// How long an ended task is remembered, so that its report can be read again.
pub const REMEMBER: Duration = Duration::from_secs(24 * 3600);

const ID_BITS: usize = 16;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_LENGTH: usize = 26;

/// An unguessable id: `prefix` and 128 random bits in Crockford's base 32, lower case.
pub(crate) fn random_id(prefix: &str) -> Result<String, NoRandomness> {
    let mut bits = [0u8; ID_BITS];
    task_token::random(&mut bits)?;
    let mut value = u128::from_be_bytes(bits);
    let mut digits = [0u8; ID_LENGTH];
    for digit in digits.iter_mut().rev() {
        // INVARIANT: the index is below 32.
        *digit = ALPHABET.get((value & 31) as usize).copied().unwrap_or(b'0');
        value >>= 5;
    }
    Ok(format!("{prefix}{}", String::from_utf8_lossy(&digits)))
}

/// The id of a task: `t-` and 128 random bits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// A new, unguessable id.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, NoRandomness> {
        random_id("t-").map(|id| Self(id.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TaskId {
    type Err = ();

    /// Reads an id as it stands in a path; anything else cannot name a task.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix("t-").ok_or(())?;
        let known = digits.len() == ID_LENGTH && digits.bytes().all(|b| ALPHABET.contains(&b));
        if known { Ok(Self(text.into())) } else { Err(()) }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its holder said so.
    Done,
    /// Nobody held it for ten seconds.
    HoldGone,
    /// Its time was up.
    Deadline,
    /// It was not used for as long as its decision allows.
    Idle,
    /// Policy no longer permits it.
    PolicyChanged,
    /// The Workload API no longer gives its identity to this sidecar.
    IdentityWithdrawn,
    /// Its parent task ended.
    ParentEnded,
    /// An operator ended it.
    Operator,
    /// The sidecar was stopped.
    Shutdown,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Done,
        Self::HoldGone,
        Self::Deadline,
        Self::Idle,
        Self::PolicyChanged,
        Self::IdentityWithdrawn,
        Self::ParentEnded,
        Self::Operator,
        Self::Shutdown,
    ];

    /// The word in answers, metrics, journal and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::HoldGone => "hold_gone",
            Self::Deadline => "deadline",
            Self::Idle => "idle",
            Self::PolicyChanged => "policy_changed",
            Self::IdentityWithdrawn => "identity_withdrawn",
            Self::ParentEnded => "parent_ended",
            Self::Operator => "operator",
            Self::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

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
    /// A free word of the caller's for it.
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
    pub idempotency: Option<Idempotency>,
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
    pub ending: Option<Ending>,
}

/// A permit together with the policy that gave it, so that a later request can tell whether to decide again.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The policy it came from.
    pub policy: Arc<Policy>,
    /// What it permits.
    pub permit: Arc<Permit>,
}

/// How an exchange in flight ends, for everyone who waits for it.
pub type FlightResult = Result<Arc<Issued>, crate::broker::MintError>;
/// Waits for an exchange in flight; `None` until it has ended.
pub type Flight = watch::Receiver<Option<FlightResult>>;

/// One provider's side of a task.
#[derive(Debug, Default)]
pub struct ProviderSlot {
    /// The credential that is served now.
    pub live: Option<Arc<Issued>>,
    /// The exchange that is under way, shared by all who need its outcome.
    pub flight: Option<Flight>,
    /// After a failure: until when nobody asks the provider again (time since boot), and what it said.
    pub cooling: Option<(Duration, crate::broker::MintError)>,
}

/// What changes in a task's life.
#[derive(Debug)]
pub struct TaskState {
    /// The hash of the token that works now.
    pub token: TokenHash,
    /// Set once, when it ends.
    pub ending: Option<Ending>,
    /// The latest decision; `None` after a restart, until the first use decides again.
    pub decided: Option<Decided>,
    /// The credentials, by provider.
    pub slots: BTreeMap<Provider, ProviderSlot>,
    /// Every lease that is not forgotten.
    pub leases: Vec<LeaseRecord>,
    /// When it was last used (time since boot).
    pub last_used: Duration,
    /// How many hold it now.
    pub holders: u32,
    /// Since when nobody holds it (time since boot).
    pub unheld_since: Duration,
    /// Whether what is above is also in the journal.
    pub journalled: bool,
}

/// A task in memory: what never changes, and the state behind one lock that is never held across an await.
#[derive(Debug)]
pub struct Task {
    id: TaskId,
    owner: SpiffeId,
    session_name: String,
    deadline: Timestamp,
    record: TaskRecord,
    state: Mutex<TaskState>,
    ended: watch::Sender<bool>,
}

impl Task {
    /// A task from its record. `boot` is the time since boot from which idleness and holding count.
    pub fn new(record: TaskRecord, leases: Vec<LeaseRecord>, decided: Option<Decided>, boot: Duration) -> Self {
        let ended = record.ending.is_some();
        let state = TaskState {
            token: record.token,
            ending: record.ending.clone(),
            decided,
            slots: BTreeMap::new(),
            leases,
            last_used: boot,
            holders: 0,
            unheld_since: boot,
            journalled: true,
        };
        Self {
            id: record.id.clone(),
            owner: record.owner.clone(),
            session_name: session_name(&record),
            deadline: record.deadline,
            record,
            state: Mutex::new(state),
            ended: watch::Sender::new(ended),
        }
    }

    /// Its id.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// Whose it is.
    pub fn owner(&self) -> &SpiffeId {
        &self.owner
    }

    /// When it must end, UTC.
    pub fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// The name under which providers know its sessions: unique to the task, the same for each of its credentials.
    pub fn session_name(&self) -> &str {
        &self.session_name
    }

    /// What was recorded when it began. Its token and ending may have changed since: see [`Task::snapshot`].
    pub fn begun(&self) -> &TaskRecord {
        &self.record
    }

    /// The caller as it was when the task began.
    pub fn caller(&self) -> Caller {
        Caller::recorded(self.owner.clone(), self.record.proof, self.record.proved_until)
    }

    /// The record as it should be in the journal now.
    pub fn snapshot(&self, state: &TaskState) -> TaskRecord {
        TaskRecord { token: state.token, ending: state.ending.clone(), ..self.record.clone() }
    }

    /// Its changing part. Never hold it across an await.
    pub fn state(&self) -> MutexGuard<'_, TaskState> {
        // A panic while the lock was held cannot leave the state half-changed in a way that widens access.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Tells everyone who waits for the end that it has come.
    pub fn announce_end(&self) {
        self.ended.send_replace(true);
    }

    /// Becomes `true` when the task ends.
    pub fn watch_end(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Why it should end now by the passing of time alone, if it should. `boot` is the time since boot.
    pub fn overdue(&self, state: &TaskState, now: Timestamp, boot: Duration) -> Option<EndReason> {
        if state.ending.is_some() {
            return None;
        }
        if now >= self.deadline {
            return Some(EndReason::Deadline);
        }
        if self.record.hold && state.holders == 0 && boot.saturating_sub(state.unheld_since) >= HOLD_GRACE {
            return Some(EndReason::HoldGone);
        }
        match self.idle_limit(state) {
            Some(idle) if boot.saturating_sub(state.last_used) >= idle => Some(EndReason::Idle),
            _ => None,
        }
    }

    /// How long until [`Task::overdue`] could next say something, if nothing happens before.
    pub fn next_check(&self, state: &TaskState, now: Timestamp, boot: Duration) -> Option<Duration> {
        if state.ending.is_some() {
            return None;
        }
        let mut next = self.deadline.since(now);
        if self.record.hold && state.holders == 0 {
            next = next.min((state.unheld_since + HOLD_GRACE).saturating_sub(boot));
        }
        if let Some(idle) = self.idle_limit(state) {
            next = next.min((state.last_used + idle).saturating_sub(boot));
        }
        Some(next)
    }

    /// A held task is never idle.
    fn idle_limit(&self, state: &TaskState) -> Option<Duration> {
        let idle = state.decided.as_ref()?.permit.caps().idle?;
        (state.holders == 0).then_some(idle)
    }
}

/// `workload.scope.t-…`: readable in the provider's log, unique by the task's id, at most 64 of `A-Za-z0-9.-_`.
fn session_name(record: &TaskRecord) -> String {
    let last = |path: &str| {
        let segment = path.rsplit('/').next().unwrap_or_default();
        // both alphabets are ASCII, so characters are bytes
        segment.chars().take(16).collect::<String>()
    };
    format!("{}.{}.{}", last(record.owner.path()), last(record.ask.scope.as_str()), record.id)
}
