//! Tasks and leases, counted. No secrets.

use std::collections::BTreeMap;

use super::Broker;
use crate::clock::Timestamp;
use crate::lease::revoke::awaits_revocation;
use crate::policy::Tier;

/// Everything counted.
#[derive(Debug, Default)]
pub struct Census {
    /// Running tasks by tier, every tier listed.
    pub tasks: Vec<(&'static str, i64)>,
    /// Leases that are not over, by provider and class.
    pub leases: Vec<(&'static str, &'static str, i64)>,
    /// Leases that wait to be revoked, by provider.
    pub outstanding: Vec<(&'static str, i64)>,
    /// The earliest expiry of a credential that is served, by provider (seconds since the epoch).
    pub credential_expiry: Vec<(&'static str, f64)>,
    /// Running tasks.
    pub active: usize,
    /// Ended tasks that are remembered.
    pub ended: usize,
}

impl Broker {
    /// Counts what is there now.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        let mut tasks = BTreeMap::from(Tier::ALL.map(|tier| (tier.as_str(), 0)));
        let mut leases: BTreeMap<(&'static str, &'static str), i64> = BTreeMap::new();
        let mut outstanding: BTreeMap<&'static str, i64> = BTreeMap::new();
        let mut expiry: BTreeMap<&'static str, Timestamp> = BTreeMap::new();
        let (now, boot) = (self.now(), self.parts.clock.boot());
        // A clock that was set forward hides no lease that can still be used.
        let earliest = self.parts().clock.earliest();
        for task in self.tasks().all() {
            let state = task.state();
            if state.ending.is_some() {
                census.ended += 1;
            } else {
                census.active += 1;
                *tasks.entry(task.begun().tier.as_str()).or_default() += 1;
            }
            for lease in state.leases.iter().filter(|lease| !lease.state.is_over() && lease.usable_until > earliest) {
                *leases.entry((lease.provider.as_str(), lease.revocation.as_str())).or_default() += 1;
            }
            for lease in state.leases.iter().filter(|lease| awaits_revocation(lease)) {
                *outstanding.entry(lease.provider.as_str()).or_default() += 1;
            }
            for (provider, slot) in state.slots.iter() {
                if let Some(live) = slot.live.as_ref().filter(|live| live.is_live(now, boot)) {
                    let earliest = expiry.entry(provider.as_str()).or_insert(Timestamp::MAX);
                    *earliest = live.advertised_expiry().min(*earliest);
                }
            }
        }
        census.tasks = tasks.into_iter().collect();
        census.leases = leases.into_iter().map(|((provider, class), count)| (provider, class, count)).collect();
        census.outstanding = outstanding.into_iter().collect();
        census.credential_expiry = expiry.into_iter().map(|(provider, at)| (provider, at.as_secs() as f64)).collect();
        census
    }
}
