//! The sidecar of the world: the very same `sidemint serve`, as a process of its own, with a configuration file and an
//! empty environment.
//!
//! It dies with us, even when we are killed with -9: it is started through the hidden command that first asks the kernel
//! for a SIGTERM at its parent's death and then becomes `serve` (between `fork` and `execve` only `unsafe` code could
//! ask, hence the detour).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::probe;
use super::world::{REGION, STS_AUDIENCE, World, WorldError};
use crate::cli::exec::LAUNCH;
use crate::clock::{Clock, within};

/// How long the sidecar may take until it is ready.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long the sidecar may take to end after SIGTERM (docs/operations.md#exit-codes-and-signals).
pub const STOP_LIMIT: Duration = Duration::from_secs(2);
/// How much of its log is shown when it failed.
const LOG_TAIL: u64 = 4096;

/// What is not as in every world.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Other policy files than the world's own.
    pub policy: Option<PathBuf>,
    /// Where to listen; a free loopback port where nothing is said.
    pub http: Option<SocketAddr>,
    /// Where to listen for operators; a free loopback port where nothing is said.
    pub admin: Option<SocketAddr>,
}

/// A sidecar that runs.
#[derive(Debug)]
pub struct Sidecar {
    /// Where it listens for workloads.
    pub http: SocketAddr,
    /// Where it listens for operators.
    pub admin: SocketAddr,
    /// Its policy files.
    pub policy: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its audit log.
    pub audit: PathBuf,
    /// Where its journal is.
    pub state: PathBuf,
    child: Child,
}

