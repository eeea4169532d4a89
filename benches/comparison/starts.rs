//! Starts on a full journal: ten thousand tasks that a killed sidecar left, running or overdue.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sidemint::clock::{Clock as _, SystemClock, Timestamp};
use sidemint::exchange::{Handle, Provider, Revocation};
use sidemint::id::{LeaseId, TaskId};
use sidemint::identity::{Proof, task_token};
use sidemint::journal::{Change, DiskJournal, record};
use sidemint::lease::{LeaseFacts, LeaseRecord, LeaseState};
use sidemint::policy::{Ask, PolicyVersion, Tier};
use sidemint::task::{Task, TaskRecord};

use crate::load::{Client, Load, request};
use crate::report::Outcome;
use crate::serving::on_cpu;
use crate::stage::{Sidecar, Stage, WORKLOAD, cores, on_core, scope_id};
use crate::{median, over_rounds};

type Fallible<T> = Result<T, Box<dyn Error>>;

const LEASES: usize = 10_000;
const ROUNDS: usize = 5;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often ten thousand overdue are ended beside serving, at how many requests per second, and how long one side is asked.
const DRAINS: usize = 7;
const RATE: f64 = 2_000.0;
const SLICE: Duration = Duration::from_millis(100);
/// The overdue end within this time of serving.
const LONGEST: Duration = Duration::from_secs(300);

/// A state directory with [`LEASES`] tasks, each with an issued lease, that all end at `end`.
fn full_journal(end: Timestamp) -> Fallible<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    // It makes the directory as a sidecar would, for its owner alone.
    let (journal, _) = DiskJournal::open(&folder.path().join("state"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let changes = (0..LEASES).map(|_| task_and_lease(end)).collect::<Fallible<Vec<_>>>()?;
    for changes in changes.chunks(1000) {
        runtime.block_on(record(&journal, changes.iter().flatten().cloned().collect()))?;
    }
    Ok(folder)
}

fn task_and_lease(end: Timestamp) -> Fallible<[Change; 2]> {
    let (_, token) = task_token::generate()?;
    let begun_at = end - DAY / 4;
    let task = TaskRecord {
        id: TaskId::generate()?,
        owner: WORKLOAD.parse()?,
        proof: Proof::JwtSvid,
        proved_until: begun_at + Duration::from_secs(300),
        ask: Ask {
            scope: scope_id(0).parse()?,
            params: [("customer".parse()?, "c-42".to_owned())].into(),
            reason: None,
            approval: None,
            ttl: None,
        },
        label: None,
        parent: None,
        hold: false,
        token,
        idempotency: None,
        tier: Tier::Baseline,
        policy_version: PolicyVersion("before".into()),
        begun_at,
        deadline: end,
        ending: None,
    };
    let session_name = Task::new(task.clone(), Vec::new(), None, begun_at, Duration::ZERO).session_name().clone();
    let lease = LeaseFacts {
        id: LeaseId::generate()?,
        task: task.id.clone(),
        provider: Provider::Aws,
        grant: format!("{}-aws", scope_id(0)).parse()?,
        state: LeaseState::Issued,
        revocation: Revocation::Expire,
        opened_at: begun_at,
        usable_until: end,
        open_ended: false,
        upstream: Some(Handle::read(
            Provider::Aws,
            &format!("arn:aws:sts::111122223333:assumed-role/ledger/{session_name}"),
        )),
        place: None,
        requested: false,
        session_name,
    };
    Ok([Change::Task(Box::new(task)), Change::Lease(Box::new(LeaseRecord::of(lease)))])
}

/// Puts the journal of `from` into the state directory of a sidecar that is about to start.
fn place(from: &Path, state: &Path) -> Fallible<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(state)?;
    for file in std::fs::read_dir(from.join("state"))? {
        let file = file?;
        std::fs::copy(file.path(), state.join(file.file_name()))?;
    }
    Ok(())
}

/// From the start of the process until it is ready, with all the leases open in its journal.
pub(crate) fn restart() -> Outcome {
    let stage = Stage::new(100)?;
    let journal = full_journal(SystemClock.now() + DAY / 4)?;
    let (mut full, mut empty, mut worked) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let sidecar = Sidecar::start_on(&stage, None, |state| place(journal.path(), state))?;
        full.push(sidecar.ready_after.as_secs_f64());
        worked.push(on_cpu(sidecar.pid()));
        let open = sidecar.counted("sidemint_leases_active{provider=\"aws\",revocation=\"expire\"} ")?;
        if open != LEASES as f64 {
            return Err(format!("{open} of {LEASES} leases are open").into());
        }
        empty.push(Sidecar::start(&stage, None)?.ready_after.as_secs_f64());
    }
    let note = format!("{LEASES} open leases; {:.3} s on a core; {:.3} s with none", median(worked), median(empty));
    over_rounds(full, note)
}

