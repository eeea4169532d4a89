//! The machine's clock is set, jumps and comes back: nothing begins and nothing is minted while it is in doubt, and no
//! life is ever lengthened.

use std::time::Duration;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;
use sidemint::clock::{Clock as _, Timestamp};
use sidemint::identity::workload_api::testing::OnFetch;
use sidemint::timekeeper;

use crate::http::Call;
use crate::policy_files::REPORT;
use crate::world::{Begun, START, Setup, World, begun, secs, settle, time, until};

async fn guarded() -> World {
    World::with(Setup { guarded: true, ..Setup::default() }).await
}

#[tokio::test]
async fn a_clock_in_doubt_stops_begin_and_mint_but_serves_what_is_live_on_both_clocks() {
    let w = guarded().await;
    let (served, unserved) = (w.begin_scope("brief").await, w.begin_scope("brief").await);
    let first = w.served(&served.token).await;
    w.clock.set_wall(START - secs(3600));

    let refused = w.send(w.begin_call(&json!({ "scope": "archive" }))).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "unavailable"));
    assert!(refused.header("retry-after").is_some());
    let line = &w.audited(refused.request_id()).await[0];
    assert_eq!((line["outcome"].as_str(), line["reason"].as_str()), (Some("deny"), Some("clock_untrusted")));
    assert_eq!(w.metric("sidemint_denials_total{reason=\"clock_untrusted\"}").await, Some(1.0));
    assert_eq!(w.metric("sidemint_clock_untrusted").await, Some(1.0));
    assert!(w.ask_admin("/readyz").await.text().contains("clock: the clock shows"));

    let unminted = w.credentials(&unserved.token).await;
    assert_eq!(unminted.status, 503);
    assert_eq!(w.cloud.calls(), 1);
    assert_eq!(w.served(&served.token).await, first);
    // Not a moment longer than its end, though the clock on the wall is an hour behind it.
    w.clock.advance(time(&first["Expiration"]).since(START));
    assert_eq!(w.credentials(&served.token).await.status, 503);

    w.clock.set_wall(w.clock.now() + secs(3600));
    assert_eq!(w.metric("sidemint_clock_untrusted").await, Some(0.0));
    w.clock.advance(secs(1));
    w.served(&served.token).await;
}

#[tokio::test]
async fn a_frozen_machine_serves_nothing_that_expired_meanwhile() {
    let w = guarded().await;
    let (task, lasting) = (w.begin_scope("brief").await, w.begin_scope("archive").await);
    let (credential, living) = (w.served(&task.token).await, w.served(&lasting.token).await);
    // Both clocks stood still; then the wall clock was set right. By the boot clock no time has passed at all.
    let died = time(&credential["Expiration"]).since(START);
    w.clock.set_wall(START + died);
    assert_eq!(w.credentials(&task.token).await.status, 503, "dead by the wall clock, and nothing is minted in doubt");
    assert_eq!(w.cloud.calls(), 2);
    assert_eq!(w.served(&lasting.token).await, living, "alive by both");
    // A signed time says that the wall clock is right: it is trusted, and the dead one has a successor.
    w.trusted.as_ref().unwrap().witness(w.clock.now(), Duration::ZERO);
    w.clock.advance(secs(1));
    assert_ne!(w.served(&task.token).await["AccessKeyId"], credential["AccessKeyId"]);
    // The task lives no longer for it.
    w.clock.advance(task.expires_at.since(w.clock.now()));
    assert_eq!(w.credentials(&task.token).await.status, 401);
}

#[tokio::test]
async fn a_suspended_machine_serves_nothing_expired_and_trusts_its_clock() {
    let w = guarded().await;
    let task = w.begin_scope("brief").await;
    let first = w.served(&task.token).await;
    w.clock.advance(time(&first["Expiration"]).since(START));
    assert_eq!(w.metric("sidemint_clock_untrusted").await, Some(0.0));
    assert_ne!(w.served(&task.token).await["AccessKeyId"], first["AccessKeyId"]);
}

