//! A Workload API that gives one JWT-SVID: gRPC by hand, since one unary call is all that the commands make.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::sync::watch;

/// What every token that it gives ends in, and nothing else has.
pub(crate) const SIGNATURE: &str = "c2VjcmV0LXNpZ25hdHVyZQ";
/// Whose SVID that is.
pub(crate) const SPIFFE_ID: &str = "spiffe://dev.test/report";

/// The token that it gives for `audience`.
pub(crate) fn svid(audience: &str) -> String {
    let header = r#"{"alg":"ES256","kid":"k1","typ":"JWT"}"#;
    let claims = format!(r#"{{"sub":"{SPIFFE_ID}","aud":["{audience}"],"iat":1700000000,"exp":4102444800}}"#);
    format!("{}.{}.{SIGNATURE}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

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
    if request.uri().path() != "/SpiffeWorkloadAPI/FetchJWTSVID" {
        // 12: not implemented
        let unimplemented = Response::builder().header("content-type", "application/grpc").header("grpc-status", "12");
        return Ok(unimplemented.body(Full::default().boxed()).unwrap());
    }
    assert_eq!(request.headers()["workload.spiffe.io"], "true");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    // Field 1, the audience, comes first: its tag, its length, its text.
    let message = body.slice(5..);
    let audience = String::from_utf8(message[2..2 + usize::from(message[1])].to_vec()).unwrap();
    seen.send_modify(|requests| requests.push(message.to_vec()));
    let svid = [field(1, SPIFFE_ID.as_bytes()), field(2, svid(&audience).as_bytes())].concat();
    let message = field(1, &svid);
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let body = Full::new(Bytes::from(frame)).with_trailers(async { Some(Ok(trailers)) }).boxed();
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

/// A length-delimited Protocol Buffers field of fewer than 16,384 bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    assert!(length < 1 << 14, "two bytes of length");
    let [low, high] = [(length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
    [&[number << 3 | 2, low, high], content].concat()
}
