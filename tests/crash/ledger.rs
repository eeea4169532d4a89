//! The three ledgers joined: what the clouds gave out, what clients were told and received, what the sidecar's books say (its
//! journal as the kill left it, and its own account after each start). Each judge is a pure function that complains in
//! sentences; the tests below feed them histories with one thing wrong.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use sidemint::clock::Timestamp;

/// One credential, as the cloud knows it.
#[derive(Debug, Clone)]
pub(crate) struct Mint {
    /// Its public half: access key id, or lease id.
    pub(crate) key: String,
    /// The SPIFFE ID that it was minted for.
    pub(crate) subject: String,
    /// The task that its session is named after; `None` where the cloud is not told one.
    pub(crate) task: Option<String>,
    /// The leases that it must be among: those of its task, else those of its subject at that provider.
    pub(crate) group: String,
    pub(crate) minted_at: Timestamp,
    /// From when on the cloud refuses it, whatever it told: the end that its own rules work out, or the moment of revocation.
    pub(crate) ends_at: Timestamp,
    /// Whether the cloud revoked it.
    pub(crate) revoked: bool,
}

/// A task, as its client knows it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) owner: String,
    pub(crate) id: String,
    pub(crate) deadline: Timestamp,
    /// Whether its client ever asked for its end.
    pub(crate) end_asked: bool,
    pub(crate) ended: Option<Ended>,
}

/// An end that was acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    /// The order of events in this process.
    pub(crate) tick: u64,
    pub(crate) at: Timestamp,
    pub(crate) lines: Vec<Told>,
}

/// What the report of an end says of one lease.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) until: Timestamp,
}

/// A credential that a client received.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// Whose task it was asked for: a place in [`Clients::tasks`].
    pub(crate) task: usize,
    pub(crate) key: String,
    /// The expiry it came with.
    pub(crate) told: Timestamp,
    /// When it was asked for, by the clock and in the order of events.
    pub(crate) sent: Timestamp,
    pub(crate) sent_tick: u64,
}

/// The clients' ledger.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clients {
    pub(crate) tasks: Vec<Known>,
    pub(crate) received: Vec<Received>,
    /// What a client saw that no sidecar may show.
    pub(crate) seen: Vec<String>,
}

/// What the sidecar's books say of a task.
#[derive(Debug, Clone)]
pub(crate) struct TaskLine {
    pub(crate) owner: String,
    /// Why it has ended.
    pub(crate) ended: Option<String>,
    pub(crate) deadline: Timestamp,
    /// The digest of the key that it was begun with.
    pub(crate) idempotency: Option<[u8; 32]>,
}

/// What they say of a lease.
#[derive(Debug, Clone)]
pub(crate) struct LeaseLine {
    /// As [`Mint::group`].
    pub(crate) group: String,
    /// The provider's name for it, in whatever words the sidecar keeps it.
    pub(crate) upstream: String,
    /// Said to be revoked.
    pub(crate) revoked: bool,
    /// Neither revoked nor expired.
    pub(crate) open: bool,
    /// More than an intent.
    pub(crate) issued: bool,
    pub(crate) until: Timestamp,
}

/// The sidecar's books at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books {
    /// Which books: for the complaints.
    pub(crate) name: &'static str,
    pub(crate) tasks: BTreeMap<String, TaskLine>,
    pub(crate) leases: Vec<LeaseLine>,
}

/// Joins the sidecar's books with the other two ledgers, which must be at most as new as the books; `now` is no earlier than
/// any of them.
pub(crate) fn judge_books(mints: &[Mint], clients: &Clients, books: &Books, now: Timestamp) -> Vec<String> {
    let mut wrong = Vec::new();
    lost_leases(mints, clients, books, now, &mut wrong);
    called_revoked(mints, books, now, &mut wrong);
    lost_tasks(clients, books, now, &mut wrong);
    one_task_for_a_key(books, &mut wrong);
    wrong
}

