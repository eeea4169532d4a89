//! Cedar: the schema, the guardrails, one slice of rules per scope.
//!
//! A slice holds the rules of one scope's decision and all boundaries, so a decision costs the same with 10 scopes and
//! 10,000. It also holds the guardrails, folded into one rule: each rule costs about a microsecond, whatever it says. Only
//! what that does not permit is asked again, apart: first the slice's own rules, and once they permit the guardrails one
//! by one, since a caller learns that an approval is missing only where it would otherwise be permitted.
//!
//! Cedar skips a rule that fails to evaluate, also a `forbid`; here any error is a denial.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use cedar_policy::{
    Authorizer, Context, Decision, Effect, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicyId, PolicySet,
    PrincipalConstraint, Request, ResourceConstraint, Response, RestrictedExpression, Schema, ValidationMode,
    Validator,
};

pub(super) use cedar_policy::Policy as Rule;

use super::snapshot::Ends;
use super::{Ask, kind};
use super::{ParamName, ScopeId, document};
use crate::clock::Timestamp;
use crate::identity::{Caller, Proof, SpiffeId};

const GUARDRAILS: &str = include_str!("guardrails.cedar");
/// The guardrail on a review that is overdue.
pub(super) const REVIEW_OVERDUE: &str = "guardrail-review-overdue";
/// The guardrail on a decision that has ended.
pub(super) const EXPIRED: &str = "guardrail-expired";
/// The guardrail on a scope whose owner has left.
pub(super) const OWNER_GONE: &str = "guardrail-owner-gone";
/// The guardrail whose refusal callers see as `approval_required`.
pub(super) const APPROVAL_REQUIRED: &str = "guardrail-approval-required";
/// What only the binary's own rules may begin their `@id` with.
const RESERVED: &str = "guardrail-";
/// The guardrails as one rule.
const FOLDED: &str = "guardrail-any";
/// The most rules of one file.
const MAX_RULES: usize = 1000;

/// What is wrong with rules: a kind of [`super::Problem::KINDS`] and one message each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RuleProblem {
    pub(super) kind: &'static str,
    pub(super) message: String,
}

fn problem(message: impl Into<String>) -> RuleProblem {
    RuleProblem { kind: kind::RULE, message: message.into() }
}

/// The rules of one file, parsed and validated.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// Sorted by their `@id`, which is also their policy id.
    pub(super) rules: Vec<Rule>,
    /// What Cedar's validator wonders about.
    pub(super) warnings: Vec<String>,
}

/// Names of Cedar entities, made once.
#[derive(Debug)]
struct Names {
    workload: EntityTypeName,
    scope: EntityTypeName,
    begin: EntityUid,
}

impl Names {
    fn scope(&self, id: &ScopeId) -> EntityUid {
        EntityUid::from_type_name_and_id(self.scope.clone(), EntityId::new(id.as_str()))
    }

    fn workload(&self, id: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.workload.clone(), EntityId::new(id))
    }
}

/// Cedar, set up once per policy version: names, guardrails, the authorizer, and validators by parameter names.
#[derive(Debug)]
pub(super) struct Engine {
    names: Names,
    authorizer: Authorizer,
    guardrails: PolicySet,
    /// Forbids what any guardrail forbids.
    folded: Rule,
    /// The last `context.verified`: one workload asks again and again within a second, and making it costs as much as
    /// several rules.
    verified: ArcSwapOption<Verified>,
}

/// `context.verified` in Cedar's terms, and all that it says.
#[derive(Debug)]
struct Verified {
    spiffe_id: SpiffeId,
    proof: Proof,
    second: Timestamp,
    record: RestrictedExpression,
}

/// Validators, memoised by the set of parameter names: most scopes share one.
#[derive(Debug, Default)]
pub(super) struct Validators(HashMap<BTreeSet<ParamName>, Arc<Validator>>);

