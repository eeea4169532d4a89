//! The policy source: signs versions, kill lists and heartbeats; goes quiet, goes away, gives nonsense, goes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sidemint::clock::{Clock as _, ManualClock, Timestamp};
use sidemint::exchange::Provider;
use sidemint::policy::PolicyVersion;
use sidemint::policy::document::Digest;
use sidemint::policy::repository::{Fetched, PolicyFiles, PolicySource, PolicySourceError, Previous, Signed, Use};
use sidemint::policy::standing::{OWNERS, RoleName, Standing, TOP_ROLES};

use crate::planted::Planted;

/// The workloads; the sidecar has an SVID of each but [`FOREIGN`].
pub(crate) const WHO: [&str; 4] = [
    "spiffe://example.org/sa/report",
    "spiffe://example.org/sa/other",
    "spiffe://example.org/sa/foreign",
    "spiffe://partner.example/sa/report",
];
/// Of whom there is never an SVID.
pub(crate) const FOREIGN: usize = 2;
/// Who is of another trust domain.
pub(crate) const PARTNER: usize = 3;
/// The trust domains, in the order of what a kill list may name.
pub(crate) const DOMAINS: [&str; 2] = ["example.org", "partner.example"];

/// What differs between scopes.
pub(crate) const SCOPES: [Scope; 6] = [
    Scope { id: "archive", at: &[Provider::Aws], max_task: 3600, max_residual: 1200, idle: None, outlives: 0 },
    Scope { id: "brief", at: &[Provider::Aws], max_task: 600, max_residual: 60, idle: None, outlives: 0 },
    Scope { id: "exact", at: &[Provider::Vault], max_task: 3600, max_residual: 900, idle: None, outlives: 0 },
    Scope { id: "idling", at: &[Provider::Aws], max_task: 3600, max_residual: 300, idle: Some(120), outlives: 0 },
    Scope {
        id: "both",
        at: &[Provider::Aws, Provider::Vault],
        max_task: 3600,
        max_residual: 600,
        idle: None,
        outlives: 0,
    },
    // Its sessions may leave a root session of 15 minutes behind.
    Scope { id: "chaining", at: &[Provider::Aws], max_task: 3600, max_residual: 1800, idle: None, outlives: 900 },
];

/// For how long the policy may have lapsed, by the charter.
pub(crate) const MAX_STALENESS: Duration = Duration::from_secs(2 * 3600);
/// For how long the role `timestamp` is valid after a heartbeat. Every other role never expires.
const HEARTBEAT: Duration = Duration::from_secs(3600);

/// A scope of the simulation. Its times are in seconds.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) id: &'static str,
    pub(crate) at: &'static [Provider],
    pub(crate) max_task: u64,
    pub(crate) max_residual: u64,
    idle: Option<u64>,
    /// For how long what its sessions may make lives on after them.
    outlives: u64,
}

impl Scope {
    /// The scope that has this grant.
    pub(crate) fn of(provider: Provider, grant: &str) -> &'static Self {
        SCOPES.iter().find(|scope| scope.grant(provider) == grant).unwrap()
    }

    /// For how long what its sessions may make lives on after them.
    pub(crate) fn outlives(&self) -> Duration {
        Duration::from_secs(self.outlives)
    }

    /// The grant at one of its providers.
    pub(crate) fn grant(&self, provider: Provider) -> String {
        format!("{}-{provider}", self.id)
    }
}

/// Whom a version permits what: indices into [`WHO`] and [`SCOPES`].
pub(crate) type Permits = BTreeSet<(usize, usize)>;

/// What a version has of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Whole,
    /// No file of it.
    Gone,
    /// The scope file was changed after it was decided on.
    Changed,
}

/// What an entry of the kill list stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Scope(usize),
    Who(usize),
    Domain(usize),
    Task(String),
    Grant(usize, Provider),
    Provider(Provider),
    All,
}

/// An entry of the kill list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) target: Target,
    pub(crate) until: Option<Timestamp>,
}

