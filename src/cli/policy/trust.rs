//! `policy trust`: somebody looks at a signed repository's root and owners, and says that it is to be trusted here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::app::{fetch, trust_anchor};
use crate::cli::{CliError, CliResult, Exit, Output, plain, print, setting};
use crate::clock::{SharedClock, within};
use crate::config::{RepositoryPlace, RepositorySettings, default_state_directory, repository_place};
use crate::http_client::Proxy;
use crate::identity::SpiffeId;
use crate::identity::workload_api::endpoint::ENVIRONMENT;
use crate::identity::workload_api::{SpiffeWorkloadApi, WorkloadApi};
use crate::policy::PolicyVersion;
use crate::policy::repository::fault::{Fault, FaultKind};
use crate::policy::repository::signed::{Examined, SignedSettings, SignedSource};
use crate::policy::repository::trusted::RoleSummary;
use crate::policy::standing::OWNERS;

/// How long the Workload API may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Begin to trust a signed policy repository.
///
/// Shows who may sign what, asks, looks at the repository once, and writes into the state directory what it saw. From then
/// on the sidecar refuses anything older, and takes a state directory that lacks it for a loss. Run it as the sidecar's
/// user, while the sidecar is stopped.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The root.json to trust, from whoever publishes the policy
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// The repository: https://HOST/PATH, or the folder above metadata/ and targets/
    #[arg(long, value_name = "URL|DIR")]
    repository: String,
    /// The sidecar's state directory. Default: as of `serve`
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// PEM certificates that vouch for the repository's host, in place of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The proxy to the repository: http://[USER:PASSWORD@]HOST:PORT
    #[arg(long, value_name = "URL")]
    proxy: Option<Proxy>,
    /// Show the repository's server one's own X.509-SVID, as policy.client does for the sidecar
    #[arg(long, value_name = "svid")]
    client: Option<Shown>,
    /// The SPIFFE ID of the repository's server, by the trust bundle and in place of --ca, as policy.server_id does
    #[arg(long, value_name = "ID", conflicts_with = "ca")]
    server_id: Option<SpiffeId>,
    /// Where the Workload API is, for these two [env: SPIFFE_ENDPOINT_SOCKET]
    #[arg(long, value_name = "URI")]
    workload_api: Option<String>,
    /// The user whom the SPIFFE agent runs as, where Sidemint cannot tell from its socket
    #[arg(long, env = "SIDEMINT_IDENTITY_WORKLOAD_API_UID", value_name = "UID")]
    workload_api_uid: Option<u32>,
    /// The least snapshot version to trust
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    minimum_version: Option<u64>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What is shown to the repository's server.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shown {
    /// One's own X.509-SVID.
    Svid,
}

fn refused(fault: &Fault) -> CliError {
    let exit = match fault.kind() {
        FaultKind::Unreachable => Exit::Unavailable,
        FaultKind::State => Exit::Failed,
        _ => Exit::Denied,
    };
    CliError::new(exit, fault.to_string())
}

fn usage(message: impl Into<String>) -> CliError {
    CliError::new(Exit::Usage, message)
}

impl Args {
    /// The Workload API, once it has said who we are and who is trusted; none where it is not needed.
    async fn workload_api(&self, clock: &SharedClock) -> Result<Option<Arc<dyn WorkloadApi>>, CliError> {
        if self.client.is_none() && self.server_id.is_none() {
            return Ok(None);
        }
        let address = setting(self.workload_api.as_deref(), ENVIRONMENT, "");
        let api = SpiffeWorkloadApi::start(&address, self.workload_api_uid, Arc::clone(clock))
            .map_err(|error| usage(format!("{ENVIRONMENT}={address:?}: {error}")))?;
        let mut states = api.watch();
        let answer = states.wait_for(|state| state.known || !state.x509_bundles.is_empty());
        if within(&**clock, LIMIT, answer).await.is_none() {
            let why = api.health().last_error().unwrap_or("no answer").to_owned();
            return Err(CliError::new(Exit::Unavailable, format!("the Workload API at {address}: {why}")));
        }
        Ok(Some(api))
    }

