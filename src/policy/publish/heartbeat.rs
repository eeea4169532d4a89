//! A heartbeat: a new timestamp over the same snapshot. It says "this is still the newest" and changes nothing else.
//!
//! Whoever can write to `OUT` could put an older repository there and have it called the newest. So what was seen is
//! remembered ([`Memory`]), and nothing older is signed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::repository::high_water::Mark;
use super::super::repository::metadata;
use super::super::repository::trusted::TIMESTAMP;
use super::content::{expires_of, signed_part};
use super::keys::{self, KeySource};
use super::published::{Head, Overlay, lock};
use super::{PublishError, read_file, write_file};
use crate::clock::{Clock, Timestamp};

/// How long a timestamp is valid where nothing else is said.
pub const LIFE: Duration = Duration::from_secs(600);

/// What a heartbeat wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The version of the timestamp that was written.
    pub version: u64,
    /// When it expires, UTC.
    pub expires: Timestamp,
    /// The snapshot that it names.
    pub snapshot: u64,
    /// Root and snapshot where they lapse sooner than in a day: no heartbeat renews those.
    pub lapsing: Vec<(String, Timestamp)>,
}

/// The largest file of a memory, in bytes.
const MAX_MEMORY: u64 = 4096;
const SEEN: [&str; 3] = ["root", "timestamp", "snapshot"];

/// The newest root, timestamp and snapshot that were seen, for as long as the process lives, or in a file.
#[derive(Debug, Default)]
pub struct Memory {
    file: Option<PathBuf>,
    seen: Option<[Mark; 3]>,
}

impl Memory {
    /// What `file` remembers; nothing where it is not there yet.
    ///
    /// # Errors
    /// It cannot be read, or is not ours.
    pub fn open(file: PathBuf) -> Result<Self, PublishError> {
        let broken = |error| {
            let message =
                format!("{}: is no memory of a heartbeat ({error}): look at OUT, then remove it", file.display());
            PublishError::Files(message)
        };
        let bytes = read_file(&file, MAX_MEMORY)?;
        let seen = bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(broken)).transpose()?;
        Ok(Self { file: Some(file), seen })
    }

    fn check(&self, found: [Mark; 3], out: &Path) -> Result<(), PublishError> {
        let seen = self.seen.iter().flatten();
        for ((role, found), seen) in SEEN.iter().zip(found).zip(seen) {
            if found.version < seen.version || (found.version == seen.version && found != *seen) {
                let what = if found.version < seen.version { "an older one" } else { "another one" };
                let forget =
                    self.file.as_ref().map_or_else(String::new, |file| format!(", and remove {}", file.display()));
                return Err(PublishError::Refused(format!(
                    "{}: has {role} {}, and {} was seen there before: {what} is not called the newest. Put back what was \
                     published; if this is meant, start the heartbeat anew{forget}",
                    out.display(),
                    found.version,
                    seen.version
                )));
            }
        }
        Ok(())
    }

    fn keep(&mut self, seen: [Mark; 3]) -> Result<(), PublishError> {
        self.seen = Some(seen);
        // Numbers and strings always serialise.
        let bytes = serde_json::to_vec(&seen).unwrap_or_default();
        self.file.as_ref().map_or(Ok(()), |file| write_file(file, &bytes, 0o600))
    }
}

/// Signs a new timestamp over the snapshot that is published at `out`.
///
/// # Errors
/// Nothing is published there, clients would refuse it, it is older than what `memory` has seen, or the keys are not those
/// of `timestamp`.
pub async fn beat(
    out: &Path,
    keys: &[KeySource],
    life: Duration,
    clock: &dyn Clock,
    now: Timestamp,
    memory: &mut Memory,
) -> Result<Beat, PublishError> {
    if !out.join("metadata").is_dir() {
        return Err(PublishError::Files(format!("{}: nothing is published there", out.display())));
    }
    let _lock = lock(out)?;
    let head = Head::read(out)
        .await?
        .ok_or_else(|| PublishError::Files(format!("{}: nothing is published there", out.display())))?;
    memory.check(head.marks(), out)?;
    let (version, snapshot) = (head.version("timestamp").saturating_add(1), head.version("snapshot"));
    let expires = (now + life).floor_to_second();
    let signed = metadata::timestamp(version, expires, snapshot, &head.snapshot);
    let known = head.signers("timestamp")?;
    let bytes = keys::sign_with("timestamp", signed, keys, &known.keys, known.threshold, clock).await?;
    let overlay = Overlay::new(out, [(TIMESTAMP.to_owned(), bytes.clone())].into());
    Head::load(&overlay, &head.anchor(), None, None).await?;
    write_file(&out.join("metadata/timestamp.json"), &bytes, 0o644)?;
    let [root, _, newest] = head.marks();
    // Afterwards: what was remembered and then not written would be missed for ever.
    memory.keep([root, Mark::of(version, &bytes), newest])?;
    let near = |end: &Timestamp| end.since(now) < Duration::from_secs(24 * 3600);
    let snapshot_end = expires_of(&signed_part(&head.snapshot)?)?;
    let ends = [("root", head.root_end()), ("snapshot", snapshot_end)];
    let lapsing = ends.into_iter().filter(|(_, end)| near(end)).map(|(role, end)| (role.to_owned(), end)).collect();
    Ok(Beat { version, expires, snapshot, lapsing })
}
