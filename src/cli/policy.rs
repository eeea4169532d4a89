//! `sidemint policy …`: policy files, before a sidecar reads them: written, tested, decided on, signed, published.

mod decide;
mod heartbeat;
mod kill;
mod new;
mod publish;
mod sign;
mod test;
mod trust;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::{CliError, CliResult, Exit, Output, plain, print};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::policy::publish::PublishError;
use crate::policy::publish::keys::{KeySource, SIGNER_TIMEOUT};
use crate::policy::publish::release::OnlineKeys;
use crate::policy::publish::table;
use crate::policy::repository::{DirectorySource, PolicyFiles, PolicySourceError, TESTS};
use crate::policy::{Policy, PolicyError, Problem, ScopeId, kind};

/// Write, test, decide on, sign and publish policy.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a working repository: keys for every role, and one scope that is decided on and signed
    New(new::Args),
    /// Check a policy directory: every problem, every suspended scope, and what is worth a second look
    Lint(LintArgs),
    /// Show what a scope's decision would be about, then write the digests of its scope and grants into it
    Decide(DecideArgs),
    /// Begin to trust a signed policy repository: show its root and its owners, then remember it
    Trust(trust::Args),
    /// Ask the policy what the table tests beside the decisions ask
    Test(test::Args),
    /// Add one key holder's signature to one role, from the folder as it is
    Sign(sign::Args),
    /// Check what was signed as sidecars will, then publish it
    Publish(publish::Args),
    /// Say that what is published is still the newest: sign a new timestamp over it
    Heartbeat(heartbeat::Args),
    /// Stop something everywhere, now: one entry of the kill list, signed and published
    Kill(Box<kill::Args>),
}

/// A time to go by.
#[derive(Debug, clap::Args)]
struct Time {
    /// Go by this time (RFC 3339, UTC) instead of now; for drills
    #[arg(long, value_name = "TIME", hide_short_help = true)]
    at: Option<Timestamp>,
}

impl Time {
    fn now(&self) -> Timestamp {
        self.at.unwrap_or_else(|| SystemClock.now())
    }
}

#[derive(Debug, clap::Args)]
struct Signer {
    /// The private key: PKCS#8 PEM, Ed25519 or P-256
    #[arg(long, value_name = "FILE.pem", conflicts_with = "signer")]
    key: Option<PathBuf>,
    /// A command that signs: it gets the bytes on standard input and prints the signature in hex or base64
    #[arg(long, value_name = "COMMAND")]
    signer: Option<String>,
    /// How long the command may take
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "signer")]
    signer_timeout: Option<Duration>,
}

impl Signer {
    fn source(&self) -> Option<KeySource> {
        let timeout = self.signer_timeout.unwrap_or(SIGNER_TIMEOUT);
        let command = self.signer.clone().map(|command| KeySource::Command { command, timeout });
        self.key.clone().map(KeySource::File).or(command)
    }
}

/// The keys that sign at publication.
#[derive(Debug, clap::Args)]
struct Online {
    /// The private key of the role snapshot; may be repeated [default: DIR/keys/NAME.pem]
    #[arg(long, value_name = "FILE.pem")]
    snapshot_key: Vec<PathBuf>,
    /// A command that signs for snapshot
    #[arg(long, value_name = "COMMAND")]
    snapshot_signer: Vec<String>,
    /// The private key of the role timestamp; may be repeated [default: DIR/keys/NAME.pem]
    #[arg(long, value_name = "FILE.pem")]
    timestamp_key: Vec<PathBuf>,
    /// A command that signs for timestamp
    #[arg(long, value_name = "COMMAND")]
    timestamp_signer: Vec<String>,
}

impl Online {
    fn keys(&self) -> OnlineKeys {
        OnlineKeys {
            snapshot: sources(&self.snapshot_key, &self.snapshot_signer),
            timestamp: sources(&self.timestamp_key, &self.timestamp_signer),
        }
    }
}

fn sources(files: &[PathBuf], commands: &[String]) -> Vec<KeySource> {
    let command = |command: &String| KeySource::Command { command: command.clone(), timeout: SIGNER_TIMEOUT };
    files.iter().cloned().map(KeySource::File).chain(commands.iter().map(command)).collect()
}

fn failed(error: PublishError) -> CliError {
    CliError::new(Exit::Failed, error.to_string())
}

