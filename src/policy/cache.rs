//! The policy in force: polled from its source, loaded whole, swapped atomically. A version that is refused changes
//! nothing; the last good one stays. One thing is taken of it even so: a kill list that is good in itself, also where
//! nothing else of the version can be trusted or kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::kill::KillList;
use super::repository::schedule::{Refreshed, Schedule};
use super::repository::{Fetched, PolicyFiles, PolicySource, PolicySourceError, Previous, Use};
use super::standing::Standing;
use super::{LoadOptions, Policy, PolicyVersion, Problem, kind, load, worker};
use crate::clock::{SharedClock, Timestamp};
use crate::retry::{Jitter as _, SystemJitter};

/// The longest interval with which a kill works within 35 s of its publication, and what of the 35 s is left to it.
const KILL_POLL: Duration = Duration::from_secs(30);
const KILL_REST: Duration = Duration::from_secs(5);
/// Where a problem lies that the version before the newest has.
const PREVIOUS: &str = "(previous version)";

/// How one refresh ended; the label of `sidemint_policy_refreshes_total{outcome}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefreshOutcome {
    /// A new version is in force.
    Loaded,
    /// The source has nothing new.
    Unchanged,
    /// The new version is bad as a whole; the last good one stays.
    Refused,
    /// The source could not be read; the last good version stays.
    Unavailable,
}

impl RefreshOutcome {
    /// Every outcome, for metrics that must exist before they first happen.
    pub const ALL: [Self; 4] = [Self::Loaded, Self::Unchanged, Self::Refused, Self::Unavailable];

    /// The stable label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// How the refreshes went so far, for readiness, metrics and status.
#[derive(Debug, Clone, Default)]
pub struct RefreshStatus {
    /// When the last refresh ended, UTC.
    pub at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<RefreshOutcome>,
    /// What is wrong, where it ended badly; empty else.
    pub problems: Vec<Problem>,
    /// How many ended so, in the order of [`RefreshOutcome::ALL`].
    pub counts: [u64; 4],
    /// The last time that something was refused, also where it was fixed since.
    pub refused: Option<Refusal>,
    /// What is odd about the source and harms nothing, one line each.
    pub notes: Vec<String>,
}

/// A version that was refused.
#[derive(Debug, Clone, Serialize)]
pub struct Refusal {
    /// When it was last seen, UTC.
    pub at: Timestamp,
    /// What was wrong with it.
    pub problems: Vec<Problem>,
}

/// The policy in force and the way it is kept current. Share it as `Arc<PolicyCache>`.
#[derive(Debug)]
pub struct PolicyCache {
    source: Arc<dyn PolicySource>,
    options: LoadOptions,
    current: watch::Sender<Option<Arc<Policy>>>,
    status: Mutex<RefreshStatus>,
    /// One refresh at a time.
    refreshing: tokio::sync::Mutex<Known>,
}

/// What one refresh leaves for the next.
#[derive(Debug, Default)]
struct Known {
    /// The version that was refused last, so that it is not loaded again and again.
    refused: Option<PolicyVersion>,
    /// The newest kill list that is good: that of the policy in force, or of a version that was refused for something else.
    kill: Option<Arc<KillList>>,
    /// Whether the policy in force stands under a kill list of another version.
    borrowed: bool,
    /// The version that was refused and whose kill list is the newest.
    lender: Option<PolicyVersion>,
}

/// What one poll of the source came to.
enum Loaded {
    Unchanged,
    Confirmed(Standing),
    Good(Policy),
    Bad(PolicyVersion, Vec<Problem>, Option<Arc<KillList>>),
}

impl PolicyCache {
    /// A cache over `source`, empty until the first refresh.
    pub fn new(source: Arc<dyn PolicySource>, options: LoadOptions) -> Self {
        Self {
            source,
            options,
            current: watch::Sender::new(None),
            status: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
        }
    }

    /// The policy in force; take it once per request. `None` until a first version was good.
    pub fn current(&self) -> Option<Arc<Policy>> {
        self.current.borrow().clone()
    }

    /// Tells of every new version and every new kill list, not of heartbeats; for deciding running tasks again.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Policy>>> {
        self.current.subscribe()
    }

    /// Whether the source is one whose files are signed, also while none of them is in force.
    pub fn is_signed(&self) -> bool {
        self.source.signed()
    }

    /// How the refreshes went so far.
    pub fn status(&self) -> RefreshStatus {
        self.lock().clone()
    }