#[tokio::test]
async fn audits_once_that_the_clock_is_in_doubt_and_once_that_it_is_trusted_again() {
    let w = guarded().await;
    let (trusted, parts, begun) = (w.trusted.clone().unwrap(), w.broker.parts(), w.clock.boot());
    let keeper = tokio::spawn(timekeeper::run(trusted, parts.workload_api.clone(), parts.audit.clone()));
    let told = || w.audit.lines().into_iter().filter(|line| line["event"] == "clock").collect::<Vec<_>>();
    until("it rests until its next check", || w.clock.sleepers() == 1).await;
    assert!(told().is_empty());
    // The agent's answers are signed on the same machine's clock here: none, so that the doubt lasts.
    w.api.on_fetch(OnFetch::Unavailable);
    let check_again = async || {
        for _ in 0..3 {
            until("it rests until its next check", || w.clock.sleepers() == 1).await;
            w.clock.advance(secs(1));
            settle().await;
        }
    };
    w.clock.set_wall(START - secs(3600));
    w.clock.advance(secs(1));
    until("the doubt is told", || told().len() == 1).await;
    check_again().await;
    assert_eq!(told().len(), 1);
    let lost = &told()[0];
    assert_eq!((lost["outcome"].as_str(), lost["reason"].as_str()), (Some("untrusted"), Some("jumped")));
    assert!(lost["detail"].as_str().is_some_and(|detail| detail.contains("the clock shows")), "{lost}");
    w.clock.set_wall(START + w.clock.boot().saturating_sub(begun));
    w.clock.advance(secs(1));
    until("the end of the doubt is told", || told().len() == 2).await;
    check_again().await;
    assert_eq!(told().len(), 2);
    assert_eq!((told()[1]["outcome"].as_str(), told()[1].get("reason")), (Some("trusted"), None));
    keeper.abort();
    let _ = keeper.await;
}

#[tokio::test]
async fn an_operators_confirmation_of_the_clock_lengthens_no_task() {
    let w = guarded().await;
    let task = w.begin(json!({ "scope": "archive", "ttl": "10m" })).await;
    let credential = w.served(&task.token).await;
    w.clock.set_wall(START - secs(3600));
    let reset = || w.operator(Call::post("/v1/clock/reset"));
    assert_eq!(w.ask_admin("/v1/clock/reset").await.status, 404, "only on the operators' socket");
    assert_eq!(reset().await.status, 200);
    assert!(w.audit.lines().iter().any(|line| line["event"] == "clock" && line["outcome"] == "reset"));
    assert_eq!(w.broker.parts().clock.trusted(), Ok(()));
    assert_eq!(w.served(&task.token).await, credential);
    // By the wall clock there would be an hour more.
    w.clock.advance(secs(600));
    assert_eq!(w.credentials(&task.token).await.status, 401);
    assert_eq!(w.show(&task).await["reason"], "deadline");
    w.begin_scope("archive").await;
}

#[tokio::test]
async fn a_clock_jump_during_an_exchange_serves_nothing() {
    let w = guarded().await;
    let task = w.begin_scope("archive").await;
    w.cloud.gate.shut();
    let (reply, ()) = tokio::join!(w.credentials(&task.token), async {
        while w.cloud.calls() == 0 {
            tokio::task::yield_now().await;
        }
        w.clock.set_wall(START - secs(60));
        w.cloud.gate.release();
    });
    assert_eq!(reply.status, 503, "{}", reply.text());
}

#[tokio::test]
async fn a_clock_jump_forward_expires_no_live_lease() {
    let w = guarded().await;
    let (ended, running) = (w.begin_scope("archive").await, w.begin_scope("archive").await);
    for task in [&ended, &running] {
        w.served(&task.token).await;
    }
    // Past the leases' ends, and before the tasks'.
    w.clock.set_wall(START + secs(1800));
    w.end(&ended).await;
    w.broker.sweep_now().await;
    assert_eq!(w.show(&ended).await["leases"][0]["state"], "ending");
    assert_eq!(w.show(&running).await["leases"][0]["state"], "issued");
    let series = "sidemint_leases_active{provider=\"aws\",revocation=\"expire\"}";
    assert_eq!(w.metric(series).await, Some(2.0), "what can still be used is to be seen");
    w.clock.set_wall(START);
    w.clock.advance(secs(1200));
    w.broker.sweep_now().await;
    assert_eq!(w.show(&ended).await["leases"][0]["state"], "expired");
}

