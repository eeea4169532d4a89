//! Does a log say what was written? Finds lines that were edited, dropped, reordered, repeated or cut off, and
//! checkpoints of another key.
//!
//! What the log alone can prove ends with its last checkpoint: whoever can write the file can cut off what follows, or
//! chain other lines to it. Only a head known from elsewhere ([`Options::head`]) shows that.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::chain::{Head, LineHash, MAX_LINE, is_signed_by, link};
use super::key::PublicKey;
use super::log::{rotated, rotation_number};
use crate::clock::Timestamp;

/// The most problems that are listed; all are counted.
const MAX_LISTED: usize = 100;

/// What is known from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The keys that may sign. Where none is given, the first key in the log is trusted, which proves much less.
    pub keys: Vec<PublicKey>,
    /// The last line that the log must have.
    pub head: Option<Head>,
    /// Whether the log may begin in the middle, as an excerpt or the output of a container does.
    pub part: bool,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The line is not what the next line or a known head has the hash of.
    Edited,
    /// Lines are missing.
    Missing,
    /// The line stands after a later one.
    Reordered,
    /// The line stands there again.
    Repeated,
    /// The log ends before the line that is known to be its last.
    Truncated,
    /// The line is no line of an audit log.
    Unreadable,
    /// The last line has no end.
    Torn,
    /// A checkpoint's signature is not of its key.
    BadSignature,
    /// A checkpoint is signed by a key that is not one of those given, or not the one that the log began with.
    ForeignKey,
    /// A file has another number of lines than a checkpoint in it says, or is not the file that it says.
    BadCount,
    /// A file does not begin with the checkpoint that every file begins with.
    BeginningMissing,
    /// The sidecar itself found the log changed when it started.
    Recovery,
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line in it, counted from 1.
    pub line: u64,
    /// The line's number in the chain, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// What is wrong.
    pub kind: Kind,
    /// The same in words.
    pub detail: String,
}

/// What `verify` found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// How many files were read.
    pub files: u64,
    /// How many lines.
    pub lines: u64,
    /// The number of the first line.
    pub first_seq: Option<u64>,
    /// `SEQ:HASH` of the last line.
    pub head: Option<String>,
    /// How many checkpoints have a good signature.
    pub checkpoints: u64,
    /// The last line that a good checkpoint covers, and when that was signed.
    pub signed_until: Option<(u64, Timestamp)>,
    /// How many lines follow the last good checkpoint: chained, not yet signed.
    pub unsigned_tail: u64,
    /// The keys that signed.
    pub keys: Vec<PublicKey>,
    /// Whether the keys were given, rather than taken from the log itself.
    pub keys_given: bool,
    /// How many problems there are.
    pub problem_count: u64,
    /// The first hundred of them.
    pub problems: Vec<Problem>,
}

/// The members of a line that are looked at.
#[derive(Deserialize)]
struct Line {
    time: Timestamp,
    event: String,
    outcome: Option<String>,
    detail: Option<String>,
    file: Option<u64>,
    count: Option<u64>,
    key: Option<PublicKey>,
    signature: Option<String>,
}

/// Checks logs, a line at a time, in the order in which they were written.
#[derive(Debug)]
pub struct Verifier {
    options: Options,
    report: Report,
    /// The line with the highest number so far, and where it stands.
    last: Option<(Head, PathBuf, u64)>,
    /// Numbers that were skipped and may still come.
    skipped: Vec<(u64, u64, PathBuf, u64)>,
    head_seen: Option<LineHash>,
    /// Where we are.
    file: PathBuf,
    line: u64,
    /// Where the lines of this file began to be counted.
    counted: Option<u64>,
}

impl Verifier {
    /// A verifier that has read nothing yet.
    pub fn new(options: Options) -> Self {
        let report = Report { keys: options.keys.clone(), keys_given: !options.keys.is_empty(), ..Report::default() };
        Self {
            options,
            report,
            last: None,
            skipped: Vec::new(),
            head_seen: None,
            file: PathBuf::new(),
            line: 0,
            counted: None,
        }
    }