impl Validators {
    /// The validator for the rules of scopes with exactly these parameters: all there, all strings.
    fn exact(&mut self, params: &BTreeSet<ParamName>) -> Result<Arc<Validator>, RuleProblem> {
        if let Some(known) = self.0.get(params) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(validator(params, "")?);
        self.0.insert(params.clone(), Arc::clone(&made));
        Ok(made)
    }
}

fn validator(params: &BTreeSet<ParamName>, optional: &str) -> Result<Validator, RuleProblem> {
    let (schema, _) =
        Schema::from_cedarschema_str(&schema_text(params, optional)).map_err(|error| problem(error.to_string()))?;
    Ok(Validator::new(schema))
}

/// The schema of the vocabulary page (docs/policy.md). Optional members have a `?`, so that strict validation makes
/// rules ask with `has` before they look. `optional` is `?` for boundaries, which meet scopes of all parameters.
fn schema_text(params: &BTreeSet<ParamName>, optional: &str) -> String {
    let mut members = String::new();
    for name in params {
        // Quoted, since a name such as `in` is a word of Cedar. Writing to a String cannot fail.
        let _ = write!(members, "\"{name}\"{optional}: String, ");
    }
    format!(
        r#"
entity Workload;
entity Scope = {{
  tier: String, kind: String, review_until: datetime, expires_at?: datetime, owner_until?: datetime, ends_at: datetime
}};
action begin appliesTo {{
  principal: [Workload],
  resource: [Scope],
  context: {{
    verified: {{ spiffe_id: String, trust_domain: String, path: String, proof: String, now: datetime, approval?: String }},
    asserted: {{ params: {{ {members} }}, ttl: Long, reason?: String, approval?: String }}
  }}
}};
"#
    )
}

/// One scope's rules, ready to decide.
#[derive(Debug)]
pub(super) struct Slice {
    /// The decision's rules, the boundaries, and the folded guardrails.
    all: PolicySet,
    resource: EntityUid,
    entities: Entities,
    /// Who may learn that a parameter is wrong, see [`Slice::names`].
    named: HashSet<EntityUid>,
    anyone: bool,
}

impl Slice {
    /// Whether rules name this caller, so that it may learn what the scope expects.
    ///
    /// Rules cannot be evaluated over parameters that are wrong, and an answer about parameters tells that the scope
    /// exists. So it is given only where governance named the caller in the head of a `permit`, or where a `permit`
    /// without any condition is for everybody; all others hear that they are denied.
    pub(super) fn names(&self, engine: &Engine, caller: &Caller) -> bool {
        self.anyone || self.named.contains(&engine.names.workload(caller.spiffe_id().as_str()))
    }
}

/// What the rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// These rules permit and none forbids.
    Permit(Vec<String>),
    /// These rules forbid; without any, none permits.
    Deny(Vec<String>),
    /// A rule failed to evaluate.
    Error(String),
}

/// One question to the rules, in Cedar's terms.
#[derive(Debug)]
pub(super) struct Question {
    request: Request,
}

impl Engine {
    /// Sets Cedar up and validates the guardrails.
    ///
    /// # Errors
    /// Only if the binary's own schema or guardrails are broken; a test holds that they are not.
    pub(super) fn new() -> Result<Self, RuleProblem> {
        let name = |text: &str| text.parse::<EntityTypeName>().map_err(|error| problem(error.to_string()));
        let begin = EntityUid::from_type_name_and_id(name("Action")?, EntityId::new("begin"));
        let names = Names { workload: name("Workload")?, scope: name("Scope")?, begin };
        let mut rules = parse(GUARDRAILS.as_bytes()).map_err(first)?;
        validate(&validator(&BTreeSet::new(), "")?, &rules).map_err(first)?;
        let folded = rules.iter().position(|rule| rule.id().to_string() == FOLDED);
        let folded = folded.ok_or_else(|| problem("the folded guardrails are gone"))?;
        let folded = rules.remove(folded);
        let guardrails = policy_set(&rules)?;
        Ok(Self { names, authorizer: Authorizer::new(), guardrails, folded, verified: ArcSwapOption::empty() })
    }

