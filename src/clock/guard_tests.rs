use proptest::prelude::*;

use super::*;
use crate::clock::{Deadline, ManualClock};

const START: Timestamp = Timestamp::from_secs(1_795_452_513);
const SECOND: Duration = Duration::from_secs(1);

struct Machine {
    clock: ManualClock,
    state: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { clock: ManualClock::at(START), state: tempfile::tempdir().unwrap() }
    }

    fn start(&self, boot_id: &str) -> Arc<TrustedClock> {
        TrustedClock::start_in(Arc::new(self.clock.clone()), self.state.path(), boot_id.into()).unwrap()
    }

    fn ahead(&self, by: Duration) {
        self.clock.set_wall(self.clock.now() + by);
    }

    fn back(&self, by: Duration) {
        self.clock.set_wall(self.clock.now() - by);
    }
}

fn kind(clock: &TrustedClock) -> Option<&'static str> {
    clock.trusted().err().map(|distrust| distrust.kind())
}

#[test]
fn trusts_an_untouched_clock_also_after_suspend() {
    let machine = Machine::new();
    let clock = machine.start("a");
    // On suspend both clocks go on, and we see nothing of it but the time that has passed.
    machine.clock.advance(Duration::from_secs(30 * 24 * 3600));
    assert_eq!((clock.trusted(), clock.now(), clock.earliest()), (Ok(()), machine.clock.now(), machine.clock.now()));
    assert_eq!(clock.observe(), None);
}

#[test]
fn doubts_a_clock_set_back_and_time_goes_on() {
    let machine = Machine::new();
    let clock = machine.start("a");
    machine.back(Duration::from_secs(3600));
    assert_eq!(kind(&clock), Some("jumped"));
    assert!(matches!(clock.observe(), Some(TrustChange::Lost(_))));
    assert_eq!(clock.observe(), None, "told once");
    machine.clock.advance(SECOND);
    assert_eq!(clock.now(), START + SECOND);
    // Set right again, it is trusted again.
    machine.ahead(Duration::from_secs(3600));
    assert_eq!(clock.observe(), Some(TrustChange::Regained));
}

#[test]
fn doubts_a_clock_set_forward_and_expires_what_it_passed() {
    let machine = Machine::new();
    let clock = machine.start("a");
    machine.ahead(Duration::from_secs(3600));
    assert_eq!(kind(&clock), Some("jumped"));
    assert_eq!(clock.now(), START + Duration::from_secs(3600));
    assert_eq!(clock.earliest(), START);
}

#[test]
fn a_small_correction_is_followed_slowly_and_trusted_meanwhile() {
    for forward in [true, false] {
        let machine = Machine::new();
        let clock = machine.start("a");
        if forward {
            machine.ahead(20 * SECOND)
        } else {
            machine.back(20 * SECOND)
        }
        assert_eq!(clock.now().since(clock.earliest()), 20 * SECOND);
        for _ in 0..10 {
            machine.clock.advance(2000 * SECOND);
            assert_eq!(clock.observe(), None);
        }
        assert_eq!(clock.now().since(clock.earliest()), 10 * SECOND);
        for _ in 0..11 {
            machine.clock.advance(2000 * SECOND);
            clock.observe();
        }
        assert_eq!(clock.now(), machine.clock.now());
        assert_eq!(clock.earliest(), machine.clock.now());
    }
}

#[test]
fn trusts_a_jump_once_a_fresh_signed_time_confirms_it() {
    let machine = Machine::new();
    let clock = machine.start("a");
    // A frozen machine: the world went on for an hour.
    machine.ahead(Duration::from_secs(3600));
    clock.witness(START, SECOND);
    assert!(clock.trusted().is_err(), "what was signed says that the clock is wrong");
    clock.witness(machine.clock.now(), SECOND);
    assert_eq!((clock.trusted(), clock.earliest()), (Ok(()), machine.clock.now()));
}

#[test]
fn the_first_signed_time_detects_a_clock_that_was_always_wrong() {
    for wrong in [START + Duration::from_secs(60), START - Duration::from_secs(60)] {
        let machine = Machine::new();
        machine.clock.set_wall(wrong);
        let clock = machine.start("a");
        assert_eq!(clock.trusted(), Ok(()));
        clock.witness(START, SECOND);
        assert!(clock.trusted().is_err());
        machine.clock.set_wall(START);
        assert!(clock.trusted().is_err(), "what it says alone is not enough");
        clock.witness(START, SECOND);
        assert_eq!(clock.trusted(), Ok(()));
    }
}

#[test]
fn keeps_the_high_water_mark_across_reboots_until_an_operator_resets_it() {
    let machine = Machine::new();
    let clock = machine.start("a");
    clock.witness(START, SECOND);
    clock.save().unwrap();
    machine.back(Duration::from_secs(3600));
    for boot_id in ["a", "b", ""] {
        let clock = machine.start(boot_id);
        assert!(clock.trusted().is_err(), "{boot_id}");
        assert!(clock.now() >= START, "{boot_id}");
    }
    assert_eq!(kind(&machine.start("b")), Some("behind"));
    let clock = machine.start("b");
    clock.reset();
    assert_eq!((clock.trusted(), clock.now()), (Ok(()), machine.clock.now()));
    clock.save().unwrap();
    assert_eq!(machine.start("b").trusted(), Ok(()), "the reset by the operator is remembered");
}

