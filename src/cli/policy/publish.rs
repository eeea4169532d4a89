//! `policy publish`: the gate, then the new version.

use std::path::PathBuf;

use serde_json::json;

use super::signing::{Online, Time, failed};
use crate::cli::{CliResult, Exit, Output, plain, print};
use crate::clock::SystemClock;
use crate::policy::ScopeId;
use crate::policy::publish::release::{self, Options, PublishReport};
use crate::policy::publish::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The working repository
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
    /// Where the repository is published: OUT/metadata and OUT/targets
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    #[command(flatten)]
    online: Online,
    /// A scope that this version may newly suspend; may be repeated
    #[arg(long, value_name = "SCOPE")]
    suspend: Vec<ScopeId>,
    /// A command that tries each new or changed grant: it gets the grant as JSON, and refuses by a non-zero exit
    #[arg(long, value_name = "COMMAND")]
    dry_mint: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    time: Time,
}

pub(super) async fn run(args: &Args) -> CliResult {
    let workspace = Workspace::open(&args.policy).map_err(failed)?;
    let options = Options {
        keys: args.online.keys(),
        suspend: args.suspend.iter().cloned().collect(),
        dry_mint: args.dry_mint.clone(),
    };
    let report =
        release::publish(&workspace, &args.to, &options, &SystemClock, args.time.now()).await.map_err(failed)?;
    match args.output {
        Output::Text => print(text(&report))?,
        Output::Json => print(format!("{}\n", json(&report)))?,
    }
    Ok(Exit::Ok as u8)
}

pub(super) fn text(report: &PublishReport) -> String {
    let mut text = String::new();
    for warning in &report.warnings {
        text.push_str(&format!("warning    {}\n", plain(warning)));
    }
    for scope in &report.suspended {
        text.push_str(&format!("suspended  {scope}, as you said\n"));
    }
    if report.tried > 0 {
        text.push_str(&format!("dry mint   {} new or changed grants work\n", report.tried));
    }
    if report.unchanged {
        text.push_str(&format!("nothing changed: {} stays\n", report.version));
        return text;
    }
    let roles: Vec<_> = report.roles.iter().map(|(role, version)| format!("{role} {version}")).collect();
    let roles = if roles.is_empty() { "a new snapshot and timestamp".to_owned() } else { roles.join(", ") };
    text.push_str(&format!("published {}: {roles}\n", report.version));
    text
}

pub(super) fn json(report: &PublishReport) -> serde_json::Value {
    let roles: serde_json::Map<_, _> =
        report.roles.iter().map(|(role, version)| (role.clone(), json!(version))).collect();
    json!({
        "version": report.version,
        "unchanged": report.unchanged,
        "roles": roles,
        "suspended": report.suspended,
        "tried": report.tried,
        "warnings": report.warnings,
    })
}
