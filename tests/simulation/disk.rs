//! A disk in memory, under the real journal: what was not synced may be lost, whole or in part, when the machine stops.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use redb::StorageBackend;

use crate::random::Random;

/// What a disk writes at once; anything larger may be torn.
const SECTOR: usize = 512;

/// How the next use of the disk fails. It stays so until the machine is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No room: what needs any fails.
    Full,
    /// `EIO` on each write.
    Write,
    /// `EIO` on each sync; whether what it should have synced is on the disk, nobody knows.
    Sync,
}

/// How the sidecar stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// `kill -9`: what was written stays with the system.
    Process,
    /// The plug: of what was not synced any sector may be there or not.
    Machine,
}

#[derive(Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Default)]
struct State {
    /// What a sync promised.
    durable: Vec<u8>,
    /// What the process sees.
    seen: Vec<u8>,
    /// What no sync has promised, in order.
    loose: Vec<Op>,
    fault: Option<Fault>,
    /// After so many more operations that change something the machine is gone.
    left: Option<usize>,
    /// The machine is gone: nothing reaches the disk any more.
    dead: bool,
    /// Where it was written to, while that is watched.
    watched: Option<Vec<Range<usize>>>,
    /// How many backends are open.
    open: usize,
}

/// The disk. It outlives every sidecar.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    state: Mutex<State>,
    closed: Condvar,
}

impl Disk {
    /// A disk with these bytes on it.
    pub(crate) fn holding(image: Vec<u8>) -> Arc<Self> {
        let state = State { durable: image.clone(), seen: image, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), closed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What is on it now, synced or not.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.state().seen.clone()
    }

    /// Notes from now on where it is written to.
    pub(crate) fn watch(&self) {
        self.state().watched = Some(Vec::new());
    }

    /// Where it was written to since.
    pub(crate) fn watched(&self) -> Vec<Range<usize>> {
        self.state().watched.take().unwrap_or_default()
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// Lets the machine stop in the middle of what is written next, after `operations`.
    pub(crate) fn stop_after(&self, operations: usize) {
        self.state().left = Some(operations);
    }

    /// Whether the machine has stopped by itself.
    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// From now on nothing reaches the disk.
    pub(crate) fn kill(&self) {
        self.state().dead = true;
    }

    /// Waits until nobody has it open, and is then as the next start finds it.
    pub(crate) fn restart(&self, stop: Option<Stop>, random: &mut Random) {
        let mut state = self.state();
        while state.open > 0 {
            state = self.closed.wait(state).unwrap();
        }
        if stop == Some(Stop::Machine) {
            let loose = std::mem::take(&mut state.loose);
            let mut image = std::mem::take(&mut state.durable);
            for op in loose {
                match op {
                    Op::Length(length) if random.chance(50) => resize(&mut image, length),
                    Op::Length(_) => {}
                    Op::Write(offset, bytes) => tear(&mut image, offset, &bytes, random),
                }
            }
            state.seen = image;
        }
        // What the system still holds it writes at last; what a failed sync left in doubt stays as it was seen.
        state.durable = state.seen.clone();
        state.loose.clear();
        (state.fault, state.left, state.dead) = (None, None, false);
    }
}

fn resize(image: &mut Vec<u8>, length: u64) {
    image.resize(usize::try_from(length).unwrap(), 0);
}

fn put(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let offset = usize::try_from(offset).unwrap();
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(bytes);
}

/// Each sector of a write is there or not.
fn tear(image: &mut Vec<u8>, offset: u64, bytes: &[u8], random: &mut Random) {
    let likely = *random.pick(&[0, 20, 50, 80, 100]);
    let mut at = 0;
    while at < bytes.len() {
        let place = offset + at as u64;
        let room = SECTOR - usize::try_from(place % SECTOR as u64).unwrap();
        let end = (at + room).min(bytes.len());
        if random.chance(likely) {
            put(image, place, &bytes[at..end]);
        }
        at = end;
    }
}

/// The disk as the journal's store sees it.
#[derive(Debug)]
pub(crate) struct Backend(Arc<Disk>);

impl Backend {
    pub(crate) fn on(disk: &Arc<Disk>) -> Self {
        disk.state().open += 1;
        Self(Arc::clone(disk))
    }

    /// The state, if an operation may change it.
    fn change(&self, what: Fault) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.0.state();
        if state.left == Some(0) {
            state.dead = true;
        }
        if state.dead {
            return Err(io::Error::other("the machine is gone"));
        }
        state.left = state.left.map(|left| left - 1);
        match state.fault {
            Some(Fault::Full) if what == Fault::Full => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Write) if what != Fault::Sync => Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Sync) if what == Fault::Sync => Err(io::Error::from_raw_os_error(5)),
            _ => Ok(state),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.0.state().open -= 1;
        self.0.closed.notify_all();
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.state().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.state();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = offset.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(state.seen.get(offset..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let grows = length > self.0.state().seen.len() as u64;
        let mut state = self.change(if grows { Fault::Full } else { Fault::Write })?;
        resize(&mut state.seen, length);
        state.loose.push(Op::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.change(Fault::Sync)?;
        for op in std::mem::take(&mut state.loose) {
            match op {
                Op::Length(length) => resize(&mut state.durable, length),
                Op::Write(offset, bytes) => put(&mut state.durable, offset, &bytes),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // A copy-on-write store puts new pages in room that a sparse file may not have.
        let mut state = self.change(if offset == 0 { Fault::Write } else { Fault::Full })?;
        put(&mut state.seen, offset, data);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        if let Some(watched) = &mut state.watched {
            watched.push(start..start + data.len());
        }
        state.loose.push(Op::Write(offset, data.to_vec()));
        Ok(())
    }
}
