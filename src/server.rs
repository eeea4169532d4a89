//! The listeners: wire → ask, result → wire. One file per dialect.
//!
//! Each request goes through the same gate, cheapest check first: [`guard`] (peer, Host, headers that only a proxy or
//! a browser sends), then method and path, then the secret, then policy.

pub mod admin;
mod aside;
pub mod aws;
pub mod begin_body;
mod connection;
mod crowd;
pub mod descriptors;
pub mod guard;
pub mod mtls;
mod patience;
pub mod problem;
mod stall;
pub mod tasks;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::audit::{Event, Kind};
use crate::broker::Broker;
use crate::clock::{Moment, within};
use crate::metrics::{Limit, RequestMetrics};

use connection::Speaker;
pub use connection::{Listener, ListenerLimits, Peer, serve};
use problem::Problem;

/// The body of an answer: ready bytes, or a stream of heartbeats.
pub type Body = Either<Full<Bytes>, BoxBody<Bytes, Infallible>>;
/// An answer.
pub type Answer = Response<Body>;

/// A request being answered: it has been, or it takes its time.
type Answering = futures_util::future::Either<Ready<Answer>, Pin<Box<dyn Future<Output = Answer> + Send>>>;

/// How long a client may take to send its body.
const BODY_LIMIT: Duration = Duration::from_secs(5);
/// The largest body that is read.
pub const MAX_BODY: usize = 64 * 1024;
/// The header of every answer that the audit log also has.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the workload's listeners share.
#[derive(Debug)]
pub struct Server {
    broker: Arc<Broker>,
    /// The address of the loopback listener, as workloads reach it.
    http: SocketAddr,
    ids: RequestIds,
    turns: Turns,
    native: RequestMetrics,
    aws: RequestMetrics,
}

/// One dialect: how its errors look and how its answers are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Ours: `application/problem+json`.
    Native,
    /// AWS container credentials.
    Aws,
}

impl Dialect {
    /// The label in metrics and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Aws => "aws",
        }
    }

    fn of(path: &str) -> Self {
        if path.starts_with("/v1/aws/") { Self::Aws } else { Self::Native }
    }
}

impl Server {
    /// A server in front of `broker` whose loopback listener is `http`.
    ///
    /// # Errors
    /// When the system gives no random bytes for request ids.
    pub fn new(broker: Arc<Broker>, http: SocketAddr) -> Result<Self, crate::identity::task_token::NoRandomness> {
        let turns = Turns { most: broker.parts().limits.requests, taken: Arc::default() };
        let metrics = &broker.parts().metrics;
        let (native, aws) = (metrics.requests(Dialect::Native.as_str()), metrics.requests(Dialect::Aws.as_str()));
        Ok(Self { ids: RequestIds::new()?, turns, native, aws, broker, http })
    }

    /// Answers one request. Nearly all are for a live credential: their answer is ready when this returns, so that no request
    /// is kept, and nothing moved about, while the connection reads on.
    pub fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> impl Future<Output = Answer> + Send {
        let (began, id) = (self.broker.parts().clock.moment(), self.ids.next());
        let usual = request.uri().path() == aws::PATH && request.method() == Method::GET;
        let (dialect, mut answer) = match self.admit(&request, peer) {
            Ok(turn) => match usual.then(|| aws::live(&self, &request, id.as_str(), began)).flatten() {
                Some(answer) => (Dialect::Aws, answer),
                None => return Answering::Right(Box::pin(self.answer(request, turn, id, began))),
            },
            Err((problem, detail)) => {
                let dialect = Dialect::of(&normal(request.uri().path()));
                (dialect, self.refuse(dialect, id.as_str(), &problem, detail))
            }
        };
        self.finish(&mut answer, dialect, id.as_str(), began);
        Answering::Left(ready(answer))
    }

