//! One immutable, validated policy: what every decision of one request is taken from.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::charter::Charter;
use super::document::{Decision, Grant};
use super::kill::{self, KillList};
use super::repository::PolicyFiles;
use super::rules::{Engine, Rule};
use super::signers::Signers;
use super::slices::{Slices, Source};
use super::standing::{PolicyState, RoleName, Standing};
use super::{Digests, GrantId, LoadOptions, ParamName, ParamSpec, PolicyError, Problem, Provider, ScopeId, Tier};
use super::{lint, load};
use crate::clock::Timestamp;

/// Which policy a decision used. Equal versions decide equally.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyVersion(pub Arc<str>);

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One immutable, validated policy: every scope sliced and ready to decide, when its signatures expire, and what is
/// stopped. Shared as `Arc<Policy>`; one per request.
#[derive(Debug)]
pub struct Policy {
    pub(super) content: Arc<Content>,
    /// When its signatures expire; `None` where nobody signs: then it is always fresh.
    pub(super) standing: Option<Standing>,
    /// Until then everything is fresh, so that a decision asks no further.
    pub(super) fresh_until: Timestamp,
    pub(super) kill: Arc<KillList>,
}

/// What the files of one version say.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) version: PolicyVersion,
    pub(super) engine: Engine,
    pub(super) boundaries: Vec<Rule>,
    pub(super) slices: Slices,
    pub(super) charter: Charter,
    pub(super) active: BTreeMap<ScopeId, Arc<ActiveScope>>,
    /// The same, for decisions: among 10,000 names a tree compares some thirty, scattered over memory.
    pub(super) by_id: HashMap<ScopeId, Arc<ActiveScope>>,
    pub(super) suspended: BTreeMap<ScopeId, Vec<Problem>>,
    pub(super) stray: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    pub(super) signers: Option<Signers>,
}

/// A scope whose decision, scope file and grants all resolved, each with the digest decided on.
#[derive(Debug)]
pub(super) struct ActiveScope {
    pub(super) decision: Decision,
    pub(super) business_owner: Box<str>,
    /// What an ask must give; shared by all scopes that want the same.
    pub(super) params: Arc<BTreeMap<ParamName, ParamSpec>>,
    pub(super) grants: Box<[(GrantId, Arc<Grant>)]>,
    pub(super) rules: Arc<Source>,
    pub(super) ends: Ends,
    pub(super) digests: Arc<Digests>,
    /// The roles whose signatures it rests on, beside those that everything rests on; empty where nobody signs.
    pub(super) roles: Arc<[RoleName]>,
}

/// When a scope stops by itself, beside what its decision says.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends {
    /// The owner whose leaving stops it first, where one leaves.
    pub(super) owner: Option<Leaver>,
}

/// An owner who leaves, or has left.
#[derive(Debug, Clone)]
pub(super) struct Leaver {
    pub(super) id: String,
    pub(super) active_until: Timestamp,
    /// With the grace of the scope's tier.
    pub(super) stops_at: Timestamp,
}

impl Ends {
    /// The earliest of all, so that one comparison judges time.
    pub(super) fn earliest(&self, decision: &Decision) -> Timestamp {
        let owner = self.owner.as_ref().map(|leaver| leaver.stops_at);
        [Some(decision.review_until), decision.expires_at, owner].into_iter().flatten().min().unwrap_or(Timestamp::MAX)
    }
}

impl kill::Parts for &ActiveScope {
    fn grants(&self) -> impl Iterator<Item = (&GrantId, Provider)> {
        self.grants.iter().map(|(id, grant)| (id, grant.template.provider()))
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
    pub fn load(files: &PolicyFiles) -> Result<Self, PolicyError> {
        Self::load_with(files, &LoadOptions::default())
    }

    /// As [`Policy::load`], narrowed by local configuration: what `options` leave out is as if it were not there.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn load_with(files: &PolicyFiles, options: &LoadOptions) -> Result<Self, PolicyError> {
        load::load(files, options)
    }

    pub(super) fn new(content: Content, standing: Option<Standing>, kill: KillList) -> Self {
        Self::of(Arc::new(content), standing, Arc::new(kill))
    }

    fn of(content: Arc<Content>, standing: Option<Standing>, kill: Arc<KillList>) -> Self {
        let ends = standing.iter().flat_map(|standing| standing.ends.values());
        let fresh_until = ends.copied().min().unwrap_or(Timestamp::MAX);
        Self { content, standing, fresh_until, kill }
    }

    /// The same version, whose signatures now expire as `standing` says (a heartbeat). `None` where it says nothing of a role
    /// that was valid before, or where nobody signs.
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

    /// When the signatures of each role expire, where the policy is signed.
    pub fn standing(&self) -> Option<&Standing> {
        self.standing.as_ref()
    }

    /// The same by the nine roles of docs/publishing.md, UTC: a department counts as the role that it is part of, and the
    /// earliest end counts. Empty where nobody signs.
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

    /// The tier of an active scope, for a task in metrics and views.
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

    /// Governance's decision on an active scope.
    pub fn decision(&self, scope: &ScopeId) -> Option<&Decision> {
        self.content.active.get(scope).map(|active| &active.decision)
    }
}

impl fmt::Display for Leaver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the owner {} is active until {}; their scopes stop at {}", self.id, self.active_until, self.stops_at)
    }
}
