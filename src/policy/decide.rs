//! May a caller begin, or go on with, what it asks for? Pure functions of (snapshot, caller, ask, now).

use std::sync::Arc;
use std::time::Duration;

use super::document::{Decision, Grant};
use super::kill::{Stop, Subject};
use super::rules::{self, Slice, Verdict};
use super::snapshot::{ActiveScope, Content};
use super::standing::{Freshness, Lapse};
use super::{Ask, Denial, DenialReason, GrantId, Kept, Params, Permit, Policy, Provider, ResolvedGrant, ScopeId};
use crate::clock::Timestamp;
use crate::id::TaskId;
use crate::identity::Caller;

impl Policy {
    /// May `caller` begin a task as `ask` says, at `now`? Pure: the same four values give the same answer.
    ///
    /// The order of the questions is part of the answer: whoever the rules do not permit never learns what a scope's
    /// parameters, caps or tier are, nor that it is there (requirement G15). That a signer has lapsed is therefore reported last.
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
    /// (docs/policy.md): what it signed is still the latest policy.
    ///
    /// # Errors
    /// Why it must end.
    pub fn still_permits(&self, caller: &Caller, ask: &Ask, task: &TaskId, now: Timestamp) -> Result<Kept, Denial> {
        let (active, rule_ids) = self.judge(caller, ask, Some(task), now)?;
        let providers = active.grants.iter().map(|(_, grant)| grant.template.provider()).collect();
        Ok(Kept { policy_version: self.version().clone(), rule_ids, idle: active.decision.caps.idle, providers })
    }

    /// Where its active scopes grant something; one is said as often as it is granted.
    pub fn providers(&self) -> impl Iterator<Item = Provider> {
        let grants = self.content.by_id.values().flat_map(|active| &active.grants);
        grants.map(|(_, grant)| grant.template.provider())
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

    pub(super) fn freshness(&self, active: &ActiveScope, now: Timestamp) -> Freshness {
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
            // Only what an approval would fix is reported as such.
            Ok(ids) if !ids.is_empty() && ids.iter().all(|id| id == rules::APPROVAL_REQUIRED) => {
                Denial::by_rules(DenialReason::ApprovalRequired, ids)
            }
            Ok(ids) if !ids.is_empty() => {
                let described: Vec<_> = ids.iter().map(|id| active.describe(id)).collect();
                let detail = format!("forbidden by {}", described.join(", "));
                Denial { rule_ids: ids, ..Denial::new(DenialReason::Guardrail, detail) }
            }
            Ok(_) => Denial::new(DenialReason::EvaluationError, "rules and guardrails permit apart and not together"),
            Err(detail) => Denial::new(DenialReason::EvaluationError, detail),
        }
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
    /// A guardrail's id, with the part of this scope that it is about.
    fn describe(&self, id: &str) -> String {
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

/// Fills an ask's parameters, which were accepted, into a grant.
fn resolve(id: &GrantId, grant: &Grant, decision: &Decision, params: &Params) -> ResolvedGrant {
    let max_session = match decision.session_within_the_law(grant) {
        Some(session) if !grant.outlives.lasts.is_zero() => grant.max_session.min(session),
        // Nothing outlives it, or the decision accepts that (else the scope is suspended).
        _ => grant.max_session,
    };
    ResolvedGrant {
        id: id.clone(),
        max_session,
        outlives: grant.outlives,
        provider: grant.template.kind().resolve(params),
    }
}

/// Rounded up, so that a rule which caps `ttl` never sees less than what is asked.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}
