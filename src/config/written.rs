//! The configuration as it is written, in the file and over it in the environment, for serde to read.
//!
//! The structs that serde reads into decide which keys there are, and how the text of a variable is understood: a number
//! where the field is a number, a list where it is a list.

use std::cell::RefCell;
use std::collections::{BTreeMap, btree_map};

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer, StringDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use super::section::Environment;
use super::{ConfigError, PREFIX, variable_name};

/// Variables that begin with `SIDEMINT_` and are read by other commands, or given to a command that runs in a task.
pub(super) const OTHER_VARIABLES: [&str; 7] = [
    "SIDEMINT_HTTP",
    "SIDEMINT_ADMIN",
    "SIDEMINT_AUDIENCE",
    "SIDEMINT_TOKEN_FILE",
    "SIDEMINT_TOKEN",
    "SIDEMINT_CREDENTIALS_URI",
    "SIDEMINT_CONFIG",
];

/// The value of one key, by where it is written.
enum Written {
    File(Value),
    Variable(String),
}

/// What is written in a section; `None` where it is no section.
type Keys = Option<BTreeMap<String, Written>>;

/// Reads a struct of sections from `text`, a file that errors call `name`, and the environment, which wins.
///
/// # Errors
/// The first section, key or value that is wrong.
pub(super) fn read<T: DeserializeOwned>(text: &str, name: &str, environment: &Environment) -> Result<T, ConfigError> {
    // Without the excerpt of the file, which may hold what nobody meant to log.
    let table: Table =
        text.parse().map_err(|error: toml::de::Error| ConfigError(format!("{name}: {}", one_line(&error))))?;
    let keys = |value| match value {
        Value::Table(keys) => Some(keys.into_iter().map(|(key, value)| (key, Written::File(value))).collect()),
        _ => None,
    };
    let mut sections: BTreeMap<_, _> = table.into_iter().map(|(section, value)| (section, keys(value))).collect();
    overlay(&mut sections, environment, &keys_of::<T>())?;
    T::deserialize(Sections { name, sections })
}

/// Lays the environment over the file.
fn overlay(
    sections: &mut BTreeMap<String, Keys>,
    environment: &Environment,
    known: &[(&'static str, &'static str)],
) -> Result<(), ConfigError> {
    for (variable, text) in environment.iter().filter(|(variable, _)| variable.starts_with(PREFIX)) {
        if OTHER_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        let Some((section, key)) = known.iter().find(|(section, key)| *variable == variable_name(section, key)) else {
            return Err(ConfigError(format!("unknown variable {variable}: unset it or fix its name")));
        };
        let keys = sections.entry((*section).to_owned()).or_insert_with(|| Some(BTreeMap::new()));
        if let Some(keys) = keys {
            keys.insert((*key).to_owned(), Written::Variable(text.clone()));
        }
    }
    Ok(())
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

impl de::Error for ConfigError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn unknown_variant(given: &str, expected: &'static [&'static str]) -> Self {
        let expected: Vec<_> = expected.iter().map(|word| format!("{word:?}")).collect();
        let expected = format!("write {}", expected.join(" or "));
        Self(if given.is_empty() { expected } else { format!("{given:?} is unknown: {expected}") })
    }
}

/// All sections.
struct Sections<'a> {
    name: &'a str,
    sections: BTreeMap<String, Keys>,
}

