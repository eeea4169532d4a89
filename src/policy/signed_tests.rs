//! What signatures, owners and the kill list change about decisions. The files come from a signed repository in memory,
//! read by hand: whether its signatures verify is another module's business.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::cache::{PolicyCache, RefreshOutcome};
use super::document::Digest;
use super::repository::sample::Sample;
use super::repository::{Fetched, PolicyFiles, PolicySource, PolicySourceError, Signed, metadata};
use super::standing::{Freshness, Lapse, OWNERS, PolicyState, RoleName, Standing};
use super::tests::{CLOSE, INTRUDER, ON_CALL, REPORT, any_ask, ask, caller, fixture, ledger, now};
use super::*;
use crate::clock::Timestamp;
use crate::id::TaskId;
use crate::identity::Proof;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_millis(1);

/// The fixture with an owner's file for everybody whom it names.
pub(super) fn sample() -> Sample {
    let mut files = fixture().files;
    for id in ["finance-data", "operations", "identity-governance"] {
        files.insert(format!("owners/{id}.toml"), owner(""));
    }
    let mut sample = Sample::new(files, &["finance"]).unwrap();
    sample.lives.insert("timestamp".to_owned(), 10 * MINUTE);
    sample.publish(now()).unwrap();
    sample
}

fn owner(more: &str) -> Bytes {
    format!("schema = 1\nname = \"Somebody\"\nmail = \"somebody@example.org\"\n{more}\n").into()
}

pub(super) fn put(sample: &mut Sample, path: &str, text: &str) {
    sample.files.insert(path.to_owned(), Bytes::copy_from_slice(text.as_bytes()));
}

pub(super) fn kill(sample: &mut Sample, entries: &str) {
    put(sample, "kill/list.toml", &format!("schema = 1\n{entries}"));
}

pub(super) fn entry(id: &str, target: &str) -> String {
    format!("[[stop]]\nid = \"{id}\"\n{target}\nreason = \"INC-7 leaked\"\n")
}

fn json(sample: &Sample, role: &str, version: u64) -> Value {
    let name = format!("metadata/{}", metadata::metadata_name(role, version));
    serde_json::from_slice::<Value>(&sample.published()[&name]).unwrap()["signed"].clone()
}

/// What a client takes from a repository: the files of the newest snapshot, and who says so until when.
fn published(sample: &Sample) -> PolicyFiles {
    let timestamp = json(sample, "timestamp", 0);
    let snapshot = timestamp["meta"]["snapshot.json"]["version"].as_u64().unwrap();
    let pins = json(sample, "snapshot", snapshot);
    let end = |signed: &Value| signed["expires"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let mut ends: BTreeMap<RoleName, Timestamp> = BTreeMap::new();
    ends.insert("timestamp".into(), end(&timestamp));
    ends.insert("snapshot".into(), end(&pins));
    ends.insert("root".into(), end(&json(sample, "root", sample.version("root"))));
    let (mut files, mut publishers, mut incident) = (BTreeMap::new(), BTreeMap::new(), 0);
    for (name, pin) in pins["meta"].as_object().unwrap() {
        let (role, version) = (name.strip_suffix(".json").unwrap(), pin["version"].as_u64().unwrap());
        let signed = json(sample, role, version);
        ends.insert(role.into(), end(&signed));
        if role == "incident" {
            incident = version;
        }
        for (path, target) in signed["targets"].as_object().unwrap() {
            let digest = format!("sha256:{}", target["hashes"]["sha256"].as_str().unwrap()).parse().unwrap();
            let bytes = &sample.published()[&format!("targets/{}", metadata::target_name(path, &digest))];
            files.insert(path.clone(), bytes.clone());
            publishers.insert(path.clone(), role.into());
        }
    }
    let owners = OWNERS.iter().map(|(role, _)| (RoleName::from(*role), RoleName::from("targets")));
    let delegators = owners.chain([("finance".into(), "business-owners".into())]).collect();
    let signed = Signed { snapshot, incident, publishers, delegators, standing: Standing { ends }, stray: Vec::new() };
    PolicyFiles { files, version: PolicyVersion(format!("{snapshot}-0").into()), signed: Some(signed) }
}

fn load(sample: &Sample) -> Policy {
    Policy::load(&published(sample)).unwrap()
}

pub(super) fn report(policy: &Policy, at: Timestamp) -> Result<Permit, Denial> {
    policy.decide(&caller(REPORT, Proof::JwtSvid), &ledger("c-42"), at)
}

fn emergency() -> Ask {
    Ask { reason: Some("INC-1".to_owned()), ..ask("incident-response", &[]) }
}

fn freshness(policy: &Policy, scope: &str, at: Timestamp) -> Freshness {
    policy.freshness(&policy.content.by_id[&scope.parse().unwrap()], at)
}

fn lapse(role: &str, since: Timestamp) -> Lapse {
    Lapse { role: role.into(), since }
}

/// A repository as a source: reads what is published at each refresh.
#[derive(Debug)]
struct Source {
    sample: Mutex<Sample>,
    reachable: Mutex<Result<(), bool>>,
}

impl Source {
    fn new(sample: Sample) -> Arc<Self> {
        Arc::new(Self { sample: Mutex::new(sample), reachable: Mutex::new(Ok(())) })
    }

    fn publish(&self, at: Timestamp, change: impl FnOnce(&mut Sample)) {
        let mut sample = self.sample.lock().unwrap();
        change(&mut sample);
        sample.publish(at).unwrap();
    }

    fn cache(self: &Arc<Self>) -> PolicyCache {
        PolicyCache::new(Arc::clone(self) as _, LoadOptions::default())
    }
}

#[async_trait]
impl PolicySource for Source {
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        match *self.reachable.lock().unwrap() {
            Ok(()) => {}
            Err(false) => return Err(PolicySourceError::unavailable("gone")),
            Err(true) => return Err(PolicySourceError::refused("a signature is wrong")),
        }
        let files = published(&self.sample.lock().unwrap());
        if seen == Some(&files.version) {
            return Ok(Fetched::Confirmed(files.signed.unwrap().standing));
        }
        Ok(Fetched::New(files))
    }
}

