//! The world around the sidecar: a Workload API with one identity, an STS, policy files, and the real `sidemint serve`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use sidemint::clock::{Clock as _, SharedClock, SystemClock};
use sidemint::dev::Running;
use sidemint::dev::authority::{self, Authority};
use sidemint::dev::cloud::{self, Cloud, http, iam, sts};
use sidemint::identity::workload_api;
use sidemint::identity::workload_api::client::X509Material;
use sidemint::policy::repository::sample::Sample;

use crate::load::Client;

/// The one identity.
pub(crate) const WORKLOAD: &str = "spiffe://dev.test/report";
const ROLE: &str = "arn:aws:iam::111122223333:role/ledger";
const STS_AUDIENCE: &str = "sts.amazonaws.com";

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Everything but the sidecar.
pub(crate) struct Stage {
    authority: Arc<Authority>,
    pub(crate) cloud: Arc<Cloud>,
    sts_endpoint: String,
    _running: [Running; 2],
    folder: tempfile::TempDir,
    /// Who signs the policy, where it is signed.
    publisher: Option<Mutex<Sample>>,
    // last, since what runs must be dropped before
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    /// A new world with a policy of `scopes` scopes.
    pub(crate) fn new(scopes: usize) -> Fallible<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let folder = tempfile::tempdir()?;
        let clock: SharedClock = Arc::new(SystemClock);
        let (authority, cloud, sts_endpoint, running) = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let endpoint = format!("http://{}", listener.local_addr()?);
            let settings = authority::Settings {
                trust_domain: "dev.test".parse()?,
                identities: vec![WORKLOAD.parse()?],
                issuer: endpoint.clone(),
                x509_ttl: authority::Settings::X509_TTL,
                jwt_ttl: authority::Settings::JWT_TTL,
            };
            let authority = Authority::new(settings, Arc::clone(&clock))?;
            let running = authority::workload_api::serve(&authority, &folder.path().join("workload-api.sock"))?;
            let keys = Arc::clone(&authority);
            let cloud = Cloud::new(cloud_settings(&endpoint)?, Arc::new(move || keys.jwks()), Arc::clone(&clock));
            let sts = http::serve(&cloud, listener, sts::MAX_BODY, sts::answer)?;
            Ok::<_, Box<dyn Error>>((authority, cloud, endpoint, [running, sts]))
        })?;
        for (path, text) in policy_files(scopes) {
            let path = folder.path().join("policy").join(path);
            std::fs::create_dir_all(path.parent().ok_or("a file without a folder")?)?;
            std::fs::write(path, text)?;
        }
        Ok(Self { authority, cloud, sts_endpoint, _running: running, folder, publisher: None, runtime })
    }

    /// The same with a signed policy repository.
    pub(crate) fn signed(scopes: usize) -> Fallible<Self> {
        let mut stage = Self::new(0)?;
        let sample = signed_policy(scopes)?;
        sample.write_to(&stage.repository())?;
        std::fs::write(stage.folder.path().join("root.json"), sample.anchor())?;
        stage.publisher = Some(Mutex::new(sample));
        Ok(stage)
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// Publishes a new version that differs in the purpose of one scope alone (which suspends it; it is none in use).
    pub(crate) fn publish_change(&self) -> Fallible<()> {
        let mut sample =
            self.publisher.as_ref().ok_or("the policy is not signed")?.lock().map_err(|_| "the publisher crashed")?;
        let (path, text) = sample.files.iter().rfind(|(path, _)| path.starts_with("scopes/")).ok_or("no scope")?;
        let (path, text) = (path.clone(), [text, &b"# another word\n"[..]].concat());
        sample.files.insert(path, text.into());
        sample.publish(SystemClock.now())?;
        Ok(sample.write_to(&self.repository())?)
    }

    /// `[policy]` of the sidecar's configuration.
    fn policy(&self) -> String {
        let world = self.folder.path().display();
        match self.publisher {
            None => format!("directory = \"{world}/policy\"\ntrust = \"unsigned\""),
            Some(_) => format!(
                "repository = \"{world}/repository\"\nroot = \"{world}/root.json\"\nminimum_version = 1\npoll = \"500ms\""
            ),
        }
    }

    /// A JWT-SVID of the workload for the sidecar.
    pub(crate) fn svid(&self) -> Fallible<String> {
        let token = self.authority.jwt_svid(&WORKLOAD.parse()?, &["sidemint".to_owned()])?;
        // exposed: it is sent to the sidecar under test, as a workload would
        Ok(token.ok_or("no such identity")?.expose().to_owned())
    }

    /// The workload's X.509-SVID, which is the sidecar's too.
    pub(crate) fn x509_svid(&self) -> Fallible<X509Material> {
        let endpoint = format!("unix://{}", self.socket().display()).parse()?;
        let client = workload_api::client::Client::new(endpoint, None, Arc::new(SystemClock));
        let svids = self.runtime.block_on(client.fetch_x509_svids(Duration::from_secs(5)))?;
        Ok(svids.into_iter().next().ok_or("no X.509-SVID")?)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("workload-api.sock")
    }
}

