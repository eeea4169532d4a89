//! The files of `owners/`: no bytes break their readers, and a charter never leaves its ranges.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidemint::policy::Tier;
use sidemint::policy::charter::{Charter, MAX_KEYS, MAX_ORPHAN_GRACE, MAX_STALENESS, MIN_STALENESS, Owner};

fuzz_target!(|data: &[u8]| {
    if let Ok(charter) = Charter::parse(data) {
        for tier in Tier::ALL {
            assert!((MIN_STALENESS..=MAX_STALENESS).contains(&charter.max_staleness(tier)));
            assert!(charter.orphan_grace(tier) <= MAX_ORPHAN_GRACE);
        }
        assert!(charter.orphan_grace(Tier::Elevated).is_zero());
    }
    match Owner::parse(data) {
        Ok(owner) => assert!(!owner.name.trim().is_empty() && owner.mail.contains('@') && owner.keys.len() <= MAX_KEYS),
        Err(error) => assert!(!error.message.is_empty() && !error.kind.is_empty()),
    }
});
