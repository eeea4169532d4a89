//! May it? [`Caller`] + [`Ask`] → [`Permit`] or [`Denial`].
//!
//! - [`repository`]: the seam to where policy files come from, and the directory that is one such place.
//! - [`cache`]: the policy in force, reloaded as a whole or not at all.
//! - [`document`]: the TOML files, parsed into types that cannot hold nonsense.
//! - [`session_policy`]: what narrows an AWS role, with the scope's parameters.
//! - [`standing`]: until when the signatures speak: fresh, stale, expired.
//! - [`rules`]: Cedar: the schema, the guardrails, one slice of rules per scope.
//! - `load`: files → [`Policy`], where a bad file suspends its scope.
//! - `lint`: what is allowed and still worth a second look.
//!
//! A decision is a pure function of (policy snapshot, caller, ask, now).

pub mod cache;
pub mod document;
mod lint;
mod load;
pub mod repository;
pub mod rules;
pub mod secret_path;
pub mod session_policy;
pub mod standing;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::identity::Caller;

use document::{Decision, Grant, GrantProvider, Scope};
pub use document::{GrantId, ParamName, Provider, ScopeId, Tier};
pub use load::LoadOptions;
use rules::{Engine, Slice, Verdict};

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

/// Why a task may not begin. [`DenialReason`] is the closed set of words for metrics and audit; the detail is for the
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
    engine: Engine,
    active: BTreeMap<ScopeId, Arc<ActiveScope>>,
    /// The same, for decisions: among 10,000 names a tree compares some thirty, scattered over memory.
    by_id: HashMap<ScopeId, Arc<ActiveScope>>,
    suspended: BTreeMap<ScopeId, Vec<Problem>>,
    stray: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// A scope whose decision, scope file and grants all resolved, each with the digest decided on.
#[derive(Debug)]
struct ActiveScope {
    decision: Decision,
    scope: Scope,
    grants: Vec<(GrantId, Arc<Grant>)>,
    slice: Slice,
}

impl Policy {
    /// Parses, validates and slices `files`. A bad decision, scope or grant suspends its scope; a bad boundary refuses
    /// the whole.
    ///
    /// # Errors
    /// Lists what is wrong with files that belong to the whole policy.
    pub fn load(files: &repository::PolicyFiles) -> Result<Self, PolicyError> {
        Self::load_with(files, &LoadOptions::default())
    }

