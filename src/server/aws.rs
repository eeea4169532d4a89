//! The AWS container-credentials dialect: what unmodified AWS SDKs and the CLI ask for and understand.

use std::io;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde::Serialize;

use super::problem::Problem;
use super::{Answer, Dialect, Server};
use crate::broker::{CredentialsError, MintError};
use crate::clock::Moment;
use crate::exchange::{Credential, Provider};
use crate::identity::task_token::TokenHash;
use crate::lease::Issued;
use crate::secret::SecretBytes;

/// Where it is served, as SDKs ask for it.
pub(super) const PATH: &str = "/v1/aws/credentials";

/// The SDKs' own names. `Token` and `Expiration` are required by botocore, JavaScript and Rust.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Wire<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    /// UTC with a literal `Z`, whole seconds: the one form that every SDK reads.
    expiration: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
}

/// Both spellings: Java and Go read the first two, JavaScript the last two.
#[derive(Serialize)]
struct WireError<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(rename = "Code")]
    code_again: &'a str,
    #[serde(rename = "Message")]
    message_again: &'a str,
}

/// `GET /v1/aws/credentials`: the token stands in `Authorization`, bare or as `Bearer`.
pub(super) async fn credentials(server: &Server, request: &Request<Incoming>, id: &str) -> Answer {
    let Some(token) = presented(request) else {
        return server.refuse(Dialect::Aws, id, &Problem::unauthenticated(), "no task token".into());
    };
    match server.broker().credentials(&token, Provider::Aws, id).await {
        Ok(issued) => found(&issued),
        Err(error) => {
            let problem = match &error {
                // An SDK must take an ended task as final, and one that is as good as ended too.
                CredentialsError::TaskEnded(_) | CredentialsError::Mint(MintError::TooLate) => {
                    Problem::unauthenticated()
                }
                other => other.into(),
            };
            server.refuse(Dialect::Aws, id, &problem, error.to_string())
        }
    }
}

/// The answer to the same request where it needs no waiting: nearly always. `None` is no refusal.
pub(super) fn live(server: &Server, request: &Request<Incoming>, id: &str, at: Moment) -> Option<Answer> {
    let token = presented(request)?;
    server.broker().live_credential(&token, Provider::Aws, id, at).map(|issued| found(&issued))
}

fn presented(request: &Request<Incoming>) -> Option<TokenHash> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let text = value.to_str().ok()?;
    TokenHash::of(text.strip_prefix("Bearer ").unwrap_or(text))
}

/// The answer that serves `issued`; its body is written once per credential and then shared.
pub(super) fn found(issued: &Issued) -> Answer {
    found_as(issued.body(render))
}

/// A credential in its dialect's own bytes.
pub(super) fn found_as(body: Bytes) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn render(issued: &Issued) -> SecretBytes {
    // INVARIANT: it was asked for at AWS.
    let Credential::Aws(credential) = issued.credential() else { return SecretBytes::new(Vec::new()) };
    let wire = Wire {
        // exposed: this is the answer to the task that owns the credential
        access_key_id: credential.access_key_id.expose(),
        secret_access_key: credential.secret_access_key.expose(),
        token: credential.session_token.expose(),
        expiration: issued.told_expiry().to_string(),
        account_id: credential.account_id.as_deref(),
    };
    write_out(&wire)
}

/// JSON of what holds secrets. Measured first: a buffer that grows is moved, and left behind unwiped; one too large is
/// kept as long as the task.
pub(super) fn write_out(wire: &impl Serialize) -> SecretBytes {
    let mut length = Length(0);
    // Strings always serialise, here and below.
    let _ = serde_json::to_writer(&mut length, wire);
    let mut body = Vec::with_capacity(length.0);
    let _ = serde_json::to_writer(&mut body, wire);
    SecretBytes::new(body)
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A refusal as AWS SDKs read it: exactly `application/json`, no detail of ours.
pub(super) fn error(problem: &Problem) -> Answer {
    let code = match problem.code() {
        "unauthenticated" => "InvalidToken",
        "task_ended" => "TaskEnded",
        "denied" => "AccessDenied",
        "not_found" => "NotFound",
        "method_not_allowed" => "MethodNotAllowed",
        _ => "ServiceUnavailable",
    };
    let message = problem.detail();
    let wire = WireError { code, message, code_again: code, message_again: message };
    // Not 429: AWS's SDK for Rust takes it for final and never comes back.
    let status = match problem.status() {
        StatusCode::TOO_MANY_REQUESTS => StatusCode::SERVICE_UNAVAILABLE,
        other => other,
    };
    let mut answer = super::json(status, &wire);
    problem.say_when(&mut answer);
    answer
}
