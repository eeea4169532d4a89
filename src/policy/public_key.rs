//! The public keys that policy names: of those who sign its roles, and of owners who approve.

use std::fmt;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

use super::document::Digest;

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// A public key in its one form, so that one key that is written in two ways is seen to be one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublicKey {
    /// Ed25519: the 32 bytes of RFC 8032.
    Ed25519([u8; 32]),
    /// P-256: the uncompressed point, 65 bytes (SEC 1).
    P256(Box<[u8; 65]>),
}

impl PublicKey {
    /// Reads 64 hex digits of either case: an Ed25519 key.
    pub fn from_hex(text: &str) -> Option<Self> {
        let raw = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        raw.try_into().ok().map(Self::Ed25519)
    }

    /// Reads the one PEM block that `text` is (`BEGIN PUBLIC KEY`, RFC 7468 §13), as `openssl pkey -pubout` writes it.
    pub fn from_pem(text: &str) -> Option<Self> {
        let body = text.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
        let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        Self::from_spki(&STANDARD.decode(body).ok()?)
    }

    /// Reads a `SubjectPublicKeyInfo` in DER (RFC 8410 §4, RFC 5480 §2). A compressed point and one that is not on the curve
    /// are refused.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        // The key stands at the end; what precedes it is right if the library would write the same.
        let ed25519 = der.last_chunk().map(|raw| Self::Ed25519(*raw));
        let p256 = der.last_chunk().filter(|point| point.first() == Some(&4)).map(|point| Self::P256(Box::new(*point)));
        [ed25519, p256].into_iter().flatten().find(|key| key.to_spki().as_deref() == Some(der))
    }

    /// Reads a key of TUF metadata (specification §4.2) by its `scheme` and `keyval.public`.
    ///
    /// # Errors
    /// Says what is wrong with it, to be put behind the key's name.
    pub fn from_tuf(scheme: &str, public: &str) -> Result<Self, &'static str> {
        let public = public.trim();
        match scheme {
            "ed25519" if !public.starts_with('-') => Self::from_hex(public).ok_or("is not 64 hex digits"),
            "ed25519" => Self::from_pem(public)
                .filter(|key| matches!(key, Self::Ed25519(_)))
                .ok_or("is no PEM of an Ed25519 public key"),
            "ecdsa-sha2-nistp256" => Self::from_pem(public)
                .filter(|key| matches!(key, Self::P256(_)))
                .ok_or("is no PEM of a P-256 public key"),
            _ => Err("is neither ed25519 nor ecdsa-sha2-nistp256"),
        }
    }

    /// The key's own bytes, as a verifier wants them.
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Ed25519(raw) => raw,
            Self::P256(point) => point.as_slice(),
        }
    }

    fn algorithm(&self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Ed25519(_) => &ED25519,
            Self::P256(_) => &ECDSA_P256_SHA256_ASN1,
        }
    }

    /// Its `SubjectPublicKeyInfo` in DER; `None` where it is not a point on the curve.
    fn to_spki(&self) -> Option<Vec<u8>> {
        let parsed = ParsedPublicKey::new(self.algorithm(), self.bytes()).ok()?;
        Some(parsed.as_der().ok()?.as_ref().to_vec())
    }

    /// As TUF metadata writes it: 64 lower-case hex digits for Ed25519, PEM for P-256.
    pub fn to_tuf(&self) -> String {
        if let Self::Ed25519(raw) = self {
            return HEXLOWER.encode(raw);
        }
        // What was read has this form.
        let text = STANDARD.encode(self.to_spki().unwrap_or_default());
        let mut pem = format!("{BEGIN}\n");
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem + END + "\n"
    }

    /// Whether `signature` is this key's over `message`: raw for Ed25519, ASN.1 DER over SHA-256 for P-256.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm(), self.bytes()).verify(message, signature).is_ok()
    }

    /// Whether `signature` is this P-256 key's over `message` in the form `r‖s`, which PKCS#11 and some KMS give.
    pub fn verifies_fixed(&self, message: &[u8], signature: &[u8]) -> bool {
        let Self::P256(point) = self else { return false };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.as_slice()).verify(message, signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Ed25519(_) => "ed25519",
            Self::P256(_) => "p256",
        };
        write!(f, "{name}:{}", Digest::of(self.bytes()).hex().get(..16).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spki(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        use rcgen::PublicKeyData as _;
        rcgen::KeyPair::generate_for(algorithm).unwrap().subject_public_key_info()
    }

    fn pem(der: &[u8]) -> String {
        format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(der))
    }

    #[test]
    fn one_key_is_one_key_in_hex_of_either_case_and_in_pem() {
        let der = spki(&rcgen::PKCS_ED25519);
        let key = PublicKey::from_spki(&der).unwrap();
        let hex = key.to_tuf();
        for form in [hex.clone(), hex.to_uppercase(), pem(&der), format!("\n{}", pem(&der).trim())] {
            assert_eq!(PublicKey::from_tuf("ed25519", &form), Ok(key.clone()), "{form}");
        }
        let der = spki(&rcgen::PKCS_ECDSA_P256_SHA256);
        let key = PublicKey::from_tuf("ecdsa-sha2-nistp256", &pem(&der)).unwrap();
        assert_eq!(PublicKey::from_pem(&key.to_tuf()), Some(key.clone()));
        assert_eq!(key.to_spki(), Some(der));
    }

    #[test]
    fn rejects_other_algorithms_and_other_forms_of_the_same_key() {
        let mut off_curve = spki(&rcgen::PKCS_ECDSA_P256_SHA256);
        *off_curve.last_mut().unwrap() ^= 1;
        let p256 = spki(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (prefix, point) = p256.split_at(26);
        let mut compressed = [prefix, &[2 | point[64] & 1], &point[1..33]].concat();
        (compressed[1], compressed[24]) = (0x39, 0x22);
        let mut hybrid = p256.clone();
        hybrid[26] = 6 | point[64] & 1;
        let mut longer = p256.clone();
        longer.insert(0, 0);
        for der in [spki(&rcgen::PKCS_ECDSA_P384_SHA384), off_curve, compressed, hybrid, longer, Vec::new()] {
            assert_eq!(PublicKey::from_spki(&der), None, "{der:02x?}");
        }
        let ed25519 = pem(&spki(&rcgen::PKCS_ED25519));
        for (scheme, public) in [
            ("rsassa-pss-sha256", "x"),
            ("ed25519", "abc"),
            ("ed25519", "zz"),
            ("ed25519", &pem(&p256)),
            ("ecdsa-sha2-nistp256", &ed25519),
            ("ecdsa-sha2-nistp256", ""),
            ("ed25519", &ed25519.repeat(2)),
        ] {
            assert!(PublicKey::from_tuf(scheme, public).is_err(), "{scheme} {public}");
        }
    }
}
