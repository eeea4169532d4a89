//! What keeps secrets in memory from leaving it by accident.
//!
//! What `serve` and `exec` do first:
//! - the process is not dumpable: no core dump, no `ptrace` by others of the same user, and its `/proc/PID/mem` and
//!   `environ` belong to root (`prctl(2)`, `PR_SET_DUMPABLE`);
//! - `serve` only: the limit of core files is 0 (`setrlimit(2)`, `RLIMIT_CORE`). `exec` leaves it as it is, since its
//!   command would inherit it; the command is not ours, and is dumpable again by its own `execve`;
//! - a panic tells where it happened, and its message only when it is a text fixed in the program.
//!
//! Swap is not in our hands: memory is not locked, since a sidecar may not raise `RLIMIT_MEMLOCK`. Secrets are wiped when
//! they are dropped, and live for minutes; where pages may reach a disk, encrypt swap or have none (Kubernetes nodes
//! have none by default). A debugger run by root sees everything, as always.

use std::io::Write as _;
use std::panic::PanicHookInfo;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// The process could not be hardened.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}: the kernel or a sandbox refuses it; allow prctl and setrlimit")]
pub struct HardeningError {
    what: &'static str,
    error: rustix::io::Errno,
}

/// For a process that holds secrets and starts no programs of others: undumpable, without core files, and its panics
/// silent about what they saw.
///
/// # Errors
/// When the kernel refuses; then no secret should be taken into this process.
pub fn harden() -> Result<(), HardeningError> {
    let failed = |error| HardeningError { what: "core files cannot be forbidden", error };
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(failed)?;
    harden_parent()
}

/// For a process that holds secrets and starts programs of others: the same, but what they inherit is not changed.
///
/// # Errors
/// When the kernel refuses.
pub fn harden_parent() -> Result<(), HardeningError> {
    quiet_panics();
    let failed = |error| HardeningError { what: "the process cannot be made undumpable", error };
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed)
}

/// Replaces the message of panics: `unwrap` and its kin put what they were given into it, which may be anything.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        // Nothing can be done when even this cannot be written.
        let _ = writeln!(std::io::stderr().lock(), "{}", describe(info));
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    // A text fixed in the program arrives as `&'static str`; what was formatted arrives as `String`.
    let message = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("(message withheld)");
    format!("sidemint: thread {thread} panicked at {place}: {message}")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_panic_message_has_its_location_and_no_values() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let before = std::panic::take_hook();
        let ours = std::thread::current().id();
        // Other tests may panic meanwhile, in threads of their own, which is theirs to tell.
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().id() == ours {
                sink.lock().unwrap().push(describe(info));
            }
        }));
        let secret = std::hint::black_box("hunter2".to_owned());
        let _ = std::panic::catch_unwind(|| panic!("the key is {secret}"));
        let _ = std::panic::catch_unwind(|| secret.parse::<u8>().map_err(|_| secret.clone()).unwrap());
        let _ = std::panic::catch_unwind(|| std::panic::panic_any(secret.clone()));
        let _ = std::panic::catch_unwind(|| panic!("fixed text"));
        std::panic::set_hook(before);
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 4);
        assert!(seen.iter().all(|text| text.contains("hardening.rs") && !text.contains("hunter2")), "{seen:?}");
        assert!(seen[3].ends_with(": fixed text"));
    }
}
