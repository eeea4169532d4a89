//! Bytes that anybody could have sent → policy files that their owners signed.
//!
//! The signatures, pins and versions of one walk are judged by `sigstore-tuf`'s `TrustedMetadataSet`; what it leaves open
//! is judged here (decision 0001): what was seen before ([`Marks`]), whose each name is (`delegation`), which keys may
//! be keys (`keys`), how much of it there may be, and when a role has expired. The set never judges ends: it is
//! told that it is 1970.
//!
//! Nothing here reads a file or a socket but through [`Fetch`], and nothing here is kept: see `signed`.
//!
//! The walk (TUF specification §5): [`Roots`] → [`Roots::timestamp`] → [`complete`], which reads snapshot, `targets`, the
//! five owners, their departments and the files. What is known already by its digest is not fetched again.

mod delegation;
mod keys;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use sigstore_tuf::{MetaFile, Root, TrustedMetadataSet};
use tokio::task::JoinSet;

use super::super::document::Decision;
use super::super::standing::{OWNERS, RoleName, Standing, TOP_ROLES};
use super::super::{PolicyVersion, Problem, ScopeId, kind, worker};
use super::fault::{Fault, FaultKind};
use super::fetch::{Answer, Fetch, FetchError};
use super::high_water::{Mark, Marks};
use super::metadata::{metadata_name, target_name};
use super::{Digest, MAX_FILE, MAX_FILES, MAX_TOTAL, PolicyFiles, Signed};
use crate::clock::Timestamp;
use delegation::Tree;
pub use delegation::{MAX_DEPTH, MAX_ROLES};

/// The largest root, in bytes.
pub const MAX_ROOT: u64 = 512 * 1024;
/// The largest timestamp, in bytes.
pub const MAX_TIMESTAMP: u64 = 16 * 1024;
/// The largest snapshot, in bytes.
pub const MAX_SNAPSHOT: u64 = 256 * 1024;
/// The largest targets role, in bytes: some 100,000 names.
pub const MAX_TARGETS: u64 = 32 * 1024 * 1024;
/// The most bytes of all targets roles together.
pub const MAX_METADATA: u64 = 48 * 1024 * 1024;
/// How many files are fetched at a time.
const AT_ONCE: usize = 16;
/// The role that signs the kill list.
pub const INCIDENT: &str = "incident";
/// Where the timestamp lies.
pub const TIMESTAMP: &str = "metadata/timestamp.json";

/// Runs what computes or blocks away from the runtime's threads.
pub(super) async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    let cut = || Fault::new(FaultKind::Unreachable, "looking at the policy repository was cut off");
    worker::run(work).await.ok_or_else(cut)
}

fn end_of(role: &impl sigstore_tuf::Role) -> Timestamp {
    // An end before 1970 is one that has passed.
    Timestamp::from_millis(u64::try_from(role.expires().as_millisecond()).unwrap_or(0))
}

/// Refuses what is older than `floor`, and other bytes under the same version.
fn not_below(role: &str, floor: Option<&Mark>, version: u64, digest: Option<Digest>) -> Result<(), Fault> {
    match floor {
        Some(floor) if version < floor.version => {
            let message = format!(
                "{role}: version {version} is offered, and {} was seen: publish a higher version, from where the newest \
                 was published",
                floor.version
            );
            Err(Fault::new(FaultKind::Rollback, message))
        }
        Some(floor) if version == floor.version && digest.is_some_and(|digest| digest != floor.digest) => {
            let message = format!(
                "{role}: version {version} has other bytes than when it was seen first: a change needs a higher version"
            );
            Err(Fault::new(FaultKind::Altered, message))
        }
        _ => Ok(()),
    }
}

fn not_ended(role: &str, end: Timestamp, judge: Option<Timestamp>) -> Result<(), Fault> {
    match judge {
        Some(now) if end <= now => {
            let message = format!("{role}: expired at {end}, before it was first seen here: sign a new version");
            Err(Fault::new(FaultKind::Expired, message))
        }
        _ => Ok(()),
    }
}

