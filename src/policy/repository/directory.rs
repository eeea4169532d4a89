//! A directory of unsigned policy files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::super::PolicyVersion;
use super::{Fetched, PolicyFiles, PolicySource, PolicySourceError};

/// The largest policy file, in bytes.
pub const MAX_FILE: u64 = 256 * 1024;
/// The most bytes of all policy files together.
pub const MAX_TOTAL: u64 = 64 * 1024 * 1024;
/// The most policy files.
pub const MAX_FILES: usize = 100_000;
/// How deep folders may lie below one of [`FOLDERS`]: as deep as an id has segments.
const MAX_DEPTH: usize = 8;
/// How often files that change while they are read are read again.
const ATTEMPTS: usize = 3;
/// The folders that are read.
const FOLDERS: [&str; 6] = ["boundaries", "decisions", "grants", "kill", "owners", "scopes"];
/// Table tests lie beside the decisions and are no policy: they are neither read nor published.
pub const TESTS: &str = ".tests.toml";

/// A directory of unsigned policy files: whoever can write there decides. Links are followed as long as they stay inside
/// (Kubernetes mounts a ConfigMap so); names that begin with a dot are ignored, as is all that is not `.toml` or `.cedar`.
#[derive(Debug, Clone)]
pub struct DirectorySource {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    directory: PathBuf,
    last: Mutex<Option<Last>>,
}

/// What was read last, and how the files looked.
#[derive(Debug)]
struct Last {
    fingerprint: Fingerprint,
    version: PolicyVersion,
    /// Whether the files were read again after they had first looked like this. A file that is written twice within one
    /// tick of the file system's clock looks the same both times; by the next poll the tick is over.
    settled: bool,
}

type Fingerprint = BTreeMap<String, Stamp>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    place: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl DirectorySource {
    /// A source over `directory`, which is read at each [`PolicySource::fetch`], not before.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { state: Arc::new(State { directory: directory.into(), last: Mutex::new(None) }) }
    }

    /// Reads the files now. It blocks; commands use it, the sidecar fetches.
    ///
    /// # Errors
    /// Says which file or folder cannot be read, is too large or leads out of the directory.
    pub fn read(&self) -> Result<PolicyFiles, PolicySourceError> {
        self.state.read().map(|(files, _)| files)
    }
}

#[async_trait]
impl PolicySource for DirectorySource {
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        let (state, seen) = (Arc::clone(&self.state), seen.cloned());
        let work = tokio::task::spawn_blocking(move || state.fetch(seen.as_ref()));
        work.await.map_err(|_| PolicySourceError::unavailable("reading the policy directory was cut off".to_owned()))?
    }
}

impl State {
    fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        if self.looks_like(seen)? {
            return Ok(Fetched::Unchanged);
        }
        let (files, fingerprint) = self.read()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let settled =
            last.as_ref().is_some_and(|last| last.fingerprint == fingerprint && last.version == files.version);
        *last = Some(Last { fingerprint, version: files.version.clone(), settled });
        Ok(if seen == Some(&files.version) { Fetched::Unchanged } else { Fetched::New(files) })
    }

    /// The cheap check: nothing has another time, size or place than when version `seen` was read.
    fn looks_like(&self, seen: Option<&PolicyVersion>) -> Result<bool, PolicySourceError> {
        let now = Walk::over(&self.directory)?;
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(last.as_ref().is_some_and(|last| last.settled && Some(&last.version) == seen && last.fingerprint == now))
    }

    /// Reads everything between two equal looks, so that no half of a change is taken.
    fn read(&self) -> Result<(PolicyFiles, Fingerprint), PolicySourceError> {
        for _ in 0..ATTEMPTS {
            let before = Walk::over(&self.directory)?;
            let files = read_all(&before);
            if Walk::over(&self.directory)? == before {
                return Ok((PolicyFiles::unsigned(files?), before));
            }
        }
        Err(PolicySourceError::unavailable(format!("{} changes while it is read", self.directory.display())))
    }
}

