//! Faults of the state directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use super::*;

const COPIES: [&str; 2] = ["high-water.a", "high-water.b"];

async fn error(world: &World) -> String {
    world.source().fetch(None).await.unwrap_err().message
}

#[tokio::test]
async fn trusts_nothing_before_the_trust_command() {
    let world = World::new();
    let message = error(&world).await;
    assert!(message.starts_with("untrusted: ") && message.contains("sidemint policy trust"), "{message}");
    assert_eq!(world.served.asked(), Vec::<String>::new());
    world.source().trust().await.unwrap();
    assert_eq!(files(&world).await.files, policy_files());
}

#[tokio::test]
async fn a_waiting_sidecar_picks_up_trust_without_a_restart() {
    let world = World::new();
    let source = world.source();
    source.fetch(None).await.unwrap_err();
    world.source().trust().await.unwrap();
    assert_eq!(new(source.fetch(None).await).files, policy_files());
}

#[tokio::test]
async fn starts_offline_from_the_stored_version() {
    let mut world = World::trusted().await;
    world.sample.lives.insert("timestamp".to_owned(), Duration::from_secs(60));
    world.publish();
    let held = files(&world).await;
    world.down(true);
    world.clock.advance(2 * Sample::LIFE);
    let kept = files(&world).await;
    assert_eq!((&kept.version, &kept.files), (&held.version, &held.files));
    // Every role has ended, and whoever decides is told so.
    assert_eq!(kept.signed.as_ref().unwrap().standing, held.signed.as_ref().unwrap().standing);
    let source = world.source();
    new(source.fetch(None).await);
    assert!(source.fetch(Some(&held.version)).await.unwrap_err().message.starts_with("unreachable: "));
}

#[tokio::test]
async fn lost_state_raises_an_alarm_and_never_starts_over() {
    type Damage = fn(&Path);
    let damages: [Damage; 5] = [
        |file| fs::remove_file(file).unwrap(),
        |file| fs::write(file, "").unwrap(),
        |file| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        },
        |file| {
            let mut bytes = fs::read(file).unwrap();
            bytes[40] ^= 1;
            fs::write(file, bytes).unwrap();
        },
        |file| fs::write(file, vec![b'x'; 300 * 1024]).unwrap(),
    ];
    for damage in damages {
        let world = World::trusted().await;
        // One copy is repaired from the other, whichever it is, and told.
        for name in COPIES {
            let good = fs::read(world.policy().join(name)).unwrap();
            damage(&world.policy().join(name));
            let source = world.source();
            new(source.fetch(None).await);
            assert!(source.notes()[0].contains("high-water"), "{:?}", source.notes());
            assert_eq!(fs::read(world.policy().join(name)).unwrap(), good);
            drop(source);
            assert_eq!(files(&world).await.files, policy_files());
        }
        // Both are an alarm, also with a minimum version and for `policy trust`.
        for name in COPIES {
            damage(&world.policy().join(name));
        }
        let message = error(&world).await;
        assert!(message.starts_with("lost_state: ") && message.contains("sidemint policy trust"), "{message}");
        let settings = SignedSettings { minimum_version: Some(1), ..world.settings() };
        assert!(world.source_with(settings).fetch(None).await.unwrap_err().message.starts_with("lost_state: "));
        assert_eq!(world.source().trust().await.unwrap_err().kind(), FaultKind::LostState);
        // Emptied on purpose, it may begin anew.
        fs::remove_dir_all(world.policy()).unwrap();
        world.source().trust().await.unwrap();
    }
}

#[tokio::test]
async fn accepts_swapped_copies_and_raises_an_alarm_on_contradicting_ones() {
    let world = World::trusted().await;
    let [a, b] = COPIES.map(|name| world.policy().join(name));
    let (first, second) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
    fs::write(&a, second).unwrap();
    fs::write(&b, first).unwrap();
    assert_eq!(files(&world).await.files, policy_files());
    let mut other = HighWater::parse(&fs::read(&a).unwrap()).unwrap();
    other.marks.timestamp = None;
    fs::write(&b, other.to_bytes()).unwrap();
    assert!(error(&world).await.starts_with("lost_state: "));
}

#[tokio::test]
async fn a_torn_write_leaves_the_other_copy() {
    let mut world = World::trusted().await;
    let before = fs::read(world.policy().join("high-water.b")).unwrap();
    world.publish();
    let held = files(&world).await;
    // As after a crash between the two.
    fs::write(world.policy().join("high-water.b"), before).unwrap();
    fs::write(world.policy().join(".high-water.b.x.new"), "half").unwrap();
    world.down(true);
    assert_eq!(files(&world).await.version, held.version);
    let [a, b] = COPIES.map(|name| fs::read(world.policy().join(name)).unwrap());
    assert_eq!(a, b);
}