#[test]
fn a_policy_goes_from_fresh_to_stale_to_expired_by_tier() {
    let policy = load(&sample());
    let end = now() + 10 * MINUTE;
    let told = lapse("timestamp", end);
    for (scope, window) in [("ledger-read", DAY), ("finance/quarter-close", HOUR), ("incident-response", DAY)] {
        for (at, expected) in [
            (now(), Freshness::Fresh),
            (end - MOMENT, Freshness::Fresh),
            (end, Freshness::Stale(told.clone())),
            (end + window - MOMENT, Freshness::Stale(told.clone())),
            (end + window, Freshness::Expired(told.clone())),
        ] {
            assert_eq!(freshness(&policy, scope, at), expected, "{scope} {at}");
        }
    }
}

#[test]
fn a_stale_policy_permits_with_a_note_and_an_expired_one_denies() {
    let policy = load(&sample());
    let end = now() + 10 * MINUTE;
    assert_eq!(report(&policy, now()).unwrap().stale(), None);
    assert_eq!(report(&policy, end + HOUR).unwrap().stale(), Some(&lapse("timestamp", end)));
    let denial = report(&policy, end + DAY).unwrap_err();
    assert_eq!(denial.reason, DenialReason::PolicyExpired);
    assert!(denial.detail.contains("the role timestamp expired at 2026-11-23T16:10:00Z"), "{}", denial.detail);
    assert!(denial.digests.is_some());
    let responder = caller(ON_CALL, Proof::JwtSvid);
    assert!(policy.decide(&responder, &emergency(), end + DAY - MOMENT).unwrap().stale().is_some());
    assert_eq!(policy.decide(&responder, &emergency(), end + DAY).unwrap_err().reason, DenialReason::PolicyExpired);
}

#[test]
fn an_expired_policy_ends_no_running_task_and_is_hidden_from_others() {
    let policy = load(&sample());
    let (late, task) = (now() + 20 * DAY, TaskId::generate().unwrap());
    let kept = policy.still_permits(&caller(REPORT, Proof::JwtSvid), &ledger("c-42"), &task, late).unwrap();
    assert_eq!((&kept.policy_version, kept.rule_ids), (policy.version(), vec!["report-reads-ledger".to_owned()]));
    let intruder = caller(INTRUDER, Proof::JwtSvid);
    let reason = |scope: &Ask| policy.decide(&intruder, scope, late).unwrap_err().reason;
    assert_eq!(reason(&ledger("c-42")), DenialReason::NotPermitted);
    assert_eq!(reason(&ask("nothing", &[])), DenialReason::UnknownScope);
    assert!(policy.still_permits(&intruder, &ledger("c-42"), &task, late).is_err());
}

