//! `sidemint policy new|test|decide|sign|publish|heartbeat|kill` as their users run them, and every drill of
//! docs/publishing.md. Times are given, never waited for.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use sidemint::clock::{Clock as _, ManualClock, SystemClock, Timestamp};
use sidemint::policy::cache::PolicyCache;
use sidemint::policy::cache::RefreshOutcome;
use sidemint::policy::repository::fetch::DirectoryFetch;
use sidemint::policy::repository::signed::{SignedSettings, SignedSource};
use sidemint::policy::standing::PolicyState;
use sidemint::policy::{LoadOptions, Policy};

/// When the working repository of a test is made.
const DAY_0: &str = "2026-11-23T12:00:00Z";

fn sidemint(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sidemint")).arg("policy").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A working repository and what is published from it. `at` is the time by which its commands go.
struct Repository {
    place: tempfile::TempDir,
    at: String,
}

impl Repository {
    /// Made on day 0, and published where `published`.
    fn new(published: bool) -> Self {
        let repository = Self { place: tempfile::tempdir().unwrap(), at: DAY_0.to_owned() };
        let (code, _, err) = sidemint(&["new", &repository.dir(), "--at", DAY_0]);
        assert_eq!(code, 0, "{err}");
        if published {
            repository.publish(&[]).unwrap();
        }
        repository
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join("repo").join(name)
    }

    fn dir(&self) -> String {
        self.path("").to_str().unwrap().to_owned()
    }

    fn out(&self) -> String {
        self.place.path().join("out").to_str().unwrap().to_owned()
    }

    fn key(&self, name: &str) -> String {
        self.path(&format!("keys/{name}.pem")).to_str().unwrap().to_owned()
    }

    /// What the command printed, or what it complained of.
    fn run(&self, command: &str, args: &[&str]) -> Result<String, String> {
        let (code, out, err) = sidemint(&[&[command], args, &["--at", &self.at]].concat());
        if code == 0 { Ok(out) } else { Err(err) }
    }

    fn sign(&self, role: &str, key: &str) -> Result<String, String> {
        self.run("sign", &["--policy", &self.dir(), "--role", role, "--key", &self.key(key)])
    }

    fn sign_again(&self, role: &str, key: &str) -> Result<String, String> {
        self.run("sign", &["--policy", &self.dir(), "--role", role, "--key", &self.key(key), "--restart"])
    }

    fn publish(&self, more: &[&str]) -> Result<String, String> {
        self.run("publish", &[&["--policy", &self.dir(), "--to", &self.out()], more].concat())
    }

    fn kill(&self, more: &[&str]) -> Result<String, String> {
        self.run(
            "kill",
            &[&["--policy", &self.dir(), "--to", &self.out(), "--key", &self.key("incident")], more].concat(),
        )
    }

    fn decide(&self) -> Result<String, String> {
        let (code, out, err) =
            sidemint(&["decide", "--policy", &self.dir(), "--published", &self.out(), "--yes", "ledger-read"]);
        if code == 0 { Ok(out) } else { Err(err) }
    }

    fn edit(&self, file: &str, old: &str, new: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(old), "{file} has no {old}");
        fs::write(self.path(file), text.replacen(old, new, 1)).unwrap();
    }

    /// A new key in the place of `old`: what a key holder makes with openssl, and an editor of repository.toml writes.
    fn replace_key(&self, old: &str, new: &str) {
        let elsewhere = Self::new(false);
        fs::copy(elsewhere.key("security"), self.key(new)).unwrap();
        let settings = fs::read_to_string(elsewhere.path("repository.toml")).unwrap();
        let public = settings.lines().find(|line| line.starts_with("security = ")).unwrap();
        self.edit("repository.toml", "[keys]\n", &format!("[keys]\n{}\n", public.replacen("security", new, 1)));
        self.edit("repository.toml", &format!("\"{old}\""), &format!("\"{new}\""));
        // Who lost a key cannot sign with it.
        fs::remove_file(self.key(old)).unwrap();
    }

    fn metadata(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.place.path().join("out/metadata").join(name)).unwrap()).unwrap()
    }

    fn version(&self, role: &str) -> u64 {
        let timestamp = self.metadata("timestamp.json");
        let snapshot = timestamp["signed"]["meta"]["snapshot.json"]["version"].as_u64().unwrap();
        match role {
            "timestamp" => timestamp["signed"]["version"].as_u64().unwrap(),
            "snapshot" => snapshot,
            _ => {
                let snapshot = self.metadata(&format!("{snapshot}.snapshot.json"));
                snapshot["signed"]["meta"][format!("{role}.json")]["version"].as_u64().unwrap()
            }
        }
    }
}

/// A sidecar's own view of what is published: its trust anchor, its state directory and its clock.
struct Sidecar {
    state: tempfile::TempDir,
    clock: ManualClock,
    cache: PolicyCache,
    runtime: tokio::runtime::Runtime,
}

impl Sidecar {
    /// Ships the repository's first root, begins to trust it, and runs what is published.
    fn of(repository: &Repository) -> Self {
        let state = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(at(&repository.at));
        let cache = Self::cache(&repository.out(), &state, &clock);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut sidecar = Self { state, clock, cache, runtime };
        assert_eq!(sidecar.refresh(&repository.at), RefreshOutcome::Loaded, "{:?}", sidecar.cache.status());
        sidecar
    }

    fn cache(out: &str, state: &tempfile::TempDir, clock: &ManualClock) -> PolicyCache {
        let anchor = fs::read(Path::new(out).join("metadata/1.root.json")).unwrap();
        let settings = SignedSettings {
            anchor: anchor.into(),
            state: state.path().to_owned(),
            minimum_version: Some(1),
            scopes: std::collections::BTreeSet::new(),
        };
        let fetch = Arc::new(DirectoryFetch::new(out));
        let source = SignedSource::new(settings, fetch, Arc::new(clock.clone())).unwrap();
        PolicyCache::new(Arc::new(source), LoadOptions::default())
    }

    /// The same sidecar, started again on what it remembers.
    fn restart(&mut self, out: &str) {
        let nothing = PolicyCache::new(
            Arc::new(sidemint::policy::repository::DirectorySource::new("/nowhere")),
            LoadOptions::default(),
        );
        // One process at a time has a state directory.
        drop(std::mem::replace(&mut self.cache, nothing));
        self.cache = Self::cache(out, &self.state, &self.clock);
    }

