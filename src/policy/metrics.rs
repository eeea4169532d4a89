//! What is told of the policy in force.

use std::time::Duration;

use super::cache::{PolicyCache, RefreshOutcome};
use super::document::Kind;
use super::standing::{OWNERS, TOP_ROLES};
use super::{Policy, Problem, kind};
use crate::clock::Timestamp;
use crate::metrics::{Label, label, metrics};

metrics! {
    /// The policy's metrics.
    pub struct Metrics {
        /// The version number of the signed policy's snapshot; 0 without one.
        version: Gauge<()> = "sidemint_policy_version";
        /// When the signature of a role of the policy expires; of departments the earliest.
        expiry: Expiry<Role> = "sidemint_policy_expiry_timestamp_seconds";
        /// 1 for the state the policy is in.
        state: Gauge<State> = "sidemint_policy_state";
        /// Refreshes of the policy from its source.
        refreshes: Counter<RefreshOutcome> = "sidemint_policy_refreshes_total";
        /// Scopes that decide nothing because of a problem.
        suspended: Gauge<ProblemKind> = "sidemint_scopes_suspended";
        /// Scopes whose review is due within the time, or overdue and in grace; each counted once, nearest first.
        review_due: Gauge<Within> = "sidemint_scopes_review_due";
        /// Scopes that are exceptions and have not ended.
        exceptions_open: Gauge<()> = "sidemint_exceptions_open";
    }
}

label!("state" = State, "outcome" = RefreshOutcome, "role" = Role, "within" = Within);

/// The states in which a policy can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(&'static str);

impl State {
    /// Every state.
    pub const ALL: [Self; 4] = [Self("fresh"), Self("stale"), Self("expired"), Self("unsigned")];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// The roles that sign a policy. Departments count as the role that they are part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role(&'static str);

impl Role {
    /// Every role.
    pub const ALL: [Self; 9] = {
        let [root, timestamp, snapshot, targets] = TOP_ROLES;
        let [(a, _), (b, _), (c, _), (d, _), (e, _)] = OWNERS;
        [Self(root), Self(timestamp), Self(snapshot), Self(targets), Self(a), Self(b), Self(c), Self(d), Self(e)]
    };

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// How soon a review is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// It should have been.
    Overdue,
    /// In a day.
    Day,
    /// In a week.
    Week,
    /// In thirty days.
    Month,
}

impl Within {
    /// The nearest first.
    pub const ALL: [Self; 4] = [Self::Overdue, Self::Day, Self::Week, Self::Month];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overdue => "overdue",
            Self::Day => "1d",
            Self::Week => "7d",
            Self::Month => "30d",
        }
    }

    const fn limit(self) -> Duration {
        const DAY: u64 = 24 * 3600;
        Duration::from_secs(match self {
            Self::Overdue => 0,
            Self::Day => DAY,
            Self::Week => 7 * DAY,
            Self::Month => 30 * DAY,
        })
    }
}

/// Why a scope is suspended.
#[derive(Debug, Clone, Copy)]
struct ProblemKind(&'static str);

impl Label for ProblemKind {
    const NAME: &'static str = "reason";

    fn all() -> impl Iterator<Item = Self> {
        Problem::KINDS.into_iter().map(Self)
    }

    fn as_str(self) -> &'static str {
        self.0
    }
}

impl Metrics {
    /// Sets the gauges to what `cache` holds at `now`.
    pub fn update(&self, cache: &PolicyCache, now: Timestamp) {
        for (outcome, count) in RefreshOutcome::ALL.into_iter().zip(cache.status().counts) {
            self.refreshes.reach(outcome, count);
        }
        let policy = cache.current();
        let policy = policy.as_deref();
        let state = policy.map(|policy| policy.state(now).as_str());
        for known in State::ALL {
            self.state.set(known, (state == Some(known.as_str())).into());
        }
        let version = policy.and_then(Policy::snapshot).unwrap_or(0);
        self.version.set((), i64::try_from(version).unwrap_or(i64::MAX));
        let ends = policy.map(Policy::ends).unwrap_or_default();
        self.expiry.replace(ends.into_iter().map(|(role, end)| (Role(role), end.as_secs())));
        self.suspended.reset();
        self.review_due.reset();
        self.exceptions_open.set((), 0);
        if let Some(policy) = policy {
            self.count_scopes(policy, now);
        }
    }

    fn count_scopes(&self, policy: &Policy, now: Timestamp) {
        for problems in policy.suspended().values() {
            self.suspended.add(ProblemKind(problems.first().map_or("unknown", |problem| problem.kind)), 1);
        }
        let orphaned = i64::try_from(policy.orphaned(now)).unwrap_or(i64::MAX);
        self.suspended.add(ProblemKind(kind::OWNER), orphaned);
        for decision in policy.scopes().filter_map(|scope| policy.decision(scope)) {
            let left = decision.review_by.since(now);
            if let Some(within) = Within::ALL.into_iter().find(|within| left <= within.limit()) {
                self.review_due.add(within, 1);
            }
            if decision.kind == Kind::Exception && decision.expires_at.is_some_and(|end| end > now) {
                self.exceptions_open.add((), 1);
            }
        }
    }
}
