//! A whole sidecar in a test: real listeners, server, broker, policy and journal; fakes only at the seams.
//!
//! When a [`World`] goes, it searches everything that was written anywhere (audit log, metrics, journal, status, log,
//! answers) for every secret that any fake gave out.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sidemint::audit::{Audit, Event, Kind, Output, Rotation, Settings as AuditSettings};
use sidemint::broker::{Broker, Limits, Parts, reaper};
use sidemint::clock::{Clock, ManualClock, Timestamp, TrustedClock};
use sidemint::config::PodTaskSettings;
use sidemint::exchange::aws::{AwsSts, Settings as AwsSettings};
use sidemint::exchange::vault::{Settings as VaultSettings, Vault};
use sidemint::exchange::{Context, Exchange, Provider};
use sidemint::identity::Authenticator;
use sidemint::identity::workload_api::testing::FakeWorkloadApi;
use sidemint::identity::workload_api::{SpiffeWorkloadApi, WorkloadApi};
use sidemint::journal::{JournalError, Recovered};
use sidemint::pod_task::PodTask;
use sidemint::policy::LoadOptions;
use sidemint::policy::cache::{PolicyCache, RefreshOutcome};
use sidemint::policy::repository::{DirectorySource, PolicySource};
use sidemint::retry::{Rate, SystemJitter};
use sidemint::server::admin::Admin;
use sidemint::server::{Listener, ListenerLimits, Server, serve};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fake_vault::FakeVault;
use crate::fakes::{AuditText, Disk, FakeCloud, Heard, Log, Overheard, SignedDirectory, WatchedJournal};
use crate::http::{Call, Connection, Reply};
use crate::policy_files::{self, OTHER, REPORT};

/// The audience of this sidecar.
pub(crate) const AUDIENCE: &str = "sidemint";
/// When tests begin. Not on a whole second, as real ones never do.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_795_435_200_250);

/// Waits, without any time passing on the test's clock, until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    // A bound on a test that is broken, on however busy a machine; no test passes by waiting for it.
    const AT_MOST: Duration = Duration::from_secs(60);
    #[allow(clippy::disallowed_methods, reason = "see above")]
    let begun = std::time::Instant::now();
    while begun.elapsed() < AT_MOST {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
    panic!("it never came to this: {what}");
}

/// Lets everything that can run without waiting for a clock run.
pub(crate) async fn settle() {
    for _ in 0..300 {
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
}

/// Seconds, for short.
pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What differs from the usual.
pub(crate) struct Setup {
    pub(crate) identities: Vec<&'static str>,
    /// Whether the Workload API has answered.
    pub(crate) known: bool,
    /// Whether there is a policy.
    pub(crate) policy: bool,
    pub(crate) reaper: bool,
    pub(crate) tasks: usize,
    pub(crate) connections: usize,
    pub(crate) limits: fn(&mut Limits),
    pub(crate) pod_task: Option<PodTaskSettings>,
    /// Whether the sidecar compares its clocks, as the real one does.
    pub(crate) guarded: bool,
    /// Whether the policy is signed; its timestamp is valid for ten minutes then, everything else for thirty days.
    pub(crate) signed: bool,
    /// The STS to exchange with over the wire, instead of the cloud in memory.
    pub(crate) sts: Option<SocketAddr>,
    /// Whether the audit log is signed files in the state directory, as the real one's, and not [`World::audit`].
    pub(crate) audit_files: bool,
    /// Whether there is a Vault, and the sidecar knows it.
    pub(crate) vault: bool,
    /// The disk that the journal is on, where it is to fail.
    pub(crate) disk: Option<Disk>,
    /// The other trust domains whose JWT-SVIDs are trusted (`identity.federated`).
    pub(crate) federated: &'static [&'static str],
    /// Whether the search for secrets at the end is left to others: it takes long where there are thousands.
    pub(crate) unsearched: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            identities: vec![REPORT, OTHER],
            known: true,
            policy: true,
            reaper: false,
            tasks: 10_000,
            connections: 4096,
            limits: |_| {},
            pod_task: None,
            guarded: false,
            signed: false,
            sts: None,
            audit_files: false,
            vault: false,
            disk: None,
            federated: &[],
            unsearched: false,
        }
    }
}

