//! Which of the store's two commits is in force, where the one bit that says so may have been altered.
//!
//! The store's header has two slots, each with a checksum of its own, and a byte of flags that has none. One bit of that byte names
//! the slot in force; where it is altered, a start would go back by one commit without a word. An older slot is in force in order
//! only between the two syncs of a commit, and that one nobody was told of yet: so where the other slot is newer, it is offered
//! first. The store takes it when every page of it verifies, and the older one when not. Neither leaves out what was promised.
//!
//! Where the bytes lie: the header of file format 3 of redb (its `docs/design.md`, "Database header").

use std::fmt;
use std::io;
use std::ops::Bound;

use redb::{BackendError, StorageBackend};
use twox_hash::XxHash3_128;

const FLAGS: usize = 9;
/// In [`FLAGS`]: the second slot is in force.
const SECOND: u8 = 1;
/// In [`FLAGS`]: the store believes the bit before unseen.
const TWO_PHASE: u8 = 4;
const SLOTS: [usize; 2] = [64, 192];
const SLOT: usize = 128;
/// In a slot: the number of its commit, 8 bytes, little-endian.
const NUMBER: usize = 104;
/// In a slot: XXH3 of all before it, 16 bytes, little-endian.
const CHECKSUM: usize = 112;
const HEADER: usize = SLOTS[1] + SLOT;

/// A file of the store, seen so that the newer of two intact commits is offered first.
#[derive(Debug)]
pub(super) struct NewerFirst<B>(pub(super) B);

/// The number of the commit in a slot; `None` where it is not intact.
fn number(header: &[u8], slot: usize) -> Option<u64> {
    let slot = header.get(slot..slot + SLOT)?;
    let (said, checksum) = slot.split_at_checked(CHECKSUM)?;
    let intact = XxHash3_128::oneshot(said).to_le_bytes() == checksum;
    let number = said.get(NUMBER..)?.try_into().ok()?;
    intact.then(|| u64::from_le_bytes(number))
}

/// Lets the store choose by the numbers where the slot in force is the older of two intact ones.
fn offer_the_newer(header: &mut [u8]) {
    let second = header.get(FLAGS).is_some_and(|flags| flags & SECOND != 0);
    let [first_slot, second_slot] = SLOTS;
    let (in_force, other) = if second { (second_slot, first_slot) } else { (first_slot, second_slot) };
    if let (Some(in_force), Some(other)) = (number(header, in_force), number(header, other))
        && other > in_force
        && let Some(flags) = header.get_mut(FLAGS)
    {
        *flags &= !TWO_PHASE;
    }
}

impl<B: StorageBackend + fmt::Debug> StorageBackend for NewerFirst<B> {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)?;
        if offset == 0 && out.len() >= HEADER {
            offer_the_newer(out);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
