//! Dynamic secrets of Vault: minted within the law of life, served in Vault's own shape, and revoked with the task.

use std::time::Duration;

use serde_json::{Value, json};
use sidemint::policy::document::Digest;

use crate::fake_vault::{FakeVault, On};
use crate::http::{Call, Reply};
use crate::policy_files::{REPORT, write};
use crate::world::{Begun, START, Setup, World, secs, settle, time, until};

const STEP: Duration = Duration::from_millis(100);

/// A sidecar beside a Vault, its reaper running, and three scopes.
async fn world() -> World {
    let w = World::with(Setup { vault: true, reaper: true, ..Setup::default() }).await;
    let directory = w.policy_directory();
    for (id, max_residual, grants) in
        [("db", "5m", &["vault"][..]), ("db-brief", "60s", &["vault"]), ("both", "20m", &["aws", "vault"])]
    {
        scope(&directory, id, max_residual, grants);
    }
    w.reload().await;
    w
}

/// The same, whose tokens and leases live for so many seconds: nothing needs to be shortened.
async fn world_of(ttl: u64) -> World {
    let w = world().await;
    vault(&w).role(|role| (role.token_ttl, role.lease_ttl) = (ttl, ttl));
    w
}

pub(crate) fn scope(directory: &std::path::Path, id: &str, max_residual: &str, grants: &[&str]) {
    scope_of(directory, id, max_residual, grants, "database/creds/ro");
}

/// The same, of this secret.
fn scope_of(directory: &std::path::Path, id: &str, max_residual: &str, grants: &[&str], read: &str) {
    let scope = "schema = 1\npurpose = \"tests\"\nbusiness_owner = \"tests\"\njustification = \"tests\"\n";
    let aws = "schema = 1\nprovider = \"aws\"\nrole_arn = \"arn:aws:iam::111122223333:role/tests\"\naccept_role_scope = true\n";
    let vault = format!(
        "schema = 1\nprovider = \"vault\"\nrole = \"ledger\"\naudience = \"vault\"\nread = \"{read}\"\n\
         accept_role_scope = true\n"
    );
    let mut listed = Vec::new();
    for grant in grants {
        let text = if *grant == "aws" { aws } else { &vault };
        write(directory, &format!("grants/{id}-{grant}.toml"), text);
        listed.push(format!("{id}-{grant} = \"{}\"", Digest::of(text.as_bytes())));
    }
    write(directory, &format!("scopes/{id}.toml"), scope);
    let rule = format!(
        "@id(\"rule-of-{id}\")\npermit (principal == Workload::\"{REPORT}\", action == Action::\"begin\", resource == Scope::\"{id}\");\n"
    );
    write(directory, &format!("decisions/{id}.cedar"), &rule);
    let decision = format!(
        "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"tests\"\nreview_by = 2027-02-01\n\
         max_task = \"1h\"\nmax_residual = \"{max_residual}\"\nscope = \"{}\"\ngrants = {{ {} }}\n",
        Digest::of(scope.as_bytes()),
        listed.join(", ")
    );
    write(directory, &format!("decisions/{id}.toml"), &decision);
}

fn vault(w: &World) -> &FakeVault {
    w.vault.as_deref().unwrap()
}

fn ask(task: &Begun, query: &str) -> Call {
    Call::get(&format!("/v1/tasks/{}/credentials{query}", task.id)).bearer(&task.token)
}

async fn secret(w: &World, task: &Begun) -> Value {
    let reply = w.send(ask(task, "?provider=vault")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// Does `work` while time passes, each step of it only once everything that needs no time is done.
pub(crate) async fn passing<T>(w: &World, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = rest(w) => w.clock.advance(STEP),
        }
    }
}

async fn pass(w: &World, time: Duration) {
    let end = w.now() + time;
    while w.now() < end {
        rest(w).await;
        w.clock.advance(STEP);
    }
    rest(w).await;
}

/// Lets everything run that needs no time to pass, the journal's thread among it, which a busy machine may keep waiting.
async fn rest(w: &World) {
    settle().await;
    for _ in 0..100 {
        if w.broker.parts().journal.pending() == 0 {
            break;
        }
        settle().await;
    }
}

async fn outcomes(w: &World, outcome: &str) -> f64 {
    w.metric(&format!("sidemint_revocations_total{{outcome=\"{outcome}\",provider=\"vault\"}}")).await.unwrap()
}

async fn outstanding(w: &World) -> f64 {
    w.metric("sidemint_revocations_outstanding{provider=\"vault\"}").await.unwrap()
}

fn audited(w: &World, event: &str, outcome: &str) -> Vec<Value> {
    let lines = w.audit.lines().into_iter();
    lines.filter(|line| line["event"] == event && line["outcome"] == outcome).collect()
}

