//! Worker threads for policy. Ten thousand scopes take a second or two of a core, and callers must not
//! notice: such work has a thread of its own, which gives way to the threads that serve.

use crate::background::{self, LowPriority};

/// Runs `work` on a thread of its own; `None` when there is no thread or the work broke off. It ends by itself where
/// nobody waits for it any more.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    run_as(LowPriority::Lowest, work).await
}

/// The same for the first policy: until it is there nothing is served, and everybody waits for it.
pub(super) async fn run_first<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    run_as(LowPriority::Lower, work).await
}

async fn run_as<T: Send + 'static>(priority: LowPriority, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    // A thread of the runtime waits for it, so that the runtime knows of the work.
    let waiting = tokio::task::spawn_blocking(move || background::spawn("policy", priority, work).ok()?.join().ok());
    waiting.await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_work_that_panics_as_cut_off() {
        assert_eq!(run(|| 1).await, Some(1));
        assert_eq!(run(|| assert_eq!(1, 2)).await, None);
    }
}
