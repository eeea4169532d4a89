//! Where the lines go: a file that is rotated, or a stream.
//!
//! A file that is full or old is renamed to `NAME.000001`, `NAME.000002` …, numbers that are never used again, and only
//! the newest `keep` of them stay. One process writes a file at a time: it holds the file's lock.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use super::chain::{Head, LineHash, MAX_LINE, link};
use crate::clock::Timestamp;
use crate::durable_file;

/// When a file is full or old, and how many stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// A file with at least so many bytes is full.
    pub size: u64,
    /// A file is old after this time.
    pub age: Option<Duration>,
    /// How many full or old files stay.
    pub keep: usize,
}

/// An open log.
pub(super) enum Log {
    /// Whatever takes bytes; it cannot be rotated, nor looked at again.
    Stream(Stream),
    /// A file.
    File(LogFile),
}

/// A stream, and whether a line was broken off in it.
pub(super) struct Stream {
    sink: Box<dyn Write + Send>,
    torn: bool,
}

impl Log {
    pub(super) fn stream(sink: Box<dyn Write + Send>) -> Self {
        Self::Stream(Stream { sink, torn: false })
    }

    /// Appends `bytes`, whole lines. On an error none of them counts as written.
    pub(super) fn append(&mut self, bytes: &[u8], sync: bool) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.append(bytes),
            Self::File(file) => file.append(bytes, sync),
        }
    }
}

impl Stream {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.torn {
            // What was broken off cannot be removed; at least it does not spoil the next line.
            self.sink.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    rest = rest.get(taken..).unwrap_or_default();
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.sink.flush()
    }
}

/// A log file.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Whether what lies behind `length` must be cut off before the next line.
    torn: bool,
    pub(super) lines: u64,
    pub(super) number: u64,
    pub(super) opened_at: Timestamp,
}

/// What a file held when it was opened.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The last line of the chain in it.
    pub(super) last: Option<Head>,
    /// How many lines it has.
    pub(super) lines: u64,
    /// How many of them are no lines of a chain.
    pub(super) unreadable: u64,
    /// What the line after the one that was asked about names as the line before it.
    pub(super) after: Option<LineHash>,
    /// Where a last line that was broken off has been put, and its length.
    pub(super) torn: Option<(PathBuf, u64)>,
}

/// What is read of a file's first line.
#[derive(Deserialize)]
struct First {
    time: Timestamp,
    file: Option<u64>,
}

impl LogFile {
    /// Opens or creates `path` (mode 0600), locks it and reads it through. `known` is the head that the state directory
    /// remembers.
    pub(super) fn open(path: &Path, known: Option<Head>, now: Timestamp) -> io::Result<(Self, Found)> {
        let mut file = open_locked(path, false)?;
        let mut first = Vec::new();
        let (mut found, length, torn) = read_through(&file, known, &mut first)?;
        if torn > 0 {
            let seq = found.last.map_or(0, |last| last.seq).saturating_add(1);
            let aside = set_aside(path, &mut file, length, seq)?;
            file.set_len(length)?;
            found.torn = Some((aside, torn));
        }
        let first: Option<First> = serde_json::from_slice(&first).ok();
        let newest = rotated(path)?.last().map_or(0, |(number, _)| *number);
        let number = first.as_ref().and_then(|first| first.file).unwrap_or(0).max(newest.saturating_add(1));
        let opened_at = first.map_or(now, |first| first.time);
        Ok((Self { path: path.to_owned(), file, length, torn: false, lines: found.lines, number, opened_at }, found))
    }

