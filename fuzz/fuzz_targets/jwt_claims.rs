//! Any header and claims, truly signed by a trusted key: what is accepted must keep every rule, by another reading.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sidemint::identity::SpiffeId;
use sidemint::identity::jwt_svid::{MAX_LIFETIME, MAX_TOKEN, verify};
use sidemint_fuzz::{AUDIENCE, BUNDLES, KID, NOW, halves, sign};

fuzz_target!(|data: &[u8]| {
    let (header, claims) = halves(data);
    if header.len() + claims.len() > MAX_TOKEN {
        return;
    }
    let token = sign(header, claims);
    let Ok(accepted) = verify(&token, &BUNDLES, AUDIENCE, NOW) else { return };
    assert!(token.len() <= MAX_TOKEN);
    let header: Value = serde_json::from_slice(header).unwrap();
    assert_eq!([&header["alg"], &header["kid"]], ["ES256", KID]);
    assert!(header.as_object().unwrap().keys().all(|name| ["alg", "kid", "typ"].contains(&name.as_str())));
    let claims: Value = serde_json::from_slice(claims).unwrap();
    let id: SpiffeId = claims["sub"].as_str().unwrap().parse().unwrap();
    assert_eq!((&id, id.trust_domain().as_str()), (&accepted.spiffe_id, "example.org"));
    assert!(claims["aud"] == AUDIENCE || claims["aud"] == serde_json::json!([AUDIENCE]));
    let exp = claims["exp"].as_u64().unwrap();
    assert_eq!(exp, accepted.expires_at.as_secs());
    assert!(exp > NOW.as_secs() && exp <= NOW.as_secs() + MAX_LIFETIME.as_secs());
    for name in ["nbf", "iat"] {
        assert!(claims.get(name).is_none_or(|at| at.as_u64().unwrap() <= NOW.as_secs() + 30));
    }
});
