//! The kill list, end to end: what begins, what runs, what is told and what is written down.

use serde_json::json;
use sidemint::policy::cache::RefreshOutcome;
use sidemint::policy::repository::fault::FaultKind;

use crate::http::Call;
use crate::policy_files::{OTHER, REPORT, kill};
use crate::world::{Setup, World, begun, secs, until};

const LIST: &str = "kill/list.toml";

async fn signed_with_reaper() -> World {
    World::with(Setup { signed: true, reaper: true, ..Setup::default() }).await
}

#[tokio::test]
async fn a_kill_ends_running_tasks_and_begins_no_new_one() {
    let w = signed_with_reaper().await;
    let (task, other) = (w.begin_scope("archive").await, w.begin_scope("brief").await);
    w.served(&task.token).await;
    assert_eq!(w.write_policy(LIST, &kill("scope = \"archive\"")).await, RefreshOutcome::Loaded);
    // Without any time passing: the reaper is woken.
    assert_eq!(w.ended(&task).await, "killed");
    assert_eq!(w.credentials(&task.token).await.status, 401);
    w.served(&other.token).await;
    assert_eq!(w.metric("sidemint_tasks_ended_total{reason=\"killed\"}").await, Some(1.0));
    let ends = || w.audit.lines().into_iter().filter(|line| line["event"] == "end").collect::<Vec<_>>();
    until("the end is audited", || !ends().is_empty()).await;
    let end = &ends()[0];
    assert_eq!([&end["task"], &end["reason"]], [task.id.as_str(), "killed"]);
    assert_eq!(end["detail"], "kill list entry stop-1: INC-7 leaked");

    let denied = w.metric("sidemint_denials_total{reason=\"killed\"}").await.unwrap();
    let reply = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "denied"));
    assert!(!reply.text().contains("INC-7") && !reply.text().contains("stop-1"));
    assert_eq!(w.metric("sidemint_denials_total{reason=\"killed\"}").await, Some(denied + 1.0));
    let line = &w.audited(reply.request_id()).await[0];
    assert_eq!([&line["outcome"], &line["reason"]], ["deny", "killed"]);
    assert!(line["detail"].as_str().unwrap().ends_with("kill list entry stop-1: INC-7 leaked"));
    let status = w.ask_admin("/status").await.json();
    assert_eq!([&status["policy"]["killed"], &status["policy"]["trust"]], [&json!(1), &json!("signed")]);
}

#[tokio::test]
async fn a_kill_stops_serving_at_the_next_request_however_late_the_reaper_is() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    w.write_policy(LIST, &kill(&format!("task = \"{}\"", task.id))).await;
    assert_eq!(w.credentials(&task.token).await.status, 401);
    assert_eq!(w.show(&task).await["reason"], "killed");
    // That task alone.
    let again = w.begin_scope("archive").await;
    w.served(&again.token).await;
    let show = w.show(&task).await.to_string();
    assert!(!show.contains("INC-7"), "{show}");
}

#[tokio::test]
async fn a_kill_ends_the_children_of_what_it_names() {
    let w = World::with_reaper().await;
    let parent = w.begin_scope("archive").await;
    let call = Call::post("/v1/tasks").bearer(&parent.token).json(&json!({ "scope": "brief" }));
    let child = begun(&w.send(call.clone()).await);
    w.write_policy(LIST, &kill("scope = \"archive\"")).await;
    assert_eq!(w.ended(&parent).await, "killed");
    assert_eq!(w.ended(&child).await, "parent_ended");
    assert_eq!(w.send(call).await.status, 401);
}

#[tokio::test]
async fn a_kill_of_a_workload_or_an_owner_stops_theirs_and_an_end_lifts_it() {
    let w = World::with_reaper().await;
    let theirs = |id: &str| Call::post("/v1/tasks").bearer(&w.svid(id)).json(&json!({ "scope": "archive" }));
    let (own, other) = (w.begin_scope("archive").await, begun(&w.send(theirs(OTHER)).await));
    let until = w.now() + secs(60);
    w.write_policy(LIST, &kill(&format!("spiffe_id = \"{REPORT}\"\nuntil = {until}"))).await;
    assert_eq!(w.ended(&own).await, "killed");
    assert_eq!(w.send(theirs(REPORT)).await.status, 403);
    w.served(&other.token).await;
    w.clock.advance(secs(60));
    assert_eq!(w.send(theirs(REPORT)).await.status, 201, "the entry is past");
    assert!(w.is_ended(&own), "what ended stays ended");
    w.write_policy(LIST, &kill("owner = \"tests\"")).await;
    assert_eq!(w.ended(&other).await, "killed");
}

