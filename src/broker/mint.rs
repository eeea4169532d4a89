//! One exchange for all who wait: started once per task and provider, detached from the requests that need it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Broker, CredentialsError, MintError, renew};
use crate::audit::{Event, Kind};
use crate::clock::{Timestamp, within};
use crate::exchange::{Exchange, ExchangeError, Handle, MintOrder, Provider, Revocation, RevokeOrder};
use crate::lease::journal::{self, Change, Receipt};
use crate::lease::life::{Event as Happened, Word};
use crate::lease::{Issued, LeaseEnding, LeaseFacts, LeaseId, LeaseRecord, LeaseState};
use crate::metrics::Limit;
use crate::policy::{DenialReason, Permit, ResolvedGrant};
use crate::task::{Flight, FlightResult, Task};

/// A credential that would die sooner than this is not worth asking for, nor a later end that comes no later than this.
pub(super) const SHORTEST_LIFE: Duration = Duration::from_secs(5);
/// How long a provider is left alone after it refused for good.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// How long a provider is left alone at most after it said when to come back.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a credential is asked for by.
pub(super) struct MintFor<'a> {
    pub(super) permit: &'a Permit,
    pub(super) provider: Provider,
    /// Of the request that wants it, where one does.
    pub(super) request_id: Option<&'a str>,
}

impl Broker {
    /// A credential for one who has to wait for it.
    pub(super) async fn fresh(
        self: &Arc<Self>,
        task: &Arc<Task>,
        provider: Provider,
        request_id: &str,
    ) -> Result<Arc<Issued>, CredentialsError> {
        let _place = self.let_wait(task.owner()).ok_or(MintError::TooManyWait)?;
        let flight = self.mint(task, provider, Some(request_id))?;
        let issued = self.await_flight(flight).await?;
        self.still_good(task, issued)
    }

    /// Joins the exchange under way for `task` at `provider`, or starts one.
    pub(super) fn mint(
        self: &Arc<Self>,
        task: &Arc<Task>,
        provider: Provider,
        request_id: Option<&str>,
    ) -> Result<Flight, MintError> {
        let mut state = task.state();
        if let Some(ending) = &state.ending {
            return Err(MintError::TaskEnded(ending.reason));
        }
        let renews = self.renewal(&state, provider).is_some();
        let slot = state.slots.of(provider);
        // A flight whose sender is gone without an outcome has crashed; it must not ground the next one.
        if let Some(flight) = slot.flight.as_ref().filter(|flight| flight.has_changed().is_ok()) {
            return Ok(flight.clone());
        }
        // Whoever asks saw neither a credential nor an exchange: one may have come of the other since.
        let (now, boot) = (self.now(), self.parts.clock.boot());
        let fresh = |live: &&Arc<Issued>| live.is_live(now, boot) && !renew::is_to_be_replaced(task, live, now, boot);
        if let Some(live) = slot.live.as_ref().filter(fresh) {
            return Ok(watch::channel(Some(Ok(Arc::clone(live)))).1);
        }
        if let Some((until, error)) = slot.cooling.as_deref()
            && boot < *until
        {
            return Err(error.clone());
        }
        // Nobody asks for a renewal, and no credential is more by it.
        if !renews && let Err(wait) = self.callers.take_mint(task.owner(), boot) {
            self.parts.metrics.limited(Limit::MintsPerCaller);
            return Err(MintError::TooOften(wait));
        }
        let (outcome, flight) = watch::channel(None);
        slot.flight = Some(flight.clone());
        // Before the task can end: whoever ends it sees what it must wait for.
        let under_way = self.under_way.one();
        drop(state);
        let (broker, task, request_id) = (Arc::clone(self), Arc::clone(task), request_id.map(str::to_owned));
        tokio::spawn(async move {
            let _under_way = under_way;
            let result = broker.fly(&task, provider, request_id.as_deref()).await;
            broker.land(&task, provider, &result);
            outcome.send_replace(Some(result));
        });
        Ok(flight)
    }

    /// Waits for an exchange under way, as long as a request may; the exchange itself goes on.
    async fn await_flight(&self, mut flight: Flight) -> Result<Arc<Issued>, CredentialsError> {
        let landed = flight.wait_for(Option::is_some);
        let result = match within(&*self.parts.clock, self.parts.limits.wait, landed).await {
            Some(Ok(outcome)) => outcome.clone(),
            Some(Err(_)) => Some(Err(MintError::NotRecorded("the exchange crashed".into()))),
            None => None,
        };
        Ok(result.unwrap_or(Err(MintError::StillMinting))?)
    }

