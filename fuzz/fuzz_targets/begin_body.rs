//! The body of `POST /v1/tasks`: what is accepted keeps its limits; what is refused quotes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sidemint::server::begin_body::parse;

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(asked) => {
            // by another reading: an object, its members by the same names
            let body: Value = serde_json::from_slice(data).unwrap();
            assert_eq!(body["scope"], asked.ask.scope.as_str());
            assert_eq!(body["task"].as_str(), asked.label.as_deref());
            assert_eq!(body["hold"].as_bool().unwrap_or(false), asked.hold);
            let params = body["params"].as_object().map_or(0, |params| params.len());
            assert!(params == asked.ask.params.len() && params <= 32);
            assert!(
                asked.label.is_none_or(|label| label.chars().count() <= 128 && !label.chars().any(char::is_control))
            );
            assert!(asked.ask.reason.is_none_or(|reason| reason.chars().count() <= 512));
            assert!(asked.ask.ttl.is_none_or(|ttl| !ttl.is_zero()));
        }
        Err(problem) => {
            assert!(matches!(problem.code(), "invalid_request" | "denied"));
            assert!(problem.detail().len() < 256);
        }
    }
});
