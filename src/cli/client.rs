//! A client of the sidecar: HTTP/1.1 to a loopback address or a Unix socket, one connection a request.
//!
//! It never goes through a proxy and never to another host: what it sends proves who the caller is, in clear text.

mod hold;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

pub use crate::api::{
    BeginRequest, Begun, Ending, LeaseEnding, LeaseView, OutstandingView, PolicyStatus, Status, TaskList, TaskView,
};
pub use hold::{Hold, HoldEvent};

use super::{CliError, Exit, plain, setting};
use crate::api::Problem;
use crate::clock::{SharedClock, Timestamp};
use crate::http_client::{self, Fault, HostPort, HttpClient, Limits, Response, is_loopback};
use crate::secret::{Secret, SecretBytes};

/// The largest answer that is read, in bytes.
const MAX_BODY: u64 = 4 << 20;
/// How long a request may take, from its first byte to the answer's last; a begin waits for no cloud.
const LIMITS: Limits = {
    let whole = Duration::from_secs(15);
    Limits { whole, step: Duration::from_secs(2), silence: whole, min_rate: None }
};

/// Where a sidecar listens: `http://host:port` or `host:port` on loopback, or `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A port of the loopback interface.
    Tcp {
        /// The host as given, for the `Host` header: a loopback address or `localhost`.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket's absolute path.
    Unix(PathBuf),
}

/// A text is not an address that the client will use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not one of the accepted forms.
    #[error("must be http://host:port, host:port or unix:///path")]
    Form,
    /// Another host: the caller's proof would cross a network in clear text.
    #[error("must be on this host: 127.0.0.1, [::1], localhost or a Unix socket")]
    NotLoopback,
}

impl Address {
    /// What the `Host` header says.
    fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix://") {
            let path = Path::new(path);
            let usable = path.is_absolute() && path.file_name().is_some();
            return if usable { Ok(Self::Unix(path.to_owned())) } else { Err(AddressError::Form) };
        }
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| AddressError::Form)?;
        let host = uri.host().filter(|_| !authority.contains(['/', '?', '#', '@'])).ok_or(AddressError::Form)?;
        let port = uri.port_u16().filter(|port| *port != 0).ok_or(AddressError::Form)?;
        match is_loopback(host) {
            true => Ok(Self::Tcp { host: host.to_owned(), port }),
            false => Err(AddressError::NotLoopback),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// The address in `flag`, else in the environment's `variable`, else `default`.
///
/// # Errors
/// Usage, naming the variable, when the text is no address that the client will use.
pub fn address(flag: Option<&str>, variable: &str, default: &str) -> Result<Address, CliError> {
    let text = setting(flag, variable, default);
    text.parse().map_err(|error| CliError::new(Exit::Usage, format!("{variable}={text:?}: {error}")))
}

/// Why a request to the sidecar brought no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection: nothing listens there, or this user may not connect.
    #[error("no sidecar answers at {address}: {source}")]
    Connect {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// It did not connect or answer in time.
    #[error("the sidecar at {0} did not answer in time")]
    Slow(Address),
    /// The connection broke, or what came was not the sidecar's language.
    #[error("no usable answer from {address}: {detail}")]
    Broken {
        /// Where.
        address: Address,
        /// What was wrong; nothing of the body.
        detail: String,
    },
    /// The sidecar refused.
    #[error(transparent)]
    Refused(Box<Refusal>),
}

/// The sidecar's refusal, as its problem document (RFC 9457) tells.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail} (request {request_id})")]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The stable name (docs/openapi.yaml): `denied`, `task_ended` …; `http_NNN` where the answer has none.
    pub code: String,
    /// What the sidecar says of it.
    pub detail: String,
    /// The request's id, which the audit log also has; `-` where the answer has none.
    pub request_id: String,
    /// When to come back, where the answer says it.
    pub retry_after: Option<Duration>,
}

impl ClientError {
    /// The stable name, of a closed set.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Slow(_) => "slow",
            Self::Broken { .. } => "broken",
            Self::Refused(_) => "refused",
        }
    }

    /// Whether the same request may succeed a little later without anybody doing anything else.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Slow(_) | Self::Broken { .. } => true,
            Self::Refused(refusal) => {
                matches!(refusal.status, StatusCode::TOO_MANY_REQUESTS) || refusal.status.is_server_error()
            }
        }
    }
}

/// The exit code and the fix of each failure.
impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let (exit, fix) = match &error {
            ClientError::Connect { .. } => (Exit::Unavailable, "start `sidemint serve`, or name the right place"),
            ClientError::Slow(_) => (Exit::Unavailable, "try again; `sidemint status` shows what it waits for"),
            ClientError::Broken { .. } => (Exit::Unavailable, "is it a sidecar that listens there?"),
            ClientError::Refused(refusal) => explain(refusal),
        };
        Self::new(exit, format!("{error}; {fix}"))
    }
}

