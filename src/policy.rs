//! May it? [`Caller`] + [`Ask`] → [`Permit`] or [`Denial`].
//!
//! - [`repository`]: the seam to where policy files come from, and the directory that is one such place.
//! - [`cache`]: the policy in force, reloaded as a whole or not at all.
//! - [`charter`]: `owners/`: who answers for what, until when, and how stale a policy may get.
//! - [`document`]: the TOML files, parsed into types that cannot hold nonsense.
//! - [`kill`]: `kill/`: what is stopped now.
//! - [`names`]: what all this is called by: tiers, providers, and the names of scopes, grants and parameters.
//! - [`outliving`]: the actions by which access outlives its credential.
//! - [`session_policy`]: what narrows an AWS role, with the scope's parameters.
//! - [`standing`]: until when the signatures speak: fresh, stale, expired.
//! - [`publish`]: how owners sign and publish a version: the working repository behind `sidemint policy`.
//! - [`rules`]: Cedar: the schema, the guardrails, one slice of rules per scope.
//! - `slices`: those slices that are in use.
//! - `aside`: where a policy is verified and loaded, out of the way of what serves.
//! - `params`: the rule of a scope's parameter, and what an ask's parameters are kept in.
//! - `toml_file`: how a TOML file is read, and how it fails.
//! - `load`: files → [`Policy`], where a bad file suspends its scope.
//! - `lint`: what is allowed and still worth a second look.
//!
//! A decision is a pure function of (policy snapshot, caller, ask, now).

mod aside;
pub mod cache;
pub mod charter;
mod denial;
pub mod document;
pub mod kill;
mod lint;
mod load;
pub mod names;
pub mod outliving;
mod params;
pub mod public_key;
pub mod publish;
pub mod repository;
pub mod rules;
pub mod secret_path;
pub mod session_policy;
mod signers;
mod slices;
pub mod standing;
mod toml_file;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::clock::Timestamp;
use crate::id::TaskId;
use crate::identity::Caller;

use charter::Charter;
pub use denial::{Denial, DenialReason};
use document::{Decision, Digest, Grant, GrantProvider};
use kill::{KillList, Stop, Subject};
pub use load::LoadOptions;
pub use names::{GrantId, ParamName, Provider, ScopeId, Tier};
use outliving::Outlives;
pub use params::{MAX_PARAM_LENGTH, ParamSpec, ParamType, Params};
use rules::{Engine, Rule, Slice, Verdict};
use signers::Signers;
use slices::{Slices, Source};
use standing::{Freshness, Lapse, PolicyState, RoleName, Standing};
pub use toml_file::DocumentError;

/// What a caller asks for when it begins a task. Everything in it is the caller's word (`context.asserted`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The scope, by id.
    pub scope: ScopeId,
    /// The scope's parameters.
    #[serde(default)]
    pub params: Params,
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

