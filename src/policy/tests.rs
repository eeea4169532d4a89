use std::time::Duration;

use proptest::prelude::*;

use super::repository::{DirectorySource, PolicyFiles};
use super::*;
use crate::clock::Timestamp;
use crate::identity::{Caller, Proof};
use crate::provider::ProviderGrant;

/// A day on which every fixture decision is in force.
pub(in crate::policy) const NOW: &str = "2026-11-23T16:00:00Z";
pub(in crate::policy) const REPORT: &str = "spiffe://example.org/ns/finance/sa/report";
pub(in crate::policy) const CLOSE: &str = "spiffe://example.org/ns/finance/sa/close";
pub(in crate::policy) const ON_CALL: &str = "spiffe://example.org/ns/operations/sa/on-call";
pub(in crate::policy) const AUDITOR: &str = "spiffe://example.org/ns/audit/sa/yearly";
pub(in crate::policy) const INTRUDER: &str = "spiffe://example.org/ns/other/sa/intruder";

pub(in crate::policy) fn fixture() -> PolicyFiles {
    DirectorySource::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/policy/basic")).read().unwrap()
}

/// The fixture with some files replaced, added (new text) or removed (`None`); digests stay as decided.
pub(in crate::policy) fn fixture_with(changes: &[(&str, Option<&str>)]) -> PolicyFiles {
    let mut files = fixture().files;
    for (path, text) in changes {
        match text {
            Some(text) => drop(files.insert((*path).to_owned(), text.as_bytes().to_vec().into())),
            None => drop(files.remove(*path)),
        }
    }
    PolicyFiles::unsigned(files)
}

/// The fixture with one text replaced in one file, and the digests of all decisions made to match again.
fn edited(path: &str, from: &str, to: &str) -> PolicyFiles {
    let mut files = fixture().files;
    let text = std::str::from_utf8(&files[path]).unwrap().to_owned();
    assert!(text.contains(from), "{path} has no {from}");
    let old = document::Digest::of(text.as_bytes()).to_string();
    let text = text.replace(from, to);
    let new = document::Digest::of(text.as_bytes()).to_string();
    files.insert(path.to_owned(), text.into());
    for (_, bytes) in files.iter_mut().filter(|(path, _)| path.starts_with("decisions/")) {
        *bytes = std::str::from_utf8(bytes).unwrap().replace(&old, &new).into();
    }
    PolicyFiles::unsigned(files)
}

pub(in crate::policy) fn now() -> Timestamp {
    NOW.parse().unwrap()
}

pub(in crate::policy) fn caller(spiffe_id: &str, proof: Proof) -> Caller {
    Caller::recorded(spiffe_id.parse().unwrap(), proof, now() + Duration::from_secs(300))
}

pub(in crate::policy) fn ask(scope: &str, params: &[(&str, &str)]) -> Ask {
    let params = params.iter().map(|(name, value)| (name.parse().unwrap(), (*value).to_owned()));
    Ask { scope: scope.parse().unwrap(), params: params.collect(), reason: None, approval: None, ttl: None }
}

pub(in crate::policy) fn ledger(customer: &str) -> Ask {
    ask("ledger-read", &[("customer", customer)])
}

fn decide(files: &PolicyFiles, who: &str, ask: &Ask) -> Result<Permit, Denial> {
    Policy::load(files).unwrap().decide(&caller(who, Proof::JwtSvid), ask, now())
}

fn reason(files: &PolicyFiles, who: &str, ask: &Ask) -> DenialReason {
    decide(files, who, ask).unwrap_err().reason
}

fn suspension(files: &PolicyFiles, scope: &str) -> Vec<Problem> {
    let policy = Policy::load(files).unwrap();
    assert_eq!(policy.active() + policy.suspended().len(), 3, "{:?}", policy.suspended());
    assert_eq!(policy.suspended().len(), 1, "{:?}", policy.suspended());
    let problems = policy.suspended()[&scope.parse().unwrap()].clone();
    let denial = policy.decide(&caller(REPORT, Proof::JwtSvid), &ask(scope, &[]), now()).unwrap_err();
    assert_eq!(denial.reason, DenialReason::ScopeSuspended);
    problems
}

fn suspended_by(path: &str, from: &str, to: &str) -> (&'static str, String) {
    let problems = suspension(&edited(path, from, to), "ledger-read");
    assert!(problems.iter().all(|problem| problem.file == path && problem.kind == problems[0].kind), "{problems:?}");
    assert!(Problem::KINDS.contains(&problems[0].kind));
    (problems[0].kind, problems[0].message.clone())
}

