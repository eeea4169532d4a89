//! One life of a task, killed at each of its steps: before a commit, in the middle of it, after it, with a call to a cloud
//! under way that has its effect or has not; and started again. Nothing is lost, nothing is served late.

use super::*;

/// How many writes to the disk a commit may get to before it is torn.
const TORN: usize = 12;
/// How many lives besides the plain one, without `STEP_LIVES`.
const FEW_LIVES: u64 = 8;

/// Where a life stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Before what comes next.
    Before,
    /// After it, and nobody is told.
    Untold,
    /// In the middle of a commit, after so many writes to the disk.
    Torn(usize),
}

/// What the next event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Commit,
    Audit,
    Call,
}

/// Counts what happens at the seams, and stops at one of them.
struct Life {
    history: History,
    /// Whose life this is: what happens in it follows from the seed alone, wherever it is cut. The first is the plainest.
    seed: u64,
    plot: Random,
    left: usize,
    cut: Cut,
    stopped: bool,
}

impl Life {
    /// Lets everything happen that is under way, one event at a time; `false` once the life was cut.
    fn goes_on(&mut self) -> bool {
        loop {
            self.history.idle();
            let sidecar = self.history.sidecar();
            let next = if sidecar.journal.is_waited_for() {
                Next::Commit
            } else if sidecar.audit.lock().unwrap().are_waiting() {
                Next::Audit
            } else if self.history.cloud.waiting() > 0 {
                Next::Call
            } else {
                self.history.listen();
                return true;
            };
            if self.left == 0 {
                self.stop(next);
                return false;
            }
            self.left -= 1;
            match next {
                Next::Commit => drop(sidecar.runtime.block_on(sidecar.journal.release(Release::Told))),
                Next::Audit => drop(self.history.release_audit(Outcome::Told)),
                Next::Call => {
                    let (answer, undo) = self.answer();
                    self.history.cloud.answer(0, answer, undo);
                }
            }
        }
    }

    fn answer(&mut self) -> (Answer, Undo) {
        if self.seed == 0 || self.plot.chance(60) {
            return (Answer::Give, Undo::Done);
        }
        let sooner = Answer::Sooner(Duration::from_secs(20));
        let answer = *self.plot.pick(&[sooner, Answer::Lost, Answer::Garbled, Answer::Years, Answer::Refused]);
        (answer, *self.plot.pick(&[Undo::Lost, Undo::Taken(true), Undo::Taken(false), Undo::Broken, Undo::Refused]))
    }

    fn stop(&mut self, next: Next) {
        self.stopped = true;
        let sidecar = self.history.sidecar();
        match (self.cut, next) {
            (Cut::Before, _) => {}
            (Cut::Untold, Next::Commit) => drop(sidecar.runtime.block_on(sidecar.journal.release(Release::Untold))),
            (Cut::Torn(writes), Next::Commit) => {
                self.history.disk.stop_after(writes);
                sidecar.runtime.block_on(sidecar.journal.release(Release::Told));
            }
            (Cut::Untold | Cut::Torn(_), Next::Audit) => drop(self.history.release_audit(Outcome::Untold)),
            // The cloud acts, and nobody hears of it.
            (Cut::Untold | Cut::Torn(_), Next::Call) => self.history.cloud.hang_up(|| true),
        }
        if self.cut == Cut::Before {
            self.history.cloud.hang_up(|| false);
        }
    }

    fn ask(&mut self, ask: Ask, method: Method, path: String, bearer: String, key: Option<&str>, body: &str) -> bool {
        self.history.send(ask, Call { method, path, bearer, key: key.map(str::to_owned), body: body.to_owned() });
        self.goes_on()
    }

    fn begin(&mut self, scope: usize, key: Option<usize>, bearer: String) -> bool {
        let begin = Ask::Begin { who: 0, scope, key, life: SCOPES[scope].max_task };
        let body = json!({ "scope": SCOPES[scope].id }).to_string();
        self.ask(begin, Method::POST, "/v1/tasks".into(), bearer, key.map(|_| "key"), &body)
    }

