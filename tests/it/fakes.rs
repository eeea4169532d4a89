//! What stands behind the seams: a cloud, a journal that can fail, an audit log that can be read.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use redb::StorageBackend;
use redb::backends::FileBackend;
use serde_json::Value;
use sidemint::clock::{ManualClock, Timestamp};
use sidemint::exchange::{
    AwsCredential, Credential, Exchange, ExchangeError, Handle, MintOrder, Minted, Provider, Revocability,
};
use sidemint::journal::{Change, DiskJournal, Journal, JournalError, Recovered};
use sidemint::lease::LeaseState;
use sidemint::policy::PolicyVersion;
use sidemint::policy::repository::fault::{Fault, FaultKind};
use sidemint::policy::repository::{DirectorySource, Fetched, PolicyFiles, PolicySource, PolicySourceError, Signed};
use sidemint::policy::standing::{OWNERS, RoleName, Standing, TOP_ROLES};
use sidemint::secret::Secret;
use tokio::sync::watch;

/// What happened at the seams, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn push(&self, event: impl Into<String>) {
        self.0.lock().unwrap().push(event.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A gate at which calls wait while it is shut.
#[derive(Debug)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    fn open() -> Self {
        Self(watch::Sender::new(true))
    }

    pub(crate) fn shut(&self) {
        self.0.send_replace(false);
    }

    pub(crate) fn release(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// How the cloud answers one call.
#[derive(Clone, Debug)]
pub(crate) enum OnMint {
    /// A credential that lives as long as the order says.
    Give,
    /// A credential that dies this much before the order says.
    Sooner(Duration),
    Fail(ExchangeError),
}

/// A cloud that gives credentials nobody ever sees twice.
pub(crate) struct FakeCloud {
    clock: ManualClock,
    log: Log,
    /// Calls wait here before they are answered.
    pub(crate) gate: Gate,
    state: Mutex<CloudState>,
}

struct CloudState {
    script: VecDeque<OnMint>,
    otherwise: OnMint,
    takes: Duration,
    orders: Vec<MintOrder>,
    secrets: Vec<String>,
}

impl fmt::Debug for FakeCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeCloud").finish_non_exhaustive()
    }
}

