//! Rollback, freeze, mix and match, and files that are not what was signed.

use super::*;

#[tokio::test]
async fn an_older_timestamp_and_snapshot_are_a_rollback_also_for_a_new_process() {
    let mut world = World::trusted().await;
    let old = world.sample.published().clone();
    world.sample.files.insert("grants/z.toml".to_owned(), "z".into());
    world.publish();
    let source = world.source();
    let held = new(source.fetch(None).await);
    assert_eq!(held.signed.as_ref().unwrap().snapshot, 2);
    *world.served.files.lock().unwrap() = old;
    refuses(&world, &source, &held, FaultKind::Rollback, "timestamp: version 1 is offered, and 2 was seen").await;
    drop(source);
    let source = world.source();
    assert_eq!(new(source.fetch(None).await).version, held.version, "what is kept is in force");
    refuses(&world, &source, &held, FaultKind::Rollback, "timestamp").await;
}

#[tokio::test]
async fn rejects_an_older_snapshot_under_a_newer_timestamp_but_no_later_version() {
    let mut world = World::trusted().await;
    let old = world.sample.published()["metadata/1.snapshot.json"].clone();
    world.publish();
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.timestamp(1, &old);
    refuses(&world, &source, &held, FaultKind::Rollback, "snapshot: version 1 is offered, and 2 was seen").await;
    // The owners' next version has the number of the refused timestamp.
    world.publish();
    assert_eq!(new(source.fetch(Some(&held.version)).await).signed.unwrap().snapshot, 3);
}

#[tokio::test]
async fn a_newer_snapshot_over_an_older_role_is_a_rollback() {
    for role in ["targets", "incident", "finance"] {
        let mut world = World::trusted().await;
        let name = format!("{role}.json");
        let old = world.signed("snapshot")["meta"][&name].clone();
        world.publish();
        let source = world.source();
        let held = new(source.fetch(None).await);
        world.bend(|_| {}, |snapshot| snapshot["meta"][&name] = old);
        refuses(&world, &source, &held, FaultKind::Rollback, &format!("{role}: version 1 is offered")).await;
    }
}

#[tokio::test]
async fn the_kill_list_of_one_version_cannot_be_served_with_the_grants_of_another() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    let old = world.sample.published()["metadata/1.incident.json"].clone();
    world.sample.files.insert("kill/list.toml".to_owned(), "schema = 1 # more".into());
    world.publish();
    world.served.files.lock().unwrap().insert("metadata/2.incident.json".to_owned(), old);
    refuses(&world, &source, &held, FaultKind::Altered, "2.incident.json").await;
}

#[tokio::test]
async fn equal_versions_with_other_bytes_are_refused_though_the_keys_signed_them() {
    // Timestamp.
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    let mut value = world.signed("timestamp");
    value["x"] = 1.into();
    world.sample.put("timestamp", 1, value).unwrap();
    world.serve();
    refuses(&world, &source, &held, FaultKind::Altered, "timestamp: version 1 has other bytes").await;
    // Snapshot, under a new timestamp.
    let mut value = world.signed("snapshot");
    value["x"] = 1.into();
    let bytes = world.sample.put("snapshot", 1, value).unwrap();
    world.timestamp(1, &bytes);
    refuses(&world, &source, &held, FaultKind::Altered, "snapshot: version 1 has other bytes").await;
    // A role, under a new snapshot, which says its digest or does not.
    for says in [true, false] {
        let mut world = World::trusted().await;
        let source = world.source();
        let held = new(source.fetch(None).await);
        let mut value = world.signed("incident");
        value["x"] = 1.into();
        let bytes = world.sample.put("incident", 1, value).unwrap();
        world.bend(
            |_| {},
            |snapshot| {
                snapshot["meta"]["incident.json"] = match says {
                    true => serde_json::json!({"version": 1, "hashes": {"sha256": Digest::of(&bytes).hex()}}),
                    false => serde_json::json!({"version": 1}),
                }
            },
        );
        let found = source.fetch(Some(&held.version)).await;
        match says {
            true => assert!(found.unwrap_err().message.starts_with("altered: incident: version 1 has other bytes")),
            // Nothing says that there are other bytes, so those that are kept are read.
            false => assert_eq!(new(found).files, policy_files()),
        }
    }
}

