//! What the cases are made of: certificates part by part, keys, signatures.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RsaEncoding, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::asn1::*;

/// The directory of the corpus.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/spiffe-x509")
}

pub(crate) const NOW: &str = "2026-11-23T12:00:00Z";
pub(crate) const TD: &str = "example.org";
pub(crate) const ID: &str = "spiffe://example.org/ns/finance/sa/report";

/// The contents of a signature's `AlgorithmIdentifier`.
pub(crate) fn algorithm(name: &str) -> Vec<u8> {
    let (id, has_null) = match name {
        "rsa-sha256" => ("1.2.840.113549.1.1.11", true),
        "rsa-sha384" => ("1.2.840.113549.1.1.12", true),
        "rsa-sha512" => ("1.2.840.113549.1.1.13", true),
        "rsa-sha1" => ("1.2.840.113549.1.1.5", true),
        "rsa-md5" => ("1.2.840.113549.1.1.4", true),
        "ecdsa-sha1" => ("1.2.840.10045.4.1", false),
        "ecdsa-sha256" => ("1.2.840.10045.4.3.2", false),
        "ecdsa-sha384" => ("1.2.840.10045.4.3.3", false),
        "ecdsa-sha512" => ("1.2.840.10045.4.3.4", false),
        "ed25519" => ("1.3.101.112", false),
        other => panic!("no algorithm {other}"),
    };
    [oid(id), if has_null { null() } else { Vec::new() }].concat()
}

/// Keys, and the signatures that cannot be made again: those of schemes that take random numbers, or that the
/// cryptographic library refuses to make. They are kept by the digest of what they sign.
pub(crate) struct Signer {
    kept: RefCell<BTreeMap<String, String>>,
    may_ask: bool,
}

impl Signer {
    /// With `may_ask` the signatures that are not kept yet are made by the `openssl` command.
    pub(crate) fn new(may_ask: bool) -> Self {
        let text = fs::read_to_string(directory().join("signatures.json")).unwrap_or_else(|_| "{}".into());
        Self { kept: RefCell::new(serde_json::from_str(&text).unwrap()), may_ask }
    }

    pub(crate) fn kept(&self) -> BTreeMap<String, String> {
        self.kept.borrow().clone()
    }

    fn sign(&self, key: &str, scheme: &str, message: &[u8]) -> Vec<u8> {
        let encoding: Option<&'static dyn RsaEncoding> = match scheme {
            "rsa-sha256" => Some(&RSA_PKCS1_SHA256),
            "rsa-sha384" => Some(&RSA_PKCS1_SHA384),
            "rsa-sha512" => Some(&RSA_PKCS1_SHA512),
            _ => None,
        };
        match encoding {
            Some(encoding) if key != "rsa1024" => {
                let pair = RsaKeyPair::from_pkcs8(&fs::read(key_file(key)).unwrap()).unwrap();
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
            _ => self.look_up(key, scheme, message),
        }
    }

    fn look_up(&self, key: &str, scheme: &str, message: &[u8]) -> Vec<u8> {
        let text = digest(&SHA256, &[key.as_bytes(), b"|", scheme.as_bytes(), b"|", message].concat());
        let text = STANDARD.encode(text);
        if let Some(kept) = self.kept.borrow().get(&text) {
            return STANDARD.decode(kept).unwrap();
        }
        assert!(self.may_ask, "a signature by {key} is not kept: write the corpus anew");
        let signature = openssl(key, scheme, message);
        self.kept.borrow_mut().insert(text, STANDARD.encode(&signature));
        signature
    }
}

fn key_file(key: &str) -> PathBuf {
    directory().join(format!("keys/{key}.key.der"))
}

fn openssl(key: &str, scheme: &str, message: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("message");
    fs::write(&file, message).unwrap();
    let mut command = Command::new("openssl");
    match scheme.rsplit_once('-') {
        Some((_, hash)) => {
            command.args(["dgst", &format!("-{hash}"), "-keyform", "DER", "-sign"]).arg(key_file(key)).arg(&file);
        }
        None => {
            command.args(["pkeyutl", "-sign", "-rawin", "-keyform", "DER", "-inkey"]).arg(key_file(key));
            command.arg("-in").arg(&file);
        }
    }
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "openssl signs with {key} by {scheme}");
    output.stdout
}

/// The public key of this name: a whole `SubjectPublicKeyInfo`.
pub(crate) fn public_key(key: &str) -> Vec<u8> {
    fs::read(directory().join(format!("keys/{key}.pub.der"))).unwrap()
}

