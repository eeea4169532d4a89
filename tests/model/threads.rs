//! Real threads at the locks: clients, an end, a reload, the reaper and time, all at once, on seams that hold nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sidemint::clock::Clock as _;
use sidemint::exchange::Provider;
use sidemint::task::EndReason;
use tokio::task::JoinSet;

use crate::seams::{Kit, Planted, Seams, every_lease_is_accounted_for};

const ROUNDS: usize = 400;
const CLIENTS: usize = 3;
const COLD_ROUNDS: usize = 2_000;

#[test]
fn threads_that_meet_at_the_locks_break_no_invariant() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    let kit = Kit::new();
    let served = AtomicUsize::new(0);
    runtime.block_on(async {
        let first = Seams::new(Planted::No, 0);
        first.refreshes.open();
        *kit.source.0.lock().unwrap() = Arc::clone(&first);
        kit.policy.reload_now(first.clock.now()).await;
        for round in 0..ROUNDS {
            let count = one_round(&kit, round).await;
            served.fetch_add(count, Ordering::Relaxed);
        }
    });
    let served = served.into_inner();
    println!("{ROUNDS} rounds, {served} served");
    assert!(served > ROUNDS / 4, "ends came before everything: {served} served in {ROUNDS} rounds");
}

#[test]
fn threads_that_meet_at_a_cold_task_share_one_exchange() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    let kit = Kit::new();
    runtime.block_on(async {
        let first = Seams::new(Planted::No, 0);
        first.refreshes.open();
        *kit.source.0.lock().unwrap() = Arc::clone(&first);
        kit.policy.reload_now(first.clock.now()).await;
        for round in 0..COLD_ROUNDS {
            let seams = Seams::new(Planted::No, kit.permitted());
            for gate in [&seams.writes, &seams.exchanges, &seams.refreshes] {
                gate.open();
            }
            let broker = kit.broker(&seams);
            let (_, token) = kit.begin(&broker, seams.scope).await;
            let mut clients = JoinSet::new();
            for _ in 0..8 {
                let broker = Arc::clone(&broker);
                clients.spawn(async move {
                    for _ in 0..20 {
                        broker.credentials(&token, Provider::Aws, "serve").await.unwrap();
                    }
                });
            }
            while let Some(done) = clients.join_next().await {
                done.unwrap();
            }
            assert_eq!(seams.ledger.lock().unwrap().mints.len(), 1, "round {round}");
        }
    });
}

/// Returns how often a client was served.
async fn one_round(kit: &Kit, round: usize) -> usize {
    let seams = Seams::new(Planted::No, kit.permitted());
    for gate in [&seams.writes, &seams.exchanges, &seams.refreshes] {
        gate.open();
    }
    let broker = kit.broker(&seams);
    let (task, token) = kit.begin(&broker, seams.scope).await;
    let ended = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (broker, ended) = (Arc::clone(&broker), Arc::clone(&ended));
        clients.spawn(async move {
            let mut served = 0;
            // A few times after the end, too.
            for _ in 0..60 {
                let over = ended.load(Ordering::SeqCst);
                let answer = broker.credentials(&token, Provider::Aws, "serve").await;
                assert!(!(over && answer.is_ok()), "served after end() had returned");
                served += usize::from(answer.is_ok());
                tokio::task::yield_now().await;
            }
            served
        });
    }
    let mut others = JoinSet::new();
    let (b, s) = (Arc::clone(&broker), Arc::clone(&seams));
    others.spawn(async move {
        for _ in 0..8 {
            s.clock.advance(Duration::from_secs(9));
            b.sweep_now().await;
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        }
    });
    let (b, t) = (Arc::clone(&broker), Arc::clone(&task));
    others.spawn(async move {
        for _ in 0..(round * 7) % 60 {
            tokio::task::yield_now().await;
        }
        b.end(&t, EndReason::Done, None).await;
        ended.store(true, Ordering::SeqCst);
    });
    while let Some(done) = others.join_next().await {
        done.unwrap();
    }
    let mut served = 0;
    while let Some(done) = clients.join_next().await {
        served += done.unwrap();
    }
    // An exchange that nobody waits for any more may still be under way.
    while seams.ledger.lock().unwrap().in_flight.values().any(|count| *count > 0) {
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    broker.sweep_now().await;
    assert_eq!(seams.ledger.lock().unwrap().wrong, [""; 0]);
    every_lease_is_accounted_for(&seams, &task).unwrap();
    let (books, state) = (seams.books.lock().unwrap(), task.state());
    for lease in &state.leases {
        assert_eq!(books.leases.get(&lease.id), Some(lease), "round {round}: the journal and the memory differ");
    }
    served
}
