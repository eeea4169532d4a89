//! A restart under a version that is verified, and whose files are bad: what was in force before is so again.

use std::fs;

use super::*;
use crate::policy::cache::{PolicyCache, RefreshOutcome};
use crate::policy::signed_tests::{entry, kill, put, report, sample};
use crate::policy::tests::now;
use crate::policy::{DenialReason, LoadOptions};

const BAD: &str = "boundaries/bad.cedar";

impl World {
    /// A repository with scopes that can be decided, trusted, and once in force; it is version 1.
    pub(super) async fn decided() -> Self {
        let sample = sample();
        let world = Self {
            anchor: sample.anchor(),
            sample,
            clock: ManualClock::at(now()),
            served: Arc::default(),
            state: tempfile::tempdir().unwrap(),
        };
        world.serve();
        world.source().trust().await.unwrap();
        let (_, cache) = world.restart().await;
        assert_eq!(cache.status().outcome, Some(RefreshOutcome::Loaded));
        world
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut Sample)) {
        change(&mut self.sample);
        self.publish();
    }

    /// A sidecar that starts now, after its first refresh.
    pub(super) async fn restart(&self) -> (Arc<SignedSource>, PolicyCache) {
        let source = Arc::new(self.source());
        let cache = PolicyCache::new(Arc::clone(&source) as _, LoadOptions::default());
        cache.reload_now(self.clock.now()).await;
        (source, cache)
    }

    pub(super) fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.policy().join("versions")).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub(super) fn snapshot(cache: &PolicyCache) -> Option<u64> {
    cache.current().map(|policy| policy.version().0.split('-').next().unwrap().parse().unwrap())
}

pub(super) fn decided(cache: &PolicyCache) -> Result<(), DenialReason> {
    report(&cache.current().unwrap(), now()).map(drop).map_err(|denial| denial.reason)
}

pub(super) fn stop() -> String {
    entry("stop-1", "scope = \"ledger-read\"")
}

#[tokio::test]
async fn restarts_under_bad_files_with_the_good_version_and_the_newest_kill_list() {
    let mut world = World::decided().await;
    world.change(|sample| {
        put(sample, BAD, "permit");
        kill(sample, &stop());
    });
    // Whether it was seen before the restart or not, and whether the repository answers or not.
    for down in [false, true, false] {
        world.down(down);
        let (_, cache) = world.restart().await;
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), Err(DenialReason::Killed)), "{down}");
        let status = cache.status();
        assert_eq!((status.outcome, &*status.problems[0].file), (Some(RefreshOutcome::Refused), BAD));
        assert_eq!(status.refused.unwrap().problems[0].file, BAD);
        world.down(false);
        assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused, "and stays so");
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), Err(DenialReason::Killed)));
    }
    world.change(|sample| {
        sample.files.remove(BAD);
    });
    let (_, cache) = world.restart().await;
    assert_eq!((snapshot(&cache), decided(&cache)), (Some(3), Err(DenialReason::Killed)));
    assert!(cache.status().problems.is_empty());
}

#[tokio::test]
async fn bad_versions_in_a_row_do_not_evict_the_good_one() {
    let mut world = World::decided().await;
    let (source, cache) = world.restart().await;
    for bad in ["permit", "forbid", "nonsense"] {
        world.change(|sample| put(sample, BAD, bad));
        assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
    }
    assert_eq!(snapshot(&cache), Some(1));
    let kept: Vec<_> = world.kept().into_iter().map(|name| name.split('-').next().unwrap().to_owned()).collect();
    assert!(kept.len() <= 3 && kept.contains(&"1".to_owned()) && kept.contains(&"4".to_owned()), "{kept:?}");
    drop((source, cache));
    let (source, cache) = world.restart().await;
    assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), Ok(())));
    drop((source, cache));
    // Nor does one that was never looked at before this start.
    world.change(|sample| put(sample, BAD, "permit ("));
    let (_, cache) = world.restart().await;
    assert_eq!(snapshot(&cache), Some(1));
    world.change(|sample| drop(sample.files.remove(BAD)));
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
    assert_eq!(snapshot(&cache), Some(6));
}

