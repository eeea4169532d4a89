//! The policy in force: polled from its source, loaded whole, swapped atomically. A version that is refused changes
//! nothing; the last good one stays.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::repository::schedule::{self, Looked, Schedule};
use super::repository::{Fetched, PolicySource, PolicySourceError};
use super::{LoadOptions, Policy, PolicyError, PolicyVersion, Problem};
use crate::clock::{SharedClock, Timestamp};

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

    /// The stable word.
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
}

/// The policy in force and the way it is kept current. Share it as `Arc<PolicyCache>`.
#[derive(Debug)]
pub struct PolicyCache {
    source: Arc<dyn PolicySource>,
    options: LoadOptions,
    current: watch::Sender<Option<Arc<Policy>>>,
    status: Mutex<RefreshStatus>,
    /// One refresh at a time; holds the version that was refused last, so that it is not loaded again and again.
    refreshing: tokio::sync::Mutex<Option<PolicyVersion>>,
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

    /// Tells of every new version; for deciding running tasks again.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Policy>>> {
        self.current.subscribe()
    }

    /// How the refreshes went so far.
    pub fn status(&self) -> RefreshStatus {
        self.lock().clone()
    }

    /// Refreshes now; at start, at each poll and on SIGHUP. Callers at the same time wait for each other. It is safe to
    /// drop: nothing is swapped then.
    pub async fn reload_now(&self, now: Timestamp) -> RefreshOutcome {
        let mut refused = self.refreshing.lock().await;
        let seen = refused.clone().or_else(|| self.current().map(|policy| policy.version().clone()));
        let (outcome, problems) = match self.fetch(seen.as_ref()).await {
            // What was refused is still there, and still wrong.
            Ok(None) if refused.is_some() => (RefreshOutcome::Refused, self.lock().problems.clone()),
            Ok(None) => (RefreshOutcome::Unchanged, Vec::new()),
            Ok(Some((_, Ok(policy)))) => {
                *refused = None;
                self.current.send_replace(Some(Arc::new(policy)));
                (RefreshOutcome::Loaded, Vec::new())
            }
            Ok(Some((version, Err(error)))) => {
                *refused = Some(version);
                (RefreshOutcome::Refused, error.problems)
            }
            Err(error) => {
                let problem = Problem::new("(source)", super::kind::UNREADABLE, error.to_string());
                // What was refused need not be what is there next.
                *refused = None;
                (RefreshOutcome::Unavailable, vec![problem])
            }
        };
        self.record(now, outcome, problems);
        outcome
    }

    /// Refreshes at least every `poll`, for ever, after a first refresh that its caller made at once. Drop it to stop.
    pub async fn run(&self, clock: SharedClock, poll: Duration) {
        self.run_by(clock, Schedule::new(poll), schedule::random).await;
    }

    /// The same with another source of randomness: numbers in `[0, 1)`.
    pub async fn run_by(&self, clock: SharedClock, mut schedule: Schedule, random: impl Fn() -> f64 + Send) {
        let mut outcome = self.status().outcome;
        let mut took = Duration::ZERO;
        loop {
            let looked = match outcome {
                Some(RefreshOutcome::Unavailable) => Looked::Failed { retry_after: self.source.retry_after() },
                _ => Looked::Answered,
            };
            clock.sleep(schedule.pause(looked, took, random())).await;
            let began = clock.boot();
            outcome = Some(self.reload_now(clock.now()).await);
            took = clock.boot().saturating_sub(began);
        }
    }

    /// Fetches and loads off the runtime's threads: ten thousand scopes take a good part of a second.
    async fn fetch(
        &self,
        seen: Option<&PolicyVersion>,
    ) -> Result<Option<(PolicyVersion, Result<Policy, PolicyError>)>, PolicySourceError> {
        let Fetched::New(files) = self.source.fetch(seen).await? else { return Ok(None) };
        let options = self.options.clone();
        let version = files.version.clone();
        let work = tokio::task::spawn_blocking(move || Policy::load_with(&files, &options));
        let loaded = work.await.map_err(|_| PolicySourceError::unavailable("loading the policy was cut off"))?;
        Ok(Some((version, loaded)))
    }

    fn record(&self, now: Timestamp, outcome: RefreshOutcome, problems: Vec<Problem>) {
        let mut status = self.lock();
        for (known, count) in RefreshOutcome::ALL.iter().zip(status.counts.iter_mut()) {
            *count += u64::from(*known == outcome);
        }
        status.at = Some(now);
        status.outcome = Some(outcome);
        status.problems = problems;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, RefreshStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
