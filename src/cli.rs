//! The command line: one file per command.
//!
//! A command is a module with `Args` and `run`; `Command` lists them and `GROUPS` says where `--help` shows them.
//! What several commands share: [`client`] speaks to a sidecar, [`own_svid`] fetches the SVID of whoever runs the command.

pub mod audit;
mod aws_deny;
pub mod client;
#[cfg(feature = "dev")]
pub mod demo;
#[cfg(feature = "dev")]
pub mod dev;
pub mod doctor;
pub mod exec;
pub mod own_svid;
pub mod policy;
pub mod serve;
pub mod status;
pub mod svid;
pub mod task;

use std::fmt;
use std::io::{self, Write as _};

use clap::builder::styling::Style;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

/// How a command ends: the exit codes that users and scripts can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what was asked.
    Ok = 0,
    /// It failed.
    Failed = 1,
    /// It was asked wrongly: arguments or configuration.
    Usage = 2,
    /// Policy or a provider refused.
    Denied = 3,
    /// Something it needs is not there now.
    Unavailable = 4,
}

/// Why a command failed: one line that says what is wrong and how to fix it, and the exit code.
#[derive(Debug)]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// One line for the terminal.
    pub message: String,
}

impl CliError {
    /// An error that ends the command with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

/// What every command's `run` returns: its exit code, or an error to print.
pub type CliResult = Result<u8, CliError>;

/// How `--help` groups the commands. A command that is not built in is not shown.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Run it", &["serve", "demo", "dev", "doctor", "status"]),
    ("Use it", &["exec", "task", "svid"]),
    ("Govern it", &["policy", "audit"]),
    ("Deliver it", &["completions", "man"]),
];

/// Mints just-enough cloud credentials: access belongs to a task, and ends with it.
#[derive(Debug, Parser)]
#[command(name = "sidemint", version, long_version = LONG_VERSION, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[cfg(feature = "dev")]
macro_rules! world {
    () => {
        "built in"
    };
}
#[cfg(not(feature = "dev"))]
macro_rules! world {
    () => {
        "not built in"
    };
}

/// What `--version` says.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nlicence:  ",
    env!("CARGO_PKG_LICENSE"),
    "\nTLS:      rustls with aws-lc",
    "\ndemo/dev: ",
    world!(),
);

/// Every command.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar: authenticate, decide, mint, serve, revoke
    Serve(serve::Args),
    /// See the whole story in one terminal: no network, no configuration
    #[cfg(feature = "dev")]
    Demo(demo::Args),
    /// Keep the demo's world up to try things out: a SPIFFE authority, a cloud and a sidecar
    #[cfg(feature = "dev")]
    Dev(dev::Args),
    /// Check what a sidecar needs here, and say how to fix what is missing
    Doctor(doctor::Args),
    /// Show whether the sidecar is ready, and what it holds
    Status(status::Args),
    /// Run a command inside a task: it gets credentials, and loses them when it ends
    Exec(exec::Args),
    /// Begin, list, show and end tasks
    Task(task::Args),
    #[cfg_attr(feature = "author", doc = "Write, test, decide on, sign and publish policy")]
    #[cfg_attr(not(feature = "author"), doc = "Check policy, and begin to trust where it is published")]
    Policy(policy::Args),
    /// Verify an audit log, and show what proves it
    Audit(audit::Args),
    /// Fetch and print one's own SVIDs
    Svid(svid::Args),
    #[command(name = exec::LAUNCH, hide = true)]
    Launch(exec::LaunchArgs),
}

