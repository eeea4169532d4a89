//! The steps of the story, each a claim of Sidemint and the check of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use spiffe::WorkloadApiClient;

use super::workload::{Outcome, Workload};
use super::{Teller, Told, leaks};
use crate::clock::{Clock, SharedClock, Timestamp, within};
use crate::dev::probe::{self, Answer};
use crate::dev::sidecar::{Options, STOP_LIMIT, Sidecar};
use crate::dev::world::{BUCKET, INTRUDER, OBJECTS, REGION, REPORT, SCOPE, World};
use crate::secret::Secret;

/// The customer whose ledger the task is about, one that the same workload may read in another task, and one that it may
/// never read.
const CUSTOMER: &str = "c-42";
const OTHER_CUSTOMER: &str = "c-43";
const FORBIDDEN_CUSTOMER: &str = "c-99";
/// How long one act of the workload may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much later than told the cloud's refusal may be seen: a poll, and a slow machine.
const TOLERANCE: Duration = Duration::from_secs(2);

/// What a step says: what was seen, or what was seen instead.
type Held = Result<String, String>;

/// Tells the story through `teller`, up to the first step that does not hold or until `interrupted`. Whatever happens,
/// the sidecar is stopped and nothing is left behind.
pub(super) async fn tell(
    clock: SharedClock,
    teller: &mut Teller,
    interrupted: impl Future<Output = ()>,
) -> io::Result<Told> {
    tokio::pin!(interrupted);
    let set = tokio::select! {
        set = Stage::set(clock) => set,
        () = &mut interrupted => return Ok(Told::Interrupted),
    };
    let mut stage = match set {
        Ok(stage) => stage,
        Err(problem) => {
            teller.step("ready", Err(problem))?;
            return Ok(Told::Whole { log: None });
        }
    };
    teller.step("ready", Ok("sidemint serve, beside a SPIFFE authority and a cloud".into()))?;
    let played = tokio::select! {
        played = stage.play(teller) => Some(played),
        () = &mut interrupted => None,
    };
    let log = stage.sidecar.log_tail();
    // Long ended where the story came to its end; how it ended was a step of it.
    let _ = stage.sidecar.stop(&*stage.clock).await;
    match played {
        Some(played) => played.map(|()| Told::Whole { log: Some(log) }),
        None => Ok(Told::Interrupted),
    }
}

/// Everything on stage.
struct Stage {
    clock: SharedClock,
    workload_api: WorkloadApiClient,
    /// Before the world, so that it goes first.
    sidecar: Sidecar,
    world: World,
    /// Every secret that was seen, for the search at the end.
    secrets: Vec<Secret>,
}

/// The task of the story.
struct Task {
    id: String,
    token: Secret,
    uri: String,
}

/// What the story reads of the answers and the audit log, as the design promises them.
#[derive(Deserialize)]
struct Begun {
    id: String,
    spiffe_id: String,
    token: String,
    environment: Environment,
}

#[derive(Deserialize)]
struct Environment {
    #[serde(rename = "AWS_CONTAINER_CREDENTIALS_FULL_URI")]
    uri: String,
}

#[derive(Deserialize)]
struct Ending {
    leases: Vec<EndedLease>,
}

#[derive(Deserialize)]
struct EndedLease {
    usable_until: Timestamp,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuditLine {
    event: String,
    outcome: String,
    spiffe_id: String,
    task: String,
    session_name: String,
    rule_ids: Vec<String>,
}

impl Stage {
    async fn set(clock: SharedClock) -> Result<Self, String> {
        let world = World::start(Arc::clone(&clock)).await.map_err(|error| error.to_string())?;
        let sidecar = Sidecar::start(&world, &Options::default(), &*clock).await.map_err(|error| error.to_string())?;
        let workload_api =
            WorkloadApiClient::connect_to(world.workload_api()).await.map_err(|error| error.to_string())?;
        Ok(Self { clock, workload_api, sidecar, world, secrets: Vec::new() })
    }

