//! The journal's file: damaged, foreign or in use, it is refused in words that say so; never begun anew in silence.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use redb::{Database, TableDefinition};
use serde_json::json;
use sidemint::journal::{DiskJournal, Journal as _, JournalError};
use sidemint::lease::LeaseRecord;
use sidemint::task::TaskRecord;

use crate::fakes::Disk;
use crate::http::Call;
use crate::world::{Setup, World, until};

/// A journal that holds a task and a lease, closed.
async fn written() -> (World, Vec<u8>) {
    let mut w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    w.stop().await;
    until("the file is released", || DiskJournal::open(&w.state()).is_ok()).await;
    let bytes = fs::read(w.state().join("journal.redb")).unwrap();
    (w, bytes)
}

/// A directory as the sidecar makes it, whatever the umask.
fn make(directory: &Path) {
    fs::DirBuilder::new().mode(0o700).create(directory).unwrap();
}

fn refused(directory: &Path, what: &str) {
    match DiskJournal::open(directory) {
        Err(error @ JournalError::Unreadable { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains("journal.redb") && text.contains("cannot be read") && text.contains("move it away"),
                "{what}: {text}"
            );
        }
        Err(other) => panic!("{what}: {other}"),
        Ok((_, recovered)) => panic!("{what}: opened with {} tasks", recovered.tasks.len()),
    }
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_refused() {
    let (w, bytes) = written().await;
    for (number, keep) in [0, 1, 64, 320, 511, 4096, bytes.len() / 2, bytes.len() - 4096].into_iter().enumerate() {
        let directory = w.directory.path().join(format!("cut-{number}"));
        make(&directory);
        fs::write(directory.join("journal.redb"), &bytes[..keep]).unwrap();
        refused(&directory, &format!("the first {keep} of {} bytes", bytes.len()));
        assert_eq!(fs::read(directory.join("journal.redb")).unwrap().len(), keep, "and is left as it is");
    }
}

#[tokio::test]
async fn rejects_a_file_that_is_not_a_journal() {
    let (w, bytes) = written().await;
    let mut zeroed = bytes.clone();
    zeroed[..4096].fill(0);
    for (name, content) in [("text", b"no journal\n".repeat(1000)), ("zeros", vec![0; bytes.len()]), ("header", zeroed)]
    {
        let directory = w.directory.path().join(name);
        make(&directory);
        fs::write(directory.join("journal.redb"), content).unwrap();
        refused(&directory, name);
    }
}

#[tokio::test]
async fn a_flipped_byte_never_loses_a_task_silently() {
    let (w, bytes) = written().await;
    let directory = w.directory.path().join("flipped");
    make(&directory);
    fs::copy(w.state().join("sidecar-id"), directory.join("sidecar-id")).unwrap();
    for place in (0..bytes.len()).step_by(bytes.len() / 97) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x40;
        fs::write(directory.join("journal.redb"), &damaged).unwrap();
        // Damage may hit a page that is not in use; what may not happen is a journal without its task.
        if let Ok((_, recovered)) = DiskJournal::open(&directory) {
            assert_eq!((recovered.tasks.len(), recovered.leases.len()), (1, 1), "byte {place}");
        }
        until("the file is released", || !matches!(DiskJournal::open(&directory), Err(JournalError::InUse(_)))).await;
    }
}

#[tokio::test]
async fn another_layout_is_refused_by_its_number() {
    let (w, _) = written().await;
    let file = w.state().join("journal.redb");
    let meta: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
    let mut opened = None;
    until("the file is released", || {
        opened = Database::create(&file).ok();
        opened.is_some()
    })
    .await;
    let write = opened.as_ref().unwrap().begin_write().unwrap();
    write.open_table(meta).unwrap().insert("layout", 2).unwrap();
    write.commit().unwrap();
    drop(opened);
    let error = DiskJournal::open(&w.state()).unwrap_err().to_string();
    assert!(error.contains("its layout is 2, this version writes 1"), "{error}");
}

