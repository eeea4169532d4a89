//! The three ledgers joined: what the cloud minted, what clients received, what the journal promised. One checker per
//! invariant of docs/threat-model.md#invariants; each says what it proves and fails with a sentence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use sidemint::clock::Timestamp;
use sidemint::exchange::{Provider, Revocation};
use sidemint::lease::{LeaseRecord, LeaseState};

use crate::cloud::Mint;
use crate::journal::Books;
use crate::policy::{MAX_STALENESS, Permits, SCOPES, Scope, WHO};

/// How far a clock that is trusted may be from the true time, and a second for rounding.
const SKEW: Duration = Duration::from_secs(31);

/// A task as the client that began it knows it.
#[derive(Debug, Clone)]
pub(crate) struct ClientTask {
    pub(crate) who: usize,
    pub(crate) scope: usize,
    pub(crate) id: String,
    pub(crate) token: String,
    /// Tokens that a replayed key has replaced, and in which step.
    pub(crate) dead_tokens: Vec<(String, usize)>,
    pub(crate) key: Option<usize>,
    pub(crate) expires_at: Timestamp,
    /// When it was acknowledged, by the time the machine has been up.
    pub(crate) begun_up: Duration,
    pub(crate) life: Duration,
    pub(crate) restarts: usize,
    /// How often an operator had reset the clock by then.
    pub(crate) resets: usize,
    pub(crate) ended: Option<Ended>,
}

/// An end that was acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) step: usize,
    pub(crate) truth: Timestamp,
    /// Whether it was durable by then. With a disk that fails nothing can be.
    pub(crate) durable: bool,
    pub(crate) report: Value,
    /// Leases in it whose provider had not answered: what it says later is told from then on.
    pub(crate) unanswered: BTreeSet<String>,
}

/// A credential that a client received.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) step: usize,
    pub(crate) task: usize,
    pub(crate) provider: Provider,
    pub(crate) token: String,
    pub(crate) key: String,
    pub(crate) secrets: [String; 2],
    pub(crate) expiration: Timestamp,
    pub(crate) wall: Timestamp,
    pub(crate) now: Timestamp,
    pub(crate) up: Duration,
    pub(crate) restarts: usize,
    pub(crate) resets: usize,
    /// For how long the sidecar has run.
    pub(crate) runs_for: Duration,
    /// The policy in force: its place in the order of publication, and whom it permits what.
    pub(crate) policy: Option<(usize, Permits)>,
    /// Whether the kill list in force stops the task.
    pub(crate) killed: bool,
    /// Whether its owner's identity is issued.
    pub(crate) issued: bool,
}

/// What is known of the sidecar between two steps.
pub(crate) struct Now<'a> {
    pub(crate) truth: Timestamp,
    pub(crate) up: Duration,
    pub(crate) mints: &'a [Mint],
    /// Calls to the cloud without an intent.
    pub(crate) bare_calls: usize,
    /// Of the calls to the cloud since the last look: when each was decided on.
    pub(crate) asked: Vec<Timestamp>,
    /// Calls to revoke or renew what is not there.
    pub(crate) odd: Vec<String>,
    /// When the policy's signatures expire, by the latest that was ever signed.
    pub(crate) expires: Timestamp,
    pub(crate) books: &'a Books,
    pub(crate) audited: &'a Audited,
    pub(crate) sidecar: Option<Inside>,
}

/// What the audit log tells: it outlives every sidecar.
#[derive(Debug, Default)]
pub(crate) struct Audited {
    /// Tasks that were permitted.
    permitted: BTreeSet<String>,
    /// Credentials that were minted, by the cloud's name for them.
    minted: BTreeSet<String>,
}

impl Audited {
    /// A line of the log.
    pub(crate) fn line(&mut self, line: &Value) {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        match (text("event").as_str(), text("outcome").as_str()) {
            ("decision", "permit") => drop(self.permitted.insert(text("task"))),
            ("mint", "minted") => drop(self.minted.insert(text("upstream"))),
            _ => {}
        }
    }
}