    async fn play(&mut self, teller: &mut Teller) -> io::Result<()> {
        let task = match self.begin().await {
            Ok((task, detail)) => {
                teller.step("task", Ok(detail))?;
                task
            }
            Err(problem) => {
                teller.step("task", Err(problem))?;
                return Ok(());
            }
        };
        let mut workload = match self.workload(&task) {
            Ok(workload) => workload,
            Err(error) => {
                teller.step("read", Err(format!("the workload does not start: {error}")))?;
                return Ok(());
            }
        };
        let read = self.reads_its_own(&mut workload).await;
        if !teller.step("read", read)? {
            return Ok(());
        }
        let other = self.reads_another(&mut workload).await;
        if !teller.step("other-object", other)? {
            return Ok(());
        }
        let refused = self.refused(INTRUDER, CUSTOMER, 403, "denied").await;
        let refused = refused.map(|()| format!("{INTRUDER}: denied by policy, 403"));
        if !teller.step("other-identity", refused)? {
            return Ok(());
        }
        let refused = self.refuses_parameters().await;
        if !teller.step("parameter", refused)? {
            return Ok(());
        }
        let copied = bounded(&*self.clock, workload.ask("copy")).await;
        let (ended, usable_until) = match self.ends(&task, &mut workload, &copied).await {
            Ok((detail, usable_until)) => (Ok(detail), usable_until),
            Err(problem) => (Err(problem), Timestamp::default()),
        };
        if !teller.step("end", ended)? {
            return Ok(());
        }
        let cut = self.replays_until_the_cut(&mut workload, usable_until, teller).await?;
        if !teller.step("cut", cut)? {
            return Ok(());
        }
        let (metrics, told) = self.metrics().await;
        if !teller.step("metrics", told)? {
            return Ok(());
        }
        let audit = self.audit(&task);
        if !teller.step("audit", audit)? {
            return Ok(());
        }
        let stopped = self.stops().await;
        if !teller.step("sigterm", stopped)? {
            return Ok(());
        }
        let clean = self.leaked_nothing(&metrics);
        teller.step("no-leak", clean).map(|_| ())
    }

    /// A JWT-SVID of `spiffe_id` for the sidecar, as a workload gets it, written as the `Authorization` header.
    async fn bearer(&mut self, spiffe_id: &str) -> Result<Secret, String> {
        let id = spiffe_id.try_into().map_err(|error| format!("{spiffe_id}: {error}"))?;
        let token = self.workload_api.fetch_jwt_token(["sidemint"], Some(&id)).await;
        let token = token.map_err(|error| format!("no JWT-SVID for {spiffe_id}: {error}"))?;
        let bearer = Secret::new(format!("Bearer {token}"));
        self.secrets.push(Secret::new(token));
        Ok(bearer)
    }

    async fn ask_to_begin(&mut self, spiffe_id: &str, customer: &str) -> Result<Answer, String> {
        let bearer = self.bearer(spiffe_id).await?;
        let body = json!({"scope": SCOPE, "task": "the demo's report", "params": {"customer": customer}}).to_string();
        let sent = probe::send(&*self.clock, self.sidecar.http, "POST", "/v1/tasks", Some(&bearer), body.into());
        sent.await.map_err(|error| error.to_string())
    }

    async fn begin(&mut self) -> Result<(Task, String), String> {
        let answer = self.ask_to_begin(REPORT, CUSTOMER).await?;
        if answer.status != 201 {
            return Err(format!("begin answered {}: {}", answer.status, problem_code(&answer)));
        }
        let begun: Begun =
            serde_json::from_slice(&answer.body).map_err(|error| format!("begin's answer cannot be read: {error}"))?;
        let task = Task { id: begun.id, token: Secret::new(begun.token), uri: begun.environment.uri };
        // exposed: kept a second time, for the search at the end
        self.secrets.push(Secret::new(task.token.expose().to_owned()));
        if task.id.is_empty() || !task.uri.starts_with("http://127.0.0.1:") || begun.spiffe_id != REPORT {
            return Err("begin answered 201 without a usable task".into());
        }
        let detail = format!("{REPORT} begins one for customer {CUSTOMER}");
        Ok((task, detail))
    }

