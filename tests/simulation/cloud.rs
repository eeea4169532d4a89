//! The clouds: one whose credentials die by themselves, one that can take each back. They mint and revoke when the
//! simulation says so, hang, lose answers, and keep the first ledger.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use sidemint::clock::{Clock as _, ManualClock, Timestamp};
use sidemint::exchange::{
    AwsCredential, Credential, Exchange, ExchangeError, Handle, MintOrder, Minted, Provider, Renew, RenewOrder,
    Renewed, Revocability, Revocable, Revoke, RevokeOrder, RevokeOutcome, VaultSecret,
};
use sidemint::lease::{LeaseId, LeaseState};
use sidemint::secret::Secret;
use tokio::sync::oneshot;

use crate::journal::Books;
use crate::planted::Planted;
use crate::policy::Scope;

/// How a call for a credential, or for a longer life of one, is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A credential that lives as long as was ordered.
    Give,
    /// One that dies this much sooner, and says so.
    Sooner(Duration),
    /// One that lives this much longer, as clocks may differ, and says so.
    Later(Duration),
    /// One that it says has died already.
    Dead,
    /// One that it says lives for years: what the exchange refuses to take.
    Years,
    /// One that nobody ever hears of: the answer is lost on the way.
    Lost,
    /// One, in an answer that makes no sense.
    Garbled,
    /// None: refused.
    Refused,
    /// None: out of order.
    Broken,
    /// None: come back later.
    Throttled,
}

/// How a call to revoke one is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undo {
    /// It is dead, and that is what is said.
    Done,
    /// The order is taken; it is dead at once, or at its own end.
    Taken(bool),
    /// It is dead, and nobody hears of it.
    Lost,
    /// None: refused.
    Refused,
    /// None: the answer makes no sense.
    Garbled,
    /// None: there is no SVID to ask with.
    NoSvid,
    /// None: out of order.
    Broken,
    /// None: come back later.
    Throttled,
}

/// A credential as the cloud knows it.
#[derive(Debug, Clone)]
pub(crate) struct Mint {
    pub(crate) provider: Provider,
    pub(crate) key: String,
    pub(crate) secrets: [String; 2],
    pub(crate) upstream: String,
    pub(crate) caller: String,
    pub(crate) session_name: String,
    pub(crate) grant: String,
    /// The lease whose intent was durable when it was asked for.
    pub(crate) intent: Option<LeaseId>,
    /// True time; of the last renewal that had an effect.
    pub(crate) minted_at: Timestamp,
    /// Renewals that had an effect.
    pub(crate) renewals: usize,
    /// When it stops working, true time.
    pub(crate) ends_at: Timestamp,
    /// By how much that is later than was ordered.
    pub(crate) late: Duration,
    /// How far the sidecar's wall clock was behind the true time.
    pub(crate) behind: Duration,
    /// Nobody was told of it.
    pub(crate) lost: bool,
    /// When it was revoked, true time.
    pub(crate) revoked_at: Option<Timestamp>,
}

impl Mint {
    /// Whether it, or what it may have made, can be used at the cloud after `truth`.
    pub(crate) fn works_after(&self, truth: Timestamp) -> bool {
        self.revoked_at.is_none() && self.gone_at() > truth
    }

    /// When it and whatever it may have made have stopped working, true time.
    pub(crate) fn gone_at(&self) -> Timestamp {
        // With one that was dead when it came nothing was made.
        let lived = self.ends_at > self.minted_at;
        self.ends_at + if lived { Scope::of(self.provider, &self.grant).outlives() } else { Duration::ZERO }
    }
}

/// What the cloud gave.
struct Given {
    credential: Credential,
    usable_until: Timestamp,
    handle: Handle,
}

enum Work {
    Mint(Box<MintOrder>, Option<LeaseId>, oneshot::Sender<Result<Given, ExchangeError>>),
    Renew(Box<RenewOrder>, oneshot::Sender<Result<Renewed, ExchangeError>>),
    Revoke(RevokeOrder, oneshot::Sender<Result<RevokeOutcome, ExchangeError>>),
}

