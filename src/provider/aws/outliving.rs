//! Actions by which access outlives the cut: what they give is checked without the session that asked for it.
//!
//! The cut ends every *request* of a session, a presigned one too, which is judged when it is used. It does not end a session of
//! another role that was assumed with it, a token that a service issued, a connection that is open, or a key that was created.
//! The list below holds the actions whose very purpose that is, each with the longest life that it can give. It is a floor, not a
//! proof of absence: an action that makes code run under another role (`lambda:InvokeFunction`, `iam:PassRole` …) lets access
//! outlive the cut too, in ways that no list can name.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::params::{self, Part};
use crate::provider::Outliving;

/// Service authorization reference of each service; AWS STS API reference for the lives of the first block. Role chaining
/// ends after an hour. AWS lets no role session call the two that want a long-term key, and asks for no key where another
/// proof is exchanged; an STS that is not AWS's may.
const ACTIONS: &[Outliving] = &[
    minutes("sts:AssumeRole", "a session of another role, up to 1 h", 60),
    minutes("sts:AssumeRoleWithSAML", "a session of another role, up to 12 h", 12 * 60),
    minutes("sts:AssumeRoleWithWebIdentity", "a session of another role, up to 12 h", 12 * 60),
    minutes("sts:AssumeRoot", "a root session of a member account, 15 min", 15),
    minutes("sts:GetDelegatedAccessToken", "a session of another account, up to 12 h", 12 * 60),
    minutes("sts:GetFederationToken", "a session of the same user, up to 36 h", 36 * 60),
    minutes("sts:GetSessionToken", "a session of the same user, up to 36 h", 36 * 60),
    minutes("sts:GetServiceBearerToken", "a service's bearer token, up to 12 h", 12 * 60),
    minutes("sts:GetWebIdentityToken", "a JWT for services outside AWS, up to 1 h", 60),
    minutes("ecr:GetAuthorizationToken", "a registry token, 12 h", 12 * 60),
    minutes("ecr-public:GetAuthorizationToken", "a registry token, 12 h", 12 * 60),
    minutes("codeartifact:GetAuthorizationToken", "a package repository token, up to 12 h", 12 * 60),
    endless("rds-db:connect", "an open database session"),
    endless("dsql:DbConnect", "an open database session"),
    endless("dsql:DbConnectAdmin", "an open database session"),
    endless("redshift:GetClusterCredentials", "a database password of up to 1 h, and an open session"),
    endless("redshift:GetClusterCredentialsWithIAM", "a database password of up to 1 h, and an open session"),
    endless("redshift-serverless:GetCredentials", "a database password of up to 1 h, and an open session"),
    endless("elasticache:Connect", "an open connection"),
    endless("memorydb:Connect", "an open connection"),
    minutes("s3:GetDataAccess", "S3 Access Grants credentials, up to 12 h", 12 * 60),
    minutes("lakeformation:GetDataAccess", "Lake Formation credentials, up to 12 h", 12 * 60),
    minutes("lakeformation:GetTemporaryGlueTableCredentials", "Lake Formation credentials, up to 12 h", 12 * 60),
    minutes("cognito-identity:GetCredentialsForIdentity", "a session of an identity pool's role, up to 12 h", 12 * 60),
    minutes("cognito-identity:GetOpenIdTokenForDeveloperIdentity", "an OpenID token, up to 24 h", 24 * 60),
    endless("ssm:StartSession", "an open shell"),
    endless("ec2-instance-connect:SendSSHPublicKey", "an open shell"),
    endless("ecs:ExecuteCommand", "an open shell"),
    endless("iam:CreateAccessKey", "a static access key"),
    endless("iam:CreateLoginProfile", "a console password"),
    endless("iam:CreateServiceSpecificCredential", "a static service credential"),
];

const fn minutes(action: &'static str, leaves: &'static str, minutes: u64) -> Outliving {
    Outliving { action, leaves, lasts: Some(Duration::from_secs(minutes * 60)) }
}

const fn endless(action: &'static str, leaves: &'static str) -> Outliving {
    Outliving { action, leaves, lasts: None }
}