fn cloud_settings(issuer: &str) -> Fallible<cloud::Settings> {
    let policy = r#"{"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::ledger/*"}]}"#;
    let role = cloud::Role {
        arn: ROLE.into(),
        id: "AROADEVTESTLEDGER0001".into(),
        trusted_subject: WORKLOAD.into(),
        trusted_audience: STS_AUDIENCE.into(),
        max_session: Duration::from_secs(3600),
        policy: iam::Policy::parse(policy)?,
    };
    let audiences = vec![STS_AUDIENCE.into()];
    Ok(cloud::Settings { issuer: issuer.to_owned(), audiences, region: "us-east-1".into(), roles: vec![role] })
}

/// The id of the `n`th scope.
pub(crate) fn scope_id(n: usize) -> String {
    format!("scope-{n:05}")
}

/// The files of a policy of `scopes` scopes, each with one rule, one parameter and one grant, and one boundary for all.
pub(crate) fn policy_files(scopes: usize) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let review_by = (SystemClock.now() + Duration::from_secs(180 * 24 * 3600)).to_string();
    let review_by = review_by.get(..10).unwrap_or_default();
    files.insert(
        "boundaries/security.cedar".into(),
        r#"@id("no-foreign-domains")
forbid (principal, action == Action::"begin", resource)
unless { context.verified.trust_domain == "dev.test" };
"#
        .into(),
    );
    for id in (0..scopes).map(scope_id) {
        let scope = format!(
            "schema = 1\npurpose = \"The nightly report {id} reads one customer's ledger\"\nbusiness_owner = \"finance-data\"\n\
             justification = \"The report is the month's closing statement\"\n\n[params]\n\
             customer = {{ type = \"segment\", max = 32 }}\n"
        );
        let grant = format!(
            "schema = 1\nprovider = \"aws\"\nrole_arn = \"{ROLE}\"\n\n[[session_policy.Statement]]\nEffect = \"Allow\"\n\
             Action = [\"s3:GetObject\"]\nResource = [\"arn:aws:s3:::ledger/${{param.customer}}/*\"]\n"
        );
        let rules = format!(
            "@id(\"report-reads-{id}\")\npermit (principal == Workload::\"{WORKLOAD}\", action == Action::\"begin\", \
             resource == Scope::\"{id}\")\nwhen {{ [\"c-42\", \"c-43\"].contains(context.asserted.params.customer) }};\n"
        );
        let decision = format!(
            "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"identity-governance\"\n\
             review_by = {review_by}\nmax_task = \"8h\"\nmax_residual = \"1h\"\nscope = \"{}\"\ngrants = {{ {id}-aws = \"{}\" }}\n",
            digest_of(&scope),
            digest_of(&grant),
        );
        files.insert(format!("scopes/{id}.toml"), scope);
        files.insert(format!("grants/{id}-aws.toml"), grant);
        files.insert(format!("decisions/{id}.cedar"), rules);
        files.insert(format!("decisions/{id}.toml"), decision);
    }
    files
}

/// The same files with their owners, signed and published once.
pub(crate) fn signed_policy(scopes: usize) -> Fallible<Sample> {
    let mut files: BTreeMap<String, Bytes> =
        policy_files(scopes).into_iter().map(|(path, text)| (path, text.into())).collect();
    files.insert("owners/charter.toml".to_owned(), "schema = 1\n".into());
    for owner in ["identity-governance", "finance-data"] {
        let text = format!("schema = 1\nname = \"{owner}\"\nmail = \"{owner}@dev.test\"\n");
        files.insert(format!("owners/{owner}.toml"), text.into());
    }
    files.insert("kill/list.toml".to_owned(), "schema = 1\n".into());
    let mut sample = Sample::new(files, &[])?;
    sample.publish(SystemClock.now())?;
    Ok(sample)
}