/// What a refusal means for the caller. Codes first, since several share a status.
fn explain(refusal: &Refusal) -> (Exit, &'static str) {
    match (refusal.code.as_str(), refusal.status.as_u16()) {
        ("approval_required", _) => (Exit::Denied, "ask the scope's approvers for an approval"),
        ("denied", _) => (Exit::Denied, "ask the scope's owner; the audit log has the reason under this request id"),
        ("task_ended", _) => (Exit::Failed, "begin a new task"),
        ("conflict", _) => (Exit::Failed, "use a new idempotency key for another request"),
        ("policy_expired", _) => (Exit::Unavailable, "policy is past its end: publish it anew or fix its distribution"),
        ("provider_unavailable", _) => (Exit::Unavailable, "the cloud does not answer: try again"),
        (_, 401) => (Exit::Denied, "`sidemint doctor` checks the SVID, its audience and the clock"),
        (_, 403) => (Exit::Denied, "the audit log has the reason under this request id"),
        (_, 400 | 413 | 415) => (Exit::Usage, "check the scope, its parameters and --ttl"),
        (_, 404) => (Exit::Failed, "check the id; ended tasks are kept for 24 h"),
        (_, 429) => (Exit::Unavailable, "slow down and try again"),
        (_, 503) => (Exit::Unavailable, "try again; `sidemint status` says what it waits for"),
        _ => (Exit::Failed, "the sidecar's log tells more under this request id"),
    }
}

/// An answer: what it says, and its bytes as they came (they may hold a task's token).
#[derive(Debug)]
pub struct Answer<T> {
    /// What it says.
    pub value: T,
    /// The body itself.
    pub raw: SecretBytes,
}

/// A sidecar, by its address.
#[derive(Debug, Clone)]
pub struct Sidecar {
    address: Address,
    clock: SharedClock,
}

impl Sidecar {
    /// The sidecar at `address`; time-outs run on `clock`.
    pub fn new(address: Address, clock: SharedClock) -> Self {
        Self { address, clock }
    }

    /// The sidecar that the environment names (`SIDEMINT_HTTP`, default `http://127.0.0.1:9870`).
    ///
    /// # Errors
    /// Usage, when the variable holds no usable address.
    pub fn from_env(clock: SharedClock) -> Result<Self, CliError> {
        Ok(Self::new(address(None, "SIDEMINT_HTTP", "http://127.0.0.1:9870")?, clock))
    }