    /// Reads a boundary file: `forbid` rules over any scope, validated against every parameter name as optional.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn boundaries(&self, bytes: &[u8], params: &BTreeSet<ParamName>) -> Result<Rules, Vec<RuleProblem>> {
        let rules = own_rules(bytes)?;
        let permits = rules.iter().filter(|rule| rule.effect() == Effect::Permit);
        let problems: Vec<_> =
            permits.map(|rule| problem(format!("{}: a boundary may only forbid", rule.id()))).collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        let validator = validator(params, "?").map_err(|problem| vec![problem])?;
        let warnings = validate(&validator, &rules)?;
        Ok(Rules { rules, warnings })
    }

    /// Reads `decisions/S.cedar`: rules that all name scope S, validated against the scope's parameters. `parsed` is what
    /// [`parse_together`] made of `bytes`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn decision(
        &self,
        validators: &mut Validators,
        bytes: &[u8],
        parsed: Option<Vec<Rule>>,
        scope: &ScopeId,
        params: &BTreeSet<ParamName>,
    ) -> Result<Rules, Vec<RuleProblem>> {
        let parsed = parsed.and_then(|rules| named(rules).and_then(unreserved).ok());
        if let Some(good) = parsed.and_then(|rules| self.judged(validators, rules, scope, params).ok()) {
            return Ok(good);
        }
        // What is wrong is told of the file as it stands alone.
        self.judged(validators, own_rules(bytes)?, scope, params)
    }

    fn judged(
        &self,
        validators: &mut Validators,
        rules: Vec<Rule>,
        scope: &ScopeId,
        params: &BTreeSet<ParamName>,
    ) -> Result<Rules, Vec<RuleProblem>> {
        let wanted = ResourceConstraint::Eq(self.names.scope(scope));
        let foreign = rules.iter().filter(|rule| rule.resource_constraint() != wanted);
        let problems: Vec<_> = foreign
            .map(|rule| {
                problem(format!("{}: every rule here must say resource == Scope::\"{scope}\" in its head", rule.id()))
            })
            .collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        if !rules.iter().any(|rule| rule.effect() == Effect::Permit) {
            return Err(vec![problem("has no permit rule, so nobody may begin this scope")]);
        }
        let warnings = validate(&*validators.exact(params).map_err(|problem| vec![problem])?, &rules)?;
        Ok(Rules { rules, warnings })
    }

    /// Joins a decision's rules and the boundaries into a slice.
    ///
    /// # Errors
    /// An `@id` that both use.
    pub(super) fn slice(
        &self,
        scope: &ScopeId,
        decision: &document::Decision,
        ends: &Ends,
        rules: &[Rule],
        boundaries: &[Rule],
    ) -> Result<Slice, RuleProblem> {
        let resource = self.names.scope(scope);
        let mut attributes = HashMap::from([
            ("tier".to_owned(), RestrictedExpression::new_string(decision.tier.as_str().to_owned())),
            ("kind".to_owned(), RestrictedExpression::new_string(decision.kind.as_str().to_owned())),
            ("review_until".to_owned(), datetime(decision.review_until)),
            ("ends_at".to_owned(), datetime(ends.earliest(decision))),
        ]);
        if let Some(leaver) = &ends.owner {
            attributes.insert("owner_until".to_owned(), datetime(leaver.stops_at));
        }
        if let Some(at) = decision.expires_at {
            attributes.insert("expires_at".to_owned(), datetime(at));
        }
        let broken = |error: &dyn std::fmt::Display| problem(error.to_string());
        let entity = Entity::new(resource.clone(), attributes, HashSet::new()).map_err(|error| broken(&error))?;
        let entities = Entities::from_entities([entity], None).map_err(|error| broken(&error))?;
        let permits = || rules.iter().filter(|rule| rule.effect() == Effect::Permit);
        let named = permits().filter_map(|rule| match rule.principal_constraint() {
            PrincipalConstraint::Eq(uid) => Some(uid),
            _ => None,
        });
        let open =
            |rule: &Rule| matches!(rule.principal_constraint(), PrincipalConstraint::Any | PrincipalConstraint::Is(_));
        let anyone = permits().any(|rule| open(rule) && !rule.has_non_scope_constraint());
        let named = named.collect();
        let all = self.join(rules, boundaries)?;
        Ok(Slice { all, resource, entities, named, anyone })
    }

    /// A decision's rules, the boundaries, and the folded guardrails: the part of a slice that can fail.
    ///
    /// # Errors
    /// An `@id` that two of them use.
    pub(super) fn join(&self, rules: &[Rule], boundaries: &[Rule]) -> Result<PolicySet, RuleProblem> {
        policy_set(rules.iter().chain(boundaries).chain([&self.folded]))
    }

    /// Puts an ask whose parameters were accepted into Cedar's terms. `ttl` is what the task would get, in whole seconds.
    ///
    /// # Errors
    /// Never for accepted asks; a text, for the audit log.
    pub(super) fn question(
        &self,
        slice: &Slice,
        caller: &Caller,
        ask: &Ask,
        ttl: u64,
        now: Timestamp,
    ) -> Result<Question, String> {
        let principal = self.names.workload(caller.spiffe_id().as_str());
        let context = context(self.verified(caller, now)?, ask, ttl)?;
        // Not checked against the schema again: it is built here in just that shape, which tests hold it to.
        Request::new(principal, self.names.begin.clone(), slice.resource.clone(), context, None)
            .map(|request| Question { request })
            .map_err(|error| error.to_string())
    }

    /// `context.verified`, with the time in whole seconds: no bound that a file can set is finer.
    fn verified(&self, caller: &Caller, now: Timestamp) -> Result<RestrictedExpression, String> {
        let (spiffe_id, proof, second) = (caller.spiffe_id(), caller.proof(), now.floor_to_second());
        let known = self.verified.load();
        let same =
            |known: &&Arc<Verified>| known.second == second && known.proof == proof && known.spiffe_id == *spiffe_id;
        if let Some(known) = known.as_ref().filter(same) {
            return Ok(known.record.clone());
        }
        let record = record([
            Some(("spiffe_id", string(spiffe_id.as_str()))),
            Some(("trust_domain", string(spiffe_id.trust_domain().as_str()))),
            Some(("path", string(spiffe_id.path()))),
            Some(("proof", string(proof.as_str()))),
            Some(("now", datetime(second))),
        ])?;
        let made = Verified { spiffe_id: spiffe_id.clone(), proof, second, record: record.clone() };
        self.verified.store(Some(Arc::new(made)));
        Ok(record)
    }

    /// What the scope's own rules, the boundaries and the guardrails say together. A permit is one of each of them; why
    /// there is none, only asking them apart can tell.
    pub(super) fn ask_all(&self, slice: &Slice, question: &Question) -> Verdict {
        verdict(self.authorizer.is_authorized(&question.request, &slice.all, &slice.entities))
    }

    /// What the scope's own rules and the boundaries say.
    pub(super) fn ask_rules(&self, slice: &Slice, question: &Question) -> Verdict {
        let mut rules = slice.all.clone();
        match rules.remove_static(PolicyId::new(FOLDED)) {
            Ok(_) => verdict(self.authorizer.is_authorized(&question.request, &rules, &slice.entities)),
            Err(error) => Verdict::Error(error.to_string()),
        }
    }

    /// The guardrails that forbid; an error of one is an error of all.
    ///
    /// # Errors
    /// A text for the audit log.
    pub(super) fn ask_guardrails(&self, slice: &Slice, question: &Question) -> Result<Vec<String>, String> {
        let response = self.authorizer.is_authorized(&question.request, &self.guardrails, &slice.entities);
        match verdict(response) {
            Verdict::Deny(ids) => Ok(ids),
            // A guardrail only forbids.
            Verdict::Permit(ids) => Err(format!("guardrails permitted: {ids:?}")),
            Verdict::Error(error) => Err(error),
        }
    }
}

