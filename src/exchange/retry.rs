//! When to try again, and how often at most: backoff and token bucket. Both are plain values: they take the time and
//! the randomness and say how long to wait; who waits is the caller's affair.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;

/// The longest wait that an upstream's `Retry-After` can make of us: a longer silence would be an outage of its own.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Where the randomness of [`Backoff`] comes from.
pub trait Jitter: Send + Sync + fmt::Debug {
    /// A number in `[0, 1)`, evenly spread.
    fn fraction(&self) -> f64;
}

/// Randomness from the operating system, by AWS-LC.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemJitter;

impl Jitter for SystemJitter {
    fn fraction(&self) -> f64 {
        let mut bytes = [0_u8; 4];
        // Without randomness the longest wait is the safe one.
        match aws_lc_rs::rand::fill(&mut bytes) {
            Ok(()) => f64::from(u32::from_le_bytes(bytes)) / 4_294_967_296.0,
            Err(_) => 1.0 - f64::EPSILON,
        }
    }
}

/// Exponential backoff with full jitter for one call: before the n-th retry a random part of `base · 2ⁿ⁻¹`, at most
/// `cap`; never more than `attempts` tries, never beyond the time that the caller has left.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    left: u32,
    ceiling: Duration,
}

impl Backoff {
    /// At most `attempts` tries in all, the first one included.
    pub fn new(base: Duration, cap: Duration, attempts: u32) -> Self {
        Self { base, cap, left: attempts.saturating_sub(1), ceiling: base.min(cap) }
    }

    /// How long to wait before the next try: no less than the upstream asked for (`retry_after`). `None` when it is
    /// time to give up: no try is left, or the wait would use up all that `remaining` holds.
    ///
    /// `fraction` is a random number in `[0, 1)`.
    pub fn next(&mut self, fraction: f64, retry_after: Option<Duration>, remaining: Duration) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let jittered = self.ceiling.mul_f64(fraction.clamp(0.0, 1.0));
        self.ceiling = self.ceiling.saturating_mul(2).min(self.cap).max(self.base.min(self.cap));
        let wait = jittered.max(retry_after.unwrap_or_default());
        (wait < remaining).then_some(wait)
    }
}

/// How often an upstream may be called: `burst` calls at once, then one per `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The time in which one spent token comes back.
    pub interval: Duration,
    /// How many tokens a full bucket holds; at least one.
    pub burst: u32,
}

impl Default for Rate {
    /// Five calls a second, twenty at once: far more than one pod needs, far less than hurts an account.
    fn default() -> Self {
        Self { interval: Duration::from_millis(200), burst: 20 }
    }
}

/// A token bucket in its "virtual scheduling" form (GCRA): one number instead of a counter that must be refilled.
///
/// Times are of a clock that never goes back ([`Clock::boot`]).
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: Rate,
    /// When the bucket will be full again.
    full_at: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self { rate: Rate { burst: rate.burst.max(1), ..rate }, full_at: Duration::ZERO }
    }

    /// Takes a token: `Ok(wait)` when it may be used once `wait` has passed. Those who wait are served in the order in
    /// which they asked, since each has its own token already.
    ///
    /// # Errors
    /// `Err(wait)`, and no token is taken, where the wait would be longer than `limit`.
    pub fn take(&mut self, now: Duration, limit: Duration) -> Result<Duration, Duration> {
        let wait = self.full_at.saturating_sub(self.slack()).saturating_sub(now);
        if wait > limit {
            return Err(wait);
        }
        self.full_at = self.full_at.max(now).saturating_add(self.rate.interval);
        Ok(wait)
    }

    /// Whether nothing of it is spent, so that it could as well be a new one.
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= now
    }

    /// Lets nobody through before `until`: the upstream said so (`Retry-After`).
    pub fn hold(&mut self, until: Duration) {
        self.full_at = self.full_at.max(until.saturating_add(self.slack()));
    }

    /// How long before it is full the bucket holds one whole token.
    fn slack(&self) -> Duration {
        self.rate.interval.saturating_mul(self.rate.burst.saturating_sub(1))
    }
}

/// One [`TokenBucket`] shared by all who call one upstream.
#[derive(Debug)]
pub struct Gate(Mutex<TokenBucket>);

impl Gate {
    /// A gate that lets `rate` through.
    pub fn new(rate: Rate) -> Self {
        Self(Mutex::new(TokenBucket::new(rate)))
    }

    /// Waits for a token, up to `limit`.
    ///
    /// # Errors
    /// At once, with the time to come back in, where the wait would be longer than `limit`.
    pub async fn pass(&self, clock: &dyn Clock, limit: Duration) -> Result<(), Duration> {
        let wait = self.bucket(|bucket| bucket.take(clock.boot(), limit))?;
        if !wait.is_zero() {
            clock.sleep(wait).await;
        }
        Ok(())
    }

    /// Lets nobody through for `duration`, at most [`MAX_RETRY_AFTER`].
    pub fn hold(&self, clock: &dyn Clock, duration: Duration) {
        let until = clock.boot().saturating_add(duration.min(MAX_RETRY_AFTER));
        self.bucket(|bucket| bucket.hold(until));
    }

