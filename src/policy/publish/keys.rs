//! Who signs: a private key in a file, or a command that asks a KMS or an HSM.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use data_encoding::HEXLOWER_PERMISSIVE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::public_key::PublicKey;
use super::super::repository::metadata::{Envelope, LocalKey, Signer as _, TufKey};
use super::{PublishError, cannot};
use crate::clock::{Clock, within};
use crate::secret::Secret;

/// How long a signer command may take where nothing else is said: time for a finger on a token.
pub const SIGNER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer of a signer command, in bytes.
const MAX_ANSWER: u64 = 4096;
/// The largest key file, in bytes.
const MAX_KEY: u64 = 16 * 1024;
/// Bytes from hex digits of either case.
fn hex(text: &str) -> Option<Vec<u8>> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()
}

/// Reads a public key: 64 hex digits of an Ed25519 key, or PEM (`BEGIN PUBLIC KEY`) of an Ed25519 or P-256 key.
///
/// # Errors
/// Another form or another algorithm.
pub fn parse_public(text: &str) -> Result<TufKey, PublishError> {
    let key = PublicKey::from_hex(text.trim()).or_else(|| PublicKey::from_pem(text));
    key.as_ref().map(TufKey::of).ok_or_else(|| {
        PublishError::Key("a public key is 64 hex digits (Ed25519), or PEM BEGIN PUBLIC KEY of Ed25519 or P-256".into())
    })
}

/// The names of the keys among `keys` whose signatures on `envelope` are good.
pub fn good_signatures<'a>(envelope: &Envelope, keys: &'a [(String, TufKey)]) -> Vec<&'a str> {
    let Ok(message) = envelope.message() else { return Vec::new() };
    let signed = |key: &TufKey| {
        let Some(public) = key.key() else { return false };
        let id = key.id();
        let own = envelope.signatures.iter().filter(|signature| signature.keyid == id);
        own.filter_map(|signature| hex(&signature.sig)).any(|signature| public.verifies(&message, &signature))
    };
    keys.iter().filter(|(_, key)| signed(key)).map(|(name, _)| name.as_str()).collect()
}

/// Where a signature comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A PKCS#8 PEM file, Ed25519 or P-256.
    File(PathBuf),
    /// A command, run by `sh -c`. It gets the bytes to sign on standard input and the role's name as `SIDEMINT_ROLE`; it
    /// prints the signature in hex or base64. Ed25519 signs the bytes themselves, P-256 their SHA-256; ASN.1 DER or the
    /// 64 bytes `r‖s` are both read. Which key it holds is found by the public keys of the role.
    Command {
        /// The command line for `sh -c`; it may hold a PIN and is never logged.
        command: String,
        /// How long it may take.
        timeout: Duration,
    },
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            // A command line may hold a PIN.
            Self::Command { .. } => f.write_str("Command"),
        }
    }
}

impl KeySource {
    /// The signature over `message` for `role`, and which of `keys` gave it.
    ///
    /// # Errors
    /// The key cannot be read, is none of `keys`, or the command fails, takes too long or answers something else.
    pub async fn sign(
        &self,
        role: &str,
        message: &[u8],
        keys: &[(String, TufKey)],
        clock: &dyn Clock,
    ) -> Result<(TufKey, Vec<u8>), PublishError> {
        match self {
            Self::File(path) => {
                let key = read_private(path)?;
                if !keys.iter().any(|(_, public)| public == key.public()) {
                    return Err(stranger(role, &format!("{} (key {})", path.display(), key.public().id())));
                }
                let signature = key.sign(message).map_err(|error| PublishError::Key(error.to_string()))?;
                Ok((key.public().clone(), signature))
            }
            Self::Command { command, timeout } => {
                let answer = within(clock, *timeout, run(command, role, message)).await.ok_or_else(|| {
                    let limit = humantime::format_duration(*timeout);
                    PublishError::Key(format!("the signer command did not end within {limit} and was stopped"))
                })??;
                let found = answer.iter().find_map(|signature| {
                    keys.iter().find_map(|(_, key)| Some((key.clone(), accept(key, message, signature)?)))
                });
                found.ok_or_else(|| stranger(role, "what the signer command printed"))
            }
        }
    }
}

