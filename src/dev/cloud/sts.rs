//! The security token service: `AssumeRoleWithWebIdentity` in the query protocol (version 2011-06-15), with AWS's
//! constraints, answers and error codes. Beside it the issuer's OIDC discovery documents, so that other clouds on this
//! machine can be pointed at the authority as well.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::http::{body, plain};
use super::text::{parse_pairs, xml};
use super::web_identity::{self, Identity, TokenError};
use super::{Cloud, Role, Session, iam};
use crate::clock::Timestamp;
use crate::secret::Secret;

/// The most bytes of a request: a token of 20,000 characters, a policy of 2,048 and room.
pub const MAX_BODY: usize = 64 * 1024;
const VERSION: &str = "2011-06-15";
const MAX_POLICY: usize = 2048;
const MIN_SESSION: u64 = 900;
const MAX_SESSION: u64 = 43_200;
const DEFAULT_SESSION: u64 = 3600;

/// Answers one request.
pub fn answer(cloud: &Cloud, request: &Request<Bytes>) -> Response<Bytes> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/") => match assume_role(cloud, request) {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        },
        (&Method::GET, "/.well-known/openid-configuration") => discovery(cloud),
        (&Method::GET, "/keys") => body(StatusCode::OK, "application/json", cloud.jwks()),
        (_, "/" | "/.well-known/openid-configuration" | "/keys") => plain(StatusCode::METHOD_NOT_ALLOWED),
        _ => plain(StatusCode::NOT_FOUND),
    }
}

fn discovery(cloud: &Cloud) -> Response<Bytes> {
    let issuer = &cloud.settings().issuer;
    let document = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/keys"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    body(StatusCode::OK, "application/json", document.to_string())
}

/// A refusal in AWS's words.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn validation(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "ValidationError", message)
    }

    fn access_denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
    }

    fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure", "The request processing has failed")
    }

    fn into_response(self) -> Response<Bytes> {
        let sender = if self.status.is_server_error() { "Receiver" } else { "Sender" };
        let text = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/{VERSION}/\">\n  <Error>\n    <Type>{sender}</Type>\n    \
             <Code>{}</Code>\n    <Message>{}</Message>\n  </Error>\n  <RequestId>{}</RequestId>\n</ErrorResponse>\n",
            self.code,
            xml(&self.message),
            request_id(),
        );
        body(self.status, "text/xml", text)
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        let code = match error {
            TokenError::Invalid(_) => "InvalidIdentityToken",
            TokenError::Expired => "ExpiredTokenException",
        };
        Self::new(StatusCode::BAD_REQUEST, code, error.to_string())
    }
}

/// The parameters of one call, each within the API's own constraints.
struct Call {
    role_arn: String,
    session_name: String,
    token: Secret,
    duration: Option<u64>,
    policy: Option<(iam::Policy, usize)>,
}

fn assume_role(cloud: &Cloud, request: &Request<Bytes>) -> Result<Response<Bytes>, Refusal> {
    let call = Call::parse(request)?;
    let now = cloud.now();
    // exposed: the signature is checked over the token's own bytes
    let identity = web_identity::verify(call.token.expose(), &cloud.jwks(), &cloud.settings().issuer, now)?;
    if !identity.audience.iter().any(|audience| cloud.settings().audiences.contains(audience)) {
        return Err(TokenError::Invalid("Incorrect token audience").into());
    }
    // An unknown role answers as one that does not trust the caller: names are not for guessing.
    let role = cloud.role(&call.role_arn).ok_or_else(Refusal::access_denied)?;
    if identity.subject != role.trusted_subject || !identity.audience.contains(&role.trusted_audience) {
        return Err(Refusal::access_denied());
    }
    let life = Duration::from_secs(call.duration.unwrap_or(DEFAULT_SESSION).max(MIN_SESSION));
    if life > role.max_session {
        return Err(Refusal::validation(
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
        ));
    }
    let packed = call.policy.as_ref().map(|(_, size)| size.saturating_mul(100).div_ceil(MAX_POLICY));
    let session = Arc::new(open_session(call, &role, &identity, now, life).ok_or_else(Refusal::internal)?);
    if !cloud.remember(Arc::clone(&session)) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "Throttling", "Rate exceeded"));
    }
    Ok(body(StatusCode::OK, "text/xml", granted(&session, &role, cloud, packed)))
}

