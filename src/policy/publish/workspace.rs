//! The working repository of publishers: `repository.toml`, the owners' files, and the metadata that is being signed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::super::repository::DirectorySource;
use super::super::repository::metadata::{self, Delegation, Envelope, RoleKeys, TufKey};
use super::super::repository::path_pattern::{MAX_DEPTH, MAX_SEGMENTS, PathPattern};
use super::super::standing::{OWNERS, TOP_ROLES};
use super::{MAX_METADATA, PublishError, keys, read_file, write_file};
use crate::clock::Timestamp;
use crate::toml_file::located;

/// The most roles of one repository.
pub const MAX_ROLES: usize = 64;
/// The shortest and the longest life of a role's metadata.
const LIFE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(10 * 366 * 24 * 3600);

/// `repository.toml`: who signs what, how many of them must, and for how long it is then valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    roles: BTreeMap<String, RoleSettings>,
}

/// One role of `repository.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleSettings {
    /// The keys that may sign, by the names that `repository.toml` gives them.
    pub keys: Vec<(String, TufKey)>,
    /// How many of them must; 1 to their number.
    pub threshold: u32,
    /// How long what is signed now is valid.
    pub life: Duration,
    /// Who delegates it; `None` for the four top-level roles.
    pub parent: Option<String>,
    /// The names that it owns; empty for the four top-level roles.
    pub paths: Vec<PathPattern>,
    /// A department that is gone: its metadata stays, empty, since clients refuse a snapshot that drops a role
    /// (specification §5.5.5).
    pub retired: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    schema: i64,
    keys: BTreeMap<String, String>,
    roles: BTreeMap<String, RawRole>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRole {
    keys: Vec<String>,
    threshold: u32,
    expires: String,
    parent: Option<String>,
    paths: Option<Vec<String>>,
    #[serde(default)]
    retired: bool,
}

fn wrong(message: impl std::fmt::Display) -> PublishError {
    PublishError::Settings(format!("repository.toml: {message}"))
}

/// A name of a role or a key: 1 to 64 of `a-z 0-9 - _`, so that it is also a file's name.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        && !text.starts_with('-')
}

impl Settings {
    /// Reads the bytes of `repository.toml`.
    ///
    /// # Errors
    /// Anything unknown, missing or out of its range; a role without keys; one public key under two names; owners who
    /// share a key; a department outside its parent's folder or in another's; patterns that clients read differently.
    pub fn parse(bytes: &[u8]) -> Result<Self, PublishError> {
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text"))?;
        let raw: RawSettings = toml::from_str(text).map_err(|error| wrong(located(text, &error)))?;
        if raw.schema != 1 {
            return Err(wrong("unknown schema: this version reads schema = 1"));
        }
        if raw.roles.len() > MAX_ROLES {
            return Err(wrong(format!("has more than {MAX_ROLES} roles")));
        }
        let known = public_keys(&raw.keys)?;
        let mut roles = BTreeMap::new();
        for (name, role) in raw.roles {
            let settings = role_settings(&name, role, &known)?;
            roles.insert(name, settings);
        }
        let settings = Self { roles };
        settings.check_present()?;
        settings.check_departments()?;
        settings.check_disjoint_keys()?;
        Ok(settings)
    }

    fn check_present(&self) -> Result<(), PublishError> {
        let needed = TOP_ROLES.iter().chain(OWNERS.iter().map(|(role, _)| role));
        match needed.into_iter().find(|name| !self.roles.contains_key(**name)) {
            Some(name) => Err(wrong(format!("lacks [roles.{name}]"))),
            None => Ok(()),
        }
    }

    fn check_departments(&self) -> Result<(), PublishError> {
        for name in self.roles.keys() {
            self.chain(name)?;
            let children: Vec<_> = self.children(name).collect();
            let parent = &self.roles.get(name).map(|role| role.paths.clone()).unwrap_or_default();
            for (number, (child, settings)) in children.iter().enumerate() {
                if name != "targets"
                    && let Some(path) =
                        settings.paths.iter().find(|path| !parent.iter().any(|outer| outer.contains(path)))
                {
                    return Err(wrong(format!("roles.{child}: {path} leads out of what its parent {name} owns")));
                }
                for (other, others) in children.iter().skip(number + 1) {
                    let clash = settings.paths.iter().find(|a| others.paths.iter().any(|b| a.overlaps(b)));
                    if let Some(path) = clash {
                        return Err(wrong(format!("{path} belongs to both {child} and {other}: one owner each")));
                    }
                }
            }
        }
        Ok(())
    }

