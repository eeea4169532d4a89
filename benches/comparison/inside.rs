//! Measured in this process: verification, decisions, the journal.

use std::collections::HashSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityUid, PolicySet, Request, RestrictedExpression,
};
use redb::{Database, TableDefinition};
use sidemint::clock::{Clock as _, SharedClock, SystemClock, Timestamp};
use sidemint::exchange::{Handle, Provider, Revocation};
use sidemint::id::{LeaseId, TaskId};
use sidemint::identity::workload_api::testing::{FakeWorkloadApi, SigningKey, claims, jwks};
use sidemint::identity::{Authenticator, Caller, Evidence, jwt_svid::JwtBundle};
use sidemint::journal::{Change, DiskJournal, record};
use sidemint::lease::{LeaseFacts, LeaseRecord, LeaseState};
use sidemint::policy::repository::PolicyFiles;
use sidemint::policy::{Ask, Policy};
use sidemint::secret::Secret;

use crate::report::Outcome;
use crate::stage::{WORKLOAD, policy_files, scope_id};
use crate::{both, median, over_rounds};

const ROUNDS: usize = 9;
const AUDIENCE: &str = "sidemint";

type Fallible<T> = Result<T, Box<dyn Error>>;

/// A verifier, and tokens for it that differ.
struct Tokens {
    authenticator: Authenticator,
    key: ParsedPublicKey,
    tokens: Vec<Token>,
    now: Timestamp,
}

struct Token {
    evidence: Evidence,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Tokens {
    fn new(count: usize) -> Fallible<Self> {
        let clock: SharedClock = Arc::new(SystemClock);
        let now = clock.now();
        let signer = SigningKey::generate("P-256", "bench-key");
        let workload_api = FakeWorkloadApi::new(clock, &[WORKLOAD]);
        let bundle = Arc::new(JwtBundle::parse(&jwks([&signer]))?);
        let trust_domain = "dev.test".parse()?;
        workload_api.update(|identities| drop(identities.jwt_bundles.insert(trust_domain, bundle)));
        let coordinate = |name: &str| {
            let jwk = signer.jwk();
            URL_SAFE_NO_PAD.decode(jwk.get(name).and_then(|value| value.as_str()).unwrap_or_default())
        };
        let point = [&[4][..], &coordinate("x")?, &coordinate("y")?].concat();
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)?;
        let token = |serial: usize| -> Fallible<Token> {
            let mut claims = claims(WORKLOAD, AUDIENCE, now, Duration::from_secs(300));
            claims.as_object_mut().ok_or("claims are an object")?.insert("jti".into(), serial.into());
            let text = signer.sign(&claims);
            let (signed, signature) = text.rsplit_once('.').ok_or("no signature")?;
            let (signed, signature) = (signed.as_bytes().to_vec(), URL_SAFE_NO_PAD.decode(signature)?);
            Ok(Token { evidence: Evidence::JwtSvid(Secret::new(text)), signed, signature })
        };
        let tokens = (0..count).map(token).collect::<Fallible<_>>()?;
        Ok(Self { authenticator: Authenticator::new(workload_api, AUDIENCE.into()), key, tokens, now })
    }

    /// Microseconds for a bare check of one token's signature.
    fn raw(&self, tokens: &[Token]) -> Fallible<f64> {
        let began = Instant::now();
        for token in tokens {
            self.key.verify_sig(&token.signed, &token.signature).map_err(|_| "a signature does not verify")?;
        }
        Ok(micros_each(began, tokens.len()))
    }

    /// Microseconds for the whole verification of one token, from its text to the caller.
    fn whole(&self, tokens: &[Token]) -> Fallible<f64> {
        let began = Instant::now();
        for token in tokens {
            self.authenticator.authenticate(&token.evidence, self.now)?;
        }
        Ok(micros_each(began, tokens.len()))
    }
}

fn micros_each(began: Instant, count: usize) -> f64 {
    began.elapsed().as_secs_f64() * 1e6 / count as f64
}

