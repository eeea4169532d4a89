//! The steps of [`Broker::end`], and ends that time brings.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{Broker, detached};
use crate::audit::{Event, Kind};
use crate::clock::SharedClock;
use crate::exchange::Provider;
use crate::journal::{self, Change};
use crate::lease::life::Event as Happened;
use crate::lease::record::report;
use crate::lease::revoke::{awaits_revocation, over_at};
use crate::lease::{LeaseFacts, LeaseId, LeaseRecord, LeaseState};
use crate::policy::{Denial, DenialReason};
use crate::task::{EndReason, Ending, REMEMBER, Task, TaskState};

/// A sweep over all tasks at least this often, so that a clock that was set, or a policy that changed, is noticed.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// So many tasks are looked at in one go: a fraction of a millisecond.
const BATCH: usize = 64;
/// How many ends are written down at a time: enough to share the journal's commits, and so few that whoever asks for a
/// credential meanwhile does not queue behind thousands.
const AT_A_TIME: usize = 32;
/// With more than this to write down at once, as after a long stop, it takes turns with serving.
const MANY: usize = 256;
/// How much of it is written down in one turn.
const A_TURN: usize = 16;
/// The longest rest between two turns, whatever the disk makes of them.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// Why a task ends, and the whole story for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The status.
    pub reason: EndReason,
    /// What callers are never told.
    pub detail: Option<String>,
}

impl From<EndReason> for Stop {
    fn from(reason: EndReason) -> Self {
        Self { reason, detail: None }
    }
}

impl From<Denial> for Stop {
    fn from(denial: Denial) -> Self {
        let reason = match denial.reason {
            DenialReason::Killed => EndReason::Killed,
            _ => EndReason::PolicyChanged,
        };
        let detail = match reason {
            EndReason::Killed => denial.detail,
            _ => format!("{}: {}", denial.reason.as_str(), denial.detail),
        };
        Self { reason, detail: Some(detail) }
    }
}

/// What a sweep over all tasks found.
#[derive(Default)]
pub(super) struct Sweep {
    /// How long until the next one.
    pub(super) next: Duration,
    /// Tasks that are no longer served since, which nobody wrote down yet.
    ended: Vec<(Arc<Task>, Ending, Option<String>)>,
    /// Leases that died before they could be revoked, or before it was known whether they were given.
    lapsed: Vec<(Arc<Task>, LeaseRecord)>,
    /// Tasks that the journal knows otherwise than they are.
    pub(super) behind: Vec<Arc<Task>>,
    /// What the journal may know late.
    changes: Vec<Change>,
    /// Credentials of running tasks that are to be renewed.
    renew: Vec<(Arc<Task>, Provider)>,
}

impl Sweep {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.ended.is_empty()
            && self.lapsed.is_empty()
            && self.behind.is_empty()
            && self.changes.is_empty()
            && self.renew.is_empty()
    }
}

impl Broker {
    /// From here on nothing of the task is served. Returns its ending, and whether this call brought it.
    pub(super) fn stop_serving(&self, task: &Task, reason: EndReason) -> (Ending, bool) {
        let (now, earliest) = (self.now(), self.parts.clock.earliest());
        let mut state = task.state();
        if let Some(ending) = &state.ending {
            return (Ending::clone(ending), false);
        }
        // Dropping the slots wipes the secrets as soon as no answer is being sent.
        state.slots.clear();
        for lease in &mut state.leases {
            // What is over stays as it is.
            let _ = lease.apply(&Happened::Ended(earliest));
        }
        let leases = report(state.leases.iter().map(|lease| &**lease));
        let ending = Ending { reason, ended_at: now, leases };
        state.ending = Some(Box::new(ending.clone()));
        state.decided = None;
        state.touch();
        let awaits = state.leases.iter().any(|lease| awaits_revocation(lease));
        drop(state);
        task.announce_end();
        self.changed.notify_one();
        // Whoever revokes sweeps all tasks: not for one that leaves nothing to revoke.
        if awaits {
            self.to_revoke.notify_one();
        }
        (ending, true)
    }