fn digest_of(text: &str) -> String {
    let digits: String = digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The real `sidemint serve`, a process of its own. Killed when dropped.
pub(crate) struct Sidecar {
    pub(crate) http: SocketAddr,
    pub(crate) mtls: SocketAddr,
    admin: SocketAddr,
    child: Child,
    log: PathBuf,
    /// From the start of the process until `/readyz` said so.
    pub(crate) ready_after: Duration,
    _folder: tempfile::TempDir,
}

/// The sidecar as it is delivered, which `benches/report` builds.
pub(crate) fn binary() -> Fallible<PathBuf> {
    match std::env::var_os("SIDEMINT_BENCH_BINARY") {
        Some(path) => Ok(path.into()),
        None => Err("run benches/report, which builds the sidecar without feature dev".into()),
    }
}

impl Sidecar {
    /// Starts it beside `stage`, on `core` where one is given, and returns once it is ready.
    pub(crate) fn start(stage: &Stage, core: Option<usize>) -> Fallible<Self> {
        Self::start_on(stage, core, |_| Ok(()))
    }

    /// The same, once `prepare` has filled the state directory, which is not there before.
    pub(crate) fn start_on(
        stage: &Stage,
        core: Option<usize>,
        prepare: impl FnOnce(&Path) -> Fallible<()>,
    ) -> Fallible<Self> {
        let folder = tempfile::tempdir()?;
        prepare(&folder.path().join("state"))?;
        let [http, mtls, admin] = free_addresses()?;
        let config = folder.path().join("sidemint.toml");
        std::fs::write(&config, configuration(stage, folder.path(), [http, mtls, admin]))?;
        let log = folder.path().join("serve.log");
        let mut command = Command::new(binary()?);
        command.arg("serve").arg("--config").arg(&config).env_clear().stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        let began = Instant::now();
        let child = spawn_on(core, &mut command)?;
        let mut sidecar = Self { http, mtls, admin, child, log, ready_after: Duration::ZERO, _folder: folder };
        sidecar.wait_until_ready(began)?;
        sidecar.ready_after = began.elapsed();
        Ok(sidecar)
    }

    fn wait_until_ready(&mut self, began: Instant) -> Fallible<()> {
        // On one connection: to accept a new one for each question would be work for the sidecar that nobody else gives it.
        let mut connected = None;
        loop {
            let client = connected.take().map_or_else(|| Client::connect(self.admin), Ok);
            let asked = client.and_then(|mut client| Ok((client.send("GET", "/readyz", &[], "")?, client)));
            if let Ok((answer, client)) = asked {
                if answer.status == 200 {
                    return Ok(());
                }
                connected = Some(client);
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("it ended with {status}: {}", std::fs::read_to_string(&self.log)?).into());
            }
            if began.elapsed() > Duration::from_secs(60) {
                return Err(format!("it is not ready: {}", std::fs::read_to_string(&self.log)?).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A counter of its metrics, given as the text before the number.
    pub(crate) fn counted(&self, name: &str) -> Fallible<f64> {
        let answer = Client::connect(self.admin)?.send("GET", "/metrics", &[], "")?;
        let text = String::from_utf8(answer.body)?;
        let number = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such metric")?;
        Ok(number.trim().parse()?)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Begins a task in the first scope over `client` and returns its token.
    pub(crate) fn begin(&self, client: &mut Client, svid: &str) -> Fallible<String> {
        Ok(self.begin_task(client, svid)?.1)
    }

    /// Begins a task in the first scope over `client` and returns its id and its token.
    pub(crate) fn begin_task(&self, client: &mut Client, svid: &str) -> Fallible<(String, String)> {
        let body = format!(r#"{{"scope":"{}","params":{{"customer":"c-42"}}}}"#, scope_id(0));
        let bearer = format!("Bearer {svid}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let answer = client.send("POST", "/v1/tasks", &headers, &body)?;
        if answer.status != 201 {
            return Err(format!("begin: {} {}", answer.status, String::from_utf8_lossy(&answer.body)).into());
        }
        let view: serde_json::Value = serde_json::from_slice(&answer.body)?;
        let member = |name: &str| view.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
        Ok((member("id").ok_or("no id")?, member("token").ok_or("no token")?))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Free loopback addresses. Another process may take them before the sidecar does; then it says so and ends.
fn free_addresses() -> Fallible<[SocketAddr; 3]> {
    let free = || TcpListener::bind("127.0.0.1:0");
    let held = [free()?, free()?, free()?];
    let [http, mtls, admin] = &held;
    Ok([http.local_addr()?, mtls.local_addr()?, admin.local_addr()?])
}

fn configuration(stage: &Stage, folder: &Path, [http, mtls, admin]: [SocketAddr; 3]) -> String {
    let (world, folder) = (stage.folder.path().display(), folder.display());
    format!(
        "[server]\nhttp = \"{http}\"\n[mtls]\naddress = \"{mtls}\"\n[admin]\nhttp = \"{admin}\"\n\
         [identity]\nworkload_api = \"unix://{world}/workload-api.sock\"\n\
         [policy]\n{}\n\
         [aws]\nsts_endpoint = \"{}\"\n[state]\ndirectory = \"{folder}/state\"\n[audit]\noutput = \"{folder}/audit.jsonl\"\n\
         [limits]\ntasks = 20000\ntasks_per_caller = 20000\nmints_per_caller = 1000000\nconnections = 2048\n\
         requests = 4096\nupstream_rate = 100000\nupstream_burst = 100000\n",
        stage.policy(),
        stage.sts_endpoint,
    )
}

/// The core for the server and the core for its clients; none where there is but one.
pub(crate) fn cores() -> (Option<usize>, Option<usize>) {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        1 => (None, None),
        _ => (Some(0), Some(1)),
    }
}

/// Starts `command` so that it, and all its threads, stay on `core`.
pub(crate) fn spawn_on(core: Option<usize>, command: &mut Command) -> std::io::Result<Child> {
    on_core(core, || command.spawn())
}

/// Runs `work` on a thread that stays on `core`; what it starts stays there too.
pub(crate) fn on_core<T: Send>(core: Option<usize>, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if let Some(core) = core {
                let mut set = rustix::thread::CpuSet::new();
                set.set(core);
                // Where the system forbids it, the figures are only less steady.
                let _ = rustix::thread::sched_setaffinity(None, &set);
            }
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
