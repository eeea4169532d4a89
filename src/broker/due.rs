//! When a credential is worth asking for, and when it must expire.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::policy::{Permit, ResolvedGrant};
use crate::task::Issued;
use crate::task::Task;

/// A credential that would die sooner than this is not worth asking for, nor a later end that comes no later than this.
pub(super) const SHORTEST_LIFE: Duration = Duration::from_secs(5);
/// Whether it is time to renew `live`, a credential of `task`, or to mint its successor.
pub(super) fn is_to_be_replaced(task: &Task, live: &Issued, now: Timestamp, boot: Duration) -> bool {
    is_worth_more(task, live) && live.is_due(now, boot)
}

/// Whether a later end than that of `live` would be of use: no credential outlives its task. (Orders are in whole seconds,
/// and providers are asked for a little less.)
fn is_worth_more(task: &Task, live: &Issued) -> bool {
    live.usable_until() + SHORTEST_LIFE <= task.deadline()
}

/// The law of life: the earliest of `max_residual`, what is `left` of the task and the grant's `max_session`, in whole
/// seconds; `None` when that leaves too little.
pub(super) fn dead_by(permit: &Permit, grant: &ResolvedGrant, left: Duration, now: Timestamp) -> Option<Timestamp> {
    let life = permit.caps().max_residual.min(grant.max_session).min(left);
    (life >= SHORTEST_LIFE).then(|| (now + life).floor_to_second())
}
