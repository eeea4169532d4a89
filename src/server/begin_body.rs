//! The body of `POST /v1/tasks`: bytes from a stranger → what is asked for.
//!
//! Nothing in it nests deeper than two, and nothing is read into memory that a task does not have: an unknown or
//! repeated member, or a bracket where text belongs, ends the reading at once.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::problem::Problem;
use crate::policy::{Ask, ParamName};
use crate::task::TaskId;

const MAX_LABEL: usize = 128;
const MAX_REASON: usize = 512;
const MAX_PARAMS: usize = 32;
const MAX_DEPTH: usize = 16;

/// What a body asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Scope, parameters and the caller's words.
    pub ask: Ask,
    /// Free text for the task: at most 128 characters, none of them a control.
    pub label: Option<String>,
    /// Whether the task ends when nobody holds it.
    pub hold: bool,
    /// The task that this one is part of.
    pub parent: Option<TaskId>,
}

/// Reads `body`, which is UTF-8 JSON of at most [`super::MAX_BODY`] bytes.
///
/// # Errors
/// `invalid_request` in words that hold nothing of the body; `denied` for what can name no scope or parent, as for one
/// that is not there.
pub fn parse(body: &[u8]) -> Result<Asked, Problem> {
    let asked: Body = serde_json::from_slice(body).map_err(|e| Problem::invalid_request(not_a_task(&e)))?;
    // A name that cannot be a scope gets the answer of a scope that is not there.
    let scope = asked.scope.parse().map_err(|_| Problem::denied())?;
    let ttl = match &asked.ttl {
        Some(ttl) => Some(ttl.duration().ok_or_else(|| Problem::invalid_request("ttl is not a duration like 15m"))?),
        None => None,
    };
    let parent = match &asked.parent {
        Some(parent) => Some(parent.parse().map_err(|()| Problem::denied())?),
        None => None,
    };
    bounded("task", asked.task.as_deref(), MAX_LABEL)?;
    bounded("reason", asked.reason.as_deref(), MAX_REASON)?;
    bounded("approval", asked.approval.as_deref(), MAX_REASON)?;
    Ok(Asked {
        ask: Ask { scope, params: asked.params.0.into(), reason: asked.reason, approval: asked.approval, ttl },
        label: asked.task,
        hold: asked.hold,
        parent,
    })
}

