//! A SPIFFE ID: what is accepted is canonical, so that equal bytes and equal identities are the same thing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidemint::identity::{SpiffeId, TrustDomain};

fuzz_target!(|text: &str| {
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
    }
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.as_str(), text);
    let rest = text.strip_prefix("spiffe://").unwrap();
    let (domain, path) = rest.split_once('/').unwrap();
    assert_eq!(id.trust_domain().as_str(), domain);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    assert!(!domain.is_empty() && domain.len() <= 255 && domain.bytes().all(plain) && text.len() <= 2048);
    for segment in path.split('/') {
        assert!(!matches!(segment, "" | "." | ".."), "{text}");
        assert!(segment.bytes().all(|b| plain(b) || b.is_ascii_uppercase()), "{text}");
    }
});