impl Kill {
    /// Whether it stops this task at `now`: told from the model, not from the product's own list.
    pub(crate) fn stops(&self, who: usize, scope: usize, task: &str, now: Timestamp) -> bool {
        let hit = match &self.target {
            Target::Scope(at) => *at == scope,
            Target::Who(at) => *at == who,
            Target::Domain(at) => WHO[who].contains(&format!("//{}/", DOMAINS[*at])),
            Target::Task(id) => id == task,
            Target::Grant(at, _) => *at == scope,
            Target::Provider(provider) => SCOPES[scope].at.contains(provider),
            Target::All => true,
        };
        hit && self.until.is_none_or(|until| now < until)
    }

    fn text(&self, number: usize) -> String {
        let target = match &self.target {
            Target::Scope(at) => format!("scope = \"{}\"", SCOPES[*at].id),
            Target::Who(at) => format!("spiffe_id = \"{}\"", WHO[*at]),
            Target::Domain(at) => format!("trust_domain = \"{}\"", DOMAINS[*at]),
            Target::Task(id) => format!("task = \"{id}\""),
            Target::Grant(at, provider) => format!("grant = \"{}\"", SCOPES[*at].grant(*provider)),
            Target::Provider(provider) => format!("provider = \"{provider}\""),
            Target::All => "all = true".to_owned(),
        };
        let until = self.until.map_or(String::new(), |until| format!("until = {until}\n"));
        format!("[[stop]]\nid = \"stop-{number}\"\n{target}\nreason = \"INC-{number}\"\n{until}")
    }
}

/// What the source does when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Gives what there is, and no heartbeat comes any more.
    Silent,
    Away,
    /// A version whose boundaries cannot be read, under the kill list of the newest.
    Nonsense,
    /// A new version with the kill list that was before the newest.
    OldKill,
}

/// What a version was made of.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) permits: Permits,
    pub(crate) shapes: [Shape; SCOPES.len()],
}

impl Content {
    /// Whom it permits what, now that some scopes are gone.
    pub(crate) fn permitted(&self) -> Permits {
        self.permits.iter().filter(|(_, scope)| self.shapes[*scope] == Shape::Whole).copied().collect()
    }
}

#[derive(Debug)]
struct Published {
    files: PolicyFiles,
    permits: Permits,
    /// The epoch of its kill list.
    kill: usize,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    /// Every version, in the order they were published.
    published: Vec<Published>,
    /// Every kill list: the place is its epoch less one.
    kills: Vec<Vec<Kill>>,
    /// When the role `timestamp` expires.
    expires: Timestamp,
    /// Versions that were never published, of moods: which one each was made of.
    odd: Vec<(PolicyVersion, usize)>,
    refreshes: u64,
    used: Option<PolicyVersion>,
}

/// The source. It outlives every sidecar.
#[derive(Debug)]
pub(crate) struct Source {
    truth: ManualClock,
    planted: Planted,
    state: Mutex<State>,
}