#[tokio::test]
async fn serves_the_secret_in_vaults_shape_with_the_advertised_expiry() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    w.log.take();
    let body = secret(&w, &task).await;
    let mut members: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["data", "lease_duration", "lease_id", "renewable"]);
    assert_eq!(body["data"]["username"], "v-jwt-ledger");
    assert!(vault(&w).secrets().contains(&body["data"]["password"].as_str().unwrap().to_owned()));
    assert_eq!([&body["lease_id"], &json!(false)], [&json!(vault(&w).live()[0]), &body["renewable"]]);
    // five minutes less 2 s of asking, less 15 s, in whole seconds
    let told = body["lease_duration"].as_u64().unwrap();
    assert!((270..=285).contains(&told), "{told}");
    w.clock.advance(secs(10));
    assert_eq!(secret(&w, &task).await["lease_duration"], told - 10, "counted from now");
    assert_eq!(vault(&w).count("creds"), 1);
    let shown = w.show(&task).await;
    assert_eq!([&shown["leases"][0]["revocation"], &shown["leases"][0]["state"]], ["exact", "issued"]);
    assert_eq!(w.metric("sidemint_leases_active{provider=\"vault\",revocation=\"exact\"}").await, Some(1.0));
    assert_eq!(w.log.all(), ["intent", "issued"]);
    let minted = audited(&w, "mint", "minted");
    let upstream: Value = serde_json::from_str(minted[0]["upstream"].as_str().unwrap()).unwrap();
    assert_eq!([&upstream["lease"], &upstream["role"]], [&body["lease_id"], &json!("ledger")]);
}

#[tokio::test]
async fn the_environment_names_only_what_the_scope_grants() {
    let w = world().await;
    let told = async |scope: &str| {
        let task = w.begin_scope(scope).await;
        (task.body["environment"].clone(), task)
    };
    let (environment, task) = told("db").await;
    let uri = format!("http://{}/v1/tasks/{}/credentials", w.address, task.id);
    assert_eq!(environment, json!({ "SIDEMINT_CREDENTIALS_URI": uri, "SIDEMINT_TOKEN": task.token }));
    let (environment, _) = told("both").await;
    let names: Vec<_> = environment.as_object().unwrap().keys().map(|name| name.split('_').next().unwrap()).collect();
    assert_eq!(names, ["AWS", "AWS", "SIDEMINT", "SIDEMINT"]);
}

#[tokio::test]
async fn uses_the_only_provider_when_none_is_named_and_refuses_among_two() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    assert!(w.send(ask(&task, "")).await.json()["lease_id"].is_string());
    let refused = w.send(ask(&task, "?provider=aws")).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "denied"));
    let both = w.begin_scope("both").await;
    let unclear = w.send(ask(&both, "")).await;
    assert_eq!((unclear.status, unclear.code().as_str()), (400, "invalid_request"));
    assert!(w.send(ask(&both, "?provider=aws")).await.json()["AccessKeyId"].is_string());
    assert!(w.send(ask(&both, "?provider=vault")).await.json()["data"].is_object());
    assert_eq!(w.send(ask(&both, "?provider=mars")).await.code(), "invalid_request");
    let ending = w.end(&both).await;
    let lines: Vec<_> =
        ending["leases"].as_array().unwrap().iter().map(|l| (l["provider"].clone(), l["outcome"].clone())).collect();
    assert_eq!(lines, [(json!("aws"), json!("expires")), (json!("vault"), json!("revoked"))]);
}

#[tokio::test]
async fn scopes_of_vault_do_not_begin_without_a_vault() {
    let w = World::new().await;
    scope(&w.policy_directory(), "db", "5m", &["vault"]);
    w.reload().await;
    let reply = w.send(w.begin_call(&json!({ "scope": "db" }))).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "unavailable"));
    assert_eq!(w.audited(reply.request_id()).await[0]["reason"], "no_provider");
    assert_eq!(w.metric("sidemint_denials_total{reason=\"no_provider\"}").await, Some(1.0));
}

#[tokio::test]
async fn revokes_the_secret_before_the_end_is_answered() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    w.clock.advance(secs(60));
    let ending = w.end(&task).await;
    assert_eq!(ending["leases"][0]["outcome"], "revoked");
    assert_eq!(ending["leases"][0]["usable_until"], ending["ended_at"]);
    assert_eq!((vault(&w).live().len(), vault(&w).live_tokens()), (0, 0));
    assert_eq!(vault(&w).calls()[vault(&w).calls().len() - 3..], ["revoke", "lookup", "revoke-self"]);
    assert_eq!(w.end(&task).await, ending);
    assert_eq!(w.show(&task).await["leases"][0]["state"], "revoked");
    assert_eq!((outcomes(&w, "revoked").await, outstanding(&w).await), (1.0, 0.0));
    assert_eq!(w.metric("sidemint_revocation_lag_seconds_count{provider=\"vault\"}").await, Some(1.0));
    assert_eq!(w.metric("sidemint_residual_access_seconds_bucket{provider=\"vault\",le=\"0\"}").await, Some(1.0));
    let line = &audited(&w, "revocation", "revoked")[0];
    assert_eq!([&line["task"], &line["lease"]], [&json!(task.id), &ending["leases"][0]["id"]]);
    until("the journal has it", || w.log.all().iter().any(|event| event.contains("revoked"))).await;
}

#[tokio::test]
async fn revokes_every_lease_that_a_task_still_has() {
    let w = world_of(200).await;
    vault(&w).role(|role| role.renewable = false);
    let task = w.begin_scope("db").await;
    let first = secret(&w, &task).await;
    w.clock.advance(secs(150));
    secret(&w, &task).await;
    w.landed(&task).await;
    assert_eq!(vault(&w).live().len(), 2, "the first was told to work on");
    assert_ne!(secret(&w, &task).await["lease_id"], first["lease_id"]);
    let ending = w.end(&task).await;
    assert_eq!(ending["leases"].as_array().unwrap().iter().filter(|lease| lease["outcome"] == "revoked").count(), 2);
    assert_eq!((vault(&w).live().len(), vault(&w).live_tokens()), (0, 0));
}

