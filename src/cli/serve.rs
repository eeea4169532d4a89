//! `sidemint serve`: the sidecar.

use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{CliError, CliResult, Exit};
use crate::app;
use crate::config::{Config, LogFormat, LogSettings};
use crate::hardening;

/// Run the sidecar: authenticate workloads, decide, mint, serve, and take access back when the task ends
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file; every key can also be given as `SIDEMINT_SECTION_KEY`
    #[arg(long, env = "SIDEMINT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT; SIGHUP looks at the policy at once.
///
/// # Errors
/// Exit 2 with one line that says the fix, when the configuration cannot be used.
pub async fn run(args: Args) -> CliResult {
    // First of all: nothing secret has come into the process yet.
    hardening::harden().map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
    let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let config = Config::load(args.config.as_deref(), environment).map_err(|e| usage(&e))?;
    log_to_stderr(&config.log)?;
    // Signals are caught before anything is bound, so that none is missed.
    let failed = |error: std::io::Error| CliError::new(Exit::Failed, format!("signals cannot be caught: {error}"));
    let (mut term, mut int, hup) = (
        signal(SignalKind::terminate()).map_err(failed)?,
        signal(SignalKind::interrupt()).map_err(failed)?,
        signal(SignalKind::hangup()).map_err(failed)?,
    );
    let bound = app::build(&config).await.map_err(|e| usage(&e))?;
    let (reload, reloads) = watch::channel(());
    let hangups = tokio::spawn(forward(hup, reload));
    let shutdown = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    bound.run(shutdown, reloads).await;
    hangups.abort();
    Ok(Exit::Ok as u8)
}

fn usage(error: &dyn std::fmt::Display) -> CliError {
    CliError::new(Exit::Usage, error.to_string())
}

async fn forward(mut signals: Signal, reload: watch::Sender<()>) {
    while signals.recv().await.is_some() {
        reload.send_replace(());
    }
}

/// Logs go to standard error; standard output is the audit log's.
fn log_to_stderr(settings: &LogSettings) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&settings.level)
        .map_err(|e| usage(&format!("log.level (or SIDEMINT_LOG_LEVEL): {e}: write info, debug or a filter")))?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let set = if settings.format == LogFormat::Json {
        registry.with(layer.json()).try_init()
    } else {
        registry.with(layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).try_init()
    };
    set.map_err(|e| CliError::new(Exit::Failed, format!("logging cannot be set up: {e}")))
}
