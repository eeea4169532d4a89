//! What a start makes of the journal: tasks run on or stay ended, and every lease has a task that brings it to its end.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::identity::{Proof, task_token};
use crate::journal::Recovered;
use crate::lease::life::Event as Happened;
use crate::lease::record::report;
use crate::lease::{LeaseRecord, LeaseState};
use crate::policy::{Ask, PolicyVersion, Tier};
use crate::task::{EndReason, Ending, Task, TaskId, TaskRecord, TaskTable};

/// Whose a lease is whose task is not in the journal: nobody's that any Workload API knows.
const NOBODY: &str = "spiffe://unknown.invalid/orphan";

/// The tasks of `recovered`, as they stand when the clocks show `now` (UTC) and `boot`. No lease is left out.
pub(super) fn tasks(recovered: Recovered, now: Timestamp, boot: std::time::Duration) -> TaskTable {
    let table = TaskTable::default();
    let mut leases: BTreeMap<TaskId, Vec<LeaseRecord>> = BTreeMap::new();
    for lease in recovered.leases {
        leases.entry(lease.task.clone()).or_default().push(lease);
    }
    for record in recovered.tasks {
        let mut leases = leases.remove(&record.id).unwrap_or_default();
        let behind = record.ending.is_some() && end_what_is_open(&mut leases);
        let task = Task::new(record, leases, None, now, boot);
        if behind {
            task.state().touch();
        }
        table.insert(task.into());
    }
    for (id, mut leases) in leases {
        tracing::error!(task = %id, leases = leases.len(), "leases without their task: they are revoked, or listed until they die");
        end_what_is_open(&mut leases);
        let Some(record) = placeholder(id, &leases, now) else {
            // Without random bytes nothing else begins either, and the journal still has them for the next start.
            continue;
        };
        let task = Task::new(record, leases, None, now, boot);
        task.state().touch();
        table.insert(task.into());
    }
    table
}

/// Of an ended task nothing is merely issued: a write of the lease that came after that of the end may say so, and what
/// is not `ending` would not be revoked. Returns whether any said so.
fn end_what_is_open(leases: &mut [LeaseRecord]) -> bool {
    // Ended as early as can be: whether it is dead by now, the first sweep says by its clocks.
    let open = |lease: &LeaseRecord| matches!(lease.state, LeaseState::Intent | LeaseState::Issued);
    let end = |lease: &mut LeaseRecord| open(lease) && lease.apply(&Happened::Ended(lease.opened_at)).is_ok();
    leases.iter_mut().map(|lease| u32::from(end(lease))).sum::<u32>() > 0
}

/// An ended task for leases that have none: nobody can use it, its leases are listed and brought to their end.
fn placeholder(id: TaskId, leases: &[LeaseRecord], now: Timestamp) -> Option<TaskRecord> {
    // No one is told this token.
    let (_, token) = task_token::generate().ok()?;
    let begun_at = leases.iter().map(|lease| lease.opened_at).min().unwrap_or(now);
    let ending = Ending {
        reason: EndReason::IdentityWithdrawn,
        ended_at: now,
        leases: report(leases.iter().map(|lease| &**lease)),
    };
    Some(TaskRecord {
        id,
        owner: NOBODY.parse().ok()?,
        proof: Proof::JwtSvid,
        proved_until: begun_at,
        ask: Ask {
            scope: "unknown".parse().ok()?,
            params: Default::default(),
            reason: None,
            approval: None,
            ttl: None,
        },
        label: None,
        parent: None,
        hold: false,
        token,
        idempotency: None,
        tier: Tier::Baseline,
        policy_version: PolicyVersion("unknown".into()),
        begun_at,
        deadline: now,
        ending: Some(Box::new(ending)),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::exchange::{Handle, Provider, Revocation};
    use crate::lease::revoke::awaits_revocation;
    use crate::lease::{LeaseFacts, LeaseId};

    const NOW: Timestamp = Timestamp::from_secs(1_795_435_200);

    fn lease(task: &TaskId, state: LeaseState) -> LeaseRecord {
        LeaseRecord::of(LeaseFacts {
            id: LeaseId::generate().unwrap(),
            task: task.clone(),
            provider: Provider::Vault,
            grant: "db-vault".parse().unwrap(),
            session_name: "report.db.t".into(),
            state,
            revocation: Revocation::Exact,
            opened_at: NOW,
            usable_until: NOW + Duration::from_secs(300),
            place: None,
            upstream: Some(Handle::read(Provider::Vault, "database/creds/ro/x")),
            requested: false,
            open_ended: false,
        })
    }

    fn recovered(tasks: Vec<TaskRecord>, leases: Vec<LeaseRecord>) -> TaskTable {
        super::tasks(Recovered { tasks, leases }, NOW, Duration::from_secs(5))
    }

    #[test]
    fn a_lease_without_its_task_is_outstanding_of_an_ended_task() {
        let id = TaskId::generate().unwrap();
        let table = recovered(Vec::new(), vec![lease(&id, LeaseState::Issued), lease(&id, LeaseState::Revoked)]);
        let task = table.by_id(&id).unwrap();
        let state = task.state();
        assert!(state.ending.is_some() && !state.journalled);
        assert_eq!(state.leases.iter().map(|lease| awaits_revocation(lease)).collect::<Vec<_>>(), [true, false]);
        assert_eq!(state.ending.as_ref().unwrap().leases.len(), 2);
    }

    #[test]
    fn a_lease_issued_after_the_end_of_its_task_is_outstanding() {
        let id = TaskId::generate().unwrap();
        let record = placeholder(id.clone(), &[], NOW).unwrap();
        let table = recovered(vec![record], vec![lease(&id, LeaseState::Issued)]);
        let task = table.by_id(&id).unwrap();
        assert!(task.state().leases.iter().all(|lease| awaits_revocation(lease)) && !task.state().journalled);
    }

    #[test]
    fn keeps_the_leases_of_a_running_task_unchanged() {
        let id = TaskId::generate().unwrap();
        let record = TaskRecord { ending: None, ..placeholder(id.clone(), &[], NOW).unwrap() };
        let table = recovered(vec![record], vec![lease(&id, LeaseState::Issued), lease(&id, LeaseState::Intent)]);
        let task = table.by_id(&id).unwrap();
        let state = task.state();
        assert!(state.journalled && !state.leases.iter().any(|lease| lease.state == LeaseState::Ending));
    }
}
