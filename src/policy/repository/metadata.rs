//! TUF metadata as a publisher writes it: roles, keys, signatures and file names.
//!
//! Everything here follows the TUF specification 1.0.33 (§4 document formats, §6 consistent snapshots) in the form that
//! python-tuf reads: OLPC canonical JSON is what is signed, a key's id is the SHA-256 of its canonical JSON,
//! `expires` has whole seconds. Reading untrusted metadata is the business of `sigstore-tuf`, not of this module.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sigstore_tuf::canonical_json::to_canonical_bytes;
use zeroize::Zeroizing;

use super::super::document::Digest;
use super::super::public_key::PublicKey;
use crate::clock::Timestamp;
use crate::secret::Secret;

/// The version of the TUF specification that the metadata is written for.
const SPEC_VERSION: &str = "1.0.33";

/// Metadata could not be written or signed; the text says how to fix it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MetadataError(pub String);

/// A public key as TUF writes it (specification §4.2). Its id depends on how it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TufKey {
    /// `ed25519` or `ecdsa`.
    pub keytype: String,
    /// `ed25519` or `ecdsa-sha2-nistp256`.
    pub scheme: String,
    /// The key itself, as text.
    pub keyval: KeyValue,
}

/// The key itself: 64 hex digits for Ed25519, PEM of a `SubjectPublicKeyInfo` for P-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The hex digits or the PEM, exactly as written: the key's id depends on it.
    pub public: String,
}

impl TufKey {
    /// The key as this version writes it.
    pub fn of(key: &PublicKey) -> Self {
        let (keytype, scheme) = match key {
            PublicKey::Ed25519(_) => ("ed25519", "ed25519"),
            PublicKey::P256(_) => ("ecdsa", "ecdsa-sha2-nistp256"),
        };
        let keyval = KeyValue { public: key.to_tuf() };
        Self { keytype: keytype.to_owned(), scheme: scheme.to_owned(), keyval }
    }

    /// The key itself; `None` where it is of a kind or form that this version does not know.
    pub fn key(&self) -> Option<PublicKey> {
        PublicKey::from_tuf(&self.scheme, &self.keyval.public).ok()
    }

    /// The key's id: 64 hex digits, the SHA-256 of its canonical JSON (as securesystemslib makes it).
    pub fn id(&self) -> String {
        let value = json!({"keytype": self.keytype, "scheme": self.scheme, "keyval": {"public": self.keyval.public}});
        // Strings in an object always have a canonical form.
        Digest::of(&to_canonical_bytes(&value).unwrap_or_default()).hex()
    }
}

/// Something that signs: a key in a file, or a command that asks a KMS or an HSM.
pub trait Signer: Send + Sync + fmt::Debug {
    /// The public key that verifies what [`Signer::sign`] returns.
    fn public(&self) -> &TufKey;

    /// The signature over `message`: raw for Ed25519, ASN.1 DER for ECDSA.
    ///
    /// # Errors
    /// When no signature can be had.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, MetadataError>;
}

/// A private key held in memory; it does not print itself.
pub struct LocalKey {
    public: TufKey,
    pair: Pair,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalKey({})", self.public.id())
    }
}

