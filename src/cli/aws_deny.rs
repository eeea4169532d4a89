//! What stops sessions at AWS that are already out: an explicit Deny on their role, printed for somebody who may put it
//! there. Sidemint holds no IAM rights itself (docs/operations.md#when-access-must-end-now).
//!
//! AWS judges permissions anew at each request, so a Deny stops sessions that were given before it (IAM User Guide,
//! "Disabling permissions for temporary security credentials"). Its condition is on `aws:userid`, which every request of
//! a role's session carries as `ROLE-ID:SESSION-NAME`; `*:` stands for the role's id, which a session's name never holds a
//! colon to imitate. Not on `sts:RoleSessionName`, which is there only while a role is assumed and would stop nothing, nor
//! on `aws:TokenIssueTime`, which would stop every session of the role. Ceph RGW judges the key alike, in this spelling.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::client::{LeaseView, TaskView};
use super::plain;
use crate::clock::Timestamp;

/// AWS's clock may be behind the one that the end of a credential was told by.
const SKEW: Duration = Duration::from_secs(30);

/// What a Deny does not reach.
const NOT_COVERED: [&str; 5] = [
    "what was already read or copied, and a transfer under way: a request is judged when it begins",
    "roles assumed from the session, and tokens that services gave it (ECR, CodeArtifact): those have names of their own",
    "what the session opened or created: connections, keys, users, queued work",
    "sts:GetCallerIdentity, which no policy can deny: test by another request",
    "roles that IAM lets nobody edit: service-linked ones, and those of IAM Identity Center",
];

/// What the Deny of a task does not reach beside that.
pub(super) const CHILDREN: &str =
    "tasks begun under this one: they ended with it, and each has a session of its own to deny";

/// One Deny: for the sessions of one role whose names fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deny {
    role: Named,
    policy_name: String,
    /// Session names, with `*` where any characters may stand.
    sessions: Vec<String>,
    /// The leases that it is about, where they are known.
    leases: Vec<String>,
    /// When nothing is left that it could stop, UTC.
    keep_until: Timestamp,
}

/// Which role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Named {
    /// This one.
    Role(Role),
    /// That of a grant: the exchange's answer never came, so the sidecar does not know which it was.
    OfGrant(String),
}

/// A role at AWS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Role {
    /// Twelve digits; nothing at Ceph RGW.
    account: String,
    name: String,
}

impl Role {
    /// Reads `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME` or `arn:PARTITION:sts::ACCOUNT:assumed-role/NAME/SESSION`;
    /// `None` where the text is neither, so that nothing else gets into a command or a policy.
    pub(super) fn parse(arn: &str) -> Option<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", _, service, "", account, resource] = parts.as_slice() else { return None };
        let name = match *service {
            "iam" => resource.strip_prefix("role/")?.rsplit('/').next()?,
            "sts" => resource.strip_prefix("assumed-role/")?.split_once('/')?.0,
            _ => return None,
        };
        let account_fits = account.is_empty() || (account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()));
        let fits = account_fits && (1..=64).contains(&name.len()) && name.bytes().all(in_name);
        fits.then(|| Self { account: (*account).to_owned(), name: name.to_owned() })
    }
}

/// IAM's `[\w+=,.@-]`: none of them means anything to a shell within quotes, to JSON or to StringLike.
fn in_name(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'+' | b'=' | b',' | b'.' | b'@' | b'_' | b'-')
}

#[derive(Serialize)]
struct Policy<'a> {
    #[serde(rename = "Version")]
    version: &'a str,
    #[serde(rename = "Statement")]
    statement: [Statement<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement<'a> {
    sid: &'a str,
    effect: &'a str,
    action: &'a str,
    resource: &'a str,
    condition: Condition,
}

#[derive(Serialize)]
struct Condition {
    #[serde(rename = "StringLike")]
    string_like: UserId,
}