impl<'de> Deserializer<'de> for Sections<'_> {
    type Error = ConfigError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        let name = self.name;
        let mut sections = Vec::with_capacity(self.sections.len());
        for (section, keys) in self.sections {
            if !fields.contains(&section.as_str()) {
                return Err(ConfigError(format!("{name}: unknown section [{section}]: remove it or fix its name")));
            }
            let Some(keys) = keys else {
                return Err(ConfigError(format!("{name}: {section} is a section: write [{section}]")));
            };
            sections.push((section.clone(), SectionKeys { name, section, keys }));
        }
        visitor.visit_map(MapDeserializer::new(sections.into_iter()))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ConfigError> {
        Err(ConfigError::custom("sections are read into a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// One section.
struct SectionKeys<'a> {
    name: &'a str,
    section: String,
    keys: BTreeMap<String, Written>,
}

impl<'de> Deserializer<'de> for SectionKeys<'_> {
    type Error = ConfigError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        let Self { name, section, mut keys } = self;
        if let Some(key) = keys.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(ConfigError(format!("{name}: unknown key {section}.{key}: remove it or fix its name")));
        }
        keys.retain(|_, value| !value.is_empty());
        visitor.visit_map(Values { section, keys: keys.into_iter(), next: None })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        if self.keys.is_empty() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ConfigError> {
        Err(ConfigError::custom("a section is read into a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The values of one section. What is wrong with one is said with its key.
struct Values {
    section: String,
    keys: btree_map::IntoIter<String, Written>,
    next: Option<(String, Written)>,
}

impl<'de> MapAccess<'de> for Values {
    type Error = ConfigError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ConfigError> {
        self.next = self.keys.next();
        let Some((key, _)) = &self.next else { return Ok(None) };
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ConfigError> {
        let Some((key, value)) = self.next.take() else { return Err(ConfigError::custom("a value without a key")) };
        seed.deserialize(value).map_err(|error| ConfigError::of_key(&self.section, &key, &error.0))
    }
}

impl Written {
    /// An empty value counts as not set.
    fn is_empty(&self) -> bool {
        match self {
            Self::File(value) => value.as_str() == Some(""),
            Self::Variable(text) => text.is_empty(),
        }
    }
}

/// A method for each type of integer: in a variable it is parsed.
macro_rules! integers {
    ($($method:ident)+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
            match self {
                Self::File(_) => self.deserialize_any(visitor),
                Self::Variable(text) => match text.parse() {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => Err(ConfigError::custom("write a whole number")),
                },
            }
        }
    )+};
}

impl<'de> Deserializer<'de> for Written {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self {
            Self::File(value) => value.deserialize_any(visitor).map_err(|error| ConfigError(one_line(&error))),
            Self::Variable(text) => visitor.visit_string(text),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self {
            Self::File(_) => self.deserialize_any(visitor),
            Self::Variable(text) => match text.parse() {
                Ok(switch) => visitor.visit_bool(switch),
                Err(_) => Err(ConfigError::custom("write true or false")),
            },
        }
    }

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_newtype_struct(self)
    }

    /// In a variable separated by commas.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self {
            Self::File(_) => self.deserialize_any(visitor),
            Self::Variable(text) => visitor.visit_seq(SeqDeserializer::new(items(&text))),
        }
    }

    /// In a variable `k=v` separated by commas.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let Self::Variable(text) = self else { return self.deserialize_any(visitor) };
        let pairs: Option<Vec<_>> = items(&text).map(|item| item.split_once('=')).collect();
        let pairs = pairs.ok_or_else(|| ConfigError::custom("write k=v separated by commas"))?;
        visitor.visit_map(MapDeserializer::new(pairs.into_iter()))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        match self {
            Self::File(Value::String(text)) | Self::Variable(text) => {
                StringDeserializer::new(text).deserialize_enum(name, variants, visitor)
            }
            Self::File(_) => Err(ConfigError::unknown_variant("", variants)),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct struct identifier ignored_any
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Every key that `T`, a struct of sections, reads: section and name, in the order of its fields.
pub(super) fn keys_of<T: DeserializeOwned>() -> Vec<(&'static str, &'static str)> {
    let found = RefCell::default();
    // Of defaults alone nothing can be wrong.
    let _ = T::deserialize(Fields { section: None, found: &found });
    found.into_inner()
}

/// Notes which fields serde asks for, and gives no key a value.
#[derive(Clone, Copy)]
struct Fields<'a> {
    section: Option<&'static str>,
    found: &'a RefCell<Vec<(&'static str, &'static str)>>,
}

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = ConfigError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        let below: &[&'static str] = match self.section {
            None => fields,
            Some(section) => {
                self.found.borrow_mut().extend(fields.iter().map(|key| (section, *key)));
                &[]
            }
        };
        let sections = below.iter().map(|section| (*section, Self { section: Some(section), ..self }));
        visitor.visit_map(MapDeserializer::new(sections))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_some(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ConfigError> {
        Err(ConfigError::custom("only structs have fields"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Each is what it says already.
macro_rules! into_itself {
    ($($deserializer:ty),+) => {$(
        impl<'de> IntoDeserializer<'de, ConfigError> for $deserializer {
            type Deserializer = Self;

            fn into_deserializer(self) -> Self {
                self
            }
        }
    )+};
}
into_itself!(SectionKeys<'_>, Fields<'_>);
