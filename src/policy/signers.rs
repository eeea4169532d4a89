//! Which roles a version's scopes rest on, and what follows from their standing.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Tier;
use super::charter::Charter;
use super::repository::Signed;
use super::standing::{Freshness, Lapse, OWNERS, PolicyState, RoleName, Standing, TOP_ROLES};
use crate::clock::Timestamp;

/// Who signed a version's files.
#[derive(Debug, Default)]
pub(super) struct Signers {
    snapshot: u64,
    /// Each publishing role → the one of [`TOP_ROLES`] and [`OWNERS`] that it is, or is part of.
    part_of: BTreeMap<RoleName, &'static str>,
    /// What scopes rest on: each combination of tier and roles once.
    rests_on: HashSet<(Tier, Arc<[RoleName]>)>,
}

impl Signers {
    /// From the role that published each file, and those that let it.
    pub(super) fn new(signed: &Signed) -> Self {
        let fixed = TOP_ROLES.iter().copied().chain(OWNERS.iter().map(|(role, _)| *role));
        let mut part_of: BTreeMap<RoleName, &'static str> = fixed.map(|role| (role.into(), role)).collect();
        for (path, role) in &signed.publishers {
            let folder = path.split('/').next().unwrap_or_default();
            let owner = OWNERS.iter().find(|(_, owned)| *owned == folder).map_or("targets", |(owner, _)| *owner);
            for role in signed.chain(role) {
                part_of.entry(Arc::clone(role)).or_insert(owner);
            }
        }
        Self { snapshot: signed.snapshot, part_of, rests_on: HashSet::new() }
    }

    /// Notes that a scope of `tier` rests on `roles`, beside [`WHOLE`].
    pub(super) fn rest(&mut self, tier: Tier, roles: &Arc<[RoleName]>) {
        self.rests_on.insert((tier, Arc::clone(roles)));
    }

    /// The version number of the snapshot.
    pub(super) fn snapshot(&self) -> u64 {
        self.snapshot
    }

    /// The earliest end of each of the nine roles with those that are part of it. A role that publishes nothing, such as
    /// a department that was retired, is of no account.
    pub(super) fn ends(&self, standing: &Standing) -> BTreeMap<&'static str, Timestamp> {
        let mut ends = BTreeMap::new();
        for (role, part_of) in &self.part_of {
            if let Some(end) = standing.ends.get(role) {
                let earliest = ends.entry(*part_of).or_insert(*end);
                *earliest = (*earliest).min(*end);
            }
        }
        ends
    }

    /// The state of everything together at `now`.
    pub(super) fn state(&self, standing: &Standing, charter: &Charter, now: Timestamp) -> PolicyState {
        let nothing: [(Tier, Arc<[RoleName]>); 1] = [(Tier::Baseline, Arc::new([]))];
        let rests_on: Vec<_> = match self.rests_on.is_empty() {
            true => nothing.iter().collect(),
            false => self.rests_on.iter().collect(),
        };
        let (mut first, mut alive): (Option<Lapse>, bool) = (None, false);
        for (tier, roles) in rests_on {
            let lapse = match standing.at(now, charter.max_staleness(*tier), roles.iter()) {
                Freshness::Fresh => {
                    alive = true;
                    continue;
                }
                Freshness::Stale(lapse) => {
                    alive = true;
                    lapse
                }
                Freshness::Expired(lapse) => lapse,
            };
            if first.as_ref().is_none_or(|first| (lapse.since, &lapse.role) < (first.since, &first.role)) {
                first = Some(lapse);
            }
        }
        match first {
            None => PolicyState::Fresh,
            Some(lapse) if alive => PolicyState::Stale(lapse),
            Some(lapse) => PolicyState::Expired(lapse),
        }
    }
}
