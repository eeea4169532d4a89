//! How soon access ends: ten thousand tasks with a live credential each, in a real broker with its reaper, its journal on disk
//! and its audit log; only Workload API and cloud are fakes in this process.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sidemint::audit::{Audit, Output, Settings as AuditSettings};
use sidemint::broker::{BeginRequest, Broker, Claimant, CredentialsError, Limits, Parts, reaper};
use sidemint::clock::{Clock as _, SharedClock, SystemClock, Timestamp};
use sidemint::exchange::{
    AwsCredential, Credential, Exchange, ExchangeError, Handle, MintOrder, Minted, Provider, Revocability, Revocable,
    Revocation, Revoke, RevokeOrder, RevokeOutcome,
};
use sidemint::identity::task_token::TokenHash;
use sidemint::identity::workload_api::WorkloadApi as _;
use sidemint::identity::workload_api::testing::FakeWorkloadApi;
use sidemint::identity::{Authenticator, Evidence};
use sidemint::journal::DiskJournal;
use sidemint::lease::LeaseState;
use sidemint::policy::cache::PolicyCache;
use sidemint::policy::repository::DirectorySource;
use sidemint::policy::{Ask, LoadOptions};
use sidemint::secret::Secret;
use sidemint::task::{EndReason, Task};
use tokio::task::{JoinHandle, JoinSet};

use crate::report::Outcome;
use crate::stage::{WORKLOAD, policy_files, scope_id};
use crate::{median, over_rounds};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

const TASKS: usize = 10_000;
const ROUNDS: usize = 5;
/// How many begin at the same time.
const AT_A_TIME: usize = 64;
/// Over how long the ends are spread.
const SPREAD: Duration = Duration::from_secs(3);

/// How many tasks end at once whose credentials are to be revoked, and how long their provider takes for each.
const TO_REVOKE: usize = 1_000;
const REVOKING: Duration = Duration::from_millis(5);

/// A cloud that is not in the way, whose credentials can be revoked by this class.
#[derive(Debug)]
struct AtOnce(Revocation);

#[async_trait]
impl Exchange for AtOnce {
    fn provider(&self) -> Provider {
        Provider::Aws
    }

    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        let part = |name: &str| Secret::new(format!("{name}-{}", order.session_name));
        let arn = format!("arn:aws:sts::111122223333:assumed-role/ledger/{}", order.session_name);
        let handle = Handle::read(Provider::Aws, &arn);
        Ok(Minted {
            credential: Credential::Aws(AwsCredential {
                access_key_id: part("id"),
                secret_access_key: part("key"),
                session_token: part("token"),
                account_id: None,
            }),
            usable_until: order.dead_by,
            revocability: match self.0 {
                Revocation::Exact => Revocability::Revocable(Revocable::by(self, handle)),
                Revocation::Expire => Revocability::ExpiresOnly(handle),
            },
        })
    }

    fn revoker(&self) -> Option<&dyn Revoke> {
        Some(self)
    }
}

#[async_trait]
impl Revoke for AtOnce {
    async fn revoke(&self, _: &RevokeOrder) -> Result<RevokeOutcome, ExchangeError> {
        SystemClock.sleep(REVOKING).await;
        Ok(RevokeOutcome::Revoked)
    }
}

/// A broker at work.
struct House {
    broker: Arc<Broker>,
    api: Arc<FakeWorkloadApi>,
    reaper: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Drop for House {
    fn drop(&mut self) {
        self.reaper.abort();
    }
}

/// A task and what proves it.
struct Held {
    task: Arc<Task>,
    token: TokenHash,
}

impl House {
    async fn open(class: Revocation) -> Fallible<Self> {
        // On the same file system as the sidecar's own, and not on one in memory.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target")?;
        for (path, text) in policy_files(1) {
            let path = folder.path().join("policy").join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            std::fs::write(path, text)?;
        }
        let clock: SharedClock = Arc::new(SystemClock);
        let api = FakeWorkloadApi::new(Arc::clone(&clock), &[WORKLOAD]);
        let source = Arc::new(DirectorySource::new(folder.path().join("policy")));
        let policy = Arc::new(PolicyCache::new(source, LoadOptions::default()));
        policy.reload_now(clock.now()).await;
        let state = folder.path().join("state");
        let (journal, recovered) = DiskJournal::open(&state)?;
        let audit = AuditSettings::new(Output::File(folder.path().join("audit.jsonl")));
        let parts = Parts {
            workload_api: Arc::clone(&api) as _,
            authenticator: Authenticator::new(Arc::clone(&api) as _, "sidemint".into()),
            policy: Arc::clone(&policy),
            exchanges: BTreeMap::from([(Provider::Aws, Arc::new(AtOnce(class)) as Arc<dyn Exchange>)]),
            journal: Arc::new(journal),
            audit: Arc::new(Audit::start(&audit, &state, clock.now())?),
            metrics: Arc::new(sidemint::app::metrics()?),
            limits: Limits {
                tasks: 2 * TASKS,
                tasks_per_caller: 2 * TASKS,
                mints_per_caller: 10_000_000,
                mint: Duration::from_secs(60),
                wait: Duration::from_secs(60),
                ..Limits::default()
            },
            clock,
            jitter: Arc::new(sidemint::retry::SystemJitter),
        };
        let broker = Broker::new(parts, recovered);
        let reaper = tokio::spawn(reaper::run(Arc::clone(&broker), api.watch(), policy.subscribe()));
        Ok(Self { broker, api, reaper, _folder: folder })
    }

