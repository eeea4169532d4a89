//! A session policy as a grant writes it: a JSON tree whose texts may hold `${param.NAME}`.
//!
//! Parameters are filled into parsed strings, never into text that is parsed afterwards, and a value's characters mean
//! nothing in a resource name; so no value can change the policy's structure or widen a pattern (threat T10).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{DocumentError, ParamName, ParamSpec, Params};

/// The longest session policy that STS takes, in characters of compact JSON (STS API, parameter `Policy`).
pub const MAX_SESSION_POLICY: usize = 2048;
/// The only policy language version in which `${…}` and all operators mean what they say.
const VERSION: &str = "2012-10-17";
/// As long as every cut that the exchange adds.
const SOME_CUT: &str = "2026-11-23T16:48:33Z";
const OPEN: &str = "${";

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
        let longest = declared.iter().map(|(name, spec)| (name.clone(), "x".repeat(usize::from(spec.max))));
        let size = with_cut(self.fill(&longest.collect())).to_string().len();
        if size > MAX_SESSION_POLICY {
            return Err(DocumentError::invalid(format!(
                "session_policy can become {size} bytes with the time cut and the longest parameters; STS takes \
                 {MAX_SESSION_POLICY}: shorten it, or the parameters' max"
            )));
        }
        Ok(())
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

fn fill(value: &mut Value, values: &Params) {
    match value {
        Value::String(text) => *text = fill_text(text, values),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, values)),
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, values)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// One pass from left to right: what a value brings in is never looked at again.
fn fill_text(text: &str, values: &Params) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPEN) {
        filled.push_str(before);
        let Some((reference, tail)) = after.split_once('}') else { break };
        let name = reference.strip_prefix("param.").and_then(|name| name.parse::<ParamName>().ok());
        // INVARIANT: parse() let only ${param.NAME} pass and check_params() only declared names.
        if let Some(value) = name.and_then(|name| values.get(&name)) {
            filled.push_str(value);
        }
        rest = tail;
    }
    filled.push_str(rest);
    filled
}

/// The policy as the exchange sends it at the most: a version, and the cut in every Allow (decision 0005).
fn with_cut(mut policy: Value) -> Value {
    if let Value::Object(members) = &mut policy {
        members.entry("Version").or_insert_with(|| json!(VERSION));
        match members.get_mut("Statement") {
            Some(Value::Array(items)) => items.iter_mut().for_each(cut_statement),
            Some(statement) => cut_statement(statement),
            None => {}
        }
    }
    policy
}

fn cut_statement(statement: &mut Value) {
    let Value::Object(members) = statement else { return };
    if !is_allow(members) {
        return;
    }
    let condition = members.entry("Condition").or_insert_with(|| json!({}));
    if let Value::Object(operators) = condition {
        let operator = operators.entry("DateLessThan").or_insert_with(|| json!({}));
        if let Value::Object(keys) = operator {
            keys.insert("aws:CurrentTime".to_owned(), json!(SOME_CUT));
        }
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

/// STS: `Policy` is of U+0009, U+000A, U+000D and U+0020 to U+00FF. Control characters have no business here either.
fn check_characters(text: &str) -> Result<(), DocumentError> {
    if text.chars().all(|c| matches!(c, '\u{20}'..='\u{7e}' | '\u{a0}'..='\u{ff}')) {
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
    if key.contains(OPEN) {
        return Err(DocumentError::invalid("session_policy has ${…} in a key; it belongs in values"));
    }
    Ok(())
}

fn references(text: &str, params: &mut BTreeSet<ParamName>) -> Result<(), DocumentError> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(OPEN) {
        let (reference, tail) = after.split_once('}').unwrap_or((after, ""));
        let name = reference.strip_prefix("param.").and_then(|name| name.parse().ok());
        let known = name.filter(|_| after.contains('}')).ok_or_else(|| {
            DocumentError::invalid(format!(
                "session_policy has the unknown ${{{reference}}}: only ${{param.NAME}} is filled in"
            ))
        })?;
        params.insert(known);
        rest = tail;
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

#[cfg(test)]
mod tests;