    /// The admin listener that the environment names (`SIDEMINT_ADMIN`, default `http://127.0.0.1:9871`).
    ///
    /// # Errors
    /// Usage, when the variable holds no usable address.
    pub fn admin_from_env(clock: SharedClock) -> Result<Self, CliError> {
        Ok(Self::new(address(None, "SIDEMINT_ADMIN", "http://127.0.0.1:9871")?, clock))
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Begins a task, proved by the JWT-SVID `proof`. Repeating it with the same `idempotency_key` gives the same task.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn begin(
        &self,
        proof: &Secret,
        idempotency_key: &str,
        request: &BeginRequest,
    ) -> Result<Answer<Begun>, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.broken(error))?;
        let mut request = self.request(Method::POST, "/v1/tasks", Some(proof), body)?;
        let key = HeaderValue::from_str(idempotency_key).map_err(|error| self.broken(error))?;
        request.headers_mut().insert("idempotency-key", key);
        self.ask(request).await
    }

    /// Lists one's own tasks, those that stand after the task `after`; or with a task's token that task alone.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list(&self, proof: &Secret, after: Option<&str>) -> Result<Answer<TaskList>, ClientError> {
        let path = match after {
            Some(id) => format!("/v1/tasks?after={}", task_id(id)?),
            None => "/v1/tasks".to_owned(),
        };
        self.ask(self.request(Method::GET, &path, Some(proof), Vec::new())?).await
    }

    /// Shows one task, proved by its owner's JWT-SVID or its token.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn show(&self, proof: &Secret, id: &str) -> Result<Answer<TaskView>, ClientError> {
        self.ask(self.request(Method::GET, &self.task_path(id, "")?, Some(proof), Vec::new())?).await
    }

    /// Ends a task, proved by its owner's JWT-SVID or its token. Repeating it gives the same answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn end(&self, proof: &Secret, id: &str) -> Result<Answer<Ending>, ClientError> {
        self.ask(self.request(Method::DELETE, &self.task_path(id, "")?, Some(proof), Vec::new())?).await
    }

    /// Shows any task, through the admin Unix socket.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn show_as_operator(&self, id: &str) -> Result<Answer<TaskView>, ClientError> {
        self.ask(self.request(Method::GET, &self.task_path(id, "")?, None, Vec::new())?).await
    }

    /// Ends any task, through the admin Unix socket. Repeating it gives the same answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn end_as_operator(&self, id: &str) -> Result<Answer<Ending>, ClientError> {
        self.ask(self.request(Method::DELETE, &self.task_path(id, "")?, None, Vec::new())?).await
    }

    /// Holds a task by its token, until the [`Hold`] is dropped.
    ///
    /// # Errors
    /// See [`ClientError`]; a task that has ended is refused.
    pub async fn hold(&self, token: &Secret, id: &str) -> Result<Hold, ClientError> {
        let request = self.request(Method::POST, &self.task_path(id, "/hold")?, Some(token), Vec::new())?;
        let response = self.send(request).await?;
        if response.status == StatusCode::OK {
            return Ok(Hold::new(response.body, self.clock.clone()));
        }
        let body = response.body.read(MAX_BODY).await.map_err(|fault| self.failed(fault))?;
        Err(refusal(response.status, &response.headers, &body, self.clock.now()))
    }

    /// The sidecar's state, from its admin listener. A sidecar that is not ready answers too.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<Answer<Status>, ClientError> {
        let request = self.request(Method::GET, "/status", None, Vec::new())?;
        let (status, headers, mut body) = self.exchange(request).await?;
        match serde_json::from_slice(&body) {
            Ok(value) if status.is_success() || status == StatusCode::SERVICE_UNAVAILABLE => {
                Ok(Answer { value, raw: SecretBytes::new(std::mem::take(&mut *body)) })
            }
            Err(error) if status.is_success() => Err(self.broken(Unreadable(error))),
            _ => Err(refusal(status, &headers, &body, self.clock.now())),
        }
    }

    /// Whether a sidecar answers there at all: each of its answers has a request id (docs/openapi.yaml).
    pub async fn is_there(&self) -> bool {
        let Ok(request) = self.request(Method::GET, "/livez", None, Vec::new()) else { return false };
        matches!(self.exchange(request).await, Ok((_, headers, _)) if headers.contains_key("x-request-id"))
    }

    /// Asks, and reads a success as `T`.
    async fn ask<T: DeserializeOwned>(&self, request: Request<Full<Bytes>>) -> Result<Answer<T>, ClientError> {
        let (status, headers, mut body) = self.exchange(request).await?;
        if !status.is_success() {
            return Err(refusal(status, &headers, &body, self.clock.now()));
        }
        let value = serde_json::from_slice(&body).map_err(|error| self.broken(Unreadable(error)))?;
        Ok(Answer { value, raw: SecretBytes::new(std::mem::take(&mut *body)) })
    }

    /// One request and its whole answer.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<RawAnswer, ClientError> {
        let Response { status, headers, body } = self.send(request).await?;
        let body = body.read(MAX_BODY).await.map_err(|fault| self.failed(fault))?;
        Ok((status, headers, body))
    }

    /// Connects, sends, and returns once the answer's head is there.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response, ClientError> {
        let client = match &self.address {
            Address::Unix(path) => HttpClient::unix(path.clone(), self.clock.clone()),
            Address::Tcp { host, port } => HttpClient::plain(HostPort::new(host, *port), self.clock.clone()),
        };
        client.send(request, LIMITS).await.map_err(|fault| self.failed(fault))
    }

    fn failed(&self, fault: Fault) -> ClientError {
        match fault {
            Fault::Connect(errno) => ClientError::Connect { address: self.address.clone(), source: errno.into() },
            Fault::Slow(_) => ClientError::Slow(self.address.clone()),
            fault => self.broken(fault),
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        proof: Option<&Secret>,
        body: Vec<u8>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.authority())
            .header(ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(proof) = proof {
            // exposed: the proof is what the sidecar is to verify
            let value = Zeroizing::new(format!("Bearer {}", proof.expose()));
            let mut value =
                HeaderValue::from_str(&value).map_err(|_| self.broken("the token has characters that no token has"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Full::new(body.into())).map_err(|error| self.broken(error))
    }

    /// The path of a task's resource. An id with other characters than a task's cannot be sent: it could name another.
    fn task_path(&self, id: &str, below: &str) -> Result<String, ClientError> {
        Ok(format!("/v1/tasks/{}{below}", task_id(id)?))
    }

    fn broken(&self, detail: impl fmt::Display) -> ClientError {
        ClientError::Broken { address: self.address.clone(), detail: detail.to_string() }
    }
}

type RawAnswer = (StatusCode, HeaderMap, Zeroizing<Vec<u8>>);

/// A body that is not what the contract says. Where, but never what: serde would quote values of the body.
struct Unreadable(serde_json::Error);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unexpected JSON at line {} column {}", self.0.line(), self.0.column())
    }
}

/// Reads a refusal; an answer without a problem document is told by its status alone.
fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8], now: Timestamp) -> ClientError {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(plain);
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    let reason = || status.canonical_reason().unwrap_or("refused").to_owned();
    ClientError::Refused(Box::new(Refusal {
        status,
        code: problem.code.map_or_else(|| format!("http_{}", status.as_u16()), |code| plain(&code)),
        detail: problem.detail.or(problem.title).map_or_else(reason, |detail| plain(&detail)),
        request_id: problem.request_id.map(|id| plain(&id)).or_else(|| text("x-request-id")).unwrap_or("-".into()),
        retry_after: http_client::retry_after(headers, now),
    }))
}

/// `id`, where it can be a task's: it becomes a part of the path.
fn task_id(id: &str) -> Result<&str, ClientError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !id.is_empty() && id.len() <= 128 && id.bytes().all(allowed) {
        return Ok(id);
    }
    Err(ClientError::Refused(Box::new(Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "invalid_request".into(),
        detail: "not a task's id".into(),
        request_id: "-".into(),
        retry_after: None,
    })))
}

#[cfg(test)]
mod tests;