async fn mints(w: &World, outcome: &str) -> f64 {
    let series = format!("sidemint_mints_total{{outcome=\"{outcome}\",provider=\"vault\",tier=\"baseline\"}}");
    w.metric(&series).await.unwrap()
}

/// Lets time pass in steps of a second; at each of them no lease lives longer than the record of the only one says, and
/// than the law allows.
async fn pass_watched(w: &World, task: &Begun, seconds: u64) {
    let found = w.broker.tasks().by_id(&task.id.parse().unwrap()).unwrap();
    for _ in 0..seconds {
        w.clock.advance(secs(1));
        settle().await;
        // On a busy machine an answer takes longer than that to arrive; one that never comes needs time to pass.
        for _ in 0..50 {
            if found.state().slots.values().all(|slot| slot.flight.is_none()) {
                break;
            }
            settle().await;
        }
        let recorded = time(&w.show(task).await["leases"][0]["usable_until"]);
        for end in vault(w).work_until() {
            assert!(end <= recorded.max(w.now()), "it lives until {end}, recorded is {recorded}");
            assert!(end <= (w.now() + secs(300)).min(task.expires_at), "{end} is outside the law at {}", w.now());
        }
    }
}

#[tokio::test]
async fn a_secret_is_renewed_in_place_for_as_long_as_its_task_lives() {
    let w = world_of(290).await;
    let task = w.begin(json!({ "scope": "db", "ttl": "25m" })).await;
    let first = secret(&w, &task).await;
    let mut expires = w.now();
    for half_life in 1..=8 {
        pass_watched(&w, &task, 155).await;
        let again = secret(&w, &task).await;
        assert_eq!([&again["lease_id"], &again["data"]], [&first["lease_id"], &first["data"]], "{half_life}");
        let told = w.now() + secs(again["lease_duration"].as_u64().unwrap());
        assert!(told > expires + secs(100), "{half_life}: it was told to live until {expires}, and now until {told}");
        expires = told;
    }
    assert_eq!((vault(&w).count("login"), vault(&w).count("creds"), vault(&w).live_tokens()), (1, 1, 1));
    assert_eq!((vault(&w).count("renew"), vault(&w).count("renew-self")), (8, 8));
    assert_eq!((mints(&w, "minted").await, mints(&w, "renewed").await), (1.0, 8.0));
    let lines = audited(&w, "mint", "renewed");
    assert_eq!((lines.len(), &lines[0]["task"], &lines[0]["scope"]), (8, &json!(task.id), &json!("db")));
    assert!(lines.iter().all(|line| line["lease"] == lines[0]["lease"] && line["request_id"].is_null()));
    assert!(time(&lines[1]["usable_until"]) > time(&lines[0]["usable_until"]));
    let ending = w.end(&task).await;
    assert_eq!((ending["leases"].as_array().unwrap().len(), &ending["leases"][0]["outcome"]), (1, &json!("revoked")));
    assert_eq!((vault(&w).live().len(), vault(&w).live_tokens()), (0, 0));
}

#[tokio::test]
async fn a_secret_that_was_read_once_lives_as_long_as_its_task_and_no_longer() {
    let w = world_of(290).await;
    let task = w.begin(json!({ "scope": "db", "ttl": "20m" })).await;
    let lease = secret(&w, &task).await["lease_id"].as_str().unwrap().to_owned();
    for _ in 0..19 {
        pass_watched(&w, &task, 60).await;
        assert_eq!(vault(&w).live(), std::slice::from_ref(&lease));
    }
    let renewed = vault(&w).count("renew");
    pass_watched(&w, &task, 70).await;
    assert_eq!((w.is_ended(&task), vault(&w).live().len(), vault(&w).count("creds")), (true, 0, 1));
    assert_eq!(vault(&w).count("renew"), renewed, "near the end of the task there is nothing to gain");
}

#[tokio::test]
async fn mints_anew_what_cannot_be_renewed_and_revokes_both() {
    type Change = fn(&FakeVault);
    let rows: [(&str, Change); 6] = [
        ("not renewable", |vault| vault.role(|role| role.renewable = false)),
        ("its longest life is reached", |vault| vault.role(|role| role.lease_max = 291)),
        ("refused", |vault| vault.on("renew", On::Status(400))),
        ("the token is not renewed", |vault| vault.on("renew-self", On::Status(403))),
        ("no answer of Vault", |vault| vault.on("renew", On::Say("canary".into()))),
        ("forgotten by Vault", |vault| vault.forget_leases()),
    ];
    for (why, change) in rows {
        let w = world_of(290).await;
        if why == "not renewable" {
            change(vault(&w));
        }
        let task = w.begin_scope("db").await;
        let first = secret(&w, &task).await;
        change(vault(&w));
        pass(&w, secs(155)).await;
        secret(&w, &task).await;
        w.landed(&task).await;
        let second = secret(&w, &task).await;
        assert_ne!(second["lease_id"], first["lease_id"], "{why}");
        assert_eq!((vault(&w).count("creds"), vault(&w).count("login")), (2, 2), "{why}");
        assert_eq!(mints(&w, "minted").await, 2.0, "{why}");
        vault(&w).well();
        let ending = w.end(&task).await;
        let lines = ending["leases"].as_array().unwrap();
        assert_eq!(lines.len(), 2, "{why}");
        if why != "forgotten by Vault" {
            assert!(lines.iter().all(|line| line["outcome"] == "revoked"), "{why}: {ending}");
        }
        assert_eq!((vault(&w).live().len(), vault(&w).live_tokens()), (0, 0), "{why}");
    }
}

