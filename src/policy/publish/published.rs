//! What a client finds at `OUT`, verified by the very code with which sidecars read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use super::super::repository::fetch::{Answer, DirectoryFetch, Fetch, FetchError, Tag};
use super::super::repository::high_water::{Mark, Marks};
use super::super::repository::metadata::{TufKey, metadata_name};
use super::super::repository::trusted::{Known, MAX_ROOT, MAX_SNAPSHOT, MAX_TIMESTAMP, Next, Roots, TIMESTAMP};
use super::super::repository::trusted::{Top, Verified, complete};
use super::super::repository::{Digest, PolicyFiles};
use super::super::standing::Standing;
use super::content::signed_part;
use super::{PublishError, cannot, read_file};
use crate::clock::Timestamp;

/// The longest chain of roots that is walked.
const MAX_ROOTS: u64 = 1024;

fn refused(message: impl std::fmt::Display) -> PublishError {
    PublishError::Refused(message.to_string())
}

fn root_name(version: u64) -> String {
    format!("metadata/{}", metadata_name("root", version))
}

/// One publisher at a time.
pub(super) fn lock(out: &Path) -> Result<fs::File, PublishError> {
    fs::create_dir_all(out).map_err(|error| cannot(out, "made", &error))?;
    let place = out.join(".publishing");
    let file = fs::File::create(&place).map_err(|error| cannot(&place, "written", &error))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| PublishError::Files(format!("{}: somebody else publishes there now; try again", out.display())))?;
    Ok(file)
}

/// What is to be published, over what is.
#[derive(Debug, Clone)]
pub(super) struct Overlay {
    below: DirectoryFetch,
    over: BTreeMap<String, Bytes>,
    hidden: Option<String>,
}

impl Overlay {
    /// `over` in front of what lies at `out`.
    pub(super) fn new(out: &Path, over: BTreeMap<String, Bytes>) -> Self {
        Self { below: DirectoryFetch::new(out), over, hidden: None }
    }
}

#[async_trait]
impl Fetch for Overlay {
    async fn get(&self, name: &str, limit: u64, seen: Option<&Tag>) -> Result<Answer, FetchError> {
        if self.hidden.as_deref() == Some(name) {
            return Ok(Answer::Absent);
        }
        match self.over.get(name) {
            Some(bytes) if bytes.len() as u64 > limit => Err(FetchError::TooLarge { name: name.to_owned(), limit }),
            Some(bytes) => Ok(Answer::Body { bytes: bytes.clone(), tag: None }),
            None => self.below.get(name, limit, seen).await,
        }
    }
}

/// The part that a heartbeat needs: roots, the timestamp, and the snapshot that it names.
#[derive(Debug)]
pub struct Head {
    newest: Roots,
    top: Top,
    /// Every root, by version.
    pub roots: BTreeMap<u64, Bytes>,
    /// The bytes of the snapshot that the timestamp names.
    pub snapshot: Bytes,
}

/// A verified published repository.
#[derive(Debug)]
pub struct Published {
    /// Roots, timestamp and snapshot.
    pub head: Head,
    verified: Verified,
}

