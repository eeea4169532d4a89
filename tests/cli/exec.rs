//! `sidemint exec`.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdout};

use crate::fake_sidecar::TOKEN;
use crate::fake_workload_api::{SIGNATURE, svid};
use crate::{Outcome, World, line, rest};

const BEGIN: &str = "POST /v1/tasks";
const HOLD: &str = "POST /v1/tasks/t-1/hold";
const END: &str = "DELETE /v1/tasks/t-1";

/// The arguments that run `script` by a shell inside a task.
fn exec<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [&["exec", "--scope", "ledger-read"], options, &["--", "sh", "-c", script]].concat()
}

/// Starts a command that prints a line once it runs, and waits for that line.
async fn started(world: &World, options: &[&str], script: &str) -> (Child, ChildStdout, String) {
    let mut child = world.sidemint(&exec(options, script)).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let first = line(&mut stdout).await;
    (child, stdout, first)
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// No token file is left behind.
fn assert_no_token_file(world: &World) {
    let left = std::fs::read_dir(world.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().starts_with("sidemint-")).count(), 0);
}

#[tokio::test]
async fn the_command_gets_the_task_and_no_variable_that_an_sdk_would_prefer() {
    let world = World::new().await;
    let script = r#"env >env; f=$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE; cp "$f" token
        stat -c %a "$f" "$(dirname "$f")"; ls "$(dirname "$f")""#;
    let mut command = world.sidemint(&exec(&["--param", "customer=c-42", "--ttl", "15m", "--reason", "night"], script));
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ROLE_ARN"] {
        command.env(name, "before");
    }
    command.env("AWS_DEFAULT_PROFILE", "before").env("AWS_WEB_IDENTITY_TOKEN_FILE", "before");
    command.env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/before").env("AWS_CONTAINER_AUTHORIZATION_TOKEN", "before");
    command.env("NO_PROXY", "corp.example").env("UNTOUCHED", "kept").current_dir(world.path());
    let outcome = Outcome::of(command.spawn().unwrap()).await;

    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    assert_eq!(outcome.stdout, "600\n700\ntoken\n");
    assert_eq!(std::fs::read_to_string(world.path().join("token")).unwrap(), TOKEN);
    let env = std::fs::read_to_string(world.path().join("env")).unwrap();
    assert!(!env.contains("before") && !env.contains(TOKEN) && !env.contains(SIGNATURE), "{env}");
    let has = |wanted: &str| env.lines().any(|line| line == wanted);
    assert!(has("AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:9870/v1/aws/credentials"), "{env}");
    assert!(has("NO_PROXY=corp.example,127.0.0.1,localhost,::1") && has("UNTOUCHED=kept"), "{env}");
    assert!(env.lines().any(|line| line.starts_with("no_proxy=") && line.contains("127.0.0.1")), "{env}");

    assert_eq!(world.sidecar.story(), [BEGIN, HOLD, END]);
    let asked = world.sidecar.asked();
    assert_eq!(asked[0].proof, format!("Bearer {}", svid("sidemint")));
    assert!(asked[0].idempotency_key.is_some());
    let expected = r#"{"scope":"ledger-read","params":{"customer":"c-42"},"ttl":"15m","hold":true,"reason":"night"}"#;
    assert_eq!(asked[0].body, serde_json::from_str::<serde_json::Value>(expected).unwrap());
    assert_eq!(asked[1].proof, format!("Bearer {TOKEN}"));
    assert_eq!(asked[2].proof, format!("Bearer {TOKEN}"));
    assert_no_token_file(&world);
}

