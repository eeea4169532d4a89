//! A record of the journal: no bytes break its reader, and what is read is written again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidemint::lease::LeaseRecord;
use sidemint::task::TaskRecord;

fuzz_target!(|data: &[u8]| {
    if let Ok(task) = serde_json::from_slice::<TaskRecord>(data) {
        let written = serde_json::to_vec(&task).unwrap();
        assert_eq!(serde_json::from_slice::<TaskRecord>(&written).unwrap(), task);
    }
    if let Ok(lease) = serde_json::from_slice::<LeaseRecord>(data) {
        let written = serde_json::to_vec(&lease).unwrap();
        assert_eq!(serde_json::from_slice::<LeaseRecord>(&written).unwrap(), lease);
    }
});
