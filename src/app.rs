//! The composition root: the only file that picks real implementations and joins them.
//!
//! Two phases: [`build`] opens and binds everything and returns the addresses; [`Bound::run`] serves until told to
//! stop, then drains.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::audit::{self, Audit, AuditError};
use crate::broker::{Broker, Limits, Metrics, Parts, reaper};
use crate::clock::{SharedClock, SystemClock, Timestamp, TrustedClock, within};
use crate::config::{AtShutdown, Config, PolicyPlace, RepositoryPlace, RepositorySettings, ShutdownSettings};
use crate::exchange::aws::{AwsSts, Settings, SettingsError};
use crate::exchange::vault::{self, Vault};
use crate::exchange::{Context, Exchange, Provider};
use crate::http_client::TlsSettings;
use crate::identity::task_token::NoRandomness;
use crate::identity::workload_api::endpoint::EndpointError;
use crate::identity::workload_api::{SpiffeWorkloadApi, WorkloadApi};
use crate::identity::{self, Authenticator};
use crate::journal::{DiskJournal, JournalError};
use crate::lease::LeaseRecord;
use crate::lease::stranded::{Stranded, stranded};
use crate::metrics::Registry;
use crate::pod_task::PodTask;
use crate::policy::cache::PolicyCache;
use crate::policy::repository::fault::Fault;
use crate::policy::repository::fetch::{DirectoryFetch, Fetch};
use crate::policy::repository::http::{ClientSvid, HttpError, HttpFetch, HttpSettings, Roots};
use crate::policy::repository::signed::{SignedSettings, SignedSource};
use crate::policy::repository::trusted::MAX_ROOT;
use crate::policy::repository::{DirectorySource, PolicySource};
use crate::policy::{self, LoadOptions};
use crate::retry::SystemJitter;
use crate::server::admin::Admin;
use crate::server::mtls::{self, Mtls};
use crate::server::{self, Listener, ListenerLimits, Server, descriptors, serve};
use crate::timekeeper;

/// How long requests under way may take once the sidecar stops.
const DRAIN: Duration = Duration::from_millis(500);
/// How long the tasks' ends may take to become durable, and revocations under way, once the sidecar stops.
const END_TASKS: Duration = Duration::from_millis(1000);
/// How long the audit log's last checkpoint may take to reach the disk.
const CLOSE_AUDIT: Duration = Duration::from_millis(300);

