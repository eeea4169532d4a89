use proptest::prelude::*;

use super::*;
use crate::params::ParamType;

const GOOD: &str = r#"
[[Statement]]
Effect = "Allow"
Action = ["s3:GetObject"]
Resource = ["arn:aws:s3:::ledger/${param.customer}/${param.year}.csv"]
"#;

fn parse(text: &str) -> Result<SessionPolicy, DocumentError> {
    SessionPolicy::parse(toml::from_str(text).unwrap())
}

fn refused(text: &str) -> String {
    parse(text).expect_err(text).message
}

fn declared(names: &[&str], max: u16) -> BTreeMap<ParamName, ParamSpec> {
    names.iter().map(|name| (name.parse().unwrap(), ParamSpec { kind: ParamType::Segment, max })).collect()
}

fn values(customer: &str, year: &str) -> Params {
    [("customer", customer), ("year", year)].map(|(name, value)| (name.parse().unwrap(), value.to_owned())).into()
}

#[test]
fn fills_parameters_into_texts() {
    let policy = parse(GOOD).unwrap();
    assert_eq!(policy.params().iter().map(ParamName::as_str).collect::<Vec<_>>(), ["customer", "year"]);
    let filled = policy.fill(&values("c-42", "2026"));
    assert_eq!(filled["Statement"][0]["Resource"][0], "arn:aws:s3:::ledger/c-42/2026.csv");
    assert_eq!(filled["Statement"][0]["Action"][0], "s3:GetObject");
}

#[test]
fn does_not_expand_references_inside_values() {
    // No accepted value looks like this; the filling does not rest on it.
    let filled = parse(GOOD).unwrap().fill(&values("${param.year}", "2026"));
    assert_eq!(filled["Statement"][0]["Resource"][0], "arn:aws:s3:::ledger/${param.year}/2026.csv");
}

#[test]
fn rejects_time_keys_in_any_case_and_place() {
    for key in ["aws:CurrentTime", "AWS:currenttime", "aws:EpochTime", "AWS:EPOCHTIME"] {
        for effect in ["Allow", "Deny"] {
            let text = format!(
                "{GOOD}\n[[Statement]]\nEffect = \"{effect}\"\nAction = \"*\"\nResource = \"*\"\n\
                 Condition.DateGreaterThan.\"{key}\" = \"2026-01-01T00:00:00Z\""
            );
            assert!(refused(&text).contains("time cut"), "{text}");
        }
    }
}

#[test]
fn rejects_unknown_references_wherever_they_stand() {
    for reference in
        ["${aws:username}", "${param.}", "${param.Customer}", "${}", "${*}", "${param.customer", "${ param.customer}"]
    {
        assert!(refused(&GOOD.replace("${param.customer}", reference)).contains("unknown ${"), "{reference}");
    }
    let key = format!("{GOOD}Condition.StringLike.\"${{param.customer}}\" = \"x\"");
    assert!(refused(&key).contains("in a key"));
    // A bare $ means nothing to IAM.
    assert!(parse(&GOOD.replace("${param.customer}", "$5")).is_ok());
}

#[test]
fn rejects_what_is_not_an_identity_policy() {
    let cases = [
        ("", "must have Statement"),
        ("Statement = []", "must have Statement"),
        ("Statement = \"x\"", "must have Statement"),
        ("Statement = [1]", "must have Statement"),
        ("Statment = []", "unknown member"),
        ("Statement = { Effect = \"allow\", Action = \"a:b\", Resource = \"*\" }", "Effect"),
        ("Statement = { Action = \"a:b\", Resource = \"*\" }", "Effect"),
        ("Statement = { Effect = \"Deny\", Action = \"a:b\", Resource = \"*\" }", "allows nothing"),
        ("Statement = { Effect = \"Allow\", Resource = \"*\" }", "either Action or NotAction"),
        ("Statement = { Effect = \"Allow\", Action = \"a:b\" }", "either Resource or NotResource"),
        (
            "Statement = { Effect = \"Allow\", Action = \"a:b\", NotAction = \"a:c\", Resource = \"*\" }",
            "either Action",
        ),
        ("Statement = { Effect = \"Allow\", Action = [], Resource = \"*\" }", "one or more texts"),
        ("Statement = { Effect = \"Allow\", Action = 1, Resource = \"*\" }", "one or more texts"),
        ("Statement = { Effect = \"Allow\", Action = \"a:b\", Resource = \"*\", Principal = \"*\" }", "unknown member"),
        ("Statement = { Effect = \"Allow\", Action = \"a:b\", Resource = \"*\", Condition = \"x\" }", "Condition"),
        ("Statement = { Effect = \"Allow\", Action = \"a:b\", Resource = \"*\", Condition = { X = {} } }", "Condition"),
        ("Version = \"2008-10-17\"\nStatement = { Effect = \"Allow\", Action = \"a:b\", Resource = \"*\" }", "Version"),
        ("Statement = { Effect = \"Allow\", Action = \"a:b\", Resource = \"\u{2603}\" }", "character"),
        ("Statement = { Effect = \"Allow\", Action = \"a:b\", Resource = \"a\\nb\" }", "character"),
        ("Statement = { Effect = \"Allow\", Action = \"a:b\", Resource = \"*\", Condition.X.y = 2026-01-01 }", "date"),
    ];
    for (text, says) in cases {
        assert!(refused(text).contains(says), "{text}: {}", refused(text));
    }
}

