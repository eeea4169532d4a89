//! `sidemint task begin|list|show|end`: tasks by hand.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use serde_json::Value;

use super::aws_deny;
use super::client::{Address, Answer, BeginRequest, Begun, Ending, LeaseEnding, Sidecar, TaskList, TaskView};
use super::{CliError, CliResult, Exit, Output, own_svid, plain, print};
use crate::clock::{SharedClock, SystemClock};
use crate::identity::task_token;
use crate::policy::{ParamName, ScopeId};
use crate::secret::Secret;
use crate::server::dialect;

/// Begin, list, show and end tasks.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin a task and print its token
    Begin(BeginArgs),
    /// List one's own tasks
    List(ListArgs),
    /// Show one task and what was minted for it
    Show(OneArgs),
    /// End a task, and say what is left of its access, and when that expires
    End(EndArgs),
}

/// What a task is asked for; `exec` asks the same.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Ask {
    /// The scope: why access is needed
    #[arg(long, value_name = "SCOPE")]
    pub(super) scope: ScopeId,
    /// A parameter of the scope; may be repeated
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = parse_param)]
    pub(super) params: Vec<(ParamName, String)>,
    /// The longest that the task may last, e.g. 15m [default: what policy allows]
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    pub(super) ttl: Option<String>,
    /// Why, in your words; break-glass needs it
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// A label of your own for the task
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<String>,
}

impl Ask {
    /// The request's body.
    ///
    /// # Errors
    /// Usage, when a parameter is given twice.
    pub(super) fn request(&self, hold: bool) -> Result<BeginRequest, CliError> {
        let mut request = BeginRequest {
            scope: self.scope.to_string(),
            task: self.label.clone(),
            params: std::collections::BTreeMap::new(),
            ttl: self.ttl.clone(),
            hold,
            reason: self.reason.clone(),
        };
        for (name, value) in &self.params {
            if request.params.insert(name.to_string(), value.clone()).is_some() {
                return Err(CliError::new(Exit::Usage, format!("--param {name} is given twice; give it once")));
            }
        }
        Ok(request)
    }
}

fn parse_param(text: &str) -> Result<(ParamName, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    let name = name.parse().map_err(|error| format!("the key {error}"))?;
    Ok((name, value.to_owned()))
}

/// Checks the text here, where the fix is near; the sidecar reads it again.
fn parse_ttl(text: &str) -> Result<String, String> {
    match humantime::parse_duration(text) {
        Ok(ttl) if ttl.is_zero() => Err("must be longer than zero".into()),
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; write e.g. 15m or 1h30m")),
    }
}

#[derive(Debug, clap::Args)]
struct BeginArgs {
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    svid: own_svid::Args,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
struct ReadArgs {
    #[command(flatten)]
    svid: own_svid::Args,
    /// Prove yourself by the task's token in this file, not by your SVID [env: SIDEMINT_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Begin after this task: the list goes on where another one was cut
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, clap::Args)]
struct OneArgs {
    /// The task's id
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, clap::Args)]
struct EndArgs {
    #[command(flatten)]
    one: OneArgs,
    /// End it whoever's it is, through the admin Unix socket: SIDEMINT_ADMIN=unix:///PATH
    #[arg(long, conflicts_with_all = ["token_file", "spiffe_id"])]
    operator: bool,
    /// Also print the Deny that stops the task's session at AWS before its own end, and how to put it on and take it off
    #[arg(long)]
    print_aws_deny: bool,
}

impl ReadArgs {
    /// The token of the file, where one is named; else one's own JWT-SVID.
    async fn proof(&self, clock: SharedClock) -> Result<Secret, CliError> {
        let from_env = || std::env::var_os("SIDEMINT_TOKEN_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        match self.token_file.clone().or_else(from_env) {
            Some(path) => read_token(&path),
            None => Ok(self.svid.fetch(clock).await?.token),
        }
    }
}

