//! Who signed this request? AWS Signature Version 4 in the `Authorization` header, checked against the sessions that STS
//! gave out.

use std::collections::BTreeMap;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::Request;

use super::text::{percent_decode, percent_encode};
use super::{Cloud, Session};
use crate::clock::Timestamp;
use std::sync::Arc;
use std::time::Duration;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far the signer's clock may be off, either way.
pub const MAX_SKEW: Duration = Duration::from_secs(15 * 60);
/// Headers that must be signed where they are present; `host` and the date always.
const MUST_BE_SIGNED: [&str; 4] = ["host", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"];

/// Why a request's signature was not accepted; each is an error code of S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureError {
    /// Not signed at all.
    Missing,
    /// The `Authorization` header, or what belongs to it, is not well formed.
    Malformed,
    /// No session has this access key.
    UnknownKey,
    /// The session token is missing, or not the one of this access key.
    WrongToken,
    /// The session is over.
    Expired,
    /// The signer's clock is off by more than [`MAX_SKEW`].
    Skewed,
    /// The signature is not the session's over this request.
    Mismatch,
    /// The body is not the one that was signed.
    WrongBody,
    /// A way to sign the body that this store does not read.
    UnsupportedBody,
}

/// The `Authorization` header, taken apart.
struct Authorization<'a> {
    access_key_id: &'a str,
    /// `DATE/REGION/SERVICE/aws4_request`.
    scope: &'a str,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts = text.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        let mut fields = BTreeMap::new();
        for part in parts.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            if fields.insert(name, value).is_some() {
                return None;
            }
        }
        let (access_key_id, scope) = fields.get("Credential")?.split_once('/')?;
        let signed_headers: Vec<_> = fields.get("SignedHeaders")?.split(';').collect();
        let signature = *fields.get("Signature")?;
        let sorted = signed_headers.is_sorted();
        (sorted && signature.len() == 64).then_some(Self { access_key_id, scope, signed_headers, signature })
    }
}

/// Verifies the signature of `request` for `service` in the cloud's region, and gives the session that made it.
///
/// # Errors
/// Says in what way it is not a live session's signature over exactly this request.
pub fn verify(cloud: &Cloud, request: &Request<Bytes>, service: &str) -> Result<Arc<Session>, SignatureError> {
    use SignatureError::{Expired, Malformed, Mismatch, Missing, Skewed, UnknownKey, WrongToken};
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let authorization = Authorization::parse(header("authorization").ok_or(Missing)?).ok_or(Malformed)?;
    let session = cloud.session(authorization.access_key_id).ok_or(UnknownKey)?;
    if !header("x-amz-security-token").is_some_and(|token| session.session_token.matches(token)) {
        return Err(WrongToken);
    }
    let now = cloud.now();
    if session.expires_at <= now {
        return Err(Expired);
    }
    let date = header("x-amz-date").ok_or(Malformed)?;
    let signed_at = parse_date(date).ok_or(Malformed)?;
    if now.since(signed_at).max(signed_at.since(now)) > MAX_SKEW {
        return Err(Skewed);
    }
    let day = date.get(..8).ok_or(Malformed)?;
    let region = &cloud.settings().region;
    if authorization.scope != format!("{day}/{region}/{service}/aws4_request") {
        return Err(Malformed);
    }
    let payload = header("x-amz-content-sha256").ok_or(Malformed)?;
    let canonical = canonical_request(request, &authorization.signed_headers, payload).ok_or(Malformed)?;
    let to_sign = format!("{ALGORITHM}\n{date}\n{}\n{}", authorization.scope, sha256(canonical.as_bytes()));
    // exposed: the session's key is what the signature is checked with
    let expected = sign(session.secret_access_key.expose(), &[day, region, service, "aws4_request"], &to_sign);
    verify_slices_are_equal(expected.as_bytes(), authorization.signature.as_bytes()).map_err(|_| Mismatch)?;
    Ok(session)
}

/// Whether the body is the one whose digest was signed. To be asked after [`verify`], when the caller may act at all.
///
/// # Errors
/// When it is another one, or signed in chunks.
pub fn verify_body(request: &Request<Bytes>) -> Result<(), SignatureError> {
    match request.headers().get("x-amz-content-sha256").and_then(|value| value.to_str().ok()) {
        Some("UNSIGNED-PAYLOAD") => Ok(()),
        Some(chunked) if chunked.starts_with("STREAMING-") => Err(SignatureError::UnsupportedBody),
        Some(told) if told == sha256(request.body()) => Ok(()),
        _ => Err(SignatureError::WrongBody),
    }
}

