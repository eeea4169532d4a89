//! Our own routes: begin, hold, list, show, end.

use std::cmp::Reverse;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::dialect::{self, Call, Presented, Refusal};
use super::problem::{self, Problem};
use super::{Answer, Server, begin_body, json, mtls, read_body};
use crate::api::{self, LeaseView, TaskList, TaskView};
use crate::broker::Limit;
use crate::broker::{BeginRequest, Begun, Broker, Claimant, Counted, FindError};
use crate::clock::Timestamp;
use crate::exchange::Handle;
use crate::identity::Evidence;
use crate::identity::task_token::TokenHash;
use crate::lease::LeaseFacts;
use crate::task::{EndReason, Idempotency, Task, TaskId};

/// How often a held task says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(2);
const MAX_KEY: usize = 255;
/// So many streams hold one task at a time.
const MAX_HOLDS: u32 = 16;
/// So many tasks are listed in one answer.
const PAGE: usize = 200;

/// No usable proof.
pub(super) fn unauthenticated() -> Refusal {
    Refusal::new(Problem::unauthenticated(), "no usable bearer")
}

/// `POST /v1/tasks`
pub(super) async fn begin(server: Arc<Server>, call: Call) -> Result<Answer, Refusal> {
    let Call { parts, body, presented, id, .. } = call;
    let claimant = match presented {
        Presented::Svid(evidence) => Claimant::Workload(evidence),
        Presented::Token(token) => Claimant::Parent(token),
        Presented::Nothing => Claimant::Workload(peer(&parts).ok_or_else(unauthenticated)?),
        Presented::Unusable => return Err(unauthenticated()),
    };
    let asked = read_begin(&server, &parts, body, claimant, id.as_str()).await.map_err(|problem| {
        let detail = problem.detail().to_owned();
        Refusal::new(problem, detail)
    })?;
    match server.broker().begin(asked).await {
        Ok(begun) => Ok(begun_answer(&server, begun)),
        Err(error) => Err(Refusal::audited(Problem::from(&error))),
    }
}

/// By mutual TLS the connection itself is the evidence.
fn peer(parts: &Parts) -> Option<Evidence> {
    mtls::peer(&parts.extensions).map(|peer| Evidence::X509Svid(Arc::clone(peer)))
}

async fn read_begin(
    server: &Server,
    parts: &Parts,
    body: Incoming,
    claimant: Claimant,
    id: &str,
) -> Result<BeginRequest, Problem> {
    let is_json = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
    };
    if !parts.headers.get(CONTENT_TYPE).is_some_and(is_json) {
        return Err(Problem::unsupported_media_type());
    }
    let key = idempotency_key(&parts.headers)?;
    let body = read_body(server, parts, body).await?;
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

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
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

fn begun_answer(server: &Server, Begun { task, token }: Begun) -> Answer {
    // exposed: an SDK beside the task needs it
    let environment = dialect::environment(task.providers(), server.http(), task.id(), token.expose());
    let body = api::Begun {
        id: task.id().to_string(),
        scope: task.begun().ask.scope.to_string(),
        spiffe_id: task.owner().clone(),
        token,
        expires_at: task.deadline(),
        environment,
    };
    json(StatusCode::CREATED, &body)
}

/// Whose tasks a bearer may see and end.
enum Visibility {
    /// Every task of this owner.
    Owner(crate::identity::SpiffeId),
    /// This one.
    One(Arc<Task>),
}

fn visibility(broker: &Broker, call: &Call) -> Result<Visibility, FindError> {
    let owner = |evidence: &Evidence| match broker.caller(evidence) {
        Ok(caller) => Ok(Visibility::Owner(caller.spiffe_id().clone())),
        Err(error) => Err(FindError::Unauthenticated(error.to_string())),
    };
    let none = || FindError::Unauthenticated("no usable bearer".into());
    match &call.presented {
        Presented::Token(token) => of_token(broker, token).map(Visibility::One),
        Presented::Svid(evidence) => owner(evidence),
        Presented::Nothing => owner(&peer(&call.parts).ok_or_else(none)?),
        Presented::Unusable => Err(none()),
    }
}

fn of_token(broker: &Broker, token: &TokenHash) -> Result<Arc<Task>, FindError> {
    broker.tasks().by_token(token).ok_or_else(|| FindError::Unauthenticated("no task has this token".into()))
}