/// The newest root that was verified, by a chain from the trust anchor.
#[derive(Debug, Clone)]
pub struct Roots {
    set: TrustedMetadataSet,
    mark: Mark,
}

/// What is where the next root would be.
#[derive(Debug)]
pub enum Next {
    /// A root that follows.
    Root {
        /// With it as the newest.
        roots: Box<Roots>,
        /// Its bytes, to be kept.
        bytes: Bytes,
        /// Whether a key of timestamp or snapshot may no longer sign (specification §5.3.11).
        replaced: bool,
    },
    /// There is no next root.
    Absent,
    /// Something that is no root at all, such as a page of HTML: as good as nothing, and told.
    Odd(String),
}

/// Who may sign a role: for whoever is to trust it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleSummary {
    /// The role's name.
    pub role: String,
    /// The ids of the keys that may sign it.
    pub keys: Vec<String>,
    /// How many of them must sign.
    pub threshold: usize,
}

impl Roots {
    /// Begins at the trust anchor, the root that the deployment ships: it must be signed by its own keys.
    ///
    /// # Errors
    /// When it is no such root.
    pub fn anchor(bytes: &[u8]) -> Result<Self, Fault> {
        let set = TrustedMetadataSet::from_root(bytes).map_err(|error| Fault::of_tuf("root", &error))?;
        check_root(set.root())?;
        Ok(Self { mark: Mark::of(set.root().version, bytes), set })
    }

    /// The version and digest of the newest root.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// When the newest root expires, UTC.
    pub fn end(&self) -> Timestamp {
        end_of(self.set.root())
    }

    /// Who may sign the four top roles.
    pub fn summary(&self) -> Vec<RoleSummary> {
        let root = self.set.root();
        let of = |role: &&str| {
            let keys = root.role(role)?;
            Some(RoleSummary { role: (*role).to_owned(), keys: keys.keyids.clone(), threshold: keys.threshold })
        };
        TOP_ROLES.iter().filter_map(of).collect()
    }

    /// What follows when `bytes` are the next root.
    ///
    /// # Errors
    /// When they are a root that does not follow: signed by too few of the keys of this one or of its own (§5.3.4), of
    /// another version, or against the rules.
    pub fn follow(&self, bytes: &Bytes) -> Result<Next, Fault> {
        if !is_root(bytes) {
            let start = String::from_utf8_lossy(bytes.get(..bytes.len().min(24)).unwrap_or_default()).into_owned();
            return Ok(Next::Odd(format!("{} begins with {}", self.next_name(), start.escape_debug())));
        }
        let mut set = self.set.clone();
        set.update_root(bytes).map_err(|error| Fault::of_tuf("root", &error))?;
        check_root(set.root())?;
        let replaced = ["timestamp", "snapshot"].iter().any(|role| replaces(self.set.root(), set.root(), role));
        let roots = Self { mark: Mark::of(set.root().version, bytes), set };
        Ok(Next::Root { roots: Box::new(roots), bytes: bytes.clone(), replaced })
    }

    fn next_name(&self) -> String {
        format!("metadata/{}", metadata_name("root", self.mark.version.saturating_add(1)))
    }