    /// As [`Policy::load`], narrowed by local configuration: what `options` leave out is as if it were not there.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn load_with(files: &repository::PolicyFiles, options: &LoadOptions) -> Result<Self, PolicyError> {
        load::load(files, options)
    }

    /// The version that decisions will name.
    pub fn version(&self) -> &PolicyVersion {
        &self.version
    }

    /// May `caller` begin a task as `ask` says, at `now`? Pure: the same four values give the same answer.
    ///
    /// The order of the questions is part of the answer: whoever the rules do not permit never learns what a scope's
    /// parameters, caps or tier are (requirement G15).
    ///
    /// # Errors
    /// A [`Denial`]: anything that is not a clear permit.
    pub fn decide(&self, caller: &Caller, ask: &Ask, now: Timestamp) -> Result<Permit, Denial> {
        let active = self.find(&ask.scope)?;
        active.check_params(ask).map_err(|detail| {
            let reason = match active.slice.names(&self.engine, caller) {
                true => DenialReason::InvalidParameters,
                false => DenialReason::NotPermitted,
            };
            Denial::new(reason, detail)
        })?;
        let ttl = ask.ttl.unwrap_or(active.decision.caps.max_task);
        let question = self.engine.question(&active.slice, caller, ask, whole_seconds(ttl), now);
        let question = question.map_err(|detail| Denial::new(DenialReason::EvaluationError, detail))?;
        let rule_ids = match self.engine.ask_all(&active.slice, &question) {
            Verdict::Permit(rule_ids) => rule_ids,
            Verdict::Deny(_) | Verdict::Error(_) => return Err(self.why_not(active, &question)),
        };
        active.check_ttl(ttl)?;
        Ok(Permit {
            scope: ask.scope.clone(),
            policy_version: self.version.clone(),
            rule_ids,
            tier: active.decision.tier,
            caps: active.decision.caps,
            grants: active.grants.iter().map(|(id, grant)| resolve(id, grant, &ask.params)).collect(),
        })
    }

    fn find(&self, id: &ScopeId) -> Result<&ActiveScope, Denial> {
        if let Some(active) = self.by_id.get(id) {
            return Ok(active);
        }
        Err(match self.suspended.get(id).map(Vec::as_slice) {
            Some([problem, ..]) => Denial::new(DenialReason::ScopeSuspended, problem.to_string()),
            Some([]) => Denial::new(DenialReason::ScopeSuspended, "suspended".to_owned()),
            None => Denial::new(DenialReason::UnknownScope, format!("policy {} has no such scope", self.version)),
        })
    }

    /// Why rules and guardrails together did not permit: first the scope's own rules, then the guardrails.
    fn why_not(&self, active: &ActiveScope, question: &rules::Question) -> Denial {
        match self.engine.ask_rules(&active.slice, question) {
            Verdict::Permit(_) => {}
            Verdict::Deny(rule_ids) if rule_ids.is_empty() => {
                return Denial::new(DenialReason::NotPermitted, "no rule permits it");
            }
            Verdict::Deny(rule_ids) => return Denial::by_rules(DenialReason::Forbidden, rule_ids),
            Verdict::Error(detail) => return Denial::new(DenialReason::EvaluationError, detail),
        }
        match self.engine.ask_guardrails(&active.slice, question) {
            // Only what an approval would mend is told as such.
            Ok(ids) if !ids.is_empty() && ids.iter().all(|id| id == rules::APPROVAL_REQUIRED) => {
                Denial::by_rules(DenialReason::ApprovalRequired, ids)
            }
            Ok(ids) if !ids.is_empty() => Denial::by_rules(DenialReason::Guardrail, ids),
            Ok(_) => Denial::new(DenialReason::EvaluationError, "rules and guardrails permit apart and not together"),
            Err(detail) => Denial::new(DenialReason::EvaluationError, detail),
        }
    }

    /// The scopes that are suspended, with the problems of each.
    pub fn suspended(&self) -> &BTreeMap<ScopeId, Vec<Problem>> {
        &self.suspended
    }

    /// Problems that belong to no scope: a file whose name is no id, a grant that is broken and that nobody decided on.
    pub fn stray(&self) -> &[Problem] {
        &self.stray
    }

    /// What is allowed and still worth a second look; for `policy lint`.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// How many scopes can decide.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// The scopes that can decide, in order.
    pub fn scopes(&self) -> impl Iterator<Item = &ScopeId> {
        self.active.keys()
    }

    /// The tier of an active scope, for what is told of a task in metrics and views.
    pub fn tier(&self, scope: &ScopeId) -> Option<Tier> {
        self.active.get(scope).map(|active| active.decision.tier)
    }

    /// The decisions whose review or end is near or past at `now`; for `policy lint`.
    pub fn due(&self, now: Timestamp) -> Vec<Problem> {
        self.active.iter().filter_map(|(id, active)| lint::due(id, &active.decision, now)).collect()
    }

    /// Governance's word on an active scope.
    pub fn decision(&self, scope: &ScopeId) -> Option<&Decision> {
        self.active.get(scope).map(|active| &active.decision)
    }
}

