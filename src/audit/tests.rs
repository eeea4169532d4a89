use std::io::Cursor;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::sample::Index;

use super::verify::{Kind as Found, Options, Report, Verifier, verify};
use super::*;
use crate::clock::ManualClock;

/// A log in a directory of its own, with its state.
struct Place {
    directory: tempfile::TempDir,
    settings: Settings,
    now: Timestamp,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("logs");
        fs::create_dir(&logs).unwrap();
        let settings = Settings::new(Output::File(logs.join("audit.jsonl")));
        Self { directory, settings, now: Timestamp::from_secs(1_795_452_513) }
    }

    fn log(&self) -> PathBuf {
        self.logs().join("audit.jsonl")
    }

    fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn start(&self) -> Audit {
        Audit::start(&self.settings, &self.state(), self.now).unwrap()
    }

    /// Starts, writes `lines` lines and stops in order.
    async fn session(&self, lines: usize) -> Head {
        let audit = self.start();
        for n in 0..lines {
            audit.record(&decision(self.now, &format!("r-{n}"))).await.unwrap();
        }
        audit.close(self.now).await.unwrap();
        gone(audit)
    }

    /// The same, but stopped by a crash.
    async fn crashed_session(&self, lines: usize) -> Head {
        let audit = self.start();
        for n in 0..lines {
            audit.record(&decision(self.now, &format!("r-{n}"))).await.unwrap();
        }
        gone(audit)
    }

    fn key(&self) -> PublicKey {
        SigningKey::load(&self.state()).unwrap().public()
    }

    fn verify(&self) -> Report {
        verify(&[self.logs()], Options { keys: vec![self.key()], ..Options::default() }).unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.log()).unwrap()
    }
}

/// Waits until the writer's thread has ended, as it has when a process is gone. Returns the head it left.
fn gone(audit: Audit) -> Head {
    let shared = Arc::clone(&audit.shared);
    drop(audit);
    while Arc::strong_count(&shared) > 1 {
        std::thread::yield_now();
    }
    *shared.head.lock().unwrap()
}

fn decision<'a>(now: Timestamp, request: &'a str) -> Event<'a> {
    Event { request_id: Some(request), ..Event::new(now, Kind::Decision, "permit") }
}

fn kinds(report: &Report) -> Vec<Found> {
    report.problems.iter().map(|problem| problem.kind).collect()
}

#[tokio::test]
async fn verifies_an_untouched_log_across_restarts() {
    let place = Place::new();
    place.session(3).await;
    let head = place.session(2).await;
    let report = place.verify();
    assert!(report.ok, "{report:?}");
    // created, 3 lines, stopped; started, 2 lines, stopped
    assert_eq!((report.lines, report.checkpoints, report.unsigned_tail), (9, 4, 0));
    assert_eq!(report.head, Some(head.to_string()));
    assert_eq!(remembered_head(&place.state()).unwrap(), head);
    assert_eq!(fs::metadata(place.log()).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(place.state()).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn writes_checkpoints_by_line_count_and_by_time() {
    let mut place = Place::new();
    place.settings.checkpoint_every = 2;
    let audit = Arc::new(place.start());
    for n in 0..5 {
        audit.record(&decision(place.now, &format!("r-{n}"))).await.unwrap();
    }
    // created, 2 + checkpoint, 2 + checkpoint, 1
    assert_eq!(place.text().matches("\"checkpoint\"").count(), 3);
    assert_eq!(place.verify().unsigned_tail, 1);

    let clock = ManualClock::at(place.now);
    let (keeper, shared) = (Arc::clone(&audit), Arc::new(clock.clone()));
    let task = tokio::spawn(async move { keeper.keep(shared).await });
    for _ in 0..3 {
        while clock.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_secs(60));
        tokio::task::yield_now().await;
    }
    audit.record(&decision(place.now, "last")).await.unwrap();
    task.abort();
    // one for the line that was not signed, none for the minutes without lines
    assert_eq!(place.text().matches("\"interval\"").count(), 3);
}

#[tokio::test]
async fn rotates_a_full_file_and_keeps_a_limited_number() {
    let mut place = Place::new();
    place.settings.rotation = Rotation { size: 4096, age: None, keep: 2 };
    let head = place.session(200).await;
    let names: Vec<_> = verify::files(&[place.log()]).unwrap();
    let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names.len(), 3);
    assert_eq!(names[2], "audit.jsonl");
    assert!(names[0] < names[1] && names[0] > "audit.jsonl.000002", "{names:?}");
    let options = Options { keys: vec![place.key()], head: Some(head), part: false };
    let report = verify(&[place.log()], options).unwrap();
    assert!(report.ok, "{report:?}");
    assert!(report.first_seq > Some(1));
    assert!(fs::metadata(place.log()).unwrap().len() < 8192);

    // A file in the middle that is not there, shows.
    fs::remove_file(place.logs().join(names[1])).unwrap();
    assert_eq!(kinds(&place.verify()), [Found::Missing]);
}

