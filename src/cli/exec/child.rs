//! CMD as a process: how it starts, which signals it gets, what its end means.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, getpgrp, getppid, kill_process, set_parent_process_death_signal};
use tokio::signal::unix::{self, SignalKind};

use super::environment::Change;
use crate::cli::{CliError, CliResult, Exit, complain};

/// The hidden command that becomes CMD.
pub const LAUNCH: &str = "exec-launch";

/// What shells return for a command that is there but cannot be run.
const CANNOT_RUN: u8 = 126;
/// What shells return for a command that is not there.
const NOT_FOUND: u8 = 127;

/// Arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub struct LaunchArgs {
    /// The process id of the exec that this belongs to
    parent: i32,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes CMD, after it asked the kernel for a SIGTERM when exec dies: so CMD does not outlive a killed exec. The wish
/// survives `execve` (not for set-uid programs) and is CMD's alone: processes that CMD starts do not inherit it.
///
/// It is a program of its own because between `fork` and `execve` of one process only `unsafe` code could ask.
///
/// # Errors
/// Never returns `Ok(0)`: 126 or 127 when CMD cannot be run or is not found, 1 when exec is gone already.
pub fn launch(args: LaunchArgs) -> CliResult {
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| CliError::new(Exit::Failed, format!("cannot tie the command to exec: {error}")))?;
    if getppid().map(Pid::as_raw_pid) != Some(args.parent) {
        return Err(CliError::new(Exit::Failed, "exec is gone; the command is not started"));
    }
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(CliError::new(Exit::Usage, "no command"));
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    Ok(StartFailure { command: program.clone(), error }.report())
}

/// CMD did not start.
pub(super) struct StartFailure {
    command: OsString,
    error: io::Error,
}

impl StartFailure {
    /// Prints why, and returns the exit code that shells use for it.
    pub(super) fn report(self) -> u8 {
        let command = self.command.display();
        match self.error.kind() {
            io::ErrorKind::NotFound => {
                complain(&format!("{command}: command not found"));
                NOT_FOUND
            }
            _ => {
                complain(&format!("{command}: cannot be run: {}", self.error));
                CANNOT_RUN
            }
        }
    }
}

/// CMD, running.
pub(super) struct Child {
    process: tokio::process::Child,
    /// Whether CMD shares the foreground of a terminal with exec, asked anew for each signal.
    terminal: fn() -> bool,
}

impl Child {
    /// Starts CMD through [`launch`], in exec's own process group, so that it keeps the terminal.
    ///
    /// Must be called on the main thread: the death signal follows the thread that starts CMD.
    ///
    /// # Errors
    /// When this program cannot be started a second time.
    pub(super) fn start(command: &[OsString], changes: &[Change]) -> Result<Self, StartFailure> {
        // This very program, even when its file has been replaced meanwhile.
        let mut launcher = tokio::process::Command::new("/proc/self/exe");
        launcher.arg0("sidemint").arg(LAUNCH).arg(std::process::id().to_string()).arg("--").args(command);
        for (name, value) in changes {
            match value {
                Some(value) => launcher.env(name, value),
                None => launcher.env_remove(name),
            };
        }
        match launcher.spawn() {
            Ok(process) => Ok(Self { process, terminal: in_foreground }),
            Err(error) => Err(StartFailure { command: "/proc/self/exe".into(), error }),
        }
    }

    /// Waits for its end. May be cancelled and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Passes a signal on, unless the terminal has sent it to CMD already.
    pub(super) fn pass_on(&self, signal: Signal) {
        if is_sent_by_terminals(signal) && (self.terminal)() {
            return;
        }
        // `id` is none once CMD has been waited for, so the number cannot be another process's.
        let pid = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // CMD may have ended a moment ago: then there is nobody to tell.
            let _ = kill_process(pid, signal);
        }
    }
}

/// The signals that a terminal sends to its whole foreground group: exec and CMD both have them.
fn is_sent_by_terminals(signal: Signal) -> bool {
    [Signal::INT, Signal::QUIT, Signal::WINCH].contains(&signal)
}

/// Whether this process's group is the foreground group of its terminal.
fn in_foreground() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    foreground_group(&stat) == Some(getpgrp().as_raw_pid())
}

/// The foreground group of a process's terminal, from its `stat` (proc(5): field 8, -1 without a terminal). The
/// command's name, field 2, is in parentheses and may hold anything.
fn foreground_group(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(5)?.parse().ok().filter(|group| *group > 0)
}

/// Whether a process ignores a signal, by its `status` (proc(5): `SigIgn`, a mask in hexadecimal digits).
fn is_ignored(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask.checked_shr(signal.as_raw().unsigned_abs().saturating_sub(1)).is_some_and(|mask| mask & 1 == 1)
}

/// The exit code that shells return for `status`.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Failed as u8)
}

/// The exit code of a process that `signal` killed.
pub(super) fn killed_by(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(Exit::Failed as u8)
}

/// The signals that exec passes on.
pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Listens from now on; none of them kills exec any more.
    ///
    /// # Errors
    /// Failed, when the system refuses.
    pub(super) fn listen() -> Result<Self, CliError> {
        let all = [
            Signal::INT,
            Signal::TERM,
            Signal::HUP,
            Signal::QUIT,
            Signal::USR1,
            Signal::USR2,
            Signal::ALARM,
            Signal::WINCH,
            Signal::CONT,
        ];
        // What was ignored when exec began (by nohup, or in a background job) stays so, for CMD too.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let all = all.into_iter().filter(|signal| !is_ignored(&status, *signal));
        let listen = |signal: Signal| Ok((signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?));
        let signals: io::Result<Vec<_>> = all.map(listen).collect();
        signals.map(Self).map_err(|error| CliError::new(Exit::Failed, format!("cannot listen to signals: {error}")))
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (signal, stream) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Waits for a signal that asks exec itself to stop, before there is a CMD to ask.
    pub(super) async fn fatal(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&signal) {
                return signal;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_exit_code_is_that_of_a_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(killed_by(Signal::TERM), 143);
    }

    #[test]
    fn reads_the_foreground_group_whatever_the_process_is_called() {
        assert_eq!(foreground_group("12 (a) b (c) S 1 12 12 34816 77 4194560 0"), Some(77));
        assert_eq!(foreground_group("12 (x) S 1 12 12 0 -1 4194560 0"), None);
        assert_eq!(foreground_group(""), None);
    }

    #[test]
    fn reads_which_signals_are_ignored() {
        let status = "Name:\tx\nSigIgn:\t0000000000001003\nSigCgt:\t0000000000000004\n";
        let ignored = |signal| is_ignored(status, signal);
        assert!(ignored(Signal::HUP) && ignored(Signal::INT) && ignored(Signal::PIPE));
        assert!(!ignored(Signal::QUIT) && !ignored(Signal::TERM) && !is_ignored("", Signal::HUP));
    }

    proptest! {
        #[test]
        fn any_name_of_a_process_leaves_its_foreground_group_readable(name in "[ -~]{0,15}") {
            prop_assert_eq!(foreground_group(&format!("1 ({name}) S 1 1 1 34816 9 0")), Some(9));
        }
    }
}
