//! A `grants/*.toml` file: no bytes break its reader; without a session policy it passes only by its own word.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidemint::policy::document::{Grant, GrantProvider};

fuzz_target!(|data: &[u8]| match Grant::parse(data) {
    Ok(grant) => {
        let GrantProvider::Aws(aws) = &grant.provider;
        assert!(aws.role_arn.starts_with("arn:") && aws.role_arn.contains(":role/"));
        match &aws.session_policy {
            Some(policy) => assert!(policy.allows().next().is_some()),
            None => assert!(std::str::from_utf8(data).unwrap().contains("accept_role_scope")),
        }
    }
    Err(error) => assert!(!error.message.is_empty() && !error.kind.is_empty()),
});
