//! The way to a credential beside an STS that loses answers: nothing that may live is forgotten.

use sidemint::clock::ManualClock;

use crate::leaks::stepping;
use crate::sts::{OnCall, Sts};
use crate::world::{START, Setup, World, secs, time};

async fn world() -> (World, Sts) {
    // The STS's clock becomes the world's, which is not there yet.
    let clock = ManualClock::at(START);
    let sts = Sts::start(clock.clone()).await;
    let w = World::with_clock(Setup { sts: Some(sts.address), ..Setup::default() }, clock).await;
    (w, sts)
}

async fn mints(w: &World, outcome: &str) -> f64 {
    let series = format!("sidemint_mints_total{{outcome=\"{outcome}\",provider=\"aws\",tier=\"baseline\"}}");
    w.metric(&series).await.unwrap()
}

#[tokio::test]
async fn a_credential_that_was_lost_on_its_way_stays_in_the_books_whatever_the_sts_says_next() {
    let (mut w, sts) = world().await;
    let task = w.begin_scope("archive").await;
    sts.next([OnCall::Lose]);
    sts.on_call(OnCall::Refuse(403, "AccessDenied"));
    let reply = stepping(&w, w.credentials(&task.token)).await;
    assert_eq!((reply.status, sts.calls()), (503, 2), "{}", reply.text());
    assert_eq!((mints(&w, "unavailable").await, mints(&w, "refused").await), (1.0, 0.0));
    let audited = w.audited(reply.request_id()).await;
    let failed = audited.iter().find(|line| line["event"] == "mint").unwrap();
    assert_eq!((&failed["outcome"], &failed["reason"]), (&"failed".into(), &"unavailable".into()));

    let dead_by = START.floor_to_second() + secs(1200);
    w.crash().await;
    let shown = w.show(&task).await;
    assert_eq!((&shown["leases"][0]["state"], time(&shown["leases"][0]["usable_until"])), (&"intent".into(), dead_by));
    let report = w.end(&task).await;
    let [lease] = &report["leases"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&lease["outcome"], time(&lease["usable_until"])), (&"expires".into(), dead_by));
    let status = w.operator(crate::http::Call::get("/status")).await.json();
    assert_eq!(status["outstanding"][0]["id"], lease["id"], "{status}");
}
