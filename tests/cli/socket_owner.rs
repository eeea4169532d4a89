//! Who may serve the Workload API's socket: a stranger is told nothing, and whoever is refused says how to fix that. The
//! stranger is a real server under another user, so these need root; under another user they end at once, without a word.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Somebody who is neither root nor we.
const STRANGER: u32 = 65_534;
const REFUSAL: &str = "its socket is served by uid 65534";

/// Somebody else listens on a Unix socket: a sidecar, since what it would answer does not matter.
struct Listening {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Listening {
    fn socket(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A command of a sidecar that has this Workload API, and its files in `directory`.
fn configured(program: &Path, verb: &str, workload_api: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg(verb)
        .env_clear()
        .env("SPIFFE_ENDPOINT_SOCKET", workload_api)
        .env("SIDEMINT_POLICY_DIRECTORY", directory)
        .env("SIDEMINT_POLICY_TRUST", "unsigned")
        .env("SIDEMINT_SERVER_HTTP", "127.0.0.1:0")
        .env("SIDEMINT_ADMIN_HTTP", "127.0.0.1:0")
        .env("SIDEMINT_STATE_DIRECTORY", directory.join("state"))
        .env("SIDEMINT_AUDIT_OUTPUT", directory.join("audit.jsonl"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Starts it, and reads its log until a line holds `text`.
fn until(command: &mut Command, text: &str) -> (Child, String) {
    let mut child = command.spawn().unwrap();
    let mut told = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        told.push_str(&line.unwrap());
        if told.contains(text) {
            return (child, told);
        }
    }
    let _ = child.wait();
    panic!("it ended: {told}");
}

/// A stranger listens in a new directory below `place` that is theirs and has this mode.
fn stranger(place: &str, mode: u32) -> Listening {
    let directory = tempfile::tempdir_in(place).unwrap();
    // from where they can read it
    let programs = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = programs.path().join("sidemint");
    fs::copy(env!("CARGO_BIN_EXE_sidemint"), &program).unwrap();
    chown(directory.path(), Some(STRANGER), Some(STRANGER)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
    let mut command = configured(&program, "serve", "unix:///nonexistent/agent.sock", directory.path());
    command.env("SIDEMINT_SERVER_UNIX_SOCKET", directory.path().join("api.sock")).uid(STRANGER).gid(STRANGER);
    let (child, _) = until(&mut command, "serving");
    Listening { child, directory }
}

fn sidemint(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sidemint")).args(args).env_clear().stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn rejects_a_socket_of_another_user_and_says_the_fix() {
    if !is_root() {
        return;
    }
    // Below /tmp anybody may have been first, so that the directory is theirs says nothing.
    let stranger = stranger("/tmp", 0o755);
    let address = stranger.address();
    for command in ["svid x509", "svid jwt --audience sidemint", "task begin --scope ledger-read"] {
        let args: Vec<&str> = command.split(' ').chain(["--workload-api", &address]).collect();
        let refused = sidemint(&args);
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{command}: {error}");
        assert!(error.contains(REFUSAL) && error.contains("identity.workload_api_uid = 65534"), "{command}: {error}");
        // Told to trust them, it asks: what they answer is no gRPC.
        let asked = sidemint(&[&args[..], &["--workload-api-uid", "65534"]].concat());
        let error = text(&asked.stderr);
        assert_eq!(asked.status.code(), Some(4), "{command}: {error}");
        assert!(!error.contains(REFUSAL), "{command}: {error}");
    }

    let own = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_sidemint"));
    let examined = configured(program, "doctor", &address, own.path()).stdout(Stdio::piped()).output().unwrap();
    let report = text(&examined.stdout);
    assert!(report.contains(REFUSAL) && report.contains("who listens there"), "{report}");

    let (mut child, log) = until(&mut configured(program, "serve", &address, own.path()), REFUSAL);
    let _ = child.kill();
    let _ = child.wait();
    assert!(log.contains("the Workload API is not trusted"), "{log}");
}

#[test]
fn trusts_the_sole_owner_of_the_directory() {
    if !is_root() {
        return;
    }
    let agent = stranger("/run", 0o755);
    let asked = sidemint(&["svid", "x509", "--workload-api", &agent.address()]);
    assert!(asked.status.code() == Some(4) && !text(&asked.stderr).contains(REFUSAL), "{}", text(&asked.stderr));
    // Through a link too, which whoever owns /tmp may turn: it is the place behind it that is used.
    let links = tempfile::tempdir_in("/tmp").unwrap();
    let link = links.path().join("api.sock");
    std::os::unix::fs::symlink(agent.socket(), &link).unwrap();
    let asked = sidemint(&["svid", "x509", "--workload-api", &format!("unix://{}", link.display())]);
    assert!(asked.status.code() == Some(4) && !text(&asked.stderr).contains(REFUSAL), "{}", text(&asked.stderr));
    // Where somebody else can write too, they may have put the socket there.
    fs::set_permissions(agent.directory.path(), fs::Permissions::from_mode(0o775)).unwrap();
    let refused = sidemint(&["svid", "x509", "--workload-api", &agent.address()]);
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains(REFUSAL), "{}", text(&refused.stderr));
}
