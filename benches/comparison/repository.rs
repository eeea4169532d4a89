//! What a fleet asks of its policy repository.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ETAG, IF_NONE_MATCH};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sidemint::clock::{Clock as _, ManualClock, SharedClock, SystemClock};
use sidemint::http_client::{Roots, TlsSettings};
use sidemint::policy::repository::http::{HttpFetch, HttpSettings};
use sidemint::policy::repository::sample::Sample;
use sidemint::policy::repository::schedule::{Refreshed, Schedule};
use sidemint::policy::repository::signed::{SignedSettings, SignedSource};
use sidemint::policy::repository::{Digest, Fetched, PolicySource as _};

use crate::report::{Measured, Outcome};
use crate::stage::policy_files;

type Fallible<T> = Result<T, Box<dyn Error>>;

const FLEET: u32 = 100_000;
const INTERVAL: Duration = Duration::from_secs(30);
/// How many intervals are simulated, the first one included, which does not count.
const INTERVALS: u64 = 12;

/// What the repository of a simulated fleet does.
struct World {
    name: &'static str,
    /// The most refreshes that it answers in a second; the others fail.
    capacity: u64,
    /// What it tells those that fail.
    retry_after: Option<Duration>,
}

/// The real schedule, a hundred thousand times, all started at the same moment: refreshes in the busiest second, over the
/// mean, after the first interval. The worst of several worlds.
pub(crate) fn fleet_peak_to_mean() -> Outcome {
    let mean = u64::from(FLEET) / INTERVAL.as_secs();
    let worlds = [
        World { name: "all answered", capacity: u64::MAX, retry_after: None },
        World { name: "room for 1.5 times the mean", capacity: mean * 3 / 2, retry_after: None },
        World { name: "the same with Retry-After: 30", capacity: mean * 3 / 2, retry_after: Some(INTERVAL) },
    ];
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    let (mut worst, mut notes) = (0.0_f64, Vec::new());
    for world in &worlds {
        let refreshes = simulate(world, &mut random);
        let first = usize::try_from(INTERVAL.as_secs())?;
        let counted = refreshes.get(first..).ok_or("too short")?;
        let peak = counted.iter().max().copied().unwrap_or_default() as f64;
        let mean = counted.iter().sum::<u64>() as f64 / counted.len() as f64;
        worst = worst.max(peak / mean);
        notes.push(format!("{}: {peak:.0} over {mean:.0} a second ({:.3})", world.name, peak / mean));
    }
    Ok(Measured {
        value: worst,
        note: format!("{FLEET} sidecars, every {} s; {}", INTERVAL.as_secs(), notes.join("; ")),
    })
}

/// The refreshes of each second since all were started.
fn simulate(world: &World, random: &mut Xorshift) -> Vec<u64> {
    let end = INTERVAL.as_millis() as u64 * INTERVALS;
    let mut refreshes = vec![0_u64; (end / 1000) as usize];
    let mut schedules = vec![Schedule::new(INTERVAL); FLEET as usize];
    let mut next: BinaryHeap<_> = (0..FLEET).map(|sidecar| Reverse((0_u64, sidecar))).collect();
    while let Some(Reverse((at, sidecar))) = next.pop() {
        let (Some(count), Some(schedule)) =
            (refreshes.get_mut((at / 1000) as usize), schedules.get_mut(sidecar as usize))
        else {
            break;
        };
        *count += 1;
        let looked = match *count <= world.capacity {
            true => Refreshed::Answered,
            false => Refreshed::Failed { retry_after: world.retry_after },
        };
        let pause = schedule.pause(looked, Duration::ZERO, random.fraction());
        next.push(Reverse((at + pause.as_millis() as u64, sidecar)));
    }
    refreshes
}

/// Randomness that is the same in each run (Marsaglia 2003).
struct Xorshift(u64);

impl Xorshift {
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A static server of a signed repository, and what it was asked.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    connections: AtomicU64,
}

/// The most requests of one refresh that finds nothing new, over two hours of refreshes every 30 s, at a real server.
pub(crate) fn policy_refresh_requests() -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(refreshes())
}

async fn refreshes() -> Outcome {
    const REFRESHES: u64 = 240;
    let clock = ManualClock::at(SystemClock.now());
    let files = policy_files(10).into_iter().map(|(path, text)| (path, Bytes::from(text))).collect();
    let mut sample = Sample::new(files, &[])?;
    sample.publish(clock.now())?;
    let counts = Arc::new(Counts::default());
    let address = serve(sample.published().clone(), Arc::clone(&counts)).await?;
    let shared: SharedClock = Arc::new(clock.clone());
    let settings = HttpSettings {
        base: format!("http://{address}").parse()?,
        tls: TlsSettings { roots: Roots::System, client: None },
        proxy: None,
        timeout: Duration::from_secs(10),
    };
    let state = tempfile::tempdir()?;
    let settings_of_source = SignedSettings {
        anchor: sample.anchor(),
        state: state.path().to_owned(),
        minimum_version: Some(1),
        scopes: BTreeSet::new(),
    };
    let fetch = HttpFetch::new(settings, Arc::clone(&shared), None)?;
    let source = SignedSource::new(settings_of_source, Arc::new(fetch), shared)?;
    let Fetched::New(files) = source.fetch(None).await? else { return Err("the first refresh found nothing".into()) };
    let first = counts.requests.load(Ordering::Relaxed);
    let opened = counts.connections.load(Ordering::Relaxed);
    let (mut most, mut before) = (0, first);
    for _ in 0..REFRESHES {
        clock.advance(INTERVAL);
        if !matches!(source.fetch(Some(&files.version)).await?, Fetched::Unchanged | Fetched::Confirmed(_)) {
            return Err("a refresh found something new".into());
        }
        let now = counts.requests.load(Ordering::Relaxed);
        most = most.max(now - before);
        before = now;
    }
    let mean = (before - first) as f64 / REFRESHES as f64;
    let connections = counts.connections.load(Ordering::Relaxed) - opened;
    Ok(Measured {
        value: most as f64,
        note: format!(
            "{mean:.2} a refresh over {REFRESHES} refreshes in two hours; {connections} connections after the first, one at a time; \
             the first refresh took {first} requests on {opened}"
        ),
    })
}

async fn serve(
    files: std::collections::BTreeMap<String, Bytes>,
    counts: Arc<Counts>,
) -> Fallible<std::net::SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let (address, files) = (listener.local_addr()?, Arc::new(files));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counts.connections.fetch_add(1, Ordering::Relaxed);
            let (files, counts) = (Arc::clone(&files), Arc::clone(&counts));
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                counts.requests.fetch_add(1, Ordering::Relaxed);
                let response = answer(&request, files.get(request.uri().path().trim_start_matches('/')));
                async move { response }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}

/// As a static server answers.
fn answer(request: &Request<Incoming>, file: Option<&Bytes>) -> http::Result<Response<Full<Bytes>>> {
    let Some(bytes) = file else { return Response::builder().status(404).body(Full::new(Bytes::from("not found"))) };
    let tag = format!("\"{}\"", Digest::of(bytes).hex());
    if request.headers().get(IF_NONE_MATCH).is_some_and(|seen| seen.as_bytes() == tag.as_bytes()) {
        return Response::builder().status(304).header(ETAG, tag).body(Full::default());
    }
    Response::builder().header(ETAG, tag).body(Full::new(bytes.clone()))
}