#[test]
fn the_charter_sets_how_stale_a_policy_may_get() {
    let mut sample = sample();
    let charter = "schema = 1\n[max_staleness]\nbaseline = \"1m\"\nbreak-glass = \"30days\"\n";
    put(&mut sample, "owners/charter.toml", charter);
    sample.publish(now()).unwrap();
    let policy = load(&sample);
    let end = now() + 10 * MINUTE;
    assert!(report(&policy, end + MINUTE - MOMENT).is_ok());
    assert_eq!(report(&policy, end + MINUTE).unwrap_err().reason, DenialReason::PolicyExpired);
    assert!(matches!(freshness(&policy, "incident-response", end + 29 * DAY), Freshness::Stale(_)));
}

#[test]
fn an_expired_role_affects_only_the_scopes_that_depend_on_it() {
    let mut one = sample();
    one.lives.extend([("finance".to_owned(), HOUR), ("timestamp".to_owned(), 9 * DAY)]);
    one.publish(now()).unwrap();
    let policy = load(&one);
    let at = now() + 3 * HOUR;
    let told = lapse("finance", now() + HOUR);
    assert_eq!(freshness(&policy, "finance/quarter-close", at), Freshness::Expired(told.clone()));
    assert_eq!(freshness(&policy, "ledger-read", at), Freshness::Fresh);
    assert_eq!(policy.state(at), PolicyState::Stale(told));
    assert_eq!(policy.ends()["business-owners"], now() + HOUR, "the earliest of the business");
    assert_eq!(policy.ends().len(), 9);
    // Also of one who only let the department speak.
    for role in ["governance", "business-owners", "implementers", "security", "incident", "targets", "root", "snapshot"]
    {
        let mut sample = sample();
        sample.lives.extend([(role.to_owned(), HOUR), ("timestamp".to_owned(), 9 * DAY)]);
        sample.publish_root(now()).unwrap();
        sample.publish(now()).unwrap();
        let policy = load(&sample);
        for scope in ["ledger-read", "finance/quarter-close", "incident-response"] {
            let expected = Freshness::Stale(lapse(role, now() + HOUR));
            assert_eq!(freshness(&policy, scope, now() + HOUR), expected, "{role} {scope}");
        }
        assert_eq!(policy.ends()[role], now() + HOUR);
    }
}

#[test]
fn the_state_is_that_of_the_best_tier_and_names_the_first_expiry() {
    let policy = load(&sample());
    let end = now() + 10 * MINUTE;
    let told = lapse("timestamp", end);
    for (at, state) in [
        (end - MOMENT, PolicyState::Fresh),
        (end, PolicyState::Stale(told.clone())),
        (end + 2 * HOUR, PolicyState::Stale(told.clone())),
        (end + DAY, PolicyState::Expired(told)),
    ] {
        assert_eq!(policy.state(at), state);
    }
    assert_eq!(Policy::load(&fixture()).unwrap().state(now() + 900 * DAY), PolicyState::Unsigned);
    assert!(report(&Policy::load(&fixture()).unwrap(), now() + 60 * DAY).unwrap().stale().is_none());
}

#[test]
fn rejects_a_version_with_a_role_without_valid_signatures() {
    for role in ["root", "timestamp", "snapshot", "targets", "security", "incident", "governance", "finance"] {
        let mut files = published(&sample());
        files.signed.as_mut().unwrap().standing.ends.remove(role);
        let error = Policy::load(&files).unwrap_err();
        assert!(error.problems.iter().all(|problem| problem.kind == kind::NOT_OWNER), "{role}: {error}");
    }
    let mut files = published(&sample());
    files.signed.as_mut().unwrap().publishers.remove("scopes/ledger-read.toml");
    assert_eq!(Policy::load(&files).unwrap_err().problems[0].file, "scopes/ledger-read.toml");
    let policy = load(&sample());
    let mut standing = policy.standing().unwrap().clone();
    assert!(policy.confirmed(standing.clone()).is_some());
    standing.ends.remove("incident");
    assert!(policy.confirmed(standing).is_none());
}

