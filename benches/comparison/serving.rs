//! A live credential over HTTP, beside a bare hyper server that answers with the same bytes.

use std::convert::Infallible;
use std::error::Error;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;

use crate::load::{Client, Load, request};
use crate::report::Outcome;
use crate::stage::{Sidecar, Stage, cores, on_core, spawn_on};
use crate::{both, median, over_rounds};

/// What makes this program be the bare server.
pub(crate) const BARE: &str = "--bare-hyper";
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(700);
const WARM_UP: Duration = Duration::from_millis(150);
const PATH: &str = "/v1/aws/credentials";

type Fallible<T> = Result<T, Box<dyn Error>>;
/// Two figures of the sidecar and two of the bare server.
type Round = ((f64, f64), (f64, f64));

/// Where a live credential is asked for.
#[derive(Debug, Clone, Copy)]
enum Route {
    /// The dialect of AWS's container credentials.
    Aws,
    /// The route of our own.
    Native,
}

/// The sidecar with a live credential, and the bare server; both on the same core, one resting while the other works.
struct Pair {
    sidecar: Sidecar,
    bare: BareServer,
    path: String,
    authorization: String,
    _stage: Stage,
}

/// The two of a pair.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Sidecar,
    Bare,
}

impl Pair {
    fn new(route: Route) -> Fallible<Self> {
        let stage = Stage::new(100)?;
        let (core, _) = cores();
        let sidecar = Sidecar::start(&stage, core)?;
        let mut client = Client::connect(sidecar.http)?;
        let (id, token) = sidecar.begin_task(&mut client, &stage.svid()?)?;
        let (path, authorization) = match route {
            Route::Aws => (PATH.to_owned(), token),
            Route::Native => (format!("/v1/tasks/{id}/credentials"), format!("Bearer {token}")),
        };
        // The first one mints; the second is what every later one gets.
        client.send("GET", &path, &[("authorization", &authorization)], "")?;
        let answer = client.send("GET", &path, &[("authorization", &authorization)], "")?;
        if answer.status != 200 {
            return Err(format!("credentials: {}", answer.status).into());
        }
        let bare = BareServer::start(core, BARE, &[answer.head.as_bytes(), &answer.body].concat())?;
        Ok(Self { sidecar, bare, path, authorization, _stage: stage })
    }

    fn load(&self, side: Side) -> std::io::Result<Load> {
        let address = match side {
            Side::Sidecar => self.sidecar.http,
            Side::Bare => self.bare.address,
        };
        let bytes = request("GET", address, &self.path, &[("authorization", &self.authorization)], "");
        Load::open(address, CONNECTIONS, &bytes)
    }

    fn pid(&self, side: Side) -> u32 {
        match side {
            Side::Sidecar => self.sidecar.pid(),
            Side::Bare => self.bare.pid(),
        }
    }

    /// One round of as much as goes: answers per second, and the server's own time on a core per answer, in µs.
    fn throughput(&self, side: Side) -> std::io::Result<(f64, f64)> {
        let mut load = self.load(side)?;
        load.closed_loop(WARM_UP)?;
        let before = on_cpu(self.pid(side));
        let rate = load.closed_loop(ROUND)?;
        let spent = on_cpu(self.pid(side)) - before;
        Ok((rate, spent * 1e6 / (rate * ROUND.as_secs_f64())))
    }
}

/// Runs `round` on the clients' core for both sides in turns, [`ROUNDS`] times, each side first every other time.
pub(crate) fn in_turns<T: Send>(round: impl Fn(Side) -> std::io::Result<T> + Sync) -> std::io::Result<Vec<(T, T)>> {
    let (_, core) = cores();
    on_core(core, || (0..ROUNDS).map(|turn| both(turn, || round(Side::Sidecar), || round(Side::Bare))).collect())
}