#[tokio::test]
async fn does_not_serve_when_a_kill_comes_during_the_exchange() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.cloud.gate.shut();
    let asked = w.credentials(&task.token);
    let killed = async {
        until("the exchange is under way", || w.cloud.calls() == 1).await;
        w.write_policy(LIST, &kill("provider = \"aws\"")).await;
        w.cloud.gate.release();
    };
    let (reply, ()) = tokio::join!(asked, killed);
    assert_eq!(reply.status, 401);
    assert_eq!(w.show(&task).await["reason"], "killed");
}

#[tokio::test]
async fn the_kill_list_of_a_version_that_is_refused_ends_tasks_and_holds_after_a_restart() {
    let mut w = signed_with_reaper().await;
    let (task, other) = (w.begin_scope("archive").await, w.begin_scope("brief").await);
    crate::policy_files::write(&w.policy_directory(), "boundaries/bad.cedar", "permit");
    assert_eq!(w.write_policy(LIST, &kill("scope = \"archive\"")).await, RefreshOutcome::Refused);
    assert_eq!(w.ended(&task).await, "killed");
    w.served(&other.token).await;
    assert_eq!(w.send(w.begin_call(&json!({ "scope": "archive" }))).await.status, 403);
    std::fs::remove_file(w.policy_directory().join("boundaries/bad.cedar")).unwrap();
    w.restart().await;
    assert_eq!(w.show(&task).await["reason"], "killed");
    assert_eq!(w.send(w.begin_call(&json!({ "scope": "archive" }))).await.code(), "denied");
    w.served(&other.token).await;
}

#[tokio::test]
async fn a_task_that_ran_when_the_sidecar_stopped_is_killed_when_it_starts() {
    let mut w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.stop().await;
    crate::policy_files::write(&w.policy_directory(), LIST, &kill("trust_domain = \"example.org\""));
    w.start_again().await;
    assert_eq!(w.credentials(&task.token).await.status, 401);
    assert_eq!(w.show(&task).await["reason"], "killed");
}

#[tokio::test]
async fn a_kill_ends_tasks_though_nothing_else_of_its_version_can_be_trusted() {
    for (kind, outcome) in [
        (FaultKind::Expired, RefreshOutcome::Refused),
        (FaultKind::Missing, RefreshOutcome::Refused),
        (FaultKind::State, RefreshOutcome::Unavailable),
    ] {
        let w = signed_with_reaper().await;
        let (task, other) = (w.begin_scope("archive").await, w.begin_scope("brief").await);
        w.signers.fails(Some(kind));
        assert_eq!(w.write_policy(LIST, &kill("scope = \"archive\"")).await, outcome);
        assert_eq!(w.ended(&task).await, "killed");
        w.served(&other.token).await;
        let reply = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "denied"));
        let line = &w.audited(reply.request_id()).await[0];
        assert_eq!([&line["outcome"], &line["reason"]], ["deny", "killed"]);
        // The refusal is told as any other.
        let counted = format!("sidemint_policy_refreshes_total{{outcome=\"{}\"}}", outcome.as_str());
        assert_eq!(w.metric(&counted).await, Some(1.0));
        let status = w.ask_admin("/status").await.json();
        assert_eq!(status["policy"]["killed"], json!(1));
        let told = status["policy"]["problems"][0]["message"].as_str().unwrap().to_owned();
        assert!(told.starts_with(&format!("{}: ", kind.as_str())), "{told}");
        // Fixed, it stays stopped; and nobody lifts it by what cannot be trusted.
        w.write_policy(LIST, "schema = 1\n").await;
        assert_eq!(w.send(w.begin_call(&json!({ "scope": "archive" }))).await.status, 403);
        w.signers.fails(None);
        assert_eq!(w.reload().await, RefreshOutcome::Loaded);
        w.served(&w.begin_scope("archive").await.token).await;
    }
}