impl Call {
    fn parse(request: &Request<Bytes>) -> Result<Self, Refusal> {
        let form = std::str::from_utf8(request.body()).ok().and_then(|text| parse_pairs(text, true));
        let form = form.ok_or_else(|| Refusal::validation("the body is not a form"))?;
        let get = |name: &str| form.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        if get("Action") != Some("AssumeRoleWithWebIdentity") || get("Version") != Some(VERSION) {
            let message = "Could not find operation for the given Action and Version";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "InvalidAction", message));
        }
        let known =
            ["Action", "Version", "RoleArn", "RoleSessionName", "WebIdentityToken", "DurationSeconds", "Policy"];
        if let Some((name, _)) = form.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            return Err(Refusal::validation(format!("{name} is not supported here")));
        }
        let need = |name, least: usize, most: usize| match get(name) {
            Some(value) if (least..=most).contains(&value.len()) => Ok(value),
            _ => Err(Refusal::validation(format!("{name} must have {least} to {most} characters"))),
        };
        let session_name = need("RoleSessionName", 2, 64)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
        if !session_name.bytes().all(allowed) {
            return Err(Refusal::validation("RoleSessionName must satisfy [\\w+=,.@-]*"));
        }
        Ok(Self {
            role_arn: need("RoleArn", 20, 2048)?.to_owned(),
            session_name: session_name.to_owned(),
            token: Secret::new(need("WebIdentityToken", 4, 20_000)?.to_owned()),
            duration: get("DurationSeconds").map(duration).transpose()?,
            policy: get("Policy").map(policy).transpose()?,
        })
    }
}

fn duration(text: &str) -> Result<u64, Refusal> {
    text.parse()
        .ok()
        .filter(|seconds| (MIN_SESSION..=MAX_SESSION).contains(seconds))
        .ok_or_else(|| Refusal::validation(format!("DurationSeconds must be {MIN_SESSION} to {MAX_SESSION}")))
}

/// A session policy, and its size. An empty one is refused: it must never mean "not narrowed".
fn policy(text: &str) -> Result<(iam::Policy, usize), Refusal> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{ff}');
    if text.is_empty() || text.len() > MAX_POLICY || !text.chars().all(allowed) {
        return Err(Refusal::validation(format!("Policy must have 1 to {MAX_POLICY} characters of U+0009 to U+00FF")));
    }
    let policy = iam::Policy::parse(text)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "MalformedPolicyDocument", error.to_string()))?;
    Ok((policy, text.len()))
}

/// `None` when the system gives no random bytes.
fn open_session(call: Call, role: &Role, identity: &Identity, now: Timestamp, life: Duration) -> Option<Session> {
    let session_token = format!("IQoJb3JpZ2luX2Vj{}", STANDARD.encode(random::<240>()?));
    Some(Session {
        access_key_id: format!("ASIA{}", base32(&random::<16>()?)),
        secret_access_key: Secret::new(STANDARD.encode(random::<30>()?)),
        session_token: Secret::new(session_token),
        web_identity_token: call.token,
        subject: identity.subject.clone(),
        role_arn: role.arn.clone(),
        role_id: role.id.clone(),
        session_name: call.session_name,
        issued_at: now,
        // STS tells whole seconds, and means what it tells.
        expires_at: (now + life).floor_to_second(),
        policy: call.policy.map(|(policy, _)| policy),
    })
}

fn granted(session: &Session, role: &Role, cloud: &Cloud, packed: Option<usize>) -> String {
    let account = role.arn.split(':').nth(4).unwrap_or_default();
    let issuer = cloud.settings().issuer.split_once("://").map_or("", |(_, rest)| rest);
    let packed = packed.map(|percent| format!("<PackedPolicySize>{percent}</PackedPolicySize>\n    "));
    format!(
        r#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/{VERSION}/">
  <AssumeRoleWithWebIdentityResult>
    <SubjectFromWebIdentityToken>{subject}</SubjectFromWebIdentityToken>
    <Audience>{audience}</Audience>
    <AssumedRoleUser>
      <Arn>{arn}</Arn>
      <AssumedRoleId>{id}</AssumedRoleId>
    </AssumedRoleUser>
    <Credentials>
      <AccessKeyId>{key}</AccessKeyId>
      <SecretAccessKey>{secret}</SecretAccessKey>
      <SessionToken>{token}</SessionToken>
      <Expiration>{expiration}</Expiration>
    </Credentials>
    {packed}<Provider>arn:aws:iam::{account}:oidc-provider/{issuer}</Provider>
  </AssumeRoleWithWebIdentityResult>
  <ResponseMetadata>
    <RequestId>{request}</RequestId>
  </ResponseMetadata>
</AssumeRoleWithWebIdentityResponse>
"#,
        subject = xml(&session.subject),
        audience = xml(&role.trusted_audience),
        arn = xml(&session.arn()),
        id = xml(&session.user_id()),
        key = session.access_key_id,
        // exposed: this answer is how the credential reaches its holder
        secret = session.secret_access_key.expose(),
        token = session.session_token.expose(),
        expiration = session.expires_at,
        packed = packed.unwrap_or_default(),
        issuer = xml(issuer),
        request = request_id(),
    )
}

/// A random id in the form of AWS's; all zeros when the system gives no random bytes.
pub(super) fn request_id() -> String {
    let text = HEXLOWER.encode(&random::<16>().unwrap_or([0; 16]));
    let part = |range| text.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

/// One character of RFC 4648's base32 alphabet for each byte.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte % 32))).copied().map(char::from).collect()
}
