//! The durable record of tasks and leases: what lets a task outlive a crash, and a lease never be forgotten.
//!
//! The store is `redb`: one file, pure Rust, copy-on-write B-trees with checksums, so that a torn write or a crash at
//! any moment leaves the last committed state. One writer thread commits every change that is waiting in a single
//! transaction (group commit): an fsync is shared by all who wait for it.
//!
//! INVARIANT: no secret is ever written here; a task's token only as its SHA-256.

mod file;
mod place;
mod slots;
pub mod task_record;

use std::fmt;
use std::fs::File;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::{mpsc, oneshot};

use self::file::StoreFile;
use self::place::{Owner, Place};
use self::task_record::TaskRecord;
use crate::background::{self, LowPriority, Turns};
use crate::id::{LeaseId, TaskId};
use crate::lease::LeaseRecord;

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const TASKS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("tasks");
const LEASES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("leases");
/// The layout of the records; another number is refused rather than guessed at.
const LAYOUT: u64 = 1;
const QUEUE: usize = 4096;
const BATCH: usize = 1024;
/// A commit of more writes takes turns with those who serve.
const FEW: usize = 4;
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// One durable change.
#[derive(Debug, Clone)]
pub enum Change {
    /// Writes or replaces a task. One that has ended is not replaced by one that runs: which of two writes of a task reaches the
    /// journal last is not for their writers to say, and an end that was acknowledged must not be undone.
    Task(Box<TaskRecord>),
    /// Writes or replaces a lease.
    Lease(Box<LeaseRecord>),
    /// Forgets a task that ended long ago.
    ForgetTask(TaskId),
    /// Forgets a lease that is over.
    ForgetLease(LeaseId),
}

/// Everything that a journal held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The tasks, ended ones too.
    pub tasks: Vec<TaskRecord>,
    /// The leases, of ended tasks too.
    pub leases: Vec<LeaseRecord>,
}

/// Why the journal could not be opened or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The state directory cannot be used.
    #[error("cannot use the state directory {path}: {detail}")]
    Directory {
        /// The directory.
        path: String,
        /// What the system said.
        detail: String,
    },
    /// Another process has it open.
    #[error("the journal {0} is in use by another process: give each sidecar its own state.directory")]
    InUse(String),
    /// Written by another version of Sidemint, or not a journal.
    #[error("the journal {path} cannot be read: {detail}: restore it, or move it away to start without its tasks")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Another sidecar wrote it.
    #[error(
        "the journal {path} belongs to sidecar {owner}, and this state directory {here}: put back the directory that the journal came \
         from, as a whole; where it is this one, write {owner} into its {file}; or move the journal away to start without its tasks",
        file = place::OWNER
    )]
    Foreign {
        /// The file.
        path: String,
        /// Whose it is.
        owner: String,
        /// What the directory says.
        here: String,
    },
    /// A write failed; nothing is minted until the sidecar is started again on a healthy disk.
    #[error("the journal cannot be written: {0}")]
    Write(String),
}

/// Proof that a change is durable. Only [`record`] makes one.
#[derive(Debug)]
pub struct Receipt(());

/// Writes `changes`, all or none, and returns once they are durable.
///
/// # Errors
/// When they may not be durable; the caller must act as if they were lost.
pub async fn record(journal: &dyn Journal, changes: Vec<Change>) -> Result<Receipt, JournalError> {
    journal.write(changes).await.map(|()| Receipt(()))
}

/// The seam to the durable record.
#[async_trait]
pub trait Journal: Send + Sync + fmt::Debug {
    /// Writes `changes`, all or none, and returns once they are durable. Use [`record`].
    async fn write(&self, changes: Vec<Change>) -> Result<(), JournalError>;

    /// How many writes wait to become durable.
    fn pending(&self) -> usize;

    /// Whether writes still succeed.
    fn healthy(&self) -> bool;

    /// Why they do not, and the fix, for operators; `None` while they do.
    fn fault(&self) -> Option<String> {
        (!self.healthy()).then(|| "a write failed: fix the disk and start again".to_owned())
    }
}

/// The journal on disk.
#[derive(Debug)]
pub struct DiskJournal {
    queue: mpsc::Sender<Write>,
    status: Arc<Status>,
}

#[derive(Debug)]
struct Status {
    pending: AtomicUsize,
    /// Why a write failed, once one has.
    failed: OnceLock<String>,
    /// Where the file was found; `None` where it is no file.
    place: Option<Place>,
}

