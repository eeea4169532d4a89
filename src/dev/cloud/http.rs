//! HTTP/1.1 on a loopback listener: whole requests in, whole answers out, with limits on connections, time and size.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Cloud;
use crate::clock;
use crate::dev::Running;

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// How long a request's headers, and then its body, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a service does with one request.
pub type Answer = fn(&Cloud, &Request<Bytes>) -> Response<Bytes>;

/// Serves `answer` on `listener`, for bodies of at most `max_body` bytes, until the result is dropped.
///
/// # Errors
/// When the listener is not on a loopback address: this cloud is never for others.
pub fn serve(cloud: &Arc<Cloud>, listener: TcpListener, max_body: usize, answer: Answer) -> io::Result<Running> {
    if !listener.local_addr()?.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the embedded cloud serves on loopback only"));
    }
    let cloud = Arc::clone(cloud);
    Ok(Running::new(tokio::spawn(accept(cloud, listener, max_body, answer))))
}

/// Accepts for ever; dropping the future closes every connection.
async fn accept(cloud: Arc<Cloud>, listener: TcpListener, max_body: usize, answer: Answer) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let connections end first.
            connections.join_next().await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let cloud = Arc::clone(&cloud);
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let cloud = Arc::clone(&cloud);
                async move { Ok::<_, Infallible>(one(&cloud, request, max_body, answer).await) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a connection to the embedded cloud ended early");
            }
            drop(slot);
        });
    }
}

async fn one(cloud: &Cloud, request: Request<Incoming>, max_body: usize, answer: Answer) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = clock::within(cloud.clock.as_ref(), PATIENCE, Limited::new(body, max_body).collect()).await;
    let response = match body {
        Some(Ok(body)) => answer(cloud, &Request::from_parts(head, body.to_bytes())),
        Some(Err(_)) => plain(StatusCode::PAYLOAD_TOO_LARGE),
        None => plain(StatusCode::REQUEST_TIMEOUT),
    };
    response.map(Full::new)
}

/// An answer with nothing but its status.
pub fn plain(status: StatusCode) -> Response<Bytes> {
    body(status, "text/plain", Bytes::new())
}

/// An answer with a body.
pub fn body(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
