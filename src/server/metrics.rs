//! What the workloads' listeners count.

use std::time::Duration;

use prometheus::{Histogram, IntCounter};

use crate::metrics::{Counter, Label, label, metrics};

metrics! {
    /// The metrics of the workloads' listeners.
    pub(crate) struct Metrics {
        /// Requests answered.
        requests: Counter<(DialectName, Status)> = "sidemint_requests_total";
        /// How long a request took.
        request_seconds: Seconds<DialectName> = "sidemint_request_duration_seconds", &REQUEST_BUCKETS;
    }
}

const REQUEST_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

label!("code" = Status);

/// How a dialect is called.
#[derive(Debug, Clone, Copy)]
struct DialectName(&'static str);

impl Label for DialectName {
    const NAME: &'static str = "dialect";

    /// The server asks for each that it has by [`Metrics::requests`].
    fn all() -> impl Iterator<Item = Self> {
        std::iter::empty()
    }

    fn as_str(self) -> &'static str {
        self.0
    }
}

/// A status that the workloads' listeners answer with.
#[derive(Debug, Clone, Copy)]
struct Status(&'static str);

impl Status {
    const OK: Self = Self("200");
    const ALL: [Self; 12] = [
        Self::OK,
        Self("201"),
        Self("400"),
        Self("401"),
        Self("403"),
        Self("404"),
        Self("405"),
        Self("409"),
        Self("413"),
        Self("415"),
        Self("429"),
        Self("503"),
    ];

    const fn as_str(self) -> &'static str {
        self.0
    }

    fn of(status: u16) -> Self {
        Self::ALL.into_iter().find(|known| known.0.parse() == Ok(status)).unwrap_or(Self("other"))
    }
}

impl Metrics {
    /// The counter and the histogram for answers of one dialect, so that the hot path looks neither up.
    pub(super) fn requests(&self, dialect: &'static str) -> RequestMetrics {
        let dialect = DialectName(dialect);
        Status::ALL.into_iter().for_each(|status| drop(self.requests.handle((dialect, status))));
        RequestMetrics {
            ok: self.requests.handle((dialect, Status::OK)),
            seconds: self.request_seconds.handle(dialect),
            all: self.requests.clone(),
            dialect,
        }
    }
}

/// Counts the answers of one dialect.
#[derive(Debug, Clone)]
pub(super) struct RequestMetrics {
    ok: Option<IntCounter>,
    seconds: Option<Histogram>,
    all: Counter<(DialectName, Status)>,
    dialect: DialectName,
}

impl RequestMetrics {
    /// A request was answered with `status` after `took`.
    pub(super) fn answered(&self, status: u16, took: Duration) {
        match (status, &self.ok) {
            (200, Some(ok)) => ok.inc(),
            (other, _) => self.all.inc((self.dialect, Status::of(other))),
        }
        if let Some(seconds) = &self.seconds {
            seconds.observe(took.as_secs_f64());
        }
    }
}