/// The file that is written is no longer the one that the next start would read.
const GONE: &str = "its file was removed, or its directory was put in another's place, while it was in use: put back what was there and start again";

impl Status {
    fn is_in_place(&self) -> bool {
        self.place.as_ref().is_none_or(Place::holds)
    }
}

struct Write {
    changes: Vec<Encoded>,
    done: oneshot::Sender<Result<(), JournalError>>,
}

enum Encoded {
    EndedTask(TaskId, Vec<u8>),
    RunningTask(TaskId, Vec<u8>),
    Lease(LeaseId, Vec<u8>),
    ForgetTask(TaskId),
    ForgetLease(LeaseId),
}

impl DiskJournal {
    /// Opens, or creates, the journal in `directory` (created with mode 0700; the file has mode 0600) and reads it.
    ///
    /// # Errors
    /// When the directory cannot be used, another process holds the journal, or it is of another layout.
    pub fn open(directory: &Path) -> Result<(Self, Recovered), JournalError> {
        Self::open_on(directory, |file| file)
    }

    /// The same, on what `backend` makes of the file: what lies between the two in tests of failing disks.
    ///
    /// # Errors
    /// As [`DiskJournal::open`].
    pub fn open_on<B: StorageBackend>(
        directory: &Path,
        backend: impl FnOnce(FileBackend) -> B,
    ) -> Result<(Self, Recovered), JournalError> {
        let path = directory.join(place::FILE);
        let shown = path.display().to_string();
        let failed =
            |e: io::Error| JournalError::Directory { path: directory.display().to_string(), detail: e.to_string() };
        let lay_out = |file, owner| lay_out(file, owner).map_err(io::Error::other);
        let file = place::prepare(directory, &path, lay_out).map_err(failed)?;
        let place = Place::of(&file, &path).map_err(failed)?;
        let opened = FileBackend::new(file).map_err(|error| failed(io::Error::other(error)))?;
        Self::start(shown, backend(opened), Some((directory, place)))
    }

    /// Opens the journal that is on `backend`, shown as `name`: what lies under the file in tests of failing disks.
    ///
    /// # Errors
    /// As [`DiskJournal::open`]; a backend without bytes is no journal.
    pub fn on(backend: impl StorageBackend, name: &str) -> Result<(Self, Recovered), JournalError> {
        Self::start(name.to_owned(), backend, None)
    }

    fn start(
        shown: String,
        backend: impl StorageBackend,
        place: Option<(&Path, Place)>,
    ) -> Result<(Self, Recovered), JournalError> {
        let unreadable = |detail| JournalError::Unreadable { path: shown.clone(), detail };
        let turns = Arc::new(Turns::default());
        let (database, recovered) = unpanicked(|| {
            let database = open(backend, &turns).map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => JournalError::InUse(shown.clone()),
                other => unreadable(other.to_string()),
            })?;
            let recovered = recover(&database).map_err(unreadable)?;
            if let Some((directory, _)) = &place {
                belongs(&database, directory, &shown)?;
            }
            Ok((database, recovered))
        })
        .unwrap_or_else(|panic| Err(unreadable(panic)))?;
        let (queue, writes) = mpsc::channel(QUEUE);
        let place = place.map(|(_, place)| place);
        let status = Arc::new(Status { pending: AtomicUsize::new(0), failed: OnceLock::new(), place });
        let shared = Arc::clone(&status);
        background::spawn("journal", LowPriority::Lower, move || commit_all(&database, writes, &shared, &turns))
            .map_err(|e| JournalError::Directory { path: shown, detail: e.to_string() })?;
        Ok((Self { queue, status }, recovered))
    }
}

/// Opens what is on `backend`. Nothing is no journal: a file that was cut off to nothing would be taken for a new one.
fn open(backend: impl StorageBackend, turns: &Arc<Turns>) -> Result<Database, redb::DatabaseError> {
    match backend.len()? {
        0 => Err(redb::StorageError::Corrupted("it is empty".to_owned()).into()),
        _ => builder().create_with_backend(StoreFile::new(backend, Arc::clone(turns))),
    }
}

