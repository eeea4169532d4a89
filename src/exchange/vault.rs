//! HashiCorp Vault and OpenBao: a JWT-SVID of the caller becomes a dynamic secret that can be taken back.
//!
//! Every mint logs in anew and reads one secret: **each lease has a service token of its own**, which is kept in memory
//! until the lease is revoked. Renewing was the other way. It would let one token live as long as its task, so the law of
//! life would rest on our renewing nothing too far; so it rests on Vault: a token ends by itself within the law, and a
//! lease with its token. It also makes an answer that was lost harmless (its token is revoked, and with it whatever it
//! read), and a successor never depends on what its predecessor may still do. A predecessor is left to its own end, which
//! its workload was told, or revoked with the task.
//!
//! # The law of life at Vault
//! - A login whose life is longer than the law allows any credential of the grant is refused: the role is set up wrongly.
//! - A token or lease that would outlive what is left (the task's deadline may be near) is shortened: Vault counts the
//!   `increment` of a renewal from now, so that it can only be asked for less. What cannot be shortened is refused.
//! - Whatever is refused after a login is revoked with its token.
//!
//! # Taking back
//! `sys/leases/revoke` with `sync`, then a look whether the lease is gone (success without effect is no success), then
//! the token. After a crash the token is lost, and a new login of the same caller revokes by the lease's id, where its
//! policy has `update` on `sys/leases/revoke`; where not, nothing is called revoked.

mod answer;
mod fault;
mod http;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::Method;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::answer::{BadLogin, Leased, Login, leased, login, shortened};
use self::fault::{Fault, Remedy, Step};
use self::http::{Call, Client, Reply};
use super::retry::{Backoff, Gate, Jitter, MAX_RETRY_AFTER, Rate, SystemJitter};
use super::{
    Cloud, Credential, ExchangeError, MintOrder, Minted, Provider, Revocation, RevokeOrder, TakenBack, VaultSecret,
};
use crate::clock::{SharedClock, Timestamp};
use crate::identity::SpiffeId;
use crate::identity::workload_api::{JwtSvid, WorkloadApi, WorkloadApiError};
use crate::policy::{ProviderGrant, VaultGrant};
use crate::secret::{Secret, SecretBytes};

pub use self::http::MAX_ANSWER;

/// What is asked for less than is left, for the time that the asking takes.
const SLACK: Duration = Duration::from_secs(2);
/// A credential that lives shorter would be dead before it is used.
const MIN_LIFE: Duration = Duration::from_secs(5);
const TRIES: u32 = 3;
const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_CAP: Duration = Duration::from_secs(5);
/// How long revoking the token of a failed mint may take: whoever waits has waited long enough.
const CLEAN_UP: Duration = Duration::from_secs(2);
/// The most tokens that are kept at a time.
const MAX_HELD: usize = 65_536;

/// Where and how Vault is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `https://HOST[:PORT]`. Plain `http` only on loopback.
    pub address: String,
    /// The certificates that its TLS certificate is judged by (PEM); the machine's roots where none are named.
    pub ca: Option<PathBuf>,
    /// The namespace for grants that name none.
    pub namespace: Option<String>,
    /// How long one request may take.
    pub timeout: Duration,
    /// How often it may be asked for a credential, and as often to take one back.
    pub rate: Rate,
}

/// Settings that cannot work, each with its mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not `https://HOST[:PORT]` or `http://HOST[:PORT]`.
    #[error("vault.address must be https://HOST[:PORT] without user, path or query")]
    Address,
    /// Tokens would cross the network in the clear.
    #[error("vault.address may be plain http on loopback only: use https://")]
    PlainHttp,
    /// The file of roots.
    #[error("vault.ca: {0} holds no usable PEM certificate")]
    Ca(String),
    /// The TLS library refused to start.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// One Vault.
#[derive(Debug)]
pub struct Vault {
    settings: Settings,
    client: Client,
    workload_api: Arc<dyn WorkloadApi>,
    clock: SharedClock,
    jitter: Arc<dyn Jitter>,
    mints: Gate,
    /// Apart from the mints, so that neither ever waits for the other.
    revocations: Gate,
    held: Mutex<BTreeMap<String, Arc<Held>>>,
}