    /// Lets a request in, whatever it asks for.
    ///
    /// # Errors
    /// What the outside is told, and what the audit log is.
    fn admit(&self, request: &Request<Incoming>, peer: Peer) -> Result<Turn, (Problem, String)> {
        guard::check(request, peer, self.http.port()).map_err(|refusal| (refusal.problem(), refusal.detail()))?;
        let Some(turn) = self.turns.take() else {
            self.broker.parts().metrics.limited(Limit::Requests);
            let problem = Problem::rate_limited("Too many requests at once.", problem::SOON);
            return Err((problem, "as many requests as are allowed are being answered".into()));
        };
        if mtls::brings_foreign(&self.broker, request) {
            let detail = "the token or JWT-SVID is of another workload than the connection's".into();
            return Err((Problem::unauthenticated(), detail));
        }
        Ok(turn)
    }

    /// The answer to a request that was let in and takes its time.
    async fn answer(self: Arc<Self>, request: Request<Incoming>, turn: Turn, id: RequestId, began: Moment) -> Answer {
        let _turn = turn;
        let id = id.as_str();
        let path = normal(request.uri().path());
        let dialect = Dialect::of(&path);
        let mut answer = self.route(request, &path, dialect, id).await;
        self.finish(&mut answer, dialect, id, began);
        answer
    }

    /// What every answer says besides what it is about; and it is counted.
    fn finish(&self, answer: &mut Answer, dialect: Dialect, id: &str, began: Moment) {
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert(REQUEST_ID, id);
        }
        let took = self.broker.parts().clock.boot().saturating_sub(began.boot);
        match dialect {
            Dialect::Native => self.native.answered(answer.status().as_u16(), took),
            Dialect::Aws => self.aws.answered(answer.status().as_u16(), took),
        }
    }

    /// Every route, one line each.
    async fn route(&self, request: Request<Incoming>, path: &str, dialect: Dialect, id: &str) -> Answer {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let method = request.method().clone();
        match (&method, segments.as_slice()) {
            (&Method::GET, ["v1", "aws", "credentials"]) => aws::credentials(self, &request, id).await,
            (&Method::POST, ["v1", "tasks"]) => tasks::begin(self, request, id).await,
            (&Method::GET, ["v1", "tasks"]) => tasks::list(self, &request, id),
            (&Method::GET, ["v1", "tasks", task]) => tasks::show(self, &request, task, id),
            (&Method::DELETE, ["v1", "tasks", task]) => tasks::end(self, &request, task, id).await,
            (&Method::POST, ["v1", "tasks", task, "hold"]) => tasks::hold(self, &request, task, id).await,
            (&Method::GET, ["v1", "tasks", task, "credentials"]) => tasks::credentials(self, &request, task, id).await,
            (_, segments) => match methods(segments) {
                Some(methods) => {
                    let problem = Problem::method_not_allowed();
                    let mut answer = self.refuse(dialect, id, &problem, "method not allowed".into());
                    // RFC 9110 §15.5.6: the answer must say which are
                    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
                    answer
                }
                None => self.refuse(dialect, id, &Problem::not_found(), "no such path".into()),
            },
        }
    }

    /// A refusal in the dialect's own shape, with its audit line.
    pub(crate) fn refuse(&self, dialect: Dialect, id: &str, problem: &Problem, detail: String) -> Answer {
        let event = Event {
            request_id: Some(id),
            reason: Some(problem.code()),
            detail: Some(detail),
            dialect: Some(dialect.as_str()),
            status: Some(problem.status().as_u16()),
            ..Event::new(self.broker.now(), Kind::Refusal, "refused")
        };
        self.broker.parts().audit.note(&event);
        self.tell(dialect, id, problem)
    }

    /// A refusal that the broker has audited already.
    pub(crate) fn tell(&self, dialect: Dialect, id: &str, problem: &Problem) -> Answer {
        match dialect {
            Dialect::Native => problem.answer(id),
            Dialect::Aws => aws::error(problem),
        }
    }

    /// The broker behind this server.
    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// The address of the loopback listener.
    pub fn http(&self) -> SocketAddr {
        self.http
    }
}

/// So many requests are answered at a time. Nobody waits for a turn, so this is a number and no queue.
#[derive(Debug)]
struct Turns {
    most: usize,
    taken: Arc<AtomicUsize>,
}

/// Given back when it is dropped.
#[derive(Debug)]
struct Turn(Arc<AtomicUsize>);

