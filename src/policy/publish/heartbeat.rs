//! A heartbeat: a new timestamp over the same snapshot. It says "this is still the newest" and changes nothing else.

use std::path::Path;
use std::time::Duration;

use super::super::repository::metadata;
use super::super::repository::trusted::TIMESTAMP;
use super::keys::KeySource;
use super::published::{Head, Overlay};
use super::sign::{expires_of, signed_part};
use super::{PublishError, release, write_file};
use crate::clock::{Clock, Timestamp};

/// How long a timestamp speaks where nothing else is said.
pub const LIFE: Duration = Duration::from_secs(600);

/// What a heartbeat wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The timestamp's version.
    pub version: u64,
    /// When it stops to speak, UTC.
    pub expires: Timestamp,
    /// The snapshot that it names.
    pub snapshot: u64,
    /// Root and snapshot where they lapse sooner than in a day: no heartbeat renews those.
    pub lapsing: Vec<(String, Timestamp)>,
}

/// Signs a new timestamp over the snapshot that is published at `out`.
///
/// # Errors
/// Nothing is published there, clients would refuse it, or the keys are not those of `timestamp`.
pub async fn beat(
    out: &Path,
    keys: &[KeySource],
    life: Duration,
    clock: &dyn Clock,
    now: Timestamp,
) -> Result<Beat, PublishError> {
    if !out.join("metadata").is_dir() {
        return Err(PublishError::Files(format!("{}: nothing is published there", out.display())));
    }
    let _lock = release::lock(out)?;
    let head = Head::read(out)
        .await?
        .ok_or_else(|| PublishError::Files(format!("{}: nothing is published there", out.display())))?;
    let (version, snapshot) = (head.version("timestamp").saturating_add(1), head.version("snapshot"));
    let expires = (now + life).floor_to_second();
    let signed = metadata::timestamp(version, expires, snapshot, &head.snapshot);
    let known = head.signers("timestamp")?;
    let bytes = release::sign_with("timestamp", signed, keys, &known.keys, known.threshold, clock).await?;
    let overlay = Overlay::new(out, [(TIMESTAMP.to_owned(), bytes.clone())].into());
    Head::load(&overlay, &head.anchor(), None, None).await?;
    write_file(&out.join("metadata/timestamp.json"), &bytes, 0o644)?;
    let near = |end: &Timestamp| end.since(now) < Duration::from_secs(24 * 3600);
    let snapshot_end = expires_of(&signed_part(&head.snapshot)?)?;
    let ends = [("root", head.root_end()), ("snapshot", snapshot_end)];
    let lapsing = ends.into_iter().filter(|(_, end)| near(end)).map(|(role, end)| (role.to_owned(), end)).collect();
    Ok(Beat { version, expires, snapshot, lapsing })
}