/// Signs `signed` with every source, and refuses where they are fewer than `threshold` keys.
pub(super) async fn sign_with(
    role: &str,
    signed: serde_json::Value,
    sources: &[KeySource],
    keys: &[(String, TufKey)],
    threshold: u64,
    clock: &dyn Clock,
) -> Result<Bytes, PublishError> {
    let mut envelope = Envelope::unsigned(signed);
    let message = envelope.message().map_err(|error| PublishError::Files(error.to_string()))?;
    for source in sources {
        let (public, signature) = source.sign(role, &message, keys, clock).await?;
        envelope.add(&public, &signature);
    }
    let have = good_signatures(&envelope, keys).len();
    if u64::try_from(have).unwrap_or(0) < threshold {
        return Err(PublishError::Signatures(format!(
            "{role}: {have} of {threshold} signatures: give every --{role}-key"
        )));
    }
    Ok(envelope.to_bytes())
}

fn stranger(role: &str, what: &str) -> PublishError {
    PublishError::Key(format!("{what}: is of none of the keys that sign for {role}"))
}

/// The private keys in `folder` that are those of `keys`. What cannot be read is left out.
pub(super) fn in_folder(folder: &Path, keys: &[(String, TufKey)]) -> Vec<KeySource> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "pem")
            && read_private(path).is_ok_and(|key| keys.iter().any(|(_, public)| public == key.public()))
    };
    entries.filter(ours).map(KeySource::File).collect()
}

/// The signature in TUF's form, where it is that of `key`.
fn accept(key: &TufKey, message: &[u8], signature: &[u8]) -> Option<Vec<u8>> {
    let key = key.key()?;
    if key.verifies(message, signature) {
        return Some(signature.to_vec());
    }
    if !key.verifies_fixed(message, signature) {
        return None;
    }
    let (r, s) = signature.split_at_checked(32)?;
    let body = [integer(r), integer(s)].concat();
    let length = u8::try_from(body.len()).ok()?;
    Some([&[0x30, length][..], &body].concat())
}

/// A DER INTEGER (X.690 §8.3) of up to 32 unsigned bytes.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let skip = bytes.iter().take_while(|byte| **byte == 0).count().min(bytes.len().saturating_sub(1));
    let value = bytes.get(skip..).unwrap_or_default();
    let pad = value.first().is_some_and(|first| first & 0x80 != 0);
    // At most 33 bytes.
    let length = u8::try_from(value.len() + usize::from(pad)).unwrap_or_default();
    let mut out = vec![0x02, length];
    out.extend(pad.then_some(0));
    out.extend_from_slice(value);
    out
}

