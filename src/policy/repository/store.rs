//! What is kept of a signed repository in the state directory, below `policy/`:
//!
//! | file | holds |
//! |---|---|
//! | `lock` | nothing: one process at a time has it locked |
//! | `initialised` | a line: this state was begun on purpose, so what it lacks was lost |
//! | `high-water.a`, `high-water.b` | the same twice: what was seen, never to be older again ([`HighWater`]) |
//! | `roots/N.root.json` | every root that was verified |
//! | `kill/` | of a version that could not be used otherwise: its kill list, and the metadata that leads to it |
//! | `versions/VERSION/` | the newest version and those in use: metadata files, and `targets.pack`, the policy files |
//!
//! Folders have mode 0700 and files 0600; a link, or what somebody else owns, is refused. Every file is written durably
//! (`durable_file`); a version is a folder that is renamed whole. Whatever is read again is verified again: the
//! cache is never what trust rests on, only the high-water mark is.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{FlockOperation, OFlags};

use super::fault::{Fault, FaultKind};
use super::high_water::{HighWater, InUse, MAX_HIGH_WATER, Mark, Marks};
use super::trusted::{MAX_METADATA, MAX_ROOT, MAX_TARGETS, Verified};
use super::{Digest, MAX_FILE, MAX_FILES, MAX_TOTAL};
use crate::durable_file;
use crate::policy::PolicyVersion;
use crate::policy::repository::metadata::metadata_name;

/// The folder in the state directory.
const FOLDER: &str = "policy";
const COPIES: [&str; 2] = ["high-water.a", "high-water.b"];
const MARKER: &str = "initialised";
const PACK: &str = "targets.pack";
const KILL: &str = "kill";
/// What a pack begins with.
const PACK_FORM: &[u8] = b"sidemint targets 1\n";
/// Behind the name of a folder that is being filled.
const UNFINISHED: &str = ".new";

/// What the state directory remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remembered {
    /// Nothing was ever begun here.
    Nothing,
    /// This was seen. Where a copy of it was damaged, and repaired: which.
    Seen {
        /// The newest copy of what was seen.
        high_water: Box<HighWater>,
        /// Which copy was damaged and how, where one was.
        repaired: Option<String>,
        /// Whether it was begun on purpose; not when the first refresh was cut off.
        initialised: bool,
    },
}

/// A version as it is kept, not verified again yet.
#[derive(Debug, Default)]
pub struct Kept {
    /// Metadata files by their name in the repository: `metadata/7.snapshot.json`.
    pub metadata: BTreeMap<String, Bytes>,
    /// Policy files by their digest.
    pub targets: BTreeMap<Digest, Bytes>,
}

/// The kept state of one repository, for one process at a time.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    high_water: Mutex<Option<HighWater>>,
    /// Held for its lock.
    _lock: Option<File>,
}

fn failed(place: &Path, error: &io::Error) -> Fault {
    let message = format!("{}: {error}: fix the state directory (state.directory)", place.display());
    Fault::new(FaultKind::State, message)
}

fn flags(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).unwrap_or_default()
}

/// Ours, of the right kind, and for nobody else to write.
fn check(place: &Path, meta: &fs::Metadata, folder: bool) -> Result<(), Fault> {
    let why = if meta.is_dir() != folder || meta.is_file() == folder {
        "is a link or of another kind"
    } else if meta.uid() != rustix::process::geteuid().as_raw() {
        "belongs to another user"
    } else if meta.mode() & 0o022 != 0 {
        "can be written by others"
    } else {
        return Ok(());
    };
    let message = format!("{}: {why}: remove it, or give it to the sidecar's user with mode 0700", place.display());
    Err(Fault::new(FaultKind::State, message))
}

/// The folder `place`, made where it is not there.
fn folder(place: &Path) -> Result<(), Fault> {
    match fs::symlink_metadata(place) {
        Ok(meta) => check(place, &meta, true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(place).map_err(|error| failed(place, &error))?;
            let meta = fs::symlink_metadata(place).map_err(|error| failed(place, &error))?;
            check(place, &meta, true)
        }
        Err(error) => Err(failed(place, &error)),
    }
}

/// The file's bytes; `None` where there is none.
fn read(place: &Path, limit: u64) -> Result<Option<Bytes>, Fault> {
    let file = match OpenOptions::new().read(true).custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK)).open(place)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            let message = format!("{}: is a link: remove it", place.display());
            return Err(Fault::new(FaultKind::State, message));
        }
        Err(error) => return Err(failed(place, &error)),
    };
    let meta = file.metadata().map_err(|error| failed(place, &error))?;
    check(place, &meta, false)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| failed(place, &error))?;
    if bytes.len() as u64 > limit {
        return Err(Fault::new(FaultKind::State, format!("{}: larger than {limit} bytes: remove it", place.display())));
    }
    Ok(Some(bytes.into()))
}