/// A certificate before it is signed; every part in DER.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) version: Vec<u8>,
    pub(crate) serial: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) not_before: Vec<u8>,
    pub(crate) not_after: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) key: Vec<u8>,
    /// Between key and extensions: unique identifiers.
    pub(crate) unique: Vec<u8>,
    pub(crate) extensions: Vec<Vec<u8>>,
    /// The contents of the algorithm in the signed part, where it differs from the one outside.
    pub(crate) inner: Option<Vec<u8>>,
    pub(crate) outer: Option<Vec<u8>>,
}

impl Draft {
    fn new(issuer: &str, subject: Vec<u8>, key: &str) -> Self {
        Self {
            version: vec![0xa0, 0x03, 0x02, 0x01, 0x02],
            serial: tlv(0x02, [0x01, 0x23, 0x45]),
            issuer: name("SPIFFE", issuer),
            not_before: time("20261123000000"),
            not_after: time("20261124000000"),
            subject,
            key: public_key(key),
            unique: Vec::new(),
            extensions: Vec::new(),
            inner: None,
            outer: None,
        }
    }

    /// A good leaf, to be signed by the CA of this name.
    pub(crate) fn leaf(issuer: &str) -> Self {
        let mut draft = Self::new(issuer, name("SPIRE", ""), "leaf");
        draft.extensions = vec![
            extension(KEY_USAGE, true, key_usage(&[0])),
            extension(EXTENDED, false, extended(&[SERVER, CLIENT])),
            extension(BASIC, true, basic(false, None)),
            extension(SAN, false, seq(&[uri(ID)])),
        ];
        draft
    }

    /// A good CA, `subject` by name, with this key.
    pub(crate) fn ca(issuer: &str, subject: &str, key: &str) -> Self {
        let mut draft = Self::new(issuer, name("SPIFFE", subject), key);
        draft.not_before = time("20260101000000");
        draft.not_after = time("20360101000000");
        draft.extensions = vec![
            extension(KEY_USAGE, true, key_usage(&[5, 6])),
            extension(BASIC, true, basic(true, None)),
            extension(SAN, false, seq(&[uri("spiffe://example.org")])),
        ];
        draft
    }

    /// With another extension in place of the one of this id, or without it.
    pub(crate) fn with(mut self, id: &str, extension: Option<Vec<u8>>) -> Self {
        let id = oid(id);
        let is = |der: &Vec<u8>| der.windows(id.len()).position(|window| window == id).is_some_and(|at| at <= 4);
        let place = self.extensions.iter().position(is);
        self.extensions.retain(|der| !is(der));
        if let Some(extension) = extension {
            self.extensions.insert(place.unwrap_or(self.extensions.len()), extension);
        }
        self
    }

    pub(crate) fn names(self, names: &[Vec<u8>]) -> Self {
        self.with(SAN, Some(extension(SAN, false, seq(names))))
    }

    /// One more extension.
    pub(crate) fn and(mut self, extension: Vec<u8>) -> Self {
        self.extensions.push(extension);
        self
    }

    /// Any other change.
    pub(crate) fn but(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn tbs(&self, scheme: &str) -> Vec<u8> {
        let extensions = match self.extensions.as_slice() {
            [] => Vec::new(),
            extensions => tlv(0xa3, seq(extensions)),
        };
        seq(&[
            self.version.clone(),
            self.serial.clone(),
            tlv(0x30, self.inner.clone().unwrap_or_else(|| algorithm(scheme))),
            self.issuer.clone(),
            seq(&[self.not_before.clone(), self.not_after.clone()]),
            self.subject.clone(),
            self.key.clone(),
            self.unique.clone(),
            extensions,
        ])
    }

    /// Signed by this key and scheme.
    pub(crate) fn signed(&self, signer: &Signer, key: &str, scheme: &str) -> Vec<u8> {
        wrap(signer, self.tbs(scheme), key, scheme, self.outer.clone())
    }

    /// Signed by a key of ours, RSA with SHA-256.
    pub(crate) fn by(&self, signer: &Signer, key: &str) -> Vec<u8> {
        self.signed(signer, key, "rsa-sha256")
    }
}

/// A certificate of this signed part.
pub(crate) fn wrap(signer: &Signer, tbs: Vec<u8>, key: &str, scheme: &str, outer: Option<Vec<u8>>) -> Vec<u8> {
    let signature = signer.sign(key, scheme, &tbs);
    let outer = tlv(0x30, outer.unwrap_or_else(|| algorithm(scheme)));
    seq(&[tbs, outer, tlv(0x03, [vec![0], signature].concat())])
}