impl Head {
    /// Reads and verifies the head of what is published at `out`; `None` where nothing is.
    ///
    /// # Errors
    /// Something is there and a client would refuse it.
    pub async fn read(out: &Path) -> Result<Option<Self>, PublishError> {
        let Some(views) = Views::at(out)? else { return Ok(None) };
        let mut first = None;
        for overlay in views.overlays {
            match Self::load(&overlay, &views.anchor, None, None).await {
                Ok(head) => return Ok(Some(head)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(not_readable(out, first))
    }

    /// Loads what `fetch` gives: from the root `anchor` alone, as a sidecar that starts empty; or from the state
    /// `previous`, as one that runs. Where `judge` is a time, what has ended by then is refused.
    ///
    /// # Errors
    /// What such a sidecar would refuse.
    pub(super) async fn load(
        fetch: &Overlay,
        anchor: &Bytes,
        previous: Option<&Published>,
        judge: Option<Timestamp>,
    ) -> Result<Self, PublishError> {
        let (mut newest, mut roots) = match previous {
            Some(previous) => (previous.head.newest.clone(), previous.head.roots.clone()),
            None => {
                let first = Roots::anchor(anchor).map_err(refused)?;
                let version = first.mark().version;
                (first, BTreeMap::from([(version, anchor.clone())]))
            }
        };
        while let Next::Root { roots: next, bytes, .. } = newest.next(fetch).await.map_err(refused)? {
            roots.insert(next.mark().version, bytes);
            newest = *next;
            if newest.mark().version > MAX_ROOTS {
                return Err(refused(format!("more than {MAX_ROOTS} roots")));
            }
        }
        let marks = previous.map(Published::marks).unwrap_or_default();
        let timestamp = body(fetch, TIMESTAMP, MAX_TIMESTAMP).await?;
        let top = newest.timestamp(timestamp, &marks, judge).map_err(refused)?;
        let name = format!("metadata/{}", metadata_name("snapshot", top.pin.version));
        let snapshot = body(fetch, &name, MAX_SNAPSHOT).await?;
        if top.pin.digest.is_some_and(|digest| digest != Digest::of(&snapshot)) {
            return Err(refused(format!("{name}: is not what the timestamp names")));
        }
        Ok(Self { newest, top, roots, snapshot })
    }

    /// The version of the root, the timestamp or the snapshot.
    pub fn version(&self, role: &str) -> u64 {
        match role {
            "root" => self.newest.mark().version,
            "timestamp" => self.top.mark.version,
            "snapshot" => self.top.pin.version,
            _ => 0,
        }
    }

    /// The exact root, timestamp and snapshot.
    pub(super) fn marks(&self) -> [Mark; 3] {
        [self.newest.mark(), self.top.mark, Mark::of(self.top.pin.version, &self.snapshot)]
    }

    /// The first root: what deployments ship.
    pub fn anchor(&self) -> Bytes {
        self.roots.first_key_value().map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    }

    /// When the newest root expires, UTC.
    pub fn root_end(&self) -> Timestamp {
        self.newest.end()
    }

    /// Who may sign a top-level role, and how many must, as the newest root says.
    ///
    /// # Errors
    /// The root names keys of a kind that this version does not know.
    pub fn signers(&self, role: &str) -> Result<Signers, PublishError> {
        let newest = self.roots.last_key_value().map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        Signers::of_root(&newest, role)
    }
}

async fn body(fetch: &Overlay, name: &str, limit: u64) -> Result<Bytes, PublishError> {
    match fetch.get(name, limit, None).await.map_err(refused)? {
        Answer::Body { bytes, .. } => Ok(bytes),
        Answer::Absent | Answer::Unchanged => Err(refused(format!("{name}: is not there"))),
    }
}

fn not_readable(out: &Path, error: Option<PublishError>) -> PublishError {
    let why = error.map(|error| error.to_string()).unwrap_or_default();
    refused(format!("{} holds a repository that clients refuse: {why}", out.display()))
}

/// How `out` may be read: as it is; and without its newest root, since a publication that was cut off between its new
/// root and its timestamp leaves one too many: then the state before it is what is published.
struct Views {
    anchor: Bytes,
    overlays: Vec<Overlay>,
}

impl Views {
    /// `None` where no timestamp is.
    fn at(out: &Path) -> Result<Option<Self>, PublishError> {
        if read_file(&out.join(TIMESTAMP), MAX_TIMESTAMP)?.is_none() {
            return Ok(None);
        }
        let anchor = read_file(&out.join(root_name(1)), MAX_ROOT)?;
        let anchor = anchor.ok_or_else(|| refused(format!("{}/metadata has no 1.root.json", out.display())))?;
        let mut newest = 1;
        while newest < MAX_ROOTS && out.join(root_name(newest + 1)).exists() {
            newest += 1;
        }
        let whole = Overlay::new(out, BTreeMap::new());
        let without = (newest > 1).then(|| Overlay { hidden: Some(root_name(newest)), ..whole.clone() });
        Ok(Some(Self { anchor, overlays: [whole].into_iter().chain(without).collect() }))
    }
}

/// Who may sign a top-level role, and how many of them must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signers {
    /// The keys, by their ids.
    pub keys: Vec<(String, TufKey)>,
    /// How many must sign; at least 1.
    pub threshold: u64,
}

impl Signers {
    /// What a root says of `role`.
    ///
    /// # Errors
    /// It is no root, or names keys of a kind that this version does not know.
    pub fn of_root(root: &[u8], role: &str) -> Result<Self, PublishError> {
        let root = signed_part(root)?;
        Self::of(root.get("roles").and_then(|roles| roles.get(role)), root.get("keys"), role)
    }

    /// What the charter says of one of the owners.
    fn of_charter(charter: &[u8], role: &str) -> Result<Self, PublishError> {
        let charter = signed_part(charter)?;
        let roles = charter.pointer("/delegations/roles").and_then(Value::as_array);
        let named = |found: &&Value| found.get("name").and_then(Value::as_str) == Some(role);
        let settings = roles.and_then(|roles| roles.iter().find(named));
        Self::of(settings, charter.pointer("/delegations/keys"), role)
    }

    fn of(settings: Option<&Value>, known: Option<&Value>, role: &str) -> Result<Self, PublishError> {
        let broken =
            |error: serde_json::Error| PublishError::Files(format!("the keys of {role} cannot be read: {error}"));
        let missing = || PublishError::Files(format!("nobody is named who signs {role}"));
        let settings = settings.ok_or_else(missing)?;
        let mut keys = Vec::new();
        for id in settings.get("keyids").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            let key = known.and_then(|keys| keys.get(id)).cloned().unwrap_or_default();
            keys.push((id.to_owned(), serde_json::from_value(key).map_err(broken)?));
        }
        let threshold = settings.get("threshold").and_then(Value::as_u64).filter(|threshold| *threshold > 0);
        Ok(Self { keys, threshold: threshold.ok_or_else(missing)? })
    }
}

impl Published {
    /// Reads and verifies what is published at `out`; `None` where nothing is. What has ended is read, too.
    ///
    /// # Errors
    /// Something is there and a client would refuse it.
    pub async fn read(out: &Path) -> Result<Option<Self>, PublishError> {
        let Some(views) = Views::at(out)? else { return Ok(None) };
        let mut first = None;
        for overlay in views.overlays {
            match Self::load(overlay, &views.anchor, None, None).await {
                Ok(published) => return Ok(Some(published)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(not_readable(out, first))
    }

    /// As [`Head::load`], with every role and file.
    ///
    /// # Errors
    /// What such a sidecar would refuse.
    pub(super) async fn load(
        fetch: Overlay,
        anchor: &Bytes,
        previous: Option<&Self>,
        judge: Option<Timestamp>,
    ) -> Result<Self, PublishError> {
        let head = Head::load(&fetch, anchor, previous, judge).await?;
        let marks = previous.map(Self::marks).unwrap_or_default();
        Self::whole(fetch, head, &marks, judge).await
    }

    async fn whole(fetch: Overlay, head: Head, marks: &Marks, judge: Option<Timestamp>) -> Result<Self, PublishError> {
        let fetch: Arc<dyn Fetch> = Arc::new(fetch);
        let mut known = Known::default();
        let verified = complete(head.top.clone(), &fetch, &mut known, marks, &BTreeSet::new(), judge).await;
        Ok(Self { head, verified: verified.map_err(refused)? })
    }

    fn marks(&self) -> Marks {
        self.verified.marks(&Marks::default())
    }

    /// The version of a role, 0 where it has none.
    pub fn version(&self, role: &str) -> u64 {
        self.verified.roles.get(role).map_or_else(|| self.head.version(role), |(mark, _)| mark.version)
    }

    /// The metadata of a role that lists files.
    pub fn role(&self, role: &str) -> Option<(u64, &Bytes)> {
        self.verified.roles.get(role).map(|(mark, bytes)| (mark.version, bytes))
    }

    /// Every role that lists files, with its version and metadata.
    pub fn roles(&self) -> BTreeMap<String, (u64, Bytes)> {
        let roles = self.verified.roles.iter();
        roles.map(|(name, (mark, bytes))| (name.to_string(), (mark.version, bytes.clone()))).collect()
    }

    /// Who may sign one of the five owners, as the charter says.
    ///
    /// # Errors
    /// It names keys of a kind that this version does not know.
    pub(super) fn signers(&self, owner: &str) -> Result<Signers, PublishError> {
        let charter = self.role("targets").map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        Signers::of_charter(&charter, owner)
    }

    /// The files as a sidecar would load them.
    pub fn files(&self) -> &PolicyFiles {
        &self.verified.files
    }

    /// When each role expires.
    pub fn standing(&self) -> &Standing {
        &self.verified.standing
    }
}