    fn workload(&self, task: &Task) -> io::Result<Workload> {
        Workload::start(&[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &task.uri),
            // exposed: what the SDK presents to the endpoint
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", task.token.expose()),
            ("AWS_ENDPOINT_URL_S3", &self.world.s3_endpoint),
            ("AWS_REGION", REGION),
        ])
    }

    async fn reads_its_own(&self, workload: &mut Workload) -> Held {
        let (key, content) = object_of(CUSTOMER);
        match bounded(&*self.clock, workload.ask(&format!("read {key}"))).await {
            Outcome::Done(read) if read == content => Ok(format!("the AWS SDK, given only the endpoint: {key}")),
            other => Err(format!("s3://{BUCKET}/{key}: {other:?}")),
        }
    }

    async fn reads_another(&self, workload: &mut Workload) -> Held {
        let (key, _) = object_of(OTHER_CUSTOMER);
        if self.world.cloud.object(BUCKET, key).is_none() {
            return Err(format!("s3://{BUCKET}/{key} is not there"));
        }
        match bounded(&*self.clock, workload.ask(&format!("read {key}"))).await {
            Outcome::Refused(code) if code == "AccessDenied" => Ok(format!("{key}: AccessDenied by the cloud")),
            other => Err(format!("s3://{BUCKET}/{key}: {other:?}")),
        }
    }

    /// Whether a begin is refused with this status and code, and mints nothing.
    async fn refused(&mut self, spiffe_id: &str, customer: &str, status: u16, code: &str) -> Result<(), String> {
        let minted = self.world.cloud.minted().len();
        let answer = self.ask_to_begin(spiffe_id, customer).await?;
        let said = problem_code(&answer);
        if answer.status != status || said != code {
            return Err(format!("{spiffe_id} with customer {customer}: {} {said}", answer.status));
        }
        if self.world.cloud.minted().len() != minted {
            return Err(format!("{spiffe_id} with customer {customer}: refused, and yet something was minted"));
        }
        Ok(())
    }

    async fn refuses_parameters(&mut self) -> Held {
        self.refused(REPORT, FORBIDDEN_CUSTOMER, 403, "denied").await?;
        self.refused(REPORT, "*", 400, "invalid_request").await?;
        Ok(format!("customer {FORBIDDEN_CUSTOMER}: denied by policy, 403; customer *: 400"))
    }

