//! Table tests: what governance meant, written down beside the decision (`decisions/S.tests.toml`) and asked of the real
//! policy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::repository::{DirectorySource, MAX_FILE, PolicyFiles, TESTS};
use super::super::{Ask, Denial, DenialReason, Permit, Policy, Problem};
use super::super::{ParamName, ScopeId};
use super::{PublishError, cannot, read_file};
use crate::clock::Timestamp;
use crate::identity::{Caller, Proof, SpiffeId};
use crate::toml_file::{instant, located};

/// The most cases of one file.
const MAX_CASES: usize = 1000;
/// The most test files of one folder.
const MAX_TABLES: usize = 100_000;
/// As deep as a scope's id has segments.
const MAX_DEPTH: usize = 8;

/// What a case expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// The task may begin.
    Permit,
    /// It may not, and an approval would not change that.
    Deny,
    /// It may, once somebody approves.
    ApprovalRequired,
}

impl Expect {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Deny => "deny",
            Self::ApprovalRequired => "approval_required",
        }
    }
}

/// One case: who asks for what, when, and what is to come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// A sentence, unique in its file.
    pub name: String,
    /// The SPIFFE ID that asks.
    pub caller: SpiffeId,
    /// How it proved itself.
    pub proof: Proof,
    /// What it asks, without the scope.
    pub ask: CaseAsk,
    /// When, UTC; else when the test runs.
    pub at: Option<Timestamp>,
    /// What is to come of it.
    pub expect: Expect,
    /// Which reason a denial must have.
    pub denial: Option<DenialReason>,
    /// Which rules must have decided, all of them.
    pub rules: Option<BTreeSet<String>>,
}

/// What a case asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CaseAsk {
    /// The parameters of the scope, by name.
    pub params: BTreeMap<ParamName, String>,
    /// The reason that the caller gives, as break-glass needs.
    pub reason: Option<String>,
    /// The approval that the caller presents.
    pub approval: Option<String>,
    /// How long the task asks to run, where it says so.
    pub ttl: Option<std::time::Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    schema: i64,
    #[serde(default)]
    case: Vec<RawCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    name: String,
    caller: String,
    proof: Option<Proof>,
    #[serde(default)]
    params: BTreeMap<ParamName, String>,
    reason: Option<String>,
    approval: Option<String>,
    ttl: Option<String>,
    at: Option<toml::value::Datetime>,
    expect: Expect,
    denial: Option<String>,
    rules: Option<BTreeSet<String>>,
}

/// Reads the bytes of a `.tests.toml` file.
///
/// # Errors
/// Anything unknown, missing or contradictory; no case at all; two cases of one name.
pub fn parse(bytes: &[u8]) -> Result<Vec<Case>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    let raw: RawTable = toml::from_str(text).map_err(|error| located(text, &error))?;
    if raw.schema != 1 {
        return Err("unknown schema: this version reads schema = 1".to_owned());
    }
    if raw.case.is_empty() || raw.case.len() > MAX_CASES {
        return Err(format!("must have 1 to {MAX_CASES} [[case]]"));
    }
    let mut names = BTreeSet::new();
    let cases = raw.case.into_iter().map(|raw| {
        let name = raw.name.clone();
        if name.trim().is_empty() || !names.insert(name.clone()) {
            return Err(format!("case {name:?}: needs a name of its own"));
        }
        case(raw).map_err(|why| format!("case {name:?}: {why}"))
    });
    cases.collect()
}

fn case(raw: RawCase) -> Result<Case, String> {
    let caller = raw.caller.parse().map_err(|error| format!("caller: {error}"))?;
    let ttl = raw.ttl.map(|text| humantime::parse_duration(&text).map_err(|_| "ttl is no duration such as \"1h\""));
    let at = raw.at.map(|at| instant("at", at)).transpose().map_err(|error| error.message)?;
    let reason = |name: String| {
        let known = DenialReason::ALL.into_iter().find(|reason| reason.as_str() == name);
        let names = || DenialReason::ALL.map(DenialReason::as_str).join(", ");
        known.ok_or_else(|| format!("denial must be one of {}", names()))
    };
    let denial = raw.denial.map(reason).transpose()?;
    if denial.is_some() && raw.expect != Expect::Deny {
        return Err("denial belongs to expect = \"deny\"".to_owned());
    }
    Ok(Case {
        name: raw.name,
        caller,
        proof: raw.proof.unwrap_or(Proof::JwtSvid),
        ask: CaseAsk { params: raw.params, reason: raw.reason, approval: raw.approval, ttl: ttl.transpose()? },
        at,
        expect: raw.expect,
        denial,
        rules: raw.rules,
    })
}

