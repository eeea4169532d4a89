//! `policy trust`: somebody looks at a signed repository's root and owners, and says that it is to be believed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::app::{fetch, trust_anchor};
use crate::cli::{CliError, CliResult, Exit, Output, plain, print};
use crate::clock::SharedClock;
use crate::config::{RepositorySettings, default_state_directory, repository_place};
use crate::policy::PolicyVersion;
use crate::policy::repository::fault::{Fault, FaultKind};
use crate::policy::repository::signed::{Examined, SignedSettings, SignedSource};
use crate::policy::repository::trusted::RoleSummary;
use crate::policy::standing::OWNERS;

/// Begin to trust a signed policy repository.
///
/// Shows who may sign what, asks, looks at the repository once, and writes into the state directory what it saw. From then
/// on the sidecar refuses anything older, and takes a state directory that lacks it for a loss. Run it as the sidecar's
/// user, while the sidecar is stopped.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The root.json to trust, from whoever publishes the policy
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// The repository: https://HOST/PATH, or the folder above metadata/ and targets/
    #[arg(long, value_name = "URL|DIR")]
    repository: String,
    /// The sidecar's state directory. Default: as of `serve`
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The least snapshot version to believe
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    minimum_version: Option<u64>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

fn refused(fault: &Fault) -> CliError {
    let exit = match fault.kind() {
        FaultKind::Unreachable => Exit::Unavailable,
        FaultKind::State => Exit::Failed,
        _ => Exit::Denied,
    };
    CliError::new(exit, fault.to_string())
}

fn usage(message: impl Into<String>) -> CliError {
    CliError::new(Exit::Usage, message)
}

impl Args {
    fn source(&self, clock: SharedClock) -> Result<SignedSource, CliError> {
        let absolute = match self.repository.contains("://") {
            true => self.repository.clone(),
            // A folder may be named from where one is.
            false => std::path::absolute(&self.repository)
                .map_err(|error| usage(format!("--repository: {error}")))?
                .display()
                .to_string(),
        };
        let repository = repository_place(&absolute)
            .ok_or_else(|| usage("--repository: write https://HOST/PATH, or the folder above metadata/"))?;
        let default = || default_state_directory(|name| std::env::var(name).ok());
        let state = self.state.clone().or_else(default).ok_or_else(|| usage("--state: name the state directory"))?;
        let repository = RepositorySettings {
            repository,
            root: self.root.clone(),
            minimum_version: self.minimum_version,
            ca: None,
            proxy: None,
            client_svid: false,
            server_id: None,
            timeout: std::time::Duration::from_secs(10),
        };
        let settings = SignedSettings {
            anchor: trust_anchor(&self.root).map_err(|why| usage(format!("--root: {why}")))?,
            state,
            minimum_version: self.minimum_version,
            scopes: BTreeSet::new(),
        };
        let fetch = fetch(&repository).map_err(|error| usage(error.to_string()))?;
        SignedSource::new(settings, fetch, clock).map_err(|fault| refused(&fault))
    }
}

/// Runs the command.
///
/// # Errors
/// When the root or the repository is not to be believed, or nobody says that it is.
pub(super) async fn run(args: &Args, clock: SharedClock) -> CliResult {
    let source = args.source(clock)?;
    let examined = source.examine().await.map_err(|fault| refused(&fault))?;
    if args.output == Output::Text {
        print(text(&examined))?;
    }
    if !args.yes {
        confirm()?;
    }
    let version = source.trust().await.map_err(|fault| refused(&fault))?;
    match args.output {
        Output::Text => print(format!("trusted from now on, beginning with version {version}\n"))?,
        Output::Json => print(format!("{}\n", report(&examined, &version)))?,
    }
    Ok(Exit::Ok as u8)
}

/// Who may sign the five folders, as the charter says.
fn owners(examined: &Examined) -> Vec<RoleSummary> {
    let charter = examined.verified.roles.get("targets").map(|(_, bytes)| bytes.as_ref()).unwrap_or_default();
    // Verified before.
    let charter: Value = serde_json::from_slice(charter).unwrap_or_default();
    let roles = charter.pointer("/signed/delegations/roles").and_then(Value::as_array).cloned().unwrap_or_default();
    let of = |role: &Value| {
        let keys = role.get("keyids")?.as_array()?;
        Some(RoleSummary {
            role: role.get("name")?.as_str()?.to_owned(),
            keys: keys.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect(),
            threshold: usize::try_from(role.get("threshold")?.as_u64()?).ok()?,
        })
    };
    roles.iter().filter_map(of).collect()
}

/// How many files of each folder there are.
fn counts(examined: &Examined) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for path in examined.verified.files.files.keys() {
        *counts.entry(path.split('/').next().unwrap_or_default()).or_default() += 1;
    }
    counts
}

