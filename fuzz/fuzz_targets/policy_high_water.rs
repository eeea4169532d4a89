//! What is remembered of a policy repository: no bytes break its reader, and what is read is written again as the same.
//! The bytes are tried as a whole file, and as JSON under a checksum that is right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidemint::policy::repository::Digest;
use sidemint::policy::repository::high_water::HighWater;

fn read(bytes: &[u8]) {
    match HighWater::parse(bytes) {
        Ok(kept) => assert_eq!(HighWater::parse(&kept.to_bytes()), Ok(kept)),
        Err(why) => assert!(!why.is_empty()),
    }
}

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut file = b"sidemint high-water 1\n".to_vec();
    file.extend_from_slice(data);
    file.push(b'\n');
    let digest = Digest::of(&file);
    file.extend_from_slice(format!("{digest}\n").as_bytes());
    read(&file);
});
