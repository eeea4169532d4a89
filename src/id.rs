//! The ids of tasks and leases: unguessable, so that knowing one proves nothing and guessing one is hopeless.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::identity::task_token::{self, NoRandomness};

const ID_BITS: usize = 16;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_LENGTH: usize = 26;

/// An unguessable id: `prefix` and 128 random bits in Crockford's base 32, lower case.
fn random_id(prefix: &str) -> Result<String, NoRandomness> {
    let mut bits = [0u8; ID_BITS];
    #[cfg(feature = "dev")]
    let bits_are_made = testing::next(&mut bits);
    #[cfg(not(feature = "dev"))]
    let bits_are_made = false;
    if !bits_are_made {
        task_token::random(&mut bits)?;
    }
    let mut value = u128::from_be_bytes(bits);
    let mut digits = [0u8; ID_LENGTH];
    for digit in digits.iter_mut().rev() {
        // INVARIANT: the index is below 32.
        *digit = ALPHABET.get((value & 31) as usize).copied().unwrap_or(b'0');
        value >>= 5;
    }
    Ok(format!("{prefix}{}", String::from_utf8_lossy(&digits)))
}

/// The id of a task: `t-` and 128 random bits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// A new, unguessable id.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, NoRandomness> {
        random_id("t-").map(|id| Self(id.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TaskId {
    type Err = ();

    /// Reads an id as it stands in a path; anything else cannot name a task.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix("t-").ok_or(())?;
        let known = digits.len() == ID_LENGTH && digits.bytes().all(|b| ALPHABET.contains(&b));
        if known { Ok(Self(text.into())) } else { Err(()) }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of a lease: `l-` and 128 random bits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(Arc<str>);

impl LeaseId {
    /// A new, unguessable id.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, NoRandomness> {
        random_id("l-").map(|id| Self(id.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ids that a simulation can foresee, so that the same seed tells the same history whatever is ordered by an id.
#[cfg(feature = "dev")]
pub mod testing {
    use std::cell::Cell;

    thread_local! {
        static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// From now on every id that this thread makes follows from `seed`; `None` makes them unguessable again.
    pub fn foresee(seed: Option<u64>) {
        SEED.set(seed);
    }

    /// Fills `bits` where this thread's ids are foreseen, and says whether it did.
    pub(super) fn next(bits: &mut [u8; super::ID_BITS]) -> bool {
        let Some(seed) = SEED.get() else { return false };
        SEED.set(Some(seed.wrapping_add(1)));
        for (half, bytes) in (0_u64..).zip(bits.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&mixed(seed.wrapping_mul(2).wrapping_add(half)).to_be_bytes());
        }
        true
    }

    /// The mixing function of SplitMix64.
    const fn mixed(number: u64) -> u64 {
        let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