fn text(examined: &Examined) -> String {
    let ends = &examined.verified.standing.ends;
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", plain(&line));
    };
    line(format!("root {} and version {}", examined.roots.mark().version, examined.verified.files.version));
    for role in examined.roots.summary().into_iter().chain(owners(examined)) {
        let end = ends.get(role.role.as_str()).map(ToString::to_string).unwrap_or_default();
        let folder = OWNERS.iter().find(|(name, _)| *name == role.role).map(|(_, folder)| format!("{folder}/"));
        let folder = folder.unwrap_or_default();
        line(format!("{:<16} {folder:<12} {} of {} keys, until {end}", role.role, role.threshold, role.keys.len()));
        for key in &role.keys {
            line(format!("{:17}{key}", ""));
        }
    }
    for (folder, count) in counts(examined) {
        line(format!("{:<16} {count} files", format!("{folder}/")));
    }
    for path in examined.verified.files.files.keys().filter(|path| path.starts_with("owners/")) {
        line(format!("{:17}{path}", ""));
    }
    text
}

fn report(examined: &Examined, version: &PolicyVersion) -> Value {
    let ends = &examined.verified.standing.ends;
    let role = |role: &RoleSummary| json!({"role": role.role, "keys": role.keys, "threshold": role.threshold, "until": ends.get(role.role.as_str())});
    let roles: Vec<Value> = examined.roots.summary().iter().chain(&owners(examined)).map(role).collect();
    json!({
        "version": version,
        "root": {"version": examined.roots.mark().version, "digest": examined.roots.mark().digest.to_string()},
        "roles": roles,
        "files": counts(examined),
    })
}

fn confirm() -> Result<(), CliError> {
    let failed = |message: String| CliError::new(Exit::Failed, message);
    if !io::stdin().is_terminal() {
        return Err(usage("there is no terminal to ask on: add --yes once you have looked"));
    }
    let asked = write!(io::stderr(), "Trust this? [y/N] ").and_then(|()| io::stderr().flush());
    asked.map_err(|error| failed(format!("cannot ask: {error}")))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| failed(format!("cannot read the answer: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(failed("not trusted; nothing was written".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use crate::policy::repository::sample::Sample;
    use crate::policy::repository::store::Store;

    const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

    fn sample(folder: &Path) -> Sample {
        let files = BTreeMap::from([("owners/finance-data.toml".to_owned(), "schema = 1".into())]);
        let mut sample = Sample::new(files, &[]).unwrap();
        sample.publish(NOW).unwrap();
        sample.write_to(&folder.join("repository")).unwrap();
        std::fs::write(folder.join("root.json"), sample.anchor()).unwrap();
        sample
    }

    fn args(folder: &Path) -> Args {
        Args {
            root: folder.join("root.json"),
            repository: folder.join("repository").display().to_string(),
            state: Some(folder.join("state")),
            minimum_version: None,
            yes: true,
            output: Output::Text,
        }
    }

    async fn trust(args: &Args) -> Result<u8, CliError> {
        run(args, Arc::new(ManualClock::at(NOW))).await
    }

    #[tokio::test]
    async fn shows_who_may_sign_what_then_remembers_it() {
        let folder = tempfile::tempdir().unwrap();
        let sample = sample(folder.path());
        let args = args(folder.path());
        let examined = args.source(Arc::new(ManualClock::at(NOW))).unwrap().examine().await.unwrap();
        let shown = text(&examined);
        for role in ["root", "timestamp", "targets", "governance", "incident"] {
            let key = sample.role_keys(role).keys[0].id();
            assert!(shown.contains(role) && shown.contains(&key), "{role}\n{shown}");
        }
        assert!(shown.contains("2 of 2 keys, until 2026-12-") && shown.contains("owners/finance-data.toml"), "{shown}");
        assert!(!Store::is_begun(&folder.path().join("state")), "looking writes nothing");
        assert_eq!(trust(&args).await.unwrap(), 0);
        assert!(Store::is_begun(&folder.path().join("state")));
        // again is harmless
        assert_eq!(trust(&args).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn refuses_to_overwrite_trust_in_another_root() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        trust(&args(folder.path())).await.unwrap();
        sample(folder.path());
        let error = trust(&args(folder.path())).await.unwrap_err();
        assert_eq!(error.exit, Exit::Denied);
        assert!(error.message.starts_with("other_fleet: "), "{error}");
    }

    #[tokio::test]
    async fn refuses_a_root_that_did_not_sign_the_repository_and_one_that_is_none() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        let other = Sample::new(BTreeMap::new(), &[]).unwrap().publish_root(NOW).unwrap();
        std::fs::write(folder.path().join("root.json"), other).unwrap();
        let error = trust(&args(folder.path())).await.unwrap_err();
        assert!(error.message.starts_with("signature: "), "{error}");
        std::fs::write(folder.path().join("root.json"), "{}").unwrap();
        let error = trust(&args(folder.path())).await.unwrap_err();
        assert!(error.message.starts_with("malformed: "), "{error}");
        assert!(!Store::is_begun(&folder.path().join("state")));
    }

    #[tokio::test]
    async fn without_a_terminal_it_asks_for_a_yes() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        if io::stdin().is_terminal() {
            return;
        }
        let args = Args { yes: false, ..args(folder.path()) };
        assert_eq!(trust(&args).await.unwrap_err().exit, Exit::Usage);
        assert!(!Store::is_begun(&folder.path().join("state")));
    }

    #[tokio::test]
    async fn a_repository_below_the_minimum_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        let args = Args { minimum_version: Some(2), ..args(folder.path()) };
        assert!(trust(&args).await.unwrap_err().message.starts_with("below_minimum: "));
    }
}
