//! What STS checks of a web identity token before it looks at any role. Written against RFC 7515 and AWS's rules, and on
//! purpose not the verifier that the sidecar uses.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::clock::Timestamp;

/// How far a token may be dated ahead of this cloud's clock.
const FUTURE: std::time::Duration = std::time::Duration::from_secs(300);

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `sub`.
    pub subject: String,
    /// `aud`.
    pub audience: Vec<String>,
}

/// Why a token was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// AWS: `InvalidIdentityToken`.
    #[error("{0}")]
    Invalid(&'static str),
    /// AWS: `ExpiredTokenException`.
    #[error("Token expired")]
    Expired,
}

/// Verifies `token`: an ES256 JWS by a key of `jwks`, from `issuer`, in time.
///
/// # Errors
/// Says what AWS would say of it.
pub fn verify(token: &str, jwks: &[u8], issuer: &str, now: Timestamp) -> Result<Identity, TokenError> {
    use TokenError::Invalid;
    let (signed, signature) = token.rsplit_once('.').ok_or(Invalid("not a JWT"))?;
    let (header, payload) = signed.split_once('.').ok_or(Invalid("not a JWT"))?;
    let header = members(header).ok_or(Invalid("header is not JSON"))?;
    if header.get("alg").and_then(Value::as_str) != Some("ES256") || header.contains_key("crit") {
        return Err(Invalid("algorithm not accepted"));
    }
    let kid = header.get("kid").and_then(Value::as_str).ok_or(Invalid("no kid"))?;
    let point = public_key(jwks, kid).ok_or(Invalid("No OpenIDConnect key matches the token's kid"))?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Invalid("signature is not base64url"))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| Invalid("signature does not verify"))?;

    let claims = members(payload).ok_or(Invalid("claims are not JSON"))?;
    if claims.get("iss").and_then(Value::as_str) != Some(issuer) {
        return Err(Invalid("No OpenIDConnect provider found for the token's issuer"));
    }
    // Whole seconds only: AWS refuses fractions.
    let time = |name| claims.get(name).and_then(Value::as_u64).map(Timestamp::from_secs);
    if time("exp").ok_or(Invalid("no usable exp"))? <= now {
        return Err(TokenError::Expired);
    }
    if time("iat").ok_or(Invalid("no usable iat"))? > now + FUTURE {
        return Err(Invalid("issued in the future"));
    }
    let subject = claims.get("sub").and_then(Value::as_str).filter(|sub| !sub.is_empty()).ok_or(Invalid("no sub"))?;
    let audience = audience(claims.get("aud")).ok_or(Invalid("no usable aud"))?;
    Ok(Identity { subject: subject.to_owned(), audience })
}

fn members(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn audience(value: Option<&Value>) -> Option<Vec<String>> {
    match value? {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) if !many.is_empty() => many.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// The uncompressed P-256 point of the key `kid` (RFC 7518 §6.2.1).
fn public_key(jwks: &[u8], kid: &str) -> Option<Vec<u8>> {
    let document: Value = serde_json::from_slice(jwks).ok()?;
    let key = document.get("keys")?.as_array()?.iter().find(|key| key.get("kid").is_some_and(|id| id == kid))?;
    if key.get("kty")? != "EC" || key.get("crv")? != "P-256" {
        return None;
    }
    let mut point = vec![4];
    for coordinate in ["x", "y"] {
        point.extend(URL_SAFE_NO_PAD.decode(key.get(coordinate)?.as_str()?).ok().filter(|bytes| bytes.len() == 32)?);
    }
    Some(point)
}
