//! The operators' listener: metrics, liveness, readiness with its reasons, a status page.
//!
//! Over TCP it shows no identity and changes nothing. The Unix socket (mode 0600) also shows identities and tasks, and
//! ends any task.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::{Value, json};

use super::problem::Problem as Answered;
use super::{Answer, Peer, guard, tasks};
use crate::audit::{self, Event};
use crate::broker::{Broker, Outstanding};
use crate::clock::Timestamp;
use crate::identity;
use crate::identity::workload_api::SpiffeWorkloadApi;
use crate::pod_task::PodTask;
use crate::policy::cache::{PolicyCache, Refusal};
use crate::policy::standing::{PolicyState, RoleName};
use crate::policy::{self, Policy, Problem, ScopeId};
use crate::task::{EndReason, Task, TaskId};

/// The operators' side of one sidecar.
#[derive(Debug)]
pub struct Admin {
    broker: Arc<Broker>,
    policy: Arc<PolicyCache>,
    workload_api: Arc<SpiffeWorkloadApi>,
    pod_task: Option<Arc<PodTask>>,
    http: SocketAddr,
    gauges: Gauges,
}

/// What is set when Prometheus asks, beside the broker's.
#[derive(Debug)]
struct Gauges {
    policy: policy::metrics::Metrics,
    identity: identity::metrics::Metrics,
    audit: audit::metrics::Metrics,
    /// One scrape at a time: gauges are set to zero and counted anew.
    scrape: Mutex<()>,
}

/// What `/status` tells.
#[derive(Debug, Serialize)]
struct Status {
    ready: bool,
    reasons: Vec<String>,
    version: &'static str,
    policy: PolicyStatus,
    workload_api: Value,
    tasks: Value,
    leases: Value,
    /// What of ended tasks can still be used, the most urgent first.
    outstanding: Vec<Outstanding>,
    journal: Value,
    audit: Value,
}