fn sync_folder(place: &Path) -> Result<(), Fault> {
    durable_file::sync_folder(place).map_err(|error| failed(place, &error))
}

fn replace(place: &Path, bytes: &[u8]) -> Result<(), Fault> {
    durable_file::replace(place, bytes, 0o600).map_err(|error| failed(place, &error))
}

/// Removes a file, a link or a whole folder, where there is one.
fn remove(place: &Path) -> Result<(), Fault> {
    let gone = match fs::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(place),
        _ => fs::remove_file(place),
    };
    gone.map_err(|error| failed(place, &error))
}

impl Store {
    /// Opens the store in the state directory `state`, and makes its folders.
    ///
    /// # Errors
    /// When it cannot be used, is not ours alone, or another process has it.
    pub fn open(state: &Path) -> Result<Self, Fault> {
        let place = state.join(FOLDER);
        folder(&place)?;
        for name in ["roots", "versions"] {
            folder(&place.join(name))?;
        }
        let lock = lock(&place.join("lock"))?;
        Ok(Self { folder: place, high_water: Mutex::default(), _lock: lock })
    }

    /// Whether the state directory `state` was begun: by a first version, or by `policy trust`.
    pub fn is_begun(state: &Path) -> bool {
        fs::symlink_metadata(state.join(FOLDER).join(MARKER)).is_ok()
    }

    fn memory(&self) -> MutexGuard<'_, Option<HighWater>> {
        self.high_water.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered, as last read or written; `None` where nothing is.
    pub fn high_water(&self) -> Option<HighWater> {
        self.memory().clone()
    }

    /// Reads what is remembered. A copy that is damaged is written again from the other.
    ///
    /// # Errors
    /// [`FaultKind::LostState`] when this state was begun and both copies are lost; [`FaultKind::State`] when it cannot
    /// be read.
    pub fn remember(&self) -> Result<Remembered, Fault> {
        let initialised = read(&self.folder.join(MARKER), MAX_ROOT)?.is_some();
        let copies = COPIES.map(|name| self.copy(name));
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for copy in copies {
            match copy {
                Ok(Some(high_water)) => good.push(high_water),
                Ok(None) => {}
                Err(why) => bad.push(why),
            }
        }
        let newest = good.iter().max_by_key(|copy| copy.counter).cloned();
        let Some(newest) = newest else {
            return match (initialised, bad.pop()) {
                (false, None) => Ok(Remembered::Nothing),
                (_, why) => Err(self.lost(&why.unwrap_or_else(|| "both copies are gone".to_owned()))),
            };
        };
        // Two that differ under one counter were never written by us.
        if good.iter().any(|copy| copy.counter == newest.counter && *copy != newest) {
            return Err(self.lost("its two copies contradict each other"));
        }
        let mut repaired = bad.pop();
        if repaired.is_none() && good.len() < COPIES.len() {
            repaired = Some("one of the two copies of the high-water mark is gone".to_owned());
        }
        if good.len() < COPIES.len() || good.iter().any(|copy| *copy != newest) {
            // A state directory that cannot be written still remembers: what cannot be repaired now is told again.
            if let Err(fault) = self.write(&newest) {
                repaired = repaired.map(|why| format!("{why}, and cannot be repaired: {}", fault.message()));
            }
        }
        *self.memory() = Some(newest.clone());
        Ok(Remembered::Seen { high_water: Box::new(newest), repaired, initialised })
    }

    fn lost(&self, why: &str) -> Fault {
        let message = format!(
            "{}: what was seen of the policy repository is lost ({why}), so an older policy could not be told from the \
             newest: restore it from this sidecar's own backup, or empty this folder and run `sidemint policy trust`",
            self.folder.display()
        );
        Fault::new(FaultKind::LostState, message)
    }

    fn copy(&self, name: &str) -> Result<Option<HighWater>, String> {
        match read(&self.folder.join(name), MAX_HIGH_WATER) {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => HighWater::parse(&bytes).map(Some).map_err(|why| format!("{name} {why}")),
            Err(fault) => Err(fault.message().to_owned()),
        }
    }

    /// Writes both copies, one after the other: whenever it stops, one of them is whole.
    fn write(&self, high_water: &HighWater) -> Result<(), Fault> {
        let bytes = high_water.to_bytes();
        for name in COPIES {
            replace(&self.folder.join(name), &bytes)?;
        }
        Ok(())
    }

