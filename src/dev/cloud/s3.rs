//! The object store, path style: get, head, put and list, each only for a session whose signature holds and whose role ∩
//! session policy allow it now.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::header::{CONTENT_LENGTH, ETAG, LAST_MODIFIED};
use http::{HeaderValue, Method, Request, Response, StatusCode};

use super::http::body;
use super::sigv4::{self, SignatureError};
use super::sts::request_id;
use super::text::{parse_pairs, percent_decode, xml};
use super::{Cloud, Object, Session, iam};
use crate::clock::Timestamp;

/// The most bytes of a request, and so of an object.
pub const MAX_BODY: usize = 8 * 1024 * 1024;
const MAX_KEYS: usize = 1000;

/// Answers one request.
pub fn answer(cloud: &Cloud, request: &Request<Bytes>) -> Response<Bytes> {
    let response = act(cloud, request).unwrap_or_else(|refusal| refusal.into_response(request.uri().path()));
    if request.method() == Method::HEAD { response.map(|_| Bytes::new()) } else { response }
}

/// A refusal in S3's words.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
}

impl Refusal {
    const ACCESS_DENIED: Self = Self::new(StatusCode::FORBIDDEN, "AccessDenied", "Access Denied");
    const NO_SUCH_KEY: Self = Self::new(StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist.");
    const NO_SUCH_BUCKET: Self =
        Self::new(StatusCode::NOT_FOUND, "NoSuchBucket", "The specified bucket does not exist");
    const NOT_IMPLEMENTED: Self =
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", "This is not implemented in the embedded store.");
    const INVALID_URI: Self = Self::new(StatusCode::BAD_REQUEST, "InvalidURI", "Couldn't parse the specified URI.");

    const fn new(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self { status, code, message }
    }

    fn into_response(self, resource: &str) -> Response<Bytes> {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code><Message>{}</Message>\
             <Resource>{}</Resource><RequestId>{}</RequestId></Error>",
            self.code,
            xml(self.message),
            xml(resource),
            request_id(),
        );
        body(self.status, "application/xml", text)
    }
}

impl From<SignatureError> for Refusal {
    fn from(error: SignatureError) -> Self {
        let (status, code, message) = match error {
            SignatureError::Missing => return Self::ACCESS_DENIED,
            SignatureError::UnsupportedBody => return Self::NOT_IMPLEMENTED,
            SignatureError::Malformed => {
                (400, "AuthorizationHeaderMalformed", "The authorization header is malformed.")
            }
            SignatureError::UnknownKey => {
                (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
            }
            SignatureError::WrongToken => {
                (400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
            }
            SignatureError::Expired => (400, "ExpiredToken", "The provided token has expired."),
            SignatureError::Skewed => (
                403,
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
            ),
            SignatureError::Mismatch => (
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided.",
            ),
            SignatureError::WrongBody => (
                400,
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            ),
        };
        Self::new(StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN), code, message)
    }
}

/// Who asks, and what decides for them.
struct Guard<'a> {
    cloud: &'a Cloud,
    session: &'a Session,
    now: Timestamp,
}

impl Guard<'_> {
    /// May the session do `action` on `bucket` or, where `key` is not empty, on the object in it?
    fn check(&self, action: &str, bucket: &str, key: &str, prefix: Option<&str>) -> Result<(), Refusal> {
        let resource =
            if key.is_empty() { format!("arn:aws:s3:::{bucket}") } else { format!("arn:aws:s3:::{bucket}/{key}") };
        let user_id = self.session.user_id();
        let token_issued_at = self.session.issued_at;
        let asked =
            iam::Request { action, resource: &resource, now: self.now, token_issued_at, user_id: &user_id, prefix };
        // The role as it is now, not as it was: a Deny counts for sessions already given out.
        let role = self.cloud.role(&self.session.role_arn).ok_or(Refusal::ACCESS_DENIED)?;
        let may = iam::allows(&role.policy, self.session.policy.as_ref(), &asked);
        if may { Ok(()) } else { Err(Refusal::ACCESS_DENIED) }
    }

    fn get(&self, bucket: &str, key: &str) -> Result<Response<Bytes>, Refusal> {
        self.check("s3:GetObject", bucket, key, None)?;
        let Some(object) = self.cloud.object(bucket, key) else {
            // Whether a key exists is told only to those who may list.
            self.check("s3:ListBucket", bucket, "", None)?;
            return Err(Refusal::NO_SUCH_KEY);
        };
        let length = object.content.len();
        let mut response = body(StatusCode::OK, "application/octet-stream", object.content.clone());
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        insert(headers, ETAG, &etag(&object));
        insert(headers, LAST_MODIFIED, &http_date(object.modified));
        Ok(response)
    }

    fn put(&self, bucket: &str, key: &str, request: &Request<Bytes>) -> Result<Response<Bytes>, Refusal> {
        self.check("s3:PutObject", bucket, key, None)?;
        sigv4::verify_body(request)?;
        self.cloud.list(bucket, "").ok_or(Refusal::NO_SUCH_BUCKET)?;
        if !self.cloud.put(bucket, key, request.body().clone()) {
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", "The embedded store is full."));
        }
        let mut response = body(StatusCode::OK, "application/xml", Bytes::new());
        if let Some(object) = self.cloud.object(bucket, key) {
            insert(response.headers_mut(), ETAG, &etag(&object));
        }
        Ok(response)
    }

    fn list(&self, bucket: &str, query: &[(String, String)]) -> Result<Response<Bytes>, Refusal> {
        let get = |name: &str| query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let prefix = get("prefix");
        self.check("s3:ListBucket", bucket, "", prefix)?;
        if get("list-type") != Some("2") || get("continuation-token").is_some() || get("start-after").is_some() {
            return Err(Refusal::NOT_IMPLEMENTED);
        }
        let objects = self.cloud.list(bucket, prefix.unwrap_or_default()).ok_or(Refusal::NO_SUCH_BUCKET)?;
        Ok(body(
            StatusCode::OK,
            "application/xml",
            listing(bucket, prefix.unwrap_or_default(), get("delimiter"), &objects),
        ))
    }
}

