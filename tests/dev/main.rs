//! `sidemint dev` and `sidemint demo` as processes: what they leave behind, however they end. The demo's own story takes
//! the 30 s of its cut and is run by the checks of the repository, not here.
#![cfg(feature = "dev")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails right there"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sidemint::clock::{Clock as _, SystemClock, within};
use sidemint::dev::probe;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `sidemint`, its temporary folders below one of its own.
struct Running {
    child: Child,
    folder: tempfile::TempDir,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sidemint"))
            .args(args)
            .current_dir(folder.path())
            .env("TMPDIR", folder.path())
            // What a user may have set must not reach the world.
            .env("SIDEMINT_SERVER_HTTP", "nonsense")
            .env("HTTP_PROXY", "http://127.0.0.1:1")
            .env("AWS_ACCESS_KEY_ID", "before")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// Starts `dev` and waits for its env file.
    async fn dev(args: &[&str]) -> (Self, BTreeMap<String, String>) {
        let mut running = Self::start(&[&["dev", "--env-file", "env"], args].concat());
        let file = running.folder.path().join("env");
        let text = until("the env file", || std::fs::read_to_string(&file).ok(), &mut running.child).await;
        let pairs = text.lines().map(|line| line.split_once('=').expect("KEY=VALUE"));
        (running, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn pid(&self) -> Pid {
        pid(self.child.id().expect("it runs"))
    }

    /// The processes that it started.
    fn children(&self) -> Vec<Pid> {
        let id = self.child.id().unwrap();
        let list = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        list.split_whitespace().map(|id| pid(id.parse().unwrap())).collect()
    }

    /// Its exit code and what it printed on standard error.
    async fn ended(&mut self) -> (Option<i32>, String) {
        let status = within(&SystemClock, PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).await.unwrap();
        (status.code(), text)
    }

    /// The folders of worlds that are still there.
    fn worlds(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

/// Looks again and again, for as long as the process runs.
async fn until<T>(what: &str, look: impl Fn() -> Option<T>, child: &mut Child) -> T {
    for _ in 0..PATIENCE.as_millis() / 10 {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(child.try_wait().unwrap().is_none(), "ended before {what} was there");
        SystemClock.sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come");
}

fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Returns when the process at the other end has closed the connection.
async fn closed(mut connection: TcpStream) {
    let read = within(&SystemClock, PATIENCE, connection.read(&mut [0; 64])).await.expect("closed in time");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn dev_is_ready_when_its_env_file_appears_and_leaves_nothing_after_sigterm() {
    let (mut dev, env) = Running::dev(&[]).await;
    let ready = probe::get(&SystemClock, address(&env["SIDEMINT_ADMIN"]), "/readyz", None).await.unwrap();
    assert_eq!(ready.status, 200);
    let socket = env["SPIFFE_ENDPOINT_SOCKET"].strip_prefix("unix://").unwrap();
    assert!(Path::new(socket).exists());
    assert!(Path::new(&env["SIDEMINT_POLICY_DIRECTORY"]).join("decisions/ledger-read.toml").is_file());
    for name in ["SIDEMINT_HTTP", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_S3"] {
        TcpStream::connect(address(&env[name])).await.unwrap();
    }
    assert_eq!(env["AWS_REGION"], "us-east-1");
    kill_process(dev.pid(), Signal::TERM).unwrap();
    assert_eq!(dev.ended().await, (Some(0), String::new()));
    assert_eq!(dev.worlds(), Vec::<PathBuf>::new());
    assert!(TcpStream::connect(address(&env["SIDEMINT_ADMIN"])).await.is_err());
}

#[tokio::test]
async fn the_sidecar_of_dev_dies_with_it_even_when_dev_is_killed() {
    let (mut dev, env) = Running::dev(&[]).await;
    let connection = TcpStream::connect(address(&env["SIDEMINT_ADMIN"])).await.unwrap();
    kill_process(dev.pid(), Signal::KILL).unwrap();
    dev.ended().await;
    closed(connection).await;
}

#[tokio::test]
async fn dev_ends_with_the_sidecars_log_when_the_sidecar_dies() {
    let (mut dev, _) = Running::dev(&[]).await;
    let children = dev.children();
    assert_eq!(children.len(), 1);
    kill_process(children[0], Signal::KILL).unwrap();
    let (code, text) = dev.ended().await;
    assert_eq!(code, Some(1));
    assert!(text.contains("ended by itself (signal: 9"), "{text}");
    assert_eq!(dev.worlds(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn dev_uses_ones_own_policy_files_and_ports() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/policy/basic");
    let (mut dev, env) = Running::dev(&["--policy", fixture, "--http", &free]).await;
    assert_eq!(env["SIDEMINT_POLICY_DIRECTORY"], fixture);
    assert_eq!(env["SIDEMINT_HTTP"], format!("http://{free}"));
    let status = probe::get(&SystemClock, address(&env["SIDEMINT_ADMIN"]), "/status", None).await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    assert_eq!(status["policy"]["active_scopes"], 3, "{status}");
    kill_process(dev.pid(), Signal::INT).unwrap();
    assert_eq!(dev.ended().await.0, Some(0));
}

#[tokio::test]
async fn dev_says_what_is_wrong_with_its_arguments() {
    let (code, text) = Running::start(&["dev", "--policy", "/nowhere/at/all"]).ended().await;
    assert_eq!(code, Some(2));
    assert!(text.contains("--policy /nowhere/at/all"), "{text}");
    let (code, text) = Running::start(&["dev", "--http", "0.0.0.0:0"]).ended().await;
    assert_eq!(code, Some(1));
    assert!(text.contains("loopback"), "{text}");
}

#[tokio::test]
async fn an_interrupted_demo_leaves_nothing_behind() {
    let mut demo = Running::start(&["demo", "--output", "json"]);
    let folder = demo.folder.path().to_owned();
    let audit = || {
        let world = std::fs::read_dir(&folder).unwrap().find_map(|entry| entry.ok().filter(|e| e.path().is_dir()))?;
        let audit = std::fs::read_to_string(world.path().join("audit.jsonl")).ok()?;
        audit.contains("\"event\":\"end\"").then_some(())
    };
    // The task has ended: now the demo waits for the cut.
    until("the task's end", audit, &mut demo.child).await;
    kill_process(demo.pid(), Signal::INT).unwrap();
    let (code, text) = demo.ended().await;
    assert_eq!(code, Some(1));
    assert!(text.contains("interrupted"), "{text}");
    assert_eq!(demo.worlds(), Vec::<PathBuf>::new());
}
