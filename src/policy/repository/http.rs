//! A signed repository behind HTTPS: [`HttpFetch`].
//!
//! What comes through is untrusted: the signatures say what is trusted, TLS only keeps others from reading along and
//! from withholding what is new. So nothing here verifies contents, and everything has a limit: sizes, stages, the whole.
//! Connections, proxy and TLS are those of [`crate::http_client`]. No content coding is accepted.

pub mod fault;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, HOST, HeaderMap, HeaderValue, IF_NONE_MATCH, TRANSFER_ENCODING, USER_AGENT,
};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use tokio::sync::Semaphore;

use super::fetch::{Answer, Fetch, FetchError, Tag};
use super::schedule::MAX_RETRY_AFTER;
use crate::clock::SharedClock;
use crate::http_client::{self, HttpClient, Limits, Origin, Response, TlsError, TlsSettings};
use crate::identity::workload_api::WorkloadApi;

pub use crate::http_client::{ClientSvid, Proxy, Roots};
pub use fault::HttpFault;

/// How long a file may take at the least and at the most that can be configured.
pub const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(120);

/// The most connections at a time. A refresh without changes uses one; a first load may ask for several files at once.
const MAX_CONNECTIONS: usize = 8;
/// The slowest body that is waited for beyond the time-out, in bytes a second.
const MIN_RATE: u64 = 64 * 1024;
/// The longest entity tag that is remembered.
const MAX_TAG: usize = 256;
/// The longest name of a file.
const MAX_NAME: usize = 1024;

/// Where and how a repository is asked.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Where it lies: `https://HOST[:PORT][/PATH]`. Its files are at `PATH/metadata/…` and `PATH/targets/…`.
    pub base: Uri,
    /// Whom TLS trusts and what it shows.
    pub tls: TlsSettings,
    /// The proxy to go through.
    pub proxy: Option<Proxy>,
    /// How long one file may take, within [`TIMEOUTS`]; a body that keeps coming at 64 KiB/s or more may take longer.
    pub timeout: Duration,
}

/// Settings that cannot work, each with its fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not `https://HOST[:PORT][/PATH]`.
    #[error("policy.repository must be https://HOST[:PORT][/PATH] without user, query or fragment")]
    Base,
    /// Everybody on the way would see and could withhold what is asked for.
    #[error("policy.repository may be plain http on loopback only: use https://")]
    PlainHttp,
    /// TLS's settings without TLS.
    #[error("policy.ca, policy.client and policy.server_id need an https:// repository")]
    TlsSettings,
    /// The roots cannot be had.
    #[error("roots for policy.repository: {0}")]
    Roots(String),
    /// SVIDs without a Workload API.
    #[error("policy.client and policy.server_id need the Workload API")]
    NoWorkloadApi,
    /// The time-out.
    #[error("policy.timeout must be from 1s to 120s")]
    Timeout,
}

impl From<TlsError> for HttpError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::NoWorkloadApi => Self::NoWorkloadApi,
            TlsError::SystemRoots(_) => Self::Roots(format!("{error}; name a file of roots with policy.ca")),
            TlsError::PemRoots(..) => Self::Roots(error.to_string()),
        }
    }
}

/// Reads the files of a repository over HTTPS. It keeps its connection: a refresh that finds nothing new costs one round
/// trip a request.
#[derive(Debug)]
pub struct HttpFetch {
    client: HttpClient,
    limits: Limits,
    /// The `Host` header, and the base's path without its last slash.
    host: HeaderValue,
    path: String,
    clock: SharedClock,
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the server may be asked again, by the clock that never goes back, where it said so.
    not_before: Duration,
    /// What was said of the last file that was absent.
    note: Option<String>,
}

impl HttpFetch {
    /// Makes the client; nothing is asked yet. `workload_api` is needed for [`Roots::Spiffe`] and [`ClientSvid`] only.
    /// Time-outs and the validity of certificates are judged by `clock`.
    ///
    /// # Errors
    /// Settings that cannot work, or roots that cannot be had.
    pub fn new(
        settings: HttpSettings,
        clock: SharedClock,
        workload_api: Option<Arc<dyn WorkloadApi>>,
    ) -> Result<Self, HttpError> {
        let HttpSettings { base, tls, proxy, timeout } = settings;
        let origin = Origin::of(&base).map_err(|_| HttpError::Base)?;
        if base.query().is_some() {
            return Err(HttpError::Base);
        }
        if !TIMEOUTS.contains(&timeout) {
            return Err(HttpError::Timeout);
        }
        if !origin.is_secure() {
            if tls.client.is_some() || tls.roots != Roots::System {
                return Err(HttpError::TlsSettings);
            }
            if !origin.is_loopback() {
                return Err(HttpError::PlainHttp);
            }
        }
        let client = HttpClient::new(&origin, &tls, Arc::clone(&clock), workload_api)?;
        Ok(Self {
            client: client.through(proxy).keeping_connections(),
            limits: Limits { whole: timeout, step: timeout / 2, silence: timeout / 2, min_rate: Some(MIN_RATE) },
            host: origin.authority().clone(),
            path: base.path().trim_end_matches('/').to_owned(),
            clock,
            permits: Semaphore::new(MAX_CONNECTIONS),
            state: Mutex::default(),
        })
    }

