//! A signed repository as a source of policy: refreshed, verified, remembered, kept.
//!
//! A refresh costs one request while nothing changes (the timestamp, by its tag), and a second once an hour (whether there is a
//! new root). What changed is verified as a whole ([`trusted`](super::trusted)), then kept, then remembered, and only then
//! given on: a version that cannot be remembered is not adopted. Whatever fails, the version in force stays.
//!
//! It starts offline: what is kept is verified again, every byte of it, from the root that the deployment ships through
//! the chain of roots that were kept. Whether a role has expired is not asked there; whoever decides asks it, of the
//! [`Standing`]. A version that comes new must not have ended (a frozen repository would look like that).
//!
//! | state directory | what follows |
//! |---|---|
//! | never begun | nothing is trusted, until `sidemint policy trust` or a `policy.minimum_version` begins it |
//! | begun, and what was seen is lost | an alarm; nothing is trusted |
//! | of another root | nothing is trusted |
//! | older than what was seen, damaged, or empty of versions | told; the repository must answer |
//! | not writable | what is kept is used; nothing new is adopted but a kill list |
//! | of before new keys came | what was in force is used, until the repository answers |
//! | emptied while it runs | the version in force is fetched and kept again at the next heartbeat |
//!
//! Of a version that cannot be adopted, whatever that is for, the kill list is taken all the same where the keys of now
//! lead to it and it is newer than what was seen ([`kill_list`]): a lapsed root or a file that is lost must not hold up a
//! kill. It is kept and remembered beside what is in force, and stops more than that does, never less.
//!
//! Beside the newest version, that which was put into force last is kept, and remembered to the byte: where the files of
//! the newest turn out to be bad, also after a restart, it is the one exception from "never older" ([`InUse`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::super::standing::{RoleName, Standing};
use super::super::{PolicyVersion, ScopeId};
use super::fault::{Fault, FaultKind};
use super::fetch::{Answer, Fetch, FetchError, Tag};
use super::high_water::{HighWater, InUse, Mark, Marks};
use super::store::{Kept, Remembered, Store};
use super::trusted::{
    INCIDENT, Known, MAX_TIMESTAMP, Next, Pin, Roots, TIMESTAMP, Top, Verified, complete, kill_list, off, version_of,
};
use super::{Digest, Fetched, PolicyFiles, PolicySource, PolicySourceError, Previous, Use};
use crate::clock::SharedClock;

/// How often a new root is looked for while the timestamp does not change.
const PROBE: Duration = Duration::from_secs(3600);
/// The most new roots that one refresh takes.
const MAX_ROTATIONS: usize = 32;

/// What a signed source needs to know.
#[derive(Debug, Clone)]
pub struct SignedSettings {
    /// The trust anchor: a `root.json` that the deployment ships.
    pub anchor: Bytes,
    /// The state directory, the folder above `policy/`.
    pub state: PathBuf,
    /// The least snapshot version to trust. Where it is given, an empty state directory may be begun without asking.
    pub minimum_version: Option<u64>,
    /// The scopes to read; empty for all.
    pub scopes: BTreeSet<ScopeId>,
}

/// How the refreshes went, for status: what is odd and harmless, and what is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignedStatus {
    /// The newest root's version.
    pub root: u64,
    /// What the last refresh failed by.
    pub fault: Option<Fault>,
    /// What is where the next root would be, though it is no root.
    pub odd: Option<String>,
    /// What of the remembered state was damaged and was repaired.
    pub repaired: Option<String>,
    /// Why versions that are kept could not be used.
    pub cache: Vec<String>,
    /// Why it could not be remembered which version is in use.
    pub unrecorded: Option<String>,
}

impl SignedStatus {
    /// The same in words, one line each; empty when there is nothing to tell.
    pub fn notes(&self) -> Vec<String> {
        let odd = self.odd.as_ref().map(|odd| format!("the repository answers for a root that is invalid: {odd}"));
        let repaired = self.repaired.as_ref().map(|why| format!("policy state was damaged and is repaired: {why}"));
        let cache = self.cache.iter().map(|why| format!("a kept policy version cannot be used: {why}"));
        let unrecorded = self.unrecorded.as_ref().map(|why| {
            format!("it cannot be remembered which policy is in force, for a restart under one that is refused: {why}")
        });
        odd.into_iter().chain(repaired).chain(cache).chain(unrecorded).collect()
    }
}

/// A signed repository. Share it as `Arc<dyn PolicySource>`.
#[derive(Debug)]
pub struct SignedSource {
    settings: SignedSettings,
    anchor: Roots,
    fetch: Arc<dyn Fetch>,
    clock: SharedClock,
    state: tokio::sync::Mutex<Option<State>>,
    status: Mutex<SignedStatus>,
}