fn read_all(fingerprint: &Fingerprint) -> Result<BTreeMap<String, Bytes>, PolicySourceError> {
    let mut files = BTreeMap::new();
    for (path, stamp) in fingerprint {
        let failed = |error: std::io::Error| PolicySourceError::unavailable(format!("{path}: cannot be read: {error}"));
        let mut bytes = Vec::new();
        // One byte more than allowed tells a file that grew since the look.
        fs::File::open(&stamp.place).map_err(failed)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(too_large(path));
        }
        files.insert(path.clone(), Bytes::from(bytes));
    }
    Ok(files)
}

fn too_large(path: &str) -> PolicySourceError {
    PolicySourceError::unavailable(format!("{path}: larger than {MAX_FILE} bytes"))
}

/// One look over a directory.
struct Walk {
    root: PathBuf,
    found: Fingerprint,
    total: u64,
    entries: usize,
}

impl Walk {
    fn over(directory: &Path) -> Result<Fingerprint, PolicySourceError> {
        let root = fs::canonicalize(directory).map_err(|error| {
            PolicySourceError::unavailable(format!("{}: cannot be read: {error}", directory.display()))
        })?;
        let mut walk = Self { root, found: BTreeMap::new(), total: 0, entries: 0 };
        for folder in FOLDERS {
            walk.folder(&directory.join(folder), folder, 0)?;
        }
        Ok(walk.found)
    }

    fn folder(&mut self, place: &Path, path: &str, depth: usize) -> Result<(), PolicySourceError> {
        let failed = |error: std::io::Error| PolicySourceError::unavailable(format!("{path}: cannot be read: {error}"));
        let entries = match self.inside(place, path) {
            Ok(place) => fs::read_dir(place).map_err(failed)?,
            Err(None) => return Ok(()),
            Err(Some(error)) => return Err(error),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            self.entries += 1;
            if self.entries > MAX_FILES {
                return Err(PolicySourceError::unavailable(format!("more than {MAX_FILES} policy files")));
            }
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(PolicySourceError::unavailable(format!("{path}: has a file whose name is not UTF-8")));
            };
            if !name.starts_with('.') {
                self.entry(&entry.path(), &format!("{path}/{name}"), depth)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, place: &Path, path: &str, depth: usize) -> Result<(), PolicySourceError> {
        let place = match self.inside(place, path) {
            Ok(place) => place,
            Err(None) => return Ok(()),
            Err(Some(error)) => return Err(error),
        };
        let failed = |error: std::io::Error| PolicySourceError::unavailable(format!("{path}: cannot be read: {error}"));
        let meta = fs::metadata(&place).map_err(failed)?;
        if meta.is_dir() {
            if depth + 1 >= MAX_DEPTH {
                return Err(PolicySourceError::unavailable(format!("{path}: folders are nested too deep")));
            }
            return self.folder(&place, path, depth + 1);
        }
        if (!path.ends_with(".toml") && !path.ends_with(".cedar")) || path.ends_with(TESTS) {
            return Ok(());
        }
        if !meta.is_file() || path.contains(['\n', '\r']) {
            return Err(PolicySourceError::unavailable(format!("{}: is no plain file", path.escape_debug())));
        }
        self.total += meta.len();
        if meta.len() > MAX_FILE {
            return Err(too_large(path));
        }
        if self.total > MAX_TOTAL {
            return Err(PolicySourceError::unavailable(format!(
                "policy files are together larger than {MAX_TOTAL} bytes"
            )));
        }
        let stamp = Stamp {
            place,
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        };
        self.found.insert(path.to_owned(), stamp);
        Ok(())
    }

    /// Where `place` really is; an error when that is outside the directory, `None` when there is nothing.
    fn inside(&self, place: &Path, path: &str) -> Result<PathBuf, Option<PolicySourceError>> {
        match fs::canonicalize(place) {
            Ok(real) if real.starts_with(&self.root) => Ok(real),
            Ok(_) => Err(Some(PolicySourceError::unavailable(format!("{path}: leads out of the policy directory")))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match fs::symlink_metadata(place) {
                Ok(_) => Err(Some(PolicySourceError::unavailable(format!("{path}: is a link that leads nowhere")))),
                Err(_) => Err(None),
            },
            Err(error) => Err(Some(PolicySourceError::unavailable(format!("{path}: cannot be read: {error}")))),
        }
    }
}

#[cfg(test)]
mod tests;
