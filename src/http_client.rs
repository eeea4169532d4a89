//! The HTTP client for all that we ask ourselves: Vault, the policy repository, and the sidecar by its own commands.
//! HTTP/1.1 over TCP, a proxy's tunnel or a Unix socket, with TLS by rustls on AWS-LC.
//!
//! What holds for every user of it:
//! - Every wait and every size has a limit: connection, proxy, TLS handshake, the answer's head and body, the whole.
//!   Times are of our clock.
//! - No redirect is followed. No environment variable is read but those by which the machine's roots are found
//!   (`SSL_CERT_FILE`, `SSL_CERT_DIR`).
//! - TLS without a single trusted root is refused before anything is asked ([`TlsError`]).
//! - A [`Fault`] holds nothing of a body, of a header or of a credential. Each user makes its own error of it.
//!
//! AWS STS is asked through the AWS SDK and its own client.
//!
//! Of hyper-util neither the pool nor the proxy's tunnel is used. The pool keeps connections by a clock of its own and cannot
//! ask whether the SVIDs that one rests on are still good. The tunnel does not tell a proxy that refuses from one that is none.
//!
//! - `connect`: an origin, TCP, TLS, HTTP/1.1 upon them.
//! - `proxy`: the tunnel.
//! - `tls`: roots, our X.509-SVID, the server's.
//! - `fault`: what can go wrong.

mod connect;
mod fault;
mod proxy;
pub(crate) mod tls;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use self::connect::Connection;
use self::tls::Tls;
use crate::clock::{SharedClock, Timestamp, within};
use crate::identity::workload_api::WorkloadApi;

pub use connect::{HostPort, Origin, OriginError, is_loopback, loopback_addresses};
pub use fault::{Fault, MAX_HEAD, MAX_HEADERS, Stage, TlsFault};
pub use proxy::{Proxy, ProxyError};
pub use tls::{ClientSvid, Roots, TlsError, TlsSettings};

/// Who asks.
pub const USER_AGENT: &str = concat!("sidemint/", env!("CARGO_PKG_VERSION"));
/// The most connections that are kept.
const MAX_IDLE_CONNECTIONS: usize = 8;
/// A connection that lay idle for longer is not used again.
pub(crate) const MAX_IDLE: Duration = Duration::from_secs(90);
/// A connection that is older is not used again, so that a host that moved is found, and new roots are trusted.
const MAX_AGE: Duration = Duration::from_secs(600);
/// The most of a body that nobody wants that is read to keep the connection.
const MAX_DISCARD: u64 = 16 * 1024;
/// The first size of a body's buffer, at most.
const FIRST_BUFFER: usize = 64 * 1024;

/// How long one request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The whole, from the first byte sent to the last byte read.
    pub whole: Duration,
    /// Each step before the request is sent: the connection, the proxy's tunnel, the TLS handshake.
    pub step: Duration,
    /// The longest silence within a body.
    pub silence: Duration,
    /// A body that comes with at least so many bytes a second may take longer than `whole`.
    pub min_rate: Option<u64>,
}

impl Limits {
    /// `whole` for everything together.
    pub fn within(whole: Duration) -> Self {
        Self { whole, step: whole, silence: whole, min_rate: None }
    }
}

/// A client of one server.
#[derive(Debug)]
pub struct HttpClient {
    target: Target,
    proxy: Option<Proxy>,
    tls: Option<(ServerName<'static>, Arc<Tls>)>,
    clock: SharedClock,
    /// The idle connections, where they are kept.
    pool: Option<Arc<Pool>>,
}

#[derive(Debug)]
enum Target {
    Tcp(HostPort),
    Unix(PathBuf),
}

impl HttpClient {
    /// A client of `origin`, by TLS where that says `https`; nothing is asked yet. `workload_api` is needed where `tls` names
    /// an SVID. The validity of certificates is judged by `clock`.
    ///
    /// # Errors
    /// Where it would be TLS: no trusted root, or no Workload API where one is needed.
    pub fn new(
        origin: &Origin,
        tls: &TlsSettings,
        clock: SharedClock,
        workload_api: Option<Arc<dyn WorkloadApi>>,
    ) -> Result<Self, TlsError> {
        let tls = match &origin.name {
            Some(name) => Some((name.clone(), Arc::new(Tls::new(tls, Arc::clone(&clock), workload_api)?))),
            None => None,
        };
        Ok(Self { tls, ..Self::plain(origin.host_port.clone(), clock) })
    }