    /// Makes an ending durable, counts and audits it.
    pub(super) async fn record_end(
        &self,
        task: &Arc<Task>,
        ending: &Ending,
        detail: Option<String>,
        request_id: Option<&str>,
    ) {
        self.parts.metrics.task_ended(ending.reason);
        let counted_later: Vec<_> = task
            .state()
            .leases
            .iter()
            .filter(|l| awaits_revocation(l) || is_unanswered(l))
            .map(|l| l.id.clone())
            .collect();
        for lease in ending.leases.iter().filter(|lease| !counted_later.contains(&lease.id)) {
            self.parts.metrics.residual(lease.provider, lease.residual(ending.ended_at));
        }
        self.journal_task(task).await;
        let record = task.begun();
        let event = Event {
            request_id,
            reason: Some(ending.reason.as_str()),
            detail,
            task: Some(task.id()),
            label: record.label.as_deref(),
            spiffe_id: Some(task.owner()),
            scope: Some(&record.ask.scope),
            tier: Some(record.tier),
            leases: &ending.leases,
            ..Event::new(ending.ended_at, Kind::End, "ended")
        };
        // The end has happened; that its line was not written is logged by the audit log itself.
        let _ = self.parts.audit.record(&event).await;
    }

    /// Writes the task and its leases as they are now; says whether they are durable. What fails is tried again by the
    /// reaper.
    pub(crate) async fn journal_task(&self, task: &Task) -> bool {
        let (change, ended, ids, changes) = {
            let state = task.state();
            let ids: Vec<_> = state.leases.iter().map(|lease| lease.id.clone()).collect();
            let leases = state.leases.iter().map(|lease| Change::Lease(Box::new(lease.clone())));
            let task = Change::Task(Box::new(task.snapshot(&state)));
            (state.change(), state.ending.is_some(), ids, std::iter::once(task).chain(leases).collect())
        };
        match journal::record(&*self.parts.journal, changes).await {
            Ok(_) => {
                let (is_latest, forgotten) = {
                    let mut state = task.state();
                    let gone = |id: &LeaseId| state.leases.iter().all(|lease| lease.id != *id);
                    let forgotten: Vec<_> = ids.into_iter().filter(gone).map(Change::ForgetLease).collect();
                    (state.written(change, ended), forgotten)
                };
                // What was forgotten meanwhile may have been written after that.
                self.catch_up(forgotten).await;
                is_latest
            }
            Err(error) => {
                tracing::error!(task = %task.id(), %error, "the end of a task is not durable yet");
                false
            }
        }
    }

    /// Whether the end of `task`, which has ended, is durable: no crash brings the task back. What is told with it is written
    /// first, where it can be.
    pub async fn is_durable(&self, task: &Task) -> bool {
        let written = task.state().journalled;
        written || self.journal_task(task).await || task.state().end_recorded
    }

