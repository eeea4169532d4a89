//! A sidecar that answers as docs/openapi.yaml says, tells what it was asked, and can be restarted.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

/// The token of its one task.
pub(crate) const TOKEN: &str = "smt_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// One request that it got.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) what: String,
    /// What stands behind the path's `?`.
    pub(crate) query: Option<String>,
    pub(crate) proof: String,
    pub(crate) body: serde_json::Value,
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Default)]
struct State {
    /// Answers to give in place of the usual ones: path prefix with method, status, body.
    refusals: VecDeque<(String, u16, String)>,
    /// The streams of the holds, the newest last.
    holds: Vec<mpsc::Sender<Result<Frame<Bytes>, Infallible>>>,
}

pub(crate) struct FakeSidecar {
    address: SocketAddr,
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    asked: watch::Sender<Vec<Asked>>,
    server: Option<tokio::task::JoinHandle<()>>,
}

impl FakeSidecar {
    /// Listens at a Unix socket, which can be closed and opened again (a port could be taken meanwhile), and at a port.
    pub(crate) async fn start(socket: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, asked) = (Arc::<Mutex<State>>::default(), watch::Sender::new(Vec::new()));
        let (tcp_state, tcp_asked) = (state.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, tcp_state.clone(), tcp_asked.clone()));
            }
        });
        let mut sidecar = Self { address, socket: socket.to_owned(), state, asked, server: None };
        sidecar.start_again();
        sidecar
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub(crate) fn tcp_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes the Unix socket and all its connections.
    pub(crate) async fn stop(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        let _ = server.await;
        std::fs::remove_file(&self.socket).unwrap();
        self.state.lock().unwrap().holds.clear();
    }

    /// Listens again, at the same place.
    pub(crate) fn start_again(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let (state, asked) = (self.state.clone(), self.asked.clone());
        self.server = Some(tokio::spawn(async move {
            // Dropped with the server: a stopped sidecar leaves no connection open.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, state.clone(), asked.clone()));
            }
        }));
    }

    /// Answers the next request that begins with `what` (`"POST /v1/tasks"`) by a problem document.
    pub(crate) fn refuse(&self, what: &str, status: u16, code: &str) {
        let body = format!(r#"{{"status":{status},"detail":"because","code":"{code}","request_id":"r-7"}}"#);
        self.answer(what, status, &body);
    }

    /// Answers the next request that begins with `what` so.
    pub(crate) fn answer(&self, what: &str, status: u16, body: &str) {
        self.state.lock().unwrap().refusals.push_back((what.into(), status, body.into()));
    }

    /// Everything that it was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }

    /// What it was asked, in order, without the details.
    pub(crate) fn story(&self) -> Vec<String> {
        self.asked.borrow().iter().map(|asked| asked.what.clone()).collect()
    }

    /// Waits until that many requests for holds have come.
    pub(crate) async fn held(&self, times: usize) {
        let count = |asked: &Vec<Asked>| asked.iter().filter(|asked| asked.what.ends_with("/hold")).count();
        self.asked.subscribe().wait_for(|asked| count(asked) >= times).await.unwrap();
    }

    fn newest_hold(&self) -> mpsc::Sender<Result<Frame<Bytes>, Infallible>> {
        self.state.lock().unwrap().holds.last().unwrap().clone()
    }

    /// Says on the newest hold that the task has ended, and closes it.
    pub(crate) async fn end_task(&self, reason: &str) {
        let line = format!("{{\"id\":\"t-1\",\"state\":\"ended\",\"reason\":\"{reason}\"}}\n");
        self.newest_hold().send(Ok(Frame::data(line.into()))).await.unwrap();
        self.state.lock().unwrap().holds.clear();
    }

    /// Waits until the holder of the newest hold has let go.
    pub(crate) async fn let_go(&self) {
        self.newest_hold().closed().await;
    }
}

impl Drop for FakeSidecar {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    state: Arc<Mutex<State>>,
    asked: watch::Sender<Vec<Asked>>,
) {
    let service = service_fn(|request| answer(request, state.clone(), asked.clone()));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    asked: watch::Sender<Vec<Asked>>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let what = format!("{} {}", head.method, head.uri.path());
    let body = body.collect().await.unwrap().to_bytes();
    let asked_now = Asked {
        what: what.clone(),
        query: head.uri.query().map(str::to_owned),
        proof: header("authorization").unwrap_or_default(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        idempotency_key: header("idempotency-key"),
    };
    let response = {
        let mut state = state.lock().unwrap();
        let refusal = state.refusals.front().is_some_and(|(start, ..)| what.starts_with(start));
        match if refusal { state.refusals.pop_front() } else { None } {
            Some((_, status, body)) => json(status, body),
            None => usual(&mut state, &head.method, &what),
        }
    };
    asked.send_modify(|asked| asked.push(asked_now));
    Ok(response)
}

fn usual(state: &mut State, method: &Method, what: &str) -> Response<Body> {
    let lease = r#""id":"l-1","provider":"aws","usable_until":"2026-11-23T10:15:00Z""#;
    let view = format!(
        r#"{{"id":"t-1","scope":"ledger-read","spiffe_id":"spiffe://dev.test/report","tier":"baseline","state":"active",
        "hold":true,"begun_at":"2026-11-23T10:00:00Z","expires_at":"2026-11-23T11:00:00Z",
        "leases":[{{{lease},"revocation":"expire","state":"issued","grant":"ledger-aws","session_name":"report.ledger-read.t-1",
        "assumed_role":"arn:aws:sts::111122223333:assumed-role/ledger/report.ledger-read.t-1"}}]}}"#
    );
    if what.ends_with("/hold") {
        let (sender, receiver) = mpsc::channel(8);
        let line = "{\"id\":\"t-1\",\"state\":\"active\",\"expires_at\":\"2026-11-23T11:00:00Z\"}\n";
        sender.try_send(Ok(Frame::data(line.into()))).unwrap();
        state.holds.push(sender);
        return Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync());
    }
    match (method, what) {
        (&Method::POST, "POST /v1/tasks") => json(
            201,
            format!(
                r#"{{"id":"t-1","scope":"ledger-read","spiffe_id":"spiffe://dev.test/report","token":"{TOKEN}",
                "expires_at":"2026-11-23T11:00:00Z","environment":{{
                "AWS_CONTAINER_CREDENTIALS_FULL_URI":"http://127.0.0.1:9870/v1/aws/credentials",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN":"{TOKEN}"}}}}"#
            ),
        ),
        (&Method::GET, "GET /v1/tasks") => json(200, format!(r#"{{"tasks":[{view}]}}"#)),
        (&Method::GET, "GET /v1/tasks/t-1") => json(200, view),
        (&Method::DELETE, "DELETE /v1/tasks/t-1") => json(
            200,
            format!(
                r#"{{"id":"t-1","reason":"holder","ended_at":"2026-11-23T10:05:00Z",
                "leases":[{{{lease},"outcome":"expires"}}]}}"#
            ),
        ),
        (&Method::GET, "GET /status") => json(200, r#"{"ready":true,"version":"0.1.0"}"#.into()),
        _ => json(404, r#"{"code":"not_found","detail":"no such thing","request_id":"r-8"}"#.into()),
    }
}

fn json(status: u16, body: String) -> Response<Body> {
    let mut response = Response::new(Full::from(body).boxed_unsync());
    response.headers_mut().insert("x-request-id", "r-9".parse().unwrap());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}