impl LocalKey {
    /// Reads a PKCS#8 PEM private key, Ed25519 or P-256 (what `openssl genpkey` writes).
    ///
    /// # Errors
    /// Another form, another algorithm, or an encrypted key.
    pub fn from_pem(pem: &Secret) -> Result<Self, MetadataError> {
        // Exposed to be parsed; the DER is wiped by its owner below.
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|_| {
            MetadataError(
                "not a PKCS#8 PEM private key (BEGIN PRIVATE KEY): openssl pkcs8 -topk8 -nocrypt makes one".into(),
            )
        })?;
        Self::from_pkcs8(der.secret_pkcs8_der())
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, MetadataError> {
        let other = || MetadataError("a signing key is Ed25519 or P-256".into());
        let (pair, spki) = match Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            Ok(pair) => {
                let spki = pair.public_key().as_der();
                (Pair::Ed25519(pair), spki)
            }
            Err(_) => {
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map_err(|_| other())?;
                let spki = pair.public_key().as_der();
                (Pair::P256(pair), spki)
            }
        };
        let public = spki.ok().and_then(|spki| PublicKey::from_spki(spki.as_ref())).ok_or_else(other)?;
        Ok(Self { public: TufKey::of(&public), pair })
    }

    /// Makes a new Ed25519 key: the key and its PKCS#8 PEM.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<(Self, Secret), MetadataError> {
        let failed = |_| MetadataError("no random bytes for a key".into());
        // Version 1, without the public key behind it: OpenSSL 3 and Python's cryptography read no other (RFC 5958 §2).
        let document = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1()).map_err(failed)?;
        let key = Self::from_pkcs8(document.as_ref())?;
        let pem = Zeroizing::new(STANDARD.encode(document.as_ref()));
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", *pem);
        Ok((key, Secret::new(pem)))
    }
}

impl Signer for LocalKey {
    fn public(&self) -> &TufKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, MetadataError> {
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::P256(pair) => pair
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| MetadataError("the P-256 key does not sign".into())),
        }
    }
}

/// Who may sign a role, and how many of them must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeys {
    /// The keys that may sign the role, each once.
    pub keys: Vec<TufKey>,
    /// How many of them must sign; at least 1.
    pub threshold: u32,
}

impl RoleKeys {
    fn ids(&self) -> Vec<String> {
        self.keys.iter().map(TufKey::id).collect()
    }
}

/// A delegation: another role that owns the names that match `paths` (`*` stops at `/`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The role's name, unique in the repository.
    pub name: String,
    /// Who may sign it.
    pub keys: RoleKeys,
    /// Patterns, one per depth: `decisions/*`, `decisions/*/*`.
    pub paths: Vec<String>,
}

fn head(kind: &str, version: u64, expires: Timestamp) -> serde_json::Map<String, Value> {
    let mut map = serde_json::Map::new();
    map.insert("_type".to_owned(), kind.into());
    map.insert("spec_version".to_owned(), SPEC_VERSION.into());
    map.insert("version".to_owned(), version.into());
    map.insert("expires".to_owned(), expires.floor_to_second().to_string().into());
    map
}

fn keys<'a>(roles: impl Iterator<Item = &'a RoleKeys>) -> BTreeMap<String, &'a TufKey> {
    roles.flat_map(|role| role.keys.iter().map(|key| (key.id(), key))).collect()
}

/// The `root` role (specification §4.3): who may sign the four top-level roles, by name.
pub fn root(version: u64, expires: Timestamp, roles: &BTreeMap<String, RoleKeys>) -> Value {
    let mut root = head("root", version, expires);
    root.insert("consistent_snapshot".to_owned(), true.into());
    root.insert("keys".to_owned(), json!(keys(roles.values())));
    let roles: serde_json::Map<_, _> = roles
        .iter()
        .map(|(name, keys)| (name.clone(), json!({"keyids": keys.ids(), "threshold": keys.threshold})))
        .collect();
    root.insert("roles".to_owned(), roles.into());
    root.into()
}

/// A `targets` role (specification §4.5): files by name, and who owns which others.
pub fn targets(version: u64, expires: Timestamp, files: &BTreeMap<String, Bytes>, delegations: &[Delegation]) -> Value {
    let mut role = head("targets", version, expires);
    let files: serde_json::Map<_, _> = files
        .iter()
        .map(|(name, bytes)| {
            (name.clone(), json!({"length": bytes.len(), "hashes": {"sha256": Digest::of(bytes).hex()}}))
        })
        .collect();
    role.insert("targets".to_owned(), files.into());
    if !delegations.is_empty() {
        let roles: Vec<Value> = delegations
            .iter()
            .map(|delegation| {
                json!({
                    "name": delegation.name,
                    "keyids": delegation.keys.ids(),
                    "threshold": delegation.keys.threshold,
                    "terminating": true,
                    "paths": delegation.paths,
                })
            })
            .collect();
        let keys = keys(delegations.iter().map(|delegation| &delegation.keys));
        role.insert("delegations".to_owned(), json!({"keys": keys, "roles": roles}));
    }
    role.into()
}

