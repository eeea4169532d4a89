//! What a refresh costs, and what it gives.

use super::*;
use crate::policy::ScopeId;

#[tokio::test]
async fn an_unchanged_refresh_costs_one_request_and_one_more_each_hour() {
    let world = World::trusted().await;
    let source = world.source();
    world.served.asked();
    let held = new(source.fetch(None).await);
    assert_eq!(world.served.asked(), [TIMESTAMP, "metadata/2.root.json"]);
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(30));
        assert!(matches!(source.fetch(Some(&held.version)).await, Ok(Fetched::Unchanged)));
        assert_eq!(world.served.asked(), [TIMESTAMP]);
    }
    world.clock.advance(PROBE);
    assert!(matches!(source.fetch(Some(&held.version)).await, Ok(Fetched::Unchanged)));
    assert_eq!(world.served.asked(), [TIMESTAMP, "metadata/2.root.json"]);
}

#[tokio::test]
async fn a_heartbeat_confirms_the_version_by_two_requests_and_outlives_a_restart() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.clock.advance(Duration::from_secs(600));
    world.heartbeat();
    world.served.asked();
    let Ok(Fetched::Confirmed(standing)) = source.fetch(Some(&held.version)).await else { panic!() };
    assert_eq!(world.served.asked(), [TIMESTAMP, "metadata/2.root.json"]);
    let end = NOW + Duration::from_secs(600) + Sample::LIFE;
    assert_eq!(standing.ends["timestamp"], end);
    assert_eq!(standing.ends["snapshot"], NOW + Sample::LIFE);
    assert!(matches!(source.fetch(Some(&held.version)).await, Ok(Fetched::Unchanged)));
    drop(source);
    world.down(true);
    let kept = files(&world).await;
    assert_eq!(kept.version, held.version);
    assert_eq!(kept.signed.unwrap().standing.ends["timestamp"], end);
}

#[tokio::test]
async fn a_change_fetches_what_changed_and_nothing_else() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.served.asked();
    let bytes = Bytes::from_static(b"schema = 1 # stop");
    let place = format!("targets/{}", target_name("kill/list.toml", &Digest::of(&bytes)));
    world.sample.published_mut().insert(place.clone(), bytes.clone());
    world.bend(|roles| roles.get_mut("incident").unwrap()["targets"]["kill/list.toml"] = listing(&bytes), |_| {});
    let files = new(source.fetch(Some(&held.version)).await);
    assert_eq!(files.files["kill/list.toml"], bytes);
    assert_eq!(files.files.len(), policy_files().len());
    assert_eq!(files.signed.unwrap().incident, 2);
    let expected = [TIMESTAMP, "metadata/2.root.json", "metadata/2.snapshot.json", "metadata/2.incident.json", &*place];
    assert_eq!(world.served.asked(), expected);
}

#[tokio::test]
async fn reads_only_the_files_of_configured_scopes_and_shared_ones() {
    let world = World::new();
    let scopes = BTreeSet::from(["a".parse::<ScopeId>().unwrap()]);
    let settings = SignedSettings { scopes, minimum_version: Some(1), ..world.settings() };
    let source = world.source_with(settings);
    let files = new(source.fetch(None).await);
    let expected = [
        "boundaries/wall.cedar",
        "decisions/a.cedar",
        "decisions/a.toml",
        "grants/x.toml",
        "kill/list.toml",
        "owners/charter.toml",
        "scopes/a.toml",
    ];
    assert_eq!(files.files.keys().collect::<Vec<_>>(), expected);
    let asked = world.served.asked();
    assert!(!asked.iter().any(|name| name.ends_with("b.toml") || name.ends_with("y.toml")), "{asked:?}");
    drop(source);
    // Once more scopes are wanted, what is kept is not enough.
    world.down(true);
    let error = world.source().fetch(None).await.unwrap_err();
    assert!(error.message.starts_with("unreachable: "), "{error}");
    world.down(false);
    assert_eq!(super::files(&world).await.files, policy_files());
}

