//! What the kernel says of a running sidecar: nobody but root looks into its memory, alive or dead.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// Somebody who is not root, so that the kernel's own answer can be told from root's.
const NOBODY: u32 = 65_534;

struct Serve {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `sidemint serve`, and returns once it serves. As somebody else where we are root, from a copy of the program
/// that they can read.
fn serve() -> Serve {
    // Not below TMPDIR, which may be somebody's own.
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let root = fs::metadata(directory.path()).unwrap().uid() == 0;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = directory.path().join("sidemint");
    fs::copy(env!("CARGO_BIN_EXE_sidemint"), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let policy = directory.path().join("policy");
    fs::create_dir(&policy).unwrap();
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command
        .arg("serve")
        .env_clear()
        .env("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/agent.sock")
        .env("SIDEMINT_POLICY_DIRECTORY", &policy)
        .env("SIDEMINT_POLICY_TRUST", "unsigned")
        .env("SIDEMINT_SERVER_HTTP", "127.0.0.1:0")
        .env("SIDEMINT_ADMIN_HTTP", "127.0.0.1:0")
        .env("SIDEMINT_STATE_DIRECTORY", directory.path().join("state"))
        .env("SIDEMINT_AUDIT_OUTPUT", directory.path().join("audit.jsonl"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if root {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = command.spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let serve = Serve { child, _directory: directory };
    let mut told = String::new();
    for line in log.lines() {
        let line = line.unwrap();
        told.push_str(&line);
        if line.contains("serving") {
            return serve;
        }
    }
    panic!("it ended: {told}");
}

#[test]
fn a_sidecar_is_not_dumpable_and_leaves_no_core() {
    let serve = serve();
    let of = |name: &str| format!("/proc/{}/{name}", serve.child.id());
    let status = fs::read_to_string(of("status")).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
    assert_ne!(uid.split('\t').next(), Some("0"), "run as root it would prove nothing");
    // proc(5): what belongs to root though the process does not, belongs to a process that is not dumpable.
    for name in ["mem", "environ", "maps"] {
        assert_eq!(fs::metadata(of(name)).unwrap().uid(), 0, "{name}");
    }
    let limits = fs::read_to_string(of("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

#[test]
fn the_check_detects_a_dumpable_process() {
    let mut command = Command::new("sleep");
    command.arg("60");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = command.spawn().unwrap();
    let owner = fs::metadata(format!("/proc/{}/environ", child.id())).unwrap().uid();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(owner, 0);
}
