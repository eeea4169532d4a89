//! What a client finds at `OUT`: the whole repository, verified in a sidecar's order and by its rules, except that expiry
//! is left to the caller.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sigstore_tuf::{DelegatedRole, Key, Targets, TrustedMetadataSet};

use super::super::PolicyVersion;
use super::super::document::Digest;
use super::super::repository::{MAX_FILE, MAX_FILES, MAX_TOTAL, PolicyFiles, Signed, metadata};
use super::super::standing::{OWNERS, RoleName, Standing};
use super::workspace::{MAX_DEPTH, MAX_ROLES, matches};
use super::{MAX_METADATA, PublishError, read_file};
use crate::clock::Timestamp;

/// The longest chain of roots that is walked.
const MAX_ROOTS: u64 = 1024;

/// The part that a heartbeat needs: root, timestamp and snapshot.
#[derive(Debug, Clone)]
pub struct Head {
    trusted: TrustedMetadataSet,
    /// Every root, by version.
    pub roots: BTreeMap<u64, Bytes>,
    /// `timestamp.json`.
    pub timestamp: Bytes,
    /// The snapshot that it names.
    pub snapshot: Bytes,
}

/// A verified published repository.
#[derive(Debug, Clone)]
pub struct Published {
    /// Root, timestamp and snapshot.
    pub head: Head,
    /// The metadata of every role that lists files, with its version.
    pub roles: BTreeMap<String, (u64, Bytes)>,
    /// The files as a sidecar would load them.
    pub files: PolicyFiles,
    /// Until when each role speaks.
    pub standing: Standing,
}

/// Reads a file of a repository by its name: `metadata/…`, `targets/…`.
pub type Reader<'a> = dyn Fn(&str, u64) -> Result<Option<Bytes>, PublishError> + 'a;

fn refused(message: impl std::fmt::Display) -> PublishError {
    PublishError::Refused(message.to_string())
}

/// An error of the verifier with its causes.
fn told(what: &str, error: &sigstore_tuf::Error) -> PublishError {
    let mut text = format!("{what}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    refused(text)
}

fn end(at: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(at).unwrap_or(0))
}

fn root_name(version: u64) -> String {
    format!("metadata/{}", metadata::metadata_name("root", version))
}

impl Head {
    /// Reads and verifies the head of what is published at `out`; `None` where nothing is.
    ///
    /// # Errors
    /// Something is there and a client would refuse it.
    pub fn read(out: &Path) -> Result<Option<Self>, PublishError> {
        read(out, |reader, anchor| Self::load(reader, anchor, None))
    }

    /// Loads what `reader` gives: from the root `anchor` alone, as a client that starts empty; or from the state
    /// `previous`, as one that runs.
    ///
    /// # Errors
    /// What such a client would refuse.
    pub fn load(reader: &Reader<'_>, anchor: &Bytes, previous: Option<&Self>) -> Result<Self, PublishError> {
        let need = |name: &str| {
            reader(&format!("metadata/{name}"), MAX_METADATA)?.ok_or_else(|| refused(format!("{name} is not there")))
        };
        let (mut trusted, mut roots) = match previous {
            Some(previous) => (previous.trusted.clone(), previous.roots.clone()),
            None => {
                let set = TrustedMetadataSet::from_root(anchor).map_err(|error| told("root.json", &error))?;
                let version = set.root().version;
                (set, BTreeMap::from([(version, anchor.clone())]))
            }
        };
        while let next = trusted.root().version.saturating_add(1)
            && let Some(bytes) = reader(&root_name(next), MAX_METADATA)?
        {
            trusted.update_root(&bytes).map_err(|error| told(&format!("{next}.root.json"), &error))?;
            roots.insert(next, bytes);
            if next > MAX_ROOTS {
                return Err(refused(format!("more than {MAX_ROOTS} roots")));
            }
        }
        let timestamp = need("timestamp.json")?;
        trusted.update_timestamp(&timestamp, Default::default()).map_err(|error| told("timestamp.json", &error))?;
        let version = trusted.timestamp().and_then(|t| t.snapshot_meta()).map_or(0, |pin| pin.version);
        let snapshot = need(&metadata::metadata_name("snapshot", version))?;
        trusted.update_snapshot(&snapshot, Default::default()).map_err(|error| told("snapshot.json", &error))?;
        Ok(Self { trusted, roots, timestamp, snapshot })
    }

    /// The version of a top-level role but `targets`.
    pub fn version(&self, role: &str) -> u64 {
        match role {
            "root" => self.trusted.root().version,
            "timestamp" => self.trusted.timestamp().map_or(0, |role| role.version),
            "snapshot" => self.trusted.snapshot().map_or(0, |role| role.version),
            _ => 0,
        }
    }

    /// The first root: what deployments ship.
    pub fn anchor(&self) -> Bytes {
        self.roots.first_key_value().map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    }