#[test]
fn permits_the_named_workload_with_an_allowed_parameter() {
    let files = fixture();
    let permit = decide(&files, REPORT, &ledger("c-42")).unwrap();
    assert_eq!(permit.scope().as_str(), "ledger-read");
    assert_eq!(permit.policy_version(), &files.version);
    assert_eq!(permit.rule_ids(), ["report-reads-ledger"]);
    assert_eq!(permit.tier(), Tier::Baseline);
    assert_eq!(permit.caps().max_task, Duration::from_secs(8 * 3600));
    assert_eq!(permit.caps().max_residual, Duration::from_secs(1200));
    assert_eq!(permit.caps().idle, None);
    let [grant] = permit.grants() else { panic!("{:?}", permit.grants()) };
    assert_eq!(grant.max_session, Duration::from_secs(3600));
    let ProviderGrant::Aws(aws) = &grant.provider else { panic!("for AWS") };
    assert_eq!(aws.role_arn, "arn:aws:iam::111122223333:role/ledger");
    let policy = aws.session_policy.as_ref().unwrap();
    assert_eq!(policy["Statement"][0]["Resource"][0], "arn:aws:s3:::ledger/c-42/*");
}

#[test]
fn denies_another_workload_and_another_parameter() {
    let files = fixture();
    assert_eq!(reason(&files, INTRUDER, &ledger("c-42")), DenialReason::NotPermitted);
    assert_eq!(reason(&files, REPORT, &ledger("c-44")), DenialReason::NotPermitted);
    assert_eq!(reason(&files, REPORT, &ask("no-such-scope", &[])), DenialReason::UnknownScope);
}

#[test]
fn a_rule_sees_the_proof_of_the_caller_and_the_ttl() {
    let policy = Policy::load(&fixture()).unwrap();
    let hour = Ask { ttl: Some(Duration::from_secs(3600)), ..ledger("c-99") };
    assert!(policy.decide(&caller(AUDITOR, Proof::JwtSvid), &hour, now()).is_ok());
    let pod = policy.decide(&caller(AUDITOR, Proof::Pod), &hour, now()).unwrap_err();
    assert_eq!(pod.reason, DenialReason::NotPermitted);
    let longer = Ask { ttl: Some(Duration::from_millis(3_600_001)), ..ledger("c-99") };
    let longer = policy.decide(&caller(AUDITOR, Proof::JwtSvid), &longer, now()).unwrap_err();
    assert_eq!(longer.reason, DenialReason::NotPermitted);
    // Without a ttl the task would get max_task, and that is what the rule sees.
    let cap = policy.decide(&caller(AUDITOR, Proof::JwtSvid), &ledger("c-99"), now()).unwrap_err();
    assert_eq!(cap.reason, DenialReason::NotPermitted);
}

