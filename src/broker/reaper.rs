//! What ends tasks and leases when their time has come, and takes back what can be. Serving never waits for it: expiry
//! is judged at each request too, so a late reaper lets nothing live longer.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Broker, revoke};
use crate::identity::workload_api::Identities;
use crate::policy::Policy;

/// Sweeps when the next thing is due, when something changed, and when identities or policy changed; never returns.
pub async fn run(
    broker: Arc<Broker>,
    mut identities: watch::Receiver<Arc<Identities>>,
    mut policy: watch::Receiver<Option<Arc<Policy>>>,
) {
    let clock = Arc::clone(&broker.parts().clock);
    let sweeps = async {
        loop {
            let next = broker.sweep().await;
            tokio::select! {
                () = clock.sleep(next) => {}
                () = broker.changed.notified() => {}
                Ok(()) = identities.changed() => {}
                Ok(()) = policy.changed() => {}
            }
        }
    };
    // Beside each other: neither waits for the other.
    tokio::join!(sweeps, revoke::run(Arc::clone(&broker)));
}
