//! One exchange for all who wait: started once per task and provider, detached from the requests that need it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::due::{dead_by, is_to_be_replaced};
use super::outcome::{MintFor, dead_on_arrival};
use super::{Broker, CredentialsError, Limit, MintError};
use crate::audit::{Event, Kind};
use crate::clock::within;
use crate::exchange::{MintOrder, Provider};
use crate::policy::{DenialReason, Permit, ResolvedGrant};
use crate::task::Issued;
use crate::task::{Flight, FlightResult, Task};

/// How long a provider is not asked after it refused for good.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// How long a provider is not asked at most after it said when to come back.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Broker {
    /// A credential for one who has to wait for it.
    pub(super) async fn wait_for_credential(
        self: &Arc<Self>,
        task: &Arc<Task>,
        provider: Provider,
        request_id: &str,
    ) -> Result<Arc<Issued>, CredentialsError> {
        let _place = self.let_wait(task.owner()).ok_or(MintError::TooManyWait)?;
        let flight = self.start_exchange(task, provider, Some(request_id))?;
        let issued = self.await_outcome(flight).await?;
        self.still_good(task, issued)
    }

    /// Joins the exchange under way for `task` at `provider`, or starts one.
    pub(super) fn start_exchange(
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
        let fresh = |live: &&Arc<Issued>| live.is_live(now, boot) && !is_to_be_replaced(task, live, now, boot);
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
            let result = broker.run_exchange(&task, provider, request_id.as_deref()).await;
            broker.complete(&task, provider, &result);
            outcome.send_replace(Some(result));
        });
        Ok(flight)
    }

    /// Waits for an exchange under way, as long as a request may; the exchange itself goes on.
    async fn await_outcome(&self, mut flight: Flight) -> Result<Arc<Issued>, CredentialsError> {
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
    async fn run_exchange(
        self: &Arc<Self>,
        task: &Arc<Task>,
        provider: Provider,
        request_id: Option<&str>,
    ) -> FlightResult {
        let started = self.parts.clock.boot();
        let result = self.exchange(task, provider, request_id).await;
        let took = self.parts.clock.boot().saturating_sub(started);
        let outcome = result.as_ref().map_or_else(MintError::kind, |(_, word)| word);
        self.parts.metrics.mint(provider, task.begun().tier, outcome, took);
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
    fn complete(&self, task: &Task, provider: Provider, result: &FlightResult) {
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
                    slot.quiet_until = boot + live.advertised_life(now, boot) / 8;
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

        Ok((self.mint_new(task, &**cloud, &order, &of).await?, "minted"))
    }
}

fn grant_at(permit: &Permit, provider: Provider) -> Option<ResolvedGrant> {
    permit.grants().iter().find(|grant| grant.provider.provider() == provider).cloned()
}
