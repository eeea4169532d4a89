//! Configuration: one file plus the environment → validated settings, each stage its own.
//!
//! Every key of `KEYS` can stand in the TOML file as `[section] key`, or in the environment as `SIDEMINT_SECTION_KEY`,
//! which wins. What is not listed is refused. `config/sidemint.toml` documents each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::audit::{self, Output};
use crate::exchange::retry::Rate;
use crate::exchange::vault;
use crate::identity::jwt_svid::is_cloud_audience;
use crate::identity::{SpiffeId, TrustDomain};
use crate::policy::repository::http::Proxy;
use crate::policy::secret_path::is_plain_path;
use crate::policy::{ParamName, Provider, ScopeId};

/// How a key's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Text.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// A list of texts; in the environment separated by commas.
    List,
    /// A table of texts; in the environment `k=v` separated by commas.
    Map,
}

/// Every key there is.
const KEYS: &[(&str, &str, Form)] = &[
    ("server", "http", Form::Text),
    ("server", "unix_socket", Form::Text),
    ("mtls", "address", Form::Text),
    ("mtls", "spiffe_id", Form::Text),
    ("mtls", "federated", Form::List),
    ("admin", "http", Form::Text),
    ("admin", "unix_socket", Form::Text),
    ("identity", "workload_api", Form::Text),
    ("identity", "workload_api_uid", Form::Number),
    ("identity", "audience", Form::Text),
    ("identity", "federated", Form::List),
    ("policy", "directory", Form::Text),
    ("policy", "trust", Form::Text),
    ("policy", "repository", Form::Text),
    ("policy", "root", Form::Text),
    ("policy", "minimum_version", Form::Number),
    ("policy", "ca", Form::Text),
    ("policy", "proxy", Form::Text),
    ("policy", "client", Form::Text),
    ("policy", "server_id", Form::Text),
    ("policy", "timeout", Form::Text),
    ("policy", "scopes", Form::List),
    ("policy", "poll", Form::Text),
    ("aws", "sts_endpoint", Form::Text),
    ("aws", "region", Form::Text),
    ("aws", "audience", Form::Text),
    ("vault", "address", Form::Text),
    ("vault", "ca", Form::Text),
    ("vault", "namespace", Form::Text),
    ("vault", "timeout", Form::Text),
    ("vault", "rate", Form::Number),
    ("vault", "revocation_rate", Form::Number),
    ("state", "directory", Form::Text),
    ("state", "abandon", Form::List),
    ("audit", "output", Form::Text),
    ("audit", "rotate_size", Form::Text),
    ("audit", "rotate_age", Form::Text),
    ("audit", "keep", Form::Number),
    ("audit", "checkpoint_every", Form::Number),
    ("audit", "checkpoint_interval", Form::Text),
    ("audit", "sync", Form::Switch),
    ("audit", "refusals", Form::Number),
    ("log", "level", Form::Text),
    ("log", "format", Form::Text),
    ("shutdown", "tasks", Form::Text),
    ("shutdown", "linger", Form::Text),
    ("pod_task", "scope", Form::Text),
    ("pod_task", "spiffe_id", Form::Text),
    ("pod_task", "token_file", Form::Text),
    ("pod_task", "renew", Form::Switch),
    ("pod_task", "ttl", Form::Text),
    ("pod_task", "reason", Form::Text),
    ("pod_task", "params", Form::Map),
    ("limits", "tasks", Form::Number),
    ("limits", "tasks_per_caller", Form::Number),
    ("limits", "mints_per_caller", Form::Number),
    ("limits", "waits_per_caller", Form::Number),
    ("limits", "holds_per_caller", Form::Number),
    ("limits", "connections", Form::Number),
    ("limits", "requests", Form::Number),
    ("limits", "mint", Form::Text),
    ("limits", "wait", Form::Text),
    ("limits", "upstream_rate", Form::Number),
    ("limits", "upstream_burst", Form::Number),
];

/// Every key as section and name, in the order of the file.
pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    KEYS.iter().map(|(section, key, _)| (*section, *key))
}

/// Variables that begin with `SIDEMINT_` and are read by other commands.
const OTHER_VARIABLES: [&str; 5] =
    ["SIDEMINT_HTTP", "SIDEMINT_ADMIN", "SIDEMINT_AUDIENCE", "SIDEMINT_TOKEN_FILE", "SIDEMINT_CONFIG"];
const PREFIX: &str = "SIDEMINT_";