#[derive(Debug, Serialize)]
struct PolicyStatus {
    version: Option<String>,
    state: &'static str,
    trust: &'static str,
    /// When each role expires, where the policy is signed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ends: BTreeMap<RoleName, Timestamp>,
    active_scopes: usize,
    suspended: BTreeMap<ScopeId, Vec<Problem>>,
    /// Entries of the kill list that are in force.
    killed: usize,
    problems: Vec<Problem>,
    /// What was refused last, also where it was fixed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_refusal: Option<Refusal>,
    /// What is odd about the source and harms nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

impl Admin {
    /// The operators' side of `broker`.
    pub fn new(
        broker: Arc<Broker>,
        policy: Arc<PolicyCache>,
        workload_api: Arc<SpiffeWorkloadApi>,
        pod_task: Option<Arc<PodTask>>,
        http: SocketAddr,
    ) -> Self {
        let registry = broker.parts().metrics.registry();
        let gauges = Gauges {
            policy: policy::metrics::Metrics::new(registry),
            identity: identity::metrics::Metrics::new(registry),
            audit: audit::metrics::Metrics::new(registry),
            scrape: Mutex::default(),
        };
        Self { broker, policy, workload_api, pod_task, http, gauges }
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Answer {
        let (request, _) = request.into_parts();
        let path = request.uri.path();
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        // What tells more than counts is for people on this machine, and not for their browsers' other pages.
        let here = match peer {
            Peer::Unix => true,
            Peer::Mtls(_) => false,
            Peer::Tcp(_) => {
                let rules = &guard::Rules::GENERAL;
                self.http.ip().is_loopback() && guard::check(&request, peer, self.http.port(), rules).is_ok()
            }
        };
        match (&request.method, segments.as_slice()) {
            (&Method::GET, ["metrics"]) => self.metrics(),
            (&Method::GET, ["livez"]) => text(StatusCode::OK, "text/plain", "live\n".into()),
            (&Method::GET, ["readyz"]) => self.readyz(),
            (&Method::GET, []) if here => text(StatusCode::OK, "text/html; charset=utf-8", self.page()),
            (&Method::GET, ["status"]) if here => super::json(StatusCode::OK, &self.status(peer == Peer::Unix)),
            (&Method::GET, ["v1", "tasks", task]) if peer == Peer::Unix => self.show(task),
            (&Method::DELETE, ["v1", "tasks", task]) if peer == Peer::Unix => self.end(task).await,
            (&Method::POST, ["v1", "clock", "reset"]) if peer == Peer::Unix => self.reset_clock().await,
            (_, segments) => match methods(segments, here, peer == Peer::Unix) {
                Some(methods) => {
                    let mut answer = Answered::method_not_allowed().answer("");
                    // RFC 9110 §15.5.6: the answer must say which are
                    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
                    answer
                }
                None => Answered::not_found().answer(""),
            },
        }
    }

    fn find(&self, task: &str) -> Option<Arc<Task>> {
        task.parse().ok().and_then(|id: TaskId| self.broker.tasks().by_id(&id))
    }

    fn show(&self, task: &str) -> Answer {
        match self.find(task) {
            Some(task) => super::json(StatusCode::OK, &tasks::view(&task)),
            None => Answered::not_found().answer(""),
        }
    }

    async fn end(&self, task: &str) -> Answer {
        match self.find(task) {
            Some(task) => tasks::end_with(&self.broker, &task, EndReason::Operator, "operator").await,
            None => Answered::not_found().answer(""),
        }
    }

    /// An operator says that the wall clock is right. Told in the audit log first.
    async fn reset_clock(&self) -> Answer {
        let parts = self.broker.parts();
        let detail = parts.clock.trusted().err().map(|distrust| distrust.to_string());
        let event = Event { detail, ..Event::new(self.broker.now(), audit::Kind::Clock, "reset") };
        if parts.audit.record(&event).await.is_err() {
            return Answered::unavailable("unavailable", "The audit log cannot be written.", Duration::from_secs(1))
                .answer("");
        }
        parts.clock.reset();
        tracing::warn!("an operator said that the clock is right: it is trusted as it is");
        super::json(StatusCode::OK, &json!({ "now": self.broker.now() }))
    }

    fn readyz(&self) -> Answer {
        let reasons = self.reasons();
        if reasons.is_empty() {
            text(StatusCode::OK, "text/plain", "ready\n".into())
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", reasons.join("\n") + "\n")
        }
    }

    /// Why the sidecar is not ready; empty when it is.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let identities = self.workload_api_state();
        if let Some(reason) = identities {
            reasons.push(reason);
        }
        let policy = self.policy.current();
        if let Some(PolicyState::Expired(lapse)) = policy.as_ref().map(|policy| policy.state(self.broker.now())) {
            reasons.push(format!("policy: expired: {lapse}"));
        }
        if policy.is_none() {
            let status = self.policy.status();
            let why = status.problems.first().map(|problem| format!("{}: {}", problem.file, problem.message));
            reasons.push(format!("policy: nothing is loaded: {}", why.unwrap_or_else(|| "not read yet".into())));
        }
        if let Some(fault) = self.broker.parts().journal.fault() {
            reasons.push(format!("journal: {fault}"));
        }
        if let Err(distrust) = self.broker.parts().clock.trusted() {
            reasons.push(format!("clock: {distrust}"));
        }
        if let Some(reason) = self.pod_task.as_ref().and_then(|pod| pod.not_ready()) {
            reasons.push(format!("pod task: {reason}"));
        }
        reasons
    }

    fn workload_api_state(&self) -> Option<String> {
        let identities = self.broker.parts().workload_api.identities();
        let health = self.workload_api.health();
        let why = |what: &str| match health.last_error() {
            Some(error) => format!("workload api: {what}: {error}"),
            None => format!("workload api: {what}"),
        };
        let now = self.broker.now();
        if !identities.known {
            Some(why("has not answered yet"))
        } else if identities.svids.is_empty() {
            Some(why("gives this sidecar no SVID: register an entry for it"))
        } else if identities.svids.iter().all(|svid| svid.expires_at <= now) {
            Some(why("every SVID of this sidecar has expired"))
        } else {
            None
        }
    }

