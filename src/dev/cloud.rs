//! An embedded cloud that really checks: credentials come from [`sts`] against a JWT-SVID, and work at [`s3`] only as
//! far as role ∩ session policy reach, until they are cut or expire.
//!
//! - [`sts`]: `AssumeRoleWithWebIdentity`; [`web_identity`] verifies the token.
//! - [`s3`]: the object store; [`sigv4`] verifies who signed, [`iam`] decides whether they may.
//! - [`http`]: HTTP/1.1 on loopback, with limits.
//! - [`text`]: percent coding, XML text, hexadecimal.
//!
//! It shares no decision with the sidecar: what it refuses, a second and independent reading of the rules refuses.

pub mod http;
pub mod iam;
pub mod s3;
pub mod sigv4;
pub mod sts;
pub mod text;
pub mod web_identity;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{SharedClock, Timestamp};
use crate::secret::Secret;

/// The most sessions that are remembered; beyond it STS answers `Throttling`.
const MAX_SESSIONS: usize = 10_000;
/// The most objects in the store.
const MAX_OBJECTS: usize = 1_000;

/// Gives the issuer's JWK Set as it is now: all that this cloud knows of the authority, and all of it public.
pub type KeySource = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// What a [`Cloud`] is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `iss` of the tokens that it takes.
    pub issuer: String,
    /// The audiences that its identity provider is registered for.
    pub audiences: Vec<String>,
    /// The region that signatures must name.
    pub region: String,
    /// Its roles.
    pub roles: Vec<Role>,
}

/// A role, by whom it may be assumed, and what it allows.
#[derive(Debug, Clone)]
pub struct Role {
    /// `arn:aws:iam::ACCOUNT:role/NAME`.
    pub arn: String,
    /// Its unique id, `AROA…`: the first half of `aws:userid`.
    pub id: String,
    /// The trust policy's condition on the token's `sub`.
    pub trusted_subject: String,
    /// The trust policy's condition on the token's `aud`.
    pub trusted_audience: String,
    /// The longest session.
    pub max_session: Duration,
    /// What it allows.
    pub policy: iam::Policy,
}

/// A role session: one set of credentials, as STS gave them out.
#[derive(Debug)]
pub struct Session {
    /// `AccessKeyId`, `ASIA…`.
    pub access_key_id: String,
    /// `SecretAccessKey`.
    pub secret_access_key: Secret,
    /// `SessionToken`.
    pub session_token: Secret,
    /// The JWT-SVID that was exchanged for it.
    pub web_identity_token: Secret,
    /// The token's `sub`.
    pub subject: String,
    /// The role.
    pub role_arn: String,
    /// The role's unique id.
    pub role_id: String,
    /// The caller's name for it.
    pub session_name: String,
    /// When STS gave it out, UTC.
    pub issued_at: Timestamp,
    /// When it expires, UTC.
    pub expires_at: Timestamp,
    /// The session policy, where one was given.
    pub policy: Option<iam::Policy>,
}

impl Session {
    /// `aws:userid`: the role's id and the session's name.
    pub fn user_id(&self) -> String {
        format!("{}:{}", self.role_id, self.session_name)
    }

    /// `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
    pub fn arn(&self) -> String {
        let account = self.role_arn.split(':').nth(4).unwrap_or_default();
        let role = self.role_arn.rsplit('/').next().unwrap_or_default();
        format!("arn:aws:sts::{account}:assumed-role/{role}/{}", self.session_name)
    }
}

/// An object in the store.
#[derive(Debug, Clone)]
pub struct Object {
    /// What it holds.
    pub content: Bytes,
    /// When it was put, UTC.
    pub modified: Timestamp,
}

/// The cloud's state. Shared as `Arc` by its servers.
pub struct Cloud {
    settings: Settings,
    keys: KeySource,
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    roles: HashMap<String, Role>,
    sessions: HashMap<String, Arc<Session>>,
    minted: Vec<Arc<Session>>,
    objects: BTreeMap<String, BTreeMap<String, Object>>,
}

impl Cloud {
    /// A cloud with no buckets and no sessions.
    pub fn new(settings: Settings, keys: KeySource, clock: SharedClock) -> Arc<Self> {
        let roles = settings.roles.iter().map(|role| (role.arn.clone(), role.clone())).collect();
        let state = Mutex::new(State { roles, ..State::default() });
        Arc::new(Self { settings, keys, clock, state })
    }

    /// What it was made as.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Now, UTC.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The issuer's JWK Set as it is now.
    pub(crate) fn jwks(&self) -> Vec<u8> {
        (self.keys)()
    }

    /// Puts an object, and its bucket where it is new. `false` when the store is full.
    pub fn put(&self, bucket: &str, key: &str, content: impl Into<Bytes>) -> bool {
        let object = Object { content: content.into(), modified: self.now() };
        let mut state = self.state();
        let full = state.objects.values().map(BTreeMap::len).sum::<usize>() >= MAX_OBJECTS;
        let objects = state.objects.entry(bucket.to_owned()).or_default();
        let room = !full || objects.contains_key(key);
        if room {
            objects.insert(key.to_owned(), object);
        }
        room
    }

    /// The object, when it is there.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Object> {
        self.state().objects.get(bucket)?.get(key).cloned()
    }

    /// All objects of a bucket whose keys begin with `prefix`, in order; `None` when there is no such bucket.
    pub(crate) fn list(&self, bucket: &str, prefix: &str) -> Option<Vec<(String, Object)>> {
        let state = self.state();
        let objects = state.objects.get(bucket)?;
        Some(objects.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(k, o)| (k.clone(), o.clone())).collect())
    }

    /// Everything that STS ever gave out, oldest first: what tests compare with what should have happened, and the
    /// secrets that must turn up nowhere.
    pub fn minted(&self) -> Vec<Arc<Session>> {
        self.state().minted.clone()
    }

    /// Replaces what a role allows, as `PutRolePolicy` would: it counts for sessions already given out as well. `false`
    /// when there is no such role.
    pub fn set_role_policy(&self, arn: &str, policy: iam::Policy) -> bool {
        self.state().roles.get_mut(arn).map(|role| role.policy = policy).is_some()
    }

    /// The role, when it is there.
    pub(crate) fn role(&self, arn: &str) -> Option<Role> {
        self.state().roles.get(arn).cloned()
    }

    /// The session that an access key belongs to, expired or not.
    pub(crate) fn session(&self, access_key_id: &str) -> Option<Arc<Session>> {
        self.state().sessions.get(access_key_id).cloned()
    }

    /// Remembers a session and writes it in the ledger; `false` when there are too many.
    pub(crate) fn remember(&self, session: Arc<Session>) -> bool {
        let mut state = self.state();
        if state.minted.len() >= MAX_SESSIONS {
            return false;
        }
        state.sessions.insert(session.access_key_id.clone(), Arc::clone(&session));
        state.minted.push(session);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock half-changed, so the state behind a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cloud").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