/// Whether `body` opens more than `MAX_DEPTH` brackets within each other. Nothing that can be read does; this is to
/// tell a try to exhaust us from a mistake.
pub fn nests_too_deep(body: &[u8]) -> bool {
    let (mut depth, mut text, mut escaped) = (0_usize, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if text => escaped = true,
            b'"' => text = !text,
            b'[' | b'{' if !text => depth = depth.saturating_add(1),
            b']' | b'}' if !text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    scope: String,
    task: Option<String>,
    #[serde(default)]
    params: Params,
    ttl: Option<Ttl>,
    #[serde(default)]
    hold: bool,
    reason: Option<String>,
    approval: Option<String>,
    parent: Option<String>,
}

/// Parameters, none of them twice.
#[derive(Debug, Default)]
struct Params(BTreeMap<ParamName, String>);

impl<'de> Deserialize<'de> for Params {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = Params;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Params, A::Error> {
                let mut params = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<ParamName, String>()? {
                    if params.len() >= MAX_PARAMS || params.insert(name, value).is_some() {
                        return Err(de::Error::custom("a parameter given twice, or too many"));
                    }
                }
                Ok(Params(params))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}

/// A duration: whole seconds, or text such as `15m`.
#[derive(Debug)]
enum Ttl {
    Seconds(u32),
    Text(String),
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Ttl;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds or text")
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Ttl, E> {
                u32::try_from(seconds).map(Ttl::Seconds).map_err(|_| E::custom("too many seconds"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ttl, E> {
                Ok(Ttl::Text(text.to_owned()))
            }
        }
        // Not `untagged`: that would first read whatever stands there, however deep.
        deserializer.deserialize_any(Either)
    }
}

impl Ttl {
    fn duration(&self) -> Option<Duration> {
        let ttl = match self {
            Self::Seconds(seconds) => Duration::from_secs((*seconds).into()),
            Self::Text(text) => humantime::parse_duration(text).ok()?,
        };
        (!ttl.is_zero()).then_some(ttl)
    }
}

/// Where the body stops being a task, and what one is. Never serde's own words: they quote the body, which may be a
/// token in the wrong place.
fn not_a_task(error: &serde_json::Error) -> String {
    const MEMBERS: &str = "scope, task, params, ttl, hold, reason, approval, parent";
    let (line, column) = (error.line(), error.column());
    let what = if error.is_data() { "is not a task" } else { "is not JSON" };
    format!("the body {what} at line {line}, column {column}: it is one object of {MEMBERS}, none of them twice")
}

fn bounded(name: &str, text: Option<&str>, max: usize) -> Result<(), Problem> {
    let fits = text.is_none_or(|text| text.chars().count() <= max && !text.chars().any(char::is_control));
    if fits {
        Ok(())
    } else {
        Err(Problem::invalid_request(format!("{name}: at most {max} characters of printable text")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(body: &str) -> &'static str {
        parse(body.as_bytes()).map_or_else(|problem| problem.code(), |_| "ok")
    }

    #[test]
    fn reads_the_members_of_a_task_and_no_others() {
        let asked = parse(
            br#"{"scope":"a/b","task":"nightly","params":{"customer":"c-42"},"ttl":"15m","hold":true,"reason":"r",
                "parent":"t-00000000000000000000000000"}"#,
        )
        .unwrap();
        assert_eq!((asked.ask.scope.as_str(), asked.ask.ttl), ("a/b", Some(Duration::from_secs(900))));
        assert_eq!((asked.label.as_deref(), asked.hold, asked.ask.params.len()), (Some("nightly"), true, 1));
        assert_eq!(parse(br#"{"scope":"a","ttl":60}"#).unwrap().ask.ttl, Some(Duration::from_secs(60)));
        for bad in [
            r#"{"scope":"a","scope":"a"}"#,
            r#"{"scope":"a","params":{"x":"1","x":"1"}}"#,
            r#"{"scope":"a","more":1}"#,
            r#"{"scope":"a","ttl":0}"#,
            r#"{"scope":"a","ttl":-1}"#,
            r#"{"scope":"a","ttl":1.5}"#,
            r#"{"scope":"a","ttl":4294967296}"#,
            r#"{"scope":"a","ttl":["15m"]}"#,
            r#"{"scope":"a","task":"\u0000"}"#,
            r#"["a"]"#,
            r#"{"scope":"a"} {"#,
            "",
        ] {
            assert_eq!(code(bad), "invalid_request", "{bad}");
        }
        for unknown in [r#"{"scope":"../a"}"#, r#"{"scope":"a","parent":"t-1"}"#] {
            assert_eq!(code(unknown), "denied", "{unknown}");
        }
    }

    #[test]
    fn rejects_nesting_at_its_first_bracket() {
        for name in ["ttl", "params", "hold", "task", "more"] {
            for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                let deep = format!("{{\"scope\":\"a\",\"{name}\":{}1{}}}", open.repeat(60), close.repeat(60));
                let refused = parse(deep.as_bytes()).unwrap_err();
                let place = refused.detail().split("column ").nth(1).unwrap().split(':').next().unwrap();
                assert_eq!(refused.code(), "invalid_request");
                assert!(place.parse::<usize>().unwrap() < 32, "{}", refused.detail());
            }
        }
    }

    proptest! {
        #[test]
        fn never_panics_on_arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_refusal_quotes_nothing_of_the_body(value in "smt_[A-Za-z0-9]{43}", name in "[a-z]{1,8}") {
            let body = format!("{{\"scope\":\"a\",\"{name}\":{{\"{value}\":\"{value}\"}},\"hold\":\"{value}\"}}");
            let refused = parse(body.as_bytes()).unwrap_err();
            prop_assert!(!refused.detail().contains(&value));
        }
    }
}
