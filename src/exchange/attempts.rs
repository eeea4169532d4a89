//! The tries of an exchange, once for every provider: leave of the provider's gate, a JWT-SVID of the caller, one try, what its
//! failure means, and whether a credential may live that nobody here ever saw.

use std::sync::Arc;
use std::time::Duration;

use super::fault::{Fault, Remedy};
use super::{ExchangeError, Minted};
use crate::clock::SharedClock;
use crate::identity::SpiffeId;
use crate::identity::workload_api::{JwtSvid, WorkloadApi, WorkloadApiError};
use crate::retry::{Gate, Jitter, Retries, Shut};

const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// What an exchange needs of the outside world besides its provider.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where the callers' JWT-SVIDs come from.
    pub workload_api: Arc<dyn WorkloadApi>,
    /// Time.
    pub clock: SharedClock,
    /// What spreads the tries.
    pub jitter: Arc<dyn Jitter>,
}

impl Context {
    /// A JWT-SVID of `caller`, never of anyone else, for `audience` within `limit`.
    pub(super) async fn svid(
        &self,
        caller: &SpiffeId,
        audience: &str,
        limit: Duration,
    ) -> Result<JwtSvid, ExchangeError> {
        let svid = self.workload_api.fetch_jwt_svid(caller, audience, limit).await.map_err(|error| {
            let passing = !matches!(error, WorkloadApiError::Denied(_));
            no_svid(error.to_string(), passing)
        })?;
        if svid.spiffe_id != *caller {
            return Err(no_svid("the Workload API gave a JWT-SVID of another identity".to_owned(), false));
        }
        if svid.expires_at <= self.clock.now() {
            return Err(no_svid("the Workload API gave an expired JWT-SVID".to_owned(), true));
        }
        Ok(svid)
    }

    /// How long until `deadline` (time since boot).
    pub(super) fn remaining(&self, deadline: Duration) -> Duration {
        deadline.saturating_sub(self.clock.boot())
    }
}

/// One order at one provider, to be tried until it is settled.
pub(super) trait Attempt: Sync {
    /// The provider's name in errors and in the log.
    const UPSTREAM: &'static str;
    /// The most tries, the first one included.
    const TRIES: u32;

    /// Whose identity is exchanged.
    fn caller(&self) -> &SpiffeId;

    /// The audience of the JWT-SVID.
    fn audience(&self) -> &str;

    /// Whether the provider can take this JWT-SVID at all.
    ///
    /// # Errors
    /// Why it cannot.
    fn check_svid(&self, _svid: &JwtSvid) -> Result<(), String> {
        Ok(())
    }

    /// One try, over by `deadline` (time since boot).
    fn attempt(&self, svid: &JwtSvid, deadline: Duration) -> impl Future<Output = Result<Minted, Fault>> + Send;
}

/// Tries until there is a credential, a final refusal, or no more of `limit`. An error says of all tries together whether one may
/// have minted.
///
/// # Errors
/// That of the last try, or why it was not made.
pub(super) async fn mint<A: Attempt>(
    context: &Context,
    gate: &Gate,
    attempt: &A,
    limit: Duration,
) -> Result<Minted, ExchangeError> {
    let mut may_have_minted = false;
    let outcome = tries(context, gate, attempt, limit, &mut may_have_minted).await;
    outcome.map_err(|error| if may_have_minted { error.after_uncertain_try() } else { error })
}

async fn tries<A: Attempt>(
    context: &Context,
    gate: &Gate,
    attempt: &A,
    limit: Duration,
    may_have_minted: &mut bool,
) -> Result<Minted, ExchangeError> {
    let Context { clock, jitter, .. } = context;
    let deadline = clock.boot().saturating_add(limit);
    let mut retries = Retries::new(BACKOFF_BASE, BACKOFF_CAP, A::TRIES);
    let mut fresh_svid_left = true;
    loop {
        let turn =
            gate.turn(&**clock, context.remaining(deadline)).await.map_err(|shut| not_asked(shut, A::UPSTREAM))?;
        let svid = context.svid(attempt.caller(), attempt.audience(), context.remaining(deadline)).await?;
        attempt.check_svid(&svid).map_err(|why| no_svid(why, false))?;
        let fault = match attempt.attempt(&svid, deadline).await {
            Ok(minted) => {
                turn.answered();
                return Ok(minted);
            }
            Err(fault) => fault,
        };
        match fault.is_outage() {
            true => turn.failed(fault.retry_after, jitter.fraction()),
            false => turn.answered(),
        }
        *may_have_minted |= fault.may_have_minted;
        if let Some(wait) = fault.retry_after {
            gate.hold(&**clock, wait);
        }
        match fault.remedy {
            Remedy::Retry | Remedy::Throttled => {
                match retries.next(jitter.fraction(), fault.retry_after, context.remaining(deadline)) {
                    Some(wait) => {
                        tracing::debug!(upstream = A::UPSTREAM, detail = fault.detail, ?wait, "will be tried again");
                        clock.sleep(wait).await;
                    }
                    None => return Err(fault.into()),
                }
            }
            Remedy::FreshSvid if fresh_svid_left => fresh_svid_left = false,
            _ => return Err(fault.into()),
        }
    }
}

/// The error of an exchange with `upstream` that its gate did not let through.
pub(super) fn not_asked(shut: Shut, upstream: &str) -> ExchangeError {
    let (detail, retry_after) = match shut {
        Shut::TooOften(wait) => (format!("too many calls to {upstream} from here"), wait),
        Shut::Broken(wait) => (format!("{upstream} failed again and again: it is not asked for a while"), wait),
    };
    ExchangeError::NotAsked { detail, retry_after }
}

fn no_svid(detail: String, passing: bool) -> ExchangeError {
    ExchangeError::NoSvid { detail, passing }
}
