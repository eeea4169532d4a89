//! A credential that its provider can renew lives on while its task lives, the same secret, whether or not anyone asks for it: a
//! workload reads it once and uses it for hours.

use std::sync::Arc;
use std::time::Duration;

use super::due::{SHORTEST_LIFE, is_to_be_replaced};
use super::outcome::{MintFor, happened};
use super::{Broker, MintError};
use crate::clock::Timestamp;
use crate::exchange::{ExchangeError, Handle, MintOrder, Provider, Renew, RenewOrder, Revocation};
use crate::journal::Receipt;
use crate::lease::life::Event as Happened;
use crate::lease::{LeaseId, LeaseState};
use crate::task::{Ends, Issued, Task, TaskState};

/// A live credential that its provider renews.
pub(super) struct Renewal {
    live: Arc<Issued>,
    /// The provider's name for it.
    handle: Handle,
}

impl Broker {
    /// What of `state` would be renewed at `provider` rather than minted anew.
    pub(super) fn renewal(&self, state: &TaskState, provider: Provider) -> Option<Renewal> {
        let (now, boot) = (self.now(), self.parts.clock.boot());
        let live = state.slots.get(provider)?.live.as_ref().filter(|live| live.is_live(now, boot))?;
        let lease = state.leases.iter().find(|lease| lease.id == *live.lease())?;
        let handle = lease.upstream.as_ref()?;
        let renews = lease.state == LeaseState::Issued
            && lease.revocation == Revocation::Exact
            && self.parts.exchanges.get(&provider)?.renewer()?.can_renew(handle);
        renews.then(|| Renewal { live: Arc::clone(live), handle: handle.clone() })
    }

    /// Where a renewal of a running task is due that no request has asked for.
    pub(super) fn to_renew(&self, task: &Task, state: &TaskState, now: Timestamp, boot: Duration) -> Vec<Provider> {
        let due = state.slots.iter().filter(|(provider, slot)| {
            slot.flight.is_none()
                && slot.quiet_until <= boot
                && slot.live.as_ref().is_some_and(|live| is_to_be_replaced(task, live, now, boot))
                && self.renewal(state, *provider).is_some()
        });
        due.map(|(provider, _)| provider).collect()
    }

    /// Renews a live credential within `order`; `None` where another is to be minted instead.
    ///
    /// INVARIANT: decide → later end durable → renew → outcome durable → look again.
    pub(super) async fn renew(
        self: &Arc<Self>,
        task: &Arc<Task>,
        Renewal { live, handle }: Renewal,
        order: &MintOrder,
        renewer: &dyn Renew,
        of: &MintFor<'_>,
    ) -> Result<Option<Arc<Issued>>, MintError> {
        let (lease, lasts) = (live.lease(), order.grant.outlives.lasts);
        // Whatever becomes of the answer, the record never says less than what may be.
        let (before, promised) = self.amend_lease(task, lease, &Happened::Renewing(order.dead_by + lasts)).await?;
        if let Some(reason) = task.ended() {
            return Err(MintError::TaskEnded(reason));
        }
        let grant = order.grant.clone();
        let asked = RenewOrder { handle: handle.clone(), grant, dead_by: order.dead_by, limit: order.limit };
        let usable_until = match renewer.renew(&asked).await {
            Ok(renewed) => renewed.usable_until,
            Err(error) => return self.not_renewed(task, &live, error),
        };
        let ends = Ends { usable_until, deadline: task.deadline() };
        if usable_until < live.usable_until() {
            let at = self.parts.clock.moment();
            ends_sooner(task, of.provider, live.renewed(ends, at, &promised));
        }
        // Of a task that ended meanwhile this says what is left; its lease is revoked like any other.
        let end = (usable_until + lasts).max(before);
        let (_, receipt) = self.amend_lease(task, lease, &Happened::Renewed(end)).await?;
        self.audit_given(task, lease, (&handle, end), "renewed", of).await?;
        self.recheck(task, of.request_id).await?;
        if usable_until > order.dead_by {
            tracing::error!(task = %task.id(), %lease, %usable_until, "renewed for longer than the law of life allows");
            return Ok(None);
        }
        let gained = usable_until.since(live.usable_until());
        let at = self.parts.clock.moment();
        let issued = live.renewed(ends, at, &receipt);
        // Its maximum life is reached.
        Ok((gained >= SHORTEST_LIFE && issued.is_live(at.now, at.boot)).then(|| Arc::new(issued)))
    }

    /// What passes is tried again while there is time for it; else another credential is minted.
    fn not_renewed(&self, task: &Task, live: &Issued, error: ExchangeError) -> Result<Option<Arc<Issued>>, MintError> {
        let (now, boot) = (self.now(), self.parts.clock.boot());
        tracing::warn!(task = %task.id(), lease = %live.lease(), %error, "not renewed");
        let passing = matches!(error, ExchangeError::Unavailable { .. } | ExchangeError::NotAsked { .. });
        if !passing || live.is_pressing(now, boot) {
            return Ok(None);
        }
        Err(MintError::Exchange(Arc::new(error)))
    }

    /// Lets `event` happen to a lease, and makes that durable. Returns the expiry that the lease had before.
    async fn amend_lease(
        &self,
        task: &Task,
        id: &LeaseId,
        event: &Happened,
    ) -> Result<(Timestamp, Receipt), MintError> {
        // Revoked with its task meanwhile, it has no more of a life.
        let ended = |error| task.ended().map_or(error, MintError::TaskEnded);
        let done = happened(task, id, event).map_err(ended)?;
        let before = done.before;
        Ok((before, self.write_lease(task, done.record, done.change).await?))
    }
}

/// A provider's word that its credential ends sooner than it said before holds at once, whatever else becomes of it: what is dead
/// there is not served while another is minted.
fn ends_sooner(task: &Task, provider: Provider, issued: Issued) {
    let mut state = task.state();
    if state.ending.is_none()
        && let Some(live) = &mut state.slots.of(provider).live
        && live.lease() == issued.lease()
    {
        *live = Arc::new(issued);
    }
}
