//! A `grants/*.toml` file: no bytes break its reader; without anything that narrows it passes only by its own word.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidemint::policy::document::Grant;
use sidemint::provider::GrantTemplate;

fuzz_target!(|data: &[u8]| match Grant::parse(data) {
    Ok(grant) => {
        let narrowed = match &grant.template {
            GrantTemplate::Aws(aws) => {
                assert!(aws.role_arn.starts_with("arn:") && aws.role_arn.contains(":role/"));
                aws.session_policy.as_ref().is_some_and(|policy| !policy.allows().is_empty())
            }
            GrantTemplate::Vault(vault) => {
                let segments = || vault.read.as_str().split('/');
                assert!(segments().count() >= 2 && segments().all(|s| !matches!(s, "" | "." | "..")));
                !vault.read.params().is_empty()
            }
        };
        assert!(narrowed || std::str::from_utf8(data).unwrap().contains("accept_role_scope"));
    }
    Err(error) => assert!(!error.message.is_empty() && !error.kind.is_empty()),
});
