//! One life of a task, killed at each of its steps: before a commit, in the middle of it, after it, with a call to a cloud
//! under way that has its effect or has not; and started again. Nothing is lost, nothing is served late.

use super::*;

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

/// Counts what happens at the seams, and stops at one of them.
struct Life {
    history: History,
    left: usize,
    cut: Cut,
    stopped: bool,
}

impl Life {
    /// Lets everything happen that is under way, one event at a time; `false` once the life was cut.
    fn goes_on(&mut self) -> bool {
        loop {
            self.history.idle();
            let commit = self.history.sidecar().journal.is_waited_for();
            if !commit && self.history.cloud.waiting() == 0 {
                self.history.listen();
                return true;
            }
            if self.left == 0 {
                self.stop(commit);
                return false;
            }
            self.left -= 1;
            if commit {
                let sidecar = self.history.sidecar();
                sidecar.runtime.block_on(sidecar.journal.release(Release::Told));
            } else {
                self.history.cloud.answer(0, Answer::Give, Undo::Done);
            }
        }
    }

    fn stop(&mut self, commit: bool) {
        self.stopped = true;
        let sidecar = self.history.sidecar();
        match (self.cut, commit) {
            (Cut::Before, _) => {}
            (Cut::Untold, true) => drop(sidecar.runtime.block_on(sidecar.journal.release(Release::Untold))),
            (Cut::Torn(writes), true) => {
                self.history.disk.stop_after(writes);
                sidecar.runtime.block_on(sidecar.journal.release(Release::Told));
            }
            // The cloud acts, and nobody hears of it.
            (Cut::Untold | Cut::Torn(_), false) => self.history.cloud.hang_up(|| true),
        }
        if self.cut == Cut::Before {
            self.history.cloud.hang_up(|| false);
        }
    }

    fn ask(&mut self, ask: Ask, method: Method, path: String, bearer: String, body: &str) -> bool {
        self.history.send(ask, Call { method, path, bearer, key: None, body: body.to_owned() });
        self.goes_on()
    }

    /// A task with a credential at each of two clouds, both minted anew, and its end. `false` once it was cut.
    fn lived(&mut self) -> bool {
        let scope = SCOPES.iter().position(|scope| scope.id == "both").unwrap();
        let begin = Ask::Begin { who: 0, scope, key: None, life: SCOPES[scope].max_task };
        let bearer = self.history.api.issue(WHO[0], AUDIENCE);
        if !self.ask(begin, Method::POST, "/v1/tasks".into(), bearer, "{\"scope\":\"both\"}") {
            return false;
        }
        let (id, token) = (self.history.ledger.tasks[0].id.clone(), self.history.ledger.tasks[0].token.clone());
        for _ in 0..2 {
            for provider in SCOPES[scope].at {
                self.history.ask_for(0, token.clone(), *provider);
                if !self.goes_on() {
                    return false;
                }
            }
            // More than half of their life.
            self.history.clock.advance(Duration::from_secs(400));
            self.history.truth.advance(Duration::from_secs(400));
            self.history.up += Duration::from_secs(400);
            if !self.goes_on() {
                return false;
            }
        }
        self.ask(Ask::End { task: 0 }, Method::DELETE, format!("/v1/tasks/{id}"), token, "")
    }
}

/// Lives once, cut before the event `at`; says whether it was cut, and what was wrong.
fn cut_at(at: usize, cut: Cut, stop: Stop) -> Result<bool, (&'static str, String)> {
    sidemint::id::testing::foresee(Some(at as u64));
    let mut history = History::new(1, Planted::No);
    (history.reaper, history.resets) = (true, false);
    history.start()?;
    let mut life = Life { history, left: at, cut, stopped: false };
    life.lived();
    let Life { mut history, stopped, .. } = life;
    history.say(format!("cut {cut:?}, {stop:?}"));
    history.start_again(Some(stop))?;
    history.check()?;
    // The holder tries again to end it: what is left is taken back.
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

#[test]
fn a_life_that_is_killed_at_any_step_loses_nothing() {
    let cuts = [Cut::Before, Cut::Untold].into_iter().chain((0..12).map(Cut::Torn));
    let mut lives = 0;
    for cut in cuts {
        for stop in [Stop::Process, Stop::Machine] {
            let mut at = 0;
            // A torn disk is a machine that stopped.
            if matches!(cut, Cut::Torn(_)) && stop == Stop::Process {
                continue;
            }
            loop {
                let stopped =
                    cut_at(at, cut, stop).unwrap_or_else(|failure| panic!("{cut:?} {stop:?} at {at}: {failure:?}"));
                (at, lives) = (at + 1, lives + 1);
                if !stopped {
                    break;
                }
            }
            assert!(at > 10, "a life has many steps: {at}");
        }
    }
    println!("{lives} lives were cut off");
}