    /// The roles from `name` up to the top.
    fn chain(&self, name: &str) -> Result<Vec<&str>, PublishError> {
        let mut chain = Vec::new();
        let mut at = self.roles.get_key_value(name);
        while let Some((name, role)) = at {
            chain.push(name.as_str());
            // targets, the owner, and the departments below it.
            if chain.len() > MAX_DEPTH + 2 {
                return Err(wrong(format!(
                    "roles.{name}: departments are nested deeper than {MAX_DEPTH}, or in a ring"
                )));
            }
            let Some(parent) = &role.parent else { break };
            at = self.roles.get_key_value(parent);
            let delegates = at.is_some_and(|(name, role)| name == "targets" || role.parent.is_some());
            if !delegates {
                return Err(wrong(format!("roles.{name}: its parent {parent} is no role that owns a folder")));
            }
            if at.is_some_and(|(_, role)| role.retired) && !role.retired {
                return Err(wrong(format!("roles.{name}: its parent {parent} is retired: retire both")));
            }
        }
        Ok(chain)
    }

    /// Root, charter, the online roles and the five owners, each with their departments, must have no key in common
    /// (requirement G06): nobody answers for two of them. Snapshot and timestamp are one duty.
    fn check_disjoint_keys(&self) -> Result<(), PublishError> {
        let mut holders: BTreeMap<String, &str> = BTreeMap::new();
        for (name, role) in &self.roles {
            let chain = self.chain(name)?;
            let owner = match (name.as_str(), chain.iter().rev().nth(1)) {
                (_, Some(owner)) => *owner,
                ("snapshot" | "timestamp", None) => "snapshot and timestamp",
                (top, None) => top,
            };
            for (key, public) in &role.keys {
                if let Some(other) = holders.insert(public.id(), owner)
                    && other != owner
                {
                    return Err(wrong(format!("the key {key} signs for both {other} and {owner}: they share no key")));
                }
            }
        }
        Ok(())
    }

    /// The settings of the role `name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn role(&self, name: &str) -> Result<&RoleSettings, PublishError> {
        let known = || self.roles.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.roles.get(name).ok_or_else(|| wrong(format!("has no role {name}; it has: {}", known())))
    }

    /// Every role, by name.
    pub fn roles(&self) -> impl Iterator<Item = (&str, &RoleSettings)> {
        self.roles.iter().map(|(name, role)| (name.as_str(), role))
    }

    /// The roles that list files: `targets` and everything delegated.
    pub fn listing(&self) -> impl Iterator<Item = (&str, &RoleSettings)> {
        self.roles().filter(|(name, role)| *name == "targets" || role.parent.is_some())
    }

    fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a RoleSettings)> {
        self.roles().filter(move |(_, role)| role.parent.as_deref() == Some(name))
    }

    /// The role that alone may publish `path`: the deepest whose patterns match; `None` for a name that nobody owns.
    pub fn owner_of(&self, path: &str) -> Option<&str> {
        let charter = path.starts_with("owners/") && path.matches('/').count() == 1;
        let mut owner = charter.then_some("targets");
        let mut at = "targets";
        while let Some((child, _)) = self.children(at).find(|(_, role)| role.paths.iter().any(|p| p.matches(path))) {
            (owner, at) = (Some(child), child);
        }
        owner
    }

    /// Who may sign `name`, in TUF's terms.
    ///
    /// # Errors
    /// There is no such role.
    pub fn role_keys(&self, name: &str) -> Result<RoleKeys, PublishError> {
        let role = self.role(name)?;
        Ok(RoleKeys { keys: role.keys.iter().map(|(_, key)| key.clone()).collect(), threshold: role.threshold })
    }

    /// Whom `name` delegates to.
    fn delegations(&self, name: &str) -> Result<Vec<Delegation>, PublishError> {
        let delegation = |(child, role): (&str, &RoleSettings)| {
            Ok(Delegation {
                name: child.to_owned(),
                keys: self.role_keys(child)?,
                paths: role.paths.iter().map(PathPattern::to_string).collect(),
            })
        };
        self.children(name).map(delegation).collect()
    }

    /// What `name` would sign: the root's keys, or the files of `files` that are its own and its delegations.
    ///
    /// # Errors
    /// There is no such role, it signs no files, or a retired department still has some.
    pub fn content(
        &self,
        name: &str,
        version: u64,
        expires: Timestamp,
        files: &BTreeMap<String, Bytes>,
    ) -> Result<serde_json::Value, PublishError> {
        let role = self.role(name)?;
        if name == "root" {
            let roles = TOP_ROLES.iter().map(|top| Ok(((*top).to_owned(), self.role_keys(top)?)));
            return Ok(metadata::root(version, expires, &roles.collect::<Result<_, PublishError>>()?));
        }
        if name != "targets" && role.parent.is_none() {
            let message = format!("{name} is signed by `policy publish` and `policy heartbeat`, with the online keys");
            return Err(PublishError::Key(message));
        }
        let own: BTreeMap<String, Bytes> = files
            .iter()
            .filter(|(path, _)| self.owner_of(path) == Some(name))
            .map(|(path, bytes)| (path.clone(), bytes.clone()))
            .collect();
        if role.retired
            && let Some(path) = own.keys().next()
        {
            return Err(wrong(format!("{path} belongs to {name}, which is retired: move or remove it")));
        }
        Ok(metadata::targets(version, expires, &own, &self.delegations(name)?))
    }
}

