//! The SPIFFE X.509 corpus: what it holds, and that the verifier agrees with every case.
//!
//! `SIDEMINT_WRITE_CORPUS=1 cargo test --test spiffe_x509` writes it anew; see `tests/corpus/spiffe-x509/README.md`.

#![cfg(test)]

mod asn1;
mod cases;
mod chains;
mod generate;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sidemint::clock::Timestamp;
use sidemint::identity::TrustDomain;
use sidemint::identity::x509_svid::{X509Bundle, X509SvidError, verify};

use generate::directory;

/// A case as any implementation would read it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    chain: Vec<String>,
    bundles: BTreeMap<String, Vec<String>>,
    accepted: BTreeSet<String>,
    now: Timestamp,
    verdict: String,
    kind: Option<String>,
    spiffe_id: Option<String>,
    expires_at: Option<Timestamp>,
}

fn der(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

/// The files of the corpus as the generator makes them, by name.
fn made() -> BTreeMap<String, String> {
    let may_write = std::env::var_os("SIDEMINT_WRITE_CORPUS").is_some();
    let signer = generate::Signer::new(may_write);
    let cases = cases::all(&signer);
    let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for case in &cases.all {
        let mut value = json!({
            "name": case.name,
            "chain": case.chain.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>(),
            "bundles": case.bundles,
            "accepted": case.accepted,
            "now": case.now,
            "verdict": if case.expect == "ok" { "ok" } else { "refuse" },
        });
        if case.expect == "ok" {
            value["spiffe_id"] = json!(case.spiffe_id);
            if let Some(end) = case.expires_at {
                value["expires_at"] = json!(end);
            }
        } else {
            value["kind"] = json!(case.expect);
        }
        groups.entry(format!("{}.json", case.group)).or_default().push(value);
    }
    let lines = |values: &[Value]| {
        let lines: Vec<_> = values.iter().map(Value::to_string).collect();
        format!("[\n{}\n]\n", lines.join(",\n"))
    };
    let object = |map: &BTreeMap<String, String>| {
        let lines: Vec<_> = map.iter().map(|(key, value)| format!("{}: {}", json!(key), json!(value))).collect();
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    };
    let roots = cases.roots.iter().map(|(id, der)| (id.clone(), STANDARD.encode(der))).collect();
    let mut files: BTreeMap<_, _> = groups.iter().map(|(name, values)| (name.clone(), lines(values))).collect();
    files.insert("roots.json".into(), object(&roots));
    files.insert("signatures.json".into(), object(&signer.kept()));
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
        assert!(there == *text, "{name} differs: run SIDEMINT_WRITE_CORPUS=1 cargo test --test spiffe_x509");
    }
    let there = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let json: BTreeSet<_> = there.filter(|name| name.ends_with(".json") && name != "differences.json").collect();
    assert_eq!(json, made.into_keys().collect(), "a file that nothing makes, or that is missing");
}

#[test]
fn the_verifier_agrees_with_every_case() {
    let read = |name: &str| fs::read_to_string(directory().join(name)).unwrap();
    let roots: BTreeMap<String, String> = serde_json::from_str(&read("roots.json")).unwrap();
    let (mut count, mut names, mut kinds, mut wrong) = (0, BTreeSet::new(), BTreeSet::new(), Vec::new());
    for entry in fs::read_dir(directory()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if !file.ends_with(".json") || ["roots.json", "signatures.json", "differences.json"].contains(&file.as_str()) {
            continue;
        }
        let cases: Vec<Case> = serde_json::from_str(&read(&file)).unwrap();
        for case in cases {
            count += 1;
            assert!(names.insert((file.clone(), case.name.clone())), "{file}: two cases are called {}", case.name);
            let said = judge(&case, &roots);
            let (expected, kind) = match case.verdict.as_str() {
                "ok" => (format!("ok {} {:?}", case.spiffe_id.clone().unwrap(), case.expires_at), "ok".to_owned()),
                _ => (case.kind.clone().unwrap(), case.kind.clone().unwrap()),
            };
            kinds.insert(kind);
            if said != expected {
                wrong.push(format!("{file}: {}: expected {expected}, was {said}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 500, "{count} cases");
    let unused: Vec<_> = X509SvidError::KINDS.iter().filter(|kind| !kinds.contains(**kind)).collect();
    // the second opinion is there for what we have not thought of: a case for it would be a known hole
    assert_eq!(unused, [&"second_opinion"], "every kind of refusal has a case");
}

fn judge(case: &Case, roots: &BTreeMap<String, String>) -> String {
    let chain: Vec<_> = case.chain.iter().map(|text| der(text)).collect();
    let domain = |name: &String| name.parse::<TrustDomain>().unwrap();
    let bundle = |ids: &Vec<String>| Arc::new(X509Bundle::from_der(ids.iter().map(|id| der(&roots[id]))).unwrap());
    let bundles = case.bundles.iter().map(|(name, ids)| (domain(name), bundle(ids))).collect();
    let accepted = case.accepted.iter().map(domain).collect();
    match verify(&chain, &bundles, &accepted, case.now) {
        Ok(claims) => {
            let told = case.expires_at.map(|_| claims.expires_at());
            format!("ok {} {told:?}", claims.spiffe_id())
        }
        Err(error) => error.kind().to_owned(),
    }
}
