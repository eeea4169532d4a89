//! No mutant of a good JWT-SVID is ever accepted (threat T02): `MUTANTS=1000000 cargo test --profile simulation --test mutants`.
//!
//! Tokens of every algorithm are signed by keys that are trusted; then bytes, base64 digits, members of header and claims,
//! and whole parts are changed, exchanged, doubled and dropped, or signed again by who must not. A mutant that verifies is
//! a failure, unless it is a good token letter by letter. (The twin `(r, n − s)` of an ECDSA signature verifies as well, by
//! the mathematics of it: it says the same of the same bytes. No mutation here computes it.)
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sidemint::clock::Timestamp;
use sidemint::identity::TrustDomain;
use sidemint::identity::jwt_svid::{JwtBundle, Verifier, verify};
use sidemint::identity::workload_api::testing::{SigningKey, claims, jwks};

const NOW: Timestamp = Timestamp::from_secs(1_795_452_513);
const ID: &str = "spiffe://example.org/ns/finance/sa/report";
const AUDIENCE: &str = "sidemint";
/// How many without `MUTANTS`: enough to notice, few enough not to wait.
const FEW: u64 = 20_000;
const ALGORITHMS: [(&str, &str); 9] = [
    ("P-256", "ES256"),
    ("P-384", "ES384"),
    ("P-521", "ES512"),
    ("RSA", "RS256"),
    ("RSA", "RS384"),
    ("RSA", "RS512"),
    ("RSA", "PS256"),
    ("RSA", "PS384"),
    ("RSA", "PS512"),
];

/// SplitMix64: the same numbers for the same seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn word(&mut self, all: &[&'static str]) -> &'static str {
        all[self.below(all.len())]
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// The trusted keys, their good tokens, and keys that are trusted for something else.
struct Stage {
    bundles: BTreeMap<TrustDomain, Arc<JwtBundle>>,
    verifier: Verifier,
    good: Vec<String>,
    public_keys: Vec<Vec<u8>>,
    /// The same `kid`, but known to nobody.
    impostor: SigningKey,
    /// Trusted for `other.example` alone.
    neighbour: SigningKey,
}

impl Stage {
    fn new() -> Self {
        let keys: Vec<_> = ["P-256", "P-384", "P-521", "RSA"].map(|kty| SigningKey::generate(kty, kty)).into();
        let neighbour = SigningKey::generate("P-256", "P-256");
        let bundle = |keys: &[&SigningKey]| Arc::new(JwtBundle::parse(&jwks(keys.iter().copied())).unwrap());
        let all: Vec<_> = keys.iter().collect();
        let sign = |(kty, algorithm): &(&str, &str)| {
            let key = keys.iter().find(|key| key.kid() == *kty).unwrap();
            let header = json!({"alg": algorithm, "kid": kty, "typ": "JWT"}).to_string();
            key.sign_text(algorithm, &header, &claims(ID, AUDIENCE, NOW, Duration::from_secs(300)).to_string())
        };
        let stage = Self {
            bundles: [
                ("example.org".parse().unwrap(), bundle(&all)),
                ("other.example".parse().unwrap(), bundle(&[&neighbour])),
            ]
            .into(),
            verifier: Verifier::new(AUDIENCE.into()),
            good: ALGORITHMS.iter().map(sign).collect(),
            public_keys: keys.iter().map(|key| key.jwk().to_string().into_bytes()).collect(),
            impostor: SigningKey::generate("P-256", "P-256"),
            neighbour,
        };
        assert!(stage.good.iter().all(|token| stage.accepts(token)), "the good tokens are good");
        stage
    }

    /// By the plain verifier, and by the one that remembers the good tokens.
    fn accepts(&self, token: &str) -> bool {
        let plain = verify(token, &self.bundles, AUDIENCE, NOW);
        assert_eq!(self.verifier.verify(token, &self.bundles, NOW), plain, "{token}");
        plain.is_ok()
    }

    fn mutant(&self, random: &mut Random) -> String {
        let (token, other) = (random.of(&self.good).clone(), random.of(&self.good).clone());
        match random.below(8) {
            0..=2 => bytes(&token, random),
            3 | 4 => parts(&token, &other, random),
            5 | 6 => members(&token, random),
            _ => self.signed_again(&token, random),
        }
    }

