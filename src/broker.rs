//! The main path. Three verbs: [`Broker::begin`], [`Broker::credentials`], [`Broker::end`].
//!
//! ```text
//!            who?          may it?          mint            track, revoke
//! request → identity ───→ policy ───→ exchange ───→ lease ───→ response
//!           Evidence       Caller       Permit       Minted     Issued
//!           → Caller       → Permit     → Minted     → Issued
//! ```
//!
//! INVARIANT: decide → journal the intent → exchange → journal the outcome → look again → serve; never otherwise.

mod begin;
mod callers;
mod due;
mod end;
mod error;
mod flight;
mod metrics;
mod mint;
mod outcome;
mod outstanding;
pub mod reaper;
mod recover;
mod renew;
mod revoke;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use tokio::sync::watch;

use crate::audit::Audit;
use crate::clock::{Moment, SharedClock, Timestamp};
use crate::exchange::{Exchange, Provider};
use crate::identity::task_token::TokenHash;
use crate::identity::workload_api::WorkloadApi;
use crate::identity::{Authenticator, Evidence};
use crate::journal::Journal;
use crate::policy::Policy;
use crate::policy::cache::PolicyCache;
use crate::policy::kill::Subject;
use crate::retry::Jitter;
use crate::task::Issued;
use crate::task::{EndReason, Ending, Task, TaskTable};

pub use crate::task::MintError;
pub use begin::{BeginRequest, Begun, Claimant};
pub(crate) use callers::Counted;
pub use end::Stop;
pub use error::{BeginError, CredentialsError, FindError, NoSoleProvider};
pub use metrics::{Limit, Metrics};
pub use outstanding::Outstanding;
pub use revoke::WAIT_FOR_REVOCATION;
pub use view::Census;

/// Limits of the broker.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most tasks that are remembered, ended ones included.
    pub tasks: usize,
    /// The most tasks that run at a time for one caller.
    pub tasks_per_caller: usize,
    /// The most credentials that are asked for in a minute for one caller.
    pub mints_per_caller: u32,
    /// The most requests of one caller that wait for a provider at a time.
    pub waits_per_caller: usize,
    /// The most streams that hold tasks of one caller at a time.
    pub holds_per_caller: usize,
    /// The most requests that are answered at a time.
    pub requests: usize,
    /// How long one exchange may take, its retries included.
    pub mint: Duration,
    /// How long a request waits for an exchange under way.
    pub wait: Duration,
}

