//! The life of a lease, as a pure function: [`LeaseFacts`] and an [`Event`] make new facts, or a [`Refused`].
//!
//! ```text
//!            issued                ended
//! Intent ────────────→ Issued ────────────→ Ending ────→ Revoked
//!    │  ended              │    lapsed         │  │         (only `exact`, only by the provider's answer)
//!    └─────────→ Ending    └──────→ Expired ←──┘  ↺ issued, renewed, requested
//!                    Issued ↺ renewing, renewed
//! ```
//!
//! - Nothing leaves `Revoked` or `Expired`.
//! - Once a credential is known, the end of its residual access changes by a provider's answer alone (revoked: now). An intent that
//!   never heard an answer counts as usable until the latest end that its order allowed, and a lease whose renewal was never
//!   answered until the latest end that the renewal allowed: that is recorded before the provider is asked.
//! - `Revoked` is said only of class `exact`, and only after the task's end: nobody else may take it back.
//!
//! [`LeaseRecord`] holds the facts and lets everyone read them; only [`LeaseRecord::apply`] changes them.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::record::{LeaseFacts, LeaseState};
use super::revoke::over_at;
use crate::clock::Timestamp;
use crate::exchange::{Handle, Revocation};

/// What happens to a lease. Each says by which clock its time is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The provider gave the credential, and said what this holds.
    Issued(Given),
    /// The provider is about to be asked to let it live until then at the latest.
    Renewing(Timestamp),
    /// The provider said that the end of its residual access is now this.
    Renewed(Timestamp),
    /// Its task ended, when the earlier of the clocks showed this: one that is set forward lets nothing die.
    Ended(Timestamp),
    /// The provider says that it is dead, at this moment of the wall clock.
    Revoked(Timestamp),
    /// The provider took the order to kill it, and cannot say when it will have.
    Requested,
    /// Time passed: the earlier of the clocks shows this.
    Lapsed(Timestamp),
}

impl Event {
    /// The stable label, for errors and tests.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Issued(_) => "issued",
            Self::Renewing(_) => "renewing",
            Self::Renewed(_) => "renewed",
            Self::Ended(_) => "ended",
            Self::Revoked(_) => "revoked",
            Self::Requested => "requested",
            Self::Lapsed(_) => "lapsed",
        }
    }
}

/// What a provider said about the credential that it gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// How it can be revoked.
    pub revocation: Revocation,
    /// The end of its residual access, UTC: its own end, and the life of what may be made with it.
    pub usable_until: Timestamp,
    /// The provider's name for it.
    pub handle: Handle,
}

/// An event that cannot happen to a lease in this state; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a lease that is {} cannot be {event}", .state.as_str())]
pub struct Refused {
    /// Where the lease is.
    pub state: LeaseState,
    /// [`Event::as_str`].
    pub event: &'static str,
}

/// What `event` makes of a lease.
///
/// # Errors
/// When it cannot happen in the state that the lease is in; then it stays as it is.
pub fn after(lease: &LeaseFacts, event: &Event) -> Result<LeaseFacts, Refused> {
    use LeaseState::{Ending, Expired, Intent, Issued, Revoked};
    let refused = Err(Refused { state: lease.state, event: event.as_str() });
    let unanswered = lease.upstream.is_none();
    let mut next = lease.clone();
    match (lease.state, event) {
        (Revoked | Expired, _) | (Issued, Event::Issued(_)) => return refused,
        // The task may have ended while the provider was asked: then what it gave is to be revoked.
        (Intent, Event::Issued(given)) => {
            next.state = Issued;
            told(&mut next, given);
        }
        (Ending, Event::Issued(given)) if unanswered => told(&mut next, given),
        (Ending, Event::Issued(_)) => return refused,
        (Issued, Event::Renewing(until)) if lease.revocation == Revocation::Exact => {
            next.usable_until = lease.usable_until.max(*until);
        }
        // The task may have ended while the provider was asked.
        (Issued | Ending, Event::Renewed(until)) if lease.revocation == Revocation::Exact => next.usable_until = *until,
        (Intent | Issued | Ending, Event::Renewing(_) | Event::Renewed(_)) => return refused,
        (Intent | Issued, Event::Ended(at)) => {
            next.state = Ending;
            // What can be revoked is, for as long as the provider's clock may be behind.
            if over_at(&next) <= *at {
                next.state = Expired;
            }
        }
        (Ending, Event::Ended(_)) => {}
        (Ending, Event::Revoked(at)) if lease.revocation == Revocation::Exact => {
            next.state = Revoked;
            next.usable_until = lease.usable_until.min(*at);
        }
        (Ending, Event::Requested) if lease.revocation == Revocation::Exact => next.requested = true,
        (Intent | Issued | Ending, Event::Revoked(_) | Event::Requested) => return refused,
        (Intent | Issued | Ending, Event::Lapsed(at)) if over_at(lease) <= *at => next.state = Expired,
        (Intent | Issued | Ending, Event::Lapsed(_)) => return refused,
    }
    Ok(next)
}

