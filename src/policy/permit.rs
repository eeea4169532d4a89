//! What a decision that permits hands on: its limits, the grants with parameters filled in, and what was decided on.

use std::sync::Arc;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::document::Digest;
use super::outliving::Outlives;
use super::standing::Lapse;
use super::{GrantId, PolicyVersion, Provider, ScopeId, Tier};

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

/// The provider's part of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderGrant {
    /// AWS `AssumeRoleWithWebIdentity`.
    Aws(AwsGrant),
    /// A dynamic secret of Vault or OpenBao.
    Vault(VaultGrant),
}

impl ProviderGrant {
    /// Who is to be asked.
    pub const fn provider(&self) -> Provider {
        match self {
            Self::Aws(_) => Provider::Aws,
            Self::Vault(_) => Provider::Vault,
        }
    }
}

/// Vault or OpenBao: a role of the JWT auth method, and the dynamic secret to read with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultGrant {
    /// Which Vault, where the grant says so.
    pub address: Option<String>,
    /// Where the JWT auth method is mounted.
    pub mount: String,
    /// The role to log in to.
    pub role: String,
    /// The namespace, where the grant names one; else the configured one.
    pub namespace: Option<String>,
    /// The audience of the JWT-SVID.
    pub audience: String,
    /// The path of the secret, parameters substituted.
    pub read: String,
}

/// AWS: a role, narrowed by a session policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsGrant {
    /// The role to assume.
    pub role_arn: String,
    /// The session policy, parameters substituted; `None` only where the grant says `accept_role_scope = true`.
    pub session_policy: Option<serde_json::Value>,
    /// The region whose STS is asked, where the grant names one.
    pub region: Option<String>,
    /// The audience of the JWT-SVID, where the grant names one; else the configured one (`sts.amazonaws.com`).
    pub audience: Option<String>,
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
