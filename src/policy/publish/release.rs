//! The gate before a version is published, and the order of writing: everything else first, `timestamp.json` last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::super::ScopeId;
use super::super::document::{Digest, Grant};
use super::super::repository::PolicyFiles;
use super::super::repository::metadata::{self, Envelope, TufKey};
use super::super::repository::trusted::INCIDENT;
use super::super::{Policy, Problem};
use super::content::{expires_of, same_content, version_of};
use super::keys::{KeySource, good_signatures};
use super::published::{Head, Overlay, Published, Signers, lock};
use super::workspace::{RoleSettings, Workspace};
use super::{MAX_METADATA, PublishError, heartbeat, keys, read_file, write_file};
use crate::clock::{Clock, Timestamp, within};

/// How long a dry mint of one grant may take.
const DRY_MINT: Duration = Duration::from_secs(60);
/// How long a kill list and its snapshot are valid where `repository.toml` cannot say it.
pub(super) const KILL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A role that lapses sooner than this is told.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// The keys of the roles that are signed at publication.
#[derive(Debug, Clone, Default)]
pub struct OnlineKeys {
    /// Those of `snapshot`; none takes `DIR/keys/NAME.pem`.
    pub snapshot: Vec<KeySource>,
    /// Those of `timestamp`; none takes `DIR/keys/NAME.pem`.
    pub timestamp: Vec<KeySource>,
}

/// How one of the roles that are signed at publication is to be signed.
pub(super) struct Duty {
    keys: Vec<(String, TufKey)>,
    threshold: u64,
    life: Duration,
    sources: Vec<KeySource>,
}

/// How snapshot and timestamp are to be signed.
pub(super) struct Online {
    snapshot: Duty,
    timestamp: Duty,
}

impl Online {
    fn of(workspace: &Workspace, keys: &OnlineKeys) -> Result<Self, PublishError> {
        let duty = |role: &str, sources: &[KeySource]| {
            let settings = workspace.settings().role(role)?;
            let given = || Some(sources.to_vec()).filter(|sources| !sources.is_empty());
            let sources = given().unwrap_or_else(|| default_keys(workspace, settings));
            let (keys, threshold) = (settings.keys.clone(), u64::from(settings.threshold));
            Ok::<_, PublishError>(Duty { keys, threshold, life: settings.life, sources })
        };
        Ok(Self { snapshot: duty("snapshot", &keys.snapshot)?, timestamp: duty("timestamp", &keys.timestamp)? })
    }

    /// By the keys of the root that is published, whatever `repository.toml` says: of that, how long they are valid.
    pub(super) fn published(workspace: &Workspace, head: &Head, keys: &OnlineKeys) -> Result<Self, PublishError> {
        let duty = |role: &str, sources: &[KeySource], life: Duration| {
            let Signers { keys, threshold } = head.signers(role)?;
            let life = workspace.settings().role(role).map_or(life, |settings| settings.life);
            let given = || Some(sources.to_vec()).filter(|sources| !sources.is_empty());
            let sources = given().unwrap_or_else(|| keys::in_folder(&workspace.directory().join("keys"), &keys));
            Ok::<_, PublishError>(Duty { keys, threshold, life, sources })
        };
        Ok(Self {
            snapshot: duty("snapshot", &keys.snapshot, KILL_LIFE)?,
            timestamp: duty("timestamp", &keys.timestamp, heartbeat::LIFE)?,
        })
    }
}

/// What whoever publishes may choose.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The keys of snapshot and timestamp.
    pub keys: OnlineKeys,
    /// The scopes that this version may newly suspend.
    pub suspend: BTreeSet<ScopeId>,
    /// A command that tries each new or changed grant, told as JSON on its standard input.
    pub dry_mint: Option<String>,
}

/// What a publication did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishReport {
    /// The policy version that sidecars will name.
    pub version: String,
    /// Whether nothing had changed, and nothing was written.
    pub unchanged: bool,
    /// The roles with a new version.
    pub roles: Vec<(String, u64)>,
    /// The scopes that are newly suspended, as was asked for.
    pub suspended: Vec<ScopeId>,
    /// How many grants were tried.
    pub tried: usize,
    /// What is worth a second look.
    pub warnings: Vec<String>,
}