/// The outcome that let a task begin. Made only by [`Policy::decide`].
#[derive(Debug, Clone)]
pub struct Permit {
    pub(in crate::policy) scope: ScopeId,
    pub(in crate::policy) policy_version: PolicyVersion,
    pub(in crate::policy) rule_ids: Vec<String>,
    pub(in crate::policy) tier: Tier,
    pub(in crate::policy) caps: Caps,
    pub(in crate::policy) grants: Vec<ResolvedGrant>,
    pub(in crate::policy) digests: Arc<Digests>,
    pub(in crate::policy) stale: Option<Lapse>,
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

/// Which policy a decision used. Equal versions decide equally.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyVersion(pub Arc<str>);

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One immutable, validated policy: every scope sliced and ready to decide, until when its signers speak, and what is
/// stopped. Shared as `Arc<Policy>`; one per request.
#[derive(Debug)]
pub struct Policy {
    content: Arc<Content>,
    /// Until when its signers speak; `None` where nobody signs: then it is always fresh.
    standing: Option<Standing>,
    /// Until then everything is fresh, so that a decision asks no further.
    fresh_until: Timestamp,
    kill: Arc<KillList>,
}

/// What the files of one version say.
#[derive(Debug)]
struct Content {
    version: PolicyVersion,
    engine: Engine,
    boundaries: Vec<Rule>,
    slices: Slices,
    charter: Charter,
    active: BTreeMap<ScopeId, Arc<ActiveScope>>,
    /// The same, for decisions: among 10,000 names a tree compares some thirty, scattered over memory.
    by_id: HashMap<ScopeId, Arc<ActiveScope>>,
    suspended: BTreeMap<ScopeId, Vec<Problem>>,
    stray: Vec<Problem>,
    warnings: Vec<Problem>,
    signers: Option<Signers>,
}

/// A scope whose decision, scope file and grants all resolved, each with the digest decided on.
#[derive(Debug)]
struct ActiveScope {
    decision: Decision,
    business_owner: Box<str>,
    /// What an ask must give; shared by all scopes that want the same.
    params: Arc<BTreeMap<ParamName, ParamSpec>>,
    grants: Box<[(GrantId, Arc<Grant>)]>,
    rules: Arc<Source>,
    ends: Ends,
    digests: Arc<Digests>,
    /// Whose word it rests on, beside the roles that everything rests on; empty where nobody signs.
    roles: Arc<[RoleName]>,
}

/// When a scope stops by itself, beside what its decision says.
#[derive(Debug, Clone, Default)]
struct Ends {
    /// The owner whose leaving stops it first, where one leaves.
    owner: Option<Leaver>,
}

/// An owner who leaves, or has left.
#[derive(Debug, Clone)]
struct Leaver {
    id: String,
    active_until: Timestamp,
    /// With the grace of the scope's tier.
    stops_at: Timestamp,
}

impl Ends {
    /// The earliest of all, so that one comparison judges time.
    fn earliest(&self, decision: &Decision) -> Timestamp {
        let owner = self.owner.as_ref().map(|leaver| leaver.stops_at);
        [Some(decision.review_until), decision.expires_at, owner].into_iter().flatten().min().unwrap_or(Timestamp::MAX)
    }
}

impl kill::Parts for &ActiveScope {
    fn grants(&self) -> impl Iterator<Item = (&GrantId, Provider)> {
        self.grants.iter().map(|(id, grant)| (id, grant.provider.provider()))
    }

    fn owners(&self) -> [&str; 2] {
        [&self.decision.decision_owner, &self.business_owner]
    }
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

    fn new(content: Content, standing: Option<Standing>, kill: KillList) -> Self {
        Self::of(Arc::new(content), standing, Arc::new(kill))
    }

    fn of(content: Arc<Content>, standing: Option<Standing>, kill: Arc<KillList>) -> Self {
        let ends = standing.iter().flat_map(|standing| standing.ends.values());
        let fresh_until = ends.copied().min().unwrap_or(Timestamp::MAX);
        Self { content, standing, fresh_until, kill }
    }

    /// The same version, whose signers now speak until `standing` (a heartbeat). `None` where it says nothing of a role
    /// that spoke before, or where nobody signs.
    pub fn confirmed(&self, standing: Standing) -> Option<Self> {
        let all = self.standing.as_ref()?.ends.keys().all(|role| standing.ends.contains_key(role));
        all.then(|| Self::of(Arc::clone(&self.content), Some(standing), Arc::clone(&self.kill)))
    }

    /// The same version under another kill list.
    pub fn with_kill_list(&self, kill: Arc<KillList>) -> Self {
        Self::of(Arc::clone(&self.content), self.standing.clone(), kill)
    }

    /// What is stopped now.
    pub fn kill_list(&self) -> &Arc<KillList> {
        &self.kill
    }

    /// The version that decisions will name.
    pub fn version(&self) -> &PolicyVersion {
        &self.content.version
    }

    /// The version number of the snapshot, where the policy is signed.
    pub fn snapshot(&self) -> Option<u64> {
        self.content.signers.as_ref().map(Signers::snapshot)
    }

    /// Until when each role speaks, where the policy is signed.
    pub fn standing(&self) -> Option<&Standing> {
        self.standing.as_ref()
    }

    /// The same by the nine roles that design.md fixes, UTC: a department counts as the role that it is part of, and the
    /// earliest end is told. Empty where nobody signs.
    pub fn ends(&self) -> BTreeMap<&'static str, Timestamp> {
        match (&self.content.signers, &self.standing) {
            (Some(signers), Some(standing)) => signers.ends(standing),
            _ => BTreeMap::new(),
        }
    }

