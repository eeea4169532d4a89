//! The AWS container-credentials dialect: what unmodified AWS SDKs and the CLI ask for and understand.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde::Serialize;

use super::problem::{Problem, SOON};
use super::{Answer, Dialect, Server};
use crate::broker::{CredentialsError, MintError};
use crate::clock::Moment;
use crate::exchange::Provider;
use crate::identity::task_token::TokenHash;
use crate::lease::Issued;

/// Where it is served, as SDKs ask for it.
pub(super) const PATH: &str = "/v1/aws/credentials";

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
        Ok(issued) => found(server, &issued, Dialect::Aws, id),
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
    let issued = server.broker().live_credential(&token, Provider::Aws, id, at)?;
    issued.native_answer(at.now, at.boot).map(json_answer)
}

fn presented(request: &Request<Incoming>) -> Option<TokenHash> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let text = value.to_str().ok()?;
    TokenHash::of(text.strip_prefix("Bearer ").unwrap_or(text))
}

/// The answer that serves `issued`, whichever provider gave it.
pub(super) fn found(server: &Server, issued: &Issued, dialect: Dialect, id: &str) -> Answer {
    let Moment { now, boot } = server.broker().parts().clock.moment();
    match issued.native_answer(now, boot) {
        Some(body) => json_answer(body),
        None => {
            let problem = Problem::unavailable("provider_unavailable", "The provider has not answered yet.", SOON);
            server.refuse(dialect, id, &problem, "too little of the credential is left".into())
        }
    }
}

fn json_answer(body: Bytes) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
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