/// Why the configuration cannot be used: one line that names the key and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Everything `serve` needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The workloads' listeners.
    pub server: ServerSettings,
    /// The workloads' mutual TLS listener, where one is configured.
    pub mtls: Option<MtlsSettings>,
    /// The operators' listeners.
    pub admin: AdminSettings,
    /// Identity.
    pub identity: IdentitySettings,
    /// Policy.
    pub policy: PolicySettings,
    /// AWS.
    pub aws: AwsSettings,
    /// Vault or OpenBao, where one is configured.
    pub vault: Option<vault::Settings>,
    /// Where the journal lives.
    pub state_directory: PathBuf,
    /// Providers whose live credentials are left to die by themselves where nobody can take them back any more.
    pub abandon: BTreeSet<Provider>,
    /// The audit log.
    pub audit: audit::Settings,
    /// Logging.
    pub log: LogSettings,
    /// What happens to tasks at SIGTERM.
    pub shutdown: ShutdownSettings,
    /// The pod task, where one is configured.
    pub pod_task: Option<PodTaskSettings>,
    /// Limits.
    pub limits: LimitSettings,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// A loopback address.
    pub http: SocketAddr,
    /// A Unix socket as well.
    pub unix_socket: Option<PathBuf>,
}

/// `[mtls]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MtlsSettings {
    /// Any address.
    pub address: SocketAddr,
    /// The identity that it shows; the sidecar's default SVID where none is named.
    pub spiffe_id: Option<SpiffeId>,
    /// The trust domains whose workloads may connect, beside our own.
    pub federated: BTreeSet<TrustDomain>,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// Any address; what identifies workloads is never shown there.
    pub http: SocketAddr,
    /// The operator's Unix socket, mode 0600.
    pub unix_socket: Option<PathBuf>,
}

/// `[identity]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySettings {
    /// `unix:///path` or `tcp://ip:port`.
    pub workload_api: String,
    /// The user whom its agent runs as, where that is not plain from its socket.
    pub workload_api_uid: Option<u32>,
    /// The only audience of JWT-SVIDs presented to us.
    pub audience: String,
    /// Trust domains whose JWT-SVIDs are believed too, beside those of our own SVIDs.
    pub federated: BTreeSet<TrustDomain>,
}

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySettings {
    /// Where the files are, and whom they are believed.
    pub place: PolicyPlace,
    /// Load only these scopes; empty for all.
    pub scopes: Vec<ScopeId>,
    /// How often the place is looked at.
    pub poll: Duration,
}

/// Where policy files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyPlace {
    /// In a directory: whoever can write there decides.
    Unsigned(PathBuf),
    /// In a signed repository.
    Signed(Box<RepositorySettings>),
}

/// The keys of `[policy]` that are about a signed repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositorySettings {
    /// Where it lies.
    pub repository: RepositoryPlace,
    /// The trust anchor, a `root.json`.
    pub root: PathBuf,
    /// The least snapshot version to believe.
    pub minimum_version: Option<u64>,
    /// PEM certificates that vouch for the server, in place of the system's.
    pub ca: Option<PathBuf>,
    /// An `http://` proxy; none unless it is named here.
    pub proxy: Option<Proxy>,
    /// Whether our X.509-SVID is shown to the server.
    pub client_svid: bool,
    /// The server's SPIFFE ID, verified by the trust bundle in place of `ca`.
    pub server_id: Option<SpiffeId>,
    /// How long one request may take.
    pub timeout: Duration,
}

/// Where a signed repository lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryPlace {
    /// Below a local directory.
    Directory(PathBuf),
    /// Below an `https://` URL, or an `http://` one on loopback.
    Http(Uri),
}

/// `[aws]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsSettings {
    /// Another STS than AWS's regional one.
    pub sts_endpoint: Option<String>,
    /// The region whose STS is asked, unless a grant names another.
    pub region: String,
    /// The audience of the JWT-SVIDs sent to STS, unless a grant names another.
    pub audience: String,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// A filter such as `info` or `sidemint=debug,warn`.
    pub level: String,
    /// JSON lines instead of text.
    pub json: bool,
}

/// `[shutdown]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownSettings {
    /// Whether tasks go on after a restart instead of ending.
    pub keep_tasks: bool,
    /// How long to go on serving after SIGTERM, where containers stop in no order.
    pub linger: Duration,
}

/// `[pod_task]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodTaskSettings {
    /// The scope.
    pub scope: ScopeId,
    /// Whose task it is; the sidecar's default SVID where none is named.
    pub spiffe_id: Option<SpiffeId>,
    /// Where the token is written.
    pub token_file: PathBuf,
    /// Whether a new task is begun when this one's time is up.
    pub renew: bool,
    /// How long each task lasts, where less than the decision allows is wanted.
    pub ttl: Option<Duration>,
    /// The reason to state, for break-glass.
    pub reason: Option<String>,
    /// The scope's parameters.
    pub params: BTreeMap<ParamName, String>,
}

