//! The real journal on a disk that fails, one commit at a time, and the books on what it has promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use sidemint::journal::{Change, DiskJournal, Journal, JournalError, Recovered};
use sidemint::lease::{LeaseId, LeaseRecord, LeaseState};
use sidemint::task::{TaskId, TaskRecord};
use tokio::sync::oneshot;

use crate::disk::{Backend, Disk};
use crate::planted::Planted;

/// What the journal holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Content {
    pub(crate) tasks: BTreeMap<TaskId, TaskRecord>,
    pub(crate) leases: BTreeMap<LeaseId, LeaseRecord>,
}

impl Content {
    pub(crate) fn of(recovered: &Recovered) -> Self {
        Self {
            tasks: recovered.tasks.iter().map(|task| (task.id.clone(), task.clone())).collect(),
            leases: recovered.leases.iter().map(|lease| (lease.id.clone(), lease.clone())).collect(),
        }
    }

    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Task(task) => {
                    // An end is never undone, whichever write comes last.
                    let known = self.tasks.get(&task.id);
                    if task.ending.is_some() || known.is_none_or(|known| known.ending.is_none()) {
                        self.tasks.insert(task.id.clone(), (**task).clone());
                    }
                }
                Change::Lease(lease) => drop(self.leases.insert(lease.id.clone(), (**lease).clone())),
                Change::ForgetTask(id) => drop(self.tasks.remove(id)),
                Change::ForgetLease(id) => drop(self.leases.remove(id)),
            }
        }
    }
}

/// The ledger of the journal: what it has promised to hold.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) promised: Content,
    /// What was being written when it failed or the machine stopped: it may be there or not.
    pub(crate) doubtful: Option<Vec<Change>>,
    /// The upstream names of every lease that was ever durable as issued.
    pub(crate) issued: BTreeSet<String>,
    /// The leases that a task ever had, as they were at last, those that are forgotten too.
    pub(crate) last: BTreeMap<LeaseId, LeaseRecord>,
}

impl Books {
    fn keep(&mut self, changes: &[Change]) {
        self.promised.apply(changes);
        self.note(changes);
    }

    fn note(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Lease(lease) = change {
                self.issued.extend(lease.upstream.as_ref().map(ToString::to_string));
                self.last.insert(lease.id.clone(), (**lease).clone());
            }
        }
    }

    /// Compares what a start has found with what was promised, and goes on with what was found.
    pub(crate) fn reopen(&mut self, found: Content) -> Result<(), String> {
        let mut with = self.promised.clone();
        let doubtful = self.doubtful.take();
        if let Some(doubtful) = &doubtful {
            with.apply(doubtful);
        }
        if found == self.promised {
            return Ok(());
        }
        if found != with {
            return Err(format!("found {found:#?}, promised {:#?}", self.promised));
        }
        self.note(&doubtful.unwrap_or_default());
        self.promised = found;
        Ok(())
    }
}

#[derive(Debug)]
struct Waiting {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), JournalError>>,
}

/// How far a release goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// Written, and told.
    Told,
    /// Written, and nobody is told.
    Untold,
}

/// The journal that a simulated sidecar has. Writes wait until the simulation lets them go; those that wait are one commit.
#[derive(Debug)]
pub(crate) struct SimJournal {
    inner: DiskJournal,
    disk: Arc<Disk>,
    books: Arc<Mutex<Books>>,
    planted: Planted,
    waiting: Mutex<Vec<Waiting>>,
    /// Whom nobody will ever tell.
    untold: Mutex<Vec<Waiting>>,
}

impl SimJournal {
    /// Opens it, and holds what it has against the books.
    pub(crate) fn open(
        disk: &Arc<Disk>,
        books: &Arc<Mutex<Books>>,
        planted: Planted,
    ) -> Result<(Arc<Self>, Recovered), String> {
        let (inner, mut recovered) =
            DiskJournal::on(Backend::on(disk), "simulated").map_err(|error| error.to_string())?;
        books.lock().unwrap().reopen(Content::of(&recovered))?;
        if planted == Planted::ForgetKeys {
            recovered.tasks.iter_mut().for_each(|task| task.idempotency = None);
        }
        if planted == Planted::ForgetLeases {
            recovered.leases.retain(|lease| lease.state.is_over());
        }
        let journal = Self {
            inner,
            disk: Arc::clone(disk),
            books: Arc::clone(books),
            planted,
            waiting: Mutex::default(),
            untold: Mutex::default(),
        };
        Ok((Arc::new(journal), recovered))
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap()
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        !self.waiting().is_empty()
    }

    /// Lets everything that waits be committed together. Says whether anything waited.
    pub(crate) async fn release(&self, how: Release) -> bool {
        let mut batch = std::mem::take(&mut *self.waiting());
        if batch.is_empty() {
            return false;
        }
        // They came in an order that hangs on random ids.
        batch.sort_by_key(|waiting| waiting.changes.iter().map(rank).collect::<Vec<_>>());
        let changes: Vec<_> = batch.iter().flat_map(|waiting| waiting.changes.clone()).collect();
        let was_healthy = self.inner.healthy();
        let outcome = self.inner.write(changes.clone()).await;
        {
            let mut books = self.books.lock().unwrap();
            match &outcome {
                Ok(()) => books.keep(&changes),
                Err(_) if was_healthy => books.doubtful = Some(changes),
                Err(_) => {}
            }
        }
        if how == Release::Untold || self.disk.is_dead() {
            self.untold.lock().unwrap().extend(batch);
            return true;
        }
        for waiting in batch {
            let _ = waiting.done.send(outcome.clone());
        }
        true
    }
}

/// By time and kind, never by id. Of a task its end comes first: a write of it while it still ran may be the last to land.
fn rank(change: &Change) -> (u8, u64, u64) {
    match change {
        Change::Task(task) => (0, task.begun_at.as_millis(), task.ending.is_none().into()),
        Change::Lease(lease) => (1, lease.opened_at.as_millis(), lease.state as u64),
        Change::ForgetTask(_) => (2, 0, 0),
        Change::ForgetLease(_) => (3, 0, 0),
    }
}

#[async_trait]
impl Journal for SimJournal {
    async fn write(&self, changes: Vec<Change>) -> Result<(), JournalError> {
        let is_lease = |state| move |change: &Change| matches!(change, Change::Lease(lease) if lease.state == state);
        let ends = |change: &Change| matches!(change, Change::Task(task) if task.ending.is_some());
        let begins = |change: &Change| matches!(change, Change::Task(task) if task.ending.is_none());
        let lost = match self.planted {
            Planted::SkipIntent => changes.iter().all(is_lease(LeaseState::Intent)),
            Planted::SkipIssued => changes.iter().all(is_lease(LeaseState::Issued)),
            Planted::LoseBegins => changes.iter().all(begins),
            Planted::LoseEnds => changes.iter().any(ends),
            _ => false,
        };
        if lost {
            return Ok(());
        }
        let (done, told) = oneshot::channel();
        self.waiting().push(Waiting { changes, done });
        match told.await {
            Ok(outcome) => outcome,
            // The sidecar is no more.
            Err(_) => std::future::pending().await,
        }
    }

    fn pending(&self) -> usize {
        self.waiting().len()
    }

    fn healthy(&self) -> bool {
        self.inner.healthy()
    }
}
