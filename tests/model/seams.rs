//! What the broker stands on: seams in memory, each of which can hold whoever comes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sidemint::audit::Audit;
use sidemint::broker::{BeginRequest, Broker, Claimant, Limits, Metrics, Parts};
use sidemint::clock::{Clock as _, ManualClock, Timestamp};
use sidemint::exchange::{
    AwsCredential, Credential, Exchange, ExchangeError, Handle, MintOrder, Minted, Provider, Revocability, Revocable,
    Revoke, RevokeOrder, RevokeOutcome, VaultSecret,
};
use sidemint::identity::task_token::TokenHash;
use sidemint::identity::workload_api::testing::FakeWorkloadApi;
use sidemint::identity::{Authenticator, Evidence};
use sidemint::journal::{Change, Journal, JournalError, Recovered};
use sidemint::lease::{LeaseId, LeaseRecord, LeaseState};
use sidemint::policy::cache::PolicyCache;
use sidemint::policy::document::Digest;
use sidemint::policy::repository::{Fetched, PolicyFiles, PolicySource, PolicySourceError};
use sidemint::policy::{Ask, LoadOptions, PolicyVersion};
use sidemint::retry::SystemJitter;
use sidemint::secret::Secret;
use sidemint::task::{Task, TaskId, TaskRecord};
use tokio::sync::oneshot;

const SCOPES: [&str; 2] = ["one", "other"];
pub(crate) const WHO: &str = "spiffe://example.org/sa/report";
const START: Timestamp = Timestamp::from_millis(1_795_435_200_250);
/// The longest life of a credential.
pub(crate) const LIFE: Duration = Duration::from_secs(60);

/// A bug that is put in at a seam, to see that it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    No,
    /// Intents are said to be durable and are not written.
    SkipIntent,
    /// Whoever ends a task is told so, and nothing has ended.
    ServeAfterEnd,
    /// That a credential was issued is said to be durable and is not written.
    ForgetLease,
    /// A reload leaves the policy as it was.
    BlindReload,
    /// What is said to be revoked works on.
    LieAboutRevoking,
}

/// Holds whoever comes until they are let go, one by one.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
    open: std::sync::atomic::AtomicBool,
}

impl Gate {
    fn waiting(&self) -> MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        self.waiting.lock().unwrap()
    }

    async fn pass(&self) {
        if self.is_open() {
            return tokio::task::yield_now().await;
        }
        let (go, gone) = oneshot::channel();
        self.waiting().push(go);
        let _ = gone.await;
    }

    fn is_open(&self) -> bool {
        self.open.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// From now on nobody is held.
    pub(crate) fn open(&self) {
        self.open.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// How many are held.
    pub(crate) fn held(&self) -> usize {
        self.waiting().len()
    }

    /// Lets the `at`th of them go.
    pub(crate) fn release(&self, at: usize) {
        let _ = self.waiting().remove(at).send(());
    }
}

/// What is durable.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) tasks: BTreeMap<TaskId, TaskRecord>,
    pub(crate) leases: BTreeMap<LeaseId, LeaseRecord>,
}

/// A credential as its provider knows it.
#[derive(Debug)]
pub(crate) struct Mint {
    session: String,
    /// Its key or, of a dynamic secret, its lease.
    pub(crate) key: String,
    pub(crate) dead_by: Timestamp,
    /// The intent that was durable before it was asked for.
    pub(crate) intent: Option<LeaseId>,
    pub(crate) revoked: bool,
}

/// What the clouds did.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// How many exchanges ever began.
    pub(crate) begun: usize,
    /// Exchanges under way, by session.
    pub(crate) in_flight: BTreeMap<String, usize>,
    pub(crate) mints: Vec<Mint>,
    used: Vec<LeaseId>,
    /// What went wrong at the seam itself.
    pub(crate) wrong: Vec<&'static str>,
}

/// The seams together.
pub(crate) struct Seams {
    pub(crate) clock: ManualClock,
    pub(crate) planted: Planted,
    /// Which scope the policy permits at the start; a reload permits the other one instead.
    pub(crate) scope: usize,
    pub(crate) writes: Gate,
    pub(crate) exchanges: Gate,
    pub(crate) refreshes: Gate,
    /// Calls to take a credential back; let go, they have their effect.
    pub(crate) revocations: Gate,
    /// Whether whoever made the call that is let go next hears that it did.
    pub(crate) hears: std::sync::atomic::AtomicBool,
    pub(crate) books: Mutex<Books>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) narrow: std::sync::atomic::AtomicBool,
}

