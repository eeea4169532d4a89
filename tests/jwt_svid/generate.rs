//! What the cases are made of: keys, JWKs, signatures.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::RSAPublicKey;

/// The directory of the corpus.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/jwt-svid")
}

fn key_file(key: &str) -> PathBuf {
    directory().join(format!("keys/{key}.key.der"))
}

fn pkcs8(key: &str) -> Vec<u8> {
    fs::read(key_file(key)).unwrap()
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn curve(key: &str) -> Option<(&'static EcdsaSigningAlgorithm, &'static str)> {
    match key {
        "p256" | "other" | "foreign" => Some((&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256")),
        "p384" => Some((&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384")),
        "p521" => Some((&ECDSA_P521_SHA512_FIXED_SIGNING, "P-521")),
        _ => None,
    }
}

/// The public key of this name as a JWK with the id `kid`, as SPIRE gives it on the Workload API: no `use`, no `alg`.
pub(crate) fn jwk(key: &str, kid: &str) -> Value {
    if let Some((algorithm, curve)) = curve(key) {
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8(key)).unwrap();
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        return json!({"kty": "EC", "kid": kid, "crv": curve, "x": base64url(x), "y": base64url(y)});
    }
    if key == "ed25519" {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8(key)).unwrap();
        return json!({"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": base64url(pair.public_key())});
    }
    let (modulus, exponent) = rsa_public(&pkcs8(key));
    json!({"kty": "RSA", "kid": kid, "n": base64url(modulus), "e": base64url(exponent)})
}

/// Modulus and exponent of a private key. The library reads no key of 1,024 bits, so it is taken apart by hand: PKCS #8
/// holds an octet string that holds RSAPrivateKey, whose second and third numbers they are.
fn rsa_public(pkcs8: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let sequence = inner(pkcs8);
    let octets = inner(after(after(sequence)));
    let numbers = after(inner(octets));
    let number = |der: &[u8]| inner(der).strip_prefix(&[0]).unwrap_or(inner(der)).to_vec();
    (number(numbers), number(after(numbers)))
}

/// The content of the first element of `der`, and how long the whole of it is.
fn element(der: &[u8]) -> (&[u8], usize) {
    let first = usize::from(der[1]);
    let (length, head) = if first < 0x80 {
        (first, 2)
    } else {
        let bytes = &der[2..2 + (first & 0x7f)];
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), 2 + bytes.len())
    };
    (&der[head..head + length], head + length)
}

fn inner(der: &[u8]) -> &[u8] {
    element(der).0
}

fn after(der: &[u8]) -> &[u8] {
    &der[element(der).1..]
}

/// Keys, and the signatures that cannot be made again, since their schemes take random numbers. They are kept by the
/// digest of what they sign.
pub(crate) struct Signer {
    kept: RefCell<BTreeMap<String, String>>,
    may_make: bool,
}

impl Signer {
    /// With `may_make` the signatures that are not kept yet are made.
    pub(crate) fn new(may_make: bool) -> Self {
        let text = fs::read_to_string(directory().join("signatures.json")).unwrap_or_else(|_| "{}".into());
        Self { kept: RefCell::new(serde_json::from_str(&text).unwrap()), may_make }
    }

    pub(crate) fn kept(&self) -> BTreeMap<String, String> {
        self.kept.borrow().clone()
    }

    /// The signature of `key` over `message` by `scheme`, the name of a JWS algorithm, or `ES256-DER`.
    pub(crate) fn signature(&self, key: &str, scheme: &str, message: &[u8]) -> Vec<u8> {
        let rsa = |encoding: &'static dyn RsaEncoding| {
            let pair = RsaKeyPair::from_pkcs8(&pkcs8(key)).unwrap();
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        };
        match scheme {
            "RS256" if key == "rsa1024" => self.look_up(key, scheme, message, || by_openssl(key, message)),
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "RS384" => rsa(&RSA_PKCS1_SHA384),
            "RS512" => rsa(&RSA_PKCS1_SHA512),
            "PS256" => self.look_up(key, scheme, message, || rsa(&RSA_PSS_SHA256)),
            "PS384" => self.look_up(key, scheme, message, || rsa(&RSA_PSS_SHA384)),
            "PS512" => self.look_up(key, scheme, message, || rsa(&RSA_PSS_SHA512)),
            "EdDSA" => Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8(key)).unwrap().sign(message).as_ref().to_vec(),
            _ => self.look_up(key, scheme, message, || {
                let (algorithm, _) = curve(key).unwrap();
                let pair = EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8(key)).unwrap();
                pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
            }),
        }
    }

    fn look_up(&self, key: &str, scheme: &str, message: &[u8], make: impl Fn() -> Vec<u8>) -> Vec<u8> {
        let what = digest(&SHA256, &[key.as_bytes(), b"|", scheme.as_bytes(), b"|", message].concat());
        let what = STANDARD.encode(what);
        if let Some(kept) = self.kept.borrow().get(&what) {
            return STANDARD.decode(kept).unwrap();
        }
        assert!(self.may_make, "a signature by {key} is not kept: write the corpus anew");
        let signature = make();
        self.kept.borrow_mut().insert(what, STANDARD.encode(&signature));
        signature
    }

    /// A token of these exact texts, signed by `key` with `scheme`; the header may say another.
    pub(crate) fn token(&self, key: &str, scheme: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", base64url(header), base64url(claims));
        let signature = self.signature(key, scheme, signed.as_bytes());
        format!("{signed}.{}", base64url(signature))
    }
}

/// A token whose "signature" is a MAC with `secret`.
pub(crate) fn mac_token(secret: &[u8], header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", base64url(header), base64url(claims));
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", base64url(mac))
}

/// As the library signs with no key of 1,024 bits.
fn by_openssl(key: &str, message: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("message");
    fs::write(&file, message).unwrap();
    let mut command = Command::new("openssl");
    command.args(["dgst", "-sha256", "-keyform", "DER", "-sign"]).arg(key_file(key)).arg(&file);
    let output = command.output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// The order of P-256's group (SEC 2 §2.4.2).
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7,
    0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// The order less `number`, both of 32 bytes.
pub(crate) fn order_less(number: &[u8]) -> Vec<u8> {
    let mut borrow = 0;
    let mut result = vec![0; 32];
    for at in (0..32).rev() {
        let digit = i16::from(ORDER[at]) - i16::from(number[at]) - borrow;
        borrow = i16::from(digit < 0);
        result[at] = u8::try_from(digit.rem_euclid(256)).unwrap();
    }
    result
}

/// The order of P-256's group.
pub(crate) fn order() -> Vec<u8> {
    ORDER.to_vec()
}

/// A signature of two numbers as ASN.1 writes it (RFC 3279 §2.2.3).
pub(crate) fn der_of(signature: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| {
        let bytes: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
        let pad: &[u8] = if bytes.first().is_some_and(|first| *first >= 0x80) { &[0] } else { &[] };
        [&[2, u8::try_from(bytes.len() + pad.len()).unwrap()], pad, &bytes].concat()
    };
    let (r, s) = signature.split_at(signature.len() / 2);
    let content = [number(r), number(s)].concat();
    [&[0x30, u8::try_from(content.len()).unwrap()], &content[..]].concat()
}

/// The public key of `key` as PKCS #1 writes it.
pub(crate) fn rsa_der(key: &str) -> Vec<u8> {
    let pair = RsaKeyPair::from_pkcs8(&pkcs8(key)).unwrap();
    let der = pair.public_key().as_ref().to_vec();
    assert!(RSAPublicKey::from_der(&der).is_ok());
    der
}