/// `[limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitSettings {
    /// Tasks that are remembered.
    pub tasks: usize,
    /// Running tasks of one caller.
    pub tasks_per_caller: usize,
    /// Credentials asked for in a minute for one caller.
    pub mints_per_caller: u32,
    /// Requests of one caller that wait for a provider at a time.
    pub waits_per_caller: usize,
    /// Streams that hold tasks of one caller at a time.
    pub holds_per_caller: usize,
    /// Connections at a time, per listener.
    pub connections: usize,
    /// Requests that are answered at a time.
    pub requests: usize,
    /// How long one exchange may take.
    pub mint: Duration,
    /// How long a request waits for an exchange.
    pub wait: Duration,
    /// Exchanges per second at one provider.
    pub upstream_rate: u32,
    /// Exchanges at once at one provider.
    pub upstream_burst: u32,
}

impl Config {
    /// Reads the file, if one is named, and the environment.
    ///
    /// # Errors
    /// The first thing that is wrong, in one line that says the mend.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = match file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| ConfigError(format!("{}: {e}: check --config", path.display())))?,
        };
        let name = file.map(|path| path.display().to_string()).unwrap_or_default();
        Self::parse(&text, &name, environment)
    }

    /// The same from a text; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        text: &str,
        name: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            // One line: the message without the excerpt, which may hold what nobody meant to log.
            ConfigError(format!("{name}: {}", e.message().replace('\n', " ")))
        })?;
        refuse_unknown(&table, name)?;
        let environment: BTreeMap<_, _> = environment.into_iter().collect();
        let table = overlay(table, &environment)?;
        let raw: Raw = Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| ConfigError(format!("{name}: {}", e.message().replace('\n', " "))))?;
        raw.validate(&environment)
    }
}

/// Where the state is when nothing is configured: `STATE_DIRECTORY`, else below `XDG_STATE_HOME`, else below `HOME`.
pub fn default_state_directory(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let below = |name: &str, rest: &str| {
        variable(name).filter(|directory| directory.starts_with('/')).map(|directory| Path::new(&directory).join(rest))
    };
    below("STATE_DIRECTORY", "")
        .or_else(|| below("XDG_STATE_HOME", "sidemint"))
        .or_else(|| below("HOME", ".local/state/sidemint"))
}

fn refuse_unknown(table: &Table, name: &str) -> Result<(), ConfigError> {
    for (section, keys) in table {
        if !KEYS.iter().any(|(s, _, _)| s == section) {
            return Err(ConfigError(format!("{name}: unknown section [{section}]: remove it or mend its name")));
        }
        let Value::Table(keys) = keys else {
            return Err(ConfigError(format!("{name}: {section} is a section: write [{section}]")));
        };
        if let Some(key) = keys.keys().find(|key| !KEYS.iter().any(|(s, k, _)| s == section && k == key)) {
            return Err(ConfigError(format!("{name}: unknown key {section}.{key}: remove it or mend its name")));
        }
    }
    Ok(())
}

