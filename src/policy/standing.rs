//! When a signed policy expires: [`Standing`], the ends that its roles signed, and [`Freshness`], what follows at
//! a given time. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;

/// A TUF role's name: `root`, `timestamp`, `governance`, or a department's.
pub type RoleName = Arc<str>;

/// The top-level roles of TUF (specification §2.1).
pub const TOP_ROLES: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];
/// The roles that must be delegated by the charter, each with the folder it owns (docs/policy.md).
pub const OWNERS: [(&str, &str); 5] = [
    ("security", "boundaries"),
    ("governance", "decisions"),
    ("business-owners", "scopes"),
    ("implementers", "grants"),
    ("incident", "kill"),
];
/// The roles that are about every scope: when one of them has expired, so has the whole.
pub const WHOLE: [&str; 6] = ["root", "timestamp", "snapshot", "targets", "security", "incident"];

/// When each role expires, UTC, as the role itself signed it (`expires`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// The expiry that each role signed, UTC.
    pub ends: BTreeMap<RoleName, Timestamp>,
}

/// How fresh a role is at some time.
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
    /// The role that expired.
    pub role: RoleName,
    /// When it expired, UTC.
    pub since: Timestamp,
}

/// For the audit log and for operators.
impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the role {} expired at {}", self.role, self.since)
    }
}

/// How good a policy as a whole is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyState {
    /// The policy comes from a directory and is not signed.
    Unsigned,
    /// No signer has expired.
    Fresh,
    /// The signer that lapsed first; some scopes can still begin.
    Stale(Lapse),
    /// The same; no scope can begin or mint any more.
    Expired(Lapse),
}

impl PolicyState {
    /// The label of `sidemint_policy_state{state}`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Fresh => "fresh",
            Self::Stale(_) => "stale",
            Self::Expired(_) => "expired",
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