fn act(cloud: &Cloud, request: &Request<Bytes>) -> Result<Response<Bytes>, Refusal> {
    let session = sigv4::verify(cloud, request, "s3")?;
    let path = percent_decode(request.uri().path(), false).and_then(|path| String::from_utf8(path).ok());
    let path = path.ok_or(Refusal::INVALID_URI)?;
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    let query = parse_pairs(request.uri().query().unwrap_or_default(), false).ok_or(Refusal::INVALID_URI)?;
    let guard = Guard { cloud, session: &session, now: cloud.now() };
    // `x-id` only names the operation for logs; any other sub-resource is not this operation.
    let bare = query.iter().all(|(name, _)| name == "x-id");
    match (request.method(), bucket, key) {
        (&Method::GET, "", _) => Err(Refusal::NOT_IMPLEMENTED),
        (&Method::GET, bucket, "") => guard.list(bucket, &query),
        (&Method::GET | &Method::HEAD, bucket, key) if bare && !key.is_empty() => guard.get(bucket, key),
        (&Method::PUT, bucket, key) if bare && !key.is_empty() => guard.put(bucket, key, request),
        _ => Err(Refusal::NOT_IMPLEMENTED),
    }
}

fn listing(bucket: &str, prefix: &str, delimiter: Option<&str>, objects: &[(String, Object)]) -> String {
    let mut contents = String::new();
    let mut folders: Vec<&str> = Vec::new();
    let mut count = 0;
    for (key, object) in objects.iter().take(MAX_KEYS) {
        let rest = key.get(prefix.len()..).unwrap_or_default();
        let folder =
            delimiter.filter(|d| !d.is_empty()).and_then(|d| rest.find(d).map(|at| prefix.len() + at + d.len()));
        if let Some(folder) = folder.and_then(|end| key.get(..end)) {
            if folders.last() != Some(&folder) {
                folders.push(folder);
                count += 1;
            }
            continue;
        }
        count += 1;
        contents.push_str(&format!(
            "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size>\
             <StorageClass>STANDARD</StorageClass></Contents>",
            xml(key),
            object.modified,
            xml(&etag(object)),
            object.content.len(),
        ));
    }
    for folder in folders {
        contents.push_str(&format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", xml(folder)));
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Name>{}</Name><Prefix>{}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{MAX_KEYS}</MaxKeys>\
         <IsTruncated>false</IsTruncated>{contents}</ListBucketResult>",
        xml(bucket),
        xml(prefix),
    )
}

/// Some digest in quotes; clients must not read more into it (RFC 9110 §8.8.3).
fn etag(object: &Object) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &object.content);
    format!("\"{}\"", HEXLOWER.encode(digest.as_ref().get(..16).unwrap_or_default()))
}

/// IMF-fixdate (RFC 9110 §5.6.7), from the calendar that RFC 3339 already worked out.
fn http_date(time: Timestamp) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = time.floor_to_second().to_string();
    let part = |range| text.get(range).unwrap_or_default();
    let days = usize::try_from(time.as_secs() / 86_400).unwrap_or_default();
    let day = DAYS.get(days % 7).copied().unwrap_or_default();
    let month: usize = part(5..7).parse().unwrap_or(1);
    let month = MONTHS.get(month.saturating_sub(1)).copied().unwrap_or_default();
    format!("{day}, {} {month} {} {} GMT", part(8..10), part(0..4), part(11..19))
}

fn insert(headers: &mut http::HeaderMap, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_dates_as_http_wants_them() {
        // The example of RFC 9110 §5.6.7.
        assert_eq!(http_date("1994-11-06T08:49:37Z".parse().unwrap()), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
