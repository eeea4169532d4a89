//! The process as a whole: what it weighs, how soon it is ready, how often it asks upstream.

use std::error::Error;

use crate::load::Client;
use crate::report::{Measured, Outcome};
use crate::serving::on_cpu;
use crate::stage::{Sidecar, Stage, binary};
use crate::{median, over_rounds};

const MIB: f64 = 1024.0 * 1024.0;
const ROUNDS: usize = 5;
const PATH: &str = "/v1/aws/credentials";

type Fallible<T> = Result<T, Box<dyn Error>>;

pub(crate) fn binary_size() -> Outcome {
    let size = std::fs::metadata(binary()?)?.len();
    Ok(Measured { value: size as f64 / MIB, note: format!("{size} bytes") })
}

pub(crate) fn ready() -> Outcome {
    let stage = Stage::new(100)?;
    let rounds = (0..ROUNDS + 2).map(|_| {
        let sidecar = Sidecar::start(&stage, None)?;
        Ok((sidecar.ready_after.as_secs_f64() * 1e3, on_cpu(sidecar.pid()) * 1e3))
    });
    let rounds = rounds.collect::<Fallible<Vec<_>>>()?;
    let (waited, worked): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
    over_rounds(waited, format!("{:.0} ms of them on a core; 100 scopes, empty journal", median(worked)))
}

pub(crate) fn idle_rss() -> Outcome {
    idle(resident)
}

/// Memory that is this process's alone and was written: what one more sidecar on a node takes of it, whatever they share.
pub(crate) fn idle_private() -> Outcome {
    idle(|pid| in_kib(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Private_Dirty:"))
}

fn idle(measure: fn(u32) -> Fallible<f64>) -> Outcome {
    let stage = Stage::new(100)?;
    let rounds = (0..ROUNDS).map(|_| {
        let sidecar = Sidecar::start(&stage, None)?;
        std::thread::sleep(std::time::Duration::from_secs(3));
        Ok(measure(sidecar.pid())? / MIB)
    });
    over_rounds(rounds.collect::<Fallible<_>>()?, "3 s after it was ready")
}

/// The resident memory of a process, in bytes.
pub(crate) fn resident(pid: u32) -> Fallible<f64> {
    in_kib(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")
}

/// The figure of a line `NAME 123 kB`, in bytes.
fn in_kib(text: &str, name: &str) -> Fallible<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
}

/// Tasks with a live credential each: what they add to the resident memory, less the secrets themselves.
pub(crate) fn task_bytes() -> Outcome {
    // What is made once and kept, such as buffers and the allocator's own, is there after the first.
    const BEFORE: usize = 500;
    const COUNTED: usize = 9_500;
    // The memory grows in steps, and tables double now and then: so nothing but the whole way says what a task costs, and
    // each process goes it once. The STS of the stage gives no more than 10,000 sessions.
    let (mut rounds, mut secrets) = (Vec::new(), 0.0);
    for _ in 0..ROUNDS {
        let stage = Stage::new(100)?;
        let sidecar = Sidecar::start(&stage, None)?;
        begin_many(&stage, &sidecar, BEFORE)?;
        let before = resident(sidecar.pid())?;
        secrets = begin_many(&stage, &sidecar, COUNTED)?;
        let grown = (resident(sidecar.pid())? - before) / COUNTED as f64;
        rounds.push((grown - secrets) / 1024.0);
    }
    let note = format!(
        "{COUNTED} tasks with a credential each after {BEFORE}, a process per round; {secrets:.0} bytes of secrets each taken off"
    );
    over_rounds(rounds, note)
}

/// Begins `count` tasks and has a credential minted for each; the bytes of secrets that the sidecar must keep for one.
fn begin_many(stage: &Stage, sidecar: &Sidecar, count: usize) -> Fallible<f64> {
    // As many as share a commit of the journal.
    const WORKERS: usize = 128;
    let svid = stage.svid()?;
    let worker = |share: usize| -> std::io::Result<f64> {
        let mut client = Client::connect(sidecar.http)?;
        let mut secrets = 0.0;
        for _ in 0..share {
            let token = sidecar.begin(&mut client, &svid).map_err(|error| std::io::Error::other(error.to_string()))?;
            let answer = client.send("GET", PATH, &[("authorization", &token)], "")?;
            if answer.status != 200 {
                let said = String::from_utf8_lossy(&answer.body);
                return Err(std::io::Error::other(format!("credentials: {} {said}", answer.status)));
            }
            secrets = kept(&answer.body);
        }
        Ok(secrets)
    };
    std::thread::scope(|scope| {
        let shares = (0..WORKERS).map(|index| count / WORKERS + usize::from(index < count % WORKERS));
        let workers: Vec<_> = shares.map(|share| scope.spawn(move || worker(share))).collect();
        let mut secrets: f64 = 0.0;
        for worker in workers {
            let told = worker.join().map_err(|_| "a client crashed")??;
            secrets = secrets.max(told);
        }
        Ok(secrets)
    })
}

/// A credential is kept as its three texts, and as the answer that tells them.
fn kept(body: &[u8]) -> f64 {
    let told: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let length = |name| told.get(name).and_then(serde_json::Value::as_str).map_or(0, str::len);
    (body.len() + length("AccessKeyId") + length("SecretAccessKey") + length("Token")) as f64
}

/// A thousand callers of a task that has no credential yet, all at once.
pub(crate) fn cold_callers() -> Outcome {
    const CALLERS: usize = 1_000;
    let stage = Stage::new(10)?;
    let sidecar = Sidecar::start(&stage, None)?;
    let svid = stage.svid()?;
    let mut calls = Vec::new();
    for _ in 0..ROUNDS {
        let token = sidecar.begin(&mut Client::connect(sidecar.http)?, &svid)?;
        let before = stage.cloud.minted().len();
        // Each asks as soon as it is connected: the sidecar closes a connection that stays silent for 5 s, and on a busy
        // machine a thousand take as long.
        let ask = |_| {
            let mut caller = Client::connect(sidecar.http)?;
            caller.ask("GET", PATH, &[("authorization", &token)], "")?;
            Ok(caller)
        };
        let mut callers = (0..CALLERS).map(ask).collect::<std::io::Result<Vec<_>>>()?;
        for caller in &mut callers {
            let answer = caller.answer()?;
            if answer.status != 200 {
                return Err(format!("a caller was answered {}", answer.status).into());
            }
        }
        calls.push((stage.cloud.minted().len() - before) as f64);
    }
    // The worst round: one call too many is a fault, however rare.
    let most = calls.iter().copied().fold(0.0, f64::max);
    Ok(Measured {
        value: most,
        note: format!("{CALLERS} callers, the most of {ROUNDS} rounds, every caller answered 200"),
    })
}
