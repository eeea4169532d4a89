//! One mint: the intent is durable, then a provider is asked, then what it gave is durable, and only then it may be served.

use std::sync::Arc;

use super::due::SHORTEST_LIFE;
use super::outcome::{MintFor, Noted, dead_on_arrival, happened};
use super::{Broker, MintError};
use crate::clock::Timestamp;
use crate::exchange::{Exchange, ExchangeError, MintOrder, Provider, Revocation, RevokeOrder};
use crate::journal::{self, Change, Receipt};
use crate::lease::life::{Event as Happened, Given};
use crate::lease::{LeaseEnding, LeaseFacts, LeaseId, LeaseRecord, LeaseState};
use crate::task::{Issued, Task};

impl Broker {
    /// Asks for another credential within `order`, and makes it one that may be served.
    ///
    /// INVARIANT: decide → intent durable → exchange → outcome durable → look again.
    pub(super) async fn mint_new(
        self: &Arc<Self>,
        task: &Arc<Task>,
        exchange: &dyn Exchange,
        order: &MintOrder,
        of: &MintFor<'_>,
    ) -> Result<Arc<Issued>, MintError> {
        let lease = self.intend(task, of.provider, order, self.now()).await?;
        self.still_wanted(task, &lease, order).await?;
        let minted = match exchange.mint(order).await {
            Ok(minted) => minted,
            Err(error) => {
                self.discard(task, &lease, &error).await;
                return Err(MintError::Exchange(Arc::new(error)));
            }
        };
        let given = Given {
            revocation: minted.revocability.class(),
            usable_until: minted.usable_until + order.grant.outlives.lasts,
            handle: minted.revocability.handle().clone(),
        };
        let receipt = self.record_issued(task, &lease, &given, exchange).await?;
        self.audit_given(task, &lease, (&given.handle, given.usable_until), "minted", of).await?;
        self.recheck(task, of.request_id).await?;
        let at = self.parts.clock.moment();
        let issued = Issued::new(lease, minted, task.deadline(), at, &receipt);
        if issued.is_live(at.now, at.boot) { Ok(Arc::new(issued)) } else { Err(dead_on_arrival()) }
    }

    /// Records that a credential is about to be asked for.
    async fn intend(
        &self,
        task: &Task,
        provider: Provider,
        order: &MintOrder,
        now: Timestamp,
    ) -> Result<LeaseId, MintError> {
        let id = LeaseId::generate().map_err(|e| MintError::NotRecorded(e.to_string()))?;
        let outlives = order.grant.outlives;
        let record = LeaseRecord::of(LeaseFacts {
            id: id.clone(),
            task: task.id().clone(),
            provider,
            grant: order.grant.id.clone(),
            session_name: Arc::clone(task.session_name()),
            state: LeaseState::Intent,
            revocation: Revocation::Expire,
            opened_at: now,
            usable_until: order.dead_by + outlives.lasts,
            open_ended: outlives.open_ended,
            place: self.parts.exchanges.get(&provider).and_then(|exchange| exchange.location()),
            upstream: None,
            requested: false,
        });
        {
            // In memory first, so that an end that comes in between reports this lease too.
            let mut state = task.state();
            if let Some(ending) = &state.ending {
                return Err(MintError::TaskEnded(ending.reason));
            }
            // Most tasks have one; a list that grows by itself begins with room for four.
            state.leases.reserve_exact(1);
            state.leases.push(record.clone());
        }
        match journal::record(&*self.parts.journal, vec![Change::Lease(Box::new(record))]).await {
            Ok(_) => Ok(id),
            Err(error) => {
                task.state().leases.retain(|lease| lease.id != id);
                Err(MintError::NotRecorded(error.to_string()))
            }
        }
    }

    /// Looks again before anything is asked for: the journal may have been slow, and what was worth asking for then may not
    /// be now. The intent is forgotten where nothing came of it.
    async fn still_wanted(&self, task: &Task, lease: &LeaseId, order: &MintOrder) -> Result<(), MintError> {
        let error = match task.ended() {
            Some(reason) => MintError::TaskEnded(reason),
            None if order.dead_by.since(self.now()) < SHORTEST_LIFE / 2 => {
                MintError::NotRecorded("its intent was durable too late".into())
            }
            None => return Ok(()),
        };
        self.forget_intent(task, lease).await;
        Err(error)
    }

    /// Forgets an intent that certainly came to nothing. One whose answer was lost stays until it must be dead.
    async fn discard(&self, task: &Task, id: &LeaseId, error: &ExchangeError) {
        if error.is_certain() {
            self.forget_intent(task, id).await;
        }
    }

    async fn forget_intent(&self, task: &Task, id: &LeaseId) {
        task.state().forget(id);
        if let Err(error) = journal::record(&*self.parts.journal, vec![Change::ForgetLease(id.clone())]).await {
            tracing::error!(lease = %id, %error, "the journal is behind");
        }
    }

    /// Records what the provider gave, before anyone sees it.
    async fn record_issued(
        &self,
        task: &Task,
        id: &LeaseId,
        given: &Given,
        exchange: &dyn Exchange,
    ) -> Result<Receipt, MintError> {
        let Noted { record, ended_at, change, .. } = match happened(task, id, &Happened::Issued(given.clone())) {
            Ok(noted) => noted,
            Err(error) => {
                // Nobody waits for it any more and nothing lists it: it is revoked here and now, or never.
                self.revoke_unlisted(task, id, given, exchange).await;
                return Err(error);
            }
        };
        if let Some(ended_at) = ended_at.filter(|_| record.revocation == Revocation::Expire) {
            let left = LeaseEnding::from(&*record).residual(ended_at);
            self.parts.metrics.residual(record.provider, left);
        }
        self.write_lease(task, record, change).await
    }

    /// A credential came after its intent had been given up: once more than it was asked for, a provider kept its own time.
    async fn revoke_unlisted(&self, task: &Task, id: &LeaseId, given: &Given, exchange: &dyn Exchange) {
        tracing::error!(task = %task.id(), lease = %id, usable_until = %given.usable_until, "a credential came too late; dropped");
        if given.revocation == Revocation::Exact
            && let Some(revoker) = exchange.revoker()
        {
            let order = RevokeOrder {
                caller: task.owner().clone(),
                handle: given.handle.clone(),
                usable_until: given.usable_until,
                limit: self.parts.limits.mint,
            };
            if let Err(error) = revoker.revoke(&order).await {
                tracing::error!(task = %task.id(), lease = %id, %error, "and was not revoked");
            }
        }
    }
}