    /// Remembers what was seen now.
    ///
    /// # Errors
    /// When it cannot be written: what was seen must not be adopted then.
    pub fn raise(&self, root: Mark, marks: Marks) -> Result<(), Fault> {
        let mut memory = self.memory();
        if memory.as_ref().is_some_and(|kept| kept.root == root && kept.marks == marks) {
            return Ok(());
        }
        let first =
            || HighWater { counter: 0, root, marks: Marks::default(), in_force: None, stopping: None, kill: None };
        let kept = memory.clone().unwrap_or_else(first);
        let high_water = HighWater { counter: kept.counter.saturating_add(1), root, marks, ..kept };
        self.write(&high_water)?;
        *memory = Some(high_water);
        Ok(())
    }

    /// Remembers what is in use now: what is in force, and what stops more than that says. The kill list of either goes on
    /// from one that was taken by itself.
    ///
    /// # Errors
    /// When it cannot be written, or nothing was seen yet.
    pub fn remember_use(&self, in_force: Option<InUse>, stopping: Option<InUse>) -> Result<(), Fault> {
        self.change(|kept| HighWater { in_force, stopping, kill: None, ..kept })?;
        remove(&self.folder.join(KILL))
    }

    /// Keeps and remembers a kill list that is taken by itself, of the version `of`.
    ///
    /// # Errors
    /// As for [`Store::remember_use`].
    pub fn keep_kill(&self, verified: &Verified, of: InUse) -> Result<(), Fault> {
        self.put(&self.folder.join(KILL), verified)?;
        self.change(|kept| HighWater { kill: Some(of), ..kept })
    }

    fn change(&self, change: impl FnOnce(HighWater) -> HighWater) -> Result<(), Fault> {
        let mut memory = self.memory();
        let kept =
            memory.clone().ok_or_else(|| Fault::new(FaultKind::State, "nothing was seen that could be in use"))?;
        let counter = kept.counter.saturating_add(1);
        let high_water = HighWater { counter, ..change(kept) };
        self.write(&high_water)?;
        *memory = Some(high_water);
        Ok(())
    }

