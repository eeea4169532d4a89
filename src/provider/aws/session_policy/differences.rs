//! What changed between two versions of a session policy, in plain words.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::provider::{Difference, Direction, difference, one_line};

/// The statements of a session policy.
fn statements(policy: Option<&Value>) -> Vec<&Table> {
    match policy.and_then(|policy| policy.get("Statement")) {
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_table).collect(),
        Some(Value::Table(one)) => vec![one],
        _ => Vec::new(),
    }
}

/// What changed from `old` to `new`, the member `session_policy` of two versions of a grant.
pub(in crate::provider::aws) fn differences(old: Option<&Value>, new: Option<&Value>) -> Vec<Difference> {
    let mut found = Vec::new();
    session_policies(old, new, &mut found);
    found
}

fn session_policies(old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Difference>) {
    match (old, new) {
        (None, Some(_)) => {
            found.push(difference("session_policy added: tasks got all of the role before", Direction::Narrower))
        }
        (Some(_), None) => {
            found.push(difference("session_policy removed: every task gets all of the role", Direction::Wider))
        }
        _ => {}
    }
    if old.is_none() || new.is_none() {
        return;
    }
    let (mut old, mut new) = (statements(old), statements(new));
    // What is the same on both sides says nothing, wherever it stands.
    old.retain(|statement| {
        let same = new.iter().position(|other| other == statement);
        same.map(|at| new.remove(at)).is_none()
    });
    // A statement that has the same name, else the next one.
    for before in old {
        let named = before.get("Sid").and_then(|sid| new.iter().position(|other| other.get("Sid") == Some(sid)));
        let effect = || new.iter().position(|other| other.get("Effect") == before.get("Effect"));
        match named.or_else(effect) {
            Some(at) => statement(before, new.remove(at), found),
            None => {
                found.push(difference(format!("statement removed: {}", json(before)), Direction::of(!allows(before))))
            }
        }
    }
    for added in new {
        found.push(difference(format!("statement added: {}", json(added)), Direction::of(allows(added))));
    }
}

fn allows(statement: &Table) -> bool {
    statement.get("Effect").and_then(Value::as_str) == Some("Allow")
}

fn json(statement: &Table) -> String {
    serde_json::to_string(statement).unwrap_or_default()
}

/// What changed within one statement. More of a `Not…` member, or a condition, lets less through.
fn statement(old: &Table, new: &Table, found: &mut Vec<Difference>) {
    let allow = allows(new);
    if allows(old) != allow {
        found.push(difference(
            format!("Effect was {:?}, is {:?}", old.get("Effect"), new.get("Effect")),
            Direction::of(allow),
        ));
    }
    let keys: BTreeSet<&str> = old.keys().chain(new.keys()).map(String::as_str).collect();
    for key in keys.into_iter().filter(|key| !matches!(*key, "Effect" | "Sid")) {
        let (before, after) = (old.get(key), new.get(key));
        if before == after {
            continue;
        }
        if key == "Condition" {
            let (what, way) = match (before, after) {
                (Some(_), None) => ("removed", Direction::of(allow)),
                (None, Some(_)) => ("added", Direction::of(!allow)),
                _ => ("changed", Direction::Other),
            };
            let text = |value: Option<&Value>| value.map(Value::to_string).unwrap_or_else(|| "nothing".to_owned());
            found.push(difference(format!("Condition {what}: was {}, is {}", text(before), text(after)), way));
            continue;
        }
        let more_is_wider = allow != key.starts_with("Not");
        let (before, after) = (texts(before), texts(after));
        for text in after.difference(&before) {
            found.push(difference(format!("{key} {text} added"), Direction::of(more_is_wider)));
        }
        for text in before.difference(&after) {
            found.push(difference(format!("{key} {text} removed"), Direction::of(!more_is_wider)));
        }
    }
}

fn texts(value: Option<&Value>) -> BTreeSet<String> {
    match value {
        Some(Value::Array(items)) => items.iter().map(one_line).collect(),
        Some(other) => BTreeSet::from([one_line(other)]),
        None => BTreeSet::new(),
    }
}
