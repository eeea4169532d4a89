//! One exchange for all who wait: started once per task and provider, detached from the requests that need it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Broker, CredentialsError, MintError};
use crate::audit::{Event, Kind};
use crate::clock::{Timestamp, within};
use crate::exchange::{Cloud, ExchangeError, MintOrder, Provider, Revocation, RevokeOrder};
use crate::lease::journal::{self, Change, Receipt};
use crate::lease::life::{Event as Happened, Word};
use crate::lease::{Issued, LeaseEnding, LeaseFacts, LeaseId, LeaseRecord, LeaseState};
use crate::metrics::Limit;
use crate::policy::{DenialReason, Permit, ResolvedGrant};
use crate::task::{Flight, FlightResult, Task};

/// A credential that would die sooner than this is not worth asking for.
const SHORTEST_LIFE: Duration = Duration::from_secs(5);
/// How long a provider is left alone after it refused for good.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// How long a provider is left alone at most after it said when to come back.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Broker {
    /// A credential for one who has to wait for it.
    pub(super) async fn fresh(
        self: &Arc<Self>,
        task: &Arc<Task>,
        provider: Provider,
        request_id: &str,
    ) -> Result<Arc<Issued>, CredentialsError> {
        let flight = self.mint(task, provider, request_id)?;
        let issued = self.await_flight(flight).await?;
        self.still_good(task, issued)
    }

    /// Joins the exchange under way for `task` at `provider`, or starts one.
    pub(super) fn mint(
        self: &Arc<Self>,
        task: &Arc<Task>,
        provider: Provider,
        request_id: &str,
    ) -> Result<Flight, MintError> {
        let mut state = task.state();
        if let Some(ending) = &state.ending {
            return Err(MintError::TaskEnded(ending.reason));
        }
        let slot = state.slots.of(provider);
        // A flight whose sender is gone without an outcome has crashed; it must not ground the next one.
        if let Some(flight) = slot.flight.as_ref().filter(|flight| flight.has_changed().is_ok()) {
            return Ok(flight.clone());
        }
        if let Some((until, error)) = slot.cooling.as_deref()
            && self.parts.clock.boot() < *until
        {
            return Err(error.clone());
        }
        if let Err(wait) = self.callers.take_mint(task.owner(), self.parts.clock.boot()) {
            self.parts.metrics.limited(Limit::MintsPerCaller);
            return Err(MintError::TooOften(wait));
        }
        let (outcome, flight) = watch::channel(None);
        slot.flight = Some(flight.clone());
        drop(state);
        let (broker, task, request_id) = (Arc::clone(self), Arc::clone(task), request_id.to_owned());
        tokio::spawn(async move {
            let result = broker.fly(&task, provider, &request_id).await;
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
    async fn fly(self: &Arc<Self>, task: &Arc<Task>, provider: Provider, request_id: &str) -> FlightResult {
        let started = self.parts.clock.boot();
        let result = self.exchange(task, provider, request_id).await;
        let took = self.parts.clock.boot().saturating_sub(started);
        let outcome = result.as_ref().map_or_else(MintError::kind, |_| "minted");
        self.parts.metrics.mint(provider.as_str(), task.begun().tier.as_str(), outcome, took);
        if let Err(error) = &result {
            tracing::warn!(task = %task.id(), %provider, request_id, %error, "nothing minted");
            let event = Event {
                request_id: Some(request_id),
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
        result
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
                let pause = error.retry_after().unwrap_or(REFUSED_PAUSE).min(LONGEST_PAUSE);
                slot.cooling = Some(Box::new((self.parts.clock.boot() + pause, error.clone())));
            }
        }
    }

    /// INVARIANT: decide → intent durable → exchange → outcome durable → look again.
    async fn exchange(self: &Arc<Self>, task: &Arc<Task>, provider: Provider, request_id: &str) -> FlightResult {
        self.parts.clock.trusted().map_err(MintError::ClockUntrusted)?;
        let now = self.now();
        let policy = self.parts.policy.current().ok_or(MintError::NoPolicy)?;
        // Decided anew for every credential: what depends on the date alone must not wait for a new policy version.
        let permit = match policy.decide_for(&task.caller(), &task.begun().ask, Some(task.id()), now) {
            Ok(permit) => permit,
            // What is live is served to its own end (design §4): a policy that is not renewed ends no task.
            Err(denial) if denial.reason == DenialReason::PolicyExpired => {
                return Err(MintError::PolicyExpired(denial.detail.into()));
            }
            Err(denial) => {
                let ending = self.end(task, denial, Some(request_id)).await;
                return Err(MintError::TaskEnded(ending.reason));
            }
        };
        let grant = grant_at(&permit, provider).ok_or(MintError::NoGrant(provider))?;
        let cloud = self.parts.clouds.get(&provider).ok_or(MintError::NoGrant(provider))?;
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

        let lease = self.intend(task, provider, &order, now).await?;
        self.still_wanted(task, &lease, &order).await?;
        let minted = match cloud.mint(&order).await {
            Ok(minted) => minted,
            Err(error) => {
                self.discard(task, &lease, &error).await;
                return Err(MintError::Exchange(Arc::new(error)));
            }
        };
        let word = Word {
            revocation: minted.revocation,
            usable_until: minted.usable_until + order.grant.outlives.lasts,
            upstream: minted.upstream.clone(),
        };
        let receipt = self.record_issued(task, &lease, &word, &**cloud).await?;
        self.audit_minted(task, &lease, &word, &permit, (provider, request_id)).await?;
        if let Some(stop) = self.reason_to_end(task) {
            let ending = self.end(task, stop, Some(request_id)).await;
            return Err(MintError::TaskEnded(ending.reason));
        }
        // Its ends could not be fixed on a clock that jumped meanwhile.
        self.parts.clock.trusted().map_err(MintError::ClockUntrusted)?;
        let (now, boot) = (self.now(), self.parts.clock.boot());
        let issued = Issued::new(lease, minted, task.deadline(), (now, boot), &receipt);
        if issued.is_live(now, boot) { Ok(Arc::new(issued)) } else { Err(dead_on_arrival()) }
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
        match error {
            ExchangeError::Refused { .. } | ExchangeError::Inexpressible { .. } | ExchangeError::NoSvid { .. } => {}
            ExchangeError::Unavailable { .. } | ExchangeError::Unusable { .. } => return,
        }
        self.forget_intent(task, id).await;
    }

    async fn forget_intent(&self, task: &Task, id: &LeaseId) {
        task.state().leases.retain(|lease| lease.id != *id);
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
        cloud: &dyn Cloud,
    ) -> Result<Receipt, MintError> {
        let change;
        let record = match answered(task, id, word) {
            Ok((record, ended_at, at)) => {
                change = at;
                if let Some(ended_at) = ended_at.filter(|_| record.revocation == Revocation::Expire) {
                    let left = LeaseEnding::from(&*record).residual(ended_at);
                    self.parts.metrics.residual(record.provider.as_str(), left);
                }
                record
            }
            Err(error) => {
                // Nobody waits for it any more and nothing lists it: it is taken back here and now, or never.
                self.take_back_unlisted(task, id, word, cloud).await;
                return Err(error);
            }
        };
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
    async fn take_back_unlisted(&self, task: &Task, id: &LeaseId, word: &Word, cloud: &dyn Cloud) {
        tracing::error!(task = %task.id(), lease = %id, usable_until = %word.usable_until, "a credential came too late; dropped");
        if word.revocation == Revocation::Exact {
            let order = RevokeOrder {
                caller: task.owner().clone(),
                upstream: word.upstream.clone(),
                limit: self.parts.limits.mint,
            };
            if let Err(error) = cloud.revoke(&order).await {
                tracing::error!(task = %task.id(), lease = %id, %error, "and was not revoked");
            }
        }
    }

    async fn audit_minted(
        &self,
        task: &Task,
        lease: &LeaseId,
        word: &Word,
        permit: &Permit,
        (provider, request_id): (Provider, &str),
    ) -> Result<(), MintError> {
        let record = task.begun();
        let event = Event {
            request_id: Some(request_id),
            task: Some(task.id()),
            label: record.label.as_deref(),
            spiffe_id: Some(task.owner()),
            scope: Some(&record.ask.scope),
            tier: Some(permit.tier()),
            policy_version: Some(&permit.policy_version().0),
            rule_ids: permit.rule_ids(),
            stale: permit.stale(),
            provider: Some(provider),
            lease: Some(lease),
            session_name: Some(task.session_name()),
            upstream: Some(&word.upstream),
            usable_until: Some(word.usable_until),
            ..Event::new(self.now(), Kind::Mint, "minted")
        };
        self.parts.audit.record(&event).await.map_err(|error| MintError::NotRecorded(error.to_string()))
    }
}

/// Puts the provider's word into the lease of `id`; tells it as it is now, when its task ended, where it has, and which
/// change of the task this was.
fn answered(task: &Task, id: &LeaseId, word: &Word) -> Result<(LeaseRecord, Option<Timestamp>, u32), MintError> {
    let mut state = task.state();
    let lease = state.leases.iter_mut().find(|lease| lease.id == *id);
    let lease = lease.ok_or_else(|| MintError::NotRecorded("its intent is gone".into()))?;
    lease.apply(&Happened::Issued(word.clone())).map_err(|refused| MintError::NotRecorded(refused.to_string()))?;
    let record = lease.clone();
    let mut ended_at = None;
    if let Some(ending) = &mut state.ending {
        // The report names the intent: it says from now on what the provider said.
        ending.tell(&record);
        ended_at = Some(ending.ended_at);
        state.touch();
    }
    state.amend();
    Ok((record, ended_at, state.change()))
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
