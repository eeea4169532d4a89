//! A grant's session policy and (behind a NUL) a parameter's value: filling in changes texts with parameters and nothing
//! else, and the cut reaches every Allow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sidemint::policy::{ParamSpec, ParamType};
use sidemint::provider::aws::session_policy::{MAX_POLICY, SessionPolicy, compile};
use sidemint_fuzz::{NOW, halves};

const SPEC: ParamSpec = ParamSpec { kind: ParamType::Segment, max: 256 };

/// Asserts that `filled` is `template` but for the texts in it that hold a parameter.
fn same_shape(template: &Value, filled: &Value, value: &str) {
    match (template, filled) {
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()));
            a.values().zip(b.values()).for_each(|(a, b)| same_shape(a, b, value));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| same_shape(a, b, value));
        }
        (Value::String(a), Value::String(b)) if a.contains("${") => {
            // by another way: cut at the parameters, put together with the value
            let mut parts = a.split("${");
            let mut whole = parts.next().unwrap().to_owned();
            for part in parts {
                whole.push_str(value);
                whole.push_str(part.split_once('}').unwrap().1);
            }
            assert_eq!(*b, whole);
            let special = |text: &str| text.matches(['*', '?', '$', ':', '/', '"']).count();
            assert_eq!(special(&a.replace("${", "")), special(b));
        }
        (a, b) => assert_eq!(a, b),
    }
}

fn statements(policy: &Value) -> Vec<&Value> {
    match &policy["Statement"] {
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    }
}

fuzz_target!(|data: &[u8]| {
    let (text, value) = halves(data);
    let (Ok(text), Ok(value)) = (std::str::from_utf8(text), std::str::from_utf8(value)) else { return };
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let Ok(policy) = SessionPolicy::parse(table) else { return };
    let value = if SPEC.accepts(value) { value } else { "c-42" };
    let filled = policy.fill(&policy.params().iter().map(|name| (name.clone(), value.to_owned())).collect());
    same_shape(&policy.template(), &filled, value);
    let Ok(Some(cut)) = compile(Some(&filled), Some(NOW)) else { return };
    assert!(cut.len() <= MAX_POLICY);
    let cut: Value = serde_json::from_str(&cut).unwrap();
    for (before, after) in statements(&filled).into_iter().zip(statements(&cut)) {
        match before["Effect"].as_str() {
            Some("Allow") => {
                assert_eq!(after["Condition"]["DateLessThan"]["aws:CurrentTime"], NOW.floor_to_second().to_string());
            }
            _ => assert_eq!(before, after),
        }
    }
});