#[tokio::test]
async fn rejects_an_expired_version_and_names_the_expired_role() {
    for role in ["timestamp", "snapshot", "targets", "root"] {
        let mut world = World::trusted().await;
        let source = world.source();
        let held = new(source.fetch(None).await);
        world.sample.lives.insert(role.to_owned(), Duration::from_secs(60));
        if role == "root" {
            world.sample.publish_root(NOW).unwrap();
        }
        world.publish();
        world.clock.advance(Duration::from_secs(60));
        refuses_after_roots(&world, &source, &held, &format!("{role}: expired at")).await;
        let mut world = World::new();
        world.sample.lives.insert(role.to_owned(), Duration::from_secs(60));
        if role == "root" {
            world.sample.publish_root(NOW).unwrap();
        }
        world.publish();
        world.clock.advance(Duration::from_secs(60));
        refuses_at_first(&world, FaultKind::Expired, role).await;
    }
}

/// As [`refuses`], where a root may be remembered all the same.
async fn refuses_after_roots(world: &World, source: &SignedSource, held: &PolicyFiles, names: &str) {
    let error = source.fetch(Some(&held.version)).await.unwrap_err();
    assert!(error.refused && error.message.starts_with("expired: ") && error.message.contains(names), "{error}");
    let kept = Store::open(world.state.path()).map(drop);
    assert!(kept.is_err(), "locked by the sidecar that runs");
    assert_eq!(source.state.lock().await.as_ref().unwrap().held.as_ref().unwrap().version, held.version);
}

#[tokio::test]
async fn reports_an_expired_owner_role_and_refuses_nothing() {
    let mut world = World::trusted().await;
    world.sample.lives.insert("incident".to_owned(), Duration::from_secs(60));
    world.sample.lives.insert("finance".to_owned(), Duration::from_secs(90));
    world.publish();
    world.clock.advance(Duration::from_secs(120));
    let files = files(&world).await;
    let ends = files.signed.unwrap().standing.ends;
    assert_eq!(ends["incident"], NOW + Duration::from_secs(60));
    assert_eq!(ends["finance"], NOW + Duration::from_secs(90));
    assert_eq!(ends["governance"], NOW + Sample::LIFE);
    assert_eq!(files.files.len(), policy_files().len());
}

#[tokio::test]
async fn a_frozen_repository_expires() {
    let mut world = World::trusted().await;
    world.sample.lives.insert("timestamp".to_owned(), Duration::from_secs(60));
    world.publish();
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.clock.advance(Duration::from_secs(3600));
    // The same for ever: nothing new is said, so its end stands.
    assert!(matches!(source.fetch(Some(&held.version)).await, Ok(Fetched::Unchanged)));
    assert_eq!(held.signed.unwrap().standing.ends["timestamp"], NOW + Duration::from_secs(60));
}

#[tokio::test]
async fn rejects_a_version_with_an_altered_or_removed_policy_file() {
    let name = format!("targets/{}", target_name("grants/z.toml", &Digest::of(b"zzz")));
    for (served, kind) in [
        (Some("zzy"), FaultKind::Altered),
        (Some("zzzz"), FaultKind::TooLarge),
        (Some("zz"), FaultKind::Altered),
        (Some(""), FaultKind::Altered),
        (None, FaultKind::Missing),
    ] {
        let mut world = World::trusted().await;
        let source = world.source();
        let held = new(source.fetch(None).await);
        world.sample.files.insert("grants/z.toml".to_owned(), "zzz".into());
        world.publish();
        match served {
            Some(text) => world.served.files.lock().unwrap().insert(name.clone(), text.into()),
            None => world.served.files.lock().unwrap().remove(&name),
        };
        refuses(&world, &source, &held, kind, "z.toml").await;
        // Fixed, it is taken: what was fetched before is not fetched again.
        world.served.asked();
        world.serve();
        assert_eq!(new(source.fetch(Some(&held.version)).await).files["grants/z.toml"], "zzz");
        let asked = world.served.asked();
        assert_eq!(asked.iter().filter(|name| name.starts_with("targets/")).count(), 1, "{asked:?}");
        assert!(!asked.iter().any(|name| name.contains("governance")), "{asked:?}");
    }
}