/// Everything that a version is made of, before its snapshot and timestamp.
pub(super) struct Candidate {
    /// Roots that are not published yet.
    pub(super) roots: BTreeMap<u64, Bytes>,
    /// The metadata of every role that lists files.
    pub(super) roles: BTreeMap<String, (u64, Bytes)>,
    /// The owners' files, by path.
    pub(super) files: BTreeMap<String, Bytes>,
    /// The first root, which deployments ship.
    pub(super) anchor: Bytes,
    /// What is worth a second look.
    pub(super) notes: Vec<String>,
}

fn refused(message: impl std::fmt::Display) -> PublishError {
    PublishError::Refused(message.to_string())
}

/// Publishes what is signed in `workspace` to `out`.
///
/// # Errors
/// Signatures are missing, or clients would refuse the version, or it would suspend a scope that nobody named.
pub async fn publish(
    workspace: &Workspace,
    out: &Path,
    options: &Options,
    clock: &dyn Clock,
    now: Timestamp,
) -> Result<PublishReport, PublishError> {
    let _lock = lock(out)?;
    let previous = Published::read(out).await?;
    if let Some(previous) = &previous {
        not_put_back(workspace, out, previous)?;
    }
    let candidate = gather(workspace, previous.as_ref(), now)?;
    let gate = Gate { kill: false, suspend: options.suspend.clone(), dry_mint: options.dry_mint.as_deref() };
    let online = Online::of(workspace, &options.keys)?;
    release(workspace, out, previous.as_ref(), candidate, &online, &gate, clock, now).await
}

/// What was published from here is still there: a version over an older one would bring that back, and sidecars would
/// refuse it.
pub(super) fn not_put_back(workspace: &Workspace, out: &Path, previous: &Published) -> Result<(), PublishError> {
    let here = workspace.staged("snapshot")?.map_or(0, |(_, staged)| version_of(&staged.signed));
    let there = previous.head.version("snapshot");
    if there >= here {
        return Ok(());
    }
    Err(refused(format!(
        "{}: has snapshot {there}, and {here} was published from {}: put back what was published, from where sidecars read it",
        out.display(),
        workspace.directory().display()
    )))
}

/// Collects what the owners signed, and refuses what is not signed, not what the folder says, or older than what is out.
fn gather(workspace: &Workspace, previous: Option<&Published>, now: Timestamp) -> Result<Candidate, PublishError> {
    let mut files = workspace.files()?;
    let (roots, anchor) = roots(workspace, previous)?;
    let (mut roles, mut notes) = (BTreeMap::new(), Vec::new());
    if let Some((version, bytes)) = newer_kill_list(workspace, previous, &mut files)? {
        notes.push(format!(
            "kill/list.toml: version {version} of {INCIDENT} is published and newer than here: it stays"
        ));
        roles.insert(INCIDENT.to_owned(), (version, bytes));
    }
    let mut problems = Vec::new();
    for (name, settings) in workspace.settings().listing() {
        if roles.contains_key(name) {
            continue;
        }
        match signed_role(workspace, name, settings, &files, previous, now)? {
            Ok(role) => drop(roles.insert(name.to_owned(), role)),
            Err(problem) => problems.push(problem),
        }
    }
    for name in previous.map(Published::roles).unwrap_or_default().keys() {
        if workspace.settings().role(name).is_err() {
            problems.push(format!(
                "{name}: is published, and clients refuse a version without it: keep it with retired = true"
            ));
        }
    }
    if problems.is_empty() {
        Ok(Candidate { roots, roles, files, anchor, notes })
    } else {
        Err(PublishError::Signatures(problems.join("; ")))
    }
}

