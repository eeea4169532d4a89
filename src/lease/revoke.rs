//! What is to be revoked, and when it is tried next: a queue apart from serving, a plain value that takes the time.
//!
//! - Each provider has a lane of its own, so that one which hangs delays no other.
//! - A try that fails is repeated, later each time, with jitter, up to [`LONGEST_WAIT`] apart, and without an end: who
//!   stops is whoever fills the queue, once the credential has died by itself.
//! - A provider that fails again and again is not asked for a while, and then asked about one lease only (its circuit is
//!   open), so that an outage does not end in a storm.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::exchange::{Provider, Revocation};
use crate::id::LeaseId;
use crate::lease::record::{LeaseFacts, LeaseState};
use crate::retry::{Backoff, Circuit, Leave, jittered};

/// For so long after its own end a credential is still taken for usable and tried to be revoked: the provider's clock may
/// be behind.
pub const SKEW: Duration = Duration::from_secs(30);
/// The longest time between two tries of one lease.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How many are tried at a time at one provider: where a revocation takes 0.3 s, 200 a second.
pub const AT_A_TIME: usize = 64;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Whether `lease` is to be revoked: its task has ended, its provider can, and has not been told yet.
pub fn awaits_revocation(lease: &LeaseFacts) -> bool {
    lease.state == LeaseState::Ending && lease.revocation == Revocation::Exact && !lease.requested
}

/// When nothing more is done about `lease`, UTC: its own end, and the skew where it is still to be revoked.
pub fn over_at(lease: &LeaseFacts) -> Timestamp {
    if awaits_revocation(lease) { lease.usable_until + SKEW } else { lease.usable_until }
}

/// How a try went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// There is nothing left to do.
    Over,
    /// The provider answered and will not; it is well.
    Refused,
    /// The provider, or the way to it, failed; it may have said when to come back.
    Failed(Option<Duration>),
}

/// The leases to revoke, by provider.
#[derive(Debug, Default)]
pub struct Queue {
    lanes: BTreeMap<Provider, Lane>,
}

#[derive(Debug, Default)]
struct Lane {
    leases: BTreeMap<LeaseId, Waiting>,
    circuit: Circuit,
}

#[derive(Debug)]
struct Waiting {
    /// Time since boot.
    due: Duration,
    tries: u32,
    /// The leave of the try under way.
    busy: Option<Leave>,
    /// No longer pending, while a try is under way.
    gone: bool,
}

impl Lane {
    fn busy(&self) -> usize {
        self.leases.values().filter(|waiting| waiting.busy.is_some()).count()
    }
}

impl Queue {
    /// Makes the queue hold exactly the leases `pending`, at `now` (time since boot): new ones are due at once, those that
    /// are no longer pending are forgotten.
    pub fn sync(&mut self, pending: impl IntoIterator<Item = (Provider, LeaseId)>, now: Duration) {
        let mut before = std::mem::take(&mut self.lanes);
        for (provider, id) in pending {
            let known = before.get_mut(&provider).and_then(|lane| lane.leases.remove(&id));
            let known = known.map(|known| Waiting { gone: false, ..known });
            let lane = self.lanes.entry(provider).or_default();
            lane.leases.insert(id, known.unwrap_or(Waiting { due: now, tries: 0, busy: None, gone: false }));
        }
        for (provider, old) in before {
            let busy = old.leases.into_iter().filter(|(_, waiting)| waiting.busy.is_some());
            let busy = busy.map(|(id, waiting)| (id, Waiting { gone: true, ..waiting }));
            let mut busy = busy.peekable();
            if busy.peek().is_some() || !old.circuit.is_untroubled() || self.lanes.contains_key(&provider) {
                let lane = self.lanes.entry(provider).or_default();
                lane.circuit = old.circuit;
                lane.leases.extend(busy);
            }
        }
    }

