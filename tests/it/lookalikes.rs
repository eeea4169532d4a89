//! Callers that look alike (threats T04 and T09): whatever two SPIFFE IDs have in common, nothing of one is ever served to the
//! other.

use std::collections::{BTreeMap, BTreeSet};

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;
use sidemint::exchange::{Credential, Provider};
use sidemint::identity::SpiffeId;
use sidemint::identity::task_token::TokenHash;
use sidemint::identity::workload_api::testing::claims;
use sidemint::policy::cache::RefreshOutcome;

use crate::http::{Call, Reply};
use crate::policy_files::{self, REPORT, Scope};
use crate::world::{AUDIENCE, Begun, START, Setup, World, begun, secs};

const DOMAINS: [&str; 4] = ["example.org", "example.net", "example.org.example.net", "xample.org"];

/// A thousand paths and domains that differ by little: in one letter's case, by a dot, a dash or a segment, by a prefix, or in
/// the trust domain alone. Most end alike, so that their sessions' names begin alike.
fn alike() -> Vec<&'static str> {
    let mut paths = BTreeSet::new();
    for bits in 0_u32..64 {
        let word = "report".char_indices();
        paths.insert(
            word.map(|(at, c)| if bits >> at & 1 == 1 { c.to_ascii_uppercase() } else { c }).collect::<String>(),
        );
    }
    for at in 0..=6 {
        for mark in [".", "-", "_", "..", "0"] {
            paths.insert(format!("{}{mark}{}", &"report"[..at], &"report"[at..]));
        }
    }
    for number in 0..100 {
        paths.insert(format!("report{}", "t".repeat(number)));
        paths.insert(format!("{number}/report"));
    }
    for depth in 1..10 {
        paths.insert(["report"; 10][..depth].join("/"));
        paths.insert(format!("ns/finance/sa/{}", ["report"; 10][..depth].join("/")));
    }
    let paths: Vec<_> = paths.into_iter().filter(|path| is_path(path)).take(250).collect();
    assert_eq!(paths.len(), 250);
    let ids = DOMAINS.iter().flat_map(|domain| paths.iter().map(move |path| format!("spiffe://{domain}/{path}")));
    // as long as the test's process: what the world is set up with is constant elsewhere
    ids.map(|id| &*id.leak()).collect()
}

/// Whether a SPIFFE ID may have this path.
fn is_path(path: &str) -> bool {
    format!("spiffe://example.org/{path}").parse::<SpiffeId>().is_ok()
}

/// A world in which anyone may begin `archive`.
async fn open_to_all(setup: Setup) -> World {
    let w = World::with(setup).await;
    Scope::new("archive").write(&w.policy_directory());
    let rule = "@id(\"anyone\")\npermit (principal, action == Action::\"begin\", resource == Scope::\"archive\");\n";
    policy_files::write(&w.policy_directory(), "decisions/archive.cedar", rule);
    assert_eq!(w.reload().await, RefreshOutcome::Loaded);
    w
}

/// The request that all of them send, to the letter but for the proof.
async fn begin_as(w: &World, spiffe_id: &str) -> Reply {
    let body = json!({ "scope": "archive", "task": "nightly" });
    w.send(Call::post("/v1/tasks").bearer(&w.svid(spiffe_id)).header("idempotency-key", "the same").json(&body)).await
}

/// Sends everything that there is to send about `task`, proved by `bearer`, and says with which status each was answered.
async fn touch(w: &World, task: &Begun, bearer: &str) -> [u16; 4] {
    let path = format!("/v1/tasks/{}", task.id);
    let calls = [
        Call::get(&path),
        Call::delete(&path),
        Call::post(&format!("{path}/hold")),
        Call::get(&format!("{path}/credentials")),
    ];
    let mut statuses = [0; 4];
    for (status, call) in statuses.iter_mut().zip(calls) {
        let reply = w.send(call.bearer(bearer)).await;
        assert!(reply.text().len() < 300 && !reply.text().contains(&task.id), "{}", reply.text());
        *status = reply.status;
    }
    statuses
}