#[tokio::test]
async fn keeps_a_kill_of_a_refused_version_over_the_next_one_and_a_restart() {
    let mut world = World::decided().await;
    let (source, cache) = world.restart().await;
    world.change(|sample| {
        put(sample, BAD, "permit");
        kill(sample, &stop());
    });
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
    // The next one has no kill list that could be read.
    world.change(|sample| kill(sample, "[[stop]]\nid = \"x\"\n"));
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
    assert_eq!(decided(&cache), Err(DenialReason::Killed));
    drop((source, cache));
    for _ in 0..2 {
        let (_, cache) = world.restart().await;
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), Err(DenialReason::Killed)));
        assert_eq!(cache.current().unwrap().kill_list().epoch(), Some(2));
    }
    // Where that list is lost, nothing is put back.
    let lender = world.kept().into_iter().find(|name| name.starts_with("2-")).unwrap();
    fs::remove_dir_all(world.policy().join("versions").join(lender)).unwrap();
    let (_, cache) = world.restart().await;
    assert_eq!(snapshot(&cache), None);
    assert_eq!(cache.status().problems.last().unwrap().file, "(previous version)");
}

#[tokio::test]
async fn a_previous_version_with_any_byte_changed_is_refused() {
    let mut world = World::decided().await;
    world.change(|sample| put(sample, BAD, "permit"));
    world.restart().await;
    let place = world.policy().join("versions").join(world.kept().into_iter().find(|n| n.starts_with("1-")).unwrap());
    let names: Vec<_> = fs::read_dir(&place).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(names.len(), 2 + ROLES.len() + 1);
    for name in names {
        let good = fs::read(&name).unwrap();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&name, bytes).unwrap();
            let (_, cache) = world.restart().await;
            assert_eq!(snapshot(&cache), None, "{} {at}", name.display());
            let status = cache.status();
            assert_eq!(status.outcome, Some(RefreshOutcome::Refused));
            assert_eq!((&*status.problems[0].file, status.problems.len()), (BAD, 2));
            // Told once, however often it is looked at; and taken up once it is whole again.
            cache.reload_now(now()).await;
            assert_eq!(cache.status().problems.len(), 2);
            fs::write(&name, &good).unwrap();
            cache.reload_now(now()).await;
            assert_eq!((snapshot(&cache), cache.status().problems.len()), (Some(1), 1));
        }
    }
}

#[tokio::test]
async fn rejects_another_version_stored_as_the_previous_one() {
    let mut world = World::decided().await;
    let old = world.kept().remove(0);
    let moved = tempfile::tempdir().unwrap();
    super::state::copy(&world.policy().join("versions").join(&old), moved.path());
    world.change(|sample| kill(sample, &stop()));
    assert_eq!(snapshot(&world.restart().await.1), Some(2));
    world.change(|sample| put(sample, BAD, "permit"));
    assert_eq!(snapshot(&world.restart().await.1), Some(2));
    // Version 1 was good, and in force once; version 2 was so last.
    let place = world.policy().join("versions").join(world.kept().into_iter().find(|n| n.starts_with("2-")).unwrap());
    fs::remove_dir_all(&place).unwrap();
    super::state::copy(moved.path(), &place);
    super::state::copy(moved.path(), &world.policy().join("versions").join(&old));
    let (source, cache) = world.restart().await;
    assert_eq!(snapshot(&cache), None);
    assert!(cache.status().problems[1].message.contains("rollback: "), "{:?}", cache.status().problems);
    assert!(source.previous().await.unwrap_err().refused);
}