/// The time on a core that bare hyper takes for an answer, over ours: of each route, and the least of them counts. Requests
/// per second and latencies are the machine's as much as ours; this is ours alone.
pub(crate) fn cpu() -> Outcome {
    let (mut least, mut notes) = (Vec::new(), Vec::new());
    for route in [Route::Aws, Route::Native] {
        let pair = Pair::new(route)?;
        let rounds = in_turns(|side| pair.throughput(side))?;
        let of = |pick: fn(&Round) -> f64| median(rounds.iter().map(pick).collect());
        let ratios: Vec<f64> = rounds.iter().map(|(sidecar, bare)| bare.1 / sidecar.1).collect();
        let (ours, bare) = (of(|round| round.0.1), of(|round| round.1.1));
        notes.push(format!("{route:?} {:.3}: {ours:.2} µs beside {bare:.2} µs", median(ratios.clone())));
        if least.is_empty() || median(ratios.clone()) < median(least.clone()) {
            least = ratios;
        }
    }
    over_rounds(least, notes.join("; "))
}

pub(crate) fn throughput() -> Outcome {
    let pair = Pair::new(Route::Aws)?;
    let rounds = in_turns(|side| pair.throughput(side))?;
    let of = |pick: fn(&Round) -> f64| median(rounds.iter().map(pick).collect());
    let note = format!(
        "{:.0}/s beside {:.0}/s; on the core {:.2} µs beside {:.2} µs each",
        of(|round| round.0.0),
        of(|round| round.1.0),
        of(|round| round.0.1),
        of(|round| round.1.1),
    );
    over_rounds(rounds.iter().map(|(sidecar, bare)| sidecar.0 / bare.0).collect(), note)
}

pub(crate) fn tail() -> Outcome {
    let pair = Pair::new(Route::Aws)?;
    let (_, core) = cores();
    let most =
        on_core(core, || (0..3).map(|_| Ok(pair.throughput(Side::Bare)?.0)).collect::<std::io::Result<Vec<_>>>())?;
    let rate = median(most) / 3.0;
    let rounds = in_turns(|side| {
        let mut load = pair.load(side)?;
        load.fixed_rate(rate, WARM_UP)?;
        let latencies = load.fixed_rate(rate, ROUND)?;
        let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
        Ok((at(0.99), at(0.5)))
    })?;
    let of = |pick: fn(&Round) -> f64| median(rounds.iter().map(pick).collect());
    let note = format!(
        "at {rate:.0}/s: p99 {:.0} µs beside {:.0} µs, p50 {:.0} µs beside {:.0} µs",
        of(|round| round.0.0),
        of(|round| round.1.0),
        of(|round| round.0.1),
        of(|round| round.1.1),
    );
    over_rounds(rounds.iter().map(|(sidecar, bare)| sidecar.0 / bare.0).collect(), note)
}

/// How long the threads of `pid` were on a core so far, in seconds.
pub(crate) fn on_cpu(pid: u32) -> f64 {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return f64::NAN };
    let nanos = |path: std::path::PathBuf| -> Option<f64> {
        std::fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    threads.flatten().filter_map(|thread| nanos(thread.path())).sum::<f64>() / 1e9
}

/// A bare server, in a process of its own like the sidecar.
pub(crate) struct BareServer {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl BareServer {
    /// Starts this program as the bare server called `word`, which reads `input` to its end before it tells its address.
    pub(crate) fn start(core: Option<usize>, word: &str, input: &[u8]) -> Fallible<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child =
            spawn_on(core, command.arg(word).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
        child.stdin.take().ok_or("no stdin")?.write_all(input)?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        Ok(Self { address: line.trim().parse()?, child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // It ends only so.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a bare server until it is killed.
pub(crate) fn bare_main(serve: fn(Vec<u8>) -> Fallible<()>) -> ExitCode {
    let mut input = Vec::new();
    match std::io::stdin().read_to_end(&mut input).map_err(Into::into).and_then(|_| serve(input)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bare server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Is bare hyper: the whole answer comes on standard input, the address goes to standard output.
pub(crate) fn bare(mut bytes: Vec<u8>) -> Fallible<()> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no head")? + 4;
    let body = Bytes::from(bytes.split_off(end));
    let head = String::from_utf8(bytes)?;
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        // These two hyper writes itself.
        if !matches!(name, "date" | "content-length") {
            headers.insert(name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?);
        }
    }
    // The sidecar's runtime, see `Cli::runtime`.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(answer_all(headers, body))
}

async fn answer_all(headers: HeaderMap, body: Bytes) -> Fallible<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (headers, body) = (headers.clone(), body.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                let mut answer = Response::new(Full::new(body.clone()));
                answer.headers_mut().clone_from(&headers);
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
        });
    }
}