/// Checks that a journal is the one of the sidecar to which `directory` belongs. One that says nothing, as those of earlier versions,
/// becomes it.
fn belongs(database: &Database, directory: &Path, shown: &str) -> Result<(), JournalError> {
    let unreadable =
        |error: redb::Error| JournalError::Unreadable { path: shown.to_owned(), detail: error.to_string() };
    let unusable =
        |e: io::Error| JournalError::Directory { path: directory.display().to_string(), detail: e.to_string() };
    match owner(database).map_err(unreadable)? {
        Some(owner) => match Owner::of(directory).map_err(unusable)? {
            Some(here) if here == owner => Ok(()),
            other => Err(JournalError::Foreign {
                path: shown.to_owned(),
                owner: owner.to_string(),
                here: other.map_or_else(|| format!("has no {}", place::OWNER), |here| format!("to sidecar {here}")),
            }),
        },
        None => {
            let owner = Owner::of_or_new(directory).map_err(unusable)?;
            claim(database, owner).map_err(unreadable)
        }
    }
}

fn owner(database: &Database) -> Result<Option<Owner>, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta.get("owner")?.map(|value| Owner(value.value())))
}

fn claim(database: &Database, owner: Owner) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(META)?.insert("owner", owner.0)?;
    Ok(write.commit()?)
}

/// How the store is opened. Every page that is in use is verified: a plain open trusts a file that was closed in order,
/// and panics or misreads where it was altered since.
fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Runs `work`, and tells of a panic in it as text: the store asserts what a damaged file need not keep, and a sidecar that
/// cannot read its journal must say so.
fn unpanicked<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // Nothing that `work` touched is looked at again.
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        format!("it is damaged: {}", text.unwrap_or("the store gave up"))
    })
}

fn lay_out(file: File, owner: Owner) -> Result<(), redb::Error> {
    let database = builder().create_with_backend(FileBackend::new(file)?)?;
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert("layout", LAYOUT)?;
        meta.insert("owner", owner.0)?;
    }
    write.open_table(TASKS)?;
    write.open_table(LEASES)?;
    Ok(write.commit()?)
}

fn recover(database: &Database) -> Result<Recovered, String> {
    let text = |e: &dyn fmt::Display| e.to_string();
    let read = database.begin_read().map_err(|e| text(&e))?;
    let meta = read.open_table(META).map_err(|e| text(&e))?;
    match meta.get("layout").map_err(|e| text(&e))?.map(|value| value.value()) {
        Some(LAYOUT) => {}
        Some(other) => return Err(format!("its layout is {other}, this version writes {LAYOUT}")),
        None => return Err("it has no layout".to_owned()),
    }
    let tasks = read.open_table(TASKS).map_err(|e| text(&e))?;
    let leases = read.open_table(LEASES).map_err(|e| text(&e))?;
    Ok(Recovered { tasks: read_all(&tasks)?, leases: read_all(&leases)? })
}

