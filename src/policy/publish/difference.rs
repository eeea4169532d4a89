//! What changed between two versions of a scope or a grant, in plain words, and whether it lets more through.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use toml::{Table, Value};

use super::super::document::Digest;
use super::super::repository::{MAX_FILE, metadata};
use super::{PublishError, read_file};

/// Which way a change goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It lets more through.
    Wider,
    /// It lets less through.
    Narrower,
    /// It lets through something else, or nothing changes for tasks.
    Other,
}

impl Way {
    const fn of(wider: bool) -> Self {
        if wider { Self::Wider } else { Self::Narrower }
    }

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wider => "wider",
            Self::Narrower => "narrower",
            Self::Other => "other",
        }
    }

    /// In brackets, behind a line.
    pub const fn told(self) -> &'static str {
        match self {
            Self::Wider => " (wider)",
            Self::Narrower => " (narrower)",
            Self::Other => "",
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What, e.g. `Action s3:PutObject added`.
    pub what: String,
    /// Which way it goes.
    pub way: Way,
}

fn change(what: impl Into<String>, way: Way) -> Change {
    Change { what: what.into(), way }
}

/// The file at `path` with exactly this digest, from what is or once was published at `out`: old targets stay there.
///
/// # Errors
/// It is there and cannot be read.
pub fn published(out: &Path, path: &str, digest: &Digest) -> Result<Option<Bytes>, PublishError> {
    let bytes = read_file(&out.join("targets").join(metadata::target_name(path, digest)), MAX_FILE)?;
    Ok(bytes.filter(|bytes| Digest::of(bytes) == *digest))
}

/// The changes from `old` to `new`, two files of one kind. Files that are no TOML have no words: empty.
pub fn between(old: &[u8], new: &[u8]) -> Vec<Change> {
    let read = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|text| toml::from_str::<Table>(text).ok());
    let (Some(old), Some(new)) = (read(old), read(new)) else { return Vec::new() };
    let mut changes = Vec::new();
    for key in names(&old, &new) {
        match (key, old.get(key), new.get(key)) {
            (_, old, new) if old == new => {}
            ("session_policy", old, new) => session_policies(old, new, &mut changes),
            ("params", old, new) => params(old, new, &mut changes),
            (key, old, new) => changes.push(member(key, old, new)),
        }
    }
    if changes.is_empty() {
        changes.push(change("only spaces, comments or the order of lines changed", Way::Other));
    }
    changes
}

fn names<'a>(old: &'a Table, new: &'a Table) -> BTreeSet<&'a str> {
    old.keys().chain(new.keys()).map(String::as_str).collect()
}

/// A value on one line.
fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn member(key: &str, old: Option<&Value>, new: Option<&Value>) -> Change {
    let duration = |value: Option<&Value>| humantime::parse_duration(value?.as_str()?).ok();
    let way = match (key, old, new) {
        ("max_session", old, new) => match (duration(old), duration(new)) {
            (Some(old), Some(new)) => Way::of(new > old),
            _ => Way::Other,
        },
        ("accept_role_scope", _, new) => Way::of(new.and_then(Value::as_bool) == Some(true)),
        _ => Way::Other,
    };
    let what = match (old, new) {
        (Some(old), Some(new)) => format!("{key} was {}, is {}", short(old), short(new)),
        (None, Some(new)) => format!("{key} added: {}", short(new)),
        (Some(old), None) => format!("{key} removed: it was {}", short(old)),
        (None, None) => key.to_owned(),
    };
    change(what, way)
}