    /// Refreshes now; at start, at each poll and on SIGHUP. Callers at the same time wait for each other. It is safe to
    /// drop: nothing is swapped then.
    pub async fn reload_now(&self, now: Timestamp) -> RefreshOutcome {
        let mut known = self.refreshing.lock().await;
        let (outcome, mut problems) = match self.fetch(known.seen(self.current())).await {
            // What was refused is still there, and still wrong; the last good one has no more than its own end.
            Ok(Loaded::Unchanged | Loaded::Confirmed(_)) if known.refused.is_some() => {
                (RefreshOutcome::Refused, self.lock().problems.clone())
            }
            Ok(Loaded::Unchanged) => (RefreshOutcome::Unchanged, Vec::new()),
            Ok(Loaded::Confirmed(standing)) => self.confirm(standing),
            Ok(Loaded::Good(policy)) => self.adopt(&mut known, policy),
            Ok(Loaded::Bad(version, problems, kill)) => {
                self.stop_more(&mut known, &version, kill);
                known.refused = Some(version);
                (RefreshOutcome::Refused, problems)
            }
            Err(error) => {
                let problem = Problem::new("(source)", kind::UNREADABLE, error.to_string());
                // What was refused need not be what is there next.
                known.refused = None;
                let outcome = if error.refused { RefreshOutcome::Refused } else { RefreshOutcome::Unavailable };
                (outcome, vec![problem])
            }
        };
        if known.refused.is_some() && self.current().is_none() {
            let found = self.resume(&mut known).await.err().unwrap_or_default();
            problems.retain(|problem| problem.file != PREVIOUS);
            problems.extend(found);
        }
        problems.extend(self.stop_alone(&mut known, now).await);
        self.remember(&known).await;
        self.record(now, outcome, problems);
        outcome
    }

    /// After a start under a version that is refused for what its files say: puts into force what was before it, under the
    /// newest kill list of all. The outcome stays that of the newest.
    async fn resume(&self, known: &mut Known) -> Result<(), Vec<Problem>> {
        let problem = |message: String| Problem::new(PREVIOUS, kind::UNREADABLE, message);
        let previous = self.source.previous().await.map_err(|error| vec![problem(error.to_string())])?;
        let Some(Previous { files, kill }) = previous else { return Ok(()) };
        let options = self.options.clone();
        let work = worker::run(move || previous_policy(&files, kill.as_ref(), &options));
        let (policy, lent) = work
            .await
            .ok_or_else(|| vec![problem("loading it was cut off".to_owned())])?
            .map_err(|problems| problems.iter().map(|found| problem(found.to_string())).collect::<Vec<_>>())?;
        let newest = known.kill.iter().chain(&lent).chain([policy.kill_list()]).max_by_key(|kill| kill.epoch());
        let newest = newest.map_or_else(|| Arc::clone(policy.kill_list()), Arc::clone);
        known.borrowed = *newest != **policy.kill_list();
        known.kill = Some(Arc::clone(&newest));
        tracing::error!(version = %policy.version(), "the newest policy is refused; the one before it is in force again");
        self.current.send_replace(Some(Arc::new(policy.with_kill_list(newest))));
        Ok(())
    }

    /// Has the source remember what is in use, for the next start.
    async fn remember(&self, known: &Known) {
        match (&known.refused, &known.lender) {
            (Some(refused), Some(lender)) if refused == lender => self.source.used(lender, Use::KillList).await,
            (None, _) => {
                if let Some(policy) = self.current().filter(|_| !known.borrowed) {
                    self.source.used(policy.version(), Use::Whole).await;
                }
            }
            _ => {}
        }
    }

    /// A heartbeat: the same version, whose signatures expire later. Nobody is notified, since nothing is to be decided.
    fn confirm(&self, standing: Standing) -> (RefreshOutcome, Vec<Problem>) {
        let Some(confirmed) = self.current().and_then(|policy| policy.confirmed(standing)) else {
            let message = "the source confirms a version that is not in force, or not all of its roles";
            return (RefreshOutcome::Refused, vec![Problem::new("(source)", kind::INVALID, message)]);
        };
        self.current.send_if_modified(|current| {
            *current = Some(Arc::new(confirmed));
            false
        });
        (RefreshOutcome::Unchanged, Vec::new())
    }

    /// Puts a version into force, unless its kill list is older than one that was seen (requirement I6).
    fn adopt(&self, known: &mut Known, policy: Policy) -> (RefreshOutcome, Vec<Problem>) {
        if let Err(problem) = known.goes_on(policy.kill_list()) {
            known.refused = Some(policy.version().clone());
            return (RefreshOutcome::Refused, vec![problem]);
        }
        *known = Known { kill: Some(Arc::clone(policy.kill_list())), ..Known::default() };
        self.current.send_replace(Some(Arc::new(policy)));
        (RefreshOutcome::Loaded, Vec::new())
    }

    /// Takes the kill list of a version that was refused for something else, where it has one that is good.
    fn stop_more(&self, known: &mut Known, version: &PolicyVersion, kill: Option<Arc<KillList>>) {
        let Some(kill) = kill.filter(|kill| known.goes_on(kill).is_ok()) else { return };
        if let Some(policy) = self.current().filter(|policy| **policy.kill_list() != *kill) {
            known.borrowed = true;
            self.current.send_replace(Some(Arc::new(policy.with_kill_list(Arc::clone(&kill)))));
        }
        known.kill = Some(kill);
        known.lender = Some(version.clone());
    }

