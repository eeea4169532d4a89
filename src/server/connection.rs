//! Accepting connections: limits, time-outs, draining.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use http::Request;
use http_body_util::Either;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Answer;
use super::eviction::{OpenConnections, Slot, Waiting};
use super::head_timer::HeadTimer;
use super::mtls::{Mtls, Session};
use super::write_timeout::{ConnectionState, WriteTimeout};
use crate::audit::{Audit, Event, Kind};
use crate::broker::{Limit, Metrics};
use crate::clock::{SharedClock, Timestamp};

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP connection from this address.
    Tcp(SocketAddr),
    /// A connection over a Unix socket.
    Unix,
    /// A connection by mutual TLS from this address; its requests hold who is there.
    Mtls(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("the Unix socket"),
            Self::Mtls(address) => write!(f, "{address} by mutual TLS"),
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
    /// TCP, for mutual TLS.
    Mtls(TcpListener, Arc<Mtls>),
}

/// What one listener allows.
#[derive(Debug, Clone)]
pub struct ListenerLimits {
    /// Connections at a time. For one more, the one that has kept us waiting the longest is closed; it waits while there
    /// is none.
    pub connections: usize,
    /// How long a client may take to send the head of a request; also how long an idle connection is kept.
    pub head: Duration,
    /// How long the writing of an answer may stand still.
    pub answer: Duration,
    /// Where it is counted and told that a limit was met.
    pub told: Option<(Arc<Metrics>, Arc<Audit>)>,
}

impl ListenerLimits {
    fn met(&self, limit: Limit) {
        if let Some((metrics, _)) = &self.told {
            metrics.limited(limit);
        }
    }

    /// A connection with `peer` ended by a limit, before there was a request that could be refused.
    fn ended(&self, limit: Limit, peer: Peer, error: &hyper::Error, now: Timestamp) {
        self.met(limit);
        if let Some((_, audit)) = &self.told {
            audit.note(&Event {
                reason: Some(limit.as_str()),
                // the library's own words: nothing of what came
                detail: Some(format!("connection from {peer}: {error}")),
                ..Event::new(now, Kind::Refusal, "refused")
            });
        }
    }
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self { connections: 2048, head: Duration::from_secs(5), answer: Duration::from_secs(5), told: None }
    }
}

/// A head is refused once it has more than 100 fields, which is hyper's own limit (a number that is said to it makes it copy
/// all room for them with each request), and by the first read after so many bytes, which may be as large again.
const MAX_HEAD: usize = 32 * 1024;
/// How long the accept loop rests after the system had no descriptor to give.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection.
enum Accepted {
    Plain(Box<dyn Stream>),
    /// Hands are yet to be shaken, and not by the loop that accepts.
    Mtls(TcpStream, SocketAddr, Arc<Mtls>),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // A peer that is gone already is found out soon enough.
                let _ = stream.set_nodelay(true);
                Ok((Accepted::Plain(Box::new(stream)), Peer::Tcp(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Plain(Box::new(stream)), Peer::Unix))
            }
            Self::Mtls(listener, mtls) => {
                let (stream, peer) = listener.accept().await?;
                // A peer that is gone already is found out soon enough.
                let _ = stream.set_nodelay(true);
                Ok((Accepted::Mtls(stream, peer, Arc::clone(mtls)), Peer::Mtls(peer)))
            }
        }
    }
}

/// Accepts connections on `listener` and answers their requests by `handle`, until `stop` says so; then lets requests
/// under way finish and returns when the last connection is closed.
pub async fn serve<H, F>(
    listener: Listener,
    limits: ListenerLimits,
    clock: SharedClock,
    mut stop: watch::Receiver<bool>,
    handle: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(limits.connections));
    let open = Arc::new(OpenConnections::default());
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = accept(&listener, &slots, &open, &limits) => accepted,
        };
        let Some((accepted, peer, permit)) = accepted else {
            clock.sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        let admitted = Admitted { _permit: permit, slot: open.enter() };
        let (limits, clock) = (limits.clone(), Arc::clone(&clock));
        tokio::spawn(serve_connection(accepted, peer, admitted, limits, clock, stop.clone(), handle.clone()));
    }
    drop(listener);
    // Every slot free again means that every connection is closed.
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let _ = slots.acquire_many(all).await;
}

/// Returns when `stop` says so, or when whoever could say so is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One of so many connections: its permit, and its slot among the open ones.
struct Admitted {
    _permit: OwnedSemaphorePermit,
    slot: Slot,
}

/// The next connection and its permit; `None` where the system has none to give, or the connection was broken.
async fn accept(
    listener: &Listener,
    slots: &Arc<Semaphore>,
    open: &OpenConnections,
    limits: &ListenerLimits,
) -> Option<(Accepted, Peer, OwnedSemaphorePermit)> {
    let (accepted, peer) = match listener.accept().await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            if is_exhaustion(&error) {
                limits.met(Limit::Descriptors);
                open.make_room();
            }
            return None;
        }
    };
    let slot = match Arc::clone(slots).try_acquire_owned() {
        Ok(slot) => slot,
        Err(_) => {
            limits.met(Limit::Connections);
            open.make_room();
            Arc::clone(slots).acquire_owned().await.ok()?
        }
    };
    Some((accepted, peer, slot))
}

