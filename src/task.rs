//! A task: one piece of work, begun by a caller in one scope. It owns every credential minted for it and ends once.
//!
//! - [`TaskRecord`]: what is durable of it, in the journal.
//! - [`issued`]: a credential that may be served. `Minted` → [`Issued`].
//! - [`flight`]: an exchange under way for it.
//! - [`providers`]: where its scope grants something.
//! - [`table`]: all tasks, and how to find one.

pub mod flight;
pub mod issued;
pub mod providers;
pub mod table;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{Deadline, Timestamp};
use crate::identity::task_token::TokenHash;
use crate::identity::{Caller, SpiffeId};
use crate::lease::{LeaseId, LeaseRecord};
use crate::policy::{Kept, Permit, PolicyVersion};

pub use crate::end_reason::EndReason;
pub use crate::id::TaskId;
pub use crate::journal::task_record::{Ending, Idempotency, TaskRecord};
pub use flight::{Flight, FlightResult, MintError, ProviderSlot, Slots};
pub use issued::{Ends, Issued};
pub use providers::ProviderSet;
pub use table::TaskTable;

/// How long a held task lives on when nobody holds it.
pub const HOLD_GRACE: Duration = Duration::from_secs(10);
/// How long an ended task is remembered, so that its report can be read again.
pub const REMEMBER: Duration = Duration::from_secs(24 * 3600);

/// What a running task keeps of its permit: enough to tell whether to decide again, and when it is idle. Every mint
/// decides anew, so the rest would only take room, and the policy itself would outlive its successor.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The policy that permitted.
    pub version: PolicyVersion,
    /// Idle time after which the task ends, where the decision sets one.
    pub idle: Option<Duration>,
    /// Where the scope grants something.
    pub providers: ProviderSet,
}

impl From<&Permit> for Decided {
    fn from(permit: &Permit) -> Self {
        let providers = permit.grants().iter().map(|grant| grant.provider.provider()).collect();
        Self { version: permit.policy_version().clone(), idle: permit.caps().idle, providers }
    }
}

impl From<Kept> for Decided {
    fn from(kept: Kept) -> Self {
        Self { version: kept.policy_version, idle: kept.idle, providers: kept.providers.into_iter().collect() }
    }
}

/// What changes in a task's life.
#[derive(Debug)]
pub struct TaskState {
    /// The hash of the token that works now.
    pub token: TokenHash,
    /// Set once, when it ends.
    pub ending: Option<Box<Ending>>,
    /// The policy version of the latest decision; `None` after a restart, until the first use decides again.
    pub decided: Option<PolicyVersion>,
    /// Idle time after which the task ends, where that decision sets one.
    pub idle: Option<Duration>,
    /// Where its scope grants something, by that decision.
    pub providers: ProviderSet,
    /// The credentials, by provider.
    pub slots: Slots,
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
    /// Whether the end is, whatever else of what is above is not: the provider's word may come after it.
    pub end_recorded: bool,
    /// How often what is journalled has changed, so that a write that is under way does not pass for one of what changed since.
    changes: u32,
}

impl TaskState {
    /// Keeps what a decision said.
    pub fn decide(&mut self, Decided { version, idle, providers }: Decided) {
        (self.decided, self.idle, self.providers) = (Some(version), idle, providers);
    }

    /// Notes that the journal is behind now.
    pub fn touch(&mut self) {
        self.journalled = false;
        self.changes = self.changes.wrapping_add(1);
    }

    /// Notes a change that whoever made it writes down alone: a write of the whole that is under way may land after that one, with
    /// what was there before, and then does not count.
    pub fn amend(&mut self) {
        self.changes = self.changes.wrapping_add(1);
    }

    /// Forgets a lease that certainly came to nothing, and no longer tells of it where the task has ended.
    pub fn forget(&mut self, id: &LeaseId) {
        self.leases.retain(|lease| lease.id != *id);
        if let Some(ending) = &mut self.ending {
            ending.leases.retain(|line| line.id != *id);
            self.touch();
        }
    }

    /// Whether nothing is left that could still be used, and all of it is durable: of an ended task, that it may be forgotten.
    pub fn is_settled(&self) -> bool {
        self.journalled && self.leases.iter().all(|lease| lease.state.is_over())
    }

    /// Which change was the latest; to be told again to [`TaskState::written`].
    pub fn change(&self) -> u32 {
        self.changes
    }

    /// Which change the journal has, where it has the latest and no write of an older one is under way.
    pub fn durable(&self) -> Option<u32> {
        self.journalled.then_some(self.changes)
    }

    /// What was there at `change` is durable; says whether nothing has changed since. Otherwise this write may have landed after
    /// one of what is there now: then the journal is behind again. `ended` is whether the end was in it.
    pub fn written(&mut self, change: u32, ended: bool) -> bool {
        self.end_recorded |= ended;
        self.journalled = self.changes == change;
        self.journalled
    }
}

