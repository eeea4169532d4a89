//! A very small HTTP/1.1 client for loopback, so that the demo looks at the wire itself and not through the client that
//! the other commands share.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::clock::{Clock, within};
use crate::secret::Secret;

const LIMIT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 4 * 1024 * 1024;

/// A whole answer.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, which may hold secrets: not for logs.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why there was no answer; nothing of what was sent.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {address}: {detail}")]
pub struct ProbeError {
    address: SocketAddr,
    detail: String,
}

/// `GET path`, with `authorization` as the whole value of that header.
///
/// # Errors
/// When no whole answer came within ten seconds.
pub async fn get(
    clock: &dyn Clock,
    address: SocketAddr,
    path: &str,
    authorization: Option<&Secret>,
) -> Result<Answer, ProbeError> {
    send(clock, address, "GET", path, authorization, Bytes::new()).await
}

/// Any request; a body is sent as JSON.
///
/// # Errors
/// When no whole answer came within ten seconds.
pub async fn send(
    clock: &dyn Clock,
    address: SocketAddr,
    method: &str,
    path: &str,
    authorization: Option<&Secret>,
    body: Bytes,
) -> Result<Answer, ProbeError> {
    let mut request = Request::builder().method(method).uri(path).header("host", address.to_string());
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    if let Some(secret) = authorization {
        // exposed: this header is how a caller proves who it is
        request = request.header("authorization", secret.expose());
    }
    match request.body(Full::new(body)) {
        Ok(request) => exchange(clock, address, request).await,
        Err(error) => Err(ProbeError { address, detail: error.to_string() }),
    }
}

/// `request` as it is, on a connection of its own.
///
/// # Errors
/// When no whole answer came within ten seconds.
pub async fn exchange(
    clock: &dyn Clock,
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Answer, ProbeError> {
    let failed = |detail: String| ProbeError { address, detail };
    match within(clock, LIMIT, talk(address, request)).await {
        Some(answer) => answer.map_err(|error| failed(error.to_string())),
        None => Err(failed(format!("none within {} s", LIMIT.as_secs()))),
    }
}

async fn talk(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let talk = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    };
    // Polled together, so that nothing runs on when this is dropped.
    tokio::pin!(talk);
    tokio::select! {
        answer = &mut talk => answer,
        ended = connection => match ended {
            Ok(()) => talk.await,
            Err(error) => Err(error.into()),
        },
    }
}
