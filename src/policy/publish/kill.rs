//! `policy kill`: one entry of the kill list, signed and published at once. Nothing else is waited for: every other role
//! stays as it is published, whatever the folder says, and who may sign is what is published, whatever `repository.toml` says.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use toml::{Table, Value};

use super::super::kill::{KillList, LIST, Stop};
use super::super::repository::MAX_FILE;
use super::super::repository::metadata::{self, Envelope};
use super::super::repository::trusted::INCIDENT;
use super::content::signed_part;
use super::keys::{KeySource, sign_with};
use super::published::{Published, Signers, lock};
use super::release::{self, Candidate, Gate, KILL_LIFE, Online, OnlineKeys, PublishReport};
use super::workspace::Workspace;
use super::{PublishError, read_file, write_file};
use crate::clock::{Clock, Timestamp};

const HEAD: &str = "# What is stopped now; `sidemint policy kill` writes it.\n";

/// What is to be done to the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KillChange {
    /// Add an entry that stops something.
    Add {
        /// The entry's id; else one is made of the time.
        id: Option<String>,
        /// The member that says what is stopped: `scope`, `spiffe_id`, `trust_domain`, `task`, `grant`, `owner`, `provider`
        /// with its value; `None` stops everything.
        what: Option<(&'static str, String)>,
        /// Why, for the audit log.
        reason: String,
        /// When it is over, UTC.
        until: Option<Timestamp>,
    },
    /// Take an entry off the list.
    Lift(String),
}

/// How to publish the change.
#[derive(Debug)]
pub struct Order<'a> {
    /// What is to be done to the list.
    pub change: &'a KillChange,
    /// The keys of `incident`.
    pub incident: &'a [KeySource],
    /// The keys of snapshot and timestamp, which are signed anew.
    pub online: &'a OnlineKeys,
    /// How long the list is valid; else what `repository.toml` says, or a week where that cannot be read.
    pub expires: Option<Duration>,
    /// The time of the change, UTC.
    pub now: Timestamp,
}

/// What a change of the kill list did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The id of the entry that was added or lifted.
    pub id: String,
    /// How it was published.
    pub report: PublishReport,
    /// How many entries the list has now.
    pub entries: usize,
    /// Whether `DIR/kill/list.toml` says something else than what is published, and still does.
    pub folder_differs: bool,
}

fn refused(message: impl std::fmt::Display) -> PublishError {
    PublishError::Refused(message.to_string())
}

/// The list that is published at `out`.
///
/// # Errors
/// Nothing is published there, or what is cannot be read.
pub async fn list(out: &Path) -> Result<Vec<Stop>, PublishError> {
    let published = Published::read(out).await?.ok_or_else(|| nothing(out))?;
    let bytes = published.files().files.get(LIST).cloned().unwrap_or_else(|| Bytes::from_static(b"schema = 1\n"));
    parse(&bytes).map(|list| list.stops().to_vec())
}

fn nothing(out: &Path) -> PublishError {
    PublishError::Files(format!("{}: nothing is published there", out.display()))
}

fn parse(bytes: &[u8]) -> Result<KillList, PublishError> {
    KillList::parse(bytes, None).map_err(|error| refused(format!("{LIST}: {error}")))
}

/// Changes the published list, signs it and publishes it. The list in the folder gets the same change.
///
/// # Errors
/// The entry is wrong, the keys are not those of the roles, or clients would refuse the version.
pub async fn kill(
    workspace: &Workspace,
    out: &Path,
    order: &Order<'_>,
    clock: &dyn Clock,
) -> Result<Done, PublishError> {
    let _lock = lock(out)?;
    let previous = Published::read(out).await?.ok_or_else(|| nothing(out))?;
    release::not_put_back(workspace, out, &previous)?;
    let published = previous.files().files.get(LIST).cloned();
    let (id, new) = changed(published.as_deref(), order.change, order.now)?;
    let entries = parse(&new)?.stops().len();

    let mut files = previous.files().files.clone();
    files.insert(LIST.to_owned(), new.clone());
    let version = previous.version(INCIDENT).saturating_add(1);
    let life = workspace.settings().role(INCIDENT).map_or(KILL_LIFE, |role| role.life);
    let signed = says(&previous, version, order.now + order.expires.unwrap_or(life), &new)?;
    let Signers { keys, threshold } = previous.signers(INCIDENT)?;
    let bytes = sign_with(INCIDENT, signed, order.incident, &keys, threshold, clock).await?;
    let mut roles = previous.roles();
    roles.insert(INCIDENT.to_owned(), (version, bytes.clone()));
    let anchor = previous.head.anchor();
    let candidate = Candidate { roots: Default::default(), roles, files, anchor, notes: Vec::new() };
    let gate = Gate { kill: true, ..Gate::default() };
    let online = Online::published(workspace, &previous.head, order.online)?;
    let report = release::release(workspace, out, Some(&previous), candidate, &online, &gate, clock, order.now).await?;

    let folder_differs = follow(workspace, published, &new, order)?;
    let envelope: Envelope = serde_json::from_slice(&bytes).map_err(|error| PublishError::Files(error.to_string()))?;
    workspace.stage(INCIDENT, &envelope)?;
    Ok(Done { id, report, entries, folder_differs })
}