#[derive(Debug)]
struct State {
    store: Arc<Store>,
    roots: Roots,
    held: Option<HeldVersion>,
    /// The files of `held`, until somebody took them.
    pending: Option<PolicyFiles>,
    /// The tag of `held`'s timestamp.
    tag: Option<Tag>,
    /// When a new root was looked for, since boot.
    probed: Option<Duration>,
    /// What refreshes fetched that could not finish.
    partial: BTreeMap<Digest, Bytes>,
    /// The newest kill list that was verified by itself, until a version with that one or a newer one is in use.
    kill: Option<Arc<Verified>>,
}

impl State {
    /// What must not be older again, with the kill list that was taken by itself.
    fn marks(&self) -> Marks {
        let Some(HighWater { mut marks, kill, .. }) = self.store.high_water() else { return Marks::default() };
        let kept = kill.as_ref().and_then(|kill| kill.roles.get(INCIDENT));
        let taken = self.kill.as_ref().and_then(|kill| kill.roles.get(INCIDENT)).map(|(mark, _)| mark);
        let seen = marks.roles.get(INCIDENT);
        if let Some(newest) = kept.into_iter().chain(taken).chain(seen).max_by_key(|mark| mark.version).copied() {
            marks.roles.insert(INCIDENT.to_owned(), newest);
        }
        marks
    }
}

/// The version that is verified, without its files.
#[derive(Debug, Clone)]
struct HeldVersion {
    version: PolicyVersion,
    root: Mark,
    timestamp: (Mark, Bytes),
    snapshot: Mark,
    standing: Standing,
    roles: BTreeMap<String, Mark>,
}

impl HeldVersion {
    fn of(verified: &Verified) -> Self {
        Self {
            version: verified.files.version.clone(),
            root: verified.root,
            timestamp: verified.timestamp.clone(),
            snapshot: verified.snapshot.0,
            standing: verified.standing.clone(),
            roles: verified.marks(&Marks::default()).roles,
        }
    }

    fn in_use(&self) -> InUse {
        let (root, timestamp, snapshot) = (self.root, self.timestamp.0, self.snapshot);
        InUse { root, timestamp, snapshot, roles: self.roles.clone() }
    }

    fn is_pinned_by(&self, pin: Pin) -> bool {
        pin.version == self.snapshot.version && pin.digest.is_none_or(|digest| digest == self.snapshot.digest)
    }
}

/// What a refresh found.
enum Refreshed {
    Unchanged,
    Heartbeat,
    New,
}

/// A kept version as a place to fetch from.
#[derive(Debug)]
struct KeptFetch(BTreeMap<String, Bytes>);

#[async_trait]
impl Fetch for KeptFetch {
    async fn get(&self, name: &str, _: u64, _: Option<&Tag>) -> Result<Answer, FetchError> {
        let body = |bytes: &Bytes| Answer::Body { bytes: bytes.clone(), tag: None };
        Ok(self.0.get(name).map_or(Answer::Absent, body))
    }
}

/// What is trusted, before or after it is: for whoever is asked.
#[derive(Debug)]
pub struct Examined {
    /// The chain of roots up to the newest.
    pub roots: Roots,
    /// The newest version, verified as a sidecar would.
    pub verified: Verified,
}

#[async_trait]
impl PolicySource for SignedSource {
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        let mut guard = self.state.lock().await;
        let state = match &mut *guard {
            Some(state) => state,
            none => none.insert(self.start(false).await.inspect_err(|fault| self.tell(Some(fault)))?),
        };
        let refreshed = self.refresh(state).await;
        self.tell(refreshed.as_ref().err());
        match refreshed {
            Ok(refreshed) => Ok(self.answer(state, seen, refreshed).await?),
            // What is kept is better than nothing, and the next refresh tells the fault again.
            Err(fault) => state.pending.take().map(Fetched::New).ok_or_else(|| fault.into()),
        }
    }

    async fn used(&self, version: &PolicyVersion, use_as: Use) {
        let mut guard = self.state.lock().await;
        let Some(state) = &mut *guard else { return };
        let done = if let Some(held) = state.held.as_ref().filter(|held| held.version == *version) {
            let done = remember_use(&state.store, held.in_use(), use_as).await;
            if done.is_ok() {
                state.kill = None;
            }
            done
        } else if let Some(kill) = state.kill.as_ref().filter(|kill| kill.files.version == *version) {
            remember_kill(&state.store, kill).await
        } else {
            return;
        };
        if let Err(fault) = &done {
            tracing::error!(%version, %fault, "it cannot be remembered that this policy version is in use");
        }
        self.lock().unrecorded = done.err().map(|fault| fault.to_string());
    }

    async fn previous(&self) -> Result<Option<Previous>, PolicySourceError> {
        let guard = self.state.lock().await;
        let Some((state, kept)) = guard.as_ref().and_then(|state| Some((state, state.store.high_water()?))) else {
            return Ok(None);
        };
        let Some(in_force) = kept.in_force else { return Ok(None) };
        let files = self.again(state, &in_force).await?.files;
        // Who was stopped stays stopped: without this list, none of it.
        let kill = match &kept.stopping {
            Some(stopping) => Some(self.again(state, stopping).await?.files),
            None => None,
        };
        if kept.kill.is_some() && state.kill.is_none() {
            return Err(Fault::new(FaultKind::Missing, "the kill list that held over it is lost").into());
        }
        Ok(Some(Previous { files, kill }))
    }

    async fn stopping(&self) -> Option<PolicyFiles> {
        let guard = self.state.lock().await;
        guard.as_ref()?.kill.as_ref().map(|kill| kill.files.clone())
    }

    fn signed(&self) -> bool {
        true
    }

    fn retry_after(&self) -> Option<Duration> {
        self.fetch.retry_after()
    }

    fn notes(&self) -> Vec<String> {
        self.status().notes()
    }
}

