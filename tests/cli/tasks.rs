//! `sidemint task`, `sidemint status`, and what holds for every command.

use std::process::Stdio;

use crate::fake_sidecar::TOKEN;
use crate::fake_workload_api::svid;
use crate::{Outcome, World};

#[tokio::test]
async fn begin_prints_the_token_and_json_is_the_answer_itself() {
    let world = World::new().await;
    let text = world.run(&["task", "begin", "--scope", "ledger-read", "--label", "nightly"]).await;
    assert_eq!(text.code, 0);
    assert!(text.stdout.contains(TOKEN) && text.stdout.contains("until     2026-11-23T11:00:00Z"), "{}", text.stdout);
    let json = world.run(&["task", "begin", "--scope", "ledger-read", "--output", "json"]).await;
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(value["token"], TOKEN);
    let asked = world.sidecar.asked();
    assert_eq!(asked[0].body, serde_json::json!({"scope": "ledger-read", "task": "nightly"}));
    assert_ne!(asked[0].idempotency_key, asked[1].idempotency_key);
}

#[tokio::test]
async fn list_show_and_end_say_revoked_only_of_what_was_revoked() {
    let world = World::new().await;
    let list = world.run(&["task", "list"]).await;
    assert_eq!(list.stdout.lines().nth(1), Some("t-1   ledger-read  active  2026-11-23T11:00:00Z  1       -"));
    let show = world.run(&["task", "show", "t-1"]).await;
    assert!(show.stdout.contains("aws l-1: issued, usable until 2026-11-23T10:15:00Z"), "{}", show.stdout);
    let end = world.run(&["task", "end", "t-1"]).await;
    let expected =
        "task t-1 ended at 2026-11-23T10:05:00Z (holder)\n  aws l-1: expires: usable until 2026-11-23T10:15:00Z\n";
    assert_eq!(end.stdout, expected);
    for args in [&["task", "list", "--output", "json"][..], &["task", "show", "t-1", "--output", "json"]] {
        let json = world.run(args).await;
        serde_json::from_str::<serde_json::Value>(&json.stdout).unwrap();
    }
    assert!(world.sidecar.asked().iter().all(|asked| asked.proof == format!("Bearer {}", svid("sidemint"))));
}

#[tokio::test]
async fn a_truncated_list_says_how_to_continue() {
    let world = World::new().await;
    let page = r#"{"tasks":[{"id":"t-9","scope":"s","spiffe_id":"spiffe://dev.test/report","tier":"baseline","state":"active",
        "hold":false,"begun_at":"2026-11-23T10:00:00Z","expires_at":"2026-11-23T11:00:00Z","leases":[]}],"next":"t-9"}"#;
    world.sidecar.answer("GET /v1/tasks", 200, page);
    let list = world.run(&["task", "list"]).await;
    assert_eq!(list.stdout.lines().last(), Some("there are more: sidemint task list --after t-9"));
    let rest = world.run(&["task", "list", "--after", "t-9"]).await;
    assert!(!rest.stdout.contains("there are more"), "{}", rest.stdout);
    assert_eq!(world.sidecar.asked()[1].query.as_deref(), Some("after=t-9"));
    assert_eq!(world.run(&["task", "list", "--after", "../x"]).await.code, 2);
    assert_eq!(world.sidecar.asked().len(), 2, "what can be no id is not sent");
}