#[tokio::test]
async fn rotates_an_old_file_at_the_next_line() {
    let mut place = Place::new();
    place.settings.rotation.age = Some(Duration::from_secs(3600));
    place.session(1).await;
    place.now = place.now + Duration::from_secs(3600);
    place.session(1).await;
    assert_eq!(verify::files(&[place.logs()]).unwrap().len(), 2);
    assert!(place.verify().ok, "{:?}", place.verify());
}

#[tokio::test]
async fn keeps_a_torn_line_in_its_own_file_and_reports_it() {
    let place = Place::new();
    place.crashed_session(2).await;
    let mut text = place.text();
    text.push_str("{\"seq\":4,\"prev\":\"ab");
    fs::write(place.log(), &text).unwrap();
    place.session(1).await;
    let report = place.verify();
    assert!(report.ok, "{report:?}");
    assert!(place.text().contains("\"torn_line\"") && place.text().contains("19 bytes"), "{}", place.text());
    assert_eq!(fs::read_to_string(place.logs().join("audit.jsonl.torn-4-0")).unwrap(), "{\"seq\":4,\"prev\":\"ab");
}

#[tokio::test]
async fn detects_at_start_lines_that_were_cut_off_while_down() {
    let place = Place::new();
    let head = place.crashed_session(5).await;
    let text = place.text();
    let kept: String = text.lines().take(4).map(|line| format!("{line}\n")).collect();
    fs::write(place.log(), kept).unwrap();
    // By the log alone it cannot be seen, with the head it can.
    assert!(place.verify().ok);
    let options = Options { head: Some(head), ..Options::default() };
    assert_eq!(kinds(&verify(&[place.log()], options).unwrap()), [Found::Truncated]);

    place.session(1).await;
    assert!(place.text().contains("\"missing_lines\""), "{}", place.text());
    let mut found = kinds(&place.verify());
    found.sort_by_key(|kind| *kind as u8);
    assert_eq!(found, [Found::Missing, Found::Recovery]);
}

#[tokio::test]
async fn detects_at_start_a_last_line_that_was_changed_while_down() {
    let place = Place::new();
    place.crashed_session(3).await;
    let text = place.text();
    fs::write(place.log(), text.replace("r-2", "r-9")).unwrap();
    assert!(place.verify().ok, "not signed yet, so the log alone cannot tell");
    place.session(1).await;
    assert_eq!(kinds(&place.verify()), [Found::Edited, Found::Recovery]);
}

#[tokio::test]
async fn continues_a_log_written_just_before_a_crash_without_a_warning() {
    let place = Place::new();
    place.crashed_session(1).await;
    let behind = fs::read(place.state().join("audit-head")).unwrap();
    place.crashed_session(2).await;
    fs::write(place.state().join("audit-head"), behind).unwrap();
    place.session(1).await;
    assert!(place.verify().ok, "{:?}", place.verify());
    assert!(!place.text().contains("recovery"));
}

#[tokio::test]
async fn does_not_silently_continue_a_log_of_another_chain() {
    let (place, other) = (Place::new(), Place::new());
    place.session(5).await;
    other.session(2).await;
    fs::copy(place.log(), other.log()).unwrap();
    other.session(1).await;
    let found = kinds(&other.verify());
    assert!(found.contains(&Found::ForeignKey) && found.contains(&Found::Recovery), "{found:?}");
}

#[tokio::test]
async fn continues_the_chain_in_a_new_file() {
    let place = Place::new();
    let before = place.session(2).await;
    fs::rename(place.log(), place.logs().join("moved")).unwrap();
    place.session(1).await;
    let first = place.text().lines().next().unwrap().to_owned();
    assert_eq!(chain::link(first.as_bytes()), Some((before.seq + 1, before.hash)));
    assert!(place.verify().ok, "{:?}", place.verify());
}

