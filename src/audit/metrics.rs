//! What is told of the audit log.

use super::Audit;
use crate::metrics::metrics;

metrics! {
    /// The audit log's metrics.
    pub(crate) struct Metrics {
        /// Noted audit lines dropped because too many waited.
        lost: Counter<()> = "sidemint_audit_lost_total";
    }
}

impl Metrics {
    /// Sets the counter to what `audit` lost.
    pub(crate) fn update(&self, audit: &Audit) {
        self.lost.reach((), audit.lost());
    }
}
