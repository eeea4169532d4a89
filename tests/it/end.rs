//! A task ends, exactly once, and everything that belongs to it with it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::begin::join_all;
use crate::http::{Call, Connection};
use crate::policy_files::{OTHER, REPORT, Scope};
use crate::world::{Begun, START, Setup, World, begun, secs, settle, time, until};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Moves the clock once the reaper waits for it again.
async fn pass(w: &World, time: Duration) {
    settle().await;
    until("the reaper sleeps", || w.clock.sleepers() > 0).await;
    w.clock.advance(time);
    settle().await;
}

#[tokio::test]
async fn an_end_reports_the_residual_access_and_repeats_its_report() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    w.clock.advance(secs(60));
    let first = w.end(&task).await;
    assert_eq!([&first["id"], &first["reason"]], [task.id.as_str(), "done"]);
    assert_eq!(time(&first["ended_at"]), START + secs(60));
    let leases = first["leases"].as_array().unwrap();
    assert_eq!((leases.len(), &leases[0]["provider"], &leases[0]["outcome"]), (1, &json!("aws"), &json!("expires")));
    assert_eq!(time(&leases[0]["usable_until"]), START.floor_to_second() + secs(1200));
    w.clock.advance(secs(3600));
    assert_eq!(w.end(&task).await, first);
    let by_owner = w.send(Call::delete(&format!("/v1/tasks/{}", task.id)).bearer(&w.svid(REPORT))).await;
    assert_eq!(by_owner.json(), first);
    assert_eq!(w.metric("sidemint_tasks_ended_total{reason=\"done\"}").await, Some(1.0));
    // 1,139.75 s were left: the bucket up to 1,800 s has it and the one up to 900 s has not.
    assert_eq!(w.metric("sidemint_residual_access_seconds_bucket{provider=\"aws\",le=\"900\"}").await, Some(0.0));
    assert_eq!(w.metric("sidemint_residual_access_seconds_bucket{provider=\"aws\",le=\"1800\"}").await, Some(1.0));
    let ends: Vec<Value> = w.audit.lines().into_iter().filter(|line| line["event"] == "end").collect();
    assert_eq!(ends.len(), 1);
    assert_eq!([&ends[0]["task"], &ends[0]["reason"]], [task.id.as_str(), "done"]);
    assert_eq!(ends[0]["leases"], first["leases"]);
}

#[tokio::test]
async fn a_task_without_a_mint_ends_without_residual_access() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    assert_eq!(w.end(&task).await["leases"], json!([]));
    assert_eq!(w.metric("sidemint_residual_access_seconds_count{provider=\"aws\"}").await, Some(0.0));
}

#[tokio::test]
async fn concurrent_ends_count_as_one() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    let ends = join_all((0..20).map(|_| w.end(&task))).await;
    assert!(ends.iter().all(|end| *end == ends[0]));
    assert_eq!(w.metric("sidemint_tasks_ended_total{reason=\"done\"}").await, Some(1.0));
}

#[tokio::test]
async fn completes_an_end_when_its_caller_disconnects() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let child = w.begin(json!({ "scope": "brief", "parent": task.id })).await;
    w.journal.hold("task ended");
    let mut connection = Connection::open(w.address).await;
    let call = Call::delete(&format!("/v1/tasks/{}", task.id)).bearer(&task.token).bytes(w.address);
    let call = String::from_utf8(call).unwrap().replace("connection: close\r\n", "");
    connection.send(call.as_bytes()).await;
    until("the end is on its way to the journal", || w.journal.waiting() == 1).await;
    drop(connection);
    settle().await;
    w.journal.release("task ended");
    let ended = |task: &Begun| {
        let id = json!(task.id);
        w.audit.lines().iter().any(|line| line["event"] == "end" && line["task"] == id)
    };
    until("both ends are audited", || ended(&task) && ended(&child)).await;
    assert_eq!(w.show(&child).await["reason"], "parent_ended");
}

#[tokio::test]
async fn a_task_ends_at_its_deadline_and_not_before() {
    let w = World::with_reaper().await;
    let task = w.begin(json!({ "scope": "archive", "ttl": "90s" })).await;
    w.served(&task.token).await;
    pass(&w, secs(90) - MILLISECOND).await;
    assert!(!w.is_ended(&task));
    pass(&w, MILLISECOND).await;
    assert_eq!(w.ended(&task).await, "deadline");
}

