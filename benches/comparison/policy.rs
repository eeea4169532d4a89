//! The signed policy: how soon ten thousand scopes are there from the local cache, what they weigh, and whether anybody
//! notices a new version.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sidemint::clock::SystemClock;
use sidemint::policy::repository::fetch::{Answer, Fetch, FetchError, Tag};
use sidemint::policy::repository::sample::MemoryFetch;
use sidemint::policy::repository::signed::{SignedSettings, SignedSource};
use sidemint::policy::repository::{Fetched, PolicySource as _};
use sidemint::policy::{LoadOptions, Policy};

use crate::load::{Client, Load, request};
use crate::over_rounds;
use crate::process::resident;
use crate::report::Outcome;
use crate::stage::{Sidecar, Stage, signed_policy};

const SCOPES: usize = 10_000;
const ROUNDS: usize = 5;
const MIB: f64 = 1024.0 * 1024.0;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Nobody answers: only what is kept is there.
#[derive(Debug)]
struct Nobody;

#[async_trait]
impl Fetch for Nobody {
    async fn get(&self, name: &str, _: u64, _: Option<&Tag>) -> Result<Answer, FetchError> {
        Err(FetchError::Unreachable { name: name.to_owned(), why: "offline".to_owned() })
    }
}

/// Seconds from nothing in memory to a policy that decides, from the local cache alone: every signature and digest
/// verified, every file parsed and validated, every scope sliced.
pub(crate) fn load() -> Outcome {
    let sample = signed_policy(SCOPES)?;
    let state = tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target"))?;
    let settings = SignedSettings {
        anchor: sample.anchor(),
        state: state.path().into(),
        minimum_version: Some(1),
        scopes: BTreeSet::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let source = |fetch: Arc<dyn Fetch>| SignedSource::new(settings.clone(), fetch, Arc::new(SystemClock));
    let fetched = |source: SignedSource| match runtime.block_on(source.fetch(None)) {
        Ok(Fetched::New(files)) => Ok(files),
        other => Err(format!("no version was read: {other:?}").chars().take(300).collect::<String>()),
    };
    fetched(source(Arc::new(MemoryFetch(sample.published().clone())))?)?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let files = fetched(source(Arc::new(Nobody))?)?;
        // As the sidecar does.
        let options = LoadOptions { without_warnings: true, ..LoadOptions::default() };
        let policy = Policy::load_with(&files, &options)?;
        rounds.push(began.elapsed().as_secs_f64());
        if policy.active() != SCOPES {
            return Err(format!("{} of {SCOPES} scopes are active", policy.active()).into());
        }
    }
    over_rounds(rounds, "from the cache alone, nobody answering")
}

pub(crate) fn rss() -> Outcome {
    let stage = Stage::signed(SCOPES)?;
    let rounds = (0..ROUNDS).map(|_| {
        let sidecar = Sidecar::start(&stage, None)?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(resident(sidecar.pid())? / MIB)
    });
    over_rounds(rounds.collect::<Fallible<_>>()?, "3 s after it was ready, first version from the repository")
}

/// Serving at a fixed rate while new versions are loaded one after the other, beside the same undisturbed.
pub(crate) fn reload_serving() -> Outcome {
    const RATE: f64 = 2_000.0;
    const ROUND: Duration = Duration::from_secs(4);
    const LONGEST: Duration = Duration::from_secs(60);
    const PATH: &str = "/v1/aws/credentials";
    let stage = Stage::signed(SCOPES)?;
    let sidecar = Sidecar::start(&stage, None)?;
    let token = sidecar.begin(&mut Client::connect(sidecar.http)?, &stage.svid()?)?;
    Client::connect(sidecar.http)?.send("GET", PATH, &[("authorization", &token)], "")?;
    let bytes = request("GET", sidecar.http, PATH, &[("authorization", &token)], "");
    let serve = || -> Fallible<Vec<f64>> { Ok(Load::open(sidecar.http, 16, &bytes)?.fixed_rate(RATE, ROUND)?) };
    let p99 = |mut latencies: Vec<f64>| {
        latencies.sort_by(f64::total_cmp);
        latencies.get((latencies.len() as f64 * 0.99) as usize).copied().unwrap_or(f64::NAN)
    };
    let loaded = || sidecar.counted("sidemint_policy_refreshes_total{outcome=\"loaded\"} ");
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let quiet = p99(serve()?);
        let before = loaded()?;
        // Signing takes a core too, so it is done before; the sidecar looks twice a second and loads under load.
        stage.publish_change()?;
        let began = Instant::now();
        let mut busy = Vec::new();
        // Served until the version is in force, however long that takes on this machine.
        while busy.is_empty() || loaded()? <= before {
            if began.elapsed() > LONGEST {
                return Err(format!("a new version was not loaded within {LONGEST:?} under load").into());
            }
            busy.extend(serve()?);
        }
        rounds.push((p99(busy), quiet));
    }
    let (busy, quiet) = rounds.iter().copied().unzip();
    let note = format!(
        "p99 {:.0} µs beside {:.0} µs at {RATE}/s, one new version of {SCOPES} scopes loaded in each round",
        crate::median(busy),
        crate::median(quiet)
    );
    over_rounds(rounds.iter().map(|(busy, quiet)| busy / quiet).collect(), note)
}