    /// Looks where the next root would be.
    ///
    /// # Errors
    /// As [`Roots::follow`], and when nobody answers.
    pub async fn next(&self, fetch: &dyn Fetch) -> Result<Next, Fault> {
        let name = self.next_name();
        let bytes = match fetch.get(&name, MAX_ROOT, None).await {
            Ok(Answer::Body { bytes, .. }) => bytes,
            Ok(Answer::Absent | Answer::Unchanged) => return Ok(Next::Absent),
            // Pages that say "not found" with 200 can be of any size.
            Err(error @ FetchError::TooLarge { .. }) => return Ok(Next::Odd(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let this = self.clone();
        off(move || this.follow(&bytes)).await?
    }

    /// Verifies a timestamp: its signatures, that it and the snapshot that it pins are not older than what was seen, and,
    /// where `judge` is a time, that root and timestamp had not ended by then.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn timestamp(&self, bytes: Bytes, marks: &Marks, judge: Option<Timestamp>) -> Result<Top, Fault> {
        let tuf = |error: sigstore_tuf::Error| Fault::of_tuf("timestamp", &error);
        not_ended("root", self.end(), judge)?;
        let mut set = self.set.clone();
        set.update_timestamp(&bytes, Default::default()).map_err(tuf)?;
        let nothing = || Fault::malformed("timestamp: pins no snapshot");
        let (timestamp, pin) =
            set.timestamp().and_then(|found| Some((found, found.snapshot_meta()?))).ok_or_else(nothing)?;
        let (mark, end, pin) = (Mark::of(timestamp.version, &bytes), end_of(timestamp), Pin::of("snapshot", pin)?);
        not_below("timestamp", marks.timestamp.as_ref(), mark.version, Some(mark.digest))?;
        not_below("snapshot", marks.snapshot.as_ref(), pin.version, pin.digest)?;
        not_ended("timestamp", end, judge)?;
        Ok(Top { root: self.mark, root_end: self.end(), set, bytes, mark, end, pin })
    }
}

/// Whether it says that it is a root. A page of HTML does not; whoever forges one that does is refused for its signatures.
fn is_root(bytes: &[u8]) -> bool {
    let value: Result<serde_json::Value, _> = serde_json::from_slice(bytes);
    value.is_ok_and(|value| value.pointer("/signed/_type").and_then(serde_json::Value::as_str) == Some("root"))
}

fn check_root(root: &Root) -> Result<(), Fault> {
    if !root.consistent_snapshot {
        return Err(Fault::malformed("root: consistent_snapshot must be true"));
    }
    for role in TOP_ROLES {
        let keys = root.role(role).ok_or_else(|| Fault::malformed(format!("root: says nobody may sign {role}")))?;
        keys::of_role(role, &keys.keyids, keys.threshold, &root.keys)?;
    }
    Ok(())
}

/// Whether a key that could sign `role` under `old` cannot under `new`.
fn replaces(old: &Root, new: &Root, role: &str) -> bool {
    let of = |root: &Root| {
        let keys = root.role(role)?;
        keys::of_role(role, &keys.keyids, keys.threshold, &root.keys).ok()
    };
    match (of(old), of(new)) {
        (Some(old), Some(new)) => !old.is_subset(&new),
        _ => false,
    }
}

/// What a role says about the file of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The version that the metadata must have.
    pub version: u64,
    /// Its length in bytes, where it is said.
    pub length: Option<u64>,
    /// Its SHA-256, where it is said; other digests are judged by the set.
    pub digest: Option<Digest>,
}

impl Pin {
    fn of(role: &str, file: &MetaFile) -> Result<Self, Fault> {
        let digest = file.hashes.as_ref().and_then(|hashes| hashes.get("sha256")).map(|hex| digest(hex));
        let digest = digest.map(|found| found.ok_or_else(|| Fault::malformed(format!("{role}: its pin is no digest"))));
        Ok(Self { version: file.version, length: file.length, digest: digest.transpose()? })
    }
}

fn digest(hex: &str) -> Option<Digest> {
    format!("sha256:{}", hex.to_ascii_lowercase()).parse().ok()
}

/// A timestamp whose signatures and version were verified under the newest root.
#[derive(Debug, Clone)]
pub struct Top {
    set: TrustedMetadataSet,
    /// The root that let it be verified.
    pub root: Mark,
    /// When that root expires, UTC.
    pub root_end: Timestamp,
    /// The bytes of the timestamp.
    pub bytes: Bytes,
    /// Its version and digest.
    pub mark: Mark,
    /// When it expires, UTC.
    pub end: Timestamp,
    /// What it says of the snapshot: version, length and digest.
    pub pin: Pin,
}

/// Bytes that need not be fetched, by their digest.
#[derive(Debug, Default)]
pub struct Known {
    /// What is kept of the version before.
    pub held: BTreeMap<Digest, Bytes>,
    /// What refreshes before this one fetched, and then could not finish.
    pub partial: BTreeMap<Digest, Bytes>,
    /// What this refresh fetched, or used of `partial`. Each is what its signed pin says.
    pub fetched: BTreeMap<Digest, Bytes>,
}

impl Known {
    fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        if let Some(bytes) = self.partial.remove(digest) {
            self.fetched.insert(*digest, bytes);
        }
        let bytes = self.fetched.get(digest).or_else(|| self.held.get(digest))?.clone();
        // What is held may have been damaged where it was kept.
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Runs `work` on all of it away from the runtime's threads: digests of thousands of files take their time.
    async fn off<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Self) -> T + Send + 'static) -> Result<T, Fault> {
        let mut known = std::mem::take(self);
        let done = off(move || {
            let done = work(&mut known);
            (known, done)
        });
        let (known, done) = done.await?;
        *self = known;
        Ok(done)
    }
}