/// Why there is no sidecar.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// A file or a port.
    #[error(transparent)]
    World(#[from] WorldError),
    /// It ended before it was ready.
    #[error("`sidemint serve` ended before it was ready ({status}); its log ends:\n{log}")]
    Died {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It is up and not ready.
    #[error("`sidemint serve` is not ready after {} s: {reasons}; its log ends:\n{log}", START_LIMIT.as_secs())]
    NotReady {
        /// What `/readyz` says.
        reasons: String,
        /// The end of its log.
        log: String,
    },
}

impl Sidecar {
    /// Starts `sidemint serve` beside `world`, and returns once it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready in time.
    pub async fn start(world: &World, options: &Options, clock: &dyn Clock) -> Result<Self, SidecarError> {
        let mut sidecar = Self::spawn(world, options)?;
        let waited = within(clock, START_LIMIT, sidecar.until_ready(clock)).await;
        match waited {
            Some(result) => result.map(|()| sidecar),
            None => {
                let answer = probe::get(clock, sidecar.admin, "/readyz", None).await;
                let reasons = answer.map_or_else(|error| error.to_string(), |answer| answer.text().replace('\n', " "));
                Err(SidecarError::NotReady { reasons: reasons.trim().to_owned(), log: sidecar.log_tail() })
            }
        }
    }

    fn spawn(world: &World, options: &Options) -> Result<Self, WorldError> {
        // Both are held until both are known, so that they differ.
        let (http, _http) = address(options.http)?;
        let (admin, _admin) = address(options.admin)?;
        let folder = world.folder();
        let (log, audit, state) = (folder.join("serve.log"), folder.join("audit.jsonl"), folder.join("state"));
        let policy = options.policy.clone().unwrap_or_else(|| world.policy_directory());
        let config = folder.join("sidemint.toml");
        let text = configuration(world, http, admin, &policy, &audit, &state);
        std::fs::write(&config, text).map_err(WorldError::io(config.display().to_string()))?;
        std::fs::create_dir_all(&state).map_err(WorldError::io(state.display().to_string()))?;
        let output = File::create(&log).map_err(WorldError::io(log.display().to_string()))?;
        let errors = output.try_clone().map_err(WorldError::io(log.display().to_string()))?;
        let program = std::env::current_exe().map_err(WorldError::io("cannot find this program's own file"))?;
        let child = Command::new(&program)
            .arg(LAUNCH)
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(&program)
            .args(["serve", "--config"])
            .arg(&config)
            // Nothing of the user's own SIDEMINT_, AWS_ or proxy settings may reach this world.
            .env_clear()
            // Ctrl-C in the terminal is for us alone; we end the sidecar in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .map_err(WorldError::io("cannot start `sidemint serve`"))?;
        Ok(Self { http, admin, policy, log, audit, state, child })
    }

    async fn until_ready(&mut self, clock: &dyn Clock) -> Result<(), SidecarError> {
        loop {
            if let Some(status) = self.child.try_wait().map_err(WorldError::io("cannot watch the sidecar"))? {
                return Err(SidecarError::Died { status, log: self.log_tail() });
            }
            if probe::get(clock, self.admin, "/readyz", None).await.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            clock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns when the sidecar has ended by itself.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Sends SIGTERM and waits up to [`STOP_LIMIT`]; then kills. `None` when it had to be killed.
    ///
    /// # Errors
    /// When the signal cannot be sent or the system cannot tell how it ended.
    pub async fn stop(&mut self, clock: &dyn Clock) -> io::Result<Option<ExitStatus>> {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)?;
        }
        if let Some(status) = within(clock, STOP_LIMIT, self.child.wait()).await {
            return status.map(Some);
        }
        self.child.kill().await?;
        Ok(None)
    }

    /// The end of the sidecar's log.
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// The address asked for, or a free one with the listener that keeps it free for now. Between our letting go and the
/// sidecar's binding another process may take it; then the sidecar says so and ends.
fn address(wanted: Option<SocketAddr>) -> Result<(SocketAddr, Option<TcpListener>), WorldError> {
    if let Some(wanted) = wanted.filter(|address| address.port() != 0) {
        return Ok((wanted, None));
    }
    let ip = wanted.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip());
    let free = || WorldError::io(format!("no free port on {ip}"));
    let listener = TcpListener::bind((ip, 0)).map_err(free())?;
    Ok((listener.local_addr().map_err(free())?, Some(listener)))
}

fn configuration(
    world: &World,
    http: SocketAddr,
    admin: SocketAddr,
    policy: &Path,
    audit: &Path,
    state: &Path,
) -> String {
    let folder = world.folder();
    let path = |path: &Path| toml::Value::String(path.display().to_string());
    let text = |text: &str| toml::Value::String(text.to_owned());
    let sections = [
        ("server", vec![("http", text(&http.to_string())), ("unix_socket", path(&folder.join("sidemint.sock")))]),
        ("admin", vec![("http", text(&admin.to_string())), ("unix_socket", path(&folder.join("admin.sock")))]),
        ("identity", vec![("workload_api", text(&world.workload_api())), ("audience", text("sidemint"))]),
        ("policy", vec![("directory", path(policy)), ("trust", text("unsigned")), ("poll", text("1s"))]),
        (
            "aws",
            vec![
                ("sts_endpoint", text(&world.sts_endpoint)),
                ("region", text(REGION)),
                ("audience", text(STS_AUDIENCE)),
            ],
        ),
        ("state", vec![("directory", path(state))]),
        ("audit", vec![("output", path(audit))]),
        ("shutdown", vec![("tasks", text("end"))]),
    ];
    let mut configuration = String::from("# Written by `sidemint demo` or `sidemint dev` for its own sidecar.\n");
    for (name, keys) in sections {
        configuration.push_str(&format!("\n[{name}]\n"));
        for (key, value) in keys {
            configuration.push_str(&format!("{key} = {value}\n"));
        }
    }
    configuration
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_configuration_is_toml_and_points_only_into_this_world() {
        let world = World::start(Arc::new(SystemClock)).await.unwrap();
        let (http, _) = address(None).unwrap();
        let (admin, _) = address(Some("127.0.0.1:9".parse().unwrap())).unwrap();
        let text =
            configuration(&world, http, admin, &world.policy_directory(), &world.folder().join("a"), world.folder());
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["server"]["http"].as_str(), Some(http.to_string().as_str()));
        assert_eq!(table["admin"]["http"].as_str(), Some("127.0.0.1:9"));
        assert_eq!(table["identity"]["workload_api"].as_str(), Some(world.workload_api().as_str()));
        assert_eq!(table["aws"]["sts_endpoint"].as_str(), Some(world.sts_endpoint.as_str()));
        assert_eq!(table["policy"]["trust"].as_str(), Some("unsigned"));
    }

    #[test]
    fn shows_only_the_end_of_a_long_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, format!("{}\nthe end\n", "x".repeat(10_000))).unwrap();
        let text = tail(&path).unwrap();
        assert!(text.len() <= 4096 && text.ends_with("\nthe end"));
    }
}