/// `None` when a header that must be signed is not, or the target cannot be decoded.
fn canonical_request(request: &Request<Bytes>, signed: &[&str], payload: &str) -> Option<String> {
    let headers = request.headers();
    let forgotten = |name: &&str| headers.contains_key(*name) && !signed.contains(name);
    if MUST_BE_SIGNED.iter().any(forgotten) || !signed.contains(&"host") || !signed.contains(&"x-amz-date") {
        return None;
    }
    let mut canonical = String::new();
    for name in signed {
        let values = headers.get_all(*name).iter().map(|value| value.to_str().ok().map(trimmed));
        let values = values.collect::<Option<Vec<_>>>().filter(|values| !values.is_empty())?;
        canonical.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    // S3 encodes the path once; decoding first makes `%7E` and `~` the same.
    let path = percent_encode(&percent_decode(request.uri().path(), false)?, true);
    let query = canonical_query(request.uri().query().unwrap_or_default())?;
    Some(format!("{}\n{path}\n{query}\n{canonical}\n{}\n{payload}", request.method(), signed.join(";")))
}

fn canonical_query(query: &str) -> Option<String> {
    let mut pairs = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let encode = |text| Some(percent_encode(&percent_decode(text, false)?, false));
        pairs.push((encode(name)?, encode(value)?));
    }
    pairs.sort();
    Some(pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&"))
}

/// Without space around it, and with single spaces inside.
fn trimmed(value: &str) -> String {
    value.split(' ').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// `YYYYMMDDTHHMMSSZ`.
fn parse_date(text: &str) -> Option<Timestamp> {
    if text.len() != 16 || !text.is_ascii() {
        return None;
    }
    let part = |range| text.get(range);
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let (hour, minute, second) = (part(9..11)?, part(11..13)?, part(13..15)?);
    if part(8..9)? != "T" || part(15..16)? != "Z" {
        return None;
    }
    format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse().ok()
}

/// The signing key is the secret, keyed down through each part of the scope.
fn sign(secret: &str, scope: &[&str], to_sign: &str) -> String {
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    for part in scope {
        key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
    }
    HEXLOWER.encode(hmac::sign(&key, to_sign.as_bytes()).as_ref())
}

fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn signs_as_awss_own_worked_example_does() {
        // "Example: GET Object" of the Amazon S3 API reference, "Signature calculations for the Authorization header".
        let request = Request::get("/test.txt")
            .header("host", "examplebucket.s3.amazonaws.com")
            .header("range", "bytes=0-9")
            .header("x-amz-content-sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
            .header("x-amz-date", "20130524T000000Z")
            .body(Bytes::new())
            .unwrap();
        let signed = ["host", "range", "x-amz-content-sha256", "x-amz-date"];
        let canonical = canonical_request(&request, &signed, &sha256(b"")).unwrap();
        assert_eq!(sha256(canonical.as_bytes()), "7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972");
        let to_sign = format!(
            "{ALGORITHM}\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n{}",
            sha256(canonical.as_bytes())
        );
        let scope = ["20130524", "us-east-1", "s3", "aws4_request"];
        assert_eq!(
            sign("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", &scope, &to_sign),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    #[test]
    fn a_header_that_matters_must_be_signed() {
        let request = Request::get("/").header("host", "a").header("x-amz-date", "20130524T000000Z");
        let request = request.header("x-amz-security-token", "t").body(Bytes::new()).unwrap();
        assert!(canonical_request(&request, &["host", "x-amz-date"], "").is_none());
        assert!(canonical_request(&request, &["host", "x-amz-date", "x-amz-security-token"], "").is_some());
    }

    #[test]
    fn reads_dates_of_one_form_only() {
        assert_eq!(parse_date("20130524T000001Z"), Some("2013-05-24T00:00:01Z".parse().unwrap()));
        for bad in ["", "20130524T000001", "20130524T0000010", "20131324T000001Z", "2013-5-24T00:01Z", "+013052éT0000Z"]
        {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn reading_an_authorization_header_never_panics(text in "(AWS4-HMAC-SHA256 )?[ -~é]{0,120}") {
            _ = Authorization::parse(&text);
            _ = parse_date(&text);
            _ = canonical_query(&text);
        }
    }
}
