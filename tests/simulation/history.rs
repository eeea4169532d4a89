//! One history: a sidecar, the models around it, and what the seed lets happen.

mod every_step;
mod faults;
pub(crate) mod scripted;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sidemint::audit::testing::{Lines, Outcome};
use sidemint::broker::{Broker, Limits, Parts, reaper};
use sidemint::clock::{Clock, ManualClock, Timestamp, TrustedClock};
use sidemint::exchange::Provider;
use sidemint::identity::Authenticator;
use sidemint::identity::jwt_svid::JwtBundle;
use sidemint::identity::workload_api::WorkloadApi as _;
use sidemint::identity::workload_api::testing::FakeWorkloadApi;
use sidemint::journal::{DiskJournal, Journal as _};
use sidemint::lease::LeaseState;
use sidemint::policy::LoadOptions;
use sidemint::policy::cache::PolicyCache;
use sidemint::retry::Jitter;
use sidemint::server::{Peer, Server};
use sidemint::task::EndReason;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::Failure;
use crate::cloud::{Answer, SimCloud, Undo};
use crate::disk::{Disk, Fault, Stop};
use crate::journal::{Books, Release, SimJournal};
use crate::ledger::{Audited, ClientTask, Ended, Inside, Ledger, Now, Received};
use crate::planted::{Planted, WallOnly};
use crate::policy::{Content, DOMAINS, FOREIGN, Kill, Mood, PARTNER, Permits, SCOPES, Shape, Source, Target, WHO};
use crate::random::Random;

const START: Timestamp = Timestamp::from_millis(1_795_435_200_250);
const AUDIENCE: &str = "sidemint";
/// Steps of one history, at least and at most.
const STEPS: (u64, u64) = (20, 120);
/// How far a trusted clock may be off; less than `clock::guard::TOLERANCE`.
const OFF: i64 = 29_000;
const KEYS: usize = 4;
/// When one is due: so long before its end where it lives at least so long, else at half its life.
const DUE: (Duration, Duration) = (Duration::from_secs(630), Duration::from_secs(720));

/// What a history was like.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) steps: Vec<String>,
    /// A digest of all that was seen after each step.
    pub(crate) trace: Vec<u64>,
    counts: BTreeMap<&'static str, u64>,
}

impl Told {
    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    fn count(&mut self, what: &'static str, by: usize) {
        *self.counts.entry(what).or_default() += by as u64;
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<_> = self.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        f.write_str(&counts.join(", "))
    }
}

/// An empty journal, as the product lays it out.
pub(crate) static EMPTY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    drop(DiskJournal::open(directory.path()).unwrap());
    // Closed once the writer's thread has let go of it.
    loop {
        let file = fs::File::open(directory.path().join("journal.redb")).unwrap();
        if file.try_lock().is_ok() {
            return fs::read(directory.path().join("journal.redb")).unwrap();
        }
        std::thread::yield_now();
    }
});

/// What a client asks for.
#[derive(Debug, Clone)]
enum Ask {
    Begin { who: usize, scope: usize, key: Option<usize>, life: u64 },
    Serve { task: usize, token: String, provider: Provider },
    End { task: usize },
    Foreign { task: usize },
    Show,
}

/// What a client heard.
struct Heard {
    ask: Ask,
    status: u16,
    body: Vec<u8>,
}

struct Call {
    method: Method,
    path: String,
    bearer: String,
    key: Option<String>,
    body: String,
}

/// How the audit log takes its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AuditMood {
    Well,
    /// Now and then, when time passes.
    Slow,
    /// There is no room for them.
    Failing,
}

/// What a restart replaces.
struct Sidecar {
    runtime: Runtime,
    broker: Arc<Broker>,
    server: Arc<Server>,
    journal: Arc<SimJournal>,
    audit: Mutex<Lines>,
    policy: Arc<PolicyCache>,
    trusted: Option<Arc<TrustedClock>>,
    reaper: Option<JoinHandle<()>>,
    holds: Vec<(usize, JoinHandle<()>)>,
}

struct History {
    random: Random,
    planted: Planted,
    told: Told,
    clock: ManualClock,
    truth: ManualClock,
    up: Duration,
    /// When the sidecar was started, by the time the machine has been up.
    started: Duration,
    restarts: usize,
    /// Whether operators reset clocks in this history, and how often they have.
    may_reset: bool,
    resets: usize,
    reaper: bool,
    audit: AuditMood,
    audited: Audited,
    api: Arc<FakeWorkloadApi>,
    cloud: Arc<SimCloud>,
    source: Arc<Source>,
    content: Content,
    issued: BTreeSet<usize>,
    /// The keys of the other trust domain.
    partner: Arc<JwtBundle>,
    /// When the sidecar last looked at the policy source, by the time the machine has been up.
    looked: Duration,
    disk: Arc<Disk>,
    books: Arc<Mutex<Books>>,
    directory: TempDir,
    high_water: Timestamp,
    ledger: Ledger,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// Answers that a planted bug serves again.
    cached: BTreeMap<(String, Provider), Vec<u8>>,
    /// Up to which call to the cloud the ledgers were joined.
    asked: usize,
    /// What was heard since the last step, for the trace.
    noted: Vec<String>,
    sidecar: Option<Sidecar>,
}

/// Runs the history of `seed`.
pub(crate) fn run(seed: u64, planted: Planted) -> Result<Told, Failure> {
    // Ids are ordered by, so they too must follow from the seed.
    sidemint::id::testing::foresee(Some(seed << 32));
    let mut history = History::new(seed, planted);
    let steps = history.random.between(STEPS.0, STEPS.1);
    // What surprises the product or the models fails this history, with its seed, and no other.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        history.start()?;
        (0..steps).try_for_each(|_| history.step())?;
        history.finish()
    }));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(("nothing panics", text.unwrap_or("without a word").to_owned()))
    });
    history.drop_sidecar();
    sidemint::id::testing::foresee(None);
    let (mints, received) = (history.cloud.mints().len(), history.ledger.received.len());
    for (what, by) in [
        ("steps", history.told.steps.len()),
        ("tasks", history.ledger.tasks.len()),
        ("mints", mints),
        ("credentials received", received),
        ("calls to the cloud", history.cloud.asked() + history.cloud.revocations() + history.cloud.renewals()),
        ("calls to revoke one", history.cloud.revocations()),
        ("calls to renew one", history.cloud.renewals()),
        ("revoked", history.cloud.mints().iter().filter(|mint| mint.revoked_at.is_some()).count()),
        ("restarts", history.restarts),
    ] {
        history.told.count(what, by);
    }
    let told = history.told;
    match outcome {
        Ok(()) => Ok(told),
        Err((checker, detail)) => Err(Failure { seed, checker, detail, steps: told.steps }),
    }
}