#[tokio::test]
async fn retries_a_renewal_with_a_lost_or_late_answer_and_keeps_the_later_expiry() {
    for path in ["renew", "renew-self"] {
        for on in [On::Lost, On::Hang, On::Status(503), On::Later(429, 7)] {
            let w = world_of(290).await;
            let task = w.begin_scope("db").await;
            let first = secret(&w, &task).await;
            vault(&w).next(path, on.clone());
            pass_watched(&w, &task, 152).await;
            let served = secret(&w, &task).await;
            assert_eq!(served["lease_id"], first["lease_id"], "{path} {on:?}");
            pass_watched(&w, &task, 35).await;
            let served = secret(&w, &task).await;
            assert_eq!(served["lease_id"], first["lease_id"], "{path} {on:?}");
            assert!(served["lease_duration"].as_u64().unwrap() > 200, "{path} {on:?}: {served}");
            assert_eq!((vault(&w).count("creds"), mints(&w, "unavailable").await), (1, 1.0), "{path} {on:?}");
            assert_eq!(w.end(&task).await["leases"][0]["outcome"], "revoked", "{path} {on:?}");
        }
    }
}

#[tokio::test]
async fn a_vault_that_renews_nothing_for_long_is_asked_for_another_secret_in_time() {
    let w = world_of(290).await;
    let task = w.begin_scope("db").await;
    let first = secret(&w, &task).await;
    vault(&w).on("renew", On::Status(500));
    pass(&w, secs(215)).await;
    assert_eq!(secret(&w, &task).await["lease_id"], first["lease_id"]);
    pass(&w, secs(25)).await;
    let tries = vault(&w).count("renew");
    assert!((3..20).contains(&tries), "{tries}");
    assert_ne!(secret(&w, &task).await["lease_id"], first["lease_id"]);
    assert_eq!(w.end(&task).await["leases"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn does_not_trust_a_renewal_longer_than_the_law_of_life_allows() {
    for path in ["renew", "renew-self"] {
        let w = world_of(290).await;
        let task = w.begin_scope("db").await;
        let first = secret(&w, &task).await;
        let body = json!({ "lease_id": first["lease_id"], "lease_duration": 3600, "renewable": true });
        let body =
            if path == "renew" { body } else { json!({ "auth": { "client_token": "x", "lease_duration": 3600 } }) };
        vault(&w).on(path, On::Say(body.to_string()));
        pass(&w, secs(160)).await;
        let served = secret(&w, &task).await;
        assert_ne!(served["lease_id"], first["lease_id"], "{path}");
        assert!(served["lease_duration"].as_u64().unwrap() <= 300, "{path}");
        assert_eq!(mints(&w, "renewed").await, 0.0, "{path}");
    }
}

#[tokio::test]
async fn stops_serving_a_secret_whose_expiry_vault_moved_earlier() {
    let w = world_of(290).await;
    let task = w.begin_scope("db").await;
    let first = secret(&w, &task).await;
    let sooner = json!({ "lease_id": first["lease_id"], "lease_duration": 30, "renewable": true });
    vault(&w).next("renew", On::Say(sooner.to_string()));
    vault(&w).on("renew", On::Status(400));
    // So that it is all that there is to serve.
    vault(&w).on("creds", On::Status(503));
    pass(&w, secs(143)).await;
    passing(&w, until("it is renewed", || vault(&w).count("renew") == 1)).await;
    pass_watched(&w, &task, 5).await;
    let served = secret(&w, &task).await;
    assert_eq!(served["lease_id"], first["lease_id"]);
    assert!(served["lease_duration"].as_u64().unwrap() <= 30, "{served}");
    pass_watched(&w, &task, 30).await;
    assert_eq!(passing(&w, w.send(ask(&task, "?provider=vault"))).await.status, 503);
}

#[tokio::test]
async fn does_not_renew_what_is_not_permitted_and_mints_what_is_granted_anew() {
    let w = world_of(55).await;
    let (gone, changed) = (w.begin_scope("db").await, w.begin_scope("db-brief").await);
    secret(&w, &gone).await;
    let first = secret(&w, &changed).await;
    std::fs::remove_file(w.policy_directory().join("decisions/db.toml")).unwrap();
    std::fs::remove_file(w.policy_directory().join("decisions/db.cedar")).unwrap();
    scope_of(&w.policy_directory(), "db-brief", "60s", &["vault"], "database/creds/rw");
    w.reload().await;
    pass(&w, secs(20)).await;
    assert_eq!((w.ended(&gone).await.as_str(), vault(&w).count("renew")), ("policy_changed", 0));
    assert_eq!(vault(&w).live(), [first["lease_id"].as_str().unwrap()]);
    pass(&w, secs(12)).await;
    let second = secret(&w, &changed).await;
    assert!(second["lease_id"].as_str().unwrap().starts_with("database/creds/rw/"), "{second}");
    assert_eq!((vault(&w).count("renew"), mints(&w, "renewed").await), (0, 0.0));
}

#[tokio::test]
async fn a_renewal_is_recorded_before_it_is_asked_for() {
    let w = world_of(290).await;
    let task = w.begin_scope("db").await;
    let first = secret(&w, &task).await;
    w.journal.fail("issued");
    pass(&w, secs(152)).await;
    assert_eq!((vault(&w).count("renew"), secret(&w, &task).await["lease_id"].clone()), (0, first["lease_id"].clone()));
    assert!(mints(&w, "not_recorded").await >= 1.0);
}

#[tokio::test]
async fn revokes_the_secret_when_its_task_ends_during_the_renewal() {
    let w = world_of(290).await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    pass(&w, secs(143)).await;
    vault(&w).slow(secs(2));
    passing(&w, until("it is renewed", || vault(&w).count("renew") == 1)).await;
    passing(&w, w.end(&task)).await;
    assert_eq!(w.send(ask(&task, "?provider=vault")).await.status, 409);
    pass(&w, secs(15)).await;
    assert_eq!((vault(&w).live().len(), vault(&w).live_tokens(), outstanding(&w).await), (0, 0, 0.0));
    let ending = passing(&w, w.end(&task)).await;
    assert_eq!(ending["leases"][0]["outcome"], "revoked");
    assert!(time(&ending["leases"][0]["usable_until"]) <= w.now());
    assert_eq!(mints(&w, "renewed").await, 0.0, "it was never served again");
}

#[tokio::test]
async fn a_crash_during_a_renewal_leaves_a_record_of_the_later_end() {
    let mut w = world_of(290).await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    let before = vault(&w).ends()[0];
    pass(&w, secs(143)).await;
    vault(&w).slow(secs(3600));
    passing(&w, until("it is renewed", || vault(&w).ends()[0] > before)).await;
    let end = vault(&w).ends()[0];
    w.crash().await;
    vault(&w).slow(Duration::ZERO);
    let lease = &w.show(&task).await["leases"][0];
    assert!(time(&lease["usable_until"]) >= end && lease["state"] == "issued", "{lease}: it lives until {end}");
    assert_eq!(w.end(&task).await["leases"][0]["outcome"], "revoked");
    assert_eq!(vault(&w).live().len(), 0);
}

#[tokio::test]
async fn two_hundred_leases_that_end_together_are_revoked_within_five_seconds() {
    let w = world().await;
    for _ in 0..200 {
        let task = w.begin_scope("db").await;
        secret(&w, &task).await;
    }
    assert_eq!(vault(&w).live().len(), 200);
    vault(&w).slow(Duration::from_millis(50));
    std::fs::remove_file(w.policy_directory().join("decisions/db.toml")).unwrap();
    w.reload().await;
    pass(&w, secs(5)).await;
    assert_eq!((vault(&w).live().len(), vault(&w).live_tokens()), (0, 0));
    assert_eq!(w.metric("sidemint_revocation_lag_seconds_bucket{provider=\"vault\",le=\"5\"}").await, Some(200.0));
    assert_eq!((outcomes(&w, "revoked").await, outstanding(&w).await), (200.0, 0.0));
}

#[tokio::test]
async fn a_lease_that_vault_does_not_know_is_not_called_revoked() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    let until = w.show(&task).await["leases"][0]["usable_until"].clone();
    vault(&w).forget_leases();
    let ending = w.end(&task).await;
    assert_eq!([&ending["leases"][0]["outcome"], &ending["leases"][0]["usable_until"]], [&json!("expires"), &until]);
    assert_eq!((outcomes(&w, "requested").await, outcomes(&w, "revoked").await), (1.0, 0.0));
    assert_eq!((vault(&w).count("revoke"), vault(&w).live_tokens()), (1, 0), "told to go all the same");
    pass(&w, secs(60)).await;
    assert_eq!(vault(&w).count("revoke"), 1, "there is nothing more to do");
}

#[tokio::test]
async fn a_lease_whose_revocation_went_unanswered_is_called_revoked_once_it_is_gone() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    vault(&w).next("revoke", On::Lost);
    let ending = passing(&w, w.end(&task)).await;
    assert_eq!((&ending["leases"][0]["outcome"], vault(&w).count("revoke")), (&json!("revoked"), 1));
}

#[tokio::test]
async fn a_lease_that_ended_by_itself_while_it_could_not_be_revoked_is_not_called_revoked() {
    let w = world_of(60).await;
    let task = w.begin_scope("db-brief").await;
    secret(&w, &task).await;
    vault(&w).on("revoke", On::Status(500));
    let ending = passing(&w, w.end(&task)).await;
    let tries = vault(&w).count("revoke");
    let dies = time(&ending["leases"][0]["usable_until"]);
    vault(&w).well();
    // No try until then.
    w.clock.advance(dies.since(w.now()));
    pass(&w, secs(2)).await;
    assert!(vault(&w).count("revoke") > tries, "it is tried all the same: the clock over there may be behind");
    assert_eq!((outcomes(&w, "revoked").await, outcomes(&w, "requested").await), (0.0, 1.0));
    assert_eq!(w.end(&task).await, ending);
    assert_eq!(w.show(&task).await["leases"][0]["state"], "expired");
}

#[tokio::test]
async fn trusts_only_the_leasing_token_where_lookup_is_forbidden() {
    for crashed in [false, true] {
        let mut w = world().await;
        vault(&w).role(|role| role.may_look_up = false);
        let task = w.begin_scope("db").await;
        secret(&w, &task).await;
        if crashed {
            w.crash().await;
        }
        let ending = w.end(&task).await;
        assert_eq!(ending["leases"][0]["outcome"], if crashed { "expires" } else { "revoked" });
        assert_eq!(vault(&w).live().len(), 0, "crashed: {crashed}");
    }
}

#[tokio::test]
async fn a_token_that_somebody_revoked_at_vault_is_replaced_by_a_new_login() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    vault(&w).kill_tokens();
    let ending = w.end(&task).await;
    assert_eq!(ending["leases"][0]["outcome"], "expires", "nobody knows who ended it");
    assert_eq!((vault(&w).count("login"), vault(&w).live_tokens(), outcomes(&w, "requested").await), (2, 0, 1.0));
    assert_eq!((outcomes(&w, "refused").await, audited(&w, "revocation", "failed").len()), (0.0, 0));
}

