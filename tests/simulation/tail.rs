//! What the journal wrote last, cut off and flipped: an opening says that it is damaged, or finds everything.
//!
//! `TAIL_STEP=1 cargo test --profile simulation --features simulation --test simulation tail` tries all eight bits of every byte, and every
//! length; without it one in [`STEP`] of them.

use std::collections::BTreeSet;

use sidemint::clock::Timestamp;
use sidemint::exchange::Revocation;
use sidemint::identity::Proof;
use sidemint::identity::task_token;
use sidemint::journal::{Change, DiskJournal, Journal as _, JournalError};
use sidemint::lease::{LeaseFacts, LeaseId, LeaseRecord, LeaseState};
use sidemint::policy::{Ask, PolicyVersion, Provider, Tier};
use sidemint::task::{TaskId, TaskRecord};

use crate::disk::{Backend, Disk, Stop};
use crate::history::EMPTY;
use crate::journal::Content;
use crate::random::Random;

/// One in so many bits and lengths, without `TAIL_STEP`. A prime, so that each bit of a byte and each place in a page has its turn.
const STEP: usize = 193;
/// The beginning of the store's header, which no checksum covers: each bit of it is tried always.
const BARE: usize = 64;

fn task(number: u64) -> TaskRecord {
    let (_, token) = task_token::generate().unwrap();
    let begun_at = Timestamp::from_secs(1_795_435_200 + number);
    TaskRecord {
        id: TaskId::generate().unwrap(),
        owner: "spiffe://example.org/sa/report".parse().unwrap(),
        proof: Proof::JwtSvid,
        proved_until: begun_at,
        ask: Ask {
            scope: "archive".parse().unwrap(),
            params: Default::default(),
            reason: None,
            approval: None,
            ttl: None,
        },
        label: Some("x".repeat(100)),
        parent: None,
        hold: false,
        token,
        idempotency: None,
        tier: Tier::Baseline,
        policy_version: PolicyVersion("dir-0".into()),
        begun_at,
        deadline: begun_at,
        ending: None,
    }
}

fn lease(task: &TaskRecord, state: LeaseState) -> LeaseRecord {
    LeaseRecord::of(LeaseFacts {
        id: LeaseId::generate().unwrap(),
        task: task.id.clone(),
        provider: Provider::Aws,
        grant: "archive-aws".parse().unwrap(),
        session_name: format!("report.archive.{}", task.id).into(),
        state,
        revocation: Revocation::Expire,
        requested: false,
        opened_at: task.begun_at,
        usable_until: task.begun_at,
        open_ended: false,
        place: None,
        upstream: None,
    })
}

/// A journal that was written a few times: its bytes, what it holds, and where the last commit went.
struct Written {
    image: Vec<u8>,
    content: Content,
    tail: BTreeSet<usize>,
}

/// Writes it, and lets the sidecar stop in order, or be killed.
fn written(stop: Option<Stop>) -> Written {
    let disk = Disk::holding(EMPTY.clone());
    let (journal, _) = DiskJournal::on(Backend::on(&disk), "written").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for number in 0..24 {
        let task = task(number);
        let lease = lease(&task, LeaseState::Intent);
        runtime.block_on(journal.write(vec![Change::Task(Box::new(task.clone()))])).unwrap();
        disk.watch();
        runtime.block_on(journal.write(vec![Change::Lease(Box::new(lease))])).unwrap();
    }
    if stop.is_some() {
        disk.kill();
    }
    drop(journal);
    disk.restart(stop, &mut Random::new(1));
    let tail = disk.watched().into_iter().flatten().collect();
    let image = disk.image();
    let content = open(image.clone()).expect("what is whole opens");
    assert_eq!((content.tasks.len(), content.leases.len()), (24, 24));
    Written { image, content, tail }
}

