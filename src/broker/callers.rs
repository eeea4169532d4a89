//! What one caller may have of what all share: tasks, and credentials per minute. One that asks without end is refused by
//! its own limit, and the others never meet theirs.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::exchange::retry::{Rate, TokenBucket};
use crate::identity::SpiffeId;

const MINUTE: Duration = Duration::from_secs(60);
/// So many callers are remembered before those are forgotten about whom there is nothing to remember. A sidecar serves a
/// handful: only identities that the Workload API gives it as well get this far.
const MANY: usize = 1024;

/// The books on every caller.
#[derive(Debug)]
pub(super) struct Callers {
    rate: Rate,
    buckets: Mutex<HashMap<SpiffeId, TokenBucket>>,
    opening: Mutex<HashMap<SpiffeId, usize>>,
}

/// A task of one caller that is being opened; over when dropped.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    callers: &'a Callers,
    caller: SpiffeId,
}

impl Callers {
    /// Allows each caller `mints` credentials a minute, all at once or spread.
    pub(super) fn new(mints: u32) -> Self {
        let mints = mints.max(1);
        let rate = Rate { interval: MINUTE / mints, burst: mints };
        Self { rate, buckets: Mutex::default(), opening: Mutex::default() }
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
    pub(super) fn open(&self, caller: &SpiffeId) -> (Opening<'_>, usize) {
        let mut opening = locked(&self.opening);
        let count = opening.entry(caller.clone()).or_default();
        *count = count.saturating_add(1);
        (Opening { callers: self, caller: caller.clone() }, *count)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut opening = locked(&self.callers.opening);
        if let Some(count) = opening.get_mut(&self.caller) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                opening.remove(&self.caller);
            }
        }
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
    fn a_caller_that_has_used_up_its_minute_waits_and_no_other_does() {
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
    fn the_books_do_not_grow_with_callers_that_have_gone_quiet() {
        let callers = Callers::new(60);
        for number in 0..5 * MANY {
            let caller = format!("spiffe://example.org/{number}").parse().unwrap();
            let now = HOUR + Duration::from_secs(number as u64);
            assert_eq!(callers.take_mint(&caller, now), Ok(()));
            assert_eq!(callers.open(&caller).1, 1);
        }
        assert!(locked(&callers.buckets).len() <= MANY && locked(&callers.opening).is_empty());
    }

    #[test]
    fn tasks_that_are_being_opened_count_until_they_are_or_are_not() {
        let callers = Callers::new(1);
        let caller = "spiffe://example.org/a".parse().unwrap();
        let (first, one) = callers.open(&caller);
        let (second, two) = callers.open(&caller);
        drop(first);
        let (_third, again) = callers.open(&caller);
        assert_eq!([one, two, again], [1, 2, 2]);
        drop(second);
    }
}