/// The token by which a lease can be taken back.
#[derive(Debug)]
struct Held {
    token: Secret,
    /// When it ends by itself.
    until: Timestamp,
    /// Whether its lease is certainly gone.
    lease_gone: AtomicBool,
}

/// The name of a lease that is journalled ([`Minted::upstream`]): enough to log in again and revoke it. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Handle {
    lease: String,
    accessor: String,
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    mount: String,
    role: String,
    audience: String,
}

/// Where to log in.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    mount: &'a str,
    role: &'a str,
    namespace: Option<&'a str>,
    audience: &'a str,
    caller: &'a SpiffeId,
}

impl Vault {
    /// Makes the stage; nothing is called yet.
    ///
    /// # Errors
    /// Refuses settings that cannot work or would send tokens in the clear.
    pub fn new(
        settings: Settings,
        workload_api: Arc<dyn WorkloadApi>,
        clock: SharedClock,
    ) -> Result<Self, SettingsError> {
        let client = Client::new(&settings.address, settings.ca.as_deref())?;
        let (mints, revocations) = (Gate::new(settings.rate), Gate::new(settings.rate));
        let jitter = Arc::new(SystemJitter);
        Ok(Self { settings, client, workload_api, clock, jitter, mints, revocations, held: Mutex::default() })
    }