/// Where a kill was published that this working repository has not seen: the published role, and its list in `files`. A
/// kill is undone by whoever lifts it, never by a publication that knows nothing of it.
fn newer_kill_list(
    workspace: &Workspace,
    previous: Option<&Published>,
    files: &mut BTreeMap<String, Bytes>,
) -> Result<Option<(u64, Bytes)>, PublishError> {
    let Some(previous) = previous else { return Ok(None) };
    let Some((version, bytes)) = previous.role(INCIDENT) else { return Ok(None) };
    let here = workspace.staged(INCIDENT)?.map_or(0, |(_, staged)| version_of(&staged.signed));
    if version <= here {
        return Ok(None);
    }
    let publishers = previous.files().signed.as_ref().map(|signed| &signed.publishers);
    let theirs = |path: &str| publishers.and_then(|by| by.get(path)).is_some_and(|role| &**role == INCIDENT);
    files.retain(|path, _| workspace.settings().owner_of(path) != Some(INCIDENT));
    let published = previous.files().files.iter().filter(|(path, _)| theirs(path));
    files.extend(published.map(|(path, bytes)| (path.clone(), bytes.clone())));
    Ok(Some((version, bytes.clone())))
}

type SignedRole = Result<(u64, Bytes), String>;

fn signed_role(
    workspace: &Workspace,
    name: &str,
    settings: &RoleSettings,
    files: &BTreeMap<String, Bytes>,
    previous: Option<&Published>,
    now: Timestamp,
) -> Result<SignedRole, PublishError> {
    let fix = format!("sidemint policy sign --policy {} --role {name} --key FILE.pem", workspace.directory().display());
    let Some((bytes, staged)) = workspace.staged(name)? else {
        return Ok(Err(format!("{name}: nobody signed it yet: {fix}")));
    };
    let (version, expires) = (version_of(&staged.signed), expires_of(&staged.signed)?);
    if !same_content(&staged.signed, &workspace.settings().content(name, version, expires, files)?) {
        return Ok(Err(format!("{name}: the folder or repository.toml changed after it was signed: {fix}")));
    }
    let good = good_signatures(&staged, &settings.keys);
    if good.len() < usize::try_from(settings.threshold).unwrap_or(usize::MAX) {
        let missing = settings.keys.iter().map(|(key, _)| key.as_str()).filter(|key| !good.contains(key));
        let missing = missing.collect::<Vec<_>>().join(", ");
        let (have, need) = (good.len(), settings.threshold);
        return Ok(Err(format!("{name}: {have} of {need} signatures; still without one of {missing}: {fix}")));
    }
    if expires <= now && !settings.retired {
        return Ok(Err(format!("{name}: what was signed lapsed at {expires}: {fix}")));
    }
    match previous.and_then(|previous| previous.role(name)) {
        Some((published, _)) if version < published => Ok(Err(format!(
            "{name}: version {published} is published, and this working repository has {version}: take over the newer one, or sign with --published OUT --restart"
        ))),
        Some((published, old)) if version == published => {
            let same = serde_json::from_slice::<Envelope>(old).is_ok_and(|old| old.signed == staged.signed);
            // Signatures that came after publication change nothing: what is out stays, byte for byte.
            Ok(if same {
                Ok((version, old.clone()))
            } else {
                Err(format!("{name}: another version {version} is published already: {fix} --published OUT --restart"))
            })
        }
        _ => Ok(Ok((version, bytes))),
    }
}

/// The roots that are not published yet, and the first of all.
fn roots(workspace: &Workspace, previous: Option<&Published>) -> Result<(BTreeMap<u64, Bytes>, Bytes), PublishError> {
    let fix = format!("sidemint policy sign --policy {} --role root --key FILE.pem", workspace.directory().display());
    let (bytes, staged) = workspace
        .staged("root")?
        .ok_or_else(|| PublishError::Signatures(format!("root: nobody signed it yet: {fix}")))?;
    let version = version_of(&staged.signed);
    let says = workspace.settings().content("root", version, expires_of(&staged.signed)?, &BTreeMap::new())?;
    if !same_content(&staged.signed, &says) {
        return Err(PublishError::Signatures(format!("root: repository.toml changed after it was signed: {fix}")));
    }
    enough_for_root(workspace, &staged, version, &fix)?;
    let known = |number: u64| match number == version {
        true => Ok(bytes.clone()),
        false => workspace.root(number)?.ok_or_else(|| {
            PublishError::Files(format!("metadata/{number}.root.json: is not there; copy it from what is published"))
        }),
    };
    let anchor = known(1)?;
    let out = previous.map_or(0, |previous| previous.version("root"));
    if let Some(previous) = previous {
        if previous.head.anchor() != anchor {
            return Err(refused("what is published began with another first root: it is another fleet's repository"));
        }
        if out > version || known(out)? != previous.head.roots.get(&out).cloned().unwrap_or_default() {
            return Err(refused(format!("root: another version {out} is published: copy it to metadata/, then {fix}")));
        }
    }
    let roots = (out + 1..=version).map(|number| Ok((number, known(number)?)));
    Ok((roots.collect::<Result<_, PublishError>>()?, anchor))
}

