//! When to try again, how often at most, and when not at all: backoff, token bucket and circuit, for the whole crate. All are plain
//! values: they take the time and the randomness and say how long to wait; who waits is the caller's affair. A [`Gate`] is the
//! bucket and the circuit of one upstream, shared by all who call it.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use crate::clock::{Clock, Timestamp};

/// The longest wait that an upstream's `Retry-After` can make of us: a longer silence would be an outage of its own.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Where the randomness of [`Backoff`] comes from.
pub trait Jitter: Send + Sync + fmt::Debug {
    /// A number in `[0, 1)`, evenly spread.
    fn fraction(&self) -> f64;
}

/// Randomness from the operating system, by AWS-LC.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemJitter;

impl Jitter for SystemJitter {
    fn fraction(&self) -> f64 {
        let mut bytes = [0_u8; 4];
        // Without randomness the longest wait is the safe one.
        match aws_lc_rs::rand::fill(&mut bytes) {
            Ok(()) => f64::from(u32::from_le_bytes(bytes)) / 4_294_967_296.0,
            Err(_) => 1.0 - f64::EPSILON,
        }
    }
}

/// Waits that double from `first` up to `most`, without jitter.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    waits: u32,
}

impl Backoff {
    /// No wait was taken yet.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, waits: 0 }
    }

    /// The wait after `waits` others.
    pub fn after(first: Duration, most: Duration, waits: u32) -> Duration {
        first.saturating_mul(2_u32.saturating_pow(waits)).min(most)
    }

    /// Takes the next wait.
    pub fn next_wait(&mut self) -> Duration {
        let wait = Self::after(self.first, self.most, self.waits);
        self.waits = self.waits.saturating_add(1);
        wait
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.waits = 0;
    }
}

/// The tries of one call, with full jitter: before the n-th retry a random part of `base · 2ⁿ⁻¹`, at most `cap`; never more than
/// `attempts` tries, never beyond the time that the caller has left.
#[derive(Debug, Clone)]
pub struct Retries {
    backoff: Backoff,
    left: u32,
}

impl Retries {
    /// At most `attempts` tries in all, the first one included.
    pub const fn new(base: Duration, cap: Duration, attempts: u32) -> Self {
        Self { backoff: Backoff::new(base, cap), left: attempts.saturating_sub(1) }
    }

    /// How long to wait before the next try: no less than the upstream asked for (`retry_after`). `None` when it is
    /// time to give up: no try is left, or the wait would use up all that `remaining` holds.
    ///
    /// `fraction` is a random number in `[0, 1)`.
    pub fn next(&mut self, fraction: f64, retry_after: Option<Duration>, remaining: Duration) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let wait = self.backoff.next_wait().mul_f64(fraction.clamp(0.0, 1.0)).max(retry_after.unwrap_or_default());
        (wait < remaining).then_some(wait)
    }
}

/// Reads `Retry-After` (RFC 9110 §10.2.3): whole seconds, or a date, which counts from `now`. It is not bounded here.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    match value.trim().parse::<u32>() {
        Ok(seconds) => Some(Duration::from_secs(seconds.into())),
        Err(_) => Some(http_date(value.trim())?.since(now)),
    }
}

/// Reads an HTTP date (RFC 9110 §5.6.7); `None` before 1970 too.
pub fn http_date(text: &str) -> Option<Timestamp> {
    let date = DateTime::from_str(text, Format::HttpDate).ok()?;
    u64::try_from(date.to_millis().ok()?).ok().map(Timestamp::from_millis)
}

/// How often an upstream may be called: `burst` calls at once, then one per `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The time in which one spent token comes back.
    pub interval: Duration,
    /// How many tokens a full bucket holds; at least one.
    pub burst: u32,
}

impl Default for Rate {
    /// Five calls a second, twenty at once: far more than one pod needs, far less than hurts an account.
    fn default() -> Self {
        Self { interval: Duration::from_millis(200), burst: 20 }
    }
}