    fn bucket<T>(&self, work: impl FnOnce(&mut TokenBucket) -> T) -> T {
        // A bucket is one number, whole at any moment: a panic elsewhere cannot have torn it.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{ManualClock, Timestamp};

    const LONG: Duration = Duration::from_secs(3600);

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_then_gives_up() {
        let mut backoff = Backoff::new(millis(100), millis(300), 5);
        let waits: Vec<_> = std::iter::from_fn(|| backoff.next(1.0, None, LONG)).collect();
        assert_eq!(waits, [millis(100), millis(200), millis(300), millis(300)]);
    }

    #[test]
    fn backoff_waits_at_least_as_long_as_it_was_told() {
        let mut backoff = Backoff::new(millis(100), millis(300), 5);
        assert_eq!(backoff.next(0.5, Some(millis(40)), LONG), Some(millis(50)));
        assert_eq!(backoff.next(0.5, Some(millis(7000)), LONG), Some(millis(7000)));
    }

    #[test]
    fn backoff_gives_up_at_once_when_the_wait_would_use_up_the_time() {
        assert_eq!(Backoff::new(millis(100), LONG, 5).next(1.0, None, millis(100)), None);
        assert_eq!(Backoff::new(millis(100), LONG, 5).next(0.0, Some(millis(900)), millis(800)), None);
        assert_eq!(Backoff::new(millis(100), LONG, 1).next(0.0, None, LONG), None);
    }

    #[test]
    fn system_jitter_is_a_fraction_and_varies() {
        let drawn: Vec<_> = (0..32).map(|_| SystemJitter.fraction()).collect();
        assert!(drawn.iter().all(|f| (0.0..1.0).contains(f)));
        assert!(drawn.iter().any(|f| Some(f) != drawn.first()));
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_one_per_interval() {
        let mut bucket = TokenBucket::new(Rate { interval: millis(100), burst: 3 });
        let now = LONG;
        let waits: Vec<_> = (0..5).map(|_| bucket.take(now, LONG)).collect();
        assert_eq!(waits, [Ok(millis(0)), Ok(millis(0)), Ok(millis(0)), Ok(millis(100)), Ok(millis(200))]);
        assert_eq!(bucket.take(now, millis(299)), Err(millis(300)), "refused without taking a token");
        assert_eq!(bucket.take(now + millis(500), LONG), Ok(millis(0)));
    }

    #[test]
    fn a_held_bucket_lets_nobody_through_before_its_time() {
        let mut bucket = TokenBucket::new(Rate { interval: millis(100), burst: 3 });
        bucket.hold(LONG + millis(5000));
        assert_eq!(bucket.take(LONG, LONG), Ok(millis(5000)));
        assert_eq!(bucket.take(LONG, LONG), Ok(millis(5100)));
    }

    #[tokio::test]
    async fn a_gate_waits_on_the_clock_and_refuses_to_wait_too_long() {
        let clock = ManualClock::at(Timestamp::from_secs(10));
        let gate = Gate::new(Rate { interval: millis(100), burst: 1 });
        assert_eq!(gate.pass(&clock, LONG).await, Ok(()));
        assert_eq!(gate.pass(&clock, millis(50)).await, Err(millis(100)));
        let waiting = gate.pass(&clock, LONG);
        let step = async {
            while clock.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
            clock.advance(millis(100));
        };
        assert_eq!(tokio::join!(waiting, step).0, Ok(()));
        gate.hold(&clock, LONG);
        assert_eq!(gate.pass(&clock, millis(1)).await, Err(MAX_RETRY_AFTER));
    }

    proptest! {
        #[test]
        fn no_window_ever_sees_more_than_its_burst_and_its_rate(
            burst in 1_u32..20, interval in 1_u64..500, steps in prop::collection::vec(0_u64..300, 1..80),
        ) {
            let mut bucket = TokenBucket::new(Rate { interval: millis(interval), burst });
            let mut now = LONG;
            let mut used = Vec::new();
            for step in steps {
                now += millis(step);
                used.push(now + bucket.take(now, LONG).unwrap());
            }
            for (i, from) in used.iter().enumerate() {
                for (n, until) in used.iter().enumerate().skip(i) {
                    let allowed = u128::from(burst) + (*until - *from).as_millis() / u128::from(interval);
                    prop_assert!((n - i + 1) as u128 <= allowed);
                }
            }
        }

        #[test]
        fn backoff_never_waits_past_the_time_that_is_left(
            fraction in 0.0..1.0, base in 1_u64..5000, cap in 1_u64..50_000, told in 0_u64..9000, left in 0_u64..20_000,
        ) {
            let mut backoff = Backoff::new(millis(base), millis(cap), 9);
            while let Some(wait) = backoff.next(fraction, Some(millis(told)), millis(left)) {
                prop_assert!(wait < millis(left) && wait >= millis(told) && wait <= millis(cap.max(told)));
            }
        }
    }
}
