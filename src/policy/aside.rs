//! Work on a policy, aside from what serves. Ten thousand scopes take a second or two of a core, and callers must not
//! notice: such work has a thread of its own, which gives way to the threads that serve.

/// How far the thread gives way (`setpriority(2)`): beside one serving thread that never rests it still gets a tenth of
/// their core, so that a kill list is in force in time even then.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Runs `work` on a thread of its own; `None` when there is no thread or the work broke off. It ends by itself where
/// nobody waits for it any more.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    // What gave way once may not come back, so the thread is none of the runtime's; one of those waits for it, so that
    // the runtime knows of the work.
    let waiting = tokio::task::spawn_blocking(|| {
        let work = move || {
            give_way();
            work()
        };
        std::thread::Builder::new().name("policy".to_owned()).spawn(work).ok()?.join().ok()
    });
    waiting.await.ok().flatten()
}

/// On Linux it is the calling thread alone that is nice; elsewhere it would be the whole process.
fn give_way() {
    #[cfg(target_os = "linux")]
    // Where the system forbids it, callers only notice a little more.
    let _ = rustix::process::setpriority_process(None, NICENESS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_told_as_cut_off() {
        assert_eq!(run(|| 1).await, Some(1));
        assert_eq!(run(|| assert_eq!(1, 2)).await, None);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn only_its_own_thread_gives_way() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        assert_eq!(run(nice).await, Some(before.max(NICENESS)));
        assert_eq!(nice(), before);
    }
}
