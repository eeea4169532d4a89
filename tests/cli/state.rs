//! A state directory that cannot be written: `serve` says so and does not start.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::descriptors::command;

/// Its exit code and what it complained of, among the lines of its log.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said.lines().find(|line| line.starts_with("sidemint: ")).unwrap_or_default().to_owned())
}

#[test]
fn serve_does_not_start_on_a_file_system_that_is_read_only() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let serve = command(directory.path(), &[]);
    // In a mount namespace of its own, which is gone with it.
    let mount = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 77; shift; exec \"$@\"";
    let mut there = Command::new("unshare");
    there.args(["--mount", "sh", "-c", mount, "sh"]).arg(&state).arg(serve.get_program()).args(serve.get_args());
    there.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    there.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (code, said) = match there.output() {
        Ok(output) if output.status.success() || output.status.code() == Some(2) => refused(there),
        other => return eprintln!("skipped: no mount namespace can be made here: {other:?}"),
    };
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("cannot use the state directory") && said.contains("Read-only file system"), "{said}");
}

#[test]
fn serve_does_not_start_on_a_directory_that_it_may_not_write() {
    const NOBODY: u32 = 65_534;
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o500)).unwrap();
    let mut serve = command(directory.path(), &[]);
    // The mode says nothing to root.
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
        serve.uid(NOBODY).gid(NOBODY);
    }
    let (code, said) = match serve.output() {
        Ok(output) if output.status.code() == Some(2) => refused(serve),
        other => return eprintln!("skipped: the program cannot be run as another user here: {other:?}"),
    };
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("cannot use the state directory") && said.contains("Permission denied"), "{said}");
}
