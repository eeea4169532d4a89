//! A kill always wins: the list is taken of a version of which nothing else can be trusted, read or kept.

use std::fs;

use super::previous::{decided, snapshot, stop};
use super::*;
use crate::policy::DenialReason;
use crate::policy::cache::RefreshOutcome;
use crate::policy::signed_tests::{entry, kill, put};
use crate::policy::tests::now;

const KILLED: Result<(), DenialReason> = Err(DenialReason::Killed);

fn after(life: Duration) -> Timestamp {
    now() + life
}

/// How long what expires in these tests is valid.
const SHORT: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn accepts_a_kill_when_root_or_charter_has_expired_and_keeps_it_after_restart() {
    for role in ["root", "targets"] {
        let mut world = World::decided().await;
        world.sample.lives.insert(role.to_owned(), SHORT);
        world.sample.publish_root(now()).unwrap();
        world.publish();
        let (source, cache) = world.restart().await;
        world.clock.advance(SHORT);
        world.sample.files.insert("kill/list.toml".to_owned(), format!("schema = 1\n{}", stop()).into());
        world.bend_kill();
        assert_eq!(cache.reload_now(after(SHORT)).await, RefreshOutcome::Refused, "{role}");
        assert!(cache.status().problems[0].message.contains(&format!("expired: {role}")), "{:?}", cache.status());
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(2), KILLED), "{role}");
        assert_eq!(source.status().fault.unwrap().kind(), FaultKind::Expired);
        drop((source, cache));
        for down in [true, false] {
            world.down(down);
            let (_, cache) = world.restart().await;
            assert_eq!((snapshot(&cache), decided(&cache)), (Some(2), KILLED), "{role} {down}");
        }
    }
}

#[tokio::test]
async fn accepts_a_kill_when_the_state_cannot_be_written() {
    let mut world = World::decided().await;
    let (source, cache) = world.restart().await;
    world.change(|sample| kill(sample, &stop()));
    let (place, moved) = (world.policy(), world.state.path().join("aside"));
    // Nobody can write below a file, whoever they are.
    fs::rename(&place, &moved).unwrap();
    fs::write(&place, "").unwrap();
    for _ in 0..2 {
        assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Unavailable);
        assert!(cache.status().problems[0].message.starts_with("state: "), "{:?}", cache.status().problems);
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), KILLED));
        assert!(source.notes()[0].contains("cannot be remembered"), "{:?}", source.notes());
    }
    // What was fetched once is not fetched again.
    world.served.asked();
    cache.reload_now(now()).await;
    assert_eq!(world.served.asked(), [TIMESTAMP, "metadata/2.root.json"]);
    fs::remove_file(&place).unwrap();
    fs::rename(&moved, &place).unwrap();
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
    assert_eq!((snapshot(&cache), decided(&cache)), (Some(2), KILLED));
    assert_eq!(source.notes(), Vec::<String>::new());
}

#[tokio::test]
async fn accepts_a_kill_when_another_file_or_role_is_lost_or_altered() {
    let grant = format!("targets/{}", target_name("grants/new.toml", &Digest::of(b"new")));
    for (name, body) in [
        (&*grant, None),
        (&*grant, Some("old")),
        ("metadata/2.governance.json", None),
        ("metadata/2.finance.json", Some("<html>")),
    ] {
        let mut world = World::decided().await;
        let (source, cache) = world.restart().await;
        world.change(|sample| {
            kill(sample, &stop());
            put(sample, "grants/new.toml", "new");
        });
        match body {
            Some(body) => world.served.files.lock().unwrap().insert(name.to_owned(), body.into()),
            None => world.served.files.lock().unwrap().remove(name),
        };
        assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused, "{name}");
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), KILLED), "{name}");
        let fault = source.status().fault.unwrap();
        assert!(fault.message().contains(name.rsplit('/').next().unwrap()), "{fault}");
        // Nor does the version before it undo it, when that is served again.
        drop((source, cache));
        world.down(true);
        let (source, cache) = world.restart().await;
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(1), KILLED), "{name}");
        world.down(false);
        world.serve();
        assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(2), KILLED), "{name}");
        // From here on it is as any other list, and lifted by the next one.
        assert!(source.stopping().await.is_none());
        assert!(!world.policy().join("kill").exists());
        world.change(|sample| kill(sample, ""));
        assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
        assert_eq!(decided(&cache), Ok(()));
    }
}