    /// Looks once more at what an exchange gave, for one who waited for it: meanwhile the task may have ended, or the
    /// machine slept.
    fn still_good(&self, task: &Task, issued: Arc<Issued>) -> Result<Arc<Issued>, CredentialsError> {
        if let Some(ending) = &task.state().ending {
            return Err(CredentialsError::TaskEnded(ending.reason));
        }
        if issued.is_live(self.now(), self.parts.clock.boot()) { Ok(issued) } else { Err(dead_on_arrival().into()) }
    }

    /// Exchange, counted and audited whatever comes of it.
    async fn fly(self: &Arc<Self>, task: &Arc<Task>, provider: Provider, request_id: Option<&str>) -> FlightResult {
        let started = self.parts.clock.boot();
        let result = self.exchange(task, provider, request_id).await;
        let took = self.parts.clock.boot().saturating_sub(started);
        let outcome = result.as_ref().map_or_else(MintError::kind, |(_, word)| word);
        self.parts.metrics.mint(provider.as_str(), task.begun().tier.as_str(), outcome, took);
        if let Err(error) = &result {
            tracing::warn!(task = %task.id(), %provider, request_id, %error, "nothing minted");
            let event = Event {
                request_id,
                reason: Some(error.kind()),
                detail: Some(error.to_string()),
                task: Some(task.id()),
                spiffe_id: Some(task.owner()),
                scope: Some(&task.begun().ask.scope),
                tier: Some(task.begun().tier),
                provider: Some(provider),
                session_name: Some(task.session_name()),
                ..Event::new(self.now(), Kind::Mint, "failed")
            };
            // Nothing was minted; the failure to say so is logged by the audit log itself.
            let _ = self.parts.audit.record(&event).await;
        }
        result.map(|(issued, _)| issued)
    }

    /// Puts the outcome where the next request finds it, unless the task has ended meanwhile.
    fn land(&self, task: &Task, provider: Provider, result: &FlightResult) {
        let mut state = task.state();
        if state.ending.is_some() {
            return;
        }
        let slot = state.slots.of(provider);
        slot.flight = None;
        match result {
            Ok(issued) => {
                slot.cooling = None;
                slot.live = Some(Arc::clone(issued));
            }
            Err(error) => {
                let (now, boot) = (self.now(), self.parts.clock.boot());
                if let Some(live) = &slot.live {
                    // What is tried again though nobody waits for it must not fill the audit log in an outage.
                    slot.quiet_until = boot + live.told_life(now, boot) / 8;
                }
                let pause = error.retry_after().unwrap_or(REFUSED_PAUSE).min(LONGEST_PAUSE);
                slot.cooling = Some(Box::new((boot + pause, error.clone())));
            }
        }
    }

    /// Lets the credential that is live live on where its provider can, else asks for another. Returns the word for which it was.
    ///
    /// INVARIANT: decide → intent durable → exchange → outcome durable → look again.
    async fn exchange(
        self: &Arc<Self>,
        task: &Arc<Task>,
        provider: Provider,
        request_id: Option<&str>,
    ) -> Result<(Arc<Issued>, &'static str), MintError> {
        self.parts.clock.trusted().map_err(MintError::ClockUntrusted)?;
        let now = self.now();
        // What could not be audited would not be served either, and live on at its provider.
        self.parts.audit.writable(now).await.map_err(|error| MintError::NotRecorded(error.to_string()))?;
        let policy = self.parts.policy.current().ok_or(MintError::NoPolicy)?;
        // Decided anew for every credential: what depends on the date alone must not wait for a new policy version.
        let permit = match policy.decide_for(&task.caller(), &task.begun().ask, Some(task.id()), now) {
            Ok(permit) => permit,
            // What is live is served to its own end (docs/policy.md): a policy that is not renewed ends no task.
            Err(denial) if denial.reason == DenialReason::PolicyExpired => {
                return Err(MintError::PolicyExpired(denial.detail.into()));
            }
            Err(denial) => {
                let ending = self.end(task, denial, request_id).await;
                return Err(MintError::TaskEnded(ending.reason));
            }
        };
        let grant = grant_at(&permit, provider).ok_or(MintError::NoGrant(provider))?;
        let cloud = self.parts.exchanges.get(&provider).ok_or(MintError::NoGrant(provider))?;
        let left = task.left(now, self.parts.clock.boot());
        let max_session = grant.max_session;
        let dead_by = dead_by(&permit, &grant, left, self.parts.clock.earliest()).ok_or(MintError::TooLate)?;
        let order = MintOrder {
            caller: task.owner().clone(),
            session_name: task.session_name().to_string(),
            grant,
            dead_by,
            max_life: permit.caps().max_residual.min(max_session),
            limit: self.parts.limits.mint,
        };

        let of = MintFor { permit: &permit, provider, request_id };
        let renewal = self.renewal(&task.state(), provider);
        if let Some((renewal, renewer)) = renewal.zip(cloud.renewer()) {
            if let Some(issued) = self.renew(task, renewal, &order, renewer, &of).await? {
                return Ok((issued, "renewed"));
            }
            // Counted, and not refused: one for each life that ends.
            let _ = self.callers.take_mint(task.owner(), self.parts.clock.boot());
        }

        let lease = self.intend(task, provider, &order, self.now()).await?;
        self.still_wanted(task, &lease, &order).await?;
        let minted = match cloud.mint(&order).await {
            Ok(minted) => minted,
            Err(error) => {
                self.discard(task, &lease, &error).await;
                return Err(MintError::Exchange(Arc::new(error)));
            }
        };
        let word = Word {
            revocation: minted.revocability.class(),
            usable_until: minted.usable_until + order.grant.outlives.lasts,
            handle: minted.revocability.handle().clone(),
        };
        let receipt = self.record_issued(task, &lease, &word, &**cloud).await?;
        self.audit_given(task, &lease, (&word.handle, word.usable_until), "minted", &of).await?;
        self.look_again(task, request_id).await?;
        let (now, boot) = (self.now(), self.parts.clock.boot());
        let issued = Issued::new(lease, minted, task.deadline(), (now, boot), &receipt);
        if issued.is_live(now, boot) { Ok((Arc::new(issued), "minted")) } else { Err(dead_on_arrival()) }
    }