impl Default for Limits {
    /// Those of the configuration.
    fn default() -> Self {
        Self {
            tasks: 10_000,
            tasks_per_caller: 1000,
            mints_per_caller: 600,
            waits_per_caller: 1000,
            holds_per_caller: 500,
            requests: 2048,
            mint: Duration::from_secs(15),
            wait: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The same for listeners that take `connections` each: of those, and of the requests, one caller keeps waiting at most
    /// half and holds at most a quarter, whatever is configured, so that there is always room for another.
    #[must_use]
    pub fn within(self, connections: usize) -> Self {
        let share = |part: usize| (connections.min(self.requests) / part).max(1);
        Self {
            waits_per_caller: self.waits_per_caller.min(share(2)),
            holds_per_caller: self.holds_per_caller.min(share(4)),
            ..self
        }
    }
}

/// What the broker is made of; each member is a seam or plain code.
#[derive(Debug)]
pub struct Parts {
    /// Time.
    pub clock: SharedClock,
    /// Our identities.
    pub workload_api: Arc<dyn WorkloadApi>,
    /// Evidence → caller.
    pub authenticator: Authenticator,
    /// The policy in force.
    pub policy: Arc<PolicyCache>,
    /// The providers.
    pub exchanges: BTreeMap<Provider, Arc<dyn Exchange>>,
    /// The durable record.
    pub journal: Arc<dyn Journal>,
    /// The audit log.
    pub audit: Arc<Audit>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// What spreads the tries to revoke a credential.
    pub jitter: Arc<dyn Jitter>,
    /// The limits.
    pub limits: Limits,
}

/// Runs tasks: lets them begin, serves their credentials, ends them.
#[derive(Debug)]
pub struct Broker {
    parts: Parts,
    tasks: TaskTable,
    /// Requests with an idempotency key begin one at a time, so that the same key never begins two tasks.
    idempotent: tokio::sync::Mutex<()>,
    /// How many are being opened: they count as tasks, so that concurrent begins do not pass the limit.
    opening: AtomicUsize,
    callers: callers::Callers,
    /// Whether there were identities and a policy once: until then nobody could hold a task.
    ready: AtomicBool,
    /// Whether the sidecar is being stopped, and its tasks with it: nothing begins any more.
    closing: AtomicBool,
    /// How many begins and exchanges are under way.
    under_way: UnderWay,
    /// Woken when the next thing to end may have come nearer.
    pub(crate) changed: tokio::sync::Notify,
    /// Woken when there may be more to revoke.
    to_revoke: tokio::sync::Notify,
    /// Woken when a lease was revoked, or will not be.
    revoked: tokio::sync::Notify,
    /// How tries to take leases back went wrong, of those that still await revocation.
    failures: outstanding::Failures,
}

impl Broker {
    /// A broker that runs the tasks that `recovered` held, and revokes what their leases still await.
    pub fn new(parts: Parts, recovered: crate::journal::Recovered) -> Arc<Self> {
        let tasks = recover::tasks(recovered, parts.clock.now(), parts.clock.boot());
        Arc::new(Self {
            callers: callers::Callers::new(parts.limits.mints_per_caller),
            parts,
            tasks,
            idempotent: tokio::sync::Mutex::default(),
            opening: AtomicUsize::new(0),
            ready: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            under_way: UnderWay::default(),
            changed: tokio::sync::Notify::new(),
            to_revoke: tokio::sync::Notify::new(),
            revoked: tokio::sync::Notify::new(),
            failures: outstanding::Failures::default(),
        })
    }

    /// Begins a task: authenticate, decide, open.
    ///
    /// # Errors
    /// A refusal, with its public code and its audit detail; then nothing has begun.
    pub async fn begin(self: &Arc<Self>, request: BeginRequest) -> Result<Begun, BeginError> {
        let broker = Arc::clone(self);
        detached(async move {
            let _under_way = broker.under_way.one();
            let now = broker.now();
            let caller = match broker.authenticate(&request, now) {
                Ok(caller) => caller,
                Err(error) => return Err(broker.refuse_begin(&request, None, error).await),
            };
            match broker.open(&request, &caller, now).await {
                Ok(begun) => Ok(begun),
                Err(error) => Err(broker.refuse_begin(&request, Some(&caller), error).await),
            }
        })
        .await
    }

    /// Serves the credential of a task at one provider: the live one, else a new one.
    ///
    /// # Errors
    /// When the token is of no running task, the task may no longer run, or no credential can be had.
    pub async fn credentials(
        self: &Arc<Self>,
        token: &TokenHash,
        provider: Provider,
        request_id: &str,
    ) -> Result<Arc<Issued>, CredentialsError> {
        let Moment { now, boot } = self.parts.clock.moment();
        let task = self.running(token, now, boot).await?;
        match self.serve_live(&task, provider, request_id, now, boot)? {
            Some(issued) => Ok(issued),
            None => self.wait_for_credential(&task, provider, request_id).await,
        }
    }

    /// The same for what needs no waiting, asked `at` this very moment: the live credential of a task against which nothing
    /// speaks. Without a `provider` it is that of the only one that the task's scope grants something at. `None` is no refusal:
    /// [`Broker::credentials`] says more.
    pub(crate) fn live_credential(
        self: &Arc<Self>,
        token: &TokenHash,
        provider: Option<Provider>,
        request_id: &str,
        at: Moment,
    ) -> Option<Arc<Issued>> {
        let task = self.tasks.by_token(token)?;
        if self.reason_to_end_at(&task, at.now, at.boot).is_some() {
            return None;
        }
        // Asked after the policy in force has decided: a new version may grant something elsewhere.
        let provider = provider.or_else(|| task.providers().sole())?;
        self.serve_live(&task, provider, request_id, at.now, at.boot).ok()?
    }

    /// The live credential of a task; where it is due it is renewed, or its successor minted, behind the request's back.
    fn serve_live(
        self: &Arc<Self>,
        task: &Arc<Task>,
        provider: Provider,
        request_id: &str,
        now: Timestamp,
        boot: Duration,
    ) -> Result<Option<Arc<Issued>>, CredentialsError> {
        Ok(match self.find_live(task, provider, now, boot)? {
            Served::Live(issued) => Some(issued),
            Served::Due(issued) => {
                // A failure leaves the live one in service.
                let _ = self.start_exchange(task, provider, Some(request_id));
                Some(issued)
            }
            Served::Missing => None,
        })
    }

    /// The provider that is meant where a request for a credential names none: the only one that the task's scope grants.
    ///
    /// # Errors
    /// When there are several, or the task has no credential to serve at all.
    pub async fn sole_provider(self: &Arc<Self>, token: &TokenHash) -> Result<Provider, NoSoleProvider> {
        let Moment { now, boot } = self.parts.clock.moment();
        let task = self.running(token, now, boot).await?;
        let providers = task.providers();
        match providers.sole() {
            Some(provider) => Ok(provider),
            // No decision without a grant is loaded: nobody has decided yet.
            None if providers.is_empty() => Err(CredentialsError::Mint(MintError::NoPolicy).into()),
            None => Err(NoSoleProvider::Several(providers)),
        }
    }

    /// Ends a task: no longer served from this moment, revoked by class, and an honest report of what is left.
    /// A task that has ended already answers as it did the first time.
    pub async fn end(self: &Arc<Self>, task: &Arc<Task>, stop: impl Into<Stop>, request_id: Option<&str>) -> Ending {
        let Stop { reason, detail } = stop.into();
        let (ending, first) = self.stop_serving(task, reason);
        if first {
            let (broker, task, ended) = (Arc::clone(self), Arc::clone(task), ending.clone());
            let request_id = request_id.map(str::to_owned);
            detached(async move {
                broker.record_end(&task, &ended, detail, request_id.as_deref()).await;
                broker.end_children(&task).await;
            })
            .await;
        }
        ending
    }

    /// The running task of `token`: not ended, not overdue, its identity still ours, still permitted.
    async fn running(
        self: &Arc<Self>,
        token: &TokenHash,
        now: Timestamp,
        boot: Duration,
    ) -> Result<Arc<Task>, CredentialsError> {
        let task = self.tasks.by_token(token).ok_or(CredentialsError::UnknownToken)?;
        match self.still_runs_at(&task, now, boot).await {
            Ok(()) => Ok(task),
            Err(reason) => Err(CredentialsError::TaskEnded(reason)),
        }
    }

    /// Judges a running task at a request for it, and ends it where something speaks against it: the reaper may be late.
    ///
    /// # Errors
    /// Why it has ended.
    pub(crate) async fn still_runs(self: &Arc<Self>, task: &Arc<Task>) -> Result<(), EndReason> {
        self.still_runs_at(task, self.now(), self.parts.clock.boot()).await
    }

    /// The same at `now`, `boot` after the machine's start.
    async fn still_runs_at(
        self: &Arc<Self>,
        task: &Arc<Task>,
        now: Timestamp,
        boot: Duration,
    ) -> Result<(), EndReason> {
        match self.reason_to_end_at(task, now, boot) {
            None => Ok(()),
            Some(stop) => Err(self.end(task, stop, None).await.reason),
        }
    }

    /// Why `task` must not be served now, if anything speaks against it. Decides again when the policy has changed.
    fn reason_to_end(&self, task: &Task) -> Option<Stop> {
        self.reason_to_end_at(task, self.now(), self.parts.clock.boot())
    }

    /// The same at `now`, `boot` after the machine's start.
    fn reason_to_end_at(&self, task: &Task, now: Timestamp, boot: Duration) -> Option<Stop> {
        let policy = self.parts.policy.current();
        let orphan = self.parent_is_over(task, now, boot);
        let mut state = task.state();
        if let Some(ending) = &state.ending {
            return Some(ending.reason.into());
        }
        // Asked each time: an entry is in force, or past, whatever version is.
        if let Some(stop) = policy.as_ref().and_then(|policy| killed(policy, task, now)) {
            return Some(stop);
        }
        if orphan {
            return Some(EndReason::ParentEnded.into());
        }
        if let Some(reason) = task.overdue(&state, now, boot) {
            return Some(reason.into());
        }
        let identities = self.parts.workload_api.identities();
        if identities.known && !identities.vouch_for(task.owner(), now) {
            return Some(EndReason::IdentityWithdrawn.into());
        }
        let policy = policy?;
        if state.decided.as_ref() == Some(policy.version()) {
            return None;
        }
        match policy.still_permits(&task.caller(), &task.begun().ask, task.id(), now) {
            Ok(kept) => {
                state.decide(kept.into());
                None
            }
            Err(denial) => {
                tracing::info!(task = %task.id(), reason = denial.reason.as_str(), "no longer permitted");
                Some(denial.into())
            }
        }
    }

    /// Whether `task` is part of another one that has ended, or should have. The end of a parent ends its children, but
    /// one may begin at that very moment, and a crash may come in between.
    fn parent_is_over(&self, task: &Task, now: Timestamp, boot: Duration) -> bool {
        let Some(parent) = &task.begun().parent else { return false };
        self.tasks.by_id(parent).is_none_or(|parent| {
            let state = parent.state();
            state.ending.is_some() || parent.overdue(&state, now, boot).is_some()
        })
    }

    /// The credential that can be served at once, and whether its successor is due.
    fn find_live(
        &self,
        task: &Task,
        provider: Provider,
        now: Timestamp,
        boot: Duration,
    ) -> Result<Served, CredentialsError> {
        let mut state = task.state();
        if let Some(ending) = &state.ending {
            return Err(CredentialsError::TaskEnded(ending.reason));
        }
        state.last_used = boot;
        let Some(slot) = state.slots.get(provider) else { return Ok(Served::Missing) };
        let Some(issued) = slot.live.as_ref().filter(|issued| issued.is_live(now, boot)) else {
            return Ok(Served::Missing);
        };
        let due = due::is_to_be_replaced(task, issued, now, boot) && slot.flight.is_none();
        Ok(if due { Served::Due(Arc::clone(issued)) } else { Served::Live(Arc::clone(issued)) })
    }

    /// Evidence of a caller, for the routes that read and end tasks.
    ///
    /// # Errors
    /// When the evidence is not trusted.
    pub fn caller(&self, evidence: &Evidence) -> Result<crate::identity::Caller, crate::identity::AuthenticationError> {
        self.parts.authenticator.authenticate(evidence, self.now())
    }

    /// The tasks.
    pub fn tasks(&self) -> &TaskTable {
        &self.tasks
    }

    /// What the broker is made of.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The wall clock.
    pub fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    /// The policy in force.
    pub fn policy(&self) -> Option<Arc<Policy>> {
        self.parts.policy.current()
    }
}

/// The entry of the kill list that stops `task`.
fn killed(policy: &Policy, task: &Task, now: Timestamp) -> Option<Stop> {
    let subject = Subject { scope: &task.begun().ask.scope, spiffe_id: task.owner(), task: Some(task.id()) };
    let entry = policy.stopped(subject, now)?;
    Some(Stop { reason: EndReason::Killed, detail: Some(entry.to_string()) })
}

/// Does `work` to its end, also when whoever waits for it goes away: a caller that hangs up must not leave a task that
/// is in the journal and nowhere else, or an end that was never audited.
async fn detached<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that stops cancels it, and then nothing more is polled here either.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Counts what is under way apart from the requests that wait for it.
#[derive(Debug, Default)]
struct UnderWay(watch::Sender<usize>);

impl UnderWay {
    /// One more, until it is dropped.
    fn one(&self) -> OneUnderWay {
        self.0.send_modify(|count| *count = count.saturating_add(1));
        OneUnderWay(self.0.clone())
    }

    /// Waits until there is none.
    async fn over(&self) {
        // The sender is ours, so there is always an answer.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

struct OneUnderWay(watch::Sender<usize>);

impl Drop for OneUnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// What [`Broker::live`] found.
enum Served {
    /// Serve it.
    Live(Arc<Issued>),
    /// Serve it, and mint its successor.
    Due(Arc<Issued>),
    /// There is nothing to serve.
    Missing,
}
