//! Every order of the operations, one after the other.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sidemint::broker::Broker;
use sidemint::clock::Clock as _;
use sidemint::exchange::{Credential, Provider};
use sidemint::identity::task_token::TokenHash;
use sidemint::lease::revoke::awaits_revocation;
use sidemint::task::{EndReason, Task};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::seams::{Kit, LIFE, Planted, Seams, every_lease_is_accounted_for};

/// What is done to one task, each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    /// A client asks for the credential; where there is none, it is minted.
    Serve,
    /// The same at the provider that can take it back.
    ServeExact,
    /// Its holder ends it.
    End,
    /// The sidecar refreshes the policy, which does not permit it any more.
    Reload,
    /// A credential's whole life passes.
    Expire,
    /// Whatever is due is ended: the reaper.
    Sweep,
}

/// The sets that are explored whole.
const SETS: [&[Op]; 6] = [
    &[Op::Serve, Op::Serve, Op::End, Op::Expire],
    &[Op::Serve, Op::End, Op::Reload],
    &[Op::Serve, Op::Reload, Op::Sweep],
    &[Op::Serve, Op::End, Op::Expire, Op::Sweep],
    // And every order of what the provider says to being told to take it back.
    &[Op::ServeExact, Op::End, Op::Expire, Op::Sweep],
    &[Op::ServeExact, Op::End, Op::Expire, Op::Expire],
];
const ALL: &[Op] = &[Op::Serve, Op::Serve, Op::End, Op::Reload, Op::Expire];
/// How many orders of all five are tried, unless all are.
const SAMPLE: usize = 40;

/// One thing that can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Start(usize),
    Write,
    Exchange(usize),
    Refresh(usize),
    /// A credential is revoked, and whoever asked for that hears of it or does not.
    TakenBack(usize, bool),
}

/// How a client was answered: after which event, and with which key.
type Answers = Arc<Mutex<Vec<(usize, Result<String, String>)>>>;

struct Order<'a> {
    kit: &'a Kit,
    runtime: &'a Runtime,
    ops: &'a [Op],
    seams: Arc<Seams>,
    broker: Arc<Broker>,
    task: Arc<Task>,
    token: TokenHash,
    started: Vec<bool>,
    at: Arc<Mutex<usize>>,
    answers: Answers,
    /// The events after which an end was begun, and after which it was told.
    ended: Arc<Mutex<Option<usize>>>,
    /// The event after which a refresh of the policy was over.
    reloaded: Arc<Mutex<Option<usize>>>,
    checked: usize,
    /// How many exchanges had begun.
    begun: usize,
    /// Revokes what is pending.
    revoker: Option<JoinHandle<()>>,
}

/// Lets everything run that waits for nothing but the runtime, whose own time is paused.
fn idle(runtime: &Runtime) {
    #[allow(clippy::disallowed_methods, reason = "no time passes: see above")]
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
}