/// What a running sidecar has in memory.
pub(crate) struct Inside {
    /// By task: whether it has ended, and its leases.
    pub(crate) tasks: BTreeMap<String, (bool, Vec<LeaseRecord>)>,
    /// Whether its journal works and nothing waits for it.
    pub(crate) at_rest: bool,
    pub(crate) policy: Option<usize>,
    /// The epoch of the kill list in force.
    pub(crate) epoch: Option<u64>,
    /// How often a sidecar was started.
    pub(crate) start: usize,
    /// Tasks that policy, kill list or identity speak against: by index in the ledger. Only where the reaper runs.
    pub(crate) spoken_against: Vec<usize>,
}

/// The clients' ledger, and what the checkers remember.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) tasks: Vec<ClientTask>,
    pub(crate) received: Vec<Received>,
    /// Up to where `received` was checked.
    checked: usize,
    /// When each mint was first seen since so many renewals, by the time the machine has been up.
    mint_up: Vec<(usize, Duration)>,
    /// Tasks whose end is durable, and since which step.
    ended_durably: BTreeMap<String, usize>,
    policy: usize,
    /// The start of the sidecar, and the epoch of its kill list.
    epoch: (usize, Option<u64>),
}

/// A checker's name and its complaint.
pub(crate) type Verdict = Result<(), (&'static str, String)>;

/// Complains in the name of a checker.
macro_rules! hold {
    ($name:expr, $condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(($name, format!($($what)+)));
        }
    };
}

impl Ledger {
    /// Joins the ledgers after a step.
    pub(crate) fn check(&mut self, step: usize, now: &Now<'_>) -> Verdict {
        self.mint_up.resize(now.mints.len(), (0, now.up));
        for (seen, mint) in self.mint_up.iter_mut().zip(now.mints) {
            if seen.0 != mint.renewals {
                *seen = (mint.renewals, now.up);
            }
        }
        intent_before_exchange(now)?;
        nothing_minted_on_an_expired_policy(now)?;
        for at in self.checked..self.received.len() {
            let received = &self.received[at];
            let task = &self.tasks[received.task];
            let number = only_ones_own(received, task, now)?;
            self.nothing_after_the_end(received, task)?;
            no_clock_lengthens(received, task, &now.mints[number], self.mint_up[number].1)?;
            no_older_revision(received, task)?;
            hold!("I11 nothing that is killed", !received.killed, "{received:?} for {task:?}");
            hold!("G21 nothing for an identity that is gone", received.issued, "{received:?} for {task:?}");
            issued_before_served(received, &now.mints[number], now)?;
            let told = now.audited.minted.contains(&now.mints[number].upstream);
            hold!("I10 audited before it is seen", told, "{received:?} of {:?}", now.mints[number]);
        }
        self.checked = self.received.len();
        law_of_life(now)?;
        every_lease_accounted_for(now)?;
        self.acknowledged_is_durable(now)?;
        self.a_key_opens_one_task()?;
        self.reports_are_honest(now)?;
        self.revisions_never_go_back(now)?;
        self.epochs_never_go_back(now)?;
        ends_are_recorded(now)?;
        self.triggers_end_tasks(now)?;
        revoked_is_revoked(now)?;
        for (id, task) in &now.books.promised.tasks {
            if task.ending.is_some() {
                self.ended_durably.entry(id.as_str().to_owned()).or_insert(step);
            }
        }
        Ok(())
    }

    /// I1: no credential after an acknowledged or durable end, after the task's deadline, or after the end that it was
    /// told to have, on the wall clock or on the later of the clocks that the sidecar trusts.
    fn nothing_after_the_end(&self, received: &Received, task: &ClientTask) -> Verdict {
        const NAME: &str = "I1 nothing served after its end";
        let acknowledged = task.ended.as_ref().is_some_and(|ended| ended.durable && ended.step < received.step);
        let durable = self.ended_durably.get(&task.id).is_some_and(|step| *step < received.step);
        hold!(NAME, !acknowledged, "after its end was acknowledged: {received:?} {task:?}");
        hold!(NAME, !durable, "after its end was durable: {received:?} {task:?}");
        let replaced = task.dead_tokens.iter().any(|(token, step)| *token == received.token && *step < received.step);
        hold!(NAME, !replaced, "by a token that was replaced: {received:?} {task:?}");
        hold!(NAME, received.now < task.expires_at, "after the deadline: {received:?} {task:?}");
        hold!(NAME, received.wall < received.expiration, "after its end on the wall: {received:?}");
        hold!(NAME, received.now < received.expiration, "after its end on the later clock: {received:?}");
        Ok(())
    }