/// A token bucket in its "virtual scheduling" form (GCRA): one number instead of a counter that must be refilled.
///
/// Times are of a clock that never goes back ([`Clock::boot`]).
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: Rate,
    /// When the bucket will be full again.
    full_at: Duration,
    /// Before when no call is allowed.
    held_until: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self { rate: Rate { burst: rate.burst.max(1), ..rate }, full_at: Duration::ZERO, held_until: Duration::ZERO }
    }

    /// Takes a token: `Ok(wait)` when it may be used once `wait` has passed. Those who wait are served in the order in
    /// which they asked, since each has its own token already.
    ///
    /// # Errors
    /// `Err(wait)`, and no token is taken, where the wait would be longer than `limit`.
    pub fn take(&mut self, now: Duration, limit: Duration) -> Result<Duration, Duration> {
        let wait = self.full_at.saturating_sub(self.slack()).saturating_sub(now);
        if wait > limit {
            return Err(wait);
        }
        self.full_at = self.full_at.max(now).saturating_add(self.rate.interval);
        Ok(wait)
    }

    /// Whether nothing of it is spent, so that it could as well be a new one.
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= now
    }

    /// Lets nobody through before `until`: the upstream said so (`Retry-After`).
    pub fn hold(&mut self, until: Duration) {
        self.full_at = self.full_at.max(until.saturating_add(self.slack()));
        self.held_until = self.held_until.max(until);
    }

    /// Whether it was told to let nobody through now: who took a token before that must take another.
    pub fn is_held(&self, now: Duration) -> bool {
        self.held_until > now
    }

    /// How long before it is full the bucket holds one whole token.
    fn slack(&self) -> Duration {
        self.rate.interval.saturating_mul(self.rate.burst.saturating_sub(1))
    }
}

/// So many failures in a row open a [`Circuit`].
const FAILURES: u32 = 5;
/// For how long at first, and at most, unless the upstream itself asked for more.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For how long at most where it did.
const LONGEST_OPEN: Duration = Duration::from_secs(60);

/// Whether an upstream is asked at all. One that fails again and again is not asked for a while (its circuit is open), then asked once,
/// then not for twice as long if that fails too, and so on, with jitter: an outage ends neither in a storm of calls nor in a wait
/// for everyone who comes. A refusal is an answer: only what says that the upstream or the way to it is broken is a failure.
///
/// Times are of a clock that never goes back ([`Clock::boot`]).
#[derive(Debug, Clone, Default)]
pub struct Circuit {
    state: CircuitState,
    /// How often it opened. What was asked before it last did says, when it fails, nothing new.
    openings: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CircuitState {
    /// With so many failures in a row.
    Closed(u32),
    /// Not asked until then, after this pause.
    Open(Duration, Duration),
    /// One call is under way, after this pause.
    Probing(Duration),
}

impl Default for CircuitState {
    fn default() -> Self {
        Self::Closed(0)
    }
}

/// Leave to ask once, from [`Circuit::ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    openings: u32,
}

impl Circuit {
    /// From when on the next may ask; `None` while that rests on how the one call under way ends.
    pub fn ready_at(&self) -> Option<Duration> {
        match self.state {
            CircuitState::Closed(_) => Some(Duration::ZERO),
            CircuitState::Open(until, _) => Some(until),
            CircuitState::Probing(_) => None,
        }
    }

    /// Whether [`Circuit::ask`] would give leave at `now`.
    ///
    /// # Errors
    /// The time to come back in.
    pub fn check(&self, now: Duration) -> Result<(), Duration> {
        match self.ready_at() {
            Some(ready_at) if ready_at <= now => Ok(()),
            Some(ready_at) => Err(ready_at.saturating_sub(now)),
            None => Err(FIRST_PAUSE),
        }
    }

    /// Leave to ask at `now`. How it went is told by [`Circuit::answered`], [`Circuit::failed`] or [`Circuit::withdrawn`].
    ///
    /// # Errors
    /// The time to come back in.
    pub fn ask(&mut self, now: Duration) -> Result<Leave, Duration> {
        self.check(now)?;
        if let CircuitState::Open(_, pause) = self.state {
            self.state = CircuitState::Probing(pause);
        }
        Ok(Leave { openings: self.openings })
    }

    /// The upstream answered, whatever it said.
    pub fn answered(&mut self) {
        self.state = CircuitState::Closed(0);
    }

    /// What was asked with `leave` failed at `now`; the upstream may have said `after` how long to come back. `fraction` is a
    /// random number in `[0, 1)`.
    pub fn failed(&mut self, leave: Leave, now: Duration, after: Option<Duration>, fraction: f64) {
        if leave.openings != self.openings {
            return;
        }
        match self.state {
            CircuitState::Closed(failures) if failures + 1 < FAILURES => {
                self.state = CircuitState::Closed(failures + 1);
            }
            CircuitState::Closed(_) => self.open(FIRST_PAUSE, now, after, fraction),
            CircuitState::Probing(pause) => self.open(pause * 2, now, after, fraction),
            // Nobody has leave of this opening yet.
            CircuitState::Open(..) => {}
        }
    }