#[tokio::test]
async fn serves_none_of_a_thousand_lookalikes_the_credential_of_another() {
    let ids = alike();
    let identities = ids.clone();
    let w = open_to_all(Setup { identities, unsearched: true, ..Setup::default() }).await;
    let (mut tasks, mut keys, mut sessions) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for id in &ids {
        let task = begun(&begin_as(&w, id).await);
        assert_eq!(task.body["spiffe_id"], **id);
        tasks.push(task);
    }
    for (id, task) in ids.iter().zip(&tasks) {
        let credential = w.served(&task.token).await;
        let key = credential["AccessKeyId"].as_str().unwrap();
        assert_eq!(w.cloud.caller_of(key), *id);
        assert!(keys.insert(key.to_owned()) && keys.insert(credential["SecretAccessKey"].as_str().unwrap().to_owned()));
    }
    for order in w.cloud.orders() {
        assert!(sessions.insert(order.session_name.clone()), "{} twice", order.session_name);
    }
    let distinct: BTreeSet<_> = tasks.iter().flat_map(|task| [&task.id, &task.token]).collect();
    assert_eq!((distinct.len(), sessions.len(), w.broker.tasks().len()), (2000, 1000, 1000));

    // By HTTP: each of a part of them knocks at the task of the one that is most like it.
    for (at, task) in tasks.iter().enumerate().step_by(20) {
        let (next, namesake) = ((at + 1) % 1000, (at + 250) % 1000);
        for other in [next, namesake] {
            assert_eq!(touch(&w, &tasks[other], &task.token).await, [404; 4], "{} → {}", ids[at], ids[other]);
        }
        let svid = w.svid(ids[at]);
        assert_eq!(touch(&w, &tasks[namesake], &svid).await, [404, 404, 401, 401]);
        let listed = w.send(Call::get("/v1/tasks").bearer(&svid)).await.json();
        let listed: Vec<_> = listed["tasks"].as_array().unwrap().iter().map(|task| task["id"].clone()).collect();
        assert_eq!(listed, [json!(task.id)]);
    }

    // And at random, with time passing: 10^7 and more by LOOKALIKE_ROUNDS.
    let rounds = std::env::var("LOOKALIKE_ROUNDS").map_or(20_000, |rounds| rounds.parse::<u64>().unwrap());
    let hashes: Vec<_> = tasks.iter().map(|task| TokenHash::of(&task.token).unwrap()).collect();
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &[7; 16]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let mut crossed = 0_u64;
    for round in 0..rounds {
        let at = (0_usize..1000).new_tree(&mut runner).unwrap().current();
        // Tasks of eight hours, credentials of twenty minutes: within the first hours each is minted again and again.
        if round % 10_000 == 9_999 && w.now().since(START) < secs(6 * 3600) {
            w.clock.advance(secs(1200));
            known.clear();
        }
        let issued = w.broker.credentials(&hashes[at], Provider::Aws, "r-0").await.unwrap();
        let Credential::Aws(credential) = issued.credential() else { panic!("not AWS's") };
        let key = credential.access_key_id.expose();
        let owner = match known.get(key) {
            Some(owner) => *owner,
            None => {
                let caller = w.cloud.caller_of(key);
                let owner = ids.iter().position(|id| *id == caller).unwrap();
                known.insert(key.to_owned(), owner);
                owner
            }
        };
        crossed += u64::from(owner != at);
    }
    assert_eq!(crossed, 0, "of {rounds} rounds");
}

#[tokio::test]
async fn rejects_what_only_looks_like_a_spiffe_id() {
    let w = open_to_all(Setup::default()).await;
    let task = begun(&begin_as(&w, REPORT).await);
    let domain = "example.org".parse().unwrap();
    let forms = [
        "spiffe://example.org/ns/finance/sa/repor%74",
        "spiffe://example.org/ns/finance/sa/report/",
        "spiffe://example.org//ns/finance/sa/report",
        "spiffe://example.org/ns/finance/./sa/report",
        "spiffe://example.org/ns/web/../finance/sa/report",
        "spiffe://example.org/ns/finance/sa/report?",
        "spiffe://example.org/ns/finance/sa/report#",
        "spiffe://example.org:8443/ns/finance/sa/report",
        "spiffe://report@example.org/ns/finance/sa/report",
        "spiffe://Example.org/ns/finance/sa/report",
        "SPIFFE://example.org/ns/finance/sa/report",
        "spiffe://example.org./ns/finance/sa/report",
        "spiffe://example.org/ns/finance/sa/rep\u{43e}rt",
        " spiffe://example.org/ns/finance/sa/report",
        "spiffe://example.org/ns/finance/sa/report\0",
    ];
    for form in forms {
        let svid = w.api.issue_claims(&domain, claims(form, AUDIENCE, START, secs(300)));
        let body = json!({ "scope": "archive", "task": "nightly" });
        let call = Call::post("/v1/tasks").bearer(&svid).header("idempotency-key", "the same").json(&body);
        let reply = w.send(call).await;
        assert_eq!((reply.status, reply.code().as_str()), (401, "unauthenticated"), "{form}");
        assert_eq!(touch(&w, &task, &svid).await, [401; 4], "{form}");
    }
    assert_eq!(w.broker.tasks().len(), 1);
}

