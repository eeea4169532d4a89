//! Credentials are minted: once for all who wait, in the right order of records, and served no longer than told.

use std::time::Duration;

use serde_json::json;
use sidemint::exchange::{ExchangeError, Provider};
use sidemint::identity::task_token::TokenHash;
use sidemint::task::EndReason;

use crate::begin::join_all;
use crate::fakes::{OnMint, refused, unavailable};
use crate::http::{Call, Connection};
use crate::policy_files::{OTHER, Scope};
use crate::world::{Begun, START, Setup, World, secs, settle, time, until};

const MINUTE: u64 = 60;

#[tokio::test]
async fn a_thousand_cold_callers_of_one_task_share_one_exchange() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.cloud.gate.shut();
    let calls = (0..1000).map(|_| w.credentials(&task.token));
    let release = async {
        until("the exchange is under way", || w.cloud.calls() == 1).await;
        settle().await;
        w.cloud.gate.release();
    };
    let (replies, ()) = tokio::join!(join_all(calls), release);
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.body == replies[0].body));
    assert_eq!(w.cloud.calls(), 1);
    assert_eq!(w.show(&task).await["leases"].as_array().unwrap().len(), 1);
    assert_eq!(
        w.metric("sidemint_mints_total{outcome=\"minted\",provider=\"aws\",tier=\"baseline\"}").await,
        Some(1.0)
    );
}

#[tokio::test]
async fn disconnected_callers_do_not_affect_those_who_wait() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.cloud.gate.shut();
    let mut first = Connection::open(w.address).await;
    first.send(&Call::get("/v1/aws/credentials").bearer(&task.token).bytes(w.address)).await;
    until("the exchange is under way", || w.cloud.calls() == 1).await;
    let second = w.credentials(&task.token);
    let go = async {
        settle().await;
        drop(first);
        settle().await;
        w.cloud.gate.release();
    };
    let (reply, ()) = tokio::join!(second, go);
    assert_eq!((reply.status, w.cloud.calls()), (200, 1));
    // With nobody left to wait the exchange still ends well.
    let lonely = w.begin_scope("archive").await;
    w.cloud.gate.shut();
    let mut only = Connection::open(w.address).await;
    only.send(&Call::get("/v1/aws/credentials").bearer(&lonely.token).bytes(w.address)).await;
    until("the exchange is under way", || w.cloud.calls() == 2).await;
    drop(only);
    settle().await;
    w.cloud.gate.release();
    w.landed(&lonely).await;
    w.served(&lonely.token).await;
    assert_eq!(w.cloud.calls(), 2);
}

#[tokio::test]
async fn a_caller_waits_up_to_its_limit_and_the_exchange_continues() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.cloud.gate.shut();
    let wait = async {
        until("somebody waits", || w.clock.sleepers() == 1 && w.cloud.calls() == 1).await;
        w.clock.advance(secs(10));
    };
    let (reply, ()) = tokio::join!(w.credentials(&task.token), wait);
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    w.cloud.gate.release();
    w.served(&task.token).await;
    assert_eq!(w.cloud.calls(), 1);
}