#[test]
fn a_boundary_wins_over_a_permit() {
    let files = edited("decisions/ledger-read.cedar", r#"["c-42", "#, r#"["c-13", "#);
    let denial = decide(&files, REPORT, &ledger("c-13")).unwrap_err();
    assert_eq!((denial.reason, denial.rule_ids), (DenialReason::Forbidden, vec!["legal-hold".to_owned()]));
    assert!(decide(&files, REPORT, &ledger("c-43")).is_ok());
}

#[test]
fn reports_wrong_parameters_only_to_callers_that_a_rule_names() {
    let files = fixture();
    let long = "c".repeat(33);
    for value in ["", ".", "..", "c/42", "c 42", "*", "?", "${x}", "c-42\n", "ć", "\"", long.as_str()] {
        assert_eq!(reason(&files, REPORT, &ledger(value)), DenialReason::InvalidParameters, "{value:?}");
        assert_eq!(reason(&files, INTRUDER, &ledger(value)), DenialReason::NotPermitted, "{value:?}");
        // A condition, not the head, decides about auditors: whether it would hold cannot be known.
        assert_eq!(reason(&files, AUDITOR, &ledger(value)), DenialReason::NotPermitted, "{value:?}");
    }
    let missing = ask("ledger-read", &[]);
    let extra = ask("ledger-read", &[("customer", "c-42"), ("region", "eu")]);
    for wrong in [missing, extra] {
        assert_eq!(reason(&files, REPORT, &wrong), DenialReason::InvalidParameters);
        assert_eq!(reason(&files, INTRUDER, &wrong), DenialReason::NotPermitted);
    }
}

#[test]
fn rejects_a_ttl_over_max_task_and_says_so_only_to_permitted_callers() {
    let files = fixture();
    let at = |ttl| Ask { ttl: Some(ttl), ..ledger("c-42") };
    let cap = Duration::from_secs(8 * 3600);
    assert!(decide(&files, REPORT, &at(cap)).is_ok());
    assert_eq!(reason(&files, REPORT, &at(cap + Duration::from_nanos(1))), DenialReason::TtlTooLong);
    assert_eq!(reason(&files, REPORT, &at(Duration::MAX)), DenialReason::TtlTooLong);
    assert_eq!(reason(&files, REPORT, &at(Duration::ZERO)), DenialReason::InvalidParameters);
    assert_eq!(reason(&files, INTRUDER, &at(Duration::MAX)), DenialReason::NotPermitted);
}

#[test]
fn an_erroring_forbid_denies_although_cedar_skips_it() {
    // Strict validation cannot see an overflow.
    let rule = "@id(\"overflow\") forbid (principal, action, resource) when { context.asserted.ttl * 9223372036854775807 == 1 };";
    let files = fixture_with(&[("boundaries/overflow.cedar", Some(rule))]);
    let denial = decide(&files, REPORT, &ledger("c-42")).unwrap_err();
    assert_eq!(denial.reason, DenialReason::EvaluationError);
    assert!(denial.detail.contains("overflow"), "{}", denial.detail);
}

#[test]
fn elevated_needs_an_approval_and_says_so_only_to_permitted_callers() {
    let files = fixture();
    let close = ask("finance/quarter-close", &[("customer", "c-42"), ("quarter", "2026-q3")]);
    assert_eq!(reason(&files, CLOSE, &close), DenialReason::ApprovalRequired);
    assert_eq!(reason(&files, INTRUDER, &close), DenialReason::NotPermitted);
    // A caller's word is no approval.
    let said = Ask { approval: Some("please".to_owned()), ..close };
    assert_eq!(reason(&files, CLOSE, &said), DenialReason::ApprovalRequired);
}

#[test]
fn break_glass_needs_a_meaningful_reason() {
    let files = fixture();
    let silent = ask("incident-response", &[]);
    assert_eq!(reason(&files, ON_CALL, &silent), DenialReason::Guardrail);
    let blank = Ask { reason: Some(" \t\n".to_owned()), ..silent.clone() };
    assert_eq!(reason(&files, ON_CALL, &blank), DenialReason::Guardrail);
    let told = Ask { reason: Some("INC-7".to_owned()), ..silent };
    let permit = decide(&files, ON_CALL, &told).unwrap();
    assert_eq!((permit.tier(), permit.caps().idle), (Tier::BreakGlass, Some(Duration::from_secs(600))));
    let ProviderGrant::Aws(aws) = &permit.grants()[0].provider else { panic!("for AWS") };
    assert_eq!(aws.session_policy, None);
}

#[test]
fn a_decision_lapses_after_its_review_date_and_grace() {
    let policy = Policy::load(&fixture()).unwrap();
    let at = |time: &str| {
        let result = policy.decide(&caller(REPORT, Proof::JwtSvid), &ledger("c-42"), time.parse().unwrap());
        result.map(drop).map_err(|denial| (denial.reason, denial.rule_ids))
    };
    // review_by 2027-02-01, to the end of the day, and seven days of grace
    assert_eq!(at("2027-02-08T23:59:59.999Z"), Ok(()));
    let overdue = (DenialReason::Guardrail, vec!["guardrail-review-overdue".to_owned()]);
    assert_eq!(at("2027-02-09T00:00:00Z"), Err(overdue));
}

#[test]
fn an_exception_expires_at_its_instant() {
    let policy = Policy::load(&fixture()).unwrap();
    let told = Ask { reason: Some("INC-7".to_owned()), ..ask("incident-response", &[]) };
    let at = |time: &str| policy.decide(&caller(ON_CALL, Proof::JwtSvid), &told, time.parse().unwrap());
    assert!(at("2026-12-31T11:59:59.999Z").is_ok());
    let ended = at("2026-12-31T12:00:00Z").unwrap_err();
    assert_eq!((ended.reason, ended.rule_ids), (DenialReason::Guardrail, vec!["guardrail-expired".to_owned()]));
}

#[test]
fn a_changed_scope_or_grant_suspends_its_scope_and_says_the_fix() {
    for path in ["scopes/ledger-read.toml", "grants/ledger-read-aws.toml"] {
        let text = format!("{}# a word more\n", std::str::from_utf8(&fixture().files[path]).unwrap());
        let problems = suspension(&fixture_with(&[(path, Some(&text))]), "ledger-read");
        assert_eq!((problems.len(), problems[0].kind, problems[0].file.as_str()), (1, kind::DIGEST_MISMATCH, path));
        assert!(
            problems[0].message.contains("sidemint policy decide --policy DIR ledger-read"),
            "{}",
            problems[0].message
        );
    }
}

#[test]
fn a_missing_file_suspends_its_scope() {
    let missing = [
        ("scopes/ledger-read.toml", kind::MISSING),
        ("decisions/ledger-read.toml", kind::UNDECIDED),
        ("decisions/ledger-read.cedar", kind::MISSING),
        ("grants/ledger-read-aws.toml", kind::MISSING),
    ];
    for (path, kind) in missing {
        let problems = suspension(&fixture_with(&[(path, None)]), "ledger-read");
        assert_eq!((problems.len(), problems[0].kind, problems[0].file.as_str()), (1, kind, path), "{problems:?}");
    }
}

#[test]
fn a_bad_decision_scope_or_grant_suspends_its_scope_alone() {
    let (toml, cedar) = ("decisions/ledger-read.toml", "decisions/ledger-read.cedar");
    let (scope, grant) = ("scopes/ledger-read.toml", "grants/ledger-read-aws.toml");
    let cases = [
        (toml, "schema = 1", "schema = 2", kind::UNKNOWN_SCHEMA),
        (toml, "schema = 1\n", "", kind::UNKNOWN_SCHEMA),
        (toml, "tier = ", "colour = \"red\"\ntier = ", kind::PARSE),
        (toml, "tier = \"baseline\"", "tier = \"high\"", kind::PARSE),
        (toml, "tier = \"baseline\"", "tier = ", kind::PARSE),
        (toml, "\"20m\"", "\"29s\"", kind::INVALID),
        (toml, "\"20m\"", "\"13h\"", kind::INVALID),
        (toml, "\"20m\"", "1200", kind::PARSE),
        (toml, "\"8h\"", "\"0s\"", kind::INVALID),
        (toml, "\"8h\"", "\"31days\"", kind::INVALID),
        (toml, "2027-02-01", "2027-02-01T00:00:00Z", kind::INVALID),
        (toml, "kind = \"machine\"", "kind = \"exception\"", kind::INVALID),
        (scope, "schema = 1", "schema = 9", kind::UNKNOWN_SCHEMA),
        (scope, "\"segment\"", "\"text\"", kind::PARSE),
        (scope, "max = 32", "max = 0", kind::INVALID),
        (scope, "max = 32", "max = 32, min = 1", kind::PARSE),
        (scope, "purpose = ", "goal = \"x\"\npurpose = ", kind::PARSE),
        (grant, "\"aws\"", "\"mars\"", kind::PROVIDER),
        (grant, "arn:aws:iam::111122223333:role/ledger", "arn:aws:iam::1:role/ledger", kind::INVALID),
        (grant, "${param.customer}", "${param.region}", kind::INVALID),
        (grant, "${param.customer}", "${aws:username}", kind::INVALID),
        (cedar, "Scope::\"ledger-read\"", "Scope::\"incident-response\"", kind::RULE),
        (cedar, ", resource == Scope::\"ledger-read\"", ", resource", kind::RULE),
        (cedar, "@id(\"audit-reads-ledger\")", "", kind::RULE),
        (cedar, "@id(\"audit-reads-ledger\")", "@id(\"report-reads-ledger\")", kind::RULE),
        (cedar, "@id(\"audit-reads-ledger\")", "@id(\"guardrail-expired\")", kind::RULE),
        (cedar, "@id(\"audit-reads-ledger\")", "@id(\"legal-hold\")", kind::RULE),
        (cedar, "permit (principal,", "permit (principal == ?principal,", kind::RULE),
        (cedar, "context.verified.proof", "context.asserted.reason", kind::RULE),
        (cedar, "context.verified.proof", "context.verified.colour", kind::RULE),
        (cedar, "params.customer", "params.region", kind::RULE),
        (cedar, "permit", "forbid", kind::RULE),
        (cedar, "permit", "permitt", kind::RULE),
    ];
    for (path, from, to, kind) in cases {
        let (found, message) = suspended_by(path, from, to);
        assert_eq!(found, kind, "{path}: {from} → {to}: {message}");
        assert!(!message.contains('\n') || kind == kind::RULE, "{message}");
    }
}

#[test]
fn two_grants_of_one_provider_suspend_the_scope() {
    let digest = document::Digest::of(&fixture().files["grants/ledger-read-aws.toml"]);
    let second = format!("grants = {{ ledger-read-too = \"{digest}\", ");
    let mut files = edited("decisions/ledger-read.toml", "grants = { ", &second).files;
    files.insert("grants/ledger-read-too.toml".to_owned(), files["grants/ledger-read-aws.toml"].clone());
    let problems = suspension(&PolicyFiles::unsigned(files), "ledger-read");
    assert_eq!((problems.len(), problems[0].kind), (1, kind::PROVIDER), "{problems:?}");
}

#[test]
fn a_bad_boundary_refuses_the_whole_version() {
    let bad = [
        "@id(\"x\") permit (principal, action, resource);",
        "forbid (principal, action, resource);",
        "@id(\"x\") forbid (principal, action, resource) when { context.asserted.params.customer == \"c-1\" };",
        "@id(\"legal-hold\") forbid (principal, action, resource);",
        "@id(\"guardrail-x\") forbid (principal, action, resource);",
        "@id(\"x\") forbid (principal, action, resource) when { context.verified.colour == \"red\" };",
        "forbid forbid",
        "@id(\"x\") forbid (principal == ?principal, action, resource);",
    ];
    for text in bad {
        let error = Policy::load(&fixture_with(&[("boundaries/more.cedar", Some(text))])).unwrap_err();
        assert!(
            error.problems.iter().all(|problem| problem.kind == kind::RULE && problem.file.starts_with("boundaries/"))
        );
        assert!(!error.problems.is_empty(), "{text}");
    }
}

#[test]
fn a_bad_kill_list_or_owner_refuses_the_whole_version() {
    for (path, text) in [
        ("kill/list.toml", "schema = 2"),
        ("kill/other.toml", "schema = 1"),
        ("owners/charter.toml", "schema = 1\norphan_grace = \"1year\""),
        ("owners/finance-data.toml", "schema = 1"),
        ("owners/Finance.toml", "schema = 1"),
    ] {
        let error = Policy::load(&fixture_with(&[(path, Some(text))])).unwrap_err();
        assert_eq!(error.problems.iter().map(|problem| problem.file.as_str()).collect::<Vec<_>>(), [path]);
    }
}

#[test]
fn a_boundary_may_ask_for_a_parameter_that_no_scope_has() {
    let rule = "@id(\"x\") forbid (principal, action, resource) when { context.asserted.params has region && context.asserted.params.region == \"eu\" };";
    let files = fixture_with(&[("boundaries/region.cedar", Some(rule))]);
    assert!(decide(&files, REPORT, &ledger("c-42")).is_ok());
    let policy = Policy::load(&files).unwrap();
    assert!(
        policy.warnings().iter().any(|problem| problem.file == "boundaries/region.cedar"),
        "{:?}",
        policy.warnings()
    );
}

#[test]
fn reports_a_file_of_no_scope_and_suspends_nothing() {
    let files = fixture_with(&[("scopes/Bad Name.toml", Some("")), ("grants/lonely.toml", Some("schema = 1"))]);
    let policy = Policy::load(&files).unwrap();
    assert_eq!((policy.active(), policy.suspended().len()), (3, 0));
    let stray: Vec<_> = policy.stray().iter().map(|problem| (problem.file.as_str(), problem.kind)).collect();
    assert_eq!(stray, [("scopes/Bad Name.toml", kind::FILE_NAME), ("grants/lonely.toml", kind::PARSE)]);
}

#[test]
fn the_version_depends_on_paths_and_bytes() {
    let version = fixture().version;
    assert_eq!(version, fixture().version);
    assert_eq!(version.0.len(), "dir-".len() + 16);
    assert_ne!(version, fixture_with(&[("boundaries/security.cedar", None)]).version);
    assert_ne!(version, edited("boundaries/security.cedar", "c-13", "c-14").version);
}

#[test]
fn loads_only_the_configured_scopes_and_reports_a_missing_one() {
    let scopes = ["ledger-read", "elsewhere"].map(|id| id.parse().unwrap()).into();
    let policy = Policy::load_with(&fixture(), &LoadOptions { scopes, ..LoadOptions::default() }).unwrap();
    assert_eq!(policy.scopes().map(ScopeId::as_str).collect::<Vec<_>>(), ["ledger-read"]);
    assert!(policy.suspended().contains_key(&"elsewhere".parse().unwrap()));
    let left_out = policy.decide(&caller(ON_CALL, Proof::JwtSvid), &ask("incident-response", &[]), now()).unwrap_err();
    assert_eq!(left_out.reason, DenialReason::UnknownScope);
}

fn any_scope() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("ledger-read".into()),
        Just("incident-response".into()),
        Just("finance/quarter-close".into()),
        "[a-z]{1,8}"
    ]
}