#[tokio::test]
async fn rejects_a_foreign_database() {
    let directory = tempfile::tempdir().unwrap();
    let foreign: TableDefinition<'static, &str, u64> = TableDefinition::new("foreign");
    let database = Database::create(directory.path().join("journal.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(foreign).unwrap().insert("x", 1).unwrap();
    write.commit().unwrap();
    drop(database);
    refused(directory.path(), "no layout in it");
}

#[tokio::test]
async fn a_journal_is_open_in_one_process_only() {
    let w = World::new().await;
    let error = DiskJournal::open(&w.state()).unwrap_err();
    assert!(matches!(error, JournalError::InUse(_)), "{error}");
    assert!(error.to_string().contains("state.directory"), "{error}");
    w.begin_scope("archive").await;
}

#[tokio::test]
async fn a_new_journal_is_for_its_owner_alone_and_empty() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("a/b");
    let (journal, recovered) = DiskJournal::open(&state).unwrap();
    assert!(recovered.tasks.is_empty() && recovered.leases.is_empty() && journal.healthy());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&state.join("journal.redb"))), (0o700, 0o600));
    assert_eq!(mode(&state.join("sidecar-id")), 0o600);
    assert_eq!(fs::read_dir(&state).unwrap().count(), 2, "nothing but the journal and whose it is");
    let unusable = directory.path().join("file");
    fs::write(&unusable, "").unwrap();
    assert!(matches!(DiskJournal::open(&unusable), Err(JournalError::Directory { .. })));
}

/// What is said of a state directory that cannot be used.
fn unusable(directory: &Path) -> String {
    match DiskJournal::open(directory) {
        Err(error @ JournalError::Directory { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn does_not_follow_a_link_in_place_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    std::os::unix::fs::symlink(&target, directory.path().join("journal.redb")).unwrap();
    let text = unusable(directory.path());
    assert!(text.contains("journal.redb") && text.contains("is a link"), "{text}");
    assert!(!target.exists());
}

#[tokio::test]
async fn does_not_follow_a_link_in_place_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    drop(DiskJournal::open(&real).unwrap());
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let text = unusable(&link);
    assert!(text.contains("a link or no directory"), "{text}");
}

#[tokio::test]
async fn rejects_files_that_others_may_write_and_does_not_change_their_mode() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    drop(DiskJournal::open(&state).unwrap());
    let file = state.join("journal.redb");
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o770, 0o702, 0o777, 0o2777] {
        chmod(&state, mode);
        let text = unusable(&state);
        assert!(text.contains("others may write it") && text.contains("chmod 700"), "{text}");
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o7777, mode);
    }
    chmod(&state, 0o700);
    chmod(&file, 0o620);
    let text = unusable(&state);
    assert!(text.contains("journal.redb has mode 0620"), "{text}");
    // That others could read names them some tasks, and no secret: it is put right.
    chmod(&file, 0o644);
    until("the file is released", || DiskJournal::open(&state).is_ok()).await;
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn rejects_files_of_another_user() {
    // Only root can give a directory away; who is not takes one that root owns.
    let directory = tempfile::tempdir().unwrap();
    let given = directory.path().join("given");
    fs::create_dir(&given).unwrap();
    let place = match std::os::unix::fs::chown(&given, Some(65_532), None) {
        Ok(()) => given,
        Err(_) => "/".into(),
    };
    let text = unusable(&place);
    assert!(text.contains("belongs to user"), "{text}");
}

#[tokio::test]
async fn rejects_what_is_not_a_file() {
    for kind in ["folder", "pipe"] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("journal.redb");
        match kind {
            "folder" => fs::create_dir(&file).unwrap(),
            _ => assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success()),
        }
        unusable(directory.path());
    }
}