    fn refresh(&mut self, time: &str) -> RefreshOutcome {
        self.clock.set_wall(at(time));
        self.runtime.block_on(self.cache.reload_now(at(time)))
    }

    fn policy(&self) -> Arc<Policy> {
        self.cache.current().unwrap()
    }

    /// The state of the policy at `time`, and the role that lapsed first.
    fn freshness(&self, time: &str) -> (&'static str, Option<String>) {
        let state = self.policy().state(at(time));
        let word = state.as_str();
        match state {
            PolicyState::Stale(lapse) | PolicyState::Expired(lapse) => (word, Some(lapse.role.to_string())),
            PolicyState::Unsigned | PolicyState::Fresh => (word, None),
        }
    }

    /// What the last refresh was refused for.
    fn problem(&self) -> String {
        self.cache.status().problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

/// Every file below a folder with its bytes.
fn tree(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => found.extend(tree(&path)),
            path => found.push((path.clone(), fs::read(path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_new_working_repository_is_clean_tested_and_published_at_once() {
    use std::os::unix::fs::PermissionsExt as _;
    let repository = Repository::new(false);
    for key in fs::read_dir(repository.path("keys")).unwrap().map(Result::unwrap) {
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", key.path());
    }
    let (code, out, _) = sidemint(&["lint", "--policy", &repository.dir(), "--output", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, report["clean"].as_bool()), (0, Some(true)), "{out}");
    assert_eq!(report["problems"].as_array().unwrap().len(), 0, "{out}");
    let tested = repository.run("test", &["--policy", &repository.dir()]).unwrap();
    assert_eq!(tested, "5 cases, 0 failed\n");
    assert!(repository.publish(&[]).unwrap().contains("published 1-"));
    assert_eq!(repository.version("governance"), 1);
    let targets = tree(&repository.place.path().join("out/targets"));
    assert!(!targets.iter().any(|(path, _)| path.to_str().unwrap().contains("tests.toml")));

    let full = repository.run("new", &[&repository.dir()]).unwrap_err();
    assert!(full.contains("is not empty"), "{full}");
}

#[test]
fn publishing_twice_writes_nothing() {
    let repository = Repository::new(true);
    let before = tree(&repository.place.path().join("out"));
    assert!(repository.publish(&[]).unwrap().contains("nothing changed"));
    assert_eq!(tree(&repository.place.path().join("out")), before);
}

#[test]
fn a_wider_grant_is_reported_and_published_with_its_decision_in_one_snapshot() {
    let repository = Repository::new(true);
    repository.edit("grants/ledger-read-aws.toml", "[\"s3:GetObject\"]", "[\"s3:GetObject\", \"s3:PutObject\"]");
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("implementers: the folder or repository.toml changed"), "{refused}");
    let stranger = repository.sign("implementers", "governance").unwrap_err();
    assert!(stranger.contains("none of the keys that sign for implementers"), "{stranger}");
    repository.sign("implementers", "implementers").unwrap();
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("it would suspend ledger-read ("), "{refused}");
    let told = repository.decide().unwrap();
    assert!(told.contains("grant ledger-read-aws: Action s3:PutObject added (wider)"), "{told}");
    repository.sign("governance", "governance").unwrap();
    // Operations say whether it works.
    let refused = repository.publish(&["--dry-mint", "grep -q s3:DeleteObject"]).unwrap_err();
    assert!(refused.contains("grants/ledger-read-aws.toml: the dry mint says that it does not work"), "{refused}");
    assert_eq!(repository.version("snapshot"), 1);
    let published = repository.publish(&["--dry-mint", "grep -q s3:PutObject"]).unwrap();
    assert!(
        published.contains("dry mint   1 new") && published.contains("governance 2, implementers 2"),
        "{published}"
    );
    assert_eq!(repository.version("snapshot"), 2);
}

#[test]
fn a_scope_is_suspended_only_by_its_name() {
    let repository = Repository::new(true);
    repository.edit("grants/ledger-read-aws.toml", "s3:GetObject", "s3:GetObjectAcl");
    repository.sign("implementers", "implementers").unwrap();
    assert!(repository.publish(&["--suspend", "other"]).unwrap_err().contains("it would suspend ledger-read"));
    assert!(repository.publish(&["--suspend", "ledger-read"]).unwrap().contains("suspended  ledger-read"));
    // It is suspended already now: that holds up nothing.
    repository.edit("owners/finance-data.toml", "Finance data", "Finance");
    for key in ["charter-1", "charter-2"] {
        repository.sign("targets", key).unwrap();
    }
    repository.publish(&[]).unwrap();
}

#[test]
fn the_charter_needs_two_of_its_owners_who_sign_one_after_the_other() {
    let repository = Repository::new(true);
    repository.edit("owners/finance-data.toml", "Finance data", "Finance");
    let first = repository.sign("targets", "charter-3").unwrap();
    assert!(first.contains("1 of 2 signatures") && first.contains("not complete"), "{first}");
    // The same key again is still one.
    assert!(repository.sign("targets", "charter-3").unwrap().contains("1 of 2 signatures"));
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("targets: 1 of 2 signatures; still without one of charter-1, charter-2"), "{refused}");
    // Somebody changes the folder under the signature of the first: the second does not sign something else unseen.
    repository.edit("owners/finance-data.toml", "finance-data@", "intruder@");
    let other = repository.sign("targets", "charter-2").unwrap_err();
    assert!(other.contains("says something else than the folder") && other.contains("--restart"), "{other}");
    assert!(repository.sign_again("targets", "charter-2").unwrap().contains("1 of 2 signatures (charter-2)"));
    assert!(repository.sign("targets", "charter-1").unwrap().contains("complete"));
    repository.publish(&[]).unwrap();
    assert_eq!(repository.version("targets"), 2);
}

#[test]
fn drill_a_lost_key_of_an_owner_is_replaced_by_the_charter() {
    let repository = Repository::new(true);
    repository.replace_key("governance", "governance-2");
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("targets: the folder or repository.toml changed"), "{refused}");
    for key in ["charter-1", "charter-3"] {
        repository.sign("targets", key).unwrap();
    }
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("governance: 0 of 1 signatures"), "{refused}");
    assert!(repository.sign("governance", "governance-2").unwrap().contains("version 2"));
    repository.publish(&[]).unwrap();
    assert_eq!((repository.version("targets"), repository.version("governance")), (2, 2));
}

#[test]
fn drill_a_stolen_key_of_an_owner_is_killed_at_once_and_then_replaced() {
    let repository = Repository::new(true);
    let mut sidecar = Sidecar::of(&repository);
    let stolen = fs::read(repository.key("implementers")).unwrap();
    // What may have been signed by the thief stops everywhere, before anybody has met.
    repository.kill(&["--grant", "ledger-read-aws", "--reason", "key stolen", "--id", "inc-8"]).unwrap();
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded);
    assert_eq!(sidecar.policy().kill_list().in_force(at(DAY_0)), 1);
    repository.replace_key("implementers", "implementers-2");
    for key in ["charter-1", "charter-2"] {
        repository.sign("targets", key).unwrap();
    }
    repository.sign("implementers", "implementers-2").unwrap();
    repository.publish(&[]).unwrap();
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
    assert_eq!((sidecar.policy().snapshot(), sidecar.policy().kill_list().in_force(at(DAY_0))), (Some(3), 1));
    // What the thief signs now is nobody's word any more.
    fs::write(repository.key("implementers"), stolen).unwrap();
    fs::set_permissions(repository.key("implementers"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    repository.edit("grants/ledger-read-aws.toml", "s3:GetObject", "s3:*");
    let refused = repository.sign("implementers", "implementers").unwrap_err();
    assert!(refused.contains("none of the keys that sign for implementers"), "{refused}");
    assert!(repository.publish(&[]).unwrap_err().contains("implementers: the folder or repository.toml changed"));
    repository.edit("grants/ledger-read-aws.toml", "s3:*", "s3:GetObject");
    // Refreshed at and found good: the scope works again, by the new key.
    repository.kill(&["--lift", "inc-8"]).unwrap();
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
    assert_eq!((sidecar.policy().kill_list().in_force(at(DAY_0)), sidecar.policy().active()), (0, 1));
}

#[test]
fn drill_two_lost_root_keys_are_fixed_by_a_new_repository_alone() {
    let lost = Repository::new(true);
    let mut sidecar = Sidecar::of(&lost);
    for (old, new) in [("root-1", "root-4"), ("root-2", "root-5")] {
        lost.replace_key(old, new);
    }
    for key in ["root-3", "root-4", "root-5"] {
        lost.sign("root", key).unwrap();
    }
    let refused = lost.publish(&[]).unwrap_err();
    assert!(refused.contains("root: 1 of 2 signatures of the keys of the root before it"), "{refused}");
    // A new one, with a new root. A sidecar that knows the old one is not carried over by a file alone.
    let begun = Repository::new(true);
    sidecar.restart(&begun.out());
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Refused);
    assert!(sidecar.problem().contains("other_fleet"), "{}", sidecar.problem());
    fs::remove_dir_all(sidecar.state.path().join("policy")).unwrap();
    sidecar.restart(&begun.out());
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
    assert_eq!((sidecar.policy().snapshot(), sidecar.policy().active()), (Some(1), 1));
}

#[test]
fn drill_a_lost_root_key_is_replaced_by_the_two_that_are_left() {
    let repository = Repository::new(true);
    repository.replace_key("root-1", "root-4");
    assert!(repository.sign("root", "root-4").unwrap().contains("0 of 2 signatures of the root before it"));
    assert!(repository.publish(&[]).unwrap_err().contains("root: 1 of 2 signatures of its own keys"));
    repository.sign("root", "root-2").unwrap();
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("root: 1 of 2 signatures of the keys of the root before it"), "{refused}");
    assert!(repository.sign("root", "root-3").unwrap().contains("complete"));
    repository.publish(&[]).unwrap();
    assert_eq!(repository.metadata("2.root.json")["signed"]["version"], 2);
    // The next one begins from it.
    repository.replace_key("root-4", "root-5");
    for key in ["root-2", "root-3", "root-5"] {
        repository.sign("root", key).unwrap();
    }
    repository.publish(&[]).unwrap();
    assert_eq!(repository.metadata("3.root.json")["signed"]["version"], 3);
}