    /// Takes the kill list of a version of which nothing else could be had. It lifts nothing: who refused the rest of it has
    /// not seen that its owners still have a say.
    async fn stop_alone(&self, known: &mut Known, now: Timestamp) -> Vec<Problem> {
        let Some(files) = self.source.stopping().await else { return Vec::new() };
        let version = files.version.clone();
        let is_newer = load::epoch(&files) > known.kill.as_ref().and_then(|kill| kill.epoch());
        if !is_newer && known.lender.as_ref() != Some(&version) {
            return Vec::new();
        }
        let list = match worker::run(move || load::kill_list(&files)).await {
            Some(Ok(list)) => list,
            Some(Err(problems)) => return problems,
            None => return Vec::new(),
        };
        let list = self.current().map_or_else(|| list.clone(), |policy| list.and(policy.kill_list(), now));
        self.stop_more(known, &version, Some(Arc::new(list)));
        self.source.used(&version, Use::KillList).await;
        Vec::new()
    }

    /// Refreshes at least every `poll`, for ever, after a first refresh that its caller made at once. Drop it to stop.
    pub async fn run(&self, clock: SharedClock, poll: Duration) {
        if self.is_signed() && poll > KILL_POLL {
            let works = poll + KILL_REST;
            tracing::warn!(?poll, "policy.poll is longer than 30s: a kill works within {works:?} of its publication");
        }
        self.run_by(clock, Schedule::new(poll), || SystemJitter.fraction()).await;
    }

    /// The same with another source of randomness: numbers in `[0, 1)`.
    pub async fn run_by(&self, clock: SharedClock, mut schedule: Schedule, random: impl Fn() -> f64 + Send) {
        let mut outcome = self.status().outcome;
        let mut took = Duration::ZERO;
        loop {
            let looked = match outcome {
                Some(RefreshOutcome::Unavailable) => Refreshed::Failed { retry_after: self.source.retry_after() },
                _ => Refreshed::Answered,
            };
            clock.sleep(schedule.pause(looked, took, random())).await;
            let began = clock.boot();
            outcome = Some(self.reload_now(clock.now()).await);
            took = clock.boot().saturating_sub(began);
        }
    }

    /// Fetches and loads off the runtime's threads: ten thousand scopes take a good part of a second.
    async fn fetch(&self, seen: Option<PolicyVersion>) -> Result<Loaded, PolicySourceError> {
        let files = match self.source.fetch(seen.as_ref()).await? {
            Fetched::Unchanged => return Ok(Loaded::Unchanged),
            Fetched::Confirmed(standing) => return Ok(Loaded::Confirmed(standing)),
            Fetched::New(files) => files,
        };
        let options = self.options.clone();
        let work = move || match Policy::load_with(&files, &options) {
            Ok(policy) => Loaded::Good(policy),
            Err(error) => {
                let kill = load::kill_list(&files).ok().map(Arc::new);
                Loaded::Bad(files.version.clone(), error.problems, kill)
            }
        };
        let loaded = match self.current() {
            Some(_) => worker::run(work).await,
            None => worker::run_first(work).await,
        };
        loaded.ok_or_else(|| PolicySourceError::unavailable("loading the policy was cut off"))
    }

    fn record(&self, now: Timestamp, outcome: RefreshOutcome, problems: Vec<Problem>) {
        let mut status = self.lock();
        for (known, count) in RefreshOutcome::ALL.iter().zip(status.counts.iter_mut()) {
            *count += u64::from(*known == outcome);
        }
        if outcome == RefreshOutcome::Refused {
            status.refused = Some(Refusal { at: now, problems: problems.clone() });
        }
        status.at = Some(now);
        status.outcome = Some(outcome);
        status.problems = problems;
        status.notes = self.source.notes();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, RefreshStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads what was in use before: the policy, and the kill list that held over it. Both are good, or nothing is.
fn previous_policy(
    files: &PolicyFiles,
    kill: Option<&PolicyFiles>,
    options: &LoadOptions,
) -> Result<(Policy, Option<Arc<KillList>>), Vec<Problem>> {
    let policy = Policy::load_with(files, options).map_err(|error| error.problems)?;
    let kill = kill.map(load::kill_list).transpose()?;
    Ok((policy, kill.map(Arc::new)))
}

impl Known {
    /// The version that the source need not give again.
    fn seen(&self, current: Option<Arc<Policy>>) -> Option<PolicyVersion> {
        match &self.refused {
            Some(version) => Some(version.clone()),
            // Only the files have the kill list that belongs to it.
            None if self.borrowed => None,
            None => current.map(|policy| policy.version().clone()),
        }
    }

    /// Whether a kill list may follow the newest one.
    fn goes_on(&self, next: &KillList) -> Result<(), Problem> {
        let newest = self.kill.as_ref().and_then(|kill| kill.epoch());
        if next.epoch() >= newest {
            return Ok(());
        }
        let version = |epoch: Option<u64>| epoch.map_or("none".to_owned(), |epoch| epoch.to_string());
        let message =
            format!("goes back: version {} of the role incident, after {}", version(next.epoch()), version(newest));
        Err(Problem::new(super::kill::LIST, kind::INVALID, message))
    }
}

#[cfg(test)]
mod tests;
