//! Swap the identity for a credential: [`MintOrder`] → [`Minted`]. One leaf per provider, behind the seam [`Exchange`].
//!
//! - [`attempts`]: the loop of JWT-SVID, gate, try, retry and fault, once for every provider.
//! - [`credential`]: what a provider gives, and how its own clients read it.
//! - [`handle`]: what it calls that, typed by provider.

pub mod attempts;
pub mod aws;
pub mod credential;
mod fault;
pub mod handle;
pub mod vault;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::check::Check;
use crate::clock::Timestamp;
use crate::identity::SpiffeId;
use crate::policy::ResolvedGrant;

pub use self::attempts::Context;
pub use self::aws::AwsCredential;
pub use self::credential::Credential;
pub use self::handle::Handle;
pub use self::vault::VaultSecret;
pub use crate::policy::Provider;

/// How a credential can be revoked before it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    /// The provider can kill this one credential.
    Exact,
    /// It dies by itself; ending the task only stops serving it.
    Expire,
}

impl Revocation {
    /// Every class.
    pub const ALL: [Self; 2] = [Self::Exact, Self::Expire];

    /// The status in metrics and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Expire => "expire",
        }
    }
}

/// What to mint. Made by the broker for one task that is permitted.
#[derive(Debug, Clone)]
pub struct MintOrder {
    /// Whose identity is exchanged: the SVID is fetched for this ID, never for the sidecar's own.
    pub caller: SpiffeId,
    /// The task's unique, stable session name: 2 to 64 of `A-Za-z0-9=,.@_-`.
    pub session_name: String,
    /// What to ask for.
    pub grant: ResolvedGrant,
    /// When the credential must be dead at its provider (the law of life), UTC, whole seconds.
    pub dead_by: Timestamp,
    /// The longest life that the law allows any credential of this grant, however much of the task is left.
    pub max_life: Duration,
    /// How long the whole exchange may take, retries included.
    pub limit: Duration,
}

/// A credential fresh from its provider. Not yet journalled, so not yet to be served.
#[derive(Debug)]
pub struct Minted {
    /// The secret itself.
    pub credential: Credential,
    /// When it stops working, UTC: the earlier of the provider's expiry and the cut that the session policy makes.
    pub usable_until: Timestamp,
    /// How it can end before that, and the provider's name for it.
    pub revocability: Revocability,
}

/// Whether a credential can be revoked, with the provider's name for it, which is journalled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocability {
    /// The provider can kill this one credential.
    Revocable(Revocable),
    /// It dies by itself.
    ExpiresOnly(Handle),
}

/// A handle of what can be revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocable(Handle);

impl Revocable {
    /// Only who revokes says that something can be: `_revoker` is what [`Exchange::revoker`] hands out.
    pub fn by(_revoker: &dyn Revoke, handle: Handle) -> Self {
        Self(handle)
    }
}

impl Revocability {
    /// The class that is journalled and told.
    pub const fn class(&self) -> Revocation {
        match self {
            Self::Revocable(_) => Revocation::Exact,
            Self::ExpiresOnly(_) => Revocation::Expire,
        }
    }

    /// The provider's name for it.
    pub const fn handle(&self) -> &Handle {
        match self {
            Self::Revocable(Revocable(handle)) | Self::ExpiresOnly(handle) => handle,
        }
    }
}

/// What to revoke. Made by the broker for one lease of a task that has ended.
#[derive(Debug, Clone)]
pub struct RevokeOrder {
    /// Whose identity was exchanged for it.
    pub caller: SpiffeId,
    /// The provider's name for it.
    pub handle: Handle,
    /// When it dies by itself, UTC: what is gone by then was not necessarily revoked.
    pub usable_until: Timestamp,
    /// How long one try may take.
    pub limit: Duration,
}

/// What is to live longer. Made by the broker for one live credential of a task that is still permitted.
#[derive(Debug, Clone)]
pub struct RenewOrder {
    /// The provider's name for it.
    pub handle: Handle,
    /// What is granted now: it may be another thing than was minted for.
    pub grant: ResolvedGrant,
    /// When the credential must be dead at its provider (the law of life), UTC, whole seconds.
    pub dead_by: Timestamp,
    /// How long it may take.
    pub limit: Duration,
}

/// A provider's answer that a credential lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// When it stops working from now on, UTC.
    pub usable_until: Timestamp,
}

/// What a provider did when it was told to revoke a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevokeOutcome {
    /// It is dead, and the provider said so.
    Revoked,
    /// The provider took the order and may not say when it is carried out. There is nothing more to do: it counts as
    /// usable until its own end.
    Requested,
}

/// Why a provider gave no credential. The variant says what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExchangeError {
    /// Passing: the provider or the way to it failed. Try again, not before `retry_after` where it says so.
    #[error("provider unavailable: {detail}")]
    Unavailable {
        /// For the log and the audit record; no secret, nothing of a response body but its error code.
        detail: String,
        /// The provider's own answer on when to come back.
        retry_after: Option<Duration>,
    },
    /// Passing: the provider was not asked, to spare it.
    #[error("provider not asked: {detail}")]
    NotAsked {
        /// For the log and the audit record.
        detail: String,
        /// When it may be.
        retry_after: Duration,
    },
    /// Final: the provider refuses this identity or this order.
    #[error("refused by the provider: {detail}")]
    Refused {
        /// For the log and the audit record.
        detail: String,
    },
    /// Final: the order cannot be expressed at this provider (session policy too large, life too short …).
    #[error("cannot be expressed: {detail}")]
    Inexpressible {
        /// For the log and the audit record.
        detail: String,
    },
    /// The provider said yes and gave something unusable: expired, empty or foreign.
    #[error("unusable answer: {detail}")]
    Unusable {
        /// For the log and the audit record.
        detail: String,
    },
    /// The Workload API gave no SVID to exchange.
    #[error("no SVID to exchange: {detail}")]
    NoSvid {
        /// For the log and the audit record.
        detail: String,
        /// Whether trying again may help.
        passing: bool,
    },
}