#[tokio::test]
async fn a_late_sweep_lengthens_nothing() {
    let w = World::new().await;
    let overdue = w.begin(json!({ "scope": "archive", "ttl": "90s" })).await;
    let unheld = w.begin(json!({ "scope": "archive", "hold": true })).await;
    let idle = w.begin_scope("idling").await;
    let child = w.begin(json!({ "scope": "archive", "parent": unheld.id })).await;
    w.served(&overdue.token).await;
    w.clock.advance(secs(300));
    for (task, reason) in [(&overdue, "deadline"), (&child, "parent_ended"), (&unheld, "hold_gone"), (&idle, "idle")] {
        assert_eq!(w.credentials(&task.token).await.status, 401, "{reason}");
        assert_eq!(w.show(task).await["reason"], reason);
    }
    assert_eq!(w.cloud.calls(), 1);
}

#[tokio::test]
async fn a_hold_that_comes_too_late_finds_the_task_ended() {
    let w = World::new().await;
    for (body, time) in
        [(json!({ "scope": "archive", "ttl": "90s" }), 90), (json!({ "scope": "archive", "hold": true }), 10)]
    {
        let task = w.begin(body).await;
        w.clock.advance(secs(time));
        let hold = Call::post(&format!("/v1/tasks/{}/hold", task.id)).bearer(&task.token);
        let reply = w.send(hold).await;
        assert_eq!((reply.status, reply.code().as_str()), (409, "task_ended"));
    }
}

#[tokio::test]
async fn an_idle_task_ends_where_the_decision_says_so_and_use_delays_it() {
    let w = World::with_reaper().await;
    let (idling, other) = (w.begin_scope("idling").await, w.begin_scope("archive").await);
    pass(&w, secs(299)).await;
    w.served(&idling.token).await;
    pass(&w, secs(300) - MILLISECOND).await;
    assert!(!w.is_ended(&idling));
    pass(&w, MILLISECOND).await;
    assert_eq!(w.ended(&idling).await, "idle");
    assert!(!w.is_ended(&other));
}

#[tokio::test]
async fn a_held_task_is_never_idle() {
    let w = World::with_reaper().await;
    let task = w.begin_scope("idling").await;
    let mut hold = w.hold(&task).await;
    assert_eq!(hold.line().await.unwrap()["state"], "active");
    pass(&w, secs(3600)).await;
    assert!(!w.is_ended(&task));
    drop(hold);
    let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
    until("the hold is let go", || found.state().holders == 0).await;
    pass(&w, secs(300)).await;
    assert_eq!(w.ended(&task).await, "idle");
}

#[tokio::test]
async fn a_held_task_ends_ten_seconds_after_its_last_holder() {
    let w = World::with_reaper().await;
    let task = w.begin(json!({ "scope": "archive", "hold": true })).await;
    assert_eq!(w.show(&task).await["hold"], true);
    // Nobody came yet: the ten seconds run from the start.
    pass(&w, secs(9)).await;
    let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
    let (mut first, mut second) = (w.hold(&task).await, w.hold(&task).await);
    for hold in [&mut first, &mut second] {
        let line = hold.line().await.unwrap();
        assert_eq!([&line["id"], &line["state"]], [task.id.as_str(), "active"]);
        assert_eq!(time(&line["expires_at"]), task.expires_at);
    }
    pass(&w, secs(60)).await;
    assert_eq!(second.line().await.unwrap()["state"], "active");
    drop(first);
    until("one has let go", || found.state().holders == 1).await;
    pass(&w, secs(60)).await;
    assert!(!w.is_ended(&task), "one still holds it");
    drop(second);
    until("both have let go", || found.state().holders == 0).await;
    pass(&w, Duration::from_millis(9900)).await;
    assert!(!w.is_ended(&task));
    w.served(&task.token).await;
    pass(&w, Duration::from_millis(100)).await;
    assert_eq!(w.ended(&task).await, "hold_gone");
    assert_eq!(w.credentials(&task.token).await.status, 401);
}

#[tokio::test]
async fn a_holder_that_reconnects_in_time_keeps_the_task() {
    let w = World::with_reaper().await;
    let task = w.begin(json!({ "scope": "archive", "hold": true })).await;
    let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
    for _ in 0..3 {
        let mut hold = w.hold(&task).await;
        hold.line().await.unwrap();
        drop(hold);
        until("the hold is let go", || found.state().holders == 0).await;
        pass(&w, Duration::from_millis(9900)).await;
        assert!(!w.is_ended(&task));
    }
}