    /// Reads the next file of the log; `name` is what the report calls it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&mut self, name: &Path, mut source: impl BufRead) -> io::Result<()> {
        self.file = name.to_owned();
        self.line = 0;
        self.counted = None;
        self.report.files += 1;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            if source.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(());
            }
            self.line += 1;
            self.report.lines += 1;
            let whole = bytes.pop_if(|byte| *byte == b'\n').is_some();
            if whole {
                self.take(&bytes);
            } else {
                self.problem(Kind::Torn, None, "the line has no end: it was broken off or cut".into());
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let parsed = link(bytes).zip(serde_json::from_slice::<Line>(bytes).ok());
        let Some(((seq, prev), line)) = parsed else {
            return self.problem(Kind::Unreadable, None, "this is no line of an audit log".into());
        };
        let hash = LineHash::of(bytes);
        if self.line == 1 {
            self.begin(seq, &line);
        }
        let in_order = self.order(seq, prev, hash);
        if self.options.head.is_some_and(|head| head.seq == seq) {
            self.head_seen = Some(hash);
        }
        match line.event.as_str() {
            // What is signed is a checkpoint, whatever it says to be.
            event if event == "checkpoint" || line.key.is_some() || line.signature.is_some() => {
                self.checkpoint(bytes, seq, in_order, &line)
            }
            "recovery" => self.recovery(seq, &line),
            _ => {}
        }
    }

    /// Every file begins with a checkpoint that says so; a stream begins with the sidecar's start.
    fn begin(&mut self, seq: u64, line: &Line) {
        let outcome = line.outcome.as_deref().filter(|_| line.event == "checkpoint");
        let created = outcome == Some("created");
        if created {
            self.counted = line.file.map(|_| 1);
        }
        let complete = created || outcome == Some("started") && line.file.is_none();
        if !complete && !self.options.part {
            self.problem(Kind::BeginningMissing, Some(seq), "the file does not begin with its first line".into());
        }
    }

    /// Checks number and hash against the line before. Returns whether the line stands where it should.
    fn order(&mut self, seq: u64, prev: LineHash, hash: LineHash) -> bool {
        self.report.first_seq.get_or_insert(seq);
        let here = (Head { seq, hash }, self.file.clone(), self.line);
        let Some((last, file, line)) = self.last.replace(here) else { return true };
        if Some(seq) == last.seq.checked_add(1) {
            if prev != last.hash {
                let detail = format!("line {} is not the one that line {seq} names as the line before", last.seq);
                self.problem_at(file, line, Kind::Edited, Some(last.seq), detail);
            }
            return true;
        }
        if seq > last.seq {
            self.skipped.push((last.seq.saturating_add(1), seq - 1, self.file.clone(), self.line));
            return false;
        }
        // An earlier line: the order goes on from the one with the highest number.
        self.last = Some((last, file, line));
        if self.found_late(seq) {
            self.problem(Kind::Reordered, Some(seq), format!("line {seq} stands after line {}", last.seq));
        } else {
            self.problem(Kind::Repeated, Some(seq), format!("line {seq} stands here again, or another in its name"));
        }
        false
    }

    /// Takes `seq` out of the numbers that were skipped.
    fn found_late(&mut self, seq: u64) -> bool {
        let Some(at) = self.skipped.iter().position(|(from, to, _, _)| (*from..=*to).contains(&seq)) else {
            return false;
        };
        let (from, to, file, line) = self.skipped.swap_remove(at);
        if from < seq {
            self.skipped.push((from, seq - 1, file.clone(), line));
        }
        if seq < to {
            self.skipped.push((seq + 1, to, file, line));
        }
        true
    }

    fn checkpoint(&mut self, bytes: &[u8], seq: u64, in_order: bool, line: &Line) {
        let Some(key) = line.key.filter(|key| line.event == "checkpoint" && is_signed_by(bytes, key)) else {
            return self.problem(Kind::BadSignature, Some(seq), "the checkpoint's signature is not of its key".into());
        };
        if self.report.keys.is_empty() {
            self.report.keys.push(key);
        }
        if !self.report.keys.contains(&key) {
            return self.problem(Kind::ForeignKey, Some(seq), format!("the checkpoint is signed by {key}"));
        }
        if let (Some(first), Some(count)) = (self.counted, line.count)
            && count != self.line - first + 1
        {
            let detail = format!("the checkpoint counts {count} lines of its file up to here, it has {}", self.line);
            self.problem(Kind::BadCount, Some(seq), detail);
        }
        if let Some((number, named)) = line.file.zip(number_of(&self.file))
            && number != named
        {
            self.problem(Kind::BadCount, Some(seq), format!("the checkpoint is of file {number}, not {named}"));
        }
        self.report.checkpoints += 1;
        if in_order {
            self.report.signed_until = Some((seq, line.time));
        }
    }

    fn recovery(&mut self, seq: u64, line: &Line) {
        let what = line.outcome.as_deref().unwrap_or_default();
        // A line that was broken off when the machine stopped was never trusted by anyone: it is told, not held
        // against the log.
        if !matches!(what, "torn_line" | "resumed") {
            let detail =
                format!("the sidecar found at its start: {what}: {}", line.detail.as_deref().unwrap_or_default());
            self.problem(Kind::Recovery, Some(seq), detail);
        }
    }

    /// What was found. Call it once all files are read.
    pub fn finish(mut self) -> Report {
        for (from, to, file, line) in std::mem::take(&mut self.skipped) {
            let what = if from == to {
                format!("line {from} is missing")
            } else {
                format!("lines {from} to {to} are missing")
            };
            self.problem_at(file, line, Kind::Missing, Some(from), format!("{what} before this one"));
        }
        let last = self.last.take();
        if let Some(wanted) = self.options.head {
            self.compare(wanted, last.as_ref().map(|(head, _, _)| *head));
        }
        if self.report.checkpoints == 0 && self.report.lines > 0 && !self.options.part {
            let detail = "there is no checkpoint with a good signature: nothing here is proved".into();
            self.problem(Kind::BeginningMissing, None, detail);
        }
        let mut report = self.report;
        let covered = report.signed_until.map(|(seq, _)| seq);
        let end = last.as_ref().map_or(0, |(head, _, _)| head.seq);
        report.unsigned_tail = end.saturating_sub(covered.unwrap_or(report.first_seq.unwrap_or(1).saturating_sub(1)));
        report.head = last.map(|(head, _, _)| head.to_string());
        report.problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        report.ok = report.problem_count == 0;
        report
    }

    fn compare(&mut self, wanted: Head, last: Option<Head>) {
        match self.head_seen {
            Some(hash) if hash == wanted.hash => {}
            Some(_) => {
                let detail = format!("line {} is not the one that is known to have been written", wanted.seq);
                self.problem(Kind::Edited, Some(wanted.seq), detail);
            }
            None => {
                let end = last.map_or(0, |head| head.seq);
                let detail = format!("the log ends with line {end}, line {} is known to have been written", wanted.seq);
                self.problem(Kind::Truncated, Some(wanted.seq), detail);
            }
        }
    }

    fn problem(&mut self, kind: Kind, seq: Option<u64>, detail: String) {
        self.problem_at(self.file.clone(), self.line, kind, seq, detail);
    }

    fn problem_at(&mut self, file: PathBuf, line: u64, kind: Kind, seq: Option<u64>, detail: String) {
        self.report.problem_count += 1;
        if self.report.problems.len() < MAX_LISTED {
            self.report.problems.push(Problem { file, line, seq, kind, detail });
        }
    }
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    rotation_number(name.get(name.rfind('.')?..)?)
}

