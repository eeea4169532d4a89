//! The load: workloads of several identities that begin tasks, use and end them, and write down what they were told and
//! received. None of them minds that the sidecar dies; each looks for what it must not be given.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use sidemint::clock::{Clock as _, SystemClock, Timestamp};

use crate::gate::Point;
use crate::ledger::{Clients, Ended, Known, Received, Told};
use crate::random::Random;
use crate::sidecar::{ask, time};
use crate::world::{WHO, World, spiffe_id};

/// Running tasks of one client.
const TASKS: usize = 6;
/// Ended tasks that a client goes on trying.
const REMEMBERED: usize = 6;
/// A task with less than this left may be refused a credential, which would live too short.
const TOO_LATE: Duration = Duration::from_secs(8);

/// What all clients of a world share.
pub(crate) struct Load {
    pub(crate) world: Arc<World>,
    pub(crate) socket: PathBuf,
    ledger: Mutex<Clients>,
    ticks: AtomicU64,
    /// When the sidecar of now was ready.
    life: AtomicU64,
}

impl Load {
    pub(crate) fn new(world: Arc<World>, socket: PathBuf) -> Arc<Self> {
        Arc::new(Self { world, socket, ledger: Mutex::default(), ticks: AtomicU64::new(0), life: AtomicU64::new(0) })
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Clients> {
        self.ledger.lock().unwrap()
    }

    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    /// From here on another sidecar answers than before.
    pub(crate) fn begin_life(&self) {
        self.life.store(self.tick(), Ordering::SeqCst);
    }

    /// Whether what this sidecar served last for the task at `at` has reached the expiry that it told.
    fn has_expired(&self, at: usize, now: Timestamp) -> bool {
        let life = self.life.load(Ordering::SeqCst);
        let ledger = self.ledger();
        let last = ledger.received.iter().rev().find(|received| received.task == at);
        last.is_some_and(|received| received.sent_tick > life && received.told <= now)
    }

    /// Something that no sidecar may do.
    fn saw(&self, what: String) {
        self.ledger().seen.push(what);
    }
}

/// A task in its client's hand.
struct Own {
    /// Its place in the ledger.
    at: usize,
    id: String,
    token: String,
    vault: bool,
    deadline: Timestamp,
    /// The report of its end, as it came first.
    report: Option<Bytes>,
}

/// A begin whose answer did not come: asked again with the same key.
struct Begin {
    key: String,
    body: Value,
    vault: bool,
}

/// One workload.
pub(crate) struct Client {
    load: Arc<Load>,
    who: usize,
    name: String,
    random: Random,
    running: Vec<Own>,
    ended: Vec<Own>,
    pending: Option<Begin>,
    begun: usize,
}

impl Client {
    pub(crate) fn new(load: &Arc<Load>, number: usize, random: Random) -> Self {
        let who = number % WHO.len();
        Self {
            load: Arc::clone(load),
            who,
            name: format!("client-{number}"),
            random,
            running: Vec::new(),
            ended: Vec::new(),
            pending: None,
            begun: 0,
        }
    }

