//! Keeps the [`TrustedClock`] honest: looks at it every second, and asks the trust domain what time it is.
//!
//! The question is a JWT-SVID for an audience with a random part. No cache can have it, so its `iat` is the time at which
//! the trust domain signed, between our question and the answer. The audience is nobody's: the token opens nothing.

use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;

use crate::audit::{Audit, Event, Kind};
use crate::clock::guard::TrustChange;
use crate::clock::{Clock as _, Timestamp, TrustedClock};
use crate::identity::jwt_svid::signed_time;
use crate::identity::task_token::random;
use crate::identity::workload_api::WorkloadApi;

/// How often the clocks are compared.
const LOOK: Duration = Duration::from_secs(1);
/// How often the time is asked for while it is trusted.
const ASK: Duration = Duration::from_secs(600);
/// How often it is asked for while it is in doubt, or was never told.
const ASK_IN_DOUBT: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Never returns.
pub async fn run(clock: Arc<TrustedClock>, workload_api: Arc<dyn WorkloadApi>, audit: Arc<Audit>) {
    let (mut asked_at, mut answered) = (None::<Duration>, false);
    loop {
        let in_doubt = clock.trusted().is_err();
        let every = if in_doubt || !answered { ASK_IN_DOUBT } else { ASK };
        if asked_at.is_none_or(|at| clock.boot().saturating_sub(at) >= every) && workload_api.identities().known {
            asked_at = Some(clock.boot());
            answered = ask(&clock, &*workload_api).await;
        }
        if let Some(change) = clock.observe() {
            tell(change, clock.now(), &audit).await;
        }
        let saving = Arc::clone(&clock);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || saving.save()).await {
            tracing::error!(%error, "what the clock shows is not remembered over a restart");
        }
        clock.sleep(LOOK).await;
    }
}

/// Asks for a signed time. Returns whether one came.
async fn ask(clock: &TrustedClock, workload_api: &dyn WorkloadApi) -> bool {
    let identities = workload_api.identities();
    let Some(own) = identities.svids.first() else { return false };
    let mut nonce = [0; 16];
    if random(&mut nonce).is_err() {
        return false;
    }
    let audience = format!("urn:sidemint:clock:{}", HEXLOWER.encode(&nonce));
    let began = clock.boot();
    let svid = match workload_api.fetch_jwt_svid(&own.spiffe_id, &audience, ANSWER).await {
        Ok(svid) => svid,
        Err(error) => {
            tracing::debug!(%error, "no signed time");
            return false;
        }
    };
    let took = clock.boot().saturating_sub(began);
    // exposed: only its signature and its time are read
    match signed_time(svid.token.expose(), &identities.jwt_bundles, &audience) {
        Ok(signed) => {
            clock.witness(signed, took);
            true
        }
        Err(error) => {
            tracing::debug!(%error, "the time that came is not signed as it should be");
            false
        }
    }
}

async fn tell(change: TrustChange, now: Timestamp, audit: &Audit) {
    let event = match &change {
        TrustChange::Lost(distrust) => {
            tracing::error!(%distrust, "the time is in doubt: nothing begins and nothing is minted");
            let detail = Some(distrust.to_string());
            Event { reason: Some(distrust.kind()), detail, ..Event::new(now, Kind::Clock, "untrusted") }
        }
        TrustChange::Regained => {
            tracing::warn!("the time is trusted again");
            Event::new(now, Kind::Clock, "trusted")
        }
    };
    // It has happened; that its line was not written is logged by the audit log itself.
    let _ = audit.record(&event).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock, SharedClock};
    use crate::identity::workload_api::testing::FakeWorkloadApi;

    const START: Timestamp = Timestamp::from_secs(1_795_452_513);
    const OWN: &str = "spiffe://example.org/sidemint";

    /// A machine's clock, and the true one, which the trust domain has.
    struct Place {
        machine: ManualClock,
        truth: ManualClock,
        api: Arc<FakeWorkloadApi>,
        clock: Arc<TrustedClock>,
        _state: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let (machine, truth) = (ManualClock::at(START), ManualClock::at(START));
            let state = tempfile::tempdir().unwrap();
            let shared: SharedClock = Arc::new(machine.clone());
            let api = FakeWorkloadApi::new(Arc::new(truth.clone()), &[OWN]);
            let clock = TrustedClock::start(shared, state.path()).unwrap();
            Self { machine, truth, api, clock, _state: state }
        }

        async fn ask(&self) -> bool {
            ask(&self.clock, &*self.api).await
        }
    }

    #[tokio::test]
    async fn a_signed_time_restores_trust_after_a_frozen_machine() {
        let place = Place::new();
        assert!(place.ask().await);
        place.truth.advance(Duration::from_secs(600));
        place.machine.set_wall(START + Duration::from_secs(600));
        assert!(place.clock.trusted().is_err());
        assert!(place.ask().await);
        assert_eq!(place.clock.trusted(), Ok(()));
    }

    #[tokio::test]
    async fn a_signed_time_detects_a_clock_that_was_set() {
        let place = Place::new();
        place.machine.set_wall(START - Duration::from_secs(3600));
        assert!(place.ask().await);
        assert!(place.clock.trusted().is_err());
        assert!(place.clock.now() >= START);
    }

    #[tokio::test]
    async fn requests_each_time_token_for_a_fresh_audience_of_nobody() {
        let place = Place::new();
        assert!(place.ask().await && place.ask().await);
        let audiences: Vec<_> = place.api.fetches().into_iter().map(|(_, audience)| audience).collect();
        assert_eq!(audiences.len(), 2);
        assert_ne!(audiences[0], audiences[1]);
        assert!(audiences.iter().all(|audience| audience.starts_with("urn:sidemint:clock:") && audience.len() > 50));
    }
}
