//! A Workload API that gives one JWT-SVID: gRPC by hand, since one unary call is all that the commands make.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::sync::watch;

/// What it gives.
pub(crate) const SVID: &str = "eyJhbGciOiJFUzI1NiJ9.secret-claims.secret-signature";
/// Whose SVID that is.
pub(crate) const SPIFFE_ID: &str = "spiffe://dev.test/report";

pub(crate) struct FakeWorkloadApi {
    socket: PathBuf,
    /// The bodies of the requests so far.
    requests: watch::Sender<Vec<Vec<u8>>>,
    server: tokio::task::JoinHandle<()>,
}

impl FakeWorkloadApi {
    pub(crate) fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let requests = watch::Sender::new(Vec::new());
        let seen = requests.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = seen.clone();
                let service = service_fn(move |request| answer(request, seen.clone()));
                let connection =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Self { socket: socket.to_owned(), requests, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Waits until that many SVIDs have been asked for.
    pub(crate) async fn asked(&self, times: usize) {
        self.requests.subscribe().wait_for(|requests| requests.len() >= times).await.unwrap();
    }

    /// The last request, as text that shows its strings.
    pub(crate) fn last_request(&self) -> String {
        String::from_utf8_lossy(self.requests.borrow().last().unwrap()).into_owned()
    }
}

impl Drop for FakeWorkloadApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, seen: watch::Sender<Vec<Vec<u8>>>) -> Result<Response<Body>, Infallible> {
    assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchJWTSVID");
    assert_eq!(request.headers()["workload.spiffe.io"], "true");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    seen.send_modify(|requests| requests.push(body[5..].to_vec()));
    let svid = [field(1, SPIFFE_ID.as_bytes()), field(2, SVID.as_bytes())].concat();
    let message = field(1, &svid);
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let body = Full::new(Bytes::from(frame)).with_trailers(async { Some(Ok(trailers)) }).boxed();
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

/// A length-delimited Protocol Buffers field of fewer than 128 bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 128, "one byte of length");
    [&[number << 3 | 2, length], content].concat()
}
