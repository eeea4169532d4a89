//! What one caller may have of what all share: tasks, credentials per minute, requests that wait, connections that are held.
//! One that asks without end is refused by its own limit, and the others never meet theirs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Broker, Limit};
use crate::identity::SpiffeId;
use crate::retry::{Rate, TokenBucket};

const MINUTE: Duration = Duration::from_secs(60);
/// So many callers are remembered before those are forgotten about whom there is nothing to remember. A sidecar serves a
/// handful: only identities that the Workload API gives it as well get this far.
const MANY: usize = 1024;

/// The books on every caller.
#[derive(Debug)]
pub(super) struct Callers {
    rate: Rate,
    buckets: Mutex<HashMap<SpiffeId, TokenBucket>>,
    /// Tasks that are being opened.
    opening: Counts,
    /// Requests that wait for a provider.
    waiting: Counts,
    /// Streams that hold a task.
    holding: Counts,
}

/// How many of one kind each caller has now; those who have none are not in it.
#[derive(Debug, Default)]
struct Counts(Arc<Mutex<HashMap<SpiffeId, usize>>>);

/// One of what is counted; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    counts: Arc<Mutex<HashMap<SpiffeId, usize>>>,
    caller: SpiffeId,
}

impl Counts {
    /// Counts one more of `caller`, and says how many there are now.
    fn take(&self, caller: &SpiffeId) -> (Counted, usize) {
        let mut counts = locked(&self.0);
        let count = counts.entry(caller.clone()).or_default();
        *count = count.saturating_add(1);
        (Counted { counts: Arc::clone(&self.0), caller: caller.clone() }, *count)
    }

    /// Counts one more of `caller`, unless it has `most` already.
    fn take_one_of(&self, caller: &SpiffeId, most: usize) -> Option<Counted> {
        let (taken, count) = self.take(caller);
        (count <= most).then_some(taken)
    }
}

impl Callers {
    /// Allows each caller `mints` credentials a minute, all at once or spread.
    pub(super) fn new(mints: u32) -> Self {
        let mints = mints.max(1);
        let rate = Rate { interval: MINUTE / mints, burst: mints };
        Self {
            rate,
            buckets: Mutex::default(),
            opening: Counts::default(),
            waiting: Counts::default(),
            holding: Counts::default(),
        }
    }

    /// Takes one credential off what `caller` may have at `now` (time since boot).
    ///
    /// # Errors
    /// How long until there is one again; then nothing was taken.
    pub(super) fn take_mint(&self, caller: &SpiffeId, now: Duration) -> Result<(), Duration> {
        let mut buckets = locked(&self.buckets);
        if buckets.len() >= MANY {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = buckets.entry(caller.clone()).or_insert_with(|| TokenBucket::new(self.rate));
        bucket.take(now, Duration::ZERO).map(drop)
    }

    /// Counts a task of `caller` as one that is being opened, and says how many are.
    pub(super) fn open(&self, caller: &SpiffeId) -> (Counted, usize) {
        self.opening.take(caller)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = locked(&self.counts);
        if let Some(count) = counts.get_mut(&self.caller) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

impl Broker {
    /// Lets one more request of `caller` wait for a provider; `None`, and counted, where as many wait as may.
    pub(super) fn let_wait(&self, caller: &SpiffeId) -> Option<Counted> {
        let place = self.callers.waiting.take_one_of(caller, self.parts.limits.waits_per_caller);
        if place.is_none() {
            self.parts.metrics.limited(Limit::WaitsPerCaller);
        }
        place
    }

    /// Lets one more stream hold a task of `caller`; `None`, and counted, where as many do as may.
    pub(crate) fn let_hold(&self, caller: &SpiffeId) -> Option<Counted> {
        let place = self.callers.holding.take_one_of(caller, self.parts.limits.holds_per_caller);
        if place.is_none() {
            self.parts.metrics.limited(Limit::HoldsPerCaller);
        }
        place
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts and buckets are whole at any moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn rate_limits_one_caller_and_no_other() {
        let callers = Callers::new(60);
        let (busy, other) = ("spiffe://example.org/a".parse().unwrap(), "spiffe://example.org/b".parse().unwrap());
        for _ in 0..60 {
            assert_eq!(callers.take_mint(&busy, HOUR), Ok(()));
        }
        assert_eq!(callers.take_mint(&busy, HOUR), Err(Duration::from_secs(1)));
        assert_eq!(callers.take_mint(&other, HOUR), Ok(()));
        assert_eq!(callers.take_mint(&busy, HOUR + Duration::from_secs(1)), Ok(()));
        assert!(callers.take_mint(&busy, HOUR + Duration::from_secs(1)).is_err());
    }

    #[test]
    fn forgets_callers_that_are_idle() {
        let callers = Callers::new(60);
        for number in 0..5 * MANY {
            let caller = format!("spiffe://example.org/{number}").parse().unwrap();
            let now = HOUR + Duration::from_secs(number as u64);
            assert_eq!(callers.take_mint(&caller, now), Ok(()));
            assert_eq!(callers.open(&caller).1, 1);
        }
        assert!(locked(&callers.buckets).len() <= MANY && locked(&callers.opening.0).is_empty());
    }

    #[test]
    fn counts_tasks_that_are_being_opened() {
        let callers = Callers::new(1);
        let caller = "spiffe://example.org/a".parse().unwrap();
        let (first, one) = callers.open(&caller);
        let (second, two) = callers.open(&caller);
        drop(first);
        let (_third, again) = callers.open(&caller);
        assert_eq!([one, two, again], [1, 2, 2]);
        drop(second);
    }

    #[test]
    fn one_caller_gets_at_most_half_of_the_connections() {
        let limits = crate::broker::Limits::default();
        for (connections, waits, holds) in [(2048, 1000, 500), (1000, 500, 250), (2, 1, 1), (1, 1, 1)] {
            let within = limits.within(connections);
            assert_eq!((within.waits_per_caller, within.holds_per_caller), (waits, holds), "{connections}");
        }
        let few = crate::broker::Limits { requests: 100, ..limits }.within(2048);
        assert_eq!((few.waits_per_caller, few.holds_per_caller), (50, 25));
    }

    #[test]
    fn a_request_over_the_limit_is_not_counted_and_affects_no_other_caller() {
        let (busy, other) = ("spiffe://example.org/a".parse().unwrap(), "spiffe://example.org/b".parse().unwrap());
        let counts = Counts::default();
        let first = counts.take_one_of(&busy, 2);
        let second = counts.take_one_of(&busy, 2);
        assert!(first.is_some() && second.is_some());
        for _ in 0..3 {
            assert!(counts.take_one_of(&busy, 2).is_none() && counts.take_one_of(&other, 2).is_some());
        }
        drop(first);
        assert!(counts.take_one_of(&busy, 2).is_some());
        drop(second);
        assert!(locked(&counts.0).is_empty());
    }
}
