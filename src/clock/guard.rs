//! Two clocks that must agree: the wall clock, which can be set, and the boot clock, which cannot.
//!
//! At start the two are paired. From then on the wall clock is expected to show the start plus what has passed on the
//! boot clock, suspend included. [`TrustedClock`] then keeps two promises:
//!
//! - **An end is set on the earlier clock and judged on the later** ([`Clock::earliest`], [`Clock::now`]), and a
//!   [`Deadline`](super::Deadline) is fixed on the boot clock as well. So setting the clock back lengthens nothing, not
//!   even when the wall clock is later trusted again; setting it forward can only shorten.
//! - **Nothing begins and nothing is minted on a clock in doubt** ([`Clock::trusted`]): when the wall clock is more than
//!   [`TOLERANCE`] from where it is expected, behind the latest signed time ever seen, or not what a fresh signature says.
//!
//! | what happens | what follows |
//! |---|---|
//! | the clock is corrected by no more than the tolerance | the pair follows by at most [`SLEW_PPM`]; both promises hold meanwhile |
//! | the clock jumps further | in doubt, until it is back, or a fresh signed time says the same as the wall clock |
//! | a signed time differs from the wall clock | in doubt, until another agrees |
//! | the clock is behind the high-water mark | in doubt, and `now` is the high-water mark, until it is set right |
//! | an operator resets | the wall clock is trusted as it is, and the high-water mark goes back to it if it was ahead |
//! | suspend | both clocks go on: nothing |
//! | a virtual machine is frozen | the boot clock stood still: a jump, and over with the next signed time |
//!
//! Signed time is the `iat` of a JWT-SVID that the trust domain signed for an audience that was never used before: it
//! cannot be old. Only signed time raises the high-water mark, and only an operator lowers it.
//!
//! The pair and the high-water mark are kept in the state directory; the pair holds as long as the machine is not booted
//! again, so that a restart of the sidecar hides no jump.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Clock, Moment, SharedClock, Timestamp};
use crate::durable_file;

/// How far the wall clock may be from where it is expected. Corrections by time services stay below it (`chronyd` steps
/// by more only in its first minutes, `ntpd` gives up at 1000 s but steps from 128 ms on, a leap second is 1 s); it is
/// what AWS and we allow between clocks anyway, and no more than the shortest life of a credential (30 s, the law of life), so
/// what is in doubt within it is never longer than one such life.
pub const TOLERANCE: Duration = Duration::from_secs(30);
/// How fast the pair follows a small correction, in microseconds a second: the fastest that the kernel itself slews.
pub const SLEW_PPM: u64 = 500;
/// The high-water mark is written when it has risen by this much.
const SAVE_STEP: Duration = Duration::from_secs(60);
const FILE: &str = "clock.json";
const MAX_FILE: u64 = 4096;

/// Why the time is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrust {
    /// The wall clock is not where the boot clock says it should be.
    Jumped {
        /// What the wall clock shows.
        wall: Timestamp,
        /// What it should show.
        expected: Timestamp,
    },
    /// The wall clock is behind the latest signed time ever seen.
    Behind {
        /// What the wall clock shows.
        wall: Timestamp,
        /// The latest signed time.
        high_water: Timestamp,
    },
    /// A fresh signature said another time than the wall clock.
    Disagrees {
        /// What the wall clock showed.
        wall: Timestamp,
        /// The time that was signed.
        signed: Timestamp,
    },
}

impl Distrust {
    /// The stable label for audit.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Jumped { .. } => "jumped",
            Self::Behind { .. } => "behind",
            Self::Disagrees { .. } => "disagrees",
        }
    }
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FIX: &str = "set the clock right, or say that it is: POST /v1/clock/reset on the admin Unix socket";
        match self {
            Self::Jumped { wall, expected } => {
                write!(f, "the clock shows {wall} and should show {expected} by the time since boot: {FIX}")
            }
            Self::Behind { wall, high_water } => {
                write!(f, "the clock shows {wall}, and {high_water} was signed already: {FIX}")
            }
            Self::Disagrees { wall, signed } => {
                write!(f, "the clock showed {wall} when the trust domain signed {signed}: {FIX}")
            }
        }
    }
}