fn read_all<T: DeserializeOwned>(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Vec<T>, String> {
    let mut all = Vec::new();
    for row in table.iter().map_err(|e| e.to_string())? {
        let (key, value) = row.map_err(|e| e.to_string())?;
        let record = serde_json::from_slice(value.value()).map_err(|e| format!("record {}: {e}", key.value()))?;
        all.push(record);
    }
    Ok(all)
}

/// The writer thread: commits whatever is waiting, together, until the journal is dropped.
fn commit_all(database: &Database, mut writes: mpsc::Receiver<Write>, status: &Status, turns: &Turns) {
    let mut batch = Vec::with_capacity(BATCH);
    while writes.blocking_recv_many(&mut batch, BATCH) > 0 {
        turns.are_taken(batch.len() > FEW);
        // After one failed write the file's state is unknown: fail every later one rather than trust a retry.
        let outcome = match status.failed.get() {
            Some(why) => Err(JournalError::Write(why.clone())),
            None => commit_in_place(database, &batch, status, turns).map_err(|why| {
                tracing::error!(%why, "journal write failed; nothing is minted until a restart");
                JournalError::Write(status.failed.get_or_init(|| why).clone())
            }),
        };
        for write in batch.drain(..) {
            status.pending.fetch_sub(1, Ordering::AcqRel);
            // A caller that went away no longer needs the answer.
            let _ = write.done.send(outcome.clone());
        }
    }
}

/// Commits, to the file that the next start will find.
fn commit_in_place(database: &Database, batch: &[Write], status: &Status, turns: &Turns) -> Result<(), String> {
    commit(database, batch, turns)
        .map_err(|error| format!("a write failed ({error}): fix the disk and start again"))?;
    // After the commit: before it nothing would be said about where that went.
    if status.is_in_place() { Ok(()) } else { Err(GONE.to_owned()) }
}

fn commit(database: &Database, batch: &[Write], turns: &Turns) -> Result<(), String> {
    let text = |e: &dyn fmt::Display| e.to_string();
    let mut transaction = database.begin_write().map_err(|e| text(&e))?;
    // A sync more, so that a start can tell a torn commit, which it leaves out, from one that was whole and was damaged
    // since, which it refuses: what was promised is never left out in silence.
    transaction.set_two_phase_commit(true);
    {
        let mut tasks = transaction.open_table(TASKS).map_err(|e| text(&e))?;
        let mut leases = transaction.open_table(LEASES).map_err(|e| text(&e))?;
        for change in batch.iter().flat_map(|write| &write.changes) {
            turns.step();
            match change {
                Encoded::EndedTask(id, bytes) => tasks.insert(id.as_str(), bytes.as_slice()).map(drop),
                // INVARIANT: an end is never undone.
                Encoded::RunningTask(id, _) if has_ended(&tasks, id)? => Ok(()),
                Encoded::RunningTask(id, bytes) => tasks.insert(id.as_str(), bytes.as_slice()).map(drop),
                Encoded::Lease(id, bytes) => leases.insert(id.as_str(), bytes.as_slice()).map(drop),
                Encoded::ForgetTask(id) => tasks.remove(id.as_str()).map(drop),
                Encoded::ForgetLease(id) => leases.remove(id.as_str()).map(drop),
            }
            .map_err(|e| text(&e))?;
        }
    }
    transaction.commit().map_err(|e| text(&e))
}

/// Whether there is a task of this id that has ended.
fn has_ended(tasks: &impl ReadableTable<&'static str, &'static [u8]>, id: &TaskId) -> Result<bool, String> {
    #[derive(Deserialize)]
    struct Ended {
        ending: Option<IgnoredAny>,
    }
    let Some(row) = tasks.get(id.as_str()).map_err(|e| e.to_string())? else { return Ok(false) };
    let row: Ended = serde_json::from_slice(row.value()).map_err(|e| format!("record {id}: {e}"))?;
    Ok(row.ending.is_some())
}

fn encode(change: Change) -> Result<Encoded, JournalError> {
    let bytes = |r: serde_json::Result<Vec<u8>>| r.map_err(|e| JournalError::Write(e.to_string()));
    Ok(match change {
        Change::Task(task) => {
            let record = bytes(serde_json::to_vec(&task))?;
            let encoded = if task.ending.is_some() { Encoded::EndedTask } else { Encoded::RunningTask };
            encoded(task.id.clone(), record)
        }
        Change::Lease(lease) => Encoded::Lease(lease.id.clone(), bytes(serde_json::to_vec(&lease))?),
        Change::ForgetTask(id) => Encoded::ForgetTask(id),
        Change::ForgetLease(id) => Encoded::ForgetLease(id),
    })
}

#[async_trait]
impl Journal for DiskJournal {
    async fn write(&self, changes: Vec<Change>) -> Result<(), JournalError> {
        let changes = changes.into_iter().map(encode).collect::<Result<_, _>>()?;
        let (done, answer) = oneshot::channel();
        self.status.pending.fetch_add(1, Ordering::AcqRel);
        if self.queue.send(Write { changes, done }).await.is_err() {
            self.status.pending.fetch_sub(1, Ordering::AcqRel);
            return Err(JournalError::Write("the writer has stopped".into()));
        }
        answer.await.unwrap_or_else(|_| Err(JournalError::Write("the writer has stopped".into())))
    }

    fn pending(&self) -> usize {
        self.status.pending.load(Ordering::Acquire)
    }

    fn healthy(&self) -> bool {
        self.fault().is_none()
    }

    fn fault(&self) -> Option<String> {
        if let Some(why) = self.status.failed.get() {
            return Some(why.clone());
        }
        // A writer that is gone, for whatever reason, is a disk that cannot be written.
        if self.queue.is_closed() {
            return Some("its writer has stopped: start again".to_owned());
        }
        (!self.status.is_in_place()).then(|| GONE.to_owned())
    }
}
