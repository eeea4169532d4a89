use proptest::prelude::*;

use super::*;

const CUT: &str = "2026-11-23T16:48:33Z";

fn cut() -> Option<Timestamp> {
    Some(CUT.parse().unwrap())
}

fn compiled(policy: &Value) -> Result<Value, SessionPolicyError> {
    compile(Some(policy), cut()).map(|text| serde_json::from_str(&text.unwrap()).unwrap())
}

#[test]
fn adds_the_cut_to_every_allow_and_only_to_allows() {
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"},
        {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "*"},
    ]});
    let mut expected = policy.clone();
    expected["Statement"][0]["Condition"] = json!({"DateLessThan": {"aws:CurrentTime": CUT}});
    assert_eq!(compiled(&policy).unwrap(), expected);
}

#[test]
fn merges_the_cut_into_conditions_that_are_there() {
    let condition = json!({"DateLessThan": {"aws:TokenIssueTime": "2027-01-01T00:00:00Z"}, "Bool": {"aws:SecureTransport": "true"}});
    let policy = json!({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition}});
    let mut expected = policy.clone();
    expected["Version"] = "2012-10-17".into();
    expected["Statement"]["Condition"]["DateLessThan"]["aws:CurrentTime"] = CUT.into();
    assert_eq!(compiled(&policy).unwrap(), expected);
}

#[test]
fn rounds_the_cut_down_to_the_whole_second() {
    let fine = CUT.parse::<Timestamp>().unwrap() + std::time::Duration::from_millis(999);
    assert_eq!(compile(None, Some(fine)), compile(None, cut()));
}

#[test]
fn a_grant_that_accepts_the_role_scope_is_sent_bare_or_cut_but_never_empty() {
    assert_eq!(compile(None, None), Ok(None));
    let condition = json!({"DateLessThan": {"aws:CurrentTime": CUT}});
    let statement = json!({"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition});
    let text = compile(None, cut()).unwrap().unwrap();
    let sent: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(sent, json!({"Version": "2012-10-17", "Statement": [statement]}));
}

#[test]
fn rejects_a_policy_that_limits_the_current_time_itself() {
    for key in ["aws:CurrentTime", "aws:currenttime", "AWS:CURRENTTIME"] {
        for operator in ["DateLessThan", "DateGreaterThan", "DateLessThanIfExists"] {
            let policy =
                json!({"Statement": [{"Effect": "Allow", "Condition": {operator: {key: "2030-01-01T00:00:00Z"}}}]});
            assert_eq!(compiled(&policy), Err(SessionPolicyError::UsesCurrentTime), "{operator} {key}");
        }
    }
}

#[test]
fn rejects_what_is_not_a_policy_with_statements() {
    for policy in [
        json!(null),
        json!(""),
        json!([]),
        json!({}),
        json!({"Statement": []}),
        json!({"Statement": "Allow"}),
        json!({"Statement": ["Allow"]}),
        json!({"Statement": [{"Action": "*"}]}),
        json!({"Statement": [{"Effect": "allow"}]}),
        json!({"Statement": [{"Effect": "Allow", "Condition": []}]}),
        json!({"Statement": [{"Effect": "Allow", "Condition": {"DateLessThan": "x"}}]}),
        json!({"Statement": [{"Effect": "Allow", "Condition": {"datelessthan": {"aws:TokenIssueTime": "x"}}}]}),
    ] {
        assert_eq!(compiled(&policy), Err(SessionPolicyError::Shape), "{policy}");
    }
}

#[test]
fn rejects_one_byte_too_many_and_characters_that_sts_does_not_take() {
    let sized = |n: usize| json!({"Statement": [{"Effect": "Allow", "Resource": "a".repeat(n)}]});
    let overhead = compile(Some(&sized(0)), cut()).unwrap().unwrap().len();
    let fits = compile(Some(&sized(MAX_POLICY - overhead)), cut()).unwrap().unwrap();
    assert_eq!(fits.len(), MAX_POLICY);
    let too_large = compile(Some(&sized(MAX_POLICY - overhead + 1)), cut());
    assert_eq!(too_large, Err(SessionPolicyError::TooLarge(MAX_POLICY + 1)));
    let named = |name: &str| json!({"Statement": [{"Effect": "Allow", "Resource": name}]});
    assert_eq!(compiled(&named("é\n\u{ff}")).unwrap()["Statement"][0]["Resource"], "é\n\u{ff}");
    assert_eq!(compiled(&named("\u{100}")), Err(SessionPolicyError::Character(0x100)));
    assert_eq!(compiled(&named("🦀")), Err(SessionPolicyError::Character(0x1f980)));
}

/// Any JSON, shallow: values that a policy author could write below a condition key or an action.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[ -~]{0,8}".prop_map(Value::from)
    ];
    leaf.prop_recursive(2, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Value::from))
}