/// A whole verified version.
#[derive(Debug)]
pub struct Verified {
    /// The files, with what is known of them.
    pub files: PolicyFiles,
    /// The timestamp, with its bytes to be kept.
    pub timestamp: (Mark, Bytes),
    /// The snapshot, with its bytes to be kept.
    pub snapshot: (Mark, Bytes),
    /// `targets` and every role below it.
    pub roles: BTreeMap<RoleName, (Mark, Bytes)>,
    /// The root by whose keys it was verified.
    pub root: Mark,
    /// When each role expires.
    pub standing: Standing,
}

impl Verified {
    /// What is to be remembered once this was seen, where `before` was remembered until now.
    pub fn marks(&self, before: &Marks) -> Marks {
        let mut roles = before.roles.clone();
        roles.extend(self.roles.iter().map(|(role, (mark, _))| (role.to_string(), *mark)));
        Marks { timestamp: Some(self.timestamp.0), snapshot: Some(self.snapshot.0), roles }
    }
}

/// A file that a role lists.
#[derive(Debug, Clone)]
struct Listed {
    publisher: RoleName,
    digest: Digest,
    length: u64,
}

/// The walk over the roles, moved to and from where it may compute.
struct Walk {
    /// Root, timestamp, snapshot, and those targets roles that delegate: what is judged further down rests on them.
    set: TrustedMetadataSet,
    judge: Option<Timestamp>,
    snapshot: (Mark, Bytes),
    roles: BTreeMap<RoleName, (Mark, Bytes)>,
    ends: BTreeMap<RoleName, Timestamp>,
    delegators: BTreeMap<RoleName, RoleName>,
    tree: Tree,
    /// Every name with who lists it; whose it is can be said only once the whole tree is there.
    listed: Vec<(RoleName, String, Listed)>,
    left: u64,
}

/// What the walk came to: everything but the files.
struct Outline {
    snapshot: (Mark, Bytes),
    roles: BTreeMap<RoleName, (Mark, Bytes)>,
    ends: BTreeMap<RoleName, Timestamp>,
    delegators: BTreeMap<RoleName, RoleName>,
    wanted: Arc<BTreeMap<String, Listed>>,
    stray: Vec<Problem>,
}

/// Reads the version that `top` names, as far as it is not known: every role, and the files (of `scopes` alone and what
/// they need, unless that is empty). `judge` as for [`Roots::timestamp`], for snapshot and targets.
///
/// # Errors
/// What is wrong with any part of it: nothing of it may be used.
pub async fn complete(
    top: Top,
    fetch: &Arc<dyn Fetch>,
    known: &mut Known,
    marks: &Marks,
    scopes: &BTreeSet<ScopeId>,
    judge: Option<Timestamp>,
) -> Result<Verified, Fault> {
    let walk = snapshot(&top, &**fetch, known, marks, judge).await?;
    let outline = walk.over(&**fetch, known, marks, |_| true).await?;
    let files = files(fetch, known, &outline.wanted, scopes).await?;
    off(move || outline.verified(top, files)).await
}

