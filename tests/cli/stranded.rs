//! A provider that is gone from the configuration while it has live leases: `serve` says so and does not start, unless it
//! is told to leave them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sidemint::clock::{Clock as _, SystemClock};
use sidemint::identity::task_token;
use sidemint::journal::{Change, DiskJournal, record};

use crate::descriptors::{answered, command, serve};

const TASK: &str = "t-00000000000000000000000000";
const LEASE: &str = "l-00000000000000000000000001";
const VAULT: &str = "http://127.0.0.1:1";

/// The journal of a sidecar that ended a task and could not reach its Vault: the secret works for another hour. Returns
/// until when.
async fn journal(directory: &Path) -> String {
    journal_with(directory, json!({})).await
}

/// The same, with these members in the lease instead; those that are null are left out.
async fn journal_with(directory: &Path, members: Value) -> String {
    let now = SystemClock.now().floor_to_second();
    let (soon, later) = (now + Duration::from_secs(1800), now + Duration::from_secs(3600));
    let (_, hash) = task_token::generate().unwrap();
    let upstream = json!({
        "lease": "database/creds/ro/x", "accessor": "a", "address": VAULT, "mount": "jwt", "role": "ledger", "audience": "vault",
    });
    let mut lease = json!({
        "id": LEASE, "task": TASK, "provider": "vault", "grant": "db", "session_name": "report.db.t", "state": "ending",
        "revocation": "exact", "opened_at": now, "usable_until": later, "upstream": upstream.to_string(),
    });
    for (name, value) in members.as_object().unwrap() {
        lease[name] = value.clone();
    }
    lease.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let line = json!({ "id": LEASE, "provider": "vault", "outcome": "expires", "usable_until": later });
    let task = json!({
        "id": TASK, "owner": "spiffe://example.org/report", "proof": "jwt-svid", "proved_until": later,
        "ask": { "scope": "db" }, "hold": false, "token": hash, "tier": "baseline", "policy_version": "1-ab", "begun_at": now,
        "deadline": soon, "ending": { "reason": "done", "ended_at": now, "leases": [line] },
    });
    let (journal, _) = DiskJournal::open(&directory.join("state")).unwrap();
    let changes = vec![
        Change::Task(Box::new(serde_json::from_value(task).unwrap())),
        Change::Lease(Box::new(serde_json::from_value(lease).unwrap())),
    ];
    record(&journal, changes).await.unwrap();
    drop(journal);
    later.to_string()
}

/// Its exit code and what it complained of. The journal that this process held may be locked for a moment longer.
fn refused(directory: &Path, more: &[(&str, &str)]) -> (Option<i32>, String) {
    (0..200)
        .map(|_| {
            let output = command(directory, more).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        })
        .find(|(_, said)| !said.contains("in use by another process"))
        .unwrap()
}

/// The line that says why, among those of the log.
fn refusal(said: &str) -> &str {
    said.lines().find(|line| line.starts_with("sidemint: ")).unwrap_or_default()
}

#[tokio::test]
async fn serve_does_not_start_without_a_provider_that_has_live_leases() {
    let directory = tempfile::tempdir().unwrap();
    let until = journal(directory.path()).await;
    let another: &[_] = &[("SIDEMINT_VAULT_ADDRESS", "http://127.0.0.1:2")];
    for configured in [&[][..], another] {
        let (code, said) = refused(directory.path(), configured);
        assert_eq!(code, Some(2), "{said}");
        let refusal = refusal(&said);
        let told = format!(
            "sidemint: vault: 1 credential can be used there until {until}, and the vault they came from is not"
        );
        assert!(refusal.starts_with(&told) && refusal.contains("state.abandon = [\"vault\"]"), "{said}");
    }
    let (code, said) = refused(directory.path(), &[("SIDEMINT_STATE_ABANDON", "valt")]);
    assert!(code == Some(2) && said.contains("\"valt\" is unknown"), "{said}");
    let (code, said) = refused(directory.path(), &[("SIDEMINT_STATE_ABANDON", "aws")]);
    assert!(
        code == Some(2) && said.contains("1 credential can be used there"),
        "another word is not that word: {said}"
    );
}

#[tokio::test]
async fn starts_with_abandoned_leases_when_configured_and_reports_them() {
    let directory = tempfile::tempdir().unwrap();
    let until = journal(directory.path()).await;
    refused(directory.path(), &[]);
    let (serve, _, admin) = serve(directory, &[("SIDEMINT_STATE_ABANDON", "vault")]);
    let audit = fs::read_to_string(serve.directory.path().join("audit.jsonl")).unwrap();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let abandoned: Vec<_> = lines.iter().filter(|line| line["outcome"] == "abandoned").collect();
    let [line] = abandoned.as_slice() else { panic!("{audit}") };
    assert_eq!([&line["event"], &line["lease"], &line["task"]], ["revocation", LEASE, TASK]);
    assert_eq!(line["usable_until"], until.as_str());
    let status = answered(admin, "/status");
    let status: Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(status["leases"], json!({ "active": 1, "outstanding": 1, "to_revoke": 1 }));
    assert_eq!([&status["outstanding"][0]["id"], &status["outstanding"][0]["usable_until"]], [LEASE, until.as_str()]);
    let page = answered(admin, "/");
    assert!(page.contains(LEASE) && page.contains(&until), "the status page tells it too");
    assert!(answered(admin, "/metrics").contains("sidemint_revocations_outstanding{provider=\"vault\"} 1\n"));
}

#[tokio::test]
async fn with_its_provider_configured_as_it_was_serve_starts() {
    let directory = tempfile::tempdir().unwrap();
    journal(directory.path()).await;
    // with the lock gone for sure
    refused(directory.path(), &[]);
    let (_serve, _, admin) = serve(directory, &[("SIDEMINT_VAULT_ADDRESS", "http://127.0.0.1:1/")]);
    assert!(answered(admin, "/livez").starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn counts_an_unanswered_intent_of_another_vault_as_out_of_reach() {
    let directory = tempfile::tempdir().unwrap();
    let unanswered = json!({ "upstream": null, "revocation": "expire", "place": VAULT });
    let until = journal_with(directory.path(), unanswered).await;
    let (code, said) = refused(directory.path(), &[("SIDEMINT_VAULT_ADDRESS", "http://127.0.0.1:2")]);
    let told = format!("sidemint: vault: 1 credential can be used there until {until}");
    assert!(code == Some(2) && refusal(&said).starts_with(&told), "{said}");
    let (_serve, _, admin) = serve(directory, &[("SIDEMINT_VAULT_ADDRESS", VAULT)]);
    assert!(answered(admin, "/livez").starts_with("HTTP/1.1 200"));
}