    /// The leases to try at `now`, the longest overdue first; each must be reported by [`Queue::done`].
    pub fn take(&mut self, now: Duration) -> Vec<(Provider, LeaseId)> {
        let mut taken = Vec::new();
        for (provider, lane) in &mut self.lanes {
            let places = AT_A_TIME.saturating_sub(lane.busy());
            let mut due: Vec<_> =
                lane.leases.iter_mut().filter(|(_, waiting)| waiting.busy.is_none() && waiting.due <= now).collect();
            due.sort_by_key(|(_, waiting)| waiting.due);
            for (id, waiting) in due.into_iter().take(places) {
                let Ok(leave) = lane.circuit.ask(now) else { break };
                waiting.busy = Some(leave);
                taken.push((*provider, id.clone()));
            }
        }
        taken
    }

    /// Reports a try that ended at `now`; `fraction` is a random number in `[0, 1)`.
    pub fn done(&mut self, provider: Provider, id: &LeaseId, tried: Tried, now: Duration, fraction: f64) {
        let Some(lane) = self.lanes.get_mut(&provider) else { return };
        let Some(waiting) = lane.leases.get_mut(id) else { return };
        match (tried, waiting.busy.take()) {
            (Tried::Over | Tried::Refused, _) => lane.circuit.answered(),
            (Tried::Failed(after), Some(leave)) => lane.circuit.failed(leave, now, after, fraction),
            (Tried::Failed(_), None) => {}
        }
        let after = match tried {
            Tried::Refused if !waiting.gone => None,
            Tried::Failed(after) if !waiting.gone => after,
            _ => {
                lane.leases.remove(id);
                return;
            }
        };
        let wait = jittered(Backoff::after(FIRST_WAIT, LONGEST_WAIT, waiting.tries), fraction);
        waiting.due = now + wait.max(after.unwrap_or_default()).min(LONGEST_WAIT);
        waiting.tries = waiting.tries.saturating_add(1);
    }