/// Lays the environment over the file.
fn overlay(mut table: Table, environment: &BTreeMap<String, String>) -> Result<Table, ConfigError> {
    for (variable, text) in environment.iter().filter(|(variable, _)| variable.starts_with(PREFIX)) {
        if OTHER_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        let found = KEYS.iter().find(|(section, key, _)| *variable == variable_name(section, key));
        let Some((section, key, form)) = found else {
            return Err(ConfigError(format!("unknown variable {variable}: unset it or mend its name")));
        };
        let value = read(*form, text).ok_or_else(|| ConfigError(format!("{variable}: not a {form:?}: {text}")))?;
        let keys = table.entry(*section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(keys) = keys {
            keys.insert((*key).to_owned(), value);
        }
    }
    Ok(table)
}

/// The environment variable of a key.
pub fn variable_name(section: &str, key: &str) -> String {
    format!("{PREFIX}{}_{}", section.to_ascii_uppercase(), key.to_ascii_uppercase())
}

fn read(form: Form, text: &str) -> Option<Value> {
    let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Some(match form {
        Form::Text => Value::String(text.to_owned()),
        Form::Number => Value::Integer(text.parse().ok()?),
        Form::Switch => Value::Boolean(text.parse().ok()?),
        Form::List => Value::Array(items().map(|item| Value::String(item.to_owned())).collect()),
        Form::Map => {
            let pair = |item: &str| item.split_once('=').map(|(k, v)| (k.to_owned(), Value::String(v.to_owned())));
            Value::Table(items().map(pair).collect::<Option<Table>>()?)
        }
    })
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Raw {
    server: BTreeMap<String, Value>,
    mtls: BTreeMap<String, Value>,
    admin: BTreeMap<String, Value>,
    identity: BTreeMap<String, Value>,
    policy: BTreeMap<String, Value>,
    aws: BTreeMap<String, Value>,
    vault: BTreeMap<String, Value>,
    state: BTreeMap<String, Value>,
    audit: BTreeMap<String, Value>,
    log: BTreeMap<String, Value>,
    shutdown: BTreeMap<String, Value>,
    pod_task: BTreeMap<String, Value>,
    limits: BTreeMap<String, Value>,
}

/// One section while it is read.
struct Section<'a> {
    name: &'static str,
    keys: &'a BTreeMap<String, Value>,
}

impl Section<'_> {
    fn error(&self, key: &str, what: impl std::fmt::Display) -> ConfigError {
        ConfigError(format!("{}.{key} (or {}): {what}", self.name, variable_name(self.name, key)))
    }

    fn trust_domains(&self, key: &str) -> Result<BTreeSet<TrustDomain>, ConfigError> {
        let names: Vec<String> = self.get(key)?.unwrap_or_default();
        let domain = |name: String| {
            name.parse().map_err(|error| self.error(key, format!("{name:?} is no trust domain: {error}")))
        };
        names.into_iter().map(domain).collect()
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.keys.get(key) else { return Ok(None) };
        if value.as_str() == Some("") {
            return Ok(None);
        }
        value.clone().try_into().map(Some).map_err(|e| self.error(key, e.message().replace('\n', " ")))
    }

    fn text(&self, key: &str, default: &str) -> Result<String, ConfigError> {
        Ok(self.get(key)?.unwrap_or_else(|| default.to_owned()))
    }

    fn duration(&self, key: &str, default: Duration, least: Duration) -> Result<Duration, ConfigError> {
        Ok(self.optional_duration(key, least)?.unwrap_or(default))
    }

    fn optional_duration(&self, key: &str, least: Duration) -> Result<Option<Duration>, ConfigError> {
        let Some(text) = self.get::<String>(key)? else { return Ok(None) };
        let parsed =
            humantime::parse_duration(&text).map_err(|_| self.error(key, "write a duration like 30s or 15m"))?;
        if parsed < least {
            return Err(self.error(key, format!("at least {}", humantime::format_duration(least))));
        }
        Ok(Some(parsed))
    }

    fn number(&self, key: &str, default: u32, least: u32) -> Result<u32, ConfigError> {
        match self.get::<u32>(key)? {
            None => Ok(default),
            Some(number) if number >= least => Ok(number),
            Some(_) => Err(self.error(key, format!("at least {least}"))),
        }
    }

    /// A number of bytes, with `KiB`, `MiB` or `GiB` behind it where that is shorter.
    fn size(&self, key: &str, default: u64, least: u64) -> Result<u64, ConfigError> {
        let Some(text) = self.get::<String>(key)? else { return Ok(default) };
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];
        let parsed = units.iter().find_map(|(unit, bytes)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*bytes)
        });
        match parsed {
            None => Err(self.error(key, "write a size like 64MiB")),
            Some(size) if size < least => Err(self.error(key, format!("at least {least}"))),
            Some(size) => Ok(size),
        }
    }

    fn address(&self, key: &str, default: &str) -> Result<SocketAddr, ConfigError> {
        self.text(key, default)?.parse().map_err(|_| self.error(key, "write an address like 127.0.0.1:9870"))
    }

    fn one_of(&self, key: &str, allowed: [&str; 2]) -> Result<bool, ConfigError> {
        let [first, second] = allowed;
        let text = self.text(key, first)?;
        match text.as_str() {
            text if text == first => Ok(false),
            text if text == second => Ok(true),
            _ => Err(self.error(key, format!("write \"{first}\" or \"{second}\""))),
        }
    }
}

impl Raw {
    fn validate(&self, environment: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
        Ok(Config {
            server: self.server()?,
            mtls: self.mtls()?,
            admin: self.admin()?,
            identity: self.identity(environment)?,
            policy: self.policy()?,
            aws: self.aws()?,
            vault: self.vault()?,
            state_directory: self.state(environment)?,
            abandon: self.abandon()?,
            audit: self.audit()?,
            log: self.log()?,
            shutdown: self.shutdown()?,
            pod_task: self.pod_task()?,
            limits: self.limits()?,
        })
    }

    fn server(&self) -> Result<ServerSettings, ConfigError> {
        let section = Section { name: "server", keys: &self.server };
        let http = section.address("http", "127.0.0.1:9870")?;
        if !http.ip().is_loopback() {
            return Err(section.error("http", "must be a loopback address: credentials are served there in the clear"));
        }
        Ok(ServerSettings { http, unix_socket: section.get("unix_socket")? })
    }

