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

    /// The signature of `key` over `message` by `scheme`, the name of a JWS algorithm, or one of those that only OpenSSL makes:
    /// `PS256 salt N`, `PS256 MGF1 sha1`, `ES256 sha384`.
    pub(crate) fn signature(&self, key: &str, scheme: &str, message: &[u8]) -> Vec<u8> {
        let rsa = |encoding: &'static dyn RsaEncoding| {
            let pair = RsaKeyPair::from_pkcs8(&pkcs8(key)).unwrap();
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        };
        match scheme {
            "RS256" if key == "rsa1024" => {
                self.look_up(key, scheme, message, || by_openssl(key, &["dgst", "-sha256", "-sign"], message))
            }
            "ES256 sha384" => self
                .look_up(key, scheme, message, || fixed_of(&by_openssl(key, &["dgst", "-sha384", "-sign"], message))),
            _ if scheme.starts_with("PS256 ") => self.look_up(key, scheme, message, || {
                let (salt, mgf1) = match scheme.strip_prefix("PS256 salt ") {
                    Some(salt) => (salt, "sha256"),
                    None => ("32", scheme.strip_prefix("PS256 MGF1 ").unwrap()),
                };
                let (salt, mgf1) = (format!("rsa_pss_saltlen:{salt}"), format!("rsa_mgf1_md:{mgf1}"));
                let pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", &salt, "-sigopt", &mgf1];
                by_openssl(key, &[&["dgst", "-sha256"], &pss[..], &["-sign"]].concat(), message)
            }),
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

    /// What an RSA `key` makes of `block` by its private exponent, with no padding of its own.
    pub(crate) fn raw(&self, key: &str, block: &[u8]) -> Vec<u8> {
        self.look_up(key, "raw", block, || {
            by_openssl(key, &["pkeyutl", "-decrypt", "-pkeyopt", "rsa_padding_mode:none", "-inkey"], block)
        })
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

/// Signatures that the library does not make: with a key of 1,024 bits, or by schemes that no JWT-SVID may use. `how` ends
/// with the option that names the key.
fn by_openssl(key: &str, how: &[&str], message: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("message");
    fs::write(&file, message).unwrap();
    let mut command = Command::new("openssl");
    command.args(how).arg(key_file(key)).args(["-keyform", "DER"]);
    if how[0] == "pkeyutl" {
        command.arg("-in");
    }
    let output = command.arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The order of the group of `key`'s curve (SEC 2 §2.4.2, §2.5.1, §2.6.1), as long as the numbers of a signature.
pub(crate) fn order(key: &str) -> Vec<u8> {
    let text = match key {
        "p384" => "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        "p521" => {
            "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c\
             47aebb6fb71e91386409"
        }
        _ => "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    };
    let digits: Vec<_> = text.chars().collect();
    digits.chunks(2).map(|two| u8::from_str_radix(&two.iter().collect::<String>(), 16).unwrap()).collect()
}

/// The order less `number`, both of 32 bytes.
pub(crate) fn order_less(number: &[u8]) -> Vec<u8> {
    let (order, mut borrow) = (order("p256"), 0);
    let mut result = vec![0; 32];
    for at in (0..32).rev() {
        let digit = i16::from(order[at]) - i16::from(number[at]) - borrow;
        borrow = i16::from(digit < 0);
        result[at] = u8::try_from(digit.rem_euclid(256)).unwrap();
    }
    result
}

/// The sum of two numbers of the same length, where it is no longer than they are.
pub(crate) fn sum(one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let mut carry = 0;
    let mut result = vec![0; one.len()];
    for at in (0..one.len()).rev() {
        let digit = u16::from(one[at]) + u16::from(other[at]) + carry;
        carry = digit >> 8;
        result[at] = u8::try_from(digit & 0xff).unwrap();
    }
    (carry == 0).then_some(result)
}

/// The two numbers of 32 bytes of a signature that ASN.1 wrote.
fn fixed_of(der: &[u8]) -> Vec<u8> {
    let numbers = inner(der);
    let fixed = |number: &[u8]| {
        let digits = number.strip_prefix(&[0]).unwrap_or(number);
        [&vec![0; 32 - digits.len()], digits].concat()
    };
    [fixed(inner(numbers)), fixed(inner(after(numbers)))].concat()
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
    let length = u8::try_from(content.len()).unwrap();
    let head: &[u8] = if length < 0x80 { &[0x30, length] } else { &[0x30, 0x81, length] };
    [head, &content].concat()
}

/// The public key of `key` as PKCS #1 writes it.
pub(crate) fn rsa_der(key: &str) -> Vec<u8> {
    let pair = RsaKeyPair::from_pkcs8(&pkcs8(key)).unwrap();
    let der = pair.public_key().as_ref().to_vec();
    assert!(RSAPublicKey::from_der(&der).is_ok());
    der
}
