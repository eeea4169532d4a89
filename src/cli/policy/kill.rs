//! `policy kill`: stop something everywhere, now.

mod deny;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::publish;
use super::signing::{Online, Time, failed, sources};
use crate::cli::aws_deny::{self, Deny};
use crate::cli::{CliError, CliResult, Exit, Output, complain, plain, print};
use crate::clock::{SystemClock, Timestamp};
use crate::policy::kill::{Stop, Target};
use crate::policy::publish::kill::{self, Done, KillChange, Order};
use crate::policy::publish::published::Published;
use crate::policy::publish::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The working repository
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    policy: Option<PathBuf>,
    /// Where the repository is published
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    #[command(flatten)]
    what: What,
    /// Why; it goes to every audit log, never to callers
    #[arg(long, required_unless_present_any = ["list", "lift"])]
    reason: Option<String>,
    /// When it is over (RFC 3339, UTC) [default: when it is lifted]
    #[arg(long, value_name = "TIME", conflicts_with_all = ["list", "lift"])]
    until: Option<Timestamp>,
    /// The entry's id [default: made of the time]
    #[arg(long, value_name = "WORD", conflicts_with_all = ["list", "lift"])]
    id: Option<String>,
    /// A private key of the role incident; may be repeated
    #[arg(long, value_name = "FILE.pem")]
    key: Vec<PathBuf>,
    /// A command that signs for incident
    #[arg(long, value_name = "COMMAND")]
    signer: Vec<String>,
    #[command(flatten)]
    online: Online,
    /// How long the list is valid [default: as repository.toml says]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    /// Also print the Deny that stops what is already out at AWS before its own end, and how to put it on and take it off
    #[arg(long, conflicts_with_all = ["list", "lift"])]
    print_aws_deny: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    time: Time,
}

/// What to stop, or what else to do with the list.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Stop a scope
    #[arg(long)]
    scope: Option<String>,
    /// Stop a workload
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// Stop every workload of a trust domain
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// Stop one task
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// Stop every scope with this grant
    #[arg(long)]
    grant: Option<String>,
    /// Stop every scope of this owner
    #[arg(long)]
    owner: Option<String>,
    /// Stop every scope with a grant at this provider
    #[arg(long)]
    provider: Option<String>,
    /// Stop everything
    #[arg(long)]
    all: bool,
    /// Take an entry off the list
    #[arg(long, value_name = "ID")]
    lift: Option<String>,
    /// Show the published list
    #[arg(long)]
    list: bool,
}

impl What {
    /// The member of an entry, and its word.
    fn member(&self) -> Option<(&'static str, String)> {
        let members = [
            ("scope", &self.scope),
            ("spiffe_id", &self.spiffe_id),
            ("trust_domain", &self.trust_domain),
            ("task", &self.task),
            ("grant", &self.grant),
            ("owner", &self.owner),
            ("provider", &self.provider),
        ];
        members.into_iter().find_map(|(name, word)| Some((name, word.clone()?)))
    }
}

pub(super) async fn run(args: &Args) -> CliResult {
    if args.what.list {
        show(args, &kill::list(&args.to).await.map_err(failed)?)?;
        return Ok(Exit::Ok as u8);
    }
    let usage = |message: &str| CliError::new(Exit::Usage, message);
    let directory = args.policy.as_ref().ok_or_else(|| usage("give --policy DIR"))?;
    let incident = sources(&args.key, &args.signer);
    if incident.is_empty() {
        return Err(usage("give --key FILE.pem or --signer COMMAND, of the role incident"));
    }
    let change = match &args.what.lift {
        Some(id) => KillChange::Lift(id.clone()),
        None => KillChange::Add {
            id: args.id.clone(),
            what: args.what.member(),
            reason: args.reason.clone().unwrap_or_default(),
            until: args.until,
        },
    };
    let (workspace, broken) = Workspace::open_for_kill(directory).map_err(failed)?;
    if let Some(broken) = broken {
        complain(&format!("{broken}; the kill goes by what is published"));
    }
    let online = args.online.keys();
    let order =
        Order { change: &change, incident: &incident, online: &online, expires: args.expires, now: args.time.now() };
    let done = kill::kill(&workspace, &args.to, &order, &SystemClock).await.map_err(failed)?;
    if done.folder_differs {
        complain("kill/list.toml of the working repository says something else than what is published: look at it");
    }
    let denies = if args.print_aws_deny { Some(denies(args, &done).await) } else { None };
    match denies {
        None => tell(args, &done, None)?,
        Some(Ok(denies)) => tell(args, &done, Some(&denies))?,
        Some(Err(error)) => {
            // The kill is published, whatever becomes of the rest.
            tell(args, &done, None)?;
            return Err(error);
        }
    }
    Ok(Exit::Ok as u8)
}