    /// A task with a credential at each of its clouds, both minted anew, and its end; by other seeds with a key that is used
    /// twice, with a part, with clouds that fail, and with another reason to end. `false` once it was cut.
    fn lived(&mut self) -> bool {
        let plain = self.seed == 0;
        let both = SCOPES.iter().position(|scope| scope.id == "both").unwrap();
        let scope = if plain { both } else { self.plot.below(SCOPES.len()) };
        let key = (!plain && self.plot.chance(50)).then_some(0);
        for _ in 0..if key.is_some() { 2 } else { 1 } {
            let bearer = self.history.api.issue(WHO[0], AUDIENCE);
            if !self.begin(scope, key, bearer) {
                return false;
            }
        }
        let (id, token) = (self.history.ledger.tasks[0].id.clone(), self.history.ledger.tasks[0].token.clone());
        if !plain && self.plot.chance(40) && !self.begin(scope, None, token.clone()) {
            return false;
        }
        for _ in 0..2 {
            for provider in SCOPES[scope].at {
                for task in 0..self.history.ledger.tasks.len() {
                    let token = self.history.ledger.tasks[task].token.clone();
                    self.history.ask_for(task, token, *provider);
                    if !self.goes_on() {
                        return false;
                    }
                }
            }
            // More than half of their life.
            let time = Duration::from_secs(SCOPES[scope].max_residual * 2 / 3);
            self.history.clock.advance(time);
            self.history.truth.advance(time);
            self.history.up += time;
            if !self.goes_on() {
                return false;
            }
        }
        match if plain { 0 } else { self.plot.below(4) } {
            0 => self.ask(Ask::End { task: 0 }, Method::DELETE, format!("/v1/tasks/{id}"), token, None, ""),
            1 => {
                let kill = Kill { target: Target::Task(id), until: None };
                self.history.source.publish(&self.history.content, Some(vec![kill]));
                let sidecar = self.history.sidecar();
                sidecar.runtime.block_on(sidecar.policy.reload_now(self.history.clock.now()));
                self.goes_on()
            }
            2 => {
                self.history.issued.remove(&0);
                self.history.issue();
                self.goes_on()
            }
            _ => {
                let broker = Arc::clone(&self.history.sidecar().broker);
                let task = broker.tasks().by_id(&id.parse().unwrap()).unwrap();
                self.history.sidecar().runtime.spawn(async move { broker.end(&task, EndReason::Operator, None).await });
                self.goes_on()
            }
        }
    }
}

/// Lives the life of `seed` once, cut before the event `at`; says whether it was cut, and what was wrong.
fn cut_at(seed: u64, at: usize, cut: Cut, stop: Stop) -> Result<bool, (&'static str, String)> {
    sidemint::id::testing::foresee(Some((seed << 32) + at as u64));
    let mut history = History::new(seed + 1, Planted::No);
    (history.reaper, history.may_reset) = (true, false);
    history.start()?;
    let mut life = Life { history, seed, plot: Random::new(seed), left: at, cut, stopped: false };
    life.lived();
    let Life { mut history, stopped, .. } = life;
    history.say(format!("cut {cut:?}, {stop:?}"));
    history.start_again(Some(stop))?;
    history.check()?;
    // The holder tries again to end it: what is left is revoked.
    for task in 0..history.ledger.tasks.len() {
        let known = history.ledger.tasks[task].clone();
        let path = format!("/v1/tasks/{}", known.id);
        history.send(
            Ask::End { task },
            Call { method: Method::DELETE, path, bearer: known.token, key: None, body: String::new() },
        );
    }
    let outcome = history.finish();
    history.drop_sidecar();
    sidemint::id::testing::foresee(None);
    outcome.map(|()| stopped)
}

/// Cuts the life of `seed` at each of its steps by what `cuts` says for that step; how many lives that were.
fn cut_everywhere(seed: u64, cuts: impl Fn(usize) -> Vec<(Cut, Stop)>) -> usize {
    let (mut at, mut lives) = (0, 0);
    loop {
        let mut any = false;
        for (cut, stop) in cuts(at) {
            let stopped = cut_at(seed, at, cut, stop);
            any |= stopped.unwrap_or_else(|failure| panic!("life {seed}, {cut:?} {stop:?} at {at}: {failure:?}"));
            lives += 1;
        }
        if !any {
            assert!(at > 5, "a life has many steps: {at} of {seed}");
            return lives;
        }
        at += 1;
    }
}

/// A torn disk is a machine that stopped.
fn every_cut() -> Vec<(Cut, Stop)> {
    let whole = [Cut::Before, Cut::Untold].map(|cut| [(cut, Stop::Process), (cut, Stop::Machine)]);
    whole.into_iter().flatten().chain((0..TORN).map(|writes| (Cut::Torn(writes), Stop::Machine))).collect()
}

#[test]
fn a_run_that_is_killed_at_any_step_loses_nothing() {
    println!("{} lives were cut off", cut_everywhere(0, |_| every_cut()));
}

/// Lives of every kind, cut at each step in three ways of the sixteen that there are: `STEP_LIVES=1000` of them, a few else.
#[test]
fn many_lives_that_are_killed_at_any_step_lose_nothing() {
    let lives = crate::number("STEP_LIVES").unwrap_or(FEW_LIVES);
    let cut = |seed: u64| {
        cut_everywhere(seed, |at| {
            let writes = (at * 5 + usize::try_from(seed).unwrap()) % TORN;
            let torn = (Cut::Torn(writes), Stop::Machine);
            vec![(Cut::Before, Stop::Process), (Cut::Untold, Stop::Machine), torn]
        })
    };
    println!("{} lives were cut off", (1..=lives).map(cut).sum::<usize>());
}
