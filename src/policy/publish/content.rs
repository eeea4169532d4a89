//! What a role's metadata says, whoever signed it.

use serde_json::Value;

use super::super::repository::metadata::Envelope;
use super::PublishError;
use crate::clock::Timestamp;

/// Whether two roles say the same; the version of the specification that a writer names does not count.
pub(super) fn same_content(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return false };
    let names = a.keys().chain(b.keys());
    names.filter(|name| *name != "spec_version").all(|name| a.get(name) == b.get(name))
}

/// The signed part of a metadata file.
///
/// # Errors
/// It is not signed metadata.
pub(super) fn signed_part(bytes: &[u8]) -> Result<Value, PublishError> {
    let read: Result<Envelope, _> = serde_json::from_slice(bytes);
    read.map(|envelope| envelope.signed).map_err(|error| PublishError::Files(format!("is no signed metadata: {error}")))
}

/// `version` of a role; 0 where it has none.
pub(super) fn version_of(signed: &Value) -> u64 {
    signed.get("version").and_then(Value::as_u64).unwrap_or(0)
}

/// `expires` of a role.
///
/// # Errors
/// It has none, or another form than TUF's.
pub(super) fn expires_of(signed: &Value) -> Result<Timestamp, PublishError> {
    let text = signed.get("expires").and_then(Value::as_str).unwrap_or_default();
    text.parse().map_err(|_| PublishError::Files(format!("expires is no time of TUF metadata: {text:?}")))
}
