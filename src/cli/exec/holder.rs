//! Keeps a task held while CMD runs, also across restarts of the sidecar.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc;

use super::pauses;
use crate::cli::client::{ClientError, Hold, HoldEvent, Sidecar};
use crate::cli::plain;
use crate::clock::SharedClock;
use crate::secret::Secret;

/// After this long without a sidecar one line says so. The tries go on: the task may live still.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of the hold, told once each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The task has ended before CMD.
    Ended {
        /// The sidecar's reason.
        reason: String,
    },
    /// No sidecar could be reached for [`PATIENCE`].
    Away,
}

impl Event {
    /// One line for the terminal.
    pub(super) fn describe(&self, id: &str) -> String {
        let id = plain(id);
        match self {
            Self::Ended { reason } => {
                format!("task {id} has ended ({}); the command goes on without credentials", plain(reason))
            }
            Self::Away => format!("no sidecar for 30 s; task {id} may end; still trying to hold it"),
        }
    }
}

/// What holding needs.
pub(super) struct Holder {
    pub(super) sidecar: Sidecar,
    pub(super) clock: SharedClock,
    pub(super) id: String,
    pub(super) token: Arc<Secret>,
    pub(super) events: mpsc::Sender<Event>,
}

/// Lets go of the task when dropped.
pub(super) struct Guard(tokio::task::JoinHandle<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Holder {
    /// Keeps `hold`, and its successors, in a task of its own.
    pub(super) fn spawn(self, hold: Hold) -> Guard {
        Guard(tokio::spawn(async move {
            // The receiver goes only when exec itself is done.
            let reason = self.hold_to_the_end(hold).await;
            let _ = self.events.send(Event::Ended { reason }).await;
        }))
    }

    /// Returns the reason once the task has ended.
    async fn hold_to_the_end(&self, mut hold: Hold) -> String {
        loop {
            match hold.next().await {
                HoldEvent::Active => {}
                HoldEvent::Ended { reason } => return reason,
                HoldEvent::Broken => match self.hold_again().await {
                    Ok(again) => hold = again,
                    Err(reason) => return reason,
                },
            }
        }
    }

    /// Holds again, however long it takes; the error is the reason why the task has ended.
    async fn hold_again(&self) -> Result<Hold, String> {
        let since = self.clock.boot();
        let mut told = false;
        let mut pauses = pauses();
        loop {
            // Also before the first try: a sidecar that closes at once must not be asked in a tight loop.
            self.clock.sleep(pauses.next_wait()).await;
            match self.sidecar.hold(&self.token, &self.id).await {
                Ok(hold) => return Ok(hold),
                Err(ClientError::Refused(refusal)) if !is_passing(refusal.status) => return Err(refusal.code.clone()),
                Err(_) => {}
            }
            if !told && self.clock.boot().saturating_sub(since) >= PATIENCE {
                told = true;
                let _ = self.events.send(Event::Away).await;
            }
        }
    }
}

/// Whether a refusal says nothing about the task: it may be held a moment later.
fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()
}
