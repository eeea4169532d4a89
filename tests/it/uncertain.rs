//! Answers that are lost on the way, and refusals after them: whatever a provider says at last, what an earlier try may have
//! been given stays an open lease (I4). The real exchanges over the wire, and every row of answers, try after try.

use serde_json::json;
use sidemint::clock::ManualClock;

use crate::fake_vault::{FakeVault, On};
use crate::http::{Call, Reply};
use crate::sts::{OnCall, Sts};
use crate::vault::scope;
use crate::world::{Begun, START, Setup, World, secs, settle};

/// Lets `work` end while time passes, and the exchange behind it; `look` is called in between.
async fn pass(w: &World, task: &Begun, work: impl Future<Output = Reply>, mut look: impl FnMut()) -> Reply {
    let mut work = std::pin::pin!(work);
    let mut reply = None;
    loop {
        tokio::select! {
            biased;
            told = &mut work, if reply.is_none() => reply = Some(told),
            () = settle() => {}
        }
        look();
        let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
        let landed = found.state().slots.values().all(|slot| slot.flight.is_none());
        match reply.take() {
            Some(reply) if landed => return reply,
            other => reply = other,
        }
        w.clock.advance(secs(1) / 8);
    }
}

/// Whether the task has a lease that is not over, in memory and in the journal.
fn is_listed(w: &World, task: &Begun) -> bool {
    let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
    found.state().leases.iter().any(|lease| !lease.state.is_over() && lease.usable_until > w.now())
}

#[tokio::test]
async fn no_refusal_hides_a_session_that_an_earlier_try_may_have_begun() {
    let answers = [
        OnCall::Lose,
        OnCall::BreakOff,
        OnCall::Refuse(403, "AccessDenied"),
        OnCall::Refuse(400, "ExpiredTokenException"),
        OnCall::Refuse(400, "MalformedPolicyDocument"),
        OnCall::Refuse(500, "InternalFailure"),
    ];
    let clock = ManualClock::at(START);
    let sts = Sts::start(clock.clone()).await;
    let w = World::with_clock(Setup { sts: Some(sts.address), ..Setup::default() }, clock).await;
    for one in answers {
        for two in answers {
            for last in answers {
                let row = [one, two, last];
                sts.on_call(last);
                sts.next([one, two]);
                let (task, before) =
                    (w.begin(json!({ "scope": "ledger-read", "params": { "customer": "c-42" } })).await, sts.given());
                let reply = pass(&w, &task, w.credentials(&task.token), || {}).await;
                assert!(reply.status >= 400, "{row:?}");
                let given = sts.given() - before;
                assert!(given == 0 || is_listed(&w, &task), "{given} given, and none is listed: {row:?}");
                w.end(&task).await;
                // What it said about coming back, and how long its circuit stayed open.
                w.clock.advance(secs(61));
            }
        }
    }
}

#[tokio::test]
async fn no_refusal_hides_a_dynamic_secret_that_an_earlier_try_may_have_read() {
    let w = World::with(Setup { vault: true, ..Setup::default() }).await;
    scope(&w.policy_directory(), "db", "5m", &["vault"]);
    w.reload().await;
    let vault: &FakeVault = w.vault.as_deref().unwrap();
    let reads = [On::Lost, On::Status(403), On::Status(400), On::Status(500)];
    for first in &reads {
        for second in &reads {
            for login in [None, Some(On::Status(403)), Some(On::Status(400)), Some(On::Status(503))] {
                for drop in [None, Some(On::Status(503)), Some(On::Status(403))] {
                    let row = format!("{first:?}, {second:?}, logins {login:?}, drops {drop:?}");
                    vault.well();
                    vault.next("creds", first.clone());
                    vault.on("creds", second.clone());
                    for path in ["revoke-self", "revoke"] {
                        drop.clone().into_iter().for_each(|on| vault.on(path, on));
                    }
                    let (task, read, before) = (w.begin_scope("db").await, vault.count("creds"), vault.live());
                    let ask = Call::get(&format!("/v1/tasks/{}/credentials", task.id)).bearer(&task.token);
                    let mut later = login.clone();
                    let told = pass(&w, &task, w.send(ask), || {
                        if vault.count("creds") > read {
                            later.take().into_iter().for_each(|on| vault.on("login", on));
                        }
                    });
                    assert!(told.await.status >= 400, "{row}");
                    let lives = vault.live().iter().any(|lease| !before.contains(lease));
                    assert!(!lives || is_listed(&w, &task), "a secret works, and is not listed: {row}");
                    vault.well();
                    w.end(&task).await;
                    w.clock.advance(secs(61));
                }
            }
        }
    }
}
