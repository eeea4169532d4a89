//! What a decision that permits hands on: its limits, the grants with parameters filled in, and what was decided on.

use std::sync::Arc;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::document::Digest;
use super::standing::Lapse;
use super::{GrantId, PolicyVersion, ScopeId, Tier};
use crate::provider::{Outlives, Provider, ProviderGrant};

/// A decision's limits on time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// The longest task.
    pub max_task: Duration,
    /// The longest time for which a credential may live at its provider (the law of life); at least 30 s.
    pub max_residual: Duration,
    /// Idle time after which the task ends, where the decision sets one.
    pub idle: Option<Duration>,
}

/// A grant with the ask's parameters filled in: what one provider is to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedGrant {
    /// The grant's id.
    pub id: GrantId,
    /// The longest single credential that the grant allows; default one hour. Less where what outlives it must be dead by the
    /// decision's `max_residual` too.
    pub max_session: Duration,
    /// What its credentials may leave behind at the provider.
    pub outlives: Outlives,
    /// What the provider needs to know.
    pub provider: ProviderGrant,
}

/// The outcome that let a task begin. Made only by [`Policy::decide`](super::Policy::decide).
#[derive(Debug, Clone)]
pub struct Permit {
    pub(super) scope: ScopeId,
    pub(super) policy_version: PolicyVersion,
    pub(super) rule_ids: Vec<String>,
    pub(super) tier: Tier,
    pub(super) caps: Caps,
    pub(super) grants: Vec<ResolvedGrant>,
    pub(super) digests: Arc<Digests>,
    pub(super) stale: Option<Lapse>,
}

impl Permit {
    /// The scope it permits.
    pub fn scope(&self) -> &ScopeId {
        &self.scope
    }
    /// The policy version under which it was decided.
    pub fn policy_version(&self) -> &PolicyVersion {
        &self.policy_version
    }
    /// The `@id`s of the rules that permitted.
    pub fn rule_ids(&self) -> &[String] {
        &self.rule_ids
    }
    /// The decision's tier.
    pub fn tier(&self) -> Tier {
        self.tier
    }
    /// The decision's limits on time.
    pub fn caps(&self) -> Caps {
        self.caps
    }
    /// What to ask which provider for; at most one per provider.
    pub fn grants(&self) -> &[ResolvedGrant] {
        &self.grants
    }
    /// The exact files that were decided on.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }
    /// The signer that had lapsed when it was decided, where one had: to be audited.
    pub fn stale(&self) -> Option<&Lapse> {
        self.stale.as_ref()
    }
}

/// What lets a running task go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The policy under which it was decided again.
    pub policy_version: PolicyVersion,
    /// The `@id`s of the rules that permitted.
    pub rule_ids: Vec<String>,
    /// Idle time after which the task ends, where the decision sets one.
    pub idle: Option<Duration>,
    /// Where its scope grants something.
    pub providers: Vec<Provider>,
}

/// The exact files of one scope that were decided on. Serialises as a map from path to digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// The scope.
    pub id: ScopeId,
    /// `decisions/S.toml`.
    pub decision: Digest,
    /// `decisions/S.cedar`.
    pub rules: Digest,
    /// `scopes/S.toml`.
    pub scope: Digest,
    /// `grants/G.toml`.
    pub grants: Box<[(GrantId, Digest)]>,
}

impl Serialize for Digests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3 + self.grants.len()))?;
        let mut put = |path: &str, digest: &Digest| map.serialize_entry(path, &digest.to_string());
        put(&format!("decisions/{}.cedar", self.id), &self.rules)?;
        put(&format!("decisions/{}.toml", self.id), &self.decision)?;
        for (id, digest) in &self.grants {
            put(&format!("grants/{id}.toml"), digest)?;
        }
        put(&format!("scopes/{}.toml", self.id), &self.scope)?;
        map.end()
    }
}
