//! Identity policies as AWS evaluates them, as far as this cloud goes: actions and resources with wildcards, string and
//! date conditions, an explicit Deny above all, and a session bounded by role ∩ session policy.
//!
//! What it does not know (`NotAction`, policy variables, other operators) it refuses as malformed: a narrowing that were
//! silently ignored would broaden.

use serde_json::{Map, Value};

use crate::clock::Timestamp;

/// A parsed policy document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    statements: Vec<Statement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Statement {
    allow: bool,
    actions: Vec<String>,
    resources: Vec<String>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    /// In lower case: condition keys are not case-sensitive.
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    StringEquals(Vec<String>),
    StringNotEquals(Vec<String>),
    StringLike(Vec<String>),
    StringNotLike(Vec<String>),
    DateLessThan(Vec<Timestamp>),
    DateGreaterThan(Vec<Timestamp>),
}

/// Why a document is not a policy that this cloud can hold to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

/// One thing that someone wants to do.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// E.g. `s3:GetObject`.
    pub action: &'a str,
    /// An ARN.
    pub resource: &'a str,
    /// `aws:CurrentTime`.
    pub now: Timestamp,
    /// `aws:TokenIssueTime`.
    pub token_issued_at: Timestamp,
    /// `aws:userid`.
    pub user_id: &'a str,
    /// `s3:prefix`, where the request has one.
    pub prefix: Option<&'a str>,
}

/// What one policy says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A statement allows it and none denies it.
    Allowed,
    /// No statement speaks of it.
    NotAllowed,
    /// A statement denies it, whatever others say.
    Denied,
}

/// Whether a session may: the role allows it, the session policy (where there is one) allows it too, neither denies it.
pub fn allows(role: &Policy, session: Option<&Policy>, request: &Request<'_>) -> bool {
    role.evaluate(request) == Verdict::Allowed
        && session.is_none_or(|policy| policy.evaluate(request) == Verdict::Allowed)
}

impl Policy {
    /// Reads a policy document.
    ///
    /// # Errors
    /// For anything that is not a policy, and for anything that this cloud does not evaluate.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let document: Value = serde_json::from_str(text).map_err(|_| malformed("not JSON"))?;
        let document = object(&document, &["Version", "Id", "Statement"])?;
        if document.get("Version").is_some_and(|version| version != "2012-10-17" && version != "2008-10-17") {
            return Err(malformed("unknown Version"));
        }
        let statements = match document.get("Statement") {
            Some(Value::Array(list)) if !list.is_empty() => list.iter().map(Statement::parse).collect(),
            Some(one @ Value::Object(_)) => Statement::parse(one).map(|one| vec![one]),
            _ => Err(malformed("no Statement")),
        }?;
        Ok(Self { statements })
    }

    /// What this policy alone says of `request`.
    pub fn evaluate(&self, request: &Request<'_>) -> Verdict {
        let mut verdict = Verdict::NotAllowed;
        for statement in self.statements.iter().filter(|statement| statement.matches(request)) {
            if !statement.allow {
                return Verdict::Denied;
            }
            verdict = Verdict::Allowed;
        }
        verdict
    }
}

impl Statement {
    fn parse(value: &Value) -> Result<Self, Malformed> {
        let statement = object(value, &["Sid", "Effect", "Action", "Resource", "Condition"])?;
        let allow = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            _ => return Err(malformed("Effect must be Allow or Deny")),
        };
        let actions = strings(statement.get("Action"), "Action")?;
        if actions.iter().any(|action| action != "*" && !action.contains(':')) {
            return Err(malformed("an Action is SERVICE:NAME"));
        }
        let resources = strings(statement.get("Resource"), "Resource")?;
        if resources.iter().any(|resource| resource != "*" && !resource.starts_with("arn:")) {
            return Err(malformed("a Resource is an ARN"));
        }
        let mut conditions = Vec::new();
        if let Some(blocks) = statement.get("Condition") {
            let blocks = blocks.as_object().ok_or_else(|| malformed("Condition must be an object"))?;
            for (operator, keys) in blocks {
                let keys = keys.as_object().ok_or_else(|| malformed("Condition must be an object of objects"))?;
                for (key, values) in keys {
                    conditions.push(Condition::parse(operator, key, values)?);
                }
            }
        }
        Ok(Self { allow, actions, resources, conditions })
    }

    fn matches(&self, request: &Request<'_>) -> bool {
        let action = request.action.to_ascii_lowercase();
        self.actions.iter().any(|pattern| like(&pattern.to_ascii_lowercase(), &action))
            && self.resources.iter().any(|pattern| like(pattern, request.resource))
            && self.conditions.iter().all(|condition| condition.holds(request))
    }
}