/// A sidecar that was started on overdue tasks, and a task of its own that it serves.
struct Draining {
    sidecar: Sidecar,
    request: Vec<u8>,
    /// How long after it was ready the first credential was served.
    served_after: Duration,
    load: Option<Load>,
}

impl Draining {
    fn start(stage: &Stage, journal: &Path, svid: &str) -> Fallible<Self> {
        const PATH: &str = "/v1/aws/credentials";
        let (server, _) = cores();
        let sidecar = Sidecar::start_on(stage, server, |state| place(journal, state))?;
        let ready = Instant::now();
        let mut client = Client::connect(sidecar.http)?;
        let token = sidecar.begin(&mut client, svid)?;
        let headers = [("authorization", token.as_str())];
        client.send("GET", PATH, &headers, "")?;
        let served_after = ready.elapsed();
        let request = request("GET", sidecar.http, PATH, &headers, "");
        Ok(Self { sidecar, request, served_after, load: None })
    }

    /// Whether all the overdue have ended, durably.
    fn is_over(&self) -> Fallible<bool> {
        let ended = self.sidecar.counted("sidemint_tasks_ended_total{reason=\"deadline\"} ")?;
        Ok(ended >= LEASES as f64 && self.sidecar.counted("sidemint_journal_pending ")? == 0.0)
    }

    /// Asks for the credential at the rate, for a slice; how long each answer took, in microseconds.
    fn slice(&mut self) -> Fallible<Vec<f64>> {
        let (_, clients) = cores();
        let load = match &mut self.load {
            Some(load) => load,
            none => none.insert(Load::open(self.sidecar.http, 16, &self.request)?),
        };
        Ok(on_core(clients, || load.fixed_rate(RATE, SLICE))?)
    }

    fn signal(&self, signal: Signal) -> Fallible<()> {
        let process = Pid::from_raw(self.sidecar.pid().cast_signed()).ok_or("no process")?;
        Ok(kill_process(process, signal)?)
    }
}

/// Serving at a fixed rate while a start brings overdue tasks to their ends, beside the same of a sidecar that has ended
/// them all: in slices in turns, so that what else the machine does meets both; the other one is stopped meanwhile.
pub(crate) fn drain_serving() -> Outcome {
    let stage = Stage::new(100)?;
    let journal = full_journal(SystemClock.now() - Duration::from_secs(60))?;
    let svid = stage.svid()?;
    let mut quiet = Draining::start(&stage, journal.path(), &svid)?;
    while !quiet.is_over()? {
        std::thread::sleep(SLICE);
    }
    let (mut rounds, mut lasted, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..DRAINS {
        quiet.signal(Signal::STOP)?;
        let mut busy = Draining::start(&stage, journal.path(), &svid)?;
        late.push(busy.served_after.as_secs_f64());
        let (mut disturbed, mut undisturbed, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
        while took.is_zero() || !busy.is_over()? {
            disturbed.extend(busy.slice()?);
            busy.signal(Signal::STOP)?;
            quiet.signal(Signal::CONT)?;
            // The same questions in between.
            quiet.is_over()?;
            undisturbed.extend(quiet.slice()?);
            quiet.signal(Signal::STOP)?;
            busy.signal(Signal::CONT)?;
            took += SLICE;
            if took > LONGEST {
                return Err(format!("the overdue did not end within {LONGEST:?}").into());
            }
        }
        quiet.signal(Signal::CONT)?;
        lasted.push(took.as_secs_f64());
        rounds.push((p99(disturbed), p99(undisturbed)));
    }
    let (busy, quiet) = rounds.iter().copied().unzip();
    let note = format!(
        "p99 {:.0} µs beside {:.0} µs at {RATE}/s; served {:.2} s after it was ready, all {LEASES} ended after {:.1} s of it",
        median(busy),
        median(quiet),
        median(late),
        median(lasted),
    );
    over_rounds(rounds.iter().map(|(busy, quiet)| busy / quiet).collect(), note)
}

fn p99(mut latencies: Vec<f64>) -> f64 {
    latencies.sort_by(f64::total_cmp);
    latencies.get((latencies.len() as f64 * 0.99) as usize).copied().unwrap_or(f64::NAN)
}