impl Source {
    pub(crate) fn new(content: &Content, truth: ManualClock, planted: Planted) -> Arc<Self> {
        let expires = truth.now() + HEARTBEAT;
        let first = files(content, &[], 0, planted);
        let state = State {
            mood: Mood::Well,
            published: vec![Published { files: first, permits: content.permitted(), kill: 1 }],
            kills: vec![Vec::new()],
            expires,
            odd: Vec::new(),
            refreshes: 0,
            used: None,
        };
        Arc::new(Self { truth, planted, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Publishes a version, with the newest kill list, or with `kill` as the next.
    pub(crate) fn publish(&self, content: &Content, kill: Option<Vec<Kill>>) {
        let mut state = self.state();
        state.kills.extend(kill);
        let number = state.published.len();
        let files = files(content, state.kills.last().unwrap(), number, self.planted);
        let kill = state.kills.len();
        state.published.push(Published { files, permits: content.permitted(), kill });
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// A sidecar starts. The real source remembers on disk which kill list it has seen, so that no start is fooled.
    pub(crate) fn started(&self) {
        let mut state = self.state();
        if state.mood == Mood::OldKill {
            state.mood = Mood::Well;
        }
    }

    /// The newest kill list.
    pub(crate) fn kills(&self) -> Vec<Kill> {
        self.state().kills.last().unwrap().clone()
    }

    /// The kill list of an epoch.
    pub(crate) fn kill_list(&self, epoch: u64) -> Vec<Kill> {
        self.state().kills[usize::try_from(epoch).unwrap() - 1].clone()
    }

    /// Whether heartbeats have stopped.
    pub(crate) fn is_silent(&self) -> bool {
        self.state().mood == Mood::Silent
    }

    /// When the newest signature of the policy expires, at the latest.
    pub(crate) fn expires(&self) -> Timestamp {
        self.state().expires
    }

    /// Which version in the order of publication this is, and what it permits.
    pub(crate) fn known(&self, version: &PolicyVersion) -> Option<(usize, Permits)> {
        let state = self.state();
        let at = state.published.iter().position(|known| known.files.version == *version);
        // An older kill list is no older policy: whoever has seen no newer one goes by it.
        let made_of = || state.odd.iter().find(|(odd, _)| odd == version).map(|(_, made_of)| *made_of);
        let at = at.or_else(made_of)?;
        Some((at, state.published[at].permits.clone()))
    }

    fn standing(&self, state: &State) -> Standing {
        let roles = TOP_ROLES.into_iter().chain(OWNERS.iter().map(|(role, _)| *role));
        let end = |role: &str| match (role, self.planted) {
            ("timestamp", Planted::EndlessPolicy) => Timestamp::MAX,
            ("timestamp", _) => state.expires,
            _ => Timestamp::MAX,
        };
        Standing { ends: roles.map(|role| (role.into(), end(role))).collect() }
    }

    fn signed(&self, state: &State, mut files: PolicyFiles, snapshot: u64, incident: usize) -> PolicyFiles {
        let publisher = |path: &String| {
            let owner = OWNERS.iter().find(|(_, folder)| path.starts_with(&format!("{folder}/")));
            (path.clone(), RoleName::from(owner.map_or("targets", |(role, _)| role)))
        };
        let publishers = files.files.keys().map(publisher).collect();
        let standing = self.standing(state);
        files.signed = Some(Signed {
            snapshot,
            incident: incident as u64,
            publishers,
            delegators: BTreeMap::new(),
            standing,
            stray: Vec::new(),
        });
        files
    }

    /// A version that nobody published, made of the newest.
    fn odd(&self, state: &mut State, incident: usize, change: impl FnOnce(&mut BTreeMap<String, Bytes>)) -> Fetched {
        let mut files = state.published.last().unwrap().files.clone();
        change(&mut files.files);
        files.version = PolicyVersion(format!("odd-{}", state.odd.len() + 1).into());
        let made_of = state.published.len() - 1;
        state.odd.push((files.version.clone(), made_of));
        let snapshot = state.published.len() as u64;
        Fetched::New(self.signed(state, files, snapshot, incident))
    }
}

#[async_trait]
impl PolicySource for Source {
    fn signed(&self) -> bool {
        true
    }

    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        let mut state = self.state();
        if state.mood == Mood::Well {
            state.expires = state.expires.max(self.truth.now() + HEARTBEAT);
        }
        let newest = state.kills.len();
        match state.mood {
            Mood::Away => Err(PolicySourceError::unavailable("the model is away")),
            Mood::Nonsense => Ok(self.odd(&mut state, newest, |files| {
                files.insert("boundaries/bad.cedar".into(), Bytes::from_static(b"permit (nobody knows what;"));
            })),
            Mood::OldKill if newest > 1 => {
                let list = list(&state.kills[newest - 2]);
                Ok(self.odd(&mut state, newest - 1, |files| drop(files.insert("kill/list.toml".into(), list))))
            }
            Mood::Well | Mood::Silent | Mood::OldKill => {
                // A source that goes back is a planted bug: the real one remembers on disk what it has seen.
                state.refreshes += 1;
                let goes_back = self.planted == Planted::RollBack && state.refreshes % 2 == 1;
                let back = usize::from(goes_back && state.published.len() > 1);
                let at = state.published.len() - 1 - back;
                let files = state.published[at].files.clone();
                if seen == Some(&files.version) {
                    return Ok(Fetched::Confirmed(self.standing(&state)));
                }
                let mut files = self.signed(&state, files, at as u64 + 1, newest);
                if self.planted == Planted::LoseKills {
                    files.files.remove("kill/list.toml");
                }
                Ok(Fetched::New(files))
            }
        }
    }

    async fn used(&self, version: &PolicyVersion, used: Use) {
        if used == Use::Whole {
            self.state().used = Some(version.clone());
        }
    }

    async fn previous(&self) -> Result<Option<Previous>, PolicySourceError> {
        let state = self.state();
        let Some(used) = &state.used else { return Ok(None) };
        let at = state.published.iter().position(|known| known.files.version == *used).unwrap();
        let files = self.signed(&state, state.published[at].files.clone(), at as u64 + 1, state.published[at].kill);
        Ok(Some(Previous { files, kill: None }))
    }
}

fn list(kills: &[Kill]) -> Bytes {
    let entries: String = kills.iter().enumerate().map(|(number, kill)| kill.text(number)).collect();
    Bytes::from(format!("schema = 1\n{entries}"))
}

fn files(content: &Content, kills: &[Kill], number: usize, planted: Planted) -> PolicyFiles {
    let mut files = BTreeMap::new();
    let mut put = |path: String, text: String| drop(files.insert(path, Bytes::from(text)));
    for (at, scope) in SCOPES.iter().enumerate() {
        let Scope { id, at: providers, max_task, max_residual, idle, outlives } = scope;
        if content.shapes[at] == Shape::Gone {
            continue;
        }
        let scope =
            "schema = 1\npurpose = \"tests\"\nbusiness_owner = \"tests\"\njustification = \"tests\"\n[params]\n";
        let mut grants = Vec::new();
        for provider in *providers {
            let grant = match provider {
                Provider::Aws => format!(
                    "schema = 1\nprovider = \"aws\"\nrole_arn = \"arn:aws:iam::111122223333:role/{id}\"\n\
                     [[session_policy.Statement]]\nEffect = \"Allow\"\nAction = [\"{}\"]\n\
                     Resource = [\"arn:aws:s3:::bucket/{id}/*\"]\n",
                    if *outlives > 0 && planted != Planted::HideOutliving { "sts:AssumeRoot" } else { "s3:GetObject" },
                ),
                Provider::Vault => format!(
                    "schema = 1\nprovider = \"vault\"\nrole = \"{id}\"\naudience = \"vault\"\n\
                     read = \"database/creds/{id}\"\naccept_role_scope = true\n"
                ),
            };
            grants.push(format!("{id}-{provider} = \"{}\"", Digest::of(grant.as_bytes())));
            put(format!("grants/{id}-{provider}.toml"), grant);
        }
        let idle = idle.map_or(String::new(), |idle| format!("idle = \"{idle}s\"\n"));
        let decision = format!(
            "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"tests\"\nreview_by = 2029-02-01\n\
             max_task = \"{max_task}s\"\nmax_residual = \"{max_residual}s\"\n{idle}scope = \"{}\"\ngrants = {{ {} }}\n",
            Digest::of(scope.as_bytes()),
            grants.join(", "),
        );
        // One rule for all: reading rules is what takes the time of a history.
        let mine = content.permits.iter().filter(|(_, scope)| *scope == at);
        let mine: Vec<_> = mine.map(|(who, _)| format!("Workload::\"{}\"", WHO[*who])).collect();
        let rules = match mine.as_slice() {
            [] => String::new(),
            mine => format!(
                "@id(\"r\")\npermit (principal, action == Action::\"begin\", resource == Scope::\"{id}\")\n\
                 when {{ [{}].contains(principal) }};\n",
                mine.join(", ")
            ),
        };
        let changed = if content.shapes[at] == Shape::Changed { "# changed since\n" } else { "" };
        put(format!("scopes/{id}.toml"), format!("{scope}{changed}"));
        put(format!("decisions/{id}.cedar"), rules);
        put(format!("decisions/{id}.toml"), decision);
    }
    put("boundaries/number.cedar".into(), format!("// version {number}\n"));
    put("owners/tests.toml".into(), "schema = 1\nname = \"Tests\"\nmail = \"tests@example.org\"\n".into());
    let staleness = MAX_STALENESS.as_secs();
    put("owners/charter.toml".into(), format!("schema = 1\n[max_staleness]\nbaseline = \"{staleness}s\"\n"));
    files.insert("kill/list.toml".into(), list(kills));
    PolicyFiles { files, version: PolicyVersion(format!("{}-model", number + 1).into()), signed: None }
}
