//! The tasks in memory: found by the hash of their token, by id, or by idempotency key.

use std::collections::HashMap;
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
