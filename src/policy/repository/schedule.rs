//! When to refresh from the source next: [`Schedule`]. Pure: it takes the randomness and says how long to pause.
//!
//! - Refreshes that begin one after the other begin at most one interval apart, so that what was published is known within
//!   an interval wherever the source answers.
//! - Sidecars that were started at the same moment are spread over the whole interval by their second refresh, and stay so.
//! - A source that fails is asked sooner, then as seldom as ever, and rests for a sixth of the interval in between.
//! - A source that asks us to wait is not asked, for at most [`MAX_RETRY_AFTER`] and up to one interval more, since all who
//!   were told the same must not come back at the same moment.

use std::time::Duration;

/// The longest that a source's `Retry-After` can keep us away.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Refreshes that went well begin this part of the interval apart at the least, and one interval at the most.
const LEAST: f64 = 0.9;
/// The mean of them. Whoever is to be spread is spread over this part of the interval: over more, the last of one round
/// would meet the first of the next, for ever.
const MEAN: f64 = (LEAST + 1.0) / 2.0;
/// The part of an interval that a source rests at the least once it failed: one in so many.
const REST: u32 = 6;

/// How a refresh went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// The source answered, whatever the answer was worth.
    Answered,
    /// The source did not answer, or said that it cannot.
    Failed {
        /// How long it asked us to wait.
        retry_after: Option<Duration>,
    },
}

/// When to refresh next, for one source.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: Duration,
    first: bool,
    failures: u32,
}

impl Schedule {
    /// A refresh at least every `interval`. The first refresh is made at once, by the caller.
    pub fn new(interval: Duration) -> Self {
        Self { interval, first: true, failures: 0 }
    }

    /// How long to pause after a refresh that took `took` and ended as `refreshed`. `fraction` is a random number in `[0, 1)`.
    pub fn pause(&mut self, refreshed: Refreshed, took: Duration, fraction: f64) -> Duration {
        let fraction = fraction.clamp(0.0, 1.0);
        let rest = self.interval / REST;
        let first = std::mem::take(&mut self.first);
        let Refreshed::Failed { retry_after } = refreshed else {
            self.failures = 0;
            let gap = if first { 0.0..MEAN } else { LEAST..1.0 };
            return self.part(gap, fraction).saturating_sub(took);
        };
        self.failures = self.failures.saturating_add(1);
        let sixth = 1.0 / f64::from(REST);
        let gap = match self.failures {
            // Whoever was started together fails together: spread first.
            _ if first => sixth..1.0,
            1 => sixth..2.0 * sixth,
            2 => 2.0 * sixth..4.0 * sixth,
            _ => 4.0 * sixth..1.0,
        };
        let pause = self.part(gap, fraction).saturating_sub(took).max(rest);
        match retry_after {
            Some(wait) => pause.max(wait.min(MAX_RETRY_AFTER).saturating_add(self.part(0.0..MEAN, fraction))),
            None => pause,
        }
    }

