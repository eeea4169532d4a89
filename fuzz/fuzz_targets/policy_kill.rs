//! A kill list: no bytes break its reader, and what it takes is what it says.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use sidemint::policy::kill::{KillList, MAX_STOPS};
use sidemint_fuzz::NOW;

fuzz_target!(|data: &[u8]| match KillList::parse(data, Some(1)) {
    Ok(list) => {
        assert!(list.stops().len() <= MAX_STOPS && list.in_force(NOW) <= list.stops().len());
        let ids: BTreeSet<_> = list.stops().iter().map(|stop| &stop.id).collect();
        assert_eq!(ids.len(), list.stops().len());
        assert!(list.stops().iter().all(|stop| !stop.reason.trim().is_empty()));
        assert_eq!(KillList::parse(data, Some(1)).unwrap(), list);
    }
    Err(error) => assert!(!error.message.is_empty() && !error.kind.is_empty()),
});