fn pin(version: u64, bytes: &[u8]) -> Value {
    json!({"version": version, "length": bytes.len(), "hashes": {"sha256": Digest::of(bytes).hex()}})
}

/// The `snapshot` role (specification §4.4): version, length and digest of every targets role, by role name.
pub fn snapshot(version: u64, expires: Timestamp, roles: &BTreeMap<String, (u64, Bytes)>) -> Value {
    let mut role = head("snapshot", version, expires);
    let meta: serde_json::Map<_, _> =
        roles.iter().map(|(name, (version, bytes))| (format!("{name}.json"), pin(*version, bytes))).collect();
    role.insert("meta".to_owned(), meta.into());
    role.into()
}

/// The `timestamp` role (specification §4.6): the newest snapshot.
pub fn timestamp(version: u64, expires: Timestamp, snapshot_version: u64, snapshot: &[u8]) -> Value {
    let mut role = head("timestamp", version, expires);
    role.insert("meta".to_owned(), json!({"snapshot.json": pin(snapshot_version, snapshot)}));
    role.into()
}

/// A role with its signatures (specification §4.2). Signatures may be appended on one machine after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// The role itself; its canonical JSON is what signatures are over.
    pub signed: Value,
    /// One signature for each key that has signed.
    pub signatures: Vec<Signature>,
}

/// One key's signature over a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The id of the key that signed, see [`TufKey::id`].
    pub keyid: String,
    /// The signature in hex.
    pub sig: String,
}

impl Envelope {
    /// A role that nobody signed yet.
    pub fn unsigned(signed: Value) -> Self {
        Self { signed, signatures: Vec::new() }
    }

    /// What is signed: canonical JSON (specification §4.2.1).
    ///
    /// # Errors
    /// When the role has a number that is no integer.
    pub fn message(&self) -> Result<Vec<u8>, MetadataError> {
        to_canonical_bytes(&self.signed).map_err(|error| MetadataError(error.to_string()))
    }

    /// Adds `signer`'s signature, or replaces the one it gave before.
    ///
    /// # Errors
    /// When the signer fails, or the role has a number that is no integer.
    pub fn sign(&mut self, signer: &dyn Signer) -> Result<(), MetadataError> {
        let signature = signer.sign(&self.message()?)?;
        self.add(signer.public(), &signature);
        Ok(())
    }

    /// Adds the signature of `key`, or replaces the one it gave before.
    pub fn add(&mut self, key: &TufKey, signature: &[u8]) {
        let (keyid, sig) = (key.id(), HEXLOWER.encode(signature));
        self.signatures.retain(|signature| signature.keyid != keyid);
        self.signatures.push(Signature { keyid, sig });
    }

    /// The bytes of the metadata file: JSON without line breaks.
    pub fn to_bytes(&self) -> Bytes {
        // A `Value` and strings always serialise. Without line breaks: ten thousand names are megabytes.
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// Where a role's metadata lies below `metadata/`: `7.finance.json`; `timestamp` alone has no version (§6.2).
/// `/` in a role's name is percent-encoded, as python-tuf does.
pub fn metadata_name(role: &str, version: u64) -> String {
    let role = role.replace('%', "%25").replace('/', "%2F");
    if role == "timestamp" { "timestamp.json".to_owned() } else { format!("{version}.{role}.json") }
}

/// Where a target lies below `targets/`: `scopes/<sha256>.ledger-read.toml` (specification §6.2, with `/` kept).
pub fn target_name(path: &str, digest: &Digest) -> String {
    match path.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/{}.{name}", digest.hex()),
        None => format!("{}.{path}", digest.hex()),
    }
}