impl std::error::Error for Distrust {}

/// What is trusted about the clocks. Values, no clock: [`Guard::view`] is a pure function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Guard {
    /// Wall minus boot clock, in milliseconds.
    offset: i64,
    high_water: Timestamp,
    disagreement: Option<Disagreement>,
    /// When `offset` last followed the wall clock (boot clock).
    followed_at: Duration,
}

/// A signed time that differed from the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disagreement {
    wall: Timestamp,
    signed: Timestamp,
}

/// What the clocks show together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    earliest: Timestamp,
    latest: Timestamp,
    distrust: Option<Distrust>,
}

impl Guard {
    fn pair(wall: Timestamp, boot: Duration, high_water: Timestamp) -> Self {
        Self { offset: offset(wall, boot), high_water, disagreement: None, followed_at: boot }
    }

    fn expected(&self, boot: Duration) -> Timestamp {
        Timestamp::from_millis(u64::try_from(millis(boot).saturating_add(self.offset)).unwrap_or(0))
    }

    fn view(&self, wall: Timestamp, boot: Duration) -> View {
        let expected = self.expected(boot);
        let distrust = if apart(wall, expected) > TOLERANCE {
            Some(Distrust::Jumped { wall, expected })
        } else if wall + TOLERANCE < self.high_water {
            Some(Distrust::Behind { wall, high_water: self.high_water })
        } else {
            self.disagreement.map(|Disagreement { wall, signed }| Distrust::Disagrees { wall, signed })
        };
        View { earliest: wall.min(expected), latest: wall.max(expected).max(self.high_water), distrust }
    }

    /// Lets the pair follow a correction that is within the tolerance.
    fn follow(mut self, wall: Timestamp, boot: Duration) -> Self {
        let expected = self.expected(boot);
        let gap = apart(wall, expected);
        if gap.is_zero() || gap > TOLERANCE {
            self.followed_at = boot;
            return self;
        }
        let allowed = millis(boot.saturating_sub(self.followed_at)).saturating_mul(SLEW_PPM as i64) / 1_000_000;
        let step = allowed.min(millis(gap));
        if step > 0 {
            self.offset = self.offset.saturating_add(if wall > expected { step } else { -step });
            self.followed_at = boot;
        }
        self
    }

    /// Takes note of a time that was signed between the reading of the clocks and `took` before it.
    fn witness(mut self, signed: Timestamp, took: Duration, wall: Timestamp, boot: Duration) -> Self {
        self.high_water = self.high_water.max(signed);
        // `iat` is in whole seconds, rounded down.
        let slack = TOLERANCE.saturating_add(took).saturating_add(Duration::from_secs(1));
        if apart(wall, signed) > slack {
            self.disagreement = Some(Disagreement { wall, signed });
            return self;
        }
        self.disagreement = None;
        if apart(wall, self.expected(boot)) > TOLERANCE {
            self = Self::pair(wall, boot, self.high_water);
        }
        self
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn offset(wall: Timestamp, boot: Duration) -> i64 {
    i64::try_from(wall.as_millis()).unwrap_or(i64::MAX).saturating_sub(millis(boot))
}

fn apart(a: Timestamp, b: Timestamp) -> Duration {
    a.since(b).max(b.since(a))
}

/// What is kept in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    high_water: Timestamp,
    /// Which start of the machine `offset_ms` belongs to.
    boot_id: String,
    offset_ms: i64,
}

/// A change of trust, told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustChange {
    /// The time is in doubt now.
    Lost(Distrust),
    /// It is trusted again.
    Regained,
}

/// A clock that says whether it can be trusted. See the module's page.
#[derive(Debug)]
pub struct TrustedClock {
    raw: SharedClock,
    guard: ArcSwap<Guard>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    boot_id: String,
    kept: Option<Kept>,
    trusted: bool,
}

impl TrustedClock {
    /// Pairs the clocks of `raw`, or goes on with what the state directory `state` remembers of this boot.
    ///
    /// # Errors
    /// When what it remembers cannot be read; it must not be forgotten by accident.
    pub fn start(raw: SharedClock, state: &Path) -> io::Result<Arc<Self>> {
        Self::start_in(raw, state, boot_id())
    }

