//! A `decisions/*.toml` file: no bytes break its reader, and what it lets pass keeps the law of life.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sidemint::policy::document::{Decision, Kind, MAX_GRANTS};

fuzz_target!(|data: &[u8]| match Decision::parse(data) {
    Ok(decision) => {
        assert!(decision.caps.max_residual >= Duration::from_secs(30) && !decision.caps.max_task.is_zero());
        assert!(decision.caps.idle.is_none_or(|idle| idle <= decision.caps.max_task));
        assert!(decision.kind != Kind::Exception || decision.expires_at.is_some());
        assert!(decision.review_by <= decision.review_until);
        assert!((1..=MAX_GRANTS).contains(&decision.grants.len()));
    }
    Err(error) => assert!(!error.message.is_empty() && !error.kind.is_empty()),
});