impl FakeCloud {
    pub(crate) fn new(clock: ManualClock, log: Log) -> Arc<Self> {
        let state = CloudState {
            script: VecDeque::new(),
            otherwise: OnMint::Give,
            takes: Duration::ZERO,
            orders: Vec::new(),
            secrets: Vec::new(),
        };
        Arc::new(Self { clock, log, gate: Gate::open(), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, CloudState> {
        self.state.lock().unwrap()
    }

    /// How the next calls are answered, one each; then as [`FakeCloud::otherwise`] says.
    pub(crate) fn next(&self, answers: impl IntoIterator<Item = OnMint>) {
        self.state().script.extend(answers);
    }

    pub(crate) fn otherwise(&self, answer: OnMint) {
        self.state().otherwise = answer;
    }

    /// Lets each exchange take this long on the test's clock, which it moves itself.
    pub(crate) fn takes(&self, time: Duration) {
        self.state().takes = time;
    }

    /// Every order so far.
    pub(crate) fn orders(&self) -> Vec<MintOrder> {
        self.state().orders.clone()
    }

    /// Whom the credential with this access key id was for.
    pub(crate) fn caller_of(&self, access_key_id: &str) -> String {
        let number: usize = access_key_id.strip_prefix("ASIAFAKE").unwrap().parse().unwrap();
        self.state().orders[number - 1].caller.to_string()
    }

    pub(crate) fn calls(&self) -> usize {
        self.state().orders.len()
    }

    /// Every secret it ever gave.
    pub(crate) fn secrets(&self) -> Vec<String> {
        self.state().secrets.clone()
    }
}

pub(crate) fn unavailable(retry_after: Option<Duration>) -> ExchangeError {
    ExchangeError::Unavailable { detail: "the fake was told so".into(), retry_after }
}

pub(crate) fn refused() -> ExchangeError {
    ExchangeError::Refused { detail: "the fake was told so".into() }
}

#[async_trait]
impl Exchange for FakeCloud {
    fn provider(&self) -> Provider {
        Provider::Aws
    }

    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        self.log.push("exchange");
        let (answer, number, takes) = {
            let mut state = self.state();
            state.orders.push(order.clone());
            let otherwise = state.otherwise.clone();
            (state.script.pop_front().unwrap_or(otherwise), state.orders.len(), state.takes)
        };
        self.gate.pass().await;
        self.clock.advance(takes);
        let usable_until = match answer {
            OnMint::Give => order.dead_by,
            OnMint::Sooner(by) => order.dead_by - by,
            OnMint::Fail(error) => return Err(error),
        };
        let secret = |what: &str| format!("{what}-{number:04}-{:p}-must-never-leak", self);
        let (key, token) = (secret("secret-key"), secret("session-token"));
        self.state().secrets.extend([key.clone(), token.clone()]);
        Ok(Minted {
            credential: Credential::Aws(AwsCredential {
                access_key_id: Secret::new(format!("ASIAFAKE{number:012}")),
                secret_access_key: Secret::new(key),
                session_token: Secret::new(token),
                account_id: Some("111122223333".into()),
            }),
            usable_until,
            revocability: Revocability::ExpiresOnly(Handle::read(
                Provider::Aws,
                &format!("arn:aws:sts::111122223333:assumed-role/tests/{}", order.session_name),
            )),
        })
    }
}

/// All that a [`Exchange`] said through its seam, secrets aside: each as `Debug` and, of an error, as `Display` with its causes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Arc<Mutex<HeardState>>);

#[derive(Debug, Default)]
struct HeardState {
    text: String,
    /// Whether the next credential is lost in a panic.
    panics: bool,
}

impl Heard {
    pub(crate) fn all(&self) -> String {
        self.0.lock().unwrap().text.clone()
    }

    /// Panics once, with the next credential in hand.
    pub(crate) fn panic_once(&self) {
        self.0.lock().unwrap().panics = true;
    }

    fn note(&self, order: &MintOrder, said: &Result<Minted, ExchangeError>) {
        let mut state = self.0.lock().unwrap();
        state.text += &format!("{order:?}\n{said:?}\n");
        if let Err(error) = said {
            let mut cause: Option<&dyn std::error::Error> = Some(error);
            while let Some(error) = cause {
                state.text += &format!("{error} {error:?}\n");
                cause = error.source();
            }
        }
    }
}

/// A real [`Exchange`] that is listened to.
#[derive(Debug)]
pub(crate) struct Overheard<C> {
    inner: C,
    heard: Heard,
}

impl<C> Overheard<C> {
    pub(crate) fn new(inner: C, heard: Heard) -> Self {
        Self { inner, heard }
    }
}

#[async_trait]
impl<E: Exchange> Exchange for Overheard<E> {
    fn provider(&self) -> Provider {
        self.inner.provider()
    }

    fn circuit_open(&self) -> bool {
        self.inner.circuit_open()
    }

    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        let said = self.inner.mint(order).await;
        self.heard.note(order, &said);
        assert!(!std::mem::take(&mut self.heard.0.lock().unwrap().panics), "the fake was told so: {said:?}");
        said
    }
}

/// A disk under a journal, which can be told to fail as the system tells it: never again is it well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Option<(&'static str, i32)>>>);

impl Disk {
    /// From now on each `write`, or each `sync`, fails with this error of the system.
    pub(crate) fn fail(&self, what: &'static str, error: i32) {
        *self.0.lock().unwrap() = Some((what, error));
    }

    fn check(&self, what: &str) -> io::Result<()> {
        match *self.0.lock().unwrap() {
            Some((failing, error)) if failing == what => Err(io::Error::from_raw_os_error(error)),
            _ => Ok(()),
        }
    }
}

/// The journal's file on such a disk. It is not locked.
#[derive(Debug)]
struct OnDisk {
    file: FileBackend,
    disk: Disk,
}

impl StorageBackend for OnDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.check("write")?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.check("sync")?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.check("write")?;
        self.file.write(offset, data)
    }
}