/// The task named in the path, if the bearer may see it: unknown and foreign ids get the same answer.
fn find(broker: &Broker, call: &Call) -> Result<Arc<Task>, Refusal> {
    let visibility = visibility(broker, call)?;
    let task = call.parameter.parse().ok().and_then(|id: TaskId| broker.tasks().by_id(&id));
    let task = task.ok_or(FindError::NotFound)?;
    let is_visible = match visibility {
        Visibility::Owner(owner) => *task.owner() == owner,
        Visibility::One(own) => own.id() == task.id(),
    };
    if is_visible { Ok(task) } else { Err(FindError::NotFound.into()) }
}

/// The task of `token`, if it is the one named `id`.
pub(super) fn own(broker: &Broker, token: &TokenHash, id: &str) -> Result<Arc<Task>, Refusal> {
    let task = of_token(broker, token)?;
    if task.id().as_str() == id { Ok(task) } else { Err(FindError::NotFound.into()) }
}

impl From<FindError> for Refusal {
    fn from(error: FindError) -> Self {
        Self::new(Problem::from(&error), error.to_string())
    }
}

/// `GET /v1/tasks[?after=]`
pub(super) fn list(server: &Server, call: Call) -> Result<Answer, Refusal> {
    let broker = server.broker();
    let mut tasks = match visibility(broker, &call)? {
        Visibility::One(task) => vec![task],
        Visibility::Owner(owner) => broker.tasks().of(&owner),
    };
    tasks.sort_by(|a, b| listing_order(a).cmp(&listing_order(b)));
    let first = match call.parts.uri.query().map(|query| query.strip_prefix("after=")) {
        None => 0,
        Some(Some(after)) => match tasks.iter().position(|task| task.id().to_string() == after) {
            Some(last) => last.saturating_add(1),
            None => return Err(FindError::NotFound.into()),
        },
        Some(None) => {
            let problem = Problem::invalid_request("the query is after=ID, or nothing");
            return Err(Refusal::new(problem, "unknown query"));
        }
    };
    let rest = tasks.get(first..).unwrap_or_default();
    let page = rest.get(..PAGE).unwrap_or(rest);
    let next = page.last().map(|task| task.id().to_string()).filter(|_| rest.len() > page.len());
    Ok(json(StatusCode::OK, &TaskList { tasks: page.iter().map(|task| view(task)).collect(), next }))
}

/// Where a task stands among others: the latest first.
fn listing_order(task: &Task) -> (Reverse<Timestamp>, &TaskId) {
    (Reverse(task.begun().begun_at), task.id())
}

/// A task as it is now.
pub(super) fn view(task: &Task) -> TaskView {
    let state = task.state();
    let record = task.begun();
    let ending = state.ending.as_ref();
    TaskView {
        id: record.id.to_string(),
        scope: record.ask.scope.to_string(),
        spiffe_id: record.owner.clone(),
        task: record.label.clone(),
        parent: record.parent.as_ref().map(TaskId::to_string),
        tier: record.tier.as_str().to_owned(),
        state: if ending.is_some() { "ended" } else { "active" }.to_owned(),
        hold: record.hold,
        begun_at: record.begun_at,
        expires_at: record.deadline,
        ended_at: ending.map(|ending| ending.ended_at),
        reason: ending.map(|ending| ending.reason.to_string()),
        leases: state.leases.iter().map(|lease| lease_view(lease)).collect(),
    }
}

fn lease_view(lease: &LeaseFacts) -> LeaseView {
    let shown = lease.upstream.as_ref().and_then(Handle::shown);
    LeaseView {
        id: lease.id.to_string(),
        provider: lease.provider.to_string(),
        revocation: lease.revocation.as_str().to_owned(),
        state: lease.state.as_str().to_owned(),
        usable_until: lease.usable_until,
        open_ended: lease.open_ended,
        session_name: Some(lease.session_name.to_string()),
        grant: Some(lease.grant.to_string()),
        names: shown.map(|(name, text)| (name.to_owned(), text.into())).into_iter().collect(),
    }
}

/// Tasks as they are shown, the latest first.
pub(super) fn views(mut tasks: Vec<Arc<Task>>) -> Vec<TaskView> {
    tasks.sort_by(|a, b| listing_order(a).cmp(&listing_order(b)));
    tasks.iter().map(|task| view(task)).collect()
}

