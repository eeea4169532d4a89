//! A signed policy that is not renewed: fresh, stale, expired; and what its owners' leaving does.

use serde_json::json;
use sidemint::clock::Timestamp;
use sidemint::policy::cache::RefreshOutcome;
use sidemint::policy::repository::fault::FaultKind;

use crate::policy_files::write;
use crate::world::{START, Setup, World, secs, until};

const HOUR: u64 = 3600;
/// When the timestamp of a new world lapses.
const LAPSE: Timestamp = Timestamp::from_millis(START.as_millis() + 600_000);

async fn signed() -> World {
    World::with(Setup { signed: true, ..Setup::default() }).await
}

async fn state(w: &World) -> String {
    let states = ["fresh", "stale", "expired", "unsigned"];
    let page = w.metrics().await;
    let set = |state: &&&str| page.contains(&format!("sidemint_policy_state{{state=\"{state}\"}} 1\n"));
    let found: Vec<_> = states.iter().filter(set).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    (*found[0]).to_owned()
}

#[tokio::test]
async fn a_policy_that_is_not_renewed_goes_stale_then_expires_and_ends_nothing() {
    let w = signed().await;
    w.signers.reachable(false);
    assert_eq!(state(&w).await, "fresh");
    assert_eq!(w.metric("sidemint_policy_version").await, Some(1.0));
    let expiry = "sidemint_policy_expiry_timestamp_seconds{role=\"timestamp\"}";
    assert_eq!(w.metric(expiry).await, Some(LAPSE.as_secs() as f64));

    w.clock.advance(secs(12 * HOUR));
    assert_eq!(state(&w).await, "stale");
    let task = w.begin(json!({ "scope": "archive" })).await;
    w.served(&task.token).await;
    let of_task =
        |event: &str| w.audit.lines().into_iter().find(|line| line["event"] == event && line["task"] == *task.id);
    until("the mint is audited", || of_task("mint").is_some()).await;
    let since = LAPSE.to_string();
    for event in ["decision", "mint"] {
        assert_eq!(of_task(event).unwrap()["stale"], json!({ "role": "timestamp", "since": since }), "{event}");
    }
    assert!(w.admin.reasons().iter().all(|reason| !reason.starts_with("policy")));

    // One second before the window of 24 h is over a task begins; then neither a task nor a credential.
    w.clock.advance(secs(12 * HOUR + 599));
    let (last, idle) = (w.begin_scope("brief").await, w.begin_scope("archive").await);
    let served = w.served(&last.token).await;
    w.clock.advance(secs(1));
    let denied = w.metric("sidemint_denials_total{reason=\"policy_expired\"}").await.unwrap();
    let reply = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "policy_expired"));
    assert!(reply.header("retry-after").is_some());
    assert!(!reply.text().contains("timestamp"));
    assert_eq!(w.metric("sidemint_denials_total{reason=\"policy_expired\"}").await, Some(denied + 1.0));
    let line = &w.audited(reply.request_id()).await[0];
    assert_eq!([&line["outcome"], &line["reason"]], ["deny", "policy_expired"]);
    assert!(line["detail"].as_str().unwrap().contains("the role timestamp expired at"));
    assert!(line["digests"].is_object() && line["policy_version"].is_string());
    // What is live is served, and what runs runs on.
    assert_eq!(w.served(&last.token).await, served);
    assert_eq!(w.credentials(&idle.token).await.status, 503);
    let native =
        w.send(crate::http::Call::get(&format!("/v1/tasks/{}/credentials", idle.id)).bearer(&idle.token)).await;
    assert_eq!((native.status, native.code().as_str()), (503, "policy_expired"));
    w.broker.sweep_now().await;
    assert!(!w.is_ended(&idle) && !w.is_ended(&last));
    let failed = "sidemint_mints_total{outcome=\"policy_expired\",provider=\"aws\",tier=\"baseline\"}";
    assert!(w.metric(failed).await.unwrap() >= 1.0);
    assert_eq!(state(&w).await, "expired");
    assert!(w.admin.reasons().iter().any(|reason| reason.starts_with("policy: expired: the role timestamp")));
    assert_eq!(w.ask_admin("/readyz").await.status, 503);

    // A heartbeat fixes it.
    w.signers.reachable(true);
    w.signers.expires("timestamp", w.now() + secs(600));
    assert_eq!(w.reload().await, RefreshOutcome::Unchanged);
    assert_eq!(state(&w).await, "fresh");
    w.clock.advance(secs(2));
    w.served(&idle.token).await;
    assert_eq!(w.metric("sidemint_policy_version").await, Some(1.0));
    let fresh = w.begin_scope("archive").await;
    let line =
        w.audit.lines().into_iter().find(|line| line["event"] == "decision" && line["task"] == *fresh.id).unwrap();
    assert!(line["stale"].is_null());
    let paths: Vec<_> = line["digests"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        paths,
        ["decisions/archive.cedar", "decisions/archive.toml", "grants/archive-aws.toml", "scopes/archive.toml"]
    );
}

#[tokio::test]
async fn hides_an_expired_policy_from_callers_that_are_not_permitted() {
    let w = signed().await;
    w.clock.advance(secs(30 * HOUR));
    for scope in ["others-only", "walled", "suspended", "nowhere"] {
        let reply = w.send(w.begin_call(&json!({ "scope": scope }))).await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "denied"), "{scope}");
    }
}