#[test]
fn only_signed_time_raises_the_high_water_mark() {
    let machine = Machine::new();
    let clock = machine.start("a");
    clock.witness(START, SECOND);
    machine.ahead(Duration::from_secs(365 * 24 * 3600));
    clock.observe();
    clock.save().unwrap();
    machine.clock.set_wall(START);
    assert_eq!(machine.start("b").trusted(), Ok(()));
}

#[test]
fn a_restart_hides_no_jump_within_one_boot() {
    let machine = Machine::new();
    machine.start("a").save().unwrap();
    machine.clock.advance(100 * SECOND);
    machine.back(50 * SECOND);
    assert_eq!(kind(&machine.start("a")), Some("jumped"));
    // Another boot has another pair; only the high-water mark could tell.
    assert_eq!(machine.start("b").trusted(), Ok(()));
}

#[test]
fn stored_state_is_private_and_damage_is_an_error() {
    use std::os::unix::fs::MetadataExt as _;
    let machine = Machine::new();
    machine.start("a").save().unwrap();
    let path = machine.state.path().join(FILE);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    for bad in ["", "{}", "{\"high_water\":\"soon\"}"] {
        fs::write(&path, bad).unwrap();
        let error = TrustedClock::start_in(Arc::new(machine.clock.clone()), machine.state.path(), "a".into());
        assert!(error.unwrap_err().to_string().contains(FILE));
    }
}

/// What may happen to a machine's clocks.
#[derive(Debug, Clone)]
enum Event {
    /// Time passes, awake or suspended.
    Advance(u64),
    /// The wall clock is set this far from where it is, in milliseconds.
    Set(i64),
    /// The machine is frozen: the world goes on, the boot clock does not.
    Freeze(u64),
    /// The trust domain signs the true time.
    Witness,
    /// The second's look.
    Observe,
    /// The sidecar starts again.
    Restart,
    /// The machine boots again, and its clock shows what it showed.
    Boot,
}

fn event() -> impl Strategy<Value = Event> {
    let set = prop_oneof![-29_000..29_000i64, -40_000..40_000i64, -100_000_000..100_000_000i64, Just(315_360_000_000)];
    prop_oneof![
        5 => (0..400_000u64).prop_map(Event::Advance),
        4 => set.prop_map(Event::Set),
        1 => (0..100_000u64).prop_map(Event::Freeze),
        2 => Just(Event::Witness),
        3 => Just(Event::Observe),
        1 => Just(Event::Restart),
        1 => Just(Event::Boot),
    ]
}

/// An end that was set while the clock was trusted.
struct Life {
    deadline: Deadline,
    /// Where the boot clock and the raw wall clock stood, and how long it may last.
    boot: Duration,
    wall: Timestamp,
    life: Duration,
}

proptest! {
    #[test]
    fn no_schedule_of_the_clocks_lengthens_a_lifetime(events in prop::collection::vec(event(), 1..60), life in 1..1000u64) {
        let machine = Machine::new();
        let life = Duration::from_secs(life);
        let mut truth = START;
        let (mut boots, mut lives) = (0, Vec::<Life>::new());
        let mut clock = machine.start("boot-0");
        let mut high_water = Timestamp::default();
        for event in events {
            match event {
                Event::Advance(millis) => {
                    machine.clock.advance(Duration::from_millis(millis));
                    truth = truth + Duration::from_millis(millis);
                }
                Event::Set(by) if by >= 0 => machine.ahead(Duration::from_millis(by.unsigned_abs())),
                Event::Set(by) => machine.back(Duration::from_millis(by.unsigned_abs())),
                Event::Freeze(millis) => truth = truth + Duration::from_millis(millis),
                Event::Witness => {
                    clock.witness(truth, Duration::ZERO);
                    high_water = high_water.max(truth);
                }
                Event::Observe => drop(clock.observe()),
                Event::Restart | Event::Boot => {
                    clock.save().unwrap();
                    boots += u32::from(matches!(event, Event::Boot));
                    clock = machine.start(&format!("boot-{boots}"));
                    // As for tasks: fixed anew from what the journal has, the wall's end.
                    let (now, boot) = (clock.now(), clock.boot());
                    for kept in &mut lives {
                        kept.deadline = Deadline::fix(kept.deadline.wall(), now, boot);
                    }
                    if matches!(event, Event::Boot) {
                        // What a boot forgets is how long the machine was off: only the wall's end still holds.
                        lives.iter_mut().for_each(|kept| kept.life = Duration::MAX);
                    }
                }
            }
            // The file keeps the mark in steps of a minute.
            prop_assert!(clock.now() + SAVE_STEP >= high_water);
            let (now, boot, wall) = (clock.now(), clock.boot(), machine.clock.now());
            prop_assert!(clock.earliest() <= wall && wall <= now);
            for kept in lives.iter().filter(|kept| !kept.deadline.has_come(now, boot)) {
                prop_assert!(wall < kept.deadline.wall(), "alive past its end on the wall clock");
                prop_assert!(boot - kept.boot < kept.life, "alive past its end on the boot clock");
                prop_assert!(kept.deadline.wall() <= kept.wall + life, "its end is later than the clock said");
            }
            if clock.trusted().is_ok() {
                let end = clock.earliest() + life;
                lives.push(Life { deadline: Deadline::fix(end, now, boot), boot, wall, life });
                // What is trusted is not far from itself.
                prop_assert!(now.since(clock.earliest()) <= 2 * TOLERANCE);
            }
        }
    }

    #[test]
    fn parsing_arbitrary_bytes_as_stored_state_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), bytes).unwrap();
        let _ = TrustedClock::start_in(Arc::new(ManualClock::at(START)), folder.path(), "a".into());
    }
}
