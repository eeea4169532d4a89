//! What stops at AWS the sessions that an entry of the kill list is about: sidecars stop serving and minting within 35 s,
//! but what they gave out lives on until its own end.
//!
//! The entry names no session, so the Deny goes by the form of session names (`WORKLOAD.SCOPE.TASK`, [`session_part`]) and
//! by the roles of the grants that are published.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::policy::document::{Decision, Grant, Scope};
use crate::provider::GrantTemplate;
use crate::provider::aws::deny::{Deny, Role};
use crate::task::session_part;

/// How long until every sidecar that reaches the repository knows of an entry.
const KNOWN: Duration = Duration::from_secs(35);

/// What goes for every pattern.
pub(super) const ALIKE: &str = "A pattern goes by the last part of a workload's or scope's name: on these roles it also stops those that end alike.";

/// One scope of what is published.
struct Found {
    id: String,
    decision: Decision,
    business_owner: Option<String>,
}

/// A Deny for each role that the entry `id` is about; `what` is its member and value, `None` where it stops everything.
pub(super) fn of_entry(
    files: &BTreeMap<String, Bytes>,
    what: Option<(&str, &str)>,
    id: &str,
    now: Timestamp,
) -> Vec<Deny> {
    let (mut roles, mut residual) = (BTreeMap::<Role, BTreeSet<String>>::new(), Duration::ZERO);
    for scope in scopes(files).filter(|scope| concerns(files, scope, what)) {
        for role in scope.decision.grants.iter().filter_map(|(grant, _)| aws_role(files, grant.as_str())) {
            residual = residual.max(scope.decision.caps.max_residual);
            roles.entry(role).or_default().insert(pattern(&scope, what));
        }
    }
    let until = now + KNOWN + residual;
    let deny = |(role, sessions): (Role, BTreeSet<String>)| Deny::new(role, id, sessions.into_iter().collect(), until);
    roles.into_iter().filter_map(deny).collect()
}

fn scopes(files: &BTreeMap<String, Bytes>) -> impl Iterator<Item = Found> {
    files.iter().filter_map(|(path, bytes)| {
        let id = path.strip_prefix("decisions/")?.strip_suffix(".toml")?.to_owned();
        let scope = files.get(&format!("scopes/{id}.toml")).and_then(|bytes| Scope::parse(bytes).ok());
        let decision = Decision::parse(bytes).ok()?;
        Some(Found { id, decision, business_owner: scope.map(|scope| scope.business_owner) })
    })
}

fn grant(files: &BTreeMap<String, Bytes>, id: &str) -> Option<Grant> {
    Grant::parse(files.get(&format!("grants/{id}.toml"))?).ok()
}

fn aws_role(files: &BTreeMap<String, Bytes>, id: &str) -> Option<Role> {
    let GrantTemplate::Aws(aws) = grant(files, id)?.template else { return None };
    Role::parse(&aws.role_arn)
}

/// Whether the entry stops something of `scope`, as far as its files tell.
fn concerns(files: &BTreeMap<String, Bytes>, scope: &Found, what: Option<(&str, &str)>) -> bool {
    let mut grants = scope.decision.grants.iter().map(|(grant, _)| grant);
    match what {
        Some(("scope", id)) => scope.id == id,
        Some(("grant", id)) => grants.any(|grant| grant.as_str() == id),
        Some(("owner", id)) => scope.decision.decision_owner == id || scope.business_owner.as_deref() == Some(id),
        Some(("provider", name)) => {
            let of = |id: &str| grant(files, id).is_some_and(|grant| grant.template.provider().as_str() == name);
            grants.any(|grant| of(grant.as_str()))
        }
        // workloads, tasks and everything: in any scope
        _ => true,
    }
}

