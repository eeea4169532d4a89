//! The pod task: the sidecar begins it by itself, and the token file is how the container holds it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sidemint::config::PodTaskSettings;
use tempfile::TempDir;

use crate::policy_files::{OTHER, REPORT, Scope};
use crate::world::{Setup, World, secs, settle, until};

fn settings(directory: &TempDir, scope: &str) -> PodTaskSettings {
    PodTaskSettings {
        scope: scope.parse().unwrap(),
        spiffe_id: None,
        token_file: directory.path().join("token"),
        renew: true,
        ttl: Some(secs(1000)),
        reason: None,
        params: std::collections::BTreeMap::new(),
    }
}

async fn world(settings: PodTaskSettings) -> World {
    World::with(Setup { reaper: true, pod_task: Some(settings), ..Setup::default() }).await
}

fn token(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok()
}

/// Steps the clock until `condition` holds.
async fn stepping(w: &World, what: &str, step: Duration, mut condition: impl FnMut() -> bool) {
    for _ in 0..4000 {
        settle().await;
        if condition() {
            return;
        }
        w.clock.advance(step);
    }
    panic!("it never came to this: {what}");
}

fn ready(w: &World) -> bool {
    w.pod_task.as_ref().unwrap().not_ready().is_none()
}

#[tokio::test]
async fn the_token_is_in_its_file_before_the_sidecar_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, "archive");
    let file = settings.token_file.clone();
    let w = world(settings).await;
    until("it is ready, without any time passing", || ready(&w)).await;
    let text = token(&file).unwrap();
    assert!(text.starts_with("smt_") && text.len() == 47, "no newline");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o440);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "and nothing beside it");
    w.served(&text).await;
    assert_eq!(w.cloud.orders()[0].caller.as_str(), REPORT, "the default identity");
    assert_eq!(w.ask_admin("/readyz").await.text(), "ready\n");
    let line = w.audited("pod-task").await.remove(0);
    assert_eq!([&line["outcome"], &line["proof"]], ["permit", "pod"]);
}

#[tokio::test]
async fn renews_the_task_before_its_deadline_and_keeps_the_old_token_until_then() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, "archive");
    let file = settings.token_file.clone();
    let w = world(settings).await;
    until("it is ready", || ready(&w)).await;
    let first = token(&file).unwrap();
    // 60 s before the end of 1,000 s.
    until("it waits", || w.clock.sleepers() >= 2).await;
    w.clock.advance(secs(939));
    settle().await;
    assert_eq!(token(&file).unwrap(), first);
    w.clock.advance(secs(1));
    until("there is a successor", || token(&file).unwrap() != first).await;
    assert!(ready(&w));
    let second = token(&file).unwrap();
    w.served(&first).await;
    w.served(&second).await;
    w.clock.advance(secs(60));
    until("the first has ended", || w.broker.census().ended == 1).await;
    assert_eq!(w.credentials(&first).await.status, 401);
    w.served(&second).await;
}

#[tokio::test]
async fn a_denied_pod_task_leaves_the_sidecar_up_but_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, "others-only");
    let file = settings.token_file.clone();
    let w = world(settings).await;
    until("it was denied", || !ready(&w) && w.audit.text().contains("not_permitted")).await;
    let readyz = w.ask_admin("/readyz").await;
    assert_eq!(readyz.status, 503);
    assert!(readyz.text().contains("pod task: denied: not_permitted"), "{}", readyz.text());
    assert_eq!(w.ask_admin("/livez").await.status, 200);
    assert_eq!(token(&file), None);
    // Others are served meanwhile.
    w.begin_scope("archive").await;
    w.publish(Scope { permits: &[OTHER, REPORT], ..Scope::new("others-only") }).await;
    stepping(&w, "it runs", secs(1), || ready(&w)).await;
    w.served(&token(&file).unwrap()).await;
}

