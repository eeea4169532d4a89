//! `policy sign`: one key holder's signature on one role.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::signing::{Signer, Time, failed};
use crate::cli::{CliError, CliResult, Exit, Output, print};
use crate::clock::SystemClock;
use crate::policy::publish::published::Published;
use crate::policy::publish::sign::{self, Request, SignatureCount, Signed};
use crate::policy::publish::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The working repository
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
    /// What to sign: root, targets, or a role of repository.toml
    #[arg(long)]
    role: String,
    #[command(flatten)]
    signer: Signer,
    /// How long it is valid [default: as repository.toml says]; renews what has not changed
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    /// Drop the signatures that are over something else, and begin again
    #[arg(long)]
    restart: bool,
    /// What is published, where it can be read here: its versions are then followed
    #[arg(long, value_name = "OUT")]
    published: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    time: Time,
}

pub(super) async fn run(args: &Args) -> CliResult {
    let workspace = Workspace::open(&args.policy).map_err(failed)?;
    let key =
        args.signer.source().ok_or_else(|| CliError::new(Exit::Usage, "give --key FILE.pem or --signer COMMAND"))?;
    let published = match &args.published {
        Some(out) => Published::read(out).await.map_err(failed)?,
        None => None,
    };
    let request = Request {
        role: &args.role,
        key: &key,
        expires: args.expires,
        restart: args.restart,
        published: published.as_ref(),
        now: args.time.now(),
    };
    let signed = sign::sign(&workspace, &request, &SystemClock).await.map_err(failed)?;
    match args.output {
        Output::Text => print(text(&signed))?,
        Output::Json => print(format!("{}\n", json(&signed)))?,
    }
    Ok(Exit::Ok as u8)
}

fn text(signed: &Signed) -> String {
    let Signed { role, version, expires, signers, threshold, before, .. } = signed;
    let mut text = format!(
        "{role}: version {version} until {expires}: {} of {threshold} signatures ({})\n",
        signers.len(),
        signers.join(", ")
    );
    if let Some(SignatureCount { have, need }) = before {
        text.push_str(&format!("{role}: {have} of {need} signatures of the root before it\n"));
    }
    text.push_str(&match signed.complete() {
        true => format!("complete: {}\n", signed.file.display()),
        false => format!("not complete: pass {} on to the next key holder\n", signed.file.display()),
    });
    text
}

fn json(signed: &Signed) -> serde_json::Value {
    json!({
        "role": signed.role,
        "version": signed.version,
        "expires": signed.expires,
        "signers": signed.signers,
        "threshold": signed.threshold,
        "of_root_before": signed.before.map(|count| json!({"have": count.have, "threshold": count.need})),
        "begun": signed.begun,
        "complete": signed.complete(),
        "file": signed.file,
    })
}