    /// The same with another source of randomness for its backoff.
    pub fn with_jitter(self, jitter: Arc<dyn Jitter>) -> Self {
        Self { jitter, ..self }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Held>>> {
        // The map is whole between any two lines: a panic elsewhere cannot have torn it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request, its JSON built from `body`.
    async fn call(
        &self,
        (step, path): (Step, &str),
        (token, namespace): (Option<&Secret>, Option<&str>),
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<Reply, Fault> {
        // Texts and numbers always serialise.
        let body = body.map(|body| SecretBytes::new(serde_json::to_vec(body).unwrap_or_default()));
        let method = if body.is_some() || step != Step::Read { Method::POST } else { Method::GET };
        let call = Call { step, method, path, token, namespace, body };
        self.client.send(&*self.clock, call, limit.min(self.settings.timeout)).await
    }

    /// A JWT-SVID of the caller, never of anyone else.
    async fn svid(&self, place: Place<'_>, limit: Duration) -> Result<JwtSvid, ExchangeError> {
        let no_svid = |detail: String, passing: bool| ExchangeError::NoSvid { detail, passing };
        let svid = self.workload_api.fetch_jwt_svid(place.caller, place.audience, limit).await.map_err(|error| {
            let passing = !matches!(error, WorkloadApiError::Denied(_));
            no_svid(error.to_string(), passing)
        })?;
        if svid.spiffe_id != *place.caller {
            return Err(no_svid("the Workload API gave a JWT-SVID of another identity".to_owned(), false));
        }
        if svid.expires_at <= self.clock.now() {
            return Err(no_svid("the Workload API gave an expired JWT-SVID".to_owned(), true));
        }
        Ok(svid)
    }

    /// Logs in. A token that is not taken is revoked before this returns.
    async fn login(&self, place: Place<'_>, svid: &JwtSvid, limit: Duration) -> Result<Login, Fault> {
        #[derive(Serialize)]
        struct Body<'a> {
            role: &'a str,
            jwt: &'a str,
        }
        // exposed: the token is what is exchanged
        let body = Body { role: place.role, jwt: svid.token.expose() };
        let path = format!("auth/{}/login", place.mount);
        let reply = self.call((Step::Login, &path), (None, place.namespace), Some(&body), limit).await?;
        match login(&reply.body) {
            Ok(login) => Ok(login),
            Err(BadLogin { fault, token }) => {
                if let Some(token) = token {
                    self.drop_token(&token, place.namespace, CLEAN_UP).await;
                }
                Err(fault)
            }
        }
    }

    /// Revokes a token, and with it all that it leased; says whether Vault did.
    async fn drop_token(&self, token: &Secret, namespace: Option<&str>, limit: Duration) -> bool {
        let target = (Step::DropToken, "auth/token/revoke-self");
        let dropped = self.call(target, (Some(token), namespace), None::<&()>, limit).await;
        if let Err(fault) = &dropped {
            tracing::warn!(detail = fault.detail, "a token of Vault was not revoked and ends by itself");
        }
        dropped.is_ok()
    }

    fn namespace<'a>(&'a self, grant: &'a VaultGrant) -> Option<&'a str> {
        grant.namespace.as_deref().or(self.settings.namespace.as_deref())
    }

    /// Tries until there is a credential, a final refusal, or no time left.
    async fn exchange(&self, order: &MintOrder, grant: &VaultGrant) -> Result<Minted, ExchangeError> {
        let place = Place {
            mount: &grant.mount,
            role: &grant.role,
            namespace: self.namespace(grant),
            audience: &grant.audience,
            caller: &order.caller,
        };
        let deadline = self.clock.boot().saturating_add(order.limit);
        let remaining = || deadline.saturating_sub(self.clock.boot());
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP, TRIES);
        let mut fresh_svid_left = true;
        loop {
            let turn = self.mints.turn(&*self.clock, remaining()).await.map_err(|shut| shut.error("Vault"))?;
            let svid = self.svid(place, remaining()).await?;
            let fault = match self.attempt(order, grant, place, &svid, deadline).await {
                Ok(minted) => {
                    turn.answered();
                    return Ok(minted);
                }
                Err(fault) => fault,
            };
            match fault.is_outage() {
                true => turn.failed(fault.retry_after, self.jitter.fraction()),
                false => turn.answered(),
            }
            if let Some(wait) = fault.retry_after {
                self.mints.hold(&*self.clock, wait);
            }
            match fault.remedy {
                Remedy::Retry => match backoff.next(self.jitter.fraction(), fault.retry_after, remaining()) {
                    Some(wait) => {
                        tracing::debug!(detail = fault.detail, ?wait, "Vault will be tried again");
                        self.clock.sleep(wait).await;
                    }
                    None => return Err(fault.into()),
                },
                Remedy::FreshSvid if fresh_svid_left => fresh_svid_left = false,
                _ => return Err(fault.into()),
            }
        }
    }

    /// One login and one secret; whatever goes wrong after the login, its token is revoked.
    async fn attempt(
        &self,
        order: &MintOrder,
        grant: &VaultGrant,
        place: Place<'_>,
        svid: &JwtSvid,
        deadline: Duration,
    ) -> Result<Minted, Fault> {
        let login = self.login(place, svid, deadline.saturating_sub(self.clock.boot())).await?;
        match self.with_token(order, grant, place, &login, deadline).await {
            Ok((leased, usable_until)) => Ok(self.keep(grant, place, login, leased, usable_until)),
            Err(fault) => match self.drop_token(&login.token, place.namespace, CLEAN_UP).await {
                true => Err(fault),
                // Something may have been leased and not taken back: then it is not certain that nothing was minted.
                false if fault.remedy == Remedy::Retry => Err(fault),
                false => Err(Fault { remedy: Remedy::Distrust, ..fault }),
            },
        }
    }

    /// Reads the secret, and sees to it that neither token nor lease outlive the law.
    async fn with_token(
        &self,
        order: &MintOrder,
        grant: &VaultGrant,
        place: Place<'_>,
        login: &Login,
        deadline: Duration,
    ) -> Result<(Leased, Timestamp), Fault> {
        let remaining = || deadline.saturating_sub(self.clock.boot());
        let life = Duration::from_secs(login.life);
        if life > order.max_life {
            return Err(Fault::new(
                Remedy::Mend,
                format!(
                    "the role's tokens live {} s, and no credential of this grant may live longer than {} s: lower token_ttl",
                    login.life,
                    order.max_life.as_secs()
                ),
            ));
        }
        let auth = (Some(&login.token), place.namespace);
        let mut token_end = self.clock.now() + life;
        if token_end > order.dead_by {
            #[derive(Serialize)]
            struct Body {
                increment: u64,
            }
            let body = Body { increment: self.asked_for(order.dead_by, login.renewable)? };
            let reply = self.call((Step::Shorten, "auth/token/renew-self"), auth, Some(&body), remaining()).await?;
            token_end = self.in_time(&reply, order.dead_by)?;
        }
        let reply = self.call((Step::Read, &grant.read), auth, None::<&()>, remaining()).await?;
        let leased = leased(&reply.body, &grant.read)?;
        let lease_end = self.clock.now() + Duration::from_secs(leased.life);
        let lease_end = self.shorten_lease(&leased, lease_end, (order.dead_by, token_end), auth, remaining()).await?;
        // A lease dies with its token.
        let usable_until = lease_end.min(token_end);
        if usable_until <= self.clock.now() {
            return Err(Fault::nonsense(Step::Read, "it came after the end of its own life"));
        }
        Ok((leased, usable_until))
    }

    /// Asks for less where the lease would outlive its token or the law. It must not outlive the law; its token it may,
    /// where it cannot be shortened: Vault ends it with the token then.
    async fn shorten_lease(
        &self,
        leased: &Leased,
        lease_end: Timestamp,
        (dead_by, token_end): (Timestamp, Timestamp),
        auth: (Option<&Secret>, Option<&str>),
        limit: Duration,
    ) -> Result<Timestamp, Fault> {
        #[derive(Serialize)]
        struct Body<'a> {
            lease_id: &'a str,
            increment: u64,
        }
        let end = dead_by.min(token_end);
        if lease_end <= end {
            return Ok(lease_end);
        }
        let shortened = match self.asked_for(end, leased.renewable) {
            Err(fault) => Err(fault),
            Ok(increment) => {
                let body = Body { lease_id: &leased.lease_id, increment };
                match self.call((Step::Shorten, "sys/leases/renew"), auth, Some(&body), limit).await {
                    Ok(reply) => self.in_time(&reply, dead_by),
                    Err(fault) => Err(fault),
                }
            }
        };
        match shortened {
            Err(fault) if lease_end <= dead_by && fault.remedy != Remedy::Retry => Ok(lease_end),
            other => other,
        }
    }

