//! A signed repository behind HTTPS: [`HttpFetch`].
//!
//! What comes through is untrusted: the signatures say what is believed, TLS only keeps others from reading along and
//! from withholding what is new. So nothing here verifies contents, and everything has a limit: sizes, stages, the whole.
//! No redirect is followed, no content coding accepted, no environment variable read but those by which the machine's
//! roots are found (`SSL_CERT_FILE`, `SSL_CERT_DIR`).
//!
//! - [`connect`]: TCP, the proxy's tunnel, TLS.
//! - [`fault`]: what can go wrong, each with its stable word.
//! - `trust`: roots, our X.509-SVID, the server's.

pub mod connect;
pub mod fault;
#[cfg(test)]
mod tests;
mod trust;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, HOST, HeaderMap, HeaderValue, IF_NONE_MATCH, RETRY_AFTER,
    TRANSFER_ENCODING, USER_AGENT,
};
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use tokio::sync::Semaphore;

use self::connect::{Connection, Place};
use self::fault::Stage;
use self::trust::Trust;
use super::fetch::{Answer, Fetch, FetchError, Tag};
use super::schedule::MAX_RETRY_AFTER;
use crate::clock::{Clock, SharedClock, within};
use crate::identity::SpiffeId;
use crate::identity::workload_api::WorkloadApi;

pub use connect::{Proxy, ProxyError};
pub use fault::{HttpFault, TlsFault};

/// How long a file may take at the least and at the most that can be configured.
pub const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(120);

/// Who asks.
const USER_AGENT_TEXT: &str = concat!("sidemint/", env!("CARGO_PKG_VERSION"));
/// The most connections at a time. A look without changes uses one; a first load may ask for several files at once.
const MAX_CONNECTIONS: usize = 8;
/// A connection that lay idle for longer is not used again.
const MAX_IDLE: Duration = Duration::from_secs(90);
/// A connection that is older is not used again, so that a host that moved is found, and new roots are believed.
const MAX_AGE: Duration = Duration::from_secs(600);
/// The slowest body that is waited for beyond the time-out, in bytes a second.
const MIN_RATE: u64 = 64 * 1024;
/// The most of an error's body that is read to keep the connection.
const MAX_DRAIN: u64 = 16 * 1024;
/// The longest entity tag that is remembered.
const MAX_TAG: usize = 256;
/// The longest name of a file.
const MAX_NAME: usize = 1024;

/// Where and how a repository is asked.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Where it lies: `https://HOST[:PORT][/PATH]`. Its files are at `PATH/metadata/…` and `PATH/targets/…`.
    pub base: Uri,
    /// Whether plain `http://` to another host than loopback is meant.
    pub allow_plain_http: bool,
    /// By what the server is believed to be who it is.
    pub roots: Roots,
    /// What is presented to the server.
    pub client: Option<ClientSvid>,
    /// The proxy to go through.
    pub proxy: Option<Proxy>,
    /// How long one file may take, within [`TIMEOUTS`]; a body that keeps coming at 64 KiB/s or more may take longer.
    pub timeout: Duration,
}

/// By what the server is believed to be who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The machine's roots.
    System,
    /// The roots in this PEM file, and no others; it is read again for each connection.
    Pem(PathBuf),
    /// The server is this workload, by the bundle of its trust domain (SPIFFE X509-SVID §5), whatever its host's name.
    Spiffe(SpiffeId),
}

/// Which of our X.509-SVIDs is presented. A rotated one is used from the next connection on, and ends the kept one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientSvid {
    /// The Workload API's default one.
    Default,
    /// That of this SPIFFE ID.
    Named(SpiffeId),
}

/// Settings that cannot work, each with its mend.
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

impl HttpError {
    /// A stable word of a closed set.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::PlainHttp => "plain_http",
            Self::TlsSettings => "tls_settings",
            Self::Roots(_) => "roots",
            Self::NoWorkloadApi => "no_workload_api",
            Self::Timeout => "timeout",
        }
    }
}

