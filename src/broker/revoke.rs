//! Revokes what ended tasks left, where the provider can. Apart from serving, and until it is done or the credential has
//! died by itself. What is to be done stands in the tasks' leases (state `ending`), and so in the journal: a restart goes on
//! where it was.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Broker;
use super::end::is_unanswered;
use crate::audit::{Event, Kind};
use crate::clock::within;
use crate::exchange::{ExchangeError, Provider, RevokeOrder, RevokeOutcome};
use crate::identity::SpiffeId;
use crate::lease::life::Event as Happened;
use crate::lease::revoke::{Queue, Tried, awaits_revocation};
use crate::lease::{LeaseEnding, LeaseFacts, LeaseId};
use crate::task::{Ending, Task};

/// How long whoever ends a task waits for its credentials to be revoked before it is told when they expire.
pub const WAIT_FOR_REVOCATION: Duration = Duration::from_secs(2);
/// How often the tasks are looked through while something is to be revoked, should a word of it have been missed.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Revokes whatever is pending, as it comes; never returns.
pub(super) async fn run(broker: Arc<Broker>) {
    let clock = Arc::clone(&broker.parts.clock);
    let (mut queue, mut tries) = (Queue::default(), JoinSet::new());
    let mut pending: HashMap<LeaseId, Pending> = HashMap::new();
    let mut sweep_at = Duration::ZERO;
    loop {
        let now = clock.boot();
        if sweep_at <= now {
            let before = std::mem::take(&mut pending);
            for (task, provider, id) in broker.pending_revocations() {
                let failed = before.get(&id).is_some_and(|known| known.failed);
                pending.insert(id, Pending { task, provider, failed });
            }
            broker.failures.keep(|id| pending.contains_key(id));
            queue.sync(pending.iter().map(|(id, pending)| (pending.provider, id.clone())), now);
            sweep_at = now + SWEEP_EVERY;
        }
        for (provider, id) in queue.take(now) {
            let Some(Pending { task, failed, .. }) = pending.get(&id) else { continue };
            let (broker, task, first) = (Arc::clone(&broker), Arc::clone(task), !*failed);
            tries.spawn(async move {
                let _under_way = broker.under_way.one();
                let tried = broker.try_revoke(&task, &id, first).await;
                (provider, id, tried)
            });
        }
        let next = queue.wait(now).map(|wait| wait.min(sweep_at.saturating_sub(now)).max(Duration::from_millis(1)));
        let sleep = async {
            match next {
                Some(wait) => clock.sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = broker.to_revoke.notified() => sweep_at = Duration::ZERO,
            Some(done) = tries.join_next() => match done {
                Ok((provider, id, tried)) => {
                    if let Some(pending) = pending.get_mut(&id) {
                        pending.failed = tried != Tried::Over;
                    }
                    queue.done(provider, &id, tried, clock.boot(), broker.parts.jitter.fraction());
                }
                // A try that crashed is still marked as under way: begin anew with what the leases say.
                Err(_) => (queue, sweep_at) = (Queue::default(), Duration::ZERO),
            },
        }
    }
}

/// A lease to revoke.
struct Pending {
    task: Arc<Task>,
    provider: Provider,
    /// Whether a try has failed: only the first is audited.
    failed: bool,
}

impl Broker {
    /// Every lease that is to be revoked.
    fn pending_revocations(&self) -> impl Iterator<Item = (Arc<Task>, Provider, LeaseId)> {
        self.tasks.all().into_iter().flat_map(|task| {
            let pending: Vec<_> = {
                let state = task.state();
                let pending = state.leases.iter().filter(|lease| state.ending.is_some() && awaits_revocation(lease));
                pending.map(|lease| (lease.provider, lease.id.clone())).collect()
            };
            pending.into_iter().map(move |(provider, id)| (Arc::clone(&task), provider, id))
        })
    }

    /// One try.
    async fn try_revoke(&self, task: &Arc<Task>, id: &LeaseId, first: bool) -> Tried {
        let lease = task.state().leases.iter().find(|lease| lease.id == *id && awaits_revocation(lease)).cloned();
        let Some(lease) = lease else { return Tried::Over };
        let outcome = self.revoke_at(&lease, task.owner()).await;
        match outcome {
            Ok(taken) => {
                self.note_revoked(task, id, taken).await;
                Tried::Over
            }
            Err(error) => {
                self.note_not_revoked(task, &lease, &error, first).await;
                match error {
                    ExchangeError::Unavailable { retry_after, .. } => Tried::Failed(retry_after),
                    ExchangeError::NotAsked { retry_after, .. } => Tried::Failed(Some(retry_after)),
                    ExchangeError::NoSvid { .. } | ExchangeError::Unusable { .. } => Tried::Failed(None),
                    ExchangeError::Refused { .. } | ExchangeError::Inexpressible { .. } => Tried::Refused,
                }
            }
        }
    }

    /// Tells the provider of `lease` to revoke it.
    async fn revoke_at(&self, lease: &LeaseFacts, owner: &SpiffeId) -> Result<RevokeOutcome, ExchangeError> {
        let inexpressible = |detail: String| ExchangeError::Inexpressible { detail };
        let provider = lease.provider;
        let exchange = self.parts.exchanges.get(&provider).ok_or_else(|| {
            let until = lease.usable_until;
            inexpressible(format!("the provider {provider} is not configured any more: configure it until {until}"))
        })?;
        let revoker = exchange.revoker().ok_or_else(|| inexpressible("this provider cannot revoke".to_owned()))?;
        let handle = lease.upstream.clone();
        let handle = handle.ok_or_else(|| inexpressible("the journal does not say which lease it is".to_owned()))?;
        let (caller, usable_until) = (owner.clone(), lease.usable_until);
        revoker.revoke(&RevokeOrder { caller, handle, usable_until, limit: self.parts.limits.mint }).await
    }

    /// The provider did what it was told: the report says so from now on.
    async fn note_revoked(&self, task: &Arc<Task>, id: &LeaseId, taken: RevokeOutcome) {
        let now = self.now();
        let (lease, ended_at) = {
            let mut state = task.state();
            let ended_at = state.ending.as_ref().map_or(now, |ending| ending.ended_at);
            let Some(lease) = state.leases.iter_mut().find(|lease| lease.id == *id) else { return };
            let event = match taken {
                RevokeOutcome::Revoked => Happened::Revoked(now),
                RevokeOutcome::Requested => Happened::Requested,
            };
            if let Err(refused) = lease.apply(&event) {
                // It died while its provider was asked: that stands in the report, and is counted, already.
                tracing::warn!(task = %task.id(), lease = %id, %refused, "revoked too late to say so");
                return;
            }
            let lease = lease.clone();
            if let Some(ending) = &mut state.ending {
                ending.tell(&lease);
            }
            state.touch();
            (lease, ended_at)
        };
        let outcome = match taken {
            RevokeOutcome::Revoked => "revoked",
            RevokeOutcome::Requested => "requested",
        };
        let provider = lease.provider;
        self.parts.metrics.revocation(provider, outcome);
        if taken == RevokeOutcome::Revoked {
            self.parts.metrics.revoked_after(provider, now.since(ended_at));
        }
        self.parts.metrics.residual(provider, LeaseEnding::from(&*lease).residual(ended_at));
        self.revoked.notify_waiters();
        // What fails is tried again by the reaper.
        self.journal_task(task).await;
        self.audit_revocation(task, &lease, outcome, None).await;
    }

    async fn note_not_revoked(&self, task: &Arc<Task>, lease: &LeaseFacts, error: &ExchangeError, first: bool) {
        self.parts.metrics.revocation(lease.provider, error.kind());
        self.failures.note(&lease.id, error);
        tracing::warn!(task = %task.id(), lease = %lease.id, provider = %lease.provider, %error, "not revoked yet");
        if first {
            self.audit_revocation(task, lease, "failed", Some(error)).await;
        }
    }

    /// A credential has died by itself before it could be revoked, or before anyone knew whether there was one.
    pub(super) async fn lapsed(&self, task: &Arc<Task>, lease: &LeaseFacts) {
        let ended_at = task.state().ending.as_ref().map_or(lease.usable_until, |ending| ending.ended_at);
        if is_unanswered(lease) {
            self.parts.metrics.residual(lease.provider, LeaseEnding::from(lease).residual(ended_at));
            return;
        }
        self.parts.metrics.revocation(lease.provider, "lapsed");
        self.parts.metrics.residual(lease.provider, LeaseEnding::from(lease).residual(ended_at));
        tracing::error!(task = %task.id(), lease = %lease.id, "could not be revoked before its own end");
        self.audit_revocation(task, lease, "lapsed", None).await;
    }

    pub(super) async fn audit_revocation(
        &self,
        task: &Arc<Task>,
        lease: &LeaseFacts,
        outcome: &'static str,
        error: Option<&ExchangeError>,
    ) {
        let record = task.begun();
        let upstream = lease.upstream.as_ref().map(ToString::to_string);
        let event = Event {
            reason: error.map(ExchangeError::kind),
            detail: error.map(ToString::to_string),
            task: Some(task.id()),
            label: record.label.as_deref(),
            spiffe_id: Some(task.owner()),
            scope: Some(&record.ask.scope),
            tier: Some(record.tier),
            provider: Some(lease.provider),
            lease: Some(&lease.id),
            session_name: Some(task.session_name()),
            upstream: upstream.as_deref(),
            usable_until: Some(lease.usable_until),
            ..Event::new(self.now(), Kind::Revocation, outcome)
        };
        // It has happened, or not; that its line was not written is logged by the audit log itself.
        let _ = self.parts.audit.record(&event).await;
    }

    /// The ending of `task`, which has ended, once what can be revoked was, or [`WAIT_FOR_REVOCATION`] has passed.
    pub async fn settled_ending(&self, task: &Task, ending: Ending) -> Ending {
        let settled = async {
            // who may not wait is told how it stands
            let place = if has_pending_revocation(task) { self.let_wait(task.owner()) } else { None };
            if place.is_some() {
                self.until_revoked(|| has_pending_revocation(task)).await;
            }
        };
        within(&*self.parts.clock, WAIT_FOR_REVOCATION, settled).await;
        task.state().ending.as_deref().cloned().unwrap_or(ending)
    }

    /// Revokes what can be, once `more` says that no more will come, for as long as whoever waits for it waits.
    pub(super) async fn revoke_all(self: &Arc<Self>, more: impl Future<Output = ()>) {
        let all = async {
            more.await;
            self.until_revoked(|| self.tasks.all().iter().any(|task| has_pending_revocation(task))).await;
            // What was revoked is being written down.
            self.under_way.over().await;
        };
        tokio::select! {
            () = run(Arc::clone(self)) => {}
            () = all => {}
        }
    }

    async fn until_revoked(&self, owing: impl Fn() -> bool) {
        loop {
            let revoked = self.revoked.notified();
            tokio::pin!(revoked);
            // From here on no word is missed.
            revoked.as_mut().enable();
            if !owing() {
                return;
            }
            revoked.await;
        }
    }
}

fn has_pending_revocation(task: &Task) -> bool {
    let state = task.state();
    state.ending.is_some() && state.leases.iter().any(|lease| awaits_revocation(lease))
}
