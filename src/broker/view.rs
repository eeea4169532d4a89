//! Tasks and leases, counted. No secrets.

use std::collections::{BTreeMap, HashMap};

use super::Broker;
use crate::clock::Timestamp;
use crate::exchange::Revocation;
use crate::lease::revoke::awaits_revocation;
use crate::policy::Tier;
use crate::provider::Provider;

/// Everything counted.
#[derive(Debug, Default)]
pub struct Census {
    /// Running tasks by tier, every tier listed.
    pub tasks: Vec<(Tier, i64)>,
    /// Leases that are not over, by provider and class.
    pub leases: Vec<(Provider, Revocation, i64)>,
    /// Leases that wait to be revoked, by provider.
    pub outstanding: Vec<(Provider, i64)>,
    /// The earliest expiry of a credential that is served, by provider.
    pub credential_expiry: Vec<(Provider, Timestamp)>,
    /// Running tasks.
    pub active: usize,
    /// Ended tasks that are remembered.
    pub ended: usize,
}

impl Broker {
    /// Counts what is there now.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        let mut tasks = Tier::ALL.map(|tier| (tier, 0));
        let mut leases: HashMap<(Provider, Revocation), i64> = HashMap::new();
        let mut outstanding: BTreeMap<Provider, i64> = BTreeMap::new();
        let mut expiry: BTreeMap<Provider, Timestamp> = BTreeMap::new();
        let (now, boot) = (self.now(), self.parts.clock.boot());
        // A clock that was set forward hides no lease that can still be used.
        let earliest = self.parts().clock.earliest();
        for task in self.tasks().all() {
            let state = task.state();
            if state.ending.is_some() {
                census.ended += 1;
            } else {
                census.active += 1;
                let of_tier = tasks.iter_mut().find(|(tier, _)| *tier == task.begun().tier);
                of_tier.into_iter().for_each(|(_, count)| *count += 1);
            }
            for lease in state.leases.iter().filter(|lease| !lease.state.is_over() && lease.usable_until > earliest) {
                *leases.entry((lease.provider, lease.revocation)).or_default() += 1;
            }
            for lease in state.leases.iter().filter(|lease| awaits_revocation(lease)) {
                *outstanding.entry(lease.provider).or_default() += 1;
            }
            for (provider, slot) in state.slots.iter() {
                if let Some(live) = slot.live.as_ref().filter(|live| live.is_live(now, boot)) {
                    let earliest = expiry.entry(provider).or_insert(Timestamp::MAX);
                    *earliest = live.advertised_expiry().min(*earliest);
                }
            }
        }
        census.tasks = tasks.into();
        census.leases = leases.into_iter().map(|((provider, class), count)| (provider, class, count)).collect();
        census.outstanding = outstanding.into_iter().collect();
        census.credential_expiry = expiry.into_iter().collect();
        census
    }
}