pub(crate) fn jwt_first_seen() -> Outcome {
    const EACH: usize = 400;
    let tokens = Tokens::new(EACH * (ROUNDS + 1))?;
    let mut rounds = Vec::new();
    for (turn, fresh) in tokens.tokens.chunks(EACH).enumerate() {
        rounds.push(both(turn, || tokens.whole(fresh), || tokens.raw(fresh))?);
    }
    // The first warms up.
    ratios(rounds.split_off(1))
}

pub(crate) fn jwt_seen_again() -> Outcome {
    const EACH: usize = 400;
    let tokens = Tokens::new(1)?;
    tokens.whole(&tokens.tokens)?;
    let mut rounds = Vec::new();
    let repeated = |measure: &dyn Fn() -> Fallible<f64>| -> Fallible<f64> {
        Ok((0..EACH).map(|_| measure()).collect::<Fallible<Vec<_>>>()?.iter().sum::<f64>() / EACH as f64)
    };
    let (again, raw) = (|| tokens.whole(&tokens.tokens), || tokens.raw(&tokens.tokens));
    for turn in 0..=ROUNDS {
        rounds.push(both(turn, || repeated(&again), || repeated(&raw))?);
    }
    ratios(rounds.split_off(1))
}

fn ratios(rounds: Vec<(f64, f64)>) -> Outcome {
    let (ours, raw) = rounds.iter().copied().unzip();
    let note = format!("{:.2} µs beside {:.2} µs", median(ours), median(raw));
    over_rounds(rounds.iter().map(|(ours, raw)| ours / raw).collect(), note)
}

/// A policy and who asks it.
struct Decider {
    policy: Policy,
    caller: Caller,
    asks: Vec<Ask>,
    now: Timestamp,
}

impl Decider {
    fn new(scopes: usize) -> Fallible<Self> {
        let files = policy_files(scopes).into_iter().map(|(path, text)| (path, text.into())).collect();
        let policy = Policy::load(&PolicyFiles::unsigned(files))?;
        if policy.active() != scopes {
            return Err(format!("{} of {scopes} scopes are active", policy.active()).into());
        }
        let clock: SharedClock = Arc::new(SystemClock);
        let now = clock.now();
        let workload_api = FakeWorkloadApi::new(clock, &[WORKLOAD]);
        let caller =
            Authenticator::new(workload_api, AUDIENCE.into()).authenticate(&Evidence::Pod(WORKLOAD.parse()?), now)?;
        let ask = |n: usize| -> Fallible<Ask> {
            Ok(Ask {
                scope: scope_id(n).parse()?,
                params: [("customer".parse()?, "c-42".to_owned())].into(),
                reason: None,
                approval: None,
                ttl: None,
            })
        };
        // In an order that no prefetching follows: 7919 is prime and no divisor of a power of ten.
        let asks = (0..scopes).map(|n| ask(n * 7919 % scopes)).collect::<Fallible<_>>()?;
        Ok(Self { policy, caller, asks, now })
    }

    /// The median of many decisions over `scopes` of the policy's scopes in turn, in microseconds.
    fn p50(&self, scopes: usize) -> Fallible<f64> {
        let mut times = Vec::with_capacity(DECISIONS);
        for ask in self.asks.iter().take(scopes).cycle().take(DECISIONS) {
            let began = Instant::now();
            let permit = self.policy.decide(&self.caller, ask, self.now);
            times.push(began.elapsed().as_secs_f64() * 1e6);
            std::hint::black_box(permit.map_err(|denial| denial.detail)?);
        }
        Ok(median(times))
    }
}

const DECISIONS: usize = 4_000;
/// The scopes that a pod's tasks are in, out of however many the policy has. With all 10,000 in turn nothing of a scope is
/// in the processor's caches any more.
const IN_USE: usize = 10;

/// Cedar itself over the same slices: of each scope its rules, the boundary and the guardrails, all of them kept ready.
struct Bare {
    authorizer: Authorizer,
    principal: EntityUid,
    action: EntityUid,
    slices: Vec<(PolicySet, Entities, EntityUid)>,
    now: String,
}

