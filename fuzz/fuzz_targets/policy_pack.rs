//! The policy files as the state directory keeps them: no bytes break the reader of a pack, and a file is known by its own
//! digest alone. The bytes are tried as a whole pack, and behind the words that a pack begins with.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sidemint::policy::repository::Digest;
use sidemint::policy::repository::store::{pack, unpack};

fn read(bytes: Vec<u8>) {
    let files = unpack(&bytes.clone().into());
    assert!(files.iter().all(|(digest, file)| *digest == Digest::of(file)));
    assert!(files.values().map(Bytes::len).sum::<usize>() <= bytes.len());
    assert_eq!(unpack(&pack(files.values()).into()), files);
}

fuzz_target!(|data: &[u8]| {
    read(data.to_vec());
    read([b"sidemint targets 1\n", data].concat());
});