#[tokio::test]
async fn a_holder_gets_a_heartbeat_every_two_seconds_and_the_reason_of_the_end() {
    let w = World::new().await;
    let task = w.begin(json!({ "scope": "archive", "hold": true })).await;
    let mut hold = w.hold(&task).await;
    assert_eq!(hold.line().await.unwrap()["state"], "active");
    for _ in 0..3 {
        until("the heartbeat is armed", || w.clock.sleepers() == 1).await;
        w.clock.advance(secs(2));
        assert_eq!(hold.line().await.unwrap()["state"], "active");
    }
    w.end(&task).await;
    assert_eq!(hold.line().await, Some(json!({ "id": task.id, "state": "ended", "reason": "done" })));
    assert_eq!(hold.line().await, None);
}

#[tokio::test]
async fn a_holder_does_not_delay_shutdown() {
    let mut w = World::new().await;
    let task = w.begin(json!({ "scope": "archive", "hold": true })).await;
    let mut hold = w.hold(&task).await;
    hold.line().await.unwrap();
    let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
    w.broker.end(&found, sidemint::task::EndReason::Shutdown, None).await;
    assert_eq!(hold.line().await.unwrap()["reason"], "shutdown");
    assert_eq!(hold.line().await, None);
    drop((hold, found));
    w.stop().await;
    w.start_again().await;
    assert!(w.is_ended(&task));
}

#[tokio::test]
async fn an_identity_that_is_withdrawn_ends_its_tasks_and_no_others() {
    let w = World::with_reaper().await;
    let own = w.begin_scope("archive").await;
    let other =
        begun(&w.send(Call::post("/v1/tasks").bearer(&w.svid(OTHER)).json(&json!({ "scope": "archive" }))).await);
    w.served(&own.token).await;
    w.api.withdraw(REPORT);
    assert_eq!(w.ended(&own).await, "identity_withdrawn");
    assert_eq!(w.credentials(&own.token).await.status, 401);
    w.served(&other.token).await;
    w.api.withdraw_all();
    assert_eq!(w.ended(&other).await, "identity_withdrawn");
}