#[tokio::test]
async fn a_crash_before_the_high_water_mark_loses_nothing_and_gains_nothing() {
    let mut world = World::trusted().await;
    let before = COPIES.map(|name| fs::read(world.policy().join(name)).unwrap());
    world.publish();
    let held = files(&world).await;
    for (name, bytes) in COPIES.iter().zip(before) {
        fs::write(world.policy().join(name), bytes).unwrap();
    }
    world.down(true);
    assert_eq!(files(&world).await.version, held.version, "it was kept whole, and is remembered now");
    let mark = HighWater::parse(&fs::read(world.policy().join("high-water.a")).unwrap()).unwrap();
    assert_eq!(mark.marks.snapshot.unwrap().version, 2);
}

#[tokio::test]
async fn a_cache_that_is_older_than_what_was_seen_is_refused() {
    let mut world = World::trusted().await;
    let old = tempfile::tempdir().unwrap();
    copy(&world.policy().join("versions"), old.path());
    world.publish();
    world.publish();
    let held = files(&world).await;
    fs::remove_dir_all(world.policy().join("versions")).unwrap();
    copy(old.path(), &world.policy().join("versions"));
    world.down(true);
    assert!(error(&world).await.starts_with("unreachable: "));
    world.down(false);
    let source = world.source();
    assert_eq!(new(source.fetch(None).await).version, held.version);
}

#[tokio::test]
async fn accepts_a_cache_of_the_same_fleet_and_rejects_one_of_another_fleet() {
    let world = World::trusted().await;
    let other_sidecar = tempfile::tempdir().unwrap();
    copy(&world.policy(), &other_sidecar.path().join("policy"));
    let settings = SignedSettings { state: other_sidecar.path().to_owned(), ..world.settings() };
    assert_eq!(new(world.source_with(settings).fetch(None).await).files, policy_files());
    // Only the versions, of another fleet.
    let other = World::trusted().await;
    fs::remove_dir_all(world.policy().join("versions")).unwrap();
    copy(&other.policy().join("versions"), &world.policy().join("versions"));
    world.down(true);
    let source = world.source();
    assert!(source.fetch(None).await.unwrap_err().message.starts_with("unreachable: "));
    assert!(source.notes()[0].contains("signature: timestamp"), "{:?}", source.notes());
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[tokio::test]
async fn an_emptied_cache_or_a_truncated_file_in_it_is_fetched_again() {
    let mut world = World::trusted().await;
    world.publish();
    let held = files(&world).await;
    let place = world.policy().join("versions").join(&*held.version.0);
    for name in ["timestamp.json", "2.snapshot.json", "2.governance.json", "targets.pack"] {
        fs::write(place.join(name), "").unwrap();
        let source = world.source();
        assert_eq!(new(source.fetch(None).await).version, held.version);
        assert!(source.notes().is_empty(), "repaired: {:?}", source.notes());
        drop(source);
        world.down(true);
        assert_eq!(files(&world).await.version, held.version, "{name}");
        world.down(false);
    }
    fs::remove_dir_all(world.policy().join("versions")).unwrap();
    assert_eq!(files(&world).await.version, held.version);
}

#[tokio::test]
async fn does_not_adopt_a_version_that_cannot_be_stored() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.publish();
    // Nobody can write below a file, whoever they are.
    let (versions, moved) = (world.policy().join("versions"), world.policy().join("aside"));
    fs::rename(&versions, &moved).unwrap();
    fs::write(&versions, "").unwrap();
    refuses(&world, &source, &held, FaultKind::State, "policy/versions: is a link or of another kind").await;
    let error = source.fetch(Some(&held.version)).await.unwrap_err();
    assert!(!error.refused, "the repository is not to blame");
    fs::remove_file(&versions).unwrap();
    fs::rename(&moved, &versions).unwrap();
    // Nor where the version can be kept and its mark cannot.
    let (b, kept) = (world.policy().join("high-water.b"), world.policy().join("kept"));
    fs::rename(&b, &kept).unwrap();
    fs::create_dir(&b).unwrap();
    let error = source.fetch(Some(&held.version)).await.unwrap_err();
    assert!(error.message.starts_with("state: ") && error.message.contains("high-water.b: "), "{error}");
    assert_eq!(source.state.lock().await.as_ref().unwrap().held.as_ref().unwrap().version, held.version);
    fs::remove_dir(&b).unwrap();
    fs::rename(&kept, &b).unwrap();
    assert_eq!(new(source.fetch(Some(&held.version)).await).signed.unwrap().snapshot, 2);
}