impl Bare {
    fn new(scopes: usize) -> Fallible<Self> {
        const GUARDRAILS: &str = include_str!("../../src/policy/guardrails.cedar");
        // All of them as one rule, as each slice has them.
        let guardrails = GUARDRAILS.find("@id(\"guardrail-any\")").and_then(|at| GUARDRAILS.get(at..));
        let guardrails = guardrails.ok_or("no guardrail-any")?;
        let now = SystemClock.now().floor_to_second();
        let later = (now + Duration::from_secs(180 * 24 * 3600)).to_string();
        let files = policy_files(scopes);
        let boundary = files.get("boundaries/security.cedar").ok_or("no boundary")?;
        let slice = |n: usize| -> Fallible<_> {
            let id = scope_id(n * 7919 % scopes);
            let rules = files.get(&format!("decisions/{id}.cedar")).ok_or("no rules")?;
            let resource: EntityUid = format!("Scope::\"{id}\"").parse()?;
            let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
            let attributes = [
                ("tier", text("baseline")),
                ("kind", text("machine")),
                ("review_until", RestrictedExpression::new_datetime(&later)),
                ("ends_at", RestrictedExpression::new_datetime(&later)),
            ];
            let attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let entity = Entity::new(resource.clone(), attributes, HashSet::new())?;
            Ok((format!("{rules}{boundary}{guardrails}").parse()?, Entities::from_entities([entity], None)?, resource))
        };
        Ok(Self {
            authorizer: Authorizer::new(),
            principal: format!("Workload::\"{WORKLOAD}\"").parse()?,
            action: "Action::\"begin\"".parse()?,
            slices: (0..scopes).map(slice).collect::<Fallible<_>>()?,
            now: now.to_string(),
        })
    }

    /// As [`Decider::p50`]: the question is put into Cedar's terms, and answered.
    fn p50(&self, scopes: usize) -> Fallible<f64> {
        let mut times = Vec::with_capacity(DECISIONS);
        for (rules, entities, resource) in self.slices.iter().take(scopes).cycle().take(DECISIONS) {
            let began = Instant::now();
            let request = Request::new(
                self.principal.clone(),
                self.action.clone(),
                resource.clone(),
                self.context("c-42", 28_800)?,
                None,
            )?;
            let response = self.authorizer.is_authorized(&request, rules, entities);
            times.push(began.elapsed().as_secs_f64() * 1e6);
            if response.decision() != Decision::Allow {
                return Err("Cedar itself denies".into());
            }
        }
        Ok(median(times))
    }

    fn context(&self, customer: &str, ttl: i64) -> Fallible<Context> {
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let record = |members: Vec<(&str, RestrictedExpression)>| {
            RestrictedExpression::new_record(members.into_iter().map(|(name, value)| (name.to_owned(), value)))
        };
        let verified = record(vec![
            ("spiffe_id", text(WORKLOAD)),
            ("trust_domain", text("dev.test")),
            ("path", text("/report")),
            ("proof", text("pod")),
            ("now", RestrictedExpression::new_datetime(&self.now)),
        ])?;
        let params = record(vec![("customer", text(customer))])?;
        let asserted = record(vec![("params", params), ("ttl", RestrictedExpression::new_long(ttl))])?;
        Ok(Context::from_pairs([("verified".to_owned(), verified), ("asserted".to_owned(), asserted)])?)
    }
}

/// One decision over Cedar's own authorization of the same slice: of few scopes and of many, of those that a pod uses and of
/// all in turn. The worst counts.
pub(crate) fn decision_vs_cedar() -> Outcome {
    let (mut worst, mut notes) = (Vec::new(), Vec::new());
    for scopes in [IN_USE, 10_000] {
        let (ours, bare) = (Decider::new(scopes)?, Bare::new(scopes)?);
        let turns = if scopes == IN_USE { vec![IN_USE] } else { vec![IN_USE, scopes] };
        for used in turns {
            let mut rounds = Vec::new();
            for turn in 0..=ROUNDS {
                rounds.push(both(turn, || ours.p50(used), || bare.p50(used))?);
            }
            // The first warms up.
            let rounds = rounds.split_off(1);
            let ratios: Vec<f64> = rounds.iter().map(|(ours, bare)| ours / bare).collect();
            let (ours, bare) = rounds.iter().copied().unzip();
            notes.push(format!("{used} of {scopes}: {:.1} µs beside {:.1} µs", median(ours), median(bare)));
            if worst.is_empty() || median(ratios.clone()) > median(worst.clone()) {
                worst = ratios;
            }
        }
    }
    over_rounds(worst, notes.join("; "))
}