#[test]
fn drill_stolen_online_keys_are_replaced_by_the_root() {
    let repository = Repository::new(true);
    let stolen = [repository.key("snapshot"), repository.key("timestamp")].map(|key| (fs::read(&key).unwrap(), key));
    for (old, new) in [("snapshot", "snapshot-2"), ("timestamp", "timestamp-2")] {
        repository.replace_key(old, new);
    }
    for key in ["root-1", "root-3"] {
        repository.sign("root", key).unwrap();
    }
    repository.publish(&[]).unwrap();
    assert_eq!((repository.version("snapshot"), repository.version("timestamp")), (2, 2));
    for (bytes, place) in &stolen {
        fs::write(place, bytes).unwrap();
        fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let beat =
        |key: &str| repository.run("heartbeat", &["--to", &repository.out(), "--timestamp-key", &repository.key(key)]);
    assert!(beat("timestamp").unwrap_err().contains("none of the keys"));
    assert!(beat("timestamp-2").unwrap().contains("timestamp 3 over snapshot 2"));
}

#[test]
fn a_restored_older_repository_is_not_called_newest_nor_published_over() {
    let repository = Repository::new(true);
    let state = repository.place.path().join("heartbeat.json");
    let beat = || {
        let (key, state) = (repository.key("timestamp"), state.to_str().unwrap().to_owned());
        repository.run("heartbeat", &["--to", &repository.out(), "--timestamp-key", &key, "--state", &state])
    };
    beat().unwrap();
    let older = tree(&repository.place.path().join("out"));
    repository.kill(&["--scope", "ledger-read", "--reason", "r", "--id", "inc-7"]).unwrap();
    assert!(beat().unwrap().contains("timestamp 4 over snapshot 2"));
    let newest = tree(&repository.place.path().join("out"));
    for (path, bytes) in &older {
        fs::write(path, bytes).unwrap();
    }
    let refused = beat().unwrap_err();
    assert!(refused.contains("has timestamp 2, and 4 was seen there before"), "{refused}");
    assert_eq!(repository.version("timestamp"), 2);
    // A newer timestamp over an older snapshot, as whoever took the heartbeat's key writes it.
    for _ in 0..3 {
        let key = repository.key("timestamp");
        repository.run("heartbeat", &["--to", &repository.out(), "--timestamp-key", &key]).unwrap();
    }
    let refused = beat().unwrap_err();
    assert!(refused.contains("has snapshot 1, and 2 was seen there before"), "{refused}");
    for refused in [repository.publish(&[]).unwrap_err(), repository.kill(&["--all", "--reason", "r"]).unwrap_err()] {
        assert!(refused.contains("has snapshot 1, and 2 was published from"), "{refused}");
    }
    for (path, bytes) in &newest {
        fs::write(path, bytes).unwrap();
    }
    assert!(beat().unwrap().contains("timestamp 5 over snapshot 2"));
    repository.publish(&[]).unwrap();
    fs::write(&state, "{}").unwrap();
    assert!(beat().unwrap_err().contains("is no memory of a heartbeat"));
}

#[test]
fn drill_a_lost_or_stolen_charter_key_is_replaced_by_the_root() {
    let repository = Repository::new(true);
    let mut sidecar = Sidecar::of(&repository);
    repository.replace_key("charter-1", "charter-4");
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("root: repository.toml changed after it was signed"), "{refused}");
    for key in ["root-1", "root-3"] {
        repository.sign("root", key).unwrap();
    }
    // The charter that is out has a signature that is nobody's now.
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("targets: 1 of 2 signatures; still without one of charter-4, charter-3"), "{refused}");
    for key in ["charter-4", "charter-2"] {
        repository.sign("targets", key).unwrap();
    }
    repository.publish(&[]).unwrap();
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
    assert_eq!((repository.version("targets"), sidecar.policy().snapshot()), (2, Some(2)));
    sidecar.restart(&repository.out());
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
}