#[test]
fn reports_names_that_their_role_does_not_own_and_suspends_nothing() {
    let mut files = published(&sample());
    let stray = Problem::new("grants/evil.toml", kind::NOT_OWNER, "listed by finance");
    files.signed.as_mut().unwrap().stray.push(stray.clone());
    let policy = Policy::load(&files).unwrap();
    assert_eq!((policy.stray(), policy.active()), (&[stray][..], 3));
}

#[tokio::test]
async fn a_heartbeat_renews_the_policy_and_decides_nothing_again() {
    let source = Source::new(sample());
    let cache = source.cache();
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
    let mut told = cache.subscribe();
    told.mark_unchanged();
    let later = now() + HOUR;
    let version = cache.current().unwrap().version().clone();
    assert!(report(&cache.current().unwrap(), later).unwrap().stale().is_some());
    source.sample.lock().unwrap().heartbeat(later).unwrap();
    assert_eq!(cache.reload_now(later).await, RefreshOutcome::Unchanged);
    let policy = cache.current().unwrap();
    assert_eq!((policy.version(), policy.state(later)), (&version, PolicyState::Fresh));
    assert!(report(&policy, later).unwrap().stale().is_none());
    assert!(!told.has_changed().unwrap());
    assert_eq!(policy.ends()["timestamp"], later + 10 * MINUTE);
}

#[tokio::test]
async fn counts_untrusted_versions_apart_from_unavailable_sources() {
    let source = Source::new(sample());
    let cache = source.cache();
    *source.reachable.lock().unwrap() = Err(true);
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
    assert!(cache.current().is_none());
    *source.reachable.lock().unwrap() = Err(false);
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Unavailable);
    *source.reachable.lock().unwrap() = Ok(());
    assert_eq!(cache.reload_now(now() + MINUTE).await, RefreshOutcome::Loaded);
    let status = cache.status();
    let refused = status.refused.unwrap();
    assert_eq!((refused.at, status.problems.len()), (now(), 0));
    assert!(refused.problems[0].message.contains("a signature is wrong"));
}

#[test]
fn a_kill_wins_over_everything_else_in_a_decision() {
    let killed = |target: &str, who: &str, ask: &Ask| {
        let mut sample = sample();
        kill(&mut sample, &entry("stop-1", target));
        sample.publish(now()).unwrap();
        load(&sample).decide(&caller(who, Proof::JwtSvid), ask, now() + 20 * DAY)
    };
    for target in [
        "scope = \"ledger-read\"",
        "spiffe_id = \"spiffe://example.org/ns/finance/sa/report\"",
        "trust_domain = \"example.org\"",
        "grant = \"ledger-read-aws\"",
        "owner = \"finance-data\"",
        "owner = \"identity-governance\"",
        "provider = \"aws\"",
        "all = true",
    ] {
        // Also where parameters are wrong, nobody is permitted, and the policy has expired.
        for (who, ask) in [(REPORT, ledger("c-42")), (REPORT, ledger("*")), (INTRUDER, ledger("c-42"))] {
            if target.starts_with("spiffe_id") && who == INTRUDER {
                continue;
            }
            let denial = killed(target, who, &ask).unwrap_err();
            assert_eq!(denial.reason, DenialReason::Killed, "{target} {who}");
            assert_eq!(denial.detail, "kill list entry stop-1: INC-7 leaked");
        }
    }
    assert_eq!(killed("scope = \"nowhere\"", REPORT, &ask("nowhere", &[])).unwrap_err().reason, DenialReason::Killed);
    let other = killed("scope = \"incident-response\"", REPORT, &ledger("c-42")).unwrap_err();
    assert_eq!(other.reason, DenialReason::PolicyExpired);
}

#[test]
fn a_kill_of_one_task_stops_that_task_alone() {
    let (task, other) = (TaskId::generate().unwrap(), TaskId::generate().unwrap());
    let mut sample = sample();
    kill(&mut sample, &entry("stop-1", &format!("task = \"{task}\"")));
    sample.publish(now()).unwrap();
    let policy = load(&sample);
    let decide = |task| policy.decide_for(&caller(REPORT, Proof::JwtSvid), &ledger("c-42"), task, now());
    assert_eq!(decide(Some(&task)).unwrap_err().reason, DenialReason::Killed);
    assert!(decide(Some(&other)).is_ok() && decide(None).is_ok());
    let keeps = |task| policy.still_permits(&caller(REPORT, Proof::JwtSvid), &ledger("c-42"), task, now());
    assert_eq!(keeps(&task).unwrap_err().reason, DenialReason::Killed);
    assert!(keeps(&other).is_ok());
}