#[tokio::test]
async fn a_command_without_an_aws_grant_gets_no_aws_endpoint() {
    let world = World::new().await;
    let begun = format!(
        r#"{{"id":"t-1","scope":"ledger-read","spiffe_id":"spiffe://dev.test/report","token":"{TOKEN}",
        "expires_at":"2026-11-23T11:00:00Z","environment":{{"SIDEMINT_TOKEN":"{TOKEN}",
        "SIDEMINT_CREDENTIALS_URI":"http://127.0.0.1:9870/v1/tasks/t-1/credentials"}}}}"#
    );
    world.sidecar.answer(BEGIN, 201, &begun);
    let mut command = world.sidemint(&exec(&[], r#"env >env; cp "$SIDEMINT_TOKEN_FILE" token"#));
    command.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "before").env("AWS_PROFILE", "before").current_dir(world.path());
    let outcome = Outcome::of(command.spawn().unwrap()).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    assert_eq!(std::fs::read_to_string(world.path().join("token")).unwrap(), TOKEN);
    let env = std::fs::read_to_string(world.path().join("env")).unwrap();
    assert!(!env.contains("AWS_CONTAINER") && !env.contains("before") && !env.contains(TOKEN), "{env}");
    assert!(env.lines().any(|line| line == "SIDEMINT_CREDENTIALS_URI=http://127.0.0.1:9870/v1/tasks/t-1/credentials"));
    assert_no_token_file(&world);
}

#[tokio::test]
async fn the_svid_is_asked_for_the_brokers_audience_and_the_named_identity() {
    let world = World::new().await;
    let options = ["--audience", "broker-b", "--spiffe-id", "spiffe://dev.test/report"];
    assert_eq!(world.run(&exec(&options, "true")).await.code, 0);
    let request = world.workload_api.last_request();
    assert!(request.contains("broker-b") && request.contains("spiffe://dev.test/report"), "{request}");
    assert_eq!(world.run(&exec(&[], "true")).await.code, 0);
    assert!(world.workload_api.last_request().ends_with("sidemint"));
}

#[tokio::test]
async fn exec_returns_the_exit_code_of_its_command() {
    let world = World::new().await;
    assert_eq!(world.run(&exec(&[], "exit 7")).await.code, 7);
    assert_eq!(world.run(&exec(&[], "kill -KILL $$")).await.code, 137);
    assert_eq!(world.sidecar.story(), [BEGIN, HOLD, END, BEGIN, HOLD, END]);
    assert_no_token_file(&world);
}

#[tokio::test]
async fn a_command_that_cannot_run_has_a_shells_exit_code_and_ends_its_task() {
    let world = World::new().await;
    let missing = world.run(&["exec", "--scope", "s", "--", "/nonexistent/program"]).await;
    assert_eq!((missing.code, missing.stderr.as_str()), (127, "sidemint: /nonexistent/program: command not found\n"));
    let file = world.path().join("data");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let denied = world.run(&["exec", "--scope", "s", "--", file.to_str().unwrap()]).await;
    assert_eq!(denied.code, 126, "{denied:?}");
    assert_eq!(world.sidecar.story(), [BEGIN, HOLD, END, BEGIN, HOLD, END]);
}

#[tokio::test]
async fn forwards_signals_and_lets_the_command_decide() {
    let world = World::new().await;
    let signals = [(Signal::TERM, "TERM"), (Signal::HUP, "HUP"), (Signal::INT, "INT"), (Signal::USR1, "USR1")];
    // What this test ignores (as `nohup` and background jobs do), its children ignore too.
    let signals: Vec<_> = signals.into_iter().filter(|(signal, _)| !is_ignored_here(*signal)).collect();
    for (signal, name) in &signals {
        let script = format!("trap 'exit 42' {name}; echo ready; read never");
        let (mut child, _stdout, first) = started(&world, &[], &script).await;
        assert_eq!(first, "ready");
        // Kept open: the command must end by the signal, not by the end of its input.
        let _stdin = child.stdin.take().unwrap();
        send(&child, *signal);
        assert_eq!(Outcome::of(child).await.code, 42, "{name}");
    }
    assert_eq!(world.sidecar.story().iter().filter(|what| *what == END).count(), signals.len());
}