impl<'a> Order<'a> {
    fn new(kit: &'a Kit, runtime: &'a Runtime, ops: &'a [Op], planted: Planted) -> Self {
        let seams = Seams::new(planted, kit.permitted());
        *kit.source.0.lock().unwrap() = Arc::clone(&seams);
        let broker = kit.broker(&seams);
        // Up to here nobody is held.
        let (task, token) = runtime.block_on(async {
            let ready = async {
                kit.policy.reload_now(seams.clock.now()).await;
                kit.begin(&broker, seams.scope).await
            };
            tokio::pin!(ready);
            loop {
                tokio::select! {
                    biased;
                    begun = &mut ready => break begun,
                    () = tokio::task::yield_now() => {
                        for gate in [&seams.writes, &seams.refreshes] {
                            while gate.held() > 0 { gate.release(0); }
                        }
                    }
                }
            }
        });
        seams.narrow.store(true, Ordering::Relaxed);
        Self {
            kit,
            runtime,
            ops,
            broker,
            task,
            token,
            started: vec![false; ops.len()],
            at: Arc::default(),
            answers: Arc::default(),
            ended: Arc::default(),
            reloaded: Arc::default(),
            checked: 0,
            begun: 0,
            revoker: None,
            seams,
        }
    }

    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (at, op) in self.ops.iter().enumerate().filter(|(at, _)| !self.started[*at]) {
            // Of two that are the same the first comes first.
            let twin = self.ops[..at].iter().zip(&self.started).any(|(other, started)| other == op && !started);
            if !twin {
                events.push(Event::Start(at));
            }
        }
        // The journal commits in the order in which it was asked.
        events.extend((self.seams.writes.held() > 0).then_some(Event::Write));
        events.extend((0..self.seams.exchanges.held()).map(Event::Exchange));
        events.extend((0..self.seams.refreshes.held()).map(Event::Refresh));
        let hears = |at| [true, false].map(|hears| Event::TakenBack(at, hears));
        events.extend((0..self.seams.revocations.held()).flat_map(hears));
        events
    }

    fn happen(&mut self, event: Event) {
        *self.at.lock().unwrap() += 1;
        match event {
            Event::Start(at) => self.begin(at),
            Event::Write => self.seams.writes.release(0),
            Event::Exchange(at) => self.seams.exchanges.release(at),
            Event::Refresh(at) => self.seams.refreshes.release(at),
            Event::TakenBack(at, hears) => {
                self.seams.hears.store(hears, Ordering::Relaxed);
                self.seams.revocations.release(at);
            }
        }
        idle(self.runtime);
        self.revoke();
    }

    /// As a sidecar that stops does, once the task has ended: waits for what is under way, and revokes what is pending.
    fn revoke(&mut self) {
        let pending =
            self.task.state().ending.is_some() && self.task.state().leases.iter().any(|lease| awaits_revocation(lease));
        if pending && self.revoker.as_ref().is_none_or(JoinHandle::is_finished) {
            let broker = Arc::clone(&self.broker);
            self.revoker = Some(self.runtime.spawn(async move { broker.close().await }));
            idle(self.runtime);
        }
    }

    fn begin(&mut self, at: usize) {
        self.started[at] = true;
        let (broker, task, now) = (Arc::clone(&self.broker), Arc::clone(&self.task), Arc::clone(&self.at));
        match self.ops[at] {
            op @ (Op::Serve | Op::ServeExact) => {
                let (token, answers) = (self.token, Arc::clone(&self.answers));
                let provider = if op == Op::Serve { Provider::Aws } else { Provider::Vault };
                self.runtime.spawn(async move {
                    let answer = match broker.credentials(&token, provider, "serve").await {
                        Ok(issued) if issued.credential().provider() != provider => Err("a foreign one".to_owned()),
                        Ok(issued) => match issued.credential() {
                            Credential::Aws(aws) => Ok(aws.access_key_id.expose().to_owned()),
                            Credential::Vault(secret) => Ok(secret.lease_id.clone()),
                        },
                        Err(error) => Err(error.to_string()),
                    };
                    answers.lock().unwrap().push((*now.lock().unwrap(), answer));
                });
            }
            Op::End => {
                // From this event on nothing is served, though the end is told later.
                *self.ended.lock().unwrap() = Some(*self.at.lock().unwrap());
                if self.seams.planted != Planted::ServeAfterEnd {
                    self.runtime.spawn(async move { drop(broker.end(&task, EndReason::Done, None).await) });
                }
            }
            Op::Reload => {
                let (policy, reloaded) = (Arc::clone(&self.kit.policy), Arc::clone(&self.reloaded));
                let time = self.seams.clock.now();
                self.runtime.spawn(async move {
                    policy.reload_now(time).await;
                    reloaded.lock().unwrap().get_or_insert(*now.lock().unwrap());
                });
            }
            Op::Expire => self.seams.clock.advance(LIFE),
            Op::Sweep => drop(self.runtime.spawn(async move { broker.sweep_now().await })),
        }
    }

    /// Everything that must hold after each event.
    fn check(&mut self) -> Result<(), String> {
        if let Some(wrong) = self.seams.ledger.lock().unwrap().wrong.first() {
            return Err((*wrong).to_owned());
        }
        let before = std::mem::replace(&mut self.begun, self.seams.ledger.lock().unwrap().begun);
        let (at, ended) = (*self.at.lock().unwrap(), *self.ended.lock().unwrap());
        if self.begun > before && ended.is_some_and(|ended| ended <= at) {
            return Err("an exchange for a task that had ended".to_owned());
        }
        let answers = self.answers.lock().unwrap();
        for (at, answer) in &answers[self.checked..] {
            let Ok(key) = answer else { continue };
            if self.ended.lock().unwrap().is_some_and(|ended| ended <= *at) {
                return Err(format!("{key} was served after the end"));
            }
            if self.reloaded.lock().unwrap().is_some_and(|reloaded| reloaded <= *at) {
                return Err(format!("{key} was served under a policy that forbids it"));
            }
            let ledger = self.seams.ledger.lock().unwrap();
            let Some(mint) = ledger.mints.iter().find(|mint| mint.key == *key) else {
                return Err(format!("nobody minted {key}"));
            };
            if mint.revoked {
                return Err(format!("{key} was served after it had been revoked"));
            }
            if mint.dead_by <= self.seams.clock.now() {
                return Err(format!("{key} was served after its own end"));
            }
            let books = self.seams.books.lock().unwrap();
            let recorded = mint.intent.as_ref().and_then(|id| books.leases.get(id));
            if recorded.is_none_or(|lease| lease.upstream.is_none()) {
                return Err(format!("{key} was served before it was recorded"));
            }
        }
        self.checked = answers.len();
        drop(answers);
        every_lease_is_accounted_for(&self.seams, &self.task)
    }

    /// What must hold once nothing is under way.
    fn check_the_end(&self) -> Result<(), String> {
        let answers = self.answers.lock().unwrap().len();
        if answers != self.ops.iter().filter(|op| matches!(op, Op::Serve | Op::ServeExact)).count() {
            return Err("a client was never answered".to_owned());
        }
        let books = self.seams.books.lock().unwrap();
        let state = self.task.state();
        let durable = books.tasks.get(self.task.id()).is_some_and(|task| task.ending.is_some());
        if state.ending.is_some() != durable {
            return Err("the end is in memory alone, or in the journal alone".to_owned());
        }
        if state.ending.is_none() && self.ops.contains(&Op::End) {
            return Err("it was ended and runs".to_owned());
        }
        for lease in &state.leases {
            let written = books.leases.get(&lease.id);
            if written != Some(lease) {
                return Err(format!("the journal has {written:?} of {lease:?}"));
            }
        }
        Ok(())
    }
}