#[derive(Serialize)]
struct UserId {
    #[serde(rename = "aws:userid")]
    user_id: Vec<String>,
}

impl Deny {
    /// A Deny called `sidemint-deny-ID` for `sessions` of `role`, kept until `until` and the skew. `None` where a name has
    /// characters that names have not.
    pub(super) fn new(role: Role, id: &str, sessions: Vec<String>, until: Timestamp) -> Option<Self> {
        Self::of(Named::Role(role), id, sessions, Vec::new(), until)
    }

    fn of(role: Named, id: &str, sessions: Vec<String>, leases: Vec<String>, until: Timestamp) -> Option<Self> {
        let session = |name: &String| {
            (2..=64).contains(&name.len()) && name.bytes().all(|b| b == b'*' || (in_name(b) && b != b'+'))
        };
        let id_fits = (1..=100).contains(&id.len()) && id.bytes().all(in_name);
        (id_fits && !sessions.is_empty() && sessions.iter().all(session)).then(|| Self {
            role,
            policy_name: format!("sidemint-deny-{id}"),
            sessions,
            leases,
            keep_until: until.floor_to_second() + Duration::from_secs(1) + SKEW,
        })
    }

    /// What stops the sessions of `task` that may still be used: one Deny for each role. Every credential of a task has
    /// the task's own session name, so what is listed is that task and nothing else.
    ///
    /// # Errors
    /// In one line, where the sidecar does not name the session.
    pub(super) fn of_task(task: &TaskView) -> Result<Vec<Self>, String> {
        let usable =
            |lease: &&LeaseView| lease.provider == "aws" && !matches!(lease.state.as_str(), "revoked" | "expired");
        let mut by_role: std::collections::BTreeMap<(Named, String), Vec<&LeaseView>> = Default::default();
        let leases: Vec<_> = task.leases.iter().filter(usable).collect();
        for lease in &leases {
            let unnamed = || format!("the sidecar does not name the session of lease {}", plain(&lease.id));
            let session = lease.session_name.clone().ok_or_else(unnamed)?;
            let role =
                match &lease.assumed_role {
                    Some(arn) => Named::Role(Role::parse(arn).ok_or_else(|| {
                        format!("the sidecar names a role that is none for lease {}", plain(&lease.id))
                    })?),
                    // Another lease of the same grant tells its role.
                    None => leases
                        .iter()
                        .filter(|other| other.grant == lease.grant)
                        .find_map(|other| Role::parse(other.assumed_role.as_deref()?))
                        .map_or_else(|| Named::OfGrant(plain(lease.grant.as_deref().unwrap_or("?"))), Named::Role),
                };
            by_role.entry((role, session)).or_default().push(lease);
        }
        let deny = |((role, session), leases): ((Named, String), Vec<&LeaseView>)| {
            let until = leases.iter().map(|lease| lease.usable_until).max().unwrap_or(Timestamp::MAX);
            let ids = leases.iter().map(|lease| plain(&lease.id)).collect();
            let name = plain(&session);
            let alone = !session.contains('*');
            let deny = alone.then(|| Self::of(role, &task.id, vec![session], ids, until)).flatten();
            deny.ok_or_else(|| format!("the sidecar names a session that is none: {name}"))
        };
        by_role.into_iter().map(deny).collect()
    }

    /// The policy, compact: Ceph RGW refuses blanks, and AWS does not count them.
    pub(super) fn policy(&self) -> String {
        let policy = Policy {
            version: "2012-10-17",
            statement: [Statement {
                sid: "SidemintDeny",
                effect: "Deny",
                action: "*",
                resource: "*",
                condition: Condition {
                    string_like: UserId { user_id: self.sessions.iter().map(|name| format!("*:{name}")).collect() },
                },
            }],
        };
        // Strings and lists of them always serialise.
        serde_json::to_string(&policy).unwrap_or_default()
    }