#[tokio::test]
async fn does_not_keep_a_version_never_in_force_as_previous() {
    let mut sample = sample();
    put(&mut sample, BAD, "permit");
    sample.publish(now()).unwrap();
    let mut world = World { anchor: sample.anchor(), sample, clock: ManualClock::at(now()), ..World::new() };
    world.serve();
    world.source().trust().await.unwrap();
    let (source, cache) = world.restart().await;
    assert_eq!((snapshot(&cache), cache.status().problems.len()), (None, 1));
    assert!(source.previous().await.unwrap().is_none());
    world.change(|sample| put(sample, BAD, "forbid"));
    cache.reload_now(now()).await;
    assert_eq!(snapshot(&cache), None);
    assert!(source.previous().await.unwrap().is_none());
}

#[tokio::test]
async fn verifies_the_previous_version_by_its_own_keys_and_todays_minimum() {
    let mut world = World::decided().await;
    world.change(|sample| {
        sample.keys.insert("timestamp".to_owned(), vec![LocalKey::generate().unwrap().0]);
        sample.publish_root(now()).unwrap();
        put(sample, BAD, "permit");
    });
    assert_eq!(snapshot(&world.restart().await.1), Some(1));
    let settings = SignedSettings { minimum_version: Some(2), ..world.settings() };
    let cache = PolicyCache::new(Arc::new(world.source_with(settings)), LoadOptions::default());
    cache.reload_now(now()).await;
    assert_eq!(snapshot(&cache), None);
    assert!(cache.status().problems[1].message.contains("minimum_version"), "{:?}", cache.status().problems);
}

#[tokio::test]
async fn status_reports_harmless_anomalies() {
    let world = World::decided().await;
    assert!(world.restart().await.1.status().notes.is_empty());
    fs::write(world.policy().join("high-water.b"), "").unwrap();
    let (_, cache) = world.restart().await;
    assert!(cache.is_signed() && cache.status().problems.is_empty());
    assert!(cache.status().notes[0].contains("high-water.b is empty"), "{:?}", cache.status().notes);
}

#[tokio::test]
async fn reports_a_version_that_cannot_be_stored_and_repairs_it_at_the_next_refresh() {
    let mut world = World::decided().await;
    let (source, cache) = world.restart().await;
    world.change(|sample| kill(sample, &stop()));
    let held = new(source.fetch(None).await);
    let place = world.policy();
    let moved = world.state.path().join("aside");
    // Nobody can write below a file, whoever they are.
    fs::rename(&place, &moved).unwrap();
    fs::write(&place, "").unwrap();
    source.used(&held.version, Use::Whole).await;
    assert!(source.notes()[0].contains("which policy is in force"), "{:?}", source.notes());
    fs::remove_file(&place).unwrap();
    fs::rename(&moved, &place).unwrap();
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
    assert!(cache.status().notes.is_empty(), "{:?}", cache.status().notes);
}

#[tokio::test]
async fn restarts_with_the_version_in_force_between_new_keys_and_the_next_version() {
    let mut world = World::decided().await;
    world.change(|sample| {
        kill(sample, &stop());
        put(sample, BAD, "permit");
    });
    let (source, cache) = world.restart().await;
    assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), Err(DenialReason::Killed)));
    for role in ["timestamp", "snapshot"] {
        world.sample.keys.insert(role.to_owned(), vec![LocalKey::generate().unwrap().0]);
    }
    world.sample.publish_root(now()).unwrap();
    world.serve();
    world.clock.advance(PROBE);
    // Root 2 is seen, and nothing under it yet.
    cache.reload_now(world.clock.now()).await;
    assert_eq!(source.status().root, 2);
    drop((source, cache));
    for down in [true, false] {
        world.down(down);
        let (source, cache) = world.restart().await;
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), Err(DenialReason::Killed)), "{down}");
        assert_eq!(source.status().root, 2);
    }
    world.change(|sample| drop(sample.files.remove(BAD)));
    let (_, cache) = world.restart().await;
    assert_eq!((snapshot(&cache), decided(&cache)), (Some(3), Err(DenialReason::Killed)));
}