    fn source(&self, clock: SharedClock, workload_api: Option<Arc<dyn WorkloadApi>>) -> Result<SignedSource, CliError> {
        let absolute = match self.repository.contains("://") {
            true => self.repository.clone(),
            // A folder may be named from where one is.
            false => std::path::absolute(&self.repository)
                .map_err(|error| usage(format!("--repository: {error}")))?
                .display()
                .to_string(),
        };
        let repository = repository_place(&absolute)
            .ok_or_else(|| usage("--repository: write https://HOST/PATH, or the folder above metadata/"))?;
        if workload_api.is_some() && matches!(repository, RepositoryPlace::Directory(_)) {
            return Err(usage("--client and --server-id need a repository at https://HOST/PATH"));
        }
        let default = || default_state_directory(|name| std::env::var(name).ok());
        let state = self.state.clone().or_else(default).ok_or_else(|| usage("--state: name the state directory"))?;
        let repository = RepositorySettings {
            repository,
            root: self.root.clone(),
            minimum_version: self.minimum_version,
            ca: self.ca.clone(),
            proxy: self.proxy.clone(),
            client_svid: self.client.is_some(),
            server_id: self.server_id.clone(),
            timeout: Duration::from_secs(10),
        };
        let settings = SignedSettings {
            anchor: trust_anchor(&self.root).map_err(|why| usage(format!("--root: {why}")))?,
            state,
            minimum_version: self.minimum_version,
            scopes: BTreeSet::new(),
        };
        let fetch = fetch(&repository, &clock, workload_api).map_err(|error| usage(error.to_string()))?;
        SignedSource::new(settings, fetch, clock).map_err(|fault| refused(&fault))
    }
}

/// Runs the command.
///
/// # Errors
/// When the root or the repository is not to be trusted, or nobody says that it is.
pub(super) async fn run(args: &Args, clock: SharedClock) -> CliResult {
    let workload_api = args.workload_api(&clock).await?;
    let source = args.source(clock, workload_api)?;
    let examined = source.examine().await.map_err(|fault| refused(&fault))?;
    if args.output == Output::Text {
        print(text(&examined))?;
    }
    if !args.yes {
        confirm()?;
    }
    let version = source.trust().await.map_err(|fault| refused(&fault))?;
    match args.output {
        Output::Text => print(format!("trusted from now on, beginning with version {version}\n"))?,
        Output::Json => print(format!("{}\n", report(&examined, &version)))?,
    }
    Ok(Exit::Ok as u8)
}

/// Who may sign the five folders, as the charter says.
fn owners(examined: &Examined) -> Vec<RoleSummary> {
    let charter = examined.verified.roles.get("targets").map(|(_, bytes)| bytes.as_ref()).unwrap_or_default();
    // Verified before.
    let charter: Value = serde_json::from_slice(charter).unwrap_or_default();
    let roles = charter.pointer("/signed/delegations/roles").and_then(Value::as_array).cloned().unwrap_or_default();
    let of = |role: &Value| {
        let keys = role.get("keyids")?.as_array()?;
        Some(RoleSummary {
            role: role.get("name")?.as_str()?.to_owned(),
            keys: keys.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect(),
            threshold: usize::try_from(role.get("threshold")?.as_u64()?).ok()?,
        })
    };
    roles.iter().filter_map(of).collect()
}

/// How many files of each folder there are.
fn counts(examined: &Examined) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for path in examined.verified.files.files.keys() {
        *counts.entry(path.split('/').next().unwrap_or_default()).or_default() += 1;
    }
    counts
}

fn text(examined: &Examined) -> String {
    let ends = &examined.verified.standing.ends;
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", plain(&line));
    };
    line(format!("root {} and version {}", examined.roots.mark().version, examined.verified.files.version));
    for role in examined.roots.summary().into_iter().chain(owners(examined)) {
        let end = ends.get(role.role.as_str()).map(ToString::to_string).unwrap_or_default();
        let folder = OWNERS.iter().find(|(name, _)| *name == role.role).map(|(_, folder)| format!("{folder}/"));
        let folder = folder.unwrap_or_default();
        let s = if role.keys.len() == 1 { "" } else { "s" };
        line(format!("{:<16} {folder:<12} {} of {} key{s}, until {end}", role.role, role.threshold, role.keys.len()));
        for key in &role.keys {
            line(format!("{:17}{key}", ""));
        }
    }
    for (folder, count) in counts(examined) {
        let s = if count == 1 { "" } else { "s" };
        line(format!("{:<16} {count} file{s}", format!("{folder}/")));
    }
    for path in examined.verified.files.files.keys().filter(|path| path.starts_with("owners/")) {
        line(format!("{:17}{path}", ""));
    }
    text
}