/// Reads a task's token; a newline at the end is allowed here, as editors and `echo` leave one.
fn read_token(path: &Path) -> Result<Secret, CliError> {
    let usage = |problem: String| CliError::new(Exit::Usage, format!("token file {}: {problem}", path.display()));
    let mut text = zeroize::Zeroizing::new(String::with_capacity(256));
    let file = std::fs::File::open(path).map_err(|error| usage(error.to_string()))?;
    file.take(256).read_to_string(&mut text).map_err(|error| usage(error.to_string()))?;
    let token = text.trim_end_matches(['\r', '\n']);
    match task_token::TokenHash::of(token) {
        Some(_) => Ok(Secret::new(token.to_owned())),
        None => Err(usage("holds no task token (smt_ and 43 characters)".into())),
    }
}

/// Runs the command.
///
/// # Errors
/// What to print and the exit code.
pub async fn run(args: Args) -> CliResult {
    let clock: SharedClock = Arc::new(SystemClock);
    let sidecar = Sidecar::from_env(clock.clone())?;
    match args.command {
        Command::Begin(args) => {
            let request = args.ask.request(false)?;
            let proof = args.svid.fetch(clock.clone()).await?.token;
            let answer = sidecar.begin(&proof, &idempotency_key()?, &request).await?;
            show(&answer, args.output, begun_text)
        }
        Command::List(ListArgs { after, read }) => {
            let answer = sidecar.list(&read.proof(clock.clone()).await?, after.as_deref()).await?;
            show(&answer, read.output, list_text)
        }
        Command::Show(OneArgs { id, read }) => {
            let answer = sidecar.show(&read.proof(clock.clone()).await?, &id).await?;
            show(&answer, read.output, task_text)
        }
        Command::End(args) => end(args, sidecar, clock).await,
    }
}

/// Who ends a task.
enum Ender {
    /// Its owner or holder, by this proof.
    Owner(Secret),
    /// Whoever can open the admin Unix socket.
    Operator,
}

async fn end(args: EndArgs, sidecar: Sidecar, clock: SharedClock) -> CliResult {
    let OneArgs { id, read } = args.one;
    let (sidecar, ender) = if args.operator {
        let sidecar = Sidecar::admin_from_env(clock)?;
        if !matches!(sidecar.address(), Address::Unix(_)) {
            let message = "--operator needs the admin Unix socket: set SIDEMINT_ADMIN=unix:///PATH (admin.unix_socket)";
            return Err(CliError::new(Exit::Usage, message));
        }
        (sidecar, Ender::Operator)
    } else {
        (sidecar, Ender::Owner(read.proof(clock).await?))
    };
    let answer = match &ender {
        Ender::Owner(proof) => sidecar.end(proof, &id).await?,
        Ender::Operator => sidecar.end_as_operator(&id).await?,
    };
    if !args.print_aws_deny {
        show(&answer, read.output, ending_text)?;
        return durable(&answer.value);
    }
    // It has ended, whatever becomes of the rest: that is told first.
    let task = match &ender {
        Ender::Owner(proof) => sidecar.show(proof, &id).await,
        Ender::Operator => sidecar.show_as_operator(&id).await,
    };
    let denies = task
        .map_err(CliError::from)
        .and_then(|task| aws_deny::of_task(&task.value).map_err(|error| CliError::new(Exit::Failed, error)));
    let denies = match denies {
        Ok(denies) => denies,
        Err(error) => {
            show(&answer, read.output, ending_text)?;
            return Err(error);
        }
    };
    match read.output {
        Output::Text => {
            let which = format!("the one session of task {}", plain(&id));
            print(ending_text(&answer.value) + &aws_deny::text(&denies, &which, "", &[aws_deny::CHILDREN]))?;
        }
        Output::Json => {
            // read once already
            let mut ending: Value = serde_json::from_slice(answer.raw.as_ref()).unwrap_or_default();
            if let Value::Object(members) = &mut ending {
                members.insert("aws_deny".to_owned(), aws_deny::json(&denies, &[aws_deny::CHILDREN]));
            }
            print(format!("{ending}\n"))?;
        }
    }
    durable(&answer.value)
}

