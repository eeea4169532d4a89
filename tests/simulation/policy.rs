//! The policy source: publishes versions, goes away, gives nonsense.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use sidemint::policy::PolicyVersion;
use sidemint::policy::document::Digest;
use sidemint::policy::repository::{Fetched, PolicyFiles, PolicySource, PolicySourceError};

/// The workloads; the sidecar has an SVID of each but the last.
pub(crate) const WHO: [&str; 3] =
    ["spiffe://example.org/sa/report", "spiffe://example.org/sa/other", "spiffe://example.org/sa/foreign"];
/// What differs between scopes: id, `max_task`, `max_residual` in seconds, idle.
pub(crate) const SCOPES: [Scope; 4] = [
    Scope { id: "archive", max_task: 3600, max_residual: 1200, idle: None },
    Scope { id: "brief", max_task: 600, max_residual: 60, idle: None },
    Scope { id: "exact", max_task: 3600, max_residual: 900, idle: None },
    Scope { id: "idling", max_task: 3600, max_residual: 300, idle: Some(120) },
];

/// A scope of the simulation.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) id: &'static str,
    pub(crate) max_task: u64,
    pub(crate) max_residual: u64,
    idle: Option<u64>,
}

/// Whom a version permits what: indices into [`WHO`] and [`SCOPES`].
pub(crate) type Permits = BTreeSet<(usize, usize)>;

/// What the source does when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    Away,
    Nonsense,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    files: PolicyFiles,
    /// Every version, in the order they were published.
    published: Vec<(PolicyVersion, Permits)>,
}

/// The source. It outlives every sidecar.
#[derive(Debug)]
pub(crate) struct Source(Mutex<State>);

impl Source {
    pub(crate) fn new(permits: Permits) -> Arc<Self> {
        let files = files(&permits, 0);
        let published = vec![(files.version.clone(), permits)];
        Arc::new(Self(Mutex::new(State { mood: Mood::Well, files, published })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn publish(&self, permits: Permits) {
        let mut state = self.state();
        state.files = files(&permits, state.published.len());
        let version = state.files.version.clone();
        state.published.push((version, permits));
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// Which version in the order of publication this is, and what it permits.
    pub(crate) fn known(&self, version: &PolicyVersion) -> Option<(usize, Permits)> {
        let state = self.state();
        let at = state.published.iter().position(|(known, _)| known == version)?;
        Some((at, state.published[at].1.clone()))
    }
}

#[async_trait]
impl PolicySource for Source {
    async fn fetch(&self, seen: Option<&PolicyVersion>) -> Result<Fetched, PolicySourceError> {
        let state = self.state();
        match state.mood {
            Mood::Away => Err(PolicySourceError::unavailable("the model is away")),
            Mood::Nonsense => {
                let mut files = state.files.files.clone();
                files.insert("boundaries/bad.cedar".into(), Bytes::from_static(b"permit (nobody knows what;"));
                Ok(Fetched::New(PolicyFiles::unsigned(files)))
            }
            Mood::Well if seen == Some(&state.files.version) => Ok(Fetched::Unchanged),
            Mood::Well => Ok(Fetched::New(state.files.clone())),
        }
    }
}

fn files(permits: &Permits, number: usize) -> PolicyFiles {
    let mut files = BTreeMap::new();
    let mut put = |path: String, text: String| drop(files.insert(path, Bytes::from(text)));
    for (at, Scope { id, max_task, max_residual, idle }) in SCOPES.iter().enumerate() {
        let scope =
            "schema = 1\npurpose = \"tests\"\nbusiness_owner = \"tests\"\njustification = \"tests\"\n[params]\n";
        let grant = format!(
            "schema = 1\nprovider = \"aws\"\nrole_arn = \"arn:aws:iam::111122223333:role/{id}\"\n\
             [[session_policy.Statement]]\nEffect = \"Allow\"\nAction = [\"s3:GetObject\"]\n\
             Resource = [\"arn:aws:s3:::bucket/{id}/*\"]\n"
        );
        let idle = idle.map_or(String::new(), |idle| format!("idle = \"{idle}s\"\n"));
        let decision = format!(
            "schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"tests\"\nreview_by = 2029-02-01\n\
             max_task = \"{max_task}s\"\nmax_residual = \"{max_residual}s\"\n{idle}scope = \"{}\"\ngrants = {{ {id}-aws = \"{}\" }}\n",
            Digest::of(scope.as_bytes()),
            Digest::of(grant.as_bytes()),
        );
        let rule = |who: &usize| {
            format!(
                "@id(\"r{who}\")\npermit (principal == Workload::\"{}\", action == Action::\"begin\", resource == Scope::\"{id}\");\n",
                WHO[*who]
            )
        };
        let rules: String = permits.iter().filter(|(_, scope)| *scope == at).map(|(who, _)| rule(who)).collect();
        put(format!("scopes/{id}.toml"), scope.to_owned());
        put(format!("grants/{id}-aws.toml"), grant);
        put(format!("decisions/{id}.cedar"), rules);
        put(format!("decisions/{id}.toml"), decision);
    }
    put("boundaries/number.cedar".into(), format!("// version {number}\n"));
    PolicyFiles::unsigned(files)
}