#[tokio::test]
async fn a_checkpoint_of_another_key_is_foreign() {
    let place = Place::new();
    place.session(2).await;
    let own = place.key();
    fs::remove_file(place.state().join("audit-key.pk8")).unwrap();
    place.session(1).await;
    let report = verify(&[place.log()], Options { keys: vec![own], ..Options::default() }).unwrap();
    assert_eq!(kinds(&report), [Found::ForeignKey, Found::ForeignKey]);
    assert_eq!(report.unsigned_tail, 3);
    let both = Options { keys: vec![own, place.key()], ..Options::default() };
    assert!(verify(&[place.log()], both).unwrap().ok);
    // Without a key the first one is trusted, and no other.
    assert_eq!(kinds(&verify(&[place.log()], Options::default()).unwrap()).len(), 2);
}

#[tokio::test]
async fn two_sidecars_cannot_write_one_log() {
    let place = Place::new();
    let _first = place.start();
    let error = Audit::start(&place.settings, &place.directory.path().join("other"), place.now).unwrap_err();
    assert!(error.to_string().contains("its own audit.output"), "{error}");
}

#[tokio::test]
async fn rejects_a_link_in_place_of_the_log() {
    let place = Place::new();
    fs::write(place.directory.path().join("target"), "").unwrap();
    std::os::unix::fs::symlink(place.directory.path().join("target"), place.log()).unwrap();
    assert!(Audit::start(&place.settings, &place.state(), place.now).is_err());
}

#[tokio::test]
async fn bounds_and_counts_a_flood_of_refusals_in_the_log() {
    let place = Place::new();
    let audit = place.start();
    for _ in 0..5000 {
        audit.note(&Event::new(place.now, Kind::Refusal, "refused"));
    }
    assert!(audit.lost() >= 4800);
    audit.note(&Event::new(place.now + Duration::from_secs(1), Kind::Refusal, "refused"));
    audit.record(&decision(place.now, "r-1")).await.unwrap();
    audit.close(place.now).await.unwrap();
    let text = place.text();
    let refused = text.matches("\"refused\"").count();
    assert!(refused <= 201, "{refused}");
    assert!(text.contains(&format!("\"not_written\",\"count\":{}", audit.lost())), "{text}");
    assert!(place.verify().ok);
}

/// A sink that fails when told to, after it took a few bytes.
#[derive(Clone, Default)]
struct Faulty {
    bytes: Arc<Mutex<Vec<u8>>>,
    failing: Arc<std::sync::atomic::AtomicBool>,
}

impl Write for Faulty {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.failing.load(Ordering::SeqCst) {
            let mut bytes = self.bytes.lock().unwrap();
            if bytes.last() == Some(&b'\n') {
                bytes.extend_from_slice(&buf[..5]);
                return Ok(5);
            }
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn fails_the_operation_when_its_line_cannot_be_written_and_keeps_the_chain() {
    let sink = Faulty::default();
    let audit = Audit::to(Box::new(sink.clone())).unwrap();
    let now = Timestamp::from_secs(1);
    audit.record(&decision(now, "r-1")).await.unwrap();
    sink.failing.store(true, Ordering::SeqCst);
    assert!(audit.record(&decision(now, "r-2")).await.is_err());
    sink.failing.store(false, Ordering::SeqCst);
    audit.record(&decision(now, "r-3")).await.unwrap();
    let text = String::from_utf8(sink.bytes.lock().unwrap().clone()).unwrap();
    let mut verifier = Verifier::new(Options { part: true, ..Options::default() });
    verifier.read(Path::new("log"), Cursor::new(&text)).unwrap();
    // Only the piece that was broken off is wrong.
    assert_eq!(kinds(&verifier.finish()), [Found::Unreadable]);
    assert!(!text.contains("r-2"), "{text}");
}

#[tokio::test]
async fn a_full_device_fails_decisions() {
    let place = Place::new();
    let settings = Settings::new(Output::File("/dev/full".into()));
    let error = Audit::start(&settings, &place.state(), place.now).unwrap_err();
    assert!(error.to_string().contains("audit log cannot be written"), "{error}");
}

/// One way to tamper with a log.
#[derive(Debug, Clone)]
enum Tampering {
    Flip(Index, u8),
    Drop(Index),
    Repeat(Index),
    Swap(Index, Index),
    Insert(Index, String),
    Cut(Index),
    CutBytes(Index),
    DropFile(Index),
}

fn tampering() -> impl Strategy<Value = Tampering> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), 1..=255u8).prop_map(|(at, flip)| Tampering::Flip(at, flip)),
        2 => at().prop_map(Tampering::Drop),
        2 => at().prop_map(Tampering::Repeat),
        2 => (at(), at()).prop_map(|(a, b)| Tampering::Swap(a, b)),
        1 => (at(), "[ -~]{0,40}").prop_map(|(at, line)| Tampering::Insert(at, line)),
        2 => at().prop_map(Tampering::Cut),
        2 => at().prop_map(Tampering::CutBytes),
        1 => at().prop_map(Tampering::DropFile),
    ]
}