    /// How good the policy as a whole is at `now`: expired when no scope can begin any more, stale when some signer has
    /// lapsed.
    pub fn state(&self, now: Timestamp) -> PolicyState {
        match (&self.content.signers, &self.standing) {
            (Some(signers), Some(standing)) => signers.state(standing, &self.content.charter, now),
            _ => PolicyState::Unsigned,
        }
    }

    /// What the owners agreed on for everybody.
    pub fn charter(&self) -> &Charter {
        &self.content.charter
    }

    /// May `caller` begin a task as `ask` says, at `now`? Pure: the same four values give the same answer.
    ///
    /// The order of the questions is part of the answer: whoever the rules do not permit never learns what a scope's
    /// parameters, caps or tier are, nor that it is there (requirement G15). So that a signer has lapsed is told last.
    ///
    /// # Errors
    /// A [`Denial`]: anything that is not a clear permit.
    pub fn decide(&self, caller: &Caller, ask: &Ask, now: Timestamp) -> Result<Permit, Denial> {
        self.decide_for(caller, ask, None, now)
    }

    /// As [`Policy::decide`], for a task that runs already and wants a credential.
    ///
    /// # Errors
    /// As [`Policy::decide`].
    pub fn decide_for(
        &self,
        caller: &Caller,
        ask: &Ask,
        task: Option<&TaskId>,
        now: Timestamp,
    ) -> Result<Permit, Denial> {
        let (active, rule_ids) = self.judge(caller, ask, task, now)?;
        let stale = match self.freshness(active, now) {
            Freshness::Fresh => None,
            Freshness::Stale(lapse) => Some(lapse),
            Freshness::Expired(lapse) => return Err(self.expired(active, &lapse)),
        };
        Ok(Permit {
            scope: active.digests.id.clone(),
            policy_version: self.version().clone(),
            rule_ids,
            tier: active.decision.tier,
            caps: active.decision.caps,
            grants: active.grants.iter().map(|(id, grant)| resolve(id, grant, &active.decision, &ask.params)).collect(),
            digests: Arc::clone(&active.digests),
            stale,
        })
    }

    /// May the running `task` of `caller`, begun as `ask` says, go on at `now`? A lapsed signer ends nothing that runs
    /// (design §4): what it signed is still the last word there is.
    ///
    /// # Errors
    /// Why it must end.
    pub fn still_permits(&self, caller: &Caller, ask: &Ask, task: &TaskId, now: Timestamp) -> Result<Kept, Denial> {
        let (active, rule_ids) = self.judge(caller, ask, Some(task), now)?;
        let providers = active.grants.iter().map(|(_, grant)| grant.provider.provider()).collect();
        Ok(Kept { policy_version: self.version().clone(), rule_ids, idle: active.decision.caps.idle, providers })
    }

    /// The entry of the kill list that stops `subject` at `now`.
    pub fn stopped(&self, subject: Subject<'_>, now: Timestamp) -> Option<&Stop> {
        self.kill.stop(subject, || self.content.by_id.get(subject.scope).map(|active| &**active), now)
    }

    /// Everything that a decision asks but how fresh it is.
    fn judge(
        &self,
        caller: &Caller,
        ask: &Ask,
        task: Option<&TaskId>,
        now: Timestamp,
    ) -> Result<(&ActiveScope, Vec<String>), Denial> {
        let subject = Subject { scope: &ask.scope, spiffe_id: caller.spiffe_id(), task };
        if let Some(stop) = self.stopped(subject, now) {
            return Err(Denial::new(DenialReason::Killed, stop.to_string()));
        }
        let active = self.find(&ask.scope)?;
        match self.ask_rules(active, caller, ask, now) {
            Ok(rule_ids) => Ok((active, rule_ids)),
            Err(denial) => Err(denial.about(&active.digests)),
        }
    }

