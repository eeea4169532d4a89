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
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Answer;
use super::mtls::{Mtls, Session};
use crate::clock::SharedClock;

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
                stream.set_nodelay(true)?;
                Ok((Accepted::Plain(Box::new(stream)), Peer::Tcp(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Accepted::Plain(Box::new(stream)), Peer::Unix))
            }
            Self::Mtls(listener, mtls) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
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
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((accepted, peer, slot)) = accepted else {
            clock.sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        tokio::spawn(converse(accepted, peer, slot, limits, stop.clone(), handle.clone()));
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

async fn accept(listener: &Listener, slots: &Arc<Semaphore>) -> Option<(Accepted, Peer, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((accepted, peer)) => Some((accepted, peer, slot)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            None
        }
    }
}

async fn converse<H, F>(
    accepted: Accepted,
    peer: Peer,
    slot: OwnedSemaphorePermit,
    limits: ListenerLimits,
    mut stop: watch::Receiver<bool>,
    handle: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F,
    F: Future<Output = Answer>,
{
    let (stream, session): (Box<dyn Stream>, Option<Session>) = match accepted {
        Accepted::Plain(stream) => (stream, None),
        Accepted::Mtls(stream, address, mtls) => match mtls.accept(stream, address).await {
            Some((stream, session)) => (Box::new(stream), Some(session)),
            None => return,
        },
    };
    let who = session.as_ref().map(|session| Arc::clone(session.peer()));
    let service = service_fn(|mut request: Request<Incoming>| {
        if let Some(who) = &who {
            request.extensions_mut().insert(Arc::clone(who));
        }
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
    let ended = async {
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let over = async {
        match session {
            Some(session) => session.over().await,
            None => std::future::pending().await,
        }
    };
    // What is over is cut off, requests under way included: not a byte more for a peer that is no longer who it was.
    let ended = tokio::select! {
        biased;
        why = over => {
            tracing::info!(reason = why.kind(), ?peer, "a connection of mutual TLS is over");
            return;
        }
        ended = ended => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?peer, "a connection ended badly");
    }
    drop(slot);
}