    /// Begins `count` tasks and mints for each; `ttl` says how long the one of this number may last.
    async fn fill(&self, count: usize, ttl: impl Fn(usize) -> Option<Duration>) -> Fallible<Vec<Held>> {
        let (mut held, mut work) = (Vec::with_capacity(count), JoinSet::new());
        for number in 0..count {
            if work.len() >= AT_A_TIME {
                held.push(work.join_next().await.ok_or("nothing is under way")???);
            }
            let (broker, ttl) = (Arc::clone(&self.broker), ttl(number));
            work.spawn(async move { begin(&broker, ttl).await });
        }
        while let Some(done) = work.join_next().await {
            held.push(done??);
        }
        Ok(held)
    }

    /// Waits until none of them runs any more.
    async fn until_over(&self, held: &[Held]) -> Fallible<()> {
        until_all(held, |task| task.ended().is_some()).await
    }

    /// Whether a request is refused because its task has ended.
    async fn is_refused(&self, held: &Held) -> bool {
        let served = self.broker.credentials(&held.token, Provider::Aws, "bench").await;
        matches!(served, Err(CredentialsError::TaskEnded(_)))
    }
}

async fn begin(broker: &Arc<Broker>, ttl: Option<Duration>) -> Fallible<Held> {
    let request = BeginRequest {
        claimant: Claimant::Workload(Evidence::Pod(WORKLOAD.parse()?)),
        ask: Ask {
            scope: scope_id(0).parse()?,
            params: [("customer".parse()?, "c-42".to_owned())].into(),
            reason: None,
            approval: None,
            ttl,
        },
        label: None,
        hold: false,
        parent: None,
        idempotency: None,
        request_id: "bench".into(),
    };
    let begun = broker.begin(request).await?;
    // exposed: to find the task by it, as a request does
    let token = TokenHash::of(begun.token.expose()).ok_or("no token")?;
    broker.credentials(&token, Provider::Aws, "bench").await?;
    Ok(Held { task: begun.task, token })
}

async fn until_all(held: &[Held], so: impl Fn(&Task) -> bool) -> Fallible<()> {
    for _ in 0..6000 {
        if held.iter().all(|held| so(&held.task)) {
            return Ok(());
        }
        SystemClock.sleep(Duration::from_millis(20)).await;
    }
    Err("some never ended".into())
}

/// When a task stopped being served; `None` while it is.
fn ended_at(held: &Held, reason: EndReason) -> Fallible<Timestamp> {
    let state = held.task.state();
    let ending = state.ending.as_ref().ok_or("a task still runs")?;
    if ending.reason != reason || state.slots.iter().next().is_some() {
        return Err(format!("a task ended for {} or kept its credential", ending.reason).into());
    }
    Ok(ending.ended_at)
}

/// As in `sidemint serve`.
fn run<T>(work: impl Future<Output = Fallible<T>>) -> Result<T, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(work).map_err(|error| -> Box<dyn Error> { error })
}

/// How long it takes until all tasks have begun.
async fn filling() -> Fallible<Duration> {
    let (house, began) = (House::open(Revocation::Expire).await?, Instant::now());
    house.fill(TASKS, |_| None).await?;
    Ok(began.elapsed())
}

