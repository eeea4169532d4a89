//! Until when a signed policy speaks: [`Standing`], the ends that its roles signed, and [`Freshness`], what follows at
//! a given time. Pure.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Tier;
use super::charter::Charter;
use super::repository::Signed;
use crate::clock::Timestamp;

/// A TUF role's name: `root`, `timestamp`, `governance`, or a department's.
pub type RoleName = Arc<str>;

/// The top-level roles of TUF (specification §2.1).
pub const TOP_ROLES: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];
/// The roles that must be delegated by the charter, each with the folder it owns (design §4).
pub const OWNERS: [(&str, &str); 5] = [
    ("security", "boundaries"),
    ("governance", "decisions"),
    ("business-owners", "scopes"),
    ("implementers", "grants"),
    ("incident", "kill"),
];
/// The roles whose word is about every scope: when one of them has lapsed, so has the whole.
pub const WHOLE: [&str; 6] = ["root", "timestamp", "snapshot", "targets", "security", "incident"];

/// When the word of each role ends, UTC, as the role itself signed it (`expires`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// By role.
    pub ends: BTreeMap<RoleName, Timestamp>,
}

/// How good a role's word is at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// Within its signed life.
    Fresh,
    /// Past it, for less than is allowed: begin and mint, and say so in the audit log.
    Stale(Lapse),
    /// Past it for longer: nothing begins and nothing is minted.
    Expired(Lapse),
}

/// Which role lapsed, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lapse {
    /// The role.
    pub role: RoleName,
    /// When its word ended, UTC.
    pub since: Timestamp,
}

/// For the audit log and for operators.
impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the role {} has not spoken since {}", self.role, self.since)
    }
}

/// How good a policy as a whole is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyState {
    /// Nobody signs it.
    Unsigned,
    /// Every signer speaks.
    Fresh,
    /// The signer that lapsed first; some scopes can still begin.
    Stale(Lapse),
    /// The same; no scope can begin or mint any more.
    Expired(Lapse),
}

impl PolicyState {
    /// The word of `sidemint_policy_state{state}`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Fresh => "fresh",
            Self::Stale(_) => "stale",
            Self::Expired(_) => "expired",
        }
    }
}

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

impl Standing {
    /// The freshness at `now` of what rests on [`WHOLE`] and on `roles` together, where each may have lapsed for less
    /// than `max_staleness`. The role that lapsed first is named.
    pub fn at<'a>(
        &self,
        now: Timestamp,
        max_staleness: Duration,
        roles: impl IntoIterator<Item = &'a RoleName>,
    ) -> Freshness {
        let whole = WHOLE.iter().filter_map(|role| self.ends.get_key_value(*role));
        let own = roles.into_iter().filter_map(|role| self.ends.get_key_value(role));
        let Some((role, since)) = whole.chain(own).min_by_key(|(_, end)| **end) else { return Freshness::Fresh };
        let lapse = || Lapse { role: Arc::clone(role), since: *since };
        // RFC 3339 `expires` is the last moment that is good (specification §5.3.2: "the expiration timestamp is higher").
        if now < *since {
            Freshness::Fresh
        } else if now < *since + max_staleness {
            Freshness::Stale(lapse())
        } else {
            Freshness::Expired(lapse())
        }
    }
}