#[test]
fn drill_new_keys_of_the_root_and_online_are_followed_by_sidecars() {
    let repository = Repository::new(true);
    let mut sidecar = Sidecar::of(&repository);
    for (old, new) in [("root-1", "root-4"), ("snapshot", "snapshot-2"), ("timestamp", "timestamp-2")] {
        repository.replace_key(old, new);
    }
    for key in ["root-2", "root-3", "root-4"] {
        repository.sign("root", key).unwrap();
    }
    let before = tree(&repository.place.path().join("out"));
    repository.publish(&[]).unwrap();
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
    assert_eq!(sidecar.policy().snapshot(), Some(2));
    // What was there before the new keys is no longer trusted, with or without the new root beside it.
    for (path, bytes) in &before {
        fs::write(path, bytes).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Refused);
        fs::remove_file(repository.place.path().join("out/metadata/2.root.json")).ok();
    }
    sidecar.restart(&repository.out());
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "from what is kept: {}", sidecar.problem());
    assert_eq!(sidecar.policy().snapshot(), Some(2));
}

#[test]
fn drill_expired_roles_are_reported_and_renewed() {
    let mut repository = Repository::new(true);
    repository.at = "2027-05-15T00:00:00Z".to_owned();
    let published = repository.publish(&[]).unwrap();
    assert!(published.contains("warning    governance lapses at 2027-05-22T12:00:00Z"), "{published}");
    repository.at = "2027-05-23T00:00:00Z".to_owned();
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("governance: what was signed lapsed at 2027-05-22T12:00:00Z"), "{refused}");
    for role in ["security", "governance", "business-owners", "implementers", "incident"] {
        assert!(repository.sign(role, role).unwrap().contains("version 2"), "{role}");
    }
    repository.publish(&[]).unwrap();
    // The root and the charter, after a year.
    repository.at = "2027-11-24T00:00:00Z".to_owned();
    for (role, keys) in [("root", ["root-1", "root-2"]), ("targets", ["charter-2", "charter-3"])] {
        for key in keys {
            repository.sign(role, key).unwrap();
        }
    }
    for role in ["security", "governance", "business-owners", "implementers", "incident"] {
        repository.sign(role, role).unwrap();
    }
    repository.publish(&[]).unwrap();
    assert_eq!(repository.metadata("2.root.json")["signed"]["version"], 2);
    let early = repository.sign("governance", "governance").unwrap_err();
    assert!(early.contains("is published and says what the folder says") && early.contains("--expires"), "{early}");
}

#[test]
fn drill_a_departments_lost_key_is_replaced_by_its_parent_alone() {
    let repository = Repository::new(true);
    found_finance(&repository);
    let mut sidecar = Sidecar::of(&repository);
    repository.replace_key("finance", "finance-2");
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("business-owners: the folder or repository.toml changed"), "{refused}");
    repository.sign("business-owners", "business-owners").unwrap();
    repository.sign("finance", "finance-2").unwrap();
    repository.publish(&[]).unwrap();
    let versions = ["targets", "business-owners", "finance"].map(|role| repository.version(role));
    assert_eq!(versions, [1, 3, 2]);
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
}

/// A department with one scope that nobody decided on, published.
fn found_finance(repository: &Repository) -> &'static str {
    let department = "\n[roles.finance]\nparent = \"business-owners\"\npaths = [\"scopes/finance/*\"]\nkeys = [\"finance\"]\nthreshold = 1\nexpires = \"90days\"\n";
    let elsewhere = Repository::new(false);
    fs::copy(elsewhere.key("security"), repository.key("finance")).unwrap();
    let settings = fs::read_to_string(elsewhere.path("repository.toml")).unwrap();
    let public =
        settings.lines().find(|line| line.starts_with("security = ")).unwrap().replacen("security", "finance", 1);
    repository.edit("repository.toml", "[keys]\n", &format!("[keys]\n{public}\n"));
    let settings = fs::read_to_string(repository.path("repository.toml")).unwrap();
    fs::write(repository.path("repository.toml"), settings + department).unwrap();
    fs::create_dir(repository.path("scopes/finance")).unwrap();
    fs::copy(repository.path("scopes/ledger-read.toml"), repository.path("scopes/finance/close.toml")).unwrap();
    repository.sign("business-owners", "business-owners").unwrap();
    repository.sign("finance", "finance").unwrap();
    repository.publish(&["--suspend", "finance/close"]).unwrap();
    department
}

