//! What a provider answered, written down and judged before anyone sees it: the same for what was minted and what was renewed.

use std::sync::Arc;

use super::{Broker, MintError};
use crate::audit::{Event, Kind};
use crate::clock::Timestamp;
use crate::exchange::{ExchangeError, Handle, Provider};
use crate::journal::{self, Change, Receipt};
use crate::lease::life::Event as Happened;
use crate::lease::{LeaseId, LeaseRecord};
use crate::policy::Permit;
use crate::task::Task;

/// What a credential is asked for by.
pub(super) struct MintFor<'a> {
    pub(super) permit: &'a Permit,
    pub(super) provider: Provider,
    /// Of the request that wants it, where one does.
    pub(super) request_id: Option<&'a str>,
}

impl Broker {
    /// Looks again before what a provider gave is served: policy, task and clocks may be others than when it was asked.
    pub(super) async fn recheck(self: &Arc<Self>, task: &Arc<Task>, request_id: Option<&str>) -> Result<(), MintError> {
        if let Some(stop) = self.reason_to_end(task) {
            let ending = self.end(task, stop, request_id).await;
            return Err(MintError::TaskEnded(ending.reason));
        }
        // Its ends could not be fixed on a clock that jumped meanwhile.
        self.parts.clock.trusted().map_err(MintError::ClockUntrusted)
    }

    /// Makes a lease durable as it is since `change`.
    pub(super) async fn write_lease(
        &self,
        task: &Task,
        record: LeaseRecord,
        change: u32,
    ) -> Result<Receipt, MintError> {
        let recorded = journal::record(&*self.parts.journal, vec![Change::Lease(Box::new(record))]).await;
        // A credential that is there and not recorded, or recorded as it was before something else of the task was written: it is
        // written with the task as soon as the journal can.
        let mut state = task.state();
        if recorded.is_err() || state.change() != change {
            state.touch();
        }
        // The task may have ended meanwhile: then this is revoked, whether or not it is recorded.
        if state.ending.is_some() {
            self.to_revoke.notify_one();
        }
        drop(state);
        recorded.map_err(|error| MintError::NotRecorded(error.to_string()))
    }

    /// Writes down that a provider gave something, or let it live on.
    pub(super) async fn audit_given(
        &self,
        task: &Task,
        lease: &LeaseId,
        (handle, usable_until): (&Handle, Timestamp),
        outcome: &'static str,
        MintFor { permit, provider, request_id }: &MintFor<'_>,
    ) -> Result<(), MintError> {
        let (record, upstream) = (task.begun(), handle.to_string());
        let event = Event {
            request_id: *request_id,
            task: Some(task.id()),
            label: record.label.as_deref(),
            spiffe_id: Some(task.owner()),
            scope: Some(&record.ask.scope),
            tier: Some(permit.tier()),
            policy_version: Some(&permit.policy_version().0),
            rule_ids: permit.rule_ids(),
            stale: permit.stale(),
            provider: Some(*provider),
            lease: Some(lease),
            session_name: Some(task.session_name()),
            upstream: Some(&upstream),
            usable_until: Some(usable_until),
            ..Event::new(self.now(), Kind::Mint, outcome)
        };
        self.parts.audit.record(&event).await.map_err(|error| MintError::NotRecorded(error.to_string()))
    }
}

/// A lease after something happened to it.
pub(super) struct Noted {
    pub(super) record: LeaseRecord,
    /// The expiry that it had before, for all that was known.
    pub(super) before: Timestamp,
    /// When its task ended, where it has.
    pub(super) ended_at: Option<Timestamp>,
    /// Which change of the task this was.
    pub(super) change: u32,
}

/// Lets `event` happen to the lease of `id`, and to the report of its task's end where that has come.
pub(super) fn happened(task: &Task, id: &LeaseId, event: &Happened) -> Result<Noted, MintError> {
    let mut state = task.state();
    let lease = state.leases.iter_mut().find(|lease| lease.id == *id);
    let lease = lease.ok_or_else(|| MintError::NotRecorded("its record is gone".into()))?;
    let before = lease.usable_until;
    lease.apply(event).map_err(|refused| MintError::NotRecorded(refused.to_string()))?;
    let record = lease.clone();
    let mut ended_at = None;
    if let Some(ending) = &mut state.ending {
        // The report names the lease: it says from now on what the provider said.
        ending.tell(&record);
        ended_at = Some(ending.ended_at);
        state.touch();
    }
    state.amend();
    Ok(Noted { record, before, ended_at, change: state.change() })
}

/// Never 200 with an expired credential, whoever let it expire.
pub(super) fn dead_on_arrival() -> MintError {
    MintError::Exchange(Arc::new(ExchangeError::Unusable {
        detail: "it was dead before it could be served".to_owned(),
    }))
}
