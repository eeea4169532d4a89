//! A session policy, from the grant file that writes it to the text that STS gets.
//!
//! Loader and exchange go through the same functions, so neither takes what the other refuses:
//! [`SessionPolicy::parse`] (shape and characters), [`SessionPolicy::fill`] (parameters), [`compile`] (the time cut and
//! the size). The loader compiles each policy once with every parameter at its longest.
//!
//! Parameters are filled into parsed strings, never into text that is parsed afterwards, and a value's characters mean
//! nothing in a resource name; so no value can change the policy's structure or widen a pattern (threat T10).

mod differences;

#[cfg(test)]
mod compile_tests;
#[cfg(test)]
mod template_tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::clock::Timestamp;
use crate::params::{self, Part};
use crate::provider::{DocumentError, ParamName, ParamSpec, Params};

pub(super) use differences::differences;

/// The longest session policy, in bytes of compact JSON. STS counts 2,048 characters (STS API, parameter `Policy`), Ceph
/// RGW bytes; bytes satisfy both.
pub const MAX_POLICY: usize = 2048;
/// The only policy language version in which `${…}` and all operators mean what they say.
const VERSION: &str = "2012-10-17";
const OPERATOR: &str = "DateLessThan";
const KEY: &str = "aws:CurrentTime";
/// As long as every cut that is written, for measuring.
const SOME_CUT: Timestamp = Timestamp::from_secs(1_795_452_513);

/// Why a session policy cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionPolicyError {
    /// Not an object with at least one statement that allows or denies. (RGW takes an empty policy for none at all.)
    #[error("the session policy is not an object with statements whose Effect is Allow or Deny")]
    Shape,
    /// A statement limits the time itself, so that the cut could not be told from it.
    #[error("the session policy already uses aws:CurrentTime, which Sidemint needs for the cut")]
    UsesCurrentTime,
    /// Larger than [`MAX_POLICY`]; holds its size in bytes.
    #[error("the session policy has {0} bytes, STS takes 2048: shorten the grant or its parameters")]
    TooLarge(usize),
    /// A character that STS does not take.
    #[error("the session policy has a character that STS does not take (U+{0:04X})")]
    Character(u32),
}

/// A session policy, checked; parameters not yet filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionPolicy {
    /// The tree as compact JSON: as a tree it takes ten times as much, and a policy may have thousands.
    json: Box<str>,
    params: Box<[ParamName]>,
}

impl SessionPolicy {
    /// Checks the TOML table of a grant.
    ///
    /// # Errors
    /// What IAM would refuse or understand differently, the time keys that the cut needs for itself, and unknown
    /// `${…}`.
    pub fn parse(table: toml::Table) -> Result<Self, DocumentError> {
        let template = json_of(toml::Value::Table(table))?;
        check_shape(&template)?;
        let mut params = BTreeSet::new();
        check_tree(&template, &mut params)?;
        // Whatever else would stand in the way of the cut.
        with_cut(template.clone(), Some(SOME_CUT)).map_err(|error| DocumentError::invalid(error.to_string()))?;
        Ok(Self { json: template.to_string().into(), params: params.into_iter().collect() })
    }

    /// The parameters it uses, in order.
    pub fn params(&self) -> &[ParamName] {
        &self.params
    }

    /// The tree as written, `${param.NAME}` and all.
    pub fn template(&self) -> Value {
        // INVARIANT: parse() wrote it from such a tree. Were it ever none, whoever is to send it refuses it.
        serde_json::from_str(&self.json).unwrap_or_default()
    }

    /// Checks that a scope declares every parameter used, and that the policy fits STS with each at its longest and the
    /// exchange's cut added.
    ///
    /// # Errors
    /// Says what to shorten or declare.
    pub fn check_params(&self, declared: &BTreeMap<ParamName, ParamSpec>) -> Result<(), DocumentError> {
        if let Some(name) = self.params.iter().find(|name| !declared.contains_key(*name)) {
            let message = format!("session_policy uses ${{param.{name}}}, which the scope does not declare");
            return Err(DocumentError::invalid(message));
        }
        match compile(Some(&self.fill(&params::longest(declared))), Some(SOME_CUT)) {
            Ok(_) => Ok(()),
            Err(SessionPolicyError::TooLarge(size)) => Err(DocumentError::invalid(format!(
                "session_policy can become {size} bytes with the time cut and the longest parameters; STS takes \
                 {MAX_POLICY}: shorten it, or the parameters' max"
            ))),
            Err(other) => Err(DocumentError::invalid(other.to_string())),
        }
    }

    /// The policy with `values` filled in. Values were accepted by their [`ParamSpec`] before.
    pub fn fill(&self, values: &Params) -> Value {
        let mut policy = self.template();
        if !self.params.is_empty() {
            fill(&mut policy, values);
        }
        policy
    }

    /// The statements as written.
    pub fn statements(&self) -> Vec<Map<String, Value>> {
        statements(&self.template()).into_iter().cloned().collect()
    }

