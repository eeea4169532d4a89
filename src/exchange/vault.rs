//! HashiCorp Vault and OpenBao: a JWT-SVID of the caller becomes a dynamic secret that can be revoked.
//!
//! **A task has one lease and one service token at a time.** A mint logs in anew and reads one secret; its token is kept in
//! memory until the lease is revoked. While the task lives both are renewed in place, so that a role of a database does not
//! vanish under a job that uses it. Only where that cannot be (not renewable, its maximum life is reached, refused, the token
//! was lost with a crash, or something else is granted now) is another secret minted, by a login of its own; the one before
//! is left to its own end, which its workload was told, or revoked with the task.
//!
//! A token never serves two leases. So an answer that was lost is harmless: its token is revoked, and with it whatever it read.
//!
//! # The law of life at Vault
//! - A login whose life is longer than the law allows any credential of the grant is refused: the role is set up wrongly.
//! - A token or lease that would outlive what is left (the task's deadline may be near) is shortened: Vault counts the
//!   `increment` of a renewal from now. What cannot be shortened is refused.
//! - A renewal asks for no more than the law allows from now on, and what it answers is held against that. Vault ends both by
//!   themselves: nothing that lives on depends on our ending it.
//! - Whatever is refused after a login is revoked, with its token.
//!
//! # Revoking
//! Look whether the lease is there, `sys/leases/revoke` with `sync`, look whether it is gone (success without effect is no
//! success), then the token. Vault calls a lease that it does not know revoked: one that was gone before we told it to go may
//! live on elsewhere (a Vault restored from a snapshot has forgotten it, and the database has not), so it is left to its own
//! end and not called revoked. After a crash the token is lost, and a new login of the same caller revokes by the lease's id,
//! where its policy has `update` on `sys/leases/revoke`; where not, nothing is called revoked.

mod answer;
mod examine;
mod fault;
mod handle;
mod http;
mod revoking;
mod secret;
pub(crate) mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::Method;
use async_trait::async_trait;
use serde::Serialize;

use self::answer::{BadLogin, Leased, Login, leased, login, renewed};
use self::fault::{Fault, Remedy, Step};
pub use self::handle::LeaseHandle;
use self::http::{Call, Client, Reply};
use super::attempts::{self, Attempt, not_asked};
use super::{
    Context, Credential, Exchange, ExchangeError, Handle, MintOrder, Minted, Provider, Renew, RenewOrder, Renewed,
    Revocability, Revocable, Revoke, RevokeOrder, RevokeOutcome,
};
use crate::check::Check;
use crate::clock::Timestamp;
use crate::identity::SpiffeId;
use crate::identity::workload_api::JwtSvid;
use crate::provider::ProviderGrant;
use crate::provider::vault::VaultGrant;
use crate::retry::{Gate, Rate};
use crate::secret::{Secret, SecretBytes};

pub use self::http::MAX_ANSWER;
pub use self::secret::VaultSecret;

/// What is asked for less than is left, for the time that the asking takes.
const SLACK: Duration = Duration::from_secs(2);
/// A credential that lives shorter would be dead before it is used.
const MIN_LIFE: Duration = Duration::from_secs(5);
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
    /// How often it may be asked for a credential, or to renew one.
    pub rate: Rate,
    /// How often it may be asked to take one back.
    pub revocation_rate: Rate,
}

/// Settings that cannot work, each with its fix.
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
    /// The machine has no roots.
    #[error("roots for vault.address: {0}; name a file of roots with vault.ca")]
    Roots(String),
}

/// One Vault.
#[derive(Debug)]
pub struct Vault {
    settings: Settings,
    client: Client,
    context: Context,
    mints: Gate,
    /// Apart from the mints, so that neither ever waits for the other.
    revocations: Gate,
    held: Mutex<BTreeMap<Arc<LeaseHandle>, Arc<Held>>>,
    /// The leases that were there when we told Vault to revoke them, and whose end it has not confirmed yet.
    ordered: Mutex<BTreeSet<LeaseHandle>>,
}