/// A credential that was served.
struct Seen {
    boot: Duration,
    expiration: Timestamp,
    key: String,
}

/// One seeded history: time passes, the clock is set and signed, tasks begin and are used, the sidecar restarts.
async fn history(seed: u64) {
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &[seed.to_le_bytes(), (!seed).to_le_bytes()].concat());
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let pick = (0u8..16, 1u64..400, -100_000i64..100_000, -35_000i64..35_000);
    let mut w = guarded().await;
    let mut truth = START;
    let (mut tasks, mut seen): (Vec<(Begun, Duration)>, Vec<Seen>) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        let (what, seconds, far, near) = pick.new_tree(&mut runner).unwrap().current();
        let set = |by: i64| {
            let (now, by) = (w.clock.now(), (by, Duration::from_millis(by.unsigned_abs())));
            w.clock.set_wall(if by.0 < 0 { now - by.1 } else { now + by.1 });
        };
        match what {
            0..=3 => {
                w.clock.advance(secs(seconds));
                truth = truth + secs(seconds);
            }
            4 => set(far * 40),
            5 | 6 => set(near),
            7 => w.clock.set_wall(truth),
            8 => w.trusted.as_ref().unwrap().witness(truth, Duration::ZERO),
            9 => drop(w.trusted.as_ref().unwrap().observe()),
            // Never both: see `docs/audit.md` on what an operator's word can do to a task over a restart.
            10 if seed.is_multiple_of(2) => {
                w.trusted.as_ref().unwrap().save().unwrap();
                w.restart().await;
            }
            11 if !seed.is_multiple_of(2) => drop(w.operator(Call::post("/v1/clock/reset")).await),
            12 | 13 => {
                let trusted = w.broker.parts().clock.trusted();
                // Its token is of the true time: it may be refused on a clock that is wrong, never more than that.
                let call = w.begin_call(&json!({ "scope": "brief", "ttl": "10m" }));
                let reply = w.send(call).await;
                assert!(trusted.is_ok() || reply.status != 201, "seed {seed}: begun on {trusted:?}");
                if reply.status == 201 {
                    tasks.push((begun(&reply), w.clock.boot()));
                }
            }
            _ => {}
        }
        for (task, begun_at) in &tasks {
            let calls = w.cloud.calls();
            let trusted = w.broker.parts().clock.trusted();
            let reply = w.credentials(&task.token).await;
            w.landed(task).await;
            assert!(trusted.is_ok() || w.cloud.calls() == calls, "seed {seed}: minted on {trusted:?}");
            if reply.status != 200 {
                continue;
            }
            let body = reply.json();
            let (now, boot) = (w.clock.now(), w.clock.boot());
            let lived = boot - *begun_at;
            assert!(lived < secs(600) && now < task.expires_at, "seed {seed}: a task lives past its end, {lived:?}");
            let (expiration, key) = (time(&body["Expiration"]), body["AccessKeyId"].as_str().unwrap().to_owned());
            assert!(now < expiration, "seed {seed}: served past its end on the wall clock");
            if let Some(first) = seen.iter().find(|first| first.key == key && first.expiration == expiration) {
                assert!(boot - first.boot < secs(60), "seed {seed}: served past its end on the boot clock");
            } else {
                seen.push(Seen { boot, expiration, key });
            }
        }
    }
    assert!(!w.svid(REPORT).is_empty());
}

#[tokio::test]
async fn no_history_of_the_clock_serves_anything_past_its_end() {
    for seed in 0..16 {
        history(seed).await;
    }
}
