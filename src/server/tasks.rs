//! Our own routes: begin, hold, list, show, end.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::problem::{self, Problem};
use super::{Answer, Dialect, Server, aws, begin_body, json, mtls, read_body};
use crate::broker::{BeginRequest, Begun, Broker, Claimant, Counted, FindError, NoSoleProvider, TaskView};
use crate::clock::Timestamp;
use crate::exchange::Provider;
use crate::identity::Evidence;
use crate::identity::task_token::{PREFIX, TokenHash};
use crate::lease::LeaseEnding;
use crate::metrics::Limit;
use crate::policy::ScopeId;
use crate::secret::Secret;
use crate::task::{EndReason, Ending, Idempotency, Task, TaskId};

/// How often a held task says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(2);
const MAX_KEY: usize = 255;
/// So many streams hold one task at a time.
const MAX_HOLDS: u32 = 16;
/// So many tasks are listed in one answer.
const PAGE: usize = 200;

/// The answer to `POST /v1/tasks`.
#[derive(Serialize)]
struct BegunBody<'a> {
    id: &'a TaskId,
    scope: &'a ScopeId,
    spiffe_id: &'a str,
    token: &'a str,
    expires_at: Timestamp,
    environment: BTreeMap<&'static str, String>,
}

/// The answer to `DELETE /v1/tasks/{id}`.
#[derive(Serialize)]
pub(super) struct EndedBody<'a> {
    id: &'a TaskId,
    reason: EndReason,
    ended_at: Timestamp,
    leases: &'a [LeaseEnding],
    /// Said only while it is not: a crash now would bring the task back until the sidecar is ended again, or its deadline.
    #[serde(skip_serializing_if = "Clone::clone")]
    durable: bool,
}

/// What `Authorization: Bearer` holds on our own routes.
enum Bearer {
    /// A task token.
    Token(TokenHash),
    /// Anything else: taken for a JWT-SVID, and judged as one; nothing at all, by mutual TLS: the peer's X.509-SVID.
    Svid(Evidence),
}

fn bearer(request: &Request<Incoming>) -> Option<Bearer> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter().peekable();
    if values.peek().is_none() {
        // by mutual TLS the connection itself is the evidence
        return mtls::peer(request).map(|peer| Bearer::Svid(Evidence::X509Svid(Arc::clone(peer))));
    }
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    if text.starts_with(PREFIX) {
        TokenHash::of(text).map(Bearer::Token)
    } else {
        Some(Bearer::Svid(Evidence::JwtSvid(Secret::new(text.to_owned()))))
    }
}

fn unauthenticated(server: &Server, id: &str) -> Answer {
    server.refuse(Dialect::Native, id, &Problem::unauthenticated(), "no usable bearer".into())
}

/// `POST /v1/tasks`
pub(super) async fn begin(server: &Server, request: Request<Incoming>, id: &str) -> Answer {
    let claimant = match bearer(&request) {
        Some(Bearer::Svid(evidence)) => Claimant::Workload(evidence),
        Some(Bearer::Token(token)) => Claimant::Parent(token),
        None => return unauthenticated(server, id),
    };
    let asked = match read_begin(server, request, claimant, id).await {
        Ok(asked) => asked,
        Err(problem) => {
            let detail = problem.detail().to_owned();
            return server.refuse(Dialect::Native, id, &problem, detail);
        }
    };
    match server.broker().begin(asked).await {
        Ok(begun) => begun_answer(server, &begun),
        Err(error) => server.tell(Dialect::Native, id, &Problem::from(&error)),
    }
}