/// The known actions that some `Allow` statement of `policy` matches, in the list's order, each once. `Deny`
/// statements and conditions are not subtracted, since they may not hold, and a `${param.NAME}` not filled in stands for any text:
/// the answer errs towards too many.
pub(super) fn outliving_actions(policy: &Value) -> Vec<Outliving> {
    let statements: Vec<_> = one_or_many(policy.get("Statement")).into_iter().filter_map(Value::as_object).collect();
    let allows: Vec<_> =
        statements.into_iter().filter(|s| s.get("Effect").and_then(Value::as_str) == Some("Allow")).collect();
    let allowed = |action: &str| {
        allows.iter().any(|statement| {
            let matches = |patterns: &[&Value]| {
                patterns.iter().filter_map(|pattern| pattern.as_str()).any(|pattern| covers(&widened(pattern), action))
            };
            let named = match (statement.get("Action"), statement.get("NotAction")) {
                (None, Some(except)) => !matches_wholly(&one_or_many(Some(except)), action),
                (actions, _) => matches(&one_or_many(actions)),
            };
            named && !(action == "s3:GetDataAccess" && is_of_buckets(statement))
        })
    };
    ACTIONS.iter().filter(|known| allowed(known.action)).copied().collect()
}

/// Whether `action` is certainly among the patterns of a `NotAction`: one that a parameter fills in excludes nothing for sure.
fn matches_wholly(patterns: &[&Value], action: &str) -> bool {
    let texts = patterns.iter().filter_map(|pattern| pattern.as_str());
    texts.filter(|pattern| !pattern.contains("${")).any(|pattern| covers(pattern, action))
}

/// `pattern` with each `${…}` read as `*`.
fn widened(pattern: &str) -> String {
    params::parts(pattern).map(|part| if let Part::Text(text) = part { text } else { "*" }).collect()
}

/// Whether every resource of the statement is a bucket, or in one: `arn:PARTITION:s3:::…`. Access Grants are in a region and an
/// account, so that `s3:*` on a bucket does not reach them.
fn is_of_buckets(statement: &Map<String, Value>) -> bool {
    let resources = one_or_many(statement.get("Resource"));
    let is_bucket = |resource: &&Value| {
        let mut parts = resource.as_str().unwrap_or_default().splitn(6, ':');
        let plain = |part: Option<&str>| part.is_some_and(|part| !part.contains(['*', '?', '$']));
        let (arn, partition) = (parts.next(), parts.next());
        arn == Some("arn")
            && plain(partition)
            && [parts.next(), parts.next(), parts.next()] == [Some("s3"), Some(""), Some("")]
            && parts.next().is_some()
    };
    !resources.is_empty() && resources.iter().all(is_bucket)
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
    use crate::provider::Outlives;

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
        assert_eq!(found(json!({"Effect": "Allow", "Action": "sts:Assume${param.what}"})).len(), 4);
        assert_eq!(found(json!({"Effect": "Allow", "NotAction": "${param.what}"})).len(), ACTIONS.len());
        assert_eq!(found(json!({"Effect": "Allow", "NotAction": "iam:*"})).len(), ACTIONS.len() - 3);
    }

    #[test]
    fn does_not_take_a_bucket_for_an_access_grant() {
        let s3 = |resource: Value| found(json!({"Effect": "Allow", "Action": "s3:*", "Resource": resource}));
        assert!(s3(json!("arn:aws:s3:::ledger/*")).is_empty());
        assert!(s3(json!(["arn:aws-cn:s3:::ledger", "arn:aws-cn:s3:::ledger/${param.customer}/*"])).is_empty());
        for wider in
            ["*", "arn:aws:s3:*", "arn:*:s3:::x", "arn:aws:s3:eu-central-1:1:access-grants/default", "arn:aws:s3*:::x"]
        {
            assert_eq!(s3(json!(["arn:aws:s3:::ledger/*", wider])), ["s3:GetDataAccess"], "{wider}");
        }
        assert_eq!(found(json!({"Effect": "Allow", "Action": "s3:*", "NotResource": "arn:aws:s3:::x"})).len(), 1);
    }

    #[test]
    fn takes_the_longest_lifetime_and_reports_unlimited_access() {
        let of = |actions: Value| {
            Outlives::of(&outliving_actions(
                &json!({"Statement": {"Effect": "Allow", "Action": actions, "Resource": "*"}}),
            ))
        };
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!(of(json!("s3:GetObject")), Outlives::default());
        assert_eq!(of(json!("sts:AssumeRole")), Outlives { lasts: hours(1), open_ended: false });
        assert_eq!(of(json!(["sts:AssumeRole", "ecr:Get*"])), Outlives { lasts: hours(12), open_ended: false });
        assert_eq!(of(json!(["sts:AssumeRole", "rds-db:connect"])), Outlives { lasts: hours(1), open_ended: true });
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
