//! Writes that land late, after one of what is there now.

use std::sync::Arc;

use sidemint::broker::Broker;
use sidemint::clock::Clock as _;
use sidemint::exchange::Provider;
use sidemint::lease::LeaseState;
use sidemint::task::{EndReason, Task};

use crate::seams::{Kit, LIFE, Planted, Seams};

/// Lets every write land in the order in which it was asked, until `work` is done.
async fn in_order<T>(seams: &Seams, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => {}
        }
        if seams.writes.held() > 0 {
            seams.writes.release(0);
        }
    }
}

async fn held(seams: &Seams, count: usize) {
    while seams.writes.held() < count {
        tokio::task::yield_now().await;
    }
}

async fn ending(kit: &Kit) -> (Arc<Seams>, Arc<Broker>, Arc<Task>) {
    let seams = Seams::new(Planted::No, 0);
    seams.refreshes.open();
    seams.exchanges.open();
    *kit.source.0.lock().unwrap() = Arc::clone(&seams);
    kit.policy.reload_now(seams.clock.now()).await;
    let broker = kit.broker(&seams);
    let (task, token) = in_order(&seams, kit.begin(&broker, seams.scope)).await;
    in_order(&seams, broker.credentials(&token, Provider::Aws, "serve")).await.unwrap();
    (seams, broker, task)
}

#[tokio::test]
async fn writes_again_the_end_of_a_task_that_completes_after_its_leases_expired() {
    let kit = Kit::new();
    let (seams, broker, task) = ending(&kit).await;
    let (b, t) = (Arc::clone(&broker), Arc::clone(&task));
    let end = tokio::spawn(async move { b.end(&t, EndReason::Done, None).await });
    held(&seams, 1).await;
    // While the disk is slow, the credential dies and the reaper writes that down, which lands first.
    seams.clock.advance(LIFE);
    let b = Arc::clone(&broker);
    let sweep = tokio::spawn(async move { b.sweep_now().await });
    held(&seams, 2).await;
    while !sweep.is_finished() {
        if seams.writes.held() > 1 {
            seams.writes.release(1);
        }
        tokio::task::yield_now().await;
    }
    let state_of = |seams: &Seams| seams.books.lock().unwrap().leases.values().next().map(|lease| lease.state);
    assert_eq!(state_of(&seams), Some(LeaseState::Expired));
    seams.writes.release(0);
    end.await.unwrap();
    assert_eq!(state_of(&seams), Some(LeaseState::Ending), "the late write says what was");
    in_order(&seams, broker.sweep_now()).await;
    assert_eq!(state_of(&seams), Some(LeaseState::Expired));
}