    /// As [`Fetch::get`], with the fault in its own words.
    ///
    /// # Errors
    /// Anything but the file, its absence or its being unchanged.
    async fn fetch_file(&self, name: &str, limit: u64, seen: Option<&Tag>) -> Result<Answer, HttpFault> {
        let request = self.request(name, seen).ok_or(HttpFault::Name)?;
        // The semaphore is never closed. Who is ahead is bounded by their own time-outs.
        let _permit = self.permits.acquire().await.map_err(|_| http_client::Fault::Closed)?;
        let response = self.client.send(request, self.limits).await?;
        match self.judge(&response, seen.is_some()) {
            Ok(Found::Body(tag)) => {
                let mut bytes = response.body.read(limit).await?;
                self.answered(None);
                Ok(Answer::Body { bytes: std::mem::take(&mut *bytes).into(), tag })
            }
            Ok(Found::Unchanged) => {
                response.body.discard().await;
                self.answered(None);
                Ok(Answer::Unchanged)
            }
            Ok(Found::Absent(status)) => {
                response.body.discard().await;
                self.answered(Some(absence(name, status)));
                Ok(Answer::Absent)
            }
            Err(fault) => {
                // A file that is not wanted is not read.
                if response.status != StatusCode::OK {
                    response.body.discard().await;
                }
                Err(fault)
            }
        }
    }

    fn request(&self, name: &str, seen: Option<&Tag>) -> Option<Request<Full<Bytes>>> {
        let target = format!("{}/{}", self.path, encoded(name)?);
        let mut request = Request::get(target)
            .header(HOST, self.host.clone())
            .header(USER_AGENT, http_client::USER_AGENT)
            .header(ACCEPT_ENCODING, "identity");
        if let Some(tag) = seen {
            request = request.header(IF_NONE_MATCH, &tag.0);
        }
        request.body(Full::default()).ok()
    }

    /// What the head says.
    fn judge(&self, response: &Response, conditional: bool) -> Result<Found, HttpFault> {
        let (status, headers) = (response.status, &response.headers);
        match status {
            StatusCode::OK => {
                check_body(response)?;
                Ok(Found::Body(tag(headers)))
            }
            StatusCode::NOT_MODIFIED if conditional => Ok(Found::Unchanged),
            StatusCode::NOT_MODIFIED => Err(HttpFault::NotAsked),
            // An object store without the right to list says 403 of what is not there.
            StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN => Ok(Found::Absent(status)),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let wait = http_client::retry_after(headers, self.clock.now());
                let retry_after = wait.map(|wait| wait.min(MAX_RETRY_AFTER));
                if let Some(wait) = retry_after {
                    let until = self.clock.boot().saturating_add(wait);
                    let mut state = self.lock();
                    state.not_before = state.not_before.max(until);
                }
                Err(HttpFault::Busy { status: status.as_u16(), retry_after })
            }
            _ if status.is_redirection() => Err(HttpFault::Redirect(status.as_u16())),
            _ => Err(HttpFault::Status(status.as_u16())),
        }
    }

    /// The server gave an answer, and did not ask to wait.
    fn answered(&self, note: Option<String>) {
        let mut state = self.lock();
        state.not_before = Duration::ZERO;
        state.note = note;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of it is one assignment: a panic elsewhere cannot have torn it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Fetch for HttpFetch {
    async fn get(&self, name: &str, limit: u64, seen: Option<&Tag>) -> Result<Answer, FetchError> {
        self.fetch_file(name, limit, seen).await.map_err(|fault| fault.into_fetch_error(name))
    }

    fn retry_after(&self) -> Option<Duration> {
        let left = self.lock().not_before.saturating_sub(self.clock.boot());
        (!left.is_zero()).then_some(left)
    }

    fn note(&self) -> Option<String> {
        self.lock().note.clone()
    }
}

/// What a head promises.
enum Found {
    Unchanged,
    Absent(StatusCode),
    Body(Option<Tag>),
}

/// Whether the head promises a body that can be known to be the file, and whole.
fn check_body(response: &Response) -> Result<(), HttpFault> {
    let headers = &response.headers;
    let is_identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(is_identity) {
        return Err(HttpFault::Encoded);
    }
    match response.body.length() {
        None if !headers.contains_key(TRANSFER_ENCODING) => Err(HttpFault::NoLength),
        _ => Ok(()),
    }
}

/// The body's entity tag (RFC 9110 §8.8.3), where there is exactly one that can be sent back.
fn tag(headers: &HeaderMap) -> Option<Tag> {
    let mut all = headers.get_all(ETAG).iter();
    let (value, None) = (all.next()?, all.next()) else { return None };
    let text = value.to_str().ok()?;
    let opaque = text.strip_prefix("W/").unwrap_or(text).strip_prefix('"')?.strip_suffix('"')?;
    let plain = opaque.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    (plain && text.len() <= MAX_TAG).then(|| Tag(text.to_owned()))
}

fn absence(name: &str, status: StatusCode) -> String {
    let why = match status {
        StatusCode::FORBIDDEN => ": not there, or not to be read by this sidecar",
        _ => "",
    };
    format!("{name}: HTTP {}{why}", status.as_u16())
}

/// The name as part of a URL: a server that decodes it gives the file of exactly this name. `None` where it cannot be
/// a file's name.
fn encoded(name: &str) -> Option<String> {
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    if name.len() > MAX_NAME || !name.split('/').all(is_part) || name.chars().any(char::is_control) {
        return None;
    }
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").ok()?;
        }
    }
    Some(text)
}