    /// A point of this part of the interval.
    fn part(&self, range: std::ops::Range<f64>, fraction: f64) -> Duration {
        self.interval.mul_f64(range.start + (range.end - range.start) * fraction).min(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);
    const NONE: Duration = Duration::ZERO;
    const FAILED: Refreshed = Refreshed::Failed { retry_after: None };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn close(pause: Duration, expected: u64) -> bool {
        pause.abs_diff(seconds(expected)) < Duration::from_millis(1)
    }

    #[test]
    fn spreads_the_second_refresh_over_the_interval_and_keeps_it_afterwards() {
        for (fraction, expected) in [(0.0, 0), (0.5, 14_250), (1.0, 28_500)] {
            let pause = Schedule::new(INTERVAL).pause(Refreshed::Answered, NONE, fraction);
            assert!(pause.abs_diff(Duration::from_millis(expected)) < Duration::from_millis(1), "{pause:?}");
        }
        let mut schedule = Schedule::new(INTERVAL);
        schedule.pause(Refreshed::Answered, NONE, 0.0);
        assert!(close(schedule.pause(Refreshed::Answered, NONE, 0.0), 27));
        assert!(close(schedule.pause(Refreshed::Answered, NONE, 1.0), 30));
        assert!(close(schedule.pause(Refreshed::Answered, seconds(7), 1.0), 23), "counted from when the refresh began");
        assert_eq!(schedule.pause(Refreshed::Answered, seconds(40), 1.0), NONE);
    }

    #[test]
    fn retries_a_failure_soon_then_with_growing_intervals() {
        let mut schedule = Schedule::new(INTERVAL);
        schedule.pause(Refreshed::Answered, NONE, 0.0);
        for (least, most) in [(5, 10), (10, 20), (20, 30), (20, 30)] {
            assert!(close(schedule.clone().pause(FAILED, NONE, 0.0), least));
            assert!(close(schedule.pause(FAILED, NONE, 1.0), most));
        }
        schedule.pause(Refreshed::Answered, NONE, 0.0);
        assert!(close(schedule.pause(FAILED, NONE, 0.0), 5), "an answer makes up for all of them");
        assert!(close(schedule.pause(FAILED, seconds(10), 1.0), 10));
        assert!(close(schedule.pause(FAILED, seconds(29), 1.0), 5), "a rest after a refresh that took long");
    }

    #[test]
    fn spreads_retries_after_a_failed_start_over_the_interval() {
        assert!(close(Schedule::new(INTERVAL).pause(FAILED, NONE, 0.0), 5));
        assert!(close(Schedule::new(INTERVAL).pause(FAILED, NONE, 1.0), 30));
    }

    #[test]
    fn honours_retry_after_up_to_ten_minutes() {
        let pause = |wait, fraction| {
            Schedule::new(INTERVAL).pause(Refreshed::Failed { retry_after: Some(seconds(wait)) }, NONE, fraction)
        };
        assert!(close(pause(120, 0.0), 120));
        assert!(close(pause(120, 2.0 / 3.0), 139), "not all at the same moment");
        assert!(close(pause(4_000_000_000, 2.0 / 2.85), 620));
        assert!(close(pause(0, 0.0), 5), "it lengthens, and never shortens");
    }

    fn any_refreshed() -> impl Strategy<Value = Refreshed> {
        prop_oneof![
            Just(Refreshed::Answered),
            proptest::option::of(0_u64..2000)
                .prop_map(|wait| Refreshed::Failed { retry_after: wait.map(Duration::from_secs) }),
        ]
    }

    proptest! {
        #[test]
        fn refreshes_within_the_allowed_interval_and_pauses_after_each_failure(
            interval in 100_u64..3_600_000,
            refreshes in prop::collection::vec((any_refreshed(), 0_u64..120_000, 0.0..1.0), 1..40),
        ) {
            let interval = Duration::from_millis(interval);
            let mut schedule = Schedule::new(interval);
            for (nth, (refreshed, took, fraction)) in refreshes.into_iter().enumerate() {
                let took = Duration::from_millis(took);
                let pause = schedule.pause(refreshed, took, fraction);
                let rest = interval / REST;
                match refreshed {
                    Refreshed::Answered => {
                        prop_assert!(pause + took <= interval.max(took));
                        prop_assert!(nth == 0 || pause + took >= interval.mul_f64(0.899));
                    }
                    Refreshed::Failed { retry_after: None } => {
                        prop_assert!(pause >= rest);
                        prop_assert!(pause + took <= interval.max(took + rest));
                    }
                    Refreshed::Failed { retry_after: Some(wait) } => {
                        let wait = wait.min(MAX_RETRY_AFTER);
                        prop_assert!(pause >= rest && pause >= wait && pause <= wait + interval);
                    }
                }
            }
        }

        #[test]
        fn a_fraction_outside_its_range_changes_nothing(fraction in prop_oneof![-9.0..0.0, 1.0..9.0_f64]) {
            let mut schedule = Schedule::new(INTERVAL);
            prop_assert!(schedule.pause(Refreshed::Answered, NONE, fraction) <= INTERVAL);
            prop_assert!(schedule.pause(FAILED, NONE, fraction) <= INTERVAL);
        }
    }
}