fn open(image: Vec<u8>) -> Result<Content, JournalError> {
    let disk = Disk::holding(image);
    let opened = DiskJournal::on(Backend::on(&disk), "damaged");
    let content = opened.map(|(_, recovered)| Content::of(&recovered));
    // Until its writer has let go of it, so that threads do not pile up.
    disk.restart(None, &mut Random::new(1));
    content
}

/// Says what came of a damage: an error that names the journal, or everything.
fn harmless(written: &Written, damaged: Vec<u8>, what: &str) -> bool {
    match open(damaged) {
        Ok(content) => {
            assert!(
                content == written.content,
                "{what}: {} tasks, {} leases",
                content.tasks.len(),
                content.leases.len()
            );
            true
        }
        Err(error @ JournalError::Unreadable { .. }) => {
            assert!(error.to_string().contains("cannot be read"), "{what}: {error}");
            false
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

fn step() -> usize {
    std::env::var("TAIL_STEP").map_or(STEP, |text| text.parse().expect("TAIL_STEP is a number"))
}

fn flip_the_tail(stop: Option<Stop>) {
    let written = written(stop);
    let bits = |place: usize| (0..8).map(move |bit| (place, bit));
    let bare = (0..BARE).flat_map(bits);
    let rest = written.tail.iter().copied().filter(|place| *place >= BARE).flat_map(bits).step_by(step());
    let (mut harmless_ones, mut flips) = (0, 0);
    for (place, bit) in bare.chain(rest) {
        let mut damaged = written.image.clone();
        damaged[place] ^= 1 << bit;
        harmless_ones += usize::from(harmless(&written, damaged, &format!("bit {bit} of byte {place}")));
        flips += 1;
    }
    println!(
        "{flips} of {} bits of the last commit flipped, stopped by {stop:?}: {harmless_ones} without effect, the rest told",
        written.tail.len() * 8
    );
}

#[test]
fn a_flipped_bit_in_the_tail_of_a_closed_journal_is_reported_or_harmless() {
    flip_the_tail(None);
}

#[test]
fn a_flipped_bit_in_the_tail_of_a_killed_journal_is_reported_or_harmless() {
    flip_the_tail(Some(Stop::Process));
}

#[test]
fn a_journal_that_is_cut_off_anywhere_is_reported_or_harmless() {
    for stop in [None, Some(Stop::Process)] {
        let written = written(stop);
        let length = written.image.len();
        // Every length near the ends of what was written last, and some everywhere.
        let ends = written.tail.iter().copied().filter(|place| !written.tail.contains(&(place + 1)));
        let near = ends.flat_map(|end| [end.saturating_sub(1), end, end + 1]);
        let lengths = near.chain((0..length).step_by(step())).filter(|keep| *keep < length);
        let lengths: BTreeSet<_> = lengths.collect();
        let mut harmless_ones = 0;
        for keep in &lengths {
            let cut = written.image[..*keep].to_vec();
            harmless_ones += usize::from(harmless(&written, cut, &format!("the first {keep} of {length}")));
        }
        println!(
            "cut off at {} of {length} lengths, stopped by {stop:?}: {harmless_ones} without effect, the rest told",
            lengths.len()
        );
    }
}

/// What the journal is spared by verifying at each open: run with `--ignored` it tells how the bare store takes the same.
#[test]
#[ignore = "tells of the store alone, and is loud"]
fn the_bare_store_panics_where_the_journal_reports() {
    let written = written(None);
    let (mut panics, mut random) = (0, Random::new(7));
    let places: Vec<_> = written.tail.iter().copied().step_by(step()).collect();
    for place in &places {
        let mut damaged = written.image.clone();
        damaged[*place] ^= 1 << random.below(8);
        let disk = Disk::holding(damaged);
        let opened =
            std::panic::catch_unwind(|| drop(redb::Database::builder().create_with_backend(Backend::on(&disk))));
        panics += usize::from(opened.is_err());
    }
    println!("of {} flips the bare store panics at {panics}", places.len());
}