/// How one case went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The scope whose table it stands in.
    pub scope: ScopeId,
    /// The name of the case.
    pub case: String,
    /// What differed from what was expected; empty where nothing did.
    pub differences: Vec<String>,
}

/// How all tables went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Results {
    /// How each case went, in the order of the files.
    pub cases: Vec<Outcome>,
    /// Files that cannot be tested with, and why.
    pub broken: Vec<String>,
    /// Scopes that can decide and have no tests.
    pub untested: Vec<ScopeId>,
}

impl Results {
    /// How many cases and files failed.
    pub fn failed(&self) -> usize {
        self.cases.iter().filter(|case| !case.differences.is_empty()).count() + self.broken.len()
    }
}

/// Runs every table below `directory` against the policy there. The kill list is left out: it is about the moment,
/// and tables are about decisions.
///
/// # Errors
/// The policy cannot be read, or is bad as a whole.
pub fn run(directory: &Path, now: Timestamp) -> Result<Results, PublishError> {
    let read = DirectorySource::new(directory).read();
    let mut files = read.map_err(|error| PublishError::Files(error.to_string()))?.files;
    files.retain(|path, _| !path.starts_with("kill/"));
    let policy = Policy::load(&PolicyFiles::unsigned(files)).map_err(|error| {
        let problems = error.problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ");
        PublishError::Refused(format!("the policy is bad as a whole: {problems}"))
    })?;
    let tables = tables(directory)?;
    let mut results = Results { cases: Vec::new(), broken: Vec::new(), untested: Vec::new() };
    for (path, bytes) in &tables {
        match table(&policy, path, bytes, now) {
            Ok(cases) => results.cases.extend(cases),
            Err(why) => results.broken.push(format!("{path}: {why}")),
        }
    }
    let tested = |scope: &ScopeId| tables.contains_key(&format!("decisions/{scope}{TESTS}"));
    results.untested = policy.scopes().filter(|scope| !tested(scope)).cloned().collect();
    Ok(results)
}

/// The test files below `directory`, by path.
///
/// # Errors
/// One cannot be read.
pub fn tables(directory: &Path) -> Result<BTreeMap<String, bytes::Bytes>, PublishError> {
    let mut found = BTreeMap::new();
    walk(&directory.join("decisions"), "decisions", 0, &mut found)?;
    Ok(found)
}

fn walk(
    place: &Path,
    path: &str,
    depth: usize,
    found: &mut BTreeMap<String, bytes::Bytes>,
) -> Result<(), PublishError> {
    let entries = match fs::read_dir(place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot(place, "read", &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| cannot(place, "read", &error))?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let (place, path) = (entry.path(), format!("{path}/{name}"));
        if place.is_dir() && depth + 1 < MAX_DEPTH {
            walk(&place, &path, depth + 1, found)?;
        } else if path.ends_with(TESTS)
            && let Some(bytes) = read_file(&place, MAX_FILE)?
        {
            found.insert(path, bytes);
            if found.len() > MAX_TABLES {
                return Err(PublishError::Files(format!("more than {MAX_TABLES} test files")));
            }
        }
    }
    Ok(())
}

/// Runs the cases of one file.
fn table(policy: &Policy, path: &str, bytes: &[u8], now: Timestamp) -> Result<Vec<Outcome>, String> {
    let id = path.strip_prefix("decisions/").and_then(|name| name.strip_suffix(TESTS)).unwrap_or_default();
    let scope: ScopeId = id.parse().map_err(|error| format!("its name is no scope's id: {error}"))?;
    // Every denial would come true of a scope that nobody decided on.
    if !policy.scopes().any(|known| *known == scope) && !policy.suspended().contains_key(&scope) {
        return Err(format!("there is no scope {scope}"));
    }
    let outcome = |case: Case| Outcome {
        scope: scope.clone(),
        differences: differences(policy, &scope, &case, now),
        case: case.name,
    };
    Ok(parse(bytes)?.into_iter().map(outcome).collect())
}