async fn read_begin(
    server: &Server,
    request: Request<Incoming>,
    claimant: Claimant,
    id: &str,
) -> Result<BeginRequest, Problem> {
    let is_json = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
    };
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_json) {
        return Err(Problem::unsupported_media_type());
    }
    let key = idempotency_key(&request)?;
    let body = read_body(server, request).await?;
    let asked = begin_body::parse(&body).map_err(|problem| match begin_body::nests_too_deep(&body) {
        true => {
            server.broker().parts().metrics.limited(Limit::BodyDepth);
            Problem::invalid_request("the body is nested deeper than 16")
        }
        false => problem,
    })?;
    Ok(BeginRequest {
        claimant,
        ask: asked.ask,
        label: asked.label,
        hold: asked.hold,
        parent: asked.parent,
        idempotency: key.map(|key| Idempotency { key: sha256(key.as_bytes()), body: sha256(&body) }),
        request_id: id.to_owned(),
    })
}

fn idempotency_key(request: &Request<Incoming>) -> Result<Option<String>, Problem> {
    let Some(value) = request.headers().get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        // `to_str` lets a tab pass
        Ok(key) if (1..=MAX_KEY).contains(&key.len()) && !key.contains('\t') => Ok(Some(key.to_owned())),
        _ => Err(Problem::invalid_request("Idempotency-Key: 1 to 255 visible characters")),
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

fn begun_answer(server: &Server, begun: &Begun) -> Answer {
    let record = begun.task.begun();
    // exposed: the token is told this once, to whoever began the task
    let token = begun.token.expose();
    let body = BegunBody {
        id: begun.task.id(),
        scope: &record.ask.scope,
        spiffe_id: begun.task.owner().as_str(),
        token,
        expires_at: begun.task.deadline(),
        environment: BTreeMap::from([
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{}/v1/aws/credentials", server.http())),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", token.to_owned()),
        ]),
    };
    json(StatusCode::CREATED, &body)
}

/// Whose tasks a bearer may see and end.
enum Sight {
    /// Every task of this owner.
    Owner(crate::identity::SpiffeId),
    /// This one.
    One(Arc<Task>),
}

fn sight(broker: &Broker, bearer: Option<Bearer>) -> Result<Sight, FindError> {
    match bearer {
        Some(Bearer::Token(token)) => match broker.tasks().by_token(&token) {
            Some(task) => Ok(Sight::One(task)),
            None => Err(FindError::Unauthenticated("no task has this token".into())),
        },
        Some(Bearer::Svid(evidence)) => match broker.caller(&evidence) {
            Ok(caller) => Ok(Sight::Owner(caller.spiffe_id().clone())),
            Err(error) => Err(FindError::Unauthenticated(error.to_string())),
        },
        None => Err(FindError::Unauthenticated("no usable bearer".into())),
    }
}

/// The task named `id`, if the bearer may see it: unknown and foreign ids get the same answer.
fn find(broker: &Broker, request: &Request<Incoming>, id: &str) -> Result<Arc<Task>, FindError> {
    let sight = sight(broker, bearer(request))?;
    let task = id.parse().ok().and_then(|id: TaskId| broker.tasks().by_id(&id)).ok_or(FindError::NotFound)?;
    let seen = match sight {
        Sight::Owner(owner) => *task.owner() == owner,
        Sight::One(own) => own.id() == task.id(),
    };
    if seen { Ok(task) } else { Err(FindError::NotFound) }
}

fn refuse_find(server: &Server, id: &str, error: &FindError) -> Answer {
    server.refuse(Dialect::Native, id, &Problem::from(error), error.to_string())
}

/// The answer to `GET /v1/tasks`.
#[derive(Serialize)]
struct Listed<'a> {
    tasks: Vec<TaskView>,
    /// The last of these tasks, where there are more after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a TaskId>,
}