    /// I4 (what was acknowledged is never lost): a task whose begin was answered 201 is in the journal.
    fn acknowledged_is_durable(&self, now: &Now<'_>) -> Verdict {
        for task in &self.tasks {
            let there = now.books.promised.tasks.keys().any(|id| id.as_str() == task.id);
            let forgotten = self.ended_durably.contains_key(&task.id);
            hold!("I4 what was acknowledged is durable", there || forgotten, "lost: {task:?}");
            hold!(
                "I10 audited before it is seen",
                now.audited.permitted.contains(&task.id),
                "nothing told of {task:?}"
            );
        }
        Ok(())
    }

    /// I8, as far as it exists: what may be used once (an idempotency key) is used once, across crashes and races.
    fn a_key_opens_one_task(&self) -> Verdict {
        let mut seen = BTreeMap::new();
        for task in self.tasks.iter().filter(|task| task.key.is_some()) {
            let first = seen.insert((task.who, task.key), &task.id);
            let again = first.is_some_and(|first| *first != task.id && !self.ended_durably.contains_key(first));
            hold!("I8 one use is one use", !again, "a second task for a key: {task:?}");
        }
        Ok(())
    }

    /// G21: where a reaper runs, whatever policy, kill list or identities speak against has ended by now.
    fn triggers_end_tasks(&self, now: &Now<'_>) -> Verdict {
        let Some(inside) = &now.sidecar else { return Ok(()) };
        for task in inside.spoken_against.iter().map(|at| &self.tasks[*at]) {
            let runs = inside.tasks.get(&task.id).is_some_and(|(ended, _)| !ended);
            hold!("G21 what is spoken against ends", !runs, "{task:?}");
        }
        Ok(())
    }

    /// I16: nothing is called revoked that the cloud has not revoked, and the report of an end names each credential that
    /// could still be used, and its expiry.
    fn reports_are_honest(&self, now: &Now<'_>) -> Verdict {
        const NAME: &str = "I16 honest about what is left";
        for task in &self.tasks {
            let Some(ended) = &task.ended else { continue };
            let lines = ended.report["leases"].as_array().unwrap();
            let mints = now.mints.iter().filter(|mint| mint.session_name.ends_with(&task.id));
            for mint in mints {
                let Some(intent) = &mint.intent else { continue };
                let line = lines.iter().find(|line| line["id"] == intent.as_str());
                let told = line.is_some_and(|line| line["outcome"] == "revoked");
                hold!(NAME, !told || mint.revoked_at.is_some(), "{mint:?} is called revoked in {ended:?}");
                let worked = mint.revoked_at.is_none_or(|at| at > ended.truth) && mint.gone_at() > ended.truth + SKEW;
                if told || !worked || !ended.durable {
                    continue;
                }
                let until: Option<Timestamp> = line.map(|line| line["usable_until"].as_str().unwrap().parse().unwrap());
                hold!(NAME, until.is_some_and(|until| until + SKEW >= mint.gone_at()), "{mint:?} is not in {ended:?}");
            }
        }
        Ok(())
    }

    /// I6: the policy in force is never older than one that was in force before, also across restarts. (The mark of the
    /// latest signed time is held at each start, in `history`.)
    fn revisions_never_go_back(&mut self, now: &Now<'_>) -> Verdict {
        let Some(policy) = now.sidecar.as_ref().and_then(|inside| inside.policy) else { return Ok(()) };
        hold!("I6 nothing goes back", policy >= self.policy, "policy {policy} after {}", self.policy);
        self.policy = policy;
        Ok(())
    }

