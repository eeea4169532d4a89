//! The thread that writes: numbers the lines, chains them, signs, rotates. Whoever waits for a line is told once it is
//! written; all that wait are written together.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::chain::{Cause, Checkpoint, Head};
use super::key::SigningKey;
use super::log::{Found, Log, Rotation};
use super::{AuditError, Event, Kind, Shared, encode};
use crate::clock::Timestamp;

/// The most lines that are written together.
const BATCH: usize = 512;
const HEAD_FILE: &str = "audit-head";

/// What the writer is told.
pub(super) enum Message {
    /// Write a line: its JSON object, its time, and who waits for it.
    Line(Vec<u8>, Timestamp, Option<oneshot::Sender<Result<(), AuditError>>>),
    /// It is this late.
    Tick(Timestamp),
    /// Write the last checkpoint, and tell when all is on the disk.
    Stop(Timestamp, oneshot::Sender<Result<(), AuditError>>),
}

/// What the writer has.
pub(super) struct Writer {
    pub(super) log: Log,
    pub(super) head: Head,
    pub(super) head_file: Option<HeadFile>,
    pub(super) key: Option<Arc<SigningKey>>,
    pub(super) rotation: Rotation,
    /// A checkpoint at least after so many lines.
    pub(super) checkpoint_every: u64,
    pub(super) sync: bool,
    pub(super) shared: Arc<Shared>,
    /// Lines since the last checkpoint.
    pub(super) unsigned: u64,
    /// How many lost lines the log tells of already.
    pub(super) told_lost: u64,
}

/// Lines that will be written together, and the chain as it is then.
struct Batch {
    bytes: Vec<u8>,
    head: Head,
    lines: u64,
    unsigned: u64,
    lost: u64,
}

impl Writer {
    /// Writes until every sender is gone.
    pub(super) fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut waiting = Vec::with_capacity(BATCH);
        while messages.blocking_recv_many(&mut waiting, BATCH) > 0 {
            self.handle(waiting.drain(..));
        }
    }

    fn handle(&mut self, messages: impl Iterator<Item = Message>) {
        let mut batch = self.batch();
        let (mut answers, mut stops, mut latest) = (Vec::new(), Vec::new(), None);
        for message in messages {
            match message {
                Message::Line(body, time, done) => {
                    latest = latest.max(Some(time));
                    batch.seal(&body);
                    answers.extend(done);
                    if batch.unsigned >= self.checkpoint_every {
                        self.checkpoint(&mut batch, Cause::Interval, time);
                    }
                }
                Message::Tick(time) => {
                    latest = latest.max(Some(time));
                    self.tell_lost(&mut batch, time);
                    if batch.unsigned > 0 {
                        self.checkpoint(&mut batch, Cause::Interval, time);
                    }
                }
                Message::Stop(time, done) => stops.push((time, done)),
            }
        }
        let tried = !batch.bytes.is_empty();
        let written = self.write(batch);
        if tried {
            self.shared.failing.store(written.is_err(), Ordering::Release);
        }
        for done in answers {
            // A caller that went away no longer needs the answer.
            let _ = done.send(written.clone());
        }
        if let Some(now) = latest.filter(|_| written.is_ok()) {
            self.rotate_when_due(now);
        }
        for (time, done) in stops {
            let _ = done.send(self.stop(time));
        }
    }

    fn batch(&self) -> Batch {
        Batch { bytes: Vec::new(), head: self.head, lines: 0, unsigned: self.unsigned, lost: self.told_lost }
    }

    /// Says how many noted lines were not written since it was last said.
    fn tell_lost(&self, batch: &mut Batch, time: Timestamp) {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        let count = lost.saturating_sub(batch.lost);
        if count > 0
            && batch.seal_event(&Event { count: Some(count), ..Event::new(time, Kind::Refusal, "not_written") })
        {
            batch.lost = lost;
        }
    }

    /// Adds a signed line; nothing where the log has no key.
    fn checkpoint(&self, batch: &mut Batch, outcome: Cause, time: Timestamp) {
        let Some(key) = &self.key else { return };
        let (file, count) = match &self.log {
            Log::File(file) => (Some(file.number), Some(file.lines.saturating_add(batch.lines).saturating_add(1))),
            Log::Stream(_) => (None, None),
        };
        let checkpoint = Checkpoint { time, event: "checkpoint", outcome, file, count, key: key.public() };
        // Numbers and texts always serialise.
        let body = serde_json::to_vec(&checkpoint).unwrap_or_default();
        batch.head.seal_checkpoint(&body, key, &mut batch.bytes);
        batch.lines = batch.lines.saturating_add(1);
        batch.unsigned = 0;
    }

    fn write(&mut self, batch: Batch) -> Result<(), AuditError> {
        if batch.bytes.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.log.append(&batch.bytes, self.sync) {
            tracing::error!(%error, "audit lines not written");
            return Err(AuditError(error.to_string()));
        }
        self.head = batch.head;
        self.unsigned = batch.unsigned;
        self.told_lost = batch.lost;
        *self.shared.head.lock().unwrap_or_else(PoisonError::into_inner) = self.head;
        if let Some(Err(error)) = self.head_file.as_ref().map(|file| file.write(&self.head, self.sync)) {
            tracing::error!(%error, "the head of the audit log is not remembered: a restart will say that lines differ");
        }
        Ok(())
    }

    fn rotate_when_due(&mut self, now: Timestamp) {
        if !matches!(&self.log, Log::File(file) if file.is_due(&self.rotation, now)) {
            return;
        }
        if let Err(error) = self.rotate(now) {
            tracing::error!(%error, "the audit log cannot be rotated; it goes on in the same file");
        }
    }

    fn rotate(&mut self, now: Timestamp) -> Result<(), AuditError> {
        let mut last = self.batch();
        self.tell_lost(&mut last, now);
        self.checkpoint(&mut last, Cause::Rotated, now);
        self.write(last)?;
        let Log::File(file) = &mut self.log else { return Ok(()) };
        let rotated = file.rotate(&self.rotation, now).map_err(|error| AuditError(error.to_string()));
        if file.lines == 0 {
            self.write_checkpoint(Cause::Created, now)?;
        }
        rotated
    }

    pub(super) fn write_checkpoint(&mut self, cause: Cause, now: Timestamp) -> Result<(), AuditError> {
        let mut batch = self.batch();
        self.checkpoint(&mut batch, cause, now);
        self.write(batch)
    }

    fn stop(&mut self, now: Timestamp) -> Result<(), AuditError> {
        let mut batch = self.batch();
        self.tell_lost(&mut batch, now);
        self.checkpoint(&mut batch, Cause::Stopped, now);
        self.write(batch)?;
        let synced = match &self.log {
            Log::File(file) => file.sync(),
            Log::Stream(_) => Ok(()),
        };
        synced.map_err(|error| AuditError(error.to_string()))
    }

    /// Joins the chain of the log to the one that the state directory remembers, says in the log what does not fit, and
    /// signs that it goes on.
    pub(super) fn resume(&mut self, found: &Found, known: Option<Head>, now: Timestamp) -> Result<(), AuditError> {
        let (head, mismatch) = join(found, known);
        self.head = head;
        if found.lines == 0 && matches!(self.log, Log::File(_)) {
            self.write_checkpoint(Cause::Created, now)?;
        }
        let mut batch = self.batch();
        let torn = found.torn.as_ref().map(|(aside, bytes)| {
            let name = aside.file_name().unwrap_or_default().to_string_lossy();
            ("torn_line", format!("{bytes} bytes of a line that was broken off are kept in {name}"))
        });
        let unreadable = (found.unreadable > 0)
            .then(|| ("unreadable_lines", format!("{} lines of the file are no lines of a chain", found.unreadable)));
        for (outcome, detail) in [torn, unreadable, mismatch].into_iter().flatten() {
            tracing::warn!(outcome, detail, "the audit log is not as it was left");
            batch.seal_event(&Event { detail: Some(detail), ..Event::new(now, Kind::Recovery, outcome) });
        }
        if found.lines > 0 || matches!(self.log, Log::Stream(_)) || batch.lines > 0 {
            self.checkpoint(&mut batch, Cause::Started, now);
        }
        self.write(batch)
    }
}

