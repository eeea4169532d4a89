//! What is told of the sidecar's own identities.

use super::workload_api::Identities;
use crate::metrics::{label, metrics};

metrics! {
    /// The metrics of our own identities.
    pub(crate) struct Metrics {
        /// The earliest expiry of an SVID of this sidecar.
        svid_expiry: Expiry<SvidKind> = "sidemint_svid_expiry_timestamp_seconds";
    }
}

label!("kind" = SvidKind);

/// A kind of SVID.
#[derive(Debug, Clone, Copy)]
enum SvidKind {
    X509,
}

impl SvidKind {
    const ALL: [Self; 1] = [Self::X509];

    const fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
        }
    }
}

impl Metrics {
    /// Sets the gauge to what the Workload API gave last.
    pub(crate) fn update(&self, identities: &Identities) {
        let earliest = identities.svids.iter().map(|svid| svid.expires_at.as_secs()).min();
        self.svid_expiry.replace(earliest.map(|at| (SvidKind::X509, at)));
    }
}