    /// What began under a task ends with it.
    pub(super) fn end_children<'a>(
        self: &'a Arc<Self>,
        parent: &'a Task,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        let children = self.tasks.children(parent.id());
        Box::pin(async move {
            for child in children {
                self.end(&child, EndReason::ParentEnded, None).await;
            }
        })
    }

    /// Ends whatever is due now and forgets what was over long ago. Returns how long until it must be called again.
    pub async fn sweep_now(self: &Arc<Self>) -> Duration {
        let sweep = self.sweep().await;
        let next = sweep.next;
        // Work took time, in which more may have become due: then look again at once.
        if self.execute(sweep).await { Duration::ZERO } else { next }
    }

    /// Ends every task, lets none begin any more, and waits for what is under way to be recorded and for what can be revoked to
    /// be: for the end of the sidecar, when the reaper is gone. Whoever waits for it says for how long.
    pub async fn close(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Release);
        let mut ends = JoinSet::new();
        // All at once: their records share the journal's commits.
        for task in self.tasks.all() {
            let broker = Arc::clone(self);
            ends.spawn(async move { broker.end(&task, EndReason::Shutdown, None).await });
        }
        let more = async {
            while ends.join_next().await.is_some() {}
            // An exchange under way may still give what is to be revoked.
            self.under_way.over().await;
        };
        self.revoke_all(more).await;
    }

    /// Sweeps all tasks: what is due is no longer served when this returns. What is to be written down about it stands in
    /// the answer, for [`Broker::execute`], which waits for the disk.
    pub(super) async fn sweep(&self) -> Sweep {
        let mut sweep = Sweep { next: SWEEP_EVERY, ..Sweep::default() };
        let was_ready = self.was_ready();
        let read = || (self.now(), self.parts.clock.boot(), self.parts.clock.earliest());
        let mut clocks = read();
        for (number, task) in self.tasks.all().into_iter().enumerate() {
            if number % BATCH == BATCH - 1 {
                // Whoever asks for a credential does not wait for a sweep over thousands.
                tokio::task::yield_now().await;
                clocks = read();
            }
            // The earlier clock: one that is set forward lets nothing lapse at its provider.
            let (now, boot, earliest) = clocks;
            if !was_ready {
                // Whoever holds it may wait for that: the grace counts from then.
                task.state().unheld_since = boot;
            }
            let reason = self.reason_to_end_at(&task, now, boot);
            let mut state = task.state();
            let (due, behind) = (state.ending.is_none().then_some(reason).flatten(), !state.journalled);
            let over =
                |lease: &&LeaseRecord| over_at(lease) <= earliest && (awaits_revocation(lease) || is_unanswered(lease));
            sweep.lapsed.extend(state.leases.iter().filter(over).map(|lease| (Arc::clone(&task), lease.clone())));
            sweep.changes.extend(settle(&mut state, earliest));
            let remembered = state.ending.as_ref().is_none_or(|ending| now.since(ending.ended_at) < REMEMBER);
            let forget = !remembered && state.is_settled();
            if let Some(wait) = task.next_check(&state, now, boot) {
                sweep.next = sweep.next.min(wait.max(Duration::from_millis(1)));
            }
            let renew = self.to_renew(&task, &state, now, boot);
            drop(state);
            sweep.renew.extend(renew.into_iter().map(|provider| (Arc::clone(&task), provider)));
            if forget {
                sweep.changes.extend(self.forget(&task));
            } else if let Some(Stop { reason, detail }) = due {
                let (ending, first) = self.stop_serving(&task, reason);
                if first {
                    sweep.ended.push((task, ending, detail));
                }
            } else if behind && self.parts.journal.healthy() {
                sweep.behind.push(task);
            }
        }
        sweep
    }

    /// Whether identities and a policy were known at the sweep before this one, or earlier.
    fn was_ready(&self) -> bool {
        let ready = self.parts.workload_api.identities().known && self.parts.policy.current().is_some();
        self.ready.fetch_or(ready, Ordering::AcqRel)
    }

    /// Writes down and counts what a sweep found; says whether anything may have become due by it.
    pub(super) async fn execute(self: &Arc<Self>, sweep: Sweep) -> bool {
        // A sidecar that stops waits for it: what has ended is told before.
        let _under_way = self.under_way.one();
        for (task, provider) in sweep.renew {
            // Who cannot be renewed now is due at the next sweep, too.
            let _ = self.start_exchange(&task, provider, None);
        }
        let many = sweep.lapsed.len() + sweep.ended.len() + sweep.behind.len() > MANY;
        let mut work = Work::new(many.then(|| SharedClock::clone(&self.parts.clock)), !sweep.changes.is_empty());
        for (task, lease) in sweep.lapsed {
            let broker = Arc::clone(self);
            let lapsed = async move {
                broker.lapsed(&task, &lease).await;
                false
            };
            work.begin(lapsed).await;
        }
        for (task, ending, detail) in sweep.ended {
            let broker = Arc::clone(self);
            let ended = async move {
                broker.record_end(&task, &ending, detail, None).await;
                broker.end_children(&task).await;
                true
            };
            work.begin(detached(ended)).await;
        }
        for task in sweep.behind {
            let broker = Arc::clone(self);
            work.begin(async move { broker.journal_task(&task).await }).await;
        }
        let again = work.done().await;
        self.catch_up(sweep.changes).await;
        again
    }

    /// Forgets ended tasks, the oldest first, so that running ones are not refused for the sake of old reports.
    pub(super) async fn make_room(&self) {
        let ended = |task: Arc<Task>| {
            let state = task.state();
            let ended_at = state.ending.as_ref().filter(|_| state.is_settled())?.ended_at;
            drop(state);
            Some((ended_at, task))
        };
        let mut over: Vec<_> = self.tasks.all().into_iter().filter_map(ended).collect();
        over.sort_unstable_by_key(|(ended_at, _)| *ended_at);
        // Several at a time, so that a full house is not searched for every guest.
        over.truncate(self.parts.limits.tasks / 16 + 1);
        let changes = over.iter().flat_map(|(_, task)| self.forget(task)).collect();
        self.catch_up(changes).await;
    }

    fn forget(&self, task: &Task) -> Vec<Change> {
        self.tasks.remove(task);
        let state = task.state();
        let leases = state.leases.iter().map(|lease| Change::ForgetLease(lease.id.clone()));
        std::iter::once(Change::ForgetTask(task.id().clone())).chain(leases).collect()
    }

    /// Writes what the journal may know late: nothing that is served depends on it.
    async fn catch_up(&self, changes: Vec<Change>) {
        if !changes.is_empty()
            && let Err(error) = journal::record(&*self.parts.journal, changes).await
        {
            tracing::error!(%error, "the journal is behind");
        }
    }
}