    /// Nothing was asked with `leave` after all, or nobody will ever know how it went: the next may ask.
    pub fn withdrawn(&mut self, leave: Leave, now: Duration) {
        if let CircuitState::Probing(pause) = self.state
            && leave.openings == self.openings
        {
            self.state = CircuitState::Open(now, pause);
        }
    }

    /// Whether the upstream is not asked now.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, CircuitState::Closed(_))
    }

    /// Whether it holds nothing to remember.
    pub fn is_untroubled(&self) -> bool {
        self.state == CircuitState::default()
    }

    fn open(&mut self, pause: Duration, now: Duration, after: Option<Duration>, fraction: f64) {
        let pause = pause.min(LONGEST_PAUSE);
        let wait = jittered(pause, fraction).max(after.unwrap_or_default()).min(LONGEST_OPEN);
        self.state = CircuitState::Open(now.saturating_add(wait), pause);
        self.openings = self.openings.wrapping_add(1);
    }
}

/// Half of `wait` for sure, the other half by chance: `fraction` is a random number in `[0, 1)`.
pub fn jittered(wait: Duration, fraction: f64) -> Duration {
    wait.mul_f64(0.5 + fraction.clamp(0.0, 1.0) / 2.0)
}

/// Why an upstream is not asked now, with the time to come back in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shut {
    /// It was called as often as it may be, or said itself when to come back.
    TooOften(Duration),
    /// It failed again and again.
    Broken(Duration),
}

/// One [`TokenBucket`] and one [`Circuit`], shared by all who call one upstream.
#[derive(Debug)]
pub struct Gate(Mutex<(TokenBucket, Circuit)>);

/// Leave to ask an upstream once. Whoever drops it without a word says nothing about the upstream.
#[derive(Debug)]
pub struct Turn<'a> {
    gate: &'a Gate,
    clock: &'a dyn Clock,
    leave: Option<Leave>,
}

impl Turn<'_> {
    /// The upstream answered, if only to refuse.
    pub fn answered(mut self) {
        self.leave = None;
        self.gate.with(|_, circuit| circuit.answered());
    }

    /// The upstream, or the way to it, failed, or what it said is not to be trusted; it may have said `after` how long to
    /// come back. `fraction` is a random number in `[0, 1)`.
    pub fn failed(mut self, after: Option<Duration>, fraction: f64) {
        if let Some(leave) = self.leave.take() {
            self.gate.with(|_, circuit| circuit.failed(leave, self.clock.boot(), after, fraction));
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            self.gate.with(|_, circuit| circuit.withdrawn(leave, self.clock.boot()));
        }
    }
}

impl Gate {
    /// A gate that lets `rate` through.
    pub fn new(rate: Rate) -> Self {
        Self(Mutex::new((TokenBucket::new(rate), Circuit::default())))
    }

    /// Waits for a token, up to `limit`, and for leave of the circuit not at all.
    ///
    /// # Errors
    /// At once, while the circuit is open, and where the wait would be longer than `limit`.
    pub async fn turn<'a>(&'a self, clock: &'a dyn Clock, limit: Duration) -> Result<Turn<'a>, Shut> {
        self.with(|_, circuit| circuit.check(clock.boot())).map_err(Shut::Broken)?;
        self.pass(clock, limit).await.map_err(Shut::TooOften)?;
        // Again: others may have failed meanwhile.
        let leave = self.with(|_, circuit| circuit.ask(clock.boot())).map_err(Shut::Broken)?;
        Ok(Turn { gate: self, clock, leave: Some(leave) })
    }

    /// Waits for a token, up to `limit`, whatever the circuit says.
    ///
    /// # Errors
    /// At once, with the time to come back in, where the wait would be longer than `limit`.
    pub async fn pass(&self, clock: &dyn Clock, limit: Duration) -> Result<(), Duration> {
        let give_up = clock.boot().saturating_add(limit);
        loop {
            let now = clock.boot();
            let wait = self.with(|bucket, _| bucket.take(now, give_up.saturating_sub(now)))?;
            if wait.is_zero() {
                return Ok(());
            }
            clock.sleep(wait).await;
            if !self.with(|bucket, _| bucket.is_held(clock.boot())) {
                return Ok(());
            }
        }
    }

    /// Lets nobody through for `duration`, at most [`MAX_RETRY_AFTER`].
    pub fn hold(&self, clock: &dyn Clock, duration: Duration) {
        let until = clock.boot().saturating_add(duration.min(MAX_RETRY_AFTER));
        self.with(|bucket, _| bucket.hold(until));
    }

