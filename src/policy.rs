//! May it? [`Caller`] + [`Ask`] → [`Permit`] or [`Denial`].
//!
//! - [`repository`]: the seam to where policy files come from, and the directory that is one such place.
//! - [`document`]: the TOML files, parsed into types that cannot hold nonsense.
//! - [`rules`]: Cedar: the schema, the guardrails, one slice of rules per scope.
//!
//! A decision is a pure function of (policy snapshot, caller, ask, now).

pub mod document;
pub mod repository;
pub mod rules;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::exchange::Provider;
use crate::identity::{Caller, SpiffeId};

pub use document::{GrantId, ParamName, ScopeId, Tier};

/// What a caller asks for when it begins a task. Everything in it is the caller's word (`context.asserted`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The scope, by id.
    pub scope: ScopeId,
    /// The scope's parameters.
    #[serde(default)]
    pub params: BTreeMap<ParamName, String>,
    /// Why, in the caller's words; break-glass needs it.
    #[serde(default)]
    pub reason: Option<String>,
    /// An approval, for tiers that need one.
    #[serde(default)]
    pub approval: Option<String>,
    /// How long the task may last, where less than the decision's `max_task` is wanted.
    #[serde(default)]
    pub ttl: Option<Duration>,
}

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
    /// The longest single credential that the grant allows; default one hour.
    pub max_session: Duration,
    /// What the provider needs to know.
    pub provider: ProviderGrant,
}

/// The provider's part of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderGrant {
    /// AWS `AssumeRoleWithWebIdentity`.
    Aws(AwsGrant),
}

impl ProviderGrant {
    /// Who is to be asked.
    pub const fn provider(&self) -> Provider {
        match self {
            Self::Aws(_) => Provider::Aws,
        }
    }
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

/// The outcome that let a task begin. Made only by [`Policy::decide`].
#[derive(Debug, Clone)]
pub struct Permit {
    pub(in crate::policy) scope: ScopeId,
    pub(in crate::policy) policy_version: PolicyVersion,
    pub(in crate::policy) rule_ids: Vec<String>,
    pub(in crate::policy) tier: Tier,
    pub(in crate::policy) caps: Caps,
    pub(in crate::policy) grants: Vec<ResolvedGrant>,
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
}

/// Which policy a decision used. Equal versions decide equally.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyVersion(pub Arc<str>);

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a task may not begin. [`Denial::kind`] is the closed set of words for metrics and audit; the detail is for the
/// audit log only and never reaches the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The kind of refusal.
    pub reason: DenialReason,
    /// The whole story, for the audit log.
    pub detail: String,
    /// The `@id`s of the rules that forbade, where a rule did.
    pub rule_ids: Vec<String>,
}

/// The closed set of reasons for which a task may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenialReason {
    /// No such scope.
    UnknownScope,
    /// The scope is there but suspended: a bad file, or a digest that does not match its decision.
    ScopeSuspended,
    /// No rule permits it.
    NotPermitted,
    /// A rule or boundary forbids it.
    Forbidden,
    /// A guardrail of the binary forbids it (overdue review, expired exception …).
    Guardrail,
    /// The tier needs an approval that was not given. Told to the caller as `approval_required`.
    ApprovalRequired,
    /// Parameters missing, unknown, too long or with characters that are not allowed. Told as `invalid_request`.
    InvalidParameters,
    /// A `ttl` over the decision's `max_task`. Told as `invalid_request`.
    TtlTooLong,
    /// A rule failed to evaluate; an error in a decision is a denial.
    EvaluationError,
    /// No policy is loaded, or it is past its end.
    PolicyExpired,
}

impl DenialReason {
    /// Every reason, for metrics that must exist before they first happen.
    pub const ALL: [Self; 10] = [
        Self::UnknownScope,
        Self::ScopeSuspended,
        Self::NotPermitted,
        Self::Forbidden,
        Self::Guardrail,
        Self::ApprovalRequired,
        Self::InvalidParameters,
        Self::TtlTooLong,
        Self::EvaluationError,
        Self::PolicyExpired,
    ];

    /// The stable word for metrics and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownScope => "unknown_scope",
            Self::ScopeSuspended => "scope_suspended",
            Self::NotPermitted => "not_permitted",
            Self::Forbidden => "forbidden",
            Self::Guardrail => "guardrail",
            Self::ApprovalRequired => "approval_required",
            Self::InvalidParameters => "invalid_parameters",
            Self::TtlTooLong => "ttl_too_long",
            Self::EvaluationError => "evaluation_error",
            Self::PolicyExpired => "policy_expired",
        }
    }
}

/// One immutable, validated policy: every scope sliced and ready to decide. Shared as `Arc<Policy>`; one per request.
#[derive(Debug)]
pub struct Policy {
    version: PolicyVersion,
}

impl Policy {
    /// Parses, validates and slices `files`. A bad decision, scope or grant suspends its scope; a bad boundary refuses
    /// the whole.
    ///
    /// # Errors
    /// Lists what is wrong with files that belong to the whole policy.
    pub fn load(_files: &repository::PolicyFiles) -> Result<Self, PolicyError> {
        Err(PolicyError { problems: Vec::new() })
    }

    /// The version that decisions will name.
    pub fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// May `caller` begin a task as `ask` says, at `now`? Pure: the same four values give the same answer.
    ///
    /// # Errors
    /// A [`Denial`]: anything that is not a clear permit.
    pub fn decide(&self, _caller: &Caller, _ask: &Ask, _now: Timestamp) -> Result<Permit, Denial> {
        Err(Denial { reason: DenialReason::UnknownScope, detail: String::new(), rule_ids: Vec::new() })
    }

    /// The scopes that are suspended, with the problem of each.
    pub fn suspended(&self) -> &BTreeMap<ScopeId, Vec<Problem>> {
        const NONE: &BTreeMap<ScopeId, Vec<Problem>> = &BTreeMap::new();
        NONE
    }

    /// How many scopes can decide.
    pub fn active(&self) -> usize {
        0
    }
}

/// One thing wrong with one policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's path in the policy repository, e.g. `scopes/ledger-read.toml`.
    pub file: String,
    /// A stable word of a closed set (`parse`, `digest_mismatch` …), for metrics.
    pub kind: &'static str,
    /// What is wrong and what mends it.
    pub message: String,
}

/// A policy that was refused as a whole.
#[derive(Debug, thiserror::Error)]
#[error("policy refused: {} problem(s)", problems.len())]
pub struct PolicyError {
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

/// A SPIFFE ID as a rule's principal sees it; see the vocabulary page of the docs.
pub fn principal(spiffe_id: &SpiffeId) -> &str {
    spiffe_id.as_str()
}
