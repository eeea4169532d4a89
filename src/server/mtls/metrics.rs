//! What mutual TLS counts.

use super::{ENDINGS, outcomes};
use crate::metrics::{Label, metrics};

metrics! {
    /// The metrics of mutual TLS.
    pub(crate) struct Metrics {
        /// TLS handshakes.
        handshakes: Counter<Handshake> = "sidemint_tls_handshakes_total";
        /// Connections of mutual TLS that the sidecar ended.
        connections_ended: Counter<Ending> = "sidemint_connections_ended_total";
    }
}

/// How a handshake ended.
#[derive(Debug, Clone, Copy)]
struct Handshake(&'static str);

impl Label for Handshake {
    const NAME: &'static str = "outcome";

    fn all() -> impl Iterator<Item = Self> {
        outcomes().map(Self)
    }

    fn as_str(self) -> &'static str {
        self.0
    }
}

/// Why a connection was ended.
#[derive(Debug, Clone, Copy)]
struct Ending(&'static str);

impl Label for Ending {
    const NAME: &'static str = "reason";

    fn all() -> impl Iterator<Item = Self> {
        ENDINGS.into_iter().map(Self)
    }

    fn as_str(self) -> &'static str {
        self.0
    }
}

impl Metrics {
    /// A handshake ended, with a word of [`outcomes`].
    pub(super) fn handshake(&self, outcome: &'static str) {
        self.handshakes.inc(Handshake(outcome));
    }

    /// A connection was ended, for a reason of [`ENDINGS`].
    pub(super) fn connection_ended(&self, reason: &'static str) {
        self.connections_ended.inc(Ending(reason));
    }
}