#[derive(Debug, clap::Args)]
struct LintArgs {
    /// The policy directory
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct DecideArgs {
    /// The policy directory
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
    /// The scope to decide on
    scope: ScopeId,
    /// Where the repository is published: shows what changed since the last decision
    #[arg(long, value_name = "OUT")]
    published: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// When the directory cannot be read or the files cannot be decided on.
pub async fn run(args: Args) -> CliResult {
    // Reading and asking block; nothing else runs in this process.
    match args.command {
        Command::Lint(args) => lint(&args, SystemClock.now()),
        Command::Decide(args) => decide::run(&args),
        Command::Trust(args) => trust::run(&args, std::sync::Arc::new(SystemClock)).await,
        Command::New(args) => new::run(&args).await,
        Command::Test(args) => test::run(&args),
        Command::Kill(args) => kill::run(&args).await,
        Command::Sign(args) => sign::run(&args).await,
        Command::Publish(args) => publish::run(&args).await,
        Command::Heartbeat(args) => heartbeat::run(&args).await,
    }
}

fn read(directory: &Path) -> Result<PolicyFiles, CliError> {
    let failed = |error: PolicySourceError| CliError::new(Exit::Failed, error.to_string());
    let files = DirectorySource::new(directory).read().map_err(failed)?;
    if files.files.is_empty() {
        let message =
            format!("{}: has no policy files; --policy names the folder above decisions/", directory.display());
        return Err(CliError::new(Exit::Failed, message));
    }
    Ok(files)
}

fn lint(args: &LintArgs, now: Timestamp) -> CliResult {
    let files = read(&args.policy)?;
    let mut report = LintReport::of(&files, Policy::load(&files), now);
    report.warn_of_untested(&args.policy)?;
    match args.output {
        Output::Text => print(report.text())?,
        Output::Json => print(format!("{}\n", report.json()))?,
    }
    Ok(if report.clean() { Exit::Ok } else { Exit::Failed } as u8)
}

struct LintReport {
    version: String,
    active: Vec<ScopeId>,
    suspended: Vec<(ScopeId, Vec<Problem>)>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    refused: bool,
}

impl LintReport {
    fn of(files: &PolicyFiles, loaded: Result<Policy, PolicyError>, now: Timestamp) -> Self {
        let version = files.version.to_string();
        match loaded {
            Err(error) => Self {
                version,
                active: Vec::new(),
                suspended: Vec::new(),
                problems: error.problems,
                warnings: Vec::new(),
                refused: true,
            },
            Ok(policy) => {
                let mut warnings = policy.warnings().to_vec();
                warnings.extend(policy.due(now));
                warnings.sort_by(|a, b| a.file.cmp(&b.file));
                Self {
                    version,
                    active: policy.scopes().cloned().collect(),
                    suspended: policy.suspended().iter().map(|(id, found)| (id.clone(), found.clone())).collect(),
                    problems: policy.stray().to_vec(),
                    warnings,
                    refused: false,
                }
            }
        }
    }

    /// Warns of scopes without table tests.
    fn warn_of_untested(&mut self, directory: &Path) -> Result<(), CliError> {
        let tables = table::tables(directory).map_err(failed)?;
        for scope in self.active.iter().filter(|scope| !tables.contains_key(&format!("decisions/{scope}{TESTS}"))) {
            let message = format!("has no table tests: write decisions/{scope}{TESTS}, `policy test` runs it");
            self.warnings.push(Problem::new(format!("decisions/{scope}.toml"), kind::WARNING, message));
        }
        Ok(())
    }

    fn clean(&self) -> bool {
        self.problems.is_empty() && self.suspended.is_empty() && !self.refused
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        };
        if self.refused {
            line("REFUSED: a sidecar would keep the version before this one".to_owned());
        }
        for problem in &self.problems {
            line(format!("problem    {}", plain(&problem.to_string())));
        }
        for (scope, problems) in &self.suspended {
            line(format!("suspended  {scope}"));
            for problem in problems {
                line(format!("           {}", plain(&problem.to_string())));
            }
        }
        for warning in &self.warnings {
            line(format!("warning    {}", plain(&warning.to_string())));
        }
        line(format!(
            "{}: {} active, {} suspended, {} other problems, {} warnings",
            self.version,
            self.active.len(),
            self.suspended.len(),
            self.problems.len(),
            self.warnings.len()
        ));
        text
    }

    fn json(&self) -> serde_json::Value {
        let suspended: serde_json::Map<_, _> =
            self.suspended.iter().map(|(id, problems)| (id.to_string(), json!(problems))).collect();
        json!({
            "clean": self.clean(),
            "refused": self.refused,
            "version": self.version,
            "active": self.active,
            "suspended": suspended,
            "problems": self.problems,
            "warnings": self.warnings,
        })
    }
}

#[cfg(test)]
mod tests;