/// The token by which a lease can be renewed and revoked.
#[derive(Debug)]
struct Held {
    token: Secret,
    known: Mutex<Known>,
}

/// What is known of a token and its lease.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// When the token ends by itself, at the latest.
    until: Timestamp,
    /// Whether both can be renewed, for all that is known.
    renewable: bool,
    /// Whether the lease is certainly gone.
    lease_gone: bool,
}

impl Held {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Each member is whole by itself.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What may have been leased when reading a secret failed.
#[derive(Debug)]
enum Left {
    /// Nothing.
    Nothing,
    /// Something whose name is not known.
    Perhaps,
    /// The lease of this id.
    Lease(String),
}

/// The latest expiry of a lease.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    /// The end to ask for.
    end: Timestamp,
    /// The end that no answer may be after.
    dead_by: Timestamp,
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
    pub fn new(settings: Settings, context: Context) -> Result<Self, SettingsError> {
        let client = Client::new(&settings.address, settings.ca.as_deref(), Arc::clone(&context.clock))?;
        Ok(Self {
            client,
            context,
            mints: Gate::new(settings.rate),
            revocations: Gate::new(settings.revocation_rate),
            settings,
            held: Mutex::default(),
            ordered: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Arc<LeaseHandle>, Arc<Held>>> {
        // The map is whole between any two lines: a panic elsewhere cannot have torn it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ordered(&self) -> MutexGuard<'_, BTreeSet<LeaseHandle>> {
        // Likewise.
        self.ordered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the tokens that have expired for certain, and says how many are left. A clock that was set forward kills none.
    fn purge(&self) -> usize {
        let earliest = self.context.clock.earliest();
        let mut all = self.held();
        all.retain(|_, held| held.known().until > earliest);
        all.len()
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
        let reads = body.is_none() && matches!(step, Step::Read | Step::Health);
        let method = if reads { Method::GET } else { Method::POST };
        let call = Call { step, method, path, token, namespace, body };
        self.client.send(call, limit.min(self.settings.timeout)).await
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

    /// Sees to it that the token does not outlive the law; says when it ends.
    async fn token_in_time(
        &self,
        order: &MintOrder,
        place: Place<'_>,
        login: &Login,
        deadline: Duration,
    ) -> Result<Timestamp, Fault> {
        let life = Duration::from_secs(login.life);
        if life > order.max_life {
            return Err(Fault::new(
                Remedy::Fix,
                format!(
                    "the role's tokens live {} s, and no credential of this grant may live longer than {} s: lower token_ttl",
                    login.life,
                    order.max_life.as_secs()
                ),
            ));
        }
        let token_end = self.context.clock.now() + life;
        if token_end <= order.dead_by {
            return Ok(token_end);
        }
        if !login.renewable {
            return Err(cannot_be_shortened());
        }
        let limit = self.context.remaining(deadline);
        self.renew_token(Step::Shorten, (&login.token, place.namespace), order.dead_by, limit).await
    }

    /// Reads the secret, and sees to it that its lease does not outlive the law; says when it stops working.
    async fn read(
        &self,
        order: &MintOrder,
        grant: &VaultGrant,
        place: Place<'_>,
        (login, token_end): (&Login, Timestamp),
        deadline: Duration,
    ) -> Result<(Leased, Timestamp), (Fault, Left)> {
        let remaining = || self.context.remaining(deadline);
        let auth = (Some(&login.token), place.namespace);
        let read = self.call((Step::Read, &grant.read), auth, None::<&()>, remaining()).await;
        let read = read.and_then(|reply| leased(&reply.body, &grant.read));
        let leased = read.map_err(|fault| match fault.remedy {
            Remedy::Refuse | Remedy::Fix | Remedy::FreshSvid => (fault, Left::Nothing),
            Remedy::Retry | Remedy::Throttled | Remedy::Distrust => (fault, Left::Perhaps),
        })?;
        let lease_end = self.context.clock.now() + Duration::from_secs(leased.life);
        let allowed = Allowed { end: order.dead_by.min(token_end), dead_by: order.dead_by };
        let lease_end = match self.shorten_lease(&leased, lease_end, allowed, auth, remaining()).await {
            Ok(end) => end,
            Err(fault) => return Err((fault, Left::Lease(leased.lease_id))),
        };
        // A lease dies with its token.
        let usable_until = lease_end.min(token_end);
        if usable_until <= self.context.clock.now() {
            let fault = Fault::nonsense(Step::Read, "it came after the end of its own life");
            return Err((fault, Left::Lease(leased.lease_id)));
        }
        Ok((leased, usable_until))
    }

    /// Asks for less where the lease would outlive its token or the law. It must not outlive the law; its token it may,
    /// where it cannot be shortened: Vault ends it with the token then.
    async fn shorten_lease(
        &self,
        leased: &Leased,
        lease_end: Timestamp,
        allowed: Allowed,
        auth: (Option<&Secret>, Option<&str>),
        limit: Duration,
    ) -> Result<Timestamp, Fault> {
        if lease_end <= allowed.end {
            return Ok(lease_end);
        }
        let shortened = match leased.renewable {
            false => Err(cannot_be_shortened()),
            true => self.renew_lease((Step::Shorten, &leased.lease_id), auth, allowed, limit).await,
        };
        match shortened {
            Err(fault) if lease_end <= allowed.dead_by && !fault.is_passing() => Ok(lease_end),
            other => other,
        }
    }

    /// Lets the lease `id` live as long as is allowed, and says when it ends.
    async fn renew_lease(
        &self,
        (step, id): (Step, &str),
        auth: (Option<&Secret>, Option<&str>),
        Allowed { end, dead_by }: Allowed,
        limit: Duration,
    ) -> Result<Timestamp, Fault> {
        #[derive(Serialize)]
        struct Body<'a> {
            lease_id: &'a str,
            increment: u64,
        }
        let increment = self.asked_for(end)?;
        let body = Body { lease_id: id, increment };
        let reply = self.call((step, "sys/leases/renew"), auth, Some(&body), limit).await?;
        self.in_time(step, &reply, increment, dead_by)
    }

    /// Lets the token live until `dead_by`, and says when it ends: never later.
    async fn renew_token(
        &self,
        step: Step,
        (token, namespace): (&Secret, Option<&str>),
        dead_by: Timestamp,
        limit: Duration,
    ) -> Result<Timestamp, Fault> {
        #[derive(Serialize)]
        struct Body {
            increment: u64,
        }
        let increment = self.asked_for(dead_by)?;
        let auth = (Some(token), namespace);
        let reply = self.call((step, "auth/token/renew-self"), auth, Some(&Body { increment }), limit).await?;
        self.in_time(step, &reply, increment, dead_by)
    }

    /// The seconds to ask for, so that the end comes no later than `end`.
    fn asked_for(&self, end: Timestamp) -> Result<u64, Fault> {
        match end.since(self.context.clock.now()).saturating_sub(SLACK).as_secs() {
            0 => Err(Fault::new(Remedy::Fix, "too little life is left")),
            seconds => Ok(seconds),
        }
    }

    /// The end that a renewal answered, which must not be after `dead_by`. It asked for `increment` seconds.
    fn in_time(&self, step: Step, reply: &Reply, increment: u64, dead_by: Timestamp) -> Result<Timestamp, Fault> {
        let life = renewed(step, &reply.body)?;
        let end = self.context.clock.now() + Duration::from_secs(life);
        match end <= dead_by {
            true => Ok(end),
            false if life <= increment => Err(Fault::new(Remedy::Retry, "the answer came too late to tell its end")),
            false => Err(Fault::new(Remedy::Fix, "it lives longer than the law of life allows and was not shortened")),
        }
    }

    /// Renews the lease and then its token; says when the secret stops working. The lease comes first: what refuses is most
    /// often its maximum life, and then nothing else has changed.
    async fn lengthen(
        &self,
        handle: &LeaseHandle,
        held: &Held,
        dead_by: Timestamp,
        deadline: Duration,
    ) -> Result<Timestamp, Fault> {
        let remaining = || self.context.remaining(deadline);
        let namespace = handle.namespace.as_deref();
        let lease = (Step::Renew, handle.lease.as_str());
        let allowed = Allowed { end: dead_by, dead_by };
        let lease_end = self.renew_lease(lease, (Some(&held.token), namespace), allowed, remaining()).await?;
        {
            // Should no answer come, it may live as long as that.
            let mut known = held.known();
            known.until = known.until.max(dead_by);
        }
        let token_end = self.renew_token(Step::Renew, (&held.token, namespace), dead_by, remaining()).await?;
        held.known().until = token_end;
        // A lease dies with its token.
        Ok(lease_end.min(token_end))
    }

    /// Keeps the token of a lease until it is revoked.
    fn keep(
        &self,
        grant: &VaultGrant,
        place: Place<'_>,
        login: Login,
        token_end: Timestamp,
        leased: Leased,
        usable_until: Timestamp,
    ) -> Minted {
        let handle = LeaseHandle {
            lease: leased.lease_id.clone(),
            accessor: login.accessor,
            address: self.settings.address.clone(),
            namespace: place.namespace.map(str::to_owned),
            mount: grant.mount.clone(),
            role: grant.role.clone(),
            audience: grant.audience.clone(),
        };
        let handle = Arc::new(handle);
        let renewable = login.renewable && leased.renewable;
        let known = Mutex::new(Known { until: token_end, renewable, lease_gone: false });
        self.held().insert(Arc::clone(&handle), Arc::new(Held { token: login.token, known }));
        let credential = Credential::Vault(VaultSecret { lease_id: leased.lease_id, data: leased.data });
        let revocability = Revocability::Revocable(Revocable::by(self, Handle::Vault(handle)));
        Minted { credential, usable_until, revocability }
    }
}

/// One order at one place.
struct Order<'a> {
    vault: &'a Vault,
    order: &'a MintOrder,
    grant: &'a VaultGrant,
    place: Place<'a>,
}

impl Attempt for Order<'_> {
    const UPSTREAM: &'static str = "Vault";
    const TRIES: u32 = 3;

    fn caller(&self) -> &SpiffeId {
        self.place.caller
    }

    fn audience(&self) -> &str {
        self.place.audience
    }

    /// One login and one secret; whatever goes wrong after the login, what it leased and its token are revoked.
    async fn attempt(&self, svid: &JwtSvid, deadline: Duration) -> Result<Minted, Fault> {
        let Self { vault, order, grant, place } = *self;
        // Nothing is leased before there is a token that somebody has.
        let login = vault.login(place, svid, vault.context.remaining(deadline)).await?;
        let (fault, left) = match vault.token_in_time(order, place, &login, deadline).await {
            Err(fault) => (fault, Left::Nothing),
            Ok(token_end) => match vault.read(order, grant, place, (&login, token_end), deadline).await {
                Ok((leased, usable_until)) => {
                    return Ok(vault.keep(grant, place, login, token_end, leased, usable_until));
                }
                Err(failed) => failed,
            },
        };
        // Vault revokes the leases of a token that is revoked some time soon: one that is known is revoked first.
        let lease_revoked = match &left {
            Left::Lease(id) => vault.revoke_fresh(id, &login.token, place.namespace).await,
            Left::Nothing | Left::Perhaps => false,
        };
        vault.drop_token(&login.token, place.namespace, CLEAN_UP).await;
        let may_have_minted = match left {
            Left::Nothing => false,
            // With its token such a lease is revoked some time soon, not at once.
            Left::Perhaps => true,
            Left::Lease(_) => !lease_revoked,
        };
        Err(Fault { may_have_minted, ..fault })
    }
}

#[async_trait]
impl Exchange for Vault {
    fn provider(&self) -> Provider {
        Provider::Vault
    }

    // Every wait in here is bounded by the order's limit, and the clean-up after a failure by its own: cut off from
    // outside, a token could be left behind.
    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        let ProviderGrant::Vault(grant) = &order.grant.provider else {
            return inexpressible("the grant is not for Vault");
        };
        if !self.is_for_us(grant) {
            return inexpressible("the grant is for another Vault than vault.address names here");
        }
        if order.dead_by.since(self.context.clock.now()) < MIN_LIFE {
            return inexpressible("too little life is left");
        }
        if self.purge() >= MAX_HELD {
            let detail = "too many leases of Vault are live".to_owned();
            return Err(ExchangeError::Unavailable { detail, retry_after: None });
        }
        let place = Place {
            mount: &grant.mount,
            role: &grant.role,
            namespace: self.namespace(grant),
            audience: &grant.audience,
            caller: &order.caller,
        };
        attempts::mint(&self.context, &self.mints, &Order { vault: self, order, grant, place }, order.limit).await
    }

    fn revoker(&self) -> Option<&dyn Revoke> {
        Some(self)
    }

    fn renewer(&self) -> Option<&dyn Renew> {
        Some(self)
    }

    fn location(&self) -> Option<Arc<str>> {
        Some(self.settings.address.trim_end_matches('/').into())
    }

    fn circuit_open(&self) -> bool {
        self.mints.circuit_open()
    }

    fn reaches(&self, handle: &Handle) -> bool {
        matches!(handle, Handle::Vault(handle) if self.is_ours(handle))
    }

    async fn examine(&self) -> Vec<Check> {
        self.look().await
    }
}

#[async_trait]
impl Revoke for Vault {
    async fn revoke(&self, order: &RevokeOrder) -> Result<RevokeOutcome, ExchangeError> {
        let Handle::Vault(handle) = &order.handle else {
            return inexpressible("the journal does not say which lease it is");
        };
        if !self.is_ours(handle) {
            return inexpressible("the lease is of another Vault than vault.address names here");
        }
        let deadline = self.context.clock.boot().saturating_add(order.limit);
        let clock = &*self.context.clock;
        self.revocations.pass(clock, self.context.remaining(deadline)).await.map_err(too_often)?;
        let held = self.held().get(handle).cloned();
        let by_held = match &held {
            Some(held) => self.revoke_held((handle, order), held, deadline).await,
            None => Ok(None),
        };
        let outcome = match by_held {
            Ok(Some(outcome)) => Ok(outcome),
            // Ended by its own time or by somebody at Vault: it is of no more use.
            Ok(None) => self.revoke_anew(order, handle, deadline).await,
            Err(fault) => Err(fault.into()),
        };
        match &outcome {
            Ok(_) => {
                self.held().remove(handle);
                self.ordered().remove(&**handle);
            }
            Err(ExchangeError::Unavailable { retry_after: Some(wait), .. }) => self.revocations.hold(clock, *wait),
            Err(_) => {}
        }
        outcome
    }
}

#[async_trait]
impl Renew for Vault {
    fn can_renew(&self, handle: &Handle) -> bool {
        matches!(handle, Handle::Vault(handle) if self.held().get(handle).is_some_and(|held| held.known().renewable))
    }

