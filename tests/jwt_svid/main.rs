//! The JWT-SVID corpus: what it holds, and that the verifier agrees with every case.
//!
//! `SIDEMINT_WRITE_CORPUS=1 cargo test --test jwt_svid` writes it anew; see `tests/corpus/jwt-svid/README.md`.

#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

mod cases;
mod generate;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use sidemint::clock::Timestamp;
use sidemint::identity::TrustDomain;
use sidemint::identity::jwt_svid::{JwtBundle, Verifier, verify};

use generate::directory;

/// A case as any implementation would read it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    token: String,
    bundles: BTreeMap<String, String>,
    audience: String,
    now: Timestamp,
    verdict: String,
    kind: Option<String>,
    spiffe_id: Option<String>,
    expires_at: Option<Timestamp>,
    #[serde(rename = "reason")]
    _reason: String,
}

/// Files that hold no cases.
const OTHER_FILES: [&str; 3] = ["bundles.json", "signatures.json", "differences.json"];

/// The files of the corpus as the generator makes them, by name.
fn made() -> BTreeMap<String, String> {
    let may_write = std::env::var_os("SIDEMINT_WRITE_CORPUS").is_some();
    let signer = generate::Signer::new(may_write);
    let cases = cases::all(&signer);
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for case in &cases.all {
        let mut value = json!({
            "name": case.name,
            "token": case.token,
            "bundles": case.bundles,
            "audience": case.audience,
            "now": case.now,
            "verdict": if case.expect == "ok" { "ok" } else { "refuse" },
            "reason": case.reason,
        });
        if case.expect == "ok" {
            value["spiffe_id"] = json!(case.spiffe_id);
            value["expires_at"] = json!(case.expires_at);
        } else {
            value["kind"] = json!(case.expect);
        }
        groups.entry(format!("{}.json", case.group)).or_default().push(value.to_string());
    }
    let object = |lines: Vec<String>| format!("{{\n{}\n}}\n", lines.join(",\n"));
    let line = |(key, value): (&String, &Value)| format!("{}: {value}", json!(key));
    let mut files: BTreeMap<_, _> =
        groups.iter().map(|(name, lines)| (name.clone(), format!("[\n{}\n]\n", lines.join(",\n")))).collect();
    files.insert("bundles.json".into(), object(cases.bundles.iter().map(line).collect()));
    let kept = signer.kept();
    files.insert("signatures.json".into(), object(kept.iter().map(|(k, v)| line((k, &json!(v)))).collect()));
    if may_write {
        for (name, text) in &files {
            fs::write(directory().join(name), text).unwrap();
        }
    }
    files
}

#[test]
fn the_corpus_is_what_its_generator_makes() {
    let made = made();
    for (name, text) in &made {
        let there = fs::read_to_string(directory().join(name)).unwrap_or_default();
        assert!(there == *text, "{name} differs: run SIDEMINT_WRITE_CORPUS=1 cargo test --test jwt_svid");
    }
    let there = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let json: BTreeSet<_> = there.filter(|name| name.ends_with(".json") && name != "differences.json").collect();
    assert_eq!(json, made.into_keys().collect(), "a file that nothing makes, or that is missing");
}

#[test]
fn the_verifier_agrees_with_every_case() {
    let read = |name: &str| fs::read_to_string(directory().join(name)).unwrap();
    let bundles: BTreeMap<String, Value> = serde_json::from_str(&read("bundles.json")).unwrap();
    let (mut count, mut names, mut kinds, mut wrong) = (0, BTreeSet::new(), BTreeSet::new(), Vec::new());
    for entry in fs::read_dir(directory()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if !file.ends_with(".json") || OTHER_FILES.contains(&file.as_str()) {
            continue;
        }
        let cases: Vec<Case> = serde_json::from_str(&read(&file)).unwrap();
        for case in cases {
            count += 1;
            assert!(names.insert(case.name.clone()), "{file}: two cases are called {}", case.name);
            let expected = match case.verdict.as_str() {
                "ok" => format!("ok {} {}", case.spiffe_id.clone().unwrap(), case.expires_at.unwrap()),
                _ => case.kind.clone().unwrap(),
            };
            kinds.insert(case.kind.clone().unwrap_or_else(|| "ok".into()));
            let said = judge(&case, &bundles);
            if said != expected {
                wrong.push(format!("{file}: {}: expected {expected}, was {said}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 450, "{count} cases");
    assert_eq!(kinds.len(), 20, "every kind of refusal has a case, and one is accepted: {kinds:?}");
}

fn judge(case: &Case, bundles: &BTreeMap<String, Value>) -> String {
    let domain = |name: &String| name.parse::<TrustDomain>().unwrap();
    // A set that cannot be read is one of no keys: that is what becomes of it in the sidecar.
    let bundle = |id: &String| Arc::new(JwtBundle::parse(bundles[id].to_string().as_bytes()).unwrap_or_default());
    let bundles = case.bundles.iter().map(|(name, id)| (domain(name), bundle(id))).collect();
    let said = verify(&case.token, &bundles, &case.audience, case.now);
    // Nor does the verifier that remembers say anything else, whether asked first or again.
    let remembering = Verifier::new(case.audience.clone());
    for _ in 0..2 {
        assert_eq!(remembering.verify(&case.token, &bundles, case.now), said, "{}", case.name);
    }
    match said {
        Ok(claims) => format!("ok {} {}", claims.spiffe_id, claims.expires_at),
        Err(error) => error.kind().to_owned(),
    }
}