#[tokio::test]
async fn a_repository_of_another_fleet_is_refused() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    let mut other = World::new();
    for _ in 0..3 {
        other.publish();
    }
    *world.served.files.lock().unwrap() = other.sample.published().clone();
    refuses(&world, &source, &held, FaultKind::Signature, "timestamp").await;
    world.anchor = other.anchor.clone();
    let empty = tempfile::tempdir().unwrap();
    let elsewhere = world.source_with(SignedSettings { state: empty.path().to_owned(), ..world.settings() });
    assert!(elsewhere.fetch(None).await.unwrap_err().message.starts_with("untrusted: "));
    drop(source);
    // The same state directory under the other fleet's root.
    let error = world.source().fetch(None).await.unwrap_err();
    assert!(error.refused && error.message.starts_with("other_fleet: root 1 "), "{error}");
    assert_eq!(world.source().trust().await.unwrap_err().kind(), FaultKind::OtherFleet);
}

#[tokio::test]
async fn rejects_invalid_metadata_and_never_stores_it() {
    for body in ["", "{}", "[]", "<html>", "{\"signed\":{},\"signatures\":[]}", "null", "\u{0}"] {
        let world = World::trusted().await;
        let source = world.source();
        let held = new(source.fetch(None).await);
        world.served.files.lock().unwrap().insert(TIMESTAMP.to_owned(), body.into());
        refuses(&world, &source, &held, FaultKind::Malformed, "timestamp").await;
    }
    let world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.served.files.lock().unwrap().insert(TIMESTAMP.to_owned(), vec![b' '; 17 * 1024].into());
    refuses(&world, &source, &held, FaultKind::TooLarge, "16384").await;
    world.served.files.lock().unwrap().remove(TIMESTAMP);
    refuses(&world, &source, &held, FaultKind::Missing, "policy.repository").await;
}

#[tokio::test]
async fn a_version_below_the_deployments_minimum_is_refused() {
    let mut world = World::new();
    world.publish();
    let settings = |minimum| SignedSettings { minimum_version: Some(minimum), ..world.settings() };
    let error = world.source_with(settings(3)).fetch(None).await.unwrap_err();
    assert!(error.message.starts_with("below_minimum: snapshot: version 2"), "{error}");
    // With a minimum that is met, nobody needs to be asked.
    let first = new(world.source_with(settings(2)).fetch(None).await);
    assert_eq!(first.signed.unwrap().snapshot, 2);
    // And from then on it was begun.
    assert_eq!(files(&world).await.version, first.version);
    world.down(true);
    let error = world.source_with(settings(3)).fetch(None).await.unwrap_err();
    assert!(error.message.starts_with("unreachable: "), "{error}");
}

#[tokio::test]
async fn never_rounds_up_an_expiry_with_a_fraction_of_a_second() {
    // Not what TUF writes, and what some tools wrote: it is read to the millisecond, or refused.
    for role in ["incident", "governance"] {
        let mut world = World::trusted().await;
        let source = world.source();
        let held = new(source.fetch(None).await);
        world.bend(|roles| roles.get_mut(role).unwrap()["expires"] = "2027-01-01T00:00:00.750Z".into(), |_| {});
        match source.fetch(Some(&held.version)).await {
            Ok(Fetched::New(files)) => {
                let end: Timestamp = "2027-01-01T00:00:00Z".parse().unwrap();
                assert_eq!(files.signed.unwrap().standing.ends[role], end + Duration::from_millis(750));
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(error.message.starts_with("malformed: "), "{error}"),
        }
    }
}