fn differences(policy: &Policy, scope: &ScopeId, case: &Case, now: Timestamp) -> Vec<String> {
    let at = case.at.unwrap_or(now);
    // A table is no evidence: it asks what would be if this caller had proved itself so.
    let caller = Caller::recorded(case.caller.clone(), case.proof, Timestamp::MAX);
    let CaseAsk { params, reason, approval, ttl } = case.ask.clone();
    let ask = Ask { scope: scope.clone(), params: params.into(), reason, approval, ttl };
    compare(case, policy.decide(&caller, &ask, at))
}

fn compare(case: &Case, decided: Result<Permit, Denial>) -> Vec<String> {
    let mut differences = Vec::new();
    let (found, rules, told) = match &decided {
        Ok(permit) => (Expect::Permit, permit.rule_ids().to_vec(), "permit".to_owned()),
        Err(denial) => {
            let found = match denial.reason {
                DenialReason::ApprovalRequired => Expect::ApprovalRequired,
                _ => Expect::Deny,
            };
            (found, denial.rule_ids.clone(), format!("{}: {}", denial.reason.as_str(), denial.detail))
        }
    };
    if found != case.expect {
        differences.push(format!("expected {}, found {told}", case.expect.as_str()));
    }
    if let Err(denial) = &decided {
        let suspended = denial.reason == DenialReason::ScopeSuspended && case.denial != Some(denial.reason);
        if case.denial.is_some_and(|reason| reason != denial.reason) {
            let reason = case.denial.map_or("", DenialReason::as_str);
            differences.push(format!("expected the denial {reason}, found {told}"));
        } else if suspended && found == case.expect {
            // Otherwise everything would be denied as expected while the scope says nothing at all.
            differences.push(format!("the scope is suspended, so this shows nothing: {}", denial.detail));
        }
    }
    if let Some(expected) = &case.rules {
        let rules: BTreeSet<String> = rules.into_iter().collect();
        if rules != *expected {
            let list = |rules: &BTreeSet<String>| rules.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            differences.push(format!("expected the rules [{}], found [{}]", list(expected), list(&rules)));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "schema = 1\n[[case]]\nname = \"n\"\ncaller = \"spiffe://example.org/a\"\nproof = \"pod\"\nttl = \"1h\"\nat = 2026-11-23T12:00:00Z\nexpect = \"deny\"\ndenial = \"killed\"\nrules = []\n";

    #[test]
    fn reads_a_case() {
        let [case] = &parse(GOOD.as_bytes()).unwrap()[..] else { panic!("one case") };
        assert_eq!((case.proof, case.expect, case.denial), (Proof::Pod, Expect::Deny, Some(DenialReason::Killed)));
        assert_eq!(case.at, Some("2026-11-23T12:00:00Z".parse().unwrap()));
        assert_eq!(case.ask.ttl, Some(std::time::Duration::from_secs(3600)));
    }

    #[test]
    fn rejects_cases_that_would_be_ignored() {
        for (old, new, told) in [
            ("schema = 1", "schema = 2", "unknown schema"),
            ("ttl = \"1h\"", "tll = \"1h\"", "unknown field"),
            ("ttl = \"1h\"", "ttl = \"soon\"", "ttl is no duration"),
            ("spiffe://example.org/a", "example.org/a", "caller"),
            ("denial = \"killed\"", "denial = \"dead\"", "denial must be one of unknown_scope, "),
            ("expect = \"deny\"", "expect = \"permit\"", "denial belongs to"),
            ("expect = \"deny\"", "expect = \"maybe\"", "unknown variant"),
            ("name = \"n\"", "name = \" \"", "needs a name"),
            ("2026-11-23T12:00:00Z", "2026-11-23T12:00:00+01:00", "UTC"),
        ] {
            assert!(GOOD.contains(old), "{old}");
            let error = parse(GOOD.replace(old, new).as_bytes()).unwrap_err();
            assert!(error.contains(told), "{told}: {error}");
        }
        let twice = format!("{GOOD}{}", GOOD.trim_start_matches("schema = 1\n"));
        assert!(parse(twice.as_bytes()).unwrap_err().contains("needs a name of its own"));
        assert!(parse(b"schema = 1").unwrap_err().contains("[[case]]"));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