impl ActiveScope {
    fn check_params(&self, ask: &Ask) -> Result<(), String> {
        if let Some(name) = ask.params.keys().find(|name| !self.scope.params.contains_key(*name)) {
            return Err(format!("unknown parameter {name}"));
        }
        for (name, spec) in &self.scope.params {
            match ask.params.get(name) {
                None => return Err(format!("parameter {name} is missing")),
                Some(value) if !spec.accepts(value) => {
                    return Err(format!("parameter {name} must be 1 to {} of A-Z a-z 0-9 . _ -", spec.max));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn check_ttl(&self, ttl: Duration) -> Result<(), Denial> {
        let max_task = self.decision.caps.max_task;
        if ttl > max_task {
            let detail = format!("ttl is over max_task, {}", humantime::format_duration(max_task));
            return Err(Denial::new(DenialReason::TtlTooLong, detail));
        }
        if ttl.is_zero() {
            return Err(Denial::new(DenialReason::InvalidParameters, "ttl is zero".to_owned()));
        }
        Ok(())
    }
}

/// Fills an ask's parameters, which were accepted, into a grant.
fn resolve(id: &GrantId, grant: &Grant, params: &BTreeMap<ParamName, String>) -> ResolvedGrant {
    let provider = match &grant.provider {
        GrantProvider::Aws(aws) => ProviderGrant::Aws(AwsGrant {
            role_arn: aws.role_arn.clone(),
            session_policy: aws.session_policy.as_ref().map(|policy| policy.fill(params)),
            region: aws.region.clone(),
            audience: aws.audience.clone(),
        }),
        GrantProvider::Vault(vault) => ProviderGrant::Vault(VaultGrant {
            address: vault.address.clone(),
            mount: vault.mount.clone(),
            role: vault.role.clone(),
            namespace: vault.namespace.clone(),
            audience: vault.audience.clone(),
            read: vault.read.fill(params),
        }),
    };
    ResolvedGrant { id: id.clone(), max_session: grant.max_session, provider }
}

/// Rounded up, so that a rule which caps `ttl` never sees less than what is asked.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

impl Denial {
    fn new(reason: DenialReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), rule_ids: Vec::new() }
    }

    fn by_rules(reason: DenialReason, rule_ids: Vec<String>) -> Self {
        Self { reason, detail: format!("forbidden by {}", rule_ids.join(", ")), rule_ids }
    }
}

/// The closed set of words for [`Problem::kind`].
pub mod kind {
    /// Not TOML, or not of the documented keys and types.
    pub const PARSE: &str = "parse";
    /// A `schema` that this version does not read.
    pub const UNKNOWN_SCHEMA: &str = "unknown_schema";
    /// A value out of its range.
    pub const INVALID: &str = "invalid";
    /// Cedar that does not parse or validate, or a rule where it may not be.
    pub const RULE: &str = "rule";
    /// A provider that this version does not know, or two grants of one.
    pub const PROVIDER: &str = "provider";
    /// A file that another names is not there.
    pub const MISSING: &str = "missing";
    /// Nobody decided on it yet.
    pub const UNDECIDED: &str = "undecided";
    /// It changed after it was decided on.
    pub const DIGEST_MISMATCH: &str = "digest_mismatch";
    /// A file's name is no id, or its folder is not one that this version enforces.
    pub const FILE_NAME: &str = "file_name";
    /// The source itself cannot be read.
    pub const UNREADABLE: &str = "unreadable";
    /// Allowed, and worth a second look.
    pub const WARNING: &str = "warning";
}

/// One thing wrong with one policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's path in the policy repository, e.g. `scopes/ledger-read.toml`.
    pub file: String,
    /// A stable word of a closed set ([`Problem::KINDS`]), for metrics.
    pub kind: &'static str,
    /// What is wrong and what mends it.
    pub message: String,
}

impl Problem {
    /// Every kind, for metrics that must exist before they first happen.
    pub const KINDS: [&'static str; 11] = [
        kind::PARSE,
        kind::UNKNOWN_SCHEMA,
        kind::INVALID,
        kind::RULE,
        kind::PROVIDER,
        kind::MISSING,
        kind::UNDECIDED,
        kind::DIGEST_MISMATCH,
        kind::FILE_NAME,
        kind::UNREADABLE,
        kind::WARNING,
    ];

    fn new(file: impl Into<String>, kind: &'static str, message: impl Into<String>) -> Self {
        Self { file: file.into(), kind, message: message.into() }
    }
}

/// `scopes/ledger-read.toml: lacks schema = 1`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.message)
    }
}

/// A policy that was refused as a whole.
#[derive(Debug, thiserror::Error)]
#[error("policy refused: {} problem(s), the first: {}", problems.len(), problems.first().map_or_else(String::new, ToString::to_string))]
pub struct PolicyError {
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

#[cfg(test)]
mod tests;