#[tokio::test]
async fn keeps_the_intent_when_a_refusal_follows_a_try_that_may_have_leased() {
    let w = world_of(290).await;
    let task = w.begin_scope("db").await;
    vault(&w).next("creds", On::Lost);
    vault(&w).on("revoke-self", On::Status(503));
    let refused_later = async {
        until("the token was not revoked", || vault(&w).count("revoke-self") == 1).await;
        vault(&w).on("login", On::Status(403));
    };
    let ((reply, line), ()) = tokio::join!(refused(&w, &task), refused_later);
    assert_eq!((reply.status, &line["reason"]), (503, &json!("unavailable")), "{line}");
    let lease = w.show(&task).await["leases"][0].clone();
    assert_eq!(lease["state"], "intent");
    assert!(vault(&w).ends().iter().all(|end| *end <= time(&lease["usable_until"])));
    let line = w.end(&task).await["leases"][0].clone();
    assert_eq!([&line["outcome"], &line["usable_until"]], [&json!("expires"), &lease["usable_until"]]);
}

#[tokio::test]
async fn a_lease_that_cannot_be_kept_is_revoked_at_once_or_else_its_intent_stays() {
    for may_revoke in [true, false] {
        let w = world_of(290).await;
        let task = w.begin_scope("db").await;
        vault(&w).role(|role| (role.lease_ttl, role.renewable, role.may_revoke) = (100_000, false, may_revoke));
        let (reply, line) = refused(&w, &task).await;
        let expected = if may_revoke { (403, "inexpressible", 0) } else { (503, "unusable", 1) };
        let leases = w.show(&task).await["leases"].as_array().unwrap().len();
        assert_eq!((reply.status, line["reason"].as_str().unwrap(), leases), expected);
        assert_eq!((vault(&w).count("revoke"), vault(&w).live_tokens()), (1, 0));
    }
}