impl fmt::Debug for Seams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seams")
    }
}

impl Seams {
    pub(crate) fn new(planted: Planted, scope: usize) -> Arc<Self> {
        Arc::new(Self {
            clock: ManualClock::at(START),
            planted,
            scope,
            writes: Gate::default(),
            exchanges: Gate::default(),
            refreshes: Gate::default(),
            revocations: Gate::default(),
            hears: true.into(),
            books: Mutex::default(),
            ledger: Mutex::default(),
            narrow: false.into(),
        })
    }

    fn intent_of(&self, provider: Provider, order: &MintOrder) -> Option<LeaseId> {
        let books = self.books.lock().unwrap();
        let mut ledger = self.ledger.lock().unwrap();
        let open = |lease: &&LeaseRecord| {
            *lease.session_name == *order.session_name
                && lease.provider == provider
                // Its task, or its time, may have ended since.
                && lease.upstream.is_none()
                && !ledger.used.contains(&lease.id)
        };
        let id = books.leases.values().find(open).map(|lease| lease.id.clone());
        ledger.used.extend(id.clone());
        id
    }
}

#[async_trait]
impl Journal for Seams {
    async fn write(&self, changes: Vec<Change>) -> Result<(), JournalError> {
        // In the order in which they were asked, as the real one commits; told later.
        if self.writes.is_open() {
            self.keep(changes);
            self.writes.pass().await;
        } else {
            self.writes.pass().await;
            self.keep(changes);
        }
        Ok(())
    }

    fn pending(&self) -> usize {
        self.writes.held()
    }

    fn healthy(&self) -> bool {
        true
    }
}

impl Seams {
    fn keep(&self, changes: Vec<Change>) {
        let mut books = self.books.lock().unwrap();
        for change in changes {
            match change {
                Change::Task(task) => drop(books.tasks.insert(task.id.clone(), *task)),
                Change::Lease(lease) => {
                    let lost = match self.planted {
                        Planted::SkipIntent => lease.state == LeaseState::Intent,
                        Planted::ForgetLease => lease.state == LeaseState::Issued,
                        _ => false,
                    };
                    if self.planted == Planted::ForgetLease && lost {
                        books.leases.remove(&lease.id);
                    } else if !lost {
                        books.leases.insert(lease.id.clone(), *lease);
                    }
                }
                Change::ForgetTask(id) => drop(books.tasks.remove(&id)),
                Change::ForgetLease(id) => drop(books.leases.remove(&id)),
            }
        }
    }
}

/// One provider of the clouds: AWS, whose credentials die by themselves, or Vault, which takes each back.
#[derive(Debug)]
struct Face {
    seams: Arc<Seams>,
    provider: Provider,
}

#[async_trait]
impl Exchange for Face {
    fn provider(&self) -> Provider {
        self.provider
    }

    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        let seams = &*self.seams;
        let (intent, asked_at) = (seams.intent_of(self.provider, order), seams.clock.boot());
        {
            let mut ledger = seams.ledger.lock().unwrap();
            if intent.is_none() {
                ledger.wrong.push("an exchange without a durable intent of its own");
            }
            // Where nobody is held time may pass between the last refresh and the call.
            if order.dead_by <= seams.clock.now() && !seams.exchanges.is_open() {
                ledger.wrong.push("an exchange for what would be dead already");
            }
            ledger.begun += 1;
            let in_flight = ledger.in_flight.entry(order.session_name.clone()).or_default();
            *in_flight += 1;
            if *in_flight > 1 {
                ledger.wrong.push("two exchanges under way for one task and provider");
            }
        }
        seams.exchanges.pass().await;
        let mut ledger = seams.ledger.lock().unwrap();
        *ledger.in_flight.get_mut(&order.session_name).unwrap() -= 1;
        let key = format!("ASIAMODEL{:011}", ledger.mints.len());
        let (session, dead_by) = (order.session_name.clone(), order.dead_by);
        ledger.mints.push(Mint { session, key: key.clone(), dead_by, intent, revoked: false });
        if seams.clock.boot() - asked_at > order.limit {
            // As every provider keeps it: the answer is lost.
            return Err(ExchangeError::Unavailable { detail: "too late".into(), retry_after: None });
        }
        let handle = Handle::read(self.provider, &key);
        let (credential, revocability) = match self.provider {
            Provider::Aws => {
                let credential = AwsCredential {
                    access_key_id: Secret::new(key),
                    secret_access_key: Secret::new("secret".into()),
                    session_token: Secret::new("token".into()),
                    account_id: None,
                };
                (Credential::Aws(credential), Revocability::ExpiresOnly(handle))
            }
            Provider::Vault => {
                let secret = VaultSecret { lease_id: key, data: Secret::new("{}".into()) };
                (Credential::Vault(secret), Revocability::Revocable(Revocable::by(self, handle)))
            }
        };
        Ok(Minted { credential, usable_until: dead_by, revocability })
    }

    fn revoker(&self) -> Option<&dyn Revoke> {
        (self.provider == Provider::Vault).then_some(self)
    }
}