/// Reads the files of a repository over HTTPS. It keeps its connection: a look that finds nothing new costs one round
/// trip a question.
#[derive(Debug)]
pub struct HttpFetch {
    place: Place,
    /// The `Host` header, and the base's path without its last slash.
    host: HeaderValue,
    path: String,
    proxy: Option<Proxy>,
    trust: Option<Arc<Trust>>,
    timeout: Duration,
    clock: SharedClock,
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The one used last is last.
    idle: Vec<Connection>,
    /// Until when the server asked to be left alone, by the clock that never goes back.
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
        let base = &settings.base;
        let authority = base.authority().ok_or(HttpError::Base)?;
        let secure = match base.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(HttpError::Base),
        };
        if authority.as_str().contains('@') || base.query().is_some() {
            return Err(HttpError::Base);
        }
        let place = Place::of(base, if secure { 443 } else { 80 }).ok_or(HttpError::Base)?;
        if !TIMEOUTS.contains(&settings.timeout) {
            return Err(HttpError::Timeout);
        }
        if !secure {
            if settings.client.is_some() || settings.roots != Roots::System {
                return Err(HttpError::TlsSettings);
            }
            if !place.is_loopback() {
                if !settings.allow_plain_http {
                    return Err(HttpError::PlainHttp);
                }
                tracing::warn!(
                    repository = %base,
                    "policy.repository is plain http: the files are signed, but whoever is on the way sees them and can withhold new ones"
                );
            }
        }
        let trust = match secure {
            true => Some(Arc::new(Trust::new(&settings, Arc::clone(&clock), workload_api)?)),
            false => None,
        };
        Ok(Self {
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| HttpError::Base)?,
            path: base.path().trim_end_matches('/').to_owned(),
            place,
            proxy: settings.proxy,
            trust,
            timeout: settings.timeout,
            clock,
            permits: Semaphore::new(MAX_CONNECTIONS),
            state: Mutex::default(),
        })
    }

    /// As [`Fetch::get`], with the fault in its own words.
    ///
    /// # Errors
    /// Anything but the file, its absence or its being unchanged.
    pub async fn look(&self, name: &str, limit: u64, seen: Option<&Tag>) -> Result<Answer, HttpFault> {
        let request = || self.question(name, seen).ok_or(HttpFault::Name);
        let first = request()?;
        // The semaphore is never closed. Who is ahead is bounded by their own time-outs.
        let _permit = self.permits.acquire().await.map_err(|_| HttpFault::Closed)?;
        let pace = Pace { clock: &*self.clock, started: self.clock.boot(), timeout: self.timeout };
        let ask = Ask { name, limit, conditional: seen.is_some() };
        if let Some(connection) = self.kept() {
            // A third of the time for what may be a dead connection, so that the rest suffices for a new one.
            match self.exchange(connection, first, &ask, &pace, self.timeout / 3).await {
                Err(fault) if fault.is_stale() => {}
                answer => return answer,
            }
        }
        let connection = connect::open(&self.place, self.proxy.as_ref(), self.trust.as_ref(), &pace).await?;
        self.exchange(connection, request()?, &ask, &pace, self.timeout).await
    }

    /// How many connections lie idle.
    pub fn idle_connections(&self) -> usize {
        self.lock().idle.len()
    }

    fn question(&self, name: &str, seen: Option<&Tag>) -> Option<Request<Empty<Bytes>>> {
        let target = format!("{}/{}", self.path, encoded(name)?);
        let mut request = Request::get(target)
            .header(HOST, self.host.clone())
            .header(USER_AGENT, USER_AGENT_TEXT)
            .header(ACCEPT_ENCODING, "identity");
        if let Some(tag) = seen {
            request = request.header(IF_NONE_MATCH, &tag.0);
        }
        request.body(Empty::new()).ok()
    }

    /// The kept connection that was used last, if it can still be used.
    fn kept(&self) -> Option<Connection> {
        let now = self.clock.boot();
        let good = |connection: &Connection| {
            now.saturating_sub(connection.used) < MAX_IDLE
                && now.saturating_sub(connection.opened) < MAX_AGE
                && !connection.sender.is_closed()
        };
        let mut state = self.lock();
        state.idle.retain(good);
        let connection = state.idle.pop()?;
        drop(state);
        match (&connection.session, &self.trust) {
            (Some(session), Some(trust)) if !trust.still_holds(session) => None,
            _ => Some(connection),
        }
    }

    /// Keeps a connection whose last answer has been read to its end.
    fn keep(&self, mut connection: Connection) {
        connection.used = self.clock.boot();
        let mut state = self.lock();
        if !connection.sender.is_closed() && state.idle.len() < MAX_CONNECTIONS {
            state.idle.push(connection);
        }
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        request: Request<Empty<Bytes>>,
        ask: &Ask<'_>,
        pace: &Pace<'_>,
        patience: Duration,
    ) -> Result<Answer, HttpFault> {
        let sent = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        let head = within(pace.clock, patience.min(pace.left(0)), sent).await;
        let response = head.ok_or(HttpFault::Slow(Stage::Answer))?.map_err(|error| HttpFault::of_head(&error))?;
        match self.judge(&response, ask) {
            Ok(Found::Body(tag)) => {
                let bytes = read(response.into_body(), ask.limit, pace).await?;
                self.keep(connection);
                self.heard(None);
                Ok(Answer::Body { bytes, tag })
            }
            Ok(Found::Unchanged) => {
                self.drain(connection, response, pace).await;
                self.heard(None);
                Ok(Answer::Unchanged)
            }
            Ok(Found::Absent(status)) => {
                self.drain(connection, response, pace).await;
                self.heard(Some(absence(ask.name, status)));
                Ok(Answer::Absent)
            }
            Err(fault) => {
                self.drain(connection, response, pace).await;
                Err(fault)
            }
        }
    }

    /// What is said beside a status is not for us; it is only in the way of the next answer. Of a file that is not
    /// wanted, or of a long page, nothing is read.
    async fn drain(&self, connection: Connection, response: Response<Incoming>, pace: &Pace<'_>) {
        let is_long = response.body().size_hint().lower() > MAX_DRAIN;
        if response.status() != StatusCode::OK && !is_long && read(response.into_body(), MAX_DRAIN, pace).await.is_ok()
        {
            self.keep(connection);
        }
    }

    /// What the head says.
    fn judge(&self, response: &Response<Incoming>, ask: &Ask<'_>) -> Result<Found, HttpFault> {
        let (status, headers) = (response.status(), response.headers());
        match status {
            StatusCode::OK => {
                check_body(response, ask.limit)?;
                Ok(Found::Body(tag(headers)))
            }
            StatusCode::NOT_MODIFIED if ask.conditional => Ok(Found::Unchanged),
            StatusCode::NOT_MODIFIED => Err(HttpFault::NotAsked),
            // An object store without the right to list says 403 of what is not there.
            StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN => Ok(Found::Absent(status)),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let retry_after = self.retry_after_of(headers);
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

    /// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date.
    fn retry_after_of(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let wait = match text.parse::<u32>() {
            Ok(seconds) => Duration::from_secs(seconds.into()),
            Err(_) => {
                use aws_smithy_types::date_time::{DateTime, Format};
                let date = DateTime::from_str(text, Format::HttpDate).ok()?;
                let millis = u64::try_from(date.to_millis().ok()?).ok()?;
                crate::clock::Timestamp::from_millis(millis).since(self.clock.now())
            }
        };
        Some(wait.min(MAX_RETRY_AFTER))
    }

    /// The server gave an answer, and did not ask to be left alone.
    fn heard(&self, note: Option<String>) {
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
        self.look(name, limit, seen).await.map_err(|fault| fault.into_fetch_error(name))
    }

    fn retry_after(&self) -> Option<Duration> {
        let left = self.lock().not_before.saturating_sub(self.clock.boot());
        (!left.is_zero()).then_some(left)
    }

    fn note(&self) -> Option<String> {
        self.lock().note.clone()
    }
}

/// One question.
struct Ask<'a> {
    name: &'a str,
    limit: u64,
    conditional: bool,
}

