//! Whole lives of a sidecar, made up from a seed: `SIM_HISTORIES=2000 cargo test --profile simulation --features simulation --test simulation`.
//!
//! Time, the disk under the journal, the audit log's, the cloud, the Workload API and the policy source are models; everything
//! else is the product: server, broker, journal and its store, policy engine, clock guard. A history is a few dozen steps: tasks
//! begin, are served, held and ended, by their holders and by operators; policies narrow, lose scopes, go stale and expire, kill
//! lists come and go; identities and a whole trust domain are withdrawn; clocks jump and are reset; clouds hang, refuse, lie about
//! expiries, lose answers, and take credentials back, or say that they did not and did; disks and audit logs fail; and the sidecar
//! is stopped in order, or killed at any moment, with writes under way, and started on what is left. After each step the ledgers of
//! the clouds, the clients, the journal and the audit log are joined ([`ledger`]).
//!
//! [`history::every_step`] kills lives at each of their steps; [`history::scripted`] tells some step by step; [`tail`] damages what
//! the journal wrote last, bit by bit; [`planted`] shows that the checkers see.
//!
//! One thread runs a history: what happens next is the seed's choice alone, and so are the ids of tasks and leases. Tokens and
//! signatures are not, and nothing is ordered by them. `SIM_SEED=7` replays one, `SIM_THREADS` sets how many run at a time. A long
//! campaign says now and then how far it is, and with which `SIM_FIRST` to go on where it was stopped.
//!
//! A cloud that says that it has revoked what still works cannot be seen through from behind the seam: `exchange::vault` looks
//! whether the lease is gone, and `tests/it/vault.rs` holds it to that. Here it is a planted bug.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

mod cloud;
mod disk;
mod history;
mod journal;
mod ledger;
mod planted;
mod policy;
mod random;
mod tail;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use planted::Planted;

/// How many without `SIM_HISTORIES`: half a second each without optimisation.
const FEW: u64 = 50;
/// A long campaign tells after so many how far it is.
const TELL: u64 = 1000;

/// What a checker did not like.
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) checker: &'static str,
    pub(crate) detail: String,
    pub(crate) steps: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SIM_SEED={} breaks \"{}\": {}", self.seed, self.checker, self.detail)?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:4} {step}", number + 1)?;
        }
        writeln!(
            f,
            "replay it: SIM_SEED={} cargo test --features simulation --test simulation no_history -- --nocapture",
            self.seed
        )
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn no_history_breaks_an_invariant() {
    if let Some(seed) = number("SIM_SEED") {
        match history::run(seed, Planted::No) {
            Ok(told) => println!("{}", told.steps.join("\n")),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let histories = number("SIM_HISTORIES").unwrap_or(FEW);
    let threads =
        number("SIM_THREADS").unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64));
    let first = number("SIM_FIRST").unwrap_or(0);
    #[allow(clippy::disallowed_methods, reason = "tells how long the campaign took; nothing is judged by it")]
    let begun = std::time::Instant::now();
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    // Which one each thread is at.
    let at: Vec<_> = (0..threads).map(|_| AtomicU64::new(0)).collect();
    let work = |mine: &AtomicU64| {
        let (mut total, mut failures) = (history::Told::default(), Vec::new());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            mine.store(number.min(histories), Ordering::Relaxed);
            if number >= histories || failures.len() >= 3 {
                return (total, failures);
            }
            match history::run(first + number, Planted::No) {
                Ok(told) => total.add(&told),
                Err(failure) => {
                    println!("{failure}");
                    failures.push(failure);
                }
            }
            let count = done.fetch_add(1, Ordering::Relaxed) + 1;
            if count.is_multiple_of(TELL) && count < histories {
                let all = at.iter().map(|at| at.load(Ordering::Relaxed)).min().unwrap_or(0);
                println!("{count} of {histories} in {:.0?}; go on with SIM_FIRST={}", begun.elapsed(), first + all);
            }
        }
    };
    let told: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = at.iter().map(|mine| scope.spawn(|| work(mine))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let mut total = history::Told::default();
    for (told, _) in &told {
        total.add(told);
    }
    let done = done.into_inner();
    println!("{done} histories, seeds {first} to {}: {total} in {:.1?}", first + histories - 1, begun.elapsed());
    let failures: Vec<_> = told.into_iter().flat_map(|(_, failures)| failures).collect();
    assert!(failures.is_empty(), "{} histories break an invariant", failures.len());
}

#[test]
fn the_same_seed_tells_the_same_history() {
    for seed in 0..10 {
        let told = || history::run(seed, Planted::No).unwrap_or_else(|failure| panic!("{failure}"));
        let (one, other) = (told(), told());
        assert_eq!(one.steps, other.steps, "SIM_SEED={seed}");
        let differs = one.trace.iter().zip(&other.trace).position(|(one, other)| one != other);
        assert_eq!(
            (differs, one.trace.len()),
            (None, other.trace.len()),
            "SIM_SEED={seed}: other ledgers after a step"
        );
    }
}