    /// Goes on until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let answered = match self.random.below(100) {
                0..15 => self.begin().await,
                15..65 => self.serve().await,
                65..70 => self.end().await,
                70..73 => self.race().await,
                73..88 => self.try_an_ended_one().await,
                88..94 => self.list().await,
                _ => self.look_at_anothers().await,
            };
            self.retire();
            // A sidecar that is dead is looked for again soon; one that is alive is not asked without a breath.
            let pause = if answered { self.random.between(2, 15) } else { 10 };
            SystemClock.sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        proof: &str,
        more: &[(&str, &str)],
        body: Bytes,
    ) -> Option<(StatusCode, Bytes)> {
        let bearer = format!("Bearer {proof}");
        let headers = [&[("authorization", bearer.as_str())], more].concat();
        ask(&self.load.socket, method, path, &headers, body).await.ok()
    }

    fn svid(&self) -> String {
        let svid = self.load.world.authority.jwt_svid(&spiffe_id(self.who), &["sidemint".to_owned()]);
        // exposed: this client is the workload that proves itself
        svid.unwrap().unwrap().expose().to_owned()
    }

    /// Tells the gate of `point` once the request had a moment to leave.
    async fn soon(&self, point: Point) {
        SystemClock.sleep(Duration::from_micros(300)).await;
        self.load.world.gate.pass(point);
    }

    async fn begin(&mut self) -> bool {
        if self.pending.is_none() && self.running.len() >= TASKS {
            return true;
        }
        let begin = match self.pending.take() {
            Some(begin) => begin,
            None => {
                self.begun += 1;
                let vault = self.random.chance(35);
                let ttl = if self.random.chance(70) { self.random.between(7, 20) } else { 600 };
                let scope = format!("{}-{}", WHO[self.who], if vault { "vault" } else { "aws" });
                let body = json!({ "scope": scope, "ttl": format!("{ttl}s") });
                Begin { key: format!("{}-{}", self.name, self.begun), body, vault }
            }
        };
        let (svid, body) = (self.svid(), begin.body.to_string());
        let key = [("idempotency-key", begin.key.as_str())];
        let (answer, ()) =
            tokio::join!(self.ask("POST", "/v1/tasks", &svid, &key, body.into()), self.soon(Point::BeginSent));
        let Some((status, body)) = answer else {
            self.pending = Some(begin);
            return false;
        };
        match status {
            StatusCode::CREATED => {
                let task: Value = serde_json::from_slice(&body).unwrap();
                let text = |name: &str| task[name].as_str().unwrap().to_owned();
                let (id, owner, deadline) = (text("id"), spiffe_id(self.who).to_string(), time(&task["expires_at"]));
                if text("spiffe_id") != owner {
                    self.load.saw(format!("began as another: {task}"));
                }
                let at = {
                    let mut ledger = self.load.ledger();
                    ledger.tasks.push(Known { owner, id: id.clone(), deadline, end_asked: false, ended: None });
                    ledger.tasks.len() - 1
                };
                self.load.world.gate.pass(Point::Begun);
                self.running.push(Own { at, id, token: text("token"), vault: begin.vault, deadline, report: None });
            }
            // The first answer was lost, and its task's time is up.
            StatusCode::CONFLICT => {}
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => self.pending = Some(begin),
            _ => self.load.saw(format!("a begin was answered {status}: {}", String::from_utf8_lossy(&body))),
        }
        true
    }

    async fn serve(&mut self) -> bool {
        if self.running.is_empty() {
            return self.begin().await;
        }
        let at = self.random.below(self.running.len());
        let (answered, _) = tokio::join!(self.credentials(&self.running[at], true), self.soon(Point::Asked));
        answered
    }

    /// Asks for the credential of `own`, and writes it down. A refusal is judged where the task is `certain` to run.
    async fn credentials(&self, own: &Own, certain: bool) -> bool {
        let (sent, sent_tick) = (SystemClock.now(), self.load.tick());
        let expired = self.load.has_expired(own.at, sent);
        let path =
            if own.vault { format!("/v1/tasks/{}/credentials", own.id) } else { "/v1/aws/credentials".to_owned() };
        let Some((status, body)) = self.ask("GET", &path, &own.token, &[], Bytes::new()).await else { return false };
        if expired {
            self.load.world.gate.pass(Point::Expired);
        }
        if status == StatusCode::OK {
            let got: Value = serde_json::from_slice(&body).unwrap();
            let key = if own.vault { &got["lease_id"] } else { &got["AccessKeyId"] };
            let told = match got["lease_duration"].as_u64() {
                Some(seconds) => sent + Duration::from_secs(seconds),
                None => time(&got["Expiration"]),
            };
            let key = key.as_str().unwrap_or_default().to_owned();
            self.load.ledger().received.push(Received { task: own.at, key, told, sent, sent_tick });
            self.load.world.gate.pass(Point::Served);
        } else if certain
            && matches!(status.as_u16(), 401 | 403 | 404 | 409)
            && SystemClock.now() + TOO_LATE < own.deadline
        {
            let known = self.load.ledger().tasks[own.at].clone();
            if !known.end_asked {
                self.load
                    .saw(format!("a running task was refused, {status} {}: {known:?}", String::from_utf8_lossy(&body)));
            }
        }
        true
    }

    async fn end(&mut self) -> bool {
        if self.running.is_empty() {
            return self.begin().await;
        }
        let at = self.random.below(self.running.len());
        let (answered, ()) = tokio::join!(end_one(self, &self.running[at]), self.soon(Point::EndSent));
        if !self.finish(at, answered) {
            return false;
        }
        // At once, while this sidecar may still have it in memory.
        match self.ended.last() {
            Some(own) => self.credentials(own, false).await,
            None => true,
        }
    }

    /// Ends a task while its credential is asked for, both at once.
    async fn race(&mut self) -> bool {
        if self.running.is_empty() {
            return self.begin().await;
        }
        let at = self.random.below(self.running.len());
        let own = &self.running[at];
        let (_, answered) = tokio::join!(self.credentials(own, false), end_one(self, own));
        self.finish(at, answered)
    }

    /// A task whose end was acknowledged is only tried from now on.
    fn finish(&mut self, at: usize, answer: Option<Bytes>) -> bool {
        let Some(report) = answer else { return false };
        let mut own = self.running.swap_remove(at);
        own.report = Some(report);
        self.remember(own);
        true
    }

    fn remember(&mut self, own: Own) {
        self.ended.push(own);
        if self.ended.len() > REMEMBERED {
            self.ended.remove(0);
        }
    }

    /// What is past its deadline is tried for a while, and then only as an ended one.
    fn retire(&mut self) {
        let now = SystemClock.now();
        while let Some(at) = self.running.iter().position(|own| own.deadline + Duration::from_secs(2) < now) {
            let own = self.running.swap_remove(at);
            self.remember(own);
        }
    }

    /// An ended task must give nothing, and its report again.
    async fn try_an_ended_one(&mut self) -> bool {
        if self.ended.is_empty() {
            return self.serve().await;
        }
        let own = &self.ended[self.random.below(self.ended.len())];
        if self.random.clone().chance(50) {
            return self.credentials(own, false).await;
        }
        let answer = self.ask("DELETE", &format!("/v1/tasks/{}", own.id), &own.token, &[], Bytes::new()).await;
        let Some((status, body)) = answer else { return false };
        // A Vault's report may get better, when a revocation that was late is done.
        if let (StatusCode::OK, Some(first), false) = (status, &own.report, own.vault)
            && body != *first
        {
            if goes_on(first, &body) {
                // What is told last is what must be true.
                if let Some(ended) = &mut self.load.ledger().tasks[own.at].ended {
                    ended.lines = lines(&body);
                }
            } else {
                let text = String::from_utf8_lossy;
                self.load.saw(format!("the report of an end changed from {} to {}", text(first), text(&body)));
            }
        }
        true
    }

    /// One's own tasks, and nobody else's.
    async fn list(&self) -> bool {
        let Some((status, body)) = self.ask("GET", "/v1/tasks", &self.svid(), &[], Bytes::new()).await else {
            return false;
        };
        if status == StatusCode::OK {
            let list: Value = serde_json::from_slice(&body).unwrap();
            let owner = spiffe_id(self.who).to_string();
            if let Some(foreign) =
                list["tasks"].as_array().unwrap().iter().find(|task| task["spiffe_id"] != owner.as_str())
            {
                self.load.saw(format!("{owner} was shown another's task: {foreign}"));
            }
        }
        true
    }

    /// Another's task is neither shown nor ended, however well its id is known.
    async fn look_at_anothers(&mut self) -> bool {
        let owner = spiffe_id(self.who).to_string();
        let foreign: Vec<String> = {
            let ledger = self.load.ledger();
            ledger.tasks.iter().rev().take(40).filter(|task| task.owner != owner).map(|task| task.id.clone()).collect()
        };
        if foreign.is_empty() {
            return true;
        }
        let id = self.random.pick(&foreign).clone();
        let method = if self.random.chance(50) { "GET" } else { "DELETE" };
        let answer = self.ask(method, &format!("/v1/tasks/{id}"), &self.svid(), &[], Bytes::new()).await;
        let Some((status, body)) = answer else { return false };
        if status == StatusCode::OK {
            self.load.saw(format!("{owner} did {method} to another's task: {}", String::from_utf8_lossy(&body)));
        }
        true
    }
}