    fn ask_rules(
        &self,
        active: &ActiveScope,
        caller: &Caller,
        ask: &Ask,
        now: Timestamp,
    ) -> Result<Vec<String>, Denial> {
        let engine = &self.content.engine;
        let broken = |detail| Denial::new(DenialReason::EvaluationError, detail);
        let slice = self.content.slice(active).map_err(broken)?;
        active.check_params(ask).map_err(|detail| {
            let reason = match slice.names(engine, caller) {
                true => DenialReason::InvalidParameters,
                false => DenialReason::NotPermitted,
            };
            Denial::new(reason, detail)
        })?;
        let ttl = ask.ttl.unwrap_or(active.decision.caps.max_task);
        let question = engine.question(&slice, caller, ask, whole_seconds(ttl), now).map_err(broken)?;
        let rule_ids = match engine.ask_all(&slice, &question) {
            Verdict::Permit(rule_ids) => rule_ids,
            Verdict::Deny(_) | Verdict::Error(_) => return Err(self.why_not(active, &slice, &question)),
        };
        active.check_ttl(ttl)?;
        Ok(rule_ids)
    }

    fn freshness(&self, active: &ActiveScope, now: Timestamp) -> Freshness {
        match &self.standing {
            Some(standing) if now >= self.fresh_until => {
                standing.at(now, self.content.charter.max_staleness(active.decision.tier), active.roles.iter())
            }
            _ => Freshness::Fresh,
        }
    }

    fn expired(&self, active: &ActiveScope, lapse: &Lapse) -> Denial {
        let tier = active.decision.tier;
        let most = humantime::format_duration(self.content.charter.max_staleness(tier));
        let detail = format!("{lapse}, longer than max_staleness of {}, {most}", tier.as_str());
        Denial::new(DenialReason::PolicyExpired, detail).about(&active.digests)
    }

    fn find(&self, id: &ScopeId) -> Result<&ActiveScope, Denial> {
        if let Some(active) = self.content.by_id.get(id) {
            return Ok(active);
        }
        Err(match self.content.suspended.get(id).map(Vec::as_slice) {
            Some([problem, ..]) => Denial::new(DenialReason::ScopeSuspended, problem.to_string()),
            Some([]) => Denial::new(DenialReason::ScopeSuspended, "suspended".to_owned()),
            None => Denial::new(DenialReason::UnknownScope, format!("policy {} has no such scope", self.version())),
        })
    }

    /// Why rules and guardrails together did not permit: first the scope's own rules, then the guardrails.
    fn why_not(&self, active: &ActiveScope, slice: &Slice, question: &rules::Question) -> Denial {
        match self.content.engine.ask_rules(slice, question) {
            Verdict::Permit(_) => {}
            Verdict::Deny(rule_ids) if rule_ids.is_empty() => {
                return Denial::new(DenialReason::NotPermitted, "no rule permits it");
            }
            Verdict::Deny(rule_ids) => return Denial::by_rules(DenialReason::Forbidden, rule_ids),
            Verdict::Error(detail) => return Denial::new(DenialReason::EvaluationError, detail),
        }
        match self.content.engine.ask_guardrails(slice, question) {
            // Only what an approval would mend is told as such.
            Ok(ids) if !ids.is_empty() && ids.iter().all(|id| id == rules::APPROVAL_REQUIRED) => {
                Denial::by_rules(DenialReason::ApprovalRequired, ids)
            }
            Ok(ids) if !ids.is_empty() => {
                let told: Vec<_> = ids.iter().map(|id| active.told(id)).collect();
                let detail = format!("forbidden by {}", told.join(", "));
                Denial { rule_ids: ids, ..Denial::new(DenialReason::Guardrail, detail) }
            }
            Ok(_) => Denial::new(DenialReason::EvaluationError, "rules and guardrails permit apart and not together"),
            Err(detail) => Denial::new(DenialReason::EvaluationError, detail),
        }
    }

    /// The scopes that are suspended, with the problems of each.
    pub fn suspended(&self) -> &BTreeMap<ScopeId, Vec<Problem>> {
        &self.content.suspended
    }

    /// Problems that belong to no scope: a file whose name is no id, a grant that is broken and that nobody decided on.
    pub fn stray(&self) -> &[Problem] {
        &self.content.stray
    }

    /// What is allowed and still worth a second look; for `policy lint`.
    pub fn warnings(&self) -> &[Problem] {
        &self.content.warnings
    }

    /// How many scopes can decide.
    pub fn active(&self) -> usize {
        self.content.active.len()
    }

    /// The scopes that can decide, in order.
    pub fn scopes(&self) -> impl Iterator<Item = &ScopeId> {
        self.content.active.keys()
    }

