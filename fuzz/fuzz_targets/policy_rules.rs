//! Cedar rules, a boundary's and (behind a NUL) a decision's: whatever either says, a boundary never lets anyone in, and
//! a decision never gets past a boundary.
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sidemint::identity::{Authenticator, Caller, Evidence};
use sidemint::policy::repository::PolicyFiles;
use sidemint::policy::{Ask, Policy};
use sidemint_fuzz::{AUDIENCE, FixedWorkloadApi, NOW, REPORT, halves, policy_files};

fn caller(id: &str) -> Caller {
    let authenticator = Authenticator::new(FixedWorkloadApi::new(), AUDIENCE.into());
    authenticator.authenticate(&Evidence::Pod(id.parse().unwrap()), NOW).unwrap()
}

static CALLERS: LazyLock<[Caller; 2]> = LazyLock::new(|| [caller(REPORT), caller("spiffe://other.example/x")]);

fn ask(customer: &str) -> Ask {
    Ask {
        scope: "ledger-read".parse().unwrap(),
        params: [("customer".parse().unwrap(), customer.to_owned())].into(),
        reason: None,
        approval: None,
        ttl: None,
    }
}

fn with(path: &str, rules: &[u8]) -> Option<Policy> {
    let mut files = policy_files();
    files.insert(path.to_owned(), Bytes::copy_from_slice(rules));
    Policy::load(&PolicyFiles::unsigned(files)).ok()
}

fuzz_target!(|data: &[u8]| {
    let (boundary, decision) = halves(data);
    let [ours, foreign] = &*CALLERS;
    if let Some(policy) = with("boundaries/security.cedar", boundary) {
        // the decision names c-42 and c-43 alone
        assert!(policy.decide(ours, &ask("c-99"), NOW).is_err());
        assert!(policy.decide(foreign, &ask("c-42"), NOW).is_err());
    }
    if let Some(policy) = with("decisions/ledger-read.cedar", decision) {
        let _ = policy.decide(ours, &ask("c-42"), NOW);
        assert!(policy.decide(ours, &ask("c-13"), NOW).is_err());
        assert!(policy.decide(foreign, &ask("c-42"), NOW).is_err());
    }
});