#[tokio::test]
async fn a_failure_is_shared_then_opens_the_circuit_then_is_tried_again() {
    let w = World::new().await;
    // (failure, status, how long the circuit stays open)
    let rows: [(ExchangeError, u16, Duration); 7] = [
        (unavailable(None), 503, secs(1)),
        (unavailable(Some(secs(7))), 503, secs(7)),
        (unavailable(Some(secs(3600))), 503, secs(60)),
        (ExchangeError::NotAsked { detail: "spared".into(), retry_after: secs(4) }, 503, secs(4)),
        (ExchangeError::Unusable { detail: "empty".into() }, 503, secs(1)),
        (ExchangeError::NoSvid { detail: "agent".into(), passing: true }, 503, secs(1)),
        (refused(), 403, secs(5)),
    ];
    for (error, status, pause) in rows {
        let kind = error.kind();
        let task = w.begin_scope("archive").await;
        let before = w.cloud.calls();
        w.cloud.next([OnMint::Fail(error)]);
        w.cloud.gate.shut();
        let release = async {
            until("the exchange is under way", || w.cloud.calls() == before + 1).await;
            settle().await;
            w.cloud.gate.release();
        };
        let (replies, ()) = tokio::join!(join_all((0..20).map(|_| w.credentials(&task.token))), release);
        for reply in &replies {
            assert_eq!(reply.status, status, "{kind}");
            assert!(!reply.text().contains("fake"), "nothing of the provider's words: {}", reply.text());
        }
        let series = format!("sidemint_mints_total{{outcome=\"{kind}\",provider=\"aws\",tier=\"baseline\"}}");
        assert!(w.metric(&series).await.unwrap() >= 1.0, "{series}");
        let line = w.audit.lines().into_iter().find(|line| line["event"] == "mint" && line["task"] == task.id.as_str());
        assert_eq!(line.unwrap()["reason"], kind);
        w.clock.advance(pause - Duration::from_millis(1));
        assert_eq!(w.credentials(&task.token).await.status, status, "{kind}");
        assert_eq!(w.cloud.calls(), before + 1, "{kind}: circuit open");
        w.clock.advance(Duration::from_millis(1));
        w.served(&task.token).await;
        assert_eq!(w.cloud.calls(), before + 2, "{kind}: tried again");
    }
}

#[tokio::test]
async fn serves_the_last_credential_while_minting_fails_until_it_expires() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let first = w.served(&task.token).await;
    let told = time(&first["Expiration"]);
    w.cloud.otherwise(OnMint::Fail(unavailable(None)));
    while w.now() + secs(MINUTE) < told {
        w.clock.advance(secs(MINUTE));
        assert_eq!(w.served(&task.token).await, first);
        w.landed(&task).await;
    }
    assert!(w.cloud.calls() > 1, "its successor was tried for");
    w.clock.advance(told.since(w.now()) - Duration::from_millis(1));
    assert_eq!(w.served(&task.token).await, first);
    w.landed(&task).await;
    w.clock.advance(Duration::from_millis(1));
    assert_eq!(w.now(), told);
    assert_eq!(w.credentials(&task.token).await.status, 503);
    w.cloud.otherwise(OnMint::Give);
    w.clock.advance(secs(2));
    assert_ne!(w.served(&task.token).await, first);
}

/// The time after minting at which a successor is asked for while the first one is served, found by asking at each
/// step; `None` when the first one went out of service without.
async fn reminted_after(w: &World, task: &Begun, step: Duration) -> Option<Duration> {
    let first = w.served(&task.token).await;
    let (minted_at, calls) = (w.now(), w.cloud.calls());
    loop {
        w.clock.advance(step);
        let reply = w.credentials(&task.token).await;
        if reply.status != 200 || reply.json() != first {
            return None;
        }
        w.landed(task).await;
        if w.cloud.calls() > calls {
            assert_ne!(w.served(&task.token).await, first);
            return Some(w.now().since(minted_at));
        }
    }
}

#[tokio::test]
async fn mints_again_a_long_credential_in_its_last_ten_and_a_half_minutes() {
    let w = World::new().await;
    let task = w.begin_scope("idling").await;
    // Dead at 12:20:00; 10 min 30 s before that is 12:09:30, and `begun` is 250 ms after 12:00.
    let expected = secs(570) - Duration::from_millis(250);
    let after = reminted_after(&w, &task, Duration::from_millis(29_987)).await.unwrap();
    assert!(after > expected && after <= expected + secs(30), "{after:?}");
}

#[tokio::test]
async fn a_short_credential_is_minted_again_at_half_its_life() {
    let w = World::new().await;
    let task = w.begin_scope("brief").await;
    let life = secs(60) - Duration::from_millis(250);
    let after = reminted_after(&w, &task, Duration::from_millis(500)).await.unwrap();
    assert!(after > life / 2 && after <= life / 2 + Duration::from_millis(500), "{after:?}");
}