pub(in crate::policy) fn any_ask() -> impl Strategy<Value = Ask> {
    let value = prop_oneof![Just("c-42".to_owned()), Just("2026-q1".to_owned()), any::<String>()];
    let name = prop_oneof![Just("customer".to_owned()), Just("quarter".to_owned()), "[a-z][a-z0-9_]{0,31}"];
    let params = proptest::collection::btree_map(name, value, 0..4);
    let params = prop_oneof![Just([("customer".to_owned(), "c-42".to_owned())].into()), Just([].into()), params];
    let text = || proptest::option::of(any::<String>());
    let ttl = prop_oneof![
        Just(None),
        any::<u16>().prop_map(|secs| Some(Duration::from_secs(secs.into()))),
        any::<Duration>().prop_map(Some)
    ];
    (any_scope(), params, text(), text(), ttl).prop_map(|(scope, params, reason, approval, ttl)| Ask {
        scope: scope.parse().unwrap(),
        params: params.into_iter().map(|(name, value)| (name.parse().unwrap(), value)).collect(),
        reason,
        approval,
        ttl,
    })
}

const FILTERS: [&[&str]; 3] = [&["ledger-read"], &["finance/quarter-close", "incident-response"], &["elsewhere"]];

proptest! {
    #[test]
    fn deciding_never_panics_and_a_permit_keeps_its_caps(
        ask in any_ask(),
        who in prop_oneof![Just(REPORT), Just(CLOSE), Just(ON_CALL), Just(AUDITOR), Just(INTRUDER)],
        now in prop_oneof![any::<u64>().prop_map(Timestamp::from_millis), (1..4_000_000_000u64).prop_map(Timestamp::from_secs)],
        filter in 0..FILTERS.len(),
    ) {
        thread_local! {
            static WHOLE: Policy = Policy::load(&fixture()).unwrap();
            static NARROWED: [Policy; 3] = FILTERS.map(|filter| {
                let scopes = filter.iter().map(|id| id.parse().unwrap()).collect();
                Policy::load_with(&fixture(), &LoadOptions { scopes, ..LoadOptions::default() }).unwrap()
            });
        }
        let caller = caller(who, Proof::JwtSvid);
        let whole = WHOLE.with(|policy| policy.decide(&caller, &ask, now));
        if let Ok(permit) = &whole {
            prop_assert!(ask.ttl.unwrap_or_default() <= permit.caps().max_task);
            prop_assert_eq!(permit.scope(), &ask.scope);
            prop_assert_ne!(who, INTRUDER);
        }
        // Local configuration only narrows: what it lets through is exactly what the whole policy lets through.
        let narrowed = NARROWED.with(|policies| policies[filter].decide(&caller, &ask, now));
        if let Ok(narrowed) = narrowed {
            let whole = whole.unwrap();
            prop_assert_eq!(narrowed.grants(), whole.grants());
            prop_assert_eq!(narrowed.caps(), whole.caps());
        }
    }
}