#[async_trait]
impl Revoke for Face {
    async fn revoke(&self, order: &RevokeOrder) -> Result<RevokeOutcome, ExchangeError> {
        self.seams.revocations.pass().await;
        let mut ledger = self.seams.ledger.lock().unwrap();
        let Some(mint) = ledger.mints.iter_mut().find(|mint| mint.key == order.handle.to_string()) else {
            ledger.wrong.push("to be revoked, and nobody's");
            return Err(ExchangeError::Refused { detail: "unknown".into() });
        };
        mint.revoked |= self.seams.planted != Planted::LieAboutRevoking;
        if self.seams.hears.load(std::sync::atomic::Ordering::Relaxed) {
            Ok(RevokeOutcome::Revoked)
        } else {
            Err(ExchangeError::Unavailable { detail: "lost".into(), retry_after: None })
        }
    }
}

/// The policy source, held at each refresh.
#[derive(Debug)]
pub(crate) struct Source(pub(crate) Mutex<Arc<Seams>>);

#[async_trait]
impl PolicySource for Source {
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        let seams = Arc::clone(&self.0.lock().unwrap());
        seams.refreshes.pass().await;
        let narrow = seams.narrow.load(std::sync::atomic::Ordering::Relaxed);
        let other = narrow && seams.planted != Planted::BlindReload;
        let files = files(if other { 1 - seams.scope } else { seams.scope });
        Ok(if seen == Some(&files.version) { Fetched::Unchanged } else { Fetched::New(files) })
    }
}

/// Two scopes, of which one is permitted. (A version takes longer to load than an order to be played through; so the next
/// order begins where this one has left the policy.)
fn files(permitted: usize) -> PolicyFiles {
    let scope = "schema = 1\npurpose = \"tests\"\nbusiness_owner = \"tests\"\njustification = \"tests\"\n[params]\n";
    let grant = "schema = 1\nprovider = \"aws\"\nrole_arn = \"arn:aws:iam::111122223333:role/tests\"\n\
         [[session_policy.Statement]]\nEffect = \"Allow\"\nAction = [\"s3:GetObject\"]\n\
         Resource = [\"arn:aws:s3:::bucket/*\"]\n";
    let exact = "schema = 1\nprovider = \"vault\"\nrole = \"tests\"\naudience = \"vault\"\nread = \"database/creds/tests\"\n\
         accept_role_scope = true\n";
    let decision = format!(
        "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"tests\"\nreview_by = 2029-02-01\n\
         max_task = \"1h\"\nmax_residual = \"{}s\"\nscope = \"{}\"\ngrants = {{ s-aws = \"{}\", s-vault = \"{}\" }}\n",
        LIFE.as_secs(),
        Digest::of(scope.as_bytes()),
        Digest::of(grant.as_bytes()),
        Digest::of(exact.as_bytes()),
    );
    let grants = [("grants/s-aws.toml", grant), ("grants/s-vault.toml", exact)];
    let mut files: BTreeMap<_, _> = grants.map(|(path, text)| (path.to_owned(), Bytes::from(text))).into();
    for (at, id) in SCOPES.iter().enumerate() {
        let rule = format!(
            "@id(\"r\")\npermit (principal == Workload::\"{WHO}\", action == Action::\"begin\", resource == Scope::\"{id}\");\n"
        );
        files.insert(format!("scopes/{id}.toml"), Bytes::from(scope));
        files.insert(format!("decisions/{id}.toml"), Bytes::from(decision.clone()));
        files.insert(format!("decisions/{id}.cedar"), if at == permitted { rule.into() } else { Bytes::new() });
    }
    PolicyFiles::unsigned(files)
}

