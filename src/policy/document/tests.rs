use proptest::prelude::*;

use super::*;
use crate::provider::Provider;

const DECISION: &str = r#"
schema = 1
tier = "baseline"
kind = "machine"
decision_owner = "governance"
review_by = 2028-02-29
max_task = "8h"
max_residual = "30s"
grants = { aws = "" }
"#;

fn decision(from: &str, to: &str) -> Result<Decision, DocumentError> {
    assert!(DECISION.contains(from));
    Decision::parse(DECISION.replace(from, to).as_bytes())
}

#[test]
fn reads_a_decision_with_its_defaults() {
    let decision = Decision::parse(DECISION.as_bytes()).unwrap();
    assert_eq!(decision.review_by, "2028-03-01T00:00:00Z".parse().unwrap());
    assert_eq!(decision.review_until, decision.review_by + DEFAULT_REVIEW_GRACE);
    assert_eq!(decision.caps.max_residual, MIN_RESIDUAL);
    assert_eq!((decision.caps.idle, decision.expires_at, decision.accept_residual), (None, None, false));
    assert_eq!(decision.scope, None);
    assert_eq!(decision.grants, [("aws".parse().unwrap(), None)].into());
}

#[test]
fn rejects_nonexistent_dates_and_times_without_utc() {
    assert!(decision("2028-02-29", "2027-02-29").is_err());
    assert!(decision("2028-02-29", "\"2028-02-29\"").is_err());
    let ending =
        |at: &str| decision("grants", &format!("expires_at = {at}\ngrants")).map(|decision| decision.expires_at);
    assert_eq!(ending("2027-01-01").unwrap(), Some("2027-01-02T00:00:00Z".parse().unwrap()));
    assert_eq!(ending("2027-01-01T10:00:00Z").unwrap(), Some("2027-01-01T10:00:00Z".parse().unwrap()));
    assert!(ending("2027-01-01T10:00:00+01:00").is_err());
    assert!(ending("2027-01-01T10:00:00").is_err());
    assert!(ending("10:00:00").is_err());
}

#[test]
fn rejects_an_idle_time_over_max_task_and_a_decision_without_grants() {
    assert!(decision("grants", "idle = \"8h\"\ngrants").is_ok());
    assert!(decision("grants", "idle = \"9h\"\ngrants").is_err());
    assert!(decision("grants = { aws = \"\" }", "grants = {}").is_err());
    assert!(decision("grants = { aws = \"\" }", "grants = { AWS = \"\" }").is_err());
    assert!(decision("aws = \"\"", "aws = \"sha256:00\"").is_err());
}

#[test]
fn problems_are_one_line_that_names_the_place() {
    let error = decision("max_task", "max_tusk").unwrap_err();
    assert_eq!(error.kind, kind::PARSE);
    assert!(error.message.starts_with("line 7: unknown field `max_tusk`"), "{}", error.message);
    let error = Decision::parse(b"schema = 1\ntier = \xff").unwrap_err();
    assert_eq!(error.message, "is not UTF-8 text");
}

#[test]
fn a_newer_schema_is_named_before_its_unknown_keys() {
    let error = decision("schema = 1", "schema = 2\nnew = true").unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (kind::UNKNOWN_SCHEMA, "unknown schema: this version reads schema = 1")
    );
}

#[test]
fn digests_are_of_exact_bytes_in_lower_case_hex() {
    let digest = Digest::of(b"abc");
    let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(digest.to_string(), text);
    assert_eq!(text.parse::<Digest>().unwrap(), digest);
    for wrong in ["", "sha256:", &text.to_uppercase(), &text.replace("ba78", "BA78"), &text[7..], &format!("{text}0")] {
        assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
    }
    assert!(text.replace("ba78", "+a78").parse::<Digest>().is_err());
}