fn public_keys(raw: &BTreeMap<String, String>) -> Result<BTreeMap<String, TufKey>, PublishError> {
    let mut known = BTreeMap::new();
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for (name, text) in raw {
        if !is_name(name) {
            return Err(wrong(format!("keys.{name}: a name is 1 to 64 of a-z 0-9 - _")));
        }
        let key = keys::parse_public(text).map_err(|error| wrong(format!("keys.{name}: {error}")))?;
        // One key under two names would count as two people.
        if let Some(other) = names.insert(key.id(), name) {
            return Err(wrong(format!("keys.{other} and keys.{name} are the same key")));
        }
        known.insert(name.clone(), key);
    }
    Ok(known)
}

fn role_settings(name: &str, raw: RawRole, known: &BTreeMap<String, TufKey>) -> Result<RoleSettings, PublishError> {
    let wrong = |message: &str| wrong(format!("roles.{name}: {message}"));
    if !is_name(name) {
        return Err(wrong("a name is 1 to 64 of a-z 0-9 - _"));
    }
    let mut keys = Vec::new();
    for key in &raw.keys {
        let public =
            known.get(key).ok_or_else(|| wrong(&format!("names the key {key}, which [keys] does not have")))?;
        keys.push((key.clone(), public.clone()));
    }
    if raw.keys.iter().collect::<BTreeSet<_>>().len() != raw.keys.len() {
        return Err(wrong("names a key twice"));
    }
    if raw.threshold == 0 || usize::try_from(raw.threshold).is_ok_and(|threshold| threshold > keys.len()) {
        return Err(wrong("threshold must be 1 to the number of its keys"));
    }
    let life = humantime::parse_duration(&raw.expires)
        .ok()
        .filter(|life| LIFE.contains(life))
        .ok_or_else(|| wrong("expires must be a duration of 1m to 10years, such as \"90days\""))?;
    let folder = OWNERS.iter().find(|(owner, _)| *owner == name).map(|(_, folder)| *folder);
    let (parent, paths) = match (folder, TOP_ROLES.contains(&name)) {
        (None, false) => {
            let parent = raw.parent.ok_or_else(|| wrong("a department needs parent = \"…\""))?;
            let paths = raw.paths.filter(|paths| !paths.is_empty());
            let paths = paths.ok_or_else(|| wrong("a department needs paths = [\"FOLDER/…/*\"]"))?;
            let parse = |text: &String| {
                let why = "is no pattern: segments of a-z 0-9 . - _ with at most one *, never ** or {}";
                pattern(text).ok_or_else(|| wrong(&format!("{text:?} {why}")))
            };
            (Some(parent), paths.iter().map(parse).collect::<Result<_, _>>()?)
        }
        _ if raw.parent.is_some() || raw.paths.is_some() || raw.retired => {
            return Err(wrong("only departments have parent, paths and retired"));
        }
        (Some(folder), _) => (Some("targets".to_owned()), PathPattern::below(folder)),
        (None, true) => (None, Vec::new()),
    };
    Ok(RoleSettings { keys, threshold: raw.threshold, life, parent, paths, retired: raw.retired })
}

/// A pattern that departments may have: in lower case, and no longer than names are.
fn pattern(text: &str) -> Option<PathPattern> {
    let pattern = PathPattern::parse(text).filter(|pattern| pattern.depth() <= MAX_SEGMENTS + 1)?;
    (text.len() <= 256 && !text.bytes().any(|b| b.is_ascii_uppercase())).then_some(pattern)
}