pub(crate) fn decision_flatness() -> Outcome {
    let (many, few) = (Decider::new(10_000)?, Decider::new(IN_USE)?);
    let mut rounds = Vec::new();
    for turn in 0..=ROUNDS {
        rounds.push(both(turn, || many.p50(IN_USE), || few.p50(IN_USE))?);
    }
    ratios(rounds.split_off(1))
}

/// How many write at the same time: what group commit is for.
const WRITERS: usize = 256;
const WRITING: Duration = Duration::from_millis(1500);

pub(crate) fn journal() -> Outcome {
    // On the same file system as the sidecar's own, and not on one in memory.
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target")?;
    let lease = a_lease()?;
    let record = serde_json::to_vec(&lease)?;
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let at = |name: &str| folder.path().join(format!("{name}-{round}"));
        let (ours, bare) = (|| journal_rate(&at("journal"), &lease), || store_rate(&at("store.redb"), &record));
        rounds.push(both(round, ours, bare)?);
    }
    let rounds = rounds.split_off(1);
    let (ours, bare) = rounds.iter().copied().unzip();
    let note = format!("{:.0}/s beside {:.0}/s, {WRITERS} writers, {} bytes", median(ours), median(bare), record.len());
    over_rounds(rounds.iter().map(|(ours, bare)| ours / bare).collect(), note)
}

fn a_lease() -> Fallible<LeaseFacts> {
    let now = SystemClock.now();
    Ok(LeaseFacts {
        id: LeaseId::generate()?,
        task: TaskId::generate()?,
        provider: Provider::Aws,
        grant: "ledger-read-aws".parse()?,
        session_name: "report.ledger-read.t-0123456789abcdefghjkmnpqrs".into(),
        state: LeaseState::Issued,
        revocation: Revocation::Expire,
        opened_at: now,
        usable_until: now + Duration::from_secs(900),
        open_ended: false,
        place: None,
        upstream: Some(Handle::read(Provider::Aws, "ASIAQWERTYUIOPASDFGH")),
        requested: false,
    })
}

/// Records per second through the journal, each from a task of its own that waits until it is durable.
fn journal_rate(directory: &Path, lease: &LeaseFacts) -> Fallible<f64> {
    let (journal, _) = DiskJournal::open(directory)?;
    let journal = Arc::new(journal);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    runtime.block_on(async {
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..WRITERS {
            let (journal, done, lease) = (Arc::clone(&journal), Arc::clone(&done), lease.clone());
            writers.spawn(async move {
                while began.elapsed() < WRITING {
                    let id = LeaseId::generate().map_err(|error| error.to_string())?;
                    let change = Change::Lease(Box::new(LeaseRecord::of(LeaseFacts { id, ..lease.clone() })));
                    record(&*journal, vec![change]).await.map_err(|error| error.to_string())?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(())
            });
        }
        while let Some(ended) = writers.join_next().await {
            ended??;
        }
        Ok::<_, Box<dyn Error>>(())
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// Records per second into the bare store, as many per commit as the journal has writers.
fn store_rate(path: &PathBuf, record: &[u8]) -> Fallible<f64> {
    const TABLE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("leases");
    let mut builder = Database::builder();
    let database = builder.set_cache_size(2 * 1024 * 1024).create(path)?;
    let (began, mut done) = (Instant::now(), 0_usize);
    while began.elapsed() < WRITING {
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for _ in 0..WRITERS {
                table.insert(LeaseId::generate()?.as_str(), record)?;
            }
        }
        transaction.commit()?;
        done += WRITERS;
    }
    Ok(done as f64 / began.elapsed().as_secs_f64())
}