#[tokio::test]
async fn gives_the_files_again_to_a_reader_of_another_version() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    assert_eq!(new(source.fetch(None).await).files, held.files);
    let other = PolicyVersion("7-0000000000000000".into());
    assert_eq!(new(source.fetch(Some(&other)).await).version, held.version);
    // The ends that a heartbeat brought are those of the files that are given then.
    world.clock.advance(Duration::from_secs(60));
    world.heartbeat();
    let again = new(source.fetch(Some(&other)).await);
    assert_eq!(again.signed.unwrap().standing.ends["timestamp"], NOW + Duration::from_secs(60) + Sample::LIFE);
}

#[tokio::test]
async fn reports_html_in_place_of_the_next_root_and_treats_it_as_absent() {
    let mut world = World::trusted().await;
    for page in ["<html>not found</html>", "", "{\"message\": \"not found\"}", &"x".repeat(600 * 1024)] {
        world.served.files.lock().unwrap().insert("metadata/2.root.json".to_owned(), page.to_owned().into());
        let source = world.source();
        new(source.fetch(None).await);
        let notes = source.notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("metadata/2.root.json"), "{notes:?}");
    }
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.publish();
    new(source.fetch(Some(&held.version)).await);
    assert_eq!(source.notes(), Vec::<String>::new());
}

#[tokio::test]
async fn distinguishes_an_unavailable_server_from_a_dishonest_one() {
    let world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.down(true);
    let error = source.fetch(Some(&held.version)).await.unwrap_err();
    assert!(!error.refused && error.message.starts_with("unreachable: "), "{error}");
    world.down(false);
    assert!(matches!(source.fetch(Some(&held.version)).await, Ok(Fetched::Unchanged)));
    assert_eq!(source.status().fault, None);
}

#[tokio::test]
async fn a_snapshot_that_pins_versions_alone_is_read_as_other_tools_write_it() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.bend(
        |roles| roles.get_mut("incident").unwrap()["x"] = 1.into(),
        |snapshot| {
            for (_, pin) in snapshot["meta"].as_object_mut().unwrap() {
                *pin = serde_json::json!({"version": pin["version"]});
            }
        },
    );
    let files = new(source.fetch(Some(&held.version)).await);
    assert_eq!(files.files, policy_files());
    drop(source);
    world.down(true);
    assert_eq!(super::files(&world).await.version, files.version);
}

#[tokio::test]
async fn a_temporary_clock_error_has_no_lasting_effect() {
    let mut world = World::trusted().await;
    let source = world.source();
    let held = new(source.fetch(None).await);
    world.publish();
    world.clock.set_wall(NOW + 2 * Sample::LIFE);
    let error = source.fetch(Some(&held.version)).await.unwrap_err();
    assert!(error.message.starts_with("expired: "), "{error}");
    world.clock.set_wall(NOW);
    assert_eq!(new(source.fetch(Some(&held.version)).await).signed.unwrap().snapshot, 2);
}

#[tokio::test]
async fn keeps_two_of_fifty_versions_on_disk() {
    let mut world = World::trusted().await;
    let source = world.source();
    let mut held = new(source.fetch(None).await);
    for number in 0..50 {
        world.sample.files.insert("kill/list.toml".to_owned(), format!("schema = 1 # {number}").into());
        world.publish();
        held = new(source.fetch(Some(&held.version)).await);
        // All but the last come into force.
        if number < 49 {
            source.used(&held.version, Use::Whole).await;
        }
    }
    let kept: Vec<_> = std::fs::read_dir(world.policy().join("versions")).unwrap().flatten().collect();
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().any(|entry| entry.file_name().to_str() == Some(&*held.version.0)));
    assert_eq!(std::fs::read_dir(world.policy()).unwrap().count(), 6);
    let before = source.previous().await.unwrap().unwrap().files;
    assert_eq!(before.signed.unwrap().snapshot, held.signed.unwrap().snapshot - 1);
}