/// The files of the logs that `arguments` name, in the order in which they were written. A file brings its rotated
/// parts with it; a directory all its files but those that hold a torn line.
///
/// # Errors
/// When one cannot be read, or there is none.
pub fn files(arguments: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for argument in arguments {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", argument.display()));
        if fs::metadata(argument).map_err(named)?.is_dir() {
            for entry in fs::read_dir(argument).map_err(named)? {
                let entry = entry?;
                if entry.file_type()?.is_file() && !entry.file_name().to_string_lossy().contains(".torn-") {
                    all.push(entry.path());
                }
            }
        } else {
            all.push(argument.clone());
            all.extend(rotated(argument).map_err(named)?.into_iter().map(|(_, path)| path));
        }
    }
    all.sort();
    all.dedup();
    if all.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no file to verify"));
    }
    let mut ordered = Vec::with_capacity(all.len());
    for path in all {
        ordered.push((first_seq(&path)?, path));
    }
    ordered.sort();
    Ok(ordered.into_iter().map(|(_, path)| path).collect())
}

/// The number of a file's first line; a file whose first line cannot be read goes last.
fn first_seq(path: &Path) -> io::Result<u64> {
    let mut line = Vec::new();
    open(path)?.take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
    Ok(link(&line).map_or(u64::MAX, |(seq, _)| seq))
}

fn open(path: &Path) -> io::Result<BufReader<File>> {
    let file =
        File::open(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(BufReader::with_capacity(256 * 1024, file))
}

/// Verifies the logs that `arguments` name.
///
/// # Errors
/// When one cannot be read, or there is none.
pub fn verify(arguments: &[PathBuf], options: Options) -> io::Result<Report> {
    let mut verifier = Verifier::new(options);
    for path in files(arguments)? {
        verifier.read(&path, open(&path)?)?;
    }
    Ok(verifier.finish())
}