#[tokio::test]
async fn removing_a_rule_ends_the_tasks_that_it_permitted() {
    let w = World::with_reaper().await;
    let (task, other) = (w.begin_scope("archive").await, w.begin_scope("brief").await);
    w.served(&task.token).await;
    w.publish(Scope { permits: &[OTHER], ..Scope::new("archive") }).await;
    assert_eq!(w.ended(&task).await, "policy_changed");
    assert!(!w.is_ended(&other));
    assert_eq!(w.metric("sidemint_tasks_ended_total{reason=\"policy_changed\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_scope_that_is_suspended_or_gone_ends_its_tasks() {
    let w = World::with_reaper().await;
    let (suspended, gone) = (w.begin_scope("archive").await, w.begin_scope("brief").await);
    crate::world::append(&w.policy_directory().join("grants/archive-aws.toml"), "# changed after the decision\n");
    std::fs::remove_file(w.policy_directory().join("decisions/brief.toml")).unwrap();
    w.reload().await;
    for task in [&suspended, &gone] {
        assert_eq!(w.ended(task).await, "policy_changed");
    }
}

#[tokio::test]
async fn an_operator_ends_any_task_over_the_unix_socket_only() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    let target = format!("/v1/tasks/{}", task.id);
    let mut over_tcp = Connection::open(w.admin_address).await;
    over_tcp.send(&Call::delete(&target).bytes(w.admin_address)).await;
    assert_eq!(over_tcp.reply().await.unwrap().status, 404, "there is no such thing over TCP");
    assert!(!w.is_ended(&task));
    let reply = w.operator(Call::delete(&target)).await;
    assert_eq!((reply.status, &reply.json()["reason"]), (200, &json!("operator")));
    assert_eq!(reply.json(), w.end(&task).await);
    assert_eq!(w.credentials(&task.token).await.status, 401);
    assert_eq!(w.operator(Call::delete("/v1/tasks/t-00000000000000000000000000")).await.status, 404);
    // What an operator needs to deny the session at AWS, and what its owner sees.
    let shown = w.operator(Call::get(&target)).await.json();
    assert_eq!(shown, w.show(&task).await);
    let lease = &shown["leases"][0];
    let session = lease["session_name"].as_str().unwrap();
    assert!(session.ends_with(&format!(".{}", task.id)), "{session}");
    assert_eq!(lease["assumed_role"], format!("arn:aws:sts::111122223333:assumed-role/tests/{session}"));
    assert!(lease["grant"].is_string());
    assert_eq!(w.operator(Call::get("/v1/tasks/t-00000000000000000000000000")).await.status, 404);
    let mut over_tcp = Connection::open(w.admin_address).await;
    over_tcp.send(&Call::get(&target).bytes(w.admin_address)).await;
    assert_eq!(over_tcp.reply().await.unwrap().status, 404, "there is no such thing over TCP");
}

#[tokio::test]
async fn the_operators_listener_says_with_405_which_methods_a_path_takes() {
    let w = World::new().await;
    let rows = [
        ("POST", "/metrics", "GET", "GET"),
        ("DELETE", "/livez", "GET", "GET"),
        ("PUT", "/readyz", "GET", "GET"),
        ("POST", "/", "GET", "GET"),
        ("POST", "/status", "GET", "GET"),
        ("PUT", "/v1/tasks/t-00000000000000000000000000", "", "GET, DELETE"),
        ("GET", "/v1/clock/reset", "", "POST"),
        ("POST", "/v1/tasks/t-00000000000000000000000000", "", "GET, DELETE"),
        ("POST", "/nothing", "", ""),
        ("GET", "/nothing", "", ""),
    ];
    for (method, target, over_tcp, over_unix) in rows {
        let mut connection = Connection::open(w.admin_address).await;
        connection.send(&Call::new(method, target).bytes(w.admin_address)).await;
        let tcp = connection.reply().await.unwrap();
        let unix = w.operator(Call::new(method, target)).await;
        for (reply, allowed) in [(tcp, over_tcp), (unix, over_unix)] {
            let expected = if allowed.is_empty() { (404, None) } else { (405, Some(allowed)) };
            assert_eq!((reply.status, reply.header("allow")), expected, "{method} {target}");
        }
    }
}

#[tokio::test]
async fn shows_identities_on_the_admin_socket_only() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    for ended in [false, true] {
        if ended {
            w.end(&task).await;
        }
        let open = w.ask_admin("/status").await.text() + &w.ask_admin("/").await.text() + &w.metrics().await;
        for hidden in [task.id.as_str(), REPORT, OTHER, "archive"] {
            assert!(!open.contains(hidden), "{hidden}");
        }
        assert_eq!(open.contains("usable_until"), ended, "that something can still be used is for all to see");
    }
    let whole = w.operator(Call::get("/status")).await.text();
    assert!(whole.contains(&task.id) && whole.contains(REPORT));
}

#[tokio::test]
async fn applies_an_end_that_cannot_be_journalled_and_journals_it_later() {
    let mut w = World::with_reaper().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    w.journal.fail("*");
    let told = w.end(&task).await;
    assert_eq!(told["durable"], false, "a crash now would undo it, and whoever ends it must know");
    assert_eq!(w.credentials(&task.token).await.status, 401);
    assert_eq!(w.end(&task).await, told, "nor does it become durable by being asked for again");
    let by_operator = w.operator(Call::delete(&format!("/v1/tasks/{}", task.id))).await;
    assert_eq!((by_operator.status, by_operator.json()), (200, told.clone()));
    w.journal.fail("");
    pass(&w, secs(1)).await;
    until("the end is durable", || w.log.all().iter().any(|event| event.starts_with("task ended"))).await;
    let ending = w.end(&task).await;
    let mut expected = told;
    expected.as_object_mut().unwrap().remove("durable");
    assert_eq!(ending, expected);
    w.crash().await;
    assert_eq!(w.end(&task).await, ending);
}

#[tokio::test]
async fn a_repeated_end_becomes_durable_once_the_journal_works() {
    let mut w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    w.journal.fail("task ended");
    assert_eq!(w.end(&task).await["durable"], false);
    w.journal.fail("");
    // No reaper runs here: the request itself has it written.
    let ending = w.end(&task).await;
    assert_eq!(ending.get("durable"), None);
    w.crash().await;
    assert_eq!(w.end(&task).await, ending);
}

