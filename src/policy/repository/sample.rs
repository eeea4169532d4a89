//! A whole signed repository in memory: what tests and benches serve, and what they bend. Its keys are its own and new
//! each time.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

use super::super::document::Digest;
use super::super::standing::{OWNERS, TOP_ROLES};
use super::fetch::{Answer, Fetch, FetchError, Tag};
use super::metadata::{self, Delegation, Envelope, LocalKey, MetadataError, RoleKeys, Signer as _};
use crate::clock::Timestamp;

/// A department of the business: a role below `business-owners` that owns `scopes/NAME/*`.
type Department = String;

/// Policy files, the keys of every role, and the state of what was published so far.
#[derive(Debug)]
pub struct Sample {
    /// The policy files, by path. Change them, then publish again.
    pub files: BTreeMap<String, Bytes>,
    /// The keys that sign each role; the threshold is their number.
    pub keys: BTreeMap<String, Vec<LocalKey>>,
    /// How long what is published now is valid, by role; else [`Sample::LIFE`].
    pub lives: BTreeMap<String, Duration>,
    departments: Vec<Department>,
    versions: BTreeMap<String, u64>,
    published: BTreeMap<String, Bytes>,
}

impl Sample {
    /// How long each role is valid where nothing else is said.
    pub const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

    /// A repository over `files` with one key per role (two for `root` and `targets`) and these departments.
    ///
    /// # Errors
    /// When no keys can be made.
    pub fn new(files: BTreeMap<String, Bytes>, departments: &[&str]) -> Result<Self, MetadataError> {
        let mut sample = Self {
            files,
            keys: BTreeMap::new(),
            lives: BTreeMap::new(),
            departments: departments.iter().map(|name| (*name).to_owned()).collect(),
            versions: BTreeMap::new(),
            published: BTreeMap::new(),
        };
        let owners = OWNERS.iter().map(|(role, _)| (*role).to_owned());
        let top = TOP_ROLES.iter().map(|role| (*role).to_owned());
        for role in top.chain(owners).chain(sample.departments.clone()) {
            let count = if matches!(&*role, "root" | "targets") { 2 } else { 1 };
            let keys = (0..count).map(|_| LocalKey::generate().map(|(key, _)| key)).collect::<Result<_, _>>()?;
            sample.keys.insert(role, keys);
        }
        Ok(sample)
    }

    /// Reads the policy files below `directory` (as [`super::DirectorySource`] does).
    ///
    /// # Errors
    /// When they cannot be read or no keys can be made.
    pub fn over(directory: &Path, departments: &[&str]) -> io::Result<Self> {
        let files = super::DirectorySource::new(directory).read().map_err(io::Error::other)?;
        Self::new(files.files, departments).map_err(io::Error::other)
    }

    /// The keys of `role` as delegations and the root name them.
    pub fn role_keys(&self, role: &str) -> RoleKeys {
        let keys: Vec<_> = self.keys.get(role).into_iter().flatten().map(|key| key.public().clone()).collect();
        let threshold = u32::try_from(keys.len()).unwrap_or(1);
        RoleKeys { keys, threshold }
    }

    /// One pattern for each depth of names below `folder`.
    pub fn patterns(folder: &str) -> Vec<String> {
        (1..=8).map(|depth| format!("{folder}{}", "/*".repeat(depth))).collect()
    }

    fn expires(&self, role: &str, now: Timestamp) -> Timestamp {
        now + self.lives.get(role).copied().unwrap_or(Self::LIFE)
    }

    /// The version of `role` that was published last; 0 for none.
    pub fn version(&self, role: &str) -> u64 {
        self.versions.get(role).copied().unwrap_or(0)
    }

    fn next(&mut self, role: &str) -> u64 {
        let version = self.versions.entry(role.to_owned()).or_default();
        *version += 1;
        *version
    }

    /// Signs `signed` with the keys of `role` and puts it where clients look for it.
    ///
    /// # Errors
    /// When a key does not sign.
    pub fn put(&mut self, role: &str, version: u64, signed: Value) -> Result<Bytes, MetadataError> {
        let mut envelope = Envelope::unsigned(signed);
        for key in self.keys.get(role).into_iter().flatten() {
            envelope.sign(key)?;
        }
        let bytes = envelope.to_bytes();
        self.published.insert(format!("metadata/{}", metadata::metadata_name(role, version)), bytes.clone());
        Ok(bytes)
    }

    /// Publishes a root that names the keys of now.
    ///
    /// # Errors
    /// When a key does not sign.
    pub fn publish_root(&mut self, now: Timestamp) -> Result<Bytes, MetadataError> {
        let version = self.next("root");
        let roles = TOP_ROLES.iter().map(|role| ((*role).to_owned(), self.role_keys(role))).collect();
        let signed = metadata::root(version, self.expires("root", now), &roles);
        self.put("root", version, signed)
    }

    /// Publishes one targets role: its own files and delegations.
    fn publish_targets(&mut self, role: &str, now: Timestamp) -> Result<(u64, Bytes), MetadataError> {
        let own: BTreeMap<String, Bytes> = self
            .files
            .iter()
            .filter(|(path, _)| self.owner_of(path) == role)
            .map(|(p, b)| (p.clone(), b.clone()))
            .collect();
        for (path, bytes) in &own {
            let name = metadata::target_name(path, &Digest::of(bytes));
            self.published.insert(format!("targets/{name}"), bytes.clone());
        }
        let delegations: Vec<Delegation> = match role {
            "targets" => OWNERS
                .iter()
                .map(|(name, folder)| Delegation {
                    name: (*name).to_owned(),
                    keys: self.role_keys(name),
                    paths: Self::patterns(folder),
                })
                .collect(),
            "business-owners" => self
                .departments
                .iter()
                .map(|name| Delegation {
                    name: name.clone(),
                    keys: self.role_keys(name),
                    paths: Self::patterns(&format!("scopes/{name}")),
                })
                .collect(),
            _ => Vec::new(),
        };
        let version = self.next(role);
        let signed = metadata::targets(version, self.expires(role, now), &own, &delegations);
        let bytes = self.put(role, version, signed)?;
        Ok((version, bytes))
    }