struct Call {
    provider: Provider,
    limit: Duration,
    asked_at: Duration,
    work: Work,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    /// Of each call for a credential: when it was decided on.
    asked: Vec<Timestamp>,
    revocations: usize,
    renewals: usize,
    mints: Vec<Mint>,
    /// Intents that a call was made on.
    used: Vec<LeaseId>,
    /// Calls that no durable intent, or later end, came before.
    bare: usize,
    /// What was to be revoked or renewed and is nobody's, or another one's.
    odd: Vec<String>,
}

/// The model. It outlives every sidecar.
pub(crate) struct SimCloud {
    /// True time.
    pub(crate) truth: ManualClock,
    /// The sidecar's clock.
    pub(crate) machine: ManualClock,
    pub(crate) books: Arc<Mutex<Books>>,
    planted: Planted,
    state: Mutex<State>,
}

impl fmt::Debug for SimCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimCloud").finish_non_exhaustive()
    }
}

impl SimCloud {
    pub(crate) fn new(
        truth: ManualClock,
        machine: ManualClock,
        books: Arc<Mutex<Books>>,
        planted: Planted,
    ) -> Arc<Self> {
        Arc::new(Self { truth, machine, books, planted, state: Mutex::default() })
    }

    /// It as one of the providers.
    pub(crate) fn face(self: &Arc<Self>, provider: Provider) -> (Provider, Arc<dyn Exchange>) {
        (provider, Arc::new(Face { cloud: Arc::clone(self), provider }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The ledger.
    pub(crate) fn mints(&self) -> Vec<Mint> {
        self.state().mints.clone()
    }

    /// How many calls were ever made.
    pub(crate) fn asked(&self) -> usize {
        self.state().asked.len()
    }

    /// Of those calls from the `first`th on: when each was decided on.
    pub(crate) fn asked_since(&self, first: usize) -> Vec<Timestamp> {
        self.state().asked[first..].to_vec()
    }

    /// How many calls to revoke one were ever made.
    pub(crate) fn revocations(&self) -> usize {
        self.state().revocations
    }

    /// The one that was given or renewed last of those that still work.
    pub(crate) fn latest(&self, provider: Provider, truth: Timestamp) -> Option<Mint> {
        let state = self.state();
        let works = |mint: &&Mint| mint.provider == provider && mint.works_after(truth);
        state.mints.iter().filter(works).max_by_key(|mint| mint.minted_at).cloned()
    }

    /// How many calls to renew one were ever made.
    pub(crate) fn renewals(&self) -> usize {
        self.state().renewals
    }

    /// Calls to revoke or renew what is nobody's, or another one's.
    pub(crate) fn odd(&self) -> Vec<String> {
        self.state().odd.clone()
    }

    /// How many calls no durable intent came before.
    pub(crate) fn bare_calls(&self) -> usize {
        self.state().bare
    }

    /// How many calls wait for an answer.
    pub(crate) fn waiting(&self) -> usize {
        self.state().calls.len()
    }

    /// A sidecar starts: on the intents that it finds no call is made any more.
    pub(crate) fn started(&self) {
        let books = self.books.lock().unwrap();
        let found = books.promised.leases.values().filter(|lease| lease.state == LeaseState::Intent);
        self.state().used.extend(found.map(|lease| lease.id.clone()));
    }

    /// The sidecar is no more: of the calls that wait some have an effect that nobody hears of.
    pub(crate) fn hang_up(&self, mut acts: impl FnMut() -> bool) {
        let calls = std::mem::take(&mut self.state().calls);
        for call in calls {
            if acts() {
                self.reply(call, Answer::Lost, Undo::Lost);
            }
        }
    }

    /// Answers what has waited for as long as its order allows; such a call may have had its effect.
    pub(crate) fn time_out(&self, mut acts: impl FnMut() -> bool) -> bool {
        let boot = self.machine.boot();
        let late: Vec<_> = {
            let mut state = self.state();
            let late = |call: &mut Call| boot.saturating_sub(call.asked_at) >= call.limit;
            state.calls.extract_if(.., late).collect()
        };
        let any = !late.is_empty();
        for call in late {
            let (answer, undo) = if acts() { (Answer::Lost, Undo::Lost) } else { (Answer::Broken, Undo::Broken) };
            self.reply(call, answer, undo);
        }
        any
    }

    /// Answers the `index`th of the calls that wait: by `answer` where it wants a credential, else by `undo`.
    pub(crate) fn answer(&self, index: usize, answer: Answer, undo: Undo) {
        let call = self.state().calls.remove(index);
        self.reply(call, answer, undo);
    }

    /// What the `index`th of the calls that wait wants.
    pub(crate) fn wants(&self, index: usize) -> &'static str {
        match self.state().calls[index].work {
            Work::Mint(..) => "a credential",
            Work::Renew(..) => "one renewed",
            Work::Revoke(..) => "one revoked",
        }
    }

    fn reply(&self, call: Call, answer: Answer, undo: Undo) {
        match call.work {
            Work::Mint(order, intent, done) => {
                let _ = done.send(self.give(call.provider, &order, intent, answer));
            }
            Work::Renew(order, done) => {
                let _ = done.send(self.renew(call.provider, &order, answer));
            }
            Work::Revoke(order, done) => {
                let _ = done.send(self.revoke(call.provider, &order, undo));
            }
        }
    }

    fn give(
        &self,
        provider: Provider,
        order: &MintOrder,
        intent: Option<LeaseId>,
        answer: Answer,
    ) -> Result<Given, ExchangeError> {
        match answer {
            Answer::Refused => Err(ExchangeError::Refused { detail: detail() }),
            Answer::Broken => Err(unavailable(None)),
            Answer::Throttled => Err(unavailable(Some(20))),
            Answer::Give | Answer::Sooner(_) | Answer::Later(_) | Answer::Dead => {
                Ok(self.mint(provider, order, intent, answer))
            }
            Answer::Lost => {
                self.mint(provider, order, intent, answer);
                Err(unavailable(None))
            }
            Answer::Garbled | Answer::Years => {
                self.mint(provider, order, intent, answer);
                Err(ExchangeError::Unusable { detail: detail() })
            }
        }
    }

    /// Lets a credential live on, whoever hears of it.
    fn renew(&self, provider: Provider, order: &RenewOrder, answer: Answer) -> Result<Renewed, ExchangeError> {
        let (truth, wall) = (self.truth.now(), self.machine.now());
        let mut state = self.state();
        let name = order.handle.to_string();
        let Some(mint) = state.mints.iter_mut().find(|m| m.upstream == name && m.provider == provider) else {
            state.odd.push(format!("{order:?}"));
            return Err(ExchangeError::Refused { detail: detail() });
        };
        let ends_at = match answer {
            Answer::Refused => return Err(ExchangeError::Refused { detail: detail() }),
            Answer::Broken => return Err(unavailable(None)),
            Answer::Throttled => return Err(unavailable(Some(20))),
            // It is found dead, and what has died is not brought back.
            _ if answer == Answer::Dead || !mint.works_after(truth) => {
                mint.ends_at = mint.ends_at.min(truth);
                return Ok(Renewed { usable_until: wall.min(truth) - Duration::from_secs(60) });
            }
            Answer::Sooner(by) => order.dead_by - by,
            Answer::Later(by) => order.dead_by + by,
            _ if self.planted == Planted::LongLives => order.dead_by + Duration::from_secs(3600),
            _ => order.dead_by,
        };
        (mint.ends_at, mint.minted_at, mint.behind) = (ends_at, truth, truth.since(wall));
        mint.renewals += 1;
        mint.late = if let Answer::Later(by) = answer { by } else { Duration::ZERO };
        match answer {
            Answer::Lost => Err(unavailable(None)),
            Answer::Garbled | Answer::Years => Err(ExchangeError::Unusable { detail: detail() }),
            _ => Ok(Renewed { usable_until: ends_at }),
        }
    }

    fn revoke(&self, provider: Provider, order: &RevokeOrder, undo: Undo) -> Result<RevokeOutcome, ExchangeError> {
        let truth = self.truth.now();
        let mut state = self.state();
        let name = order.handle.to_string();
        let own = |mint: &&mut Mint| {
            mint.upstream == name && mint.provider == provider && mint.caller == order.caller.as_str()
        };
        let Some(mint) = state.mints.iter_mut().find(own) else {
            state.odd.push(format!("{order:?}"));
            return Err(ExchangeError::Refused { detail: detail() });
        };
        let effect = matches!(undo, Undo::Done | Undo::Taken(true) | Undo::Lost);
        if effect && self.planted != Planted::LieAboutRevoking {
            mint.revoked_at.get_or_insert(truth);
        }
        match undo {
            Undo::Done => Ok(RevokeOutcome::Revoked),
            Undo::Taken(_) => Ok(RevokeOutcome::Requested),
            Undo::Refused => Err(ExchangeError::Refused { detail: detail() }),
            Undo::Garbled => Err(ExchangeError::Unusable { detail: detail() }),
            Undo::NoSvid => Err(ExchangeError::NoSvid { detail: detail(), passing: true }),
            Undo::Lost | Undo::Broken => Err(unavailable(None)),
            Undo::Throttled => Err(unavailable(Some(20))),
        }
    }

    /// Mints for the order, whoever hears of it.
    fn mint(&self, provider: Provider, order: &MintOrder, intent: Option<LeaseId>, answer: Answer) -> Given {
        let (truth, wall) = (self.truth.now(), self.machine.now());
        let mut state = self.state();
        let number = state.mints.len();
        let ends_at = match answer {
            Answer::Sooner(by) => order.dead_by - by,
            Answer::Later(by) => order.dead_by + by,
            Answer::Dead => truth.min(order.dead_by),
            _ if self.planted == Planted::LongLives => order.dead_by + Duration::from_secs(3600),
            _ => order.dead_by,
        };
        let told = if answer == Answer::Dead { wall.min(truth) - Duration::from_secs(60) } else { ends_at };
        let (key, upstream) = match provider {
            Provider::Aws => (
                format!("ASIASIM{number:013}"),
                format!("arn:aws:sts::111122223333:assumed-role/tests/{}#{number}", order.session_name),
            ),
            Provider::Vault => {
                let lease = format!("database/creds/{}/{number:08}", order.grant.id);
                (lease.clone(), lease)
            }
        };
        let mint = Mint {
            provider,
            key,
            secrets: [format!("secret-of-{number:08}"), format!("token-of-{number:08}")],
            upstream,
            caller: order.caller.to_string(),
            session_name: order.session_name.clone(),
            grant: order.grant.id.as_str().to_owned(),
            intent,
            minted_at: truth,
            renewals: 0,
            ends_at,
            late: if let Answer::Later(by) = answer { by } else { Duration::ZERO },
            behind: truth.since(wall),
            lost: matches!(answer, Answer::Lost | Answer::Garbled | Answer::Years),
            revoked_at: None,
        };
        state.mints.push(mint.clone());
        let [secret, token] = mint.secrets;
        let credential = match provider {
            Provider::Aws => Credential::Aws(AwsCredential {
                access_key_id: Secret::new(mint.key),
                secret_access_key: Secret::new(secret),
                session_token: Secret::new(token),
                account_id: None,
            }),
            Provider::Vault => {
                let data = Secret::new(json!({ "username": secret, "password": token }).to_string());
                Credential::Vault(VaultSecret { lease_id: mint.key, data })
            }
        };
        Given { credential, usable_until: told, handle: Handle::read(provider, &mint.upstream) }
    }

    /// The intent that a call for a credential was made on: of its own, and durable before it.
    fn intent_of(&self, provider: Provider, order: &MintOrder) -> Option<LeaseId> {
        let books = self.books.lock().unwrap();
        let mut state = self.state();
        let open = |lease: &&sidemint::lease::LeaseRecord| {
            *lease.session_name == *order.session_name
                && lease.provider == provider
                && lease.state == LeaseState::Intent
                && !state.used.contains(&lease.id)
        };
        let intent = books.promised.leases.values().find(open).map(|lease| (lease.id.clone(), lease.opened_at));
        let (id, decided_at) = intent.unzip();
        state.asked.push(decided_at.unwrap_or_else(|| self.machine.now()));
        state.used.extend(id.clone());
        state.bare += usize::from(id.is_none());
        id
    }

    /// Whether the later end of a renewal is durable before it is asked for, and its task has not ended.
    fn is_promised(&self, provider: Provider, order: &RenewOrder) -> bool {
        let books = self.books.lock().unwrap();
        let one = books
            .promised
            .leases
            .values()
            .find(|lease| lease.provider == provider && lease.upstream.as_ref() == Some(&order.handle));
        one.is_some_and(|lease| {
            let runs = books.promised.tasks.get(&lease.task).is_some_and(|task| task.ending.is_none());
            runs && lease.state == LeaseState::Issued && lease.usable_until >= order.dead_by
        })
    }

    fn call(&self, provider: Provider, limit: Duration, work: Work) {
        let asked_at = self.machine.boot();
        self.state().calls.push(Call { provider, limit, asked_at, work });
    }
}

fn detail() -> String {
    "the model was told so".to_owned()
}

fn unavailable(wait: Option<u64>) -> ExchangeError {
    ExchangeError::Unavailable { detail: detail(), retry_after: wait.map(Duration::from_secs) }
}

/// One provider of the cloud.
#[derive(Debug)]
struct Face {
    cloud: Arc<SimCloud>,
    provider: Provider,
}

/// An answer, or none ever where the sidecar is no more.
async fn answer<T>(answer: oneshot::Receiver<T>) -> T {
    match answer.await {
        Ok(result) => result,
        Err(_) => std::future::pending().await,
    }
}

#[async_trait]
impl Exchange for Face {
    fn provider(&self) -> Provider {
        self.provider
    }

    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        let intent = self.cloud.intent_of(self.provider, order);
        let (done, told) = oneshot::channel();
        self.cloud.call(self.provider, order.limit, Work::Mint(Box::new(order.clone()), intent, done));
        let Given { credential, usable_until, handle } = answer(told).await?;
        let revocability = match self.provider {
            Provider::Aws => Revocability::ExpiresOnly(handle),
            Provider::Vault => Revocability::Revocable(Revocable::by(self, handle)),
        };
        Ok(Minted { credential, usable_until, revocability })
    }

    fn revoker(&self) -> Option<&dyn Revoke> {
        (self.provider == Provider::Vault).then_some(self)
    }

    fn renewer(&self) -> Option<&dyn Renew> {
        (self.provider == Provider::Vault).then_some(self)
    }
}

#[async_trait]
impl Renew for Face {
    fn can_renew(&self, handle: &Handle) -> bool {
        // Every third has reached its maximum life.
        handle.to_string().bytes().map(usize::from).sum::<usize>() % 3 != 0
    }

    async fn renew(&self, order: &RenewOrder) -> Result<Renewed, ExchangeError> {
        let promised = self.cloud.is_promised(self.provider, order);
        self.cloud.state().bare += usize::from(!promised);
        self.cloud.state().renewals += 1;
        let (done, told) = oneshot::channel();
        self.cloud.call(self.provider, order.limit, Work::Renew(Box::new(order.clone()), done));
        answer(told).await
    }
}

#[async_trait]
impl Revoke for Face {
    async fn revoke(&self, order: &RevokeOrder) -> Result<RevokeOutcome, ExchangeError> {
        let (done, told) = oneshot::channel();
        if self.cloud.planted == Planted::NeverRevoke {
            return answer(told).await;
        }
        self.cloud.state().revocations += 1;
        self.cloud.call(self.provider, order.limit, Work::Revoke(order.clone(), done));
        answer(told).await
    }
}