#[tokio::test]
async fn the_kill_list_of_a_version_that_is_refused_applies_and_survives_a_restart() {
    let source = Source::new(sample());
    let cache = source.cache();
    cache.reload_now(now()).await;
    let good = cache.current().unwrap();
    let mut told = cache.subscribe();
    told.mark_unchanged();
    source.publish(now(), |sample| {
        put(sample, "boundaries/bad.cedar", "permit");
        kill(sample, &entry("stop-1", "scope = \"ledger-read\""));
    });
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
    let policy = cache.current().unwrap();
    assert_eq!(policy.version(), good.version(), "the last good one stays");
    assert_eq!(report(&policy, now()).unwrap_err().reason, DenialReason::Killed);
    assert!(told.has_changed().unwrap(), "whoever runs tasks must look");
    assert_eq!(cache.status().problems[0].file, "boundaries/bad.cedar");
    // A heartbeat of what was refused renews nothing.
    let later = now() + HOUR;
    source.sample.lock().unwrap().heartbeat(later).unwrap();
    assert_eq!(cache.reload_now(later).await, RefreshOutcome::Refused);
    assert_eq!(cache.current().unwrap().ends()["timestamp"], now() + 10 * MINUTE);
    // Fixed, with the list as it is.
    source.publish(later, |sample| drop(sample.files.remove("boundaries/bad.cedar")));
    assert_eq!(cache.reload_now(later).await, RefreshOutcome::Loaded);
    assert_eq!(report(&cache.current().unwrap(), later).unwrap_err().reason, DenialReason::Killed);
    let restarted = source.cache();
    assert_eq!(restarted.reload_now(later).await, RefreshOutcome::Loaded);
    assert_eq!(report(&restarted.current().unwrap(), later).unwrap_err().reason, DenialReason::Killed);
    source.publish(later, |sample| kill(sample, ""));
    assert_eq!(restarted.reload_now(later).await, RefreshOutcome::Loaded);
    assert!(report(&restarted.current().unwrap(), later).is_ok());
}

#[tokio::test]
async fn a_bad_kill_list_refuses_its_version_and_the_last_list_stays() {
    let source = Source::new(sample());
    let cache = source.cache();
    source.publish(now(), |sample| kill(sample, &entry("stop-1", "scope = \"ledger-read\"")));
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
    source.publish(now(), |sample| kill(sample, "[[stop]]\nid = \"x\"\n"));
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
    assert_eq!(report(&cache.current().unwrap(), now()).unwrap_err().reason, DenialReason::Killed);
}

/// Shows files as they are given, whatever their versions.
#[derive(Debug)]
struct Given(Mutex<PolicyFiles>);

#[async_trait]
impl PolicySource for Given {
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        let files = self.0.lock().unwrap().clone();
        Ok(if seen == Some(&files.version) { Fetched::Unchanged } else { Fetched::New(files) })
    }
}

#[tokio::test]
async fn the_epoch_of_the_kill_list_never_goes_back() {
    let mut sample = sample();
    let before = published(&sample);
    kill(&mut sample, &entry("stop-1", "all = true"));
    put(&mut sample, "boundaries/bad.cedar", "permit");
    sample.publish(now()).unwrap();
    let (bad, mut back) = (published(&sample), before.clone());
    back.version = PolicyVersion("3-0".into());
    let source = Arc::new(Given(Mutex::new(before)));
    let cache = PolicyCache::new(Arc::clone(&source) as _, LoadOptions::default());
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
    *source.0.lock().unwrap() = bad;
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
    *source.0.lock().unwrap() = back;
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
    let problem = cache.status().problems.remove(0);
    assert_eq!(
        (problem.file.as_str(), problem.message.as_str()),
        ("kill/list.toml", "goes back: version 1 of the role incident, after 2")
    );
    assert_eq!(report(&cache.current().unwrap(), now()).unwrap_err().reason, DenialReason::Killed);
}