    /// I6, of the kill list while one sidecar runs. (What a start may take for the newest is the real source's to say,
    /// which remembers on disk; it is a model here.)
    fn epochs_never_go_back(&mut self, now: &Now<'_>) -> Verdict {
        let Some(inside) = &now.sidecar else { return Ok(()) };
        let (start, before) = std::mem::replace(&mut self.epoch, (inside.start, inside.epoch));
        let back = start == inside.start && inside.epoch < before;
        hold!("I6 nothing goes back", !back, "kill list {:?} after {before:?}", inside.epoch);
        Ok(())
    }

    /// G21: a sidecar that stops in order has ended every task that it was to end.
    pub(crate) fn all_have_ended(&self, now: &Now<'_>) -> Verdict {
        let runs = |task: &&ClientTask| {
            let written = now.books.promised.tasks.values().find(|written| written.id.as_str() == task.id);
            written.is_some_and(|written| written.ending.is_none())
        };
        let one = self.tasks.iter().find(runs);
        hold!("G21 a shutdown ends every task", one.is_none(), "{one:?}");
        Ok(())
    }

    /// I12: with disk and provider well, what an ended task left and can be revoked, is. Asked at the end, when both
    /// were well for longer than any pause between two tries.
    pub(crate) fn revocable_is_revoked(&self, now: &Now<'_>) -> Verdict {
        for lease in now.books.promised.leases.values() {
            let ended = now.books.promised.tasks.get(&lease.task).is_none_or(|task| task.ending.is_some());
            if !ended || lease.state.is_over() || lease.revocation != Revocation::Exact || lease.requested {
                continue;
            }
            let mint = now.mints.iter().find(|mint| mint.intent.as_ref() == Some(&lease.id));
            let works = mint.is_some_and(|mint| mint.works_after(now.truth + SKEW));
            hold!("I12 what can be revoked is", !works, "{mint:?} still works: {lease:?}");
        }
        Ok(())
    }
}

/// I5: nothing is asked for on the word of a policy that has expired when it was decided on.
fn nothing_minted_on_an_expired_policy(now: &Now<'_>) -> Verdict {
    let end = now.expires + MAX_STALENESS;
    for decided_at in &now.asked {
        hold!("I5 nothing minted on an expired policy", *decided_at < end, "at {decided_at}, expired {end}");
    }
    Ok(())
}

/// I16 in the journal, and T17: what it calls revoked is, and nobody revokes what is another one's.
fn revoked_is_revoked(now: &Now<'_>) -> Verdict {
    const NAME: &str = "I16 honest about what is left";
    for lease in now.books.promised.leases.values().filter(|lease| lease.state == LeaseState::Revoked) {
        let mint = now.mints.iter().find(|mint| mint.intent.as_ref() == Some(&lease.id));
        hold!(NAME, mint.is_some_and(|mint| mint.revoked_at.is_some()), "{mint:?} is called revoked: {lease:?}");
    }
    hold!("I2 only one's own", now.odd.is_empty(), "to be revoked, and nobody's: {:?}", now.odd);
    Ok(())
}

/// I3: an intent of its own is durable before each call to the cloud.
fn intent_before_exchange(now: &Now<'_>) -> Verdict {
    hold!("I3 intent before the exchange", now.bare_calls == 0, "{} calls without one", now.bare_calls);
    Ok(())
}

/// I3, the other half: the record that it was issued is durable before a byte of it is received.
fn issued_before_served(received: &Received, mint: &Mint, now: &Now<'_>) -> Verdict {
    let durable = now.books.issued.contains(&mint.upstream);
    hold!("I3 issued before served", durable, "{received:?} of {mint:?}");
    Ok(())
}

/// I2: what a client receives was minted for its identity, for this task, for the grant of its scope, and is whole.
fn only_ones_own(received: &Received, task: &ClientTask, now: &Now<'_>) -> Result<usize, (&'static str, String)> {
    const NAME: &str = "I2 only one's own";
    let Some(number) = now.mints.iter().position(|mint| mint.key == received.key) else {
        return Err((NAME, format!("nobody minted {received:?}")));
    };
    let mint = &now.mints[number];
    let own = mint.caller == WHO[task.who]
        && mint.session_name.ends_with(&task.id)
        && mint.provider == received.provider
        && mint.grant == SCOPES[task.scope].grant(received.provider)
        && mint.secrets == received.secrets;
    hold!(NAME, own, "{received:?} of {mint:?} for {task:?}");
    hold!(NAME, !mint.lost, "served, and nobody was told of it: {mint:?}");
    Ok(number)
}