    async fn renew(&self, order: &RenewOrder) -> Result<Renewed, ExchangeError> {
        let (Handle::Vault(handle), ProviderGrant::Vault(grant)) = (&order.handle, &order.grant.provider) else {
            return inexpressible("it is no lease of Vault");
        };
        if !self.is_ours(handle) || !self.is_for_us(grant) || !handle.is_of(grant, self.namespace(grant)) {
            return inexpressible("something else is granted now");
        }
        let held = self.held().get(handle).cloned();
        let Some(held) = held.filter(|held| held.known().renewable) else {
            return inexpressible("its token is gone, or one of both cannot be renewed");
        };
        let clock = &*self.context.clock;
        let deadline = clock.boot().saturating_add(order.limit);
        let turn = self.mints.turn(clock, order.limit).await.map_err(|shut| not_asked(shut, "Vault"))?;
        match self.lengthen(handle, &held, order.dead_by, deadline).await {
            Ok(usable_until) => {
                turn.answered();
                Ok(Renewed { usable_until })
            }
            Err(fault) => {
                // It says nothing of logins and reads: those are what is left where nothing can be renewed.
                drop(turn);
                if let Some(wait) = fault.retry_after {
                    self.mints.hold(clock, wait);
                }
                // What it refused it will refuse again.
                held.known().renewable &= fault.is_passing();
                Err(fault.into())
            }
        }
    }
}

impl Vault {
    /// Whether `handle` is of the Vault that is configured: another one would know none of our leases.
    fn is_ours(&self, handle: &LeaseHandle) -> bool {
        self.is_at(&handle.address)
    }