pub(super) fn first(problems: Vec<RuleProblem>) -> RuleProblem {
    problems.into_iter().next().unwrap_or_else(|| problem("unknown"))
}

fn verdict(response: Response) -> Verdict {
    let diagnostics = response.diagnostics();
    if let Some(error) = diagnostics.errors().next() {
        return Verdict::Error(error.to_string());
    }
    let mut ids: Vec<String> = diagnostics.reason().map(ToString::to_string).collect();
    ids.sort_unstable();
    match response.decision() {
        Decision::Allow => Verdict::Permit(ids),
        Decision::Deny => Verdict::Deny(ids),
    }
}

fn string(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

fn datetime(at: Timestamp) -> RestrictedExpression {
    RestrictedExpression::new_datetime(at.to_string())
}

fn record<const N: usize>(members: [Option<(&str, RestrictedExpression)>; N]) -> Result<RestrictedExpression, String> {
    let members = members.into_iter().flatten().map(|(name, value)| (name.to_owned(), value));
    RestrictedExpression::new_record(members).map_err(|error| error.to_string())
}

fn context(verified: RestrictedExpression, ask: &Ask, ttl: u64) -> Result<Context, String> {
    let params = ask.params.iter().map(|(name, value)| (name.as_str().to_owned(), string(value)));
    let params = RestrictedExpression::new_record(params).map_err(|error| error.to_string())?;
    let said = |text: &Option<String>| text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(string);
    let asserted = record([
        Some(("params", params)),
        Some(("ttl", RestrictedExpression::new_long(i64::try_from(ttl).unwrap_or(i64::MAX)))),
        said(&ask.reason).map(|reason| ("reason", reason)),
        said(&ask.approval).map(|approval| ("approval", approval)),
    ])?;
    Context::from_pairs([("verified".to_owned(), verified), ("asserted".to_owned(), asserted)])
        .map_err(|error| error.to_string())
}

/// What parts the files that are parsed together.
const MARK: &str = r#"@id("guardrail-end-of-file")forbid(principal,action,resource);"#;

/// Parses the rules of several files as one text: Cedar works out the tables of its lexer anew for each text, which takes as
/// long as the rules of one scope. `None` for what must be parsed alone, to know what is wrong with it or whose it is.
pub(super) fn parse_together(files: &[&[u8]]) -> Vec<Option<Vec<Rule>>> {
    match joined(files) {
        Some(parts) => parts.into_iter().map(Some).collect(),
        None => files.iter().map(|_| None).collect(),
    }
}

/// The rules by file. No file holds the mark, and each mark is found again as a rule of its own: so the text between two of
/// them was parsed as if it were alone.
fn joined(files: &[&[u8]]) -> Option<Vec<Vec<Rule>>> {
    let mut text = String::new();
    for bytes in files {
        let file = std::str::from_utf8(bytes).ok().filter(|file| !file.contains(MARK))?;
        text.extend([file, "\n", MARK, "\n"]);
    }
    let set: PolicySet = text.parse().ok()?;
    if set.templates().next().is_some() {
        return None;
    }
    // Cedar numbers them as they stand.
    let number = |rule: &Rule| AsRef::<str>::as_ref(rule.id()).strip_prefix("policy")?.parse::<usize>().ok();
    let mut rules = set.policies().map(|rule| Some((number(rule)?, rule))).collect::<Option<Vec<_>>>()?;
    rules.sort_unstable_by_key(|(number, _)| *number);
    let mut parts: Vec<_> = rules.split(|(_, rule)| rule.to_string() == MARK).collect();
    // After the last mark there is nothing.
    let rest = parts.pop()?;
    let own = |part: &[(usize, &Rule)]| part.iter().map(|(_, rule)| (*rule).clone()).collect();
    (rest.is_empty() && parts.len() == files.len()).then(|| parts.into_iter().map(own).collect())
}

/// Parses a file's rules; each gets its `@id` as its policy id.
fn parse(bytes: &[u8]) -> Result<Vec<Rule>, Vec<RuleProblem>> {
    let one = |message: String| vec![problem(message)];
    let text = std::str::from_utf8(bytes).map_err(|_| one("is not UTF-8 text".to_owned()))?;
    let set: PolicySet = text.parse().map_err(|error: cedar_policy::ParseErrors| one(error.to_string()))?;
    if set.templates().next().is_some() {
        return Err(one("has a template (?principal or ?resource): write the names out".to_owned()));
    }
    named(set.policies().cloned().collect())
}

/// Gives each rule of a file its `@id` as its policy id.
fn named(found: Vec<Rule>) -> Result<Vec<Rule>, Vec<RuleProblem>> {
    if found.len() > MAX_RULES {
        return Err(vec![problem(format!("has more than {MAX_RULES} rules"))]);
    }
    let mut problems = Vec::new();
    let mut rules = BTreeMap::new();
    for rule in found {
        match rule.annotation("id").filter(|id| is_rule_id(id)).map(str::to_owned) {
            None => problems.push(problem(format!(
                "rule '{}' needs @id(\"…\") of A-Z a-z 0-9 . _ : / -, at most 128 characters",
                beginning(&rule)
            ))),
            Some(id) => {
                let renamed = rule.new_id(PolicyId::new(&id));
                if rules.insert(id.clone(), renamed).is_some() {
                    problems.push(problem(format!("two rules have @id(\"{id}\"): ids must be unique")));
                }
            }
        }
    }
    if problems.is_empty() { Ok(rules.into_values().collect()) } else { Err(problems) }
}

/// Parses a repository's rules, which may not take the names of the binary's own.
pub(super) fn own_rules(bytes: &[u8]) -> Result<Vec<Rule>, Vec<RuleProblem>> {
    unreserved(parse(bytes)?)
}

fn unreserved(rules: Vec<Rule>) -> Result<Vec<Rule>, Vec<RuleProblem>> {
    let reserved = rules.iter().filter(|rule| AsRef::<str>::as_ref(rule.id()).starts_with(RESERVED));
    let problems: Vec<_> = reserved
        .map(|rule| problem(format!("{}: ids that begin with {RESERVED} are the binary's own", rule.id())))
        .collect();
    if problems.is_empty() { Ok(rules) } else { Err(problems) }
}

fn is_rule_id(id: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'/' | b'-');
    (1..=128).contains(&id.len()) && id.bytes().all(allowed)
}

fn beginning(rule: &Rule) -> String {
    rule.to_string().split_whitespace().collect::<Vec<_>>().join(" ").chars().take(80).collect()
}

/// Strict validation; returns the warnings.
fn validate(validator: &Validator, rules: &[Rule]) -> Result<Vec<String>, Vec<RuleProblem>> {
    let set = policy_set(rules).map_err(|problem| vec![problem])?;
    let result = validator.validate(&set, ValidationMode::Strict);
    let problems: Vec<_> = result.validation_errors().map(|error| problem(error.to_string())).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(result.validation_warnings().map(ToString::to_string).collect())
}

fn policy_set<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Result<PolicySet, RuleProblem> {
    let mut set = PolicySet::new();
    for rule in rules {
        let taken = |_| problem(format!("two rules have @id(\"{}\"): ids must be unique", rule.id()));
        set.add(rule.clone()).map_err(taken)?;
    }
    Ok(set)
}

#[cfg(test)]
mod tests;
