//! Project Wycheproof's vectors for JSON Web Signature, where they are at hand: `WYCHEPROOF=DIR cargo test wycheproof`, DIR
//! being `testvectors_v1` of the repository C2SP/wycheproof. They are not in this repository.
//!
//! Their payloads are not claims, so what is tried here is [`super::verify`] without them: form, header, key, signature.
//! What they call invalid must be refused. What they call valid must be accepted unless one of [`EXCLUDED`] says why not:
//! a JWT-SVID is allowed less than a JWS.

use std::io::Write as _;
use std::path::Path;

use serde_json::Value as Json;

use super::*;

/// Why, and whether it is so of a key and a token.
type Exclusion = (&'static str, fn(&Json, &str) -> bool);

/// Valid as JWS, refused as JWT-SVID: which, and why. The keys are given a `kid` where only the header lacks it.
const EXCLUDED: [Exclusion; 6] = [
    ("symmetric keys: every holder of the bundle could sign", |key, _| key["kty"] == "oct"),
    ("keys for an algorithm that there is not (`ES521`)", |key, _| key["alg"] == "ES521"),
    ("a payload of no bytes: a JWT-SVID has claims", |_, token| token.contains("..")),
    ("a key that declares another algorithm than the header (RFC 7517 §4.4)", |key, token| {
        let header: Json = serde_json::from_str(&header(token)).unwrap_or_default();
        key.get("alg").is_some_and(|alg| *alg != header["alg"])
    }),
    ("headers that name no key", |_, token| !header(token).contains("\"kid\"")),
    ("base64 with characters that are not of its alphabet", |_, token| !token.bytes().all(is_of_a_jws)),
];

/// Invalid there and accepted here: an RSA key whose primes are of a known weak form (ROCA). Bundles come from the trust
/// domain's own authority, over the Workload API; how it makes its keys is its affair.
const NOT_OURS: &str = "rejectsKeyWithRocaVulnerability";

fn is_of_a_jws(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn header(token: &str) -> String {
    let part = token.split('.').next().unwrap_or_default();
    String::from_utf8(decode(part).unwrap_or_default()).unwrap_or_default()
}

/// [`super::verify`] without the claims.
fn verify_jws(token: &str, bundle: &JwtBundle) -> Result<(), JwtSvidError> {
    let parts = Parts::split(token)?;
    let header = Header::read(&parts.header)?;
    let key = bundle.key(&header.kid).ok_or(JwtSvidError::UnknownKey)?;
    key.verify(header.algorithm, parts.signed.as_bytes(), &parts.signature).map_err(|error| match error {
        KeyError::Mismatch => JwtSvidError::KeyMismatch,
        KeyError::Signature => JwtSvidError::Signature,
    })
}

/// The keys of a group as a trust bundle, and the first of them.
fn bundle(group: &Json) -> (JwtBundle, Json) {
    let given = group.get("public").or_else(|| group.get("private")).unwrap();
    let keys = match given.get("keys") {
        Some(keys) => keys.clone(),
        None => serde_json::json!([given]),
    };
    let first = keys[0].clone();
    (JwtBundle::parse(serde_json::json!({ "keys": keys }).to_string().as_bytes()).unwrap(), first)
}

#[test]
fn wycheproof_vectors_get_their_verdict() {
    let Ok(directory) = std::env::var("WYCHEPROOF") else {
        // Past the test harness, which shows what a passing test prints to nobody.
        let _ =
            writeln!(std::io::stderr(), "skipped: Wycheproof's vectors, since WYCHEPROOF names no directory of them");
        return;
    };
    let (mut refused, mut accepted, mut excluded, mut wrong) = (0, 0, 0, Vec::new());
    for file in ["json_web_signature_test.json", "json_web_key_test.json", "json_web_crypto_test.json"] {
        let vectors: Json = serde_json::from_slice(&std::fs::read(Path::new(&directory).join(file)).unwrap()).unwrap();
        for group in vectors["testGroups"].as_array().unwrap() {
            let (bundle, key) = bundle(group);
            for test in group["tests"].as_array().unwrap() {
                let Some(token) = test["jws"].as_str() else { continue };
                let verdict = verify_jws(token, &bundle);
                let expected = test["result"] == "valid";
                let exclusion = EXCLUDED.iter().any(|(_, is_it)| is_it(&key, token));
                match (expected, &verdict) {
                    (false, Err(_)) => refused += 1,
                    (true, Ok(())) => accepted += 1,
                    (true, Err(_)) if exclusion => excluded += 1,
                    (false, Ok(())) if test["comment"] == NOT_OURS => excluded += 1,
                    _ => wrong.push(format!("{file} {}: {} {:?}", test["tcId"], test["comment"], verdict)),
                }
            }
        }
    }
    println!("refused {refused}, accepted {accepted}, excluded {excluded}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused > 300 && accepted > 10);
}