fn is_ignored_here(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    u64::from_str_radix(mask, 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
}

#[tokio::test]
async fn the_command_inherits_signals_that_exec_ignores() {
    let world = World::new().await;
    let arguments = exec(&[], "grep SigIgn /proc/self/status; echo ready; read go");
    let mut shell = world.sidemint(&[]);
    let program = env!("CARGO_BIN_EXE_sidemint");
    let shell_command = [&["-c", "trap '' HUP; exec \"$0\" \"$@\"", program], &arguments[..]].concat();
    let mut command = tokio::process::Command::new("sh");
    command.args(shell_command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    for (name, value) in shell.as_std_mut().get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mask = line(&mut stdout).await;
    let mask = u64::from_str_radix(mask.trim_start_matches("SigIgn:").trim(), 16).unwrap();
    assert_eq!(mask & 1, 1, "SIGHUP is signal 1");
    assert_eq!(line(&mut stdout).await, "ready");
    send(&child, Signal::HUP);
    assert_eq!(finish(child).await.code, 0);
}

#[tokio::test]
async fn a_killed_exec_releases_its_task_and_kills_its_command() {
    let world = World::new().await;
    let (mut child, mut stdout, first) =
        started(&world, &[], "trap 'echo told; exit' TERM; echo ready; read never").await;
    assert_eq!(first, "ready");
    // Kept open: the command must end by the signal, not by the end of its input.
    let _stdin = child.stdin.take().unwrap();
    send(&child, Signal::KILL);
    world.sidecar.let_go().await;
    assert_eq!(rest(&mut stdout).await, "told\n");
}

#[tokio::test]
async fn exec_holds_its_task_again_after_the_sidecar_restarts() {
    let mut world = World::new().await;
    let (child, _stdout, _) = started(&world, &["-v"], "echo ready; read go; exit 5").await;
    world.sidecar.stop().await;
    world.sidecar.start_again();
    world.sidecar.held(2).await;
    let outcome = finish(child).await;
    assert_eq!(outcome.code, 5);
    assert!(!outcome.stderr.contains("without credentials"), "{}", outcome.stderr);
    assert_eq!(world.sidecar.story(), [BEGIN, HOLD, HOLD, END]);
}

#[tokio::test]
async fn a_hold_that_is_refused_for_a_moment_is_tried_again() {
    let mut world = World::new().await;
    let (child, _stdout, _) = started(&world, &[], "echo ready; read go").await;
    world.sidecar.stop().await;
    world.sidecar.refuse(HOLD, 503, "unavailable");
    world.sidecar.start_again();
    world.sidecar.held(3).await;
    assert_eq!(finish(child).await.code, 0);
}

#[tokio::test]
async fn a_task_that_ends_first_leaves_the_command_running_and_one_line_says_so() {
    let world = World::new().await;
    let (mut child, _stdout, _) = started(&world, &[], "echo ready; read go; exit 6").await;
    world.sidecar.end_task("policy_changed").await;
    let said = line(child.stderr.as_mut().unwrap()).await;
    assert_eq!(said, "sidemint: task t-1 has ended (policy_changed); the command goes on without credentials");
    assert_eq!(finish(child).await.code, 6);
    assert_eq!(world.sidecar.story(), [BEGIN, HOLD, END]);
}

#[tokio::test]
async fn reports_once_a_task_that_ended_while_the_sidecar_was_away() {
    for (status, code) in [(401, "unauthenticated"), (409, "task_ended")] {
        let mut world = World::new().await;
        let (mut child, _stdout, _) = started(&world, &[], "echo ready; read go; exit 6").await;
        world.sidecar.stop().await;
        world.sidecar.refuse(HOLD, status, code);
        world.sidecar.start_again();
        let said = line(child.stderr.as_mut().unwrap()).await;
        assert!(said.contains(&format!("has ended ({code})")), "{said}");
        let outcome = finish(child).await;
        assert_eq!((outcome.code, outcome.stderr.as_str()), (6, ""));
    }
}

/// Lets a command that waits for a line go on, and waits for its end.
async fn finish(mut child: Child) -> Outcome {
    child.stdin.take().unwrap().write_all(b"go\n").await.unwrap();
    Outcome::of(child).await
}

#[tokio::test]
async fn no_command_runs_without_a_task_that_is_held() {
    let world = World::new().await;
    let cases = [
        (BEGIN, 403, "denied", 3),
        (BEGIN, 401, "unauthenticated", 3),
        (BEGIN, 400, "invalid_request", 2),
        (BEGIN, 503, "unavailable", 4),
        (HOLD, 409, "task_ended", 1),
        (HOLD, 503, "unavailable", 4),
    ];
    for (what, status, code, exit) in cases {
        world.sidecar.refuse(what, status, code);
        let outcome = world.run(&exec(&["--wait", "0s"], "echo it ran")).await;
        assert_eq!((outcome.code, outcome.stdout.as_str()), (exit, ""), "{code}: {outcome:?}");
        let start = format!("sidemint: {code}: because (request r-7); ");
        assert!(outcome.stderr.starts_with(&start) && outcome.stderr.lines().count() == 1, "{}", outcome.stderr);
    }
    // A task that began and could not be held is ended.
    assert_eq!(world.sidecar.story().iter().filter(|what| *what == END).count(), 2);
}

#[tokio::test]
async fn exec_names_the_address_where_no_sidecar_answers() {
    let mut world = World::new().await;
    world.sidecar.stop().await;
    let outcome = world.run(&exec(&["--wait", "0s"], "echo it ran")).await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, ""));
    assert!(outcome.stderr.contains(&world.sidecar.url()) && outcome.stderr.contains("sidemint serve"), "{outcome:?}");
}