    fn role_name(&self) -> &str {
        match &self.role {
            Named::Role(role) => &role.name,
            // No role can be called so: a command that was not completed is refused.
            Named::OfGrant(_) => "<ROLE>",
        }
    }

    fn apply(&self) -> Vec<String> {
        let rest = ["--policy-name", &self.policy_name, "--policy-document", &self.policy()].map(str::to_owned);
        [vec_of(&["aws", "iam", "put-role-policy", "--role-name", self.role_name()]), rest.to_vec()].concat()
    }

    fn remove(&self) -> Vec<String> {
        let name = &self.policy_name;
        vec_of(&["aws", "iam", "delete-role-policy", "--role-name", self.role_name(), "--policy-name", name])
    }

    fn whose(&self) -> String {
        match &self.role {
            Named::Role(role) if role.account.is_empty() => format!("role {}", role.name),
            Named::Role(role) => format!("role {} of account {}", role.name, role.account),
            Named::OfGrant(grant) => format!("the role_arn of grant {grant} (no answer came: a session may exist)"),
        }
    }

    fn json(&self) -> Value {
        let (name, account, grant) = match &self.role {
            Named::Role(role) => (Some(&role.name), Some(&role.account).filter(|account| !account.is_empty()), None),
            Named::OfGrant(grant) => (None, None, Some(grant)),
        };
        json!({
            "role_name": name,
            "account_id": account,
            "role_of_grant": grant,
            "policy_name": self.policy_name,
            "policy": serde_json::from_str::<Value>(&self.policy()).unwrap_or_default(),
            "sessions": self.sessions,
            "leases": self.leases,
            "apply": self.apply(),
            "remove": self.remove(),
            "remove_after": self.keep_until,
        })
    }
}

