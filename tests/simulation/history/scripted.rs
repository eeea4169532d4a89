//! Lives that are told step by step: those that chance finds too seldom, and those that a campaign once judged wrongly.

use super::*;

impl History {
    /// A task of `who` in a scope, begun at once.
    fn begins(&mut self, who: usize, scope: &str) -> usize {
        let scope = SCOPES.iter().position(|known| known.id == scope).unwrap();
        let (bearer, body) = (self.api.issue(WHO[who], AUDIENCE), json!({ "scope": SCOPES[scope].id }).to_string());
        let ask = Ask::Begin { who, scope, key: None, life: SCOPES[scope].max_task };
        self.send(ask, Call { method: Method::POST, path: "/v1/tasks".into(), bearer, key: None, body });
        self.all_is_well();
        self.ledger.tasks.len() - 1
    }

    /// Asks for its credential, and waits until the provider is asked.
    fn asks(&mut self, task: usize) {
        let known = &self.ledger.tasks[task];
        let (token, provider) = (known.token.clone(), SCOPES[known.scope].at[0]);
        self.ask_for(task, token, provider);
    }

    fn is_served(&mut self, task: usize) -> Verdict {
        self.say("serve");
        self.asks(task);
        self.all_is_well();
        self.check()
    }

    fn ends(&mut self, task: usize) -> Verdict {
        self.say("end");
        let known = &self.ledger.tasks[task];
        let (path, bearer) = (format!("/v1/tasks/{}", known.id), known.token.clone());
        self.send(Ask::End { task }, Call { method: Method::DELETE, path, bearer, key: None, body: String::new() });
        self.settle();
        self.check()
    }
}

/// Runs `life` on a sidecar that has started.
fn with<T>(
    seed: u64,
    planted: Planted,
    life: impl FnOnce(&mut History) -> Result<T, (&'static str, String)>,
) -> Result<T, (&'static str, String)> {
    sidemint::id::testing::foresee(Some(seed << 32));
    let mut history = History::new(1, planted);
    (history.reaper, history.may_reset) = (true, false);
    let outcome = history.start().and_then(|()| life(&mut history));
    history.drop_sidecar();
    sidemint::id::testing::foresee(None);
    outcome
}

/// The clock is set back by an hour while a credential lives, and it is asked for again when it should be dead.
pub(crate) fn set_back_while_it_lives(planted: Planted) -> Verdict {
    with(0, planted, |history| {
        let task = history.begins(0, "archive");
        history.is_served(task)?;
        history.clock.set_wall(history.truth.now() - Duration::from_secs(3600));
        history.go_on(Duration::from_secs(1300));
        history.is_served(task)
    })
}

#[test]
fn does_not_reuse_an_intent_of_an_earlier_process() {
    // Whichever of the two has the smaller id.
    for seed in 0..8 {
        let told = with(seed, Planted::No, |history| {
            let task = history.begins(0, "archive");
            history.asks(task);
            history.idle();
            let sidecar = history.sidecar();
            sidecar.runtime.block_on(sidecar.journal.release(Release::Untold));
            history.start_again(Some(Stop::Process))?;
            history.go_on(Duration::from_secs(160));
            history.is_served(task)
        });
        told.unwrap_or_else(|failure| panic!("{seed}: {failure:?}"));
    }
}

#[test]
fn applies_an_older_kill_list_where_no_newer_one_was_seen() {
    let told = with(0, Planted::No, |history| {
        let kill = Kill { target: Target::Scope(1), until: None };
        history.source.publish(&history.content, Some(vec![kill]));
        history.source.mood(Mood::OldKill);
        history.look();
        let task = history.begins(0, "archive");
        history.is_served(task)?;
        assert_eq!(history.ledger.received.len(), 1);
        history.check()
    });
    told.unwrap();
}

/// A task that ends while its provider is asked, a provider that answers after that, and the end told once more.
fn answered_after_the_end(answer: Answer, disk: Option<Fault>) -> Value {
    let told = with(0, Planted::No, |history| {
        let task = history.begins(0, "archive");
        history.asks(task);
        history.settle();
        history.ends(task)?;
        if let Some(fault) = disk {
            history.disk.fail(fault);
        }
        history.cloud.answer(0, answer, Undo::Done);
        history.settle();
        history.ends(task)?;
        Ok(history.ledger.tasks[task].ended.clone().unwrap().report)
    });
    told.unwrap()
}

#[test]
fn a_report_shows_the_answer_of_the_provider_after_the_end() {
    let sooner = Duration::from_secs(30);
    let reports = [Answer::Give, Answer::Sooner(sooner)].map(|answer| answered_after_the_end(answer, None));
    let ends =
        reports.map(|report| report["leases"][0]["usable_until"].as_str().unwrap().parse::<Timestamp>().unwrap());
    assert_eq!(ends[0], ends[1] + sooner);
}

#[test]
fn a_durable_end_stays_durable_when_the_providers_answer_cannot_be_written() {
    for fault in [Fault::Full, Fault::Write, Fault::Sync] {
        let report = answered_after_the_end(Answer::Give, Some(fault));
        assert_eq!(report.get("durable"), None, "{fault:?}: {report}");
    }
}
