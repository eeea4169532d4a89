//! Which of the store's two commits is in force, where the one bit that says so may have been altered.
//!
//! The store's header has two slots, each with a checksum of its own, and a byte of flags that has none. One bit of that byte names
//! the slot in force; where it is altered, a start would go back by one commit silently. An older slot is in force in order
//! only between the two syncs of a commit, and that one nobody was told of yet: so where the other slot is newer, it is offered
//! first. The store takes it when every page of it verifies, and the older one when not. Neither leaves out what was promised.
//!
//! Where the bytes lie: the header of file format 3 of redb (its own design document, "Database header").

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
pub(super) const HEADER: usize = SLOTS[1] + SLOT;

/// The number of the commit in a slot; `None` where it is not intact.
fn number(header: &[u8], slot: usize) -> Option<u64> {
    let slot = header.get(slot..slot + SLOT)?;
    let (said, checksum) = slot.split_at_checked(CHECKSUM)?;
    let intact = XxHash3_128::oneshot(said).to_le_bytes() == checksum;
    let number = said.get(NUMBER..)?.try_into().ok()?;
    intact.then(|| u64::from_le_bytes(number))
}

/// Lets the store choose by the numbers where the slot in force is the older of two intact ones.
pub(super) fn offer_the_newer(header: &mut [u8]) {
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