fn warnings(path: &str, from: &str, to: &str) -> Vec<String> {
    warnings_of(&edited(path, from, to), path)
}

fn warnings_of(files: &PolicyFiles, path: &str) -> Vec<String> {
    let policy = Policy::load(files).unwrap();
    assert!(policy.suspended().is_empty(), "{:?}", policy.suspended());
    assert!(policy.warnings().iter().all(|warning| warning.kind == kind::WARNING));
    policy.warnings().iter().filter(|warning| warning.file == path).map(|warning| warning.message.clone()).collect()
}

const LEDGER_GRANT: &str = "grants/ledger-read-aws.toml";
const LEDGER_ACTION: &str = "\"s3:GetObject\"";

/// The fixture with other actions in the grant of `ledger-read`, and other lines about `max_residual` in its decision.
fn allowing(action: &str, residual: &str) -> PolicyFiles {
    let mut files = edited(LEDGER_GRANT, LEDGER_ACTION, action).files;
    let decision = files.get_mut("decisions/ledger-read.toml").unwrap();
    *decision = std::str::from_utf8(decision).unwrap().replace("max_residual = \"20m\"", residual).into();
    PolicyFiles::unsigned(files)
}

const ACCEPTED: &str = "max_residual = \"20m\"\naccept_residual = true";