    fn metrics(&self) -> Answer {
        let parts = self.broker.parts();
        let _one_at_a_time = self.gauges.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.broker.update_gauges();
        self.gauges.policy.update(&self.policy, self.broker.now());
        self.gauges.identity.update(&parts.workload_api.identities());
        self.gauges.audit.update(&parts.audit);
        let page = parts.metrics.registry().page();
        match page {
            Ok(page) => {
                let mut answer = Response::new(Either::Left(Full::new(page.into())));
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert(CONTENT_TYPE, kind);
                answer
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
        }
    }

    fn status(&self, whole: bool) -> Value {
        let reasons = self.reasons();
        let policy = self.policy.current();
        let identities = self.broker.parts().workload_api.identities();
        let health = self.workload_api.health();
        let census = self.broker.census();
        let outstanding = self.broker.outstanding();
        let status = Status {
            ready: reasons.is_empty(),
            reasons,
            version: env!("CARGO_PKG_VERSION"),
            policy: self.policy_status(policy.as_deref()),
            workload_api: json!({ "connected": health.connected(), "svids": identities.svids.len() }),
            tasks: json!({ "active": census.active, "ended": census.ended }),
            leases: json!({
                "active": census.leases.iter().map(|(_, _, count)| count).sum::<i64>(),
                "outstanding": outstanding.len(),
                "to_revoke": census.outstanding.iter().map(|(_, count)| count).sum::<i64>(),
            }),
            outstanding: shown(outstanding, whole),
            journal: json!({ "pending": self.broker.parts().journal.pending() }),
            audit: self.audit_status(),
        };
        // Strings, numbers and lists of them always serialise.
        let mut value = serde_json::to_value(status).unwrap_or_default();
        if let (true, Value::Object(members)) = (whole, &mut value) {
            let svid = |svid: &crate::identity::workload_api::OwnSvid| json!({ "spiffe_id": svid.spiffe_id, "expires_at": svid.expires_at });
            members.insert("identities".into(), identities.svids.iter().map(svid).collect());
            members.insert("task_list".into(), json!(tasks::views(self.broker.tasks().all())));
        }
        value
    }

    fn policy_status(&self, policy: Option<&Policy>) -> PolicyStatus {
        let (now, refreshes) = (self.broker.now(), self.policy.status());
        let state = policy.map(|policy| policy.state(now));
        let standing = policy.and_then(Policy::standing);
        PolicyStatus {
            version: policy.map(|policy| policy.version().to_string()),
            state: state.as_ref().map_or("none", PolicyState::as_str),
            trust: if self.policy.is_signed() { "signed" } else { "unsigned" },
            ends: standing.map(|standing| standing.ends.clone()).unwrap_or_default(),
            active_scopes: policy.map_or(0, Policy::active),
            suspended: policy.map(|policy| policy.suspended().clone()).unwrap_or_default(),
            killed: policy.map_or(0, |policy| policy.kill_list().in_force(now)),
            problems: refreshes.problems,
            last_refusal: refreshes.refused,
            notes: refreshes.notes,
        }
    }

    /// What `sidemint audit verify` is given to find a forged or shortened log.
    fn audit_status(&self) -> Value {
        let audit = &self.broker.parts().audit;
        json!({ "key": audit.key(), "head": audit.head().to_string() })
    }

    /// The status page: the same words as `/status`, for people.
    fn page(&self) -> String {
        let status = self.status(false);
        let mut rows = String::new();
        for (name, value) in status.as_object().into_iter().flatten() {
            let shown = match value {
                Value::String(text) => text.clone(),
                other => serde_json::to_string_pretty(other).unwrap_or_default(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(rows, "<tr><th>{}</th><td><pre>{}</pre></td></tr>", escape(name), escape(&shown));
        }
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Sidemint</title>\
             <style>body{{font:15px system-ui;margin:2rem}}th{{text-align:left;vertical-align:top;padding-right:2rem}}\
             pre{{margin:.2rem 0}}</style><h1>Sidemint</h1><p>Access belongs to a task, and ends with it.</p>\
             <table>\n{rows}</table><p><a href=\"/metrics\">metrics</a> · <a href=\"/readyz\">readyz</a> · \
             <a href=\"/status\">status as JSON</a></p></html>\n"
        )
    }
}

/// The first of what is outstanding; identities and details only where the `whole` is told.
fn shown(mut outstanding: Vec<Outstanding>, whole: bool) -> Vec<Outstanding> {
    const MOST: usize = 100;
    outstanding.truncate(MOST);
    if !whole {
        for lease in &mut outstanding {
            lease.hide();
        }
    }
    outstanding
}

/// The methods that a path takes from this peer, where there is something for it.
fn methods(segments: &[&str], here: bool, operator: bool) -> Option<&'static str> {
    Some(match segments {
        ["metrics" | "livez" | "readyz"] => "GET",
        [] | ["status"] if here => "GET",
        ["v1", "tasks", _] if operator => "GET, DELETE",
        ["v1", "clock", "reset"] if operator => "POST",
        _ => return None,
    })
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