#[tokio::test]
async fn a_task_is_adopted_under_an_expired_policy_and_judged_by_its_rules() {
    let mut w = signed().await;
    let (task, gone) = (w.begin_scope("idling").await, w.begin_scope("ledger-less").await);
    w.clock.advance(secs(4 * 60));
    w.stop().await;
    std::fs::remove_file(w.policy_directory().join("decisions/ledger-less.toml")).unwrap();
    w.signers.expires("timestamp", START - secs(48 * HOUR));
    w.start_again().await;
    assert_eq!(state(&w).await, "expired");
    assert_eq!(w.credentials(&task.token).await.status, 503);
    assert!(!w.is_ended(&task));
    assert_eq!(w.credentials(&gone.token).await.status, 401);
    assert_eq!(w.show(&gone).await["reason"], "policy_changed");
}

#[tokio::test]
async fn status_shows_when_each_role_expires_and_what_was_refused() {
    let w = signed().await;
    let policy = async || w.ask_admin("/status").await.json()["policy"].clone();
    let before = policy().await;
    assert_eq!([&before["state"], &before["trust"]], ["fresh", "signed"]);
    assert_eq!(before["ends"]["timestamp"], LAPSE.to_string());
    assert_eq!(before["ends"].as_object().unwrap().len(), 9);
    assert!(before["last_refusal"].is_null());
    write(&w.policy_directory(), "owners/charter.toml", "schema = 2");
    assert_eq!(w.reload().await, RefreshOutcome::Refused);
    std::fs::remove_file(w.policy_directory().join("owners/charter.toml")).unwrap();
    w.clock.advance(secs(30));
    w.reload().await;
    let after = policy().await;
    assert_eq!(after["problems"], json!([]));
    assert_eq!(after["last_refusal"]["at"], START.to_string());
    assert_eq!(after["last_refusal"]["problems"][0]["file"], "owners/charter.toml");
    assert!(w.ask_admin("/").await.text().contains("last_refusal"));
}

#[tokio::test]
async fn an_owner_who_leaves_stops_their_scopes_after_the_grace() {
    let w = World::with(Setup { signed: true, reaper: true, ..Setup::default() }).await;
    w.signers.expires("timestamp", START + secs(29 * 24 * HOUR));
    // 2026-11-24: the day after tests begin
    let owner = "schema = 1\nname = \"T\"\nmail = \"t@example.org\"\nactive_until = 2026-11-24\n";
    assert_eq!(w.write_policy("owners/tests.toml", owner).await, RefreshOutcome::Loaded);
    let gone: Timestamp = "2026-12-02T00:00:00Z".parse().unwrap();
    w.clock.advance(gone.since(w.now()) - secs(1));
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    let suspended = "sidemint_scopes_suspended{reason=\"owner\"}";
    assert_eq!(w.metric(suspended).await, Some(1.0), "the elevated one, which has no grace");
    w.clock.advance(secs(1));
    let reply = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "denied"));
    let line = &w.audited(reply.request_id()).await[0];
    assert_eq!([&line["reason"], &line["rule_ids"][0]], ["guardrail", "guardrail-owner-gone"]);
    assert!(line["detail"].as_str().unwrap().contains("the owner tests is active until 2026-11-25"));
    assert_eq!(w.metric(suspended).await, Some(9.0));
    // No new credential: the task ends when it needs one.
    w.clock.advance(secs(1201));
    assert_eq!(w.credentials(&task.token).await.status, 401);
    assert_eq!(w.ended(&task).await, "policy_changed");
}

#[tokio::test]
async fn reports_each_repository_fault_and_is_not_ready_without_a_policy() {
    let mut w = signed().await;
    let count = async |w: &World, outcome: RefreshOutcome| {
        w.metric(&format!("sidemint_policy_refreshes_total{{outcome=\"{}\"}}", outcome.as_str())).await.unwrap()
    };
    for kind in FaultKind::ALL {
        let reach = matches!(kind, FaultKind::Unreachable | FaultKind::State);
        let outcome = if reach { RefreshOutcome::Unavailable } else { RefreshOutcome::Refused };
        let before = count(&w, outcome).await;
        w.signers.fails(Some(kind));
        assert_eq!(w.reload().await, outcome, "{kind:?}");
        assert_eq!(count(&w, outcome).await, before + 1.0, "{kind:?}");
        let status = w.ask_admin("/status").await.json();
        let told = status["policy"]["problems"][0]["message"].as_str().unwrap().to_owned();
        assert_eq!(told, format!("{}: the fake was told so", kind.as_str()));
        // What is in force goes on.
        w.served(&w.begin_scope("archive").await.token).await;
        assert_eq!(w.ask_admin("/readyz").await.status, 200, "{kind:?}");
        w.signers.fails(None);
        w.reload().await;
    }
    for kind in FaultKind::ALL {
        w.signers.fails(Some(kind));
        w.restart().await;
        let ready = w.ask_admin("/readyz").await;
        assert_eq!(ready.status, 503, "{kind:?}");
        let told = format!("policy: nothing is loaded: (source): {}: the fake was told so", kind.as_str());
        assert!(ready.text().contains(&told), "{}", ready.text());
        w.signers.fails(None);
        assert_eq!(w.reload().await, RefreshOutcome::Loaded);
        assert_eq!(w.ask_admin("/readyz").await.status, 200, "{kind:?}");
    }
}
