//! JWT-SVID verification (SPIFFE JWT-SVID §2–§5), with stricter rules of our own where the specification leaves room:
//!
//! - at most [`MAX_TOKEN`] bytes, canonical base64url, one JSON object each for header and claims, no repeated member;
//! - of the header only `alg`, `kid` and `typ`; `kid` is required, as SPIRE and go-spiffe do in practice;
//! - `sub` is a workload's SPIFFE ID in canonical form; exactly one audience, ours, and never a cloud's;
//! - times are whole seconds in plain digits: RFC 7519 §2 would allow fractions and exponents, SPIRE writes neither;
//! - `exp` has no leeway (agents hand out tokens with half their life left), `nbf` and `iat` have [`LEEWAY`];
//! - no token may live longer than [`MAX_LIFETIME`] from now, since the specification sets no bound.
//!
//! The order is: form, header (`alg` first), the unverified `sub` to find its trust domain, that domain's bundle and no
//! other, the key by `kid`, whether the key may verify `alg`, the signature, and only then the claims. The claims that
//! are trusted are read from the bytes that were verified, which are parsed once.

mod bundle;
mod json;
mod verified_cache;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{SpiffeId, TrustDomain};
use crate::clock::Timestamp;
use bundle::{Algorithm, KeyError};
pub use bundle::{JwtBundle, JwtBundleError, MAX_BUNDLE, MAX_KEYS};
use json::{JsonError, Object, Value};
pub use verified_cache::Verifier;

/// The longest token that is read, in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;
/// How far the issuer's clock may be ahead of ours, for `nbf` and `iat`. The only leeway in the process.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// The furthest that `exp` may be ahead of now. SPIRE's default life is 5 minutes.
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The last second that `exp` may name: the end of year 9999, the last that RFC 3339 can write.
const MAX_NUMERIC_DATE: u64 = Timestamp::MAX.as_secs();

/// What a verified JWT-SVID says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `sub`: the workload that the token proves.
    pub spiffe_id: SpiffeId,
    /// `exp`, UTC. Always later than the `now` of the verification.
    pub expires_at: Timestamp,
}