/// `GET /v1/tasks/{id}`
pub(super) fn show(server: &Server, call: Call) -> Result<Answer, Refusal> {
    Ok(json(StatusCode::OK, &view(&*find(server.broker(), &call)?)))
}

/// `DELETE /v1/tasks/{id}`
pub(super) async fn end(server: Arc<Server>, call: Call) -> Result<Answer, Refusal> {
    let task = find(server.broker(), &call)?;
    Ok(end_with(server.broker(), &task, EndReason::Done, call.id.as_str()).await)
}

/// Ends `task` and tells what is left of it.
pub(super) async fn end_with(broker: &Arc<Broker>, task: &Arc<Task>, reason: EndReason, id: &str) -> Answer {
    let ending = broker.end(task, reason, Some(id)).await;
    let ending = broker.settled_ending(task, ending).await;
    let durable = broker.is_durable(task).await;
    let leases = ending.leases.iter().map(|lease| api::LeaseEnding {
        id: lease.id.to_string(),
        provider: lease.provider.to_string(),
        outcome: lease.outcome.as_str().to_owned(),
        usable_until: lease.usable_until,
        open_ended: lease.open_ended,
    });
    let body = api::Ending {
        id: task.id().to_string(),
        reason: ending.reason.to_string(),
        ended_at: ending.ended_at,
        leases: leases.collect(),
        durable,
    };
    json(StatusCode::OK, &body)
}

/// `POST /v1/tasks/{id}/hold`
pub(super) async fn hold(server: Arc<Server>, call: Call) -> Result<Answer, Refusal> {
    let Presented::Token(token) = &call.presented else { return Err(unauthenticated()) };
    let task = own(server.broker(), token, &call.parameter)?;
    if let Err(reason) = server.broker().still_runs(&task).await {
        return Err(Refusal::new(Problem::task_ended(), format!("hold of a task that has ended: {reason}")));
    }
    let held = Holder::start(Arc::clone(server.broker()), task)?;
    let (lines, body) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
    tokio::spawn(held.send_heartbeats(lines));
    let mut answer = Response::new(Either::Right(BodyExt::boxed(StreamBody::new(ReceiverStream::new(body)))));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(answer)
}

/// One holder of a task; letting go of it is its drop.
struct Holder {
    broker: Arc<Broker>,
    task: Arc<Task>,
    _permit: Counted,
}

impl Holder {
    /// A hold never makes room for another connection, so there are only so many.
    fn start(broker: Arc<Broker>, task: Arc<Task>) -> Result<Self, Refusal> {
        let permit = broker.let_hold(task.owner()).ok_or_else(|| {
            let problem = Problem::rate_limited("Too many tasks of this workload are held.", problem::SOON);
            Refusal::new(problem, "as many tasks of this caller are held as may be")
        })?;
        let mut state = task.state();
        if state.ending.is_some() {
            return Err(Refusal::new(Problem::task_ended(), "hold of an ended task"));
        }
        if state.holders >= MAX_HOLDS {
            broker.parts().metrics.limited(Limit::HoldsPerTask);
            let problem = Problem::rate_limited("Too many hold this task.", problem::SOON);
            return Err(Refusal::new(problem, "as many hold this task as may"));
        }
        state.holders = state.holders.saturating_add(1);
        drop(state);
        Ok(Self { broker, task, _permit: permit })
    }

    /// Sends a line now and every two seconds, and a last one when the task ends; ends when nobody reads any more.
    async fn send_heartbeats(self, lines: mpsc::Sender<Result<Frame<Bytes>, Infallible>>) {
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
        let line = api::HoldLine {
            id: self.task.id().to_string(),
            state: if reason.is_some() { "ended" } else { "active" }.to_owned(),
            expires_at: reason.is_none().then(|| self.task.deadline()),
            reason: reason.map(|reason| reason.to_string()),
        };
        // Strings and times always serialise.
        let mut line = serde_json::to_vec(&line).unwrap_or_default();
        line.push(b'\n');
        (line.into(), reason.is_some())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut state = self.task.state();
        state.holders = state.holders.saturating_sub(1);
        state.unheld_since = self.broker.parts().clock.boot();
        state.last_used = state.unheld_since;
        drop(state);
        self.broker.changed.notify_one();
    }
}