#[test]
fn a_grant_narrows_its_role_or_says_that_it_does_not() {
    let grant = |more: &str| {
        let text = format!("schema = 1\nprovider = \"aws\"\nrole_arn = \"arn:aws:iam:::role/app\"\n{more}");
        Grant::parse(text.as_bytes())
    };
    let policy = "session_policy = { Statement = { Effect = \"Allow\", Action = \"s3:Get*\", Resource = \"*\" } }";
    assert!(grant("").is_err());
    assert!(grant("accept_role_scope = true").is_ok());
    assert!(grant(policy).is_ok());
    assert!(grant(&format!("accept_role_scope = true\n{policy}")).is_err());
    assert!(grant("accept_role_scope = true\nregion = \"evil.example/\"").is_err());
    // The exchange asks at `sts.REGION.…` and takes no longer name.
    assert!(grant(&format!("accept_role_scope = true\nregion = \"{}\"", "a".repeat(33))).is_err());
    assert!(grant("accept_role_scope = true\naudience = \"\"").is_err());
    assert!(grant("accept_role_scope = true\nmax_session = \"13h\"").is_err());
    assert!(grant("accept_role_scope = true\nmax_sessions = \"1h\"").is_err());
}

proptest! {
    #[test]
    fn accepted_values_contain_only_characters_of_the_allow_list(value in any::<String>(), max in 1..=MAX_PARAM_LENGTH) {
        check(&value, max)?;
    }

    #[test]
    fn near_misses_of_the_allow_list_follow_the_same_rule(value in "[A-Za-z0-9._*?$/:{}\\-]{0,40}", max in 1..=40u16) {
        check(&value, max)?;
    }

    #[test]
    fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Decision::parse(&bytes), Scope::parse(&bytes), Grant::parse(&bytes));
    }

    #[test]
    fn no_damage_to_a_decision_makes_the_reader_panic(at in 0..DECISION.len(), with in any::<u8>()) {
        let mut bytes = DECISION.as_bytes().to_vec();
        bytes[at] = with;
        let _ = Decision::parse(&bytes);
    }
}

/// The rule once more, in other words than the code's.
fn check(value: &str, max: u16) -> Result<(), TestCaseError> {
    let spec = ParamSpec { kind: ParamType::Segment, max };
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    let allowed = value.chars().all(|c| alphabet.contains(c));
    let sized = (1..=usize::from(max)).contains(&value.chars().count());
    prop_assert_eq!(spec.accepts(value), allowed && sized && value != "." && value != "..");
    Ok(())
}

const VAULT: &str = "schema = 1\nprovider = \"vault\"\nrole = \"ledger\"\naudience = \"vault\"\n";

#[test]
fn a_vault_grant_names_its_login_and_its_path() {
    let text = format!(
        "{VAULT}read = \"database/creds/ro-${{param.customer}}\"\nnamespace = \"team/a\"\nmax_session = \"5m\"\n"
    );
    let grant = Grant::parse(text.as_bytes()).unwrap();
    assert_eq!((grant.max_session, grant.template.provider()), (Duration::from_secs(300), Provider::Vault));
    let GrantTemplate::Vault(vault) = grant.template else { panic!("for Vault") };
    assert_eq!(
        (vault.mount.as_str(), vault.role.as_str(), vault.namespace.as_deref()),
        ("jwt", "ledger", Some("team/a"))
    );
}

#[test]
fn a_vault_grant_that_narrows_nothing_must_say_so_and_no_other_may() {
    let parse = |rest: &str| Grant::parse(format!("{VAULT}{rest}").as_bytes());
    let whole = "read = \"database/creds/ro\"\n";
    assert!(parse(whole).unwrap_err().message.contains("accept_role_scope"));
    assert!(parse(&format!("{whole}accept_role_scope = true\n")).is_ok());
    let narrowed = "read = \"database/creds/${param.a}\"\naccept_role_scope = true\n";
    assert!(parse(narrowed).unwrap_err().message.contains("accept_role_scope"));
    for wrong in [
        "mount = \"a//b\"\n",
        "mount = \"../sys\"\n",
        "namespace = \"a b\"\n",
        "address = \"\"\n",
        "role_arn = \"x\"\n",
    ] {
        assert!(parse(&format!("{whole}accept_role_scope = true\n{wrong}")).is_err(), "{wrong}");
    }
    for wrong in [VAULT.replace("ledger", "a/b"), VAULT.replace("\"vault\"\n", "\"\"\n"), VAULT.replace("role", "rule")]
    {
        assert!(Grant::parse(format!("{wrong}{whole}accept_role_scope = true\n").as_bytes()).is_err(), "{wrong}");
    }
}