/// What is said of a journal that is another sidecar's.
fn foreign(directory: &Path) -> String {
    match DiskJournal::open(directory) {
        Err(error @ JournalError::Foreign { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Makes a state directory that holds these files.
fn holding(directory: &Path, files: &[(&str, &[u8])]) {
    make(directory);
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[tokio::test]
async fn rejects_a_journal_that_came_without_its_directory() {
    let (w, bytes) = written().await;
    let id = fs::read_to_string(w.state().join("sidecar-id")).unwrap();
    let (alone, other) = (w.directory.path().join("alone"), w.directory.path().join("other"));
    holding(&alone, &[("journal.redb", &bytes)]);
    let text = foreign(&alone);
    assert!(
        text.contains(&format!("belongs to sidecar {}", id.trim())) && text.contains("has no sidecar-id"),
        "{text}"
    );
    assert!(text.contains("as a whole") && text.contains("move the journal away"), "{text}");
    holding(&other, &[("journal.redb", &bytes), ("sidecar-id", b"00000000000000ab\n")]);
    assert!(foreign(&other).contains("and this state directory to sidecar 00000000000000ab"));
    assert_eq!(fs::read(other.join("sidecar-id")).unwrap(), b"00000000000000ab\n", "and is left as it is");
    // The fix that it names.
    fs::write(other.join("sidecar-id"), &id).unwrap();
    let (_, recovered) = DiskJournal::open(&other).unwrap();
    assert_eq!((recovered.tasks.len(), recovered.leases.len()), (1, 1));
}

#[tokio::test]
async fn a_directory_whose_id_is_damaged_is_not_used() {
    for damaged in [&b""[..], b"ab\n", b"00000000000000zz\n", &[0xff; 100]] {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        holding(&state, &[("sidecar-id", damaged)]);
        let text = unusable(&state);
        assert!(text.contains("sidecar-id") || text.contains("UTF-8"), "{text}");
    }
}

#[tokio::test]
async fn a_journal_of_an_earlier_version_becomes_its_directorys() {
    let (w, _) = written().await;
    let file = w.state().join("journal.redb");
    let meta: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
    let mut opened = None;
    until("the file is released", || {
        opened = Database::create(&file).ok();
        opened.is_some()
    })
    .await;
    let write = opened.as_ref().unwrap().begin_write().unwrap();
    write.open_table(meta).unwrap().remove("owner").unwrap();
    write.commit().unwrap();
    drop(opened);
    fs::remove_file(w.state().join("sidecar-id")).unwrap();
    let (_, recovered) = DiskJournal::open(&w.state()).unwrap();
    assert_eq!(recovered.tasks.len(), 1);
    let copy = w.directory.path().join("copy");
    holding(&copy, &[("journal.redb", &fs::read(&file).unwrap())]);
    foreign(&copy);
}

#[tokio::test]
async fn a_directory_that_others_may_read_is_made_private() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    for mode in [0o755, 0o711, 0o750] {
        let _ = fs::create_dir(&state);
        fs::set_permissions(&state, fs::Permissions::from_mode(mode)).unwrap();
        until("the file is released", || DiskJournal::open(&state).is_ok()).await;
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o7777, 0o700);
    }
}

#[tokio::test]
async fn a_failing_disk_stops_minting_but_not_serving_or_revoking() {
    const FULL: (i32, &str) = (28, "No space left on device");
    const READ_ONLY: (i32, &str) = (30, "Read-only file system");
    const BROKEN: (i32, &str) = (5, "Input/output error");
    for (what, (error, says)) in [("write", FULL), ("write", READ_ONLY), ("write", BROKEN), ("sync", BROKEN)] {
        let disk = Disk::default();
        let w = World::with(Setup { vault: true, reaper: true, disk: Some(disk.clone()), ..Setup::default() }).await;
        crate::vault::scope(&w.policy_directory(), "db", "5m", &["vault"]);
        w.reload().await;
        let (live, ends, other) =
            (w.begin_scope("archive").await, w.begin_scope("db").await, w.begin_scope("archive").await);
        w.served(&live.token).await;
        let ask = Call::get(&format!("/v1/tasks/{}/credentials", ends.id)).bearer(&ends.token);
        assert_eq!(w.send(ask).await.status, 200);
        assert!(!w.ask_admin("/readyz").await.text().contains("journal"));
        disk.fail(what, error);
        let begins = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
        assert_eq!((begins.status, begins.code().as_str()), (503, "unavailable"), "{says}");
        assert_eq!((w.credentials(&other.token).await.status, w.cloud.calls()), (503, 1), "{says}");
        let ready = w.ask_admin("/readyz").await;
        let line = ready.text().lines().find(|line| line.starts_with("journal: a write failed")).map(str::to_owned);
        let line = line.unwrap_or_else(|| panic!("{}", ready.text()));
        assert!(line.contains(says) && line.ends_with("fix the disk and start again"), "{line}");
        assert_eq!(ready.status, 503);
        w.served(&live.token).await;
        let told = crate::vault::passing(&w, w.end(&ends)).await;
        assert_eq!([&told["durable"], &told["leases"][0]["outcome"]], [&json!(false), &json!("revoked")], "{says}");
        let vault = w.vault.as_deref().unwrap();
        assert_eq!((vault.live().len(), vault.live_tokens()), (0, 0));
        w.served(&live.token).await;
        assert_eq!(w.cloud.calls(), 1);
    }
}

#[tokio::test]
async fn mints_nothing_once_the_journal_was_removed_or_swapped() {
    for swapped in [false, true] {
        let w = World::new().await;
        let (live, other) = (w.begin_scope("archive").await, w.begin_scope("archive").await);
        w.served(&live.token).await;
        let (state, file) = (w.state(), w.state().join("journal.redb"));
        if swapped {
            let aside = w.directory.path().join("aside");
            fs::rename(&state, &aside).unwrap();
            let read = |name: &str| fs::read(aside.join(name)).unwrap();
            holding(&state, &[("journal.redb", &read("journal.redb")), ("sidecar-id", &read("sidecar-id"))]);
        } else {
            fs::remove_file(&file).unwrap();
        }
        // Seen without any write.
        let ready = w.ask_admin("/readyz").await;
        let said = "journal: its file was removed, or its directory was put in another's place, while it was in use: put back what was there and start again\n";
        assert!(ready.status == 503 && ready.text().contains(said), "{}", ready.text());
        assert_eq!((w.credentials(&other.token).await.status, w.cloud.calls()), (503, 1));
        let begins = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
        assert_eq!((begins.status, begins.code().as_str()), (503, "unavailable"));
        w.served(&live.token).await;
        assert_eq!(w.end(&live).await["durable"], false);
    }
}

/// What the journal reads of a record: no bytes break it, and what it reads is written again as the same.
fn read_again<T>(bytes: &[u8]) -> bool
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(record) = serde_json::from_slice::<T>(bytes) else { return false };
    let written = serde_json::to_vec(&record).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), record);
    true
}