/// A root needs the signatures of its own keys, and of those of the root before it (specification §5.3.4).
fn enough_for_root(workspace: &Workspace, staged: &Envelope, version: u64, fix: &str) -> Result<(), PublishError> {
    let role = workspace.settings().role("root")?;
    let mut needs = vec![("its own keys", role.keys.clone(), u64::from(role.threshold))];
    if let Some(before) = version.checked_sub(1).filter(|before| *before > 0)
        && let Some(bytes) = workspace.root(before)?
    {
        let Signers { keys, threshold } = Signers::of_root(&bytes, "root")?;
        needs.push(("the keys of the root before it", keys, threshold));
    }
    for (whose, keys, threshold) in needs {
        let have = good_signatures(staged, &keys).len();
        if u64::try_from(have).unwrap_or(0) < threshold {
            return Err(PublishError::Signatures(format!("root: {have} of {threshold} signatures of {whose}: {fix}")));
        }
    }
    Ok(())
}

/// What a version must pass beside being loadable.
#[derive(Default)]
pub(super) struct Gate<'a> {
    /// Whether it only brings a kill list: then nothing that is wrong elsewhere may hold it up. Sidecars take the newest
    /// list also from a version whose other content they refuse.
    pub(super) kill: bool,
    /// The scopes that may be newly suspended.
    pub(super) suspend: BTreeSet<ScopeId>,
    /// What tries new grants.
    pub(super) dry_mint: Option<&'a str>,
}

/// Signs snapshot and timestamp over `candidate`, loads it as clients will, and publishes it.
#[allow(clippy::too_many_arguments, reason = "the two callers differ in every one of them")]
pub(super) async fn release(
    workspace: &Workspace,
    out: &Path,
    previous: Option<&Published>,
    candidate: Candidate,
    online: &Online,
    gate: &Gate<'_>,
    clock: &dyn Clock,
    now: Timestamp,
) -> Result<PublishReport, PublishError> {
    let roles: Vec<_> = candidate
        .roles
        .iter()
        .filter(|(name, (version, _))| previous.is_none_or(|previous| previous.version(name) != *version))
        .map(|(name, (version, _))| (name.clone(), *version))
        .chain(candidate.roots.keys().map(|version| ("root".to_owned(), *version)))
        .collect();
    if let Some(previous) = previous
        && roles.is_empty()
        && !due(online, previous, now)
    {
        keep(workspace, previous)?;
        return Ok(PublishReport {
            version: previous.files().version.to_string(),
            unchanged: true,
            roles,
            suspended: Vec::new(),
            tried: 0,
            warnings: candidate.notes.into_iter().chain(lapsing(workspace, previous, now)).collect(),
        });
    }
    let NewFiles { versioned, mut last } = sign_both(online, previous, &candidate, clock, now).await?;
    let mut overlay = versioned.clone();
    overlay.extend(last.clone());
    // Sidecars refuse what has ended before they first saw it. A kill is published all the same: who fixes what expired must
    // not have to think of it.
    let expiry = (!gate.kill).then_some(now);
    let loaded = load_both(out, &overlay, &candidate.anchor, previous, expiry).await?;
    let (suspended, mut warnings) = judge(loaded.files(), previous, gate)?;
    let tried = dry_mint(loaded.files(), previous, gate.dry_mint, clock).await?;
    warnings.extend(candidate.notes);
    warnings.extend(lapsing(workspace, &loaded, now));
    if gate.kill {
        warnings.extend(lapsed_head(&loaded, now));
    }
    for (name, bytes) in &versioned {
        place(out, name, bytes, previous)?;
    }
    // What is on the disk now, and not what is in memory, is what clients will read.
    load_both(out, &last, &candidate.anchor, previous, expiry).await?;
    let timestamp = last.remove("metadata/timestamp.json").unwrap_or_default();
    for (name, bytes) in &last {
        place(out, name, bytes, previous)?;
    }
    write_file(&out.join("metadata/timestamp.json"), &timestamp, 0o644)?;
    keep(workspace, &loaded)?;
    Ok(PublishReport {
        version: loaded.files().version.to_string(),
        unchanged: false,
        roles,
        suspended,
        tried,
        warnings,
    })
}

