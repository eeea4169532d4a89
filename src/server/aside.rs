//! A wait beside the work: looked at only once something was said about it, not each time that the work goes on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Waits for words by `look`, which is called first, after each word, and then only when it was woken itself.
pub(super) struct Aside<L> {
    look: L,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
}

#[derive(Debug, Default)]
struct Bell {
    rung: AtomicBool,
    whose: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.whose.wake();
    }
}

impl<L> fmt::Debug for Aside<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aside").field("bell", &self.bell).finish_non_exhaustive()
    }
}

impl<T, L: FnMut(&mut Context<'_>) -> Poll<T>> Aside<L> {
    pub(super) fn new(look: L) -> Self {
        let bell = Arc::new(Bell { rung: true.into(), whose: AtomicWaker::new() });
        Self { look, waker: Arc::clone(&bell).into(), bell }
    }

    /// The next word.
    pub(super) async fn next(&mut self) -> T {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<T> {
        // Whoever is to be woken is known before the bell is looked at: no ring is missed.
        self.bell.whose.register(context.waker());
        if !self.bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.bell.rung.store(false, Ordering::Release);
        let word = (self.look)(&mut Context::from_waker(&self.waker));
        if word.is_ready() {
            self.bell.rung.store(true, Ordering::Release);
        }
        word
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn it_is_looked_at_first_after_each_word_and_else_only_when_it_was_woken() {
        let (said, mut words) = mpsc::unbounded_channel();
        let looks = AtomicU32::new(0);
        let mut aside = Aside::new(|context: &mut Context<'_>| {
            looks.fetch_add(1, Ordering::Relaxed);
            words.poll_recv(context)
        });
        let mut context = Context::from_waker(Waker::noop());
        let mut poll = |expected| {
            assert_eq!(aside.poll(&mut context), expected);
            looks.load(Ordering::Relaxed)
        };
        for _ in 0..5 {
            assert_eq!(poll(Poll::Pending), 1);
        }
        said.send("one").unwrap();
        said.send("two").unwrap();
        assert_eq!(poll(Poll::Ready(Some("one"))), 2);
        assert_eq!(poll(Poll::Ready(Some("two"))), 3);
        for _ in 0..5 {
            assert_eq!(poll(Poll::Pending), 4);
        }
        drop(said);
        assert_eq!(poll(Poll::Ready(None)), 5);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let (said, mut words) = mpsc::unbounded_channel();
        let waiting =
            tokio::spawn(async move { Aside::new(|context: &mut Context<'_>| words.poll_recv(context)).next().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        said.send(7).unwrap();
        assert_eq!(waiting.await.unwrap(), Some(7));
    }
}