/// The same number each time: half of the longest wait.
#[derive(Debug)]
struct NoJitter;

impl Jitter for NoJitter {
    fn fraction(&self) -> f64 {
        0.5
    }
}

type Verdict = Result<(), (&'static str, String)>;

impl History {
    fn new(seed: u64, planted: Planted) -> Self {
        let mut random = Random::new(seed);
        let (clock, truth) = (ManualClock::at(START), ManualClock::at(START));
        let books = Arc::new(Mutex::new(Books::default()));
        let cloud = SimCloud::new(truth.clone(), clock.clone(), Arc::clone(&books), planted);
        let permits: Permits =
            (0..WHO.len()).flat_map(|who| (0..SCOPES.len()).map(move |scope| (who, scope))).collect();
        let content = Content { permits, shapes: [Shape::Whole; SCOPES.len()] };
        let api = FakeWorkloadApi::new(Arc::new(truth.clone()), &WHO);
        let partner = Arc::clone(&api.identities().jwt_bundles[&DOMAINS[1].parse().unwrap()]);
        let mut history = Self {
            planted,
            told: Told::default(),
            up: Duration::ZERO,
            started: Duration::ZERO,
            restarts: 0,
            may_reset: random.chance(25),
            resets: 0,
            reaper: random.chance(75),
            audit: AuditMood::Well,
            audited: Audited::default(),
            api,
            cloud,
            source: Source::new(&content, truth.clone(), planted),
            content,
            issued: [0, 1, PARTNER].into(),
            partner,
            looked: Duration::ZERO,
            disk: Disk::holding(EMPTY.clone()),
            books,
            directory: tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(),
            high_water: Timestamp::default(),
            ledger: Ledger::default(),
            heard: Arc::default(),
            cached: BTreeMap::new(),
            asked: 0,
            noted: Vec::new(),
            sidecar: None,
            random,
            clock,
            truth,
        };
        history.issue();
        history
    }

    /// Tells the Workload API whose SVIDs the sidecar gets.
    fn issue(&mut self) {
        let ids: Vec<_> = self.issued.iter().map(|who| WHO[*who]).collect();
        self.api.set_identities(&ids);
        let expires_at = self.truth.now() + Duration::from_secs(90 * 24 * 3600);
        self.api.update(|identities| {
            identities.svids.iter_mut().for_each(|svid| svid.expires_at = expires_at);
            // A trust domain comes and goes with its workloads.
            let domain = DOMAINS[1].parse().unwrap();
            match self.issued.contains(&PARTNER) {
                true => drop(identities.jwt_bundles.insert(domain, Arc::clone(&self.partner))),
                false => drop(identities.jwt_bundles.remove(&domain)),
            }
        });
    }

    fn say(&mut self, what: impl Into<String>) {
        self.told.steps.push(what.into());
    }

    fn number(&self) -> usize {
        self.told.steps.len()
    }

    fn clock_file(&self) -> PathBuf {
        self.directory.path().join("clock.json")
    }

    fn start(&mut self) -> Verdict {
        const NAME: &str = "I4 the journal keeps its promises";
        self.source.started();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (journal, recovered) =
            SimJournal::open(&self.disk, &self.books, self.planted).map_err(|detail| (NAME, detail))?;
        self.cloud.started();
        let machine: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let trusted = match self.planted {
            Planted::WallClockOnly => None,
            _ => Some(TrustedClock::start(Arc::clone(&machine), self.directory.path()).unwrap()),
        };
        let only_wall =
            || Arc::new(WallOnly(self.clock.clone(), START - Duration::from_secs(1 << 30))) as Arc<dyn Clock>;
        let (audit, lines) = Lines::hold();
        self.audit = AuditMood::Well;
        let policy = Arc::new(PolicyCache::new(Arc::clone(&self.source) as _, LoadOptions::default()));
        let parts = Parts {
            clock: trusted.clone().map_or_else(only_wall, |trusted| trusted as _),
            workload_api: Arc::clone(&self.api) as _,
            authenticator: Authenticator::new(Arc::clone(&self.api) as _, AUDIENCE.into()),
            policy: Arc::clone(&policy),
            exchanges: Provider::ALL.map(|provider| self.cloud.face(provider)).into(),
            journal: Arc::clone(&journal) as _,
            audit: Arc::new(audit),
            metrics: Arc::new(sidemint::app::metrics().unwrap()),
            jitter: Arc::new(NoJitter),
            limits: Limits { mint: Duration::from_secs(15), wait: Duration::from_secs(10), ..Limits::default() },
        };
        let broker = Broker::new(parts, recovered);
        let server = Arc::new(Server::new(Arc::clone(&broker), SocketAddr::from(([127, 0, 0, 1], 9870))).unwrap());
        let now = self.clock.now();
        runtime.block_on(policy.reload_now(now));
        (self.looked, self.started) = (self.up, self.up);
        let reaper = self.reaper.then(|| {
            let reaper = reaper::run(Arc::clone(&broker), self.api.watch(), policy.subscribe());
            runtime.spawn(reaper)
        });
        let (audit, holds) = (Mutex::new(lines), Vec::new());
        self.sidecar = Some(Sidecar { runtime, broker, server, journal, audit, policy, trusted, reaper, holds });
        self.tick();
        self.settle();
        self.check()
    }

    /// What the timekeeper does every second.
    fn tick(&mut self) {
        if let Some(trusted) = self.sidecar.as_ref().and_then(|sidecar| sidecar.trusted.as_ref()) {
            trusted.observe();
            trusted.save().unwrap();
        }
    }

    fn sidecar(&self) -> &Sidecar {
        self.sidecar.as_ref().unwrap()
    }

    /// Lets everything run that waits for nothing but the runtime.
    fn idle(&self) {
        // The runtime's own time is paused: it moves when there is nothing else to do.
        #[allow(clippy::disallowed_methods, reason = "no time passes: see above")]
        self.sidecar().runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
    }

    /// The same, with a disk that takes what is written, and an audit log that does as it is.
    fn settle(&mut self) {
        loop {
            self.idle();
            if self.disk.is_dead() {
                break;
            }
            let sidecar = self.sidecar();
            let written = sidecar.runtime.block_on(sidecar.journal.release(Release::Told));
            let audited = match self.audit {
                AuditMood::Well => self.release_audit(Outcome::Told),
                AuditMood::Failing => self.release_audit(Outcome::Failed),
                AuditMood::Slow => false,
            };
            if !written && !audited {
                break;
            }
        }
        self.listen();
    }

    /// Lets `outcome` happen to the audit lines that wait, and says whether there were any.
    fn release_audit(&mut self, outcome: Outcome) -> bool {
        let lines = self.sidecar().audit.lock().unwrap().release(outcome);
        if outcome != Outcome::Failed && self.planted != Planted::SkipAudit {
            lines.iter().for_each(|line| self.audited.line(&serde_json::from_slice(line).unwrap()));
        }
        !lines.is_empty()
    }

    /// Enters what clients have heard in their ledger.
    fn listen(&mut self) {
        let all = std::mem::take(&mut *self.heard.lock().unwrap());
        for heard in all {
            self.noted.push(format!("{} for {:?}", heard.status, heard.ask.what()));
            self.told.count(
                match heard.status {
                    200..300 => "answers of success",
                    400..500 => "refusals",
                    _ => "failures told",
                },
                1,
            );
            match (&heard.ask, heard.status) {
                (Ask::Begin { who, scope, key, life }, 201) => self.begun(*who, *scope, *key, *life, &heard.body),
                (Ask::Serve { task, token, provider }, 200) => self.received(*task, token, *provider, &heard.body),
                (Ask::End { task }, 200) => self.ended(*task, &heard.body),
                (Ask::Foreign { task }, 200..300) => panic!("another workload ended {task}"),
                (_, 500..600) if heard.status != 503 => panic!("{} for {:?}", heard.status, heard.ask),
                _ => {}
            }
        }
    }

    fn begun(&mut self, who: usize, scope: usize, key: Option<usize>, life: u64, body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap();
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        let (id, token, step) = (text("id"), text("token"), self.number());
        if let Some(task) = self.ledger.tasks.iter_mut().find(|task| task.id == id) {
            let dead = std::mem::replace(&mut task.token, token);
            task.dead_tokens.push((dead, step));
            return;
        }
        self.ledger.tasks.push(ClientTask {
            who,
            scope,
            id,
            token,
            dead_tokens: Vec::new(),
            key,
            expires_at: text("expires_at").parse().unwrap(),
            begun_up: self.up,
            life: Duration::from_secs(life.min(SCOPES[scope].max_task)),
            restarts: self.restarts,
            resets: self.resets,
            ended: None,
        });
    }

    fn received(&mut self, task: usize, token: &str, provider: Provider, body: &[u8]) {
        if matches!(self.planted, Planted::ServeAfterEnd | Planted::ServeWithdrawn) {
            self.cached.insert((token.to_owned(), provider), body.to_vec());
        }
        if self.planted == Planted::CrossServe {
            self.cached.insert((SCOPES[self.ledger.tasks[task].scope].id.to_owned(), provider), body.to_vec());
        }
        let body: Value = serde_json::from_slice(body).unwrap();
        let text = |of: &Value, name: &str| of[name].as_str().unwrap().to_owned();
        let sidecar = self.sidecar();
        let now = sidecar.broker.now();
        let (key, secrets, expiration) = match provider {
            Provider::Aws => {
                let secrets = [text(&body, "SecretAccessKey"), text(&body, "Token")];
                (text(&body, "AccessKeyId"), secrets, text(&body, "Expiration").parse().unwrap())
            }
            Provider::Vault => {
                let secrets = ["username", "password"].map(|name| text(&body["data"], name));
                let life = Duration::from_secs(body["lease_duration"].as_u64().unwrap());
                (text(&body, "lease_id"), secrets, now + life)
            }
        };
        let client = &self.ledger.tasks[task];
        let received = Received {
            step: self.number(),
            task,
            provider,
            token: token.to_owned(),
            key,
            secrets,
            expiration,
            wall: self.clock.now(),
            now,
            up: self.up,
            restarts: self.restarts,
            resets: self.resets,
            runs_for: self.up - self.started,
            policy: sidecar.policy.current().and_then(|policy| self.source.known(policy.version())),
            killed: self.killed(client.who, client.scope, &client.id),
            issued: self.issued.contains(&client.who),
        };
        self.ledger.received.push(received);
    }

    /// Whether the kill list in force stops this task, told from what was published under its epoch.
    fn killed(&self, who: usize, scope: usize, task: &str) -> bool {
        let Some(policy) = self.sidecar().policy.current() else { return false };
        let now = self.sidecar().broker.now();
        let epoch = policy.kill_list().epoch().unwrap();
        self.source.kill_list(epoch).iter().any(|kill| kill.stops(who, scope, task, now))
    }

    /// The tasks that something speaks against: policy, kill list or identities, as they are now.
    fn spoken_against(&self) -> Vec<usize> {
        let policy = self.sidecar().policy.current().and_then(|policy| self.source.known(policy.version()));
        let against = |task: &ClientTask| {
            let permitted = policy.as_ref().is_none_or(|(_, permits)| permits.contains(&(task.who, task.scope)));
            !permitted || !self.issued.contains(&task.who) || self.killed(task.who, task.scope, &task.id)
        };
        (0..self.ledger.tasks.len()).filter(|at| against(&self.ledger.tasks[*at])).collect()
    }

    fn ended(&mut self, task: usize, body: &[u8]) {
        let report: Value = serde_json::from_slice(body).unwrap();
        let id = &self.ledger.tasks[task].id;
        let durable = {
            let books = self.books.lock().unwrap();
            let written = books.promised.tasks.values().find(|written| written.id.as_str() == id);
            written.is_none_or(|written| written.ending.is_some())
        };
        let unanswered = &self.unanswered(id) | &self.unwritten(&report);
        let ended = Ended { step: self.number(), truth: self.truth.now(), durable, report, unanswered };
        match &self.ledger.tasks[task].ended {
            Some(first) if first.durable => {
                assert!(goes_on(first, &ended.report), "told another end: {first:?}, {ended:?}");
                let (step, durable) = (first.step, first.durable);
                self.ledger.tasks[task].ended = Some(Ended { step, durable, ..ended });
            }
            _ => self.ledger.tasks[task].ended = Some(ended),
        }
    }

    /// The leases of a task whose provider has not answered yet, as far as is durable.
    fn unanswered(&self, task: &str) -> BTreeSet<String> {
        let books = self.books.lock().unwrap();
        let waits = books.last.values().filter(|lease| lease.task.as_str() == task && lease.upstream.is_none());
        waits.map(|lease| lease.id.as_str().to_owned()).collect()
    }

    /// The leases of a report that were revoked, and whose record does not say so: after a crash they are revoked once
    /// more, and until then said to expire.
    fn unwritten(&self, report: &Value) -> BTreeSet<String> {
        let books = self.books.lock().unwrap();
        let written = |id: &str| {
            books.promised.leases.values().any(|lease| lease.id.as_str() == id && lease.state == LeaseState::Revoked)
        };
        let revoked = report["leases"].as_array().unwrap().iter().filter(|line| line["outcome"] == "revoked");
        let ids = revoked.map(|line| line["id"].as_str().unwrap().to_owned());
        ids.filter(|id| !written(id)).collect()
    }

    fn check(&mut self) -> Verdict {
        self.join(|ledger, step, now| ledger.check(step, now))
    }

    /// Joins the ledgers.
    fn join(&mut self, check: impl FnOnce(&mut Ledger, usize, &Now<'_>) -> Verdict) -> Verdict {
        let mints = self.cloud.mints();
        let asked = self.cloud.asked_since(self.asked);
        self.asked += asked.len();
        let (disk, spoken_against) = (Arc::clone(&self.disk), self.reaper && self.sidecar.is_some());
        let spoken_against = if spoken_against { self.spoken_against() } else { Vec::new() };
        let books = self.books.lock().unwrap();
        let sidecar = self.sidecar.as_ref().filter(|_| !disk.is_dead()).map(|sidecar| {
            let tasks = sidecar.broker.tasks().all().into_iter().map(|task| {
                let state = task.state();
                (task.id().as_str().to_owned(), (state.ending.is_some(), state.leases.clone()))
            });
            // Health answers whatever happens.
            sidecar.broker.census();
            let policy = sidecar.policy.current();
            Inside {
                tasks: tasks.collect(),
                at_rest: sidecar.journal.healthy() && !sidecar.journal.is_waited_for(),
                epoch: policy.as_ref().and_then(|policy| policy.kill_list().epoch()),
                policy: policy.and_then(|policy| Some(self.source.known(policy.version())?.0)),
                start: self.restarts,
                spoken_against,
            }
        });
        let now = Now {
            truth: self.truth.now(),
            up: self.up,
            mints: &mints,
            bare_calls: self.cloud.bare_calls(),
            asked,
            odd: self.cloud.odd(),
            expires: self.source.expires(),
            books: &books,
            audited: &self.audited,
            sidecar,
        };
        self.told.trace.push(trace(&now, &mut self.noted));
        check(&mut self.ledger, self.told.steps.len(), &now)
    }

    fn step(&mut self) -> Verdict {
        match self.random.below(111) {
            0..=14 => self.begin(),
            15..=44 => self.serve(),
            45..=51 => self.end(),
            52..=53 => self.foreign(),
            54..=55 => self.hold(),
            56..=67 => self.pass(),
            68..=72 => self.turn_the_clock(),
            73..=77 => self.answer(),
            78..=80 => self.change_policy(),
            81 => self.change_kill_list(),
            82..=84 => self.change_identities(),
            85 => self.break_disk(),
            86..=89 => self.show(),
            90..=92 => self.restart_in_order()?,
            93..=99 => self.crash()?,
            100..=101 => self.operator_ends(),
            102..=103 => self.trouble_audit(),
            104 => self.shut_down()?,
            _ => self.pass_until_one_is_due(),
        }
        if self.disk.is_dead() {
            self.start_again(Some(Stop::Machine))?;
        }
        self.check()
    }

    /// At the end all clocks are right, the disk is whole, what lives is asked for once more, and what is left of ended
    /// tasks is revoked.
    fn finish(&mut self) -> Verdict {
        self.say("finish");
        self.clock.set_wall(self.truth.now());
        self.reaper = true;
        self.restart_in_order()?;
        for task in 0..self.ledger.tasks.len() {
            let token = self.ledger.tasks[task].token.clone();
            for provider in SCOPES[self.ledger.tasks[task].scope].at {
                self.ask_for(task, token.clone(), *provider);
            }
        }
        self.all_is_well();
        self.check()?;
        // Together more than the longest pause between two tries at a provider.
        for seconds in [1; 10].into_iter().chain([10; 12]) {
            self.go_on(Duration::from_secs(seconds));
            self.all_is_well();
        }
        self.check()?;
        self.join(|ledger, _, now| ledger.revocable_is_revoked(now))
    }

    /// Settles, with clouds that do what they are asked.
    fn all_is_well(&mut self) {
        self.settle();
        while self.cloud.waiting() > 0 {
            self.cloud.answer(0, Answer::Give, Undo::Done);
            self.settle();
        }
    }

    // What clients do.

    fn send(&mut self, ask: Ask, call: Call) {
        let (server, heard) = (Arc::clone(&self.sidecar().server), Arc::clone(&self.heard));
        self.sidecar().runtime.spawn(async move {
            if let Some((status, body)) = exchange(server, call).await {
                heard.lock().unwrap().push(Heard { ask, status, body });
            }
        });
    }

    fn begin(&mut self) {
        let who = *self.random.pick(&[0, 0, 0, 0, 1, 1, 1, PARTNER, PARTNER, FOREIGN]);
        let scope = self.random.below(SCOPES.len());
        // A key goes with one body.
        let key = self.random.chance(30).then(|| self.random.below(KEYS));
        let scope = key.map_or(scope, |key| key % SCOPES.len());
        let life =
            if key.is_none() && self.random.chance(30) { self.random.between(10, 600) } else { SCOPES[scope].max_task };
        let hold = key.is_none() && self.random.chance(10);
        let of_who = |task: &ClientTask| task.who == who && key.is_none();
        let parents: Vec<_> = self.ledger.tasks.iter().filter(|task| of_who(task)).cloned().collect();
        let mut body = json!({ "scope": SCOPES[scope].id, "hold": hold });
        if life < SCOPES[scope].max_task {
            body["ttl"] = json!(life);
        }
        let mut bearer = self.api.issue(WHO[who], AUDIENCE);
        let mut part = "";
        if !parents.is_empty() && self.random.chance(30) {
            let parent = self.random.pick(&parents).clone();
            (bearer, part) = match self.random.chance(50) {
                true => (parent.token, ", as a part"),
                false => {
                    body["parent"] = json!(parent.id);
                    (bearer, ", as a part by id")
                }
            };
        }
        self.say(format!("begin {} for {who}, key {key:?}, {life} s, hold {hold}{part}", SCOPES[scope].id));
        let key_text = key.map(|key| format!("key-{key}"));
        let call =
            Call { method: Method::POST, path: "/v1/tasks".into(), bearer, key: key_text, body: body.to_string() };
        self.send(Ask::Begin { who, scope, key, life }, call);
        self.maybe_settle();
    }

    /// Mostly all comes to rest; now and then the next step comes in between.
    fn maybe_settle(&mut self) {
        match self.random.below(20) {
            0 => self.idle(),
            1 => {}
            _ => {
                self.settle();
                while self.cloud.waiting() > 0 && !self.disk.is_dead() && self.random.chance(80) {
                    let (answer, undo) = (self.any_answer(), self.any_undo());
                    self.cloud.answer(0, answer, undo);
                    self.settle();
                }
            }
        }
        self.listen();
    }

    fn task(&mut self) -> Option<usize> {
        let tasks = self.ledger.tasks.len();
        // Mostly one that may still run.
        let open: Vec<_> = (0..tasks).filter(|at| self.ledger.tasks[*at].ended.is_none()).collect();
        if !open.is_empty() && self.random.chance(60) {
            return Some(open[open.len() - 1 - self.random.below(open.len().min(4))]);
        }
        (tasks > 0).then(|| {
            if self.random.chance(50) { tasks - 1 - self.random.below(tasks.min(3)) } else { self.random.below(tasks) }
        })
    }

    fn serve(&mut self) {
        let Some(task) = self.task() else { return self.begin() };
        let known = self.ledger.tasks[task].clone();
        let token = match known.dead_tokens.first() {
            Some((dead, _)) if self.random.chance(20) => dead.clone(),
            _ => known.token,
        };
        let provider = *self.random.pick(SCOPES[known.scope].at);
        self.say(format!("serve task {task} at {provider}"));
        self.ask_for(task, token, provider);
        self.maybe_settle();
    }

    fn ask_for(&mut self, task: usize, token: String, provider: Provider) {
        let scope = SCOPES[self.ledger.tasks[task].scope].id.to_owned();
        let cached = self.cached.get(&(token.clone(), provider)).or_else(|| self.cached.get(&(scope, provider)));
        if let Some(body) = cached.cloned() {
            self.heard.lock().unwrap().push(Heard { ask: Ask::Serve { task, token, provider }, status: 200, body });
            return;
        }
        let ask = Ask::Serve { task, token: token.clone(), provider };
        let path = match provider {
            Provider::Aws => "/v1/aws/credentials".to_owned(),
            Provider::Vault => format!("/v1/tasks/{}/credentials?provider=vault", self.ledger.tasks[task].id),
        };
        let call = Call { method: Method::GET, path, bearer: token, key: None, body: String::new() };
        self.send(ask, call);
    }

    fn end(&mut self) {
        let Some(task) = self.task() else { return self.begin() };
        let known = self.ledger.tasks[task].clone();
        let by_owner = known.who != FOREIGN && self.random.chance(30);
        self.say(format!("end task {task}{}", if by_owner { " by its owner" } else { "" }));
        let bearer = if by_owner { self.api.issue(WHO[known.who], AUDIENCE) } else { known.token };
        let call = Call {
            method: Method::DELETE,
            path: format!("/v1/tasks/{}", known.id),
            bearer,
            key: None,
            body: String::new(),
        };
        self.send(Ask::End { task }, call);
        self.maybe_settle();
    }

    fn operator_ends(&mut self) {
        let Some(task) = self.task() else { return self.begin() };
        let id = self.ledger.tasks[task].id.clone();
        self.say(format!("an operator ends task {task}"));
        let (broker, heard) = (Arc::clone(&self.sidecar().broker), Arc::clone(&self.heard));
        let Some(found) = broker.tasks().by_id(&id.parse().unwrap()) else { return };
        // What `DELETE` does on the admin socket.
        self.sidecar().runtime.spawn(async move {
            let ending = broker.end(&found, EndReason::Operator, Some("operator")).await;
            let ending = broker.settled_ending(&found, ending).await;
            let mut body = serde_json::to_value(&ending).unwrap();
            body["id"] = json!(id);
            if !broker.is_durable(&found).await {
                body["durable"] = json!(false);
            }
            let body = serde_json::to_vec(&body).unwrap();
            heard.lock().unwrap().push(Heard { ask: Ask::End { task }, status: 200, body });
        });
        self.maybe_settle();
    }

    /// Somebody else ends a task, or shows it, or asks for its credentials: by another identity or another task's token.
    fn foreign(&mut self) {
        let Some(task) = self.task() else { return self.begin() };
        let known = self.ledger.tasks[task].clone();
        let others: Vec<_> =
            self.ledger.tasks.iter().filter(|other| other.id != known.id).map(|other| other.token.clone()).collect();
        let bearer = match self.random.chance(50) && !others.is_empty() {
            true => self.random.pick(&others).clone(),
            false => self.api.issue(WHO[(known.who + 1) % WHO.len()], AUDIENCE),
        };
        let (method, path) = match self.random.below(3) {
            0 => (Method::DELETE, format!("/v1/tasks/{}", known.id)),
            1 => (Method::GET, format!("/v1/tasks/{}", known.id)),
            _ => (Method::GET, format!("/v1/tasks/{}/credentials", known.id)),
        };
        self.say(format!("{method} task {task} by another workload"));
        self.send(Ask::Foreign { task }, Call { method, path, bearer, key: None, body: String::new() });
        self.maybe_settle();
    }

    fn show(&mut self) {
        let Some(task) = self.task() else { return self.begin() };
        let known = self.ledger.tasks[task].clone();
        self.say(format!("show task {task}"));
        let call = Call {
            method: Method::GET,
            path: format!("/v1/tasks/{}", known.id),
            bearer: known.token,
            key: None,
            body: String::new(),
        };
        self.send(Ask::Show, call);
        self.maybe_settle();
    }

    fn hold(&mut self) {
        let Some(task) = self.task() else { return self.begin() };
        if let Some(at) = self.sidecar().holds.iter().position(|(held, _)| *held == task) {
            self.say(format!("let go of task {task}"));
            self.sidecar.as_mut().unwrap().holds.remove(at).1.abort();
        } else {
            self.say(format!("hold task {task}"));
            let known = &self.ledger.tasks[task];
            let (path, bearer) = (format!("/v1/tasks/{}/hold", known.id), known.token.clone());
            let server = Arc::clone(&self.sidecar().server);
            let call = Call { method: Method::POST, path, bearer, key: None, body: String::new() };
            // Its answer ends when the task does.
            let holding = self.sidecar().runtime.spawn(async move { drop(exchange(server, call).await) });
            self.sidecar.as_mut().unwrap().holds.push((task, holding));
        }
        self.maybe_settle();
    }

    // What the world does.

    fn pass(&mut self) {
        let millis = match self.random.below(10) {
            // So that policies lapse.
            0..=3 if self.source.is_silent() => self.random.between(1_200_000, 9_000_000),
            0..=3 => self.random.between(1, 2_000),
            4..=6 => self.random.between(2_000, 60_000),
            7..=8 => self.random.between(60_000, 900_000),
            _ => self.random.between(900_000, 90_000_000),
        };
        // As a time service does.
        let right = self.random.chance(30);
        self.say(format!("{millis} ms pass{}", if right { ", and the clock is right" } else { "" }));
        if right {
            self.clock.set_wall(self.truth.now());
        }
        self.go_on(Duration::from_millis(millis));
    }

    /// Until one that can be renewed is due, or nearly so.
    fn pass_until_one_is_due(&mut self) {
        let truth = self.truth.now();
        let Some(mint) = self.cloud.latest(Provider::Vault, truth) else { return self.pass() };
        let life = mint.ends_at.since(mint.minted_at);
        let last = if life >= DUE.1 { DUE.0 } else { life / 2 };
        let left = mint.ends_at.since(truth).saturating_sub(last);
        let millis = u64::try_from(left.as_millis()).unwrap() + self.random.between(1, 2_000);
        self.say(format!("{millis} ms pass, until one is due"));
        self.go_on(Duration::from_millis(millis));
    }

    fn go_on(&mut self, time: Duration) {
        self.truth.advance(time);
        self.up += time;
        self.clock.advance(time);
        self.tick();
        if self.audit == AuditMood::Slow && self.random.chance(50) {
            self.release_audit(Outcome::Told);
        }
        self.settle();
        // As the poll does.
        if self.up - self.looked >= Duration::from_secs(30) && !self.disk.is_dead() {
            self.look();
        }
        let mut fate = self.random.fork();
        if self.cloud.time_out(|| fate.chance(50)) {
            self.settle();
        }
    }

    fn turn_the_clock(&mut self) {
        let (truth, wall) = (self.truth.now(), self.clock.now());
        let shifted = |by: i64| {
            let time = Duration::from_millis(by.unsigned_abs());
            if by < 0 { truth - time } else { truth + time }
        };
        let pick = |random: &mut Random, most: i64| {
            i64::try_from(random.below(usize::try_from(2 * most).unwrap())).unwrap() - most
        };
        match self.random.below(6) {
            0 => {
                let by = pick(&mut self.random, OFF);
                self.say(format!("the clock is {by} ms off"));
                self.clock.set_wall(shifted(by));
            }
            1 => {
                let by = pick(&mut self.random, 8_000_000);
                self.say(format!("the clock jumps to be {by} ms off"));
                self.clock.set_wall(shifted(by));
            }
            2 => {
                self.say("the clock is set right");
                self.clock.set_wall(truth);
            }
            3 => {
                let millis = self.random.between(1, 100_000);
                self.say(format!("frozen for {millis} ms, and set right"));
                self.truth.advance(Duration::from_millis(millis));
                self.clock.set_wall(self.truth.now());
            }
            4 => {
                self.say("the trust domain signs the time");
                if let Some(trusted) = &self.sidecar().trusted {
                    trusted.witness(truth.floor_to_second(), Duration::ZERO);
                }
            }
            _ if self.may_reset => {
                self.say(format!("an operator sets the clock right from {wall} and resets"));
                self.clock.set_wall(truth);
                self.high_water = Timestamp::default();
                self.resets += 1;
                self.sidecar().broker.parts().clock.reset();
            }
            _ => self.say("the timekeeper checks the time"),
        }
        self.tick();
        self.settle();
    }

    fn any_answer(&mut self) -> Answer {
        match self.random.below(20) {
            0 => Answer::Refused,
            1 => Answer::Broken,
            2 => Answer::Throttled,
            3 | 4 => Answer::Lost,
            5 => Answer::Garbled,
            6 => Answer::Dead,
            7 => Answer::Sooner(Duration::from_secs(self.random.between(1, 30))),
            8 => Answer::Later(Duration::from_secs(self.random.between(1, 29))),
            9 => Answer::Years,
            _ => Answer::Give,
        }
    }

    fn any_undo(&mut self) -> Undo {
        match self.random.below(20) {
            0 => Undo::Refused,
            1 | 2 => Undo::Broken,
            3 => Undo::Throttled,
            4..=6 => Undo::Lost,
            7 => Undo::Garbled,
            8 => Undo::NoSvid,
            9 => Undo::Taken(self.random.chance(50)),
            _ => Undo::Done,
        }
    }

    fn answer(&mut self) {
        let waiting = self.cloud.waiting();
        if waiting == 0 {
            return self.serve();
        }
        let (index, answer, undo) = (self.random.below(waiting), self.any_answer(), self.any_undo());
        let wants = self.cloud.wants(index);
        self.say(format!("the cloud answers call {index}, {wants}: {answer:?} or {undo:?}"));
        self.cloud.answer(index, answer, undo);
        self.maybe_settle();
    }

    /// Lets what is decided be told before something changes.
    fn rest(&mut self) {
        self.idle();
        self.listen();
    }

    /// The sidecar refreshes its policy.
    fn look(&mut self) {
        self.rest();
        self.looked = self.up;
        let now = self.clock.now();
        let sidecar = self.sidecar();
        sidecar.runtime.block_on(sidecar.policy.reload_now(now));
        self.settle();
    }

    fn change_policy(&mut self) {
        match self.random.below(12) {
            0 => {
                self.say("the policy source is away");
                self.source.mood(Mood::Away);
            }
            1 => {
                self.say("the policy source tells nonsense");
                self.source.mood(Mood::Nonsense);
            }
            2 | 6 | 7 => {
                self.say("nobody signs heartbeats any more");
                self.source.mood(Mood::Silent);
            }
            3 => {
                self.say("the policy source gives an older kill list");
                self.source.mood(Mood::OldKill);
            }
            4 | 5 => {
                let at = self.random.below(SCOPES.len());
                let shape = *self.random.pick(&[Shape::Gone, Shape::Changed, Shape::Whole, Shape::Whole]);
                self.content.shapes[at] = shape;
                self.say(format!("policy: the scope {} is {shape:?}", SCOPES[at].id));
                self.source.publish(&self.content, None);
                self.source.mood(Mood::Well);
            }
            _ => {
                let (who, scope) = (self.random.below(WHO.len()), self.random.below(SCOPES.len()));
                let one = (who, scope);
                let had = self.content.permits.remove(&one);
                if !had || self.random.chance(60) {
                    self.content.permits.insert(one);
                }
                self.say(format!("policy: {who} may {}: {}", SCOPES[scope].id, self.content.permits.contains(&one)));
                self.source.publish(&self.content, None);
                self.source.mood(Mood::Well);
            }
        }
        if self.random.chance(80) {
            self.look();
        }
    }

    fn change_kill_list(&mut self) {
        let mut kills = self.source.kills();
        if !kills.is_empty() && self.random.chance(60) {
            self.say("the kill list is emptied");
            kills.clear();
        } else {
            let scope = self.random.below(SCOPES.len());
            let provider = *self.random.pick(SCOPES[scope].at);
            let task = self.task().map(|at| self.ledger.tasks[at].id.clone());
            let target = match self.random.below(8) {
                0 => Target::Scope(scope),
                1 => Target::Who(self.random.below(WHO.len())),
                2 => Target::Domain(self.random.below(DOMAINS.len())),
                3 => Target::Grant(scope, provider),
                4 => Target::Provider(provider),
                5 => Target::All,
                _ => task.map_or(Target::Scope(scope), Target::Task),
            };
            let life = Duration::from_secs(self.random.between(30, 3600));
            let until = self.random.chance(50).then(|| (self.truth.now() + life).floor_to_second());
            self.say(format!("killed: {target:?} until {until:?}"));
            kills.push(Kill { target, until });
        }
        self.source.publish(&self.content, Some(kills));
        if self.random.chance(70) {
            self.source.mood(Mood::Well);
        }
        if self.random.chance(80) {
            self.look();
        }
    }

    fn change_identities(&mut self) {
        self.rest();
        let who = *self.random.pick(&[0, 1, PARTNER]);
        match self.random.below(if self.issued.len() < 3 { 8 } else { 4 }) {
            0 => {
                self.say(format!("the Workload API withdraws {who}"));
                self.issued.remove(&who);
            }
            1 => {
                self.say("the Workload API answers that there is nothing");
                self.issued.clear();
            }
            2 => {
                self.say("the other trust domain is gone");
                self.issued.remove(&PARTNER);
            }
            _ => {
                self.say(format!("the Workload API issues {who}"));
                self.issued.insert(who);
            }
        }
        self.issue();
        self.settle();
    }

    fn break_disk(&mut self) {
        let fault = *self.random.pick(&[Fault::Full, Fault::Write, Fault::Sync]);
        self.say(format!("the disk fails: {fault:?}"));
        self.disk.fail(fault);
    }

    fn trouble_audit(&mut self) {
        self.audit = match self.audit {
            AuditMood::Well => *self.random.pick(&[AuditMood::Slow, AuditMood::Failing]),
            AuditMood::Slow | AuditMood::Failing => AuditMood::Well,
        };
        self.say(format!("the audit log: {:?}", self.audit));
        self.settle();
    }

    // How sidecars stop.

    /// In order, and every task ends first.
    fn shut_down(&mut self) -> Verdict {
        self.say("shut down");
        self.settle();
        let (planted, sidecar) = (self.planted, self.sidecar.as_mut().unwrap());
        sidecar.reaper.take().inspect(JoinHandle::abort);
        if planted != Planted::SkipShutdown {
            let broker = Arc::clone(&sidecar.broker);
            sidecar.runtime.spawn(async move { broker.close().await });
        }
        self.settle();
        while self.cloud.waiting() > 0 && !self.disk.is_dead() && self.random.chance(80) {
            let (answer, undo) = (self.any_answer(), self.any_undo());
            self.cloud.answer(0, answer, undo);
            self.settle();
        }
        if self.disk.is_dead() {
            return self.start_again(Some(Stop::Machine));
        }
        if self.sidecar().journal.healthy() {
            self.join(|ledger, _, now| ledger.all_have_ended(now))?;
        }
        self.start_again(None)
    }

    fn restart_in_order(&mut self) -> Verdict {
        self.say("restart");
        self.settle();
        self.start_again(None)
    }

    fn crash(&mut self) -> Verdict {
        match self.random.below(6) {
            // In the middle of the next commit.
            0 => {
                let operations = self.random.below(14);
                self.say(format!("the machine will stop after {operations} more writes to its disk"));
                self.disk.stop_after(operations);
                return Ok(());
            }
            // What is durable was told to nobody.
            1 => {
                self.say("killed after the commit");
                self.idle();
                let sidecar = self.sidecar();
                sidecar.runtime.block_on(sidecar.journal.release(Release::Untold));
            }
            // The same of an audit line.
            3 => {
                self.say("killed after the audit line");
                self.idle();
                self.release_audit(Outcome::Untold);
            }
            // Nothing of what waits has reached the disk.
            2 => {
                self.say("killed before the commit");
                self.idle();
            }
            _ => self.say("killed"),
        }
        let stop = *self.random.pick(&[Stop::Process, Stop::Machine]);
        self.start_again(Some(stop))
    }

    fn drop_sidecar(&mut self) {
        if let Some(sidecar) = self.sidecar.take() {
            // Dropped first: what runs holds on to the rest.
            drop(sidecar.runtime);
        }
    }

    fn start_again(&mut self, stop: Option<Stop>) -> Verdict {
        if stop.is_some() {
            self.disk.kill();
        }
        self.drop_sidecar();
        self.heard.lock().unwrap().clear();
        let mut fate = self.random.fork();
        self.cloud.hang_up(|| fate.chance(50));
        self.disk.restart(stop, &mut fate);
        self.restarts += 1;
        let away = Duration::from_millis(self.random.between(0, 20_000));
        self.truth.advance(away);
        self.up += away;
        self.clock.advance(away);
        let mut kept: Value =
            serde_json::from_slice(&fs::read(self.clock_file()).unwrap_or_default()).unwrap_or_default();
        if let Some(high_water) = kept["high_water"].as_str() {
            let high_water = high_water.parse().unwrap();
            if high_water < self.high_water {
                return Err((
                    "I6 nothing goes back",
                    format!("the clock's mark {high_water} after {}", self.high_water),
                ));
            }
            self.high_water = high_water;
        }
        if stop == Some(Stop::Machine) && kept.is_object() {
            // Another start of the machine: its clock was kept by a battery, and is about right.
            let off = Duration::from_millis(self.random.between(0, OFF.unsigned_abs()));
            let truth = self.truth.now();
            self.clock.set_wall(if self.random.chance(50) { truth + off } else { truth - off });
            kept["boot_id"] = json!(format!("boot-{}", self.restarts));
            fs::write(self.clock_file(), kept.to_string()).unwrap();
        }
        self.start()
    }
}

impl Ask {
    /// What was asked, without what no seed foresees.
    fn what(&self) -> String {
        match self {
            Self::Serve { task, provider, .. } => format!("task {task} at {provider}"),
            other => format!("{other:?}"),
        }
    }
}

/// Whether the report `next` of an end goes on from `first`: the same, but for what was revoked since, and for leases whose
/// provider had not answered. Of those it tells what was said since; where that is that there is nothing, the line goes, and a
/// start that does not know it yet tells it once more.
fn goes_on(first: &Ended, next: &Value) -> bool {
    let (mut first_report, mut next) = (first.report.clone(), next.clone());
    let told = |report: &mut Value| {
        let lines = report["leases"].as_array_mut().unwrap();
        lines.retain(|line| !first.unanswered.contains(line["id"].as_str().unwrap()));
        std::mem::take(lines)
    };
    let (lines, new) = (told(&mut first_report), told(&mut next));
    // What was revoked and could not be written down is revoked once more.
    let goes_on = |(line, new): (&Value, &Value)| line == new || line["id"] == new["id"] && new["outcome"] == "revoked";
    first_report == next && lines.len() == new.len() && lines.iter().zip(&new).all(goes_on)
}

/// A digest of the three ledgers, but for tokens, which no seed foresees.
fn trace(now: &Now<'_>, noted: &mut Vec<String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    noted.sort();
    std::mem::take(noted).hash(&mut hasher);
    let tasks: Vec<_> = now.books.promised.tasks.values().map(|task| (&task.id, &task.ending, task.deadline)).collect();
    let inside = now.sidecar.as_ref().map(|inside| (&inside.tasks, inside.policy, inside.epoch, inside.at_rest));
    format!("{tasks:?} {:?} {:?} {inside:?}", now.books.promised.leases, now.mints).hash(&mut hasher);
    (now.truth, now.up).hash(&mut hasher);
    hasher.finish()
}

/// One request over a connection of its own; `None` when it was cut off.
async fn exchange(server: Arc<Server>, call: Call) -> Option<(u16, Vec<u8>)> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let server = Arc::clone(&server);
            async move { Ok::<_, std::convert::Infallible>(server.handle(request, Peer::Unix).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        let _ = http.header_read_timeout(None).serve_connection(TokioIo::new(far), service).await;
    });
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.ok()?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(call.method).uri(call.path).header("host", "127.0.0.1:9870");
    request = request.header("authorization", format!("Bearer {}", call.bearer));
    if let Some(key) = call.key {
        request = request.header("idempotency-key", key);
    }
    if !call.body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    let answer = client.send_request(request.body(Full::new(Bytes::from(call.body))).ok()?).await.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.into_body().collect().await.ok()?.to_bytes().to_vec()))
}