/// Whether the snapshot or the timestamp must be signed again although nothing else changed.
fn due(online: &Online, previous: &Published, now: Timestamp) -> bool {
    let left = |role: &str| previous.standing().ends.get(role).map_or(Duration::ZERO, |end| end.since(now));
    left("timestamp").is_zero() || left("snapshot") < online.snapshot.life / 2
}

/// Files by their name below the published repository.
type Named = BTreeMap<String, Bytes>;

/// The new files of a publication.
struct NewFiles {
    /// Those that nobody asks for before the timestamp names them.
    versioned: Named,
    /// Those that must come last.
    last: Named,
}

/// Signs snapshot and timestamp over what is to be published.
async fn sign_both(
    online: &Online,
    previous: Option<&Published>,
    candidate: &Candidate,
    clock: &dyn Clock,
    now: Timestamp,
) -> Result<NewFiles, PublishError> {
    let mut versioned = Named::new();
    for (path, bytes) in &candidate.files {
        versioned.insert(format!("targets/{}", metadata::target_name(path, &Digest::of(bytes))), bytes.clone());
    }
    for (name, (version, bytes)) in &candidate.roles {
        versioned.insert(format!("metadata/{}", metadata::metadata_name(name, *version)), bytes.clone());
    }
    let next = |role: &str| previous.map_or(1, |previous| previous.version(role).saturating_add(1));
    let number = next("snapshot");
    let snapshot = metadata::snapshot(number, now + online.snapshot.life, &candidate.roles);
    let snapshot = online.snapshot.sign("snapshot", snapshot, clock).await?;
    let timestamp = metadata::timestamp(next("timestamp"), now + online.timestamp.life, number, &snapshot);
    let timestamp = online.timestamp.sign("timestamp", timestamp, clock).await?;
    versioned.insert(format!("metadata/{}", metadata::metadata_name("snapshot", number)), snapshot);
    let mut last: Named = candidate
        .roots
        .iter()
        .map(|(version, bytes)| (format!("metadata/{}", metadata::metadata_name("root", *version)), bytes.clone()))
        .collect();
    last.insert("metadata/timestamp.json".to_owned(), timestamp);
    Ok(NewFiles { versioned, last })
}

impl Duty {
    async fn sign(&self, role: &str, signed: serde_json::Value, clock: &dyn Clock) -> Result<Bytes, PublishError> {
        if self.sources.is_empty() {
            return Err(PublishError::Key(format!("{role}: no key: give --{role}-key FILE.pem")));
        }
        keys::sign_with(role, signed, &self.sources, &self.keys, self.threshold, clock).await
    }
}

/// The keys that `policy new` made, where they are still here.
fn default_keys(workspace: &Workspace, settings: &RoleSettings) -> Vec<KeySource> {
    let place = |(name, _): &(String, TufKey)| workspace.directory().join("keys").join(format!("{name}.pem"));
    settings.keys.iter().map(place).filter(|place| place.exists()).map(KeySource::File).collect()
}