fn vec_of(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A command as a shell reads it. Its words hold no quote: each was checked.
fn line(words: &[String]) -> String {
    let quoted = |word: &String| {
        let plain = word.bytes().all(|b| in_name(b) || b == b'/');
        if plain { word.clone() } else { format!("'{word}'") }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// `denies` for people. `which` says whose sessions they stop, and `lifted` what must have happened before one may be taken
/// off, beside its time; `also` is not covered either.
pub(super) fn text(denies: &[Deny], which: &str, lifted: &str, also: &[&str]) -> String {
    let mut text = String::new();
    if denies.is_empty() {
        let _ = writeln!(text, "\nNothing to deny at AWS: {which} has no credential there that could still be used.");
        return text;
    }
    for deny in denies {
        let _ = writeln!(text, "\nDeny {which} at AWS, {}:\n", deny.whose());
        let _ = writeln!(text, "  {}", line(&deny.apply()));
        let _ = writeln!(text, "\nTake it off again after {}{lifted}:\n", deny.keep_until);
        let _ = writeln!(text, "  {}", line(&deny.remove()));
    }
    let _ = writeln!(
        text,
        "\nIt stops the next request once IAM has spread it, which takes seconds to minutes; taken off before that time, the\n\
         access is back. Not covered:"
    );
    for what in NOT_COVERED.iter().chain(also) {
        let _ = writeln!(text, "  - {what}");
    }
    text
}

/// The same for programs.
pub(super) fn json(denies: &[Deny], also: &[&str]) -> Value {
    let not_covered: Vec<_> = NOT_COVERED.iter().chain(also).collect();
    json!({ "denies": denies.iter().map(Deny::json).collect::<Vec<_>>(), "not_covered": not_covered })
}

#[cfg(test)]
mod tests {
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
    fn one_deny_names_the_one_session_of_a_task_however_many_credentials_it_had() {
        let leases = [
            lease("l-1", "aws", "ending", "15:00", Some("ledger")),
            lease("l-2", "aws", "ending", "20:00.5", Some("ledger")),
            lease("l-3", "vault", "ending", "59:00", None),
            lease("l-4", "aws", "expired", "01:00", Some("old")),
            // no answer came for it: the role is that of the others
            lease("l-5", "aws", "intent", "19:00", None),
        ];
        let denies = Deny::of_task(&task(&leases.join(","))).unwrap();
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
    fn each_role_gets_its_own_and_where_it_is_not_known_the_command_cannot_run_as_it_is() {
        let leases =
            [lease("l-1", "aws", "ending", "15:00", Some("a")), lease("l-2", "aws", "issued", "16:00", Some("b"))];
        let roles: Vec<_> = Deny::of_task(&task(&leases.join(","))).unwrap().iter().map(Deny::whose).collect();
        assert_eq!(roles, ["role a of account 111122223333", "role b of account 111122223333"]);
        let lost = Deny::of_task(&task(&lease("l-1", "aws", "ending", "15:00", None))).unwrap();
        let text = text(&lost, "this session", "", &[]);
        assert!(text.contains("the role_arn of grant ledger-aws") && text.contains("--role-name '<ROLE>'"), "{text}");
        assert_eq!(json(&lost, &[])["denies"][0]["role_name"], Value::Null);
    }

    #[test]
    fn what_cannot_be_used_any_more_needs_no_deny() {
        let leases =
            [lease("l-1", "aws", "expired", "15:00", Some("a")), lease("l-2", "aws", "revoked", "16:00", Some("a"))];
        let denies = Deny::of_task(&task(&leases.join(","))).unwrap();
        assert!(denies.is_empty());
        assert!(text(&denies, "task t", "", &[]).contains("Nothing to deny at AWS"));
    }

    #[test]
    fn names_that_would_widen_the_deny_or_steer_a_shell_are_refused() {
        for bad in ["*", "a'b", "a b", "a:b", "a?b", "$(id)", "a\\u0022b", ""] {
            let lease = lease("l-1", "aws", "ending", "15:00", Some("ledger")).replace(SESSION, bad);
            assert!(Deny::of_task(&task(&lease)).is_err(), "{bad}");
        }
        let text = r#"{"id":"l-1","provider":"aws","revocation":"expire","state":"ending","usable_until":"2026-11-23T10:15:00Z"}"#;
        assert!(Deny::of_task(&task(text)).unwrap_err().contains("does not name the session of lease l-1"));
        let odd = lease("l-1", "aws", "ending", "15:00", Some("a;b"));
        assert!(Deny::of_task(&task(&odd)).unwrap_err().contains("a role that is none"));
    }

    #[test]
    fn a_role_is_read_from_either_arn_without_its_path() {
        let role = |arn: &str| Role::parse(arn).map(|role| format!("{}/{}", role.account, role.name));
        assert_eq!(role("arn:aws:iam::111122223333:role/team/x/ledger").as_deref(), Some("111122223333/ledger"));
        assert_eq!(role("arn:aws-cn:sts::111122223333:assumed-role/ledger/s").as_deref(), Some("111122223333/ledger"));
        assert_eq!(role("arn:aws:sts:::assumed-role/app/s").as_deref(), Some("/app"));
        for bad in ["", "arn:aws:iam::1:role/x", "arn:aws:iam::111122223333:user/x", "arn:aws:sts:::assumed-role/app"] {
            assert_eq!(role(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_role_or_session_that_is_taken_holds_what_a_shell_or_json_would_read(name in ".{0,70}", arn in ".{0,80}") {
            let quiet = |text: &str| text.bytes().all(|b| in_name(b) || b == b'*');
            if let Some(role) = Role::parse(&arn) {
                proptest::prop_assert!(quiet(&role.name) && quiet(&role.account));
            }
            let role = Role { account: String::new(), name: "app".to_owned() };
            if let Some(deny) = Deny::new(role, "k-1", vec![name.clone()], Timestamp::MAX) {
                proptest::prop_assert!(quiet(&name));
                proptest::prop_assert!(serde_json::from_str::<Value>(&deny.policy()).is_ok());
            }
        }
    }
}
