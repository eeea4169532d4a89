//! Measures the sidecar beside the machine's own limit, and writes `target/bench-report.json`.
//!
//! Run it by `benches/report`, which builds the sidecar as it is delivered first. Each row of [`ROWS`] compares two things
//! in turns, several rounds, and tells the median; a row that cannot be measured is in the report with the reason.
//!
//! - [`report`]: rows, bars, the table and the file.
//! - [`stage`]: a Workload API, an STS, policy files, and the real `sidemint serve` between them.
//! - [`load`]: HTTP clients that cost as little as possible.
//! - [`serving`], [`handshakes`], [`process`], [`policy`], [`repository`], [`inside`], [`ends`], [`starts`], [`builds`]: the
//!   measurements.

#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock; the product never does")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod builds;
mod ends;
mod handshakes;
mod inside;
mod load;
mod policy;
mod process;
mod report;
mod repository;
mod serving;
mod stage;
mod starts;

use report::{Bar, Measured, Outcome, Row};

/// How a row is measured.
type Measure = fn() -> Outcome;

/// Every row, in the order of the table.
const ROWS: [(&str, &str, Bar, Measure); 27] = [
    ("serve_throughput_vs_hyper", "ratio", Bar::AtLeast(0.85), serving::throughput),
    ("serve_p99_vs_hyper", "ratio", Bar::AtMost(1.5), serving::tail),
    ("serve_cpu_vs_hyper", "ratio", Bar::AtLeast(0.9), serving::cpu),
    ("jwt_first_seen_vs_raw", "ratio", Bar::AtMost(1.5), inside::jwt_first_seen),
    ("jwt_seen_again_vs_raw", "ratio", Bar::AtMost(0.1), inside::jwt_seen_again),
    ("decision_vs_cedar", "ratio", Bar::AtMost(1.3), inside::decision_vs_cedar),
    ("decision_flatness", "ratio", Bar::AtMost(1.2), inside::decision_flatness),
    ("mint_records_vs_store", "ratio", Bar::AtLeast(0.7), inside::journal),
    ("cold_callers_upstream_calls", "calls", Bar::Exactly(1.0), process::cold_callers),
    ("mtls_handshake_vs_rustls", "ratio", Bar::AtLeast(0.8), handshakes::mutual),
    ("policy_refresh_requests", "calls", Bar::AtMost(2.0), repository::policy_refresh_requests),
    ("fleet_peak_to_mean", "ratio", Bar::AtMost(1.3), repository::fleet_peak_to_mean),
    ("idle_rss", "MiB", Bar::AtMost(19.0), process::idle_rss),
    ("idle_private", "MiB", Bar::AtMost(3.5), process::idle_private),
    ("task_bytes", "KiB", Bar::AtMost(2.0), process::task_bytes),
    ("ready_after_workload_api", "ms", Bar::AtMost(40.0), process::ready),
    ("binary_size", "MiB", Bar::AtMost(18.0), process::binary_size),
    ("policy_load_10000", "s", Bar::AtMost(3.0), policy::load),
    ("policy_rss_10000", "MiB", Bar::AtMost(128.0), policy::rss),
    ("policy_reload_serving_p99", "ratio", Bar::AtMost(3.0), policy::reload_serving),
    ("expiry_lateness_p99", "ms", Bar::AtMost(50.0), ends::expiry_lateness),
    ("revocation_lag_p99", "s", Bar::AtMost(5.0), ends::revocation_lag),
    ("restart_10000", "s", Bar::AtMost(0.5), starts::restart),
    ("drain_serving_p99", "ratio", Bar::AtMost(1.5), starts::drain_serving),
    ("end_all_10000", "s", Bar::AtMost(1.0), ends::end_all),
    ("build_debug_cpu", "ratio", Bar::AtMost(0.7), builds::debug),
    ("build_release_cpu", "ratio", Bar::AtMost(0.5), builds::release),
];

/// Rows that are measured only when they are named: each takes longer than all others together.
const BY_NAME: [&str; 2] = ["build_debug_cpu", "build_release_cpu"];

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(serving::BARE) => return serving::bare_main(serving::bare),
        Some(handshakes::BARE) => return serving::bare_main(handshakes::bare),
        _ => {}
    }
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // A thousand callers are a thousand descriptors, here and in the sidecar, which inherits the limit.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, ..limit },
    );
    let mut rows = Vec::new();
    report::begin();
    for (name, unit, bar, measure) in ROWS {
        let wanted = match arguments.as_slice() {
            [] => !BY_NAME.contains(&name),
            named => named.iter().any(|argument| argument == name),
        };
        let row = Row::new(name, unit, bar, wanted.then(measure));
        if wanted {
            row.print();
        }
        rows.push(row);
    }
    report::end(&rows);
    match report::write(&rows) {
        Ok(path) => println!("written to {}", path.display()),
        Err(error) => {
            eprintln!("the report cannot be written: {error}");
            return std::process::ExitCode::FAILURE;
        }
    }
    std::process::ExitCode::SUCCESS
}

/// Both of a pair, each first every other `turn`: whoever comes second finds a warmer machine.
fn both<T, E>(
    turn: usize,
    ours: impl FnOnce() -> Result<T, E>,
    bare: impl FnOnce() -> Result<T, E>,
) -> Result<(T, T), E> {
    if turn.is_multiple_of(2) {
        let ours = ours()?;
        Ok((ours, bare()?))
    } else {
        let bare = bare()?;
        Ok((ours()?, bare))
    }
}

/// The median of what several rounds gave, with how far they lay apart.
fn over_rounds(mut values: Vec<f64>, note: impl Into<String>) -> Outcome {
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(most), Some(median)) = (values.first(), values.last(), values.get(values.len() / 2)) else {
        return Err("no round was measured".into());
    };
    let spread = format!("{least:.3} to {most:.3} over {} rounds", values.len());
    let note = note.into();
    let note = if note.is_empty() { spread } else { format!("{spread}; {note}") };
    Ok(Measured { value: *median, note })
}

/// The median of a few figures; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