fn durable(ending: &Ending) -> CliResult {
    match ending.durable {
        true => Ok(Exit::Ok as u8),
        false => Err(CliError::new(Exit::Unavailable, NOT_DURABLE)),
    }
}

/// A fresh key, so that a begin that is repeated after a broken connection begins one task, not two.
pub(super) fn idempotency_key() -> Result<String, CliError> {
    let mut bytes = [0; 16];
    task_token::random(&mut bytes).map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Prints an answer: as it came, or as text.
fn show<T>(answer: &Answer<T>, output: Output, text: impl FnOnce(&T) -> String) -> CliResult {
    match output {
        Output::Text => print(text(&answer.value))?,
        Output::Json => {
            print(answer.raw.as_ref())?;
            if !answer.raw.as_ref().ends_with(b"\n") {
                print("\n")?;
            }
        }
    }
    Ok(Exit::Ok as u8)
}

fn begun_text(begun: &Begun) -> String {
    let mut text = zeroize::Zeroizing::new(String::new());
    let _ = writeln!(text, "task      {}", plain(&begun.id));
    let _ = writeln!(text, "scope     {}", plain(&begun.scope));
    let _ = writeln!(text, "caller    {}", begun.spiffe_id);
    let _ = writeln!(text, "until     {}", begun.expires_at);
    // exposed: whoever begins a task by hand asks for its token
    let _ = writeln!(text, "token     {}", plain(begun.token.expose()));
    for dialect in dialect::ALL {
        let urls = dialect.variables.iter().filter(|variable| matches!(variable.value, dialect::Value::Url(_)));
        for (name, url) in urls.filter_map(|url| Some((url.name, begun.environment.get(url.name)?))) {
            // exposed: an address
            let _ = writeln!(text, "{:<10}{name}={}", dialect.label, plain(url.expose()));
        }
    }
    let _ = writeln!(text, "end it    sidemint task end {}", plain(&begun.id));
    std::mem::take(&mut *text)
}

fn list_text(list: &TaskList) -> String {
    let tasks = &list.tasks;
    if tasks.is_empty() {
        return "no tasks\n".into();
    }
    let mut rows = vec![["TASK", "SCOPE", "STATE", "UNTIL", "LEASES", "LABEL"].map(str::to_owned)];
    rows.extend(tasks.iter().map(|task| {
        [
            plain(&task.id),
            plain(&task.scope),
            plain(&task.state),
            task.ended_at.unwrap_or(task.expires_at).to_string(),
            task.leases.len().to_string(),
            plain(task.task.as_deref().unwrap_or("-")),
        ]
    }));
    let mut text = table(&rows);
    if let Some(next) = &list.next {
        let _ = writeln!(text, "there are more: sidemint task list --after {}", plain(next));
    }
    text
}

/// Left-aligned columns, two blanks apart.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let line: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end());
    }
    text
}

fn task_text(task: &TaskView) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "task      {}", plain(&task.id));
    let _ = writeln!(text, "scope     {} ({})", plain(&task.scope), plain(&task.tier));
    let _ = writeln!(text, "caller    {}", task.spiffe_id);
    if let Some(label) = &task.task {
        let _ = writeln!(text, "label     {}", plain(label));
    }
    let held = if task.hold { ", held" } else { "" };
    let _ = writeln!(text, "state     {}{held}", plain(&task.state));
    let _ = writeln!(text, "begun     {}", task.begun_at);
    match task.ended_at {
        Some(ended) => {
            let _ = writeln!(text, "ended     {ended} ({})", plain(task.reason.as_deref().unwrap_or("unknown")));
        }
        None => {
            let _ = writeln!(text, "until     {}", task.expires_at);
        }
    }
    for lease in &task.leases {
        let (id, provider, state) = (plain(&lease.id), plain(&lease.provider), plain(&lease.state));
        let _ = match lease.state.as_str() {
            "revoked" | "expired" => writeln!(text, "lease     {provider} {id}: {state}"),
            _ => writeln!(text, "lease     {provider} {id}: {state}, usable until {}", lease.usable_until),
        };
    }
    text
}

