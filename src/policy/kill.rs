//! `kill/list.toml`: what incident response stops now. It wins over everything else in a decision and ends running tasks.
//!
//! A list is read whole or not at all: a bad one refuses its version, and the last good list stays.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::{DocumentError, GrantId, Provider, ScopeId};
use super::{Problem, kind};
use crate::clock::Timestamp;
use crate::id::TaskId;
use crate::identity::{SpiffeId, TrustDomain};
use crate::names::is_segment;
use crate::toml_file;

/// The folder of the kill list.
pub const FOLDER: &str = "kill";
/// The list's own file.
pub const LIST: &str = "kill/list.toml";
/// The most entries.
pub const MAX_STOPS: usize = 10_000;

/// What one entry stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One scope.
    Scope(ScopeId),
    /// One workload.
    SpiffeId(SpiffeId),
    /// All workloads of a trust domain.
    TrustDomain(TrustDomain),
    /// One task, wherever it runs.
    Task(TaskId),
    /// Every scope whose decision names the grant.
    Grant(GrantId),
    /// Every scope that somebody owns, in governance or in the business.
    Owner(String),
    /// Every scope with a grant at a provider. A name, not a [`Provider`]: a list is for the whole fleet, and a sidecar
    /// that does not know a provider yet has nothing to stop there.
    Provider(String),
    /// Everything.
    All,
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Its id, unique in the list; what the audit log names.
    pub id: String,
    /// What it stops.
    pub target: Target,
    /// Why, for the audit log; never shown to callers.
    pub reason: String,
    /// When it is over, UTC, where it says so.
    pub until: Option<Timestamp>,
}

impl Stop {
    /// Whether it stops anything at `now`.
    pub fn in_force(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// For the audit log.
impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kill list entry {}: {}", self.id, self.reason)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    #[serde(rename = "schema")]
    _schema: i64,
    #[serde(default)]
    stop: Vec<RawStop>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStop {
    id: String,
    scope: Option<ScopeId>,
    spiffe_id: Option<String>,
    trust_domain: Option<String>,
    task: Option<String>,
    grant: Option<GrantId>,
    owner: Option<String>,
    provider: Option<String>,
    all: Option<bool>,
    reason: String,
    until: Option<toml::value::Datetime>,
}

/// What a kill list is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The scope.
    pub scope: &'a ScopeId,
    /// The workload.
    pub spiffe_id: &'a SpiffeId,
    /// The task, where it runs already.
    pub task: Option<&'a TaskId>,
}

/// What a scope is made of, as far as a kill list may name it.
pub(super) trait Parts {
    /// Its grants.
    fn grants(&self) -> impl Iterator<Item = (&GrantId, Provider)>;
    /// Who answers for it.
    fn owners(&self) -> [&str; 2];
}

/// A kill list, ready to be asked. An empty one stops nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KillList {
    /// The version of the role `incident` that signed it: it never goes back. `None` where nobody signs.
    epoch: Option<u64>,
    stops: Vec<Stop>,
    index: Index,
}

/// By what is asked for → places in the list. Several entries may stop one thing, each with another end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Index {
    scope: HashMap<ScopeId, Vec<usize>>,
    spiffe_id: HashMap<SpiffeId, Vec<usize>>,
    trust_domain: HashMap<TrustDomain, Vec<usize>>,
    task: HashMap<TaskId, Vec<usize>>,
    grant: HashMap<GrantId, Vec<usize>>,
    owner: HashMap<Arc<str>, Vec<usize>>,
    provider: HashMap<Arc<str>, Vec<usize>>,
    all: Vec<usize>,
}

impl KillList {
    /// Reads the bytes of a list that `epoch` of the role `incident` signed.
    ///
    /// # Errors
    /// Anything unknown, missing or out of its range; an id that is there twice.
    pub fn parse(bytes: &[u8], epoch: Option<u64>) -> Result<Self, DocumentError> {
        let raw: RawList = toml_file::read(bytes)?;
        if raw.stop.len() > MAX_STOPS {
            return Err(DocumentError::invalid(format!("has more than {MAX_STOPS} entries")));
        }
        let mut list = Self { epoch, ..Self::default() };
        let mut ids = HashSet::with_capacity(raw.stop.len());
        for raw in raw.stop {
            let stop = stop(raw)?;
            if !ids.insert(stop.id.clone()) {
                return Err(DocumentError::invalid(format!("has two entries with the id {}", stop.id)));
            }
            list.index.add(&stop.target, list.stops.len());
            list.stops.push(stop);
        }
        Ok(list)
    }

    /// Reads the list among a version's files; without one nothing is stopped.
    ///
    /// # Errors
    /// Every problem below `kill/`: a file there that is not read would be a stop that is overlooked.
    pub fn read(files: &BTreeMap<String, Bytes>, epoch: Option<u64>) -> Result<Self, Vec<Problem>> {
        let mut list = Self { epoch, ..Self::default() };
        let mut problems = Vec::new();
        for (path, bytes) in files.range(format!("{FOLDER}/")..format!("{FOLDER}0")) {
            if path != LIST {
                let message = "is not read: the kill list is kill/list.toml alone";
                problems.push(Problem::new(path, kind::FILE_NAME, message));
                continue;
            }
            match Self::parse(bytes, epoch) {
                Ok(parsed) => list = parsed,
                Err(error) => problems.push(Problem::new(path, error.kind, error.message)),
            }
        }
        if problems.is_empty() { Ok(list) } else { Err(problems) }
    }