#[tokio::test]
async fn retries_a_vault_that_is_down_and_says_revoked_only_after_its_answer() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    vault(&w).on("revoke", On::Status(503));
    let before = w.now();
    let ending = passing(&w, w.end(&task)).await;
    assert!(w.now() >= before + secs(2) && w.now() < before + secs(4));
    assert_eq!(ending["leases"][0]["outcome"], "expires");
    assert!(time(&ending["leases"][0]["usable_until"]) > START + secs(200));
    assert_eq!((outstanding(&w).await, w.show(&task).await["leases"][0]["state"].clone()), (1.0, json!("ending")));
    assert_eq!(w.ask_admin("/status").await.json()["leases"]["to_revoke"], 1);
    pass(&w, secs(30)).await;
    let (counted, told) = (w.ask_admin("/status").await.json(), w.operator(Call::get("/status")).await.json());
    assert_eq!(counted["leases"], json!({ "active": 1, "outstanding": 1, "to_revoke": 1 }));
    let lease = &told["outstanding"][0];
    assert_eq!(lease["id"], ending["leases"][0]["id"]);
    assert_eq!([&lease["last_error"], &lease["to_revoke"]], [&json!("unavailable"), &json!(true)]);
    assert!(lease["tries"].as_u64().unwrap() > 3 && lease["detail"].as_str().unwrap().contains("503"), "{lease}");
    assert_eq!([&lease["task"], &lease["spiffe_id"]], [&json!(task.id), &json!(REPORT)]);
    assert_eq!(lease["usable_until"], ending["leases"][0]["usable_until"]);
    let public = &counted["outstanding"][0];
    assert_eq!(public["tries"], lease["tries"]);
    for hidden in ["task", "spiffe_id", "scope", "detail"] {
        assert_eq!(public[hidden], Value::Null, "{hidden} is not for every process on this machine");
    }
    assert!(vault(&w).count("revoke") > 4);
    assert_eq!(audited(&w, "revocation", "failed").len(), 1, "the first failure alone is audited");
    assert!(outcomes(&w, "unavailable").await > 4.0);
    assert_eq!(w.credentials(&task.token).await.status, 401, "never served meanwhile");
    vault(&w).well();
    pass(&w, secs(40)).await;
    assert_eq!((vault(&w).live().len(), outstanding(&w).await), (0, 0.0));
    let told = w.operator(Call::get("/status")).await.json();
    assert_eq!((&told["outstanding"], &told["leases"]["outstanding"]), (&json!([]), &json!(0)));
    assert_eq!(w.end(&task).await["leases"][0]["outcome"], "revoked");
    assert_eq!(w.metric("sidemint_revocation_lag_seconds_bucket{provider=\"vault\",le=\"5\"}").await, Some(0.0));
}

#[tokio::test]
async fn a_vault_that_lies_about_revoking_is_not_trusted() {
    for lie in [On::NoEffect, On::Status(404), On::Status(400), On::Status(302), On::Hang, On::Status(429)] {
        let w = world().await;
        let task = w.begin_scope("db").await;
        secret(&w, &task).await;
        vault(&w).on("revoke", lie.clone());
        let asked = w.now();
        let ending = passing(&w, w.end(&task)).await;
        assert_eq!(ending["leases"][0]["outcome"], "expires", "{lie:?}");
        assert!(w.now() < asked + secs(3), "{lie:?}: the answer waits two seconds at most");
        pass(&w, secs(10)).await;
        assert_eq!((vault(&w).live().len(), outstanding(&w).await), (1, 1.0), "{lie:?}");
        vault(&w).well();
        pass(&w, secs(60)).await;
        assert_eq!((vault(&w).live().len(), outstanding(&w).await), (0, 0.0), "{lie:?}");
        assert_eq!(w.end(&task).await["leases"][0]["outcome"], "revoked", "{lie:?}");
    }
}