impl Batch {
    fn seal(&mut self, body: &[u8]) {
        self.head.seal(body, &mut self.bytes);
        self.lines = self.lines.saturating_add(1);
        self.unsigned = self.unsigned.saturating_add(1);
    }

    fn seal_event(&mut self, event: &Event<'_>) -> bool {
        encode(event).map(|body| self.seal(&body)).is_ok()
    }
}

/// Where the chain goes on, and what is wrong. It goes on from what the state directory remembers wherever the file
/// has less or something else, so that `verify` shows the place for ever.
fn join(found: &Found, known: Option<Head>) -> (Head, Option<(&'static str, String)>) {
    let Some(known) = known else { return (found.last.unwrap_or(Head::START), None) };
    // A new or emptied file: the chain goes on in it. That a file is missing shows in its numbers.
    let Some(last) = found.last else { return (known, None) };
    if last.seq < known.seq {
        let detail = format!("the file ends with line {}, the state directory remembers line {}", last.seq, known.seq);
        (known, Some(("missing_lines", detail)))
    } else if last.seq == known.seq {
        let same = last.hash == known.hash;
        (known, (!same).then(|| ("changed_lines", format!("line {} is not the one that was written", last.seq))))
    } else if found.after == Some(known.hash) {
        // Written, but not remembered in time.
        (last, None)
    } else {
        let detail = format!("line {} of the state directory is not what the file goes on from", known.seq);
        (last, Some(("changed_lines", detail)))
    }
}

/// The head, remembered in the state directory: one line of fixed length, written over in place.
pub(super) struct HeadFile(File);

/// The length of the line: 20 digits, a colon, 64 digits, a newline.
const HEAD_LENGTH: usize = 86;

impl HeadFile {
    /// Opens or creates it in `directory`, and returns what it remembers. One that cannot be read is an error: it would
    /// otherwise hide what is missing.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Option<Head>)> {
        let path = directory.join(HEAD_FILE);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(super::no_follow())
            .open(&path)
            .map_err(named)?;
        let head = read_head(&file).map_err(named)?;
        Ok((Self(file), head))
    }

    fn write(&self, head: &Head, sync: bool) -> io::Result<()> {
        let line = format!("{:020}:{}\n", head.seq, head.hash);
        self.0.write_all_at(line.as_bytes(), 0)?;
        if sync { self.0.sync_data() } else { Ok(()) }
    }
}

/// The head that the state directory `directory` remembers.
///
/// # Errors
/// When it remembers none, or it cannot be read.
pub fn remembered_head(directory: &Path) -> io::Result<Head> {
    let path = directory.join(HEAD_FILE);
    let file = OpenOptions::new().read(true).custom_flags(super::no_follow()).open(&path)?;
    read_head(&file)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn read_head(mut file: &File) -> io::Result<Option<Head>> {
    let mut text = String::new();
    file.by_ref().take(HEAD_LENGTH as u64 + 1).read_to_string(&mut text)?;
    if text.is_empty() {
        return Ok(None);
    }
    let head = text.strip_suffix('\n').and_then(|line| line.parse().ok());
    head.map(Some).ok_or_else(|| {
        let what = "does not hold the head of an audit log: remove it once you know why, and verify the log";
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}