/// Reads the kill list that `top` names, and nothing else of that version: what is wrong with another role or file, or has
/// lapsed, holds up no kill. `None` where the role `incident` says nothing that `marks` have not seen.
///
/// # Errors
/// What is wrong with a role between `top` and the list, or with a file below `kill/`.
pub async fn kill_list(
    top: Top,
    fetch: &Arc<dyn Fetch>,
    known: &mut Known,
    marks: &Marks,
) -> Result<Option<Verified>, Fault> {
    let between = |role: &str| matches!(role, "targets" | INCIDENT);
    let roles = marks.roles.iter().filter(|(role, _)| between(role)).map(|(role, mark)| (role.clone(), *mark));
    let marks = Marks { roles: roles.collect(), ..marks.clone() };
    let walk = snapshot(&top, &**fetch, known, &marks, None).await?;
    let pin = walk.pin(INCIDENT)?;
    if marks.roles.get(INCIDENT).is_some_and(|seen| seen.version >= pin.version) {
        return Ok(None);
    }
    let others = |role: &str| OWNERS.iter().any(|(owner, _)| *owner == role && *owner != INCIDENT);
    let outline = walk.over(&**fetch, known, &marks, |role| !others(role)).await?;
    let below = outline.wanted.keys().filter(|path| path.starts_with("kill/")).cloned().collect();
    let mut wanted = Wanted { listed: Arc::clone(&outline.wanted), left: MAX_TOTAL, files: BTreeMap::new() };
    wanted.load(fetch, known, Some(below)).await?;
    off(move || Some(outline.verified(top, wanted.files))).await
}

/// Reads a metadata file, from what is known where its version and digest are.
async fn metadata(
    fetch: &dyn Fetch,
    known: &mut Known,
    role: &str,
    pin: Pin,
    floor: Option<&Mark>,
    limit: u64,
) -> Result<Bytes, Fault> {
    not_below(role, floor, pin.version, pin.digest)?;
    // A pin need not say a digest; a version that was seen has that of its bytes then.
    let digest = pin.digest.or_else(|| floor.filter(|mark| mark.version == pin.version).map(|mark| mark.digest));
    let limit = match pin.length {
        Some(length) if length > limit => {
            return Err(Fault::new(FaultKind::TooLarge, format!("{role}: {length} bytes, {limit} may be")));
        }
        Some(length) => length,
        None => limit,
    };
    let name = format!("metadata/{}", metadata_name(role, pin.version));
    let is_known = match digest {
        Some(digest) => known.off(move |known| known.get(&digest)).await?,
        None => None,
    };
    let bytes = match is_known {
        Some(bytes) => bytes,
        None => body(fetch.get(&name, limit, None).await, &name)?,
    };
    // Megabytes: not on a thread that serves.
    let (found, bytes) = off(move || (Digest::of(&bytes), bytes)).await?;
    not_below(role, floor, pin.version, Some(found))?;
    if let Some(digest) = digest {
        if found != digest {
            return Err(Fault::new(FaultKind::Altered, format!("{name}: is not what was published")));
        }
        known.fetched.insert(digest, bytes.clone());
    }
    Ok(bytes)
}

fn body(answer: Result<Answer, FetchError>, name: &str) -> Result<Bytes, Fault> {
    match answer? {
        Answer::Body { bytes, .. } => Ok(bytes),
        Answer::Absent | Answer::Unchanged => {
            let message = format!("{name}: is not there, though what is signed names it: publish again, whole");
            Err(Fault::new(FaultKind::Missing, message))
        }
    }
}

