//! Metrics are an interface: their names are a list under review, their series do not grow with what callers send.

use std::collections::BTreeSet;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use serde_json::json;

use crate::http::{Call, Connection};
use crate::policy_files::{FOREIGN, REPORT};
use crate::world::{Setup, World, secs, settle};

/// Every series of a page: name and labels, without the value. The two gauges of expiry are there only while there is
/// something that expires: a time of 0 would set off every alert.
fn series(page: &str) -> BTreeSet<String> {
    let expiry = ["sidemint_credential_expiry_timestamp_seconds", "sidemint_svid_expiry_timestamp_seconds"];
    page.lines()
        .filter(|line| !line.starts_with('#') && !expiry.iter().any(|name| line.starts_with(name)))
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

#[tokio::test]
async fn the_names_and_labels_are_those_of_the_list() {
    // A signed policy has series that an unsigned one has not.
    let w = World::with(Setup { signed: true, ..Setup::default() }).await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    let page = w.metrics().await;
    let mut names = BTreeSet::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        if name.starts_with("process_") {
            continue;
        }
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let mut labels: Vec<_> = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0)).collect();
        labels.retain(|label| *label != "le");
        names.insert(format!("{name}{{{}}}", labels.join(",")));
    }
    let listed = include_str!("../fixtures/metrics.txt");
    let listed: BTreeSet<String> = listed.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    assert_eq!(names, listed);
    let helped: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    let typed: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(helped, typed);
}

#[tokio::test]
async fn two_thousand_requests_of_any_kind_add_no_series() {
    let w = World::with(Setup { tasks: 60, ..Setup::default() }).await;
    let at_first = series(&w.metrics().await);
    let tasks = [w.begin_scope("brief").await, w.begin(json!({ "scope": "brief", "ttl": "60s" })).await];
    let svids = [w.svid(REPORT), w.svid(FOREIGN), w.api.issue(REPORT, "elsewhere")];
    let pick = (0usize..12, 0usize..10, 0usize..8, 0usize..10, "[ -~]{0,24}");
    let mut runner = TestRunner::deterministic();
    let mut connection = Connection::open(w.address).await;
    let mut statuses = BTreeSet::new();
    for _ in 0..2000 {
        let (method, path, proof, scope, noise) = pick.new_tree(&mut runner).unwrap().current();
        let method =
            ["GET", "GET", "GET", "POST", "POST", "POST", "POST", "DELETE", "PUT", "OPTIONS", "HEAD", "BREW"][method];
        let noise: String = noise.chars().filter(|c| c.is_ascii_alphanumeric() || "-._~/%".contains(*c)).collect();
        let target = match path {
            0..=3 => "/v1/tasks".to_owned(),
            4 | 5 => "/v1/aws/credentials".to_owned(),
            6 => format!("/v1/tasks/{}", tasks[1].id),
            7 => format!("/v1/tasks/{noise}"),
            8 => format!("/v1/tasks/{}/credentials", tasks[0].id),
            _ => format!("/{noise}"),
        };
        let proof = match proof {
            0..=2 => svids[0].clone(),
            3 => svids[1].clone(),
            4 => svids[2].clone(),
            5 => tasks[0].token.clone(),
            6 => tasks[1].token.clone(),
            _ => noise.clone(),
        };
        let scopes = [
            "archive",
            "brief",
            "walled",
            "elevated",
            "emergency",
            "suspended",
            "others-only",
            "ledger-read",
            "idling",
        ];
        let body = json!({ "scope": scopes.get(scope).copied().unwrap_or(&noise), "task": noise });
        let call = Call::new(method, &target).bearer(&proof).json(&body);
        let bytes = call.bytes(w.address);
        connection.send(&bytes).await;
        // HEAD has no body and holds never end: of those only the head is read.
        statuses.insert(connection.stream_head().await.status);
        connection = Connection::open(w.address).await;
        w.clock.advance(secs(1));
    }
    settle().await;
    w.broker.sweep_now().await;
    assert!(statuses.is_superset(&[200, 201, 400, 401, 403, 404, 405].into()), "{statuses:?}");
    let grown: Vec<_> = series(&w.metrics().await).symmetric_difference(&at_first).cloned().collect();
    assert_eq!(grown, Vec::<String>::new());
}

#[tokio::test]
async fn gauges_say_what_is_there_now() {
    let w = World::new().await;
    let gauge = async |series: &str| w.metric(series).await;
    let (active, leases) =
        ("sidemint_tasks_active{tier=\"baseline\"}", "sidemint_leases_active{provider=\"aws\",revocation=\"expire\"}");
    let expiry = "sidemint_credential_expiry_timestamp_seconds{provider=\"aws\"}";
    assert_eq!([gauge(active).await, gauge(leases).await, gauge(expiry).await], [Some(0.0), Some(0.0), None]);
    let task = w.begin_scope("archive").await;
    let told = crate::world::time(&w.served(&task.token).await["Expiration"]);
    assert_eq!([gauge(active).await, gauge(leases).await], [Some(1.0), Some(1.0)]);
    assert_eq!(gauge(expiry).await, Some(told.as_secs() as f64));
    w.end(&task).await;
    // Ended, and its credential still usable: that is what the gauge is for.
    assert_eq!([gauge(active).await, gauge(leases).await, gauge(expiry).await], [Some(0.0), Some(1.0), None]);
    w.clock.advance(secs(1201));
    assert_eq!(gauge(leases).await, Some(0.0));
    assert_eq!(gauge("sidemint_scopes_suspended{reason=\"digest_mismatch\"}").await, Some(1.0));
    assert_eq!(gauge("sidemint_policy_state{state=\"unsigned\"}").await, Some(1.0));
    assert_eq!(gauge("sidemint_policy_version").await, Some(0.0));
    assert_eq!(gauge("sidemint_policy_expiry_timestamp_seconds{role=\"timestamp\"}").await, None);
}
