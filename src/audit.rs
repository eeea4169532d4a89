//! The audit log: one JSON line per decision, mint, end and refusal, with the request's id and without secrets.
//!
//! A decision, a mint and an end wait until their line is written, and fail if it cannot be; refusals at the door are
//! noted without waiting and only so many a second, so that a flood of bad requests can neither hold up good ones nor
//! push their lines out of the log.
//!
//! The log proves itself: every line names the hash of the line before ([`chain`]), checkpoints are signed
//! ([`key`]), and [`verify`] finds what was edited, dropped, reordered or cut off. `docs/audit.md` is the reader's guide.

pub mod chain;
pub mod key;
mod log;
pub(crate) mod metrics;
pub(crate) mod settings;
#[cfg(feature = "dev")]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod verify;
mod writer;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::background::{self, LowPriority};
use crate::clock::{SharedClock, Timestamp};
use crate::id::{LeaseId, TaskId};
use crate::identity::{Proof, SpiffeId};
use crate::lease::record::LeaseEnding;
use crate::policy::standing::Lapse;
use crate::policy::{Digests, Params, Provider, ScopeId, Tier};

use self::chain::{Head, MAX_LINE};
use self::key::{PublicKey, SigningKey};
use self::log::{Found, Log, LogFile};
use self::writer::{HeadFile, Message, Writer};

pub use self::log::Rotation;
pub use self::settings::{Output, Settings};
pub use self::writer::remembered_head;

const QUEUE: usize = 1024;
/// Noted lines leave at least this much of the queue to those that wait.
const KEPT_FREE: usize = QUEUE / 2;
/// So many seconds' worth of refusals may come at once.
const REFUSAL_BURST: u64 = 10;

/// What a line is about.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// May a task begin?
    Decision,
    /// A credential was asked for at a provider.
    Mint,
    /// A task ended.
    End,
    /// A credential was revoked, or could not be.
    Revocation,
    /// A request was refused at the door, before any decision.
    Refusal,
    /// A connection of mutual TLS was ended.
    Connection,
    /// The clocks disagreed, agreed again, or an operator said which to trust.
    Clock,
    /// What was found wrong with the log when the sidecar started.
    Recovery,
}

impl Kind {
    /// Every kind of line but checkpoints.
    pub const ALL: [Self; 8] = [
        Self::Decision,
        Self::Mint,
        Self::End,
        Self::Revocation,
        Self::Refusal,
        Self::Connection,
        Self::Clock,
        Self::Recovery,
    ];
}

/// One line. Members that do not apply are left out.
#[derive(Debug, Clone, Serialize)]
pub struct Event<'a> {
    /// When, UTC.
    pub time: Timestamp,
    /// What it is about.
    pub event: Kind,
    /// How it went: a status of a closed set for each `event`.
    pub outcome: &'static str,
    /// The id that the answer to the request also has; absent for what no request caused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<&'a str>,
    /// Why: a status of a closed set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    /// Why, in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The listener's dialect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialect: Option<&'static str>,
    /// The HTTP status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<&'a TaskId>,
    /// The caller's free text for the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<&'a str>,
    /// The caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<&'a SpiffeId>,
    /// How the caller proved itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// What is wrong with a proof that is invalid: a status of a closed set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flaw: Option<&'static str>,
    /// The scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'a ScopeId>,
    /// The parameters asked for: as the caller said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<&'a Params>,
    /// The reason that the caller gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stated_reason: Option<&'a str>,
    /// The decision's tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// The policy version decided under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<&'a str>,
    /// The rules that permitted or forbade.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub rule_ids: &'a [String],
    /// The exact files decided on, by path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digests: Option<&'a Digests>,
    /// The signer of the policy that had lapsed when it was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<&'a Lapse>,
    /// When the task must end, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// The provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// The lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<&'a LeaseId>,
    /// The session's name at the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_name: Option<&'a str>,
    /// The provider's name for the credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'a str>,
    /// The end of the credential's residual access, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usable_until: Option<Timestamp>,
    /// What became of the task's leases.
    #[serde(skip_serializing_if = "<[LeaseEnding]>::is_empty")]
    pub leases: &'a [LeaseEnding],
    /// How many refusals were not written since the last such line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Event<'_> {
    /// A line about `event` that went as `outcome` says, at `time`; every other member left out.
    pub fn new(time: Timestamp, event: Kind, outcome: &'static str) -> Self {
        Self {
            time,
            event,
            outcome,
            request_id: None,
            reason: None,
            detail: None,
            dialect: None,
            status: None,
            task: None,
            label: None,
            spiffe_id: None,
            proof: None,
            scope: None,
            params: None,
            flaw: None,
            stated_reason: None,
            tier: None,
            policy_version: None,
            rule_ids: &[],
            digests: None,
            stale: None,
            deadline: None,
            provider: None,
            lease: None,
            session_name: None,
            upstream: None,
            usable_until: None,
            leases: &[],
            count: None,
        }
    }
}