#[test]
fn suspends_a_scope_whose_access_outlives_max_residual_unless_accepted() {
    let ledger: ScopeId = "ledger-read".parse().unwrap();
    let rows = [
        ("\"sts:AssumeRole\"", "max_residual = \"20m\"", "sts:AssumeRole leaves a session of another role"),
        ("\"sts:AssumeRole\"", "max_residual = \"1h\"", "max_residual of 1h"),
        ("\"ecr:GetAuth*\"", "max_residual = \"12h\"", "ecr:GetAuthorizationToken leaves a registry token, 12 h"),
        ("\"rds-db:connect\"", "max_residual = \"12h\"", "rds-db:connect leaves an open database session"),
        ("\"${param.customer}:Decrypt\", \"iam:${param.customer}\"", "max_residual = \"12h\"", "iam:CreateAccessKey"),
        ("\"*\"", "max_residual = \"20m\"", "accept_residual = true"),
    ];
    for (action, residual, says) in rows {
        let policy = Policy::load(&allowing(action, residual)).unwrap();
        let problems = &policy.suspended()[&ledger];
        assert_eq!(problems.len(), 1, "{action}: {problems:?}");
        assert_eq!([problems[0].file.as_str(), problems[0].kind], [LEDGER_GRANT, kind::RESIDUAL]);
        assert!(problems[0].message.contains(says), "{action}: {}", problems[0].message);
        let found = warnings_of(&allowing(action, ACCEPTED), LEDGER_GRANT);
        assert!(found.iter().any(|message| message.contains("outlive the task")), "{action}: {found:?}");
    }
}