    /// This list with the entries of `other` that it lacks and that stop something at `now`.
    pub(super) fn and(&self, other: &Self, now: Timestamp) -> Self {
        let mut list = self.clone();
        let ours: HashMap<&str, &Stop> = self.stops.iter().map(|stop| (&*stop.id, stop)).collect();
        let lifted = other.stops.iter().filter(|stop| stop.in_force(now) && ours.get(&*stop.id) != Some(stop));
        for stop in lifted {
            list.index.add(&stop.target, list.stops.len());
            list.stops.push(stop.clone());
        }
        list
    }

    /// The version of the role `incident` that signed it.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Every entry, in the order of the file.
    pub fn stops(&self) -> &[Stop] {
        &self.stops
    }

    /// How many entries stop something at `now`.
    pub fn in_force(&self, now: Timestamp) -> usize {
        self.stops.iter().filter(|stop| stop.in_force(now)).count()
    }

    /// The first entry in the order of the file that stops `subject` at `now`. `parts` tells what its scope is made of,
    /// where that is known; it is asked only if some entry is about that.
    pub(super) fn stop<P: Parts>(
        &self,
        subject: Subject<'_>,
        parts: impl FnOnce() -> Option<P>,
        now: Timestamp,
    ) -> Option<&Stop> {
        if self.stops.is_empty() {
            return None;
        }
        let index = &self.index;
        let mut found = Found { stops: &self.stops, now, first: None };
        found.see(Some(&index.all));
        found.see(index.scope.get(subject.scope));
        found.see(index.spiffe_id.get(subject.spiffe_id));
        found.see(index.trust_domain.get(subject.spiffe_id.trust_domain()));
        found.see(subject.task.and_then(|task| index.task.get(task)));
        if !(index.grant.is_empty() && index.owner.is_empty() && index.provider.is_empty())
            && let Some(parts) = parts()
        {
            for (grant, provider) in parts.grants() {
                found.see(index.grant.get(grant));
                found.see(index.provider.get(provider.as_str()));
            }
            for owner in parts.owners() {
                found.see(index.owner.get(owner));
            }
        }
        self.stops.get(found.first?)
    }
}

/// The earliest entry in force that was seen so far.
struct Found<'a> {
    stops: &'a [Stop],
    now: Timestamp,
    first: Option<usize>,
}

impl Found<'_> {
    fn see(&mut self, places: Option<&Vec<usize>>) {
        let in_force = |at: &&usize| self.stops.get(**at).is_some_and(|stop| stop.in_force(self.now));
        // Places were pushed in order, so the first in force is the earliest.
        let found = places.and_then(|places| places.iter().find(in_force)).copied();
        self.first = self.first.into_iter().chain(found).min();
    }
}

impl Index {
    fn add(&mut self, target: &Target, at: usize) {
        let places = match target {
            Target::Scope(id) => self.scope.entry(id.clone()).or_default(),
            Target::SpiffeId(id) => self.spiffe_id.entry(id.clone()).or_default(),
            Target::TrustDomain(name) => self.trust_domain.entry(name.clone()).or_default(),
            Target::Task(id) => self.task.entry(id.clone()).or_default(),
            Target::Grant(id) => self.grant.entry(id.clone()).or_default(),
            Target::Owner(id) => self.owner.entry(id.as_str().into()).or_default(),
            Target::Provider(name) => self.provider.entry(name.as_str().into()).or_default(),
            Target::All => &mut self.all,
        };
        places.push(at);
    }
}

fn stop(raw: RawStop) -> Result<Stop, DocumentError> {
    if !is_segment(&raw.id, 64) {
        return Err(DocumentError::invalid("an entry's id must be 1 to 64 of a-z 0-9 - _"));
    }
    let id = raw.id;
    let wrong = |message: String| DocumentError::invalid(format!("entry {id}: {message}"));
    let name = |key: &str, text: String| {
        let good = is_segment(&text, 64);
        if good { Ok(text) } else { Err(wrong(format!("{key} must be 1 to 64 of a-z 0-9 - _"))) }
    };
    let mut targets = Vec::new();
    targets.extend(raw.scope.map(Target::Scope));
    if let Some(text) = raw.spiffe_id {
        targets.push(Target::SpiffeId(text.parse().map_err(|error| wrong(format!("spiffe_id {error}")))?));
    }
    if let Some(text) = raw.trust_domain {
        targets.push(Target::TrustDomain(text.parse().map_err(|error| wrong(format!("trust_domain: {error}")))?));
    }
    if let Some(text) = raw.task {
        let bad = |()| wrong("task must be a task's id, t- and 26 characters".to_owned());
        targets.push(Target::Task(text.parse().map_err(bad)?));
    }
    targets.extend(raw.grant.map(Target::Grant));
    if let Some(text) = raw.owner {
        targets.push(Target::Owner(name("owner", text)?));
    }
    if let Some(text) = raw.provider {
        targets.push(Target::Provider(name("provider", text)?));
    }
    match raw.all {
        Some(true) => targets.push(Target::All),
        Some(false) => return Err(wrong("all = false says nothing: leave it out".to_owned())),
        None => {}
    }
    let [target] = <[Target; 1]>::try_from(targets).map_err(|_| {
        wrong(
            "needs exactly one of scope, spiffe_id, trust_domain, task, grant, owner, provider, all = true".to_owned(),
        )
    })?;
    let until =
        raw.until.map(|at| toml_file::instant("until", at)).transpose().map_err(|error| wrong(error.message))?;
    let reason = toml_file::text("reason", raw.reason).map_err(|error| wrong(error.message))?;
    Ok(Stop { id, target, reason, until })
}

#[cfg(test)]
mod tests;