#[test]
fn drill_a_department_comes_and_retires_and_its_role_stays_empty() {
    let repository = Repository::new(true);
    let department = found_finance(&repository);
    let listed = &repository.metadata("1.finance.json")["signed"]["targets"];
    assert_eq!(listed.as_object().unwrap().keys().collect::<Vec<_>>(), ["scopes/finance/close.toml"]);

    // Gone altogether is refused, for every client that has seen it would.
    let with = fs::read_to_string(repository.path("repository.toml")).unwrap();
    fs::write(repository.path("repository.toml"), with.replace(department, "")).unwrap();
    repository.sign("business-owners", "business-owners").unwrap();
    assert!(
        repository.publish(&[]).unwrap_err().contains("finance: is published, and clients refuse a version without it")
    );
    fs::write(repository.path("repository.toml"), with + "retired = true\n").unwrap();
    let left = repository.sign("finance", "finance").unwrap_err();
    assert!(left.contains("scopes/finance/close.toml belongs to finance, which is retired"), "{left}");
    fs::remove_dir_all(repository.path("scopes/finance")).unwrap();
    repository.sign("finance", "finance").unwrap();
    repository.sign_again("business-owners", "business-owners").unwrap();
    repository.publish(&[]).unwrap();
    assert_eq!(repository.metadata("2.finance.json")["signed"]["targets"], serde_json::json!({}));
}

#[test]
fn drill_a_kill_is_published_alone_whatever_the_folder_says() {
    let mut repository = Repository::new(true);
    // Somebody is at work: nothing here is signed, and nothing of it is published.
    repository.edit("grants/ledger-read-aws.toml", "s3:GetObject", "s3:*");
    fs::write(repository.path("boundaries/security.cedar"), "permit").unwrap();
    // Also on who signs what: the published keys are those that count.
    let settings = fs::read_to_string(repository.path("repository.toml")).unwrap();
    let public = settings.lines().find(|line| line.starts_with("security = ")).unwrap().replacen("security", "new", 1);
    let edited = settings.replacen("[keys]\n", &format!("[keys]\n{}\n", public.replace('5', "6")), 1);
    for role in ["incident", "snapshot", "timestamp"] {
        let edited = edited.replacen(&format!("keys = [\"{role}\"]"), "keys = [\"new\"]", 1);
        fs::write(repository.path("repository.toml"), &edited).unwrap();
        let killed = repository.kill(&["--task", "t-00000000000000000000000000", "--reason", "r", "--id", "drill"]);
        assert!(killed.unwrap().contains("1 entry"), "{role}");
        repository.kill(&["--lift", "drill"]).unwrap();
    }
    let (code, _, told) = {
        fs::write(repository.path("repository.toml"), edited + "\n[roles.half\n").unwrap();
        let key = repository.key("incident");
        let more = ["--policy", &repository.dir(), "--to", &repository.out(), "--key", &key, "--at", DAY_0];
        sidemint(&[&["kill", "--scope", "a", "--reason", "r", "--id", "half"][..], &more].concat())
    };
    assert!(code == 0 && told.contains("the kill goes by what is published"), "{told}");
    repository.kill(&["--lift", "half"]).unwrap();
    fs::write(repository.path("repository.toml"), settings).unwrap();
    let killed =
        repository.kill(&["--scope", "ledger-read", "--reason", "key found in a log", "--id", "inc-7"]).unwrap();
    assert!(
        killed.contains("published 10-") && killed.contains("incident 10") && killed.contains("within 35 s"),
        "{killed}"
    );
    assert_eq!((repository.version("incident"), repository.version("implementers")), (10, 1));
    let list = |repository: &Repository| repository.run("kill", &["--to", &repository.out(), "--list"]).unwrap();
    assert!(list(&repository).contains("inc-7  scope ledger-read  until it is lifted: key found in a log"));
    assert!(fs::read_to_string(repository.path("kill/list.toml")).unwrap().contains("inc-7"));
    let more = ["--spiffe-id", "spiffe://example.org/a", "--reason", "r", "--until", "2026-11-24T00:00:00Z"];
    assert!(repository.kill(&more).unwrap().contains("k-20261123-120000"));
    assert!(repository.kill(&["--all", "--reason", "r"]).unwrap().contains("k-20261123-120000-2"));
    assert!(repository.kill(&["--lift", "nowhere"]).unwrap_err().contains("there is no entry nowhere"));
    for id in ["inc-7", "k-20261123-120000-2"] {
        assert!(repository.kill(&["--lift", id]).unwrap().contains(&format!("lifted {id}")));
    }
    let mut sidecar = Sidecar::of(&repository);
    repository.at = "2026-11-25T00:00:00Z".to_owned();
    let left = list(&repository);
    assert!(left.contains("spiffe_id spiffe://example.org/a  until 2026-11-24T00:00:00Z, past: r\n1 entry"), "{left}");
    // Also long after everything else has lapsed: sidecars take the list and nothing else.
    repository.at = "2028-01-01T00:00:00Z".to_owned();
    let late = repository.kill(&["--owner", "finance-data", "--reason", "r"]).unwrap();
    assert!(late.contains("root lapsed at 2027-11-23T12:00:00Z") && late.contains("the kill list alone"), "{late}");
    let before = sidecar.policy().snapshot();
    assert_eq!(sidecar.refresh(&repository.at), RefreshOutcome::Refused);
    assert!(sidecar.problem().contains("expired: root"), "{}", sidecar.problem());
    assert_eq!((sidecar.policy().snapshot(), sidecar.policy().kill_list().in_force(at(&repository.at))), (before, 1));
}

