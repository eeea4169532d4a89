//! The AWS container-credentials dialect: what unmodified AWS SDKs and the CLI ask for and understand.

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, StatusCode};
use serde::Serialize;

use super::dialect::{
    self, Action, Asked, CredentialRoute, Dialect, Presented, Refusal, Resource, Value, Variable, Wanted,
};
use super::guard::Rules;
use super::problem::Problem;
use super::{Answer, Server};
use crate::broker::{CredentialsError, MintError};
use crate::exchange::Provider;
use crate::identity::task_token::TokenHash;

/// Where it is served, as SDKs ask for it.
const PATH: &str = "/v1/aws/credentials";

/// AWS container credentials.
pub(super) static DIALECT: Dialect = Dialect {
    label: "aws",
    below: "/v1/aws",
    rules: Rules::GENERAL,
    presented,
    resources: &[Resource {
        path: PATH,
        methods: &[(
            Method::GET,
            // INVARIANT: what AWS gave is written out as its SDKs read it here.
            Action::Credential(CredentialRoute { wanted, answer: dialect::native_answer, problem }),
        )],
    }],
    refusal: |problem, _| error(problem),
    provider: Some(Provider::Aws),
    variables: &[
        Variable { name: "AWS_CONTAINER_CREDENTIALS_FULL_URI", value: Value::Url(PATH) },
        Variable { name: "AWS_CONTAINER_AUTHORIZATION_TOKEN", value: Value::Token },
        Variable { name: "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", value: Value::TokenFile },
    ],
    // What SDKs would take before the container endpoint, or instead of its URI (local-endpoints §1.1: `RELATIVE_URI` wins over
    // `FULL_URI`).
    displaced: &[
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ],
};

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

/// The token stands in `Authorization`, bare or as `Bearer`.
fn presented(parts: &Parts) -> Presented {
    match dialect::one(&parts.headers, &AUTHORIZATION) {
        Ok(text) => {
            TokenHash::of(text.strip_prefix("Bearer ").unwrap_or(text)).map_or(Presented::Unusable, Presented::Token)
        }
        Err(other) => other,
    }
}

fn wanted(_: &Server, asked: &Asked<'_>) -> Result<Wanted, Refusal> {
    match asked.presented {
        Presented::Token(token) => Ok(Wanted { token: *token, provider: Some(Provider::Aws) }),
        _ => Err(Refusal::new(Problem::unauthenticated(), "no task token")),
    }
}

fn problem(error: &CredentialsError) -> Problem {
    match error {
        // An SDK must take an ended task as final, and one that is as good as ended too.
        CredentialsError::TaskEnded(_) | CredentialsError::Mint(MintError::TooLate) => Problem::unauthenticated(),
        other => other.into(),
    }
}

/// A refusal as AWS SDKs read it: exactly `application/json`, no detail of ours.
fn error(problem: &Problem) -> Answer {
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