/// Joins what clients received from `from` on with what was minted and what has ended.
pub(crate) fn judge_served(mints: &[Mint], clients: &Clients, from: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    let by_key: BTreeMap<&str, &Mint> = mints.iter().map(|mint| (mint.key.as_str(), mint)).collect();
    for received in clients.received.iter().skip(from) {
        let task = &clients.tasks[received.task];
        match by_key.get(received.key.as_str()) {
            None => wrong.push(format!("nobody minted what was received: {received:?}")),
            Some(mint) if mint.subject != task.owner || mint.task.as_ref().is_some_and(|of| *of != task.id) => {
                wrong.push(format!("served across identities or tasks: {received:?} of {mint:?} to {task:?}"));
            }
            Some(mint) if !mint.revoked && received.told > mint.ends_at => {
                wrong.push(format!("told a later end than the cloud keeps: {received:?} of {mint:?}"));
            }
            Some(_) => {}
        }
        let after = task.ended.as_ref().is_some_and(|ended| ended.tick < received.sent_tick);
        if after {
            wrong.push(format!("served late, after the acknowledged end: {received:?} of {task:?}"));
        }
        if received.sent >= received.told || received.sent >= task.deadline {
            wrong.push(format!(
                "served late, after its advertised expiry or its task's deadline: {received:?} of {task:?}"
            ));
        }
    }
    wrong
}

/// Each report of an end names whatever of the task could still be used then, with an end no earlier than the true one.
pub(crate) fn judge_reports(mints: &[Mint], clients: &Clients) -> Vec<String> {
    let mut wrong = Vec::new();
    let served: BTreeMap<&str, &str> =
        clients.received.iter().map(|got| (got.key.as_str(), clients.tasks[got.task].id.as_str())).collect();
    let mut of_task: BTreeMap<&str, Vec<&Mint>> = BTreeMap::new();
    for mint in mints {
        let task = mint.task.as_deref().or_else(|| served.get(mint.key.as_str()).copied());
        of_task.entry(task.unwrap_or_default()).or_default().push(mint);
    }
    for task in &clients.tasks {
        let (Some(ended), Some(mints)) = (&task.ended, of_task.get(task.id.as_str())) else { continue };
        let usable = mints.iter().filter(|mint| mint.minted_at <= ended.at && mint.ends_at > ended.at);
        // What is said to be revoked by the time of the report works no longer.
        let told = ended.lines.iter().map(|line| line.until);
        if let Some(missing) = unmatched(usable.map(|mint| mint.ends_at), told) {
            wrong.push(format!("works longer than the report of the end told, until {missing}: {task:?} of {mints:?}"));
        }
    }
    wrong
}

/// What the books call revoked the cloud has revoked, or it has ended there.
fn called_revoked(mints: &[Mint], books: &Books, now: Timestamp, wrong: &mut Vec<String>) {
    for line in books.leases.iter().filter(|line| line.revoked) {
        let mint = mints.iter().find(|mint| line.upstream.contains(&mint.key));
        if mint.is_none_or(|mint| !mint.revoked && mint.ends_at > now) {
            wrong.push(format!("called revoked, and was not: {} has {line:?} for {mint:?}", books.name));
        }
    }
}

/// Every credential that can still be used is an open lease of its task, with an end no earlier than its own; one that a
/// client has received is more than an intent.
fn lost_leases(mints: &[Mint], clients: &Clients, books: &Books, now: Timestamp, wrong: &mut Vec<String>) {
    let mut usable: BTreeMap<&str, Vec<&Mint>> = BTreeMap::new();
    for mint in mints.iter().filter(|mint| mint.ends_at > now) {
        usable.entry(&mint.group).or_default().push(mint);
    }
    let received: std::collections::BTreeSet<&str> = clients.received.iter().map(|r| r.key.as_str()).collect();
    for (group, usable) in usable {
        let lines: Vec<&LeaseLine> = books.leases.iter().filter(|line| line.group == group && line.open).collect();
        let missing = unmatched(usable.iter().map(|mint| mint.ends_at), lines.iter().map(|line| line.until));
        if let Some(missing) = missing {
            let name = books.name;
            wrong.push(format!(
                "a lease is lost: {name} has {lines:?} for {usable:?}, one of which works until {missing}"
            ));
            continue;
        }
        let served = usable.iter().filter(|mint| received.contains(mint.key.as_str())).map(|mint| mint.ends_at);
        if let Some(missing) = unmatched(served, lines.iter().filter(|line| line.issued).map(|line| line.until)) {
            wrong.push(format!("served before it was recorded: {} has {lines:?}, works until {missing}", books.name));
        }
    }
}

