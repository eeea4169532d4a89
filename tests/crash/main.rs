//! Real crashes: `CRASH_KILLS=10000 cargo test --test crash`.
//!
//! The real `sidemint serve` is killed with SIGKILL under load, again and again, at random and at named moments ([`gate`]), and
//! started on what is left. The SPIFFE authority, an STS and a Vault live in this process, so they survive, and keep books of
//! their own ([`world`], [`vault`]). After each kill and after each start three ledgers are joined ([`ledger`]): what the clouds
//! gave out, what the clients were told and received, what the sidecar's books say. It holds that
//!
//! - no lease is lost: what can still be used is in the journal and in the status, with an end no earlier than the true one;
//! - nothing is served late: after an acknowledged end, a advertised expiry, a deadline;
//! - nothing is served across identities or tasks, before it is recorded, or told to live longer than it does;
//! - no task, no acknowledged end and no key is lost, and nothing is called revoked that is not.
//!
//! `CRASH_SEED` begins at another seed, `CRASH_WORLDS` sets how many sidecars run at a time. A failure tells the seed, the kill
//! and what the ledgers say; the seed gives the same plan of kills, not the same instants.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

mod clients;
mod gate;
mod ledger;
#[path = "../simulation/random.rs"]
#[allow(dead_code, reason = "what only the simulation draws")]
mod random;
mod sidecar;
mod vault;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sidemint::clock::{Clock as _, SystemClock, within};

use crate::clients::{Client, Load};
use crate::gate::Point;
use crate::random::Random;
use crate::sidecar::Sidecar;
use crate::world::{WHO, World};

/// So many kills unless `CRASH_KILLS` says otherwise.
const FEW: u64 = 20;
/// Kills on one state directory; then a new world, so that its books stay short.
const OF_ONE_WORLD: u64 = 50;
/// Clients of each workload.
const CLIENTS: usize = 2;

/// What was done.
#[derive(Default)]
struct Told {
    kills: BTreeMap<Point, u64>,
    /// Kills whose point did not come in time.
    unmet: u64,
    starts: usize,
    tasks: usize,
    minted: usize,
    received: usize,
    ended: usize,
}