#[test]
fn shortens_a_session_so_that_what_outlives_it_keeps_the_law_of_life() {
    let grant = |residual: &str| {
        let policy = Policy::load(&allowing("\"sts:AssumeRole\"", residual)).unwrap();
        let permit = policy
            .decide(&caller(REPORT, Proof::JwtSvid), &ask("ledger-read", &[("customer", "c-42")]), now())
            .unwrap_or_else(|denial| panic!("{residual}: {}", denial.detail));
        permit.grants()[0].clone()
    };
    let minute = Duration::from_secs(60);
    let kept = grant("max_residual = \"75m\"");
    assert_eq!((kept.max_session, kept.outlives.lasts), (15 * minute, 60 * minute));
    let roomy = grant("max_residual = \"3h\"");
    assert_eq!(roomy.max_session, 60 * minute, "never more than the grant's own");
    let accepted = grant(ACCEPTED);
    assert_eq!(
        (accepted.max_session, accepted.outlives.lasts),
        (60 * minute, 60 * minute),
        "max_residual bounds it later"
    );
}

#[test]
fn lint_warns_of_access_that_is_wide_or_outlives_its_cut() {
    let (grant, action, resource) = (LEDGER_GRANT, LEDGER_ACTION, "\"arn:aws:s3:::ledger/${param.customer}/*\"");
    assert_eq!(warnings(grant, "schema", "schema"), Vec::<String>::new());
    for outliving in
        ["sts:AssumeRole", "sts:AssumeRole*", "STS:assumerolewithwebidentity", "sts:*", "s*:Assume?ole", "*"]
    {
        let found = warnings_of(&allowing(&format!("{outliving:?}"), ACCEPTED), grant);
        assert!(found.iter().any(|message| message.contains("outlive the task")), "{outliving}: {found:?}");
    }
    for harmless in ["sts:GetCallerIdentity", "s3:AssumeRole", "sts:AssumeRol", "s3:*"] {
        let found = warnings(grant, action, &format!("{harmless:?}"));
        assert!(!found.iter().any(|message| message.contains("outlive the task")), "{harmless}: {found:?}");
    }
    let cases = [
        (action, "\"s3:*\"", "allows the actions s3:*"),
        ("Resource", "NotResource", "NotResource"),
        (resource, "\"*\"", "allows the resource *"),
        ("/*\"", "*\"", "also matches longer values"),
        ("schema = 1", "schema = 1\nmax_session = \"15m\"", "max_session is shorter"),
    ];
    for (from, to, says) in cases {
        let found = warnings(grant, from, to);
        assert!(found.iter().any(|message| message.contains(says)), "{to}: {found:?}");
    }
    let mut files = edited(grant, "Action", "NotAction").files;
    let decision = files.get_mut("decisions/ledger-read.toml").unwrap();
    *decision = std::str::from_utf8(decision).unwrap().replace("max_residual = \"20m\"", ACCEPTED).into();
    let found = warnings_of(&PolicyFiles::unsigned(files), grant);
    assert!(found.iter().any(|message| message.contains("NotAction")), "{found:?}");
}