#[tokio::test]
async fn end_prints_the_deny_for_the_one_session_whether_the_task_ran_or_not() {
    let world = World::new().await;
    let expected = include_str!("../fixtures/aws-deny.txt");
    for _ in 0..2 {
        let text = world.run(&["task", "end", "t-1", "--print-aws-deny"]).await;
        assert_eq!((text.code, text.stdout.as_str()), (0, expected));
    }
    assert_eq!(world.sidecar.story()[..2], ["DELETE /v1/tasks/t-1", "GET /v1/tasks/t-1"]);
    let json = world.run(&["task", "end", "t-1", "--print-aws-deny", "--output", "json"]).await;
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!([&value["id"], &value["leases"][0]["outcome"]], ["t-1", "expires"]);
    let deny = &value["aws_deny"]["denies"][0];
    assert_eq!([&deny["role_name"], &deny["account_id"], &deny["leases"][0]], ["ledger", "111122223333", "l-1"]);
    assert_eq!(deny["remove_after"], "2026-11-23T10:15:31Z");
    let words: Vec<_> = deny["apply"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words[..5], ["aws", "iam", "put-role-policy", "--role-name", "ledger"]);
    let policy: serde_json::Value = serde_json::from_str(words[8]).unwrap();
    assert_eq!(policy, deny["policy"]);
    assert!(!value["aws_deny"]["not_covered"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn reports_the_end_also_when_no_deny_can_be_made() {
    let world = World::new().await;
    world.sidecar.refuse("GET /v1/tasks/t-1", 503, "unavailable");
    let outcome = world.run(&["task", "end", "t-1", "--print-aws-deny"]).await;
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(outcome.stdout.starts_with("task t-1 ended at"), "{outcome:?}");
}

#[tokio::test]
async fn an_operator_ends_any_task_through_the_admin_socket_and_proves_nothing_more() {
    let world = World::new().await;
    let mut command = world.sidemint(&["task", "end", "t-1", "--operator", "--print-aws-deny"]);
    command.env("SIDEMINT_ADMIN", world.sidecar.url()).env_remove("SPIFFE_ENDPOINT_SOCKET");
    let outcome = Outcome::of(command.spawn().unwrap()).await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, include_str!("../fixtures/aws-deny.txt")), "{outcome:?}");
    assert!(world.sidecar.asked().iter().all(|asked| asked.proof.is_empty()));
    let outcome = world.run(&["task", "end", "t-1", "--operator"]).await;
    assert!(outcome.code == 2 && outcome.stderr.contains("unix:///PATH"), "not over TCP: {outcome:?}");
    let both = world.run(&["task", "end", "t-1", "--operator", "--token-file", "x"]).await;
    assert_eq!(both.code, 2);
}

#[tokio::test]
async fn an_end_that_is_not_durable_is_printed_and_exits_with_4_until_it_is() {
    let world = World::new().await;
    let ended = r#"{"id":"t-1","reason":"done","ended_at":"2026-11-23T10:05:00Z","leases":[],"durable":false}"#;
    for output in ["text", "json"] {
        world.sidecar.answer("DELETE", 200, ended);
        let end = world.run(&["task", "end", "t-1", "--output", output]).await;
        assert_eq!(end.code, 4, "{end:?}");
        assert!(end.stdout.contains("t-1") && end.stderr.contains("cannot write its journal"), "{end:?}");
    }
    assert_eq!(world.run(&["task", "end", "t-1"]).await.code, 0);
}

#[tokio::test]
async fn a_token_file_proves_the_holder_in_place_of_an_svid() {
    let world = World::new().await;
    let file = world.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let outcome = world.run(&["task", "end", "t-1", "--token-file", file.to_str().unwrap()]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let mut command = world.sidemint(&["task", "show", "t-1"]);
    command.env("SIDEMINT_TOKEN_FILE", &file).env_remove("SPIFFE_ENDPOINT_SOCKET");
    assert_eq!(Outcome::of(command.spawn().unwrap()).await.code, 0);
    assert!(world.sidecar.asked().iter().all(|asked| asked.proof == format!("Bearer {TOKEN}")));
}

#[tokio::test]
async fn an_invalid_id_never_becomes_part_of_a_path() {
    let world = World::new().await;
    for id in ["../tasks", "t-1/hold", "t 1", "", "t-1?x"] {
        assert_eq!(world.run(&["task", "end", id]).await.code, 2, "{id:?}");
    }
    assert!(world.sidecar.story().is_empty());
    assert_eq!(world.run(&["task", "show", "t-2"]).await.code, 1);
}

#[tokio::test]
async fn reports_a_malformed_sidecar_answer_and_never_quotes_it() {
    let world = World::new().await;
    world.sidecar.answer("POST /v1/tasks", 201, &format!(r#"{{"token":"{TOKEN}","id":7}}"#));
    let outcome = world.run(&["task", "begin", "--scope", "s"]).await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, ""));
    assert!(outcome.stderr.contains("unexpected JSON"), "{outcome:?}");
}

#[tokio::test]
async fn status_is_0_when_ready_and_4_when_not_also_over_a_unix_socket() {
    let world = World::new().await;
    let ready = world.run(&["status"]).await;
    assert!(ready.code == 0 && ready.stdout.contains(": ready"), "{ready:?}");
    world.sidecar.answer("GET /status", 503, r#"{"ready":false,"reasons":["no SVID yet"],"version":"0.1.0"}"#);
    let mut command = world.sidemint(&["status"]);
    command.env("SIDEMINT_ADMIN", world.sidecar.url());
    let waiting = Outcome::of(command.spawn().unwrap()).await;
    assert!(waiting.code == 4 && waiting.stdout.contains("no SVID yet"), "{waiting:?}");
}

#[tokio::test]
async fn wrong_arguments_are_usage_errors_before_anything_is_asked() {
    let world = World::new().await;
    for args in [
        &["task", "begin"][..],
        &["task", "begin", "--scope", "Not A Scope"],
        &["task", "begin", "--scope", "s", "--param", "novalue"],
        &["task", "begin", "--scope", "s", "--param", "a=1", "--param", "a=2"],
        &["task", "begin", "--scope", "s", "--ttl", "soon"],
        &["exec", "--scope", "s"],
        &["exec", "--scope", "s", "--spiffe-id", "http://x", "--", "true"],
        &["nonsense"],
        &[],
    ] {
        let outcome = world.run(args).await;
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{args:?}");
    }
    let mut command = world.sidemint(&["task", "list"]);
    let outcome = Outcome::of(command.env("SIDEMINT_HTTP", "http://10.1.2.3:80").spawn().unwrap()).await;
    assert!(outcome.code == 2 && outcome.stderr.contains("SIDEMINT_HTTP"), "{outcome:?}");
    assert!(world.sidecar.story().is_empty());
}

#[tokio::test]
async fn a_closed_pipe_is_not_an_error() {
    let world = World::new().await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = world.sidemint(&["task", "list"]);
    let outcome = Outcome::of(command.stdout(Stdio::from(writer)).spawn().unwrap()).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
}

#[tokio::test]
async fn help_and_version_are_printed_and_succeed() {
    let world = World::new().await;
    let help = world.run(&["--help"]).await;
    assert!(help.code == 0 && help.stdout.contains("Use it:"), "{help:?}");
    let version = world.run(&["--version"]).await;
    assert!(version.code == 0 && version.stdout.starts_with("sidemint 0."), "{version:?}");
}

#[tokio::test]
async fn doctor_says_what_is_missing_and_how_to_fix_it() {
    let world = World::new().await;
    let outcome = world.run(&["doctor", "--workload-api", "http://wrong"]).await;
    assert!(outcome.code == 1 && outcome.stdout.contains("FAIL  configuration"), "{outcome:?}");

    let state = world.path().join("state");
    let mut command = world.sidemint(&["doctor", "--output", "json", "--http", "127.0.0.1:0", "--admin"]);
    let sidecar = world.sidecar.tcp_url().replace("http://", "");
    command.args([&sidecar, "--policy", "/nonexistent", "--state", state.to_str().unwrap()]);
    command.args(["--sts-endpoint", &world.sidecar.tcp_url(), "--workload-api", "unix:///nonexistent.sock"]);
    command.env("SIDEMINT_POLICY_TRUST", "unsigned");
    let outcome = Outcome::of(command.spawn().unwrap()).await;
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let level = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"));
        assert!(check["level"] == "ok" || check["fix"].is_string(), "{check}");
        check["level"].as_str().unwrap().to_owned()
    };
    assert_eq!(level("configuration"), "ok");
    assert_eq!(level("Workload API"), "fail");
    assert_eq!(level("policy"), "fail");
    // Any HTTP answer shows that something is there.
    assert_eq!(level("STS"), "ok");
    assert_eq!(level("port for workloads"), "ok");
    assert_eq!(level("port for operators"), "ok");
    assert_eq!(level("state directory"), "warn");
    assert_eq!(report["ok"], false);
}

#[tokio::test]
async fn doctor_reads_the_jwt_svids_for_broker_and_sts() {
    let world = World::new().await;
    let mut command = world.sidemint(&["doctor", "--policy", "/nonexistent", "--state", "/nonexistent"]);
    command.args(["--sts-endpoint", &world.sidecar.tcp_url()]).env("SIDEMINT_POLICY_TRUST", "unsigned");
    let outcome = Outcome::of(command.spawn().unwrap()).await;
    let line = |name: &str| outcome.stdout.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
    assert!(line("JWT-SVID, broker").starts_with("ok    JWT-SVID, broker     ES256, kid k1"), "{}", outcome.stdout);
    // The fake names no issuer, without which AWS cannot find the keys.
    assert!(line("JWT-SVID, STS").starts_with("warn"), "{}", outcome.stdout);
    assert!(line("clock, SPIFFE").starts_with("ok"), "{}", outcome.stdout);
    assert!(!outcome.stdout.contains(crate::fake_workload_api::SIGNATURE));
}

#[tokio::test]
async fn doctor_with_vault_alone_says_nothing_of_aws() {
    let world = World::new().await;
    let mut command = world.sidemint(&["doctor", "--policy", "/nonexistent", "--state", "/nonexistent"]);
    command.env("SIDEMINT_POLICY_TRUST", "unsigned").env("SIDEMINT_VAULT_ADDRESS", world.sidecar.tcp_url());
    let outcome = Outcome::of(command.spawn().unwrap()).await;
    let line = |name: &str| outcome.stdout.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
    // It is no Vault, and it answers.
    assert!(line("  Vault ").starts_with("warn"), "{}", outcome.stdout);
    assert!(line("JWT-SVID, broker").starts_with("ok"), "{}", outcome.stdout);
    for absent in ["STS", "AWS", "aws"] {
        assert!(!outcome.stdout.contains(absent), "{absent}: {}", outcome.stdout);
    }
}

#[tokio::test]
async fn doctor_checks_granted_providers_and_names_those_not_configured() {
    let world = World::new().await;
    let policy = world.path().join("policy");
    let grant = "schema = 1\nprovider = \"vault\"\nrole = \"r\"\naudience = \"vault\"\nread = \"database/creds/r\"\n\
                 accept_role_scope = true\n";
    let scope = "schema = 1\npurpose = \"p\"\nbusiness_owner = \"o\"\njustification = \"j\"\n[params]\n";
    let digest = |text: &str| sidemint::policy::document::Digest::of(text.as_bytes());
    let decision = format!(
        "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"d\"\nreview_by = 2029-02-01\n\
         max_task = \"1h\"\nmax_residual = \"300s\"\nscope = \"{}\"\ngrants = {{ db-vault = \"{}\" }}\n",
        digest(scope),
        digest(grant)
    );
    let rule = "@id(\"r\")\npermit (principal == Workload::\"spiffe://dev.test/report\", action == Action::\"begin\", \
                resource == Scope::\"db\");\n";
    for (path, text) in [
        ("scopes/db.toml", scope),
        ("grants/db-vault.toml", grant),
        ("decisions/db.toml", &decision),
        ("decisions/db.cedar", rule),
    ] {
        let path = policy.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let mut command = world.sidemint(&["doctor", "--state", "/nonexistent", "--policy", policy.to_str().unwrap()]);
    command.env("SIDEMINT_POLICY_TRUST", "unsigned");
    let outcome = Outcome::of(command.spawn().unwrap()).await;
    assert!(outcome.stdout.contains("1 scope active, 0 suspended"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("grants something at vault, which is not configured"), "{}", outcome.stdout);
    assert!(!outcome.stdout.contains("STS"), "{}", outcome.stdout);

    let mut command = world.sidemint(&["doctor", "--state", "/nonexistent", "--policy", policy.to_str().unwrap()]);
    command.env("SIDEMINT_POLICY_TRUST", "unsigned").env("SIDEMINT_POLICY_SCOPES", "another");
    let outcome = Outcome::of(command.spawn().unwrap()).await;
    assert!(outcome.stdout.contains("0 scopes active"), "{}", outcome.stdout);
    assert!(!outcome.stdout.contains("vault"), "a scope that is not loaded grants nothing: {}", outcome.stdout);
}
