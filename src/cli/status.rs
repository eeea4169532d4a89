//! `sidemint status`: is the sidecar ready, and what does it hold?

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::Value;

use super::client::{Address, OutstandingView, PolicyStatus, Sidecar, Status};
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
    let leases = &status.leases;
    let (active, outstanding, to_revoke) = (leases.active, leases.outstanding, leases.to_revoke);
    let _ = writeln!(text, "leases          {active} active, {outstanding} of ended tasks, {to_revoke} to revoke");
    for lease in &status.outstanding {
        let _ = writeln!(text, "  outstanding   {}", outstanding_text(lease));
    }
    if let Some(more @ 1..) = outstanding.checked_sub(status.outstanding.len() as u64) {
        let _ = writeln!(text, "  outstanding   and {more} more");
    }
    let _ = writeln!(text, "journal         {} pending", status.journal.pending);
    text
}

fn policy_text(text: &mut String, policy: &PolicyStatus) {
    let status = |status: &Option<String>| plain(status.as_deref().unwrap_or("none"));
    let _ = writeln!(
        text,
        "policy          {}, {}, {}",
        status(&policy.version),
        status(&policy.state),
        status(&policy.trust)
    );
    let _ = writeln!(text, "  scopes        {} active, {} suspended", policy.active_scopes, policy.suspended.len());
    for (scope, problems) in &policy.suspended {
        for problem in problems {
            let _ = writeln!(text, "  suspended     {}: {}", plain(scope), plain(&message(problem)));
        }
    }
    let _ = writeln!(text, "  kill list     {} in force", policy.killed);
    for (role, end) in &policy.ends {
        let _ = writeln!(text, "  expires       {} at {}", plain(role), plain(end));
    }
    for problem in &policy.problems {
        let _ = writeln!(text, "  problem       {}", plain(&located(problem)));
    }
    if let Some(refusal) = &policy.last_refusal {
        for problem in &refusal.problems {
            let _ = writeln!(text, "  last refusal  {}: {}", plain(&refusal.at), plain(&located(problem)));
        }
    }
    for note in &policy.notes {
        let _ = writeln!(text, "  note          {}", plain(note));
    }
}

/// One line on a credential that outlives its task.
fn outstanding_text(lease: &OutstandingView) -> String {
    let mut text = format!("{} {}", plain(&lease.provider), plain(&lease.id));
    if let Some(task) = &lease.task {
        let _ = write!(text, " of {}", plain(task));
    }
    let _ = write!(text, ": usable until {}, ", lease.usable_until);
    match (lease.to_revoke, lease.tries, &lease.last_error) {
        (false, ..) => text.push_str("dies by itself"),
        (true, 0, _) => text.push_str("to be revoked"),
        (true, tries, error) => {
            let error = lease.detail.as_deref().or(error.as_deref()).unwrap_or("unknown");
            let _ = write!(text, "NOT REVOKED after {tries} tries: {}", plain(error));
        }
    }
    text
}

/// What a problem says: text, or an object with a `message`.
fn message(problem: &Value) -> String {
    let message = problem.get("message").unwrap_or(problem);
    message.as_str().map_or_else(|| message.to_string(), str::to_owned)
}

/// The same, after the file that it is about.
fn located(problem: &Value) -> String {
    match problem.get("file").and_then(Value::as_str) {
        Some(file) => format!("{file}: {}", message(problem)),
        None => message(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_expiries_of_a_signed_policy_and_the_last_refusal() {
        let json = r#"{"ready":true,"reasons":[],"version":"0.1.0","policy":{"version":"7-0f","state":"stale","trust":"signed","active_scopes":3,"killed":2,
            "ends":{"security":"2026-12-01T00:00:00Z","timestamp":"2026-11-23T10:00:00Z"},
            "problems":[{"file":"boundaries/b.cedar","kind":"rule","message":"unexpected token"}],
            "last_refusal":{"at":"2026-11-23T09:00:00Z","problems":[{"file":"(source)","kind":"unreadable","message":"rollback: \u001b[31mold"}]},
            "notes":["policy state was damaged and is repaired: high-water.a is empty"]},
            "workload_api":{"connected":true,"svids":1},"tasks":{"active":0,"ended":0},"leases":{"active":0},"journal":{"pending":0}}"#;
        let address = "unix:///run/admin.sock".parse().unwrap();
        let text = text(&address, &serde_json::from_str(json).unwrap());
        for part in [
            "7-0f, stale, signed",
            "kill list     2 in force",
            "expires       security at 2026-12-01T00:00:00Z",
            "expires       timestamp at 2026-11-23T10:00:00Z",
            "problem       boundaries/b.cedar: unexpected token",
            "last refusal  2026-11-23T09:00:00Z: (source): rollback: ",
            "note          policy state was damaged",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "no control characters reach the terminal: {text}");
    }

    #[test]
    fn shows_outstanding_credentials_and_why_they_are_not_revoked() {
        let json = r#"{"ready":true,"version":"0.1.0","leases":{"active":5,"outstanding":4,"to_revoke":2},"outstanding":[
            {"id":"l-1","provider":"vault","to_revoke":true,"usable_until":"2026-11-23T10:15:00Z","tries":4,"last_error":"refused",
             "detail":"refused by the provider: \u001b[31mHTTP 403","task":"t-1"},
            {"id":"l-2","provider":"vault","to_revoke":true,"usable_until":"2026-11-23T10:16:00Z"},
            {"id":"l-3","provider":"aws","to_revoke":false,"usable_until":"2026-11-23T10:17:00Z"}]}"#;
        let address = "unix:///run/admin.sock".parse().unwrap();
        let text = text(&address, &serde_json::from_str(json).unwrap());
        for line in [
            "leases          5 active, 4 of ended tasks, 2 to revoke",
            "  outstanding   vault l-1 of t-1: usable until 2026-11-23T10:15:00Z, NOT REVOKED after 4 tries: refused by the provider:  [31mHTTP 403",
            "  outstanding   vault l-2: usable until 2026-11-23T10:16:00Z, to be revoked",
            "  outstanding   aws l-3: usable until 2026-11-23T10:17:00Z, dies by itself",
            "  outstanding   and 1 more",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}: {text}");
        }
    }

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
