//! `--print-aws-deny`: what stops the sessions of a task at AWS, from what the sidecar reports of its leases.

use super::client::{LeaseView, TaskView};
use super::plain;
use crate::provider::Provider;
use crate::provider::aws::deny::Lease;
pub(super) use crate::provider::aws::deny::{Deny, json, text};

/// What the Deny of a task does not reach beside that.
pub(super) const CHILDREN: &str =
    "tasks begun under this one: they ended with it, and each has a session of its own to deny";

/// What stops the sessions of `task` that may still be used, see [`Deny::of_leases`].
///
/// # Errors
/// In one line, where the sidecar does not name the session.
pub(super) fn of_task(task: &TaskView) -> Result<Vec<Deny>, String> {
    let usable = |lease: &&LeaseView| {
        lease.provider == Provider::Aws.as_str() && !matches!(lease.state.as_str(), "revoked" | "expired")
    };
    let of = |lease: &LeaseView| Lease {
        id: plain(&lease.id),
        session_name: lease.session_name.as_deref().map(plain),
        assumed_role: lease.assumed_role().map(plain),
        grant: lease.grant.as_deref().map(plain),
        usable_until: lease.usable_until,
    };
    let leases: Vec<_> = task.leases.iter().filter(usable).map(of).collect();
    Deny::of_leases(&task.id, &leases)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const SESSION: &str = "report.ledger-read.t-0123456789abcdefghjkmnpqrs";

    fn task(leases: &str) -> TaskView {
        let json = format!(
            r#"{{"id":"t-0123456789abcdefghjkmnpqrs","scope":"ledger-read","spiffe_id":"spiffe://a.test/report","tier":"baseline",
            "state":"ended","hold":false,"begun_at":"2026-11-23T10:00:00Z","expires_at":"2026-11-23T11:00:00Z","leases":[{leases}]}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn lease(id: &str, provider: &str, state: &str, until: &str, role: Option<&str>) -> String {
        let role =
            role.map(|role| format!(r#","assumed_role":"arn:aws:sts::111122223333:assumed-role/{role}/{SESSION}""#));
        format!(
            r#"{{"id":"{id}","provider":"{provider}","revocation":"expire","state":"{state}","usable_until":"2026-11-23T10:{until}Z",
            "session_name":"{SESSION}","grant":"ledger-aws"{}}}"#,
            role.unwrap_or_default()
        )
    }

    #[test]
    fn one_deny_covers_all_credentials_of_a_tasks_session() {
        let leases = [
            lease("l-1", "aws", "ending", "15:00", Some("ledger")),
            lease("l-2", "aws", "ending", "20:00.5", Some("ledger")),
            lease("l-3", "vault", "ending", "59:00", None),
            lease("l-4", "aws", "expired", "01:00", Some("old")),
            // no answer came for it: the role is that of the others
            lease("l-5", "aws", "intent", "19:00", None),
        ];
        let denies = of_task(&task(&leases.join(","))).unwrap();
        let [deny] = denies.as_slice() else { panic!("{denies:?}") };
        assert_eq!(
            deny.policy(),
            format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Sid":"SidemintDeny","Effect":"Deny","Action":"*","Resource":"*","Condition":{{"StringLike":{{"aws:userid":["*:{SESSION}"]}}}}}}]}}"#
            )
        );
        assert_eq!(deny.leases, ["l-1", "l-2", "l-5"]);
        assert_eq!(deny.keep_until.to_string(), "2026-11-23T10:20:31Z", "the last end, in whole seconds, and the skew");
        let json = json(&denies, &[CHILDREN]);
        let told = &json["denies"][0];
        assert_eq!([&told["role_name"], &told["account_id"]], ["ledger", "111122223333"]);
        assert_eq!(told["policy"]["Statement"][0]["Condition"]["StringLike"]["aws:userid"][0], format!("*:{SESSION}"));
        assert_eq!(told["apply"][8], deny.policy());
        assert_eq!(told["remove"][2], "delete-role-policy");
    }

    #[test]
    fn writes_one_deny_per_role_and_a_placeholder_for_an_unknown_role() {
        let leases =
            [lease("l-1", "aws", "ending", "15:00", Some("a")), lease("l-2", "aws", "issued", "16:00", Some("b"))];
        let roles: Vec<_> = of_task(&task(&leases.join(","))).unwrap().iter().map(Deny::whose).collect();
        assert_eq!(roles, ["role a of account 111122223333", "role b of account 111122223333"]);
        let lost = of_task(&task(&lease("l-1", "aws", "ending", "15:00", None))).unwrap();
        let text = text(&lost, "this session", "", &[]);
        assert!(text.contains("the role_arn of grant ledger-aws") && text.contains("--role-name '<ROLE>'"), "{text}");
        assert_eq!(json(&lost, &[])["denies"][0]["role_name"], Value::Null);
    }

    #[test]
    fn writes_no_deny_for_credentials_that_cannot_be_used() {
        let leases =
            [lease("l-1", "aws", "expired", "15:00", Some("a")), lease("l-2", "aws", "revoked", "16:00", Some("a"))];
        let denies = of_task(&task(&leases.join(","))).unwrap();
        assert!(denies.is_empty());
        assert!(text(&denies, "task t", "", &[]).contains("Nothing to deny at AWS"));
    }

    #[test]
    fn rejects_names_that_would_widen_the_deny_or_inject_into_a_shell() {
        for bad in ["*", "a'b", "a b", "a:b", "a?b", "$(id)", "a\\u0022b", ""] {
            let lease = lease("l-1", "aws", "ending", "15:00", Some("ledger")).replace(SESSION, bad);
            assert!(of_task(&task(&lease)).is_err(), "{bad}");
        }
        let text = r#"{"id":"l-1","provider":"aws","revocation":"expire","state":"ending","usable_until":"2026-11-23T10:15:00Z"}"#;
        assert!(of_task(&task(text)).unwrap_err().contains("does not name the session of lease l-1"));
        let odd = lease("l-1", "aws", "ending", "15:00", Some("a;b"));
        assert!(of_task(&task(&odd)).unwrap_err().contains("an invalid role"));
    }
}
