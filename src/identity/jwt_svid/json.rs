//! JSON from strangers, read strictly: an object whose members are unique at every depth.
//!
//! RFC 7519 §4 lets a parser take the last of several members of one name; two parsers that choose differently can be
//! played against each other, so here a repeated name is an error (RFC 8725 §2.4 tells of such attacks).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The deepest nesting that is read; the outermost object is depth 1.
pub(super) const MAX_DEPTH: usize = 16;

/// The members of an object, by name.
pub(super) type Object = BTreeMap<String, Value>;

/// A JSON value. Numbers that are not non-negative integers in plain digits keep no value: nothing here uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Bool,
    /// A whole number from 0 to 2⁶⁴ − 1, written without sign, fraction or exponent.
    Whole(u64),
    /// Any other number.
    OtherNumber,
    Text(String),
    Array(Vec<Value>),
    Object(Object),
}

/// Why bytes are not an acceptable object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonError {
    /// Not one JSON object in UTF-8, or nested too deeply.
    NotAnObject,
    /// Some object has two members of the same name.
    Duplicate,
}

/// Reads exactly one object.
pub(super) fn object(bytes: &[u8]) -> Result<Object, JsonError> {
    let duplicate = Cell::new(false);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { depth: MAX_DEPTH, duplicate: &duplicate }.deserialize(&mut reader);
    match value.and_then(|value| reader.end().map(|()| value)) {
        Ok(Value::Object(members)) => Ok(members),
        _ if duplicate.get() => Err(JsonError::Duplicate),
        _ => Err(JsonError::NotAnObject),
    }
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    depth: usize,
    duplicate: &'a Cell<bool>,
}

impl Seed<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Bool)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Whole(number))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Object::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(inner)?;
            if object.insert(name, value).is_some() {
                self.duplicate.set(true);
                return Err(A::Error::custom("two members of one name"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rejects_repeated_names_at_any_depth_and_however_they_are_escaped() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#"{"a":[{"b":{"c":1,"c":2}}]}"#] {
            assert_eq!(object(text.as_bytes()), Err(JsonError::Duplicate), "{text}");
        }
        assert!(object(br#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn rejects_what_is_not_exactly_one_object() {
        for text in
            ["", "null", "[]", "\"a\"", "1", "{", "{}{}", "{} x", "{'a':1}", "{\"a\":1,}", "{\"a\":NaN}", "\u{feff}{}"]
        {
            assert_eq!(object(text.as_bytes()), Err(JsonError::NotAnObject), "{text}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), Err(JsonError::NotAnObject));
        assert_eq!(object(b"{\"a\":\"\\ud800\"}"), Err(JsonError::NotAnObject));
    }

    #[test]
    fn reads_as_deep_as_its_limit_and_no_deeper() {
        let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert!(object(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(object(nested(MAX_DEPTH + 1).as_bytes()), Err(JsonError::NotAnObject));
    }

    #[test]
    fn only_plain_whole_numbers_keep_a_value() {
        for text in ["-1", "-0", "1.0", "1e3", "1.5", "18446744073709551616"] {
            let members = object(format!("{{\"n\":{text}}}").as_bytes()).unwrap();
            assert_eq!(members.get("n"), Some(&Value::OtherNumber), "{text}");
        }
        let members = object(b"{\"n\":18446744073709551615}").unwrap();
        assert_eq!(members.get("n"), Some(&Value::Whole(u64::MAX)));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = object(&bytes);
        }

        #[test]
        fn never_panics_on_text_that_looks_like_json(text in r#"[\{\}\[\]":,a0.eE\\u -]{0,64}"#) {
            let _ = object(text.as_bytes());
        }
    }
}