#[tokio::test]
async fn begins_as_soon_as_identities_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, "archive");
    let file = settings.token_file.clone();
    let w = World::with(Setup { known: false, pod_task: Some(settings), ..Setup::default() }).await;
    settle().await;
    assert!(w.ask_admin("/readyz").await.text().contains("pod task"));
    w.api.update(|identities| identities.known = true);
    until("it is ready, without any time passing", || ready(&w)).await;
    assert!(token(&file).is_some());
}

#[tokio::test]
async fn begins_again_after_an_end_once_policy_permits() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, "archive");
    let file = settings.token_file.clone();
    let w = world(settings).await;
    until("it is ready", || ready(&w)).await;
    let first = token(&file).unwrap();
    w.publish(Scope { permits: &[OTHER], ..Scope::new("archive") }).await;
    until("it is not ready", || !ready(&w)).await;
    assert_eq!(w.credentials(&first).await.status, 401);
    w.publish(Scope::new("archive")).await;
    stepping(&w, "it runs again", secs(1), || ready(&w)).await;
    assert_ne!(token(&file).unwrap(), first);
    w.served(&token(&file).unwrap()).await;
}

#[tokio::test]
async fn adopts_its_task_after_a_restart_and_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, "archive");
    let file = settings.token_file.clone();
    let mut w = world(settings).await;
    until("it is ready", || ready(&w)).await;
    let first = token(&file).unwrap();
    for crash in [false, true] {
        if crash {
            w.crash().await
        } else {
            w.restart().await
        }
        until("it is ready", || ready(&w)).await;
        assert_eq!(token(&file).unwrap(), first);
        assert_eq!(w.broker.census().active, 1);
        w.served(&first).await;
    }
    assert_eq!(w.cloud.calls(), 2);
}

#[tokio::test]
async fn replaces_a_token_of_another_task() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(&directory, "archive");
    let file = settings.token_file.clone();
    fs::write(&file, format!("smt_{}", "A".repeat(43))).unwrap();
    let mut w = world(settings.clone()).await;
    stepping(&w, "it is ready", secs(1), || ready(&w)).await;
    let own = token(&file).unwrap();
    w.served(&own).await;
    // Another identity's task with the same ask is not adopted either.
    w.stop().await;
    w.change(|setup| setup.pod_task = Some(PodTaskSettings { spiffe_id: Some(OTHER.parse().unwrap()), ..settings }));
    w.start_again().await;
    stepping(&w, "it is ready", secs(1), || ready(&w)).await;
    let others = token(&file).unwrap();
    assert_ne!(others, own);
    w.served(&others).await;
    assert_eq!(w.cloud.orders().last().unwrap().caller.as_str(), OTHER);
}

#[tokio::test]
async fn does_not_begin_again_without_renewal() {
    let directory = tempfile::tempdir().unwrap();
    let settings = PodTaskSettings { renew: false, ..settings(&directory, "archive") };
    let file = settings.token_file.clone();
    let w = world(settings).await;
    until("it is ready", || ready(&w)).await;
    let first = token(&file).unwrap();
    until("it waits", || w.clock.sleepers() >= 2).await;
    w.clock.advance(secs(1000));
    stepping(&w, "it is over", secs(1), || !ready(&w)).await;
    for _ in 0..10 {
        w.clock.advance(secs(60));
        settle().await;
    }
    assert_eq!(token(&file).unwrap(), first);
    assert_eq!(w.credentials(&first).await.status, 401);
    assert!(w.ask_admin("/readyz").await.text().contains("renew"));
}

#[tokio::test]
async fn a_token_file_that_cannot_be_written_leaves_no_task_behind() {
    let settings = PodTaskSettings {
        token_file: PathBuf::from("/nonexistent/token"),
        ..settings(&tempfile::tempdir().unwrap(), "archive")
    };
    let w = world(settings).await;
    until("it was tried", || w.broker.census().ended == 1).await;
    assert_eq!(w.broker.census().active, 0);
    until("it says so", || w.pod_task.as_ref().unwrap().not_ready().unwrap().contains("pod_task.token_file")).await;
}