    /// The Allow statements, for lint.
    pub fn allows(&self) -> Vec<Map<String, Value>> {
        self.statements().into_iter().filter(is_allow).collect()
    }
}

/// What to send as `Policy`: `policy` compacted and, with `cut`, allowing nothing from that instant on.
///
/// A grant without a session policy (it accepts the role's whole scope) needs none unless it is to be cut; then it
/// allows everything until the cut, which the role still narrows. Never an empty text.
///
/// # Errors
/// Says why the policy cannot be expressed.
pub fn compile(policy: Option<&Value>, cut: Option<Timestamp>) -> Result<Option<String>, SessionPolicyError> {
    let policy = match (policy, cut) {
        (Some(policy), _) => policy.clone(),
        (None, Some(_)) => json!({ "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] }),
        (None, None) => return Ok(None),
    };
    let text = with_cut(policy, cut)?.to_string();
    if let Some(c) = text.chars().find(|&c| !is_taken(c)) {
        return Err(SessionPolicyError::Character(c.into()));
    }
    if text.len() > MAX_POLICY {
        return Err(SessionPolicyError::TooLarge(text.len()));
    }
    Ok(Some(text))
}

/// `policy` with a version and, with `cut`, allowing nothing from that instant on.
fn with_cut(mut policy: Value, cut: Option<Timestamp>) -> Result<Value, SessionPolicyError> {
    let document = policy.as_object_mut().ok_or(SessionPolicyError::Shape)?;
    document.entry("Version").or_insert_with(|| VERSION.into());
    for statement in statements_mut(document)? {
        let allows = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            _ => return Err(SessionPolicyError::Shape),
        };
        if let (true, Some(cut)) = (allows, cut) {
            cut_statement(statement, cut)?;
        }
    }
    Ok(policy)
}

/// The statements, which IAM lets be a list or a single object; at least one.
fn statements_mut(document: &mut Map<String, Value>) -> Result<Vec<&mut Map<String, Value>>, SessionPolicyError> {
    let found: Option<Vec<_>> = match document.get_mut("Statement") {
        Some(Value::Array(list)) => list.iter_mut().map(Value::as_object_mut).collect(),
        Some(Value::Object(one)) => Some(vec![one]),
        _ => None,
    };
    found.filter(|list| !list.is_empty()).ok_or(SessionPolicyError::Shape)
}

/// INVARIANT: only `Allow` is ever cut, by `DateLessThan`: a date that a provider cannot read then fails closed, where
/// a `Deny` with `DateGreaterThan` would fail open (seen on Ceph RGW).
fn cut_statement(statement: &mut Map<String, Value>, cut: Timestamp) -> Result<(), SessionPolicyError> {
    let conditions = statement.entry("Condition").or_insert_with(|| Value::Object(Map::new()));
    let conditions = conditions.as_object_mut().ok_or(SessionPolicyError::Shape)?;
    for (operator, keys) in conditions.iter() {
        let keys = keys.as_object().ok_or(SessionPolicyError::Shape)?;
        // Key names are not case-sensitive at AWS; two values of one key are OR, so the later one would win.
        if keys.keys().any(|key| key.eq_ignore_ascii_case(KEY)) {
            return Err(SessionPolicyError::UsesCurrentTime);
        }
        // Two spellings of one operator: which one counts is the provider's secret.
        if operator != OPERATOR && operator.eq_ignore_ascii_case(OPERATOR) {
            return Err(SessionPolicyError::Shape);
        }
    }
    let keys = conditions.entry(OPERATOR).or_insert_with(|| Value::Object(Map::new()));
    let keys = keys.as_object_mut().ok_or(SessionPolicyError::Shape)?;
    // Whole seconds, rounded down: RGW takes a fraction for the next second.
    keys.insert(KEY.to_owned(), cut.floor_to_second().to_string().into());
    Ok(())
}

fn fill(value: &mut Value, values: &Params) {
    match value {
        Value::String(text) => *text = params::fill(text, values),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, values)),
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, values)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_allow(statement: &Map<String, Value>) -> bool {
    statement.get("Effect").and_then(Value::as_str) == Some("Allow")
}

fn statements(policy: &Value) -> Vec<&Map<String, Value>> {
    match policy.get("Statement") {
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_object).collect(),
        Some(Value::Object(one)) => vec![one],
        _ => Vec::new(),
    }
}

/// The shape of an identity policy (IAM policy grammar), of which a session policy is one.
fn check_shape(policy: &Value) -> Result<(), DocumentError> {
    let wrong = |what: &str| Err(DocumentError::invalid(format!("session_policy {what}")));
    let Value::Object(members) = policy else { return wrong("must be a table") };
    if let Some(key) = members.keys().find(|key| !matches!(key.as_str(), "Version" | "Id" | "Statement")) {
        return wrong(&format!("has the unknown member {key:?}"));
    }
    if members.get("Version").is_some_and(|version| version != VERSION) {
        return wrong(&format!("must have Version = \"{VERSION}\", or none"));
    }
    let count = match members.get("Statement") {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(_)) => 1,
        _ => return wrong("must have Statement tables"),
    };
    let statements = statements(policy);
    if statements.is_empty() || statements.len() != count {
        return wrong("must have Statement tables");
    }
    for statement in &statements {
        check_statement(statement)?;
    }
    if !statements.iter().any(|statement| is_allow(statement)) {
        return wrong("allows nothing: it needs a Statement with Effect = \"Allow\"");
    }
    Ok(())
}

