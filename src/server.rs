//! The listeners: wire → ask, result → wire. One file per dialect.
//!
//! Each request goes through the same gate, cheapest check first: [`guard`] (peer, Host, headers that only a proxy or
//! a browser sends), then method and path, then the secret, then policy.

pub mod admin;
mod aws;
pub mod begin_body;
mod connection;
pub mod descriptors;
pub(crate) mod dialect;
mod eviction;
pub mod guard;
mod head_timer;
pub(crate) mod metrics;
pub mod mtls;
mod native;
pub mod problem;
mod tasks;
mod write_timeout;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;

use self::metrics::{Metrics, RequestMetrics};
use crate::audit::{Event, Kind};
use crate::broker::Limit;
use crate::broker::{Broker, CredentialsError, NoSoleProvider};
use crate::clock::{Moment, within};
use crate::identity::task_token::{NoRandomness, random};

use connection::PendingBody;
pub use connection::{Listener, ListenerLimits, Peer, serve};
use dialect::{Action, Asked, Call, CredentialRoute, Dialect, Handler, Presented, Refusal, Wanted};
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
    limit: RequestLimit,
    dialects: Vec<Arc<ServedDialect>>,
    /// For every path that no other dialect has.
    native: Arc<ServedDialect>,
}

/// A dialect, and how its answers are counted.
#[derive(Debug)]
struct ServedDialect {
    dialect: &'static Dialect,
    requests: RequestMetrics,
}

/// What comes of a request that was let in.
enum Step {
    /// Its answer.
    Answer(Answer),
    /// There is no live credential: get this one.
    Credential(&'static CredentialRoute, Wanted),
    /// Work, with the path's parameter.
    Other(Handler, String),
}

impl Server {
    /// A server in front of `broker` whose loopback listener is `http`.
    ///
    /// # Errors
    /// When the system gives no random bytes for request ids.
    pub fn new(broker: Arc<Broker>, http: SocketAddr) -> Result<Self, NoRandomness> {
        Self::with_dialects(&dialect::ALL, broker, http)
    }