/// Takes the choices of `path`, and the first of each after them. Returns how many choices there were each time.
fn explore(
    kit: &Kit,
    runtime: &Runtime,
    ops: &[Op],
    planted: Planted,
    mut choose: impl FnMut(usize, usize) -> usize,
) -> Result<Vec<(usize, usize)>, String> {
    let mut order = Order::new(kit, runtime, ops, planted);
    let (mut taken, mut told) = (Vec::new(), Vec::new());
    loop {
        let events = order.events();
        if events.is_empty() {
            break;
        }
        let choice = choose(taken.len(), events.len());
        taken.push((choice, events.len()));
        told.push(match events[choice] {
            Event::Start(at) => format!("{:?}", ops[at]),
            other => format!("{other:?}"),
        });
        order.happen(events[choice]);
        order.check().map_err(|wrong| format!("{wrong}: {}", told.join(", ")))?;
    }
    order.check_the_end().map_err(|wrong| format!("{wrong}: {}", told.join(", ")))?;
    Ok(taken)
}

/// Every order of `ops`; how many there are.
fn explore_all(kit: &Kit, runtime: &Runtime, ops: &[Op], planted: Planted) -> Result<usize, String> {
    let (mut path, mut orders): (Vec<usize>, usize) = (Vec::new(), 0);
    loop {
        let taken = explore(kit, runtime, ops, planted, |at, _| path.get(at).copied().unwrap_or(0))?;
        orders += 1;
        // The next: the last choice that has another after it.
        let Some(last) = taken.iter().rposition(|(choice, of)| choice + 1 < *of) else { return Ok(orders) };
        path = taken[..last].iter().map(|(choice, _)| *choice).collect();
        path.push(taken[last].0 + 1);
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// SplitMix64.
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn no_order_of_a_set_breaks_an_invariant() {
    let orders: BTreeMap<String, usize> = std::thread::scope(|scope| {
        let explored: Vec<_> = SETS
            .iter()
            .map(|ops| {
                let work = move || explore_all(&Kit::new(), &runtime(), ops, Planted::No);
                (format!("{ops:?}"), scope.spawn(work))
            })
            .collect();
        let told = |(ops, orders): (String, std::thread::ScopedJoinHandle<'_, Result<usize, String>>)| {
            let orders = orders.join().unwrap().unwrap_or_else(|wrong| panic!("{wrong}"));
            (ops, orders)
        };
        explored.into_iter().map(told).collect()
    });
    println!("{orders:?}");
    assert!(orders.values().all(|orders| *orders > 20));
}

#[test]
fn no_order_of_all_five_breaks_an_invariant() {
    let (kit, runtime) = (Kit::new(), runtime());
    if std::env::var("MODEL").is_ok_and(|what| what == "all") {
        println!("{} orders", explore_all(&kit, &runtime, ALL, Planted::No).unwrap_or_else(|wrong| panic!("{wrong}")));
        return;
    }
    for seed in 0..SAMPLE {
        let choose = |at: usize, of: usize| usize::try_from(mixed(seed as u64 * 1000 + at as u64) % of as u64).unwrap();
        explore(&kit, &runtime, ALL, Planted::No, choose).unwrap_or_else(|wrong| panic!("sample {seed}: {wrong}"));
    }
}

/// Says what is found of a bug, or that nothing is.
fn found(ops: &[Op], planted: Planted) -> String {
    explore_all(&Kit::new(), &runtime(), ops, planted).expect_err("a bug that nobody notices")
}

#[test]
fn each_planted_bug_is_found_in_some_order() {
    let wrong = found(&[Op::Serve], Planted::SkipIntent);
    assert!(wrong.contains("without a durable intent"), "{wrong}");
    let wrong = found(&[Op::Serve, Op::End], Planted::ServeAfterEnd);
    assert!(wrong.contains("served after the end") || wrong.contains("that had ended"), "{wrong}");
    let wrong = found(&[Op::Serve], Planted::ForgetLease);
    assert!(wrong.contains("lost the lease") || wrong.contains("before it was recorded"), "{wrong}");
    let wrong = found(&[Op::ServeExact, Op::End], Planted::LieAboutRevoking);
    assert!(wrong.contains("is called revoked, and works"), "{wrong}");
    let wrong = found(&[Op::Serve, Op::Reload], Planted::BlindReload);
    assert!(wrong.contains("a policy that forbids it"), "{wrong}");
}