/// Verifies the snapshot that `top` pins: no role that was seen is withheld or older (§5.5.5, §5.5.6).
async fn snapshot(
    top: &Top,
    fetch: &dyn Fetch,
    known: &mut Known,
    marks: &Marks,
    judge: Option<Timestamp>,
) -> Result<Walk, Fault> {
    let bytes = metadata(fetch, known, "snapshot", top.pin, marks.snapshot.as_ref(), MAX_SNAPSHOT).await?;
    let mut set = top.set.clone();
    set.update_snapshot(&bytes, Default::default()).map_err(|error| Fault::of_tuf("snapshot", &error))?;
    let found = set.snapshot().ok_or_else(|| Fault::malformed("snapshot: is invalid"))?;
    if found.meta.len() > MAX_ROLES {
        let message = format!("snapshot: pins {} roles, {MAX_ROLES} may be", found.meta.len());
        return Err(Fault::new(FaultKind::TooLarge, message));
    }
    for (role, floor) in &marks.roles {
        let pin = found.meta.get(&format!("{role}.json")).ok_or_else(|| {
            let message = format!("snapshot: withholds {role}, which was seen: a role that retires stays, empty");
            Fault::new(FaultKind::Missing, message)
        })?;
        let pin = Pin::of(role, pin)?;
        not_below(role, Some(floor), pin.version, pin.digest)?;
    }
    let (mark, end) = (Mark::of(found.version, &bytes), end_of(found));
    not_ended("snapshot", end, judge)?;
    let ends = [("root", top.root_end), ("timestamp", top.end), ("snapshot", end)];
    Ok(Walk {
        set,
        judge,
        snapshot: (mark, bytes),
        roles: BTreeMap::new(),
        ends: ends.into_iter().map(|(role, end)| (RoleName::from(role), end)).collect(),
        delegators: BTreeMap::new(),
        tree: Tree::under(keys::of_top(top.set.root())?),
        listed: Vec::new(),
        left: MAX_METADATA,
    })
}

type Children = Vec<(RoleName, RoleName)>;

