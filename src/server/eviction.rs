//! Which connection is closed when a listener is full: the one for which we have waited the longest.
//!
//! A connection waits for us while we work on its request or stream its answer. Otherwise we wait for it: it has sent no
//! request yet, half of one, or none for a while. Clients that never finish a request can take every connection, and still
//! keep out nobody who sends one (threat T22).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The open connections of one listener.
#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    slots: Mutex<BTreeMap<u64, Arc<Waiting>>>,
    counter: AtomicU64,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The count at which we began to wait for it; 0 while it waits for us.
    since: AtomicU64,
    leave: Notify,
}

/// The slot of one open connection; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    connections: Arc<OpenConnections>,
    number: u64,
    waiting: Arc<Waiting>,
}

impl OpenConnections {
    /// Takes in a new connection, for whose first request we wait from now on.
    pub(super) fn enter(self: &Arc<Self>) -> Slot {
        let number = self.next();
        let waiting = Arc::new(Waiting { since: AtomicU64::new(number), leave: Notify::new() });
        self.slots().insert(number, Arc::clone(&waiting));
        Slot { connections: Arc::clone(self), number, waiting }
    }

    /// Sends away the connection for which we have waited the longest; `false` where all wait for us.
    pub(super) fn make_room(&self) -> bool {
        let slots = self.slots();
        let waiting = slots.values().map(|waiting| (waiting.since.load(Ordering::Acquire), waiting));
        let Some((_, waiting)) = waiting.filter(|(since, _)| *since > 0).min_by_key(|(since, _)| *since) else {
            return false;
        };
        // not twice: the next one to be sent away is another
        waiting.since.store(0, Ordering::Release);
        waiting.leave.notify_one();
        true
    }

    fn next(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::AcqRel).saturating_add(1)
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Waiting>>> {
        // Insert and remove leave it whole at any moment.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The connection's side of it.
    pub(super) fn waiting(&self) -> &Arc<Waiting> {
        &self.waiting
    }

    /// We wait for the client again.
    pub(super) fn answered(&self) {
        self.waiting.since.store(self.connections.next(), Ordering::Release);
    }

    /// Returns when the connection must leave.
    pub(super) async fn evicted(&self) {
        self.waiting.leave.notified().await;
    }
}

impl Waiting {
    /// The client has said all that there is to say: now it waits for us.
    pub(super) fn request_read(&self) {
        self.since.store(0, Ordering::Release);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.slots().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(slot: &Slot) -> bool {
        let mut leaving = std::pin::pin!(slot.evicted());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::future::Future::poll(leaving.as_mut(), &mut context).is_ready()
    }

    #[test]
    fn evicts_the_connection_that_was_idle_longest_and_none_that_waits_for_an_answer() {
        let connections = Arc::new(OpenConnections::default());
        let (first, second, third) = (connections.enter(), connections.enter(), connections.enter());
        second.waiting().request_read();
        first.waiting().request_read();
        first.answered();
        // the second waits for us; the third has been silent for longer than the first
        assert!(connections.make_room());
        assert_eq!([&first, &second, &third].map(is_evicted), [false, false, true]);
        assert!(connections.make_room());
        assert_eq!([&first, &second].map(is_evicted), [true, false]);
        assert!(!connections.make_room());
        second.answered();
        assert!(connections.make_room());
    }

    #[test]
    fn evicts_no_closed_connection() {
        let connections = Arc::new(OpenConnections::default());
        let (gone, here) = (connections.enter(), connections.enter());
        drop(gone);
        assert!(connections.make_room() && is_evicted(&here));
        drop(here);
        assert!(!connections.make_room() && connections.slots().is_empty());
    }
}
