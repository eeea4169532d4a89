//! New keys: of the root, and of the roles that are online.

use super::*;

/// Publishes root N+1 with a new root key, signed by the old ones as far as `old`, and by the new one where `new`.
fn rotate_root(world: &mut World, old: usize, by_new: bool) {
    let mut ours = world.sample.keys.remove("root").unwrap();
    let fresh = LocalKey::generate().unwrap().0;
    let roles: BTreeMap<String, metadata::RoleKeys> = crate::policy::standing::TOP_ROLES
        .iter()
        .map(|role| {
            let keys = match *role {
                "root" => metadata::RoleKeys { keys: vec![metadata::Signer::public(&fresh).clone()], threshold: 1 },
                role => world.sample.role_keys(role),
            };
            ((*role).to_owned(), keys)
        })
        .collect();
    let version = world.sample.version("root") + 1;
    let mut signers: Vec<LocalKey> = ours.drain(..old).collect();
    let mut rest = Vec::new();
    match by_new {
        true => signers.push(fresh),
        false => rest.push(fresh),
    }
    world.sample.keys.insert("root".to_owned(), signers);
    let value = metadata::root(version, NOW + Sample::LIFE, &roles);
    world.sample.put("root", version, value).unwrap();
    world.serve();
}

#[tokio::test]
async fn a_root_signed_by_the_old_and_the_new_keys_follows() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    rotate_root(&mut world, 2, true);
    world.heartbeat();
    assert!(matches!(source.fetch(Some(&held.version)).await, Ok(Fetched::Confirmed(_))));
    assert_eq!(source.status().root, 2);
    drop(source);
    world.down(true);
    assert_eq!(files(&world).await.version, held.version);
}

#[tokio::test]
async fn a_root_that_the_old_or_the_new_keys_did_not_sign_is_refused() {
    for (old, by_new) in [(0, true), (1, true), (2, false)] {
        let mut world = World::trusted().await;
        let source = world.source();
        let held = new(source.fetch(None).await);
        rotate_root(&mut world, old, by_new);
        world.heartbeat();
        refuses(&world, &source, &held, FaultKind::Signature, "root").await;
    }
}

#[tokio::test]
async fn a_new_root_is_noticed_within_the_hour_without_any_other_change() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.sample.lives.insert("root".to_owned(), 3 * Sample::LIFE);
    world.sample.publish_root(NOW).unwrap();
    world.serve();
    assert!(matches!(source.fetch(Some(&held.version)).await, Ok(Fetched::Unchanged)));
    world.clock.advance(PROBE);
    let Ok(Fetched::Confirmed(standing)) = source.fetch(Some(&held.version)).await else { panic!() };
    assert_eq!(standing.ends["root"], NOW + 3 * Sample::LIFE);
}

/// Replaces the key of a role that is online, publishes a root that says so, and a version under it.
fn replace(world: &mut World, role: &str) {
    world.sample.keys.insert(role.to_owned(), vec![LocalKey::generate().unwrap().0]);
    world.sample.publish_root(NOW).unwrap();
    world.publish();
}

#[tokio::test]
async fn rejects_a_replay_from_before_a_rotation_when_the_new_root_is_hidden() {
    let mut world = World::trusted().await;
    let old = world.sample.published().clone();
    let mut revoked = Sample::new(BTreeMap::new(), &[]).unwrap();
    for role in ["timestamp", "snapshot"] {
        revoked.keys.insert(role.to_owned(), world.sample.keys.remove(role).unwrap());
        world.sample.keys.insert(role.to_owned(), vec![LocalKey::generate().unwrap().0]);
    }
    world.sample.publish_root(NOW).unwrap();
    world.publish();
    let held = files(&world).await;
    assert_eq!(held.signed.as_ref().unwrap().snapshot, 2);
    *world.served.files.lock().unwrap() = old.clone();
    let source = world.source();
    assert_eq!(new(source.fetch(None).await).version, held.version);
    refuses(&world, &source, &held, FaultKind::Signature, "timestamp").await;
    // Whoever holds the revoked keys may write any version.
    let snapshot = metadata::snapshot(99, NOW + Sample::LIFE, &BTreeMap::new());
    let bytes = revoked.put("snapshot", 99, snapshot).unwrap();
    let timestamp = metadata::timestamp(99, NOW + Sample::LIFE, 99, &bytes);
    let bytes = revoked.put("timestamp", 99, timestamp).unwrap();
    world.served.files.lock().unwrap().insert(TIMESTAMP.to_owned(), bytes);
    refuses(&world, &source, &held, FaultKind::Signature, "timestamp").await;
    drop(source);
    // Nor when the kept roots are gone: the newest that was seen is remembered.
    std::fs::remove_dir_all(world.policy().join("roots")).unwrap();
    *world.served.files.lock().unwrap() = old;
    let error = world.source().fetch(None).await.unwrap_err();
    assert!(error.message.starts_with("rollback: root: version 2 was seen"), "{error}");
    // The repository can fix that.
    world.serve();
    assert_eq!(files(&world).await.version, held.version);
}

