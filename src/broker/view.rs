//! What tasks look like to those who may see them, one by one or counted. No secrets.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::Broker;
use crate::clock::Timestamp;
use crate::exchange::{Handle, Provider, Revocation};
use crate::identity::SpiffeId;
use crate::lease::revoke::awaits_revocation;
use crate::lease::{LeaseFacts, LeaseId, LeaseState};
use crate::policy::{GrantId, ScopeId, Tier};
use crate::task::{EndReason, Task, TaskId};

/// A task and its leases.
#[derive(Debug, Clone, Serialize)]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// Its scope.
    pub scope: ScopeId,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// The caller's free word for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The task it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<TaskId>,
    /// Its decision's tier.
    pub tier: Tier,
    /// `active` or `ended`.
    pub state: &'static str,
    /// Whether it ends when nobody holds it.
    pub hold: bool,
    /// When it began, UTC.
    pub begun_at: Timestamp,
    /// When it must end, UTC.
    pub expires_at: Timestamp,
    /// When it ended, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    /// Its leases.
    pub leases: Vec<LeaseView>,
}

/// A lease.
#[derive(Debug, Clone, Serialize)]
pub struct LeaseView {
    /// Its id.
    pub id: LeaseId,
    /// Who gave the credential.
    pub provider: Provider,
    /// How it can be revoked.
    pub revocation: Revocation,
    /// Where it is in its life.
    pub state: LeaseState,
    /// The end of its residual access, UTC.
    pub usable_until: Timestamp,
    /// Whether it may have opened or created what outlives even that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open_ended: bool,
    /// The session's name at the provider.
    pub session_name: String,
    /// The grant it implements.
    pub grant: GrantId,
    /// What its provider calls it, once known and where an operator needs it there, as the provider names the member.
    #[serde(flatten)]
    pub handle: Option<ShownHandle>,
}

/// A handle as one member: its name and value are those of [`Handle::shown`].
#[derive(Debug, Clone)]
pub struct ShownHandle(Handle);

impl Serialize for ShownHandle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.shown())
    }
}

impl From<&LeaseFacts> for LeaseView {
    fn from(lease: &LeaseFacts) -> Self {
        Self {
            id: lease.id.clone(),
            provider: lease.provider,
            revocation: lease.revocation,
            state: lease.state,
            usable_until: lease.usable_until,
            open_ended: lease.open_ended,
            session_name: lease.session_name.to_string(),
            grant: lease.grant.clone(),
            handle: lease.upstream.clone().map(ShownHandle),
        }
    }
}

impl TaskView {
    /// The task as it is now.
    pub fn of(task: &Task) -> Self {
        let state = task.state();
        let record = task.begun();
        let ending = state.ending.as_ref();
        Self {
            id: record.id.clone(),
            scope: record.ask.scope.clone(),
            spiffe_id: record.owner.clone(),
            task: record.label.clone(),
            parent: record.parent.clone(),
            tier: record.tier,
            state: if ending.is_some() { "ended" } else { "active" },
            hold: record.hold,
            begun_at: record.begun_at,
            expires_at: record.deadline,
            ended_at: ending.map(|e| e.ended_at),
            reason: ending.map(|e| e.reason),
            leases: state.leases.iter().map(|lease| LeaseView::from(&**lease)).collect(),
        }
    }
}

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
