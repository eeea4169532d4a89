//! An exchange under way, and how it ends for everyone who waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Issued;
use crate::clock::Distrust;
use crate::end_reason::EndReason;
use crate::exchange::{ExchangeError, Provider};

/// How an exchange in flight ends, for everyone who waits for it.
pub type FlightResult = Result<Arc<Issued>, MintError>;
/// Waits for an exchange in flight; `None` until it has ended.
pub type Flight = watch::Receiver<Option<FlightResult>>;

/// One provider's side of a task.
#[derive(Debug, Default)]
pub struct ProviderSlot {
    /// The credential that is served now.
    pub live: Option<Arc<Issued>>,
    /// The exchange that is under way, shared by all who need its outcome.
    pub flight: Option<Flight>,
    /// After a failure: before when no renewal is tried that no request asks for (time since boot).
    pub quiet_until: Duration,
    /// After a failure: before when nobody asks the provider again (time since boot), and what it said.
    pub cooling: Option<Box<(Duration, MintError)>>,
}

/// A task's providers. There are one or a few, so they stand in a list: a map's node has room for eleven.
#[derive(Debug, Default)]
pub struct Slots(Vec<(Provider, ProviderSlot)>);

impl Slots {
    /// The slot of `provider`, where it has one.
    pub fn get(&self, provider: Provider) -> Option<&ProviderSlot> {
        self.0.iter().find(|(known, _)| *known == provider).map(|(_, slot)| slot)
    }

    /// The slot of `provider`, made if need be.
    pub fn of(&mut self, provider: Provider) -> &mut ProviderSlot {
        let at = self.0.iter().position(|(known, _)| *known == provider).unwrap_or_else(|| {
            self.0.reserve_exact(1);
            self.0.push((provider, ProviderSlot::default()));
            self.0.len() - 1
        });
        #[allow(clippy::indexing_slicing, reason = "`at` was found, or pushed, just above")]
        &mut self.0[at].1
    }

    /// Every slot.
    pub fn iter(&self) -> impl Iterator<Item = (Provider, &ProviderSlot)> {
        self.0.iter().map(|(provider, slot)| (*provider, slot))
    }

    /// Every slot, whoever's it is.
    pub fn values(&self) -> impl Iterator<Item = &ProviderSlot> {
        self.0.iter().map(|(_, slot)| slot)
    }

    /// Drops them all, and with them the credentials.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }
}

/// Why nothing was minted. Cloned to everyone who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MintError {
    /// The scope grants nothing at this provider.
    #[error("the task's scope grants nothing at {0}")]
    NoGrant(Provider),
    /// The task ended, or policy stopped permitting it, before the credential could be served.
    #[error("the task ended meanwhile: {0}")]
    TaskEnded(EndReason),
    /// No policy is loaded.
    #[error("no policy is loaded")]
    NoPolicy,
    /// A signer of the policy has lapsed for too long; holds the whole story.
    #[error("the policy has expired: {0}")]
    PolicyExpired(Arc<str>),
    /// So little of the task is left that no credential would be of use.
    #[error("too little of the task is left")]
    TooLate,
    /// The provider, or the way to it.
    #[error("{0}")]
    Exchange(Arc<ExchangeError>),
    /// It could not be made durable or audited.
    #[error("not recorded: {0}")]
    NotRecorded(String),
    /// Nobody knows what time it is.
    #[error("the time is in doubt: {0}")]
    ClockUntrusted(Distrust),
    /// As many credentials were asked for in the last minute for this caller as may; holds when there is one again.
    #[error("too many credentials for this caller, again in {} s", .0.as_secs_f64().ceil())]
    TooOften(Duration),
    /// As many requests of this caller wait already as may.
    #[error("too many requests of this caller wait already")]
    TooManyWait,
    /// The exchange takes longer than the request waits; it goes on.
    #[error("the exchange is still under way")]
    StillMinting,
}

impl MintError {
    /// Every word of [`MintError::kind`], and those for success.
    pub const OUTCOMES: [&'static str; 15] = [
        "minted",
        "renewed",
        "unavailable",
        "not_asked",
        "refused",
        "inexpressible",
        "unusable",
        "no_svid",
        "no_grant",
        "task_ended",
        "no_policy",
        "policy_expired",
        "too_late",
        "not_recorded",
        "clock_untrusted",
    ];

    /// The stable status for metrics and audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoGrant(_) => "no_grant",
            Self::TaskEnded(_) => "task_ended",
            Self::NoPolicy => "no_policy",
            Self::PolicyExpired(_) => "policy_expired",
            Self::TooLate => "too_late",
            Self::Exchange(error) => error.kind(),
            Self::NotRecorded(_) => "not_recorded",
            Self::ClockUntrusted(_) => "clock_untrusted",
            Self::StillMinting => "still_minting",
            Self::TooOften(_) | Self::TooManyWait => "rate_limited",
        }
    }

    /// Whether the same request may succeed later, and when at the earliest.
    pub fn retry_after(&self) -> Option<Duration> {
        const SOON: Duration = Duration::from_secs(1);
        match self {
            Self::NoPolicy
            | Self::PolicyExpired(_)
            | Self::NotRecorded(_)
            | Self::ClockUntrusted(_)
            | Self::TooManyWait
            | Self::StillMinting => Some(SOON),
            Self::TooOften(wait) => Some(*wait),
            Self::Exchange(error) => match &**error {
                ExchangeError::Unavailable { retry_after, .. } => Some(retry_after.unwrap_or(SOON)),
                ExchangeError::NotAsked { retry_after, .. } => Some(*retry_after),
                ExchangeError::Unusable { .. } | ExchangeError::NoSvid { passing: true, .. } => Some(SOON),
                ExchangeError::Refused { .. }
                | ExchangeError::Inexpressible { .. }
                | ExchangeError::NoSvid { passing: false, .. } => None,
            },
            Self::NoGrant(_) | Self::TaskEnded(_) | Self::TooLate => None,
        }
    }
}