/// What a sweep found, being written down: [`AT_A_TIME`] at a time, or [`A_TURN`] where there is much.
struct Work {
    under_way: JoinSet<bool>,
    /// Whether anything may have become due by it.
    again: bool,
    /// Where it takes turns with serving: since when this turn lasts, and by which clock.
    turn: Option<(SharedClock, Duration)>,
}

impl Work {
    fn new(turns: Option<SharedClock>, again: bool) -> Self {
        let turn = turns.map(|clock| {
            let now = clock.boot();
            (clock, now)
        });
        Self { under_way: JoinSet::new(), again, turn }
    }

    /// Begins one more, once there is room for it.
    async fn begin(&mut self, one: impl Future<Output = bool> + Send + 'static) {
        match &mut self.turn {
            Some(_) if self.under_way.len() >= A_TURN => self.rest().await,
            None if self.under_way.len() >= AT_A_TIME => drop(self.next().await),
            _ => {}
        }
        self.under_way.spawn(one);
    }

    /// Ends a turn, and leaves the machine to others for as long as it took.
    async fn rest(&mut self) {
        while self.next().await.is_some() {}
        if let Some((clock, since)) = &mut self.turn {
            clock.sleep(clock.boot().saturating_sub(*since).min(LONGEST_REST)).await;
            *since = clock.boot();
        }
    }

    async fn next(&mut self) -> Option<()> {
        self.again |= self.under_way.join_next().await?.unwrap_or(false);
        Some(())
    }

    /// Waits for all that began.
    async fn done(mut self) -> bool {
        while self.next().await.is_some() {}
        self.again
    }
}

/// Whether its task ended before the provider answered, if it ever does: what is left of it is counted once that is known.
pub(super) fn is_unanswered(lease: &LeaseFacts) -> bool {
    lease.state == LeaseState::Ending && lease.upstream.is_none()
}

/// Marks what has died; of a running task's dead leases only the latest of each provider is kept. `now` is the earlier of
/// the clocks: one that is set forward kills nothing at its provider, and what lives there is not called dead.
fn settle(state: &mut TaskState, now: crate::clock::Timestamp) -> Vec<Change> {
    let mut changes = Vec::new();
    let ended = state.ending.is_some();
    for lease in &mut state.leases {
        if lease.apply(&Happened::Lapsed(now)).is_ok() {
            changes.push(Change::Lease(Box::new(lease.clone())));
        }
    }
    if !changes.is_empty() {
        state.amend();
    }
    if !ended {
        let latest = |lease: &LeaseRecord| {
            state.leases.iter().filter(|l| l.provider == lease.provider).map(|l| l.opened_at).max()
        };
        let superseded = |lease: &&LeaseRecord| lease.state.is_over() && latest(lease) != Some(lease.opened_at);
        // Nearly always none: every task is looked at in every sweep, and nothing is copied for it.
        let forgotten: Vec<_> = state.leases.iter().filter(superseded).map(|lease| lease.id.clone()).collect();
        if !forgotten.is_empty() {
            state.leases.retain(|lease| !forgotten.contains(&lease.id));
            changes.extend(forgotten.into_iter().map(Change::ForgetLease));
        }
    }
    changes
}