    fn mtls(&self) -> Result<Option<MtlsSettings>, ConfigError> {
        let section = Section { name: "mtls", keys: &self.mtls };
        let (spiffe_id, federated) = (section.get("spiffe_id")?, section.trust_domains("federated")?);
        let Some(address) = section.get::<String>("address")? else {
            return match (spiffe_id, federated.is_empty()) {
                (None, true) => Ok(None),
                _ => {
                    Err(section
                        .error("address", "write an address like 0.0.0.0:9872, or remove the other keys of [mtls]"))
                }
            };
        };
        let address = address.parse().map_err(|_| section.error("address", "write an address like 0.0.0.0:9872"))?;
        Ok(Some(MtlsSettings { address, spiffe_id, federated }))
    }

    fn admin(&self) -> Result<AdminSettings, ConfigError> {
        let section = Section { name: "admin", keys: &self.admin };
        Ok(AdminSettings { http: section.address("http", "127.0.0.1:9871")?, unix_socket: section.get("unix_socket")? })
    }

    fn identity(&self, environment: &BTreeMap<String, String>) -> Result<IdentitySettings, ConfigError> {
        let section = Section { name: "identity", keys: &self.identity };
        let fallback = environment.get("SPIFFE_ENDPOINT_SOCKET").cloned();
        let workload_api =
            section.get("workload_api")?.or(fallback.filter(|text| !text.is_empty())).ok_or_else(|| {
                ConfigError("no Workload API: set SPIFFE_ENDPOINT_SOCKET=unix:///path/of/its.sock".to_owned())
            })?;
        let audience = section.text("audience", "sidemint")?;
        if is_cloud_audience(&audience) {
            return Err(section.error("audience", "a cloud's audience would let its tokens be replayed here"));
        }
        let (workload_api_uid, federated) = (section.get("workload_api_uid")?, section.trust_domains("federated")?);
        Ok(IdentitySettings { workload_api, workload_api_uid, audience, federated })
    }

    fn policy(&self) -> Result<PolicySettings, ConfigError> {
        let section = Section { name: "policy", keys: &self.policy };
        let (directory, repository) = (section.get::<PathBuf>("directory")?, section.get::<String>("repository")?);
        // Looked at either way, so that the reference file can set it.
        let timeout = section.duration("timeout", Duration::from_secs(10), Duration::from_secs(1))?;
        let (place, poll) = match (directory, repository) {
            (Some(directory), None) => (self.policy_directory(directory)?, Duration::from_secs(2)),
            (None, Some(repository)) => (self.policy_repository(&repository, timeout)?, Duration::from_secs(30)),
            (Some(_), Some(_)) => {
                return Err(section.error("repository", "there is a policy.directory too: remove one of the two"));
            }
            (None, None) => {
                let what = "name the signed policy repository, or in policy.directory a directory of unsigned files";
                return Err(section.error("repository", what));
            }
        };
        let poll = section.duration("poll", poll, Duration::from_millis(100))?;
        Ok(PolicySettings { place, scopes: section.get("scopes")?.unwrap_or_default(), poll })
    }

    fn policy_directory(&self, directory: PathBuf) -> Result<PolicyPlace, ConfigError> {
        let section = Section { name: "policy", keys: &self.policy };
        match section.get::<String>("trust")?.as_deref() {
            Some("unsigned") => {}
            Some(_) => return Err(section.error("trust", "the only trust in a directory is \"unsigned\"")),
            None => {
                let what = "a directory is not signed: if that is meant, say trust = \"unsigned\"";
                return Err(section.error("trust", what));
            }
        }
        for key in ["root", "minimum_version", "ca", "proxy", "client", "server_id"] {
            if section.get::<Value>(key)?.is_some() {
                return Err(section.error(key, "is for a signed policy.repository: remove it"));
            }
        }
        Ok(PolicyPlace::Unsigned(directory))
    }

