use std::path::Path;

use super::*;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/policy/basic");

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), place).unwrap();
        }
    }
}

fn fixture() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    copy(Path::new(FIXTURE), directory.path());
    directory
}

fn report(directory: &Path) -> LintReport {
    let files = read(directory).unwrap();
    LintReport::of(&files, Policy::load(&files), "2026-11-23T16:00:00Z".parse().unwrap())
}

fn lint_exit(directory: &Path) -> u8 {
    let args = LintArgs { policy: directory.to_owned(), output: Output::Json };
    lint(&args, "2026-11-23T16:00:00Z".parse().unwrap()).unwrap()
}

#[cfg(feature = "author")]
fn decide(directory: &Path, scope: &str) -> CliResult {
    let args = decide::Args {
        policy: directory.to_owned(),
        scope: scope.parse().unwrap(),
        published: None,
        yes: true,
        output: Output::Json,
    };
    decide::run(&args)
}

fn append(directory: &Path, file: &str, text: &str) {
    let place = directory.join(file);
    let old = std::fs::read_to_string(&place).unwrap();
    std::fs::write(place, old + text).unwrap();
}

#[test]
fn the_fixture_is_clean_and_warns_of_what_is_wide() {
    let report = report(Path::new(FIXTURE));
    assert!(report.clean(), "{}", report.text());
    assert_eq!(report.active.len(), 3);
    let text = report.text();
    assert!(text.contains("grants/incident-response-aws.toml: every task gets all of the role"), "{text}");
    assert!(text.contains("on-call-responds: permits on identity alone"), "{text}");
    assert!(text.contains("audit-reads-ledger: permits every value of the parameter customer"), "{text}");
    assert!(!text.contains("report-reads-ledger"), "{text}");
    assert_eq!(lint_exit(Path::new(FIXTURE)), 0);
}

#[cfg(feature = "author")]
#[test]
fn a_changed_grant_is_a_problem_until_it_is_decided_on() {
    let directory = fixture();
    append(directory.path(), "grants/ledger-read-aws.toml", "# wider\n");
    assert_eq!(lint_exit(directory.path()), 1);
    let before = report(directory.path());
    assert_eq!(before.json()["suspended"]["ledger-read"][0]["kind"], "digest_mismatch");
    assert_eq!(decide(directory.path(), "ledger-read").unwrap(), 0);
    assert_eq!(lint_exit(directory.path()), 0);
    // Deciding again writes nothing.
    let place = directory.path().join("decisions/ledger-read.toml");
    let modified = |place: &Path| std::fs::metadata(place).unwrap().modified().unwrap();
    let at = modified(&place);
    assert_eq!(decide(directory.path(), "ledger-read").unwrap(), 0);
    assert_eq!(modified(&place), at);
}

#[cfg(feature = "author")]
#[test]
fn deciding_shows_the_files_and_what_changed() {
    let directory = fixture();
    append(directory.path(), "grants/ledger-read-aws.toml", "# wider\n");
    let plan = decide::Plan::of(&read(directory.path()).unwrap(), &"ledger-read".parse().unwrap()).unwrap();
    let text = plan.text();
    assert!(text.contains("scopes/ledger-read.toml: unchanged"), "{text}");
    assert!(text.contains("grants/ledger-read-aws.toml: CHANGED"), "{text}");
    assert!(text.contains("AWS role arn:aws:iam::111122223333:role/ledger"), "{text}");
    assert!(text.contains("arn:aws:s3:::ledger/${param.customer}/*"), "{text}");
}

#[cfg(feature = "author")]
#[test]
fn rejects_to_decide_on_what_would_stay_suspended() {
    for (file, text) in [
        ("scopes/ledger-read.toml", "unknown = 1\n"),
        ("grants/ledger-read-aws.toml", "unknown = 1\n"),
        ("decisions/ledger-read.toml", "unknown = 1\n"),
        ("decisions/ledger-read.cedar", "permit"),
        ("boundaries/security.cedar", "permit"),
    ] {
        let directory = fixture();
        append(directory.path(), file, text);
        let before = std::fs::read(directory.path().join("decisions/ledger-read.toml")).unwrap();
        let error = decide(directory.path(), "ledger-read").unwrap_err();
        assert_eq!(error.exit, Exit::Failed);
        assert!(error.message.contains(file), "{}", error.message);
        assert_eq!(std::fs::read(directory.path().join("decisions/ledger-read.toml")).unwrap(), before);
    }
    assert!(decide(fixture().path(), "elsewhere").unwrap_err().message.contains("decisions/elsewhere.toml"));
}

#[cfg(feature = "author")]
#[test]
fn does_not_overwrite_a_decision_that_changed_meanwhile() {
    let directory = fixture();
    append(directory.path(), "grants/ledger-read-aws.toml", "# wider\n");
    let plan = decide::Plan::of(&read(directory.path()).unwrap(), &"ledger-read".parse().unwrap()).unwrap();
    append(directory.path(), "decisions/ledger-read.toml", "# by another\n");
    assert!(plan.write(directory.path()).unwrap_err().message.contains("changed meanwhile"));
}

#[test]
fn rejects_a_directory_without_policy() {
    let directory = tempfile::tempdir().unwrap();
    let error = read(directory.path()).unwrap_err();
    assert!(error.message.contains("no policy files"), "{}", error.message);
    assert!(read(&directory.path().join("none")).is_err());
}

#[test]
fn reports_every_problem_of_a_refused_version() {
    let directory = fixture();
    append(directory.path(), "boundaries/security.cedar", "@id(\"p\") permit (principal, action, resource);");
    let report = report(directory.path());
    assert!(report.refused && !report.clean());
    assert!(report.text().starts_with("REFUSED"), "{}", report.text());
    assert_eq!(lint_exit(directory.path()), 1);
}