/// A sidecar and the world around it.
pub(crate) struct World {
    pub(crate) clock: ManualClock,
    pub(crate) api: Arc<FakeWorkloadApi>,
    pub(crate) cloud: Arc<FakeCloud>,
    pub(crate) vault: Option<Arc<FakeVault>>,
    pub(crate) audit: AuditText,
    pub(crate) log: Log,
    pub(crate) directory: TempDir,
    pub(crate) signers: Arc<SignedDirectory>,
    setup: Setup,
    states: Vec<PathBuf>,
    tokens: Mutex<Vec<String>>,
    /// What came back through the seam to the cloud over the wire.
    pub(crate) heard: Heard,
    /// The heads and bodies of answers that may hold no secret.
    told: Mutex<Vec<Vec<u8>>>,
    /// How much all tests had logged before this world was.
    logged_from: usize,
    sidecar: Option<Sidecar>,
}

/// What a restart replaces.
pub(crate) struct Sidecar {
    pub(crate) broker: Arc<Broker>,
    pub(crate) journal: Arc<WatchedJournal>,
    pub(crate) policy: Arc<PolicyCache>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) pod_task: Option<Arc<PodTask>>,
    pub(crate) trusted: Option<Arc<TrustedClock>>,
    pub(crate) address: SocketAddr,
    pub(crate) admin_address: SocketAddr,
    pub(crate) admin_socket: PathBuf,
    stop: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    background: Vec<JoinHandle<()>>,
}

impl Deref for World {
    type Target = Sidecar;
    fn deref(&self) -> &Sidecar {
        self.sidecar.as_ref().unwrap()
    }
}

