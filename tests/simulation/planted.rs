//! Bugs that are put in at the seams, and the checker that finds each.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use sidemint::clock::{Clock, ManualClock, Timestamp};

/// A bug. None but `No` is ever in the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    No,
    /// Intents are said to be durable and are not written.
    SkipIntent,
    /// What was served once is served again without asking whether the task still runs.
    ServeAfterEnd,
    /// A start does not take over the leases that it finds.
    ForgetLeases,
    /// What was served to one workload is served to another one with the same scope.
    CrossServe,
    /// Nothing but the wall clock is looked at.
    WallClockOnly,
}

/// A clock that knows nothing but the time on the wall.
pub(crate) struct WallOnly(pub(crate) ManualClock, pub(crate) Timestamp);

impl fmt::Debug for WallOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallOnly")
    }
}

#[async_trait]
impl Clock for WallOnly {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn boot(&self) -> Duration {
        self.0.now().since(self.1)
    }

    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }
}

use crate::history;

/// How many histories a bug may survive.
const PATIENCE: u64 = 300;

/// Runs histories with `planted` in them until `checker` complains; others may see it first.
fn caught_by(planted: Planted, checker: &str) {
    let mut others = std::collections::BTreeSet::new();
    for seed in 0..PATIENCE {
        match history::run(seed, planted) {
            Err(failure) if failure.checker == checker => {
                println!("{planted:?}: \"{checker}\" at SIM_SEED={seed}; others before: {others:?}");
                return;
            }
            Err(failure) => drop(others.insert(failure.checker)),
            Ok(_) => {}
        }
    }
    panic!("{planted:?} goes unnoticed by \"{checker}\"; others: {others:?}");
}

#[test]
fn an_intent_that_is_skipped_is_caught() {
    caught_by(Planted::SkipIntent, "I3 intent before the exchange");
}

#[test]
fn a_credential_that_is_served_after_the_end_is_caught() {
    caught_by(Planted::ServeAfterEnd, "I1 nothing served after its end");
}

#[test]
fn a_lease_that_is_forgotten_is_caught() {
    caught_by(Planted::ForgetLeases, "I4 every lease accounted for");
}

#[test]
fn a_credential_that_is_served_to_another_workload_is_caught() {
    caught_by(Planted::CrossServe, "I2 only one's own");
}

#[test]
#[ignore = "takes many histories: run it in release"]
fn a_life_that_a_clock_lengthens_is_caught() {
    caught_by(Planted::WallClockOnly, "I13 no clock lengthens a life");
}