/// The lateness of each end beside its due time, in milliseconds, when all are due within [`SPREAD`] after `lead`.
async fn spread(lead: Duration) -> Fallible<Vec<f64>> {
    let house = House::open(Revocation::Expire).await?;
    let began = Instant::now();
    let due = |number: usize| lead + SPREAD.mul_f64(number as f64 / TASKS as f64);
    let held = house.fill(TASKS, |number| Some(due(number).saturating_sub(began.elapsed()))).await?;
    if began.elapsed() > lead {
        return Err(format!("the tasks took longer than {lead:?} to begin").into());
    }
    house.until_over(&held).await?;
    if !house.is_refused(held.first().ok_or("no task")?).await {
        return Err("an ended task is served".into());
    }
    let late = |held: &Held| {
        let late = ended_at(held, EndReason::Deadline)?.since(held.task.deadline());
        Ok(late.as_secs_f64() * 1000.0)
    };
    held.iter().map(late).collect()
}

pub(crate) fn expiry_lateness() -> Outcome {
    // It also warms up. What is begun with less than five seconds to live gets no credential.
    let lead = run(filling())?.mul_f64(1.5) + Duration::from_secs(6);
    let (mut p99, mut most) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut late = run(spread(lead))?;
        late.sort_by(f64::total_cmp);
        p99.push(late.get(late.len() * 99 / 100).copied().ok_or("nothing ended")?);
        most.push(late.last().copied().unwrap_or_default());
    }
    over_rounds(p99, format!("{TASKS} ends within {} s; the latest {:.0} ms", SPREAD.as_secs(), median(most)))
}

/// Seconds from the withdrawal of the identity until no task of it holds a credential, and until the first request after it
/// was refused.
async fn withdrawn() -> Fallible<(f64, f64)> {
    let house = House::open(Revocation::Expire).await?;
    let held = house.fill(TASKS, |_| None).await?;
    let (first, last) = (held.first().ok_or("no task")?, held.last().ok_or("no task")?);
    let (clock, began) = (SystemClock, Instant::now());
    let seen = clock.now();
    house.api.withdraw(WORKLOAD);
    if !house.is_refused(last).await || !house.is_refused(first).await {
        return Err("served after the trigger".into());
    }
    let refused = began.elapsed().as_secs_f64();
    house.until_over(&held).await?;
    let ends = held.iter().map(|held| ended_at(held, EndReason::IdentityWithdrawn)).collect::<Fallible<Vec<_>>>()?;
    for held in &held {
        if !house.is_refused(held).await {
            return Err("an ended task is served".into());
        }
    }
    Ok((ends.iter().max().ok_or("no task")?.since(seen).as_secs_f64(), refused))
}

pub(crate) fn end_all() -> Outcome {
    let (mut rounds, mut first) = (Vec::new(), Vec::new());
    for _ in 0..=ROUNDS {
        let (all, refused) = run(withdrawn())?;
        rounds.push(all);
        first.push(refused * 1e6);
    }
    // The first warms up.
    over_rounds(
        rounds.split_off(1),
        format!("two requests at once after the trigger were refused within {:.0} µs", median(first)),
    )
}

/// Seconds from each task's end until its provider said that the credential is dead, when all end at once.
async fn revoked() -> Fallible<Vec<f64>> {
    let house = House::open(Revocation::Exact).await?;
    let held = house.fill(TO_REVOKE, |_| None).await?;
    let mut ends = JoinSet::new();
    for held in &held {
        let (broker, task) = (Arc::clone(&house.broker), Arc::clone(&held.task));
        ends.spawn(async move { broker.end(&task, EndReason::Operator, None).await });
    }
    while ends.join_next().await.is_some() {}
    until_all(&held, |task| task.state().leases.iter().all(|lease| lease.state.is_over())).await?;
    let lag = |held: &Held| {
        let state = held.task.state();
        let (ending, lease) = (state.ending.as_ref().ok_or("a task still runs")?, state.leases.first());
        let lease = lease.filter(|lease| lease.state == LeaseState::Revoked).ok_or("a lease is not revoked")?;
        Ok(lease.usable_until.since(ending.ended_at).as_secs_f64())
    };
    held.iter().map(lag).collect()
}

pub(crate) fn revocation_lag() -> Outcome {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut lags = run(revoked())?;
        lags.sort_by(f64::total_cmp);
        rounds.push(lags.get(lags.len() * 99 / 100).copied().ok_or("nothing was revoked")?);
    }
    let note = format!(
        "{TO_REVOKE} credentials of tasks that end at once, {} ms each at their provider",
        REVOKING.as_millis()
    );
    over_rounds(rounds, note)
}