/// What a task's end left, in the words of every command that ends one.
pub(super) fn ending_text(ending: &Ending) -> String {
    let (id, reason) = (plain(&ending.id), plain(&ending.reason));
    let mut text = format!("task {id} ended at {} ({reason})\n", ending.ended_at);
    if ending.leases.is_empty() {
        text.push_str("  nothing was minted for it\n");
    }
    for lease in &ending.leases {
        let _ = writeln!(text, "  {}", lease_ending_text(lease));
    }
    text
}

/// What to say of an end that the sidecar could not record.
pub(super) const NOT_DURABLE: &str = "the task has ended, but the sidecar cannot write its journal: should it crash before it can, the \
                                      task runs again until its deadline; fix the disk and end it again";

/// One line on what became of a credential. `revoked` only where the provider revoked it (docs/glossary.md).
fn lease_ending_text(lease: &LeaseEnding) -> String {
    let outcome = match lease.outcome.as_str() {
        "revoked" => "revoked".to_owned(),
        "expires" => format!("expires: usable until {}", lease.usable_until),
        other => format!("{}: may be usable until {}", plain(other), lease.usable_until),
    };
    let more = if lease.open_ended { "; what it opened or created (a connection, a key) may outlive that" } else { "" };
    format!("{} {}: {outcome}{more}", plain(&lease.provider), plain(&lease.id))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_parameter_value_may_contain_equals_signs() {
        let (name, value) = parse_param("customer=c=42").unwrap();
        assert_eq!((name.as_str(), value.as_str()), ("customer", "c=42"));
        assert!(parse_param("customer").is_err());
        assert!(parse_param("=x").is_err());
        assert!(parse_param("Bad-Key=x").is_err());
    }

    #[test]
    fn a_ttl_needs_a_unit_and_a_length() {
        assert_eq!(parse_ttl("15m").as_deref(), Ok("15m"));
        assert!(parse_ttl("0s").is_err());
        assert!(parse_ttl("15").is_err());
        assert!(parse_ttl("soon").is_err());
    }

    #[test]
    fn says_revoked_only_where_the_provider_revoked() {
        let text = |outcome: &str| {
            let json = format!(
                r#"{{"id":"t1","reason":"holder","ended_at":"2026-11-23T10:00:00Z","leases":[
                {{"id":"l1","provider":"aws","outcome":"{outcome}","usable_until":"2026-11-23T10:15:00Z"}}]}}"#
            );
            ending_text(&serde_json::from_str(&json).unwrap())
        };
        assert_eq!(
            text("expires"),
            "task t1 ended at 2026-11-23T10:00:00Z (holder)\n  aws l1: expires: usable until 2026-11-23T10:15:00Z\n"
        );
        assert!(text("revoked").ends_with("aws l1: revoked\n"));
        let connected: LeaseEnding = serde_json::from_str(
            r#"{"id":"l1","provider":"aws","outcome":"expires","usable_until":"2026-11-23T10:15:00Z","open_ended":true}"#,
        )
        .unwrap();
        assert!(
            lease_ending_text(&connected)
                .ends_with("10:15:00Z; what it opened or created (a connection, a key) may outlive that")
        );
        assert!(text("dropped").ends_with("dropped: may be usable until 2026-11-23T10:15:00Z\n"));
    }

    #[test]
    fn a_token_file_may_end_in_a_newline_and_must_hold_a_task_token() {
        let (token, _) = task_token::generate().unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{}", token.expose()).unwrap();
        assert!(read_token(file.path()).unwrap().matches(token.expose()));
        let mut other = tempfile::NamedTempFile::new().unwrap();
        write!(other, "smt_hunter2").unwrap();
        let error = read_token(other.path()).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(!error.message.contains("hunter2"));
    }

    #[test]
    fn columns_line_up() {
        let rows = [["A", "B"].map(str::to_owned), ["long", "x"].map(str::to_owned)];
        assert_eq!(table(&rows), "A     B\nlong  x\n");
    }
}