fn report(examined: &Examined, version: &PolicyVersion) -> Value {
    let ends = &examined.verified.standing.ends;
    let role = |role: &RoleSummary| json!({"role": role.role, "keys": role.keys, "threshold": role.threshold, "until": ends.get(role.role.as_str())});
    let roles: Vec<Value> = examined.roots.summary().iter().chain(&owners(examined)).map(role).collect();
    json!({
        "version": version,
        "root": {"version": examined.roots.mark().version, "digest": examined.roots.mark().digest.to_string()},
        "roles": roles,
        "files": counts(examined),
    })
}

fn confirm() -> Result<(), CliError> {
    let failed = |message: String| CliError::new(Exit::Failed, message);
    if !io::stdin().is_terminal() {
        return Err(usage("there is no terminal to ask on: add --yes once you have looked"));
    }
    let asked = write!(io::stderr(), "Trust this? [y/N] ").and_then(|()| io::stderr().flush());
    asked.map_err(|error| failed(format!("cannot ask: {error}")))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| failed(format!("cannot read the answer: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(failed("not trusted; nothing was written".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use crate::policy::repository::sample::Sample;
    use crate::policy::repository::store::Store;

    const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

    fn sample(folder: &Path) -> Sample {
        let files = BTreeMap::from([("owners/finance-data.toml".to_owned(), "schema = 1".into())]);
        let mut sample = Sample::new(files, &[]).unwrap();
        sample.publish(NOW).unwrap();
        sample.write_to(&folder.join("repository")).unwrap();
        std::fs::write(folder.join("root.json"), sample.anchor()).unwrap();
        sample
    }

    fn args(folder: &Path) -> Args {
        Args {
            root: folder.join("root.json"),
            repository: folder.join("repository").display().to_string(),
            state: Some(folder.join("state")),
            ca: None,
            proxy: None,
            client: None,
            server_id: None,
            workload_api: None,
            workload_api_uid: None,
            minimum_version: None,
            yes: true,
            output: Output::Text,
        }
    }

    async fn trust(args: &Args) -> Result<u8, CliError> {
        run(args, Arc::new(ManualClock::at(NOW))).await
    }

    #[tokio::test]
    async fn shows_the_signers_of_each_role_then_stores_trust() {
        let folder = tempfile::tempdir().unwrap();
        let sample = sample(folder.path());
        let args = args(folder.path());
        let examined = args.source(Arc::new(ManualClock::at(NOW)), None).unwrap().examine().await.unwrap();
        let shown = text(&examined);
        for role in ["root", "timestamp", "targets", "governance", "incident"] {
            let key = sample.role_keys(role).keys[0].id();
            assert!(shown.contains(role) && shown.contains(&key), "{role}\n{shown}");
        }
        assert!(shown.contains("2 of 2 keys, until 2026-12-") && shown.contains("owners/finance-data.toml"), "{shown}");
        assert!(!Store::is_begun(&folder.path().join("state")), "looking writes nothing");
        assert_eq!(trust(&args).await.unwrap(), 0);
        assert!(Store::is_begun(&folder.path().join("state")));
        // again is harmless
        assert_eq!(trust(&args).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn rejects_to_overwrite_trust_in_another_root() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        trust(&args(folder.path())).await.unwrap();
        sample(folder.path());
        let error = trust(&args(folder.path())).await.unwrap_err();
        assert_eq!(error.exit, Exit::Denied);
        assert!(error.message.starts_with("other_fleet: "), "{error}");
    }

    #[tokio::test]
    async fn rejects_a_root_that_did_not_sign_the_repository_and_one_that_is_invalid() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        let other = Sample::new(BTreeMap::new(), &[]).unwrap().publish_root(NOW).unwrap();
        std::fs::write(folder.path().join("root.json"), other).unwrap();
        let error = trust(&args(folder.path())).await.unwrap_err();
        assert!(error.message.starts_with("signature: "), "{error}");
        std::fs::write(folder.path().join("root.json"), "{}").unwrap();
        let error = trust(&args(folder.path())).await.unwrap_err();
        assert!(error.message.starts_with("malformed: "), "{error}");
        assert!(!Store::is_begun(&folder.path().join("state")));
    }

    #[tokio::test]
    async fn requires_yes_without_a_terminal() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        if io::stdin().is_terminal() {
            return;
        }
        let args = Args { yes: false, ..args(folder.path()) };
        assert_eq!(trust(&args).await.unwrap_err().exit, Exit::Usage);
        assert!(!Store::is_begun(&folder.path().join("state")));
    }

    #[tokio::test]
    async fn a_repository_below_the_minimum_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        let args = Args { minimum_version: Some(2), ..args(folder.path()) };
        assert!(trust(&args).await.unwrap_err().message.starts_with("below_minimum: "));
    }

    #[tokio::test]
    async fn rejects_mutual_tls_options_for_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        let api: Arc<dyn WorkloadApi> =
            SpiffeWorkloadApi::start("unix:///nonexistent/agent.sock", None, Arc::new(ManualClock::at(NOW))).unwrap();
        let error = args(folder.path()).source(Arc::new(ManualClock::at(NOW)), Some(api)).unwrap_err();
        assert!(error.exit == Exit::Usage && error.message.starts_with("--client and --server-id"), "{error}");
    }
}