/// A task as its beginner sees it.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) expires_at: Timestamp,
    pub(crate) body: Value,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    /// A world whose reaper runs.
    pub(crate) async fn with_reaper() -> Self {
        Self::with(Setup { reaper: true, ..Setup::default() }).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        Self::with_clock(setup, ManualClock::at(START)).await
    }

    /// A world whose time is `clock`'s, which others have too.
    pub(crate) async fn with_clock(setup: Setup, clock: ManualClock) -> Self {
        let logged_from = LOGGED.0.lock().unwrap().len();
        let api = FakeWorkloadApi::new(Arc::new(clock.clone()), &setup.identities);
        api.update(|identities| {
            identities.known = setup.known;
            for svid in &mut identities.svids {
                svid.expires_at = START + secs(90 * 24 * 3600);
            }
        });
        let log = Log::default();
        // In memory where that can be had: the journal syncs at each write, and no test pulls the plug.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        if setup.policy {
            policy_files::standard(&directory.path().join("policy"));
        }
        if setup.signed {
            policy_files::owners(&directory.path().join("policy"));
        }
        let signers = SignedDirectory::new(&directory.path().join("policy"), START + secs(30 * 24 * 3600));
        signers.expires("timestamp", START + secs(600));
        let states = vec![directory.path().join("state-0")];
        let cloud = FakeCloud::new(clock.clone(), log.clone());
        let vault = match setup.vault {
            true => Some(FakeVault::start(clock.clone()).await),
            false => None,
        };
        let mut world = Self {
            api,
            cloud,
            vault,
            audit: AuditText::default(),
            log,
            directory,
            signers,
            setup,
            states,
            tokens: Mutex::default(),
            heard: Heard::default(),
            told: Mutex::default(),
            logged_from,
            sidecar: None,
            clock,
        };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let state = self.states.last().unwrap().clone();
        let (journal, recovered) = self.open_journal(&state).await;
        let source: Arc<dyn PolicySource> = match self.setup.signed {
            true => Arc::clone(&self.signers) as _,
            false => Arc::new(DirectorySource::new(self.policy_directory())),
        };
        let policy = Arc::new(PolicyCache::new(source, LoadOptions::default()));
        policy.reload_now(self.clock.now()).await;
        let machine: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let trusted = self.setup.guarded.then(|| TrustedClock::start(Arc::clone(&machine), &state).unwrap());
        let mut limits = Limits { tasks: self.setup.tasks, mint: secs(20), wait: secs(10), ..Limits::default() };
        (self.setup.limits)(&mut limits);
        let parts = Parts {
            clock: trusted.clone().map_or(machine, |trusted| trusted as Arc<dyn Clock>),
            workload_api: Arc::clone(&self.api) as _,
            authenticator: Authenticator::new(Arc::clone(&self.api) as _, AUDIENCE.into())
                .with_federated_jwt(self.setup.federated.iter().map(|name| name.parse().unwrap()).collect()),
            policy: Arc::clone(&policy),
            exchanges: self.exchanges(trusted.clone()),
            journal: Arc::clone(&journal) as _,
            audit: Arc::new(self.open_audit(&state)),
            metrics: Arc::new(sidemint::app::metrics().unwrap()),
            jitter: Arc::new(SystemJitter),
            limits,
        };
        let broker = Broker::new(parts, recovered);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin_socket = state.join("admin.sock");
        let (address, admin_address) = (listener.local_addr().unwrap(), admin_listener.local_addr().unwrap());
        let server = Arc::new(Server::new(Arc::clone(&broker), address).unwrap());
        let pod_task = self.setup.pod_task.clone().map(|settings| PodTask::new(Arc::clone(&broker), settings));
        // Its own clock stands still, so that its retries never count among the sleepers of a test.
        let elsewhere = Arc::new(ManualClock::at(START));
        let idle_api = SpiffeWorkloadApi::start("unix:///nonexistent/agent.sock", None, elsewhere).unwrap();
        let admin =
            Arc::new(Admin::new(Arc::clone(&broker), Arc::clone(&policy), idle_api, pod_task.clone(), admin_address));
        let (stop, stopping) = watch::channel(false);
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let limits = ListenerLimits {
            connections: self.setup.connections,
            told: Some((Arc::clone(&broker.parts().metrics), Arc::clone(&broker.parts().audit))),
            ..ListenerLimits::default()
        };
        let handle = {
            let server = Arc::clone(&server);
            move |request, peer| Arc::clone(&server).handle(request, peer)
        };
        let mut serving = vec![tokio::spawn(serve(
            Listener::Tcp(listener),
            limits.clone(),
            Arc::clone(&clock),
            stopping.clone(),
            handle,
        ))];
        let sockets = [Listener::Tcp(admin_listener), Listener::Unix(UnixListener::bind(&admin_socket).unwrap())];
        for listener in sockets {
            let admin = Arc::clone(&admin);
            let handle = move |request, peer| {
                let admin = Arc::clone(&admin);
                async move { admin.handle(request, peer).await }
            };
            serving.push(tokio::spawn(serve(listener, limits.clone(), Arc::clone(&clock), stopping.clone(), handle)));
        }
        let mut background = Vec::new();
        if self.setup.reaper {
            let changes = (self.api.watch(), policy.subscribe());
            background.push(tokio::spawn(reaper::run(Arc::clone(&broker), changes.0, changes.1)));
        }
        if let Some(pod_task) = &pod_task {
            background.push(tokio::spawn(Arc::clone(pod_task).run()));
        }
        self.sidecar = Some(Sidecar {
            broker,
            journal,
            policy,
            admin,
            pod_task,
            trusted,
            address,
            admin_address,
            admin_socket,
            stop,
            serving,
            background,
        });
    }

    /// The providers of the setup.
    fn exchanges(&self, trusted: Option<Arc<TrustedClock>>) -> BTreeMap<Provider, Arc<dyn Exchange>> {
        let context = Context {
            workload_api: Arc::clone(&self.api) as _,
            clock: trusted.map_or(Arc::new(self.clock.clone()) as Arc<dyn Clock>, |trusted| trusted as _),
            jitter: Arc::new(SystemJitter),
        };
        let mut exchanges = BTreeMap::from([(Provider::Aws, self.aws(context.clone()))]);
        if let Some(vault) = &self.vault {
            let settings = VaultSettings {
                address: format!("http://{}", vault.address),
                ca: None,
                namespace: None,
                timeout: secs(5),
                rate: Rate { interval: Duration::from_millis(1), burst: 1000 },
                revocation_rate: Rate { interval: Duration::from_millis(5), burst: 200 },
            };
            exchanges.insert(Provider::Vault, Arc::new(Vault::new(settings, context).unwrap()));
        }
        exchanges
    }

    /// AWS, or the fake in its place.
    fn aws(&self, context: Context) -> Arc<dyn Exchange> {
        let Some(address) = self.setup.sts else { return Arc::clone(&self.cloud) as _ };
        let settings = AwsSettings { sts_endpoint: Some(format!("http://{address}")), ..AwsSettings::default() };
        Arc::new(Overheard::new(AwsSts::new(settings, context).unwrap(), self.heard.clone()))
    }

    fn open_audit(&self, state: &Path) -> Audit {
        if !self.setup.audit_files {
            return Audit::to(Box::new(self.audit.clone())).unwrap();
        }
        // Small files and few lines to a checkpoint, so that there are several of each.
        let output = Output::File(state.join("audit.jsonl"));
        let settings = AuditSettings { checkpoint_every: 3, refusals: 10_000, ..AuditSettings::new(output) };
        let rotation = Rotation { size: 4096, age: None, keep: 100 };
        Audit::start(&AuditSettings { rotation, ..settings }, state, START).unwrap()
    }

    /// Stops the sidecar in order, its tasks kept, and starts it again on the same journal.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    /// Stops the sidecar in order, its tasks kept; nothing runs until [`World::start_again`].
    pub(crate) async fn stop(&mut self) {
        self.check_for_leaks();
        let Sidecar { broker, journal, serving, background, stop, admin, pod_task, .. } = self.sidecar.take().unwrap();
        stop.send_replace(true);
        for job in background {
            job.abort();
            let _ = job.await;
        }
        for job in serving {
            job.await.unwrap();
        }
        drop((admin, pod_task, broker));
        until("everything of the old sidecar is gone", || Arc::strong_count(&journal) == 1).await;
        drop(journal);
        let state = self.states.last().unwrap().clone();
        let _ = fs::remove_file(state.join("admin.sock"));
    }

    /// Opens the journal, once the writer of an earlier one is gone.
    async fn open_journal(&self, state: &Path) -> (Arc<WatchedJournal>, Recovered) {
        let mut opened = None;
        until("the journal is free", || {
            match WatchedJournal::open(state, self.setup.disk.as_ref(), self.log.clone()) {
                Err(JournalError::InUse(_)) => false,
                other => {
                    opened = Some(other.unwrap());
                    true
                }
            }
        })
        .await;
        opened.unwrap()
    }

    /// Changes how it is set up; seen at the next start.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
    }

    pub(crate) async fn start_again(&mut self) {
        self.start().await;
    }

    /// As after `kill -9`: nothing of the old sidecar runs on, and the new one finds the disk as it is this moment.
    pub(crate) async fn crash(&mut self) {
        self.check_for_leaks();
        let old = self.sidecar.take().unwrap();
        for job in old.background.iter().chain(&old.serving) {
            job.abort();
        }
        let (from, to) = (self.state(), self.directory.path().join(format!("state-{}", self.states.len())));
        fs::DirBuilder::new().mode(0o700).create(&to).unwrap();
        fs::copy(from.join("journal.redb"), to.join("journal.redb")).unwrap();
        fs::copy(from.join("sidecar-id"), to.join("sidecar-id")).unwrap();
        let _ = fs::copy(from.join("clock.json"), to.join("clock.json"));
        self.states.push(to);
        self.start().await;
    }

    /// The directory of the journal.
    pub(crate) fn state(&self) -> PathBuf {
        self.states.last().unwrap().clone()
    }

    pub(crate) fn policy_directory(&self) -> PathBuf {
        self.directory.path().join("policy")
    }

    /// Makes the sidecar look at its policy.
    pub(crate) async fn reload(&self) -> RefreshOutcome {
        self.policy.reload_now(self.clock.now()).await
    }

    /// Changes one scope and has it loaded.
    pub(crate) async fn publish(&self, scope: policy_files::Scope) {
        scope.write(&self.policy_directory());
        assert_eq!(self.reload().await, RefreshOutcome::Loaded);
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Writes one policy file and has it loaded.
    pub(crate) async fn write_policy(&self, path: &str, text: &str) -> RefreshOutcome {
        policy_files::write(&self.policy_directory(), path, text);
        self.reload().await
    }

    /// Sends a request and keeps what may hold no secret for the search at the end.
    pub(crate) async fn send(&self, call: Call) -> Reply {
        let mut connection = Connection::open(self.address).await;
        connection.send(&call.bytes(self.address)).await;
        let reply = connection.reply().await.unwrap_or_else(|| panic!("no answer to {call:?}"));
        self.keep(&call, &reply);
        reply
    }

    fn keep(&self, call: &Call, reply: &Reply) {
        let begun = call.method == "POST" && reply.status == 201;
        let served = call.target.contains("credentials") && reply.status == 200;
        let mut told = format!("{:?}\n", reply.headers).into_bytes();
        if begun {
            let token = reply.json()["token"].as_str().unwrap().to_owned();
            // Its own token and nobody else's.
            told.extend(reply.text().replace(&token, "").into_bytes());
            self.tokens.lock().unwrap().push(token);
        } else if !served {
            told.extend(&reply.body);
        }
        self.told.lock().unwrap().push(told);
    }

    /// A fresh JWT-SVID of `spiffe_id` for this sidecar.
    pub(crate) fn svid(&self, spiffe_id: &str) -> String {
        self.api.issue(spiffe_id, AUDIENCE)
    }

    /// The request by which [`REPORT`] begins a task.
    pub(crate) fn begin_call(&self, body: &Value) -> Call {
        Call::post("/v1/tasks").bearer(&self.svid(REPORT)).json(body)
    }

    /// Begins a task as [`REPORT`], which must succeed.
    pub(crate) async fn begin(&self, body: Value) -> Begun {
        begun(&self.send(self.begin_call(&body)).await)
    }

    /// Begins a task of this scope as [`REPORT`].
    pub(crate) async fn begin_scope(&self, scope: &str) -> Begun {
        self.begin(json!({ "scope": scope })).await
    }

    /// Asks for the credential as an AWS SDK does.
    pub(crate) async fn credentials(&self, token: &str) -> Reply {
        self.send(Call::get("/v1/aws/credentials").header("authorization", token)).await
    }

    /// The credential, which must be there.
    pub(crate) async fn served(&self, token: &str) -> Value {
        let reply = self.credentials(token).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    pub(crate) async fn end(&self, task: &Begun) -> Value {
        let reply = self.send(Call::delete(&format!("/v1/tasks/{}", task.id)).bearer(&task.token)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    pub(crate) async fn show(&self, task: &Begun) -> Value {
        let reply = self.send(Call::get(&format!("/v1/tasks/{}", task.id)).bearer(&task.token)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// Waits until the reaper has ended a task, and tells why it says it did.
    pub(crate) async fn ended(&self, task: &Begun) -> String {
        let found = self.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
        until("the task has ended", || found.state().ending.is_some()).await;
        self.show(task).await["reason"].as_str().unwrap().to_owned()
    }

    /// Waits until no exchange is under way for a task.
    pub(crate) async fn landed(&self, task: &Begun) {
        let found = self.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
        until("the exchange has ended", || found.state().slots.values().all(|slot| slot.flight.is_none())).await;
    }

    pub(crate) fn is_ended(&self, task: &Begun) -> bool {
        self.broker.tasks().by_id(&task.id.parse().unwrap()).is_none_or(|task| task.state().ending.is_some())
    }

    /// Asks the operators' listener.
    pub(crate) async fn ask_admin(&self, target: &str) -> Reply {
        let mut connection = Connection::open(self.admin_address).await;
        connection.send(&Call::get(target).bytes(self.admin_address)).await;
        let reply = connection.reply().await.unwrap();
        self.told.lock().unwrap().push(reply.body.clone());
        reply
    }

    /// Asks the operators' Unix socket.
    pub(crate) async fn operator(&self, call: Call) -> Reply {
        let mut connection = Connection::open_unix(&self.admin_socket).await;
        connection.send(&call.bytes(self.admin_address)).await;
        let reply = connection.reply().await.unwrap();
        self.told.lock().unwrap().push(reply.body.clone());
        reply
    }

    /// The metrics page, as Prometheus gets it.
    pub(crate) async fn metrics(&self) -> String {
        self.ask_admin("/metrics").await.text()
    }

    /// One series of the metrics page; `None` when it is not there.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let page = self.metrics().await;
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }

    /// The audit lines with this request id, at least one.
    pub(crate) async fn audited(&self, request_id: &str) -> Vec<Value> {
        let of_it =
            || self.audit.lines().into_iter().filter(|line| line["request_id"] == request_id).collect::<Vec<_>>();
        until("the audit log has the request", || !of_it().is_empty()).await;
        of_it()
    }

    /// How often the limit of this name was met.
    pub(crate) async fn limited(&self, limit: &str) -> f64 {
        self.metric(&format!("sidemint_limited_total{{limit=\"{limit}\"}}")).await.expect("a known limit")
    }

    /// The first audit line with this reason, which comes.
    pub(crate) async fn audited_as(&self, reason: &str) -> Value {
        let of_it = || self.audit.lines().into_iter().find(|line| line["reason"] == reason);
        until("the audit log has the reason", || of_it().is_some()).await;
        of_it().unwrap()
    }

    /// Opens a hold on a task.
    pub(crate) async fn hold(&self, task: &Begun) -> Hold {
        let mut connection = Connection::open(self.address).await;
        let call = Call::post(&format!("/v1/tasks/{}/hold", task.id)).bearer(&task.token);
        connection.send(&call.bytes(self.address)).await;
        let head = connection.stream_head().await;
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("application/x-ndjson"));
        Hold(connection)
    }

    /// Everything that was written anywhere, by where. What is only noted for the audit log may not be there yet.
    pub(crate) fn written(&self) -> Vec<(String, Vec<u8>)> {
        let mut places: Vec<(String, Vec<u8>)> = vec![("the audit log".into(), self.audit.text().into())];
        if let Some(sidecar) = &self.sidecar {
            let metrics = &sidecar.broker.parts().metrics;
            places.push(("the metrics".into(), metrics.registry().page().unwrap()));
            places.push(("Debug of the broker".into(), format!("{:?}", sidecar.broker).into()));
        }
        for state in &self.states {
            files_below(state, &mut places);
        }
        places.push(("an answer".into(), self.told.lock().unwrap().join(&b'\n')));
        places.push(("what the cloud said".into(), self.heard.all().into()));
        places.push(("the log".into(), LOGGED.0.lock().unwrap()[self.logged_from..].to_vec()));
        places
    }

    /// Every secret that the fakes and the sidecar gave out.
    pub(crate) fn secrets(&self) -> HashSet<String> {
        let of_vault = self.vault.as_ref().map(|vault| vault.secrets()).unwrap_or_default();
        let tokens = self.tokens.lock().unwrap().clone();
        [self.api.secrets(), self.cloud.secrets(), of_vault, tokens].concat().into_iter().collect()
    }

    fn check_for_leaks(&self) {
        let Some(sidecar) = self.sidecar.as_ref().filter(|_| !self.setup.unsearched) else { return };
        if !self.setup.audit_files {
            self.flush_audit(sidecar);
        }
        let secrets = self.secrets();
        for (place, text) in &self.written() {
            let text = String::from_utf8_lossy(text);
            for secret in &secrets {
                // The last part of a JWT is its signature: what makes it a secret.
                let telling = secret.rsplit('.').next().unwrap();
                if let Some(at) = text.find(telling) {
                    let before: String = text[..at].chars().rev().take(300).collect();
                    let before: String = before.chars().rev().collect();
                    panic!("{place} holds a secret that begins {secret:.12}, after {before}");
                }
            }
        }
    }

    /// Waits until every line noted so far is written: lines are written in order.
    fn flush_audit(&self, sidecar: &Sidecar) {
        self.audit.repair();
        let mark = format!("flushed-{}", self.audit.text().len());
        let event = Event { detail: Some(mark.clone()), ..Event::new(START, Kind::Refusal, "refused") };
        sidecar.broker.parts().audit.note(&event);
        for _ in 0..200_000 {
            if self.audit.text().ends_with(&format!("{mark}\"}}\n")) {
                return;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check_for_leaks();
        }
    }
}

/// Adds the content of every file in `directory` and below.
fn files_below(directory: &Path, places: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, places);
        } else if path.is_file() {
            places.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

/// What a 201 tells.
pub(crate) fn begun(reply: &Reply) -> Begun {
    assert_eq!(reply.status, 201, "{}", reply.text());
    let body = reply.json();
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    Begun { id: text("id"), token: text("token"), expires_at: text("expires_at").parse().unwrap(), body }
}

/// One holder's stream; letting it go closes the connection.
pub(crate) struct Hold(Connection);

impl Hold {
    /// The next heartbeat; `None` when the stream has ended.
    pub(crate) async fn line(&mut self) -> Option<Value> {
        let chunk = self.0.chunk().await?;
        assert_eq!(chunk.last(), Some(&b'\n'));
        Some(serde_json::from_slice(&chunk).unwrap())
    }
}

/// A time in a body.
pub(crate) fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// The log of all tests together, at its most talkative.
static LOGGED: LazyLock<Logged> = LazyLock::new(|| {
    let logged = Logged::default();
    let sink = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || sink.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    logged
});

#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Adds to a policy file, so that its digest is no longer the one decided on.
pub(crate) fn append(path: &Path, text: &str) {
    fs::write(path, fs::read_to_string(path).unwrap() + text).unwrap();
}
