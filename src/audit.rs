//! The audit log: one JSON line per decision, mint, end and refusal, with the request's id and without secrets.
//!
//! A decision, a mint and an end wait until their line is written, and fail if it cannot be; refusals at the door are
//! noted without waiting, so that a flood of bad requests cannot hold up good ones.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Timestamp;
use crate::id::{LeaseId, TaskId};
use crate::identity::{Proof, SpiffeId};
use crate::lease::record::LeaseEnding;
use crate::policy::{ParamName, Provider, ScopeId, Tier};

const QUEUE: usize = 1024;

/// Where audit lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Appended to a file, created with mode 0600.
    File(PathBuf),
    /// Nowhere.
    Off,
}

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
    /// A request was refused at the door, before any decision.
    Refusal,
}

/// One line. Members that do not apply are left out.
#[derive(Debug, Clone, Serialize)]
pub struct Event<'a> {
    /// When, UTC.
    pub time: Timestamp,
    /// What it is about.
    pub event: Kind,
    /// How it went: `permit`, `deny`, `minted`, `failed`, `ended`, `refused`.
    pub outcome: &'static str,
    /// The id that the answer to the request also has; absent for what no request caused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<&'a str>,
    /// Why: a word of a closed set.
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
    /// The caller's free word for the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<&'a str>,
    /// The caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<&'a SpiffeId>,
    /// How the caller proved itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// The scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'a ScopeId>,
    /// The parameters asked for: the caller's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<&'a std::collections::BTreeMap<ParamName, String>>,
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
            stated_reason: None,
            tier: None,
            policy_version: None,
            rule_ids: &[],
            deadline: None,
            provider: None,
            lease: None,
            session_name: None,
            upstream: None,
            usable_until: None,
            leases: &[],
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
    queue: Option<mpsc::Sender<Line>>,
    lost: AtomicU64,
}

struct Line {
    bytes: Vec<u8>,
    done: Option<oneshot::Sender<Result<(), AuditError>>>,
}

impl Audit {
    /// Opens `output`.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn open(output: &Output) -> Result<Self, AuditError> {
        let sink: Box<dyn Write + Send> = match output {
            Output::Off => return Ok(Self { queue: None, lost: AtomicU64::new(0) }),
            Output::Stdout => Box::new(io::stdout()),
            Output::File(path) => {
                let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
                Box::new(opened.map_err(|e| AuditError(format!("{}: {e}", path.display())))?)
            }
        };
        Self::to(sink).map_err(|e| AuditError(e.to_string()))
    }

    /// Writes to `sink`, from a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to(sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let (queue, lines) = mpsc::channel(QUEUE);
        std::thread::Builder::new().name("audit".into()).spawn(move || write_all(sink, lines))?;
        Ok(Self { queue: Some(queue), lost: AtomicU64::new(0) })
    }

    /// Writes a line and waits until the system has taken it.
    ///
    /// # Errors
    /// When it was not written: what it records must not happen.
    pub async fn record(&self, event: &Event<'_>) -> Result<(), AuditError> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let (done, answer) = oneshot::channel();
        let line = Line { bytes: encode(event)?, done: Some(done) };
        queue.send(line).await.map_err(|_| AuditError("the writer has stopped".into()))?;
        answer.await.map_err(|_| AuditError("the writer has stopped".into()))?
    }

    /// Writes a line without waiting. When too many wait already it is dropped, and counted.
    pub fn note(&self, event: &Event<'_>) {
        let Some(queue) = &self.queue else { return };
        let taken = encode(event).is_ok_and(|bytes| queue.try_send(Line { bytes, done: None }).is_ok());
        if !taken {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many noted lines were dropped.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

fn encode(event: &Event<'_>) -> Result<Vec<u8>, AuditError> {
    let mut bytes = serde_json::to_vec(event).map_err(|e| AuditError(e.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn write_all(mut sink: Box<dyn Write + Send>, mut lines: mpsc::Receiver<Line>) {
    while let Some(line) = lines.blocking_recv() {
        let written = sink.write_all(&line.bytes).and_then(|()| sink.flush()).map_err(|e| AuditError(e.to_string()));
        if let Err(error) = &written {
            tracing::error!(%error, "audit line not written");
        }
        if let Some(done) = line.done {
            // A caller that went away no longer needs the answer.
            let _ = done.send(written);
        }
    }
}