#[tokio::test]
async fn mints_nothing_again_when_the_deadline_is_the_limit() {
    let w = World::new().await;
    let task = w.begin(json!({ "scope": "archive", "ttl": "15m" })).await;
    assert_eq!(reminted_after(&w, &task, secs(5)).await, None);
    assert!(w.now() + secs(20) > task.expires_at, "it was served until it was told to expire");
}

#[tokio::test]
async fn mints_again_when_a_credential_ends_before_the_deadline_that_was_ordered() {
    let w = World::new().await;
    let task = w.begin(json!({ "scope": "archive", "ttl": "15m" })).await;
    w.cloud.next([OnMint::Sooner(secs(600))]);
    assert!(reminted_after(&w, &task, secs(5)).await.is_some());
}

#[tokio::test]
async fn the_law_of_life_takes_the_earliest_end() {
    let w = World::new().await;
    let rows = [
        // (max_residual, max_session, ttl, seconds from START's second)
        ("20m", None, None, 1200),
        ("30s", None, None, 30),
        ("20m", Some("10m"), None, 600),
        ("2h", None, None, 3600),
        ("20m", Some("2h"), None, 1200),
        ("20m", Some("10m"), Some("5m"), 300),
        ("20m", None, Some("90s"), 90),
    ];
    for (number, (max_residual, max_session, ttl, end)) in rows.into_iter().enumerate() {
        w.publish(Scope { max_residual, max_session, ..Scope::new("law") }).await;
        let task = w.begin(json!({ "scope": "law", "ttl": ttl })).await;
        w.served(&task.token).await;
        let order = w.cloud.orders().pop().unwrap();
        assert_eq!(order.dead_by, START.floor_to_second() + secs(end), "row {number}");
        assert!(order.dead_by <= task.expires_at);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 24, failure_persistence: None, ..Default::default() })]

    /// Whatever the caps and whenever it is asked: no order outlives `max_residual`, `max_session` or the task, and no
    /// answer tells a time that has passed or one after the credential's death.
    #[test]
    fn no_credential_outlives_the_law_of_life(
        residual in 30u64..7200,
        session in 30u64..7200,
        ttl in 6u64..20_000,
        steps in proptest::collection::vec(1u64..900_000, 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let w = World::with(Setup { policy: false, ..Setup::default() }).await;
            let (max_residual, max_session) = (leak(residual), leak(session));
            w.publish(Scope { max_residual, max_session: Some(max_session), ..Scope::new("law") }).await;
            let task = w.begin(json!({ "scope": "law", "ttl": ttl })).await;
            let mut seen = 0;
            for step in steps {
                let reply = w.credentials(&task.token).await;
                if reply.status == 200 {
                    let told = time(&reply.json()["Expiration"]);
                    assert!(w.now() < told && told <= task.expires_at, "told {told} at {}", w.now());
                    assert!(told <= w.now() + secs(residual.min(session)));
                }
                w.landed(&task).await;
                for order in w.cloud.orders().into_iter().skip(seen) {
                    assert!(order.dead_by <= w.now() + secs(residual.min(session)));
                    assert!(order.dead_by <= task.expires_at && order.dead_by > w.now());
                    seen += 1;
                }
                w.clock.advance(Duration::from_millis(step));
            }
        });
    }
}

/// A duration for a policy file, which lives as long as the test.
fn leak(seconds: u64) -> &'static str {
    Box::leak(format!("{seconds}s").into_boxed_str())
}

#[tokio::test]
async fn the_intent_is_durable_before_the_exchange_and_the_lease_before_serving() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    assert_eq!(w.log.take(), ["task"]);
    w.journal.hold("intent");
    let held_back = async {
        until("the intent waits", || w.journal.waiting() == 1).await;
        settle().await;
        assert_eq!(w.cloud.calls(), 0, "not asked before the intent is durable");
        w.journal.hold("issued");
        w.journal.release("intent");
        until("the lease waits", || w.journal.waiting() == 1).await;
        settle().await;
        assert_eq!(w.log.all(), ["intent", "exchange"]);
        w.log.push("released");
        w.journal.release("issued");
    };
    let (reply, ()) = tokio::join!(
        async {
            let reply = w.credentials(&task.token).await;
            w.log.push("served");
            reply
        },
        held_back
    );
    assert_eq!(reply.status, 200);
    assert_eq!(w.log.all(), ["intent", "exchange", "released", "issued", "served"]);
}