    /// Says that this state was begun, by a first version or by `policy trust`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn initialise(&self) -> Result<(), Fault> {
        let place = self.folder.join(MARKER);
        if read(&place, MAX_ROOT)?.is_some() {
            return Ok(());
        }
        replace(&place, b"A policy repository is trusted here; see high-water.a.\n")
    }

    fn root_place(&self, version: u64) -> PathBuf {
        self.folder.join("roots").join(metadata_name("root", version))
    }

    /// The root of this version, where it is kept and can be read.
    pub fn root(&self, version: u64) -> Option<Bytes> {
        read(&self.root_place(version), MAX_ROOT).ok().flatten()
    }

    /// Keeps a verified root.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_root(&self, version: u64, bytes: &[u8]) -> Result<(), Fault> {
        if self.root(version).as_deref() == Some(bytes) {
            return Ok(());
        }
        let roots = self.folder.join("roots");
        folder(&roots)?;
        replace(&self.root_place(version), bytes)
    }

    /// The versions that are kept, the newest first.
    pub fn versions(&self) -> Vec<PolicyVersion> {
        let entries = fs::read_dir(self.folder.join("versions")).into_iter().flatten().flatten();
        let mut found: Vec<(u64, String)> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let (number, hex) = name.split_once('-')?;
                let is_hex = hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit());
                is_hex.then_some((number.parse().ok()?, name))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, name)| PolicyVersion(name.into())).collect()
    }

    fn place(&self, version: &PolicyVersion) -> PathBuf {
        self.folder.join("versions").join(&*version.0)
    }

    /// A kept version, as it was left; what is damaged or too large is left out.
    ///
    /// # Errors
    /// When its folder is not ours or cannot be read.
    pub fn read(&self, version: &PolicyVersion) -> Result<Kept, Fault> {
        Self::read_at(&self.place(version))
    }

    /// The same of the kill list that is kept by itself.
    ///
    /// # Errors
    /// As for [`Store::read`].
    pub fn read_kill(&self) -> Result<Kept, Fault> {
        Self::read_at(&self.folder.join(KILL))
    }

    fn read_at(place: &Path) -> Result<Kept, Fault> {
        let meta = fs::symlink_metadata(place).map_err(|error| failed(place, &error))?;
        check(place, &meta, true)?;
        let mut kept = Kept::default();
        let mut left = MAX_METADATA;
        for entry in fs::read_dir(place).map_err(|error| failed(place, &error))?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name == PACK || !name.ends_with(".json") {
                continue;
            }
            if let Some(bytes) = read(&entry.path(), MAX_TARGETS.min(left))? {
                left = left.saturating_sub(bytes.len() as u64);
                kept.metadata.insert(format!("metadata/{name}"), bytes);
            }
        }
        // Each file has four bytes before it.
        let limit = MAX_TOTAL + 4 * MAX_FILES as u64 + PACK_FORM.len() as u64;
        if let Some(pack) = read(&place.join(PACK), limit)? {
            kept.targets = unpack(&pack);
        }
        Ok(kept)
    }

    /// Keeps a verified version, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, verified: &Verified) -> Result<(), Fault> {
        folder(&self.folder.join("versions"))?;
        self.put(&self.place(&verified.files.version), verified)
    }

    fn put(&self, place: &Path, verified: &Verified) -> Result<(), Fault> {
        let mut unfinished = place.as_os_str().to_owned();
        unfinished.push(UNFINISHED);
        let unfinished = PathBuf::from(unfinished);
        remove(&unfinished)?;
        folder(&unfinished)?;
        let file = |name: String, bytes: &[u8]| {
            let place = unfinished.join(name);
            durable_file::create(&place, bytes).map_err(|error| failed(&place, &error))
        };
        file(metadata_name("timestamp", 0), &verified.timestamp.1)?;
        file(metadata_name("snapshot", verified.snapshot.0.version), &verified.snapshot.1)?;
        for (role, (mark, bytes)) in &verified.roles {
            file(metadata_name(role, mark.version), bytes)?;
        }
        file(PACK.to_owned(), &pack(verified.files.files.values()))?;
        sync_folder(&unfinished)?;
        // A folder can be renamed onto an empty one alone.
        remove(place)?;
        fs::rename(&unfinished, place).map_err(|error| failed(place, &error))?;
        sync_folder(place.parent().unwrap_or(&self.folder))
    }

    /// Whether this version is still kept, as far as the names of its files say.
    pub fn has(&self, version: &PolicyVersion) -> bool {
        let place = self.place(version);
        let entries = fs::read_dir(&place).into_iter().flatten().flatten();
        let names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.iter().any(|name| name == PACK) && names.iter().any(|name| name.ends_with(".targets.json"))
    }

    /// Keeps a newer timestamp of a version that is kept.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_timestamp(&self, version: &PolicyVersion, bytes: &[u8]) -> Result<(), Fault> {
        replace(&self.place(version).join(metadata_name("timestamp", 0)), bytes)
    }

    /// Removes every version but these, and what was left half written.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn prune(&self, keep: &[PolicyVersion]) -> Result<(), Fault> {
        let versions = self.folder.join("versions");
        for entry in fs::read_dir(&versions).map_err(|error| failed(&versions, &error))?.flatten() {
            let name = entry.file_name();
            if !keep.iter().any(|version| name.to_str() == Some(&*version.0)) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Locks the file for this process. Where it can be neither opened nor made, nobody else can write here either.
fn lock(place: &Path) -> Result<Option<File>, Fault> {
    let no_follow = flags(OFlags::NOFOLLOW);
    let open = OpenOptions::new().read(true).custom_flags(no_follow).open(place).or_else(|_| {
        let mut new = OpenOptions::new();
        new.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow).open(place)
    });
    let file = match open {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::ROFS.raw_os_error()) => return Ok(None),
        Err(error) => return Err(failed(place, &error)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // As the mask of the process left it, it might be open to others.
            let _ = file.set_permissions(fs::Permissions::from_mode(0o600));
            Ok(Some(file))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message = format!(
                "{}: another process uses this policy state: give each sidecar its own state.directory, and stop it \
                 before `sidemint policy trust`",
                place.display()
            );
            Err(Fault::new(FaultKind::State, message))
        }
        Err(error) => Err(failed(place, &error.into())),
    }
}

/// Files one after the other: length (four bytes, the highest first), bytes. Their digests say what they are.
pub fn pack<'a>(files: impl Iterator<Item = &'a Bytes>) -> Vec<u8> {
    let by_digest: BTreeMap<Digest, &Bytes> = files.map(|bytes| (Digest::of(bytes), bytes)).collect();
    let mut pack = PACK_FORM.to_vec();
    for bytes in by_digest.values() {
        // No file is larger than MAX_FILE.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        pack.extend_from_slice(&length.to_be_bytes());
        pack.extend_from_slice(bytes);
    }
    pack
}

/// What of a pack is whole, by its own digest.
pub fn unpack(pack: &Bytes) -> BTreeMap<Digest, Bytes> {
    let mut files = BTreeMap::new();
    if !pack.starts_with(PACK_FORM) {
        return files;
    }
    let mut rest = pack.slice(PACK_FORM.len()..);
    while let Some((length, _)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length as u64 > MAX_FILE || rest.len() - 4 < length || files.len() >= MAX_FILES {
            break;
        }
        let bytes = rest.slice(4..4 + length);
        rest = rest.slice(4 + length..);
        files.insert(Digest::of(&bytes), bytes);
    }
    files
}