type Files = Vec<(PathBuf, Vec<u8>)>;

fn lines(files: &Files) -> Vec<(usize, Vec<u8>)> {
    let split = |(n, (_, bytes)): (usize, &(PathBuf, Vec<u8>))| {
        bytes.split_inclusive(|byte| *byte == b'\n').map(|line| (n, line.to_vec())).collect::<Vec<_>>()
    };
    files.iter().enumerate().flat_map(split).collect()
}

fn joined(files: &Files, lines: &[(usize, Vec<u8>)]) -> Files {
    let content = |n: usize| lines.iter().filter(|(file, _)| *file == n).flat_map(|(_, line)| line.clone()).collect();
    files.iter().enumerate().map(|(n, (path, _))| (path.clone(), content(n))).collect()
}

/// The tampered log, and whether it needs the head to be seen: when nothing is wrong but that the end is missing.
/// `None` when nothing was changed, or no more than retention does.
fn tampered(files: &Files, how: &Tampering) -> Option<(Files, bool)> {
    let mut all = lines(files);
    let count = all.len();
    let mut files = files.clone();
    let mut end_only = false;
    match how {
        Tampering::Flip(at, flip) => {
            let mut at = at.index(files.iter().map(|(_, bytes)| bytes.len()).sum());
            for (_, bytes) in &mut files {
                if at < bytes.len() {
                    bytes[at] ^= flip;
                    break;
                }
                at -= bytes.len();
            }
            return Some((files, false));
        }
        Tampering::Drop(at) => {
            let at = at.index(count);
            end_only = at + 1 == count;
            all.remove(at);
        }
        Tampering::Repeat(at) => {
            let at = at.index(count);
            all.insert(at, all[at].clone());
        }
        Tampering::Swap(a, b) => {
            let (a, b) = (a.index(count), b.index(count));
            if a == b {
                return None;
            }
            let (first, second) = (all[a].1.clone(), all[b].1.clone());
            (all[a].1, all[b].1) = (second, first);
        }
        Tampering::Insert(at, line) => {
            let at = at.index(count);
            all.insert(at, (all[at].0, format!("{line}\n").into_bytes()));
        }
        Tampering::Cut(at) => {
            let at = at.index(count);
            end_only = true;
            all.truncate(at);
        }
        Tampering::CutBytes(at) => {
            let (_, last) = files.last_mut()?;
            last.truncate(at.index(last.len()));
            let whole_lines = last.is_empty() || last.ends_with(b"\n");
            return Some((files, whole_lines));
        }
        Tampering::DropFile(at) => {
            let at = at.index(files.len());
            if at == 0 && files.len() > 1 {
                // What retention does as well.
                return None;
            }
            end_only = at + 1 == files.len();
            files.remove(at);
            return Some((files, end_only));
        }
    }
    Some((joined(&files, &all), end_only))
}

fn report(files: &Files, options: Options) -> Report {
    let mut verifier = Verifier::new(options);
    for (path, bytes) in files.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        verifier.read(path, Cursor::new(bytes)).unwrap();
    }
    verifier.finish()
}

fn written(sessions: &[(u8, bool)], every: u32, size: u64) -> (Files, PublicKey, Head) {
    let mut place = Place::new();
    place.settings.checkpoint_every = every;
    place.settings.rotation = Rotation { size, age: None, keep: 1000 };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut head = Head::START;
    for (lines, crash) in sessions {
        head = match crash {
            true => runtime.block_on(place.crashed_session((*lines).into())),
            false => runtime.block_on(place.session((*lines).into())),
        };
    }
    // The last one stops in order: what follows the last checkpoint is not claimed to be proved.
    if sessions.last().is_none_or(|(_, crash)| *crash) {
        head = runtime.block_on(place.session(1));
    }
    let read = |path: PathBuf| (path.clone(), fs::read(&path).unwrap());
    let files = verify::files(&[place.log()]).unwrap().into_iter().map(read).collect();
    (files, place.key(), head)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn verifies_any_log_and_rejects_any_tampering(
        sessions in prop::collection::vec((0..12u8, any::<bool>()), 1..4),
        every in 1..6u32,
        size in prop_oneof![Just(2048u64), Just(1 << 20)],
        tampering in prop::collection::vec(tampering(), 24),
    ) {
        let (files, key, head) = written(&sessions, every, size);
        let known = || Options { keys: vec![key], head: Some(head), part: false };
        let whole = report(&files, known());
        prop_assert!(whole.ok, "{whole:?}");
        prop_assert_eq!(whole.unsigned_tail, 0);
        for how in tampering {
            let Some((changed, end_only)) = tampered(&files, &how) else { continue };
            if changed == files {
                continue;
            }
            prop_assert!(!report(&changed, known()).ok, "{how:?}");
            if !end_only {
                prop_assert!(!report(&changed, Options { head: None, ..known() }).ok, "without the head: {how:?}");
            }
        }
    }

    #[test]
    fn verifying_arbitrary_bytes_ends_with_a_report(text in "(\\{\"seq\":[0-9]{1,3},\"prev\":\"[0-9a-f]{64}\",\"time\":\"2026-11-23T16:48:33Z\",\"event\":\"(end|checkpoint)\"\\}\n|[ -~]{0,20}\n?){0,8}") {
        let report = report(&vec![(PathBuf::from("log"), text.clone().into_bytes())], Options::default());
        prop_assert_eq!(report.ok, text.is_empty());
    }
}

