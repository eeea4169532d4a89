//! `sidemint doctor`: what a sidecar needs here, checked one by one, each with its fix. Of the providers it looks at those that
//! are configured or granted.

mod host;
mod identity;
mod providers;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::{CliError, CliResult, Exit, Output, plain, print};
use crate::check::{Check, Level};
use crate::clock::{SharedClock, SystemClock};
use crate::config::{Config, PolicyPlace};

/// Check what a sidecar needs here, and say how to fix what is missing.
///
/// It reads the same configuration as `serve`; flags win over it. Run it as the user, and in the place, of the sidecar:
/// the SPIFFE agent tells identities by the process that asks. Exits 0 when nothing failed; warnings do not count.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sidecar's configuration file; every key can also be given as `SIDEMINT_SECTION_KEY`
    #[arg(long, env = "SIDEMINT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// In place of identity.workload_api
    #[arg(long, value_name = "URI")]
    workload_api: Option<String>,
    /// In place of aws.sts_endpoint
    #[arg(long, value_name = "URL")]
    sts_endpoint: Option<String>,
    /// In place of policy.directory
    #[arg(long, value_name = "DIR")]
    policy: Option<String>,
    /// In place of server.http
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// In place of admin.http
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// In place of state.directory
    #[arg(long, value_name = "DIR")]
    state: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Args {
    /// The sidecar's configuration, under the flags.
    fn load(&self) -> Result<Config, crate::config::ConfigError> {
        let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let flags = [
            ("SIDEMINT_IDENTITY_WORKLOAD_API", &self.workload_api),
            ("SIDEMINT_AWS_STS_ENDPOINT", &self.sts_endpoint),
            ("SIDEMINT_POLICY_DIRECTORY", &self.policy),
            ("SIDEMINT_SERVER_HTTP", &self.http),
            ("SIDEMINT_ADMIN_HTTP", &self.admin),
            ("SIDEMINT_STATE_DIRECTORY", &self.state),
        ];
        let flags = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        // Later pairs win over earlier ones of the same name.
        Config::load(self.config.as_deref(), environment.chain(flags))
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

impl Report {
    fn new(checks: Vec<Check>) -> Self {
        Self { ok: checks.iter().all(|check| check.level != Level::Fail), checks }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let level = match check.level {
                Level::Ok => "ok  ",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            let _ = writeln!(text, "{level}  {:<20} {}", check.name, plain(&check.detail));
            if let Some(fix) = &check.fix {
                let _ = writeln!(text, "{:26} → {}", "", plain(fix));
            }
        }
        let count = |level| self.checks.iter().filter(|check| check.level == level).count();
        let (failed, warned) = (count(Level::Fail), count(Level::Warn));
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let checks = self.checks.len();
        let (s, t) = (plural(checks), plural(warned));
        let _ = writeln!(text, "{checks} check{s}, {failed} failed, {warned} warning{t}");
        text
    }
}

/// Runs the command: 0 when nothing failed, else 1.
///
/// # Errors
/// When the report cannot be printed.
pub async fn run(args: Args) -> CliResult {
    let report = Report::new(match args.load() {
        Ok(config) => examine(&config, Arc::new(SystemClock)).await,
        Err(error) => vec![Check::fail("configuration", error.to_string(), "fix this first; the rest depends on it")],
    });
    match args.output {
        Output::Text => print(report.text())?,
        Output::Json => {
            let json = serde_json::to_string_pretty(&report);
            let json = json.map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
            print(json + "\n")?;
        }
    }
    Ok(if report.ok { Exit::Ok as u8 } else { Exit::Failed as u8 })
}

async fn examine(config: &Config, clock: SharedClock) -> Vec<Check> {
    let (policy, granted) = match &config.policy.place {
        PolicyPlace::Unsigned(directory) => host::policy(directory, &config.policy.scopes),
        PolicyPlace::Signed(repository) => (host::repository(repository, &config.state.directory), None),
    };
    let (exchanges, missing) = providers::to_examine(config, &clock, granted);
    let mut checks = vec![Check::ok("configuration", "can be used")];
    checks.extend(identity::examine(config, &exchanges, &clock).await);
    checks.push(policy);
    checks.extend(missing);
    for exchange in &exchanges {
        checks.extend(exchange.examine().await);
    }
    checks.push(host::port("port for workloads", config.server.http, &clock).await);
    checks.push(host::port("port for operators", config.admin.http, &clock).await);
    checks.push(host::state(&config.state.directory));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_fails_doctor_and_a_warning_does_not() {
        let warned = Report::new(vec![Check::ok("a", "fine"), Check::warn("b", "odd", "look")]);
        assert!(warned.ok);
        assert!(warned.text().contains("→ look") && warned.text().contains("2 checks, 0 failed, 1 warning"));
        let failed = Report::new(vec![Check::fail("c", "bad", "do\nthis")]);
        assert!(!failed.ok);
        assert!(failed.text().contains("→ do this"));
        assert_eq!(serde_json::to_value(&failed).unwrap()["checks"][0]["level"], "fail");
    }
}