fn params(old: Option<&Value>, new: Option<&Value>, changes: &mut Vec<Change>) {
    let empty = Table::new();
    let table = |value: Option<&Value>| value.and_then(Value::as_table).cloned().unwrap_or_default();
    let (old, new) = (table(old), table(new));
    for name in names(&old, &new) {
        let max = |table: &Table| table.get(name).and_then(|spec| spec.get("max")).and_then(Value::as_integer);
        match (old.get(name), new.get(name)) {
            (None, None) => {}
            (old, new) if old == new => {}
            (None, Some(_)) => changes.push(change(format!("parameter {name} added"), Way::Other)),
            (Some(_), None) => changes.push(change(format!("parameter {name} removed"), Way::Other)),
            (Some(before), Some(after)) => match (max(&old), max(&new)) {
                (Some(was), Some(is)) if was != is => {
                    changes.push(change(format!("parameter {name}: max was {was}, is {is}"), Way::of(is > was)));
                }
                _ => {
                    let members = names(before.as_table().unwrap_or(&empty), after.as_table().unwrap_or(&empty));
                    let list = members.into_iter().collect::<Vec<_>>().join(", ");
                    changes.push(change(format!("parameter {name} changed ({list})"), Way::Other));
                }
            },
        }
    }
}

/// The statements of a session policy.
fn statements(policy: Option<&Value>) -> Vec<&Table> {
    match policy.and_then(|policy| policy.get("Statement")) {
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_table).collect(),
        Some(Value::Table(one)) => vec![one],
        _ => Vec::new(),
    }
}

fn session_policies(old: Option<&Value>, new: Option<&Value>, changes: &mut Vec<Change>) {
    match (old, new) {
        (None, Some(_)) => {
            changes.push(change("session_policy added: tasks got all of the role before", Way::Narrower))
        }
        (Some(_), None) => changes.push(change("session_policy removed: every task gets all of the role", Way::Wider)),
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
            Some(at) => statement(before, new.remove(at), changes),
            None => changes.push(change(format!("statement removed: {}", json(before)), Way::of(!allows(before)))),
        }
    }
    for added in new {
        changes.push(change(format!("statement added: {}", json(added)), Way::of(allows(added))));
    }
}

fn allows(statement: &Table) -> bool {
    statement.get("Effect").and_then(Value::as_str) == Some("Allow")
}

fn json(statement: &Table) -> String {
    serde_json::to_string(statement).unwrap_or_default()
}

/// What changed within one statement. More of a `Not…` member, or a condition, lets less through.
fn statement(old: &Table, new: &Table, changes: &mut Vec<Change>) {
    let allow = allows(new);
    if allows(old) != allow {
        changes.push(change(format!("Effect was {:?}, is {:?}", old.get("Effect"), new.get("Effect")), Way::of(allow)));
    }
    for key in names(old, new).into_iter().filter(|key| !matches!(*key, "Effect" | "Sid")) {
        let (before, after) = (old.get(key), new.get(key));
        if before == after {
            continue;
        }
        if key == "Condition" {
            let (what, way) = match (before, after) {
                (Some(_), None) => ("removed", Way::of(allow)),
                (None, Some(_)) => ("added", Way::of(!allow)),
                _ => ("changed", Way::Other),
            };
            let text = |value: Option<&Value>| value.map(Value::to_string).unwrap_or_else(|| "nothing".to_owned());
            changes.push(change(format!("Condition {what}: was {}, is {}", text(before), text(after)), way));
            continue;
        }
        let more_is_wider = allow != key.starts_with("Not");
        let (before, after) = (texts(before), texts(after));
        for text in after.difference(&before) {
            changes.push(change(format!("{key} {text} added"), Way::of(more_is_wider)));
        }
        for text in before.difference(&after) {
            changes.push(change(format!("{key} {text} removed"), Way::of(!more_is_wider)));
        }
    }
}

