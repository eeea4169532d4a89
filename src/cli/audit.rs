//! `sidemint audit`: does an audit log say what was written?

use std::fmt::Write as _;
use std::path::PathBuf;

use super::{CliError, CliResult, Exit, Output, plain, print};
use crate::audit::chain::Head;
use crate::audit::key::{PublicKey, SigningKey};
use crate::audit::remembered_head;
use crate::audit::verify::{Options, Report, verify};
use crate::config::default_state_directory;

/// Verify an audit log, and show what proves it
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Find lines that were edited, dropped, reordered, repeated or cut off
    ///
    /// A file brings its rotated parts with it; a directory all its files. Without --key the first key in the log is
    /// trusted, and whoever replaced the whole log is not found out. What follows the last checkpoint, and that
    /// checkpoint itself, can be cut off without a trace in the log: give --head to see that.
    Verify(VerifyArgs),
    /// Print the public key that signs the checkpoints of the sidecar here
    Key(StateArgs),
    /// Print number and hash of the last line that the sidecar here has written, for `verify --head`
    Head(StateArgs),
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The log: files, or directories of files
    #[arg(required = true, value_name = "FILE|DIR")]
    logs: Vec<PathBuf>,
    /// A key that may sign checkpoints, as `sidemint audit key` prints it; may be repeated
    #[arg(long = "key", value_name = "PUBLIC KEY")]
    keys: Vec<PublicKey>,
    /// The last line that the log must have
    #[arg(long, value_name = "SEQ:HASH")]
    head: Option<Head>,
    /// The log may begin in the middle, as an excerpt does
    #[arg(long)]
    part: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct StateArgs {
    /// The sidecar's state directory
    #[arg(long, env = "SIDEMINT_STATE_DIRECTORY", value_name = "DIR")]
    state: Option<PathBuf>,
}

impl StateArgs {
    fn directory(&self) -> Result<PathBuf, CliError> {
        let default = || default_state_directory(|name| std::env::var(name).ok());
        self.state.clone().or_else(default).ok_or_else(|| {
            CliError::new(Exit::Usage, "name the sidecar's state directory: --state DIR or SIDEMINT_STATE_DIRECTORY")
        })
    }
}

/// Runs the command: 0 when nothing is wrong with the log, 1 when something is.
///
/// # Errors
/// What to print and the exit code.
pub fn run(args: &Args) -> CliResult {
    match &args.command {
        Command::Verify(args) => run_verify(args),
        Command::Key(args) => {
            let key = SigningKey::load(&args.directory()?).map_err(|error| failed(&error))?;
            print(format!("{}\n", key.public()))?;
            Ok(Exit::Ok as u8)
        }
        Command::Head(args) => {
            let directory = args.directory()?;
            let head = remembered_head(&directory).map_err(|error| {
                failed(&format!("{}: the head of the audit log cannot be read: {error}", directory.display()))
            })?;
            print(format!("{head}\n"))?;
            Ok(Exit::Ok as u8)
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> CliError {
    CliError::new(Exit::Failed, error.to_string())
}

fn run_verify(args: &VerifyArgs) -> CliResult {
    let options = Options { keys: args.keys.clone(), head: args.head, part: args.part };
    let report = verify(&args.logs, options).map_err(|error| failed(&error))?;
    match args.output {
        Output::Text => print(text(&report, args.head.is_some()))?,
        Output::Json => {
            let mut json = serde_json::to_vec(&report).map_err(|error| failed(&error))?;
            json.push(b'\n');
            print(json)?;
        }
    }
    Ok(if report.ok { Exit::Ok as u8 } else { Exit::Failed as u8 })
}

fn text(report: &Report, head_given: bool) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let kind = serde_json::to_value(problem.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
        let place = plain(&problem.file.display().to_string());
        let kind = kind.unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{place}:{}: {kind}: {}", problem.line, plain(&problem.detail));
    }
    let listed = u64::try_from(report.problems.len()).unwrap_or(u64::MAX);
    if report.problem_count > listed {
        let _ = writeln!(text, "and {} more", report.problem_count - listed);
    }
    let verdict = if report.ok { "ok" } else { "NOT OK" };
    let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (files, lines) = (counted(report.files, "file"), counted(report.lines, "line"));
    let checkpoints = counted(report.checkpoints, "good checkpoint");
    let _ = writeln!(text, "{verdict}: {lines} in {files}, {checkpoints}");
    if let (Some(first), Some(head)) = (report.first_seq, &report.head) {
        let _ = writeln!(text, "  lines      {first} to {head}");
    }
    match report.signed_until {
        Some((seq, time)) => {
            let _ = writeln!(text, "  signed     up to line {seq}, {time}");
        }
        None => text.push_str("  signed     nothing\n"),
    }
    if report.unsigned_tail > 0 {
        let _ =
            writeln!(text, "  unsigned   the last {}: chained, not yet proved", counted(report.unsigned_tail, "line"));
    }
    let source = if report.keys_given { "given" } else { "taken from the log itself: give --key to know whose it is" };
    for key in &report.keys {
        let _ = writeln!(text, "  key        {key}, {source}");
    }
    if report.first_seq.is_some_and(|seq| seq > 1) {
        text.push_str("  beginning  earlier lines are not here: rotated away, or another file's\n");
    }
    if !head_given {
        text.push_str("  end        not known from elsewhere: give --head to see whether the end was cut off\n");
    }
    text
}