fn pattern(scope: &Found, what: Option<(&str, &str)>) -> String {
    match what {
        // Ceph RGW's `*` ends at the first character that fits and does not look further, so each dot is written.
        Some(("task", id)) => format!("*.*.{id}"),
        Some(("spiffe_id", id)) => format!("{}.*.t-*", session_part(id)),
        Some(("trust_domain", _)) | None => "*.*.t-*".to_owned(),
        // scope, grant, owner, provider
        Some(_) => format!("*.{}.t-*", session_part(&scope.id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> BTreeMap<String, Bytes> {
        let decision = |owner: &str, residual: &str, grants: &str| {
            format!(
                "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"{owner}\"\nreview_by = 2027-02-01\n\
                 max_task = \"8h\"\nmax_residual = \"{residual}\"\ngrants = {{ {grants} }}\n"
            )
        };
        let aws = |role: &str| {
            format!(
                "schema = 1\nprovider = \"aws\"\nrole_arn = \"arn:aws:iam::111122223333:role/x/{role}\"\naccept_role_scope = true\n"
            )
        };
        let scope =
            |owner: &str| format!("schema = 1\npurpose = \"p\"\nbusiness_owner = \"{owner}\"\njustification = \"j\"\n");
        let vault = "schema = 1\nprovider = \"vault\"\nrole = \"r\"\naudience = \"vault\"\nread = \"database/creds/ro\"\n\
                     accept_role_scope = true\n";
        [
            ("decisions/eu/ledger-read.toml", decision("governance", "20m", "a = \"\", v = \"\"")),
            ("scopes/eu/ledger-read.toml", scope("finance")),
            ("decisions/archive.toml", decision("governance", "5m", "b = \"\"")),
            ("scopes/archive.toml", scope("records")),
            ("decisions/db.toml", decision("other", "1h", "v = \"\"")),
            ("grants/a.toml", aws("ledger")),
            ("grants/b.toml", aws("ledger")),
            ("grants/v.toml", vault.to_owned()),
        ]
        .into_iter()
        .map(|(path, text)| (path.to_owned(), Bytes::from(text)))
        .collect()
    }

    #[test]
    fn each_sort_of_entry_denies_the_sessions_that_it_stops_and_names_no_others() {
        let now = "2026-11-23T10:00:00Z".parse().unwrap();
        for (what, sessions, until) in [
            (Some(("scope", "eu/ledger-read")), Some("*:*.ledger-read.t-*"), "10:21:06"),
            (Some(("grant", "b")), Some("*:*.archive.t-*"), "10:06:06"),
            (Some(("owner", "finance")), Some("*:*.ledger-read.t-*"), "10:21:06"),
            (Some(("owner", "governance")), Some("*:*.archive.t-*\",\"*:*.ledger-read.t-*"), "10:21:06"),
            (Some(("provider", "aws")), Some("*:*.archive.t-*\",\"*:*.ledger-read.t-*"), "10:21:06"),
            (Some(("spiffe_id", "spiffe://a.test/ns/x/sa/report")), Some("*:report.*.t-*"), "10:21:06"),
            (Some(("task", "t-0123456789abcdefghjkmnpqrs")), Some("*:*.*.t-0123456789abcdefghjkmnpqrs"), "10:21:06"),
            (Some(("trust_domain", "a.test")), Some("*:*.*.t-*"), "10:21:06"),
            (None, Some("*:*.*.t-*"), "10:21:06"),
            (Some(("scope", "db")), None, ""),
            (Some(("owner", "nobody")), None, ""),
        ] {
            let denies = of_entry(&files(), what, "inc-7", now);
            let Some(sessions) = sessions else {
                assert!(denies.is_empty(), "{what:?}: {denies:?}");
                continue;
            };
            let [deny] = denies.as_slice() else { panic!("{what:?}: {denies:?}") };
            let condition = format!("\"aws:userid\":[\"{sessions}\"]");
            assert!(deny.policy().contains(&condition), "{what:?}: {}", deny.policy());
            let text = crate::cli::aws_deny::text(&denies, "w", "", &[]);
            for part in ["--role-name ledger --policy-name sidemint-deny-inc-7 ", until, "account 111122223333"] {
                assert!(text.contains(part), "{what:?}: {part}: {text}");
            }
        }
    }
}
