//! A role's metadata as somebody staged it to be signed: no bytes break its reader; what it says is written again as the
//! same; and only who really signed it is counted, once.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sidemint::policy::publish::keys::good_signatures;
use sidemint::policy::repository::metadata::{Envelope, LocalKey, Signer as _, TufKey};

static KEY: LazyLock<LocalKey> = LazyLock::new(|| LocalKey::generate().unwrap().0);
static KEYS: LazyLock<Vec<(String, TufKey)>> = LazyLock::new(|| {
    let other = LocalKey::generate().unwrap().0.public().clone();
    vec![("ours".to_owned(), KEY.public().clone()), ("another".to_owned(), other)]
});

fuzz_target!(|data: &[u8]| {
    let Ok(mut staged) = serde_json::from_slice::<Envelope>(data) else { return };
    assert!(good_signatures(&staged, &KEYS).is_empty(), "a key of this process signed nothing");
    // What has no canonical form (a number that is no integer) cannot be signed.
    if staged.message().is_err() {
        assert!(staged.sign(&*KEY).is_err());
        return;
    }
    let again: Envelope = serde_json::from_slice(&staged.to_bytes()).unwrap();
    assert!(again.signed == staged.signed && again.signatures == staged.signatures);

    // Inputs learn the id of our key, as anyone may know it: what claims to be ours already makes room.
    let others = staged.signatures.iter().filter(|signature| signature.keyid != KEY.public().id()).count();
    for _ in 0..2 {
        staged.sign(&*KEY).unwrap();
        assert_eq!((staged.signatures.len(), good_signatures(&staged, &KEYS)), (others + 1, vec!["ours"]));
    }
    let read: Envelope = serde_json::from_slice(&staged.to_bytes()).unwrap();
    assert_eq!(good_signatures(&read, &KEYS), ["ours"], "also as it is read again");
});