#[tokio::test]
async fn asks_no_provider_when_the_intent_cannot_be_journalled() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.journal.fail("intent");
    assert_eq!(w.credentials(&task.token).await.status, 503);
    assert_eq!(w.cloud.calls(), 0);
    assert_eq!(w.show(&task).await["leases"], json!([]));
}

#[tokio::test]
async fn never_serves_an_unjournalled_credential_and_keeps_its_intent() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.journal.fail("issued");
    for _ in 0..3 {
        assert_eq!(w.credentials(&task.token).await.status, 503);
    }
    assert_eq!(w.cloud.calls(), 1);
    assert_eq!(
        w.metric("sidemint_mints_total{outcome=\"not_recorded\",provider=\"aws\",tier=\"baseline\"}").await,
        Some(1.0)
    );
    w.journal.fail("");
    w.clock.advance(secs(2));
    assert_ne!(w.served(&task.token).await["SecretAccessKey"], w.cloud.secrets()[0].as_str());
    // Somebody may have it, so the end must speak of it.
    assert_eq!(w.end(&task).await["leases"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_exchange_whose_outcome_is_certain_leaves_no_lease_and_an_uncertain_one_does() {
    let w = World::new().await;
    let not_asked = ExchangeError::NotAsked { detail: "x".into(), retry_after: secs(1) };
    let unusable = ExchangeError::Unusable { detail: "x".into() };
    for (error, leases) in [(refused(), 0), (not_asked, 0), (unavailable(None), 1), (unusable, 1)] {
        let task = w.begin_scope("archive").await;
        w.cloud.next([OnMint::Fail(error)]);
        w.credentials(&task.token).await;
        let shown = w.show(&task).await;
        assert_eq!(shown["leases"].as_array().unwrap().len(), leases);
        if leases == 1 {
            assert_eq!(shown["leases"][0]["state"], "intent");
            assert_eq!(time(&shown["leases"][0]["usable_until"]), START.floor_to_second() + secs(1200));
        }
    }
}

/// Starts an exchange and keeps it under way while `meanwhile` happens; tells how the caller fared.
async fn during_the_exchange(w: &World, task: &Begun, meanwhile: impl AsyncFnOnce()) -> crate::http::Reply {
    w.cloud.gate.shut();
    let calls = w.cloud.calls();
    let meanwhile = async {
        until("the exchange is under way", || w.cloud.calls() == calls + 1).await;
        meanwhile().await;
        w.cloud.gate.release();
    };
    tokio::join!(w.credentials(&task.token), meanwhile).0
}

#[tokio::test]
async fn does_not_serve_a_credential_that_is_expired_on_arrival() {
    let w = World::new().await;
    // To the millisecond of its death, and long past it.
    for early in [secs(1200) - Duration::from_millis(250), secs(2000)] {
        let task = w.begin_scope("archive").await;
        let calls = w.cloud.calls();
        w.cloud.next([OnMint::Sooner(early)]);
        for _ in 0..3 {
            let reply = w.credentials(&task.token).await;
            assert_eq!((reply.status, reply.code().as_str()), (503, "ServiceUnavailable"));
        }
        assert_eq!(w.cloud.calls(), calls + 1, "and the circuit is open");
    }
}

#[tokio::test]
async fn does_not_serve_a_credential_that_expires_while_it_is_waited_for() {
    let w = World::new().await;
    let task = w.begin_scope("brief").await;
    w.cloud.takes(secs(61));
    let reply = w.credentials(&task.token).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
}

#[tokio::test]
async fn a_task_that_ends_during_the_exchange_is_not_served_and_its_end_reports_the_lease() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let mut ending = json!(null);
    let reply = during_the_exchange(&w, &task, async || ending = w.end(&task).await).await;
    assert_eq!(reply.status, 401);
    assert_eq!(w.cloud.secrets().len(), 2, "the provider did give one");
    assert_eq!(ending["leases"].as_array().unwrap().len(), 1);
    assert_eq!(ending["leases"][0]["outcome"], "expires");
    assert_eq!(time(&ending["leases"][0]["usable_until"]), START.floor_to_second() + secs(1200));
    assert_eq!(w.end(&task).await, ending);
    assert_eq!(w.show(&task).await["leases"][0]["state"], "ending");
    assert_eq!(w.credentials(&task.token).await.status, 401);
}

#[tokio::test]
async fn does_not_serve_when_policy_stops_permitting_during_the_exchange() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let reply = during_the_exchange(&w, &task, async || {
        w.publish(Scope { permits: &[OTHER], ..Scope::new("archive") }).await;
    })
    .await;
    assert_eq!(reply.status, 401);
    assert_eq!(w.show(&task).await["reason"], "policy_changed");
    assert_eq!(w.cloud.secrets().len(), 2);
}