    fn append(&mut self, bytes: &[u8], sync: bool) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        self.torn = true;
        self.file.write_all(bytes)?;
        if sync {
            self.file.sync_data()?;
        }
        self.torn = false;
        self.length = self.length.saturating_add(bytes.len() as u64);
        self.lines = self.lines.saturating_add(bytes.iter().filter(|byte| **byte == b'\n').count() as u64);
        Ok(())
    }

    /// Whether the file is full, or old at `now`.
    pub(super) fn is_due(&self, rotation: &Rotation, now: Timestamp) -> bool {
        self.lines > 1
            && (self.length >= rotation.size || rotation.age.is_some_and(|age| now.since(self.opened_at) >= age))
    }

    /// Gives the file its final name and begins the next. When that fails, this one goes on.
    pub(super) fn rotate(&mut self, rotation: &Rotation, now: Timestamp) -> io::Result<()> {
        self.file.sync_all()?;
        let aside = numbered(&self.path, self.number);
        if fs::symlink_metadata(&aside).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, aside.display().to_string()));
        }
        fs::rename(&self.path, &aside)?;
        let next = match open_locked(&self.path, true) {
            Ok(next) => next,
            Err(error) => {
                // Not by renaming, which would replace a file that another process has made there meanwhile.
                fs::hard_link(&aside, &self.path)?;
                fs::remove_file(&aside)?;
                return Err(error);
            }
        };
        let number = self.number.saturating_add(1);
        *self = Self { path: self.path.clone(), file: next, length: 0, torn: false, lines: 0, number, opened_at: now };
        let all = rotated(&self.path)?;
        for (_, old) in all.iter().take(all.len().saturating_sub(rotation.keep)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn open_locked(path: &Path, new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600).custom_flags(super::no_follow());
    let file = if new { options.create_new(true) } else { options.create(true) }.open(path)?;
    let taken = || io::Error::other("another process writes it: give each sidecar its own audit.output");
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
        rustix::io::Errno::WOULDBLOCK => taken(),
        other => other.into(),
    })?;
    // Between opening and locking it may have been rotated by another process.
    let (ours, there) = (file.metadata()?, fs::symlink_metadata(path)?);
    if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) { Ok(file) } else { Err(taken()) }
}

/// Reads every line once. Returns what it found, the length of the whole lines, and how many bytes follow them.
fn read_through(file: &File, known: Option<Head>, first: &mut Vec<u8>) -> io::Result<(Found, u64, u64)> {
    let mut reader = BufReader::with_capacity(256 * 1024, file);
    let (mut found, mut length, mut line) = (Found::default(), 0u64, Vec::new());
    loop {
        line.clear();
        // A longer line than we write is cut into several, none of which is of a chain.
        let read = reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)? as u64;
        if read == 0 {
            return Ok((found, length, 0));
        }
        let whole = line.pop_if(|byte| *byte == b'\n').is_some();
        if !whole && read < MAX_LINE as u64 {
            return Ok((found, length, read));
        }
        length = length.saturating_add(read);
        if found.lines == 0 {
            first.clone_from(&line);
        }
        found.lines = found.lines.saturating_add(1);
        match link(&line) {
            Some((seq, prev)) => {
                if known.is_some_and(|known| known.seq.checked_add(1) == Some(seq)) {
                    found.after = Some(prev);
                }
                found.last = Some(Head { seq, hash: LineHash::of(&line) });
            }
            None => found.unreadable = found.unreadable.saturating_add(1),
        }
    }
}

/// Copies what follows the whole lines into a file of its own, so that nothing disappears.
fn set_aside(path: &Path, file: &mut File, length: u64, seq: u64) -> io::Result<PathBuf> {
    let mut rest = Vec::new();
    file.seek(SeekFrom::Start(length))?;
    file.take(MAX_LINE as u64).read_to_end(&mut rest)?;
    for attempt in 0..1000 {
        let aside = with_suffix(path, &format!(".torn-{seq}-{attempt}"));
        match durable_file::create(&aside, &rest) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                durable_file::sync_folder(durable_file::folder_of(path))?;
                return Ok(aside);
            }
        }
    }
    Err(io::Error::other("too many torn lines lie beside it: move the .torn- files away"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The final name of file number `number` of the log at `path`.
pub(super) fn numbered(path: &Path, number: u64) -> PathBuf {
    with_suffix(path, &format!(".{number:06}"))
}

/// The rotated files of the log at `path`, the oldest first, with their numbers.
pub(super) fn rotated(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let folder = durable_file::folder_of(path);
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let number = file_name.to_str().and_then(|text| text.strip_prefix(name)).and_then(rotation_number);
        if let Some(number) = number {
            all.push((number, entry.path()));
        }
    }
    all.sort();
    Ok(all)
}

/// The number in the suffix `.000001`.
pub(super) fn rotation_number(suffix: &str) -> Option<u64> {
    let digits = suffix.strip_prefix('.')?;
    (digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}