/// A task in memory: what never changes, and the state behind one lock that is never held across an await.
#[derive(Debug)]
pub struct Task {
    session_name: Arc<str>,
    deadline: Deadline,
    record: TaskRecord,
    state: Mutex<TaskState>,
    /// Made for the first who waits: few tasks are waited for.
    ended: OnceLock<watch::Sender<bool>>,
}

impl Task {
    /// A task from its record, when the clocks show `now` and `boot`: idleness and holding count from then, and its
    /// end is fixed on both.
    pub fn new(
        record: TaskRecord,
        leases: Vec<LeaseRecord>,
        decided: Option<Decided>,
        now: Timestamp,
        boot: Duration,
    ) -> Self {
        let mut state = TaskState {
            token: record.token,
            ending: record.ending.clone(),
            decided: None,
            idle: None,
            providers: ProviderSet::default(),
            slots: Slots::default(),
            leases,
            last_used: boot,
            holders: 0,
            unheld_since: boot,
            journalled: true,
            end_recorded: record.ending.is_some(),
            changes: 0,
        };
        if let Some(decided) = decided {
            state.decide(decided);
        }
        Self {
            session_name: session_name(&record).into(),
            // After a restart on a clock that shows a time before it began, its whole life at most.
            deadline: Deadline::fix(record.deadline, now.max(record.begun_at), boot),
            record,
            state: Mutex::new(state),
            ended: OnceLock::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &TaskId {
        &self.record.id
    }

    /// Whose it is.
    pub fn owner(&self) -> &SpiffeId {
        &self.record.owner
    }

    /// When it must end, UTC.
    pub fn deadline(&self) -> Timestamp {
        self.deadline.wall()
    }

    /// How long until it must end, by whichever clock comes first.
    pub fn left(&self, now: Timestamp, boot: Duration) -> Duration {
        self.deadline.left(now, boot)
    }

    /// The name under which providers know its sessions: unique to the task, the same for each of its credentials.
    pub fn session_name(&self) -> &Arc<str> {
        &self.session_name
    }

    /// What was recorded when it began. Its token and ending may have changed since: see [`Task::snapshot`].
    pub fn begun(&self) -> &TaskRecord {
        &self.record
    }

    /// The caller as it was when the task began.
    pub fn caller(&self) -> Caller {
        Caller::recorded(self.record.owner.clone(), self.record.proof, self.record.proved_until)
    }

    /// Where its scope grants something, by the latest decision; none where nobody has decided since a restart.
    pub fn providers(&self) -> ProviderSet {
        self.state().providers
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

    /// Why it has ended, if it has.
    pub fn ended(&self) -> Option<EndReason> {
        self.state().ending.as_ref().map(|ending| ending.reason)
    }

    /// Tells everyone who waits for the end that it has come. Its ending must be set before.
    pub fn announce_end(&self) {
        if let Some(ended) = self.ended.get() {
            ended.send_replace(true);
        }
    }

    /// Becomes `true` when the task ends.
    pub fn watch_end(&self) -> watch::Receiver<bool> {
        let ended = self.ended.get_or_init(watch::Sender::default);
        // INVARIANT: the sender is there before the state is looked at, so an end that this look does not see comes
        // later, finds the sender, and is announced.
        if self.state().ending.is_some() {
            ended.send_replace(true);
        }
        ended.subscribe()
    }

    /// Why it should end now by the passing of time alone, if it should. `boot` is the time since boot.
    pub fn overdue(&self, state: &TaskState, now: Timestamp, boot: Duration) -> Option<EndReason> {
        if state.ending.is_some() {
            return None;
        }
        if self.deadline.has_come(now, boot) {
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
        let mut next = self.deadline.left(now, boot);
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
        state.idle.filter(|_| state.holders == 0)
    }
}

/// `workload.scope.t-…`: readable in the provider's log, unique by the task's id, at most 64 of `A-Za-z0-9.-_`.
fn session_name(record: &TaskRecord) -> String {
    format!("{}.{}.{}", session_part(record.owner.path()), session_part(record.ask.scope.as_str()), record.id)
}

/// What stands in a session's name for a workload or a scope: the end of its path, at most 16 characters.
pub fn session_part(path: &str) -> String {
    let segment = path.rsplit('/').next().unwrap_or_default();
    // both alphabets are ASCII, so characters are bytes
    segment.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand tasks are ten thousand times as much (`task_bytes` of benches/report).
    #[test]
    fn the_memory_of_each_task_stays_small() {
        let sizes = [size_of::<Task>(), size_of::<Issued>(), size_of::<LeaseRecord>()];
        assert!(sizes.iter().zip([536, 136, 152]).all(|(size, most)| *size <= most), "{sizes:?}: box what is rare");
    }
}