/// `GET /v1/tasks[?after=]`
pub(super) fn list(server: &Server, request: &Request<Incoming>, id: &str) -> Answer {
    let broker = server.broker();
    let mut tasks = match sight(broker, bearer(request)) {
        Ok(Sight::One(task)) => vec![task],
        Ok(Sight::Owner(owner)) => broker.tasks().of(&owner),
        Err(error) => return refuse_find(server, id, &error),
    };
    tasks.sort_by(|a, b| place(a).cmp(&place(b)));
    let first = match request.uri().query().map(|query| query.strip_prefix("after=")) {
        None => 0,
        Some(Some(after)) => match tasks.iter().position(|task| task.id().to_string() == after) {
            Some(last) => last.saturating_add(1),
            None => return refuse_find(server, id, &FindError::NotFound),
        },
        Some(None) => {
            let problem = Problem::invalid_request("the query is after=ID, or nothing");
            return server.refuse(Dialect::Native, id, &problem, "unknown query".into());
        }
    };
    let rest = tasks.get(first..).unwrap_or_default();
    let page = rest.get(..PAGE).unwrap_or(rest);
    let next = page.last().map(|task| task.id()).filter(|_| rest.len() > page.len());
    json(StatusCode::OK, &Listed { tasks: page.iter().map(|task| TaskView::of(task)).collect(), next })
}

/// Where a task stands among others: the latest first.
fn place(task: &Task) -> (Reverse<Timestamp>, &TaskId) {
    (Reverse(task.begun().begun_at), task.id())
}

/// Tasks as they are shown, the latest first.
pub(super) fn views(mut tasks: Vec<Arc<Task>>) -> Vec<TaskView> {
    tasks.sort_by(|a, b| place(a).cmp(&place(b)));
    tasks.iter().map(|task| TaskView::of(task)).collect()
}

/// `GET /v1/tasks/{id}`
pub(super) fn show(server: &Server, request: &Request<Incoming>, task: &str, id: &str) -> Answer {
    match find(server.broker(), request, task) {
        Ok(task) => json(StatusCode::OK, &TaskView::of(&task)),
        Err(error) => refuse_find(server, id, &error),
    }
}

/// `DELETE /v1/tasks/{id}`
pub(super) async fn end(server: &Server, request: &Request<Incoming>, task: &str, id: &str) -> Answer {
    match find(server.broker(), request, task) {
        Ok(task) => end_with(server.broker(), &task, EndReason::Done, id).await,
        Err(error) => refuse_find(server, id, &error),
    }
}

/// Ends `task` and tells what is left of it.
pub(super) async fn end_with(broker: &Arc<Broker>, task: &Arc<Task>, reason: EndReason, id: &str) -> Answer {
    let ending = broker.end(task, reason, Some(id)).await;
    let ending = broker.settled_ending(task, ending).await;
    let durable = broker.is_durable(task).await;
    let Ending { reason, ended_at, leases } = &ending;
    let body = EndedBody { id: task.id(), reason: *reason, ended_at: *ended_at, leases, durable };
    json(StatusCode::OK, &body)
}

/// `GET /v1/tasks/{id}/credentials[?provider=]`
pub(super) async fn credentials(server: &Server, request: &Request<Incoming>, task: &str, id: &str) -> Answer {
    let token = match bearer(request) {
        Some(Bearer::Token(token)) => token,
        _ => return unauthenticated(server, id),
    };
    if let Err(error) = find(server.broker(), request, task) {
        return refuse_find(server, id, &error);
    }
    let asked = match request.uri().query() {
        None | Some("") => Ok(None),
        Some(query) => {
            match Provider::ALL.iter().find(|provider| query.strip_prefix("provider=") == Some(provider.as_str())) {
                Some(provider) => Ok(Some(*provider)),
                None => Err("the query is provider=aws, provider=vault, or nothing"),
            }
        }
    };
    let provider = match asked {
        Ok(Some(provider)) => Ok(provider),
        Ok(None) => server.broker().sole_provider(&token).await,
        Err(what) => {
            let problem = Problem::invalid_request(what);
            return server.refuse(Dialect::Native, id, &problem, "unknown query".into());
        }
    };
    let provider = match provider {
        Ok(provider) => provider,
        Err(NoSoleProvider::Several(_)) => {
            let problem =
                Problem::invalid_request("the scope has several providers: say provider=aws or provider=vault");
            return server.refuse(Dialect::Native, id, &problem, "no provider named".into());
        }
        Err(NoSoleProvider::Refused(error)) => {
            return server.refuse(Dialect::Native, id, &Problem::from(&error), error.to_string());
        }
    };
    match server.broker().credentials(&token, provider, id).await {
        Ok(issued) => aws::found(server, &issued, Dialect::Native, id),
        Err(error) => server.refuse(Dialect::Native, id, &Problem::from(&error), error.to_string()),
    }
}