#[tokio::test]
async fn links_and_folders_that_others_can_write_are_refused() {
    let world = World::trusted().await;
    let place = world.policy();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
    let message = error(&world).await;
    assert!(message.starts_with("state: ") && message.contains("written by others"), "{message}");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();

    let elsewhere = world.state.path().join("elsewhere");
    fs::rename(&place, &elsewhere).unwrap();
    symlink(&elsewhere, &place).unwrap();
    let message = error(&world).await;
    assert!(message.starts_with("state: ") && message.contains("is a link"), "{message}");
    fs::remove_file(&place).unwrap();
    fs::rename(&elsewhere, &place).unwrap();

    for name in COPIES {
        let file = place.join(name);
        fs::rename(&file, place.join("x")).unwrap();
        symlink(place.join("x"), &file).unwrap();
        // A copy that is a link is no copy; the other one stays.
        new(world.source().fetch(None).await);
        assert!(!fs::symlink_metadata(&file).unwrap().file_type().is_symlink(), "{name}");
    }
}

#[tokio::test]
async fn stored_files_are_readable_by_the_sidecar_only() {
    let world = World::trusted().await;
    files(&world).await;
    let mut folders = vec![world.policy()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700, "{}", folder.display());
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => {
                    seen += 1;
                    let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                    assert_eq!(mode, 0o600, "{}", entry.path().display());
                }
            }
        }
    }
    assert_eq!(seen, 4 + 1 + 2 + ROLES.len() + 1);
}

#[tokio::test]
async fn two_processes_do_not_share_one_state() {
    let world = World::trusted().await;
    let source = world.source();
    new(source.fetch(None).await);
    let message = error(&world).await;
    assert!(message.starts_with("state: ") && message.contains("another process"), "{message}");
    assert_eq!(world.source().trust().await.unwrap_err().kind(), FaultKind::State);
}

#[tokio::test]
async fn refetches_an_emptied_cache_at_the_next_heartbeat() {
    for folder in ["versions", "roots", "."] {
        let mut world = World::trusted().await;
        let source = world.source();
        let held = new(source.fetch(None).await);
        let place = world.policy().join(folder);
        for entry in fs::read_dir(&place).unwrap().flatten() {
            match entry.path().is_dir() {
                true => fs::remove_dir_all(entry.path()).unwrap(),
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
        world.heartbeat();
        let refreshed = source.fetch(Some(&held.version)).await;
        assert!(matches!(refreshed, Ok(Fetched::Confirmed(_))), "{folder}: {refreshed:?}");
        drop(source);
        world.down(true);
        let error = world.source().fetch(None).await.err().map(|error| error.message);
        // A root that is gone is asked for again; the rest is all there.
        assert_eq!(error, None, "{folder}");
    }
}

/// As another user, whom a mode of 0500 binds: this test is run again as nobody where root runs it.
#[test]
fn starts_from_read_only_state_and_accepts_a_kill_over_it() {
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65534;
    let name = "policy::repository::signed::tests::state::starts_from_read_only_state_and_accepts_a_kill_over_it";
    if rustix::process::geteuid().is_root() {
        let program = std::env::current_exe().unwrap();
        // Not below TMPDIR, which may be somebody's own.
        let run = std::process::Command::new(program)
            .args(["--exact", name])
            .env("TMPDIR", "/tmp")
            .uid(NOBODY)
            .gid(NOBODY)
            .output();
        match run {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success() && text.contains("1 passed"), "{text}");
            }
            Err(error) => println!("skip: nobody else may run this program here: {error}"),
        }
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut world = World::trusted().await;
        let held = files(&world).await;
        let modes = |world: &World, mode: u32| {
            for folder in ["versions", "roots", "."] {
                fs::set_permissions(world.policy().join(folder), fs::Permissions::from_mode(mode)).unwrap();
            }
        };
        modes(&world, 0o500);
        let source = world.source();
        assert_eq!(new(source.fetch(None).await).files, held.files);
        assert!(matches!(source.fetch(Some(&held.version)).await, Ok(Fetched::Unchanged)));
        world.sample.files.insert("kill/list.toml".to_owned(), "schema = 1 # more".into());
        world.publish();
        let error = source.fetch(Some(&held.version)).await.unwrap_err();
        assert!(!error.refused && error.message.starts_with("state: "), "{error}");
        assert_eq!(source.stopping().await.unwrap().files["kill/list.toml"], "schema = 1 # more");
        modes(&world, 0o700);
        assert_eq!(new(source.fetch(Some(&held.version)).await).signed.unwrap().snapshot, 2);
    });
}