    /// Whether `grant` names this Vault, or none.
    fn is_for_us(&self, grant: &VaultGrant) -> bool {
        grant.address.as_deref().is_none_or(|address| self.is_at(address))
    }

    fn is_at(&self, address: &str) -> bool {
        address.trim_end_matches('/') == self.settings.address.trim_end_matches('/')
    }
}

fn cannot_be_shortened() -> Fault {
    Fault::new(Remedy::Fix, "it would outlive the law of life and cannot be shortened")
}

fn too_often(wait: Duration) -> ExchangeError {
    ExchangeError::Unavailable { detail: "too many calls to Vault from here".to_owned(), retry_after: Some(wait) }
}

fn inexpressible<T>(detail: &str) -> Result<T, ExchangeError> {
    Err(ExchangeError::Inexpressible { detail: detail.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, TrustedClock};
    use crate::identity::workload_api::testing::FakeWorkloadApi;
    use crate::retry::SystemJitter;

    const START: Timestamp = Timestamp::from_secs(1_000_000);

    #[test]
    fn evicts_expired_tokens_and_none_when_the_clock_was_set_forward() {
        let (machine, directory) = (ManualClock::at(START), tempfile::tempdir().unwrap());
        let clock = TrustedClock::start(Arc::new(machine.clone()), directory.path()).unwrap();
        let rate = Rate::default();
        let (address, timeout) = ("http://127.0.0.1:1".to_owned(), Duration::from_secs(1));
        let settings = Settings { address, ca: None, namespace: None, timeout, rate, revocation_rate: rate };
        let workload_api = FakeWorkloadApi::new(Arc::new(machine.clone()), &[]);
        let vault = Vault::new(settings, Context { workload_api, clock, jitter: Arc::new(SystemJitter) }).unwrap();
        let handle = |lease: u64| {
            let text = |text: &str| text.to_owned();
            Arc::new(LeaseHandle {
                lease: lease.to_string(),
                accessor: text("a"),
                address: text("http://127.0.0.1:1"),
                namespace: None,
                mount: text("jwt"),
                role: text("r"),
                audience: text("vault"),
            })
        };
        for seconds in [10, 40] {
            let until = START + Duration::from_secs(seconds);
            let known = Mutex::new(Known { until, renewable: true, lease_gone: false });
            let held = Held { token: Secret::new("token".into()), known };
            vault.held().insert(handle(seconds), Arc::new(held));
        }
        machine.set_wall(START + Duration::from_secs(20));
        assert_eq!(vault.purge(), 2);
        machine.advance(Duration::from_secs(15));
        assert_eq!(vault.purge(), 1);
        assert!(vault.can_renew(&Handle::Vault(handle(40))) && !vault.can_renew(&Handle::Vault(handle(10))));
    }
}
