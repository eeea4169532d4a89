//! The durable record of tasks and leases: what lets a task outlive a crash, and a lease never be forgotten.
//!
//! The store is `redb`: one file, pure Rust, copy-on-write B-trees with checksums, so that a torn write or a crash at
//! any moment leaves the last committed state. One writer thread commits every change that is waiting in a single
//! transaction (group commit): an fsync is shared by all who wait for it.
//!
//! INVARIANT: no secret is ever written here; a task's token only as its SHA-256.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::{mpsc, oneshot};

use super::life::LeaseRecord;
use crate::id::{LeaseId, TaskId};
use crate::task::record::TaskRecord;

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const TASKS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("tasks");
const LEASES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("leases");
/// The layout of the records; another number is refused rather than guessed at.
const LAYOUT: u64 = 1;
const FILE: &str = "journal.redb";
const QUEUE: usize = 4096;
const BATCH: usize = 1024;
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
}

/// The journal on disk.
#[derive(Debug)]
pub struct DiskJournal {
    queue: mpsc::Sender<Write>,
    status: Arc<Status>,
}

#[derive(Debug, Default)]
struct Status {
    pending: AtomicUsize,
    failed: AtomicBool,
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
        let path = directory.join(FILE);
        let shown = path.display().to_string();
        prepare(directory, &path)
            .map_err(|e| JournalError::Directory { path: directory.display().to_string(), detail: e.to_string() })?;
        // Never `create`: it would take a file that was cut off to nothing for a new one.
        Self::start(shown, || builder().open(&path))
    }

    /// Opens the journal that is on `backend`, shown as `name`: what lies under the file in tests of failing disks.
    ///
    /// # Errors
    /// As [`DiskJournal::open`]; a backend without bytes is no journal.
    pub fn on(backend: impl StorageBackend, name: &str) -> Result<(Self, Recovered), JournalError> {
        Self::start(name.to_owned(), || match backend.len()? {
            0 => Err(redb::StorageError::Corrupted("it is empty".to_owned()).into()),
            _ => builder().create_with_backend(backend),
        })
    }

    fn start(
        shown: String,
        open: impl FnOnce() -> Result<Database, redb::DatabaseError>,
    ) -> Result<(Self, Recovered), JournalError> {
        let unreadable = |detail| JournalError::Unreadable { path: shown.clone(), detail };
        let (database, recovered) = unpanicked(|| {
            let database = open().map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => JournalError::InUse(shown.clone()),
                other => unreadable(other.to_string()),
            })?;
            let recovered = recover(&database).map_err(unreadable)?;
            Ok((database, recovered))
        })
        .unwrap_or_else(|panic| Err(unreadable(panic)))?;
        let (queue, writes) = mpsc::channel(QUEUE);
        let status = Arc::new(Status::default());
        let shared = Arc::clone(&status);
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || commit_all(&database, writes, &shared))
            .map_err(|e| JournalError::Directory { path: shown, detail: e.to_string() })?;
        Ok((Self { queue, status }, recovered))
    }
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

/// Makes sure that there is a journal, for its owner alone. One that is there is not looked into.
///
/// What others could have written, or put in place of it, is refused and not put right: nothing says what they did.
fn prepare(directory: &Path, file: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let place = fs::symlink_metadata(directory)?;
    if !place.is_dir() {
        return Err(io::Error::other("it is a link or no directory: name the directory itself"));
    }
    ours(&place, "it", "chmod 700 it, and look at what is in it")?;
    // Not blocking: a pipe in its place has nobody at its other end.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    match fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(file) {
        Ok(handle) => {
            let journal = handle.metadata()?;
            if !journal.is_file() {
                return Err(io::Error::other(format!("{FILE} in it is no file: move it away")));
            }
            ours(&journal, FILE, "see who wrote it; chmod 600 it if nobody else did")?;
            handle.set_permissions(fs::Permissions::from_mode(0o600))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(directory, file),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Err(io::Error::other(format!("{FILE} in it is a link: put the file itself there")))
        }
        Err(error) => Err(error),
    }
}

/// Refuses what belongs to another user, or what others may write.
fn ours(of: &fs::Metadata, what: &str, mend: &str) -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    if of.uid() != user {
        return Err(io::Error::other(format!(
            "{what} belongs to user {}, this process is user {user}: give each sidecar a directory of its own",
            of.uid()
        )));
    }
    let mode = of.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(io::Error::other(format!("{what} has mode {mode:04o}, others may write it: {mend}")));
    }
    Ok(())
}

/// Makes an empty journal beside `file` and puts it there whole, so that a file of this name always has its layout in
/// it: one that has not was damaged, and is refused rather than begun anew.
fn create(directory: &Path, file: &Path) -> io::Result<()> {
    let aside = file.with_extension(format!("new-{}", std::process::id()));
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let handle = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&aside)?;
    handle.set_permissions(fs::Permissions::from_mode(0o600))?;
    let made = lay_out(handle).map_err(io::Error::other).and_then(|()| match fs::hard_link(&aside, file) {
        // Another sidecar was faster; which of the two may use it is for the lock to say.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    fs::remove_file(&aside)?;
    made?;
    fs::File::open(directory)?.sync_all()
}

fn lay_out(file: fs::File) -> Result<(), redb::Error> {
    let database = builder().create_with_backend(FileBackend::new(file)?)?;
    let write = database.begin_write()?;
    write.open_table(META)?.insert("layout", LAYOUT)?;
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
fn commit_all(database: &Database, mut writes: mpsc::Receiver<Write>, status: &Status) {
    let mut batch = Vec::with_capacity(BATCH);
    while writes.blocking_recv_many(&mut batch, BATCH) > 0 {
        // After one failed write the file's state is unknown: fail every later one rather than trust a retry.
        let outcome = if status.failed.load(Ordering::Acquire) {
            Err(JournalError::Write("an earlier write failed".into()))
        } else {
            commit(database, &batch).map_err(JournalError::Write)
        };
        if let Err(error) = &outcome
            && !status.failed.swap(true, Ordering::AcqRel)
        {
            tracing::error!(%error, "journal write failed; nothing is minted until a restart");
        }
        for write in batch.drain(..) {
            status.pending.fetch_sub(1, Ordering::AcqRel);
            // A caller that went away no longer needs the answer.
            let _ = write.done.send(outcome.clone());
        }
    }
}

fn commit(database: &Database, batch: &[Write]) -> Result<(), String> {
    let text = |e: &dyn fmt::Display| e.to_string();
    let mut transaction = database.begin_write().map_err(|e| text(&e))?;
    // A sync more, so that a start can tell a torn commit, which it leaves out, from one that was whole and was damaged
    // since, which it refuses: what was promised is never left out in silence.
    transaction.set_two_phase_commit(true);
    {
        let mut tasks = transaction.open_table(TASKS).map_err(|e| text(&e))?;
        let mut leases = transaction.open_table(LEASES).map_err(|e| text(&e))?;
        for change in batch.iter().flat_map(|write| &write.changes) {
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
        // A writer that is gone, for whatever reason, is a disk that cannot be written.
        !self.status.failed.load(Ordering::Acquire) && !self.queue.is_closed()
    }
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

