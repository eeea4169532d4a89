//! What building costs: a cold build of this checkout beside one of an older commit, dependencies included.

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::report::Outcome;
use crate::{both, median, over_rounds};

/// The commit that is built beside this checkout, unless `SIDEMINT_BENCH_BASE` names another.
const BASE: &str = "b47b48a";
/// How often each is built, unless `SIDEMINT_BENCH_BUILDS` says otherwise.
const ROUNDS: usize = 1;

type Fallible<T> = Result<T, Box<dyn Error>>;

pub(crate) fn debug() -> Outcome {
    builds(&[])
}

pub(crate) fn release() -> Outcome {
    builds(&["--release"])
}

/// Both built in turns as somebody would who cloned them: `cargo build`, each time into an empty folder.
fn builds(arguments: &[&str]) -> Outcome {
    let variable = |name: &str| std::env::var(name).ok();
    let base = variable("SIDEMINT_BENCH_BASE").unwrap_or_else(|| BASE.to_owned());
    let rounds = variable("SIDEMINT_BENCH_BUILDS").and_then(|count| count.parse().ok()).unwrap_or(ROUNDS);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir()?;
    let older = folder.path().join("older");
    let clone = Command::new("git").args(["clone", "--quiet", "--no-checkout"]).arg(here).arg(&older).status()?;
    let checkout = Command::new("git").arg("-C").arg(&older).args(["checkout", "--quiet", &base]).status()?;
    if !clone.success() || !checkout.success() {
        return Err(format!("the commit {base} cannot be had: name another with SIDEMINT_BENCH_BASE").into());
    }
    for checkout in [here, &older] {
        // What is downloaded costs time on a core too.
        run(checkout, folder.path(), &["fetch", "--locked"])?;
    }
    let build = [&["build", "--locked"], arguments].concat();
    let measured =
        (0..rounds).map(|turn| both(turn, || run(here, folder.path(), &build), || run(&older, folder.path(), &build)));
    let measured = measured.collect::<Fallible<Vec<_>>>()?;
    let (ours, theirs) = measured.iter().copied().unzip();
    let note = format!("{:.0} s beside {:.0} s of {base}, user and system", median(ours), median(theirs));
    over_rounds(measured.iter().map(|(ours, theirs)| ours / theirs).collect(), note)
}

/// Runs cargo with an empty target folder, which goes afterwards; seconds on a core of all its processes.
fn run(checkout: &Path, folder: &Path, arguments: &[&str]) -> Fallible<f64> {
    let target = tempfile::tempdir_in(folder)?;
    let before = children_on_cpu()?;
    let status = Command::new("cargo")
        .args(arguments)
        .current_dir(checkout)
        .env("CARGO_TARGET_DIR", target.path())
        .env("CARGO_INCREMENTAL", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("cargo {} in {}: {status}", arguments.join(" "), checkout.display()).into());
    }
    Ok(children_on_cpu()? - before)
}

/// User and system seconds of the processes that this one has waited for, and of those that they have (proc(5), `cutime`
/// and `cstime`).
fn children_on_cpu() -> Fallible<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field, the program's name, may hold spaces; the state after it is the third.
    let (_, fields) = stat.rsplit_once(')').ok_or("no /proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(13).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