    /// How long from `now` until something could be taken; `None` where only the end of a try can change that.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        let lanes = self.lanes.values().filter_map(|lane| {
            let idle = lane.leases.values().filter(|waiting| waiting.busy.is_none());
            let due = idle.map(|waiting| waiting.due).min()?;
            let ready_at = lane.circuit.ready_at()?;
            (lane.busy() < AT_A_TIME).then_some(due.max(ready_at))
        });
        lanes.min().map(|due| due.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(3600);

    fn ids(count: usize) -> Vec<LeaseId> {
        (0..count).map(|_| LeaseId::generate().unwrap()).collect()
    }

    fn of(provider: Provider, ids: &[LeaseId]) -> impl Iterator<Item = (Provider, LeaseId)> {
        ids.iter().map(move |id| (provider, id.clone()))
    }

    #[test]
    fn pending_revocations_are_due_at_once_in_small_batches() {
        let (mut queue, ids) = (Queue::default(), ids(AT_A_TIME + 1));
        queue.sync(of(Provider::Vault, &ids), NOW);
        assert_eq!(queue.wait(NOW), Some(Duration::ZERO));
        assert_eq!(queue.take(NOW).len(), AT_A_TIME);
        assert_eq!((queue.take(NOW).len(), queue.wait(NOW)), (0, None));
    }

    #[test]
    fn a_provider_that_hangs_delays_no_other() {
        let mut queue = Queue::default();
        let (stuck, other) = (ids(AT_A_TIME + 1), ids(1));
        queue.sync(of(Provider::Vault, &stuck), NOW);
        assert_eq!(queue.take(NOW).len(), AT_A_TIME);
        queue.sync(of(Provider::Vault, &stuck).chain(of(Provider::Aws, &other)), NOW);
        assert_eq!(queue.take(NOW), [(Provider::Aws, other[0].clone())]);
    }

    #[test]
    fn retries_with_growing_intervals_and_never_gives_up() {
        let (mut queue, ids) = (Queue::default(), ids(1));
        queue.sync(of(Provider::Vault, &ids), NOW);
        let (mut now, mut waits) = (NOW, Vec::new());
        for _ in 0..1000 {
            assert_eq!(queue.take(now), [(Provider::Vault, ids[0].clone())]);
            queue.done(Provider::Vault, &ids[0], Tried::Refused, now, 0.5);
            let wait = queue.wait(now).unwrap();
            waits.push(wait);
            now += wait;
        }
        assert!(waits.windows(2).all(|two| two[0] <= two[1]) && waits[0] >= FIRST_WAIT / 2);
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT) && waits[999] >= LONGEST_WAIT / 2);
    }

    #[test]
    fn an_outage_opens_the_circuit_and_one_success_closes_it() {
        let (mut queue, ids) = (Queue::default(), ids(2 * AT_A_TIME));
        queue.sync(of(Provider::Vault, &ids), NOW);
        for (provider, id) in queue.take(NOW) {
            queue.done(provider, &id, Tried::Failed(None), NOW, 0.9);
        }
        assert_eq!(queue.take(NOW).len(), 0, "so many failed: circuit open");
        let mut now = NOW;
        for _ in 0..10 {
            now += queue.wait(now).unwrap();
            let probe = queue.take(now);
            assert_eq!((probe.len(), queue.take(now).len()), (1, 0), "one at a time");
            queue.done(probe[0].0, &probe[0].1, Tried::Failed(None), now, 0.9);
        }
        assert!(queue.wait(now).unwrap() > Duration::from_secs(15));
        now += queue.wait(now).unwrap();
        let probe = queue.take(now);
        queue.done(probe[0].0, &probe[0].1, Tried::Over, now, 0.9);
        assert_eq!(queue.take(now).len(), AT_A_TIME);
    }

    #[test]
    fn honours_retry_after_up_to_one_minute() {
        let (mut queue, ids) = (Queue::default(), ids(1));
        queue.sync(of(Provider::Vault, &ids), NOW);
        queue.take(NOW);
        queue.done(Provider::Vault, &ids[0], Tried::Failed(Some(Duration::from_secs(20))), NOW, 0.0);
        assert_eq!(queue.wait(NOW), Some(Duration::from_secs(20)));
        queue.take(NOW + Duration::from_secs(20));
        queue.done(Provider::Vault, &ids[0], Tried::Failed(Some(Duration::from_secs(9999))), NOW, 0.0);
        assert_eq!(queue.wait(NOW), Some(LONGEST_WAIT));
    }

    #[test]
    fn a_try_that_ends_after_its_lease_frees_its_slot() {
        let (mut queue, ids) = (Queue::default(), ids(AT_A_TIME));
        queue.sync(of(Provider::Vault, &ids), NOW);
        let taken = queue.take(NOW);
        queue.sync([], NOW);
        for (provider, id) in &taken {
            queue.done(*provider, id, Tried::Failed(None), NOW, 0.5);
        }
        let later = NOW + LONGEST_WAIT;
        assert_eq!((queue.take(later).len(), queue.wait(later)), (0, None));
        queue.sync(of(Provider::Vault, &ids[..1]), later);
        assert_eq!(queue.take(later), [(Provider::Vault, ids[0].clone())]);
    }

    proptest! {
        #[test]
        fn no_lease_is_tried_twice_at_a_time_and_none_is_forgotten(steps in prop::collection::vec((0_u64..5000, 0_usize..4, 0.0..1.0), 1..120)) {
            let (mut queue, ids) = (Queue::default(), ids(12));
            let (mut now, mut under_way, mut over) = (NOW, Vec::<LeaseId>::new(), Vec::<LeaseId>::new());
            for (millis, what, fraction) in steps {
                now += Duration::from_millis(millis);
                let pending: Vec<_> = ids.iter().filter(|id| !over.contains(id)).cloned().collect();
                queue.sync(of(Provider::Vault, &pending), now);
                for (_, id) in queue.take(now) {
                    prop_assert!(!under_way.contains(&id) && !over.contains(&id));
                    under_way.push(id);
                }
                prop_assert!(under_way.len() <= AT_A_TIME);
                if let Some(id) = (!under_way.is_empty()).then(|| under_way.remove(0)) {
                    let tried = [Tried::Over, Tried::Refused, Tried::Failed(None), Tried::Failed(Some(Duration::from_secs(5)))][what];
                    queue.done(Provider::Vault, &id, tried, now, fraction);
                    if tried == Tried::Over { over.push(id); }
                }
                let left = ids.len() - over.len() - under_way.len();
                prop_assert!(left == 0 || !under_way.is_empty() || queue.wait(now).is_some_and(|wait| wait <= LONGEST_WAIT));
            }
        }
    }
}