    /// The same words, or other ones, signed by who must not.
    fn signed_again(&self, token: &str, random: &mut Random) -> String {
        let [header, claims, _] = decoded(token);
        let claims =
            if random.below(2) == 0 { String::from_utf8(claims).unwrap() } else { other_claims(&claims, random) };
        match random.below(4) {
            0 => {
                let secret = random.of(&self.public_keys);
                let header = json!({"alg": random.word(&["HS256", "HS512", "ES256"]), "kid": "P-256"}).to_string();
                let signed = [header.as_bytes(), claims.as_bytes()].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
                let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
                format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
            }
            1 => {
                let header = json!({"alg": "ES256", "kid": "P-256", "jwk": self.impostor.jwk()}).to_string();
                self.impostor.sign_text("ES256", &header, &claims)
            }
            2 => self.impostor.sign_text("ES256", std::str::from_utf8(&header).unwrap(), &claims),
            _ => {
                // its own trust domain does trust this key, and rightly so
                let claims = claims.replace("other.example", "example.org");
                self.neighbour.sign_text("ES256", r#"{"alg":"ES256","kid":"P-256"}"#, &claims)
            }
        }
    }
}

fn decoded(token: &str) -> [Vec<u8>; 3] {
    let parts: Vec<_> = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
    parts.try_into().unwrap()
}

fn encoded(parts: &[Vec<u8>; 3]) -> String {
    parts.each_ref().map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

/// One to four changes of single characters.
fn bytes(token: &str, random: &mut Random) -> String {
    const CHARACTERS: &[u8] = b"ABCXYZabcxyz0189-_=.+/ \n\t\0{}\"%~";
    let mut text = token.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(text.len());
        let character = *random.of(CHARACTERS);
        match random.below(6) {
            0 => text[at] = character,
            1 => text.insert(at, character),
            2 => drop(text.remove(at)),
            3 => text.truncate(at.max(1)),
            4 => text.extend_from_within(at..),
            _ => {
                let next = (at + 1) % text.len();
                text.swap(at, next);
            }
        }
        if text.is_empty() {
            text.push(character);
        }
    }
    String::from_utf8(text).unwrap()
}

/// Parts of two good tokens mixed, bits of the decoded parts flipped, other encodings of the same bytes.
fn parts(token: &str, other: &str, random: &mut Random) -> String {
    let (mut own, others) = (decoded(token), decoded(other));
    match random.below(7) {
        0 => own[random.below(3)] = others[random.below(3)].clone(),
        1 | 2 => {
            let part = &mut own[random.below(3)];
            let at = random.below(part.len());
            part[at] ^= 1 << random.below(8);
        }
        3 => {
            let signature = &mut own[2];
            let half = signature.len() / 2;
            match random.below(5) {
                0 => signature[..half].fill(0),
                1 => signature[half..].fill(0),
                2 => signature.fill(0xff),
                3 => signature.insert(0, 0),
                // ASN.1 DER, as other APIs write ECDSA signatures
                _ => *signature = [&[0x30, 0x44, 2, 32][..], &signature[..half], &[2, 32], &signature[half..]].concat(),
            }
        }
        4 => return format!("{token}{}", random.word(&["=", "==", ".", "..", " ", "\n", ".AAAA"])),
        5 => {
            let texts: Vec<_> = token.split('.').collect();
            return match random.below(4) {
                0 => format!("{}.{}.", texts[0], texts[1]),
                1 => format!(".{}.{}", texts[1], texts[2]),
                2 => format!("{}..{}", texts[0], texts[2]),
                _ => format!("{}.{}.{}", texts[1], texts[0], texts[2]),
            };
        }
        _ => {
            // the same bits in the other alphabet, or with the unused bits of the last digit set
            let mut text = token.replace('-', "+").replace('_', "/").into_bytes();
            let last = text.len() - 1;
            text[last] = text[last].wrapping_add(1);
            return String::from_utf8(text).unwrap();
        }
    }
    encoded(&own)
}

/// A header or claims with other members under the old signature.
fn members(token: &str, random: &mut Random) -> String {
    let mut own = decoded(token);
    if random.below(2) == 0 {
        own[1] = other_claims(&own[1], random).into_bytes();
        return encoded(&own);
    }
    let mut header: Value = serde_json::from_slice(&own[0]).unwrap();
    match random.below(5) {
        0 => {
            header["alg"] =
                json!(random.word(&["none", "None", "HS256", "ES256", "RS256", "PS256", "ES384", "EdDSA", ""]))
        }
        1 => header["kid"] = json!(random.word(&["P-256", "P-384", "RSA", "", "../P-256", "P-256\u{0}", "p-256"])),
        2 => header["typ"] = json!(random.word(&["JOSE", "jwt", "wit+jwt", "at+jwt", ""])),
        3 => {
            let (name, value) = *random.of(&[("crit", "b64"), ("b64", "false"), ("jku", "https://a"), ("zip", "DEF")]);
            header[name] = json!([value]);
        }
        _ => drop(header.as_object_mut().unwrap().remove(random.word(&["alg", "kid", "typ"]))),
    }
    own[0] = header.to_string().into_bytes();
    encoded(&own)
}

/// Claims in which something was changed; sometimes so that a reader of JSON could be of two minds.
fn other_claims(claims: &[u8], random: &mut Random) -> String {
    let mut claims: Value = serde_json::from_slice(claims).unwrap();
    let name = random.word(&["sub", "aud", "exp", "iat", "nbf"]);
    let second = json!(NOW.as_secs() + u64::try_from(random.below(86_400)).unwrap() + 1);
    match random.below(4) {
        0 => drop(claims.as_object_mut().unwrap().remove(name)),
        1 => claims[name] = second,
        2 => {
            let subject =
                random.word(&["spiffe://example.org/admin", "spiffe://other.example/a", "spiffe://example.org", ""]);
            claims["sub"] = json!(subject);
        }
        _ => {
            let text = claims.to_string();
            return format!("{{\"sub\":\"spiffe://example.org/admin\",{}", &text[1..]);
        }
    }
    claims.to_string()
}

#[test]
fn no_mutant_of_a_good_token_is_accepted() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let (count, seed) = (number("MUTANTS").unwrap_or(FEW), number("SEED").unwrap_or(1));
    let threads = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let stage = Stage::new();
    let tested: u64 = thread::scope(|scope| {
        let stage = &stage;
        let work = move |thread: u64| {
            // keys are new in each run; the mutations are those of the seed
            let mut random = Random(seed.wrapping_mul(threads).wrapping_add(thread));
            let mut tested = 0;
            while tested < count.div_ceil(threads) {
                let mutant = stage.mutant(&mut random);
                if stage.good.contains(&mutant) {
                    continue; // it came out as it was
                }
                tested += 1;
                assert!(!stage.accepts(&mutant), "SEED={seed}: mutant {tested} of thread {thread}: {mutant}");
            }
            tested
        };
        let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(tested >= count);
    println!("{tested} mutants, 0 accepted (SEED={seed})");
}