const PARTNER: &str = "spiffe://partner.example/ns/finance/sa/report";

#[tokio::test]
async fn rejects_a_workload_of_another_trust_domain_with_the_same_path() {
    let w = open_to_all(Setup::default()).await;
    // As the Workload API does for every domain that its server federates with.
    w.api.trust("partner.example".parse().unwrap());
    let task = begun(&begin_as(&w, REPORT).await);
    let reply = begin_as(&w, PARTNER).await;
    assert_eq!((reply.status, reply.code().as_str()), (401, "unauthenticated"));
    let line = &w.audited(reply.request_id()).await[0];
    assert_eq!((line["reason"].as_str(), line.get("spiffe_id")), (Some("unauthenticated"), None));
    assert!(line["detail"].as_str().unwrap().contains("trust domain"), "{line}");
    assert_eq!(w.metric("sidemint_denials_total{reason=\"unauthenticated\"}").await, Some(1.0));
    assert_eq!(w.send(Call::get("/v1/tasks").bearer(&w.svid(PARTNER))).await.status, 401);
    assert_eq!(touch(&w, &task, &w.svid(PARTNER)).await, [401; 4]);
    assert_eq!(w.show(&task).await["state"], "active");
}

#[tokio::test]
async fn a_federated_workload_cannot_see_or_end_tasks_of_its_namesake() {
    let federated = &["partner.example"];
    let w = open_to_all(Setup { federated, ..Setup::default() }).await;
    w.api.trust("partner.example".parse().unwrap());
    let task = begun(&begin_as(&w, REPORT).await);
    // It is trusted, and begins nothing as long as the sidecar has no SVID of it.
    let reply = begin_as(&w, PARTNER).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "denied"));
    let line = &w.audited(reply.request_id()).await[0];
    assert_eq!(line["reason"], "identity_not_served");
    assert!(line["detail"].as_str().unwrap().contains(PARTNER), "{line}");
    assert_eq!(w.send(Call::get("/v1/tasks").bearer(&w.svid(PARTNER))).await.json(), json!({ "tasks": [] }));
    assert_eq!(touch(&w, &task, &w.svid(PARTNER)).await, [404, 404, 401, 401]);

    // A key signs for its own trust domain and no other.
    let partner = "partner.example".parse().unwrap();
    let forged = w.api.issue_claims(&partner, claims(REPORT, AUDIENCE, START, secs(300)));
    assert_eq!(touch(&w, &task, &forged).await, [401; 4]);
}

#[tokio::test]
async fn one_sidecar_for_two_trust_domains_keeps_namesakes_apart() {
    let w = open_to_all(Setup { identities: vec![REPORT, PARTNER], ..Setup::default() }).await;
    // The same path, scope, label, body and idempotency key: two tasks.
    let (ours, theirs) = (begun(&begin_as(&w, REPORT).await), begun(&begin_as(&w, PARTNER).await));
    assert_ne!((&ours.id, &ours.token), (&theirs.id, &theirs.token));
    for (own, spiffe_id, other) in [(&ours, REPORT, &theirs), (&theirs, PARTNER, &ours)] {
        let credential = w.served(&own.token).await;
        assert_eq!(w.cloud.caller_of(credential["AccessKeyId"].as_str().unwrap()), spiffe_id);
        let listed = w.send(Call::get("/v1/tasks").bearer(&w.svid(spiffe_id))).await.json();
        assert_eq!((&listed["tasks"][0]["id"], listed["tasks"].as_array().unwrap().len()), (&json!(own.id), 1));
        assert_eq!(touch(&w, other, &own.token).await, [404; 4]);
        assert_eq!(touch(&w, other, &w.svid(spiffe_id)).await, [404, 404, 401, 401]);
        // A repeated key finds one's own task.
        assert_eq!(begin_as(&w, spiffe_id).await.json()["id"], own.id);
    }
}
