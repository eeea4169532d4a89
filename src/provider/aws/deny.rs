//! What stops sessions at AWS that are already out: an explicit Deny on their role, printed for somebody who may put it
//! there. Sidemint holds no IAM rights itself (docs/operations.md#when-access-must-end-now).
//!
//! AWS judges permissions anew at each request, so a Deny stops sessions that were given before it (IAM User Guide,
//! "Disabling permissions for temporary security credentials"). Its condition is on `aws:userid`, which every request of
//! a role's session carries as `ROLE-ID:SESSION-NAME`; `*:` stands for the role's id, which a session's name never holds a
//! colon to imitate. Not on `sts:RoleSessionName`, which is there only while a role is assumed and would stop nothing, nor
//! on `aws:TokenIssueTime`, which would stop every session of the role. Ceph RGW judges the key alike, in this spelling.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::arn::{self, in_name};
use crate::clock::Timestamp;

/// AWS's clock may be behind the one that the end of a credential was judged by.
const SKEW: Duration = Duration::from_secs(30);

/// What a Deny does not reach.
const NOT_COVERED: [&str; 5] = [
    "what was already read or copied, and a transfer under way: a request is judged when it begins",
    "roles assumed from the session, and tokens that services gave it (ECR, CodeArtifact): those have names of their own",
    "what the session opened or created: connections, keys, users, queued work",
    "sts:GetCallerIdentity, which no policy can deny: test by another request",
    "roles that IAM lets nobody edit: service-linked ones, and those of IAM Identity Center",
];

/// One Deny: for the sessions of one role whose names fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deny {
    role: Named,
    policy_name: String,
    /// Session names, with `*` where any characters may stand.
    sessions: Vec<String>,
    /// The leases that it is about, where they are known.
    pub(crate) leases: Vec<String>,
    /// When nothing is left that it could stop, UTC.
    pub(crate) keep_until: Timestamp,
}

/// Which role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    /// This one.
    Role(Role),
    /// That of a grant: the exchange's answer never came, so the sidecar does not know which it was.
    OfGrant(String),
}

/// A role at AWS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Role {
    /// Twelve digits; nothing at Ceph RGW.
    account: String,
    name: String,
}

impl Role {
    /// Reads the ARN of a role or of a session of it; `None` where the text is neither, so that nothing else gets into a
    /// command or a policy.
    pub(crate) fn parse(arn: &str) -> Option<Self> {
        let role = arn::Role::parse(arn).or_else(|| arn::Role::parse_session(arn).map(|(role, _)| role))?;
        Some(Self { account: role.account().to_owned(), name: role.name().to_owned() })
    }
}

/// One lease whose session may still be used, as a sidecar reports it. Its texts hold no control characters.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// The lease.
    pub(crate) id: String,
    /// The name of its session, where the sidecar names it.
    pub(crate) session_name: Option<String>,
    /// The ARN of the session, where an answer came for it.
    pub(crate) assumed_role: Option<String>,
    /// The grant that it was minted for.
    pub(crate) grant: Option<String>,
    /// When its credential stops working, UTC.
    pub(crate) usable_until: Timestamp,
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
    #[cfg(any(test, feature = "author"))]
    pub(crate) fn new(role: Role, id: &str, sessions: Vec<String>, until: Timestamp) -> Option<Self> {
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

    /// What stops the sessions of `leases`, all of the task `id`: one Deny for each role. Every credential of a task has
    /// the task's own session name, so what is listed is that task and nothing else.
    ///
    /// # Errors
    /// In one line, where a session or role is not named, or by a name that is invalid.
    pub(crate) fn of_leases(id: &str, leases: &[Lease]) -> Result<Vec<Self>, String> {
        let mut by_role: BTreeMap<(Named, String), Vec<&Lease>> = BTreeMap::new();
        for lease in leases {
            let unnamed = || format!("the sidecar does not name the session of lease {}", lease.id);
            let session = lease.session_name.clone().ok_or_else(unnamed)?;
            let role = match &lease.assumed_role {
                Some(arn) => Named::Role(
                    Role::parse(arn)
                        .ok_or_else(|| format!("the sidecar names an invalid role for lease {}", lease.id))?,
                ),
                // Another lease of the same grant tells its role.
                None => leases
                    .iter()
                    .filter(|other| other.grant == lease.grant)
                    .find_map(|other| Role::parse(other.assumed_role.as_deref()?))
                    .map_or_else(|| Named::OfGrant(lease.grant.as_deref().unwrap_or("?").to_owned()), Named::Role),
            };
            by_role.entry((role, session)).or_default().push(lease);
        }
        let deny = |((role, session), leases): ((Named, String), Vec<&Lease>)| {
            let until = leases.iter().map(|lease| lease.usable_until).max().unwrap_or(Timestamp::MAX);
            let ids = leases.iter().map(|lease| lease.id.clone()).collect();
            let invalid = format!("the sidecar names an invalid session: {session}");
            let alone = !session.contains('*');
            let deny = alone.then(|| Self::of(role, id, vec![session], ids, until)).flatten();
            deny.ok_or(invalid)
        };
        by_role.into_iter().map(deny).collect()
    }

    /// The policy, compact: Ceph RGW refuses blanks, and AWS does not count them.
    pub(crate) fn policy(&self) -> String {
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

    /// Whose role it is, for people.
    pub(crate) fn whose(&self) -> String {
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
pub(crate) fn text(denies: &[Deny], which: &str, lifted: &str, also: &[&str]) -> String {
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
pub(crate) fn json(denies: &[Deny], also: &[&str]) -> Value {
    let not_covered: Vec<_> = NOT_COVERED.iter().chain(also).collect();
    json!({ "denies": denies.iter().map(Deny::json).collect::<Vec<_>>(), "not_covered": not_covered })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        fn accepted_roles_and_sessions_have_no_shell_or_json_syntax(name in ".{0,70}", arn in ".{0,80}") {
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