/// The members of every kind of line: an event with all of them, written out so that a new one does not compile here.
fn every_member() -> std::collections::BTreeSet<String> {
    let task = TaskId::generate().unwrap();
    let lease = LeaseId::generate().unwrap();
    let (owner, scope): (_, crate::policy::ScopeId) = ("spiffe://example.org/w".parse().unwrap(), "a".parse().unwrap());
    let params = crate::policy::Params::default();
    let rules = ["r".to_owned()];
    let ending = crate::lease::record::LeaseEnding {
        id: lease.clone(),
        provider: Provider::Aws,
        outcome: crate::lease::record::Outcome::Expires,
        usable_until: Timestamp::default(),
        open_ended: false,
    };
    let digest = crate::policy::document::Digest::of(b"x");
    let digests = crate::policy::Digests {
        id: scope.clone(),
        decision: digest,
        rules: digest,
        scope: digest,
        grants: Box::new([("g".parse().unwrap(), digest)]),
    };
    let lapse = crate::policy::standing::Lapse { role: "timestamp".into(), since: Timestamp::default() };
    let event = Event {
        time: Timestamp::default(),
        event: Kind::Decision,
        outcome: "permit",
        request_id: Some("r"),
        reason: Some("r"),
        detail: Some("d".into()),
        dialect: Some("native"),
        status: Some(400),
        task: Some(&task),
        label: Some("l"),
        spiffe_id: Some(&owner),
        proof: Some(Proof::JwtSvid),
        flaw: Some("f"),
        scope: Some(&scope),
        params: Some(&params),
        stated_reason: Some("s"),
        tier: Some(Tier::Baseline),
        policy_version: Some("v"),
        rule_ids: &rules,
        digests: Some(&digests),
        stale: Some(&lapse),
        deadline: Some(Timestamp::default()),
        provider: Some(Provider::Aws),
        lease: Some(&lease),
        session_name: Some("s"),
        upstream: Some("u"),
        usable_until: Some(Timestamp::default()),
        leases: &[ending],
        count: Some(1),
    };
    let state = tempfile::tempdir().unwrap();
    let key = SigningKey::load_or_create(state.path()).unwrap();
    let (time, outcome) = (Timestamp::default(), chain::Cause::Created);
    let checkpoint =
        chain::Checkpoint { time, event: "checkpoint", outcome, file: Some(1), count: Some(1), key: key.public() };
    let (mut head, mut text) = (Head::START, Vec::new());
    head.seal(&encode(&event).unwrap(), &mut text);
    head.seal_checkpoint(&serde_json::to_vec(&checkpoint).unwrap(), &key, &mut text);
    let line =
        |line: &str| serde_json::from_str::<serde_json::Map<_, _>>(line).unwrap().into_iter().map(|(name, _)| name);
    String::from_utf8(text).unwrap().lines().flat_map(line).collect()
}

#[test]
fn the_audit_guide_documents_exactly_the_members_and_events() {
    let guide = include_str!("../../docs/audit.md");
    let rows = |header: &str| {
        let table = guide.split(header).nth(1).unwrap().lines().skip(2).take_while(|line| line.starts_with('|'));
        let words = table.map(|line| line.split('`').nth(1).unwrap().to_owned());
        words.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(rows("| member | says |"), every_member());
    let word = |kind: Kind| serde_json::to_value(kind).unwrap().as_str().unwrap().to_owned();
    let mut events: std::collections::BTreeSet<_> = Kind::ALL.into_iter().map(word).collect();
    events.insert("checkpoint".into());
    assert_eq!(rows("| event | outcomes |"), events);
}