    /// The role that owns a path.
    fn owner_of(&self, path: &str) -> &str {
        let mut parts = path.split('/');
        let (folder, below) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if folder == "scopes"
            && let Some(department) = self.departments.iter().find(|name| *name == below)
        {
            return department;
        }
        OWNERS.iter().find(|(_, owned)| *owned == folder).map_or("targets", |(role, _)| role)
    }

    /// Publishes every targets role, a snapshot over them and a timestamp over that; the root too where there is none.
    ///
    /// # Errors
    /// When a key does not sign.
    pub fn publish(&mut self, now: Timestamp) -> Result<(), MetadataError> {
        if self.version("root") == 0 {
            self.publish_root(now)?;
        }
        let roles: Vec<String> =
            self.keys.keys().filter(|role| !matches!(&***role, "root" | "timestamp" | "snapshot")).cloned().collect();
        let mut pins = BTreeMap::new();
        for role in roles {
            let published = self.publish_targets(&role, now)?;
            pins.insert(role, published);
        }
        let version = self.next("snapshot");
        let signed = metadata::snapshot(version, self.expires("snapshot", now), &pins);
        self.put("snapshot", version, signed)?;
        self.heartbeat(now)
    }

    /// Publishes a new timestamp over the newest snapshot.
    ///
    /// # Errors
    /// When a key does not sign.
    pub fn heartbeat(&mut self, now: Timestamp) -> Result<(), MetadataError> {
        let snapshot_version = self.version("snapshot");
        let name = format!("metadata/{}", metadata::metadata_name("snapshot", snapshot_version));
        let snapshot = self.published.get(&name).cloned().unwrap_or_default();
        let version = self.next("timestamp");
        let signed = metadata::timestamp(version, self.expires("timestamp", now), snapshot_version, &snapshot);
        self.put("timestamp", version, signed).map(drop)
    }

    /// Everything published so far, by name below the repository: `metadata/…`, `targets/…`.
    pub fn published(&self) -> &BTreeMap<String, Bytes> {
        &self.published
    }

    /// The same, to be bent.
    pub fn published_mut(&mut self) -> &mut BTreeMap<String, Bytes> {
        &mut self.published
    }

    /// The first root: the trust anchor that a deployment ships.
    pub fn anchor(&self) -> Bytes {
        self.published.get("metadata/1.root.json").cloned().unwrap_or_default()
    }

    /// Writes everything published so far below `directory`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_to(&self, directory: &Path) -> io::Result<()> {
        for (name, bytes) in &self.published {
            let place = directory.join(name);
            if let Some(folder) = place.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(place, bytes)?;
        }
        Ok(())
    }
}

/// Files in memory as a place to fetch from.
#[derive(Debug, Clone, Default)]
pub struct MemoryFetch(pub BTreeMap<String, Bytes>);

#[async_trait]
impl Fetch for MemoryFetch {
    async fn get(&self, name: &str, limit: u64, seen: Option<&Tag>) -> Result<Answer, FetchError> {
        let Some(bytes) = self.0.get(name) else { return Ok(Answer::Absent) };
        let tag = Tag(format!("\"{}\"", Digest::of(bytes).hex()));
        if bytes.len() as u64 > limit {
            return Err(FetchError::TooLarge { name: name.to_owned(), limit });
        }
        if seen == Some(&tag) {
            return Ok(Answer::Unchanged);
        }
        Ok(Answer::Body { bytes: bytes.clone(), tag: Some(tag) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigstore_tuf::{Role as _, TrustedMetadataSet};

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn another_reader_verifies_what_is_written() {
        let files = BTreeMap::from([
            ("scopes/a.toml".to_owned(), Bytes::from_static(b"one")),
            ("scopes/finance/b.toml".to_owned(), Bytes::from_static(b"two")),
            ("decisions/a.toml".to_owned(), Bytes::from_static(b"three")),
        ]);
        let mut sample = Sample::new(files, &["finance"]).unwrap();
        sample.publish(now()).unwrap();
        sample.publish(now()).unwrap();
        let at = now().to_string().parse().unwrap();
        let file = |name: &str| sample.published()[&format!("metadata/{name}")].clone();
        let mut trusted = TrustedMetadataSet::from_root(&sample.anchor()).unwrap();
        trusted.update_timestamp(&file("timestamp.json"), at).unwrap();
        trusted.update_snapshot(&file("2.snapshot.json"), at).unwrap();
        trusted.update_targets(&file("2.targets.json"), at).unwrap();
        trusted.update_delegated_targets(&file("2.business-owners.json"), "business-owners", "targets", at).unwrap();
        let finance =
            trusted.update_delegated_targets(&file("2.finance.json"), "finance", "business-owners", at).unwrap();
        assert_eq!(finance.targets.keys().collect::<Vec<_>>(), ["scopes/finance/b.toml"]);
        assert_eq!(finance.version(), 2);
    }

    #[test]
    fn a_p256_key_from_pem_signs_what_another_reader_accepts() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pair.serialize_der());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
        let key = LocalKey::from_pem(&crate::secret::Secret::new(pem)).unwrap();
        let mut sample = Sample::new(BTreeMap::new(), &[]).unwrap();
        sample.keys.insert("root".to_owned(), vec![key]);
        sample.publish_root(now()).unwrap();
        TrustedMetadataSet::from_root(&sample.anchor()).unwrap();
    }
}