    /// A client of plain HTTP, which everybody on the way can read.
    pub fn plain(host_port: HostPort, clock: SharedClock) -> Self {
        Self { target: Target::Tcp(host_port), proxy: None, tls: None, clock, pool: None }
    }

    /// A client of whoever listens at the Unix socket `path`.
    pub fn unix(path: PathBuf, clock: SharedClock) -> Self {
        Self { target: Target::Unix(path), proxy: None, tls: None, clock, pool: None }
    }

    /// The same through `proxy`.
    pub fn through(self, proxy: Option<Proxy>) -> Self {
        Self { proxy, ..self }
    }

    /// The same with connections that are kept after an answer, for `MAX_IDLE` at most.
    pub fn keeping_connections(self) -> Self {
        Self { pool: Some(Arc::default()), ..self }
    }

    /// Sends `request`, whose URI is a path, and returns with the answer's head. A request of a safe method is sent once
    /// more, on a new connection, where a kept connection turns out to be dead.
    ///
    /// # Errors
    /// No answer, or none that can be read, within `limits`.
    pub async fn send(&self, request: Request<Full<Bytes>>, limits: Limits) -> Result<Response, Fault> {
        let budget = Budget { started: self.clock.boot(), clock: Arc::clone(&self.clock), limits };
        let kept = self.pool.as_ref().filter(|_| request.method().is_safe()).and_then(|pool| self.kept(pool));
        if let Some(connection) = kept {
            // A third of the time for what may be a dead connection, so that the rest suffices for a new one.
            match self.exchange(connection, request.clone(), &budget, limits.whole / 3).await {
                Err(fault) if fault.is_stale() => {}
                answer => return answer,
            }
        }
        let connection = self.open(&budget).await?;
        self.exchange(connection, request, &budget, limits.whole).await
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        request: Request<Full<Bytes>>,
        budget: &Budget,
        patience: Duration,
    ) -> Result<Response, Fault> {
        let sent = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        let head = within(&*budget.clock, patience.min(budget.left(0)), sent).await;
        let response = head.ok_or(Fault::Slow(Stage::Answer))?.map_err(|error| Fault::of_head(&error))?;
        let (head, incoming) = response.into_parts();
        let body = Body { incoming, connection, budget: budget.clone(), pool: self.pool.clone() };
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    /// The kept connection that was used last, if it can still be used.
    fn kept(&self, pool: &Pool) -> Option<Connection> {
        let connection = pool.take(self.clock.boot())?;
        match (&connection.session, &self.tls) {
            (Some(session), Some((_, tls))) if !tls.still_holds(session) => None,
            _ => Some(connection),
        }
    }

    #[cfg(test)]
    pub(crate) fn idle_connections(&self) -> usize {
        self.pool.as_ref().map_or(0, |pool| pool.idle().len())
    }
}

/// The idle connections, the one used last at the end.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<Connection>>);

impl Pool {
    fn take(&self, now: Duration) -> Option<Connection> {
        let mut idle = self.idle();
        idle.retain(|connection| {
            now.saturating_sub(connection.used) < MAX_IDLE
                && now.saturating_sub(connection.opened) < MAX_AGE
                && !connection.sender.is_closed()
        });
        idle.pop()
    }