impl Condition {
    fn parse(operator: &str, key: &str, values: &Value) -> Result<Self, Malformed> {
        let values = strings(Some(values), "a condition's value")?;
        let dates = |values: Vec<String>| {
            values.iter().map(|text| text.parse().map_err(|_| malformed("not a date"))).collect::<Result<Vec<_>, _>>()
        };
        let test = match operator {
            "StringEquals" => Test::StringEquals(values),
            "StringNotEquals" => Test::StringNotEquals(values),
            "StringLike" => Test::StringLike(values),
            "StringNotLike" => Test::StringNotLike(values),
            "DateLessThan" => Test::DateLessThan(dates(values)?),
            "DateGreaterThan" => Test::DateGreaterThan(dates(values)?),
            _ => return Err(malformed("a condition operator that is not known here")),
        };
        Ok(Self { key: key.to_ascii_lowercase(), test })
    }

    /// A key that the request does not have fails a positive test and passes a negated one, as in AWS.
    fn holds(&self, request: &Request<'_>) -> bool {
        let text = match self.key.as_str() {
            "aws:userid" => Some(request.user_id),
            "s3:prefix" => request.prefix,
            _ => None,
        };
        let time = match self.key.as_str() {
            "aws:currenttime" => Some(request.now),
            "aws:tokenissuetime" => Some(request.token_issued_at),
            _ => None,
        };
        match &self.test {
            Test::StringEquals(values) => text.is_some_and(|text| values.iter().any(|value| value == text)),
            Test::StringNotEquals(values) => text.is_none_or(|text| values.iter().all(|value| value != text)),
            Test::StringLike(patterns) => text.is_some_and(|text| patterns.iter().any(|p| like(p, text))),
            Test::StringNotLike(patterns) => text.is_none_or(|text| !patterns.iter().any(|p| like(p, text))),
            Test::DateLessThan(ends) => time.is_some_and(|time| ends.iter().any(|end| time < *end)),
            Test::DateGreaterThan(starts) => time.is_some_and(|time| starts.iter().any(|start| time > *start)),
        }
    }
}

/// Whether `text` matches `pattern`, where `*` is any characters and `?` is any one. Linear in practice, never
/// exponential: it goes back only to the last `*`.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(character) = text.get(t) {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(expected) if *expected == '?' || expected == character => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((after, from)) = star else { return false };
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|character| *character == '*'))
}

fn object<'a>(value: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>, Malformed> {
    let object = value.as_object().ok_or_else(|| malformed("not an object"))?;
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(Malformed(format!("{key} is not known here"))),
        None => Ok(object),
    }
}

/// One string, or a list of at least one.
fn strings(value: Option<&Value>, what: &str) -> Result<Vec<String>, Malformed> {
    let list = match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let complete = value.and_then(Value::as_array).is_none_or(|given| given.len() == list.len());
    if list.is_empty() || !complete {
        return Err(Malformed(format!("{what} must be a string or a list of strings")));
    }
    if list.iter().any(|text| text.contains("${")) {
        return Err(malformed("policy variables are not known here"));
    }
    Ok(list)
}

