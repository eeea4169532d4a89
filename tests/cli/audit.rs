//! `sidemint audit`: what its users see of a log that was tampered with, and of one that was not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sidemint::audit::{Audit, Event, Kind, Output, Settings};
use sidemint::clock::Timestamp;

async fn log(directory: &Path) -> (PathBuf, PathBuf) {
    let (log, state) = (directory.join("audit.jsonl"), directory.join("state"));
    let now = Timestamp::from_secs(1_795_452_513);
    let audit = Audit::start(&Settings::new(Output::File(log.clone())), &state, now).unwrap();
    for request in ["r-1", "r-2", "r-3"] {
        let event = Event { request_id: Some(request), ..Event::new(now, Kind::Decision, "permit") };
        audit.record(&event).await.unwrap();
    }
    audit.close(now).await.unwrap();
    (log, state)
}

fn sidemint(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sidemint")).arg("audit").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn verifies_a_complete_log_with_key_and_head_from_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let (log, state) = log(directory.path()).await;
    let (log, state) = (log.to_str().unwrap(), state.to_str().unwrap());
    let told = |what: &str| {
        let (code, out, _) = sidemint(&[what, "--state", state]);
        assert_eq!(code, 0);
        out.trim().to_owned()
    };
    let (key, head) = (told("key"), told("head"));
    let (code, out, _) = sidemint(&["verify", log, "--key", &key, "--head", &head]);
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("ok: 5 lines in 1 file, 2 good checkpoints"), "{out}");
    assert!(out.contains(&format!("lines      1 to {head}")) && out.contains(&format!("{key}, given")), "{out}");

    let (code, out, _) = sidemint(&["verify", log]);
    assert_eq!(code, 0);
    assert!(out.contains("taken from the log itself") && out.contains("give --head"), "{out}");
}

#[tokio::test]
async fn names_the_line_of_a_tampered_log() {
    let directory = tempfile::tempdir().unwrap();
    let (log, state) = log(directory.path()).await;
    let whole = fs::read_to_string(&log).unwrap();
    let (_, head, _) = sidemint(&["head", "--state", state.to_str().unwrap()]);
    let lines: Vec<_> = whole.lines().collect();
    let cases = [
        (whole.replace("r-2", "r-9"), 3, "edited"),
        (whole.replace(&format!("{}\n", lines[2]), ""), 3, "missing"),
        (
            whole.replace(lines[1], lines[2]).replacen(lines[2], lines[1], 2).replacen(lines[1], lines[2], 1),
            3,
            "reordered",
        ),
        (whole.replace(lines[1], &format!("{}\n{}", lines[1], lines[1])), 3, "repeated"),
        (format!("{}\n", lines[..4].join("\n")), 4, "truncated"),
    ];
    for (text, line, kind) in cases {
        fs::write(&log, text).unwrap();
        let args = ["verify", log.to_str().unwrap(), "--head", head.trim()];
        let (code, out, _) = sidemint(&args);
        assert_eq!(code, 1, "{kind}: {out}");
        assert!(out.contains(&format!("audit.jsonl:{line}: {kind}: ")), "{kind}: {out}");
        let (code, out, _) = sidemint(&[&args[..], &["--output", "json"]].concat());
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, report["ok"].as_bool()), (1, Some(false)));
        assert_eq!(report["problems"][0]["kind"], kind);
    }
}

#[test]
fn reports_a_missing_file_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("nowhere");
    for args in [["verify", nowhere.to_str().unwrap()].as_slice(), &["key", "--state", nowhere.to_str().unwrap()]] {
        let (code, out, err) = sidemint(args);
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.lines().count() == 1 && err.contains("nowhere"), "{err}");
    }
    assert_eq!(sidemint(&["verify", "x", "--head", "12"]).0, 2);
    assert_eq!(sidemint(&["verify", "x", "--key", "ed25519:12"]).0, 2);
}
