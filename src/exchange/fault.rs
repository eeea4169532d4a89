//! A failed try at a provider, and what to do about it. Each provider's own table says which of its answers means what.

use std::time::Duration;

use super::ExchangeError;
use crate::retry::MAX_RETRY_AFTER;

/// What to do about a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Passing: try again after a while. The provider, or the way to it, is broken.
    Retry,
    /// Passing too, but the provider is well: it is asked too often, or does not know yet what it knew.
    Throttled,
    /// The JWT-SVID may be at fault: fetch a fresh one and try once more.
    FreshSvid,
    /// Final: the provider refuses this identity or this order.
    Refuse,
    /// Final: the grant, or how the provider is set up for it, must be fixed.
    Fix,
    /// Final: not an answer of the provider at all.
    Distrust,
}

/// A failed try: what to do, and what may be said about it (never a message or body of the provider's).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) remedy: Remedy,
    pub(super) detail: String,
    pub(super) retry_after: Option<Duration>,
    /// The HTTP status, where it matters and there was one.
    pub(super) status: Option<u16>,
    /// Whether the provider may have minted all the same: the request may have reached it, and no error of its own came back.
    pub(super) may_have_minted: bool,
}

impl Fault {
    /// A fault after which nothing was minted for certain.
    pub(super) fn new(remedy: Remedy, detail: impl Into<String>) -> Self {
        Self { remedy, detail: detail.into(), retry_after: None, status: None, may_have_minted: false }
    }

    /// Whether trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.remedy, Remedy::Retry | Remedy::Throttled)
    }

    /// Whether the provider, or the way to it, is at fault, and not the order, its token or how often we ask.
    pub(super) fn is_outage(&self) -> bool {
        matches!(self.remedy, Remedy::Retry | Remedy::Distrust)
    }
}

impl From<Fault> for ExchangeError {
    fn from(fault: Fault) -> Self {
        let detail = fault.detail;
        match fault.remedy {
            Remedy::Retry | Remedy::Throttled => {
                Self::Unavailable { detail, retry_after: fault.retry_after.map(|wait| wait.min(MAX_RETRY_AFTER)) }
            }
            Remedy::FreshSvid | Remedy::Refuse => Self::Refused { detail },
            Remedy::Fix => Self::Inexpressible { detail },
            Remedy::Distrust => Self::Unusable { detail },
        }
    }
}
