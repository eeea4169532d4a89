//! What was seen of a repository and must never be older again: [`HighWater`], and the bytes in which it is kept.
//!
//! Each of two files holds one line that names the form, one of JSON, and the SHA-256 of both; a counter says which of the
//! two is the newer. See `store` for how they are written.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::document::Digest;

/// The first line of a file.
const FORM: &str = "sidemint high-water 1";
/// The largest file: 64 roles need some 12 KiB.
pub const MAX_HIGH_WATER: u64 = 256 * 1024;

/// A version of a metadata file, and its exact bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The role's version number, from 1 on.
    pub version: u64,
    /// The SHA-256 of the whole file.
    #[serde(serialize_with = "write_digest", deserialize_with = "read_digest")]
    pub digest: Digest,
}

impl Mark {
    /// The mark of a file with these bytes.
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        Self { version, digest: Digest::of(bytes) }
    }
}

fn write_digest<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(digest)
}

fn read_digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// The newest version seen of every role but root.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marks {
    /// Of timestamp; `None` before the first, and after its keys or those of snapshot were replaced.
    pub timestamp: Option<Mark>,
    /// Of snapshot; `None` as for timestamp.
    pub snapshot: Option<Mark>,
    /// Of `targets` and every role below it.
    pub roles: BTreeMap<String, Mark>,
}

/// A version that was in use, to the byte: only this one may be taken again though a newer one was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InUse {
    /// The root that let it be verified.
    pub root: Mark,
    /// Its timestamp when it was put to use; a heartbeat may have brought a newer one.
    pub timestamp: Mark,
    /// The snapshot that this version is named after.
    pub snapshot: Mark,
    /// `targets` and every role below it.
    pub roles: BTreeMap<String, Mark>,
}

impl InUse {
    /// Whether both are the same version under the same root; heartbeats make no difference.
    pub fn is(&self, other: &Self) -> bool {
        (self.root, self.snapshot, &self.roles) == (other.root, other.snapshot, &other.roles)
    }

    /// The least that it must be when it is verified again.
    pub fn marks(&self) -> Marks {
        Marks { timestamp: Some(self.timestamp), snapshot: Some(self.snapshot), roles: self.roles.clone() }
    }
}

/// Everything that is remembered of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighWater {
    /// How often it was written.
    pub counter: u64,
    /// The newest root that was verified and adopted.
    pub root: Mark,
    /// The newest metadata of every other role that was seen.
    pub marks: Marks,
    /// The version that was put into force last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InUse>,
    /// The version that was refused for something else than its kill list, which holds over `in_force`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping: Option<InUse>,
    /// The version of which nothing could be used but its kill list, which holds over `in_force` as well: of its roles
    /// only those that lead to the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill: Option<InUse>,
}

impl HighWater {
    /// The bytes of a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers, strings and maps of them always serialise.
        let json = serde_json::to_string(self).unwrap_or_default();
        let body = format!("{FORM}\n{json}\n");
        format!("{body}{}\n", Digest::of(body.as_bytes())).into_bytes()
    }

    /// Reads what [`HighWater::to_bytes`] wrote.
    ///
    /// # Errors
    /// What is wrong, where it is anything else: torn, shortened, edited, of another form.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not text")?;
        if text.is_empty() {
            return Err("is empty");
        }
        let rest = text.strip_suffix('\n').ok_or("is cut off")?;
        let (body, digest) = rest.rsplit_once('\n').ok_or("is cut off")?;
        let digest: Digest = digest.parse().map_err(|_| "has no checksum")?;
        // With the line break that ends it.
        let covered = text.get(..body.len() + 1).ok_or("is cut off")?;
        if Digest::of(covered.as_bytes()) != digest {
            return Err("does not match its checksum");
        }
        let json = body.strip_prefix(FORM).and_then(|rest| rest.strip_prefix('\n')).ok_or("is of another form")?;
        serde_json::from_str(json).map_err(|_| "is of another form")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn marks() -> impl Strategy<Value = Mark> {
        (any::<u64>(), any::<[u8; 4]>()).prop_map(|(version, bytes)| Mark::of(version, &bytes))
    }

    fn in_use() -> impl Strategy<Value = InUse> {
        let roles = proptest::collection::btree_map("[a-z/-]{0,12}", marks(), 0..4);
        (marks(), marks(), marks(), roles).prop_map(|(root, timestamp, snapshot, roles)| InUse {
            root,
            timestamp,
            snapshot,
            roles,
        })
    }

    fn high_water() -> impl Strategy<Value = HighWater> {
        let roles = proptest::collection::btree_map("[a-z/%\"\\\\\n-]{0,12}", marks(), 0..6);
        let tops = (proptest::option::of(marks()), proptest::option::of(marks()));
        let used = [(); 3].map(|()| proptest::option::of(in_use()));
        (any::<u64>(), marks(), tops, roles, used).prop_map(
            |(counter, root, (timestamp, snapshot), roles, [in_force, stopping, kill])| HighWater {
                counter,
                root,
                marks: Marks { timestamp, snapshot, roles },
                in_force,
                stopping,
                kill,
            },
        )
    }

    proptest! {
        #[test]
        fn reads_back_what_was_written(kept in high_water()) {
            prop_assert_eq!(HighWater::parse(&kept.to_bytes()), Ok(kept));
        }

        #[test]
        fn detects_any_changed_byte_and_any_truncation(kept in high_water(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut bytes = kept.to_bytes();
            let at = at.index(bytes.len());
            prop_assert!(HighWater::parse(&bytes[..at]).is_err());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(HighWater::parse(&bytes).is_err());
        }

        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(HighWater::parse(&bytes).is_err());
        }

        #[test]
        fn no_json_under_a_good_checksum_breaks_the_reader(json in "[\\{\\}\\[\\]\":,a-z0-9 ]{0,200}") {
            let body = format!("{FORM}\n{json}\n");
            let bytes = format!("{body}{}\n", Digest::of(body.as_bytes()));
            if let Ok(kept) = HighWater::parse(bytes.as_bytes()) {
                prop_assert_eq!(HighWater::parse(&kept.to_bytes()), Ok(kept));
            }
        }
    }
}
