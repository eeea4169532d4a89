//! The timer behind the time limit of a request's head: one for each connection, left to run out, instead of one for each
//! request, set and cancelled under a lock that all connections share.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// The timer of one connection.
#[derive(Default)]
pub(super) struct HeadTimer(Arc<Mutex<Option<Armed>>>);

type Armed = Pin<Box<tokio::time::Sleep>>;

impl fmt::Debug for HeadTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadTimer").finish_non_exhaustive()
    }
}

/// A wait of this connection; only the latest is polled.
struct Wait {
    until: tokio::time::Instant,
    armed: Arc<Mutex<Option<Armed>>>,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait { until: deadline.into(), armed: Arc::clone(&self.0) })
    }

    #[allow(clippy::disallowed_methods, reason = "hyper sets its limits by the same clock as waits for them")]
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // A timer is whole at any moment.
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = armed.get_or_insert_with(|| Box::pin(sleep_until(self.until)));
        if timer.deadline() > self.until {
            timer.as_mut().reset(self.until);
        }
        // Armed for an earlier wait, most often: then it runs out before this one's time, once, and is set anew.
        while timer.deadline() < self.until {
            ready!(timer.as_mut().poll(context));
            timer.as_mut().reset(self.until);
        }
        timer.as_mut().poll(context)
    }
}

#[allow(clippy::disallowed_methods, reason = "hyper sets its limits by the same clock as waits for them")]
fn sleep_until(deadline: tokio::time::Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_over(wait: &mut Pin<Box<dyn Sleep>>) -> bool {
        std::future::poll_fn(|context| Poll::Ready(wait.as_mut().poll(context).is_ready())).await
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_lasts_its_own_time_whatever_was_armed_before() {
        let timers = HeadTimer::default();
        let mut first = timers.sleep(Duration::from_secs(5));
        assert!(!is_over(&mut first).await);
        drop(first);
        tokio::time::advance(Duration::from_secs(4)).await;
        let mut second = timers.sleep(Duration::from_secs(5));
        assert!(!is_over(&mut second).await);
        let began = timers.now();
        second.as_mut().await;
        assert!((5000..5010).contains(&(timers.now() - began).as_millis()));
        // One that is over sooner than what is armed, and one after a timer that ran out unseen.
        let mut third = timers.sleep(Duration::from_secs(9));
        assert!(!is_over(&mut third).await);
        let began = timers.now();
        timers.sleep(Duration::from_secs(2)).await;
        assert!((2000..2010).contains(&(timers.now() - began).as_millis()));
        tokio::time::advance(Duration::from_secs(60)).await;
        let mut last = timers.sleep(Duration::from_secs(5));
        assert!(!is_over(&mut last).await);
        tokio::time::advance(Duration::from_millis(4990)).await;
        assert!(!is_over(&mut last).await);
        tokio::time::advance(Duration::from_millis(20)).await;
        assert!(is_over(&mut last).await);
    }
}