#[test]
fn a_kill_prints_the_deny_for_what_is_out_at_aws() {
    let repository = Repository::new(true);
    let more = ["--scope", "ledger-read", "--reason", "key found in a log", "--id", "inc-7", "--print-aws-deny"];
    let told = repository.kill(&more).unwrap();
    for part in [
        "inc-7: every sidecar that reads this repository stops it",
        "Deny what entry inc-7 stops at AWS, role ledger of account 111122223333:",
        "\n  aws iam put-role-policy --role-name ledger --policy-name sidemint-deny-inc-7 --policy-document '{",
        r#""Condition":{"StringLike":{"aws:userid":["*:*.ledger-read.t-*"]}}"#,
        " and the entry is lifted:",
        "also stops those that end alike",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let task = ["--task", "t-00000000000000000000000000", "--reason", "r", "--print-aws-deny", "--output", "json"];
    let json: Value = serde_json::from_str(&repository.kill(&task).unwrap()).unwrap();
    let denies = json["aws_deny"]["denies"].as_array().unwrap();
    assert_eq!((denies.len(), &denies[0]["sessions"][0]), (1, &"*.*.t-00000000000000000000000000".into()), "{json}");
    let vault = ["--provider", "vault", "--reason", "r", "--print-aws-deny"];
    assert!(repository.kill(&vault).unwrap().contains("Nothing to deny at AWS"));
    let args = ["kill", "--to", &repository.out(), "--list", "--print-aws-deny"];
    assert_eq!(sidemint(&args).0, 2, "a list is not an entry");
}

#[test]
fn a_publisher_who_has_not_seen_a_kill_does_not_undo_it() {
    let repository = Repository::new(true);
    let older = [tree(&repository.path("metadata")), tree(&repository.path("kill"))].concat();
    repository.kill(&["--scope", "ledger-read", "--reason", "r", "--id", "inc-7"]).unwrap();
    // Another working copy, from before.
    for (path, bytes) in older {
        fs::write(path, bytes).unwrap();
    }
    repository.edit("decisions/ledger-read.cedar", "c-43", "c-44");
    repository.sign("governance", "governance").unwrap();
    let published = repository.publish(&[]).unwrap();
    assert!(published.contains("version 2 of incident is published and newer than here: it stays"), "{published}");
    assert!(published.contains("governance 2\n"), "{published}");
    assert_eq!(repository.version("incident"), 2);
    assert!(repository.run("kill", &["--to", &repository.out(), "--list"]).unwrap().contains("inc-7"));
}

#[test]
fn a_kill_is_refused_without_the_key_of_incident_or_with_an_invalid_value() {
    let repository = Repository::new(true);
    let bad = [
        "--policy",
        &repository.dir(),
        "--to",
        &repository.out(),
        "--scope",
        "a",
        "--reason",
        "r",
        "--key",
        &repository.key("governance"),
    ];
    assert!(repository.run("kill", &bad).unwrap_err().contains("none of the keys that sign for incident"));
    for (more, told) in [
        (["--scope", "Not A Scope", "--reason", "r"], "kill/list.toml"),
        (["--spiffe-id", "http://example.org", "--reason", "r"], "spiffe_id"),
        (["--task", "t", "--reason", "r"], "task"),
        (["--scope", "a", "--reason", " "], "reason"),
    ] {
        let refused = repository.kill(&more).unwrap_err();
        assert!(refused.contains(told), "{refused}");
    }
    assert_eq!(repository.version("incident"), 1);
    assert_eq!(sidemint(&["kill", "--to", "x", "--list", "--all"]).0, 2);
}

#[test]
fn drill_a_publication_that_was_cut_off_is_published_again() {
    let repository = Repository::new(true);
    let published = repository.place.path().join("out/metadata");
    let before = fs::read(published.join("timestamp.json")).unwrap();
    let kept = fs::read(repository.path("metadata/snapshot.json")).unwrap();
    repository.replace_key("snapshot", "snapshot-2");
    for key in ["root-1", "root-2"] {
        repository.sign("root", key).unwrap();
    }
    repository.publish(&[]).unwrap();
    // Cut off before the timestamp: clients still see what was there, and a root whose timestamp is missing.
    fs::write(published.join("timestamp.json"), before).unwrap();
    fs::write(published.join("2.snapshot.json"), "half").unwrap();
    fs::write(repository.path("metadata/snapshot.json"), kept).unwrap();
    repository.publish(&[]).unwrap();
    assert_eq!(
        (repository.version("snapshot"), repository.metadata("2.root.json")["signed"]["version"].as_u64()),
        (2, Some(2))
    );
}

#[test]
fn drill_a_missing_heartbeat_makes_policy_stale_until_another_host_sends_it() {
    let mut repository = Repository::new(true);
    let beat = |repository: &Repository, key: &str| {
        repository.run("heartbeat", &["--to", &repository.out(), "--timestamp-key", key]).unwrap()
    };
    beat(&repository, &repository.key("timestamp"));
    let mut sidecar = Sidecar::of(&repository);
    assert_eq!(sidecar.freshness("2026-11-23T12:09:59Z"), ("fresh", None));
    let lapsed = |word| (word, Some("timestamp".to_owned()));
    assert_eq!(sidecar.refresh("2026-11-23T12:10:00Z"), RefreshOutcome::Unchanged);
    assert_eq!(sidecar.freshness("2026-11-23T12:10:00Z"), lapsed("stale"));
    // As long as the charter allows, also through a restart, and no longer.
    sidecar.restart(&repository.out());
    assert_eq!(sidecar.refresh("2026-11-24T12:09:59Z"), RefreshOutcome::Loaded, "{}", sidecar.problem());
    assert_eq!(sidecar.freshness("2026-11-24T12:09:59Z"), lapsed("stale"));
    assert_eq!(sidecar.freshness("2026-11-24T12:10:00Z"), lapsed("expired"));
    // Started elsewhere, with the same key: nothing is decided again.
    let elsewhere = tempfile::tempdir().unwrap();
    let key = elsewhere.path().join("timestamp.pem");
    fs::rename(repository.key("timestamp"), &key).unwrap();
    repository.at = "2026-11-24T13:00:00Z".to_owned();
    beat(&repository, key.to_str().unwrap());
    let before = sidecar.policy().version().clone();
    assert_eq!(sidecar.refresh(&repository.at), RefreshOutcome::Unchanged, "{}", sidecar.problem());
    assert_eq!((sidecar.freshness(&repository.at), sidecar.policy().version()), (("fresh", None), &before));
}

#[test]
fn drill_a_lost_publisher_is_rebuilt_from_a_clone_and_the_web_server() {
    let copy = |from: &str, to: &str, without: &str| {
        for (path, bytes) in tree(Path::new(from)) {
            let place = Path::new(to).join(path.strip_prefix(from).unwrap());
            if !without.is_empty() && path.components().any(|part| part.as_os_str() == without) {
                continue;
            }
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(&path, &place).unwrap();
            assert_eq!(fs::read(&place).unwrap(), bytes);
        }
    };
    let gone = Repository::new(true);
    gone.kill(&["--task", "t-00000000000000000000000000", "--reason", "r"]).unwrap();
    let mut sidecar = Sidecar::of(&gone);
    let fixed = Repository { place: tempfile::tempdir().unwrap(), at: gone.at.clone() };
    copy(&gone.dir(), &fixed.dir(), "keys");
    copy(&gone.out(), &fixed.out(), "");
    // The holders of the other keys have theirs; those of the machine are on no other.
    copy(&gone.path("keys").display().to_string(), &fixed.path("keys").display().to_string(), "");
    drop(gone);
    for (old, new) in [("snapshot", "snapshot-2"), ("timestamp", "timestamp-2")] {
        fixed.replace_key(old, new);
    }
    for key in ["root-2", "root-3"] {
        fixed.sign("root", key).unwrap();
    }
    fixed.publish(&[]).unwrap();
    assert_eq!((fixed.version("snapshot"), fixed.version("incident")), (3, 2));
    // The sidecars read it where it was; here it is at another place, which is all that they are told.
    sidecar.restart(&fixed.out());
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
    assert_eq!((sidecar.policy().snapshot(), sidecar.policy().kill_list().in_force(at(DAY_0))), (Some(3), 1));
}

#[test]
fn what_is_published_is_never_changed_and_never_goes_back() {
    let repository = Repository::new(true);
    let older = tree(&repository.path("metadata"));
    repository.edit("decisions/ledger-read.cedar", "c-43", "c-44");
    repository.sign("governance", "governance").unwrap();
    repository.publish(&[]).unwrap();
    // Another working copy, which has not seen it.
    for (path, bytes) in older {
        fs::write(path, bytes).unwrap();
    }
    repository.edit("decisions/ledger-read.cedar", "c-44", "c-43");
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("governance: version 2 is published, and this working repository has 1"), "{refused}");
    let known = [
        "--policy",
        &repository.dir(),
        "--role",
        "governance",
        "--key",
        &repository.key("governance"),
        "--published",
        &repository.out(),
    ];
    assert!(repository.run("sign", &known).unwrap().contains("version 3"));
    repository.publish(&[]).unwrap();
    // A file at its place with other bytes.
    repository.edit("decisions/ledger-read.cedar", "c-43", "c-45");
    repository.sign("governance", "governance").unwrap();
    let targets = repository.place.path().join("out/targets");
    let (one, _) = tree(&targets)
        .into_iter()
        .find(|(path, _)| path.ends_with("list.toml") || path.to_str().unwrap().contains("list.toml"))
        .unwrap();
    fs::write(&one, "other").unwrap();
    let refused = repository.publish(&[]).unwrap_err();
    assert!(refused.contains("clients refuse"), "{refused}");
}