/// Loads `over` in front of what lies at `out`: from nothing, and from what is published now.
async fn load_both(
    out: &Path,
    over: &Named,
    anchor: &Bytes,
    previous: Option<&Published>,
    expiry: Option<Timestamp>,
) -> Result<Published, PublishError> {
    let overlay = Overlay::new(out, over.clone());
    let loaded = Published::load(overlay.clone(), anchor, None, expiry).await;
    let loaded = loaded.map_err(|error| refused(format!("a sidecar that starts empty would refuse it: {error}")))?;
    if let Some(previous) = previous {
        let running = Published::load(overlay, anchor, Some(previous), expiry).await;
        running.map_err(|error| refused(format!("a sidecar that runs would refuse it: {error}")))?;
    }
    Ok(loaded)
}

/// The policy that `files` make.
fn policy(files: &PolicyFiles) -> Result<Policy, Vec<Problem>> {
    Policy::load(files).map_err(|error| error.problems)
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

/// What sidecars will make of the files: which scopes are newly suspended, and what else is worth a look.
fn judge(
    files: &PolicyFiles,
    previous: Option<&Published>,
    gate: &Gate<'_>,
) -> Result<(Vec<ScopeId>, Vec<String>), PublishError> {
    let loaded = match policy(files) {
        Ok(loaded) => loaded,
        Err(problems) if gate.kill => return Ok((Vec::new(), problems.iter().map(Problem::to_string).collect())),
        Err(problems) => {
            return Err(refused(format!("sidecars would refuse the whole version: {}", list(&problems))));
        }
    };
    // A version that was bad before had no scope that this one could suspend.
    let before = previous.and_then(|previous| policy(previous.files()).ok());
    let was = |id: &ScopeId| before.as_ref().is_some_and(|before| before.suspended().contains_key(id));
    let newly: Vec<_> = loaded.suspended().iter().filter(|(id, _)| !was(id)).collect();
    let unnamed = |id: &ScopeId| !gate.kill && !gate.suspend.contains(id);
    let bad: Vec<String> =
        newly.iter().filter(|(id, _)| unnamed(id)).map(|(id, problems)| format!("{id} ({})", list(problems))).collect();
    if !bad.is_empty() {
        let message = format!("it would suspend {}: fix it, or say --suspend SCOPE for each", bad.join(", "));
        return Err(refused(message));
    }
    let warnings = loaded.stray().iter().chain(loaded.warnings()).map(Problem::to_string).collect();
    Ok((newly.into_iter().map(|(id, _)| id.clone()).collect(), warnings))
}

/// Lets operations try what is new: one run of `command` for each grant whose bytes are not published.
async fn dry_mint(
    files: &PolicyFiles,
    previous: Option<&Published>,
    command: Option<&str>,
    clock: &dyn Clock,
) -> Result<usize, PublishError> {
    let Some(command) = command else { return Ok(0) };
    let mut tried = 0;
    for (path, bytes) in files.files.iter().filter(|(path, _)| path.starts_with("grants/")) {
        let known = previous.and_then(|previous| previous.files().files.get(path));
        // A broken one is suspended, and nothing is minted for it.
        if known == Some(bytes) || Grant::parse(bytes).is_err() {
            continue;
        }
        let table: Option<toml::Table> = std::str::from_utf8(bytes).ok().and_then(|text| toml::from_str(text).ok());
        let id = path.trim_start_matches("grants/").trim_end_matches(".toml");
        let told = json!({"grant": id, "digest": Digest::of(bytes).to_string(), "content": table}).to_string();
        let run = within(clock, DRY_MINT, try_grant(command, told)).await;
        match run {
            Some(Ok(true)) => tried += 1,
            Some(Ok(false)) => return Err(refused(format!("{path}: the dry mint says that it does not work"))),
            Some(Err(error)) => return Err(refused(format!("{path}: the dry mint cannot be run: {error}"))),
            None => return Err(refused(format!("{path}: the dry mint took longer than {} s", DRY_MINT.as_secs()))),
        }
    }
    Ok(tried)
}

async fn try_grant(command: &str, told: String) -> std::io::Result<bool> {
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    // It, and whatever it has started: a cloud's command line that hangs outlives its shell.
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not look at it may still know.
        let _ = stdin.write_all(told.as_bytes()).await;
    }
    let ended = child.wait().await;
    group.0 = None;
    Ok(ended?.success())
}