    async fn ends(
        &self,
        task: &Task,
        workload: &mut Workload,
        copied: &Outcome,
    ) -> Result<(String, Timestamp), String> {
        let Outcome::Done(key_id) = copied else {
            return Err(format!("the workload's credentials could not be copied: {copied:?}"));
        };
        let bearer = Secret::new(format!("Bearer {}", task.token.expose()));
        let path = format!("/v1/tasks/{}", task.id);
        let answer = probe::send(&*self.clock, self.sidecar.http, "DELETE", &path, Some(&bearer), Bytes::new());
        let answer = answer.await.map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("end answered {}: {}", answer.status, problem_code(&answer)));
        }
        let refused = probe::get(&*self.clock, self.sidecar.http, "/v1/aws/credentials", Some(&task.token)).await;
        let refused = refused.map_err(|error| error.to_string())?.status;
        if refused != 401 {
            return Err(format!("after the end the endpoint answered {refused}"));
        }
        let (key, _) = object_of(CUSTOMER);
        match bounded(&*self.clock, workload.ask(&format!("fresh {key}"))).await {
            Outcome::Failed(_) => (),
            other => return Err(format!("after the end a new SDK client still got: {other:?}")),
        }
        let session = self.world.cloud.minted().into_iter().find(|session| session.access_key_id == *key_id);
        let Some(session) = session else { return Err("the copied credentials are not the cloud's".into()) };
        let ending: Ending =
            serde_json::from_slice(&answer.body).map_err(|error| format!("end's answer cannot be read: {error}"))?;
        let until = ending.leases.iter().map(|lease| lease.usable_until).max();
        let Some(until) = until else { return Err("the end's answer does not say until when".into()) };
        if until > session.issued_at + Duration::from_secs(31) {
            return Err(format!("usable until {until}, but minted at {}: more than 30 s", session.issued_at));
        }
        let left = until.since(self.clock.now()).as_secs();
        Ok((format!("the endpoint: 401 at once; a stolen copy has {left} s left"), until))
    }

    async fn replays_until_the_cut(
        &self,
        workload: &mut Workload,
        usable_until: Timestamp,
        teller: &Teller,
    ) -> io::Result<Held> {
        let (key, _) = object_of(CUSTOMER);
        let mut worked = 0_u32;
        loop {
            let before = self.clock.now();
            match bounded(&*self.clock, workload.ask(&format!("replay {key}"))).await {
                Outcome::Done(_) if before < usable_until + TOLERANCE => worked += 1,
                Outcome::Done(_) => return Ok(Err(format!("the copy still works at {before}, after {usable_until}"))),
                Outcome::Refused(_) if before + TOLERANCE < usable_until => {
                    return Ok(Err(format!("the copy was refused at {before} already, not at {usable_until} as told")));
                }
                Outcome::Refused(code) if code == "AccessDenied" => {
                    let expiry = self.world.cloud.minted().iter().map(|session| session.expires_at).max();
                    let expiry = expiry.unwrap_or_default();
                    let left = expiry.since(before).as_secs() / 60;
                    return Ok(if expiry > self.clock.now() {
                        Ok(format!("{worked} replays worked, then AccessDenied, {left} min before expiry"))
                    } else {
                        Err("refused only because the session expired".into())
                    });
                }
                other => return Ok(Err(format!("the replay: {other:?}"))),
            }
            let left = usable_until.since(self.clock.now());
            teller.countdown(left.as_secs(), "until the cloud refuses the stolen copy")?;
            self.clock.sleep(Duration::from_secs(1).min(left.max(Duration::from_millis(100)))).await;
        }
    }

    async fn metrics(&self) -> (Bytes, Held) {
        let answer = match probe::get(&*self.clock, self.sidecar.admin, "/metrics", None).await {
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) => return (Bytes::new(), Err(format!("/metrics answered {}", answer.status))),
            Err(error) => return (Bytes::new(), Err(error.to_string())),
        };
        let text = answer.text();
        let minted = sum(&text, "sidemint_mints_total", "provider=\"aws\"");
        let denied = sum(&text, "sidemint_denials_total", "");
        let ended = sum(&text, "sidemint_tasks_ended_total", "");
        let active = sum(&text, "sidemint_tasks_active", "");
        let told = format!("{minted} mint, {denied} denials, {ended} task ended, {active} active");
        let real = self.world.cloud.minted().len();
        let held = minted == real as f64 && denied >= 2.0 && ended == 1.0 && active == 0.0;
        (answer.body, if held { Ok(told) } else { Err(format!("{told}; the cloud minted {real}")) })
    }

    fn audit(&self, task: &Task) -> Held {
        let text = std::fs::read_to_string(&self.sidecar.audit).map_err(|error| format!("the audit log: {error}"))?;
        let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<AuditLine>, _>>();
        let lines = lines.map_err(|error| format!("the audit log is not JSON lines: {error}"))?;
        let find = |event: &str, outcome: &str| {
            lines.iter().filter(move |line| line.event == event && line.outcome == outcome).collect::<Vec<_>>()
        };
        let permit = find("decision", "permit").into_iter().find(|line| line.spiffe_id == REPORT);
        let permit = permit.ok_or("no line says that the task was permitted")?;
        if !find("decision", "deny").iter().any(|line| line.spiffe_id == INTRUDER) {
            return Err("no line says that the intruder was denied".into());
        }
        let mints = find("mint", "minted");
        let session = &mints.first().ok_or("no line tells of the mint")?.session_name;
        if !self.world.cloud.minted().iter().any(|minted| minted.session_name == *session) {
            return Err(format!("the audit log names the session {session:?}, which the cloud does not know"));
        }
        if !lines.iter().any(|line| line.event == "end" && line.task == task.id) {
            return Err("no line tells of the task's end".into());
        }
        let rule = permit.rule_ids.first().map_or("no rule", String::as_str);
        Ok(format!("{} lines: permit by {rule}, denials, mint, end", lines.len()))
    }

    async fn stops(&mut self) -> Held {
        let began = self.clock.boot();
        let stopped = self.sidecar.stop(&*self.clock).await.map_err(|error| format!("SIGTERM: {error}"))?;
        let took = self.clock.boot().saturating_sub(began).as_millis();
        match stopped {
            Some(status) if status.success() => Ok(format!("exit 0 after {took} ms")),
            Some(status) => Err(format!("{status} after {took} ms")),
            None => Err(format!("still running after {} s; killed", STOP_LIMIT.as_secs())),
        }
    }

    fn leaked_nothing(&self, metrics: &Bytes) -> Held {
        let minted = self.world.cloud.minted();
        let cloud = minted
            .iter()
            .flat_map(|session| [&session.secret_access_key, &session.session_token, &session.web_identity_token]);
        let secrets: Vec<&Secret> = self.secrets.iter().chain(cloud).collect();
        let found = leaks::search(&secrets, self.world.folder(), &[("/metrics", metrics.as_ref())]);
        let found = found.map_err(|error| format!("the search: {error}"))?;
        if found.is_empty() {
            Ok(format!("none of {} secrets in log, audit log, journal, metrics", secrets.len()))
        } else {
            Err(format!("a secret is in {}", found.join(", ")))
        }
    }
}

