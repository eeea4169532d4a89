//! A stream whose writes have a time limit: a client that asks and does not read cannot keep its answer, and us, forever.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::SharedClock;

type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is known of a connection, for whoever tells why it ended.
#[derive(Debug, Default)]
pub(super) struct ConnectionState {
    /// Something was read that has not been answered.
    pub(super) unanswered: AtomicBool,
    /// A write stood still for too long.
    pub(super) stalled: AtomicBool,
}

/// Lets no write stand still for longer than a limit.
pub(super) struct WriteTimeout<S> {
    inner: S,
    clock: SharedClock,
    limit: Duration,
    /// Runs while a write stands still.
    timer: Option<Sleep>,
    state: Arc<ConnectionState>,
}

impl<S> fmt::Debug for WriteTimeout<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTimeout").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<S> WriteTimeout<S> {
    /// `inner`, whose writes fail once they have stood still for `limit` on `clock`.
    pub(super) fn new(inner: S, clock: SharedClock, limit: Duration) -> (Self, Arc<ConnectionState>) {
        let state = Arc::new(ConnectionState::default());
        (Self { inner, clock, limit, timer: None, state: Arc::clone(&state) }, state)
    }

    /// `written` as it is, or a failure where it has been pending for too long.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let (clock, limit) = (&self.clock, self.limit);
        let timer = self.timer.get_or_insert_with(|| {
            let clock = Arc::clone(clock);
            Box::pin(async move { clock.sleep(limit).await })
        });
        ready!(timer.as_mut().poll(context));
        self.state.stalled.store(true, Ordering::Release);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, into))?;
        if into.filled().len() > before {
            this.state.unanswered.store(true, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.state.unanswered.store(false, Ordering::Release);
        let written = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.judge(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.state.unanswered.store(false, Ordering::Release);
        let written = Pin::new(&mut this.inner).poll_write_vectored(context, slices);
        this.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(context);
        this.judge(flushed, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.inner).poll_shutdown(context);
        this.judge(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::clock::{ManualClock, Timestamp};

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn fails_a_write_that_stalls_and_not_one_that_progresses() {
        let clock = ManualClock::at(Timestamp::from_secs(1_795_452_513));
        let (near, mut far) = tokio::io::duplex(8);
        let (mut near, state) = WriteTimeout::new(near, Arc::new(clock.clone()), LIMIT);
        let write = tokio::spawn(async move { near.write_all(&[7; 64]).await });
        let mut some = [0; 8];
        for _ in 0..3 {
            while clock.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
            // slowly, but it moves: each time the time begins anew
            clock.advance(LIMIT - Duration::from_secs(1));
            far.read_exact(&mut some).await.unwrap();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        assert!(!write.is_finished() && !state.stalled.load(Ordering::Acquire));
        while clock.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        clock.advance(LIMIT);
        assert_eq!(write.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(state.stalled.load(Ordering::Acquire));
    }
}