#[tokio::test]
async fn records_round_trip_and_arbitrary_bytes_never_panic() {
    let w = World::new().await;
    let body = serde_json::json!({ "scope": "archive", "task": "nightly", "hold": true, "reason": "r" });
    let call = w.begin_call(&body).header("idempotency-key", "k");
    let task = crate::world::begun(&w.send(call).await);
    w.served(&task.token).await;
    w.end(&task).await;
    let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
    let (of_task, of_lease) = {
        let state = found.state();
        (serde_json::to_vec(&found.snapshot(&state)).unwrap(), serde_json::to_vec(&state.leases[0]).unwrap())
    };
    assert!(read_again::<TaskRecord>(&of_task) && read_again::<LeaseRecord>(&of_lease));
    let mut runner = TestRunner::new(Config::with_cases(4096));
    // One record or the other, some of its bytes replaced, left out or put in; or bytes of no record at all.
    let edit = (any::<Index>(), any::<u8>(), 0_u8..4);
    let strategy = (any::<bool>(), vec(edit, 0..6), vec(any::<u8>(), 0..64), any::<bool>());
    runner
        .run(&strategy, |(lease, edits, alone, any_bytes)| {
            let mut bytes = if lease { of_lease.clone() } else { of_task.clone() };
            for (index, byte, how) in edits {
                let at = index.index(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, byte),
                    // what JSON is made of breaks more than any other byte
                    _ => bytes[at] = b"{}[]\",:0-9eE.tn"[usize::from(byte) % 15],
                }
            }
            let bytes = if any_bytes { alone } else { bytes };
            read_again::<TaskRecord>(&bytes);
            read_again::<LeaseRecord>(&bytes);
            Ok(())
        })
        .unwrap();
}
