//! A `decisions/*.tests.toml` file: no bytes break its reader, and every case it accepts can be told by its name.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use sidemint::policy::publish::table;

fuzz_target!(|data: &[u8]| match table::parse(data) {
    Ok(cases) => {
        let names: BTreeSet<_> = cases.iter().map(|case| case.name.as_str()).collect();
        assert!(!cases.is_empty() && names.len() == cases.len() && names.iter().all(|name| !name.trim().is_empty()));
    }
    Err(error) => assert!(!error.is_empty()),
});
