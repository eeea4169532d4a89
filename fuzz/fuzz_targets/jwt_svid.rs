//! Unsigned by us, so never accepted: whole tokens, parts that only need encoding, and edits of tokens that are good.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use sidemint::identity::jwt_svid::{MAX_TOKEN, verify};
use sidemint_fuzz::{AUDIENCE, BUNDLES, NOW, good_claims, good_header, halves, sign};

static GOOD: LazyLock<String> = LazyLock::new(|| sign(good_header().as_bytes(), good_claims(AUDIENCE).as_bytes()));

/// Puts, in steps of three bytes, a byte at a place of the good token, cuts it there, or doubles what stands there.
fn edited(steps: &[u8]) -> Vec<u8> {
    let mut token = GOOD.clone().into_bytes();
    for step in steps.chunks_exact(3) {
        let at = (usize::from(step[0]) * 256 + usize::from(step[1])) % token.len().max(1);
        match step[2] {
            0 => token.truncate(at),
            1 => drop(token.drain(at..(at + 1).min(token.len()))),
            2 if token.len() <= MAX_TOKEN => token.extend_from_within(at..),
            2 => {}
            byte => token.insert(at, byte),
        }
    }
    token
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let token = match mode % 3 {
        0 => rest.to_vec(),
        1 => {
            let (header, rest) = halves(rest);
            let (claims, signature) = halves(rest);
            [header, claims, signature].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".").into_bytes()
        }
        _ => edited(rest),
    };
    let Ok(token) = String::from_utf8(token) else { return };
    let verdict = verify(&token, &BUNDLES, AUDIENCE, NOW);
    assert_eq!(verdict.is_ok(), token == *GOOD, "{verdict:?}");
});
