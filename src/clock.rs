//! Time as a value. Nothing else in the crate reads a clock: decisions take a [`Timestamp`], tasks that wait
//! take an `Arc<dyn Clock>`, and tests step the clock by hand.
//!
//! - [`guard`]: whether the clock can be trusted: [`TrustedClock`].

pub mod guard;

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use guard::{Distrust, TrustedClock};

/// A point in wall-clock time: UTC, whole milliseconds since 1970-01-01T00:00:00Z.
///
/// Written and read as RFC 3339 with a literal `Z`, the one form that every cloud SDK accepts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The latest time that can be written as RFC 3339 (year 9999); sums saturate here.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// From milliseconds since the epoch; later than [`Timestamp::MAX`] becomes `MAX`.
    pub const fn from_millis(millis: u64) -> Self {
        if millis > Self::MAX.0 { Self::MAX } else { Self(millis) }
    }

    /// From seconds since the epoch; later than [`Timestamp::MAX`] becomes `MAX`.
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1000))
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// The same time without its fraction of a second (rounded down, so never later).
    pub const fn floor_to_second(self) -> Self {
        Self(self.0 / 1000 * 1000)
    }

    /// The time from `earlier` until `self`; zero when `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The nearest [`Timestamp`] at or before `time`; times before the epoch become the epoch.
    fn from_system(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The same time in the standard library's form.
    pub fn to_system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// RFC 3339, UTC, with milliseconds only where there are any: `2026-11-23T16:48:33Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            humantime::format_rfc3339_seconds(self.to_system()).fmt(f)
        } else {
            humantime::format_rfc3339_millis(self.to_system()).fmt(f)
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = humantime::TimestampError;

    /// Reads RFC 3339 in UTC (`Z`); fractions below a millisecond are dropped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_rfc3339(text).map(Self::from_system)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An end on both clocks: whatever is done to the wall clock later, it comes no later than it was fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    wall: Timestamp,
    boot: Duration,
}

impl Deadline {
    /// The end at `wall`, UTC, fixed when the clocks show `now` and `boot`.
    pub fn fix(wall: Timestamp, now: Timestamp, boot: Duration) -> Self {
        Self { wall, boot: boot.saturating_add(wall.since(now)) }
    }

    /// The end by the wall clock, UTC.
    pub fn wall(&self) -> Timestamp {
        self.wall
    }

    /// How long until the first of the two ends; zero once it has come.
    pub fn left(&self, now: Timestamp, boot: Duration) -> Duration {
        self.wall.since(now).min(self.boot.saturating_sub(boot))
    }

    /// Whether the end has come on either clock.
    pub fn has_come(&self, now: Timestamp, boot: Duration) -> bool {
        self.left(now, boot).is_zero()
    }
}

/// What both clocks show: read once for all that a request judges by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock, as [`Clock::now`].
    pub now: Timestamp,
    /// Time since boot, as [`Clock::boot`].
    pub boot: Duration,
}

/// The seam to time. The real one is [`TrustedClock`] over [`SystemClock`]; tests use [`ManualClock`].
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock, UTC. Where clocks differ, the latest: whether something has ended is judged by it.
    fn now(&self) -> Timestamp;

    /// The same, but the earliest: new ends are set from it.
    fn earliest(&self) -> Timestamp {
        self.now()
    }

    /// Whether the time can be trusted; nothing begins and nothing is minted while it cannot.
    ///
    /// # Errors
    /// Why not, and how to fix it.
    fn trusted(&self) -> Result<(), Distrust> {
        Ok(())
    }

    /// Trusts the wall clock as it is: an operator said so.
    fn reset(&self) {}

    /// Time since boot, suspend included (`CLOCK_BOOTTIME`): it never goes back and nobody can set it.
    fn boot(&self) -> Duration;

    /// What both clocks show at one moment.
    fn moment(&self) -> Moment {
        Moment { now: self.now(), boot: self.boot() }
    }

    /// Returns once `duration` has passed.
    async fn sleep(&self, duration: Duration);
}

/// A clock that many tasks share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's own wall clock and boot clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        Timestamp::from_system(SystemTime::now())
    }

    fn boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let secs = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
        Duration::new(secs, nanos)
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that sleeps")]
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// A clock that stands still until it is moved; for tests and simulations.
#[derive(Debug, Clone)]
pub struct ManualClock {
    state: tokio::sync::watch::Sender<ManualState>,
}

#[derive(Debug, Clone, Copy)]
struct ManualState {
    now: Timestamp,
    boot: Duration,
}

impl ManualClock {
    /// A clock that shows `now`, on a machine that booted an hour before.
    pub fn at(now: Timestamp) -> Self {
        let state = ManualState { now, boot: Duration::from_secs(3600) };
        Self { state: tokio::sync::watch::Sender::new(state) }
    }

    /// Lets `duration` pass on both clocks and wakes every sleeper that is due.
    pub fn advance(&self, duration: Duration) {
        self.state.send_modify(|state| {
            state.now = state.now + duration;
            state.boot += duration;
        });
    }

    /// Sets the wall clock alone, as an operator or NTP would.
    pub fn set_wall(&self, now: Timestamp) {
        self.state.send_modify(|state| state.now = now);
    }

    /// How many sleepers wait on this clock now: lets a test step only once a timer is armed.
    pub fn sleepers(&self) -> usize {
        self.state.receiver_count()
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.state.borrow().now
    }

    fn boot(&self) -> Duration {
        self.state.borrow().boot
    }

    async fn sleep(&self, duration: Duration) {
        let mut states = self.state.subscribe();
        let due = states.borrow().boot + duration;
        // The sender lives in `self`, so waiting can only end by the condition.
        let _ = states.wait_for(|state| state.boot >= due).await;
    }
}

/// Runs `work` until `limit` has passed on `clock`; `None` when time ran out first.
pub async fn within<T>(clock: &dyn Clock, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = clock.sleep(limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_utc_with_a_literal_z_and_reads_it_back() {
        let time = Timestamp::from_secs(1_795_452_513);
        assert_eq!(time.to_string(), "2026-11-23T16:48:33Z");
        assert_eq!("2026-11-23T16:48:33Z".parse::<Timestamp>().unwrap(), time);
        let fine = time + Duration::from_millis(250);
        assert_eq!(fine.to_string(), "2026-11-23T16:48:33.250Z");
        assert_eq!(fine.to_string().parse::<Timestamp>().unwrap(), fine);
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::default() - Duration::from_secs(1), Timestamp::default());
        assert_eq!(Timestamp::default().since(Timestamp::MAX), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_manual_clock_wakes_sleepers_only_when_they_are_due() {
        let clock = ManualClock::at(Timestamp::from_secs(10));
        let sleeper = clock.clone();
        let task = tokio::spawn(async move { sleeper.sleep(Duration::from_secs(5)).await });
        while clock.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!task.is_finished());
        clock.advance(Duration::from_secs(1));
        task.await.unwrap();
        assert_eq!(clock.now(), Timestamp::from_secs(15));
    }
}
