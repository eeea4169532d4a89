//! `sidemint policy …`: policy files, before a sidecar reads them: written, tested, decided on, signed, published. Where
//! sidecars run, `lint` and `trust` are enough: the rest is feature `author`.

#[cfg(feature = "author")]
mod decide;
#[cfg(feature = "author")]
mod heartbeat;
#[cfg(feature = "author")]
mod kill;
#[cfg(feature = "author")]
mod new;
#[cfg(feature = "author")]
mod publish;
#[cfg(feature = "author")]
mod sign;
#[cfg(feature = "author")]
mod signing;
#[cfg(feature = "author")]
mod test;
mod trust;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::{CliError, CliResult, Exit, Output, plain, print};
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::policy::repository::{DirectorySource, PolicyFiles, PolicySourceError};
use crate::policy::{Policy, PolicyError, Problem, ScopeId};

/// Write, test, decide on, sign and publish policy.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a working repository: keys for every role, and one scope that is decided on and signed
    #[cfg(feature = "author")]
    New(new::Args),
    /// Check a policy directory: every problem, every suspended scope, and what is worth a second look
    Lint(LintArgs),
    /// Show what a scope's decision would be about, then write the digests of its scope and grants into it
    #[cfg(feature = "author")]
    Decide(decide::Args),
    /// Begin to trust a signed policy repository: show its root and its owners, then remember it
    Trust(trust::Args),
    /// Ask the policy what the table tests beside the decisions ask
    #[cfg(feature = "author")]
    Test(test::Args),
    /// Add one key holder's signature to one role, from the folder as it is
    #[cfg(feature = "author")]
    Sign(sign::Args),
    /// Check what was signed as sidecars will, then publish it
    #[cfg(feature = "author")]
    Publish(publish::Args),
    /// Say that what is published is still the newest: sign a new timestamp over it
    #[cfg(feature = "author")]
    Heartbeat(heartbeat::Args),
    /// Stop something everywhere, now: one entry of the kill list, signed and published
    #[cfg(feature = "author")]
    Kill(Box<kill::Args>),
}

#[derive(Debug, clap::Args)]
struct LintArgs {
    /// The policy directory
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
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
        #[cfg(feature = "author")]
        Command::Decide(args) => decide::run(&args),
        Command::Trust(args) => trust::run(&args, std::sync::Arc::new(SystemClock)).await,
        #[cfg(feature = "author")]
        Command::New(args) => new::run(&args).await,
        #[cfg(feature = "author")]
        Command::Test(args) => test::run(&args),
        #[cfg(feature = "author")]
        Command::Kill(args) => kill::run(&args).await,
        #[cfg(feature = "author")]
        Command::Sign(args) => sign::run(&args).await,
        #[cfg(feature = "author")]
        Command::Publish(args) => publish::run(&args).await,
        #[cfg(feature = "author")]
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
    let report = LintReport::of(&files, Policy::load(&files), now);
    // Where they can be run, they are missed.
    #[cfg(feature = "author")]
    let report = report.with_untested(&args.policy)?;
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
    #[cfg(feature = "author")]
    fn with_untested(mut self, directory: &Path) -> Result<Self, CliError> {
        use crate::policy::{kind, publish::table, repository::TESTS};
        let tables = table::tables(directory).map_err(signing::failed)?;
        for scope in self.active.iter().filter(|scope| !tables.contains_key(&format!("decisions/{scope}{TESTS}"))) {
            let message = format!("has no table tests: write decisions/{scope}{TESTS}, `policy test` runs it");
            self.warnings.push(Problem::new(format!("decisions/{scope}.toml"), kind::WARNING, message));
        }
        Ok(self)
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
        let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        line(format!(
            "{}: {} active, {} suspended, {}, {}",
            self.version,
            self.active.len(),
            self.suspended.len(),
            counted(self.problems.len(), "other problem"),
            counted(self.warnings.len(), "warning")
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