/// `POST /v1/tasks/{id}/hold`
pub(super) async fn hold(server: &Server, request: &Request<Incoming>, task: &str, id: &str) -> Answer {
    if !matches!(bearer(request), Some(Bearer::Token(_))) {
        return unauthenticated(server, id);
    }
    let task = match find(server.broker(), request, task) {
        Ok(task) => task,
        Err(error) => return refuse_find(server, id, &error),
    };
    if let Err(reason) = server.broker().still_runs(&task).await {
        let detail = format!("hold of a task that has ended: {reason}");
        return server.refuse(Dialect::Native, id, &Problem::task_ended(), detail);
    }
    let held = match Held::grasp(Arc::clone(server.broker()), task) {
        Ok(held) => held,
        Err((problem, detail)) => return server.refuse(Dialect::Native, id, &problem, detail.into()),
    };
    let (lines, body) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
    tokio::spawn(held.beat(lines));
    let mut answer = Response::new(Either::Right(BodyExt::boxed(StreamBody::new(ReceiverStream::new(body)))));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    answer
}

/// One holder of a task; letting go of it is its drop.
struct Held {
    broker: Arc<Broker>,
    task: Arc<Task>,
    _place: Counted,
}

impl Held {
    /// A hold never makes room for another connection, so there are only so many.
    fn grasp(broker: Arc<Broker>, task: Arc<Task>) -> Result<Self, (Problem, &'static str)> {
        let place = broker.let_hold(task.owner()).ok_or_else(|| {
            let problem = Problem::rate_limited("Too many tasks of this workload are held.", problem::SOON);
            (problem, "as many tasks of this caller are held as may be")
        })?;
        let mut state = task.state();
        if state.ending.is_some() {
            return Err((Problem::task_ended(), "hold of an ended task"));
        }
        if state.holders >= MAX_HOLDS {
            broker.parts().metrics.limited(Limit::HoldsPerTask);
            let problem = Problem::rate_limited("Too many hold this task.", problem::SOON);
            return Err((problem, "as many hold this task as may"));
        }
        state.holders = state.holders.saturating_add(1);
        drop(state);
        Ok(Self { broker, task, _place: place })
    }

    /// Sends a line now and every two seconds, and a last one when the task ends; ends when nobody reads any more.
    async fn beat(self, lines: mpsc::Sender<Result<Frame<Bytes>, Infallible>>) {
        let clock = Arc::clone(&self.broker.parts().clock);
        let mut ended = self.task.watch_end();
        loop {
            let (line, last) = self.line();
            if lines.send(Ok(Frame::data(line))).await.is_err() || last {
                return;
            }
            tokio::select! {
                () = clock.sleep(HEARTBEAT) => {}
                _ = ended.wait_for(|ended| *ended) => {}
                () = lines.closed() => return,
            }
        }
    }

    fn line(&self) -> (Bytes, bool) {
        let reason = self.task.ended();
        let line = match reason {
            None => json!({ "id": self.task.id(), "state": "active", "expires_at": self.task.deadline() }),
            Some(reason) => json!({ "id": self.task.id(), "state": "ended", "reason": reason }),
        };
        (Bytes::from(format!("{line}\n")), reason.is_some())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.task.state();
        state.holders = state.holders.saturating_sub(1);
        state.unheld_since = self.broker.parts().clock.boot();
        state.last_used = state.unheld_since;
        drop(state);
        self.broker.changed.notify_one();
    }
}