/// Which rule a token broke: the first one, in the order of the checks. No variant holds text of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtSvidError {
    /// Longer than [`MAX_TOKEN`].
    #[error("the token is longer than 8 KiB")]
    Oversize,
    /// Not three non-empty parts in canonical, unpadded base64url (RFC 7515 §7.1).
    #[error("the token is not a compact JWS")]
    Malformed,
    /// Header or claims are not one JSON object, or are nested too deeply.
    #[error("header or claims are not a JSON object")]
    Json,
    /// An object in header or claims repeats a member.
    #[error("a member is repeated")]
    Duplicate,
    /// `alg` is missing or not one of the nine of SPIFFE JWT-SVID §2.1.
    #[error("alg is not one that JWT-SVIDs may use")]
    Algorithm,
    /// The header has a parameter other than `alg`, `kid` and `typ` (SPIFFE JWT-SVID §2), e.g. `crit` or `jwk`.
    #[error("the header has a parameter that JWT-SVIDs may not have")]
    Header,
    /// `typ` is neither absent nor `JWT` nor `JOSE` (SPIFFE JWT-SVID §2.3). A WIT-SVID ends here.
    #[error("typ is not JWT or JOSE")]
    Type,
    /// `kid` is missing, empty or not text.
    #[error("kid is missing")]
    KeyId,
    /// `sub` is missing or not the SPIFFE ID of a workload (SPIFFE JWT-SVID §3.1).
    #[error("sub is not the SPIFFE ID of a workload")]
    Subject,
    /// No bundle for the trust domain of `sub` (SPIFFE Workload API §6.3).
    #[error("there is no trust bundle for the trust domain of sub")]
    NoBundle,
    /// That bundle has no usable key with this `kid`.
    #[error("the trust domain has no such key")]
    UnknownKey,
    /// The key is not for `alg`.
    #[error("alg does not fit the key")]
    KeyMismatch,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Signature,
    /// `aud` is missing, empty, of a wrong type, or not ours (SPIFFE JWT-SVID §3.2).
    #[error("the token is for another audience")]
    Audience,
    /// `aud` has several values: any of the others could replay the token (SPIFFE JWT-SVID §7.2).
    #[error("the token has several audiences")]
    SeveralAudiences,
    /// `exp` is missing, or a time is not whole seconds in plain digits.
    #[error("exp is missing, or a time is not in whole seconds")]
    NumericDate,
    /// `exp` is past (SPIFFE JWT-SVID §3.3).
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` is in the future by more than [`LEEWAY`].
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `exp` is further away than [`MAX_LIFETIME`].
    #[error("the token would live too long")]
    Lifetime,
}

impl JwtSvidError {
    /// A stable label of a closed set, for metrics and audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::Malformed => "malformed",
            Self::Json => "json",
            Self::Duplicate => "duplicate_member",
            Self::Algorithm => "alg",
            Self::Header => "header",
            Self::Type => "typ",
            Self::KeyId => "kid",
            Self::Subject => "sub",
            Self::NoBundle => "no_bundle",
            Self::UnknownKey => "unknown_key",
            Self::KeyMismatch => "key_mismatch",
            Self::Signature => "signature",
            Self::Audience => "aud",
            Self::SeveralAudiences => "several_aud",
            Self::NumericDate => "numeric_date",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Lifetime => "lifetime",
        }
    }
}

impl From<JsonError> for JwtSvidError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::NotAnObject => Self::Json,
            JsonError::Duplicate => Self::Duplicate,
        }
    }
}

/// Verifies `token`: strict form, key of the token's own trust domain, signature, then the claims at `now`.
///
/// # Errors
/// Names the first rule that the token broke.
pub fn verify(
    token: &str,
    bundles: &BTreeMap<TrustDomain, Arc<JwtBundle>>,
    audience: &str,
    now: Timestamp,
) -> Result<Claims, JwtSvidError> {
    let (spiffe_id, times, _) = check_form_and_signature(token, bundles, audience)?;
    times.check(now)?;
    Ok(Claims { spiffe_id, expires_at: times.expires_at })
}

/// All of [`verify`] that no clock decides, and the bundle whose key verified the signature.
fn check_form_and_signature<'a>(
    token: &str,
    bundles: &'a BTreeMap<TrustDomain, Arc<JwtBundle>>,
    audience: &str,
) -> Result<(SpiffeId, Times, &'a Arc<JwtBundle>), JwtSvidError> {
    let parts = Parts::split(token)?;
    let header = Header::read(&parts.header)?;
    let claims = json::object(&parts.payload)?;

    let spiffe_id = subject(&claims)?;
    let bundle = bundles.get(spiffe_id.trust_domain()).ok_or(JwtSvidError::NoBundle)?;
    let key = bundle.key(&header.kid).ok_or(JwtSvidError::UnknownKey)?;
    key.verify(header.algorithm, parts.signed.as_bytes(), &parts.signature).map_err(|error| match error {
        KeyError::Mismatch => JwtSvidError::KeyMismatch,
        KeyError::Signature => JwtSvidError::Signature,
    })?;

    // INVARIANT: `claims` was parsed from the bytes whose signature was just verified, so `sub` is now true too.
    if sole_audience(&claims)? != audience || is_cloud_audience(audience) {
        return Err(JwtSvidError::Audience);
    }
    Ok((spiffe_id, Times::read(&claims)?, bundle))
}

/// When `token` was signed, by its `iat`, once its signature, form and `audience` are verified. Whether it has expired is
/// not asked: this is how one finds out what time it is. Use an audience that no other token ever had, so that it
/// cannot be an old one.
///
/// # Errors
/// Names the first rule that the token broke; `NumericDate` also when it has no `iat`, which is optional.
pub fn signed_time(
    token: &str,
    bundles: &BTreeMap<TrustDomain, Arc<JwtBundle>>,
    audience: &str,
) -> Result<Timestamp, JwtSvidError> {
    let claims = json::object(&Parts::split(token)?.payload)?;
    let issued_at = numeric_date(&claims, "iat")?.ok_or(JwtSvidError::NumericDate)?;
    // At its own time the token is valid, whatever our clock shows.
    verify(token, bundles, audience, issued_at).map(|_| issued_at)
}

/// What an unverified token claims: for tokens that our own agent just gave us, never for a caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inspected {
    pub(super) spiffe_id: SpiffeId,
    pub(super) audience: String,
    pub(super) expires_at: Timestamp,
}

/// Reads the claims of `token` without any verification.
pub(super) fn inspect(token: &str) -> Result<Inspected, JwtSvidError> {
    let parts = Parts::split(token)?;
    let claims = json::object(&parts.payload)?;
    Ok(Inspected {
        spiffe_id: subject(&claims)?,
        audience: sole_audience(&claims)?.to_owned(),
        expires_at: numeric_date(&claims, "exp")?.ok_or(JwtSvidError::NumericDate)?,
    })
}

/// Whether a cloud's token service goes by this name. A token for it must never prove a caller to us, nor may we be
/// configured to answer to it: whoever we exchange with could otherwise replay our callers' tokens.
pub fn is_cloud_audience(audience: &str) -> bool {
    let name = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://")).unwrap_or(audience);
    let name = name.trim_start_matches('/').trim_end_matches('/').to_ascii_lowercase();
    let host = name.split(['/', ':']).next().unwrap_or_default();
    let aws =
        host == "amazonaws.com" || [".amazonaws.com", ".amazonaws.com.cn"].iter().any(|suffix| host.ends_with(suffix));
    let google = host == "googleapis.com" || host.ends_with(".googleapis.com");
    let azure = name.starts_with("api://azureadtokenexchange") || host == "login.microsoftonline.com";
    aws || google || azure
}

/// The three parts of a compact JWS, decoded, and the text that the signature covers.
struct Parts<'a> {
    signed: &'a str,
    header: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, JwtSvidError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtSvidError::Oversize);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtSvidError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(JwtSvidError::Malformed)?;
        // a further dot is not in the base64url alphabet, so four parts fail here
        Ok(Self { signed, header: decode(header)?, payload: decode(payload)?, signature: decode(signature)? })
    }
}

/// Unpadded base64url with zero trailing bits: the one text for these bytes (RFC 4648 §3.5, §5).
fn decode(part: &str) -> Result<Vec<u8>, JwtSvidError> {
    if part.is_empty() {
        return Err(JwtSvidError::Malformed);
    }
    URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtSvidError::Malformed)
}

struct Header {
    algorithm: Algorithm,
    kid: String,
}

impl Header {
    /// `alg` before anything else (SPIFFE JWT-SVID §4), then what may not be there, then the rest.
    fn read(bytes: &[u8]) -> Result<Self, JwtSvidError> {
        let mut members = json::object(bytes)?;
        let algorithm = match members.remove("alg") {
            Some(Value::Text(name)) => Algorithm::parse(&name).ok_or(JwtSvidError::Algorithm)?,
            _ => return Err(JwtSvidError::Algorithm),
        };
        let kid = members.remove("kid");
        let typ = members.remove("typ");
        if !members.is_empty() {
            return Err(JwtSvidError::Header);
        }
        match typ {
            None => {}
            Some(Value::Text(typ)) if matches!(typ.as_str(), "JWT" | "JOSE") => {}
            Some(_) => return Err(JwtSvidError::Type),
        }
        match kid {
            Some(Value::Text(kid)) if !kid.is_empty() => Ok(Self { algorithm, kid }),
            _ => Err(JwtSvidError::KeyId),
        }
    }
}

fn subject(claims: &Object) -> Result<SpiffeId, JwtSvidError> {
    match claims.get("sub") {
        Some(Value::Text(sub)) => sub.parse().map_err(|_| JwtSvidError::Subject),
        _ => Err(JwtSvidError::Subject),
    }
}

/// The one value of `aud`, which may be text or an array of text (RFC 7519 §4.1.3).
fn sole_audience(claims: &Object) -> Result<&str, JwtSvidError> {
    let audience = match claims.get("aud") {
        Some(Value::Array(values)) => match values.as_slice() {
            [only] => only,
            [] => return Err(JwtSvidError::Audience),
            _ => return Err(JwtSvidError::SeveralAudiences),
        },
        Some(value) => value,
        None => return Err(JwtSvidError::Audience),
    };
    match audience {
        Value::Text(audience) if !audience.is_empty() => Ok(audience),
        _ => Err(JwtSvidError::Audience),
    }
}

/// A time in seconds since the epoch: whole, not negative, plain digits, not after year 9999. Anything else is refused,
/// whatever its type: a verifier that skips a time it cannot read accepts tokens for ever (CVE-2026-25537).
fn numeric_date(claims: &Object, name: &str) -> Result<Option<Timestamp>, JwtSvidError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Whole(seconds)) if *seconds <= MAX_NUMERIC_DATE => Ok(Some(Timestamp::from_secs(*seconds))),
        Some(_) => Err(JwtSvidError::NumericDate),
    }
}

/// When a token may be trusted.
#[derive(Debug, Clone, Copy)]
struct Times {
    expires_at: Timestamp,
    /// The later of `nbf` and `iat`; the epoch where it has neither.
    starts_at: Timestamp,
}

impl Times {
    fn read(claims: &Object) -> Result<Self, JwtSvidError> {
        let expires_at = numeric_date(claims, "exp")?.ok_or(JwtSvidError::NumericDate)?;
        let not_before = numeric_date(claims, "nbf")?;
        let issued_at = numeric_date(claims, "iat")?;
        Ok(Self { expires_at, starts_at: not_before.max(issued_at).unwrap_or_default() })
    }

    /// Whether the token may be trusted at `now`.
    fn check(self, now: Timestamp) -> Result<(), JwtSvidError> {
        if self.expires_at <= now {
            return Err(JwtSvidError::Expired);
        }
        if self.starts_at > now + LEEWAY {
            return Err(JwtSvidError::NotYetValid);
        }
        if self.expires_at.since(now) > MAX_LIFETIME {
            return Err(JwtSvidError::Lifetime);
        }
        Ok(())
    }
}