    /// Looks again before what a provider gave is served: policy, task and clocks may be others than when it was asked.
    pub(super) async fn look_again(
        self: &Arc<Self>,
        task: &Arc<Task>,
        request_id: Option<&str>,
    ) -> Result<(), MintError> {
        if let Some(stop) = self.reason_to_end(task) {
            let ending = self.end(task, stop, request_id).await;
            return Err(MintError::TaskEnded(ending.reason));
        }
        // Its ends could not be fixed on a clock that jumped meanwhile.
        self.parts.clock.trusted().map_err(MintError::ClockUntrusted)
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
        word: &Word,
        cloud: &dyn Exchange,
    ) -> Result<Receipt, MintError> {
        let Noted { record, ended_at, change, .. } = match happened(task, id, &Happened::Issued(word.clone())) {
            Ok(noted) => noted,
            Err(error) => {
                // Nobody waits for it any more and nothing lists it: it is taken back here and now, or never.
                self.take_back_unlisted(task, id, word, cloud).await;
                return Err(error);
            }
        };
        if let Some(ended_at) = ended_at.filter(|_| record.revocation == Revocation::Expire) {
            let left = LeaseEnding::from(&*record).residual(ended_at);
            self.parts.metrics.residual(record.provider.as_str(), left);
        }
        self.write_lease(task, record, change).await
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
        // The task may have ended meanwhile: then this is taken back, whether or not it is recorded.
        if state.ending.is_some() {
            self.to_revoke.notify_one();
        }
        drop(state);
        recorded.map_err(|error| MintError::NotRecorded(error.to_string()))
    }

    /// A credential came after its intent had been given up: once more than it was asked for, a provider kept its own time.
    async fn take_back_unlisted(&self, task: &Task, id: &LeaseId, word: &Word, cloud: &dyn Exchange) {
        tracing::error!(task = %task.id(), lease = %id, usable_until = %word.usable_until, "a credential came too late; dropped");
        if word.revocation == Revocation::Exact
            && let Some(revoker) = cloud.revoker()
        {
            let order = RevokeOrder {
                caller: task.owner().clone(),
                handle: word.handle.clone(),
                usable_until: word.usable_until,
                limit: self.parts.limits.mint,
            };
            if let Err(error) = revoker.revoke(&order).await {
                tracing::error!(task = %task.id(), lease = %id, %error, "and was not revoked");
            }
        }
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
    /// Until when it was usable before, for all that was known.
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
fn dead_on_arrival() -> MintError {
    MintError::Exchange(Arc::new(ExchangeError::Unusable {
        detail: "it was dead before it could be served".to_owned(),
    }))
}

fn grant_at(permit: &Permit, provider: Provider) -> Option<ResolvedGrant> {
    permit.grants().iter().find(|grant| grant.provider.provider() == provider).cloned()
}

/// The law of life: the earliest of `max_residual`, what is `left` of the task and the grant's `max_session`, in whole
/// seconds; `None` when that leaves too little.
fn dead_by(permit: &Permit, grant: &ResolvedGrant, left: Duration, now: Timestamp) -> Option<Timestamp> {
    let life = permit.caps().max_residual.min(grant.max_session).min(left);
    (life >= SHORTEST_LIFE).then(|| (now + life).floor_to_second())
}