/// Asks for the end of `own`; its report, once it was acknowledged.
async fn end_one(client: &Client, own: &Own) -> Option<Bytes> {
    let load = &client.load;
    load.ledger().tasks[own.at].end_asked = true;
    let (status, body) = client.ask("DELETE", &format!("/v1/tasks/{}", own.id), &own.token, &[], Bytes::new()).await?;
    if status != StatusCode::OK {
        if SystemClock.now() < own.deadline {
            load.saw(format!("an end was answered {status}: {}", String::from_utf8_lossy(&body)));
        }
        return None;
    }
    let ended = Ended { tick: load.tick(), at: SystemClock.now(), lines: lines(&body) };
    load.ledger().tasks[own.at].ended.get_or_insert(ended);
    load.world.gate.pass(Point::EndAcknowledged);
    Some(body)
}

/// What a report says of each lease.
fn lines(report: &[u8]) -> Vec<Told> {
    let report: Value = serde_json::from_slice(report).unwrap();
    report["leases"].as_array().unwrap().iter().map(|line| Told { until: time(&line["usable_until"]) }).collect()
}

/// Whether `next` is the report that was told `first`, or that without a line or more: a mint that was under way at the end may
/// have come to nothing. That no line of a credential goes, the ledgers see ([`crate::ledger::judge_reports`]).
fn goes_on(first: &[u8], next: &[u8]) -> bool {
    let read = |report: &[u8]| {
        let mut report: Value = serde_json::from_slice(report).unwrap();
        let lines = report["leases"].take();
        (report, lines.as_array().unwrap().clone())
    };
    let ((first, lines), (next, left)) = (read(first), read(next));
    first == next && left.iter().all(|line| lines.contains(line))
}
