//! Every token of the JWT-SVID corpus, presented to `POST /v1/tasks`: status, public text, metric and audit record.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use sidemint::clock::Timestamp;
use sidemint::identity::jwt_svid::JwtBundle;

use crate::http::Call;
use crate::policy_files::REPORT;
use crate::world::{AUDIENCE, World, until};

#[derive(Deserialize)]
struct Case {
    name: String,
    token: String,
    bundles: BTreeMap<String, String>,
    audience: String,
    now: Timestamp,
    kind: Option<String>,
    spiffe_id: Option<String>,
}

/// What becomes of a request with the token of a case.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// A task.
    Begun,
    /// A genuine token of somebody whom this sidecar does not serve.
    NotServed,
    /// A token that is not trusted, by this status.
    Refused(String),
    /// What HTTP takes for no bearer token: there is nothing to judge.
    NoBearer,
    /// More than the listener reads of a head.
    TooLong,
    /// No header can hold it.
    NoHeader,
}

impl Case {
    fn outcome(&self) -> Outcome {
        if self.token.contains(['\n', '\0']) {
            return Outcome::NoHeader;
        }
        if self.token.is_empty() || !self.token.is_ascii() {
            return Outcome::NoBearer;
        }
        if self.token.len() > 20_000 {
            return Outcome::TooLong;
        }
        match (&self.kind, &self.spiffe_id) {
            // This sidecar has one name, and a case may be about another.
            (_, Some(_)) if self.audience != AUDIENCE => Outcome::Refused("aud".into()),
            (Some(kind), _) => Outcome::Refused(kind.clone()),
            (None, Some(id)) if id == REPORT => Outcome::Begun,
            (None, Some(id)) if id.starts_with("spiffe://example.org/") => Outcome::NotServed,
            // Genuine, and of a trust domain that is not among `identity.federated`.
            _ => Outcome::Refused("trust_domain".into()),
        }
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/jwt-svid")
}

fn cases() -> Vec<Case> {
    let names = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let others = ["bundles.json", "signatures.json", "differences.json"];
    let names = names.filter(|name| name.ends_with(".json") && !others.contains(&name.as_str()));
    let read = |name: String| fs::read(directory().join(name)).unwrap();
    names.flat_map(|name| serde_json::from_slice::<Vec<Case>>(&read(name)).unwrap()).collect()
}

/// The count of one series, without asking the listener.
fn count(w: &World, series: &str) -> u64 {
    let page = w.broker.parts().metrics.registry().page().unwrap();
    let page = String::from_utf8(page).unwrap();
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).unwrap().parse().unwrap()
}

#[tokio::test]
async fn every_token_of_the_corpus_gets_its_status_text_metric_and_audit_record() {
    let w = World::new().await;
    let bundles: BTreeMap<String, Value> =
        serde_json::from_slice(&fs::read(directory().join("bundles.json")).unwrap()).unwrap();
    let bundle = |id: &String| Arc::new(JwtBundle::parse(bundles[id].to_string().as_bytes()).unwrap_or_default());
    let denials = |w: &World, reason: &str| count(w, &format!("sidemint_denials_total{{reason=\"{reason}\"}}"));
    let cases = cases();
    assert!(cases.len() >= 450, "{} cases", cases.len());
    let (mut answered, mut texts) = (Vec::new(), BTreeSet::new());
    for case in &cases {
        w.clock.set_wall(case.now);
        w.api.update(|identities| {
            identities.jwt_bundles =
                case.bundles.iter().map(|(name, id)| (name.parse().unwrap(), bundle(id))).collect();
        });
        let (begun, outcome) = (w.broker.tasks().len(), case.outcome());
        let before = (denials(&w, "unauthenticated"), denials(&w, "identity_not_served"));
        let call = Call::post("/v1/tasks").json(&json!({ "scope": "archive" })).bearer(&case.token);
        let reply = w.send(call).await;
        let told = (reply.status, if [401, 403].contains(&reply.status) { reply.code() } else { String::new() });
        let counted = (denials(&w, "unauthenticated") - before.0, denials(&w, "identity_not_served") - before.1);
        let (status, code, expected) = match &outcome {
            Outcome::Begun => (201, "", (0, 0)),
            Outcome::NotServed => (403, "denied", (0, 1)),
            Outcome::Refused(_) => (401, "unauthenticated", (1, 0)),
            Outcome::NoBearer => (401, "unauthenticated", (0, 0)),
            Outcome::TooLong | Outcome::NoHeader => {
                assert!((400..500).contains(&reply.status), "{}: {told:?}", case.name);
                assert_eq!((counted, w.broker.tasks().len()), ((0, 0), begun), "{}", case.name);
                continue;
            }
        };
        assert_eq!((told, counted), ((status, code.to_owned()), expected), "{}: {outcome:?}", case.name);
        assert_eq!(w.broker.tasks().len() - begun, usize::from(status == 201), "{}", case.name);
        if status == 401 {
            texts.insert(reply.text().replace(reply.request_id(), ""));
        }
        answered.push((reply.request_id().to_owned(), outcome, case));
    }
    // Nobody is told which rule was broken: that would be a hint for the next try.
    assert_eq!(texts.len(), 1, "{texts:?}");
    // Lines are written in order.
    let last = &answered.last().unwrap().0;
    until("every request is audited", || w.audit.text().contains(last.as_str())).await;
    let lines: HashMap<String, Value> =
        w.audit.lines().into_iter().filter_map(|line| Some((line["request_id"].as_str()?.to_owned(), line))).collect();
    for (id, outcome, case) in &answered {
        let (event, verdict, reason, flaw) = match outcome {
            Outcome::Begun => ("decision", "permit", None, None),
            Outcome::NotServed => ("decision", "deny", Some("identity_not_served"), None),
            Outcome::Refused(flaw) => ("decision", "deny", Some("unauthenticated"), Some(flaw.as_str())),
            _ => ("refusal", "refused", Some("unauthenticated"), None),
        };
        let line = &lines[id];
        let said = ["event", "outcome", "reason", "flaw"].map(|member| line[member].as_str());
        assert_eq!(said, [Some(event), Some(verdict), reason, flaw], "{}: {line}", case.name);
        let id = case.spiffe_id.as_deref();
        let trusted = matches!(outcome, Outcome::Begun | Outcome::NotServed);
        assert_eq!(line["spiffe_id"].as_str(), id.filter(|_| trusted), "{}", case.name);
        let named = line["detail"].as_str().is_some_and(|detail| id.is_some_and(|id| detail.contains(id)));
        assert_eq!(named, *outcome == Outcome::NotServed, "{}: {line}", case.name);
    }
    // No token, good or bad, is written anywhere by its signature.
    let written = w.written().iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect::<String>();
    for case in &cases {
        let signature = case.token.rsplit('.').next().unwrap_or_default();
        assert!(signature.len() < 40 || !written.contains(signature), "{}", case.name);
    }
}