fn malformed(problem: &str) -> Malformed {
    Malformed(problem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn request(action: &'static str, resource: &'static str) -> Request<'static> {
        let now = Timestamp::from_secs(1_000_000);
        Request { action, resource, now, token_issued_at: now, user_id: "AROAX:task-1", prefix: None }
    }

    fn policy(statements: Value) -> Policy {
        Policy::parse(&json!({"Version": "2012-10-17", "Statement": statements}).to_string()).unwrap()
    }

    const GET_42: (&str, &str) = ("s3:GetObject", "arn:aws:s3:::ledger/c-42/a");
    const GET_43: (&str, &str) = ("s3:GetObject", "arn:aws:s3:::ledger/c-43/a");

    #[test]
    fn a_session_reaches_only_what_role_and_session_policy_both_allow() {
        let role = policy(json!({"Effect": "Allow", "Action": "s3:Get*", "Resource": "arn:aws:s3:::ledger/*"}));
        let session = policy(json!([{"Effect": "Allow", "Action": ["S3:*"], "Resource": ["arn:aws:s3:::*/c-42/*"]}]));
        let may = |(action, resource)| allows(&role, Some(&session), &request(action, resource));
        assert!(may(GET_42));
        assert!(!may(GET_43));
        assert!(!may(("s3:PutObject", GET_42.1)));
        assert!(allows(&role, None, &request(GET_43.0, GET_43.1)));
    }

    #[test]
    fn a_deny_wins_over_every_allow_and_singles_out_one_session() {
        let role = policy(json!([
            {"Effect": "Allow", "Action": "*", "Resource": "*"},
            {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"StringLike": {"aws:UserId": "*:task-1"}}},
        ]));
        let mut asked = request(GET_42.0, GET_42.1);
        assert_eq!(role.evaluate(&asked), Verdict::Denied);
        asked.user_id = "AROAX:task-2";
        assert_eq!(role.evaluate(&asked), Verdict::Allowed);
    }

    #[test]
    fn the_cut_allows_until_its_time_and_not_at_it() {
        let cut = Timestamp::from_secs(1_000_000);
        let session = policy(json!({"Effect": "Allow", "Action": "*", "Resource": "*",
            "Condition": {"DateLessThan": {"aws:CurrentTime": cut.to_string()}}}));
        let mut asked = request(GET_42.0, GET_42.1);
        assert_eq!(session.evaluate(&asked), Verdict::NotAllowed);
        asked.now = cut - std::time::Duration::from_millis(1);
        assert_eq!(session.evaluate(&asked), Verdict::Allowed);
    }

    #[test]
    fn every_condition_must_hold_and_a_missing_key_fails_a_positive_one() {
        let conditions = json!({"StringLike": {"s3:prefix": ["c-42/*"]}, "StringNotEquals": {"aws:userid": "x"}});
        let listing = policy(json!({"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::ledger",
            "Condition": conditions}));
        let mut asked = request("s3:ListBucket", "arn:aws:s3:::ledger");
        assert_eq!(listing.evaluate(&asked), Verdict::NotAllowed);
        asked.prefix = Some("c-42/2026");
        assert_eq!(listing.evaluate(&asked), Verdict::Allowed);
        asked.user_id = "x";
        assert_eq!(listing.evaluate(&asked), Verdict::NotAllowed);
    }

    #[test]
    fn rejects_documents_that_it_does_not_enforce() {
        let allow = json!({"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"});
        let with = |name: &str, value: Value| {
            let mut statement = allow.clone();
            statement[name] = value;
            json!({"Statement": [statement]}).to_string()
        };
        let bad = [
            String::new(),
            "{}".into(),
            r#"{"Statement": []}"#.into(),
            r#"{"Statement": [], "Statement2": []}"#.into(),
            json!({"Version": "2020-01-01", "Statement": allow}).to_string(),
            with("NotAction", json!("s3:*")),
            with("Principal", json!("*")),
            with("Effect", json!("allow")),
            with("Action", json!(["s3:GetObject", 7])),
            with("Action", json!("GetObject")),
            with("Resource", json!([])),
            with("Resource", json!("ledger/*")),
            with("Resource", json!("arn:aws:s3:::ledger/${aws:userid}/*")),
            with("Condition", json!({"DateLessThan": {"aws:CurrentTime": "soon"}})),
            with("Condition", json!({"NumericLessThan": {"s3:max-keys": "10"}})),
            with("Condition", json!({"StringLike": "x"})),
        ];
        for document in bad {
            assert!(Policy::parse(&document).is_err(), "{document}");
        }
        assert!(Policy::parse(&json!({"Statement": allow}).to_string()).is_ok());
    }

    proptest! {
        #[test]
        fn wildcards_agree_with_a_plain_recursive_matcher(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            fn plain(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, None) => true,
                    (Some((b'*', rest)), _) =>
                        plain(rest, text) || text.split_first().is_some_and(|(_, after)| plain(pattern, after)),
                    (Some((b'?', rest)), Some((_, after))) => plain(rest, after),
                    (Some((a, rest)), Some((b, after))) => a == b && plain(rest, after),
                    _ => false,
                }
            }
            prop_assert_eq!(like(&pattern, &text), plain(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn reading_a_policy_never_panics(text in ".{0,200}") {
            _ = Policy::parse(&text);
        }
    }
}
