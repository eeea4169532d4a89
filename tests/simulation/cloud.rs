//! The cloud: mints when the simulation says so, and keeps the first ledger.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use sidemint::clock::{Clock as _, ManualClock, Timestamp};
use sidemint::exchange::{AwsCredential, Cloud, Credential, ExchangeError, MintOrder, Minted, Provider, Revocation};
use sidemint::lease::{LeaseId, LeaseState};
use sidemint::secret::Secret;
use tokio::sync::oneshot;

use crate::journal::Books;

/// How a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A credential that lives as long as was ordered.
    Give,
    /// One that dies this much sooner, and says so.
    Sooner(Duration),
    /// One that it says has died already.
    Dead,
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

/// A credential as the cloud knows it.
#[derive(Debug, Clone)]
pub(crate) struct Mint {
    pub(crate) key: String,
    pub(crate) secrets: [String; 2],
    pub(crate) upstream: String,
    pub(crate) caller: String,
    pub(crate) session_name: String,
    pub(crate) grant: String,
    /// The lease whose intent was durable when it was asked for.
    pub(crate) intent: Option<LeaseId>,
    /// True time.
    pub(crate) minted_at: Timestamp,
    /// When it stops working, true time.
    pub(crate) ends_at: Timestamp,
    /// How far the sidecar's wall clock was behind the true time.
    pub(crate) behind: Duration,
    /// Nobody was told of it.
    pub(crate) lost: bool,
}

struct Call {
    number: usize,
    order: MintOrder,
    intent: Option<LeaseId>,
    asked_at: Duration,
    done: oneshot::Sender<Result<Minted, ExchangeError>>,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    asked: usize,
    mints: Vec<Mint>,
    /// Intents that a call was made on.
    used: Vec<LeaseId>,
    /// Calls that no durable intent came before.
    bare: usize,
}

/// The model. It outlives every sidecar.
pub(crate) struct SimCloud {
    /// True time.
    pub(crate) truth: ManualClock,
    /// The sidecar's clock.
    pub(crate) machine: ManualClock,
    pub(crate) books: Arc<Mutex<Books>>,
    state: Mutex<State>,
}

impl fmt::Debug for SimCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimCloud").finish_non_exhaustive()
    }
}

impl SimCloud {
    pub(crate) fn new(truth: ManualClock, machine: ManualClock, books: Arc<Mutex<Books>>) -> Arc<Self> {
        Arc::new(Self { truth, machine, books, state: Mutex::default() })
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
        self.state().asked
    }

    /// How many calls no durable intent came before.
    pub(crate) fn bare_calls(&self) -> usize {
        self.state().bare
    }

    /// How many calls wait for an answer.
    pub(crate) fn waiting(&self) -> usize {
        self.state().calls.len()
    }

    /// The sidecar is no more: of the calls that wait some have an effect that nobody hears of.
    pub(crate) fn hang_up(&self, mut acts: impl FnMut() -> bool) {
        let calls = std::mem::take(&mut self.state().calls);
        for call in calls {
            if acts() {
                self.mint(&call, Answer::Lost);
            }
        }
    }

    /// Answers what has waited for as long as its order allows; such a call may have had its effect.
    pub(crate) fn time_out(&self, mut acts: impl FnMut() -> bool) -> bool {
        let boot = self.machine.boot();
        let late: Vec<_> = {
            let mut state = self.state();
            let late = |call: &mut Call| boot.saturating_sub(call.asked_at) >= call.order.limit;
            state.calls.extract_if(.., late).collect()
        };
        let any = !late.is_empty();
        for call in late {
            let answer = if acts() { Answer::Lost } else { Answer::Broken };
            self.reply(call, answer);
        }
        any
    }

    /// Answers the `index`th of the calls that wait.
    pub(crate) fn answer(&self, index: usize, answer: Answer) {
        let call = {
            let mut state = self.state();
            state.calls.sort_by_key(|call| call.number);
            state.calls.remove(index)
        };
        self.reply(call, answer);
    }

    fn reply(&self, call: Call, answer: Answer) {
        let detail = || "the model was told so".to_owned();
        let unavailable = |wait: Option<u64>| {
            Err(ExchangeError::Unavailable { detail: detail(), retry_after: wait.map(Duration::from_secs) })
        };
        let result = match answer {
            Answer::Refused => Err(ExchangeError::Refused { detail: detail() }),
            Answer::Broken => unavailable(None),
            Answer::Throttled => unavailable(Some(20)),
            Answer::Give | Answer::Sooner(_) | Answer::Dead => Ok(self.mint(&call, answer)),
            Answer::Lost => {
                self.mint(&call, answer);
                unavailable(None)
            }
            Answer::Garbled => {
                self.mint(&call, answer);
                Err(ExchangeError::Unusable { detail: detail() })
            }
        };
        let _ = call.done.send(result);
    }

    /// Mints for the order, whoever hears of it.
    fn mint(&self, call: &Call, answer: Answer) -> Minted {
        let (truth, wall) = (self.truth.now(), self.machine.now());
        let mut state = self.state();
        let number = state.mints.len();
        let ends_at = match answer {
            Answer::Sooner(by) => call.order.dead_by - by,
            Answer::Dead => truth.min(call.order.dead_by),
            _ => call.order.dead_by,
        };
        let told = if answer == Answer::Dead { wall.min(truth) - Duration::from_secs(60) } else { ends_at };
        let exact = call.order.grant.id.as_str().starts_with("exact");
        let mint = Mint {
            key: format!("ASIASIM{number:013}"),
            secrets: [format!("secret-of-{number:08}"), format!("token-of-{number:08}")],
            upstream: format!("arn:aws:sts::111122223333:assumed-role/tests/{}#{number}", call.order.session_name),
            caller: call.order.caller.to_string(),
            session_name: call.order.session_name.clone(),
            grant: call.order.grant.id.as_str().to_owned(),
            intent: call.intent.clone(),
            minted_at: truth,
            ends_at,
            behind: truth.since(wall),
            lost: matches!(answer, Answer::Lost | Answer::Garbled),
        };
        state.mints.push(mint.clone());
        let [secret, token] = mint.secrets;
        Minted {
            credential: Credential::Aws(AwsCredential {
                access_key_id: Secret::new(mint.key),
                secret_access_key: Secret::new(secret),
                session_token: Secret::new(token),
                account_id: None,
            }),
            usable_until: told,
            revocation: if exact { Revocation::Exact } else { Revocation::Expire },
            upstream: mint.upstream,
        }
    }
}

#[async_trait]
impl Cloud for SimCloud {
    fn provider(&self) -> Provider {
        Provider::Aws
    }

    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        let answer = {
            let books = self.books.lock().unwrap();
            let mut state = self.state();
            // Each call has an intent of its own, durable before it.
            let open = |lease: &&sidemint::lease::LeaseRecord| {
                *lease.session_name == *order.session_name && lease.state == LeaseState::Intent
            };
            let fresh = |lease: &&sidemint::lease::LeaseRecord| !state.used.contains(&lease.id);
            let intent = books.promised.leases.values().filter(open).find(fresh).map(|lease| lease.id.clone());
            state.used.extend(intent.clone());
            state.bare += usize::from(intent.is_none());
            let (done, answer) = oneshot::channel();
            let number = state.asked;
            state.asked += 1;
            state.calls.push(Call { number, order: order.clone(), intent, asked_at: self.machine.boot(), done });
            answer
        };
        match answer.await {
            Ok(result) => result,
            Err(_) => std::future::pending().await,
        }
    }
}