    fn keep(&self, mut connection: Connection, now: Duration) {
        connection.used = now;
        let mut idle = self.idle();
        if !connection.sender.is_closed() && idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push(connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        // The list is whole between any two lines: a panic elsewhere cannot have torn it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long one request may still take.
#[derive(Debug, Clone)]
struct Budget {
    clock: SharedClock,
    started: Duration,
    limits: Limits,
}

impl Budget {
    /// What is left once `received` bytes of a body are there.
    fn left(&self, received: usize) -> Duration {
        let earned = match self.limits.min_rate {
            Some(rate) => Duration::from_millis((received as u64).saturating_mul(1000) / rate.max(1)),
            None => Duration::ZERO,
        };
        self.limits.whole.saturating_add(earned).saturating_sub(self.clock.boot().saturating_sub(self.started))
    }

    /// Does one step before the request is sent.
    async fn step<T>(&self, stage: Stage, work: impl Future<Output = T>) -> Result<T, Fault> {
        within(&*self.clock, self.limits.step.min(self.left(0)), work).await.ok_or(Fault::Slow(stage))
    }
}

/// An answer. Its body is still to be read: dropping it ends the connection.
#[derive(Debug)]
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    /// Its headers; they may hold secrets.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body,
}

/// A body that is still to be read.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    /// What it comes through.
    connection: Connection,
    budget: Budget,
    pool: Option<Arc<Pool>>,
}

impl Body {
    /// Its length in bytes, where it was told.
    pub fn length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Reads it to its end, into memory that is wiped when it is dropped; then the connection may be kept. One that is
    /// told to be larger than `limit` bytes is refused before it is read.
    ///
    /// # Errors
    /// It is larger, too slow, or was cut off.
    pub async fn read(self, limit: u64) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let told = self.length();
        let Self { mut incoming, connection, budget, pool } = self;
        let too_large = |length: u64| if length > limit { Err(Fault::TooLarge { limit }) } else { Ok(()) };
        too_large(told.unwrap_or(0))?;
        let most = usize::try_from(told.unwrap_or(limit)).unwrap_or(usize::MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(most.min(FIRST_BUFFER)));
        loop {
            let patience = budget.limits.silence.min(budget.left(bytes.len()));
            let piece = within(&*budget.clock, patience, next(&mut incoming)).await.ok_or(Fault::Slow(Stage::Body))?;
            let Some(piece) = piece? else { break };
            too_large((bytes.len() + piece.len()) as u64)?;
            append(&mut bytes, &piece);
        }
        if let Some(pool) = pool {
            pool.keep(connection, budget.clock.boot());
        }
        Ok(bytes)
    }

    /// Reads what nobody wants, where that is little, so that the connection may be kept.
    pub async fn discard(self) {
        if self.pool.is_some() {
            drop(self.read(MAX_DISCARD).await);
        }
    }

    /// Its next piece as soon as it is there, without a limit of time; `None` at its end. Trailers are no part of it.
    ///
    /// # Errors
    /// It was cut off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        next(&mut self.incoming).await
    }
}

async fn next(incoming: &mut Incoming) -> Result<Option<Bytes>, Fault> {
    while let Some(frame) = incoming.frame().await {
        if let Ok(data) = frame.map_err(|error| Fault::of_body(&error))?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Appends `data`; a buffer that is too small is not moved, which would leave its bytes behind, but copied and wiped.
fn append(bytes: &mut Zeroizing<Vec<u8>>, data: &[u8]) {
    let length = bytes.len() + data.len();
    if length > bytes.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(length.max(bytes.capacity() * 2)));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(data);
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or a date, which is zero where it has passed. `None` for anything else.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    crate::retry::retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_without_leaving_bytes_behind() {
        let mut bytes = Zeroizing::new(Vec::with_capacity(2));
        for part in [b"ab".as_slice(), b"c", b"", b"defghij"] {
            append(&mut bytes, part);
        }
        assert_eq!(**bytes, *b"abcdefghij");
    }

    #[test]
    fn reads_retry_after_as_seconds_or_a_date() {
        let wait = |value: &str| {
            let value = http::HeaderValue::from_str(value).unwrap();
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]), Timestamp::from_secs(1_795_452_513))
        };
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(wait("Mon, 23 Nov 2026 16:49:33 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(wait("Mon, 23 Nov 2026 16:00:00 GMT"), Some(Duration::ZERO));
        for invalid in ["", "-1", "soon", "1.5", "99999999999999"] {
            assert_eq!(wait(invalid), None, "{invalid}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), Timestamp::default()), None);
    }
}
