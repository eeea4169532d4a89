//! `policy heartbeat`: a new timestamp over the same snapshot, once or for ever.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::signing::{Time, failed, sources};
use crate::cli::{CliError, CliResult, Exit, complain, print};
use crate::clock::{Clock as _, SystemClock};
use crate::policy::publish::heartbeat::{self, Beat, LIFE, Memory};
use crate::policy::publish::keys::KeySource;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the repository is published
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    /// The private key of the role timestamp; may be repeated
    #[arg(long, value_name = "FILE.pem")]
    timestamp_key: Vec<PathBuf>,
    /// A command that signs for timestamp
    #[arg(long, value_name = "COMMAND")]
    timestamp_signer: Vec<String>,
    /// How long the timestamp is valid
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10m")]
    expires: Duration,
    /// Remember here what was seen, also for the next start: nothing older is signed
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Do it again and again, until SIGTERM
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "at")]
    every: Option<Duration>,
    #[command(flatten)]
    time: Time,
}

pub(super) async fn run(args: &Args) -> CliResult {
    debug_assert!(LIFE == Duration::from_secs(600), "the default above");
    let usage = |message: &str| Err(CliError::new(Exit::Usage, message));
    let keys = sources(&args.timestamp_key, &args.timestamp_signer);
    if keys.is_empty() {
        return usage("give --timestamp-key FILE.pem or --timestamp-signer COMMAND");
    }
    let memory = args.state.clone().map_or_else(|| Ok(Memory::default()), Memory::open);
    let mut memory = memory.map_err(failed)?;
    let Some(every) = args.every else {
        tell(&beat(args, &keys, args.time.now(), &mut memory).await.map_err(failed)?)?;
        return Ok(Exit::Ok as u8);
    };
    // A beat that is missed must not let the timestamp lapse.
    if every.is_zero() || every * 2 > args.expires {
        return usage("--every must be at most half of --expires");
    }
    repeat(args, &keys, every, &mut memory).await
}

async fn beat(
    args: &Args,
    keys: &[KeySource],
    now: crate::clock::Timestamp,
    memory: &mut Memory,
) -> Result<Beat, crate::policy::publish::PublishError> {
    heartbeat::beat(&args.to, keys, args.expires, &SystemClock, now, memory).await
}

/// Beats until SIGTERM or SIGINT; one beat is never cut in half. What fails is told and tried again.
async fn repeat(args: &Args, keys: &[KeySource], every: Duration, memory: &mut Memory) -> CliResult {
    let cannot = |error: std::io::Error| CliError::new(Exit::Failed, format!("cannot listen for signals: {error}"));
    let (mut term, mut int) =
        (signal(SignalKind::terminate()).map_err(cannot)?, signal(SignalKind::interrupt()).map_err(cannot)?);
    loop {
        match beat(args, keys, SystemClock.now(), memory).await {
            Ok(beat) => tell(&beat)?,
            Err(error) => complain(&error.to_string()),
        }
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            () = SystemClock.sleep(every) => {}
        }
    }
    Ok(Exit::Ok as u8)
}

fn tell(beat: &Beat) -> Result<(), CliError> {
    for (role, end) in &beat.lapsing {
        complain(&format!("{role} lapses at {end}, and no heartbeat renews it: run `sidemint policy publish`"));
    }
    print(format!("timestamp {} over snapshot {} until {}\n", beat.version, beat.snapshot, beat.expires))
}
