//! A sidecar that may open no more files: it stays up, and it answers once other connections close.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// More than the sidecar may open in all.
const CONNECTIONS: usize = 200;
/// What it may open beside what it has open.
const LEFT: u64 = 24;

pub(crate) struct Serve {
    child: Child,
    pub(crate) directory: tempfile::TempDir,
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `sidemint serve` with what it keeps in `directory`, and this in its environment beside what it needs.
pub(crate) fn command(directory: &Path, more: &[(&str, &str)]) -> Command {
    let policy = directory.join("policy");
    fs::create_dir_all(&policy).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidemint"));
    command
        .arg("serve")
        .env_clear()
        .env("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/agent.sock")
        .env("SIDEMINT_POLICY_DIRECTORY", &policy)
        .env("SIDEMINT_POLICY_TRUST", "unsigned")
        .env("SIDEMINT_SERVER_HTTP", "127.0.0.1:0")
        .env("SIDEMINT_ADMIN_HTTP", "127.0.0.1:0")
        .env("SIDEMINT_STATE_DIRECTORY", directory.join("state"))
        .env("SIDEMINT_AUDIT_OUTPUT", directory.join("audit.jsonl"))
        .envs(more.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Starts one, and tells where workloads and operators ask.
pub(crate) fn serve(directory: tempfile::TempDir, more: &[(&str, &str)]) -> (Serve, SocketAddr, SocketAddr) {
    let mut child = command(directory.path(), more).spawn().unwrap();
    let log = child.stderr.take();
    let serve = Serve { child, directory };
    let mut log = BufReader::new(log.unwrap());
    let mut told = String::new();
    loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended: {told}");
        let address = |name: &str| {
            let (_, rest) =
                line.split_once(&format!("{name}=")).or_else(|| line.split_once(&format!("\"{name}\":\"")))?;
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).unwrap_or(rest.len());
            rest[..end].parse().ok()
        };
        if let (Some(http), Some(admin)) = (address("http"), address("admin")) {
            // Somebody must read on, or it would wait for room in the pipe.
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return (serve, http, admin);
        }
        told.push_str(&line);
    }
}

/// The answer to one request; `None` where there is none.
fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// Asks until it is answered.
pub(crate) fn answered(address: SocketAddr, path: &str) -> String {
    (0..200).find_map(|_| ask(address, path)).unwrap_or_else(|| panic!("{path} is never answered"))
}

fn met_the_limit(admin: SocketAddr) -> u64 {
    let page = answered(admin, "/metrics");
    let series = "sidemint_limited_total{limit=\"descriptors\"} ";
    page.lines().find_map(|line| line.strip_prefix(series)).unwrap().trim().parse().unwrap()
}

#[test]
fn survives_descriptor_exhaustion_and_answers_once_connections_close() {
    let (mut serve, http, admin) = serve(tempfile::tempdir().unwrap(), &[]);
    assert!(answered(http, "/v1/tasks").starts_with("HTTP/1.1 401"));
    assert_eq!(met_the_limit(admin), 0);
    let open = || fs::read_dir(format!("/proc/{}/fd", serve.child.id())).unwrap().count() as u64;
    let limit = open() + LEFT;
    let pid = Pid::from_raw(i32::try_from(serve.child.id()).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).unwrap();

    let connections: Vec<TcpStream> = (0..CONNECTIONS).map(|_| TcpStream::connect(http).unwrap()).collect();
    // Who asks at the worst moment is answered in the end: whoever is silent has to make room.
    assert!(answered(http, "/v1/tasks").starts_with("HTTP/1.1 401"));
    assert!(open() <= limit);
    drop(connections);
    for _ in 0..20 {
        assert!(answered(http, "/v1/tasks").starts_with("HTTP/1.1 401"));
    }
    assert!(answered(admin, "/livez").starts_with("HTTP/1.1 200"));
    assert!(met_the_limit(admin) > 0);
    assert!(serve.child.try_wait().unwrap().is_none(), "it is still up");
}