    /// The keys and the threshold of a top-level role, as the root names them.
    pub fn top_keys(&self, role: &str) -> (Vec<(String, metadata::PublicKey)>, u64) {
        let root = self.trusted.root();
        let Some(role) = root.role(role) else { return (Vec::new(), u64::MAX) };
        let key = |id: &String| {
            let json = serde_json::to_value(root.keys.get(id)?).ok()?;
            Some((id.clone(), serde_json::from_value(json).ok()?))
        };
        (role.keyids.iter().filter_map(key).collect(), u64::try_from(role.threshold).unwrap_or(u64::MAX))
    }

    /// Until when root, timestamp and snapshot speak.
    pub fn standing(&self) -> Standing {
        let mut standing = Standing::default();
        let mut put = |name: &str, at: i64| standing.ends.extend([(Arc::from(name), end(at))]);
        put("root", self.trusted.root().expires.as_millisecond());
        self.trusted.snapshot().into_iter().for_each(|role| put("snapshot", role.expires.as_millisecond()));
        self.trusted.timestamp().into_iter().for_each(|role| put("timestamp", role.expires.as_millisecond()));
        standing
    }
}

/// Reads `out` by `load`. A publication that was cut off between its new root and its timestamp leaves one root too many:
/// then the state before it is what is published.
fn read<T>(
    out: &Path,
    load: impl Fn(&Reader<'_>, &Bytes) -> Result<T, PublishError>,
) -> Result<Option<T>, PublishError> {
    let reader = |name: &str, limit: u64| read_file(&out.join(name), limit);
    if reader("metadata/timestamp.json", MAX_METADATA)?.is_none() {
        return Ok(None);
    }
    let anchor = reader(&root_name(1), MAX_METADATA)?;
    let anchor = anchor.ok_or_else(|| refused(format!("{}/metadata has no 1.root.json", out.display())))?;
    let first = load(&reader, &anchor);
    let mut newest = 1;
    while newest < MAX_ROOTS && out.join(root_name(newest + 1)).exists() {
        newest += 1;
    }
    let hidden = (newest > 1).then(|| root_name(newest));
    let loaded = match (first, hidden) {
        (Err(error), Some(hidden)) => {
            let without = |name: &str, limit: u64| if name == hidden { Ok(None) } else { reader(name, limit) };
            load(&without, &anchor).map_err(|_| error)
        }
        (loaded, _) => loaded,
    };
    let named = |error| refused(format!("{} holds a repository that clients refuse: {error}", out.display()));
    loaded.map(Some).map_err(named)
}

impl Published {
    /// Reads and verifies what is published at `out`; `None` where nothing is.
    ///
    /// # Errors
    /// Something is there and a client would refuse it.
    pub fn read(out: &Path) -> Result<Option<Self>, PublishError> {
        read(out, |reader, anchor| Self::load(reader, anchor, None))
    }

    /// As [`Head::load`], with every role and file.
    ///
    /// # Errors
    /// What such a client would refuse.
    pub fn load(reader: &Reader<'_>, anchor: &Bytes, previous: Option<&Self>) -> Result<Self, PublishError> {
        let head = Head::load(reader, anchor, previous.map(|previous| &previous.head))?;
        let mut walk = Walk {
            reader,
            trusted: head.trusted.clone(),
            roles: BTreeMap::new(),
            publishers: BTreeMap::new(),
            files: BTreeMap::new(),
            total: 0,
        };
        walk.top()?;
        let Walk { trusted, roles, publishers, files, .. } = walk;
        let mut standing = head.standing();
        for name in roles.keys() {
            let ends = trusted.targets_role(name).map(|role| end(role.expires.as_millisecond()));
            standing.ends.extend(ends.map(|at| (Arc::from(name.as_str()), at)));
        }
        let number = head.version("snapshot");
        let hex = Digest::of(&head.snapshot).hex();
        let version = PolicyVersion(format!("{number}-{}", hex.get(..16).unwrap_or(&hex)).into());
        let incident = roles.get("incident").map_or(0, |(version, _)| *version);
        let signed = Signed { snapshot: number, incident, publishers, standing: standing.clone(), stray: Vec::new() };
        let files = PolicyFiles { files, version, signed: Some(signed) };
        Ok(Self { head, roles, files, standing })
    }

    /// The version of a role, 0 where it has none.
    pub fn version(&self, role: &str) -> u64 {
        self.roles.get(role).map_or_else(|| self.head.version(role), |(version, _)| *version)
    }
}

/// The walk down the delegations.
struct Walk<'a> {
    reader: &'a Reader<'a>,
    trusted: TrustedMetadataSet,
    roles: BTreeMap<String, (u64, Bytes)>,
    publishers: BTreeMap<String, RoleName>,
    files: BTreeMap<String, Bytes>,
    total: u64,
}

