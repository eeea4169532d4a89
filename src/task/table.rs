//! The tasks in memory: found by the hash of their token, by id, or by idempotency key.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Task;
use crate::id::TaskId;
use crate::identity::SpiffeId;
use crate::identity::task_token::TokenHash;

/// Every task that is remembered, running or ended.
#[derive(Debug, Default)]
pub struct TaskTable {
    maps: RwLock<Maps>,
}

#[derive(Debug, Default)]
struct Maps {
    by_token: HashMap<TokenHash, Arc<Task>>,
    by_id: HashMap<TaskId, Arc<Task>>,
    by_key: HashMap<(SpiffeId, [u8; 32]), TaskId>,
    children: HashMap<TaskId, BTreeSet<TaskId>>,
}

impl TaskTable {
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a task under its present token.
    pub fn insert(&self, task: Arc<Task>) {
        let token = task.state().token;
        let mut maps = self.write();
        if let Some(idempotency) = &task.begun().idempotency {
            maps.by_key.insert((task.owner().clone(), idempotency.key), task.id().clone());
        }
        if let Some(parent) = &task.begun().parent {
            maps.children.entry(parent.clone()).or_default().insert(task.id().clone());
        }
        maps.by_token.insert(token, Arc::clone(&task));
        maps.by_id.insert(task.id().clone(), task);
    }

    /// Forgets a task.
    pub fn remove(&self, task: &Task) {
        let token = task.state().token;
        let mut maps = self.write();
        maps.by_token.remove(&token);
        maps.by_id.remove(task.id());
        if let Some(idempotency) = &task.begun().idempotency {
            maps.by_key.remove(&(task.owner().clone(), idempotency.key));
        }
        if let Some(parent) = &task.begun().parent
            && let Some(siblings) = maps.children.get_mut(parent)
        {
            siblings.remove(task.id());
            if siblings.is_empty() {
                maps.children.remove(parent);
            }
        }
    }

    /// Makes `new` the only token of `task`; the one before it finds nothing from now on.
    pub fn replace_token(&self, task: &Arc<Task>, new: TokenHash) {
        let mut maps = self.write();
        let old = std::mem::replace(&mut task.state().token, new);
        maps.by_token.remove(&old);
        maps.by_token.insert(new, Arc::clone(task));
    }

    /// The task whose token hashes to `token`.
    pub fn by_token(&self, token: &TokenHash) -> Option<Arc<Task>> {
        self.read().by_token.get(token).cloned()
    }

    /// The task with this id.
    pub fn by_id(&self, id: &TaskId) -> Option<Arc<Task>> {
        self.read().by_id.get(id).cloned()
    }

    /// The task that `owner` began with the idempotency key of this hash.
    pub fn by_key(&self, owner: &SpiffeId, key: &[u8; 32]) -> Option<Arc<Task>> {
        let maps = self.read();
        let id = maps.by_key.get(&(owner.clone(), *key))?;
        maps.by_id.get(id).cloned()
    }

    /// The tasks that are part of `parent`.
    pub fn children(&self, parent: &TaskId) -> Vec<Arc<Task>> {
        let maps = self.read();
        let children = maps.children.get(parent).into_iter().flatten();
        children.filter_map(|id| maps.by_id.get(id).cloned()).collect()
    }

    /// All tasks, in no order.
    pub fn all(&self) -> Vec<Arc<Task>> {
        self.read().by_id.values().cloned().collect()
    }

    /// All tasks of `owner`, in no order.
    pub fn of(&self, owner: &SpiffeId) -> Vec<Arc<Task>> {
        self.read().by_id.values().filter(|task| task.owner() == owner).cloned().collect()
    }

    /// How many tasks of `owner` run, and how many have ended and cannot be forgotten yet.
    pub fn standing_of(&self, owner: &SpiffeId) -> (usize, usize) {
        let maps = self.read();
        let (mut running, mut unsettled) = (0, 0);
        for task in maps.by_id.values().filter(|task| task.owner() == owner) {
            let state = task.state();
            if state.ending.is_none() {
                running += 1;
            } else if !state.is_settled() {
                unsettled += 1;
            }
        }
        (running, unsettled)
    }

    /// How many tasks are remembered.
    pub fn len(&self) -> usize {
        self.read().by_id.len()
    }

    /// Whether no task is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::clock::Timestamp;

    fn task(parent: Option<&TaskId>) -> Arc<Task> {
        let (id, now) = (TaskId::generate().unwrap(), Timestamp::from_secs(1_795_435_200));
        let (_, token) = crate::identity::task_token::generate().unwrap();
        let record = json!({
            "id": id, "owner": "spiffe://example.org/report", "proof": "jwt-svid", "proved_until": now,
            "ask": { "scope": "ledger-read" }, "parent": parent, "hold": false, "token": token, "tier": "baseline",
            "policy_version": "v", "begun_at": now, "deadline": now + Duration::from_secs(3600),
        });
        Arc::new(Task::new(serde_json::from_value(record).unwrap(), Vec::new(), None, now, Duration::ZERO))
    }

    #[test]
    fn a_parent_has_the_children_that_are_remembered() {
        let table = TaskTable::default();
        let parent = task(None);
        let (first, second, other) = (task(Some(parent.id())), task(Some(parent.id())), task(None));
        for task in [&parent, &first, &second, &other] {
            table.insert(Arc::clone(task));
        }
        let children = || table.children(parent.id()).iter().map(|task| task.id().clone()).collect::<BTreeSet<_>>();
        assert_eq!(children(), [first.id(), second.id()].map(Clone::clone).into());
        assert!(table.children(first.id()).is_empty() && table.children(other.id()).is_empty());
        table.remove(&first);
        assert_eq!(children(), [second.id().clone()].into());
        table.remove(&second);
        assert!(children().is_empty() && table.read().children.is_empty());
    }
}