fn condition() -> impl Strategy<Value = Value> {
    let operator = prop_oneof![Just("DateLessThan"), Just("StringLike"), Just("Bool"), Just("DateGreaterThan")];
    let key = prop_oneof![Just("aws:TokenIssueTime"), Just("aws:SourceIp"), Just("s3:prefix")];
    let keys = prop::collection::hash_map(key, json_value(), 0..3).prop_map(|keys| json!(keys));
    prop::collection::hash_map(operator, keys, 0..4).prop_map(|operators| json!(operators))
}

fn statement() -> impl Strategy<Value = Value> {
    let effect = prop_oneof![Just("Allow"), Just("Deny")];
    let members =
        (effect, json_value(), json_value(), prop::option::of(condition()), prop::option::of("[A-Za-z0-9]{1,8}"));
    members.prop_map(|(effect, action, resource, condition, sid)| {
        let mut statement = json!({"Effect": effect, "Action": action, "Resource": resource});
        if let Some(condition) = condition {
            statement["Condition"] = condition;
        }
        if let Some(sid) = sid {
            statement["Sid"] = sid.into();
        }
        statement
    })
}

fn policy() -> impl Strategy<Value = Value> {
    let statements = prop_oneof![statement(), prop::collection::vec(statement(), 1..5).prop_map(Value::from),];
    (statements, any::<bool>()).prop_map(|(statements, version)| {
        let mut policy = json!({"Statement": statements});
        if version {
            policy["Version"] = "2012-10-17".into();
        }
        policy
    })
}

proptest! {
    #[test]
    fn every_allow_ends_up_cut_and_nothing_else_changes(policy in policy(), secs in 0_u64..10_000_000_000) {
        let cut = Timestamp::from_secs(secs);
        match compile(Some(&policy), Some(cut)) {
            Ok(text) => {
                let text = text.unwrap();
                prop_assert!(text.len() <= MAX_POLICY);
                let mut sent: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(&sent["Version"], "2012-10-17");
                // Take the cut out again by hand: what is left must be what came in.
                let uncut = |sent: &mut Value, original: &Value| -> Result<(), TestCaseError> {
                    if original["Effect"] == "Allow" {
                        let keys = sent["Condition"]["DateLessThan"].as_object_mut().unwrap();
                        prop_assert_eq!(keys.remove("aws:CurrentTime"), Some(Value::from(cut.to_string())));
                        if keys.is_empty() && original["Condition"].get("DateLessThan").is_none() {
                            sent["Condition"].as_object_mut().unwrap().remove("DateLessThan");
                        }
                        if original.get("Condition").is_none() {
                            prop_assert_eq!(sent.as_object_mut().unwrap().remove("Condition"), Some(json!({})));
                        }
                    }
                    prop_assert_eq!(&*sent, original);
                    Ok(())
                };
                match &policy["Statement"] {
                    Value::Array(list) => {
                        prop_assert_eq!(list.len(), sent["Statement"].as_array().unwrap().len());
                        for (i, original) in list.iter().enumerate() {
                            uncut(&mut sent["Statement"][i], original)?;
                        }
                    }
                    one => uncut(&mut sent["Statement"], one)?,
                }
            }
            Err(SessionPolicyError::TooLarge(size)) => prop_assert!(size > MAX_POLICY),
            Err(other) => prop_assert!(false, "refused: {}", other),
        }
    }

    #[test]
    fn any_text_that_is_sent_keeps_to_size_and_characters(text in ".{0,2100}") {
        let policy = json!({"Statement": [{"Effect": "Allow", "Action": text, "Resource": "*"}]});
        if let Ok(Some(sent)) = compile(Some(&policy), None) {
            prop_assert!(!sent.is_empty() && sent.len() <= MAX_POLICY);
            prop_assert!(sent.chars().all(|c| u32::from(c) <= 0xff));
        }
    }
}