    /// Whether the circuit is open: the upstream failed again and again.
    pub fn circuit_open(&self) -> bool {
        self.with(|_, circuit| circuit.is_open())
    }

    fn with<T>(&self, work: impl FnOnce(&mut TokenBucket, &mut Circuit) -> T) -> T {
        // Both are whole at any moment: a panic elsewhere cannot have torn them.
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, circuit) = &mut *both;
        work(bucket, circuit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{ManualClock, Timestamp};

    const LONG: Duration = Duration::from_secs(3600);

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_then_gives_up() {
        let mut retries = Retries::new(millis(100), millis(300), 5);
        let waits: Vec<_> = std::iter::from_fn(|| retries.next(1.0, None, LONG)).collect();
        assert_eq!(waits, [millis(100), millis(200), millis(300), millis(300)]);
    }

    #[test]
    fn backoff_waits_at_least_the_retry_after() {
        let mut retries = Retries::new(millis(100), millis(300), 5);
        assert_eq!(retries.next(0.5, Some(millis(40)), LONG), Some(millis(50)));
        assert_eq!(retries.next(0.5, Some(millis(7000)), LONG), Some(millis(7000)));
    }

    #[test]
    fn backoff_gives_up_at_once_when_the_wait_would_use_up_the_time() {
        assert_eq!(Retries::new(millis(100), LONG, 5).next(1.0, None, millis(100)), None);
        assert_eq!(Retries::new(millis(100), LONG, 5).next(0.0, Some(millis(900)), millis(800)), None);
        assert_eq!(Retries::new(millis(100), LONG, 1).next(0.0, None, LONG), None);
    }

    #[test]
    fn waits_double_up_to_the_longest_and_no_further() {
        let mut backoff = Backoff::new(millis(100), millis(1000));
        let waits: Vec<_> = (0..6).map(|_| backoff.next_wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next_wait(), millis(100));
        assert_eq!(Backoff::after(millis(100), LONG, u32::MAX), LONG);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        const NOW: Timestamp = Timestamp::from_secs(1_795_452_513);
        assert_eq!(retry_after("120", NOW), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(" 7 ", NOW), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Mon, 23 Nov 2026 16:49:33 GMT", NOW), Some(Duration::from_secs(60)));
        assert_eq!(retry_after("Mon, 23 Nov 2026 16:00:00 GMT", NOW), Some(Duration::ZERO));
        for nonsense in ["", "-1", "soon", "1.5", "99999999999999"] {
            assert_eq!(retry_after(nonsense, NOW), None, "{nonsense}");
        }
    }

    #[test]
    fn system_jitter_is_a_fraction_and_varies() {
        let drawn: Vec<_> = (0..32).map(|_| SystemJitter.fraction()).collect();
        assert!(drawn.iter().all(|f| (0.0..1.0).contains(f)));
        assert!(drawn.iter().any(|f| Some(f) != drawn.first()));
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_one_per_interval() {
        let mut bucket = TokenBucket::new(Rate { interval: millis(100), burst: 3 });
        let now = LONG;
        let waits: Vec<_> = (0..5).map(|_| bucket.take(now, LONG)).collect();
        assert_eq!(waits, [Ok(millis(0)), Ok(millis(0)), Ok(millis(0)), Ok(millis(100)), Ok(millis(200))]);
        assert_eq!(bucket.take(now, millis(299)), Err(millis(300)), "refused without taking a token");
        assert_eq!(bucket.take(now + millis(500), LONG), Ok(millis(0)));
    }

    #[test]
    fn a_held_bucket_allows_no_call_before_its_time() {
        let mut bucket = TokenBucket::new(Rate { interval: millis(100), burst: 3 });
        bucket.hold(LONG + millis(5000));
        assert_eq!(bucket.take(LONG, LONG), Ok(millis(5000)));
        assert_eq!(bucket.take(LONG, LONG), Ok(millis(5100)));
    }

    /// A circuit that so many failures in a row at `now` have opened or not, with the leave of the last.
    fn after_failures(failures: u32, now: Duration) -> Circuit {
        let mut circuit = Circuit::default();
        for _ in 0..failures {
            let leave = circuit.ask(now).unwrap();
            circuit.failed(leave, now, None, 1.0);
        }
        circuit
    }

    #[test]
    fn a_circuit_opens_after_failures_in_a_row_only() {
        assert!(!after_failures(FAILURES - 1, LONG).is_open());
        assert_eq!(after_failures(FAILURES, LONG).ask(LONG), Err(FIRST_PAUSE));
        let mut circuit = after_failures(FAILURES - 1, LONG);
        circuit.answered();
        for _ in 1..FAILURES {
            let leave = circuit.ask(LONG).unwrap();
            circuit.failed(leave, LONG, None, 1.0);
        }
        assert!(!circuit.is_open());
    }

    #[test]
    fn an_open_circuit_allows_one_probe_at_a_time_with_growing_pauses() {
        let (mut circuit, mut now) = (after_failures(FAILURES, LONG), LONG);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = circuit.ask(now).unwrap_err();
            pauses.push(pause.as_secs());
            assert!(circuit.ask(now + pause - millis(1)).is_err());
            now += pause;
            let probe = circuit.ask(now).unwrap();
            assert_eq!((circuit.ask(now), circuit.ready_at()), (Err(FIRST_PAUSE), None), "one at a time");
            circuit.failed(probe, now, None, 1.0);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        now += LONGEST_PAUSE;
        circuit.ask(now).unwrap();
        circuit.answered();
        assert!(circuit.is_untroubled() && circuit.ask(now).is_ok() && circuit.ask(now).is_ok());
    }

    #[test]
    fn a_circuit_ignores_the_results_of_calls_begun_before_it_opened() {
        let mut circuit = Circuit::default();
        let old = circuit.ask(LONG).unwrap();
        for _ in 0..FAILURES {
            circuit.failed(old, LONG, None, 1.0);
        }
        let now = LONG + FIRST_PAUSE;
        circuit.ask(now).unwrap();
        circuit.failed(old, now, None, 1.0);
        assert_eq!(circuit.ready_at(), None, "the probe is still under way");
        circuit.answered();
        for _ in 0..FAILURES {
            circuit.failed(old, now, None, 1.0);
        }
        assert!(circuit.is_untroubled());
    }

    #[test]
    fn an_unsent_probe_passes_to_another_caller() {
        let mut circuit = after_failures(FAILURES, LONG);
        let now = LONG + FIRST_PAUSE;
        let probe = circuit.ask(now).unwrap();
        circuit.withdrawn(probe, now);
        let probe = circuit.ask(now).unwrap();
        circuit.failed(probe, now, None, 1.0);
        assert_eq!(circuit.ask(now), Err(FIRST_PAUSE * 2), "and the pause grows from where it was");
    }

    #[test]
    fn a_circuit_honours_retry_after_up_to_one_minute() {
        for (told, wait) in [(millis(10), FIRST_PAUSE / 2), (millis(20_000), millis(20_000)), (LONG, LONGEST_OPEN)] {
            let mut circuit = after_failures(FAILURES - 1, LONG);
            let leave = circuit.ask(LONG).unwrap();
            circuit.failed(leave, LONG, Some(told), 0.0);
            assert_eq!(circuit.ask(LONG), Err(wait));
        }
    }

    #[tokio::test]
    async fn a_gate_refuses_at_once_while_its_circuit_is_open() {
        let clock = ManualClock::at(Timestamp::from_secs(10));
        let gate = Gate::new(Rate { interval: millis(100), burst: 100 });
        for _ in 0..FAILURES {
            gate.turn(&clock, LONG).await.unwrap().failed(None, 1.0);
        }
        assert!(gate.circuit_open());
        assert_eq!(gate.turn(&clock, LONG).await.unwrap_err(), Shut::Broken(FIRST_PAUSE));
        clock.advance(FIRST_PAUSE);
        drop(gate.turn(&clock, LONG).await.unwrap());
        let probe = gate.turn(&clock, LONG).await.unwrap();
        assert_eq!(gate.turn(&clock, LONG).await.unwrap_err(), Shut::Broken(FIRST_PAUSE));
        probe.answered();
        assert!(gate.turn(&clock, LONG).await.is_ok() && !gate.circuit_open());
    }

    /// Awaits `waiting` while `meanwhile` happens, once it sleeps.
    async fn once_asleep<T>(clock: &ManualClock, waiting: impl Future<Output = T>, meanwhile: impl AsyncFnOnce()) -> T {
        let step = async {
            while clock.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
            meanwhile().await;
        };
        tokio::join!(waiting, step).0
    }

    #[tokio::test]
    async fn a_waiter_keeps_waiting_when_its_gate_is_held() {
        let clock = ManualClock::at(Timestamp::from_secs(10));
        let gate = Gate::new(Rate { interval: millis(100), burst: 1 });
        gate.pass(&clock, LONG).await.unwrap();
        let before = clock.boot();
        let hold = async || {
            gate.hold(&clock, millis(60_000));
            clock.advance(millis(100));
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(clock.sleepers(), 1, "its own time has come, and it sleeps on");
            clock.advance(millis(59_900));
        };
        assert!(once_asleep(&clock, gate.turn(&clock, LONG), hold).await.is_ok());
        assert_eq!(clock.boot() - before, millis(60_000));
    }

    #[tokio::test]
    async fn a_waiter_is_refused_when_its_gate_shuts() {
        let clock = ManualClock::at(Timestamp::from_secs(10));
        let gate = Gate::new(Rate { interval: millis(100), burst: FAILURES });
        let mut turns = Vec::new();
        for _ in 0..FAILURES {
            turns.push(gate.turn(&clock, LONG).await.unwrap());
        }
        let fail = async || {
            turns.into_iter().for_each(|turn| turn.failed(None, 1.0));
            clock.advance(millis(100));
        };
        let turn = once_asleep(&clock, gate.turn(&clock, LONG), fail).await;
        assert_eq!(turn.unwrap_err(), Shut::Broken(FIRST_PAUSE - millis(100)));
    }

    #[tokio::test]
    async fn a_gate_waits_on_the_clock_and_refuses_to_wait_too_long() {
        let clock = ManualClock::at(Timestamp::from_secs(10));
        let gate = Gate::new(Rate { interval: millis(100), burst: 1 });
        assert_eq!(gate.pass(&clock, LONG).await, Ok(()));
        assert_eq!(gate.pass(&clock, millis(50)).await, Err(millis(100)));
        let waiting = gate.pass(&clock, LONG);
        let step = async {
            while clock.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
            clock.advance(millis(100));
        };
        assert_eq!(tokio::join!(waiting, step).0, Ok(()));
        gate.hold(&clock, LONG);
        assert_eq!(gate.pass(&clock, millis(1)).await, Err(MAX_RETRY_AFTER));
    }

    proptest! {
        #[test]
        fn any_history_of_an_open_circuit_has_one_probe_at_a_time_and_bounded_pauses(
            steps in prop::collection::vec((0_u64..3000, 0.0..1.0, 0_usize..4), 1..200),
        ) {
            let (mut circuit, mut now, mut out) = (Circuit::default(), LONG, Vec::new());
            for (step, fraction, what) in steps {
                now += millis(step);
                let open = circuit.is_open();
                match circuit.ask(now) {
                    Ok(leave) => out.push((leave, open)),
                    Err(wait) => prop_assert!(open && wait <= LONGEST_PAUSE),
                }
                let probes = out.iter().filter(|(leave, probe)| *probe && leave.openings == circuit.openings);
                prop_assert!(probes.count() <= 1);
                if what > 0 && !out.is_empty() {
                    let (leave, _) = out.remove(what % out.len());
                    match what {
                        1 => circuit.withdrawn(leave, now),
                        _ => circuit.failed(leave, now, None, fraction),
                    }
                }
                prop_assert!(circuit.ready_at().is_none_or(|at| at <= now + LONGEST_PAUSE));
            }
        }

        #[test]
        fn no_window_ever_sees_more_than_its_burst_and_its_rate(
            burst in 1_u32..20, interval in 1_u64..500, steps in prop::collection::vec(0_u64..300, 1..80),
        ) {
            let mut bucket = TokenBucket::new(Rate { interval: millis(interval), burst });
            let mut now = LONG;
            let mut used = Vec::new();
            for step in steps {
                now += millis(step);
                used.push(now + bucket.take(now, LONG).unwrap());
            }
            for (i, from) in used.iter().enumerate() {
                for (n, until) in used.iter().enumerate().skip(i) {
                    let allowed = u128::from(burst) + (*until - *from).as_millis() / u128::from(interval);
                    prop_assert!((n - i + 1) as u128 <= allowed);
                }
            }
        }

        #[test]
        fn backoff_never_waits_past_the_time_that_is_left(
            fraction in 0.0..1.0, base in 1_u64..5000, cap in 1_u64..50_000, told in 0_u64..9000, left in 0_u64..20_000,
        ) {
            let mut retries = Retries::new(millis(base), millis(cap), 9);
            while let Some(wait) = retries.next(fraction, Some(millis(told)), millis(left)) {
                prop_assert!(wait < millis(left) && wait >= millis(told) && wait <= millis(cap.max(told)));
            }
        }
    }
}