/// The real journal, watched: it can be told to fail, or to keep a write waiting.
#[derive(Debug)]
pub(crate) struct WatchedJournal {
    inner: Arc<DiskJournal>,
    log: Log,
    state: Mutex<JournalState>,
}

#[derive(Debug, Default)]
struct JournalState {
    failing: Option<&'static str>,
    held: BTreeMap<&'static str, watch::Sender<bool>>,
}

impl WatchedJournal {
    pub(crate) fn open(
        directory: &Path,
        disk: Option<&Disk>,
        log: Log,
    ) -> Result<(Arc<Self>, Recovered), JournalError> {
        let (inner, recovered) = match disk {
            Some(disk) => DiskJournal::open_on(directory, |file| OnDisk { file, disk: disk.clone() })?,
            None => DiskJournal::open(directory)?,
        };
        Ok((Arc::new(Self { inner: Arc::new(inner), log, state: Mutex::default() }), recovered))
    }

    /// Keeps every write that holds a change of this name waiting before it reaches the disk, until released.
    pub(crate) fn hold(&self, name: &'static str) {
        self.state.lock().unwrap().held.insert(name, watch::Sender::new(false));
    }

    pub(crate) fn release(&self, name: &'static str) {
        self.state.lock().unwrap().held.remove(name);
    }

    /// How many writes are kept waiting.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().unwrap().held.values().map(watch::Sender::receiver_count).sum()
    }

    /// Fails every write that holds a change of this name (see [`name`]); `*` fails all, an empty one none.
    pub(crate) fn fail(&self, name: &'static str) {
        self.state.lock().unwrap().failing = (!name.is_empty()).then_some(name);
    }
}

/// The name of a change in the [`Log`].
fn name(change: &Change) -> &'static str {
    match change {
        Change::Task(task) if task.ending.is_some() => "task ended",
        Change::Task(_) => "task",
        Change::Lease(lease) => match lease.state {
            LeaseState::Intent => "intent",
            LeaseState::Issued => "issued",
            LeaseState::Ending => "ending",
            LeaseState::Revoked => "revoked",
            LeaseState::Expired => "expired",
        },
        Change::ForgetTask(_) => "forget task",
        Change::ForgetLease(_) => "forget lease",
    }
}

#[async_trait]
impl Journal for WatchedJournal {
    async fn write(&self, changes: Vec<Change>) -> Result<(), JournalError> {
        let names: Vec<_> = changes.iter().map(name).collect();
        let (failing, gate) = {
            let state = self.state.lock().unwrap();
            let failing = state.failing.is_some_and(|failing| failing == "*" || names.contains(&failing));
            (failing, names.iter().find_map(|name| state.held.get(name)).map(watch::Sender::subscribe))
        };
        if failing {
            return Err(JournalError::Write("the fake was told so".into()));
        }
        let (inner, log, names) = (Arc::clone(&self.inner), self.log.clone(), names.join(", "));
        // As with the real writer's thread, what is queued is written whoever waits for it.
        let write = tokio::spawn(async move {
            if let Some(mut gate) = gate {
                // Released when the sender goes.
                let _ = gate.wait_for(|open| *open).await;
            }
            inner.write(changes).await?;
            log.push(names);
            Ok(())
        });
        write.await.unwrap()
    }

    fn pending(&self) -> usize {
        self.inner.pending()
    }

    fn healthy(&self) -> bool {
        self.inner.healthy() && self.state.lock().unwrap().failing.is_none()
    }

    fn fault(&self) -> Option<String> {
        let failing = self.state.lock().unwrap().failing.is_some();
        self.inner.fault().or_else(|| failing.then(|| "the fake was told so".to_owned()))
    }
}

/// Where audit lines end up; can be told to fail.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditText(Arc<Mutex<AuditState>>);

#[derive(Debug, Default)]
struct AuditState {
    text: Vec<u8>,
    failing: bool,
    stalled: bool,
}

impl AuditText {
    pub(crate) fn fail(&self, failing: bool) {
        self.0.lock().unwrap().failing = failing;
    }

    /// Lets no line be written until [`AuditText::repair`].
    pub(crate) fn stall(&self) {
        self.0.lock().unwrap().stalled = true;
    }