/// Kills a process group when dropped, unless its leader has been waited for: its id may be another's then.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Gone already is as good.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// What has ended, of the roles without which sidecars refuse a version that they have not seen.
fn lapsed_head(loaded: &Published, now: Timestamp) -> Option<String> {
    let end =
        |role: &&str| loaded.standing().ends.get(*role).filter(|end| **end <= now).map(|end| (role.to_string(), end));
    let lapsed = ["root", "timestamp", "snapshot", "targets"].iter().find_map(end);
    lapsed.map(|(role, end)| {
        format!("{role} lapsed at {end}: until it is signed again sidecars take of this version the kill list alone")
    })
}

/// The roles that expire soon: within 30 days, and within a tenth of their life.
pub(super) fn lapsing(workspace: &Workspace, published: &Published, now: Timestamp) -> Vec<String> {
    let soon = |(name, end): (&str, Timestamp)| {
        let role = workspace.settings().role(name).ok().filter(|role| !role.retired)?;
        let left = end.since(now);
        let near = left < SOON && (left < role.life / 10 || name == "root");
        (near && name != "timestamp").then(|| format!("{name} lapses at {end}: sign it again before"))
    };
    published.standing().ends.iter().filter_map(|(name, end)| soon((name, *end))).collect()
}

/// Puts one file where clients look for it. What is published is never changed: a name means the same bytes for ever.
fn place(out: &Path, name: &str, bytes: &Bytes, previous: Option<&Published>) -> Result<(), PublishError> {
    let place = out.join(name);
    match read_file(&place, MAX_METADATA)? {
        Some(there) if there == *bytes => return Ok(()),
        // Metadata above what is published is left by a publication that was cut off: nobody was told of it.
        Some(_) if !name.starts_with("metadata/") || name.ends_with(".root.json") || is_published(name, previous) => {
            return Err(refused(format!(
                "{}: is there with other bytes; what is published never changes",
                place.display()
            )));
        }
        _ => {}
    }
    write_file(&place, bytes, 0o644)
}

fn is_published(name: &str, previous: Option<&Published>) -> bool {
    let file = name.trim_start_matches("metadata/");
    let Some((version, role)) = file.trim_end_matches(".json").split_once('.') else { return false };
    version.parse::<u64>().is_ok_and(|version| previous.is_some_and(|previous| version <= previous.version(role)))
}

/// Keeps in the working repository what the next signatures begin from.
fn keep(workspace: &Workspace, published: &Published) -> Result<(), PublishError> {
    let put = |name: String, bytes: &Bytes| match read_file(
        &workspace.directory().join("metadata").join(&name),
        MAX_METADATA,
    )? {
        Some(there) if there == *bytes => Ok(()),
        _ => workspace.keep(&name, bytes),
    };
    for (version, bytes) in &published.head.roots {
        put(metadata::metadata_name("root", *version), bytes)?;
    }
    put("snapshot.json".to_owned(), &published.head.snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[tokio::test]
    async fn a_dry_mint_that_hangs_is_stopped_with_all_that_it_started() {
        let clock = ManualClock::at(Timestamp::from_secs(1_795_452_513));
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("child");
        let command = format!("sleep 1000 & echo $! > {0}.new && mv {0}.new {0}; wait", place.display());
        let stepped = clock.clone();
        let step = async {
            while !place.exists() {
                tokio::task::yield_now().await;
            }
            stepped.advance(DRY_MINT);
        };
        let (run, ()) = tokio::join!(within(&clock, DRY_MINT, try_grant(&command, String::new())), step);
        assert!(run.is_none());
        let child = std::fs::read_to_string(&place).unwrap();
        // Killed; whoever adopted it may not have buried it yet.
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        while !(stat().is_empty() || stat().contains(") Z ")) {
            tokio::task::yield_now().await;
        }
    }
}