/// What a head promises.
enum Found {
    Unchanged,
    Absent(StatusCode),
    Body(Option<Tag>),
}

/// How long one file may still take.
struct Pace<'a> {
    clock: &'a dyn Clock,
    started: Duration,
    timeout: Duration,
}

impl Pace<'_> {
    /// What is left once `received` bytes of a body are there.
    fn left(&self, received: u64) -> Duration {
        let earned = Duration::from_millis(received.saturating_mul(1000) / MIN_RATE);
        self.timeout.saturating_add(earned).saturating_sub(self.clock.boot().saturating_sub(self.started))
    }

    /// The most that one stage before the answer may take, and the longest silence within a body.
    fn stage(&self) -> Duration {
        self.timeout / 2
    }

    async fn within<T>(&self, stage: Stage, work: impl Future<Output = T>) -> Result<T, HttpFault> {
        within(self.clock, self.stage().min(self.left(0)), work).await.ok_or(HttpFault::Slow(stage))
    }
}

/// Reads a body to its end.
async fn read(mut body: Incoming, limit: u64, pace: &Pace<'_>) -> Result<Bytes, HttpFault> {
    let mut bytes = BytesMut::new();
    loop {
        let patience = pace.stage().min(pace.left(bytes.len() as u64));
        let frame = within(pace.clock, patience, body.frame()).await.ok_or(HttpFault::Slow(Stage::Body))?;
        let Some(frame) = frame else { return Ok(bytes.freeze()) };
        // Trailers are no part of the file.
        let Ok(data) = frame.map_err(|error| HttpFault::of_body(&error))?.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(HttpFault::TooLarge { limit });
        }
        bytes.extend_from_slice(&data);
    }
}

/// Whether the head promises a body that can be believed to be whole and small enough.
fn check_body(response: &Response<Incoming>, limit: u64) -> Result<(), HttpFault> {
    let headers = response.headers();
    let is_identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(is_identity) {
        return Err(HttpFault::Encoded);
    }
    match response.body().size_hint().exact() {
        Some(length) if length > limit => Err(HttpFault::TooLarge { limit }),
        Some(_) => Ok(()),
        None if headers.contains_key(TRANSFER_ENCODING) => Ok(()),
        None => Err(HttpFault::NoLength),
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

/// The name as part of a URL: a server that decodes it looks for a file of exactly this name. `None` where it cannot be
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