    fn policy_repository(&self, repository: &str, timeout: Duration) -> Result<PolicyPlace, ConfigError> {
        let section = Section { name: "policy", keys: &self.policy };
        let repository = match repository_place(repository) {
            Some(place) => place,
            None => return Err(section.error("repository", "write https://HOST/PATH or a path that begins with /")),
        };
        if section.get::<String>("trust")?.is_some_and(|trust| trust != "signed") {
            return Err(section.error("trust", "a repository is \"signed\"; for unsigned files use policy.directory"));
        }
        if matches!(repository, RepositoryPlace::Directory(_)) {
            for key in ["ca", "proxy", "client", "server_id"] {
                if section.get::<Value>(key)?.is_some() {
                    return Err(section.error(key, "is for a policy.repository with https://: remove it"));
                }
            }
        }
        let root = section.get("root")?.ok_or_else(|| {
            section.error("root", "name the root.json that the deployment trusts; its publishers have it")
        })?;
        let minimum_version: Option<u64> = section.get("minimum_version")?;
        if minimum_version == Some(0) {
            return Err(section.error("minimum_version", "at least 1"));
        }
        let proxy = section.get::<String>("proxy")?.map(|text| text.parse::<Proxy>());
        let proxy = proxy.transpose().map_err(|error| section.error("proxy", error.to_string()))?;
        let client_svid = match section.get::<String>("client")?.as_deref() {
            None => false,
            Some("svid") => true,
            Some(_) => return Err(section.error("client", "write \"svid\", or remove it")),
        };
        let (ca, server_id) = (section.get::<PathBuf>("ca")?, section.get::<SpiffeId>("server_id")?);
        if ca.is_some() && server_id.is_some() {
            return Err(section.error("server_id", "the trust bundle verifies it in place of policy.ca: remove one"));
        }
        let settings =
            RepositorySettings { repository, root, minimum_version, ca, proxy, client_svid, server_id, timeout };
        Ok(PolicyPlace::Signed(Box::new(settings)))
    }

    fn aws(&self) -> Result<AwsSettings, ConfigError> {
        let section = Section { name: "aws", keys: &self.aws };
        Ok(AwsSettings {
            sts_endpoint: section.get("sts_endpoint")?,
            region: section.text("region", "us-east-1")?,
            audience: section.text("audience", "sts.amazonaws.com")?,
        })
    }

    fn vault(&self) -> Result<Option<vault::Settings>, ConfigError> {
        let section = Section { name: "vault", keys: &self.vault };
        let second = Duration::from_secs(1);
        let (ca, namespace) = (section.get::<PathBuf>("ca")?, section.get::<String>("namespace")?);
        let timeout = section.duration("timeout", 5 * second, second)?;
        let rate = section.number("rate", 10, 1)?;
        let revocation_rate = section.number("revocation_rate", 200, 1)?;
        if namespace.as_deref().is_some_and(|name| !is_plain_path(name)) {
            return Err(section.error("namespace", "write segments of A-Z a-z 0-9 . _ - joined by /"));
        }
        let Some(address) = section.get("address")? else {
            return match (ca, namespace) {
                (None, None) => Ok(None),
                _ => Err(section.error("address", "write https://HOST[:PORT], or remove the other keys of [vault]")),
            };
        };
        let rate = Rate { interval: second / rate, burst: rate.saturating_mul(2) };
        let revocation_rate = Rate { interval: second / revocation_rate, burst: revocation_rate };
        Ok(Some(vault::Settings { address, ca, namespace, timeout, rate, revocation_rate }))
    }

    fn state(&self, environment: &BTreeMap<String, String>) -> Result<PathBuf, ConfigError> {
        let section = Section { name: "state", keys: &self.state };
        if let Some(directory) = section.get("directory")? {
            return Ok(directory);
        }
        default_state_directory(|variable| environment.get(variable).cloned())
            .ok_or_else(|| section.error("directory", "name a directory that survives restarts"))
    }

    fn abandon(&self) -> Result<BTreeSet<Provider>, ConfigError> {
        let section = Section { name: "state", keys: &self.state };
        let known = |word: String| {
            let words = Provider::ALL.map(Provider::as_str).join(", ");
            let provider = Provider::ALL.into_iter().find(|provider| provider.as_str() == word);
            provider.ok_or_else(|| section.error("abandon", format!("{word:?} is no provider: they are {words}")))
        };
        section.get::<Vec<String>>("abandon")?.unwrap_or_default().into_iter().map(known).collect()
    }

    fn audit(&self) -> Result<audit::Settings, ConfigError> {
        let section = Section { name: "audit", keys: &self.audit };
        let output = match section.text("output", "stdout")?.as_str() {
            "stdout" => Output::Stdout,
            "off" => Output::Off,
            path if path.contains('/') => Output::File(path.into()),
            _ => return Err(section.error("output", "write \"stdout\", \"off\" or a path")),
        };
        let default = audit::Settings::new(output);
        let rotation = audit::Rotation {
            size: section.size("rotate_size", default.rotation.size, 4096)?,
            age: section.optional_duration("rotate_age", Duration::from_secs(60))?,
            keep: usize::try_from(section.number("keep", 8, 0)?).unwrap_or(usize::MAX),
        };
        Ok(audit::Settings {
            rotation,
            checkpoint_every: section.number("checkpoint_every", default.checkpoint_every, 1)?,
            checkpoint_interval: section.duration(
                "checkpoint_interval",
                default.checkpoint_interval,
                Duration::from_secs(1),
            )?,
            sync: section.get("sync")?.unwrap_or(default.sync),
            refusals: section.number("refusals", default.refusals, 1)?,
            ..default
        })
    }

