//! `sidemint status`: is the sidecar ready, and what does it hold?

use std::fmt::Write as _;
use std::sync::Arc;

use super::client::{Address, PolicyStatus, Sidecar, Status};
use super::{CliResult, Exit, Output, plain, print};
use crate::clock::SystemClock;

/// Show whether the sidecar is ready, and what it holds. SIDEMINT_ADMIN names its admin listener (default
/// http://127.0.0.1:9871); the admin Unix socket also tells identities and tasks.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command: 0 when the sidecar is ready, 4 when it is not or does not answer.
///
/// # Errors
/// What to print and the exit code.
pub async fn run(args: Args) -> CliResult {
    let sidecar = Sidecar::admin_from_env(Arc::new(SystemClock))?;
    let answer = sidecar.status().await?;
    match args.output {
        Output::Text => print(text(sidecar.address(), &answer.value))?,
        Output::Json => {
            print(answer.raw.as_ref())?;
            if !answer.raw.as_ref().ends_with(b"\n") {
                print("\n")?;
            }
        }
    }
    Ok(if answer.value.ready { Exit::Ok as u8 } else { Exit::Unavailable as u8 })
}

fn text(address: &Address, status: &Status) -> String {
    let ready = if status.ready { "ready" } else { "NOT READY" };
    let mut text = format!("sidemint {} at {address}: {ready}\n", plain(&status.version));
    for reason in &status.reasons {
        let _ = writeln!(text, "  because       {}", plain(reason));
    }
    policy_text(&mut text, &status.policy);
    let connected = if status.workload_api.connected { "connected" } else { "NOT CONNECTED" };
    let _ = writeln!(text, "workload API    {connected}, {} X.509-SVIDs", status.workload_api.svids);
    for identity in status.identities.iter().flatten() {
        let _ = writeln!(text, "  identity      {} until {}", identity.spiffe_id, identity.expires_at);
    }
    let _ = writeln!(text, "tasks           {} active, {} ended", status.tasks.active, status.tasks.ended);
    for task in status.task_list.iter().flatten() {
        let (id, scope, state) = (plain(&task.id), plain(&task.scope), plain(&task.state));
        let _ = writeln!(text, "  task          {id} {scope} {state} {}", task.spiffe_id);
    }
    let _ = writeln!(text, "leases          {} active", status.leases.active);
    let _ = writeln!(text, "journal         {} pending", status.journal.pending);
    text
}

fn policy_text(text: &mut String, policy: &PolicyStatus) {
    let word = |word: &Option<String>| plain(word.as_deref().unwrap_or("none"));
    let _ =
        writeln!(text, "policy          {}, {}, {}", word(&policy.version), word(&policy.state), word(&policy.trust));
    let _ = writeln!(text, "  scopes        {} active, {} suspended", policy.active_scopes, policy.suspended.len());
    for (scope, problems) in &policy.suspended {
        for problem in problems {
            let message = problem.get("message").unwrap_or(problem);
            let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
            let _ = writeln!(text, "  suspended     {}: {}", plain(scope), plain(&message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_why_a_sidecar_is_not_ready_and_what_is_suspended() {
        let json = r#"{"ready":false,"reasons":["no SVID yet"],"version":"0.1.0",
            "policy":{"version":"dir:ab","state":"fresh","trust":"unsigned","active_scopes":1,
              "suspended":{"ledger-read":["bad digest",{"file":"f","kind":"parse","message":"unknown key"}]}},
            "workload_api":{"connected":false,"svids":0},"tasks":{"active":2,"ended":3},"leases":{"active":1},
            "journal":{"pending":0},"identities":[{"spiffe_id":"spiffe://a.test/b","expires_at":"2026-11-23T10:00:00Z"}]}"#;
        let address = "unix:///run/admin.sock".parse().unwrap();
        let text = text(&address, &serde_json::from_str(json).unwrap());
        for part in [
            "at unix:///run/admin.sock: NOT READY",
            "no SVID yet",
            "dir:ab, fresh, unsigned",
            "1 active, 1 suspended",
            "ledger-read: bad digest",
            "ledger-read: unknown key",
            "NOT CONNECTED",
            "2 active, 3 ended",
            "spiffe://a.test/b until 2026-11-23T10:00:00Z",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
