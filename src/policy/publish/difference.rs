//! What changed between two versions of a scope or a grant, in plain words, and whether it lets more through.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use toml::{Table, Value};

use super::super::document::Digest;
use super::super::repository::{MAX_FILE, metadata};
use super::{PublishError, read_file};
pub use crate::provider::{Difference, Direction};
use crate::provider::{GrantTemplate, difference, one_line};

/// The file at `path` with exactly this digest, from what is or once was published at `out`: old targets stay there.
///
/// # Errors
/// It is there and cannot be read.
pub fn published(out: &Path, path: &str, digest: &Digest) -> Result<Option<Bytes>, PublishError> {
    let bytes = read_file(&out.join("targets").join(metadata::target_name(path, digest)), MAX_FILE)?;
    Ok(bytes.filter(|bytes| Digest::of(bytes) == *digest))
}

/// The differences from `old` to `new`, two files of one kind. Empty for files that are not TOML.
pub fn between(old: &[u8], new: &[u8]) -> Vec<Difference> {
    let read = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|text| toml::from_str::<Table>(text).ok());
    let (Some(old), Some(new)) = (read(old), read(new)) else { return Vec::new() };
    let mut found = Vec::new();
    for key in names(&old, &new) {
        match (key, old.get(key), new.get(key)) {
            (_, old, new) if old == new => {}
            ("params", old, new) => params(old, new, &mut found),
            (key, old, new) => match GrantTemplate::differences(key, old, new) {
                Some(differences) => found.extend(differences),
                None => found.push(member(key, old, new)),
            },
        }
    }
    if found.is_empty() {
        found.push(difference("only spaces, comments or the order of lines changed", Direction::Other));
    }
    found
}

fn names<'a>(old: &'a Table, new: &'a Table) -> BTreeSet<&'a str> {
    old.keys().chain(new.keys()).map(String::as_str).collect()
}

fn member(key: &str, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let duration = |value: Option<&Value>| humantime::parse_duration(value?.as_str()?).ok();
    let way = match (key, old, new) {
        ("max_session", old, new) => match (duration(old), duration(new)) {
            (Some(old), Some(new)) => Direction::of(new > old),
            _ => Direction::Other,
        },
        ("accept_role_scope", _, new) => Direction::of(new.and_then(Value::as_bool) == Some(true)),
        _ => Direction::Other,
    };
    let what = match (old, new) {
        (Some(old), Some(new)) => format!("{key} was {}, is {}", one_line(old), one_line(new)),
        (None, Some(new)) => format!("{key} added: {}", one_line(new)),
        (Some(old), None) => format!("{key} removed: it was {}", one_line(old)),
        (None, None) => key.to_owned(),
    };
    difference(what, way)
}

fn params(old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Difference>) {
    let empty = Table::new();
    let table = |value: Option<&Value>| value.and_then(Value::as_table).cloned().unwrap_or_default();
    let (old, new) = (table(old), table(new));
    for name in names(&old, &new) {
        let max = |table: &Table| table.get(name).and_then(|spec| spec.get("max")).and_then(Value::as_integer);
        match (old.get(name), new.get(name)) {
            (None, None) => {}
            (old, new) if old == new => {}
            (None, Some(_)) => found.push(difference(format!("parameter {name} added"), Direction::Other)),
            (Some(_), None) => found.push(difference(format!("parameter {name} removed"), Direction::Other)),
            (Some(before), Some(after)) => match (max(&old), max(&new)) {
                (Some(was), Some(is)) if was != is => {
                    found
                        .push(difference(format!("parameter {name}: max was {was}, is {is}"), Direction::of(is > was)));
                }
                _ => {
                    let members = names(before.as_table().unwrap_or(&empty), after.as_table().unwrap_or(&empty));
                    let list = members.into_iter().collect::<Vec<_>>().join(", ");
                    found.push(difference(format!("parameter {name} changed ({list})"), Direction::Other));
                }
            },
        }
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
            .map(|change| format!("{}{}", change.what, change.direction.suffix()))
            .collect()
    }

    #[test]
    fn reports_changes_of_a_grant_as_wider_or_narrower() {
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
    fn shows_added_and_removed_statements_whole() {
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
    fn reports_what_changed_in_a_vault_grant() {
        let old = "schema = 1\nprovider = \"vault\"\nrole = \"ledger\"\naudience = \"vault\"\n\
                   read = \"database/creds/${param.customer}\"\nmax_session = \"5m\"\n";
        let new = old.replace("${param.customer}", "all").replace("5m", "10m").replace("\"ledger\"", "\"admin\"");
        let told: Vec<_> = between(old.as_bytes(), new.as_bytes())
            .iter()
            .map(|change| format!("{}{}", change.what, change.direction.suffix()))
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
    fn reports_changes_of_a_scope_as_wider_or_narrower() {
        let old = "schema = 1\npurpose = \"a\"\n[params]\ncustomer = { type = \"segment\", max = 32 }\n";
        let new = "schema = 1\npurpose = \"b\"\n[params]\ncustomer = { type = \"segment\", max = 64 }\nx = { type = \"segment\", max = 1 }\n";
        let told: Vec<_> = between(old.as_bytes(), new.as_bytes()).iter().map(|c| c.what.clone()).collect();
        assert_eq!(told, ["parameter customer: max was 32, is 64", "parameter x added", "purpose was a, is b"]);
    }
}
