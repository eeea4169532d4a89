//! The hold: a stream of lines that says, while it lasts, that somebody still works on the task.

use std::time::Duration;

use bytes::BytesMut;

use crate::api::HoldLine;
use crate::clock::{SharedClock, within};
use crate::http_client::Body;

/// The longest line that is read, in bytes.
const MAX_LINE: usize = 16 << 10;
/// The sidecar says something every 2 s; after this long a silent connection counts as broken.
const SILENCE: Duration = Duration::from_secs(8);

/// What the hold tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldEvent {
    /// The task goes on.
    Active,
    /// The task has ended, for this reason.
    Ended {
        /// The sidecar's name for it.
        reason: String,
    },
    /// The stream broke without saying that the task ended: hold again.
    Broken,
}

/// A held task. Dropping it lets go; the sidecar ends a held task that nobody holds for 10 s (docs/openapi.yaml).
#[derive(Debug)]
pub struct Hold {
    body: Body,
    lines: Lines,
    clock: SharedClock,
}

impl Hold {
    pub(super) fn new(body: Body, clock: SharedClock) -> Self {
        Self { body, lines: Lines::default(), clock }
    }

    /// Waits for the next thing that the stream says. After [`HoldEvent::Ended`] or [`HoldEvent::Broken`] there is nothing more.
    pub async fn next(&mut self) -> HoldEvent {
        loop {
            match self.lines.next() {
                Ok(Some(line)) => return line,
                Ok(None) => {}
                Err(TooLong) => return HoldEvent::Broken,
            }
            match within(&*self.clock, SILENCE, self.body.next()).await {
                Some(Ok(Some(data))) => self.lines.push(&data),
                Some(Ok(None) | Err(_)) | None => return HoldEvent::Broken,
            }
        }
    }
}

/// Cuts a stream of bytes into lines and reads them.
#[derive(Debug, Default)]
struct Lines {
    buffer: BytesMut,
}

/// A line without an end.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl Lines {
    fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole line, or `None` until more bytes come. A line that cannot be read is `Broken`: it says nothing
    /// about the task.
    fn next(&mut self) -> Result<Option<HoldEvent>, TooLong> {
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
            return if self.buffer.len() > MAX_LINE { Err(TooLong) } else { Ok(None) };
        };
        let line = self.buffer.split_to(end + 1);
        Ok(Some(match serde_json::from_slice::<HoldLine>(&line) {
            Ok(HoldLine { state, .. }) if state == "active" => HoldEvent::Active,
            Ok(HoldLine { state, reason, .. }) if state == "ended" => {
                HoldEvent::Ended { reason: reason.unwrap_or_else(|| "unknown".into()) }
            }
            _ => HoldEvent::Broken,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_heartbeats_and_the_end_in_any_chunks() {
        let text = b"{\"id\":\"t\",\"state\":\"active\",\"expires_at\":\"2026-11-23T16:48:33Z\"}\n{\"id\":\"t\",\"state\":\"ended\",\"reason\":\"deadline\"}\n";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                lines.push(part);
                while let Some(line) = lines.next().unwrap() {
                    seen.push(line);
                }
            }
            assert_eq!(seen, [HoldEvent::Active, HoldEvent::Ended { reason: "deadline".into() }]);
        }
    }

    #[test]
    fn malformed_lines_break_the_hold_but_never_end_the_task() {
        for line in ["\n", "null\n", "{}\n", "{\"state\":\"ending\"}\n", "<html>\n"] {
            let mut lines = Lines::default();
            lines.push(line.as_bytes());
            assert_eq!(lines.next(), Ok(Some(HoldEvent::Broken)), "{line:?}");
        }
    }

    #[test]
    fn rejects_a_line_without_an_end() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE + 1]);
        assert_eq!(lines.next(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn splits_arbitrary_bytes_without_panic_in_a_bounded_buffer(parts: Vec<Vec<u8>>) {
            let mut lines = Lines::default();
            for part in parts {
                lines.push(&part);
                while let Ok(Some(_)) = lines.next() {}
                prop_assert!(!lines.buffer.contains(&b'\n'));
            }
        }
    }
}
