//! The ids of tasks and leases: unguessable, so that knowing one proves nothing and guessing one is hopeless.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::task_token::{self, NoRandomness};

const ID_BITS: usize = 16;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// A letter, a dash, and 26 digits of five bits.
const LENGTH: usize = 28;

/// An unguessable id: `prefix` and 128 random bits in Crockford's base 32, lower case.
fn random_id(prefix: [u8; 2]) -> Result<[u8; LENGTH], NoRandomness> {
    let mut bits = [0u8; ID_BITS];
    #[cfg(feature = "simulation")]
    let bits_are_made = testing::next(&mut bits);
    #[cfg(not(feature = "simulation"))]
    let bits_are_made = false;
    if !bits_are_made {
        task_token::random(&mut bits)?;
    }
    let mut value = u128::from_be_bytes(bits);
    let mut id = [0u8; LENGTH];
    let (front, digits) = id.split_at_mut(prefix.len());
    front.copy_from_slice(&prefix);
    for digit in digits.iter_mut().rev() {
        // INVARIANT: the index is below 32.
        *digit = ALPHABET.get((value & 31) as usize).copied().unwrap_or(b'0');
        value >>= 5;
    }
    Ok(id)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        // In place and not behind a pointer: each stands in several tables, and a pointer's text would be as large again.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; LENGTH]);

        impl $name {
            /// A new, unguessable id.
            ///
            /// # Errors
            /// When the system gives no random bytes.
            pub fn generate() -> Result<Self, NoRandomness> {
                random_id(*$prefix).map(Self)
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                // Made of ASCII, here and in `from_str`.
                std::str::from_utf8(&self.0).unwrap_or_default()
            }
        }

        impl FromStr for $name {
            type Err = ();

            /// Reads an id as it stands in a path or a record; anything else cannot be one.
            fn from_str(text: &str) -> Result<Self, ()> {
                let id: [u8; LENGTH] = text.as_bytes().try_into().map_err(drop)?;
                let digits = id.strip_prefix($prefix.as_slice()).ok_or(())?;
                if digits.iter().all(|digit| ALPHABET.contains(digit)) { Ok(Self(id)) } else { Err(()) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|()| serde::de::Error::custom(concat!("no ", stringify!($name))))
            }
        }
    };
}

id!(
    /// The id of a task: `t-` and 128 random bits.
    TaskId,
    b"t-"
);
id!(
    /// The id of a lease: `l-` and 128 random bits.
    LeaseId,
    b"l-"
);

/// Ids that a simulation can foresee, so that the same seed tells the same history whatever is ordered by an id.
#[cfg(feature = "simulation")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_an_id_and_rejects_everything_else() {
        let (task, lease) = (TaskId::generate().unwrap(), LeaseId::generate().unwrap());
        assert_eq!(task.to_string().parse(), Ok(task.clone()));
        assert_eq!(serde_json::from_str(&serde_json::to_string(&lease).unwrap()).ok(), Some(lease.clone()));
        for other in
            ["", "t-", "t-0123456789abcdefghjkmnpqr", "t-0123456789abcdefghjkmnpqrst", "t-0123456789abcdefghjkmnpqrU"]
        {
            assert_eq!(other.parse::<TaskId>(), Err(()), "{other}");
        }
        assert_eq!(lease.as_str().parse::<TaskId>(), Err(()));
        assert!(serde_json::from_str::<LeaseId>(&serde_json::to_string(&task).unwrap()).is_err());
    }
}