/// Whether the process or the system has as many open files as it may have.
fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].iter().any(|e| number == Some(e.raw_os_error()))
}

/// How a connection ends, where its client does not end it.
enum ConnectionEnd {
    /// After the request under way.
    AfterRequest,
    /// At once.
    Now,
}

async fn serve_connection<H, F>(
    accepted: Accepted,
    peer: Peer,
    admitted: Admitted,
    limits: ListenerLimits,
    clock: SharedClock,
    mut stop: watch::Receiver<bool>,
    handle: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F,
    F: Future<Output = Answer>,
{
    let (stream, session): (Box<dyn Stream>, Option<Session>) = match accepted {
        Accepted::Plain(stream) => (stream, None),
        Accepted::Mtls(stream, address, mtls) => match mtls.accept(stream, address, admitted.slot.evicted()).await {
            Some((stream, session)) => (Box::new(stream), Some(session)),
            None => return,
        },
    };
    let (stream, state) = WriteTimeout::new(stream, Arc::clone(&clock), limits.answer);
    let who = session.as_ref().map(|session| Arc::clone(session.peer()));
    let service = service_fn(|mut request: Request<Incoming>| {
        if let Some(who) = &who {
            request.extensions_mut().insert(Arc::clone(who));
        }
        head_is_read(&mut request, admitted.slot.waiting());
        handle(request, peer).map(|answer| {
            // A stream is ours to go on with; after any other answer it is the client's turn.
            if matches!(answer.body(), Either::Left(_)) {
                admitted.slot.answered();
            }
            Ok::<_, Infallible>(answer)
        })
    });
    let connection = http1::Builder::new()
        .timer(HeadTimer::default())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // Each is polled only once it was woken, not with each request.
    let mut ends = FuturesUnordered::<BoxFuture<'_, ConnectionEnd>>::new();
    let outdated = forever_or(session.as_ref().map(Session::outdated));
    ends.push(Box::pin(async {
        tokio::select! {
            () = stopped(&mut stop) => {}
            () = outdated => {}
        }
        ConnectionEnd::AfterRequest
    }));
    ends.push(Box::pin(forever_or(session.map(Session::over)).map(|()| ConnectionEnd::Now)));
    ends.push(Box::pin(admitted.slot.evicted().map(|()| {
        tracing::debug!(?peer, "a connection made room for another");
        ConnectionEnd::Now
    })));
    let ended = loop {
        tokio::select! {
            biased;
            Some(end) = ends.next() => match end {
                // Cut off, requests under way included: not a byte more for a peer that is no longer who it was.
                ConnectionEnd::Now => return,
                // The request under way is answered, and the answer says that it is the last.
                ConnectionEnd::AfterRequest => connection.as_mut().graceful_shutdown(),
            },
            ended = connection.as_mut() => break ended,
        }
    };
    if let Err(error) = ended {
        if let Some(limit) = limit_met(&error, &state) {
            limits.ended(limit, peer, &error, clock.now());
        }
        tracing::debug!(%error, ?peer, "a connection ended badly");
    }
}

/// What `some` does; nothing, for ever, where it is none.
async fn forever_or(some: Option<impl Future<Output = ()>>) {
    match some {
        Some(some) => some.await,
        None => std::future::pending().await,
    }
}

/// The head of a request is there. Without a body it is all that the client has to say; else whoever reads the body says
/// when it was heard.
fn head_is_read(request: &mut Request<Incoming>, waiting: &Arc<Waiting>) {
    if request.body().is_end_stream() {
        waiting.request_read();
    } else {
        request.extensions_mut().insert(PendingBody(Arc::clone(waiting)));
    }
}

/// In the extensions of a request whose body is still to be read.
#[derive(Debug, Clone)]
pub(super) struct PendingBody(Arc<Waiting>);

impl PendingBody {
    /// The body is there.
    pub(super) fn is_read(&self) {
        self.0.request_read();
    }
}

/// The limit by which a connection ended, if it was one. That nothing came on an idle connection is none, nor is that a
/// client went away while we worked for it.
fn limit_met(error: &hyper::Error, state: &ConnectionState) -> Option<Limit> {
    if state.stalled.load(Ordering::Acquire) {
        Some(Limit::AnswerTime)
    } else if error.is_parse_too_large() {
        Some(Limit::HeadSize)
    } else if error.is_timeout() && state.unanswered.load(Ordering::Acquire) {
        Some(Limit::HeadTime)
    } else if error.is_parse() || (error.is_incomplete_message() && state.unanswered.load(Ordering::Acquire)) {
        Some(Limit::Malformed)
    } else {
        None
    }
}
