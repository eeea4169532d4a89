//! Each attack of TUF's list and each fault of a disk, played against a whole repository.

mod attacks;
mod bytes;
mod delegations;
mod kills;
mod previous;
mod refreshes;
mod rotations;
mod state;

use serde_json::Value;

use super::super::metadata;
use super::super::sample::Sample;
use super::*;
use crate::clock::{Clock as _, ManualClock, Timestamp};
use crate::policy::repository::metadata::{LocalKey, metadata_name, target_name};

const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);
/// The targets roles of the repository, parents first.
const ROLES: [&str; 7] =
    ["targets", "security", "governance", "business-owners", "finance", "implementers", "incident"];

/// A server that counts, and can be told to be gone.
#[derive(Debug, Default)]
struct Served {
    files: Mutex<BTreeMap<String, Bytes>>,
    asked: Mutex<Vec<String>>,
    down: Mutex<bool>,
}

#[async_trait]
impl Fetch for Served {
    async fn get(&self, name: &str, limit: u64, seen: Option<&Tag>) -> Result<Answer, FetchError> {
        self.asked.lock().unwrap().push(name.to_owned());
        if *self.down.lock().unwrap() {
            return Err(FetchError::Unreachable { name: name.to_owned(), why: "nobody answers".to_owned() });
        }
        let files = self.files.lock().unwrap().clone();
        super::super::sample::MemoryFetch(files).get(name, limit, seen).await
    }
}

impl Served {
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// A repository, its server, and one sidecar's state.
struct World {
    sample: Sample,
    clock: ManualClock,
    served: Arc<Served>,
    anchor: Bytes,
    state: tempfile::TempDir,
}

fn policy_files() -> BTreeMap<String, Bytes> {
    let decision = "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"g\"\n\
                    review_by = 2027-02-01\nmax_task = \"8h\"\nmax_residual = \"20m\"\nscope = \"\"\n\
                    grants = { x = \"\" }\n";
    [
        ("owners/charter.toml", "schema = 1"),
        ("boundaries/wall.cedar", "// none"),
        ("decisions/a.toml", decision),
        ("decisions/a.cedar", "// none"),
        ("scopes/a.toml", "a"),
        ("scopes/finance/b.toml", "b"),
        ("grants/x.toml", "x"),
        ("grants/y.toml", "y"),
        ("kill/list.toml", "schema = 1"),
    ]
    .into_iter()
    .map(|(path, text)| (path.to_owned(), Bytes::from_static(text.as_bytes())))
    .collect()
}

impl World {
    /// One version published, served, and nothing trusted yet.
    fn new() -> Self {
        let mut sample = Sample::new(policy_files(), &["finance"]).unwrap();
        sample.publish(NOW).unwrap();
        let world = Self {
            anchor: sample.anchor(),
            sample,
            clock: ManualClock::at(NOW),
            served: Arc::default(),
            state: tempfile::tempdir().unwrap(),
        };
        world.serve();
        world
    }

    /// The same, trusted by `policy trust`.
    async fn trusted() -> Self {
        let world = Self::new();
        world.source().trust().await.unwrap();
        world
    }

    /// Serves what the sample has published by now.
    fn serve(&self) {
        *self.served.files.lock().unwrap() = self.sample.published().clone();
    }

    fn down(&self, down: bool) {
        *self.served.down.lock().unwrap() = down;
    }

    fn settings(&self) -> SignedSettings {
        SignedSettings {
            anchor: self.anchor.clone(),
            state: self.state.path().to_owned(),
            minimum_version: None,
            scopes: BTreeSet::new(),
        }
    }

    fn source_with(&self, settings: SignedSettings) -> SignedSource {
        SignedSource::new(settings, Arc::clone(&self.served) as _, Arc::new(self.clock.clone())).unwrap()
    }

    /// A sidecar that starts.
    fn source(&self) -> SignedSource {
        self.source_with(self.settings())
    }

    fn policy(&self) -> PathBuf {
        self.state.path().join("policy")
    }

    /// Publishes what the files are by now, and serves it.
    fn publish(&mut self) {
        self.sample.publish(self.clock.now()).unwrap();
        self.serve();
    }

    fn heartbeat(&mut self) {
        self.sample.heartbeat(self.clock.now()).unwrap();
        self.serve();
    }