#[tokio::test]
async fn a_directory_enforces_its_kill_list_and_drops_it_with_the_version_that_had_it() {
    let with = |changes: &[(&str, &str)]| {
        let mut files = fixture().files;
        files.extend(changes.iter().map(|(path, text)| ((*path).to_owned(), Bytes::copy_from_slice(text.as_bytes()))));
        PolicyFiles::unsigned(files)
    };
    let list = format!("schema = 1\n{}", entry("stop-1", "all = true"));
    let source = Arc::new(Given(Mutex::new(fixture())));
    let cache = PolicyCache::new(Arc::clone(&source) as _, LoadOptions::default());
    let see = async |files| {
        *source.0.lock().unwrap() = files;
        let outcome = cache.reload_now(now()).await;
        (outcome, report(&cache.current().unwrap(), now()).map_err(|denial| denial.reason).map(drop))
    };
    assert_eq!(see(fixture()).await, (RefreshOutcome::Loaded, Ok(())));
    assert_eq!(see(with(&[("kill/list.toml", &list)])).await, (RefreshOutcome::Loaded, Err(DenialReason::Killed)));
    assert_eq!(see(fixture()).await, (RefreshOutcome::Loaded, Ok(())));
    let bad = with(&[("kill/list.toml", &list), ("boundaries/bad.cedar", "permit")]);
    assert_eq!(see(bad).await, (RefreshOutcome::Refused, Err(DenialReason::Killed)));
    assert_eq!(see(fixture()).await, (RefreshOutcome::Loaded, Ok(())));
}

#[test]
fn a_change_that_nobody_decided_on_suspends_its_scope_alone() {
    for path in ["scopes/ledger-read.toml", "grants/ledger-read-aws.toml"] {
        let mut sample = sample();
        let text = format!("{}# a word more\n", std::str::from_utf8(&sample.files[path]).unwrap());
        put(&mut sample, path, &text);
        sample.publish(now()).unwrap();
        let policy = load(&sample);
        assert_eq!((policy.active(), policy.suspended().len()), (2, 1));
        let [problem] = &policy.suspended()[&"ledger-read".parse().unwrap()][..] else { panic!("{path}") };
        assert_eq!((problem.file.as_str(), problem.kind), (path, kind::DIGEST_MISMATCH));
        assert_eq!(report(&policy, now()).unwrap_err().reason, DenialReason::ScopeSuspended);
    }
}

#[test]
fn permits_and_denials_name_the_exact_files_decided_on() {
    let policy = load(&sample());
    let told = serde_json::to_value(report(&policy, now()).unwrap().digests()).unwrap();
    let files = fixture().files;
    let paths = [
        "decisions/ledger-read.cedar",
        "decisions/ledger-read.toml",
        "grants/ledger-read-aws.toml",
        "scopes/ledger-read.toml",
    ];
    let expected: serde_json::Map<String, Value> =
        paths.iter().map(|path| ((*path).to_owned(), Digest::of(&files[*path]).to_string().into())).collect();
    assert_eq!(told, Value::Object(expected.clone()));
    let denial = policy.decide(&caller(INTRUDER, Proof::JwtSvid), &ledger("c-42"), now()).unwrap_err();
    assert_eq!(serde_json::to_value(denial.digests).unwrap(), Value::Object(expected));
}

#[test]
fn a_signed_scope_must_name_known_owners() {
    for (id, scopes) in
        [("finance-data", vec!["finance/quarter-close", "ledger-read"]), ("operations", vec!["incident-response"])]
    {
        let mut sample = sample();
        sample.files.remove(&format!("owners/{id}.toml"));
        sample.publish(now()).unwrap();
        let policy = load(&sample);
        assert_eq!(policy.suspended().keys().map(ScopeId::as_str).collect::<Vec<_>>(), scopes);
        assert!(policy.suspended().values().flatten().all(|problem| problem.kind == kind::OWNER));
    }
    let mut none = sample();
    none.files.retain(|path, _| !path.starts_with("owners/"));
    none.publish(now()).unwrap();
    assert_eq!(load(&none).suspended().len(), 3);
    // Unsigned files need no owners, until somebody names one.
    let mut files = fixture().files;
    assert_eq!(Policy::load(&PolicyFiles::unsigned(files.clone())).unwrap().active(), 3);
    files.insert("owners/operations.toml".to_owned(), owner(""));
    assert_eq!(Policy::load(&PolicyFiles::unsigned(files)).unwrap().suspended().len(), 3);
}