    /// The seconds to ask for, so that the end comes no later than `end`.
    fn asked_for(&self, end: Timestamp, renewable: bool) -> Result<u64, Fault> {
        let seconds = end.since(self.clock.now()).saturating_sub(SLACK).as_secs();
        if !renewable {
            return Err(Fault::new(Remedy::Mend, "it would outlive the law of life and cannot be shortened"));
        }
        if seconds == 0 {
            return Err(Fault::new(Remedy::Mend, "too little life is left"));
        }
        Ok(seconds)
    }

    /// The end that a renewal answered, which must not be after `dead_by`.
    fn in_time(&self, reply: &Reply, dead_by: Timestamp) -> Result<Timestamp, Fault> {
        let end = self.clock.now() + Duration::from_secs(shortened(&reply.body)?);
        if end > dead_by {
            return Err(Fault::new(Remedy::Mend, "it lives longer than the law of life allows and was not shortened"));
        }
        Ok(end)
    }

    /// Keeps the token of a lease until it is taken back.
    fn keep(
        &self,
        grant: &VaultGrant,
        place: Place<'_>,
        login: Login,
        leased: Leased,
        usable_until: Timestamp,
    ) -> Minted {
        let handle = Handle {
            lease: leased.lease_id.clone(),
            accessor: login.accessor,
            address: self.settings.address.clone(),
            namespace: place.namespace.map(str::to_owned),
            mount: grant.mount.clone(),
            role: grant.role.clone(),
            audience: grant.audience.clone(),
        };
        // Texts always serialise.
        let upstream = serde_json::to_string(&handle).unwrap_or_default();
        let held = Held { token: login.token, until: usable_until, lease_gone: AtomicBool::new(false) };
        let now = self.clock.now();
        let mut all = self.held();
        all.retain(|_, held| held.until > now);
        all.insert(upstream.clone(), Arc::new(held));
        drop(all);
        let credential = Credential::Vault(VaultSecret { lease_id: leased.lease_id, data: leased.data });
        Minted { credential, usable_until, revocation: Revocation::Exact, upstream }
    }

