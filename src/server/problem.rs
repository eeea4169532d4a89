//! What the outside is told: stable codes, statuses and constant texts (RFC 9457). Never policy text, never a secret.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{Either, Full};

use super::Answer;
use crate::api;
use crate::broker::{BeginError, CredentialsError, FindError, MintError};
use crate::policy::{Denial, DenialReason};

/// One refusal as the outside sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None }
    }

    /// 401: no evidence, or evidence that is not trusted.
    pub fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "The credentials presented are missing or not valid.")
    }

    /// 403: constant, whatever the reason.
    pub fn denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "denied", "Policy does not permit this.")
    }

    /// 403: refused before anything was looked at.
    pub fn forbidden_request() -> Self {
        Self::new(StatusCode::FORBIDDEN, "denied", "This listener does not take such requests.")
    }

    /// 400.
    pub fn invalid_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is nothing here.")
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This path does not take this method.")
    }

    /// 413.
    pub fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The body is larger than 65536 bytes.")
    }

    /// 415.
    pub fn unsupported_media_type() -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Send application/json.")
    }

    /// 409: the task has ended.
    pub fn task_ended() -> Self {
        Self::new(StatusCode::CONFLICT, "task_ended", "The task has ended.")
    }

    /// 429, with the time after which to try again.
    pub fn rate_limited(detail: &'static str, retry_after: Duration) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self { retry_after: Some(retry_after), ..Self::new(status, "rate_limited", detail) }
    }

    /// 503, with the time after which to try again.
    pub fn unavailable(code: &'static str, detail: &'static str, retry_after: Duration) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { retry_after: Some(retry_after), ..Self::new(status, code, detail) }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The text for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// When to try again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The answer in our own dialect: `application/problem+json`.
    pub fn answer(&self, request_id: &str) -> Answer {
        let wire = api::Problem {
            kind: Some("about:blank".to_owned()),
            title: Some(self.status.canonical_reason().unwrap_or("Error").to_owned()),
            status: Some(self.status.as_u16()),
            detail: Some(self.detail.clone()),
            code: Some(self.code.to_owned()),
            request_id: Some(request_id.to_owned()),
        };
        let mut answer = Response::new(Either::Left(Full::new(serde_json::to_vec(&wire).unwrap_or_default().into())));
        *answer.status_mut() = self.status;
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        self.say_when(&mut answer);
        answer
    }

    /// Adds `Retry-After`, in whole seconds rounded up, at least one.
    pub fn say_when(&self, answer: &mut Answer) {
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                answer.headers_mut().insert(RETRY_AFTER, value);
            }
        }
    }
}

pub(super) const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(30);

fn clock_untrusted() -> Problem {
    Problem::unavailable("unavailable", "The sidecar's clock is in doubt: nothing begins and nothing is minted.", LATER)
}

fn policy_expired() -> Problem {
    Problem::unavailable("policy_expired", "The policy is past its end and could not be renewed.", LATER)
}

impl From<&BeginError> for Problem {
    fn from(error: &BeginError) -> Self {
        match error {
            BeginError::Unauthenticated(_) | BeginError::ParentGone => Self::unauthenticated(),
            BeginError::NotServed(_) | BeginError::ForeignParent => Self::denied(),
            BeginError::Denied(denial) => denial.into(),
            BeginError::ClockUntrusted(_) => clock_untrusted(),
            BeginError::NotReady | BeginError::NoPolicy => {
                Self::unavailable("unavailable", "The sidecar is not ready yet.", SOON)
            }
            BeginError::Closing => Self::unavailable("unavailable", "The sidecar is being stopped.", SOON),
            BeginError::NoProvider(_) => {
                Self::unavailable("unavailable", "A provider of this scope is not configured.", LATER)
            }
            BeginError::Conflict => Self::new(
                StatusCode::CONFLICT,
                "conflict",
                "The idempotency key was used with another request, or its task has ended.",
            ),
            BeginError::TooMany => Self::rate_limited("Too many tasks.", LATER),
            BeginError::TooManyOfCaller => {
                Self::rate_limited("Too many tasks of this workload run, or have ended and left access.", LATER)
            }
            BeginError::Journal(_) | BeginError::Audit(_) | BeginError::NoRandomness(_) => {
                Self::unavailable("unavailable", "The task could not be recorded.", SOON)
            }
        }
    }
}

impl From<&Denial> for Problem {
    fn from(denial: &Denial) -> Self {
        match denial.reason {
            // Told only to callers whom a rule of the scope names, and about nothing but their own request.
            DenialReason::InvalidParameters | DenialReason::TtlTooLong => Self::invalid_request(denial.detail.clone()),
            DenialReason::ApprovalRequired => {
                Self::new(StatusCode::FORBIDDEN, "approval_required", "This scope needs an approval.")
            }
            DenialReason::PolicyExpired => policy_expired(),
            DenialReason::UnknownScope
            | DenialReason::ScopeSuspended
            | DenialReason::NotPermitted
            | DenialReason::Forbidden
            | DenialReason::Guardrail
            | DenialReason::Killed
            | DenialReason::EvaluationError => Self::denied(),
        }
    }
}

impl From<&CredentialsError> for Problem {
    fn from(error: &CredentialsError) -> Self {
        match error {
            CredentialsError::UnknownToken => Self::unauthenticated(),
            CredentialsError::TaskEnded(_) => Self::task_ended(),
            CredentialsError::Mint(error) => error.into(),
        }
    }
}

impl From<&MintError> for Problem {
    fn from(error: &MintError) -> Self {
        match (error, error.retry_after()) {
            (MintError::TaskEnded(_) | MintError::TooLate, _) => Self::task_ended(),
            (MintError::NoGrant(_), _) => {
                Self::new(StatusCode::FORBIDDEN, "denied", "The task's scope grants nothing at this provider.")
            }
            (MintError::NoPolicy | MintError::NotRecorded(_), _) => {
                Self::unavailable("unavailable", "The sidecar cannot mint now.", SOON)
            }
            (MintError::ClockUntrusted(_), _) => clock_untrusted(),
            (MintError::PolicyExpired(_), _) => policy_expired(),
            (MintError::TooOften(wait), _) => {
                Self::rate_limited("Too many new credentials for this workload in a minute.", *wait)
            }
            (MintError::TooManyWait, _) => {
                Self::rate_limited("Too many requests of this workload wait for a credential.", SOON)
            }
            (MintError::StillMinting, _) => {
                Self::unavailable("provider_unavailable", "The provider has not answered yet.", SOON)
            }
            (MintError::Exchange(_), Some(wait)) => {
                Self::unavailable("provider_unavailable", "The provider cannot be reached or cannot answer now.", wait)
            }
            (MintError::Exchange(_), None) => {
                Self::new(StatusCode::FORBIDDEN, "denied", "The provider refuses this task.")
            }
        }
    }
}

impl From<&FindError> for Problem {
    fn from(error: &FindError) -> Self {
        match error {
            FindError::Unauthenticated(_) => Self::unauthenticated(),
            FindError::NotFound => Self::not_found(),
        }
    }
}
