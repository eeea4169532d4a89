//! What is allowed and still worth a second look. Nothing here denies anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cedar_policy::{Effect, Policy as Rule};
use serde_json::Value;

use super::document::{Decision, Grant};
use super::rules::Rules;
use super::snapshot::Leaver;
use super::{GrantId, ParamName, ParamSpec, ScopeId};
use super::{Problem, kind};
use crate::clock::Timestamp;

/// The warnings of one active scope.
pub(super) fn scope(
    id: &ScopeId,
    decision: &Decision,
    params: &BTreeMap<ParamName, ParamSpec>,
    grants: &[(GrantId, Arc<Grant>)],
    rules: &Rules,
    business_owner: &str,
) -> Vec<Problem> {
    let file = format!("decisions/{id}.cedar");
    let warn = |message: String| Problem::new(file.clone(), kind::WARNING, message);
    let mut warnings: Vec<Problem> = rules.warnings.iter().cloned().map(warn).collect();
    for rule in rules.rules.iter().filter(|rule| rule.effect() == Effect::Permit) {
        warnings.extend(permit(rule, params).into_iter().map(warn));
    }
    if *decision.decision_owner == *business_owner {
        let message =
            format!("decision_owner is the scope's business_owner, {business_owner}: nobody else looks at its reasons");
        warnings.push(Problem::new(format!("decisions/{id}.toml"), kind::WARNING, message));
    }
    for (name, grant) in grants {
        warnings.extend(of_grant(name, grant, decision));
    }
    warnings
}

/// How long before a review or an end lint warns of it.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is near or past at `now`.
pub(super) fn due(id: &ScopeId, decision: &Decision, now: Timestamp) -> Option<Problem> {
    let warn = |message: String| Some(Problem::new(format!("decisions/{id}.toml"), kind::WARNING, message));
    match decision.expires_at {
        Some(at) if at <= now => return warn(format!("ended at {at}: nobody may begin it")),
        Some(at) if at.since(now) <= SOON => return warn(format!("ends at {at}")),
        _ => {}
    }
    let (due, stops) = (decision.review_by, decision.review_until);
    match () {
        () if stops <= now => warn(format!("review overdue: it stopped at {stops}; review it and move review_by")),
        () if due <= now => warn(format!("review overdue: it stops at {stops}; review it and move review_by")),
        () if due.since(now) <= SOON => warn(format!("review due by {due}")),
        () => None,
    }
}

/// An owner who leaves soon, or has left.
pub(super) fn leaving(id: &ScopeId, leaver: Option<&Leaver>, now: Timestamp) -> Option<Problem> {
    let leaver = leaver.filter(|leaver| leaver.active_until.since(now) <= SOON)?;
    let message = format!("{leaver}: name another owner");
    Some(Problem::new(format!("decisions/{id}.toml"), kind::WARNING, message))
}

/// A permit on identity alone (requirement G14), or one that leaves a parameter to the caller.
fn permit(rule: &Rule, params: &BTreeMap<ParamName, ParamSpec>) -> Vec<String> {
    let id = rule.id();
    if !rule.has_non_scope_constraint() {
        return vec![format!("{id}: permits on identity alone; a condition would make it narrower")];
    }
    let Ok(json) = rule.to_json() else { return Vec::new() };
    let free = params.keys().filter(|name| !looks_at(&json, name.as_str()));
    free.map(|name| format!("{id}: permits every value of the parameter {name}, which is the caller's word")).collect()
}

/// Whether a rule in Cedar's JSON form reads the attribute `name` somewhere.
fn looks_at(json: &Value, name: &str) -> bool {
    match json {
        Value::Object(members) => {
            members.get("attr").and_then(Value::as_str) == Some(name)
                || members.values().any(|member| looks_at(member, name))
        }
        Value::Array(items) => items.iter().any(|item| looks_at(item, name)),
        _ => false,
    }
}

fn of_grant(id: &GrantId, grant: &Grant, decision: &Decision) -> Vec<Problem> {
    let template = grant.template.kind();
    let mut messages = template.warnings();
    if !template.narrows() {
        messages.push("every task gets all of the role (accept_role_scope)".to_owned());
    }
    if grant.max_session < decision.caps.max_residual {
        messages
            .push("max_session is shorter than the decision's max_residual, so the latter has no effect".to_owned());
    }
    messages.into_iter().map(|message| Problem::new(format!("grants/{id}.toml"), kind::WARNING, message)).collect()
}