    /// The tier of an active scope, for what is told of a task in metrics and views.
    pub fn tier(&self, scope: &ScopeId) -> Option<Tier> {
        self.content.active.get(scope).map(|active| active.decision.tier)
    }

    /// The decisions whose review or end is near or past at `now`; for `policy lint`.
    pub fn due(&self, now: Timestamp) -> Vec<Problem> {
        let due = |(id, active): (&ScopeId, &Arc<ActiveScope>)| {
            [lint::due(id, &active.decision, now), lint::leaving(id, active.ends.owner.as_ref(), now)]
        };
        self.content.active.iter().flat_map(due).flatten().collect()
    }

    /// How many scopes have stopped because an owner of theirs left.
    pub fn orphaned(&self, now: Timestamp) -> usize {
        let gone = |active: &&Arc<ActiveScope>| active.ends.owner.as_ref().is_some_and(|leaver| leaver.stops_at <= now);
        self.content.active.values().filter(gone).count()
    }

    /// Governance's word on an active scope.
    pub fn decision(&self, scope: &ScopeId) -> Option<&Decision> {
        self.content.active.get(scope).map(|active| &active.decision)
    }
}

impl Content {
    /// What decides on a scope: kept, or made now.
    fn slice(&self, active: &ActiveScope) -> Result<Arc<Slice>, String> {
        let make = |text: &str| {
            let rules = rules::own_rules(text.as_bytes()).map_err(rules::first)?;
            self.engine.slice(&active.digests.id, &active.decision, &active.ends, &rules, &self.boundaries)
        };
        self.slices.of(&active.rules, make).map_err(|problem| problem.message)
    }
}

impl ActiveScope {
    /// A guardrail's id, with what of this scope it speaks of.
    fn told(&self, id: &str) -> String {
        let decision = &self.decision;
        match (id, &self.ends.owner, decision.expires_at) {
            (rules::REVIEW_OVERDUE, ..) => {
                format!("{id} (review due by {}, stopped at {})", decision.review_by, decision.review_until)
            }
            (rules::EXPIRED, _, Some(at)) => format!("{id} (ended at {at})"),
            (rules::OWNER_GONE, Some(leaver), _) => format!("{id} ({leaver})"),
            _ => id.to_owned(),
        }
    }

    fn check_params(&self, ask: &Ask) -> Result<(), String> {
        if let Some(name) = ask.params.keys().find(|name| !self.params.contains_key(*name)) {
            return Err(format!("unknown parameter {name}"));
        }
        for (name, spec) in &*self.params {
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

impl fmt::Display for Leaver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the owner {} is active until {}; their scopes stop at {}", self.id, self.active_until, self.stops_at)
    }
}

/// Fills an ask's parameters, which were accepted, into a grant.
fn resolve(id: &GrantId, grant: &Grant, decision: &Decision, params: &Params) -> ResolvedGrant {
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
    let max_session = match decision.session_within_the_law(grant) {
        Some(session) if !grant.outlives.lasts.is_zero() => grant.max_session.min(session),
        // Nothing outlives it, or the decision accepts that (else the scope is suspended).
        _ => grant.max_session,
    };
    ResolvedGrant { id: id.clone(), max_session, outlives: grant.outlives, provider }
}

/// Rounded up, so that a rule which caps `ttl` never sees less than what is asked.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
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
    /// A role lists a file that another one owns: it is not loaded.
    pub const NOT_OWNER: &str = "not_owner";
    /// It names an owner who has no file below `owners/`.
    pub const OWNER: &str = "owner";
    /// Access would outlive the decision's `max_residual`, which does not accept it.
    pub const RESIDUAL: &str = "residual";
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
    pub const KINDS: [&'static str; 14] = [
        kind::PARSE,
        kind::UNKNOWN_SCHEMA,
        kind::INVALID,
        kind::RULE,
        kind::PROVIDER,
        kind::MISSING,
        kind::UNDECIDED,
        kind::DIGEST_MISMATCH,
        kind::FILE_NAME,
        kind::NOT_OWNER,
        kind::OWNER,
        kind::RESIDUAL,
        kind::UNREADABLE,
        kind::WARNING,
    ];

    pub(crate) fn new(file: impl Into<String>, kind: &'static str, message: impl Into<String>) -> Self {
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
mod signed_tests;
#[cfg(test)]
mod tests;