    /// Takes the lease of `handle` back by `token`: `None` where the policy of the token does not allow it.
    async fn revoke_lease(&self, handle: &Handle, token: &Secret, limit: Duration) -> Result<Option<()>, Fault> {
        #[derive(Serialize)]
        struct Revoke<'a> {
            lease_id: &'a str,
            sync: bool,
        }
        #[derive(Serialize)]
        struct Look<'a> {
            lease_id: &'a str,
        }
        let auth = (Some(token), handle.namespace.as_deref());
        let body = Revoke { lease_id: &handle.lease, sync: true };
        match self.call((Step::Revoke, "sys/leases/revoke"), auth, Some(&body), limit).await {
            Ok(_) => {}
            Err(fault) if fault.status == Some(403) => return Ok(None),
            Err(fault) => return Err(fault),
        }
        let look = Look { lease_id: &handle.lease };
        match self.call((Step::Confirm, "sys/leases/lookup"), auth, Some(&look), limit).await {
            Ok(_) => Err(Fault::new(Remedy::Retry, "Vault said that it revoked the lease, and it is still there")),
            // Unknown there (400), or not for us to look (403): then its word stands.
            Err(fault) if matches!(fault.status, Some(400 | 403)) => Ok(Some(())),
            Err(fault) => Err(fault),
        }
    }

    /// By the token that read it.
    async fn revoke_held(&self, handle: &Handle, held: &Held, limit: Duration) -> Result<TakenBack, Fault> {
        let allowed = match held.lease_gone.load(Ordering::Acquire) {
            true => true,
            false => self.revoke_lease(handle, &held.token, limit).await?.is_some(),
        };
        held.lease_gone.store(allowed, Ordering::Release);
        let auth = (Some(&held.token), handle.namespace.as_deref());
        match self.call((Step::DropToken, "auth/token/revoke-self"), auth, None::<&()>, limit).await {
            Ok(_) => {}
            // The answer to an earlier try was lost: the token is no longer known.
            Err(fault) if allowed && fault.status == Some(403) => {}
            Err(fault) => return Err(fault),
        }
        // Where the policy says no, Vault revokes the lease because of its token, some time soon.
        Ok(if allowed { TakenBack::Revoked } else { TakenBack::Requested })
    }

    /// By a new login, since the token is lost.
    async fn revoke_anew(&self, handle: &Handle, login: &Login, limit: Duration) -> Result<TakenBack, Fault> {
        #[derive(Serialize)]
        struct Body<'a> {
            accessor: &'a str,
        }
        let revoked = self.revoke_lease(handle, &login.token, limit).await;
        let auth = (Some(&login.token), handle.namespace.as_deref());
        let body = Body { accessor: &handle.accessor };
        // The lost token ends by itself and nobody has it; where the policy allows, it ends now.
        let accessor = self.call((Step::DropToken, "auth/token/revoke-accessor"), auth, Some(&body), limit).await;
        match (revoked?, accessor) {
            (Some(()), _) => Ok(TakenBack::Revoked),
            (None, Ok(_)) => Ok(TakenBack::Requested),
            (None, Err(_)) => {
                let detail = "the role's policy lacks update on sys/leases/revoke";
                Err(Fault::new(Remedy::Refuse, detail))
            }
        }
    }
}

#[async_trait]
impl Cloud for Vault {
    fn provider(&self) -> Provider {
        Provider::Vault
    }