#[test]
fn the_scopes_of_an_owner_who_left_stop_after_a_grace_and_elevated_ones_at_once() {
    let leaves: Timestamp = "2026-12-01T00:00:00Z".parse().unwrap();
    let mut sample = sample();
    sample.lives.insert("timestamp".to_owned(), 300 * DAY);
    sample.files.insert("owners/finance-data.toml".to_owned(), owner("active_until = 2026-11-30"));
    sample.publish(now()).unwrap();
    let policy = load(&sample);
    let stops = leaves + 7 * DAY;
    assert!(report(&policy, stops - MOMENT).is_ok());
    let denial = report(&policy, stops).unwrap_err();
    assert_eq!((denial.reason, denial.rule_ids), (DenialReason::Guardrail, vec![rules::OWNER_GONE.to_owned()]));
    assert_eq!(
        denial.detail,
        "forbidden by guardrail-owner-gone (the owner finance-data is active until 2026-12-01T00:00:00Z; \
         their scopes stop at 2026-12-08T00:00:00Z)"
    );
    // An elevated one is forbidden at once, for that and for want of an approval.
    let close = ask("finance/quarter-close", &[("customer", "c-42"), ("quarter", "2026-q3")]);
    let closing = |at| policy.decide(&caller(CLOSE, Proof::JwtSvid), &close, at).unwrap_err();
    assert_eq!(closing(leaves - MOMENT).reason, DenialReason::ApprovalRequired);
    assert_eq!(closing(leaves).rule_ids, [rules::APPROVAL_REQUIRED, rules::OWNER_GONE]);
    assert_eq!([leaves - MOMENT, leaves, stops].map(|at| policy.orphaned(at)), [0, 1, 2]);
    assert!(policy.decide(&caller(ON_CALL, Proof::JwtSvid), &emergency(), stops).is_ok(), "others go on");
    // Who runs a task is asked the same.
    let task = TaskId::generate().unwrap();
    assert!(policy.still_permits(&caller(REPORT, Proof::JwtSvid), &ledger("c-42"), &task, stops).is_err());
    let due = policy.due(now());
    assert!(due.iter().any(|problem| problem.message.contains("finance-data is active until")), "{due:?}");
    assert!(load(&self::sample()).due(now()).is_empty());
}

#[test]
fn the_first_owner_to_leave_counts_and_the_charter_sets_the_grace() {
    let mut sample = sample();
    sample.lives.insert("timestamp".to_owned(), 300 * DAY);
    sample.files.insert("owners/finance-data.toml".to_owned(), owner("active_until = 2026-11-30"));
    sample.files.insert("owners/identity-governance.toml".to_owned(), owner("active_until = 2026-11-28T12:00:00Z"));
    put(&mut sample, "owners/charter.toml", "schema = 1\norphan_grace = \"0s\"\n");
    sample.publish(now()).unwrap();
    let policy = load(&sample);
    let leaves: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
    assert!(report(&policy, leaves - MOMENT).is_ok());
    assert!(report(&policy, leaves).unwrap_err().detail.contains("identity-governance"));
}

#[test]
fn every_guardrail_on_time_is_named_in_full() {
    let policy = Policy::load(&fixture()).unwrap();
    let overdue = report(&policy, "2027-02-09T00:00:00Z".parse().unwrap()).unwrap_err();
    assert_eq!(overdue.rule_ids, [rules::REVIEW_OVERDUE]);
    assert_eq!(
        overdue.detail,
        "forbidden by guardrail-review-overdue (review due by 2027-02-02T00:00:00Z, stopped at 2027-02-09T00:00:00Z)"
    );
    let at = |time: &str| {
        let at = time.parse().unwrap();
        policy.decide(&caller(ON_CALL, Proof::JwtSvid), &emergency(), at).unwrap_err().detail
    };
    assert_eq!(at("2026-12-31T12:00:00Z"), "forbidden by guardrail-expired (ended at 2026-12-31T12:00:00Z)");
    assert!(at("2027-02-02T00:00:00Z").contains("), guardrail-review-overdue (review due by"));
}

