//! The JWT authority (SPIFFE JWT-SVID §2–§4): ES256 keys, the tokens that they sign, the JWK Set that verifies them.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::json;

use super::AuthorityError;
use crate::secret::Secret;

/// The claims of a JWT-SVID, in the order in which SPIRE writes them.
#[derive(Debug, Serialize)]
pub struct Claims<'a> {
    /// Whom it names.
    pub sub: &'a str,
    /// For whom it is; always an array.
    pub aud: &'a [String],
    /// When it ends: whole seconds since the epoch (AWS refuses fractions).
    pub exp: u64,
    /// When it was signed, in the same unit.
    pub iat: u64,
    /// Who signed it.
    pub iss: &'a str,
}

/// One ES256 key.
pub struct SigningKey {
    kid: String,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    /// A new key with a random `kid`.
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn generate() -> Result<Self, AuthorityError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
        let mut id = [0; 18];
        SystemRandom::new().fill(&mut id).map_err(failed)?;
        Ok(Self { kid: URL_SAFE_NO_PAD.encode(id), pair })
    }

    /// Signs `claims` as a compact JWS.
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn sign(&self, claims: &Claims<'_>) -> Result<Secret, AuthorityError> {
        let header = json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"}).to_string();
        let claims = serde_json::to_vec(claims).map_err(|error| AuthorityError::Crypto(error.to_string()))?;
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.pair.sign(&SystemRandom::new(), token.as_bytes()).map_err(failed)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(Secret::new(token))
    }

    /// The public half. No `use` member: `FetchJWTBundles` gives plain JWK Sets, as SPIRE does.
    fn public(&self) -> serde_json::Value {
        // An uncompressed P-256 point: 0x04, then x and y of 32 bytes each (SEC 1 §2.3.3).
        let point = self.pair.public_key().as_ref();
        let coordinate = |range| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        json!({"kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256", "x": coordinate(1..33), "y": coordinate(33..65)})
    }
}

/// The JWK Set of `keys`.
pub fn key_set(keys: &[SigningKey]) -> Vec<u8> {
    let keys: Vec<_> = keys.iter().map(SigningKey::public).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

fn failed(_: aws_lc_rs::error::Unspecified) -> AuthorityError {
    AuthorityError::Crypto("the system's cryptography failed".into())
}