#[tokio::test]
async fn retries_a_failing_revocation_until_expiry_and_then_reports_it() {
    let w = world().await;
    let task = w.begin_scope("db-brief").await;
    vault(&w).role(|role| (role.token_ttl, role.lease_ttl) = (60, 60));
    secret(&w, &task).await;
    vault(&w).on("revoke", On::Status(500));
    let ending = passing(&w, w.end(&task)).await;
    let dies = time(&ending["leases"][0]["usable_until"]);
    let mut tries = 0;
    while w.now() < dies + secs(29) {
        assert_eq!(outstanding(&w).await, 1.0, "at {}", w.now());
        tries = vault(&w).count("revoke");
        pass(&w, secs(1)).await;
    }
    assert!(tries > 5, "{tries}");
    pass(&w, secs(5)).await;
    assert_eq!((outstanding(&w).await, outcomes(&w, "lapsed").await), (0.0, 1.0));
    assert_eq!((w.show(&task).await["leases"][0]["state"].clone(), w.end(&task).await), (json!("expired"), ending));
    assert_eq!(audited(&w, "revocation", "lapsed").len(), 1);
    let tries = vault(&w).count("revoke");
    pass(&w, secs(120)).await;
    assert_eq!(vault(&w).count("revoke"), tries, "nothing is left to do");
}

#[tokio::test]
async fn drops_the_token_and_never_says_revoked_where_vault_forbids_revoking() {
    let w = world().await;
    vault(&w).role(|role| role.may_revoke = false);
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    let ending = w.end(&task).await;
    assert_eq!(ending["leases"][0]["outcome"], "expires");
    assert_eq!((vault(&w).live_tokens(), vault(&w).count("revoke-self")), (0, 1));
    assert_eq!(outcomes(&w, "requested").await, 1.0);
    pass(&w, secs(60)).await;
    assert_eq!(vault(&w).count("revoke"), 1, "there is nothing more to ask for");
}

#[tokio::test]
async fn an_answer_to_dropping_the_token_that_is_lost_does_no_harm() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    vault(&w).next("revoke-self", On::Lost);
    let ending = passing(&w, w.end(&task)).await;
    assert_eq!(ending["leases"][0]["outcome"], "revoked");
    assert_eq!(vault(&w).count("revoke"), 1);
}

#[tokio::test]
async fn revokes_by_a_new_login_after_a_crash_lost_the_token() {
    for ended_first in [true, false] {
        let mut w = world().await;
        let task = w.begin_scope("db").await;
        secret(&w, &task).await;
        if ended_first {
            vault(&w).on("revoke", On::Status(503));
            passing(&w, w.end(&task)).await;
        }
        w.crash().await;
        vault(&w).well();
        let logins = vault(&w).count("login");
        if !ended_first {
            assert_eq!(w.end(&task).await["leases"][0]["outcome"], "revoked");
        }
        until("it is revoked", || vault(&w).live().is_empty()).await;
        settle().await;
        assert_eq!(vault(&w).count("login"), logins + 1);
        assert_eq!(vault(&w).live_tokens(), 1, "the lost one, which nobody has; the new one is gone");
        assert_eq!(w.end(&task).await["leases"][0]["outcome"], "revoked");
        assert_eq!(w.api.fetches().last().unwrap().1, "vault", "by the caller's own SVID");
    }
}

#[tokio::test]
async fn reports_the_expiry_after_a_crash_without_the_right_to_revoke() {
    let mut w = world().await;
    let task = w.begin_scope("db").await;
    secret(&w, &task).await;
    vault(&w).role(|role| role.may_revoke = false);
    w.crash().await;
    let ending = passing(&w, w.end(&task)).await;
    assert_eq!((&ending["leases"][0]["outcome"], outstanding(&w).await), (&json!("expires"), 1.0));
    assert_eq!(vault(&w).live().len(), 1);
    assert!(audited(&w, "revocation", "failed")[0]["detail"].as_str().unwrap().contains("sys/leases/revoke"));
    vault(&w).role(|role| role.may_revoke = true);
    pass(&w, secs(60)).await;
    assert_eq!(w.end(&task).await["leases"][0]["outcome"], "revoked", "given the right, it is done");
}

/// The refusal of a credential: its status, and what metrics and audit call it.
async fn refused(w: &World, task: &Begun) -> (Reply, Value) {
    let reply = passing(w, w.send(ask(task, "?provider=vault"))).await;
    let is_it = |line: &Value| line["request_id"] == reply.request_id() && line["event"] == "mint";
    // The exchange may go on after its request gave up.
    passing(w, until("it has failed", || w.audit.lines().iter().any(is_it))).await;
    let line = w.audit.lines().into_iter().find(is_it).unwrap();
    let kind = line["reason"].as_str().unwrap();
    let series = format!("sidemint_mints_total{{outcome=\"{kind}\",provider=\"vault\",tier=\"baseline\"}}");
    assert_eq!(w.metric(&series).await, Some(1.0), "{kind}");
    (reply, line)
}