    /// The same for these dialects, and our own.
    fn with_dialects(
        dialects: &[&'static Dialect],
        broker: Arc<Broker>,
        http: SocketAddr,
    ) -> Result<Self, NoRandomness> {
        let limit = RequestLimit { most: broker.parts().limits.requests, taken: Arc::default() };
        let metrics = Metrics::new(broker.parts().metrics.registry());
        let served =
            |dialect: &'static Dialect| Arc::new(ServedDialect { dialect, requests: metrics.requests(dialect.label) });
        let others = dialects.iter().filter(|dialect| !dialect.below.is_empty());
        let (dialects, native) = (others.copied().map(served).collect(), served(&native::DIALECT));
        Ok(Self { ids: RequestIds::new()?, limit, dialects, native, broker, http })
    }

    /// Answers one request. Nearly all are for a live credential: their answer is ready when this returns, so that no request
    /// is kept, and nothing moved about, while the connection reads on.
    pub fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> impl Future<Output = Answer> + Send {
        let (began, id) = (self.broker.parts().clock.moment(), self.ids.next());
        let (parts, body) = request.into_parts();
        let served = self.served(parts.uri.path());
        let step = self.admit(&parts, peer, served.dialect).and_then(|presented| {
            let step = self.at_once(served.dialect, &parts, &presented, id, began)?;
            Ok((step, presented))
        });
        let answered = match step {
            Ok((Step::Answer(answer), _)) => Ok(answer),
            Ok((step, presented)) => match self.limit.take() {
                Some(permit) => {
                    let (server, served) = (Arc::clone(&self), Arc::clone(served));
                    let request = (parts, body, presented);
                    return Answering::Right(Box::pin(server.answer(served, step, request, permit, id, began)));
                }
                None => Err(self.too_many()),
            },
            Err(refusal) => Err(refusal),
        };
        Answering::Left(ready(self.finish(answered, served, id, began)))
    }

    /// The dialect of `path`.
    fn served(&self, path: &str) -> &Arc<ServedDialect> {
        self.dialects.iter().find(|served| served.dialect.has(path)).unwrap_or(&self.native)
    }

    /// Lets a request in, whatever it asks for, and reads its proof.
    ///
    /// # Errors
    /// Why it is not let in.
    fn admit(&self, parts: &Parts, peer: Peer, dialect: &Dialect) -> Result<Presented, Refusal> {
        guard::check(parts, peer, self.http.port(), &dialect.rules)
            .map_err(|refused| Refusal::new(refused.problem(), refused.detail()))?;
        if self.limit.is_reached() {
            return Err(self.too_many());
        }
        let presented = (dialect.presented)(parts);
        if let Some(peer) = mtls::peer(&parts.extensions)
            && mtls::brings_foreign(&self.broker, peer, &presented)
        {
            let detail = "the token or JWT-SVID is of another workload than the connection's, or cannot be read";
            return Err(Refusal::new(Problem::unauthenticated(), detail));
        }
        Ok(presented)
    }

    fn too_many(&self) -> Refusal {
        self.broker.parts().metrics.limited(Limit::Requests);
        let problem = Problem::rate_limited("Too many requests at once.", problem::SOON);
        Refusal::new(problem, "as many requests as are allowed are being answered")
    }

    /// What needs no waiting: whether there is something at the path, and a credential that is live.
    ///
    /// # Errors
    /// Why there is no answer to it, ever.
    fn at_once(
        self: &Arc<Self>,
        dialect: &Dialect,
        parts: &Parts,
        presented: &Presented,
        id: RequestId,
        at: Moment,
    ) -> Result<Step, Refusal> {
        let (action, parameter) = dialect::action(dialect.resource(parts.uri.path()), &parts.method)?;
        let route = match action {
            Action::Credential(route) => route,
            Action::Other(handler) => return Ok(Step::Other(*handler, parameter.to_owned())),
        };
        let wanted = (route.wanted)(self, &Asked { uri: &parts.uri, parameter, presented })?;
        let live = self.broker.live_credential(&wanted.token, wanted.provider, id.as_str(), at);
        match live.and_then(|issued| (route.answer)(&issued, at)) {
            Some(answer) => Ok(Step::Answer(answer)),
            None => Ok(Step::Credential(route, wanted)),
        }
    }

    /// The answer to a request that was let in and takes its time.
    async fn answer(
        self: Arc<Self>,
        served: Arc<ServedDialect>,
        step: Step,
        (parts, body, presented): (Parts, Incoming, Presented),
        permit: RequestPermit,
        id: RequestId,
        began: Moment,
    ) -> Answer {
        let _permit = permit;
        let answered = match step {
            Step::Answer(answer) => Ok(answer),
            Step::Credential(route, wanted) => self.credential(route, wanted, id).await,
            Step::Other(handler, parameter) => {
                handler(Arc::clone(&self), Call { parts, body, parameter, presented, id }).await
            }
        };
        self.finish(answered, &served, id, began)
    }

    async fn credential(&self, route: &CredentialRoute, wanted: Wanted, id: RequestId) -> Result<Answer, Refusal> {
        let refuse = |error: CredentialsError| Refusal::new((route.problem)(&error), error.to_string());
        let provider = match wanted.provider {
            Some(provider) => provider,
            None => match self.broker.sole_provider(&wanted.token).await {
                Ok(provider) => provider,
                Err(NoSoleProvider::Refused(error)) => return Err(refuse(error)),
                Err(NoSoleProvider::Several(providers)) => return Err(Refusal::several(providers)),
            },
        };
        let issued = self.broker.credentials(&wanted.token, provider, id.as_str()).await.map_err(refuse)?;
        (route.answer)(&issued, self.broker.parts().clock.moment()).ok_or_else(|| {
            let problem =
                Problem::unavailable("provider_unavailable", "The provider has not answered yet.", problem::SOON);
            Refusal::new(problem, "too little of the credential is left")
        })
    }

    /// What every answer says besides what it is about; and it is counted, and a refusal audited.
    fn finish(
        &self,
        answered: Result<Answer, Refusal>,
        served: &ServedDialect,
        id: RequestId,
        began: Moment,
    ) -> Answer {
        let mut answer = answered.unwrap_or_else(|refusal| self.refuse(served.dialect, id.as_str(), refusal));
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Ok(id) = HeaderValue::from_str(id.as_str()) {
            headers.insert(REQUEST_ID, id);
        }
        let took = self.broker.parts().clock.boot().saturating_sub(began.boot);
        served.requests.answered(answer.status().as_u16(), took);
        answer
    }

    /// A refusal in the dialect's own shape, with its audit line.
    fn refuse(&self, dialect: &Dialect, id: &str, refusal: Refusal) -> Answer {
        let Refusal { problem, detail, allow } = refusal;
        if let Some(detail) = detail {
            let event = Event {
                request_id: Some(id),
                reason: Some(problem.code()),
                detail: Some(detail),
                dialect: Some(dialect.label),
                status: Some(problem.status().as_u16()),
                ..Event::new(self.broker.now(), Kind::Refusal, "refused")
            };
            self.broker.parts().audit.note(&event);
        }
        let mut answer = (dialect.refusal)(&problem, id);
        if let Some(allow) = allow.and_then(|methods| HeaderValue::try_from(methods).ok()) {
            answer.headers_mut().insert(ALLOW, allow);
        }
        answer
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

/// So many requests are answered at a time. Nobody waits for a permit, so this is a number and no queue.
#[derive(Debug)]
struct RequestLimit {
    most: usize,
    taken: Arc<AtomicUsize>,
}

/// Given back when it is dropped.
#[derive(Debug)]
struct RequestPermit(Arc<AtomicUsize>);

impl RequestLimit {
    /// Whether there is none left for a request that takes its time. One that does not takes none.
    fn is_reached(&self) -> bool {
        self.taken.load(Ordering::Acquire) >= self.most
    }

    fn take(&self) -> Option<RequestPermit> {
        let next = |taken: usize| (taken < self.most).then(|| taken.saturating_add(1));
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .ok()
            .map(|_| RequestPermit(Arc::clone(&self.taken)))
    }
}

impl Drop for RequestPermit {
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
pub(crate) struct RequestId([u8; 31]);

impl RequestIds {
    fn new() -> Result<Self, NoRandomness> {
        let mut bits = [0; 8];
        random(&mut bits)?;
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
    /// Its text.
    pub(crate) fn as_str(&self) -> &str {
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

/// Reads a body within its limits of size and time.
pub(crate) async fn read_body(server: &Server, parts: &Parts, body: Incoming) -> Result<Bytes, Problem> {
    let limited = |limit| server.broker.parts().metrics.limited(limit);
    let clock = &*server.broker.parts().clock;
    let whole = Limited::new(body, MAX_BODY).collect();
    match within(clock, BODY_LIMIT, whole).await {
        Some(Ok(body)) => {
            if let Some(pending) = parts.extensions.get::<PendingBody>() {
                pending.is_read();
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
    fn futures_moved_for_each_request_stay_small() {
        fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
            size_of::<F>()
        }
        let answering =
            size(|(server, request, peer): (Arc<Server>, Request<Incoming>, Peer)| server.handle(request, peer));
        assert!(answering <= 256, "{answering} bytes are copied several times for each request: box what is rare");
    }
}
