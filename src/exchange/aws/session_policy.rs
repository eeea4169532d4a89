//! The session policy as STS gets it: compact, cut where STS cannot end the session soon enough, checked for size
//! and characters before anything is sent.

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use crate::clock::Timestamp;

/// The longest session policy, in bytes. STS counts 2,048 characters, Ceph RGW bytes; bytes satisfy both.
pub const MAX_POLICY: usize = 2048;

const OPERATOR: &str = "DateLessThan";
const KEY: &str = "aws:CurrentTime";

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
    /// A character outside U+0009, U+000A, U+000D, U+0020 to U+00FF (STS `sessionPolicyDocumentType`).
    #[error("the session policy has a character that STS does not take (U+{0:04X})")]
    Character(u32),
}

/// What to send as `Policy`: `policy` compacted and, with `cut`, allowing nothing from that instant on.
///
/// A grant without a session policy (it accepts the role's whole scope) needs none unless it is to be cut; then it
/// allows everything until the cut, which the role still narrows. Never an empty text.
///
/// # Errors
/// Says why the policy cannot be expressed.
pub fn compile(policy: Option<&Value>, cut: Option<Timestamp>) -> Result<Option<String>, SessionPolicyError> {
    let mut policy = match (policy, cut) {
        (Some(policy), _) => policy.clone(),
        (None, Some(_)) => json!({ "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] }),
        (None, None) => return Ok(None),
    };
    let document = policy.as_object_mut().ok_or(SessionPolicyError::Shape)?;
    document.entry("Version").or_insert_with(|| "2012-10-17".into());
    for statement in statements(document)? {
        let allows = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            _ => return Err(SessionPolicyError::Shape),
        };
        if let (true, Some(cut)) = (allows, cut) {
            cut_statement(statement, cut)?;
        }
    }
    let text = policy.to_string();
    check(&text)?;
    Ok(Some(text))
}

/// The statements, which IAM lets be a list or a single object; at least one.
fn statements(document: &mut Map<String, Value>) -> Result<Vec<&mut Map<String, Value>>, SessionPolicyError> {
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

fn check(text: &str) -> Result<(), SessionPolicyError> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{ff}');
    if let Some(c) = text.chars().find(|&c| !allowed(c)) {
        return Err(SessionPolicyError::Character(c.into()));
    }
    if text.len() > MAX_POLICY {
        return Err(SessionPolicyError::TooLarge(text.len()));
    }
    Ok(())
}