/// A task that was acknowledged is there until it was ended or its time is up; one whose end was acknowledged has ended.
fn lost_tasks(clients: &Clients, books: &Books, now: Timestamp, wrong: &mut Vec<String>) {
    for task in &clients.tasks {
        let line = books.tasks.get(&task.id);
        let may_be_over = task.end_asked || task.deadline <= now;
        match line {
            None if !may_be_over => wrong.push(format!("a task is lost: {} lacks {task:?}", books.name)),
            Some(line) if line.owner != task.owner || line.deadline != task.deadline => {
                wrong.push(format!("a task has changed: {} has {line:?} for {task:?}", books.name));
            }
            Some(line) if line.ended.is_none() && task.ended.is_some() => {
                wrong.push(format!("an acknowledged end is lost: {} has {line:?} for {task:?}", books.name));
            }
            Some(line) => match line.ended.as_deref() {
                None => {}
                Some("done") if task.end_asked => {}
                Some("deadline") if task.deadline <= now => {}
                Some(reason) => wrong.push(format!("a task was ended by nobody ({reason}): {line:?} for {task:?}")),
            },
            None => {}
        }
    }
}

fn one_task_for_a_key(books: &Books, wrong: &mut Vec<String>) {
    let mut seen = BTreeMap::new();
    for (id, line) in &books.tasks {
        let Some(key) = line.idempotency else { continue };
        match seen.entry((&line.owner, key)) {
            Entry::Vacant(free) => {
                free.insert(id);
            }
            Entry::Occupied(other) => wrong.push(format!("two tasks for one key: {id} and {}", other.get())),
        }
    }
}