/// A repository that only a workload may read, from a server that is one.
#[cfg(test)]
#[cfg(feature = "dev")]
mod mutual {
    use std::convert::Infallible;
    use std::path::Path;

    use clap::Parser as _;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use rustls::RootCertStore;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::server::WebPkiClientVerifier;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::dev::Running;
    use crate::dev::authority::{Authority, Settings, workload_api};
    use crate::identity::workload_api::client::Client;
    use crate::policy::repository::sample::Sample;

    const US: &str = "spiffe://example.org/ns/finance/sa/report";
    const SERVER: &str = "spiffe://example.org/ns/policy/sa/repository";

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    async fn trust(words: &[&str]) -> Result<u8, CliError> {
        let command = Command::try_parse_from([&["trust", "--yes"], words].concat()).unwrap();
        run(&command.args, Arc::new(SystemClock)).await
    }

    /// A Workload API in `folder`, and a server of `folder`/repository that wants certificates of its trust domain.
    async fn world(folder: &Path) -> (Running, String) {
        let clock: SharedClock = Arc::new(SystemClock);
        let settings = Settings {
            trust_domain: "example.org".parse().unwrap(),
            identities: vec![US.parse().unwrap(), SERVER.parse().unwrap()],
            issuer: "https://issuer.example.org".to_owned(),
            x509_ttl: Settings::X509_TTL,
            jwt_ttl: Settings::JWT_TTL,
        };
        let authority = Authority::new(settings, Arc::clone(&clock)).unwrap();
        let socket = folder.join("agent.sock");
        let running = workload_api::serve(&authority, &socket).unwrap();
        let address = format!("unix://{}", socket.display());
        let svids = Client::new(address.parse().unwrap(), None, clock).fetch_x509_svids(LIMIT).await.unwrap();
        let own = svids.into_iter().find(|svid| svid.svid.spiffe_id.as_str() == SERVER).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(own.bundle.into_iter().map(Into::into));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let wanted =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(wanted)
            .with_single_cert(
                own.chain.into_iter().map(Into::into).collect(),
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.private_key.as_ref().to_vec())),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let files = folder.join("repository");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let files = files.clone();
                let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let found = std::fs::read(files.join(request.uri().path().trim_start_matches('/')));
                    let status = if found.is_ok() { 200 } else { 404 };
                    let body = Full::new(bytes::Bytes::from(found.unwrap_or_default()));
                    async move { Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap()) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        (running, url)
    }

    #[tokio::test]
    async fn a_repository_behind_mutual_tls_is_trusted_with_the_svid_and_the_servers_id() {
        let folder = tempfile::tempdir().unwrap();
        let files = BTreeMap::from([("owners/finance-data.toml".to_owned(), "schema = 1".into())]);
        let mut sample = Sample::new(files, &[]).unwrap();
        sample.publish(SystemClock.now()).unwrap();
        sample.write_to(&folder.path().join("repository")).unwrap();
        std::fs::write(folder.path().join("root.json"), sample.anchor()).unwrap();
        let (_running, url) = world(folder.path()).await;
        let of = |name: &str| folder.path().join(name).display().to_string();
        let (root, state, socket) = (of("root.json"), of("state"), format!("unix://{}", of("agent.sock")));
        let always = ["--root", &root, "--repository", &url, "--state", &state, "--workload-api", &socket];

        // Neither its name nor its authority is one that the system knows.
        let error = trust(&always).await.unwrap_err();
        assert!(error.exit == Exit::Unavailable && error.message.contains("no authority that is trusted"), "{error}");
        // Nobody may read it who shows nothing.
        let error = trust(&[&always[..], &["--server-id", SERVER]].concat()).await.unwrap_err();
        assert!(error.message.contains("policy.client"), "{error}");
        // It is another workload than was said.
        let error = trust(&[&always[..], &["--client", "svid", "--server-id", US]].concat()).await.unwrap_err();
        assert!(error.message.contains("another workload"), "{error}");
        assert_eq!(trust(&[&always[..], &["--client", "svid", "--server-id", SERVER]].concat()).await.unwrap(), 0);
    }
}