fn check_statement(statement: &Map<String, Value>) -> Result<(), DocumentError> {
    let wrong = |what: &str| Err(DocumentError::invalid(format!("session_policy: a Statement {what}")));
    let known = ["Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"];
    if let Some(key) = statement.keys().find(|key| !known.contains(&key.as_str())) {
        return wrong(&format!("has the unknown member {key:?}"));
    }
    if !matches!(statement.get("Effect").and_then(Value::as_str), Some("Allow" | "Deny")) {
        return wrong("must have Effect = \"Allow\" or \"Deny\"");
    }
    for (member, opposite) in [("Action", "NotAction"), ("Resource", "NotResource")] {
        let ((Some(value), None) | (None, Some(value))) = (statement.get(member), statement.get(opposite)) else {
            return wrong(&format!("must have either {member} or {opposite}"));
        };
        if !is_texts(value) {
            return wrong(&format!("must have one or more texts as {member}"));
        }
    }
    let Some(condition) = statement.get("Condition") else { return Ok(()) };
    let Value::Object(operators) = condition else { return wrong("has a Condition that is no table") };
    // Two spellings of the operator that the cut needs: which one counts is the provider's secret.
    let misspelt = |key: &&String| **key != OPERATOR && key.eq_ignore_ascii_case(OPERATOR);
    if let Some(operator) = operators.keys().find(misspelt).filter(|_| is_allow(statement)) {
        return wrong(&format!("has the operator {operator}: write {OPERATOR}"));
    }
    let keys = |value: &Value| value.as_object().is_some_and(|keys| !keys.is_empty());
    if operators.is_empty() || !operators.values().all(keys) {
        return wrong("has a Condition that is not OPERATOR = { KEY = VALUE }");
    }
    Ok(())
}

fn is_texts(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => {
            !items.is_empty() && items.iter().all(|item| item.as_str().is_some_and(|t| !t.is_empty()))
        }
        _ => false,
    }
}

/// Every text and key of the tree: characters that STS takes, no time keys, no `${…}` but parameters.
fn check_tree(value: &Value, params: &mut BTreeSet<ParamName>) -> Result<(), DocumentError> {
    match value {
        Value::String(text) => {
            check_characters(text)?;
            references(text, params)
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_tree(item, params)),
        Value::Object(members) => members.iter().try_for_each(|(key, member)| {
            check_characters(key)?;
            check_key(key)?;
            check_tree(member, params)
        }),
        _ => Ok(()),
    }
}

/// Whether STS takes it: `Policy` is of U+0009, U+000A, U+000D and U+0020 to U+00FF (STS API). Control characters have no
/// business there, and JSON escapes those three.
fn is_taken(c: char) -> bool {
    matches!(c, '\u{20}'..='\u{7e}' | '\u{a0}'..='\u{ff}')
}

fn check_characters(text: &str) -> Result<(), DocumentError> {
    if text.chars().all(is_taken) {
        return Ok(());
    }
    Err(DocumentError::invalid("session_policy has a character that STS does not take"))
}

fn check_key(key: &str) -> Result<(), DocumentError> {
    // The cut rests on these keys; a grant that uses them itself could undo it (decision 0005). IAM ignores their case.
    if ["aws:currenttime", "aws:epochtime"].contains(&key.to_ascii_lowercase().as_str()) {
        return Err(DocumentError::invalid(format!(
            "session_policy uses {key}, which is kept for the time cut: leave time to max_residual"
        )));
    }
    if key.contains("${") {
        return Err(DocumentError::invalid("session_policy has ${…} in a key; it belongs in values"));
    }
    Ok(())
}

fn references(text: &str, found: &mut BTreeSet<ParamName>) -> Result<(), DocumentError> {
    for part in params::parts(text) {
        match part {
            Part::Text(_) => {}
            Part::Param(name) => drop(found.insert(name)),
            Part::Unknown(reference) => {
                return Err(DocumentError::invalid(format!(
                    "session_policy has the unknown ${{{reference}}}: only ${{param.NAME}} is filled in"
                )));
            }
        }
    }
    Ok(())
}

fn json_of(value: toml::Value) -> Result<Value, DocumentError> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => json!(number),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(json_of).collect::<Result<_, _>>()?),
        toml::Value::Table(members) => {
            let members = members.into_iter().map(|(key, member)| Ok((key, json_of(member)?)));
            Value::Object(members.collect::<Result<_, DocumentError>>()?)
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) => {
            return Err(DocumentError::invalid("session_policy has a fraction or date: write it as text in quotes"));
        }
    })
}