#[tokio::test]
async fn rejects_a_login_beyond_the_law_of_life_and_revokes_its_token() {
    type Change = fn(&mut crate::fake_vault::Role);
    let rows: [(Change, &str); 6] = [
        (|role| role.token_ttl = 301, "lower token_ttl"),
        (|role| role.token_ttl = 10 * 365 * 24 * 3600, "lower token_ttl"),
        (|role| role.token_ttl = 0, "never end"),
        (|role| role.token_type = "batch", "batch tokens"),
        (|role| role.policies = "root", "the policy root"),
        (|role| (role.lease_ttl, role.renewable) = (100_000_000, false), "law of life"),
    ];
    for (change, says) in rows {
        let w = world().await;
        vault(&w).role(change);
        let task = w.begin_scope("db").await;
        let (reply, line) = refused(&w, &task).await;
        assert_eq!(
            (reply.status, reply.code().as_str(), &line["reason"]),
            (403, "denied", &json!("inexpressible")),
            "{says}"
        );
        assert!(line["detail"].as_str().unwrap().contains(says), "{line}");
        assert!(!reply.text().contains(says));
        assert_eq!(vault(&w).live().len(), 0, "{says}");
        if says != "batch tokens" {
            assert_eq!(vault(&w).live_tokens(), 0, "{says}");
        }
        assert_eq!(w.end(&task).await["leases"], json!([]), "nothing was minted");
    }
}

#[tokio::test]
async fn rejects_an_answer_that_is_not_from_vault() {
    let long = "x".repeat(70_000);
    let foreign = json!({ "lease_id": "database/creds/rw/1", "lease_duration": 60, "data": { "password": "canary" } });
    let endless = json!({ "lease_id": "database/creds/ro/1", "lease_duration": 0, "data": { "password": "canary" } });
    let lives = |seconds: &str| {
        On::Say(format!(
            r#"{{"lease_id":"database/creds/ro/1","lease_duration":{seconds},"data":{{"password":"canary"}}}}"#
        ))
    };
    let rows = [
        ("creds", lives("-60"), 503, "unusable"),
        ("creds", lives("1e3"), 503, "unusable"),
        ("creds", lives("18446744073709551616"), 503, "unusable"),
        ("creds", On::Status(307), 503, "unusable"),
        ("creds", On::Say("canary".into()), 503, "unusable"),
        ("creds", On::Say(long), 503, "unusable"),
        ("creds", On::Say(foreign.to_string()), 503, "unusable"),
        ("creds", On::Say(endless.to_string()), 503, "unusable"),
        ("creds", On::Say("{\"data\":{\"a\":1}}".into()), 403, "inexpressible"),
        ("creds", On::Status(403), 403, "refused"),
        ("creds", On::Status(404), 403, "inexpressible"),
        ("login", On::Status(400), 403, "refused"),
        ("login", On::Status(501), 403, "refused"),
        ("login", On::Status(503), 503, "unavailable"),
        ("login", On::Later(429, 60), 503, "unavailable"),
        ("creds", On::Hang, 503, "unavailable"),
    ];
    for (path, on, status, kind) in rows {
        let w = world().await;
        vault(&w).on(path, on.clone());
        let task = w.begin_scope("db").await;
        let (reply, line) = refused(&w, &task).await;
        assert_eq!((reply.status, &line["reason"]), (status, &json!(kind)), "{path} {on:?}");
        assert!(!w.audit.text().contains("canary"));
        assert_eq!(vault(&w).live_tokens(), 0, "{path} {on:?}: {:?}", vault(&w).calls());
        match on {
            On::Later(..) => assert_eq!(reply.header("retry-after"), Some("60")),
            On::Status(400) => assert_eq!(vault(&w).count("login"), 2, "once more with a fresh SVID"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn shortens_a_lease_that_would_outlive_the_deadline() {
    let w = world().await;
    vault(&w).role(|role| role.lease_ttl = 3600);
    let task = w.begin(json!({ "scope": "db", "ttl": "100s" })).await;
    secret(&w, &task).await;
    assert!(vault(&w).ends().iter().all(|end| *end <= task.expires_at), "{:?}", vault(&w).ends());
    assert_eq!((vault(&w).count("renew-self"), vault(&w).count("renew")), (1, 1));
    w.clock.advance(secs(100));
    assert_eq!(vault(&w).live().len(), 0, "dead by itself");
}

#[tokio::test]
async fn a_lost_answer_leaves_no_lease_behind() {
    let w = world().await;
    vault(&w).next("creds", On::Lost);
    let task = w.begin_scope("db").await;
    let reply = passing(&w, w.send(ask(&task, ""))).await;
    assert_eq!(reply.status, 200);
    assert_eq!((vault(&w).live().len(), vault(&w).live_tokens(), vault(&w).count("creds")), (1, 1, 2));
}

#[tokio::test]
async fn revokes_the_secret_when_its_task_ends_during_the_mint() {
    let w = world().await;
    let task = w.begin_scope("db").await;
    w.journal.hold("issued");
    let asked = w.send(ask(&task, "?provider=vault"));
    let ends = async {
        until("it is minted", || w.journal.waiting() == 1).await;
        let ending = passing(&w, w.end(&task)).await;
        w.journal.release("issued");
        ending
    };
    let (reply, _) = tokio::join!(asked, ends);
    assert_eq!((reply.status, reply.code().as_str()), (409, "task_ended"));
    until("it is revoked", || vault(&w).live().is_empty()).await;
    pass(&w, secs(1)).await;
    assert_eq!(w.end(&task).await["leases"][0]["outcome"], "revoked");
}
