//! An audit log by hand: its lines wait until a simulation lets them be written, or fail.

use tokio::sync::{mpsc, oneshot};

use super::writer::Message;
use super::{Audit, AuditError, QUEUE};

/// The lines that nobody has written yet.
pub struct Lines {
    messages: mpsc::Receiver<Message>,
    untold: Vec<oneshot::Sender<Result<(), AuditError>>>,
}

/// What becomes of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Written, and told.
    Told,
    /// Written, and nobody is told.
    Untold,
    /// Not written, and told.
    Failed,
}

impl Lines {
    /// An audit log whose lines wait here.
    pub fn hold() -> (Audit, Self) {
        let (queue, messages) = mpsc::channel(QUEUE);
        (Audit { queue: Some(queue), ..Audit::off() }, Self { messages, untold: Vec::new() })
    }

    /// Whether there are any.
    pub fn are_waiting(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Lets `outcome` happen to every line that waits; their JSON objects, in the order in which they came.
    pub fn release(&mut self, outcome: Outcome) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        while let Ok(message) = self.messages.try_recv() {
            let done = match message {
                Message::Line(body, _, done) => {
                    lines.push(body);
                    done
                }
                Message::Tick(_) => None,
                Message::Stop(_, done) => Some(done),
            };
            let Some(done) = done else { continue };
            match outcome {
                Outcome::Untold => self.untold.push(done),
                Outcome::Told => drop(done.send(Ok(()))),
                Outcome::Failed => drop(done.send(Err(AuditError("no room".into())))),
            }
        }
        lines
    }
}