    pub(crate) fn repair(&self) {
        let mut state = self.0.lock().unwrap();
        (state.stalled, state.failing) = (false, false);
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().text.clone()).unwrap()
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl io::Write for AuditText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.0.lock().unwrap().stalled {
            std::thread::yield_now();
        }
        let mut state = self.0.lock().unwrap();
        if state.failing {
            return Err(io::Error::other("the fake was told so"));
        }
        state.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A policy directory as a signed repository shows it: each folder is its owner's, and nothing can be forged.
#[derive(Debug)]
pub(crate) struct SignedDirectory {
    directory: DirectorySource,
    state: Mutex<SignedState>,
}

#[derive(Debug)]
struct SignedState {
    ends: BTreeMap<RoleName, Timestamp>,
    /// The versions seen so far, in order: the place is the snapshot's number less one.
    snapshots: Vec<PolicyVersion>,
    reachable: bool,
    /// What each refresh fails by, though the kill list can be read.
    fault: Option<FaultKind>,
}

impl SignedDirectory {
    /// Every role expires at `end`.
    pub(crate) fn new(directory: &Path, end: Timestamp) -> Arc<Self> {
        let owners = OWNERS.iter().map(|(role, _)| *role);
        let ends = TOP_ROLES.into_iter().chain(owners).map(|role| (role.into(), end)).collect();
        let state = SignedState { ends, snapshots: Vec::new(), reachable: true, fault: None };
        Arc::new(Self { directory: DirectorySource::new(directory), state: Mutex::new(state) })
    }

    /// Lets `role` expire at `end`, from the next refresh on.
    pub(crate) fn expires(&self, role: &str, end: Timestamp) {
        self.state.lock().unwrap().ends.insert(role.into(), end);
    }

    pub(crate) fn reachable(&self, reachable: bool) {
        self.state.lock().unwrap().reachable = reachable;
    }

    /// Lets each refresh fail by `fault` from now on: nothing of it can be trusted but its kill list.
    pub(crate) fn fails(&self, fault: Option<FaultKind>) {
        self.state.lock().unwrap().fault = fault;
    }

    fn signed(&self, state: &SignedState, mut files: PolicyFiles, snapshot: u64) -> PolicyFiles {
        let publisher = |path: &String| {
            let owner = OWNERS.iter().find(|(_, folder)| path.starts_with(&format!("{folder}/")));
            (path.clone(), owner.map_or("targets", |(role, _)| role).into())
        };
        let (publishers, delegators) = (files.files.keys().map(publisher).collect(), BTreeMap::new());
        let standing = Standing { ends: state.ends.clone() };
        files.version = PolicyVersion(format!("{snapshot}-{}", files.version).into());
        files.signed =
            Some(Signed { snapshot, incident: snapshot, publishers, delegators, standing, stray: Vec::new() });
        files
    }
}

#[async_trait]
impl PolicySource for SignedDirectory {
    fn signed(&self) -> bool {
        true
    }

    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        let mut state = self.state.lock().unwrap();
        if !state.reachable {
            return Err(PolicySourceError::unavailable("the fake was told so"));
        }
        if let Some(kind) = state.fault {
            return Err(Fault::new(kind, "the fake was told so").into());
        }
        let files = self.directory.read()?;
        if state.snapshots.last() != Some(&files.version) {
            state.snapshots.push(files.version.clone());
        }
        let snapshot = state.snapshots.len() as u64;
        let files = self.signed(&state, files, snapshot);
        if seen == Some(&files.version) {
            return Ok(Fetched::Confirmed(Standing { ends: state.ends.clone() }));
        }
        Ok(Fetched::New(files))
    }

    async fn stopping(&self) -> Option<PolicyFiles> {
        let state = self.state.lock().unwrap();
        state.fault?;
        let mut files = self.directory.read().ok()?;
        if state.snapshots.last() == Some(&files.version) {
            return None;
        }
        files.files.retain(|path, _| path.starts_with("kill/"));
        Some(self.signed(&state, files, state.snapshots.len() as u64 + 1))
    }
}