/// A working repository: the owners' files, `repository.toml` and what is being signed.
#[derive(Debug)]
pub struct Workspace {
    directory: PathBuf,
    settings: Settings,
}

impl Workspace {
    /// Opens the working repository at `directory`.
    ///
    /// # Errors
    /// There is no `repository.toml`, or it is wrong.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, PublishError> {
        let directory = directory.into();
        let place = directory.join("repository.toml");
        let bytes = read_file(&place, MAX_METADATA)?.ok_or_else(|| {
            PublishError::Files(format!("{}: is not there; `sidemint policy new DIR` makes one", place.display()))
        })?;
        Ok(Self { directory, settings: Settings::parse(&bytes)? })
    }

    /// The same for `policy kill`, which asks `repository.toml` for nothing that it could not do without: one that is
    /// half edited has no roles here. Why it could not be read is told beside it.
    ///
    /// # Errors
    /// There is no `repository.toml`.
    pub fn open_for_kill(directory: impl Into<PathBuf>) -> Result<(Self, Option<PublishError>), PublishError> {
        let directory = directory.into();
        match Self::open(&directory) {
            Ok(workspace) => Ok((workspace, None)),
            Err(error @ PublishError::Settings(_)) => {
                Ok((Self { directory, settings: Settings { roles: BTreeMap::new() } }, Some(error)))
            }
            Err(error) => Err(error),
        }
    }

    /// The folder of the working repository.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Who signs what, as `repository.toml` says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The owners' files, by path, as they are now.
    ///
    /// # Errors
    /// One cannot be read, has a name that not every TUF client can ask for, or belongs to nobody.
    pub fn files(&self) -> Result<BTreeMap<String, Bytes>, PublishError> {
        let read = DirectorySource::new(&self.directory).read();
        let files = read.map_err(|error| PublishError::Files(error.to_string()))?.files;
        for path in files.keys() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/');
            if !path.bytes().all(plain) {
                let message = format!("{}: a published name is of A-Z a-z 0-9 . - _ /", path.escape_debug());
                return Err(PublishError::Files(message));
            }
            if self.settings.owner_of(path).is_none() {
                return Err(PublishError::Files(format!("{path}: no role of repository.toml owns it")));
            }
        }
        Ok(files)
    }

    /// Where the metadata of `role` is being signed.
    pub fn staged_path(&self, role: &str) -> PathBuf {
        self.directory.join("metadata").join(format!("{role}.json"))
    }

    /// The metadata of `role` that is being signed, or was signed last: its bytes and what they say.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn staged(&self, role: &str) -> Result<Option<(Bytes, Envelope)>, PublishError> {
        let place = self.staged_path(role);
        let Some(bytes) = read_file(&place, MAX_METADATA)? else { return Ok(None) };
        let envelope = serde_json::from_slice(&bytes)
            .map_err(|error| PublishError::Files(format!("{}: is no signed metadata: {error}", place.display())))?;
        Ok(Some((bytes, envelope)))
    }

    /// Writes the metadata of `role` that is being signed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn stage(&self, role: &str, envelope: &Envelope) -> Result<PathBuf, PublishError> {
        let place = self.staged_path(role);
        write_file(&place, &envelope.to_bytes(), 0o644)?;
        Ok(place)
    }

    /// What `OUT` had when this working repository published last: each role's version, from the copy of its snapshot.
    ///
    /// # Errors
    /// The copy is there and cannot be read.
    pub fn published_versions(&self) -> Result<BTreeMap<String, u64>, PublishError> {
        let Some((_, snapshot)) = self.staged("snapshot")? else { return Ok(BTreeMap::new()) };
        let meta = snapshot.signed.get("meta").and_then(serde_json::Value::as_object);
        let version = |value: &serde_json::Value| value.get("version").and_then(serde_json::Value::as_u64);
        let pin = |(name, value): (&String, &serde_json::Value)| {
            Some((name.strip_suffix(".json")?.to_owned(), version(value)?))
        };
        Ok(meta.into_iter().flatten().filter_map(pin).collect())
    }

    /// A published root that this working repository keeps: `metadata/N.root.json`.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn root(&self, version: u64) -> Result<Option<Bytes>, PublishError> {
        read_file(&self.directory.join("metadata").join(metadata::metadata_name("root", version)), MAX_METADATA)
    }

    /// Keeps what was published, so that the next signatures begin from it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn keep(&self, name: &str, bytes: &Bytes) -> Result<(), PublishError> {
        write_file(&self.directory.join("metadata").join(name), bytes, 0o644)
    }
}

#[cfg(test)]
mod tests;