#[tokio::test]
async fn exec_waits_for_a_sidecar_that_starts_later_and_begins_one_task() {
    let mut world = World::new().await;
    world.sidecar.stop().await;
    let child = world.sidemint(&exec(&["--wait", "10m"], "exit 3")).spawn().unwrap();
    // The second SVID is fetched only after the first begin failed.
    world.workload_api.asked(2).await;
    world.sidecar.start_again();
    assert_eq!(Outcome::of(child).await.code, 3);
    assert_eq!(world.sidecar.story(), [BEGIN, HOLD, END]);
}

#[tokio::test]
async fn without_a_workload_api_exec_names_the_variable_or_the_socket() {
    let world = World::new().await;
    let mut command = world.sidemint(&exec(&["--wait", "0s"], "true"));
    let outcome = Outcome::of(command.env_remove("SPIFFE_ENDPOINT_SOCKET").spawn().unwrap()).await;
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("SPIFFE_ENDPOINT_SOCKET"), "{outcome:?}");
    let mut command = world.sidemint(&exec(&["--wait", "0s"], "true"));
    let outcome = Outcome::of(command.env("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent.sock").spawn().unwrap()).await;
    assert_eq!(outcome.code, 4, "{outcome:?}");
}

#[tokio::test]
async fn verbose_shows_the_task_and_the_residual_access() {
    let world = World::new().await;
    let outcome = world.run(&exec(&["-v"], "true")).await;
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert_eq!(
        lines,
        [
            "sidemint: task t-1 began, scope ledger-read, until 2026-11-23T11:00:00Z",
            "sidemint: task t-1 ended at 2026-11-23T10:05:00Z (holder)",
            "sidemint:   aws l-1: expires: usable until 2026-11-23T10:15:00Z",
        ]
    );
    assert!(!outcome.stderr.contains("revoked"));
}

#[tokio::test]
async fn a_task_that_cannot_be_ended_does_not_change_the_commands_exit_code() {
    let world = World::new().await;
    world.sidecar.refuse(END, 503, "unavailable");
    // The refusal is for the end alone, so it waits behind begin and hold.
    let outcome = world.run(&exec(&[], "exit 9")).await;
    assert_eq!(outcome.code, 9);
    assert!(outcome.stderr.contains("could not end task t-1") && outcome.stderr.contains("10 s"), "{outcome:?}");
}