impl SignedSource {
    /// A source over what `fetch` reaches; nothing is read before the first [`PolicySource::fetch`].
    ///
    /// # Errors
    /// When the trust anchor is no root that its own keys signed.
    pub fn new(settings: SignedSettings, fetch: Arc<dyn Fetch>, clock: SharedClock) -> Result<Self, Fault> {
        let anchor = Roots::anchor(&settings.anchor)?;
        let status = Mutex::new(SignedStatus { root: anchor.mark().version, ..SignedStatus::default() });
        Ok(Self { settings, anchor, fetch, clock, state: tokio::sync::Mutex::default(), status })
    }

    /// How the refreshes went so far.
    pub fn status(&self) -> SignedStatus {
        self.lock().clone()
    }

    /// The trust anchor that the deployment ships, as it was read at start.
    pub fn anchor(&self) -> &Roots {
        &self.anchor
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SignedStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers how a refresh went, and logs what is new about it.
    fn tell(&self, fault: Option<&Fault>) {
        let mut status = self.lock();
        if let Some(fault) = fault.filter(|fault| status.fault.as_ref() != Some(*fault)) {
            match fault.kind() {
                FaultKind::Unreachable => tracing::warn!(%fault, "the policy repository cannot be read"),
                _ => tracing::error!(%fault, "the policy repository is refused"),
            }
        }
        status.fault = fault.cloned();
    }

    /// Reads without writing anything: what would be trusted.
    ///
    /// # Errors
    /// Why it would not be.
    pub async fn examine(&self) -> Result<Examined, Fault> {
        let mut roots = self.anchor.clone();
        for _ in 0..MAX_ROTATIONS {
            match roots.next(&*self.fetch).await? {
                Next::Root { roots: next, .. } => roots = *next,
                Next::Absent | Next::Odd(_) => break,
            }
        }
        let bytes = self.timestamp(None).await?.map(|(bytes, _)| bytes).unwrap_or_default();
        let (marks, judge) = (Marks::default(), Some(self.clock.now()));
        let top = roots.timestamp(bytes, &marks, judge)?;
        let mut known = Known::default();
        let verified = complete(top, &self.fetch, &mut known, &marks, &self.settings.scopes, judge).await?;
        self.minimum(verified.snapshot.0)?;
        Ok(Examined { roots, verified })
    }

    /// Refreshes once and begins to trust what is found: the state directory remembers it from now on.
    ///
    /// # Errors
    /// Why not; nothing is trusted then that was not before.
    pub async fn trust(&self) -> Result<PolicyVersion, Fault> {
        let mut guard = self.state.lock().await;
        let state = guard.insert(self.start(true).await?);
        self.refresh(state).await?;
        let store = Arc::clone(&state.store);
        off(move || store.initialise()).await??;
        let nothing = || Fault::new(FaultKind::Missing, "the repository has no version");
        state.held.as_ref().map(|held| held.version.clone()).ok_or_else(nothing)
    }

    fn minimum(&self, snapshot: Mark) -> Result<(), Fault> {
        match self.settings.minimum_version {
            Some(least) if snapshot.version < least => {
                let message = format!(
                    "snapshot: version {} is offered, and policy.minimum_version is {least}: the repository is behind \
                     what the deployment was made for",
                    snapshot.version
                );
                Err(Fault::new(FaultKind::BelowMinimum, message))
            }
            _ => Ok(()),
        }
    }

    /// Opens the state, follows the chain of roots, and verifies what is kept. `trusting` begins a state that is new.
    async fn start(&self, trusting: bool) -> Result<State, Fault> {
        let place = self.settings.state.clone();
        let (store, remembered) = off(move || {
            let store = Store::open(&place)?;
            let remembered = store.remember()?;
            Ok::<_, Fault>((Arc::new(store), remembered))
        })
        .await??;
        let (begun, high_water, repaired) = match remembered {
            Remembered::Nothing => (false, None, None),
            Remembered::Seen { high_water, repaired, initialised } => (initialised, Some(*high_water), repaired),
        };
        if !begun && !trusting && self.settings.minimum_version.is_none() {
            let message = "nobody said yet that this policy repository is to be trusted here: run `sidemint policy trust`, \
                           or set policy.minimum_version where the state directory does not last";
            return Err(Fault::new(FaultKind::Untrusted, message));
        }
        if let Some(why) = &repaired {
            tracing::error!(%why, "the policy state was damaged; it is repaired from its other copy");
        }
        *self.lock() = SignedStatus { repaired, ..SignedStatus::default() };
        let roots = self.chain(&store, high_water.as_ref()).await?;
        self.lock().root = roots.mark().version;
        let partial = BTreeMap::new();
        let mut state = State { store, roots, held: None, pending: None, tag: None, probed: None, partial, kill: None };
        if let Some(seen) = &high_water {
            match self.load_kill(&mut state, seen.kill.as_ref()).await {
                Ok(()) => {
                    self.load_kept(&mut state).await;
                    self.load_in_force(&mut state).await;
                }
                // Who was stopped stays stopped: without this list, the repository must answer.
                Err(fault) => {
                    tracing::error!(%fault, "the kept kill list cannot be used");
                    self.lock().cache.push(format!("its kill list: {fault}"));
                }
            }
        }
        Ok(state)
    }

    /// Verifies the kill list that is kept by itself, where one is.
    async fn load_kill(&self, state: &mut State, wanted: Option<&InUse>) -> Result<(), Fault> {
        let Some(wanted) = wanted else { return Ok(()) };
        let roots = self.root_of(state, wanted.root).await?;
        let store = Arc::clone(&state.store);
        let kept = off(move || store.read_kill()).await??;
        let (fetch, mut known, timestamp) = opened(kept)?;
        // It may be newer than what is remembered, where that was cut off, and never older.
        let marks = Marks { roles: BTreeMap::new(), ..wanted.marks() };
        let top = roots.timestamp(timestamp, &marks, None)?;
        let verified = kill_list(top, &fetch, &mut known, &marks).await?;
        let verified = verified.filter(|found| {
            let version = |role: &str| found.roles.get(role).map(|(mark, _)| mark.version);
            ["targets", INCIDENT].iter().all(|role| version(role) >= wanted.roles.get(*role).map(|mark| mark.version))
        });
        state.kill = Some(Arc::new(verified.ok_or_else(|| Fault::new(FaultKind::Altered, "is an older one"))?));
        Ok(())
    }

    /// From the trust anchor through the roots that are kept, past the newest that was seen.
    async fn chain(&self, store: &Arc<Store>, seen: Option<&HighWater>) -> Result<Roots, Fault> {
        let mut roots = self.anchor.clone();
        if let Some(seen) = seen {
            if seen.root.version < roots.mark().version {
                self.link(store, seen).await?;
            }
            self.same_root(roots.mark(), seen.root)?;
        }
        loop {
            let (kept, version) = (Arc::clone(store), roots.mark().version.saturating_add(1));
            let Some(bytes) = off(move || kept.root(version)).await? else { return Ok(roots) };
            match roots.follow(&bytes) {
                Ok(Next::Root { roots: next, bytes, replaced }) => {
                    roots = self.adopt_root(store, *next, bytes, replaced).await?;
                }
                Ok(Next::Absent | Next::Odd(_)) => {
                    self.lock().cache.push(format!("root {version} is damaged"));
                    return Ok(roots);
                }
                Err(fault) => {
                    self.lock().cache.push(format!("root {version}: {fault}"));
                    return Ok(roots);
                }
            }
        }
    }

    /// Two roots of one version are one root, or of two fleets.
    fn same_root(&self, ours: Mark, seen: Mark) -> Result<(), Fault> {
        if ours.version != seen.version || ours.digest == seen.digest {
            return Ok(());
        }
        let message = format!(
            "root {} is not the one that was trusted here before: policy.root or state.directory is of another fleet. If \
             the other is meant, empty {}/policy and run `sidemint policy trust`",
            ours.version,
            self.settings.state.display()
        );
        Err(Fault::new(FaultKind::OtherFleet, message))
    }

    /// Follows the roots from the newest that was seen up to a trust anchor that is newer: it must be of the same chain.
    async fn link(&self, store: &Arc<Store>, seen: &HighWater) -> Result<(), Fault> {
        let anchor = self.anchor.mark();
        let broken = |why: &str| {
            let message = format!(
                "policy.root is root {}, and does not follow from root {}, which was trusted here before ({why}): it is of \
                 another fleet, or publish the roots between. If it is meant, empty {}/policy and run `sidemint policy \
                 trust`",
                anchor.version,
                seen.root.version,
                self.settings.state.display()
            );
            Fault::new(FaultKind::OtherFleet, message)
        };
        let first = self.root(store, seen.root.version).await?.filter(|bytes| Digest::of(bytes) == seen.root.digest);
        let first = first.ok_or_else(|| broken("it is gone"))?;
        let mut roots = Roots::anchor(&first)?;
        let (mut any, mut between) = (false, Vec::new());
        while roots.mark().version < anchor.version {
            let next = roots.mark().version.saturating_add(1);
            let bytes = match next == anchor.version {
                true => self.settings.anchor.clone(),
                false => self.root(store, next).await?.ok_or_else(|| broken(&format!("root {next} is gone")))?,
            };
            match roots.follow(&bytes) {
                Ok(Next::Root { roots: followed, replaced, bytes }) => {
                    any |= replaced;
                    roots = *followed;
                    between.push((next, bytes));
                }
                Ok(_) => return Err(broken(&format!("root {next} is invalid"))),
                Err(fault) => return Err(broken(fault.message())),
            }
        }
        let (store, bytes) = (Arc::clone(store), self.settings.anchor.clone());
        off(move || {
            for (version, bytes) in between {
                store.keep_root(version, &bytes)?;
            }
            remember_root(&store, anchor, &bytes, any)
        })
        .await?
    }

    /// The root of this version, kept or offered; not verified.
    async fn root(&self, store: &Arc<Store>, version: u64) -> Result<Option<Bytes>, Fault> {
        let kept = Arc::clone(store);
        if let Some(bytes) = off(move || kept.root(version)).await? {
            return Ok(Some(bytes));
        }
        let name = format!("metadata/{}", super::metadata::metadata_name("root", version));
        match self.fetch.get(&name, super::trusted::MAX_ROOT, None).await? {
            Answer::Body { bytes, .. } => Ok(Some(bytes)),
            Answer::Absent | Answer::Unchanged => Ok(None),
        }
    }

    /// Keeps and remembers a root before anything rests on it: once seen, it cannot be hidden again.
    async fn adopt_root(&self, store: &Arc<Store>, roots: Roots, bytes: Bytes, replaced: bool) -> Result<Roots, Fault> {
        let mark = roots.mark();
        if let Some(seen) = store.high_water() {
            self.same_root(mark, seen.root)?;
        }
        let store = Arc::clone(store);
        off(move || remember_root(&store, mark, &bytes, replaced)).await??;
        self.lock().root = mark.version;
        Ok(roots)
    }

    /// Takes the newest version that is kept and can be verified, if any.
    async fn load_kept(&self, state: &mut State) {
        let store = Arc::clone(&state.store);
        let Ok(versions) = off(move || store.versions()).await else { return };
        for version in versions {
            match self.kept(state, &version).await {
                Ok(verified) => {
                    state.held = Some(HeldVersion::of(&verified));
                    state.pending = Some(verified.files);
                    return;
                }
                Err(fault) => {
                    tracing::warn!(%version, %fault, "a kept policy version cannot be used");
                    self.lock().cache.push(format!("{version}: {fault}"));
                }
            }
        }
    }

    /// Where new keys came and no version under them yet: what was in force, under the root of its time.
    async fn load_in_force(&self, state: &mut State) {
        let Some(HighWater { in_force: Some(in_force), stopping, .. }) = state.store.high_water() else { return };
        if state.held.is_some() || in_force.root == state.roots.mark() || not_before(state).is_err() {
            return;
        }
        let read = async {
            let kill = match &stopping {
                Some(stopping) if state.kill.is_none() => Some(self.again(state, stopping).await?),
                _ => None,
            };
            Ok::<_, Fault>((self.again(state, &in_force).await?.files, kill))
        };
        match read.await {
            Ok((files, kill)) => {
                state.pending = Some(files);
                state.kill = state.kill.take().or(kill.map(Arc::new));
            }
            Err(fault) => self.lock().cache.push(fault.to_string()),
        }
    }

    /// Verifies a version that is kept. What it says that was not remembered yet, is.
    async fn kept(&self, state: &State, version: &PolicyVersion) -> Result<Verified, Fault> {
        not_before(state)?;
        let marks = state.store.high_water().map(|kept| kept.marks).unwrap_or_default();
        let verified = self.verify_kept(state, version, &state.roots, &marks).await?;
        let (store, root, marks) = (Arc::clone(&state.store), state.roots.mark(), verified.marks(&marks));
        off(move || store.raise(root, marks)).await??;
        Ok(verified)
    }

    /// Verifies every byte of a version that is kept, under `roots`, not older than `marks`.
    async fn verify_kept(
        &self,
        state: &State,
        version: &PolicyVersion,
        roots: &Roots,
        marks: &Marks,
    ) -> Result<Verified, Fault> {
        let (store, wanted) = (Arc::clone(&state.store), version.clone());
        let (fetch, mut known, timestamp) = opened(off(move || store.read(&wanted)).await??)?;
        let top = roots.timestamp(timestamp, marks, None)?;
        let verified = complete(top, &fetch, &mut known, marks, &self.settings.scopes, None).await?;
        self.minimum(verified.snapshot.0)?;
        Ok(verified)
    }

    /// A version that was in use, though a newer one was seen: it must be that version to the byte, under
    /// the root that it was used under, whose keys need not be those of today. Only its timestamp may be newer.
    async fn again(&self, state: &State, wanted: &InUse) -> Result<Verified, Fault> {
        let version = version_of(wanted.snapshot);
        let explain = |fault: Fault| {
            let message = format!("the kept policy version {version}, which was in use: {}", fault.message());
            Fault::new(fault.kind(), message)
        };
        let roots = self.root_of(state, wanted.root).await.map_err(explain)?;
        let verified = self.verify_kept(state, &version, &roots, &wanted.marks()).await.map_err(explain)?;
        if !HeldVersion::of(&verified).in_use().is(wanted) {
            return Err(explain(Fault::new(FaultKind::Altered, "is another one now")));
        }
        Ok(verified)
    }

    /// From the trust anchor through the roots that are kept, up to `wanted`.
    async fn root_of(&self, state: &State, wanted: Mark) -> Result<Roots, Fault> {
        let mut roots = self.anchor.clone();
        while roots.mark().version < wanted.version {
            let (store, next) = (Arc::clone(&state.store), roots.mark().version.saturating_add(1));
            let bytes = off(move || store.root(next)).await?;
            roots = match bytes.map(|bytes| roots.follow(&bytes)).transpose()? {
                Some(Next::Root { roots, .. }) => *roots,
                _ => return Err(Fault::new(FaultKind::Missing, format!("root {next} is gone"))),
            };
        }
        if roots.mark() == wanted {
            return Ok(roots);
        }
        let message = format!("it was used under root {}, which policy.root does not lead to", wanted.version);
        Err(Fault::new(FaultKind::OtherFleet, message))
    }

    /// The timestamp and its tag; `None` where it is still that of `seen`.
    async fn timestamp(&self, seen: Option<&Tag>) -> Result<Option<(Bytes, Option<Tag>)>, Fault> {
        match self.fetch.get(TIMESTAMP, MAX_TIMESTAMP, seen).await? {
            Answer::Body { bytes, tag } => Ok(Some((bytes, tag))),
            Answer::Unchanged if seen.is_some() => Ok(None),
            Answer::Unchanged | Answer::Absent => {
                let said = self.fetch.note().map(|note| format!(" ({note})")).unwrap_or_default();
                let message =
                    format!("{TIMESTAMP}: is not there: is policy.repository the folder above metadata/?{said}");
                Err(Fault::new(FaultKind::Missing, message))
            }
        }
    }

    /// One refresh from the repository.
    async fn refresh(&self, state: &mut State) -> Result<Refreshed, Fault> {
        let answer = self.timestamp(state.tag.as_ref()).await?;
        let (bytes, tag) = match (answer, &state.held) {
            (Some(found), _) => found,
            (None, Some(held)) => (held.timestamp.1.clone(), state.tag.clone()),
            // A tag is kept with what is held alone.
            (None, None) => return Err(Fault::malformed("timestamp: unchanged, though none is held")),
        };
        let refreshed = self.refresh_under(state, bytes.clone(), tag).await;
        if refreshed.is_err()
            && let Err(fault) = self.stop_more(state, bytes).await
        {
            tracing::debug!(%fault, "nor is there a newer kill list");
        }
        refreshed
    }

    /// What a refresh with this timestamp finds.
    async fn refresh_under(&self, state: &mut State, bytes: Bytes, tag: Option<Tag>) -> Result<Refreshed, Fault> {
        let same = |state: &State| {
            state.held.as_ref().is_some_and(|held| held.timestamp.1 == bytes && held.root == state.roots.mark())
        };
        let boot = self.clock.boot();
        if !same(state) || state.probed.is_none_or(|at| boot.saturating_sub(at) >= PROBE) {
            self.follow_roots(state).await?;
            state.probed = Some(boot);
        }
        not_before(state)?;
        if same(state) {
            state.tag = tag;
            return Ok(Refreshed::Unchanged);
        }
        let refreshed = self.judge(state, bytes).await?;
        state.tag = tag;
        Ok(refreshed)
    }

    /// Takes the kill list of a version that cannot be adopted, where it is newer than any that was seen. It does not ask
    /// whether a role has expired: what stops more is taken from whoever signed last.
    async fn stop_more(&self, state: &mut State, timestamp: Bytes) -> Result<(), Fault> {
        not_before(state)?;
        if state.store.high_water().is_none() {
            return Ok(());
        }
        let marks = state.marks();
        let top = state.roots.timestamp(timestamp, &marks, None)?;
        let mut known = Known { partial: std::mem::take(&mut state.partial), ..Known::default() };
        if let Some(held) = &state.held {
            known.held = self.known(&state.store, &held.version).await?;
        }
        let found = kill_list(top, &self.fetch, &mut known, &marks).await;
        state.partial = known.fetched;
        state.partial.extend(known.partial);
        let Some(found) = found? else { return Ok(()) };
        self.minimum(found.snapshot.0)?;
        tracing::error!(version = %found.files.version, "the kill list alone is taken of a policy version that is refused");
        state.kill = Some(Arc::new(found));
        Ok(())
    }

    async fn follow_roots(&self, state: &mut State) -> Result<(), Fault> {
        let mut odd = None;
        for _ in 0..MAX_ROTATIONS {
            match state.roots.next(&*self.fetch).await? {
                Next::Root { roots, bytes, replaced } => {
                    state.roots = self.adopt_root(&state.store, *roots, bytes, replaced).await?;
                    tracing::info!(root = state.roots.mark().version, "a new root of the policy repository");
                }
                Next::Absent => break,
                Next::Odd(what) => {
                    odd = Some(what);
                    break;
                }
            }
        }
        if let Some(what) = odd.as_ref().filter(|_| self.lock().odd != odd) {
            tracing::warn!(%what, "the policy repository answers for a root that is invalid; it counts as absent");
        }
        self.lock().odd = odd;
        Ok(())
    }

    /// Verifies a timestamp that is not the one held, and what it pins.
    async fn judge(&self, state: &mut State, bytes: Bytes) -> Result<Refreshed, Fault> {
        let marks = state.marks();
        let judge = Some(self.clock.now());
        let top = state.roots.timestamp(bytes, &marks, judge)?;
        let held = state.held.as_ref().filter(|held| held.root == top.root && held.is_pinned_by(top.pin));
        // Where what is kept of it is gone, it is read and kept anew.
        if let Some(held) = held.filter(|held| state.store.has(&held.version)) {
            let held = self.heartbeat(&state.store, held, &top, marks).await?;
            state.held = Some(held);
            return Ok(Refreshed::Heartbeat);
        }
        let mut known = Known { partial: std::mem::take(&mut state.partial), ..Known::default() };
        if let Some(held) = &state.held {
            known.held = self.known(&state.store, &held.version).await?;
        }
        let verified = complete(top, &self.fetch, &mut known, &marks, &self.settings.scopes, judge).await;
        let verified = match verified {
            Ok(verified) => verified,
            Err(fault) => {
                state.partial = known.fetched;
                return Err(fault);
            }
        };
        self.minimum(verified.snapshot.0)?;
        let adopted = self.adopt(state, verified, marks).await;
        if adopted.is_err() {
            state.partial = known.fetched;
        }
        adopted
    }

    /// Everything that is kept of a version, by digest. What is damaged is fetched again.
    async fn known(&self, store: &Arc<Store>, version: &PolicyVersion) -> Result<BTreeMap<Digest, Bytes>, Fault> {
        let (store, version) = (Arc::clone(store), version.clone());
        off(move || {
            let Ok(Kept { metadata, targets: mut known }) = store.read(&version) else { return BTreeMap::new() };
            known.extend(metadata.into_values().map(|bytes| (Digest::of(&bytes), bytes)));
            known
        })
        .await
    }

    /// Takes a new timestamp over the snapshot that is held.
    async fn heartbeat(
        &self,
        store: &Arc<Store>,
        held: &HeldVersion,
        top: &Top,
        marks: Marks,
    ) -> Result<HeldVersion, Fault> {
        let mut held = held.clone();
        held.timestamp = (top.mark, top.bytes.clone());
        held.standing.ends.insert(RoleName::from("timestamp"), top.end);
        let marks = Marks { timestamp: Some(top.mark), ..marks };
        let (store, version, bytes, root) = (Arc::clone(store), held.version.clone(), top.bytes.clone(), top.root);
        off(move || {
            store.keep_timestamp(&version, &bytes)?;
            store.raise(root, marks)
        })
        .await??;
        Ok(held)
    }

    /// Keeps, remembers, then holds a version.
    async fn adopt(&self, state: &mut State, verified: Verified, marks: Marks) -> Result<Refreshed, Fault> {
        let again = state.held.as_ref().is_some_and(|held| held.version == verified.files.version);
        // Not simply the one before: that may never have come into force.
        let kept = state.store.high_water();
        let used = kept.iter().flat_map(|kept| [&kept.in_force, &kept.stopping]).flatten();
        let mut keep: Vec<PolicyVersion> = used.map(|used| version_of(used.snapshot)).collect();
        keep.push(verified.files.version.clone());
        let (store, anchor, bytes) = (Arc::clone(&state.store), self.anchor.mark(), self.settings.anchor.clone());
        let verified = off(move || {
            store.keep_root(anchor.version, &bytes)?;
            store.keep(&verified)?;
            store.raise(verified.root, verified.marks(&marks))?;
            store.initialise()?;
            if let Err(fault) = store.prune(&keep) {
                tracing::warn!(%fault, "old policy versions stay");
            }
            Ok::<_, Fault>(verified)
        })
        .await??;
        state.held = Some(HeldVersion::of(&verified));
        self.lock().cache.clear();
        if again && state.pending.is_none() {
            return Ok(Refreshed::Heartbeat);
        }
        state.pending = Some(verified.files);
        Ok(Refreshed::New)
    }

    /// What a refresh means for whoever has seen version `seen`.
    async fn answer(
        &self,
        state: &mut State,
        seen: Option<&PolicyVersion>,
        refreshed: Refreshed,
    ) -> Result<Fetched, Fault> {
        let Some(held) = state.held.clone() else {
            return Err(Fault::new(FaultKind::Missing, "the repository has no version"));
        };
        if seen == Some(&held.version) {
            state.pending = None;
            return Ok(match refreshed {
                Refreshed::Unchanged => Fetched::Unchanged,
                Refreshed::Heartbeat | Refreshed::New => Fetched::Confirmed(held.standing),
            });
        }
        let mut files = match state.pending.take() {
            Some(files) => files,
            None => self.kept(state, &held.version).await?.files,
        };
        // A heartbeat may have come since they were verified.
        if let Some(signed) = &mut files.signed {
            signed.standing = held.standing;
        }
        Ok(Fetched::New(files))
    }
}

/// Remembers what `held` is used for now, where that is new.
async fn remember_use(store: &Arc<Store>, held: InUse, use_as: Use) -> Result<(), Fault> {
    let Some(HighWater { in_force, stopping, kill, .. }) = store.high_water() else { return Ok(()) };
    let same = |kept: &Option<InUse>| kept.as_ref().is_some_and(|kept| kept.is(&held));
    let (in_force, stopping) = match use_as {
        Use::Whole if same(&in_force) && stopping.is_none() && kill.is_none() => return Ok(()),
        Use::KillList if same(&stopping) && kill.is_none() => return Ok(()),
        // Its own kill list goes on from every other.
        Use::Whole => (Some(held), None),
        Use::KillList => (in_force, Some(held)),
    };
    let store = Arc::clone(store);
    off(move || store.remember_use(in_force, stopping)).await?
}

/// Keeps and remembers a kill list that is taken by itself, where that is new.
async fn remember_kill(store: &Arc<Store>, kill: &Arc<Verified>) -> Result<(), Fault> {
    let of = HeldVersion::of(kill).in_use();
    if store.high_water().is_some_and(|kept| kept.kill.is_some_and(|kept| kept.is(&of))) {
        return Ok(());
    }
    let (store, kill) = (Arc::clone(store), Arc::clone(kill));
    off(move || store.keep_kill(&kill, of)).await?
}

/// What is kept of a version, as a place to fetch from.
fn opened(kept: Kept) -> Result<(Arc<dyn Fetch>, Known, Bytes), Fault> {
    let Kept { mut metadata, targets } = kept;
    let gone = || Fault::new(FaultKind::Missing, "its timestamp is gone");
    let timestamp = metadata.remove(TIMESTAMP).ok_or_else(gone)?;
    Ok((Arc::new(KeptFetch(metadata)), Known { held: targets, ..Known::default() }, timestamp))
}

/// The chain of roots reaches as far as it did before.
fn not_before(state: &State) -> Result<(), Fault> {
    match state.store.high_water() {
        Some(seen) if seen.root.version > state.roots.mark().version => {
            let message = format!(
                "root: version {} was seen, and is neither kept nor offered any more: this is an older repository, or \
                 publish the root again",
                seen.root.version
            );
            Err(Fault::new(FaultKind::Rollback, message))
        }
        _ => Ok(()),
    }
}

/// Keeps a root, and remembers it where it is newer than what was seen. With it, the versions of timestamp and snapshot
/// begin anew when a key of either was replaced: whoever held the old one may have set them as high as they liked
/// (specification §5.3.11). What was seen of every other role stays, so nothing that an owner published goes back.
fn remember_root(store: &Store, mark: Mark, bytes: &[u8], replaced: bool) -> Result<(), Fault> {
    store.keep_root(mark.version, bytes)?;
    let Some(HighWater { root, mut marks, .. }) = store.high_water() else { return Ok(()) };
    if mark.version <= root.version {
        return Ok(());
    }
    if replaced {
        (marks.timestamp, marks.snapshot) = (None, None);
    }
    store.raise(mark, marks)
}

#[cfg(test)]
mod tests;
