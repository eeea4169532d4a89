//! What ends tasks and leases when their time has come, and revokes what can be. Serving never waits for it: expiry
//! is judged at each request too, so a late reaper lets nothing live longer.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Broker, detached, revoke};
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
        // What waits for the disk is apart: a slow one makes no end late.
        let mut recording = JoinSet::new();
        loop {
            let mut sweep = broker.sweep().await;
            if !recording.is_empty() {
                // What the journal does not have yet may be on its way to it.
                sweep.behind.clear();
            }
            let next = sweep.next;
            if !sweep.is_empty() {
                let broker = Arc::clone(&broker);
                // What is no longer served is written down, whatever becomes of the reaper.
                recording.spawn(detached(async move { broker.execute(sweep).await }));
            }
            let sleep = clock.sleep(next);
            tokio::pin!(sleep);
            loop {
                tokio::select! {
                    () = &mut sleep => {}
                    () = broker.changed.notified() => {}
                    Ok(()) = identities.changed() => {}
                    Ok(()) = policy.changed() => {}
                    // A journal that fails is tried again in due time, not at once.
                    Some(done) = recording.join_next() => if !done.unwrap_or(false) { continue },
                }
                break;
            }
        }
    };
    // Beside each other: neither waits for the other.
    tokio::join!(sweeps, revoke::run(Arc::clone(&broker)));
}