#[test]
fn lint_warns_of_a_provider_that_this_version_does_not_know() {
    let mut sample = sample();
    kill(
        &mut sample,
        &[entry("a", "provider = \"asw\""), entry("b", "provider = \"aws\"\nuntil = 2026-01-01")].concat(),
    );
    sample.publish(now()).unwrap();
    let policy = load(&sample);
    let told: Vec<_> = policy.warnings().iter().filter(|problem| problem.file == kill::LIST).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].message.starts_with("entry a:"), "{}", told[0].message);
}

const FILTERS: [&[&str]; 3] = [&["ledger-read"], &["finance/quarter-close", "incident-response"], &["elsewhere"]];
const LISTS: [&str; 4] = ["", "scope = \"ledger-read\"", "owner = \"operations\"", "trust_domain = \"a\""];

/// For each of [`LISTS`] the whole policy, and what each of [`FILTERS`] leaves of it.
fn narrowed() -> Vec<(Policy, Vec<Policy>)> {
    let policies = LISTS.map(|list| {
        let mut sample = sample();
        if !list.is_empty() {
            kill(&mut sample, &entry("x", list));
        }
        sample.publish(now()).unwrap();
        let files = published(&sample);
        let narrowed = FILTERS.map(|filter| {
            let scopes = filter.iter().map(|id| id.parse().unwrap()).collect();
            Policy::load_with(&files, &LoadOptions { scopes, ..LoadOptions::default() }).unwrap()
        });
        (Policy::load(&files).unwrap(), narrowed.into())
    });
    policies.into()
}

proptest! {
    /// Requirement G03, with everything that a signed policy has.
    #[test]
    fn local_configuration_only_narrows_a_signed_policy(
        ask in any_ask(),
        who in prop_oneof![Just(REPORT), Just(CLOSE), Just(ON_CALL), Just(INTRUDER)],
        minutes in 0u32..3000,
        filter in 0..FILTERS.len(),
        list in 0..LISTS.len(),
    ) {
        thread_local!(static POLICIES: Vec<(Policy, Vec<Policy>)> = narrowed());
        let (caller, at) = (caller(who, Proof::JwtSvid), now() + minutes * MINUTE);
        let (whole, narrowed) = POLICIES.with(|policies| {
            let (whole, narrowed) = &policies[list];
            (whole.decide(&caller, &ask, at), narrowed[filter].decide(&caller, &ask, at))
        });
        if let Ok(narrowed) = narrowed {
            let whole = whole.unwrap();
            prop_assert_eq!(narrowed.caps(), whole.caps());
            prop_assert_eq!(narrowed.grants(), whole.grants());
            prop_assert_eq!(narrowed.stale(), whole.stale());
            prop_assert_eq!(narrowed.digests(), whole.digests());
        }
    }

    /// Requirement G13: whatever a caller says, it changes nothing that was verified, and is no approval.
    #[test]
    fn what_is_asserted_never_satisfies_what_must_be_verified(
        reason in proptest::option::of(any::<String>()),
        approval in proptest::option::of(any::<String>()),
        minutes in 0u32..200,
    ) {
        thread_local!(static POLICY: Policy = {
            let mut files = fixture().files;
            // Whoever is permitted here is so by what is verified alone.
            let rule = "@id(\"verified\") permit (principal, action == Action::\"begin\", resource == Scope::\"incident-response\") \
                        when { context.verified has approval || context.verified.proof == \"pod\" };";
            files.insert("decisions/incident-response.cedar".to_owned(), rule.into());
            Policy::load(&PolicyFiles::unsigned(files)).unwrap()
        });
        let at = now() + minutes * MINUTE;
        let said = |scope: Ask| Ask { reason: reason.clone(), approval: approval.clone(), ..scope };
        let decide = |who: &str, proof, ask: Ask| POLICY.with(|policy| policy.decide(&caller(who, proof), &ask, at)).map_err(|d| d.reason);
        let close = ask("finance/quarter-close", &[("customer", "c-42"), ("quarter", "2026-q3")]);
        prop_assert_eq!(decide(CLOSE, Proof::JwtSvid, said(close)).map(drop), Err(DenialReason::ApprovalRequired));
        let emergency = said(ask("incident-response", &[]));
        prop_assert_eq!(decide(ON_CALL, Proof::JwtSvid, emergency.clone()).map(drop), Err(DenialReason::NotPermitted));
        let blank = reason.as_deref().unwrap_or_default().trim().is_empty();
        prop_assert_eq!(decide(ON_CALL, Proof::Pod, emergency).is_ok(), !blank);
    }
}
