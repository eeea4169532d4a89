//! A trust bundle from the Workload API: no bytes break its reader, and its keys verify no token of another key.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use sidemint::identity::jwt_svid::{JwtBundle, verify};
use sidemint_fuzz::{AUDIENCE, NOW, good_claims, good_header, sign};

static TOKEN: LazyLock<String> = LazyLock::new(|| sign(good_header().as_bytes(), good_claims(AUDIENCE).as_bytes()));

fuzz_target!(|data: &[u8]| {
    let one = JwtBundle::from_jwks([data]).unwrap();
    for bundle in [Some(one), JwtBundle::parse(data).ok()].into_iter().flatten() {
        let bundles = [("example.org".parse().unwrap(), Arc::new(bundle))].into();
        // the key that signed it is of this process: no corpus can hold it
        assert!(verify(&TOKEN, &bundles, AUDIENCE, NOW).is_err());
    }
});
