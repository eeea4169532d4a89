//! Who may stay when a listener is full: the connections that have us wait the longest leave first.
//!
//! A connection waits for us while we work on its request or stream its answer; otherwise we wait for it: it has sent no
//! request yet, half of one, or none for a while. A crowd of clients that never finish what they say can so take every
//! place and still not keep out one that speaks up (threat T22).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The open connections of one listener.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    places: Mutex<BTreeMap<u64, Arc<Place>>>,
    turn: AtomicU64,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Place {
    /// The turn at which we began to wait for it; 0 while it waits for us.
    since: AtomicU64,
    leave: Notify,
}

/// A connection in the crowd; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    crowd: Arc<Crowd>,
    number: u64,
    place: Arc<Place>,
}

impl Crowd {
    /// Takes in a new connection, for whose first request we wait from now on.
    pub(super) fn enter(self: &Arc<Self>) -> Seat {
        let number = self.next();
        let place = Arc::new(Place { since: AtomicU64::new(number), leave: Notify::new() });
        self.places().insert(number, Arc::clone(&place));
        Seat { crowd: Arc::clone(self), number, place }
    }

    /// Sends away the connection for which we have waited the longest; `false` where all wait for us.
    pub(super) fn make_room(&self) -> bool {
        let places = self.places();
        let waiting = places.values().map(|place| (place.since.load(Ordering::Acquire), place));
        let Some((_, place)) = waiting.filter(|(since, _)| *since > 0).min_by_key(|(since, _)| *since) else {
            return false;
        };
        // not twice: the next one to be sent away is another
        place.since.store(0, Ordering::Release);
        place.leave.notify_one();
        true
    }

    fn next(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::AcqRel).saturating_add(1)
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Place>>> {
        // Insert and remove leave it whole at any moment.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The connection's side of it.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// We wait for the client again.
    pub(super) fn wait(&self) {
        self.place.since.store(self.crowd.next(), Ordering::Release);
    }

    /// Returns when the connection must leave.
    pub(super) async fn sent_away(&self) {
        self.place.leave.notified().await;
    }
}

impl Place {
    /// The client has said all that there is to say: now it waits for us.
    pub(super) fn heard(&self) {
        self.since.store(0, Ordering::Release);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.crowd.places().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_sent_away(seat: &Seat) -> bool {
        let mut leaving = std::pin::pin!(seat.sent_away());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::future::Future::poll(leaving.as_mut(), &mut context).is_ready()
    }

    #[test]
    fn who_kept_us_waiting_the_longest_leaves_first_and_nobody_who_waits_for_us() {
        let crowd = Arc::new(Crowd::default());
        let (first, second, third) = (crowd.enter(), crowd.enter(), crowd.enter());
        second.place().heard();
        first.place().heard();
        first.wait();
        // the second waits for us; the third has been silent for longer than the first
        assert!(crowd.make_room());
        assert_eq!([&first, &second, &third].map(is_sent_away), [false, false, true]);
        assert!(crowd.make_room());
        assert_eq!([&first, &second].map(is_sent_away), [true, false]);
        assert!(!crowd.make_room());
        second.wait();
        assert!(crowd.make_room());
    }

    #[test]
    fn who_has_gone_is_not_sent_away() {
        let crowd = Arc::new(Crowd::default());
        let (gone, here) = (crowd.enter(), crowd.enter());
        drop(gone);
        assert!(crowd.make_room() && is_sent_away(&here));
        drop(here);
        assert!(!crowd.make_room() && crowd.places().is_empty());
    }
}