    fn start_in(raw: SharedClock, state: &Path, boot_id: String) -> io::Result<Arc<Self>> {
        let path = state.join(FILE);
        let kept = read(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let (wall, boot) = (raw.now(), raw.boot());
        let mut guard = Guard::pair(wall, boot, kept.as_ref().map_or(Timestamp::default(), |kept| kept.high_water));
        if let Some(kept) = kept.as_ref().filter(|kept| kept.boot_id == boot_id && !boot_id.is_empty()) {
            guard.offset = kept.offset_ms;
        }
        let state = State { path, boot_id, kept, trusted: true };
        Ok(Arc::new(Self { raw, guard: ArcSwap::from_pointee(guard), state: Mutex::new(state) }))
    }

    fn view(&self) -> View {
        self.guard.load().view(self.raw.now(), self.raw.boot())
    }

    /// Changes what is trusted; one at a time, so that no change is lost.
    fn update(&self, change: impl FnOnce(Guard, Timestamp, Duration) -> Guard) {
        let _turn = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = change(**self.guard.load(), self.raw.now(), self.raw.boot());
        self.guard.store(Arc::new(next));
    }

    /// Takes note of a time that somebody trusted signed within the last `took`, and not before.
    pub fn witness(&self, signed: Timestamp, took: Duration) {
        self.update(|guard, wall, boot| guard.witness(signed, took, wall, boot));
    }

    /// Follows small corrections, and tells when trust was lost or regained since the last call. Call it every second.
    pub fn observe(&self) -> Option<TrustChange> {
        self.update(Guard::follow);
        let distrust = self.view().distrust;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut state.trusted, distrust.is_none());
        match (before, distrust) {
            (true, Some(distrust)) => Some(TrustChange::Lost(distrust)),
            (false, None) => Some(TrustChange::Regained),
            _ => None,
        }
    }

    /// Writes to the state directory what must not be forgotten, where it has changed enough. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = **self.guard.load();
        let now = Kept { high_water: guard.high_water, boot_id: state.boot_id.clone(), offset_ms: guard.offset };
        let same = state.kept.as_ref().is_some_and(|kept| {
            kept.boot_id == now.boot_id
                && now.high_water >= kept.high_water
                && now.high_water.since(kept.high_water) < SAVE_STEP
                && kept.offset_ms.abs_diff(now.offset_ms) < 1000
        });
        if !same {
            write(&state.path, &now)?;
            state.kept = Some(now);
        }
        Ok(())
    }
}

#[async_trait]
impl Clock for TrustedClock {
    /// The later of all that is known: nothing outlives its end on any of the clocks.
    fn now(&self) -> Timestamp {
        self.moment().now
    }

    fn earliest(&self) -> Timestamp {
        self.view().earliest
    }

    fn boot(&self) -> Duration {
        self.raw.boot()
    }

    fn moment(&self) -> Moment {
        let Moment { now: wall, boot } = self.raw.moment();
        Moment { now: self.guard.load().view(wall, boot).latest, boot }
    }

    fn trusted(&self) -> Result<(), Distrust> {
        self.view().distrust.map_or(Ok(()), Err)
    }

    fn reset(&self) {
        self.update(|guard, wall, boot| Guard::pair(wall, boot, guard.high_water.min(wall)));
    }

    async fn sleep(&self, duration: Duration) {
        self.raw.sleep(duration).await;
    }
}

/// Which start of the machine this is; empty where the kernel does not tell.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn read(path: &Path) -> io::Result<Option<Kept>> {
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(no_follow).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    let kept = serde_json::from_slice(&bytes).map_err(|_| {
        let what = "does not hold what the clock was: remove it once you know that the clock is right";
        io::Error::new(io::ErrorKind::InvalidData, what)
    })?;
    Ok(Some(kept))
}

fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(durable_file::folder_of(path))?;
    durable_file::replace(path, &serde_json::to_vec(kept)?, 0o600)
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
