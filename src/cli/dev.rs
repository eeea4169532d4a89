//! `sidemint dev`: the world of the demo, kept up until SIGINT or SIGTERM, for trying things out.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, CliResult, Exit};
use crate::clock::{SharedClock, SystemClock};
use crate::dev::sidecar::{Options, Sidecar, SidecarError};
use crate::dev::world::{INTRUDER, REGION, REPORT, ROLE, SIDEMINT, World};
use crate::durable_file;

/// Arguments of `sidemint dev`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write KEY=VALUE lines to this file once everything is ready
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Use the policy files of this directory instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Listen for workloads here; by default on a free loopback port
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Listen for operators here; by default on a free loopback port
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

/// Keeps the world up. 0 after SIGINT or SIGTERM.
///
/// # Errors
/// When the world cannot be made, or the sidecar ends by itself.
pub async fn run(args: Args) -> CliResult {
    let mut signals = Signals::caught()?;
    let clock: SharedClock = Arc::new(SystemClock);
    let up = tokio::select! {
        up = stand_up(&args, &clock) => up?,
        () = signals.one() => return Ok(Exit::Ok as u8),
    };
    let (world, mut sidecar) = up;
    let ended = tokio::select! {
        ended = sidecar.ended() => Some(ended),
        () = signals.one() => None,
    };
    let result = match ended {
        Some(ended) => {
            let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            let log = sidecar.log_tail();
            Err(CliError::new(Exit::Failed, format!("`sidemint serve` ended by itself ({how}); its log ends:\n{log}")))
        }
        None => match sidecar.stop(&*clock).await {
            Ok(Some(status)) if status.success() => Ok(Exit::Ok as u8),
            Ok(Some(status)) => Err(CliError::new(Exit::Failed, format!("`sidemint serve` ended with {status}"))),
            Ok(None) => Err(CliError::new(Exit::Failed, "`sidemint serve` did not end in time and was killed")),
            Err(error) => Err(CliError::new(Exit::Failed, format!("cannot stop `sidemint serve`: {error}"))),
        },
    };
    drop(world);
    result
}

/// SIGTERM and SIGINT, from the moment they are caught.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them.
    pub(super) fn caught() -> Result<Self, CliError> {
        let failed = |error: io::Error| CliError::new(Exit::Failed, format!("signals cannot be caught: {error}"));
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt()).map_err(failed)? })
    }

    /// Returns when one has come.
    pub(super) async fn one(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

async fn stand_up(args: &Args, clock: &SharedClock) -> Result<(World, Sidecar), CliError> {
    let options = Options { policy: policy(args.policy.as_deref())?, http: args.http, admin: args.admin };
    let world = World::start(Arc::clone(clock))
        .await
        .map_err(|error| CliError::new(Exit::Failed, format!("cannot set up the world: {error}")))?;
    let sidecar = Sidecar::start(&world, &options, &**clock).await.map_err(explain)?;
    let variables = variables(&world, &sidecar);
    if let Some(file) = &args.env_file {
        write_env_file(file, &variables).map_err(|error| {
            CliError::new(
                Exit::Failed,
                format!("--env-file {}: {error}; name a file in a writable folder", file.display()),
            )
        })?;
    }
    io::stdout()
        .lock()
        .write_all(welcome(&world, &sidecar, &variables, args.env_file.as_deref()).as_bytes())
        .map_err(|error| CliError::new(Exit::Failed, format!("cannot write to standard output: {error}")))?;
    Ok((world, sidecar))
}

fn explain(error: SidecarError) -> CliError {
    let exit = match &error {
        SidecarError::World(_) | SidecarError::Died { .. } => Exit::Failed,
        SidecarError::NotReady { .. } => Exit::Unavailable,
    };
    CliError::new(exit, error.to_string())
}

/// The directory as an absolute path, since the sidecar is another process.
fn policy(directory: Option<&Path>) -> Result<Option<PathBuf>, CliError> {
    let Some(directory) = directory else { return Ok(None) };
    let found = directory
        .canonicalize()
        .and_then(|path| if path.is_dir() { Ok(path) } else { Err(io::ErrorKind::NotADirectory.into()) });
    found.map(Some).map_err(|error| {
        let message =
            format!("--policy {}: {error}; name a directory with decisions/, scopes/ and grants/", directory.display());
        CliError::new(Exit::Usage, message)
    })
}

/// What a workload, an SDK or another command of ours needs to find this world.
fn variables(world: &World, sidecar: &Sidecar) -> Vec<(&'static str, String)> {
    vec![
        ("SPIFFE_ENDPOINT_SOCKET", world.workload_api()),
        ("SIDEMINT_HTTP", format!("http://{}", sidecar.http)),
        ("SIDEMINT_ADMIN", format!("http://{}", sidecar.admin)),
        ("SIDEMINT_POLICY_DIRECTORY", sidecar.policy.display().to_string()),
        ("SIDEMINT_POLICY_TRUST", "unsigned".to_owned()),
        ("AWS_ENDPOINT_URL_STS", world.sts_endpoint.clone()),
        ("AWS_ENDPOINT_URL_S3", world.s3_endpoint.clone()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
}

/// Writes all lines or none: whoever waits for the file never reads half of it.
fn write_env_file(file: &Path, variables: &[(&str, String)]) -> io::Result<()> {
    let lines: String = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    durable_file::replace(file, lines.as_bytes(), 0o600)
}

fn welcome(world: &World, sidecar: &Sidecar, variables: &[(&str, String)], env_file: Option<&Path>) -> String {
    let mut text = String::from(
        "\n  sidemint dev: a SPIFFE authority, a cloud and a sidecar, all on this machine, all gone at Ctrl-C.\n",
    );
    text.push_str("  Everybody who reaches the socket gets every identity. Never use this in production.\n\n");
    let rows = [
        ("identities", format!("{REPORT}  {INTRUDER}  {SIDEMINT}")),
        ("role", ROLE.to_owned()),
        ("policy", sidecar.policy.display().to_string()),
        ("log, audit", format!("{}  {}", sidecar.log.display(), sidecar.audit.display())),
        ("folder", world.folder().display().to_string()),
    ];
    for (name, value) in rows {
        text.push_str(&format!("  {name:<11} {value}\n"));
    }
    text.push_str("\n  In another terminal:\n\n");
    match env_file {
        Some(file) => text.push_str(&format!("    set -a; . {}; set +a\n", file.display())),
        None => variables.iter().for_each(|(name, value)| text.push_str(&format!("    export {name}={value}\n"))),
    }
    text.push_str("    sidemint status\n");
    text.push_str(
        "    sidemint exec --scope ledger-read --param customer=c-42 -- aws s3 cp s3://ledger/c-42/2026-11.csv -\n\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_env_file_atomically_over_an_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        std::fs::write(&file, "OLD=1\n").unwrap();
        write_env_file(&file, &[("A", "1".into()), ("B", "x y".into())]).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "A=1\nB=x y\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_env_file(&folder.path().join("none/env"), &[]).is_err());
    }

    #[test]
    fn an_invalid_policy_directory_is_a_usage_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path(), Path::new("/nowhere/at/all")] {
            assert_eq!(policy(Some(path)).unwrap_err().exit, Exit::Usage);
        }
        assert_eq!(policy(None).unwrap(), None);
    }
}
