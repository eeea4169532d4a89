//! `policy test`: the table tests beside the decisions.

use std::path::PathBuf;

use serde_json::json;

use super::signing::{Time, failed};
use crate::cli::{CliResult, Exit, Output, plain, print};
use crate::policy::publish::table::{self, Results};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The policy directory
    #[arg(long, value_name = "DIR")]
    policy: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    time: Time,
}

pub(super) fn run(args: &Args) -> CliResult {
    let results = table::run(&args.policy, args.time.now()).map_err(failed)?;
    match args.output {
        Output::Text => print(text(&results))?,
        Output::Json => print(format!("{}\n", json(&results)))?,
    }
    // Without a case nothing was shown.
    let good = results.failed() == 0 && !results.cases.is_empty();
    Ok(if good { Exit::Ok } else { Exit::Failed } as u8)
}

fn text(results: &Results) -> String {
    let mut text = String::new();
    for broken in &results.broken {
        text.push_str(&format!("FAIL     {}\n", plain(broken)));
    }
    for case in results.cases.iter().filter(|case| !case.differences.is_empty()) {
        text.push_str(&format!("FAIL     {}: {}\n", case.scope, plain(&case.case)));
        for difference in &case.differences {
            text.push_str(&format!("         {}\n", plain(difference)));
        }
    }
    for scope in &results.untested {
        text.push_str(&format!("warning  {scope}: has no tests: write decisions/{scope}.tests.toml\n"));
    }
    let failed = results.failed();
    text.push_str(&format!("{} cases, {failed} failed\n", results.cases.len()));
    text
}

fn json(results: &Results) -> serde_json::Value {
    json!({
        "failed": results.failed(),
        "cases": results.cases,
        "broken": results.broken,
        "untested": results.untested,
    })
}