/// An object of the customer's, from those that the world put into the store.
fn object_of(customer: &str) -> (&'static str, &'static str) {
    OBJECTS.into_iter().find(|(key, _)| key.split('/').next() == Some(customer)).unwrap_or_default()
}

/// The `code` of a problem document.
fn problem_code(answer: &Answer) -> String {
    let problem: Option<Problem> = serde_json::from_slice(&answer.body).ok();
    problem.map_or_else(|| "no code".to_owned(), |problem| problem.code)
}

async fn bounded(clock: &dyn Clock, work: impl Future<Output = Outcome>) -> Outcome {
    let late = || Outcome::Failed(format!("no answer within {} s", PATIENCE.as_secs()));
    within(clock, PATIENCE, work).await.unwrap_or_else(late)
}

/// The sum of a metric's samples whose labels hold `label`, in the Prometheus text format.
fn sum(text: &str, name: &str, label: &str) -> f64 {
    let samples = text.lines().filter_map(|line| line.strip_prefix(name));
    let samples = samples.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label));
    samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_samples_of_exactly_one_metric() {
        let text = "# HELP a x\n# TYPE a counter\na{provider=\"aws\",t=\"1\"} 2\na{provider=\"gcp\"} 4\na_b 8\na 16\n";
        assert_eq!(sum(text, "a", "provider=\"aws\""), 2.0);
        assert_eq!(sum(text, "a", ""), 22.0);
        assert_eq!(sum(text, "c", ""), 0.0);
    }

    #[test]
    fn every_customer_of_the_story_has_an_object() {
        for customer in [CUSTOMER, OTHER_CUSTOMER, FORBIDDEN_CUSTOMER] {
            assert!(object_of(customer).0.starts_with(customer));
        }
    }
}