#[tokio::test]
async fn a_kill_list_accepted_alone_lifts_no_entry() {
    let mut world = World::decided().await;
    world.change(|sample| kill(sample, &stop()));
    let (_, cache) = world.restart().await;
    assert_eq!(decided(&cache), KILLED);
    drop(cache);
    world.change(|sample| {
        kill(sample, &entry("stop-2", "scope = \"incident-response\""));
        put(sample, "grants/new.toml", "new");
    });
    world.served.files.lock().unwrap().retain(|name, _| !name.ends_with("new.toml"));
    for _ in 0..2 {
        let (_, cache) = world.restart().await;
        for _ in 0..2 {
            assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused);
            let policy = cache.current().unwrap();
            let ids: Vec<_> = policy.kill_list().stops().iter().map(|stop| &*stop.id).collect();
            assert_eq!((ids, policy.kill_list().epoch()), (vec!["stop-2", "stop-1"], Some(3)));
        }
        assert_eq!(decided(&cache), KILLED);
    }
    world.serve();
    let (_, cache) = world.restart().await;
    assert_eq!(decided(&cache), Ok(()), "lifted by a version that is whole");
}

#[tokio::test]
async fn rejects_a_kill_list_that_is_older_or_not_signed_by_incident_response() {
    type Bend = fn(&mut World);
    let bends: [Bend; 4] = [
        // A key of somebody else.
        |world| {
            let key = world.sample.keys.insert("incident".to_owned(), vec![LocalKey::generate().unwrap().0]).unwrap();
            world.bend_kill();
            world.sample.keys.insert("incident".to_owned(), key);
        },
        // Another list than was signed.
        |world| {
            world.bend_kill();
            let name = format!(
                "targets/{}",
                target_name("kill/list.toml", &Digest::of(&world.sample.files["kill/list.toml"]))
            );
            world.served.files.lock().unwrap().insert(name, "schema = 1".into());
        },
        // An older snapshot under a newer timestamp.
        |world| {
            let bytes = world.sample.published()["metadata/1.snapshot.json"].clone();
            world.timestamp(1, &bytes);
        },
        // Online keys that are nobody's.
        |world| {
            let key = world.sample.keys.insert("timestamp".to_owned(), vec![LocalKey::generate().unwrap().0]).unwrap();
            world.bend_kill();
            world.sample.keys.insert("timestamp".to_owned(), key);
        },
    ];
    for (number, bend) in bends.into_iter().enumerate() {
        let mut world = World::decided().await;
        world.publish();
        let (source, cache) = world.restart().await;
        let list = format!("schema = 1\n{}", stop());
        world.sample.files.insert("kill/list.toml".to_owned(), list.into());
        bend(&mut world);
        assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Refused, "{number}");
        assert_eq!((snapshot(&cache), decided(&cache)), (Some(2), Ok(())), "{number}");
        assert!(source.stopping().await.is_none(), "{number}");
    }
}

#[tokio::test]
async fn a_damaged_or_lost_stored_kill_list_stops_everything_until_the_next_refresh() {
    let mut world = World::decided().await;
    let (source, cache) = world.restart().await;
    world.change(|sample| {
        kill(sample, &stop());
        put(sample, "grants/new.toml", "new");
    });
    world.served.files.lock().unwrap().retain(|name, _| !name.ends_with("new.toml"));
    cache.reload_now(now()).await;
    drop((source, cache));
    let place = world.policy().join("kill");
    let mut names: Vec<_> = fs::read_dir(&place).unwrap().flatten().map(|entry| entry.path()).collect();
    names.sort();
    assert_eq!(names.len(), 5, "{names:?}");
    for name in names {
        let good = fs::read(&name).unwrap();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&name, bytes).unwrap();
            world.down(true);
            let (_, cache) = world.restart().await;
            let found = cache.current().map(|_| decided(&cache));
            assert!(found.is_none_or(|found| found == KILLED), "{} {at}", name.display());
            world.down(false);
        }
        fs::write(&name, good).unwrap();
    }
    fs::remove_dir_all(&place).unwrap();
    world.down(true);
    let (_, cache) = world.restart().await;
    assert_eq!(snapshot(&cache), None);
    world.down(false);
    world.serve();
    assert_eq!(cache.reload_now(now()).await, RefreshOutcome::Loaded);
    assert_eq!((snapshot(&cache), decided(&cache)), (Some(2), KILLED));
}

impl World {
    /// Publishes the list of now, and every other role as it is; with new ends where they are set.
    fn bend_kill(&mut self) {
        let bytes = self.sample.files["kill/list.toml"].clone();
        let place = format!("targets/{}", target_name("kill/list.toml", &Digest::of(&bytes)));
        self.sample.published_mut().insert(place, bytes.clone());
        self.bend(|roles| roles.get_mut("incident").unwrap()["targets"]["kill/list.toml"] = listing(&bytes), |_| {});
    }
}