#[tokio::test]
async fn accepts_lower_versions_once_a_stolen_key_is_replaced() {
    for role in ["timestamp", "snapshot"] {
        let mut world = World::trusted().await;
        let source = world.source();
        let held = new(source.fetch(None).await);
        // Whoever stole the keys went as high as they could.
        let mut value = world.signed("snapshot");
        value["version"] = (1_u64 << 60).into();
        let bytes = world.sample.put("snapshot", 1 << 60, value).unwrap();
        let value = metadata::timestamp(1 << 60, NOW + Sample::LIFE, 1 << 60, &bytes);
        world.sample.put("timestamp", 1 << 60, value).unwrap();
        world.serve();
        let high = new(source.fetch(Some(&held.version)).await);
        assert_eq!(high.signed.as_ref().unwrap().snapshot, 1 << 60);
        // The owners' own next version is behind it.
        world.publish();
        refuses(&world, &source, &high, FaultKind::Rollback, "timestamp: version 2").await;
        // A root that replaces no key of the two fixes nothing.
        replace(&mut world, "targets");
        let error = source.fetch(Some(&high.version)).await.unwrap_err();
        assert!(error.message.starts_with("rollback: timestamp"), "{error}");
        replace(&mut world, role);
        let low = new(source.fetch(Some(&high.version)).await);
        assert_eq!(low.signed.as_ref().unwrap().snapshot, 4, "{role}");
        drop(source);
        world.down(true);
        assert_eq!(files(&world).await.version, low.version);
    }
}

#[tokio::test]
async fn keeps_an_owners_minimum_version_after_the_online_keys_were_replaced() {
    let mut world = World::trusted().await;
    let source = world.source();
    let old = world.signed("snapshot")["meta"]["incident.json"].clone();
    world.publish();
    let held = new(source.fetch(None).await);
    replace(&mut world, "snapshot");
    world.bend(|_| {}, |snapshot| snapshot["meta"]["incident.json"] = old);
    let error = source.fetch(Some(&held.version)).await.unwrap_err();
    assert!(error.message.starts_with("rollback: incident: version 1 is offered"), "{error}");
}

#[tokio::test]
async fn accepts_a_newer_root_of_the_same_chain_only() {
    let mut world = World::trusted().await;
    let held = files(&world).await;
    for _ in 0..3 {
        world.sample.publish_root(NOW).unwrap();
    }
    world.heartbeat();
    let newest = world.sample.published()["metadata/4.root.json"].clone();
    let other = World::new();
    world.anchor = newest;
    assert_eq!(files(&world).await.version, held.version);
    // Back to the first is as good: the chain is the same, and kept.
    world.anchor = world.sample.anchor();
    world.down(true);
    assert_eq!(files(&world).await.version, held.version);
    world.down(false);
    // A root of another fleet with a higher version.
    let mut roots = other.sample;
    for _ in 0..5 {
        roots.publish_root(NOW).unwrap();
    }
    world.anchor = roots.published()["metadata/6.root.json"].clone();
    let error = world.source().fetch(None).await.unwrap_err();
    assert!(error.message.starts_with("other_fleet: policy.root is root 6"), "{error}");
}

#[tokio::test]
async fn one_refresh_takes_thirty_two_roots_and_the_next_one_the_rest() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    for _ in 0..40 {
        world.sample.publish_root(NOW).unwrap();
    }
    world.heartbeat();
    source.fetch(Some(&held.version)).await.unwrap();
    assert_eq!(source.status().root, 33);
    world.heartbeat();
    source.fetch(Some(&held.version)).await.unwrap();
    assert_eq!(source.status().root, 41);
}