#[test]
fn lint_warns_of_rules_that_no_longer_narrow() {
    let cedar = "decisions/ledger-read.cedar";
    let found = warnings(cedar, "when { [\"c-42\", \"c-43\"].contains(context.asserted.params.customer) }", "");
    assert!(
        found.iter().any(|message| message.starts_with("report-reads-ledger: permits on identity alone")),
        "{found:?}"
    );
    let found =
        warnings(cedar, "[\"c-42\", \"c-43\"].contains(context.asserted.params.customer)", "context.asserted.ttl < 60");
    assert!(found.iter().any(|message| message.starts_with("report-reads-ledger: permits every value")), "{found:?}");
}

#[test]
fn lint_warns_of_a_grant_that_nobody_decided_on() {
    let text = "schema = 1\nprovider = \"aws\"\nrole_arn = \"arn:aws:iam:::role/app\"\naccept_role_scope = true";
    let policy = Policy::load(&fixture_with(&[("grants/lonely.toml", Some(text))])).unwrap();
    assert!(policy.warnings().iter().any(|warning| warning.file == "grants/lonely.toml"));
    assert!(policy.stray().is_empty());
}

#[test]
fn lint_warns_of_approaching_reviews_and_expiries() {
    let policy = Policy::load(&fixture()).unwrap();
    let due = |time: &str| -> Vec<String> {
        let all = policy.due(time.parse().unwrap());
        all.into_iter().map(|problem| format!("{} {}", problem.file, problem.message)).collect()
    };
    assert_eq!(due("2026-11-23T00:00:00Z"), Vec::<String>::new());
    let ends = due("2026-12-15T00:00:00Z");
    assert_eq!(ends, ["decisions/incident-response.toml ends at 2026-12-31T12:00:00Z"]);
    let near = due("2027-01-10T00:00:00Z");
    assert!(near.contains(&"decisions/ledger-read.toml review due by 2027-02-02T00:00:00Z".to_owned()), "{near:?}");
    assert!(near.iter().any(|message| message.contains("ended at 2026-12-31")), "{near:?}");
    let late = due("2027-02-03T00:00:00Z");
    assert!(
        late.iter().any(|message| message.contains("ledger-read.toml review overdue: it stops at 2027-02-09")),
        "{late:?}"
    );
    let over = due("2027-02-09T00:00:00Z");
    assert!(
        over.iter().any(|message| message.contains("ledger-read.toml review overdue: it stopped at 2027-02-09")),
        "{over:?}"
    );
}

#[test]
fn the_examples_of_the_vocabulary_page_load() {
    let page = include_str!("../../docs/policy.md");
    let blocks = |language: &str| -> Vec<String> {
        let opening = format!("```{language}\n");
        page.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    let [scope, grant, vault, decision] = <[String; 4]>::try_from(blocks("toml")).unwrap();
    let digest = |text: &str| document::Digest::of(text.as_bytes()).to_string();
    let decision = decision.replacen("sha256:…", &digest(&scope), 1).replacen("sha256:…", &digest(&grant), 1);
    // both of its grants at once
    let both = format!("{{ ledger-read-vault = \"{}\", ledger-read-aws", digest(&vault));
    let decision = decision.replacen("{ ledger-read-aws", &both, 1);
    let [rules] = <[String; 1]>::try_from(blocks("cedar")).unwrap();
    let files = fixture_with(&[
        ("scopes/ledger-read.toml", Some(&scope)),
        ("grants/ledger-read-aws.toml", Some(&grant)),
        ("grants/ledger-read-vault.toml", Some(&vault)),
        ("decisions/ledger-read.toml", Some(&decision)),
        ("decisions/ledger-read.cedar", Some(&rules)),
    ]);
    assert_eq!(decide(&files, REPORT, &ledger("c-42")).unwrap().rule_ids(), ["report-reads-ledger"]);
    let [owner, charter, kill] = ["toml owner", "toml charter", "toml kill"].map(|kind| blocks(kind).remove(0));
    assert!(charter::Owner::parse(owner.as_bytes()).unwrap().active_until.is_some());
    assert_eq!(
        charter::Charter::parse(charter.as_bytes()).unwrap(),
        charter::Charter::default(),
        "it tells the defaults"
    );
    assert_eq!(kill::KillList::parse(kill.as_bytes(), None).unwrap().in_force(now()), 1);
    let policy = Policy::load(&files).unwrap();
    let pod = policy.decide(&caller(REPORT, Proof::Pod), &ledger("c-42"), now()).unwrap_err();
    assert_eq!(pod.reason, DenialReason::NotPermitted);
}