fn read_private(path: &Path) -> Result<LocalKey, PublishError> {
    let failed = |error: std::io::Error| cannot(path, "read", &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    // A group may read it: Kubernetes mounts a Secret so.
    if mode & 0o027 != 0 {
        let message = format!("{}: others may read or change it: chmod 600 {0}", path.display());
        return Err(PublishError::Key(message));
    }
    let mut pem = String::new();
    let read = file.take(MAX_KEY).read_to_string(&mut pem);
    let pem = Secret::new(pem);
    read.map_err(failed)?;
    LocalKey::from_pem(&pem).map_err(|error| PublishError::Key(format!("{}: {error}", path.display())))
}

/// Runs a signer command; every reading of its answer, since 64 hex digits are also base64.
async fn run(command: &str, role: &str, message: &[u8]) -> Result<Vec<Vec<u8>>, PublishError> {
    let failed = |what: &str| PublishError::Key(format!("the signer command {what}"));
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", command])
        .env("SIDEMINT_ROLE", role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&format!("cannot be run: {error}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let give = async {
        if let Some(mut stdin) = stdin {
            // One that does not read all says so by what it prints.
            let _ = stdin.write_all(message).await;
        }
    };
    let take = async {
        let mut answer = Vec::new();
        match stdout {
            Some(stdout) => stdout.take(MAX_ANSWER + 1).read_to_end(&mut answer).await.map(|_| answer),
            None => Ok(answer),
        }
    };
    let ((), answer) = tokio::join!(give, take);
    let answer = answer.map_err(|error| failed(&format!("cannot be read: {error}")))?;
    if answer.len() as u64 > MAX_ANSWER {
        return Err(failed(&format!("printed more than {MAX_ANSWER} bytes")));
    }
    let status = child.wait().await.map_err(|error| failed(&format!("is lost: {error}")))?;
    if !status.success() {
        return Err(failed(&format!("failed: {status}")));
    }
    let text: String = String::from_utf8_lossy(&answer).split_whitespace().collect();
    let readings: Vec<Vec<u8>> = [hex(&text), STANDARD.decode(&text).ok()].into_iter().flatten().collect();
    if text.is_empty() || readings.is_empty() {
        return Err(failed("printed no signature in hex or base64"));
    }
    Ok(readings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SystemClock, Timestamp};

    const ED25519: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    fn pair(algorithm: &'static rcgen::SignatureAlgorithm) -> (rcgen::KeyPair, String) {
        use rcgen::PublicKeyData as _;
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let pem = STANDARD.encode(pair.subject_public_key_info());
        (pair, format!("-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----"))
    }

    #[test]
    fn reads_public_keys_as_hex_and_as_pem() {
        let key = parse_public(ED25519).unwrap();
        assert_eq!((key.keytype.as_str(), key.keyval.public.as_str()), ("ed25519", ED25519));
        let (_, pem) = pair(&rcgen::PKCS_ED25519);
        assert_eq!(parse_public(&pem).unwrap().scheme, "ed25519");
        let (_, pem) = pair(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(parse_public(&pem).unwrap().scheme, "ecdsa-sha2-nistp256");
        let (_, p384) = pair(&rcgen::PKCS_ECDSA_P384_SHA384);
        for bad in ["", "00", &ED25519[2..], &p384, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(parse_public(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_p256_signature_of_64_bytes_becomes_the_one_that_tuf_has() {
        use aws_lc_rs::rand::SystemRandom;
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
        let (pair, pem) = pair(&rcgen::PKCS_ECDSA_P256_SHA256);
        let key = parse_public(&pem).unwrap();
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der()).unwrap();
        // Many, so that both numbers have leading zeros and high bits.
        for round in 0..600_u32 {
            let message = round.to_be_bytes();
            let signature = signer.sign(&SystemRandom::new(), &message).unwrap();
            let der = accept(&key, &message, signature.as_ref()).unwrap();
            assert!(key.key().unwrap().verifies(&message, &der));
            assert!(accept(&key, b"other", signature.as_ref()).is_none());
        }
    }

    #[tokio::test]
    async fn a_signer_command_that_does_not_end_is_stopped() {
        let clock = ManualClock::at(Timestamp::from_secs(1_795_452_513));
        let source = KeySource::Command { command: "exec sleep 1000".to_owned(), timeout: Duration::from_secs(5) };
        let keys = [("a".to_owned(), parse_public(ED25519).unwrap())];
        let stepped = clock.clone();
        let step = async move {
            while stepped.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
            stepped.advance(Duration::from_secs(5));
        };
        let (signed, ()) = tokio::join!(source.sign("a", b"message", &keys, &clock), step);
        assert!(signed.unwrap_err().to_string().contains("did not end within 5s"));
    }

    #[tokio::test]
    async fn rejects_a_signer_command_that_prints_a_signature_of_another_key() {
        let command = format!("echo {}", "ab".repeat(64));
        let source = KeySource::Command { command, timeout: SIGNER_TIMEOUT };
        let keys = [("a".to_owned(), parse_public(ED25519).unwrap())];
        let error = source.sign("a", &[0; 100_000], &keys, &SystemClock).await.unwrap_err();
        assert_eq!(error.kind(), "key");
        assert!(error.to_string().contains("none of the keys"), "{error}");
    }
}
