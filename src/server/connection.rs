//! Accepting connections: limits, time-outs, draining.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Answer;
use crate::clock::SharedClock;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP connection from this address.
    Tcp(SocketAddr),
    /// A connection over a Unix socket.
    Unix,
}

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// What one listener allows.
#[derive(Debug, Clone, Copy)]
pub struct ListenerLimits {
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// How long a client may take to send the head of a request; also how long an idle connection is kept.
    pub head: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self { connections: 1024, head: Duration::from_secs(5) }
    }
}

const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 32 * 1024;
/// How long the accept loop rests after the system had no descriptor to give.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Box::new(stream), Peer::Tcp(peer)))
            }
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| (Box::new(stream) as _, Peer::Unix)),
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
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, peer, slot)) = accepted else {
            clock.sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        tokio::spawn(converse(stream, peer, slot, limits, stop.clone(), handle.clone()));
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

async fn accept(listener: &Listener, slots: &Arc<Semaphore>) -> Option<(Box<dyn Stream>, Peer, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, slot)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            None
        }
    }
}

async fn converse<H, F>(
    stream: Box<dyn Stream>,
    peer: Peer,
    slot: OwnedSemaphorePermit,
    limits: ListenerLimits,
    mut stop: watch::Receiver<bool>,
    handle: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        let answer = handle(request, peer);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?peer, "a connection ended badly");
    }
    drop(slot);
}
