use proptest::prelude::*;

use super::*;
use crate::policy::repository::metadata::{LocalKey, Signer as _};

/// A `repository.toml` with one key for each role, and what stands in `more` behind it.
fn settings(more: &str) -> String {
    let mut keys = String::from("schema = 1\n[keys]\n");
    let mut roles = String::new();
    let owners = OWNERS.iter().map(|(role, _)| *role);
    for name in TOP_ROLES.into_iter().chain(owners).chain(["spare", "other"]) {
        let (key, _) = LocalKey::generate().unwrap();
        keys.push_str(&format!("{name} = \"{}\"\n", key.public().keyval.public));
        if !matches!(name, "spare" | "other") {
            roles.push_str(&format!("[roles.{name}]\nkeys = [\"{name}\"]\nthreshold = 1\nexpires = \"90days\"\n"));
        }
    }
    format!("{keys}{roles}{more}")
}

fn department(name: &str, parent: &str, key: &str, paths: &str) -> String {
    format!(
        "[roles.{name}]\nparent = \"{parent}\"\npaths = [{paths}]\nkeys = [\"{key}\"]\nthreshold = 1\nexpires = \"90days\"\n"
    )
}

fn parse(text: &str) -> Result<Settings, String> {
    Settings::parse(text.as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn each_name_belongs_to_the_deepest_role_whose_patterns_match() {
    let finance = department("finance", "business-owners", "spare", "\"scopes/finance/*\", \"scopes/finance/*/*\"");
    let tax = department("tax", "finance", "other", "\"scopes/finance/tax-*\"");
    let settings = parse(&settings(&(finance + &tax))).unwrap();
    for (path, owner) in [
        ("owners/a.toml", Some("targets")),
        ("owners/a/b.toml", None),
        ("boundaries/a.cedar", Some("security")),
        ("decisions/a.toml", Some("governance")),
        ("decisions/a/b/c/d/e/f/g/h.toml", Some("governance")),
        ("decisions/a/b/c/d/e/f/g/h/i.toml", None),
        ("scopes/a.toml", Some("business-owners")),
        ("scopes/finance/a.toml", Some("finance")),
        ("scopes/finance/tax-2026.toml", Some("tax")),
        ("scopes/finance/a/b/c.toml", Some("business-owners")),
        ("grants/a.toml", Some("implementers")),
        ("kill/list.toml", Some("incident")),
        ("elsewhere/a.toml", None),
        ("a.toml", None),
    ] {
        assert_eq!(settings.owner_of(path), owner, "{path}");
    }
}

#[test]
fn rejects_what_clients_would_reject_or_read_differently() {
    let whole = settings("");
    parse(&whole).unwrap();
    parse(&whole.replacen("keys = [\"snapshot\"]", "keys = [\"timestamp\"]", 1)).unwrap();
    let finance = |paths: &str| settings(&department("finance", "business-owners", "spare", paths));
    let same = {
        let line = whole.lines().find(|line| line.starts_with("spare = ")).unwrap();
        whole.replacen("[keys]\n", &format!("[keys]\n{}\n", line.replacen("spare", "again", 1)), 1)
    };
    let two = department("a", "business-owners", "spare", "\"scopes/x/*\"");
    let cases = [
        (whole.replace("schema = 1", "schema = 2"), "unknown schema"),
        (whole.replace("schema = 1", "schema = 1\nmore = 1"), "unknown field"),
        (
            whole.replace("[roles.incident]\nkeys = [\"incident\"]", "[roles.incident]\nkeys = [\"nobody\"]"),
            "the key nobody",
        ),
        (whole.replace("[roles.incident]", "[roles.spare]"), "needs parent"),
        (whole.replacen("threshold = 1", "threshold = 0", 1), "threshold must be"),
        (whole.replacen("threshold = 1", "threshold = 2", 1), "threshold must be"),
        (whole.replacen("90days", "30s", 1), "expires must be"),
        (whole.replacen("keys = [\"root\"]", "keys = [\"root\", \"root\"]", 1), "names a key twice"),
        (whole.replacen("keys = [\"governance\"]", "keys = [\"security\"]", 1), "they share no key"),
        (whole.replacen("keys = [\"governance\"]", "keys = [\"root\"]", 1), "they share no key"),
        (whole.replacen("keys = [\"incident\"]", "keys = [\"timestamp\"]", 1), "they share no key"),
        (whole.replacen("keys = [\"targets\"]", "keys = [\"root\"]", 1), "they share no key"),
        (settings(&department("finance", "business-owners", "snapshot", "\"scopes/a/*\"")), "they share no key"),
        (same, "are the same key"),
        (finance("\"grants/*\""), "leads out of what its parent"),
        (finance("\"scopes/*/*/*/*/*/*/*/*/*\""), "is no pattern"),
        (finance("\"scopes/**\""), "is no pattern"),
        (finance("\"scopes/{a,b}/*\""), "is no pattern"),
        (finance("\"scopes/?\""), "is no pattern"),
        (finance("\"scopes/[a]\""), "is no pattern"),
        (finance("\"scopes/../*\""), "is no pattern"),
        (finance("\"scopes//a\""), "is no pattern"),
        (finance("\"\""), "is no pattern"),
        (finance(""), "needs paths"),
        (settings(&department("finance", "nobody", "spare", "\"scopes/a/*\"")), "is no role that owns"),
        (settings(&department("finance", "root", "spare", "\"scopes/a/*\"")), "is no role that owns"),
        (settings(&department("finance", "finance", "spare", "\"scopes/a/*\"")), "in a ring"),
        (settings(&department("finance", "business-owners", "security", "\"scopes/a/*\"")), "they share no key"),
        (settings(&(two.clone() + &department("b", "business-owners", "other", "\"scopes/*/y\""))), "belongs to both"),
        (settings(&(two + &department("b", "a", "other", "\"scopes/z/*\""))), "leads out of what its parent"),
        (whole.replace("[roles.incident]", "[roles.incident]\nretired = true"), "only departments"),
    ];
    for (text, told) in cases {
        let error = parse(&text).unwrap_err();
        assert!(error.contains(told), "{told}: {error}");
    }
}

#[test]
fn departments_nest_only_as_deep_as_sidecars_follow() {
    let mut more = String::new();
    let mut parent = "business-owners".to_owned();
    for depth in 0..=MAX_DEPTH {
        let name = format!("d{depth}");
        more.push_str(&department(&name, &parent, "spare", "\"scopes/a/*\""));
        parent = name;
        let parsed = parse(&settings(&more));
        assert_eq!(parsed.is_ok(), depth < MAX_DEPTH, "{depth}: {:?}", parsed.err());
    }
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Settings::parse(&bytes);
    }
}