#[test]
fn another_fleets_repository_is_not_published_over() {
    let (ours, theirs) = (Repository::new(true), Repository::new(false));
    let refused = theirs.run("publish", &["--policy", &theirs.dir(), "--to", &ours.out()]).unwrap_err();
    assert!(refused.contains("another fleet's repository"), "{refused}");
}

#[test]
fn signs_by_a_command_and_reports_one_that_does_not_sign() {
    let repository = Repository::new(true);
    repository.edit("decisions/ledger-read.cedar", "c-43", "c-44");
    let sign = |command: &str| {
        repository.run(
            "sign",
            &["--policy", &repository.dir(), "--role", "governance", "--signer", command, "--signer-timeout", "20s"],
        )
    };
    assert!(sign("exit 3").unwrap_err().contains("failed: exit status: 3"));
    assert!(sign("echo nonsense!").unwrap_err().contains("no signature in hex or base64"));
    assert!(sign("cat >/dev/null; head -c 64 /dev/zero | base64 -w0").unwrap_err().contains("none of the keys"));
    assert!(sign("cat >/dev/null; head -c 99999 /dev/zero | base64").unwrap_err().contains("more than 4096"));
    if Command::new("openssl").arg("version").output().is_err() {
        return;
    }
    let key = repository.key("governance");
    let openssl = format!(
        "test \"$SIDEMINT_ROLE\" = governance && f=$(mktemp) && cat >$f && openssl pkeyutl -sign -rawin -inkey {key} -in $f | base64 -w0; rm -f $f"
    );
    assert!(sign(&openssl).unwrap().contains("complete"));
    repository.publish(&[]).unwrap();
}

#[test]
fn p256_keys_sign_from_a_file_and_by_a_command() {
    use rcgen::PublicKeyData as _;
    let repository = Repository::new(true);
    let mut sidecar = Sidecar::of(&repository);
    let base64 = |der: Vec<u8>| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let mut edited = fs::read_to_string(repository.path("repository.toml")).unwrap();
    for role in ["governance", "implementers", "timestamp"] {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let private = base64(pair.serialize_der());
        fs::write(repository.key(role), format!("-----BEGIN PRIVATE KEY-----\n{private}\n-----END PRIVATE KEY-----\n"))
            .unwrap();
        let public = base64(pair.subject_public_key_info());
        let public = format!("{role} = \"\"\"\n-----BEGIN PUBLIC KEY-----\n{public}\n-----END PUBLIC KEY-----\n\"\"\"");
        let line = edited.lines().find(|line| line.starts_with(&format!("{role} = "))).unwrap().to_owned();
        edited = edited.replacen(&line, &public, 1);
    }
    fs::write(repository.path("repository.toml"), edited).unwrap();
    for (role, keys) in [("root", ["root-1", "root-2"]), ("targets", ["charter-1", "charter-2"])] {
        for key in keys {
            repository.sign(role, key).unwrap();
        }
    }
    repository.sign("governance", "governance").unwrap();
    let by_command = |command: &str| {
        repository.run("sign", &["--policy", &repository.dir(), "--role", "implementers", "--signer", command])
    };
    if Command::new("openssl").arg("version").output().is_ok() {
        let command = format!("openssl dgst -sha256 -sign {} | base64 -w0", repository.key("implementers"));
        assert!(by_command(&command).unwrap().contains("complete"));
    } else {
        println!("skip: no openssl here to sign by a command");
        repository.sign("implementers", "implementers").unwrap();
    }
    repository.publish(&[]).unwrap();
    let scheme = &repository.metadata("2.root.json")["signed"]["roles"]["timestamp"]["keyids"][0];
    assert_eq!(
        repository.metadata("2.root.json")["signed"]["keys"][scheme.as_str().unwrap()]["scheme"],
        "ecdsa-sha2-nistp256"
    );
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Loaded, "{}", sidecar.problem());
    let key = repository.key("timestamp");
    repository.run("heartbeat", &["--to", &repository.out(), "--timestamp-key", &key]).unwrap();
    assert_eq!(sidecar.refresh(DAY_0), RefreshOutcome::Unchanged, "{}", sidecar.problem());
}