/// The latest of `needed` that finds no partner of its own among `there` that is at least as late.
fn unmatched(needed: impl Iterator<Item = Timestamp>, there: impl Iterator<Item = Timestamp>) -> Option<Timestamp> {
    let (mut needed, mut there): (Vec<_>, Vec<_>) = (needed.collect(), there.collect());
    needed.sort_unstable_by(|a, b| b.cmp(a));
    there.sort_unstable_by(|a, b| b.cmp(a));
    let partner = |at: usize| there.get(at).copied();
    needed.iter().enumerate().find(|(at, end)| partner(*at).is_none_or(|there| there < **end)).map(|(_, end)| *end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: &str = "spiffe://crash.test/one";

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(1_000_000 + secs)
    }

    /// A task of which one credential was minted, recorded, received and told of at its end: nothing is wrong.
    fn good() -> (Vec<Mint>, Clients, Books) {
        let mint = Mint {
            key: "ASIA1".into(),
            subject: OWNER.into(),
            task: Some("t-1".into()),
            group: "t-1".into(),
            minted_at: at(1),
            ends_at: at(30),
            revoked: false,
        };
        let ended = Ended { tick: 7, at: at(5), lines: vec![Told { until: at(30) }] };
        let task =
            Known { owner: OWNER.into(), id: "t-1".into(), deadline: at(60), end_asked: true, ended: Some(ended) };
        let received = Received { task: 0, key: "ASIA1".into(), told: at(27), sent: at(2), sent_tick: 3 };
        let clients = Clients { tasks: vec![task], received: vec![received], seen: Vec::new() };
        let line = TaskLine { owner: OWNER.into(), ended: Some("done".into()), deadline: at(60), idempotency: None };
        let lease = LeaseLine {
            group: "t-1".into(),
            upstream: "session ASIA1".into(),
            revoked: false,
            open: true,
            issued: true,
            until: at(30),
        };
        let books = Books { name: "journal", tasks: BTreeMap::from([("t-1".into(), line)]), leases: vec![lease] };
        (vec![mint], clients, books)
    }

    fn complaints(history: &(Vec<Mint>, Clients, Books)) -> String {
        let (mints, clients, books) = history;
        let mut wrong = judge_books(mints, clients, books, at(6));
        wrong.extend(judge_served(mints, clients, 0));
        wrong.extend(judge_reports(mints, clients));
        wrong.join("\n")
    }

    /// The complaints about a good history in which `spoil` changed one thing.
    fn spoilt(spoil: impl FnOnce(&mut Vec<Mint>, &mut Clients, &mut Books)) -> String {
        let mut history = good();
        spoil(&mut history.0, &mut history.1, &mut history.2);
        complaints(&history)
    }

    #[test]
    fn finds_nothing_wrong_in_a_good_history() {
        assert_eq!(complaints(&good()), "");
    }

    #[test]
    fn detects_a_mint_without_an_intent_and_a_lease_forgotten_at_a_restart() {
        assert!(spoilt(|_, _, books| books.leases.clear()).contains("a lease is lost"));
        // A second mint, and one lease that cannot stand for both.
        let second = spoilt(|mints, _, _| mints.push(Mint { key: "ASIA2".into(), ..mints[0].clone() }));
        assert!(second.contains("a lease is lost"), "{second}");
    }

    #[test]
    fn detects_a_lease_whose_expiry_is_reported_too_early_or_as_past() {
        assert!(spoilt(|_, _, books| books.leases[0].until = at(29)).contains("a lease is lost"));
        assert!(spoilt(|_, _, books| books.leases[0].open = false).contains("a lease is lost"));
        let longer = spoilt(|_, clients, _| clients.tasks[0].ended.as_mut().unwrap().lines[0].until = at(29));
        assert!(longer.contains("works longer than the report"), "{longer}");
        let silent = spoilt(|_, clients, _| clients.tasks[0].ended.as_mut().unwrap().lines.clear());
        assert!(silent.contains("works longer than the report"), "{silent}");
    }

    #[test]
    fn detects_serving_before_the_record() {
        assert!(spoilt(|_, _, books| books.leases[0].issued = false).contains("served before it was recorded"));
    }

    #[test]
    fn detects_serving_after_the_end_the_advertised_expiry_or_the_deadline() {
        assert!(spoilt(|_, clients, _| clients.received[0].sent_tick = 8).contains("after the acknowledged end"));
        assert!(spoilt(|_, clients, _| clients.received[0].sent = at(27)).contains("after its advertised expiry"));
        let late = spoilt(|_, clients, books| {
            clients.tasks[0].deadline = at(2);
            books.tasks.get_mut("t-1").unwrap().deadline = at(2);
        });
        assert!(late.contains("its task's deadline"), "{late}");
        assert!(spoilt(|_, clients, _| clients.received[0].told = at(31)).contains("told a later end"));
    }

    #[test]
    fn detects_serving_to_another_workload() {
        assert!(spoilt(|mints, _, _| mints[0].subject.push('x')).contains("across identities"));
        assert!(spoilt(|mints, _, _| mints[0].task = Some("t-2".into())).contains("across identities"));
        assert!(spoilt(|mints, _, _| mints.clear()).contains("nobody minted"));
    }

    #[test]
    fn detects_lost_and_invented_tasks_and_ends() {
        let lost = spoilt(|_, clients, books| {
            (clients.tasks[0].end_asked, clients.tasks[0].ended) = (false, None);
            books.tasks.clear();
        });
        assert!(lost.contains("a task is lost"), "{lost}");
        let back = spoilt(|_, _, books| books.tasks.get_mut("t-1").unwrap().ended = None);
        assert!(back.contains("an acknowledged end is lost"), "{back}");
        let nobody =
            spoilt(|_, _, books| books.tasks.get_mut("t-1").unwrap().ended = Some("identity_withdrawn".into()));
        assert!(nobody.contains("ended by nobody"), "{nobody}");
        let twice = spoilt(|_, _, books| {
            books.tasks.get_mut("t-1").unwrap().idempotency = Some([1; 32]);
            books.tasks.insert("t-2".into(), books.tasks["t-1"].clone());
        });
        assert!(twice.contains("two tasks for one key"), "{twice}");
    }

    #[test]
    fn detects_a_false_claim_of_revocation() {
        let call = |books: &mut Books| (books.leases[0].revoked, books.leases[0].open) = (true, false);
        let lie = spoilt(|_, _, books| call(books));
        assert!(lie.contains("called revoked"), "{lie}");
        let honest = spoilt(|mints, clients, books| {
            (mints[0].revoked, mints[0].ends_at) = (true, at(4));
            clients.tasks[0].ended.as_mut().unwrap().lines[0].until = at(5);
            call(books);
        });
        assert_eq!(honest, "");
    }
}