impl Turns {
    fn take(&self) -> Option<Turn> {
        let next = |taken: usize| (taken < self.most).then(|| taken.saturating_add(1));
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok().map(|_| Turn(Arc::clone(&self.taken)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Ids of requests: unpredictable per process, then counted.
#[derive(Debug)]
struct RequestIds {
    /// The id of request 0.
    first: RequestId,
    count: AtomicU64,
}

/// `r-`, 16 hex digits of the process, `-`, 12 hex digits of the count.
#[derive(Debug, Clone, Copy)]
struct RequestId([u8; 31]);

impl RequestIds {
    fn new() -> Result<Self, crate::identity::task_token::NoRandomness> {
        let mut bits = [0; 8];
        crate::identity::task_token::random(&mut bits)?;
        let mut first = *b"r-0000000000000000-000000000000";
        write_hex(first.get_mut(2..18).unwrap_or_default(), u64::from_be_bytes(bits));
        Ok(Self { first: RequestId(first), count: 0.into() })
    }

    fn next(&self) -> RequestId {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut id = self.first;
        write_hex(id.0.get_mut(19..).unwrap_or_default(), count);
        id
    }
}

impl RequestId {
    fn as_str(&self) -> &str {
        // Hex digits and dashes are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Fills `digits` with the last hex digits of `value`.
fn write_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        let nibble = (value & 15) as u8;
        *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        value >>= 4;
    }
}

/// The methods that a path takes, where there is something at it.
fn methods(segments: &[&str]) -> Option<&'static str> {
    Some(match segments {
        ["v1", "aws", "credentials"] | ["v1", "tasks", _, "credentials"] => "GET",
        ["v1", "tasks"] => "GET, POST",
        ["v1", "tasks", _] => "GET, DELETE",
        ["v1", "tasks", _, "hold"] => "POST",
        _ => return None,
    })
}

/// SDKs join paths carelessly: a trailing slash and doubled slashes mean the same path.
fn normal(path: &str) -> String {
    path.split('/').filter(|segment| !segment.is_empty()).fold(String::with_capacity(path.len()), |mut out, segment| {
        out.push('/');
        out.push_str(segment);
        out
    })
}

/// Reads a body within its limits of size and time.
pub(crate) async fn read_body(server: &Server, request: Request<Incoming>) -> Result<Bytes, Problem> {
    let (parts, body) = request.into_parts();
    let limited = |limit| server.broker.parts().metrics.limited(limit);
    let clock = &*server.broker.parts().clock;
    let whole = Limited::new(body, MAX_BODY).collect();
    match within(clock, BODY_LIMIT, whole).await {
        Some(Ok(body)) => {
            if let Some(speaker) = parts.extensions.get::<Speaker>() {
                speaker.heard();
            }
            Ok(body.to_bytes())
        }
        Some(Err(error)) if error.is::<LengthLimitError>() => {
            limited(Limit::BodySize);
            Err(Problem::too_large())
        }
        Some(Err(_)) => Err(Problem::invalid_request("the body could not be read")),
        None => {
            limited(Limit::BodyTime);
            Err(Problem::invalid_request("the body took too long"))
        }
    }
}

/// An answer of `status` with a JSON body.
pub(crate) fn json(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    // What is serialised here is made of strings, numbers and times: it cannot fail.
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    let mut answer = Response::new(Either::Left(Full::new(bytes.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_of_one_length_and_differ_by_process_and_by_count() {
        let (ids, others) = (RequestIds::new().unwrap(), RequestIds::new().unwrap());
        let (first, second, foreign) = (ids.next(), ids.next(), others.next());
        assert!(first.as_str().ends_with("-000000000000") && second.as_str().ends_with("-000000000001"));
        assert_eq!(first.as_str()[..18], second.as_str()[..18]);
        assert_ne!(first.as_str()[..18], foreign.as_str()[..18]);
        ids.count.store(0x0123_4567_89ab_cdef, Ordering::Relaxed);
        assert!(ids.next().as_str().ends_with("-456789abcdef"));
    }

    #[test]
    fn what_is_moved_for_each_request_stays_small() {
        fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
            size_of::<F>()
        }
        let answering =
            size(|(server, request, peer): (Arc<Server>, Request<Incoming>, Peer)| server.handle(request, peer));
        assert!(answering <= 256, "{answering} bytes are copied several times for each request: box what is rare");
    }
}
