//! The parameters of a scope, those of an ask, and texts that they are filled into.
//!
//! A text is taken apart before a value is filled in, and what a value brings in is never read again; so no value can refer
//! to another parameter or change what stands around it (threat T10).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::names::ParamName;

/// The longest value that a parameter may allow, in characters.
pub const MAX_PARAM_LENGTH: u16 = 256;

const OPEN: &str = "${";

/// What a parameter's values may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParamType {
    /// One segment of a path or name: `[A-Za-z0-9._-]`, not empty, not `.` or `..`.
    Segment,
}

/// The rule for one parameter's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamSpec {
    /// Which characters and shapes.
    pub kind: ParamType,
    /// The longest value, in characters: 1 to [`MAX_PARAM_LENGTH`].
    pub max: u16,
}

impl ParamSpec {
    /// Whether `value` keeps to the rule. What passes has no character that means something in a rule, a resource
    /// name, a policy variable or JSON.
    pub fn accepts(&self, value: &str) -> bool {
        let ParamType::Segment = self.kind;
        let allowed = |b: u8| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        !matches!(value, "" | "." | "..") && value.len() <= usize::from(self.max) && value.bytes().all(allowed)
    }
}

/// Parameters by name, in the order of their names. There are a few, kept as long as their task, so they stand in a
/// list: a map's node has room for eleven.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Params(Box<[(ParamName, String)]>);

impl Params {
    /// The value of `name`.
    pub fn get(&self, name: &ParamName) -> Option<&String> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&ParamName, &String)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// The names.
    pub fn keys(&self) -> impl Iterator<Item = &ParamName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<BTreeMap<ParamName, String>> for Params {
    fn from(params: BTreeMap<ParamName, String>) -> Self {
        Self(params.into_iter().collect())
    }
}

impl<const N: usize> From<[(ParamName, String); N]> for Params {
    fn from(params: [(ParamName, String); N]) -> Self {
        BTreeMap::from(params).into()
    }
}

impl FromIterator<(ParamName, String)> for Params {
    /// Of two with one name the later one counts.
    fn from_iter<I: IntoIterator<Item = (ParamName, String)>>(params: I) -> Self {
        params.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl Serialize for Params {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Params {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

/// One part of a text that may refer to parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// What stands between references; not empty.
    Text(&'a str),
    /// `${param.NAME}`.
    Param(ParamName),
    /// Any other `${…}`: what stands between the braces, or to the end where there is no second one.
    Unknown(&'a str),
}

/// The parts of `text`, from left to right.
pub(crate) fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let Some(from) = rest.find(OPEN) else {
            let text = std::mem::take(&mut rest);
            return (!text.is_empty()).then_some(Part::Text(text));
        };
        let (before, reference) = rest.split_at(from);
        if !before.is_empty() {
            rest = reference;
            return Some(Part::Text(before));
        }
        let inner = reference.strip_prefix(OPEN).unwrap_or_default();
        let (inner, closed) = match inner.split_once('}') {
            Some((inner, tail)) => {
                rest = tail;
                (inner, true)
            }
            None => {
                rest = "";
                (inner, false)
            }
        };
        let name = inner.strip_prefix("param.").filter(|_| closed).and_then(|name| name.parse().ok());
        Some(name.map_or(Part::Unknown(inner), Part::Param))
    })
}

/// `text` with `values` filled in, in one pass. A reference without a value leaves nothing: whoever keeps such a text lets
/// only declared parameters into it, and an ask gives every declared one.
pub(crate) fn fill(text: &str, values: &Params) -> String {
    let mut filled = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Param(name) => filled.push_str(values.get(&name).map_or("", String::as_str)),
            Part::Unknown(_) => {}
        }
    }
    filled
}

/// Each declared parameter with a value as long as it allows, for measuring.
pub(crate) fn longest(declared: &BTreeMap<ParamName, ParamSpec>) -> Params {
    declared.iter().map(|(name, spec)| (name.clone(), "x".repeat(usize::from(spec.max)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_a_text_at_its_references() {
        let param = |name: &str| Part::Param(name.parse().unwrap());
        let of = |text| parts(text).collect::<Vec<_>>();
        assert_eq!(of(""), []);
        assert_eq!(of("a$b"), [Part::Text("a$b")]);
        assert_eq!(of("a-${param.x}${param.y}.csv"), [Part::Text("a-"), param("x"), param("y"), Part::Text(".csv")]);
        assert_eq!(of("${aws:username}/"), [Part::Unknown("aws:username"), Part::Text("/")]);
        assert_eq!(of("a${param.x"), [Part::Text("a"), Part::Unknown("param.x")]);
        assert_eq!(of("${${param.x}"), [Part::Unknown("${param.x")]);
        let values = Params::from([("x".parse().unwrap(), "${param.y}".to_owned())]);
        assert_eq!(fill("a-${param.x}${param.y}b", &values), "a-${param.y}b");
    }

    #[test]
    fn finds_and_serialises_parameters_by_name() {
        let name = |text: &str| text.parse::<ParamName>().unwrap();
        let given = [("region", "eu"), ("customer", "c-1"), ("region", "us")];
        let params: Params = given.map(|(key, value)| (name(key), value.to_owned())).into_iter().collect();
        assert_eq!(params.get(&name("region")).unwrap(), "us");
        assert_eq!((params.get(&name("other")), params.len(), params.is_empty()), (None, 2, false));
        let text = serde_json::to_string(&params).unwrap();
        assert_eq!(text, r#"{"customer":"c-1","region":"us"}"#);
        assert_eq!(serde_json::from_str::<Params>(&text).unwrap(), params);
        assert_eq!(Params::from(std::collections::BTreeMap::new()), Params::default());
    }
}
