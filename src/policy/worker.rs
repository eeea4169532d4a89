//! Worker threads for policy. Ten thousand scopes take a second or two of a core, and callers must not
//! notice: such work has a thread of its own, which gives way to the threads that serve.

use crate::background::{self, LowPriority};

/// Runs `work` on a thread of its own; `None` when there is no thread or the work broke off. It ends by itself where
/// nobody waits for it any more.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    // A thread of the runtime waits for it, so that the runtime knows of the work.
    let waiting =
        tokio::task::spawn_blocking(|| background::spawn("policy", LowPriority::Lowest, work).ok()?.join().ok());
    waiting.await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_told_as_cut_off() {
        assert_eq!(run(|| 1).await, Some(1));
        assert_eq!(run(|| assert_eq!(1, 2)).await, None);
    }
}