/// What `incident` says next: as it is published, with the new list.
fn says(
    previous: &Published,
    version: u64,
    expires: Timestamp,
    list: &Bytes,
) -> Result<serde_json::Value, PublishError> {
    let none = || refused(format!("{INCIDENT}: is not published"));
    let old = signed_part(previous.role(INCIDENT).ok_or_else(none)?.1)?;
    let files = std::collections::BTreeMap::from([(LIST.to_owned(), list.clone())]);
    let mut new = metadata::targets(version, expires, &files, &[]);
    if let (Some(old), Some(new)) = (old.as_object(), new.as_object_mut()) {
        for (name, value) in old {
            new.entry(name.as_str()).or_insert_with(|| value.clone());
        }
    }
    Ok(new)
}

/// Gives the list in the folder the same change; whether it differs from what is published now.
fn follow(
    workspace: &Workspace,
    published: Option<Bytes>,
    new: &Bytes,
    order: &Order<'_>,
) -> Result<bool, PublishError> {
    let place = workspace.directory().join(LIST);
    let there = read_file(&place, MAX_FILE)?;
    if there.is_none() || there == published {
        write_file(&place, new, 0o644)?;
        return Ok(false);
    }
    // Somebody is at work on it: theirs stays theirs, with this change in it where that is possible.
    if let Ok((_, theirs)) = changed(there.as_deref(), order.change, order.now) {
        write_file(&place, &theirs, 0o644)?;
        return Ok(theirs != *new);
    }
    Ok(there.as_ref() != Some(new))
}

/// The list with the change, checked as sidecars will, and the entry's id.
fn changed(old: Option<&[u8]>, change: &KillChange, now: Timestamp) -> Result<(String, Bytes), PublishError> {
    let text = std::str::from_utf8(old.unwrap_or(b"schema = 1\n"))
        .map_err(|_| refused(format!("{LIST}: is not UTF-8 text")))?;
    let mut table: Table = toml::from_str(text).map_err(|error| refused(format!("{LIST}: {}", error.message())))?;
    let stops = table.entry("stop").or_insert_with(|| Value::Array(Vec::new()));
    let stops = stops.as_array_mut().ok_or_else(|| refused(format!("{LIST}: stop must be a list")))?;
    let has = |stops: &[Value], id: &str| stops.iter().any(|stop| stop.get("id").and_then(Value::as_str) == Some(id));
    let id = match change {
        KillChange::Add { id, what, reason, until } => {
            let id = id.clone().unwrap_or_else(|| fresh(now, |id| has(stops, id)));
            let mut stop = Table::new();
            stop.insert("id".to_owned(), id.clone().into());
            let (member, value) = what.as_ref().map_or(("all", Value::Boolean(true)), |(m, w)| (*m, w.clone().into()));
            stop.insert(member.to_owned(), value);
            stop.insert("reason".to_owned(), reason.clone().into());
            if let Some(until) = until {
                let until = until.floor_to_second().to_string().parse().map(Value::Datetime);
                stop.insert("until".to_owned(), until.map_err(|_| refused("until is no time"))?);
            }
            stops.push(Value::Table(stop));
            id
        }
        KillChange::Lift(id) => {
            if !has(stops, id) {
                return Err(refused(format!("there is no entry {id}: `sidemint policy kill --list` shows them")));
            }
            stops.retain(|stop| stop.get("id").and_then(Value::as_str) != Some(id.as_str()));
            id.clone()
        }
    };
    if stops.is_empty() {
        table.remove("stop");
    }
    let text = toml::to_string(&table).map_err(|error| refused(format!("{LIST}: {error}")))?;
    let bytes = Bytes::from(format!("{HEAD}{text}"));
    parse(&bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refused(format!("{LIST}: would be larger than {MAX_FILE} bytes: lift what is past")));
    }
    Ok((id, bytes))
}

/// An id of the time: `k-20261123-164833`, with a number where there is one already.
fn fresh(now: Timestamp, taken: impl Fn(&str) -> bool) -> String {
    let digits: String = now.floor_to_second().to_string().chars().filter(char::is_ascii_digit).collect();
    let (day, time) = digits.split_at(digits.len().min(8));
    let first = format!("k-{day}-{time}");
    let mut id = first.clone();
    let mut number = 2_u32;
    while taken(&id) {
        id = format!("{first}-{number}");
        number = number.saturating_add(1);
    }
    id
}
