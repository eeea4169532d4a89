//! The `sidemint` program as its users meet it: the real binary against a sidecar and a Workload API that speak the
//! real wire. Nothing here waits for a time; it waits for what it wants to see.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

mod audit;
mod descriptors;
mod exec;
mod fake_sidecar;
mod fake_workload_api;
mod hardening;
#[cfg(feature = "author")]
mod publishing;
mod roots;
mod socket_owner;
mod state;
mod stranded;
mod tasks;

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use fake_sidecar::FakeSidecar;
use fake_workload_api::FakeWorkloadApi;

/// Everything that a command needs around it.
struct World {
    sidecar: FakeSidecar,
    workload_api: FakeWorkloadApi,
    directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let workload_api = FakeWorkloadApi::start(&directory.path().join("agent.sock"));
        let sidecar = FakeSidecar::start(&directory.path().join("http.sock")).await;
        Self { sidecar, workload_api, directory }
    }

    /// Where the commands of a test may write, and where `exec` puts its token files.
    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn sidemint(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidemint"));
        command
            .args(args)
            .env("SIDEMINT_HTTP", self.sidecar.url())
            .env("SIDEMINT_ADMIN", self.sidecar.tcp_url())
            .env("SPIFFE_ENDPOINT_SOCKET", self.workload_api.url())
            .env("XDG_RUNTIME_DIR", self.path())
            .env_remove("SIDEMINT_AUDIENCE")
            .env_remove("SIDEMINT_TOKEN_FILE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Not the terminal's foreground group: signals come from the tests alone.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Outcome {
        Outcome::of(self.sidemint(args).spawn().unwrap()).await
    }
}

/// How a command ended.
#[derive(Debug)]
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    async fn of(child: Child) -> Self {
        let output = child.wait_with_output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let outcome = Self {
            code: output.status.code().expect("not killed"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        assert!(!outcome.stderr.contains(fake_workload_api::SIGNATURE), "an SVID leaked: {}", outcome.stderr);
        assert!(!outcome.stderr.contains(fake_sidecar::TOKEN), "a token leaked: {}", outcome.stderr);
        outcome
    }
}

/// Waits for the next line.
async fn line(reader: &mut (impl AsyncRead + Unpin)) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, reader).read_line(&mut line).await.unwrap();
    line.trim_end().to_owned()
}

/// Waits for the end of a stream, which comes when its last writer is gone.
async fn rest(reader: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    text
}
