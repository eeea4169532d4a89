//! The pod task: for unmodified images, the sidecar itself begins the task of its configuration and writes the token
//! to a file that the container mounts. The mount is the proof: whoever reads the file holds the task.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use crate::broker::{BeginRequest, Broker, Claimant};
use crate::config::PodTaskSettings;
use crate::durable_file;
use crate::identity::task_token::TokenHash;
use crate::identity::{Evidence, SpiffeId};
use crate::policy::Ask;
use crate::retry::Backoff;
use crate::secret::Secret;
use crate::task::{EndReason, Task};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A successor is begun this long before the end, or at a tenth of the task's life before it where that is less.
const AHEAD: Duration = Duration::from_secs(60);

/// Keeps the pod task of the configuration running.
#[derive(Debug)]
pub struct PodTask {
    broker: Arc<Broker>,
    settings: PodTaskSettings,
    reason: Mutex<Option<String>>,
}

impl PodTask {
    /// A pod task that is not running yet.
    pub fn new(broker: Arc<Broker>, settings: PodTaskSettings) -> Arc<Self> {
        Arc::new(Self { broker, settings, reason: Mutex::new(Some("it has not begun yet".into())) })
    }

    /// Why the token file is of no use now, if it is not.
    pub fn not_ready(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say(&self, reason: Option<String>) {
        let mut current = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != reason {
            match &reason {
                Some(reason) => tracing::warn!(%reason, "pod task not running"),
                None => tracing::info!(scope = %self.settings.scope, "pod task running"),
            }
            *current = reason;
        }
    }

    /// Begins the task, renews it at its deadline, and begins it again when policy permits again; never returns.
    pub async fn run(self: Arc<Self>) {
        let parts = self.broker.parts();
        let (mut policy, mut identities) = (parts.policy.subscribe(), parts.workload_api.watch());
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut task = self.adopt();
        loop {
            if let Some(running) = task.take() {
                self.say(None);
                pauses.reset();
                self.attend(&running).await;
                if !self.settings.renew && ended_by_deadline(&running) {
                    self.say(Some("its time is up and pod_task.renew is false".into()));
                    return;
                }
            }
            // What comes after this check is new.
            policy.mark_unchanged();
            identities.mark_unchanged();
            match self.begin().await {
                Ok(begun) => task = Some(begun),
                Err(reason) => {
                    self.say(Some(reason));
                    let mut longer = pauses;
                    // Whoever waits for the sidecar to be ready waits for no pause that news has ended.
                    tokio::select! {
                        () = parts.clock.sleep(longer.next_wait()) => pauses = longer,
                        Ok(()) = policy.changed() => {}
                        Ok(()) = identities.changed() => {}
                    }
                }
            }
        }
    }

    /// The task whose token is in the file, where it still lives: a restart changes nothing for the container.
    fn adopt(&self) -> Option<Arc<Task>> {
        let text = Secret::new(fs::read_to_string(&self.settings.token_file).ok()?);
        // exposed: only its hash is looked up
        let task = self.broker.tasks().by_token(&TokenHash::of(text.expose())?)?;
        let owner = self.settings.spiffe_id.as_ref().is_none_or(|spiffe_id| spiffe_id == task.owner());
        let same = owner && task.begun().ask == self.ask() && task.ended().is_none();
        same.then_some(task)
    }

    /// Waits until a successor is due, or the task has ended.
    async fn attend(&self, task: &Arc<Task>) {
        let clock = Arc::clone(&self.broker.parts().clock);
        let mut ended = task.watch_end();
        let life = task.deadline().since(task.begun().begun_at);
        let ahead = if self.settings.renew { AHEAD.min(life / 10) } else { Duration::ZERO };
        let due = task.deadline() - ahead;
        loop {
            let left = due.since(self.broker.now());
            if self.settings.renew && left.is_zero() {
                return;
            }
            // At most an hour at a time, so that a clock that was set is noticed.
            let nap = left.clamp(Duration::from_millis(50), Duration::from_secs(3600));
            tokio::select! {
                () = clock.sleep(nap) => {}
                _ = ended.wait_for(|ended| *ended) => return,
            }
        }
    }

    async fn begin(&self) -> Result<Arc<Task>, String> {
        let spiffe_id = self.spiffe_id()?;
        let request = BeginRequest {
            claimant: Claimant::Workload(Evidence::Pod(spiffe_id)),
            ask: self.ask(),
            label: Some("pod".into()),
            hold: false,
            parent: None,
            idempotency: None,
            request_id: "pod-task".into(),
        };
        let begun = self.broker.begin(request).await.map_err(|error| error.to_string())?;
        let path = &self.settings.token_file;
        // exposed: the file is how the container gets its token
        match write_token(path, begun.token.expose()) {
            Ok(()) => Ok(begun.task),
            Err(error) => {
                self.broker.end(&begun.task, EndReason::Shutdown, None).await;
                Err(format!("{}: {error}: check pod_task.token_file", path.display()))
            }
        }
    }

    fn spiffe_id(&self) -> Result<SpiffeId, String> {
        if let Some(spiffe_id) = &self.settings.spiffe_id {
            return Ok(spiffe_id.clone());
        }
        let identities = self.broker.parts().workload_api.identities();
        let default = identities.svids.first().map(|svid| svid.spiffe_id.clone());
        default.ok_or_else(|| "the Workload API gives no SVID yet".to_owned())
    }

    fn ask(&self) -> Ask {
        Ask {
            scope: self.settings.scope.clone(),
            params: self.settings.params.clone().into(),
            reason: self.settings.reason.clone(),
            approval: None,
            ttl: self.settings.ttl,
        }
    }
}

fn ended_by_deadline(task: &Task) -> bool {
    task.ended() == Some(EndReason::Deadline)
}

/// Writes the token, without a newline. Mode 0440, so that the container reads it through the pod's group and nobody
/// writes it.
fn write_token(path: &Path, token: &str) -> io::Result<()> {
    durable_file::replace_whole(path, token.as_bytes(), 0o440)
}