#[tokio::test]
async fn an_ended_task_is_forgotten_after_a_day_and_its_token_with_it() {
    let mut w = World::with_reaper().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    let ending = w.end(&task).await;
    pass(&w, secs(24 * 3600) - MILLISECOND).await;
    assert_eq!(w.end(&task).await, ending);
    pass(&w, secs(1)).await;
    until("it is forgotten", || w.broker.tasks().is_empty()).await;
    let reply = w.send(Call::get(&format!("/v1/tasks/{}", task.id)).bearer(&task.token)).await;
    assert_eq!(reply.status, 401);
    until("also on disk", || w.log.all().iter().any(|event| event.starts_with("forget task"))).await;
    w.restart().await;
    assert!(w.broker.tasks().is_empty());
}

#[tokio::test]
async fn begins_nothing_while_the_sidecar_stops() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    w.broker.close().await;
    assert_eq!(w.show(&task).await["reason"], "shutdown");
    let reply = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
    assert_eq!((reply.status, reply.code().as_str(), reply.header("retry-after")), (503, "unavailable", Some("1")));
    assert_eq!(reply.json()["detail"], "The sidecar is being stopped.");
    assert_eq!(w.audited(reply.request_id()).await[0]["reason"], "closing");
    assert_eq!(w.metric("sidemint_denials_total{reason=\"closing\"}").await, Some(1.0));
    assert_eq!((w.credentials(&task.token).await.status, w.cloud.calls()), (401, 1));
}

#[tokio::test]
async fn ends_a_task_that_begins_while_the_sidecar_stops() {
    let w = World::new().await;
    w.journal.hold("task");
    let begin = w.send(w.begin_call(&json!({ "scope": "archive" })));
    let close = async {
        until("it is on its way to the journal", || w.journal.waiting() == 1).await;
        let broker = std::sync::Arc::clone(&w.broker);
        let closing = tokio::spawn(async move { broker.close().await });
        settle().await;
        assert!(!closing.is_finished());
        w.journal.release("task");
        closing.await.unwrap();
        let tasks = w.broker.tasks().all();
        tasks.iter().map(|task| task.ended().unwrap().as_str()).collect::<Vec<_>>()
    };
    let (reply, ended) = tokio::join!(begin, close);
    assert_eq!((reply.status, reply.code().as_str()), (503, "unavailable"));
    assert_eq!((ended, w.cloud.calls()), (vec!["shutdown"], 0));
    assert!(w.log.all().contains(&"task ended".to_owned()), "a restart does not bring it back");
}

#[tokio::test]
async fn revokes_a_credential_that_arrives_while_the_sidecar_stops() {
    let w = World::with(Setup { vault: true, ..Setup::default() }).await;
    crate::vault::scope(&w.policy_directory(), "db", "5m", &["vault"]);
    w.reload().await;
    let task = w.begin_scope("db").await;
    let vault = w.vault.as_deref().unwrap();
    // Asked again a moment later, when the task has ended.
    vault.next("creds", crate::fake_vault::On::Status(503));
    let mut caller = Connection::open(w.address).await;
    let ask = Call::get(&format!("/v1/tasks/{}/credentials", task.id)).bearer(&task.token);
    caller.send(&ask.bytes(w.address)).await;
    until("it was asked", || vault.count("creds") == 1).await;
    crate::vault::passing(&w, w.broker.close()).await;
    assert_eq!((vault.count("creds"), vault.live().len(), vault.live_tokens()), (2, 0, 0));
    assert_eq!(w.show(&task).await["leases"][0]["state"], "revoked");
    let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
    assert_eq!(found.state().leases[0].place.as_deref(), Some(&*format!("http://{}", vault.address)));
}

#[tokio::test]
async fn records_ends_that_came_together_before_the_sidecar_stops() {
    const MANY: usize = 300;
    let w = World::with(Setup { reaper: true, tasks: 1000, limits: |l| l.tasks_per_caller = 1000, ..Setup::default() })
        .await;
    for _ in 0..MANY {
        w.begin(json!({ "scope": "ledger-read", "params": { "customer": "c-42" } })).await;
    }
    std::fs::remove_file(w.policy_directory().join("decisions/ledger-read.toml")).unwrap();
    w.reload().await;
    until("all have ended", || w.broker.tasks().all().iter().all(|task| task.ended().is_some())).await;
    w.broker.close().await;
    let told = w.audit.lines().into_iter().filter(|line| line["event"] == "end").count();
    let written = w.broker.tasks().all().iter().filter(|task| task.state().journalled).count();
    assert_eq!((told, written), (MANY, MANY));
}