impl Cli {
    /// Reads the process's arguments. Does not return when they ask for help, ask for the version or are wrong: then
    /// it prints and exits, with 2 where they are wrong.
    pub fn from_env() -> Self {
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The runtime that the command needs: all cores for a server, this thread alone for the others.
    ///
    /// # Errors
    /// When the system gives no threads or descriptors.
    pub fn runtime(&self) -> io::Result<tokio::runtime::Runtime> {
        let mut builder = match self.command {
            Command::Serve(_) => tokio::runtime::Builder::new_multi_thread(),
            #[cfg(feature = "dev")]
            Command::Demo(_) | Command::Dev(_) => tokio::runtime::Builder::new_multi_thread(),
            _ => tokio::runtime::Builder::new_current_thread(),
        };
        builder.enable_all().build()
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    /// What to print and the exit code.
    pub async fn run(self) -> CliResult {
        match self.command {
            Command::Serve(args) => serve::run(args).await,
            #[cfg(feature = "dev")]
            Command::Demo(args) => demo::run(args).await,
            #[cfg(feature = "dev")]
            Command::Dev(args) => dev::run(args).await,
            Command::Doctor(args) => doctor::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Exec(args) => exec::run(args).await,
            Command::Task(args) => task::run(args).await,
            Command::Svid(args) => svid::run(args).await,
            Command::Policy(args) => policy::run(args).await,
            Command::Audit(args) => audit::run(&args),
            Command::Launch(args) => exec::launch(args),
        }
    }
}

/// The clap tree, with the groups of `GROUPS` in its help.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let template = help_template(&command);
    command.help_template(template)
}

fn help_template(command: &clap::Command) -> String {
    let (heading, literal) = (Style::new().bold().underline(), Style::new().bold());
    let mut template = format!("{{about-with-newline}}\n{heading}Usage:{heading:#} {{usage}}\n");
    for (title, names) in GROUPS {
        let present: Vec<_> = names.iter().filter_map(|name| command.find_subcommand(name)).collect();
        if present.is_empty() {
            continue;
        }
        template.push_str(&format!("\n{heading}{title}:{heading:#}\n"));
        for sub in present {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            template.push_str(&format!("  {literal}{:<8}{literal:#} {about}\n", sub.get_name()));
        }
    }
    template.push_str(&format!("\n{heading}Options:{heading:#}\n{{options}}\n\n"));
    template.push_str("Exit codes: 0 ok, 1 failed, 2 usage, 3 denied, 4 unavailable.\n");
    template.push_str("`sidemint COMMAND --help` tells more.\n");
    template
}

/// How a command prints its data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document.
    Json,
}

/// Writes `bytes` to standard output. A reader that has gone (`| head`) is no error: it has what it wanted.
///
/// # Errors
/// When standard output cannot be written for another reason, e.g. a full disk.
pub fn print(bytes: impl AsRef<[u8]>) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::new(Exit::Failed, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes one `sidemint: …` line to standard error.
pub fn complain(message: &str) {
    // Nothing can be done when even this cannot be written.
    let _ = writeln!(io::stderr().lock(), "sidemint: {}", plain(message));
}

/// `text` on one line and without control characters: what comes from elsewhere must not steer the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The flag's value, else the environment variable's where it is set and not empty, else `default`.
pub(crate) fn setting(flag: Option<&str>, variable: &str, default: &str) -> String {
    let env = || std::env::var(variable).ok().filter(|value| !value.is_empty());
    flag.map(str::to_owned).or_else(env).unwrap_or_else(|| default.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_visible_command_is_in_exactly_one_group() {
        for sub in command().get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            let groups = GROUPS.iter().filter(|(_, names)| names.contains(&sub.get_name())).count();
            assert_eq!(groups, 1, "{}", sub.get_name());
        }
    }

    #[test]
    fn help_shows_the_groups_and_only_commands_that_exist() {
        let help = command().render_help().to_string();
        assert!(help.contains("Run it:") && help.contains("Use it:"), "{help}");
        assert!(help.contains("exec") && !help.contains("completions") && !help.contains(exec::LAUNCH), "{help}");
    }

    #[test]
    fn keeps_foreign_text_on_one_line_without_control_characters() {
        assert_eq!(plain("a\r\nb\u{1b}[2Jc\u{9b}d"), "a  b [2Jc d");
    }
}
