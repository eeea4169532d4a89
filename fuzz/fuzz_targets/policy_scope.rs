//! A `scopes/*.toml` file: no bytes break its reader, and its parameters accept nothing that means something elsewhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidemint::policy::document::Scope;

const MEANS_SOMETHING: [&str; 12] = ["*", "?", "${", "/", ":", "\"", "\\", "..", "", "a b", "a\n", "\u{e9}"];

fuzz_target!(|data: &[u8]| match Scope::parse(data) {
    Ok(scope) => {
        assert!(!scope.business_owner.is_empty());
        for spec in scope.params.values() {
            assert!(spec.max >= 1 && MEANS_SOMETHING.iter().all(|value| !spec.accepts(value)));
        }
    }
    Err(error) => assert!(!error.message.is_empty() && !error.kind.is_empty()),
});