fn texts(value: Option<&Value>) -> BTreeSet<String> {
    match value {
        Some(Value::Array(items)) => items.iter().map(short).collect(),
        Some(other) => BTreeSet::from([short(other)]),
        None => BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANT: &str = r#"schema = 1
provider = "aws"
role_arn = "arn:aws:iam::111122223333:role/ledger"
[[session_policy.Statement]]
Effect = "Allow"
Action = ["s3:GetObject"]
Resource = ["arn:aws:s3:::ledger/${param.customer}/*"]
[[session_policy.Statement]]
Effect = "Deny"
Action = "s3:GetObject"
Resource = "arn:aws:s3:::ledger/c-13/*"
"#;

    fn told(new: &str) -> Vec<String> {
        between(GRANT.as_bytes(), new.as_bytes())
            .iter()
            .map(|change| format!("{}{}", change.what, change.way.told()))
            .collect()
    }

    #[test]
    fn says_which_way_a_grant_changed() {
        let more = GRANT.replace("[\"s3:GetObject\"]", "[\"s3:GetObject\", \"s3:PutObject\"]");
        assert_eq!(told(&more), ["Action s3:PutObject added (wider)"]);
        let wide = GRANT.replace("[\"arn:aws:s3:::ledger/${param.customer}/*\"]", "\"*\"");
        assert_eq!(
            told(&wide),
            ["Resource * added (wider)", "Resource arn:aws:s3:::ledger/${param.customer}/* removed (narrower)"]
        );
        let denied = GRANT.replace("Action = \"s3:GetObject\"", "Action = [\"s3:GetObject\", \"s3:GetObjectAcl\"]");
        assert_eq!(told(&denied), ["Action s3:GetObjectAcl added (narrower)"]);
        let role = GRANT.replace("role/ledger", "role/admin");
        assert_eq!(
            told(&role),
            ["role_arn was arn:aws:iam::111122223333:role/ledger, is arn:aws:iam::111122223333:role/admin"]
        );
    }

    #[test]
    fn a_statement_that_goes_or_comes_is_told_whole() {
        let at = GRANT.find("[[session_policy.Statement]]\nEffect = \"Deny\"").unwrap();
        assert_eq!(
            told(&GRANT[..at]),
            [
                r#"statement removed: {"Action":"s3:GetObject","Effect":"Deny","Resource":"arn:aws:s3:::ledger/c-13/*"} (wider)"#
            ]
        );
        let before = GRANT.find("[[session_policy.Statement]]").unwrap();
        let all = format!("{}accept_role_scope = true\n", &GRANT[..before]);
        assert_eq!(
            told(&all),
            [
                "accept_role_scope added: true (wider)",
                "session_policy removed: every task gets all of the role (wider)"
            ]
        );
        assert_eq!(told(&format!("# why\n{GRANT}")), ["only spaces, comments or the order of lines changed"]);
    }

    #[test]
    fn says_what_changed_in_a_vault_grant() {
        let old = "schema = 1\nprovider = \"vault\"\nrole = \"ledger\"\naudience = \"vault\"\n\
                   read = \"database/creds/${param.customer}\"\nmax_session = \"5m\"\n";
        let new = old.replace("${param.customer}", "all").replace("5m", "10m").replace("\"ledger\"", "\"admin\"");
        let told: Vec<_> = between(old.as_bytes(), new.as_bytes())
            .iter()
            .map(|change| format!("{}{}", change.what, change.way.told()))
            .collect();
        assert_eq!(
            told,
            [
                "max_session was 5m, is 10m (wider)",
                "read was database/creds/${param.customer}, is database/creds/all",
                "role was ledger, is admin"
            ]
        );
    }

    #[test]
    fn says_which_way_a_scope_changed() {
        let old = "schema = 1\npurpose = \"a\"\n[params]\ncustomer = { type = \"segment\", max = 32 }\n";
        let new = "schema = 1\npurpose = \"b\"\n[params]\ncustomer = { type = \"segment\", max = 64 }\nx = { type = \"segment\", max = 1 }\n";
        let told: Vec<_> = between(old.as_bytes(), new.as_bytes()).iter().map(|c| c.what.clone()).collect();
        assert_eq!(told, ["parameter customer: max was 32, is 64", "parameter x added", "purpose was a, is b"]);
    }
}