impl Walk {
    /// Verifies `targets` and whatever it leads to of the roles that `wanted` lets pass.
    async fn over(
        self,
        fetch: &dyn Fetch,
        known: &mut Known,
        marks: &Marks,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Outline, Fault> {
        let mut walk = self;
        let mut queue = VecDeque::from([(RoleName::from("targets"), RoleName::from(""))]);
        while let Some((role, parent)) = queue.pop_front() {
            let floor = marks.roles.get(&*role).copied();
            let pin = walk.pin(&role)?;
            let bytes = metadata(fetch, known, &role, pin, floor.as_ref(), MAX_TARGETS.min(walk.left)).await?;
            let judged = off(move || walk.role(role, &parent, bytes, floor)).await??;
            walk = judged.0;
            queue.extend(judged.1.into_iter().filter(|(role, _)| wanted(role)));
        }
        off(move || walk.outline()).await?
    }

    fn pin(&self, role: &str) -> Result<Pin, Fault> {
        let found = self.set.snapshot().and_then(|snapshot| snapshot.meta.get(&format!("{role}.json")));
        let missing = || {
            let message = format!("snapshot: withholds {role}, which must be there");
            Fault::new(FaultKind::Missing, message)
        };
        Pin::of(role, found.ok_or_else(missing)?)
    }

    /// Verifies one targets role by what its delegator says, and takes in what it lists and delegates.
    fn role(
        mut self,
        role: RoleName,
        parent: &str,
        bytes: Bytes,
        floor: Option<Mark>,
    ) -> Result<(Self, Children), Fault> {
        let epoch = Default::default();
        let mut set = self.set.clone();
        let found = match &*role {
            "targets" => set.update_targets(&bytes, epoch),
            _ => set.update_delegated_targets(&bytes, &role, parent, epoch),
        };
        let found = found.map_err(|error| Fault::of_tuf(&role, &error))?;
        let (mark, end) = (Mark::of(found.version, &bytes), end_of(found));
        not_below(&role, floor.as_ref(), mark.version, Some(mark.digest))?;
        if &*role == "targets" {
            not_ended(&role, end, self.judge)?;
        }
        self.left = self.left.saturating_sub(bytes.len() as u64);
        if self.listed.len() + found.targets.len() > MAX_FILES {
            return Err(Fault::new(FaultKind::TooLarge, format!("{role}: more than {MAX_FILES} files are listed")));
        }
        for (path, target) in &found.targets {
            let hash = target.hashes.get("sha256").and_then(|hex| digest(hex));
            let hash =
                hash.ok_or_else(|| Fault::malformed(format!("{role}: {} has no sha256", path.escape_debug())))?;
            let listed = Listed { publisher: Arc::clone(&role), digest: hash, length: target.length };
            self.listed.push((Arc::clone(&role), path.clone(), listed));
        }
        let children = self.tree.delegate(&role, found)?;
        let children: Children = children.into_iter().map(|child| (child, Arc::clone(&role))).collect();
        // A role that lists thousands of files takes megabytes, and nobody asks for it again unless it delegates.
        if !children.is_empty() {
            self.set = set;
        }
        self.delegators.extend(children.iter().cloned());
        self.roles.insert(Arc::clone(&role), (mark, bytes));
        self.ends.insert(role, end);
        Ok((self, children))
    }

    /// The files, each from the role that owns its name alone; other names are told.
    fn outline(self) -> Result<Outline, Fault> {
        let (mut wanted, mut stray) = (BTreeMap::new(), Vec::new());
        for (role, path, listed) in self.listed {
            if !delegation::is_file_name(&path) || !(path.ends_with(".toml") || path.ends_with(".cedar")) {
                let message = format!("is not read, though {role} lists it: it is no name of a policy file");
                stray.push(Problem::new(path, kind::FILE_NAME, message));
            } else if self.tree.owner_of(&path) != Some(&*role) {
                let owner = self.tree.owner_of(&path).unwrap_or("nobody");
                let message = format!("is not read from {role}, which lists it: it belongs to {owner}");
                stray.push(Problem::new(path, kind::NOT_OWNER, message));
            } else if listed.length > MAX_FILE {
                let message = format!("{path}: {} bytes, {MAX_FILE} may be", listed.length);
                return Err(Fault::new(FaultKind::TooLarge, message));
            } else {
                wanted.insert(path, listed);
            }
        }
        let Walk { snapshot, roles, ends, delegators, .. } = self;
        Ok(Outline { snapshot, roles, ends, delegators, wanted: Arc::new(wanted), stray })
    }
}

impl Outline {
    fn verified(self, top: Top, files: BTreeMap<String, Bytes>) -> Verified {
        let (mark, bytes) = self.snapshot;
        let standing = Standing { ends: self.ends };
        let wanted = Arc::unwrap_or_clone(self.wanted).into_iter();
        let publishers = wanted.filter(|(path, _)| files.contains_key(path)).map(|(path, l)| (path, l.publisher));
        let signed = Signed {
            snapshot: mark.version,
            incident: self.roles.get(INCIDENT).map_or(0, |(mark, _)| mark.version),
            publishers: publishers.collect(),
            delegators: self.delegators,
            standing: standing.clone(),
            stray: self.stray,
        };
        let version = version_of(mark);
        Verified {
            files: PolicyFiles { files, version, signed: Some(signed) },
            timestamp: (top.mark, top.bytes),
            snapshot: (mark, bytes),
            roles: self.roles,
            root: top.root,
            standing,
        }
    }
}

/// The policy version of a snapshot: its number, and the beginning of its digest.
pub fn version_of(snapshot: Mark) -> PolicyVersion {
    let hex = snapshot.digest.hex();
    PolicyVersion(format!("{}-{}", snapshot.version, hex.get(..16).unwrap_or(&hex)).into())
}

/// The files that are wanted: all, or those of `scopes` with the grants that their decisions name.
async fn files(
    fetch: &Arc<dyn Fetch>,
    known: &mut Known,
    listed: &Arc<BTreeMap<String, Listed>>,
    scopes: &BTreeSet<ScopeId>,
) -> Result<BTreeMap<String, Bytes>, Fault> {
    let everywhere = |path: &str| ["owners/", "boundaries/", "kill/"].iter().any(|folder| path.starts_with(folder));
    let mut wanted = Wanted { listed: Arc::clone(listed), left: MAX_TOTAL, files: BTreeMap::new() };
    if scopes.is_empty() {
        wanted.load(fetch, known, None).await?;
        return Ok(wanted.files);
    }
    let mut names: BTreeSet<String> = listed.keys().filter(|path| everywhere(path)).cloned().collect();
    for scope in scopes {
        names.extend([
            format!("decisions/{scope}.toml"),
            format!("decisions/{scope}.cedar"),
            format!("scopes/{scope}.toml"),
        ]);
    }
    wanted.load(fetch, known, Some(names)).await?;
    let decisions = scopes.iter().filter_map(|scope| wanted.files.get(&format!("decisions/{scope}.toml")));
    // A decision that cannot be read suspends its scope, with or without grants.
    let grants = decisions.filter_map(|bytes| Decision::parse(bytes).ok()).flat_map(|decision| decision.grants);
    let names: BTreeSet<String> = grants.map(|(grant, _)| format!("grants/{grant}.toml")).collect();
    wanted.load(fetch, known, Some(names)).await?;
    Ok(wanted.files)
}

/// The files that are taken of what is listed.
struct Wanted {
    listed: Arc<BTreeMap<String, Listed>>,
    /// How many bytes more they may have together.
    left: u64,
    files: BTreeMap<String, Bytes>,
}

impl Wanted {
    /// Adds the files of these names, or all; what is not known is fetched, several at a time.
    async fn load(
        &mut self,
        fetch: &Arc<dyn Fetch>,
        known: &mut Known,
        names: Option<BTreeSet<String>>,
    ) -> Result<(), Fault> {
        let (listed, left) = (Arc::clone(&self.listed), self.left);
        let take = move |known: &mut Known| take(known, &listed, names.as_ref(), left);
        let Taken { files, mut missing, left } = known.off(take).await??;
        self.left = left;
        if self.files.is_empty() {
            self.files = files;
        } else {
            self.files.extend(files);
        }
        let mut running = JoinSet::new();
        loop {
            while running.len() < AT_ONCE
                && let Some((path, listed)) = missing.pop_front()
            {
                let fetch = Arc::clone(fetch);
                running.spawn(async move {
                    let bytes = target(&*fetch, &path, &listed).await?;
                    Ok::<_, Fault>((path, listed.digest, bytes))
                });
            }
            let Some(done) = running.join_next().await else { return Ok(()) };
            let cut = |_| Fault::new(FaultKind::Unreachable, "fetching policy files was cut off");
            let (path, digest, bytes) = done.map_err(cut)??;
            known.fetched.insert(digest, bytes.clone());
            self.files.insert(path, bytes);
        }
    }
}

/// The files that are known, and those that are to be fetched.
struct Taken {
    files: BTreeMap<String, Bytes>,
    missing: VecDeque<(String, Listed)>,
    left: u64,
}

/// Of the names, or of all that are listed, what is known. Together they may have `left` bytes.
fn take(
    known: &mut Known,
    listed: &BTreeMap<String, Listed>,
    names: Option<&BTreeSet<String>>,
    left: u64,
) -> Result<Taken, Fault> {
    let mut taken = Taken { files: BTreeMap::new(), missing: VecDeque::new(), left };
    let mut take = |path: &String, listed: &Listed| {
        taken.left = taken.left.checked_sub(listed.length).ok_or_else(|| {
            Fault::new(FaultKind::TooLarge, format!("the policy files are together larger than {MAX_TOTAL} bytes"))
        })?;
        match known.get(&listed.digest).filter(|bytes| bytes.len() as u64 == listed.length) {
            Some(bytes) => drop(taken.files.insert(path.clone(), bytes)),
            None => taken.missing.push_back((path.clone(), listed.clone())),
        }
        Ok::<_, Fault>(())
    };
    match names {
        None => listed.iter().try_for_each(|(path, listed)| take(path, listed))?,
        Some(names) => {
            let mut named = names.iter().filter_map(|name| listed.get_key_value(name));
            named.try_for_each(|(path, listed)| take(path, listed))?;
        }
    }
    Ok(taken)
}

async fn target(fetch: &dyn Fetch, path: &str, listed: &Listed) -> Result<Bytes, Fault> {
    let name = format!("targets/{}", target_name(path, &listed.digest));
    let bytes = body(fetch.get(&name, listed.length, None).await, &name)?;
    if bytes.len() as u64 != listed.length || Digest::of(&bytes) != listed.digest {
        let message = format!("{name}: is not what {} published", listed.publisher);
        return Err(Fault::new(FaultKind::Altered, message));
    }
    Ok(bytes)
}