/// An audit line could not be written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the audit log cannot be written: {0}")]
pub struct AuditError(String);

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    queue: Option<mpsc::Sender<Message>>,
    shared: Arc<Shared>,
    key: Option<PublicKey>,
    refusals: Mutex<Budget>,
    interval: Duration,
}

/// What the log and its writer both see.
#[derive(Debug)]
struct Shared {
    /// Noted lines that were not written.
    lost: AtomicU64,
    /// Whether the last try to write failed.
    failing: AtomicBool,
    head: Mutex<Head>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { lost: AtomicU64::new(0), failing: AtomicBool::new(false), head: Mutex::new(Head::START) }
    }
}

/// How many refusals may still be written: a token bucket, in thousandths of a line.
#[derive(Debug)]
struct Budget {
    rate: u64,
    left: u64,
    filled_at: Timestamp,
}

impl Budget {
    fn new(rate: u32) -> Self {
        let rate = u64::from(rate);
        Self { rate, left: Self::most(rate), filled_at: Timestamp::default() }
    }

    fn most(rate: u64) -> u64 {
        rate.saturating_mul(REFUSAL_BURST).saturating_mul(1000)
    }

    /// A clock that goes back fills nothing.
    fn take(&mut self, now: Timestamp) -> bool {
        let millis = u64::try_from(now.since(self.filled_at).as_millis()).unwrap_or(u64::MAX);
        self.filled_at = self.filled_at.max(now);
        self.left = self.left.saturating_add(millis.saturating_mul(self.rate)).min(Self::most(self.rate));
        match self.left.checked_sub(1000) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

impl Audit {
    /// Opens the log that `settings` names, and goes on with the chain whose key and head are in the directory `state`
    /// (made where it is not there, mode 0700). What does not fit is told in the log itself, which then goes on.
    ///
    /// # Errors
    /// When the log or the state cannot be read or written, or another process writes the log.
    pub fn start(settings: &Settings, state: &Path, now: Timestamp) -> Result<Self, AuditError> {
        let failed = |error: io::Error| AuditError(error.to_string());
        if settings.output == Output::Off {
            return Ok(Self::off());
        }
        make_private(state).map_err(failed)?;
        let key = Arc::new(SigningKey::load_or_create(state).map_err(failed)?);
        let (head_file, known) = HeadFile::open(state).map_err(failed)?;
        let (log, found) = open(&settings.output, known, now)?;
        let public = key.public();
        let mut writer = Writer {
            log,
            head: Head::START,
            head_file: Some(head_file),
            key: Some(key),
            rotation: settings.rotation,
            checkpoint_every: settings.checkpoint_every.into(),
            sync: settings.sync,
            shared: Arc::default(),
            unsigned: 0,
            told_lost: 0,
        };
        writer.resume(&found, known, now)?;
        let audit = Self::with(writer).map_err(failed)?;
        let refusals = Mutex::new(Budget::new(settings.refusals));
        Ok(Self { key: Some(public), refusals, interval: settings.checkpoint_interval, ..audit })
    }

    /// A log that goes nowhere.
    pub fn off() -> Self {
        let defaults = Settings::new(Output::Off);
        Self {
            queue: None,
            shared: Arc::default(),
            key: None,
            refusals: Mutex::new(Budget::new(defaults.refusals)),
            interval: defaults.checkpoint_interval,
        }
    }

    /// Writes to `sink`, chained from its first line, without checkpoints and without a bound on refusals: for tests.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to(sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let defaults = Settings::new(Output::Off);
        let audit = Self::with(Writer {
            log: Log::stream(sink),
            head: Head::START,
            head_file: None,
            key: None,
            rotation: defaults.rotation,
            checkpoint_every: u64::MAX,
            sync: false,
            shared: Arc::default(),
            unsigned: 0,
            told_lost: 0,
        })?;
        Ok(Self { refusals: Mutex::new(Budget::new(u32::MAX)), ..audit })
    }

    fn with(writer: Writer) -> io::Result<Self> {
        let (queue, messages) = mpsc::channel(QUEUE);
        let shared = Arc::clone(&writer.shared);
        background::spawn("audit", LowPriority::Lower, move || writer.run(messages))?;
        Ok(Self { queue: Some(queue), shared, ..Self::off() })
    }

    /// Writes a line and waits until the system has taken it, or the disk where the settings say so.
    ///
    /// # Errors
    /// When it was not written: what it records must not happen.
    pub async fn record(&self, event: &Event<'_>) -> Result<(), AuditError> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let (done, answer) = oneshot::channel();
        let line = Message::Line(encode(event)?, event.time, Some(done));
        queue.send(line).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Whether lines can be written, as far as is known: what must be recorded once it has happened asks first. Where the last one
    /// could not be written, tries to say so.
    ///
    /// # Errors
    /// When they still cannot.
    pub async fn writable(&self, now: Timestamp) -> Result<(), AuditError> {
        if !self.shared.failing.load(Ordering::Acquire) {
            return Ok(());
        }
        self.record(&Event::new(now, Kind::Recovery, "resumed")).await
    }

    /// Writes a line without waiting. When too many come it is dropped and counted; the log then says how many.
    pub fn note(&self, event: &Event<'_>) {
        let Some(queue) = &self.queue else { return };
        let room = || queue.capacity() > KEPT_FREE;
        let allowed = || self.refusals.lock().unwrap_or_else(PoisonError::into_inner).take(event.time);
        let send = || encode(event).is_ok_and(|body| queue.try_send(Message::Line(body, event.time, None)).is_ok());
        if !(room() && allowed() && send()) {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many noted lines were dropped.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// The last line that is written.
    pub fn head(&self) -> Head {
        *self.shared.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that signs the checkpoints, where there are any.
    pub fn key(&self) -> Option<PublicKey> {
        self.key
    }

    /// Lets the writer sign and rotate when time has passed; never returns while the log is open.
    pub async fn keep(&self, clock: SharedClock) {
        let Some(queue) = &self.queue else { return };
        loop {
            clock.sleep(self.interval).await;
            if queue.send(Message::Tick(clock.now())).await.is_err() {
                return;
            }
        }
    }

    /// Writes the last checkpoint and waits until the log is on the disk. Lines may still come; they are not signed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn close(&self, now: Timestamp) -> Result<(), AuditError> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let (done, answer) = oneshot::channel();
        queue.send(Message::Stop(now, done)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn stopped() -> AuditError {
    AuditError("the writer has stopped".into())
}

fn open(output: &Output, known: Option<Head>, now: Timestamp) -> Result<(Log, Found), AuditError> {
    let Output::File(path) = output else { return Ok((Log::stream(Box::new(io::stdout())), Found::default())) };
    let named = |error: io::Error| AuditError(format!("{}: {error}", path.display()));
    // A device or a pipe has no past and cannot be rotated.
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let pipe = fs::OpenOptions::new().append(true).open(path).map_err(named)?;
        return Ok((Log::stream(Box::new(pipe)), Found::default()));
    }
    let (file, found) = LogFile::open(path, known, now).map_err(named)?;
    Ok((Log::File(file), found))
}

fn make_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// The flag that makes opening a symbolic link fail.
fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default()
}

fn encode(event: &Event<'_>) -> Result<Vec<u8>, AuditError> {
    let bytes = serde_json::to_vec(event).map_err(|e| AuditError(e.to_string()))?;
    if bytes.len() > MAX_LINE - 256 {
        return Err(AuditError("the line is too long".into()));
    }
    Ok(bytes)
}
