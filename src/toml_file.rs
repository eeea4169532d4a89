//! How a TOML file of a policy is read, and how it fails.

use std::time::Duration;

use serde::Deserialize;

use crate::clock::Timestamp;

/// The kinds of [`DocumentError`] that reading a file has, with or without what a provider says of it.
pub(crate) mod kind {
    /// Not TOML, or not of the documented keys and types.
    pub const PARSE: &str = "parse";
    /// A `schema` that this version does not read.
    pub const UNKNOWN_SCHEMA: &str = "unknown_schema";
    /// A value out of its range.
    pub const INVALID: &str = "invalid";
    /// A provider that this version does not know, or two grants of one.
    pub const PROVIDER: &str = "provider";
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How a document fails: the kind for metrics, and the message that says what fixes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DocumentError {
    /// One of [`Problem::KINDS`](crate::policy::Problem::KINDS).
    pub kind: &'static str,
    /// What is wrong and what fixes it.
    pub message: String,
}

impl DocumentError {
    fn parse(message: impl Into<String>) -> Self {
        Self { kind: kind::PARSE, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { kind: kind::INVALID, message: message.into() }
    }
}

/// Parses TOML of schema 1. The schema is judged first, so that a newer file says so rather than "unknown key".
pub(crate) fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, DocumentError> {
    #[derive(Deserialize)]
    struct Probe {
        schema: Option<toml::Value>,
    }
    let text = std::str::from_utf8(bytes).map_err(|_| DocumentError::parse("is not UTF-8 text"))?;
    let probe: Probe = toml::from_str(text).map_err(|error| DocumentError::parse(located(text, &error)))?;
    match probe.schema {
        Some(toml::Value::Integer(1)) => {
            toml::from_str(text).map_err(|error| DocumentError::parse(located(text, &error)))
        }
        Some(_) => {
            let message = "unknown schema: this version reads schema = 1".to_owned();
            Err(DocumentError { kind: kind::UNKNOWN_SCHEMA, message })
        }
        None => Err(DocumentError { kind: kind::UNKNOWN_SCHEMA, message: "lacks schema = 1".to_owned() }),
    }
}

/// One line: where in the file, and what.
pub(crate) fn located(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

pub(crate) fn duration(key: &str, text: &str, least: Duration, most: Duration) -> Result<Duration, DocumentError> {
    let parsed = humantime::parse_duration(text)
        .map_err(|_| DocumentError::invalid(format!("{key} must be a duration such as \"20m\" or \"8h\"")))?;
    if parsed < least || parsed > most {
        let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
        return Err(DocumentError::invalid(format!("{key} must be {least} to {most}")));
    }
    Ok(parsed)
}

/// The first instant after the day that a TOML local date names, UTC.
pub(crate) fn end_of_day(key: &str, date: toml::value::Datetime) -> Result<Timestamp, DocumentError> {
    let wrong = || DocumentError::invalid(format!("{key} must be a date without quotes, e.g. 2027-02-01"));
    match (date.date, date.time, date.offset) {
        (Some(day), None, None) => Ok(format!("{day}T00:00:00Z").parse::<Timestamp>().map_err(|_| wrong())? + DAY),
        _ => Err(wrong()),
    }
}

/// A date (its end, UTC) or a date-time in UTC.
pub(crate) fn instant(key: &str, at: toml::value::Datetime) -> Result<Timestamp, DocumentError> {
    if at.time.is_none() {
        return end_of_day(key, at);
    }
    let text = at.to_string();
    match at.offset {
        Some(toml::value::Offset::Z) => text.parse().map_err(|_| ()),
        _ => Err(()),
    }
    .map_err(|()| {
        DocumentError::invalid(format!("{key} must be a date, or a date and time in UTC, e.g. 2027-02-01T12:00:00Z"))
    })
}

pub(crate) fn text(key: &str, text: String) -> Result<String, DocumentError> {
    if text.trim().is_empty() || text.len() > 2048 {
        return Err(DocumentError::invalid(format!("{key} must say something, in at most 2048 bytes")));
    }
    Ok(text)
}