    /// What is signed in the newest version of a role, as it was published last.
    fn signed(&self, role: &str) -> Value {
        signed(self.sample.published(), role)
    }

    /// Publishes a version in which `roles` bent the targets roles and `snapshot` the snapshot; serves it.
    fn bend(&mut self, roles: impl FnOnce(&mut BTreeMap<String, Value>), snapshot: impl FnOnce(&mut Value)) {
        let published = self.sample.published().clone();
        let old: BTreeMap<String, Value> = ROLES.iter().map(|r| ((*r).to_owned(), signed(&published, r))).collect();
        let mut new = old.clone();
        roles(&mut new);
        let mut pins = BTreeMap::new();
        for (role, mut value) in new {
            let version = value["version"].as_u64().unwrap_or(0);
            let pin = if old.get(&role) == Some(&value) {
                (version, published[&format!("metadata/{}", metadata_name(&role, version))].clone())
            } else {
                value["version"] = (version + 1).into();
                (version + 1, self.sample.put(&role, version + 1, value).unwrap())
            };
            pins.insert(role, pin);
        }
        let version = signed(&published, "snapshot")["version"].as_u64().unwrap() + 1;
        let mut value = metadata::snapshot(version, NOW + Sample::LIFE, &pins);
        snapshot(&mut value);
        let bytes = self.sample.put("snapshot", version, value).unwrap();
        self.timestamp(version, &bytes);
    }

    /// Publishes and serves a timestamp over a snapshot.
    fn timestamp(&mut self, snapshot: u64, bytes: &[u8]) {
        let version = self.signed("timestamp")["version"].as_u64().unwrap() + 1;
        let value = metadata::timestamp(version, NOW + Sample::LIFE, snapshot, bytes);
        self.sample.put("timestamp", version, value).unwrap();
        self.serve();
    }
}

/// What is signed in the newest version of a role.
fn signed(published: &BTreeMap<String, Bytes>, role: &str) -> Value {
    let of = |name: String| {
        let value: Value = serde_json::from_slice(&published[&format!("metadata/{name}")]).unwrap();
        value["signed"].clone()
    };
    let timestamp = of("timestamp.json".to_owned());
    if role == "timestamp" {
        return timestamp;
    }
    let snapshot = of(metadata_name("snapshot", timestamp["meta"]["snapshot.json"]["version"].as_u64().unwrap()));
    if role == "snapshot" {
        return snapshot;
    }
    of(metadata_name(role, snapshot["meta"][format!("{role}.json")]["version"].as_u64().unwrap()))
}

/// A target as a role lists it.
fn listing(bytes: &[u8]) -> Value {
    serde_json::json!({"length": bytes.len(), "hashes": {"sha256": Digest::of(bytes).hex()}})
}

fn new(fetched: Result<Fetched, PolicySourceError>) -> PolicyFiles {
    match fetched.unwrap() {
        Fetched::New(files) => files,
        other => panic!("{other:?}"),
    }
}

/// The files of a sidecar that starts now.
async fn files(world: &World) -> PolicyFiles {
    new(world.source().fetch(None).await)
}

/// Refreshes again with a sidecar that has `held` in force, which must be refused with `kind`, naming `names`; nothing of it
/// may be adopted, in memory or on disk.
async fn refuses(world: &World, source: &SignedSource, held: &PolicyFiles, kind: FaultKind, names: &str) {
    let before = std::fs::read(world.policy().join("high-water.a")).unwrap();
    let error = source.fetch(Some(&held.version)).await.unwrap_err();
    assert!(error.message.starts_with(&format!("{}: ", kind.as_str())), "{error}");
    assert!(error.message.contains(names), "{error}");
    assert_eq!(source.status().fault.unwrap().kind(), kind);
    assert_eq!(std::fs::read(world.policy().join("high-water.a")).unwrap(), before, "{names}");
    assert_eq!(source.state.lock().await.as_ref().unwrap().held.as_ref().unwrap().version, held.version);
}

/// A sidecar that never saw anything must not begin with this.
async fn refuses_at_first(world: &World, kind: FaultKind, names: &str) {
    let fault = world.source().trust().await.unwrap_err();
    assert_eq!(fault.kind(), kind, "{fault}");
    assert!(fault.to_string().contains(names), "{fault}");
    assert!(!Store::is_begun(world.state.path()));
}
