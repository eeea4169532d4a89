//! Threads of their own for what blocks or takes long: the journal's commits, the audit log, a policy being loaded. They
//! give way to the threads that serve.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, yield_now};

/// How far a thread gives way to those who serve (`setpriority(2)`).
#[derive(Debug, Clone, Copy)]
pub(crate) enum LowPriority {
    /// Serving goes first, so that a burst of commits delays no answer until the next tick of the scheduler; but begins and
    /// ends wait for this thread.
    Lower,
    /// Nobody waits for it. Beside one serving thread that never rests it still gets a tenth of the core, so that a kill list is in
    /// force in time even then.
    Lowest,
}

/// Long work in steps of some ten microseconds, that offers the core to others before each of them. Niceness alone is not
/// enough: Linux lets even a thread that goes first wait until the other's slice is over, some milliseconds (since 6.6;
/// `sched(7)`). What is short is not interrupted: somebody may wait for it.
#[derive(Debug, Default)]
pub(crate) struct Turns(AtomicBool);

impl Turns {
    /// What follows is long, or not.
    pub(crate) fn are_taken(&self, long: bool) {
        self.0.store(long, Ordering::Relaxed);
    }

    /// The next step begins.
    pub(crate) fn step(&self) {
        if self.0.load(Ordering::Relaxed) {
            yield_now();
        }
    }
}

/// Runs `work` on a new thread called `name`. What gave way once may not come back, so it is none of the runtime's.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    priority: LowPriority,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        lower_priority(priority);
        work()
    })
}

/// On Linux it is the calling thread alone that is nice; elsewhere it would be the whole process.
fn lower_priority(priority: LowPriority) {
    let niceness = match priority {
        LowPriority::Lower => 4,
        LowPriority::Lowest => 10,
    };
    if cfg!(target_os = "linux") {
        // Where the system forbids it, callers only notice a little more.
        let _ = rustix::process::setpriority_process(None, niceness);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn lowers_the_priority_of_its_own_thread_only() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        for (priority, niceness) in [(LowPriority::Lower, 4), (LowPriority::Lowest, 10)] {
            assert_eq!(spawn("background", priority, nice).unwrap().join().unwrap(), before.max(niceness));
            assert_eq!(nice(), before);
        }
    }
}