fn told(lease: &mut LeaseFacts, given: &Given) {
    lease.revocation = given.revocation;
    lease.usable_until = given.usable_until;
    lease.upstream = Some(given.handle.clone());
}

/// The record of one credential, never the secret itself: what is known of it, to be read by everyone and changed by its
/// life alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseRecord(LeaseFacts);

impl LeaseRecord {
    /// The record of these facts: of a new intent, or of what a journal holds.
    pub const fn of(facts: LeaseFacts) -> Self {
        Self(facts)
    }

    /// Lets `event` happen.
    ///
    /// # Errors
    /// When it cannot, see [`after`]; then nothing has changed.
    pub fn apply(&mut self, event: &Event) -> Result<(), Refused> {
        self.0 = after(&self.0, event)?;
        Ok(())
    }
}

// No DerefMut: nothing outside this file assigns to a fact.
impl Deref for LeaseRecord {
    type Target = LeaseFacts;
    fn deref(&self) -> &LeaseFacts {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::exchange::Provider;
    use crate::id::{LeaseId, TaskId};
    use crate::lease::revoke::SKEW;

    const OPENED: Timestamp = Timestamp::from_secs(1_000_000);
    /// The latest end that the order allowed.
    const ALLOWED: Timestamp = Timestamp::from_secs(1_000_900);
    const TOLD: Timestamp = Timestamp::from_secs(1_000_600);

    fn intent() -> LeaseFacts {
        LeaseFacts {
            id: LeaseId::generate().unwrap(),
            task: TaskId::generate().unwrap(),
            provider: Provider::Vault,
            grant: "db".parse().unwrap(),
            session_name: "report.db.t-0".into(),
            state: LeaseState::Intent,
            revocation: Revocation::Expire,
            opened_at: OPENED,
            usable_until: ALLOWED,
            open_ended: false,
            place: None,
            upstream: None,
            requested: false,
        }
    }

    fn given(revocation: Revocation) -> Event {
        Event::Issued(Given { revocation, usable_until: TOLD, handle: Handle::read(Provider::Vault, "u") })
    }

    /// The facts of a lease of this class in this state; `Ending` of an exchange that was answered, or never.
    fn reached(state: LeaseState, class: Revocation, answered: bool) -> LeaseFacts {
        let walk = |events: &[Event]| {
            events.iter().fold(intent(), |lease, event| after(&lease, event).unwrap_or_else(|e| panic!("{e}")))
        };
        let early = Event::Ended(OPENED);
        match (state, answered) {
            (LeaseState::Intent, _) => intent(),
            (LeaseState::Issued, _) => walk(&[given(class)]),
            (LeaseState::Ending, true) => walk(&[given(class), early]),
            (LeaseState::Ending, false) => walk(&[early]),
            (LeaseState::Revoked, _) => walk(&[given(Revocation::Exact), early, Event::Revoked(OPENED)]),
            (LeaseState::Expired, _) => walk(&[given(class), Event::Lapsed(TOLD)]),
        }
    }

    #[test]
    fn every_event_in_every_state_follows_the_transition_table() {
        use LeaseState::{Ending, Expired, Intent, Issued, Revoked};
        use Revocation::{Exact, Expire};
        let late = TOLD + SKEW;
        let events = |class| {
            [
                given(class),
                Event::Renewing(ALLOWED),
                Event::Renewed(TOLD),
                Event::Ended(OPENED),
                Event::Ended(ALLOWED),
                Event::Revoked(OPENED),
                Event::Requested,
                Event::Lapsed(OPENED),
                Event::Lapsed(TOLD),
                Event::Lapsed(late),
                Event::Lapsed(ALLOWED),
            ]
        };
        let (no, yes) = (None, Some);
        // issued, renewing, renewed, ended early, ended late, revoked, requested, lapsed: at once, at its end, with the skew, at the order's end
        let table = [
            (Intent, Expire, false, [yes(Issued), no, no, yes(Ending), yes(Expired), no, no, no, no, no, yes(Expired)]),
            (
                Issued,
                Expire,
                true,
                [no, no, no, yes(Ending), yes(Expired), no, no, no, yes(Expired), yes(Expired), yes(Expired)],
            ),
            (
                Issued,
                Exact,
                true,
                [
                    no,
                    yes(Issued),
                    yes(Issued),
                    yes(Ending),
                    yes(Expired),
                    no,
                    no,
                    no,
                    yes(Expired),
                    yes(Expired),
                    yes(Expired),
                ],
            ),
            (Ending, Expire, false, [yes(Ending), no, no, yes(Ending), yes(Ending), no, no, no, no, no, yes(Expired)]),
            (
                Ending,
                Expire,
                true,
                [no, no, no, yes(Ending), yes(Ending), no, no, no, yes(Expired), yes(Expired), yes(Expired)],
            ),
            (
                Ending,
                Exact,
                true,
                [
                    no,
                    no,
                    yes(Ending),
                    yes(Ending),
                    yes(Ending),
                    yes(Revoked),
                    yes(Ending),
                    no,
                    no,
                    yes(Expired),
                    yes(Expired),
                ],
            ),
            (Revoked, Exact, true, [no; 11]),
            (Expired, Expire, true, [no; 11]),
            (Expired, Exact, true, [no; 11]),
        ];
        for (state, class, answered, expected) in table {
            let lease = reached(state, class, answered);
            assert_eq!(lease.state, state);
            for (event, expected) in events(class).iter().zip(expected) {
                let outcome = after(&lease, event);
                assert_eq!(outcome.as_ref().ok().map(|next| next.state), expected, "{state:?} {class:?} {event:?}");
                if let Err(refused) = outcome {
                    assert_eq!((refused.state, refused.event), (state, event.as_str()));
                    let mut record = LeaseRecord::of(lease.clone());
                    assert_eq!(record.apply(event), Err(refused));
                    assert_eq!(*record, lease, "nothing has changed");
                }
            }
        }
    }

    #[test]
    fn a_revoked_lease_ends_at_the_providers_answer_and_a_requested_one_at_expiry() {
        let ending = reached(LeaseState::Ending, Revocation::Exact, true);
        let at = OPENED + Duration::from_secs(5);
        assert_eq!(after(&ending, &Event::Revoked(at)).unwrap().usable_until, at);
        let late = after(&ending, &Event::Revoked(ALLOWED)).unwrap();
        assert_eq!(late.usable_until, TOLD, "it had died before");
        let requested = after(&ending, &Event::Requested).unwrap();
        assert_eq!((requested.usable_until, requested.requested), (TOLD, true));
        assert_eq!(
            after(&requested, &Event::Lapsed(TOLD)).unwrap().state,
            LeaseState::Expired,
            "no skew: no pending revocation"
        );
    }

    #[test]
    fn a_renewal_extends_the_lease_before_the_call_and_takes_the_answered_expiry() {
        let issued = reached(LeaseState::Issued, Revocation::Exact, true);
        let renewing = after(&issued, &Event::Renewing(ALLOWED)).unwrap();
        assert_eq!((renewing.usable_until, renewing.state), (ALLOWED, LeaseState::Issued));
        assert_eq!(after(&renewing, &Event::Renewing(TOLD)).unwrap().usable_until, ALLOWED, "an earlier one may count");
        let told = TOLD + Duration::from_secs(60);
        assert_eq!(after(&renewing, &Event::Renewed(told)).unwrap().usable_until, told);
        let ended = after(&renewing, &Event::Ended(OPENED)).unwrap();
        assert_eq!((ended.usable_until, ended.state), (ALLOWED, LeaseState::Ending), "never answered");
        assert_eq!(after(&ended, &Event::Renewed(told)).unwrap().usable_until, told);
    }

    #[test]
    fn revokes_a_lease_that_expires_with_its_task_where_its_class_is_exact() {
        for (class, state) in [(Revocation::Exact, LeaseState::Ending), (Revocation::Expire, LeaseState::Expired)] {
            let issued = reached(LeaseState::Issued, class, true);
            assert_eq!(after(&issued, &Event::Ended(TOLD)).unwrap().state, state, "{class:?}");
            assert_eq!(after(&issued, &Event::Ended(TOLD + SKEW)).unwrap().state, LeaseState::Expired, "{class:?}");
        }
    }

    #[test]
    fn a_refusal_names_the_state_and_the_event() {
        let refused = after(&reached(LeaseState::Expired, Revocation::Expire, true), &Event::Requested).unwrap_err();
        assert_eq!(refused.to_string(), "a lease that is expired cannot be requested");
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let at = || (0_u64..2000).prop_map(|seconds| OPENED + Duration::from_secs(seconds));
        let class = prop_oneof![Just(Revocation::Exact), Just(Revocation::Expire)];
        prop_oneof![
            (class, at()).prop_map(|(revocation, usable_until)| {
                Event::Issued(Given { revocation, usable_until, handle: Handle::read(Provider::Vault, "u") })
            }),
            at().prop_map(Event::Renewing),
            at().prop_map(Event::Renewed),
            at().prop_map(Event::Ended),
            at().prop_map(Event::Revoked),
            Just(Event::Requested),
            at().prop_map(Event::Lapsed),
        ]
    }

    proptest! {
        #[test]
        fn no_history_leaves_a_final_state_shortens_access_or_forgets_an_intent(
            events in prop::collection::vec(any_event(), 0..24),
        ) {
            let mut lease = LeaseRecord::of(intent());
            for event in &events {
                let before = lease.clone();
                let done = lease.apply(event);
                if before.state.is_over() {
                    prop_assert!(done.is_err());
                }
                if done.is_err() {
                    prop_assert_eq!(&lease, &before);
                    continue;
                }
                let by_word = matches!(event, Event::Issued(_) | Event::Renewed(_) | Event::Revoked(_));
                let longer = matches!(event, Event::Renewing(_)) && lease.usable_until > before.usable_until;
                prop_assert!(by_word || longer || lease.usable_until == before.usable_until, "{:?}", event);
                if lease.upstream.is_none() {
                    prop_assert_eq!(lease.usable_until, ALLOWED);
                    if let (LeaseState::Expired, Event::Ended(at) | Event::Lapsed(at)) = (lease.state, event) {
                        prop_assert!(*at >= ALLOWED);
                    }
                }
                if lease.state == LeaseState::Revoked {
                    prop_assert!(lease.revocation == Revocation::Exact && before.state == LeaseState::Ending);
                }
                // Names and times of the beginning never change.
                prop_assert_eq!((&lease.id, &lease.task, lease.opened_at), (&before.id, &before.task, before.opened_at));
                prop_assert!(lease.requested || !before.requested);
            }
        }

        #[test]
        fn a_record_is_journalled_as_its_facts_alone(events in prop::collection::vec(any_event(), 0..8)) {
            let mut lease = LeaseRecord::of(intent());
            for event in &events {
                let _ = lease.apply(event);
            }
            let text = serde_json::to_string(&lease).unwrap();
            prop_assert_eq!(&text, &serde_json::to_string(&*lease).unwrap());
            prop_assert_eq!(serde_json::from_str::<LeaseRecord>(&text).unwrap(), lease);
        }
    }
}
