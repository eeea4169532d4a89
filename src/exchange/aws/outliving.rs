//! Actions by which access outlives the cut: what they give is checked without the session that asked for it.
//!
//! The cut ends every *request* of a session. It does not end a session of another role that was assumed with it, a
//! token that a service issued, a connection that is open, or a key that was created. The list below holds the actions
//! whose very purpose that is. It is a floor, not a proof of absence: an action that makes code run under another role
//! (`lambda:InvokeFunction`, `iam:PassRole` …) lets access outlive the cut too, in ways that no list can name.

use serde_json::Value;

/// An action of a session policy by which access outlives the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outliving {
    /// The action that the policy allows, e.g. `sts:AssumeRole` (also where the policy says `sts:*`).
    pub action: &'static str,
    /// What is left when the session is dead.
    pub leaves: &'static str,
}

/// Service authorization reference of each service; `cloud-exchange` notes B4 for the first block.
const ACTIONS: &[Outliving] = &[
    outliving("sts:AssumeRole", "a session of another role"),
    outliving("sts:AssumeRoot", "a root session of a member account"),
    outliving("sts:GetServiceBearerToken", "a service's bearer token"),
    outliving("sts:GetWebIdentityToken", "a JWT for services outside AWS"),
    outliving("ecr:GetAuthorizationToken", "a registry token, 12 h"),
    outliving("ecr-public:GetAuthorizationToken", "a registry token, 12 h"),
    outliving("codeartifact:GetAuthorizationToken", "a package repository token, up to 12 h"),
    outliving("rds-db:connect", "an open database session"),
    outliving("dsql:DbConnect", "an open database session"),
    outliving("dsql:DbConnectAdmin", "an open database session"),
    outliving("redshift:GetClusterCredentials", "a database password, up to 1 h"),
    outliving("redshift:GetClusterCredentialsWithIAM", "a database password, up to 1 h"),
    outliving("redshift-serverless:GetCredentials", "a database password, up to 1 h"),
    outliving("elasticache:Connect", "an open connection"),
    outliving("memorydb:Connect", "an open connection"),
    outliving("s3:GetDataAccess", "S3 Access Grants credentials, up to 12 h"),
    outliving("lakeformation:GetDataAccess", "Lake Formation credentials"),
    outliving("lakeformation:GetTemporaryGlueTableCredentials", "Lake Formation credentials"),
    outliving("cognito-identity:GetCredentialsForIdentity", "a session of an identity pool's role"),
    outliving("cognito-identity:GetOpenIdTokenForDeveloperIdentity", "an OpenID token, up to 24 h"),
    outliving("ssm:StartSession", "an open shell"),
    outliving("ec2-instance-connect:SendSSHPublicKey", "an open shell"),
    outliving("ecs:ExecuteCommand", "an open shell"),
    outliving("iam:CreateAccessKey", "a static access key"),
    outliving("iam:CreateLoginProfile", "a console password"),
    outliving("iam:CreateServiceSpecificCredential", "a static service credential"),
];

const fn outliving(action: &'static str, leaves: &'static str) -> Outliving {
    Outliving { action, leaves }
}

/// The known actions that some `Allow` statement of `policy` matches, in the list's order, each once. `Deny`
/// statements are not subtracted, since their conditions may not hold: the answer errs towards too many.
pub fn outliving_actions(policy: &Value) -> Vec<Outliving> {
    let statements = one_or_many(policy.get("Statement"));
    let allowed = |action: &str| {
        statements.iter().filter(|s| s.get("Effect").and_then(Value::as_str) == Some("Allow")).any(|statement| {
            let matches = |patterns: &[&Value]| patterns.iter().filter_map(|p| p.as_str()).any(|p| covers(p, action));
            match (statement.get("Action"), statement.get("NotAction")) {
                (None, Some(except)) => !matches(&one_or_many(Some(except))),
                (actions, _) => matches(&one_or_many(actions)),
            }
        })
    };
    ACTIONS.iter().filter(|known| allowed(known.action)).copied().collect()
}

/// IAM lets a list of one be written without the list.
fn one_or_many(value: Option<&Value>) -> Vec<&Value> {
    match value {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    }
}

/// Whether IAM's `pattern` (`*` any text, `?` any one character, case ignored) covers `action`.
fn covers(pattern: &str, action: &str) -> bool {
    let (mut pattern, mut rest) = (pattern.as_bytes(), action.as_bytes());
    // Where the last `*` was, and what was left to match then: enough to go back to.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), rest.split_first()) {
            (Some((b'*', tail)), _) => {
                star = Some((tail, rest));
                pattern = tail;
            }
            (Some((p, tail)), Some((c, left))) if *p == b'?' || p.eq_ignore_ascii_case(c) => {
                (pattern, rest) = (tail, left);
            }
            (None, None) => return true,
            _ => match star.and_then(|(after, from)| from.split_first().map(|(_, left)| (after, left))) {
                Some((after, left)) => {
                    star = Some((after, left));
                    (pattern, rest) = (after, left);
                }
                None => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn found(statement: Value) -> Vec<&'static str> {
        outliving_actions(&json!({"Statement": statement})).iter().map(|o| o.action).collect()
    }

    #[test]
    fn finds_role_chaining_and_service_tokens_however_they_are_written() {
        assert_eq!(found(json!({"Effect": "Allow", "Action": "STS:assumerole"})), ["sts:AssumeRole"]);
        assert_eq!(
            found(json!([{"Effect": "Allow", "Action": ["s3:GetObject", "ecr:*Token"]}])),
            ["ecr:GetAuthorizationToken"]
        );
        assert_eq!(found(json!({"Effect": "Allow", "Action": "rds-db:c?nnect"})), ["rds-db:connect"]);
        assert_eq!(found(json!({"Effect": "Allow", "Action": "*"})).len(), ACTIONS.len());
        assert_eq!(found(json!({"Effect": "Allow", "NotAction": "iam:*"})).len(), ACTIONS.len() - 3);
    }

    #[test]
    fn is_silent_about_policies_that_only_read_and_about_denials() {
        assert!(found(json!([{"Effect": "Allow", "Action": ["s3:GetObject", "s3:List*"]}])).is_empty());
        assert!(found(json!({"Effect": "Deny", "Action": "*"})).is_empty());
        assert!(found(json!("nonsense")).is_empty());
        assert!(outliving_actions(&json!(7)).is_empty());
    }

    proptest! {
        #[test]
        fn patterns_agree_with_the_plain_recursive_meaning(pattern in "[ab*?]{0,8}", text in "[abAB]{0,8}") {
            fn plain(p: &[u8], t: &[u8]) -> bool {
                match (p.first(), t.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => plain(&p[1..], t) || (!t.is_empty() && plain(p, &t[1..])),
                    (Some(b'?'), Some(_)) => plain(&p[1..], &t[1..]),
                    (Some(a), Some(b)) => a.eq_ignore_ascii_case(b) && plain(&p[1..], &t[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(covers(&pattern, &text), plain(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