impl ExchangeError {
    /// Whether nothing was minted for certain. After any other error a credential may live that nobody here ever saw.
    pub const fn is_certain(&self) -> bool {
        match self {
            Self::NotAsked { .. } | Self::Refused { .. } | Self::Inexpressible { .. } | Self::NoSvid { .. } => true,
            Self::Unavailable { .. } | Self::Unusable { .. } => false,
        }
    }

    /// The last word of an exchange of which an earlier try may have minted: that this one minted nothing no longer settles it.
    pub fn after_uncertain_try(self) -> Self {
        if !self.is_certain() {
            return self;
        }
        let detail = format!("{self}, after a try that may have minted");
        match self {
            Self::NotAsked { retry_after, .. } => Self::Unavailable { detail, retry_after: Some(retry_after) },
            // It is set up wrongly and will be the next time, too: each try may leave one more behind.
            Self::Inexpressible { .. } => Self::Unusable { detail },
            _ => Self::Unavailable { detail, retry_after: None },
        }
    }

    /// Every status of [`ExchangeError::kind`].
    pub const KINDS: [&'static str; 6] =
        ["unavailable", "not_asked", "refused", "inexpressible", "unusable", "no_svid"];

    /// The stable status for metrics and audit.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::NotAsked { .. } => "not_asked",
            Self::Refused { .. } => "refused",
            Self::Inexpressible { .. } => "inexpressible",
            Self::Unusable { .. } => "unusable",
            Self::NoSvid { .. } => "no_svid",
        }
    }
}

/// The seam to one provider. An ability that it lacks is one that it does not hand out.
#[async_trait]
pub trait Exchange: Send + Sync + fmt::Debug {
    /// Which provider this is.
    fn provider(&self) -> Provider;

    /// Exchanges an SVID of the order's caller for a credential that dies by `dead_by`.
    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError>;

    /// What revokes its credentials; `None` where they only expire.
    fn revoker(&self) -> Option<&dyn Revoke> {
        None
    }

    /// What lets its credentials live on; `None` where each is minted anew.
    fn renewer(&self) -> Option<&dyn Renew> {
        None
    }

    /// Whether it is asked for no credential now, or some of it is not, because it failed again and again.
    fn circuit_open(&self) -> bool {
        false
    }

    /// Which of several it is that could be configured under the provider's name; `None` where there is but one.
    fn location(&self) -> Option<Arc<str>> {
        None
    }

    /// Whether the credential of `handle` came from the very provider that is configured now.
    fn reaches(&self, _handle: &Handle) -> bool {
        true
    }

    /// Whether the configuration says anything of it; one that it says nothing of is there for whoever is granted it.
    fn is_configured(&self) -> bool {
        true
    }

    /// The JWT-SVID that it exchanges where the grant says nothing else, for `doctor`; `None` where each grant does.
    fn svid_wanted(&self) -> Option<SvidWanted<'_>> {
        None
    }

    /// Looks, for `doctor`, whether it can be reached from here and would work. It asks for no credential.
    async fn examine(&self) -> Vec<Check> {
        Vec::new()
    }
}

/// What a provider wants of JWT-SVIDs.
#[derive(Debug, Clone, Copy)]
pub struct SvidWanted<'a> {
    /// The name of the check.
    pub check: &'static str,
    /// The audience.
    pub audience: &'a str,
    /// What the provider would refuse about one.
    pub flaw: fn(&SvidFacts) -> Option<SvidFlaw>,
}

/// What a JWT-SVID says of itself, as far as a provider cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidFacts {
    /// How it is signed.
    pub alg: String,
    /// The key's id.
    pub kid: Option<String>,
    /// The issuer.
    pub iss: Option<String>,
    /// When it was issued, UTC.
    pub iat: Option<Timestamp>,
}

/// What is wrong with a JWT-SVID for one provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SvidFlaw {
    /// What to add to the facts; may be empty.
    pub what: &'static str,
    /// What to do about it.
    pub fix: &'static str,
}

/// The ability to revoke one credential.
#[async_trait]
pub trait Revoke: Send + Sync {
    /// Revokes the credential, and forgets what was kept for that. Asked again until it answers `Ok`, so it must do no harm twice.
    async fn revoke(&self, order: &RevokeOrder) -> Result<RevokeOutcome, ExchangeError>;
}

/// The ability to let one revocable credential live on.
#[async_trait]
pub trait Renew: Send + Sync {
    /// Whether the credential of `handle` can be renewed in place, as far as is known here.
    fn can_renew(&self, handle: &Handle) -> bool;

    /// Lets it live on, the same secret, until `dead_by` at the latest. After an error it may live as long all the same; where that
    /// is [`ExchangeError::Unavailable`] or [`ExchangeError::NotAsked`], trying again may help.
    async fn renew(&self, order: &RenewOrder) -> Result<Renewed, ExchangeError>;
}