/// What stops at AWS what the new entry is about, by what is published.
async fn denies(args: &Args, done: &Done) -> Result<Vec<Deny>, CliError> {
    let published = Published::read(&args.to).await.map_err(failed)?;
    let files = published.as_ref().map(|published| &published.files().files);
    let what = args.what.member();
    let what = what.as_ref().map(|(member, word)| (*member, word.as_str()));
    Ok(files.map(|files| deny::of_entry(files, what, &done.id, args.time.now())).unwrap_or_default())
}

fn tell(args: &Args, done: &Done, denies: Option<&[Deny]>) -> Result<(), CliError> {
    if args.output == Output::Json {
        let report = publish::json(&done.report);
        let mut value = json!({"id": done.id, "entries": done.entries, "published": report});
        if let (Some(denies), Some(members)) = (denies, value.as_object_mut()) {
            members.insert("aws_deny".to_owned(), aws_deny::json(denies, &[]));
        }
        return print(format!("{value}\n"));
    }
    print(publish::text(&done.report))?;
    let entries = counted(done.entries);
    match &args.what.lift {
        Some(id) => print(format!("lifted {id}; the list has {entries}\n")),
        None => print(format!(
            "{}: every sidecar that reads this repository stops it at its next poll, within 35 s; the list has \
             {entries}\nundo: sidemint policy kill --policy DIR --to OUT --key FILE.pem --lift {0}\n",
            done.id
        )),
    }?;
    let Some(denies) = denies else { return Ok(()) };
    let which = format!("what entry {} stops", done.id);
    print(aws_deny::text(denies, &which, " and the entry is lifted", &[]))?;
    if denies.is_empty() { Ok(()) } else { print(format!("{}\n", deny::ALIKE)) }
}

fn show(args: &Args, stops: &[Stop]) -> Result<(), CliError> {
    let now = args.time.now();
    if args.output == Output::Json {
        let stops: Vec<_> = stops
            .iter()
            .map(|stop| {
                let (member, word) = told(&stop.target);
                json!({"id": stop.id, "stops": {member: word}, "reason": stop.reason, "until": stop.until, "in_force": stop.in_force(now)})
            })
            .collect();
        return print(format!("{}\n", json!({"stops": stops})));
    }
    for stop in stops {
        let (member, word) = told(&stop.target);
        let until = stop.until.map_or_else(|| "until it is lifted".to_owned(), |until| format!("until {until}"));
        let past = if stop.in_force(now) { "" } else { ", past" };
        print(format!("{}  {member} {word}  {until}{past}: {}\n", stop.id, plain(&stop.reason)))?;
    }
    print(format!("{}\n", counted(stops.len())))
}

/// `count` entries, in words.
fn counted(count: usize) -> String {
    format!("{count} {}", if count == 1 { "entry" } else { "entries" })
}

fn told(target: &Target) -> (&'static str, String) {
    match target {
        Target::Scope(id) => ("scope", id.to_string()),
        Target::SpiffeId(id) => ("spiffe_id", id.as_str().to_owned()),
        Target::TrustDomain(name) => ("trust_domain", name.as_str().to_owned()),
        Target::Task(id) => ("task", id.to_string()),
        Target::Grant(id) => ("grant", id.to_string()),
        Target::Owner(id) => ("owner", id.clone()),
        Target::Provider(word) => ("provider", word.clone()),
        Target::All => ("all", "true".to_owned()),
    }
}
