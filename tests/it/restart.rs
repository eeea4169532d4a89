//! The sidecar is stopped, or killed, and started again: tasks go on, ends stay ends, nothing is forgotten.

use std::time::Duration;

use serde_json::json;

use crate::fakes::{OnMint, unavailable};
use crate::http::{Call, Connection};
use crate::policy_files::{OTHER, REPORT, Scope};
use crate::world::{START, Setup, World, secs, settle, time, until};

#[tokio::test]
async fn a_task_continues_under_the_same_token_with_a_new_credential() {
    let mut w = World::new().await;
    let task = w.begin(json!({ "scope": "ledger-read", "params": { "customer": "c-42" }, "task": "nightly" })).await;
    let before = w.served(&task.token).await;
    let shown = w.show(&task).await;
    for crash in [false, true] {
        if crash {
            w.crash().await
        } else {
            w.restart().await
        }
        let after = w.show(&task).await;
        for member in ["id", "scope", "spiffe_id", "task", "tier", "state", "begun_at", "expires_at"] {
            assert_eq!(after[member], shown[member], "{member}");
        }
        assert!(
            after["leases"].as_array().unwrap().contains(&shown["leases"][0]),
            "the old credential is not forgotten"
        );
        assert_ne!(w.served(&task.token).await, before, "no secret was on the disk");
    }
    let orders = w.cloud.orders();
    assert_eq!(orders.len(), 3);
    assert!(orders.iter().all(|order| order.session_name == orders[0].session_name && order.grant == orders[0].grant));
    assert_eq!(w.end(&task).await["leases"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn an_ended_task_gives_the_same_report_again() {
    let mut w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    let ending = w.end(&task).await;
    w.crash().await;
    assert_eq!(w.end(&task).await, ending);
    w.restart().await;
    assert_eq!(w.end(&task).await, ending);
    assert_eq!(w.credentials(&task.token).await.status, 401);
    assert_eq!(w.metric("sidemint_tasks_ended_total{reason=\"done\"}").await, Some(0.0), "it ended once, before");
}

#[tokio::test]
async fn a_deadline_that_passed_while_down_is_kept() {
    let mut w = World::with_reaper().await;
    let (short, long) = (w.begin(json!({ "scope": "archive", "ttl": "60s" })).await, w.begin_scope("archive").await);
    w.served(&short.token).await;
    w.stop().await;
    w.clock.advance(secs(61));
    w.start_again().await;
    assert_eq!(w.ended(&short).await, "deadline");
    assert_eq!(w.credentials(&short.token).await.status, 401);
    w.served(&long.token).await;
}

#[tokio::test]
async fn ends_tasks_that_policy_stopped_permitting_while_down() {
    let mut w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.stop().await;
    Scope { permits: &[OTHER], ..Scope::new("archive") }.write(&w.policy_directory());
    w.start_again().await;
    assert_eq!(w.credentials(&task.token).await.status, 401);
    assert_eq!(w.show(&task).await["reason"], "policy_changed");
    assert_eq!(w.cloud.calls(), 0);
}

#[tokio::test]
async fn before_identities_and_policy_are_known_a_recovered_task_neither_ends_nor_mints() {
    let mut w = World::with_reaper().await;
    let task = w.begin_scope("archive").await;
    w.stop().await;
    w.api.update(|identities| *identities = Default::default());
    let policy = w.policy_directory();
    let aside = policy.with_extension("aside");
    std::fs::rename(&policy, &aside).unwrap();
    w.start_again().await;
    settle().await;
    assert!(!w.is_ended(&task));
    assert_eq!(w.credentials(&task.token).await.status, 503);
    std::fs::rename(&aside, &policy).unwrap();
    w.reload().await;
    w.api.set_identities(&[REPORT]);
    w.clock.advance(secs(2));
    w.served(&task.token).await;
}

#[tokio::test]
async fn a_hold_counts_ten_seconds_from_the_start_of_the_sidecar() {
    let mut w = World::with_reaper().await;
    let (held, lost) = (
        w.begin(json!({ "scope": "archive", "hold": true })).await,
        w.begin(json!({ "scope": "archive", "hold": true })).await,
    );
    w.stop().await;
    w.clock.advance(secs(600));
    w.start_again().await;
    settle().await;
    until("the reaper sleeps", || w.clock.sleepers() > 0).await;
    w.clock.advance(Duration::from_millis(9900));
    settle().await;
    assert!(!w.is_ended(&held) && !w.is_ended(&lost));
    let mut hold = w.hold(&held).await;
    assert_eq!(hold.line().await.unwrap()["state"], "active");
    until("the reaper sleeps", || w.clock.sleepers() > 1).await;
    w.clock.advance(secs(1));
    assert_eq!(w.ended(&lost).await, "hold_gone");
    assert!(!w.is_ended(&held));
}

#[tokio::test]
async fn remembers_an_exchange_cut_off_by_a_kill_until_its_credential_has_expired() {
    let mut w = World::with_reaper().await;
    let task = w.begin_scope("archive").await;
    w.cloud.gate.shut();
    let mut caller = Connection::open(w.address).await;
    caller.send(&Call::get("/v1/aws/credentials").bearer(&task.token).bytes(w.address)).await;
    until("the exchange is under way", || w.cloud.calls() == 1).await;
    w.crash().await;
    let lease = w.show(&task).await["leases"][0].clone();
    assert_eq!(lease["state"], "intent");
    assert_eq!(time(&lease["usable_until"]), START.floor_to_second() + secs(1200));
    assert_eq!(w.metric("sidemint_leases_active{provider=\"aws\",revocation=\"expire\"}").await, Some(1.0));
    let ending = w.end(&task).await;
    assert_eq!(ending["leases"][0]["id"], lease["id"]);
    w.clock.advance(secs(1201));
    // Alone, or with its task, where a write of that was still under way.
    until("it has died", || w.log.all().last().is_some_and(|event| event.ends_with("expired"))).await;
    assert_eq!(w.metric("sidemint_leases_active{provider=\"aws\",revocation=\"expire\"}").await, Some(0.0));
    assert_eq!(w.end(&task).await, ending);
    w.cloud.gate.release();
}

#[tokio::test]
async fn an_intent_whose_answer_was_lost_survives_a_restart() {
    let mut w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.cloud.next([OnMint::Fail(unavailable(None))]);
    assert_eq!(w.credentials(&task.token).await.status, 503);
    w.restart().await;
    assert_eq!(w.show(&task).await["leases"][0]["state"], "intent");
}

#[tokio::test]
async fn ends_a_child_when_only_the_end_of_its_parent_was_durable() {
    let mut w = World::new().await;
    let parent = w.begin_scope("archive").await;
    let child = w.begin(json!({ "scope": "brief", "parent": parent.id })).await;
    // The parent's end is on the disk and waits to be audited; only then would its children end.
    w.audit.stall();
    let mut caller = Connection::open(w.address).await;
    caller.send(&Call::delete(&format!("/v1/tasks/{}", parent.id)).bearer(&parent.token).bytes(w.address)).await;
    until("the parent's end is durable", || w.log.all().contains(&"task ended".to_owned())).await;
    assert!(!w.is_ended(&child));
    w.crash().await;
    assert!(w.is_ended(&parent) && !w.is_ended(&child));
    assert_eq!(w.credentials(&child.token).await.status, 401);
    assert_eq!(w.show(&child).await["reason"], "parent_ended");
}

#[tokio::test]
async fn an_idempotency_key_is_remembered() {
    let mut w = World::new().await;
    let call = |w: &World| w.begin_call(&json!({ "scope": "archive" })).header("idempotency-key", "k-1");
    let first = crate::world::begun(&w.send(call(&w)).await);
    let second = crate::world::begun(&w.send(call(&w)).await);
    w.crash().await;
    assert_eq!(w.credentials(&first.token).await.status, 401, "the token that was replaced stays dead");
    w.served(&second.token).await;
    let third = crate::world::begun(&w.send(call(&w)).await);
    assert_eq!((&third.id, w.broker.tasks().len()), (&first.id, 1));
}

#[tokio::test]
async fn a_task_refused_by_a_failing_journal_is_absent_after_a_restart() {
    let mut w = World::with(Setup::default()).await;
    w.journal.fail("*");
    assert_eq!(w.send(w.begin_call(&json!({ "scope": "archive" }))).await.status, 503);
    w.crash().await;
    assert!(w.broker.tasks().is_empty());
    w.begin_scope("archive").await;
}

#[tokio::test]
async fn a_hold_counts_ten_seconds_from_readiness() {
    let mut w = World::with_reaper().await;
    let task = w.begin(json!({ "scope": "archive", "hold": true })).await;
    w.stop().await;
    w.api.update(|identities| *identities = Default::default());
    w.start_again().await;
    for _ in 0..60 {
        settle().await;
        until("the reaper sleeps", || w.clock.sleepers() > 0).await;
        w.clock.advance(secs(1));
    }
    settle().await;
    assert!(!w.is_ended(&task), "nobody could be sure yet of what they hold");
    w.api.set_identities(&[REPORT]);
    settle().await;
    for (millis, ended) in [(9900, false), (100, true)] {
        until("the reaper sleeps", || w.clock.sleepers() > 0).await;
        w.clock.advance(Duration::from_millis(millis));
        settle().await;
        assert!(ended || !w.is_ended(&task));
    }
    assert_eq!(w.ended(&task).await, "hold_gone");
}