    fn log(&self) -> Result<LogSettings, ConfigError> {
        let section = Section { name: "log", keys: &self.log };
        Ok(LogSettings { level: section.text("level", "info")?, json: section.one_of("format", ["text", "json"])? })
    }

    fn shutdown(&self) -> Result<ShutdownSettings, ConfigError> {
        let section = Section { name: "shutdown", keys: &self.shutdown };
        Ok(ShutdownSettings {
            keep_tasks: section.one_of("tasks", ["end", "keep"])?,
            linger: section.duration("linger", Duration::ZERO, Duration::ZERO)?,
        })
    }

    fn pod_task(&self) -> Result<Option<PodTaskSettings>, ConfigError> {
        let section = Section { name: "pod_task", keys: &self.pod_task };
        if self.pod_task.is_empty() {
            return Ok(None);
        }
        let missing = |key| section.error(key, "a pod task needs it");
        Ok(Some(PodTaskSettings {
            scope: section.get("scope")?.ok_or_else(|| missing("scope"))?,
            spiffe_id: section.get("spiffe_id")?,
            token_file: section.get("token_file")?.ok_or_else(|| missing("token_file"))?,
            renew: section.get("renew")?.unwrap_or(true),
            ttl: section.optional_duration("ttl", Duration::from_secs(60))?,
            reason: section.get("reason")?,
            params: section.get("params")?.unwrap_or_default(),
        }))
    }

    fn limits(&self) -> Result<LimitSettings, ConfigError> {
        let section = Section { name: "limits", keys: &self.limits };
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let second = Duration::from_secs(1);
        Ok(LimitSettings {
            tasks: size(section.number("tasks", 10_000, 1)?),
            tasks_per_caller: size(section.number("tasks_per_caller", 1000, 1)?),
            mints_per_caller: section.number("mints_per_caller", 600, 1)?,
            waits_per_caller: size(section.number("waits_per_caller", 1000, 1)?),
            holds_per_caller: size(section.number("holds_per_caller", 500, 1)?),
            connections: size(section.number("connections", 2048, 1)?),
            requests: size(section.number("requests", 2048, 1)?),
            mint: section.duration("mint", 15 * second, second)?,
            wait: section.duration("wait", 10 * second, second)?,
            upstream_rate: section.number("upstream_rate", 10, 1)?,
            upstream_burst: section.number("upstream_burst", 20, 1)?,
        })
    }
}

