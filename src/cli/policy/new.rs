//! `policy new`: a working repository to begin with.

use std::path::PathBuf;

use super::signing::{Time, failed};
use crate::cli::{CliResult, Exit, print};
use crate::clock::SystemClock;
use crate::policy::publish::new;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder to make; it must be absent or empty
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    time: Time,
}

pub(super) async fn run(args: &Args) -> CliResult {
    let made = new::create(&args.directory, &SystemClock, args.time.now()).await.map_err(failed)?;
    let dir = args.directory.display();
    print(format!(
        "{dir}: a working repository with {} new keys in {dir}/keys and one scope, {}, decided on and signed\n\n\
         Next:\n  \
         sidemint policy lint --policy {dir}\n  \
         sidemint policy test --policy {dir}\n  \
         sidemint policy publish --policy {dir} --to OUT     # then serve OUT by any web server\n  \
         sidemint policy heartbeat --to OUT --timestamp-key {dir}/keys/timestamp.pem --every 1m\n\n\
         OUT/metadata/1.root.json is what deployments trust: ship it with the sidecar.\n\
         Move each key in {dir}/keys to its holder's machine before you rely on it: docs/publishing.md.\n",
        made.keys, made.scope
    ))?;
    Ok(Exit::Ok as u8)
}