#[test]
fn rejects_what_the_exchange_could_not_cut() {
    let other = |effect: &str| {
        format!(
            "{GOOD}[[Statement]]\nEffect = \"{effect}\"\nAction = \"a:b\"\nResource = \"*\"\n\
             Condition.datelessthan.\"aws:TokenIssueTime\" = \"2030-01-01T00:00:00Z\""
        )
    };
    assert!(refused(&other("Allow")).contains("write DateLessThan"));
    assert!(parse(&other("Deny")).is_ok());
}

#[test]
fn a_scope_must_declare_the_parameters_that_are_used() {
    let policy = parse(GOOD).unwrap();
    assert!(policy.check_params(&declared(&["customer", "year", "more"], 32)).is_ok());
    let error = policy.check_params(&declared(&["customer"], 32)).unwrap_err();
    assert!(error.message.contains("${param.year}"), "{}", error.message);
}

#[test]
fn counts_the_cut_and_the_longest_parameters_towards_the_limit_of_sts() {
    let compact = r#"{"Statement":[{"Action":["s3:GetObject"],"Condition":{"DateLessThan":{"aws:CurrentTime":"2026-11-23T16:48:33Z"}},"Effect":"Allow","Resource":["arn:aws:s3:::ledger/C/Y.csv"]}],"Version":"2012-10-17"}"#;
    let policy = parse(GOOD).unwrap();
    let whole = with_cut(policy.fill(&values("C", "Y")), Some(SOME_CUT)).unwrap();
    assert_eq!((&whole, whole.to_string().len()), (&serde_json::from_str(compact).unwrap(), compact.len()));
    let at = |length: usize| {
        let padded = GOOD.replace("ledger/", &format!("ledger/{}/", "p".repeat(length - 1)));
        parse(&padded).unwrap().check_params(&declared(&["customer", "year"], 10))
    };
    let room = MAX_POLICY - (compact.len() - 2 + 20);
    assert!(at(room).is_ok());
    assert!(at(room + 1).unwrap_err().message.contains("2049 bytes"));
}

#[test]
fn the_cut_goes_into_every_allow_beside_other_conditions() {
    let text = format!(
        "{GOOD}Condition.DateLessThan.\"aws:TokenIssueTime\" = \"2030-01-01T00:00:00Z\"\n[[Statement]]\nEffect = \"Deny\"\nAction = \"a:b\"\nResource = \"*\""
    );
    let cut = with_cut(parse(&text).unwrap().fill(&values("a", "b")), Some(SOME_CUT)).unwrap();
    let condition = &cut["Statement"][0]["Condition"]["DateLessThan"];
    assert_eq!(condition.as_object().unwrap().len(), 2);
    assert_eq!(cut["Statement"][1].get("Condition"), None);
}

fn shape(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(shape).collect()),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(key, member)| (key.clone(), shape(member))).collect())
        }
        Value::String(_) => Value::Null,
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn no_value_changes_the_structure(customer in any::<String>(), year in any::<String>()) {
        let policy = parse(GOOD).unwrap();
        let filled = policy.fill(&values(&customer, &year));
        prop_assert_eq!(shape(&filled), shape(&policy.template()));
        // And through text and back it is still the same.
        let again: Value = serde_json::from_str(&filled.to_string()).unwrap();
        prop_assert_eq!(&again, &filled);
        let expected = format!("arn:aws:s3:::ledger/{customer}/{year}.csv");
        prop_assert_eq!(filled["Statement"][0]["Resource"][0].as_str(), Some(expected.as_str()));
    }

    #[test]
    fn accepted_values_fit_the_size_that_was_checked(customer in "[A-Za-z0-9._-]{1,32}", year in "[A-Za-z0-9._-]{1,32}") {
        let policy = parse(GOOD).unwrap();
        policy.check_params(&declared(&["customer", "year"], 32)).unwrap();
        prop_assert!(compile(Some(&policy.fill(&values(&customer, &year))), Some(SOME_CUT)).is_ok());
    }
}