/// A signed repository's place as it is written: `https://HOST/PATH`, or a path from the root of the file system.
pub fn repository_place(text: &str) -> Option<RepositoryPlace> {
    if text.starts_with('/') {
        return Some(RepositoryPlace::Directory(text.into()));
    }
    let uri: Uri = text.parse().ok()?;
    let address = uri.host()?.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = uri.host() == Some("localhost") || address.is_ok_and(|address| address.is_loopback());
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https") || loopback)?;
    // A password would be told in every error.
    let plain = !authority.as_str().contains('@') && uri.query().is_none() && !text.contains('#');
    plain.then_some(RepositoryPlace::Http(uri))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "[policy]\ndirectory = \"/p\"\ntrust = \"unsigned\"\n";

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut all = vec![("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire.sock"), ("HOME", "/root")];
        all.extend_from_slice(environment);
        Config::parse(text, "sidemint.toml", all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())))
    }

    #[test]
    fn a_socket_and_a_policy_directory_are_enough() {
        let config = parse(LEAST, &[]).unwrap();
        assert_eq!(config.server.http.to_string(), "127.0.0.1:9870");
        assert_eq!(config.identity.workload_api, "unix:///run/spire.sock");
        assert_eq!(config.state_directory, Path::new("/root/.local/state/sidemint"));
        assert_eq!(config.pod_task, None);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = parse(
            LEAST,
            &[
                ("SIDEMINT_SERVER_HTTP", "127.0.0.1:1"),
                ("SIDEMINT_LIMITS_TASKS", "7"),
                ("SIDEMINT_POLICY_SCOPES", "a,b/c"),
                ("SIDEMINT_POD_TASK_SCOPE", "a"),
                ("SIDEMINT_POD_TASK_TOKEN_FILE", "/t"),
                ("SIDEMINT_POD_TASK_RENEW", "false"),
                ("SIDEMINT_POD_TASK_PARAMS", "customer=c-42, month=11"),
            ],
        )
        .unwrap();
        assert_eq!(config.server.http.port(), 1);
        assert_eq!(config.limits.tasks, 7);
        assert_eq!(config.policy.scopes.len(), 2);
        let pod = config.pod_task.unwrap();
        assert!(!pod.renew);
        assert_eq!(pod.params.len(), 2);
    }

    #[test]
    fn each_mistake_is_one_line_that_names_its_key() {
        type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);
        let cases: [Case; 31] = [
            ("[policy]\nrepository = \"/p\"", &[], "policy.root"),
            ("[policy]\nrepository = \"/p\"\ndirectory = \"/p\"", &[], "remove one of the two"),
            ("[policy]\nrepository = \"http://h/p\"\nroot = \"/r\"", &[], "https://"),
            ("[policy]\nrepository = \"https://a:b@h/p\"\nroot = \"/r\"", &[], "policy.repository"),
            ("[policy]\nrepository = \"/p\"\nroot = \"/r\"\ntrust = \"unsigned\"", &[], "policy.trust"),
            ("[policy]\nrepository = \"/p\"\nroot = \"/r\"\nca = \"/c\"", &[], "policy.ca"),
            ("[policy]\nrepository = \"/p\"\nroot = \"/r\"\nminimum_version = 0", &[], "at least 1"),
            ("[policy]\nrepository = \"https://h\"\nroot = \"/r\"\nproxy = \"h:1\"", &[], "policy.proxy"),
            ("[policy]\nrepository = \"https://h\"\nroot = \"/r\"\nclient = \"x\"", &[], "policy.client"),
            (
                "[policy]\nrepository = \"https://h\"\nroot = \"/r\"\nca = \"/c\"\nserver_id = \"spiffe://a/b\"",
                &[],
                "policy.server_id",
            ),
            ("[policy]\ndirectory = \"/p\"\ntrust = \"unsigned\"\nroot = \"/r\"", &[], "policy.root"),
            ("[vault]\nnamespace = \"a\"", &[], "vault.address"),
            ("[vault]\naddress = \"https://v\"\nnamespace = \"../a\"", &[], "vault.namespace"),
            ("[vault]\naddress = \"https://v\"\nrate = 0", &[], "vault.rate"),
            ("[vault]\naddress = \"https://v\"\nrevocation_rate = 0", &[], "vault.revocation_rate"),
            ("[audit]\nrotate_size = \"64MB\"", &[], "audit.rotate_size"),
            ("[audit]\nrotate_size = \"1KiB\"", &[], "at least 4096"),
            ("", &[], "policy.directory"),
            ("[policy]\ndirectory = \"/p\"", &[], "trust = \"unsigned\""),
            ("[policy]\ndirectory = \"/p\"\ntrust = \"signed\"", &[], "policy.trust"),
            ("[polcy]\n", &[], "[polcy]"),
            ("[server]\nhtpp = \"x\"", &[], "server.htpp"),
            ("server = 1", &[], "[server]"),
            ("[server]\nhttp = \"0.0.0.0:9870\"", &[], "loopback"),
            ("[server]\nhttp = 5", &[], "server.http"),
            ("[shutdown]\ntasks = \"stop\"", &[], "\"end\" or \"keep\""),
            ("[shutdown]\nlinger = \"soon\"", &[], "shutdown.linger"),
            ("[limits]\ntasks = 0", &[], "at least 1"),
            ("[identity]\naudience = \"sts.amazonaws.com\"", &[], "identity.audience"),
            ("", &[("SIDEMINT_SERVER_HTPP", "x")], "SIDEMINT_SERVER_HTPP"),
            ("not toml at all", &[], "sidemint.toml"),
        ];
        for (text, environment, names) in cases {
            // a section may stand in the file once only
            let text = if text.contains("[policy]") || text.is_empty() && environment.is_empty() {
                text.to_owned()
            } else {
                format!("{text}\n{LEAST}")
            };
            let error = parse(&text, environment).unwrap_err().to_string();
            assert!(error.contains(names), "{error:?} should name {names:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn a_repository_and_its_root_are_enough_and_are_polled_less() {
        let text = "[policy]\nrepository = \"https://policy.example.org/fleet/\"\nroot = \"/etc/root.json\"\n";
        let policy = parse(text, &[("SIDEMINT_POLICY_MINIMUM_VERSION", "7")]).unwrap().policy;
        assert_eq!(policy.poll, Duration::from_secs(30));
        let PolicyPlace::Signed(settings) = policy.place else { panic!("{policy:?}") };
        assert_eq!(settings.repository, RepositoryPlace::Http(Uri::from_static("https://policy.example.org/fleet/")));
        assert_eq!((settings.minimum_version, settings.timeout), (Some(7), Duration::from_secs(10)));
        assert!(!settings.client_svid && settings.ca.is_none() && settings.proxy.is_none());
    }

    #[test]
    fn without_a_workload_api_it_says_which_variable_to_set() {
        let error = Config::parse(LEAST, "f", [("HOME".to_owned(), "/root".to_owned())]).unwrap_err();
        assert!(error.to_string().contains("SPIFFE_ENDPOINT_SOCKET"));
    }
}