    // Every wait in here is bounded by the order's limit, and the clean-up after a failure by its own: cut off from
    // outside, a token could be left behind.
    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        let inexpressible = |detail: &str| Err(ExchangeError::Inexpressible { detail: detail.to_owned() });
        let ProviderGrant::Vault(grant) = &order.grant.provider else {
            return inexpressible("the grant is not for Vault");
        };
        let same = |address: &str| address.trim_end_matches('/') == self.settings.address.trim_end_matches('/');
        if grant.address.as_deref().is_some_and(|address| !same(address)) {
            return inexpressible("the grant is for another Vault than vault.address names here");
        }
        if order.dead_by.since(self.clock.now()) < MIN_LIFE {
            return inexpressible("too little life is left");
        }
        if self.held().len() >= MAX_HELD {
            let detail = "too many leases of Vault are live".to_owned();
            return Err(ExchangeError::Unavailable { detail, retry_after: None });
        }
        self.exchange(order, grant).await
    }

    async fn revoke(&self, order: &RevokeOrder) -> Result<TakenBack, ExchangeError> {
        let inexpressible = |detail: &str| Err(ExchangeError::Inexpressible { detail: detail.to_owned() });
        let Ok(handle) = serde_json::from_str::<Handle>(&order.upstream) else {
            return inexpressible("the journal does not say which lease it is");
        };
        if !self.is_ours(&handle) {
            return inexpressible("the lease is of another Vault than vault.address names here");
        }
        let deadline = self.clock.boot().saturating_add(order.limit);
        let remaining = || deadline.saturating_sub(self.clock.boot());
        self.revocations.pass(&*self.clock, remaining()).await.map_err(too_often)?;
        let held = self.held().get(&order.upstream).cloned();
        let outcome = match held {
            Some(held) => self.revoke_held(&handle, &held, remaining()).await,
            None => {
                let place = Place {
                    mount: &handle.mount,
                    role: &handle.role,
                    namespace: handle.namespace.as_deref(),
                    audience: &handle.audience,
                    caller: &order.caller,
                };
                let svid = self.svid(place, remaining()).await?;
                match self.login(place, &svid, remaining()).await {
                    Ok(login) => {
                        let outcome = self.revoke_anew(&handle, &login, remaining()).await;
                        self.drop_token(&login.token, place.namespace, CLEAN_UP).await;
                        outcome
                    }
                    Err(fault) => Err(fault),
                }
            }
        };
        match outcome {
            Ok(taken) => {
                self.held().remove(&order.upstream);
                Ok(taken)
            }
            Err(fault) => {
                if let Some(wait) = fault.retry_after {
                    self.revocations.hold(&*self.clock, wait);
                }
                Err(fault.into())
            }
        }
    }

    fn place(&self) -> Option<Arc<str>> {
        Some(self.settings.address.trim_end_matches('/').into())
    }

    fn is_left_alone(&self) -> bool {
        self.mints.is_broken()
    }

    fn reaches(&self, upstream: &str) -> bool {
        serde_json::from_str::<Handle>(upstream).is_ok_and(|handle| self.is_ours(&handle))
    }
}

impl Vault {
    /// Whether `handle` is of the Vault that is configured. An unknown lease counts as revoked there: another Vault would say
    /// so of every one of ours.
    fn is_ours(&self, handle: &Handle) -> bool {
        let same = |one: &str, other: &str| one.trim_end_matches('/') == other.trim_end_matches('/');
        same(&handle.address, &self.settings.address)
    }
}

fn too_often(wait: Duration) -> ExchangeError {
    ExchangeError::Unavailable { detail: "too many calls to Vault from here".to_owned(), retry_after: Some(wait) }
}

impl From<Fault> for ExchangeError {
    fn from(fault: Fault) -> Self {
        let detail = fault.detail;
        match fault.remedy {
            Remedy::Retry => {
                Self::Unavailable { detail, retry_after: fault.retry_after.map(|wait| wait.min(MAX_RETRY_AFTER)) }
            }
            Remedy::FreshSvid | Remedy::Refuse => Self::Refused { detail },
            Remedy::Mend => Self::Inexpressible { detail },
            Remedy::Distrust => Self::Unusable { detail },
        }
    }
}
