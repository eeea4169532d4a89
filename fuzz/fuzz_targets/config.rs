//! The configuration's file and (behind a NUL) variables, a line each: accepted it keeps its bounds, refused it is one line.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sidemint::config::Config;
use sidemint_fuzz::halves;

fuzz_target!(|data: &[u8]| {
    let (file, variables) = halves(data);
    let (Ok(file), Ok(variables)) = (std::str::from_utf8(file), std::str::from_utf8(variables)) else { return };
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    let all = variables.chain([("HOME", "/h"), ("SPIFFE_ENDPOINT_SOCKET", "unix:///s")]);
    match Config::parse(file, "f", all.map(|(name, value)| (name.to_owned(), value.to_owned()))) {
        Ok(config) => {
            assert!(config.server.http.ip().is_loopback());
            assert!(!config.identity.audience.ends_with("amazonaws.com"));
            assert!(config.limits.tasks > 0 && config.limits.connections > 0 && config.limits.upstream_rate > 0);
            assert!(config.limits.mint >= Duration::from_secs(1));
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
});
