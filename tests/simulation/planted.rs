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
    /// That a credential was issued is said to be durable and is not written.
    SkipIssued,
    /// A task is said to be durable and is not written.
    LoseBegins,
    /// An end is said to be durable and is not written.
    LoseEnds,
    /// A start does not take over which keys have begun which tasks.
    ForgetKeys,
    /// Credentials live longer than was ordered.
    LongLives,
    /// What is said to be revoked works on.
    LieAboutRevoking,
    /// Nothing is ever revoked.
    NeverRevoke,
    /// The policy is taken to speak for ever.
    EndlessPolicy,
    /// Kill lists do not reach the sidecar.
    LoseKills,
    /// An older policy is taken for the newest.
    RollBack,
    /// What was served once is served again, though the identity is gone.
    ServeWithdrawn,
    /// Audit lines are said to be written and are not.
    SkipAudit,
    /// A shutdown ends nothing.
    SkipShutdown,
    /// The policy says nothing of what sessions leave behind.
    HideOutliving,
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
fn a_credential_that_is_served_before_it_is_recorded_is_caught() {
    caught_by(Planted::SkipIssued, "I3 issued before served");
}

#[test]
fn a_task_that_is_answered_and_not_recorded_is_caught() {
    caught_by(Planted::LoseBegins, "I4 what was acknowledged is durable");
}

#[test]
fn an_end_that_is_answered_and_not_recorded_is_caught() {
    caught_by(Planted::LoseEnds, "I12 ends are recorded at once");
}

#[test]
fn a_key_that_begins_a_second_task_is_caught() {
    caught_by(Planted::ForgetKeys, "I8 one use is one use");
}

#[test]
fn a_credential_that_outlives_the_law_of_life_is_caught() {
    caught_by(Planted::LongLives, "I7 the law of life");
}

#[test]
fn a_revocation_without_effect_is_caught() {
    caught_by(Planted::LieAboutRevoking, "I16 honest about what is left");
}

#[test]
fn a_revocation_that_is_never_tried_is_caught() {
    caught_by(Planted::NeverRevoke, "I12 what can be revoked is");
}

#[test]
fn a_policy_that_has_expired_and_still_mints_is_caught() {
    caught_by(Planted::EndlessPolicy, "I5 nothing minted on an expired policy");
}

#[test]
fn a_kill_list_that_is_withheld_is_caught() {
    caught_by(Planted::LoseKills, "I11 nothing that is killed");
}

#[test]
fn a_policy_rollback_is_caught() {
    caught_by(Planted::RollBack, "I6 nothing goes back");
}

#[test]
fn a_credential_that_is_served_to_a_withdrawn_identity_is_caught() {
    caught_by(Planted::ServeWithdrawn, "G21 nothing for an identity that is gone");
}

#[test]
fn a_credential_without_an_audit_line_is_caught() {
    caught_by(Planted::SkipAudit, "I10 audited before it is seen");
}

#[test]
fn a_shutdown_that_ends_no_task_is_caught() {
    caught_by(Planted::SkipShutdown, "G21 a shutdown ends every task");
}

#[test]
fn uncounted_access_that_outlives_its_session_is_caught() {
    caught_by(Planted::HideOutliving, "I7 the law of life");
}

/// Not left to chance: few histories set the clock back by as much as a life, and ask again at the right moment.
#[test]
fn a_lifetime_that_a_clock_lengthens_is_caught() {
    let complaint =
        history::scripted::set_back_while_it_lives(Planted::WallClockOnly).expect_err("a bug that nobody notices");
    assert_eq!(complaint.0, "I13 no clock lengthens a life", "{}", complaint.1);
    history::scripted::set_back_while_it_lives(Planted::No).unwrap();
}