fn cloud(seams: &Arc<Seams>, provider: Provider) -> Arc<dyn Exchange> {
    Arc::new(Face { seams: Arc::clone(seams), provider })
}

/// What is made once: it takes longer than a whole order.
pub(crate) struct Kit {
    pub(crate) policy: Arc<PolicyCache>,
    pub(crate) source: Arc<Source>,
    api: Arc<FakeWorkloadApi>,
    metrics: Arc<Metrics>,
}

impl Kit {
    pub(crate) fn new() -> Self {
        let source = Arc::new(Source(Mutex::new(Seams::new(Planted::No, 0))));
        let api = FakeWorkloadApi::new(Arc::new(ManualClock::at(START)), &[WHO]);
        api.set_life(Duration::from_secs(300));
        api.update(|identities| {
            identities.svids.iter_mut().for_each(|svid| svid.expires_at = START + Duration::from_secs(90 * 24 * 3600));
        });
        Self {
            policy: Arc::new(PolicyCache::new(Arc::clone(&source) as _, LoadOptions::default())),
            source,
            api,
            metrics: Arc::new(sidemint::app::metrics().unwrap()),
        }
    }

    /// Which scope the policy in force permits.
    pub(crate) fn permitted(&self) -> usize {
        self.policy.current().map_or(0, |policy| usize::from(*policy.version() != files(0).version))
    }

    /// A broker on `seams`.
    pub(crate) fn broker(&self, seams: &Arc<Seams>) -> Arc<Broker> {
        let parts = Parts {
            clock: Arc::new(seams.clock.clone()),
            workload_api: Arc::clone(&self.api) as _,
            authenticator: Authenticator::new(Arc::clone(&self.api) as _, "sidemint".into()),
            policy: Arc::clone(&self.policy),
            exchanges: Provider::ALL.map(|provider| (provider, cloud(seams, provider))).into(),
            journal: Arc::clone(seams) as _,
            audit: Arc::new(Audit::off()),
            metrics: Arc::clone(&self.metrics),
            jitter: Arc::new(SystemJitter),
            limits: Limits { mints_per_caller: 1_000_000, ..Limits::default() },
        };
        Broker::new(parts, Recovered::default())
    }

    /// Begins a task.
    pub(crate) async fn begin(&self, broker: &Arc<Broker>, scope: usize) -> (Arc<Task>, TokenHash) {
        let evidence = Evidence::JwtSvid(Secret::new(self.api.issue(WHO, "sidemint")));
        let ask = Ask {
            scope: SCOPES[scope].parse().unwrap(),
            params: Default::default(),
            reason: None,
            approval: None,
            ttl: None,
        };
        let begun = broker
            .begin(BeginRequest {
                claimant: Claimant::Workload(evidence),
                ask,
                label: None,
                hold: false,
                parent: None,
                idempotency: None,
                request_id: "begin".into(),
            })
            .await
            .unwrap();
        let token = TokenHash::of(begun.token.expose()).unwrap();
        (begun.task, token)
    }
}

/// Every credential of the cloud that can still be used is an open lease, durable and in memory.
pub(crate) fn every_lease_is_accounted_for(seams: &Seams, task: &Task) -> Result<(), String> {
    let now = seams.clock.now();
    let (books, ledger) = (seams.books.lock().unwrap(), seams.ledger.lock().unwrap());
    let state = task.state();
    for mint in ledger.mints.iter().filter(|mint| *mint.session == **task.session_name()) {
        let (Some(id), key) = (&mint.intent, &mint.key) else { continue };
        let (written, held) = (books.leases.get(id), state.leases.iter().find(|lease| lease.id == *id));
        if mint.revoked || mint.dead_by <= now {
            let lie = |lease: &LeaseRecord| lease.state == LeaseState::Revoked && !mint.revoked;
            if written.is_some_and(lie) || held.is_some_and(lie) {
                return Err(format!("{key} is called revoked, and nobody did"));
            }
            continue;
        }
        let open = |lease: &LeaseRecord| !lease.state.is_over() && lease.usable_until >= mint.dead_by;
        if written.into_iter().chain(held).any(|lease| lease.state == LeaseState::Revoked) {
            return Err(format!("{key} is called revoked, and works"));
        }
        if !written.is_some_and(open) {
            return Err(format!("the journal has lost the lease of {key}"));
        }
        if !held.is_some_and(open) {
            return Err(format!("the memory has lost the lease of {key}"));
        }
    }
    Ok(())
}
