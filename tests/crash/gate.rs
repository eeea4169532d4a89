//! The named points: where a kill waits for the sidecar. All but one are seen from outside, by what the sidecar has just
//! asked or answered; no line of the product knows of them.

use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;

/// A moment in the life of a task at which the sidecar is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    /// No moment in particular.
    Any,
    /// While it starts, on what the last kill left.
    Starting,
    /// A begin is on its way: before, in or after the task's record.
    BeginSent,
    /// The begin was answered.
    Begun,
    /// A credential is asked for: before or in the intent's record.
    Asked,
    /// The cloud is called, so the intent is durable; nothing is minted.
    IntentDurable,
    /// The cloud has minted and not answered.
    Minted,
    /// The cloud has sent half its answer.
    HalfAnswered,
    /// The cloud has answered: before, in or after the record of what was issued, before or while it is served.
    Answered,
    /// The journal's thread is writing or waits for the disk.
    Committing,
    /// A client has received a credential.
    Served,
    /// A credential that this sidecar served has reached the expiry that it told, and was asked for again.
    Expired,
    /// An end is on its way: ended in memory or not yet, before, in or after its record.
    EndSent,
    /// The end was acknowledged.
    EndAcknowledged,
    /// The Vault is asked to log in.
    LoginCalled,
    /// The Vault has made a lease and not answered.
    LeaseMade,
    /// The Vault is asked to revoke, and has not.
    RevokeCalled,
    /// The Vault has revoked and not answered.
    Revoked,
}

impl Point {
    pub(crate) const ALL: [Self; 18] = [
        Self::Any,
        Self::Starting,
        Self::BeginSent,
        Self::Begun,
        Self::Asked,
        Self::IntentDurable,
        Self::Minted,
        Self::HalfAnswered,
        Self::Answered,
        Self::Committing,
        Self::Served,
        Self::Expired,
        Self::EndSent,
        Self::EndAcknowledged,
        Self::LoginCalled,
        Self::LeaseMade,
        Self::RevokeCalled,
        Self::Revoked,
    ];

    /// How long after it the kill may come, in microseconds: what lies behind the point is to be hit as well.
    pub(crate) const fn spread(self) -> u64 {
        match self {
            Self::Any => 400_000,
            Self::Starting => 0,
            Self::BeginSent | Self::Asked | Self::EndSent => 12_000,
            Self::Answered => 15_000,
            Self::Committing => 500,
            Self::Begun | Self::Served | Self::Expired | Self::EndAcknowledged => 3_000,
            Self::IntentDurable | Self::Minted | Self::HalfAnswered => 0,
            Self::LoginCalled | Self::LeaseMade | Self::RevokeCalled | Self::Revoked => 0,
        }
    }
}

impl Point {
    /// How many times it is passed, at most, before it is the one.
    pub(crate) const fn most_before(self) -> usize {
        match self {
            Self::Expired => 1,
            _ => 6,
        }
    }

    /// How long it may stay away until the kill comes without it: the shortest tasks live 7 s.
    pub(crate) const fn patience(self) -> Duration {
        match self {
            Self::Expired => Duration::from_secs(15),
            _ => Duration::from_millis(2500),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !words.is_empty() {
                words.push('-');
            }
            words.push(letter.to_ascii_lowercase());
        }
        f.write_str(&words)
    }
}

struct Armed {
    point: Point,
    /// How many still pass.
    before: usize,
    hit: oneshot::Sender<()>,
}

/// Where the points report to.
#[derive(Default)]
pub(crate) struct Gate(Mutex<Option<Armed>>);

impl Gate {
    fn armed(&self) -> MutexGuard<'_, Option<Armed>> {
        self.0.lock().unwrap()
    }

    /// Tells when `point` has been passed once more than `before` times.
    pub(crate) fn arm(&self, point: Point, before: usize) -> oneshot::Receiver<()> {
        let (hit, told) = oneshot::channel();
        *self.armed() = Some(Armed { point, before, hit });
        told
    }

    pub(crate) fn disarm(&self) {
        *self.armed() = None;
    }

    /// `point` is reached. Whether it is the one: then nothing more is to happen here until the sidecar is dead.
    pub(crate) fn pass(&self, point: Point) -> bool {
        let mut armed = self.armed();
        match armed.as_mut() {
            Some(waiting) if waiting.point == point && waiting.before > 0 => waiting.before -= 1,
            Some(waiting) if waiting.point == point => {
                let hit = armed.take().is_some_and(|waiting| waiting.hit.send(()).is_ok());
                return hit;
            }
            _ => {}
        }
        false
    }

    /// The same, and stands still where it is the one.
    pub(crate) async fn stop_at(&self, point: Point) {
        if self.pass(point) {
            // Over when the connection is, which is when the sidecar is.
            std::future::pending::<()>().await;
        }
    }
}

#[test]
fn only_the_armed_point_fires_and_only_at_its_count() {
    let gate = Gate::default();
    let mut told = gate.arm(Point::Minted, 1);
    assert!(!gate.pass(Point::Begun) && !gate.pass(Point::Minted));
    assert!(told.try_recv().is_err());
    assert!(gate.pass(Point::Minted) && told.try_recv().is_ok());
    assert!(!gate.pass(Point::Minted));
    assert_eq!(Point::EndAcknowledged.to_string(), "end-acknowledged");
}