impl Walk<'_> {
    fn metadata(&self, role: &str) -> Result<(u64, Bytes), PublishError> {
        let pin = self.trusted.snapshot().and_then(|snapshot| snapshot.meta.get(&format!("{role}.json")));
        let version = pin.map(|pin| pin.version).ok_or_else(|| refused(format!("the snapshot lacks {role}")))?;
        let name = metadata::metadata_name(role, version);
        let bytes = (self.reader)(&format!("metadata/{name}"), MAX_METADATA)?;
        Ok((version, bytes.ok_or_else(|| refused(format!("{name} is not there")))?))
    }

    fn top(&mut self) -> Result<(), PublishError> {
        let (version, bytes) = self.metadata("targets")?;
        let loaded = self.trusted.update_targets(&bytes, Default::default());
        let targets = loaded.map_err(|error| told("targets.json", &error))?.clone();
        let names: Vec<_> = delegated(&targets).iter().map(|role| role.name.clone()).collect();
        if let Some((owner, _)) = OWNERS.iter().find(|(owner, _)| !names.iter().any(|name| name == owner)) {
            return Err(refused(format!("targets does not delegate {owner}")));
        }
        if names.len() != OWNERS.len() {
            return Err(refused("targets delegates more than the five owners"));
        }
        self.roles.insert("targets".to_owned(), (version, bytes));
        self.role("targets", &targets, &[], 0)
    }

    /// What `name` lists itself, then whom it delegates to. `outer` are the delegations on the way to it.
    fn role(
        &mut self,
        name: &str,
        targets: &Targets,
        outer: &[&DelegatedRole],
        depth: usize,
    ) -> Result<(), PublishError> {
        if self.roles.len() > MAX_ROLES || depth > MAX_DEPTH + 1 {
            return Err(refused("too many roles, or departments nested too deep"));
        }
        check_keys(name, targets)?;
        let below = delegated(targets);
        for path in targets.targets.keys() {
            let charter = outer.is_empty() && path.starts_with("owners/") && path.matches('/').count() == 1;
            let owned = charter || (!outer.is_empty() && outer.iter().all(|role| covers(role, path)));
            if !owned || below.iter().any(|role| covers(role, path)) {
                return Err(refused(format!("{name} lists {path}, which is not its own: a sidecar would not load it")));
            }
            self.target(name, path, targets)?;
        }
        for child in below {
            if self.roles.contains_key(&child.name) {
                return Err(refused(format!("{} is delegated twice", child.name)));
            }
            let (version, bytes) = self.metadata(&child.name)?;
            let loaded = self.trusted.update_delegated_targets(&bytes, &child.name, name, Default::default());
            let loaded = loaded.map_err(|error| told(&format!("{}.json", child.name), &error))?.clone();
            self.roles.insert(child.name.clone(), (version, bytes));
            let outer: Vec<_> = outer.iter().copied().chain([child]).collect();
            self.role(&child.name, &loaded, &outer, depth + 1)?;
        }
        Ok(())
    }

    fn target(&mut self, role: &str, path: &str, targets: &Targets) -> Result<(), PublishError> {
        let wrong = |why: &str| refused(format!("{path}, listed by {role}: {why}"));
        let entry = targets.target(path).ok_or_else(|| wrong("is not listed"))?;
        let digest: Digest = entry
            .hashes
            .get("sha256")
            .and_then(|hex| format!("sha256:{hex}").parse().ok())
            .ok_or_else(|| wrong("has no sha256"))?;
        let name = format!("targets/{}", metadata::target_name(path, &digest));
        let bytes = (self.reader)(&name, MAX_FILE)?.ok_or_else(|| wrong("the file is not there"))?;
        self.total += bytes.len() as u64;
        if bytes.len() as u64 != entry.length || Digest::of(&bytes) != digest {
            return Err(wrong("the file is another than the one listed"));
        }
        if self.total > MAX_TOTAL || self.files.len() >= MAX_FILES {
            return Err(wrong("there are too many files"));
        }
        self.publishers.insert(path.to_owned(), role.into());
        self.files.insert(path.to_owned(), bytes);
        Ok(())
    }
}

fn delegated(targets: &Targets) -> &[DelegatedRole] {
    targets.delegations.as_ref().map_or(&[], |delegations| &delegations.roles)
}

fn covers(role: &DelegatedRole, path: &str) -> bool {
    role.paths.iter().flatten().any(|pattern| matches(pattern, path))
}

/// One key under two ids would count twice (it does in every client that was tried); sidecars refuse it.
fn check_keys(name: &str, targets: &Targets) -> Result<(), PublishError> {
    let Some(delegations) = &targets.delegations else { return Ok(()) };
    for role in &delegations.roles {
        let mut seen = BTreeSet::new();
        for key in role.keyids.iter().filter_map(|id| delegations.keys.get(id)) {
            let Key { keyval, .. } = key;
            if !seen.insert(keyval.public.trim()) {
                return Err(refused(format!("{name} delegates {} with one key under two ids", role.name)));
            }
        }
        if role.path_hash_prefixes.is_some() {
            return Err(refused(format!("{name} delegates {} by hash prefixes", role.name)));
        }
    }
    Ok(())
}