/// I11: nothing is served that the policy in force does not permit, whatever permitted it when it was asked for.
fn no_older_revision(received: &Received, task: &ClientTask) -> Verdict {
    let permitted = received.policy.as_ref().is_some_and(|(_, permits)| permits.contains(&(task.who, task.scope)));
    hold!("I11 no older revision", permitted, "{received:?} for {task:?}");
    Ok(())
}

/// I13: by the time that the machine has been up, which nobody can set, neither a credential nor a task lives longer
/// than it was to live when it began. A start pairs the clocks anew, and may be wrong by as much as is tolerated; after an
/// operator's reset it begins anew.
fn no_clock_lengthens(received: &Received, task: &ClientTask, mint: &Mint, mint_up: Duration) -> Verdict {
    const NAME: &str = "I13 no clock lengthens a life";
    let life = mint.ends_at.since(mint.minted_at) + mint.behind;
    let lived = received.up.saturating_sub(mint_up);
    // In the instant of its end it may have been served before: a cloud can end one sooner than it said, and is asked meanwhile.
    hold!(NAME, lived <= life, "a credential, after {lived:?} of {life:?}: {received:?} {mint:?}");
    let slack = if received.restarts == task.restarts { Duration::ZERO } else { SKEW };
    let mut lived = received.up.saturating_sub(task.begun_up);
    if received.restarts != task.restarts && received.resets != task.resets {
        // Once an operator has said what the time is, the next start has no other word on when the task began
        // (docs/operations.md): its whole life again at most, and I1 holds it to its end by the wall clock.
        lived = lived.min(received.runs_for);
    }
    hold!(NAME, lived < task.life + slack, "a task, after {lived:?}: {received:?} {task:?}");
    Ok(())
}

/// I7 and the law of life: what is minted, and what may be made with it, is dead at the cloud within its decision's
/// `max_residual`.
fn law_of_life(now: &Now<'_>) -> Verdict {
    for mint in now.mints {
        let most = Duration::from_secs(Scope::of(mint.provider, &mint.grant).max_residual);
        let lives = mint.gone_at().since(mint.minted_at);
        hold!("I7 the law of life", lives <= most + mint.late + SKEW, "{lives:?}: {mint:?}");
    }
    Ok(())
}

/// I4: minted = revoked ∪ expired ∪ outstanding. What can still be used at the cloud is an open lease in the journal, and
/// in the memory of a sidecar that runs.
fn every_lease_accounted_for(now: &Now<'_>) -> Verdict {
    const NAME: &str = "I4 every lease accounted for";
    for mint in now.mints.iter().filter(|mint| mint.works_after(now.truth + SKEW)) {
        let Some(intent) = &mint.intent else { continue };
        let open = |lease: &LeaseRecord| !lease.state.is_over() && lease.usable_until + SKEW >= mint.gone_at();
        let written = now.books.promised.leases.get(intent);
        hold!(NAME, written.is_some_and(open), "the journal has {written:?} for {mint:?}");
        if let Some(inside) = &now.sidecar {
            let held = inside.tasks.values().flat_map(|(_, leases)| leases).find(|lease| lease.id == *intent);
            hold!(NAME, held.is_some_and(open), "the sidecar has {held:?} for {mint:?}");
        }
    }
    Ok(())
}

/// I12, as far as it exists: with a healthy disk an end is durable as soon as nothing waits for it.
fn ends_are_recorded(now: &Now<'_>) -> Verdict {
    let Some(inside) = now.sidecar.as_ref().filter(|inside| inside.at_rest) else { return Ok(()) };
    let ended: BTreeSet<&str> =
        now.books.promised.tasks.values().filter(|task| task.ending.is_some()).map(|task| task.id.as_str()).collect();
    for (id, _) in inside.tasks.iter().filter(|(_, (ended, _))| *ended) {
        hold!("I12 ends are recorded at once", ended.contains(id.as_str()), "{id} has ended in memory alone");
    }
    Ok(())
}