impl Told {
    fn add(&mut self, other: &Self) {
        for (point, count) in &other.kills {
            *self.kills.entry(*point).or_default() += count;
        }
        self.unmet += other.unmet;
        self.starts += other.starts;
        self.tasks += other.tasks;
        self.minted += other.minted;
        self.received += other.received;
        self.ended += other.ended;
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kills: u64 = self.kills.values().sum();
        writeln!(
            f,
            "{kills} kills ({} where the point stayed away), {} starts, {} tasks, {} ends acknowledged, {} credentials minted, \
             {} received",
            self.unmet, self.starts, self.tasks, self.ended, self.minted, self.received
        )?;
        let points = self.kills.iter().map(|(point, count)| format!("{point} {count}"));
        write!(f, "at: {}", points.collect::<Vec<_>>().join(", "))
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_served_late_or_to_another_however_the_sidecar_is_killed() {
    let kills = number("CRASH_KILLS").unwrap_or(FEW);
    let seed = number("CRASH_SEED").unwrap_or(0);
    let worlds = number("CRASH_WORLDS").unwrap_or(2).max(1);
    #[allow(clippy::disallowed_methods, reason = "tells how long the campaign took; nothing is judged by it")]
    let begun = std::time::Instant::now();
    // Shared out evenly, so that no world is left alone with the rest.
    let parts = kills.div_ceil(OF_ONE_WORLD).max(worlds);
    let size = move |part: u64| kills / parts + u64::from(part < kills % parts);
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..worlds {
        let next = Arc::clone(&next);
        workers.spawn(async move {
            let mut total = Told::default();
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= parts {
                    return Ok(total);
                }
                total.add(&campaign(seed + part, size(part)).await?);
            }
        });
    }
    let (mut total, mut failures) = (Told::default(), Vec::<String>::new());
    while let Some(done) = workers.join_next().await {
        match done.unwrap() {
            Ok(told) => total.add(&told),
            Err(failure) => failures.push(failure),
        }
    }
    println!("{total}\nin {:.1?}, seeds {seed} to {}", begun.elapsed(), seed + parts - 1);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert_eq!(total.kills.values().sum::<u64>(), kills);
    // A load that does nothing would prove nothing.
    assert!(total.received as u64 > kills && total.ended as u64 > kills / 4, "there was no load: {total}");
}

/// `kills` kills of one sidecar.
async fn campaign(seed: u64, kills: u64) -> Result<Told, String> {
    let mut random = Random::new(seed);
    let world = Arc::new(World::start().await);
    let mut sidecar = Sidecar::beside(&world);
    let load = Load::new(Arc::clone(&world), sidecar.socket());
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..WHO.len() * CLIENTS {
        clients.spawn(Client::new(&load, number, random.fork()).run());
    }
    sidecar.spawn();
    sidecar.ready().await?;
    let mut told = Told::default();
    let mut checked = 0;
    for kill in 1..=kills {
        let point = *random.pick(&Point::ALL);
        load.begin_life();
        let plan = format!("CRASH_SEED={seed}, kill {kill} of {kills} at {point}");
        let met = kill_at(&mut sidecar, &world, point, &mut random).await;
        *told.kills.entry(point).or_default() += 1;
        told.unmet += u64::from(!met);

        let mut wrong = judge(&load, &sidecar.journal(), &mut checked);
        sidecar.spawn();
        sidecar.ready().await.map_err(|why| format!("{plan}: {why}"))?;
        // Before the books: they must know at least as much.
        let (mut mints, mut known) = (world.mints(), load.ledger().clone());
        let books = sidecar.status().await.map_err(|why| format!("{plan}: {why}"))?;
        // Shortened meanwhile, perhaps, and the books know it.
        let ends: BTreeMap<_, _> = world.mints().into_iter().map(|mint| (mint.key, mint.ends_at)).collect();
        mints.iter_mut().for_each(|mint| mint.ends_at = mint.ends_at.min(ends[&mint.key]));
        // Asked for meanwhile, perhaps.
        known.tasks.iter_mut().zip(&load.ledger().tasks).for_each(|(task, now)| task.end_asked = now.end_asked);
        wrong.extend(ledger::judge_books(&mints, &known, &books, SystemClock.now()));
        if let Some(ended) = clients.try_join_next() {
            wrong.push(format!("a client crashed: {ended:?}"));
        }
        if !wrong.is_empty() {
            wrong.truncate(8);
            return Err(format!("{plan}:\n- {}\nits log ends:\n{}", wrong.join("\n- "), sidecar.log_tail()));
        }
    }
    clients.shutdown().await;
    let ledger = load.ledger();
    told.starts = sidecar.starts;
    (told.tasks, told.received) = (ledger.tasks.len(), ledger.received.len());
    told.ended = ledger.tasks.iter().filter(|task| task.ended.is_some()).count();
    told.minted = world.mints().len();
    Ok(told)
}

/// Joins the ledgers while the sidecar is dead.
fn judge(load: &Load, books: &ledger::Books, checked: &mut usize) -> Vec<String> {
    let known = {
        let mut ledger = load.ledger();
        let known = ledger.clone();
        ledger.seen.clear();
        known
    };
    let mints = load.world.mints();
    let mut wrong = ledger::judge_books(&mints, &known, books, SystemClock.now());
    wrong.extend(ledger::judge_served(&mints, &known, *checked));
    wrong.extend(ledger::judge_reports(&mints, &known));
    *checked = known.received.len();
    wrong.extend(known.seen);
    wrong
}

/// Kills the sidecar at `point`, or without it where it stays away. Whether it came.
async fn kill_at(sidecar: &mut Sidecar, world: &World, point: Point, random: &mut Random) -> bool {
    let wait = Duration::from_micros(random.between(0, point.spread()));
    let before = random.below(point.most_before());
    let met = match point {
        Point::Any => true,
        Point::Starting => {
            // Killed once more, somewhere between its first instruction and a little after it is ready.
            sidecar.kill().await;
            sidecar.spawn();
            SystemClock.sleep(Duration::from_micros(random.between(0, 450_000))).await;
            true
        }
        Point::Committing => within(&SystemClock, point.patience(), sidecar.committing()).await.is_some(),
        point => {
            let hit = world.gate.arm(point, before);
            within(&SystemClock, point.patience(), hit).await.is_some_and(|hit| hit.is_ok())
        }
    };
    SystemClock.sleep(wait).await;
    assert!(sidecar.kill().await, "it had ended by itself: {}", sidecar.log_tail());
    world.gate.disarm();
    met
}