/// `SCALE=10000 cargo test --test cli ten_thousand -- --nocapture`: how long it takes is printed.
#[test]
fn ten_thousand_scopes_are_published_and_killed() {
    use sidemint::policy::repository::Digest;
    let Some(scopes) = std::env::var("SCALE").ok().and_then(|scale| scale.parse::<usize>().ok()) else {
        println!("skip: SCALE is not set");
        return;
    };
    let repository = Repository::new(false);
    let read = |file: &str| fs::read_to_string(repository.path(file)).unwrap();
    let (decision, rules) = (read("decisions/ledger-read.toml"), read("decisions/ledger-read.cedar"));
    let (scope, grant) = (read("scopes/ledger-read.toml"), read("grants/ledger-read-aws.toml"));
    for number in 0..scopes {
        let id = format!("s-{number}");
        let of_scope = format!("{scope}# {number}\n");
        let old = Digest::of(scope.as_bytes()).to_string();
        assert!(decision.contains(&old) && grant.contains("role_arn"));
        let decision = decision.replace(&old, &Digest::of(of_scope.as_bytes()).to_string());
        fs::write(repository.path(&format!("scopes/{id}.toml")), of_scope).unwrap();
        fs::write(repository.path(&format!("decisions/{id}.toml")), decision).unwrap();
        fs::write(repository.path(&format!("decisions/{id}.cedar")), rules.replace("ledger-read", &id)).unwrap();
    }
    let timed = |what: &str, run: &dyn Fn()| {
        let began = SystemClock.boot();
        run();
        println!("{what} {:.1} s at {scopes} scopes", (SystemClock.boot() - began).as_secs_f64());
    };
    timed("sign", &|| {
        for role in ["governance", "business-owners"] {
            repository.sign_again(role, role).unwrap();
        }
    });
    timed("publish", &|| drop(repository.publish(&[]).unwrap()));
    timed("kill", &|| drop(repository.kill(&["--scope", "s-1", "--reason", "r"]).unwrap()));
    for entry in fs::read_dir(repository.place.path().join("out/metadata")).unwrap().map(Result::unwrap) {
        assert!(entry.metadata().unwrap().len() < 5_000_000, "{:?}", entry.path());
    }
    let sidecar = Sidecar::of(&repository);
    assert_eq!(sidecar.policy().active(), scopes + 1);
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let repository = Repository::new(true);
    let mode =
        |mode| fs::set_permissions(repository.key("timestamp"), std::os::unix::fs::PermissionsExt::from_mode(mode));
    let beat =
        || repository.run("heartbeat", &["--to", &repository.out(), "--timestamp-key", &repository.key("timestamp")]);
    mode(0o644).unwrap();
    assert!(beat().unwrap_err().contains("chmod 600"));
    mode(0o440).unwrap();
    assert!(beat().unwrap().contains("timestamp 2 over snapshot 1 until 2026-11-23T12:10:00Z"));
}

#[test]
fn a_heartbeat_runs_until_it_is_stopped() {
    let repository = Repository::new(true);
    let mut child = Command::new(env!("CARGO_BIN_EXE_sidemint"))
        .args(["policy", "heartbeat", "--to", &repository.out(), "--timestamp-key", &repository.key("timestamp")])
        .args(["--every", "1h", "--expires", "3h"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("timestamp 2 over snapshot 1"), "{first}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let often = ["heartbeat", "--to", "x", "--timestamp-key", "y", "--every", "6m"];
    assert_eq!(sidemint(&often).0, 2);
}

#[test]
fn a_table_test_reports_the_differences() {
    let repository = Repository::new(false);
    let table = "decisions/ledger-read.tests.toml";
    repository.edit(
        table,
        "expect = \"permit\"\nrules = [\"report-reads-ledger\"]",
        "expect = \"permit\"\nrules = [\"other\"]",
    );
    repository.edit(table, "denial = \"not_permitted\"", "denial = \"forbidden\"");
    repository.edit(
        table,
        "customer = \"c-42\" }\nat = 2026-11-23T12:00:00Z\nexpect = \"deny\"\ndenial = \"not_permitted\"",
        "customer = \"c-42\" }\nexpect = \"permit\"",
    );
    let (code, out, _) = sidemint(&["test", "--policy", &repository.dir(), "--at", DAY_0]);
    assert_eq!(code, 1);
    assert!(out.contains("expected the rules [other], found [report-reads-ledger]"), "{out}");
    assert!(out.contains("expected the denial forbidden, found not_permitted: no rule permits it"), "{out}");
    assert!(out.contains("expected permit, found not_permitted"), "{out}");
    assert!(out.ends_with("5 cases, 3 failed\n"), "{out}");
    let (_, out, _) = sidemint(&["test", "--policy", &repository.dir(), "--at", DAY_0, "--output", "json"]);
    let results: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(results["failed"], 3, "{out}");
}

#[test]
fn a_table_that_proves_nothing_fails() {
    let repository = Repository::new(false);
    let test = || sidemint(&["test", "--policy", &repository.dir(), "--at", DAY_0]);
    // Suspended: everything would be denied as expected.
    repository.edit("scopes/ledger-read.toml", "CHG-0001", "CHG-0002");
    let (code, out, _) = test();
    assert!(code == 1 && out.contains("the scope is suspended, so this shows nothing"), "{out}");
    repository.edit("scopes/ledger-read.toml", "CHG-0002", "CHG-0001");
    // A scope that is not there.
    fs::rename(repository.path("decisions/ledger-read.tests.toml"), repository.path("decisions/other.tests.toml"))
        .unwrap();
    let (code, out, _) = test();
    assert!(code == 1 && out.contains("decisions/other.tests.toml: there is no scope other"), "{out}");
    assert!(out.contains("warning  ledger-read: has no tests"), "{out}");
    fs::remove_file(repository.path("decisions/other.tests.toml")).unwrap();
    assert_eq!(test().0, 1);
    let (_, out, _) = sidemint(&["lint", "--policy", &repository.dir()]);
    assert!(out.contains("decisions/ledger-read.toml: has no table tests"), "{out}");
}