/// Why the sidecar did not start. Each says the fix; all are mistakes of configuration or of the machine's set-up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The Workload API's address.
    #[error("identity.workload_api (or SPIFFE_ENDPOINT_SOCKET): {0}")]
    WorkloadApi(#[from] EndpointError),
    /// The journal.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// What the state directory remembers of the clock.
    #[error("{0}")]
    Clock(#[source] io::Error),
    /// The audit log.
    #[error("audit.output: {0}")]
    Audit(#[from] AuditError),
    /// AWS.
    #[error("{0}")]
    Aws(#[from] SettingsError),
    /// The trust anchor cannot be read.
    #[error("policy.root: {0}")]
    PolicyRoot(String),
    /// The trust anchor is invalid.
    #[error("policy.root: {0}: ask the policy's publishers for the root.json to trust")]
    PolicyAnchor(#[from] Fault),
    /// The policy repository's place cannot be used.
    #[error("policy.repository: {0}")]
    PolicyRepository(#[from] HttpError),
    /// Vault.
    #[error("{0}")]
    Vault(#[from] vault::SettingsError),
    /// Live credentials of a provider that is gone from the configuration.
    #[error(
        "{0}, and the {provider} they came from is not configured: configure it until then so that they can be revoked, or \
         say state.abandon = [\"{provider}\"] to leave them to die by themselves",
        provider = .0.provider
    )]
    Stranded(Stranded),
    /// A listener.
    #[error("{key}: cannot listen on {address}: {error}")]
    Bind {
        /// The key.
        key: &'static str,
        /// The address or path.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The metrics contradict each other.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// No random bytes.
    #[error("{0}")]
    NoRandomness(#[from] NoRandomness),
}

/// A sidecar that is bound and not yet serving.
#[derive(Debug)]
pub struct Bound {
    broker: Arc<Broker>,
    trusted: Arc<TrustedClock>,
    server: Arc<Server>,
    admin: Arc<Admin>,
    policy: Arc<PolicyCache>,
    pod_task: Option<Arc<PodTask>>,
    listeners: Listeners,
    mtls: Option<Arc<Mtls>>,
    settings: RunSettings,
}

#[derive(Debug)]
struct Listeners {
    http: Listener,
    http_address: SocketAddr,
    unix: Option<SocketFile>,
    mtls: Option<(TcpListener, SocketAddr)>,
    admin: Listener,
    admin_address: SocketAddr,
    admin_unix: Option<SocketFile>,
}

#[derive(Debug, Clone, Copy)]
struct RunSettings {
    poll: Duration,
    connections: usize,
    shutdown: ShutdownSettings,
}

/// A bound Unix socket; its file goes when it is dropped.
#[derive(Debug)]
struct SocketFile {
    listener: Option<Listener>,
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Already gone is just as well.
        let _ = fs::remove_file(&self.path);
    }
}

/// Opens and binds everything that `config` names. Nothing is served yet.
///
/// # Errors
/// The first thing that cannot be had.
pub async fn build(config: &Config) -> Result<Bound, StartError> {
    let machine: SharedClock = Arc::new(SystemClock);
    let listeners = bind(config).await?;
    let connections = connections(&listeners, config.limits.connections);
    let (journal, recovered) = DiskJournal::open(&config.state.directory)?;
    // After the journal, whose lock says that the state directory is ours.
    let trusted = TrustedClock::start(Arc::clone(&machine), &config.state.directory).map_err(StartError::Clock)?;
    let clock: SharedClock = Arc::clone(&trusted) as _;
    let audit = Arc::new(Audit::start(&config.audit, &config.state.directory, clock.now())?);
    let identity = &config.identity;
    let workload_api = SpiffeWorkloadApi::start(&identity.workload_api, identity.workload_api_uid, machine)?;
    let policy = policy(config, &clock, Arc::clone(&workload_api) as _)?;
    let exchanges = exchanges(config, Arc::clone(&workload_api) as _, &clock)?;
    let abandoned = abandoned(config, &recovered.leases, &exchanges, clock.earliest())?;
    let parts = Parts {
        authenticator: Authenticator::new(Arc::clone(&workload_api) as _, config.identity.audience.clone())
            .with_federated(config.mtls.as_ref().map(|mtls| mtls.federated.clone()).unwrap_or_default())
            .with_federated_jwt(config.identity.federated.clone()),
        exchanges,
        workload_api: Arc::clone(&workload_api) as _,
        policy: Arc::clone(&policy),
        journal: Arc::new(journal),
        audit,
        metrics: Arc::new(metrics()?),
        jitter: Arc::new(SystemJitter),
        limits: limits(config).within(connections),
        clock,
    };
    let broker = Broker::new(parts, recovered);
    broker.tell_abandoned(&abandoned).await;
    let pod_task = config.pod_task.clone().map(|settings| PodTask::new(Arc::clone(&broker), settings));
    Ok(Bound {
        server: Arc::new(Server::new(Arc::clone(&broker), listeners.http_address)?),
        admin: Arc::new(Admin::new(
            Arc::clone(&broker),
            Arc::clone(&policy),
            workload_api,
            pod_task.clone(),
            listeners.admin_address,
        )),
        mtls: config.mtls.as_ref().map(|settings| Arc::new(Mtls::new(Arc::clone(&broker), settings))),
        broker,
        trusted,
        policy,
        pod_task,
        listeners,
        settings: RunSettings { poll: config.policy.poll, connections, shutdown: config.shutdown },
    })
}

/// The broker's limits as configured.
pub fn limits(config: &Config) -> Limits {
    let limits = &config.limits;
    Limits {
        tasks: limits.tasks,
        tasks_per_caller: limits.tasks_per_caller,
        mints_per_caller: limits.mints_per_caller,
        waits_per_caller: limits.waits_per_caller,
        holds_per_caller: limits.holds_per_caller,
        requests: limits.requests,
        mint: limits.mint,
        wait: limits.wait,
    }
}

/// The metrics of every module, so that each series is there from the first scrape; the broker's are returned.
///
/// # Errors
/// Only when two metrics have one name.
pub fn metrics() -> Result<Metrics, prometheus::Error> {
    let registry = Registry::default();
    audit::metrics::Metrics::new(&registry);
    identity::metrics::Metrics::new(&registry);
    policy::metrics::Metrics::new(&registry);
    server::metrics::Metrics::new(&registry);
    mtls::metrics::Metrics::new(&registry);
    let metrics = Metrics::new(registry);
    metrics.registry().check()?;
    Ok(metrics)
}

fn policy(
    config: &Config,
    clock: &SharedClock,
    workload_api: Arc<dyn WorkloadApi>,
) -> Result<Arc<PolicyCache>, StartError> {
    let scopes = config.policy.scopes.iter().cloned().collect();
    let options = LoadOptions { scopes, without_warnings: true };
    let source: Arc<dyn PolicySource> = match &config.policy.place {
        PolicyPlace::Unsigned(directory) => {
            tracing::warn!(
                directory = %directory.display(),
                "policy.trust = \"unsigned\": whoever can write this directory decides; nothing proves who wrote it"
            );
            Arc::new(DirectorySource::new(directory.clone()))
        }
        PolicyPlace::Signed(repository) => {
            let settings = SignedSettings {
                anchor: trust_anchor(&repository.root).map_err(StartError::PolicyRoot)?,
                state: config.state.directory.clone(),
                minimum_version: repository.minimum_version,
                scopes: options.scopes.clone(),
            };
            Arc::new(SignedSource::new(settings, fetch(repository, clock, Some(workload_api))?, Arc::clone(clock))?)
        }
    };
    Ok(Arc::new(PolicyCache::new(source, options)))
}

/// Reads the `root.json` that is trusted.
///
/// # Errors
/// One line that says why not.
pub fn trust_anchor(path: &Path) -> Result<bytes::Bytes, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_ROOT + 1), &mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_ROOT {
        return Err(format!("{}: larger than {MAX_ROOT} bytes", path.display()));
    }
    Ok(bytes.into())
}

/// What reaches a signed repository.
///
/// # Errors
/// When its place cannot be used.
pub fn fetch(
    settings: &RepositorySettings,
    clock: &SharedClock,
    workload_api: Option<Arc<dyn WorkloadApi>>,
) -> Result<Arc<dyn Fetch>, StartError> {
    let base = match &settings.repository {
        RepositoryPlace::Directory(directory) => return Ok(Arc::new(DirectoryFetch::new(directory))),
        RepositoryPlace::Http(base) => base.clone(),
    };
    let roots = match (&settings.server_id, &settings.ca) {
        (Some(id), _) => Roots::Spiffe(id.clone()),
        (None, Some(pem)) => Roots::Pem(pem.clone()),
        (None, None) => Roots::System,
    };
    let client = settings.client_svid.then_some(ClientSvid::Default);
    let settings = HttpSettings {
        base,
        tls: TlsSettings { roots, client },
        proxy: settings.proxy.clone(),
        timeout: settings.timeout,
    };
    Ok(Arc::new(HttpFetch::new(settings, Arc::clone(clock), workload_api)?))
}

/// The providers as configured.
///
/// # Errors
/// When the settings of one cannot work.
pub(crate) fn exchanges(
    config: &Config,
    workload_api: Arc<dyn WorkloadApi>,
    clock: &SharedClock,
) -> Result<BTreeMap<Provider, Arc<dyn Exchange>>, StartError> {
    let settings = Settings { rate: config.limits.upstream(), ..config.aws.clone() };
    let context = Context { workload_api, clock: Arc::clone(clock), jitter: Arc::new(SystemJitter) };
    let aws = AwsSts::new(settings, context.clone())?;
    let vault = config.vault.clone().map(|settings| Vault::new(settings, context)).transpose()?;
    let configured = [exchange(Some(aws)), exchange(vault)];
    Ok(configured.into_iter().flatten().map(|exchange| (exchange.provider(), exchange)).collect())
}

fn exchange(exchange: Option<impl Exchange + 'static>) -> Option<Arc<dyn Exchange>> {
    exchange.map(|exchange| Arc::new(exchange) as _)
}

/// The live leases that no configured provider can revoke, where the configuration says to abandon them.
///
/// # Errors
/// It does not say so: a provider must not be dropped in silence while it has live leases (threat T16).
fn abandoned(
    config: &Config,
    leases: &[LeaseRecord],
    exchanges: &BTreeMap<Provider, Arc<dyn Exchange>>,
    now: Timestamp,
) -> Result<Vec<Stranded>, StartError> {
    let reached = |lease: &LeaseRecord| {
        exchanges.get(&lease.provider).is_some_and(|exchange| match &lease.upstream {
            Some(handle) => exchange.reaches(handle),
            // Nobody answered: what it may have given is where it was asked.
            None => lease.place.is_none() || lease.place == exchange.location(),
        })
    };
    let stranded = stranded(leases, now, reached);
    if let Some(refused) = stranded.iter().find(|stranded| !config.state.abandon.contains(&stranded.provider)) {
        return Err(StartError::Stranded(refused.clone()));
    }
    for provider in &config.state.abandon {
        match stranded.iter().find(|stranded| stranded.provider == *provider) {
            Some(found) => tracing::error!(%found, "left to die by themselves: state.abandon says so"),
            None => tracing::warn!(%provider, "nothing of it needs to be abandoned: take it out of state.abandon"),
        }
    }
    Ok(stranded)
}

async fn bind(config: &Config) -> Result<Listeners, StartError> {
    let (http, http_address) = tcp("server.http", config.server.http).await?;
    let (admin, admin_address) = tcp("admin.http", config.admin.http).await?;
    let mtls = match &config.mtls {
        Some(settings) => Some(tcp("mtls.address", settings.address).await?),
        None => None,
    };
    let unix_socket = |key, path: &Option<PathBuf>, mode| path.as_deref().map(|p| unix(key, p, mode)).transpose();
    Ok(Listeners {
        http: Listener::Tcp(http),
        http_address,
        mtls,
        // Who may use it is for its directory to say; what it serves needs a token or an SVID anyway.
        unix: unix_socket("server.unix_socket", &config.server.unix_socket, 0o666)?,
        admin: Listener::Tcp(admin),
        admin_address,
        admin_unix: unix_socket("admin.unix_socket", &config.admin.unix_socket, 0o600)?,
    })
}

async fn tcp(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Bind { key, address: address.to_string(), error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Binds beside the final name, sets the mode, then renames: at no moment can it be opened with another mode. A socket
/// file that a killed sidecar left behind is replaced; a file of any other kind is not.
fn unix(key: &'static str, path: &Path, mode: u32) -> Result<SocketFile, StartError> {
    let failed = |error| StartError::Bind { key, address: path.display().to_string(), error };
    if let Ok(there) = fs::symlink_metadata(path)
        && !there.file_type().is_socket()
    {
        return Err(failed(io::Error::other("a file that is not a socket is there")));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(failed(io::ErrorKind::AddrInUse.into()));
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let aside = PathBuf::from(aside);
    let bind = || -> io::Result<UnixListener> {
        let _ = fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside)?;
        fs::set_permissions(&aside, Permissions::from_mode(mode))?;
        fs::rename(&aside, path)?;
        Ok(listener)
    };
    let listener = bind().map_err(failed)?;
    Ok(SocketFile { listener: Some(Listener::Unix(listener)), path: path.to_owned() })
}

impl Bound {
    /// The loopback listener's address.
    pub fn http_address(&self) -> SocketAddr {
        self.listeners.http_address
    }

    /// The operators' listener's address.
    pub fn admin_address(&self) -> SocketAddr {
        self.listeners.admin_address
    }

    /// Serves until `shutdown` is done, then drains. `reload` makes it look at the policy at once.
    pub async fn run(self, shutdown: impl Future<Output = ()>, reload: watch::Receiver<()>) {
        let Self { broker, trusted, server, admin, policy, pod_task, mut listeners, mtls, settings } = self;
        let clock = Arc::clone(&broker.parts().clock);
        let (stop, stopping) = watch::channel(false);
        let limits = ListenerLimits {
            connections: settings.connections,
            told: Some((Arc::clone(&broker.parts().metrics), Arc::clone(&broker.parts().audit))),
            ..ListenerLimits::default()
        };

        let mut serving = tokio::task::JoinSet::new();
        let mutual = listeners.mtls.zip(mtls).map(|((listener, address), mtls)| {
            tracing::info!(mtls = %address, "serving by mutual TLS");
            Listener::Mtls(listener, mtls)
        });
        let unix = listeners.unix.as_mut().and_then(|socket| socket.listener.take());
        let workloads = [Some(listeners.http), unix, mutual];
        for listener in workloads.into_iter().flatten() {
            let server = Arc::clone(&server);
            let handle = move |request, peer| Arc::clone(&server).handle(request, peer);
            serving.spawn(serve(listener, limits.clone(), Arc::clone(&clock), stopping.clone(), handle));
        }
        let operators = [Some(listeners.admin), listeners.admin_unix.as_mut().and_then(|s| s.listener.take())];
        for listener in operators.into_iter().flatten() {
            let admin = Arc::clone(&admin);
            let handle = move |request, peer| {
                let admin = Arc::clone(&admin);
                async move { admin.handle(request, peer).await }
            };
            serving.spawn(serve(listener, limits.clone(), Arc::clone(&clock), stopping.clone(), handle));
        }

        let mut background = tokio::task::JoinSet::new();
        background.spawn(reload_on_demand(Arc::clone(&policy), Arc::clone(&clock), reload));
        let (cache, poll_clock) = (Arc::clone(&policy), Arc::clone(&clock));
        background.spawn(async move {
            cache.reload_now(poll_clock.now()).await;
            cache.run(poll_clock, settings.poll).await;
        });
        let changes = (broker.parts().workload_api.watch(), policy.subscribe());
        background.spawn(reaper::run(Arc::clone(&broker), changes.0, changes.1));
        let parts = broker.parts();
        background.spawn(timekeeper::run(trusted, Arc::clone(&parts.workload_api), Arc::clone(&parts.audit)));
        let (audit, audit_clock) = (Arc::clone(&broker.parts().audit), Arc::clone(&clock));
        background.spawn(async move { audit.keep(audit_clock).await });
        if let Some(pod_task) = pod_task {
            background.spawn(pod_task.run());
        }
        tracing::info!(http = %listeners.http_address, admin = %listeners.admin_address, "serving");

        shutdown.await;
        tracing::info!("stopping");
        clock.sleep(settings.shutdown.linger).await;
        background.abort_all();
        if settings.shutdown.tasks == AtShutdown::End {
            within(&*clock, END_TASKS, broker.close()).await;
        }
        stop.send_replace(true);
        within(&*clock, DRAIN, async { while serving.join_next().await.is_some() {} }).await;
        if let Some(Err(error)) = within(&*clock, CLOSE_AUDIT, broker.parts().audit.close(clock.now())).await {
            tracing::error!(%error, "the audit log ends without a checkpoint");
        }
    }
}

/// How many connections each listener may have: as configured, if the system has the descriptors for it.
fn connections(listeners: &Listeners, wanted: usize) -> usize {
    let optional = [listeners.unix.is_some(), listeners.admin_unix.is_some(), listeners.mtls.is_some()];
    let count = 2 + optional.iter().filter(|is_there| **is_there).count();
    let limit = descriptors::raise();
    let connections = descriptors::connections(limit, count, wanted);
    if connections < wanted {
        tracing::warn!(connections, wanted, ?limit, "limits.connections is lowered: raise the limit on open files");
    }
    connections
}

async fn reload_on_demand(policy: Arc<PolicyCache>, clock: SharedClock, mut reload: watch::Receiver<()>) {
    while reload.changed().await.is_ok() {
        let outcome = policy.reload_now(clock.now()).await;
        tracing::info!(outcome = outcome.as_str(), "policy looked at on demand");
    }
}