#[tokio::test]
async fn does_not_serve_when_the_identity_is_withdrawn_during_the_exchange() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let reply = during_the_exchange(&w, &task, async || w.api.withdraw(crate::policy_files::REPORT)).await;
    assert_eq!(reply.status, 401);
    assert_eq!(w.show(&task).await["reason"], "identity_withdrawn");
}

#[tokio::test]
async fn a_policy_that_still_permits_changes_nothing_for_a_running_exchange() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let reply = during_the_exchange(&w, &task, async || w.publish(Scope::new("unrelated")).await).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn every_credential_of_a_task_has_its_session_name_and_no_other_task_has_it() {
    let w = World::new().await;
    let tasks = [w.begin_scope("brief").await, w.begin_scope("brief").await];
    for _ in 0..4 {
        for task in &tasks {
            w.served(&task.token).await;
            w.landed(task).await;
        }
        w.clock.advance(secs(58));
    }
    let names = |task: &Begun| {
        let of_it = |name: &String| name.ends_with(&task.id);
        w.cloud.orders().into_iter().map(|order| order.session_name).filter(of_it).collect::<Vec<_>>()
    };
    let (a, b) = (names(&tasks[0]), names(&tasks[1]));
    assert_eq!((a.len(), b.len()), (4, 4));
    assert!(a.iter().all(|name| *name == a[0]) && b.iter().all(|name| *name == b[0]) && a[0] != b[0]);
    let allowed = |c: char| c.is_ascii_alphanumeric() || "=,.@_-".contains(c);
    assert!((2..=64).contains(&a[0].len()) && a[0].chars().all(allowed), "{}", a[0]);
}

#[tokio::test]
async fn serves_no_expired_credential_after_the_wall_clock_is_set_back() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    let found = w.broker.tasks().by_token(&TokenHash::of(&task.token).unwrap()).unwrap();
    w.served(&task.token).await;
    w.clock.set_wall(task.expires_at);
    assert!(w.broker.credentials(&TokenHash::of(&task.token).unwrap(), Provider::Aws, "r").await.is_err());
    assert_eq!(found.state().ending.as_ref().unwrap().reason, EndReason::Deadline);
    w.clock.set_wall(START);
    assert_eq!(w.credentials(&task.token).await.status, 401, "an end is for good");
}

#[tokio::test]
async fn an_audit_log_that_fails_costs_one_credential_and_not_one_for_each_try() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.audit.fail(true);
    for _ in 0..5 {
        let refused = w.credentials(&task.token).await;
        assert_eq!((refused.status, refused.code().as_str()), (503, "ServiceUnavailable"));
        assert_eq!(w.cloud.calls(), 1, "the first found out");
        w.clock.advance(secs(2));
    }
    w.audit.fail(false);
    w.served(&task.token).await;
    assert_eq!(w.cloud.calls(), 2);
    let lines = w.audit.lines();
    let resumed = lines.iter().position(|line| line["event"] == "recovery" && line["outcome"] == "resumed").unwrap();
    assert_eq!(lines[resumed + 1]["outcome"], "minted");
}
