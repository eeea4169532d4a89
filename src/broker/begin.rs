//! The steps of [`Broker::begin`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::end::SWEEP_EVERY;
use super::{BeginError, Broker, Limit};
use crate::audit::{Event, Kind};
use crate::clock::Timestamp;
use crate::identity::task_token::{self, TokenHash};
use crate::identity::{Caller, Evidence, SpiffeId};
use crate::journal::{self, Change, JournalError};
use crate::policy::{Ask, Permit, PolicyVersion};
use crate::secret::Secret;
use crate::task::{Decided, EndReason, Idempotency, Task, TaskId, TaskRecord};

/// Who wants to begin a task.
#[derive(Debug)]
pub enum Claimant {
    /// A workload, by its SVID.
    Workload(Evidence),
    /// Whoever holds the token of a running task: the new task is its child.
    Parent(TokenHash),
}

/// A request to begin a task.
#[derive(Debug)]
pub struct BeginRequest {
    /// Who asks.
    pub claimant: Claimant,
    /// For what.
    pub ask: Ask,
    /// Free text for the task.
    pub label: Option<String>,
    /// Whether the task ends when nobody holds it.
    pub hold: bool,
    /// The task that this one is part of.
    pub parent: Option<TaskId>,
    /// The idempotency key and the digest of the request.
    pub idempotency: Option<Idempotency>,
    /// The request's id.
    pub request_id: String,
}

/// A task that has begun, and its token, which is told this once.
#[derive(Debug)]
pub struct Begun {
    /// The task.
    pub task: Arc<Task>,
    /// Its token.
    pub token: Secret,
}

impl Broker {
    /// Evidence → caller; for a child task, the caller of its parent.
    pub(super) fn authenticate(&self, request: &BeginRequest, now: Timestamp) -> Result<Caller, BeginError> {
        self.parts.clock.trusted()?;
        let identities = self.parts.workload_api.identities();
        if !identities.known {
            return Err(BeginError::NotReady);
        }
        let caller = match &request.claimant {
            Claimant::Workload(evidence) => self.parts.authenticator.authenticate(evidence, now)?,
            Claimant::Parent(token) => {
                let parent = self.tasks.by_token(token).ok_or(BeginError::ParentGone)?;
                if self.reason_to_end(&parent).is_some() {
                    return Err(BeginError::ParentGone);
                }
                if request.parent.as_ref().is_some_and(|named| named != parent.id()) {
                    return Err(BeginError::ForeignParent);
                }
                parent.caller()
            }
        };
        // The exchange needs an SVID of the caller: in a sidecar it must be one of ours too.
        match identities.svid(caller.spiffe_id(), now) {
            Some(_) => Ok(caller),
            None => Err(BeginError::NotServed(caller.spiffe_id().clone())),
        }
    }

    /// The task that `request` belongs to as a child.
    fn parent(&self, request: &BeginRequest, caller: &Caller) -> Result<Option<Arc<Task>>, BeginError> {
        let parent = match (&request.claimant, &request.parent) {
            (Claimant::Parent(token), _) => self.tasks.by_token(token),
            (Claimant::Workload(_), Some(id)) => self.tasks.by_id(id),
            (Claimant::Workload(_), None) => return Ok(None),
        };
        let parent = parent.filter(|task| task.owner() == caller.spiffe_id()).ok_or(BeginError::ForeignParent)?;
        if self.reason_to_end(&parent).is_some() {
            return Err(BeginError::ParentGone);
        }
        Ok(Some(parent))
    }

    /// Decides, makes the task durable, and only then lets it run.
    pub(super) async fn open(
        self: &Arc<Self>,
        request: &BeginRequest,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Begun, BeginError> {
        let _turn = match &request.idempotency {
            Some(_) => Some(self.idempotent.lock().await),
            None => None,
        };
        let parent = self.parent(request, caller)?;
        if let Some(begun) = self.replay(request, caller, parent.as_deref()).await? {
            return Ok(begun);
        }
        let _slot = OpeningSlot::take(&self.opening);
        self.still_open()?;
        let policy = self.parts.policy.current().ok_or(BeginError::NoPolicy)?;
        let permit = policy.decide(caller, &request.ask, now).map_err(BeginError::Denied)?;
        if let Some(grant) = permit.grants().iter().find(|g| !self.parts.exchanges.contains_key(&g.provider.provider()))
        {
            return Err(BeginError::NoProvider(grant.provider.provider()));
        }
        let (_opening, opening) = self.callers.open(caller.spiffe_id());
        let limits = &self.parts.limits;
        // Counted task by task only where there could be too many.
        if self.tasks.len() + opening > limits.tasks_per_caller && self.has_too_many(caller.spiffe_id(), opening) {
            return Err(BeginError::TooManyOfCaller);
        }
        if self.is_full() {
            self.make_room().await;
        }
        if self.is_full() {
            return Err(BeginError::TooMany);
        }
        let (token, hash) = task_token::generate()?;
        let set_from = self.parts.clock.earliest();
        let record = new_record(request, caller, &permit, parent.as_deref(), hash, set_from)?;
        let decided = Decided::from(&permit);
        let by = (permit.policy_version(), permit.rule_ids());
        self.audit_permit(request, &record, Some(by), Some(&permit), None).await?;
        journal::record(&*self.parts.journal, vec![Change::Task(Box::new(record.clone()))]).await?;
        let task = self.run(record, decided);
        // Whoever closes has ended every task that it saw: this one it may have missed.
        if let Err(closing) = self.still_open() {
            self.end(&task, EndReason::Shutdown, Some(&request.request_id)).await;
            return Err(closing);
        }
        Ok(Begun { task, token })
    }

    fn still_open(&self) -> Result<(), BeginError> {
        if self.closing.load(Ordering::Acquire) { Err(BeginError::Closing) } else { Ok(()) }
    }

    /// Whether there are more tasks, those that are being opened among them, than are allowed.
    fn is_full(&self) -> bool {
        self.tasks.len() + self.opening.load(Ordering::Acquire) > self.parts.limits.tasks
    }

    fn run(&self, record: TaskRecord, decided: Decided) -> Arc<Task> {
        let (now, boot) = (self.now(), self.parts.clock.boot());
        let task = Arc::new(Task::new(record, Vec::new(), Some(decided), now, boot));
        let check = task.next_check(&task.state(), now, boot);
        self.tasks.insert(Arc::clone(&task));
        // A wake of the reaper sweeps all tasks, so it is woken only where its next sweep would be too late, or where a reason to
        // end this task arose while it was recorded: an earlier sweep did not see the task yet.
        if check.is_some_and(|wait| wait < SWEEP_EVERY) || self.reason_to_end(&task).is_some() {
            self.changed.notify_one();
        }
        task
    }

    /// Whether `owner`, of whose tasks `opening` are being opened, has no room for them.
    fn has_too_many(&self, owner: &SpiffeId, opening: usize) -> bool {
        let limits = &self.parts.limits;
        let (running, unsettled) = self.tasks.standing_of(owner);
        // Ended tasks that left access cannot be forgotten either: no caller has more than half of the room for those.
        running + opening > limits.tasks_per_caller
            || running + unsettled + opening > limits.tasks_per_caller.max(limits.tasks / 2)
    }

    /// The task that the same caller began with the same key, under a fresh token; the old one dies.
    async fn replay(
        &self,
        request: &BeginRequest,
        caller: &Caller,
        parent: Option<&Task>,
    ) -> Result<Option<Begun>, BeginError> {
        let Some(idempotency) = &request.idempotency else { return Ok(None) };
        let Some(task) = self.tasks.by_key(caller.spiffe_id(), &idempotency.key) else { return Ok(None) };
        let same_body = task.begun().idempotency.as_ref().is_some_and(|first| first.body == idempotency.body);
        // The parent may stand in the token alone, which is not in the body: a key never leads to another one's child.
        if !same_body || task.begun().parent.as_ref() != parent.map(Task::id) {
            return Err(BeginError::Conflict);
        }
        if self.reason_to_end(&task).is_some() {
            // An ended task cannot be begun again, and a fresh token for it would be of no use.
            return Err(BeginError::Conflict);
        }
        // After a restart its providers, and so its environment, are known once a policy has decided on it again.
        if task.providers().is_empty() {
            return Err(BeginError::NoPolicy);
        }
        let (token, hash) = task_token::generate()?;
        let record = TaskRecord { token: hash, ..task.begun().clone() };
        // By what it goes on: asked again, since a running task does not keep it.
        let kept = self
            .policy()
            .and_then(|policy| policy.still_permits(&task.caller(), &task.begun().ask, task.id(), self.now()).ok());
        let by = kept.as_ref().map(|kept| (&kept.policy_version, &*kept.rule_ids));
        self.audit_permit(request, &record, by, None, Some("idempotency_key")).await?;
        let before = task.state().durable();
        // The task may end meanwhile: then the journal keeps its end, and takes no token.
        journal::record(&*self.parts.journal, vec![Change::Task(Box::new(record))]).await?;
        if task.ended().is_some() {
            return Err(BeginError::Conflict);
        }
        self.tasks.replace_token(&task, hash);
        // Another write of the task, with the old token, may have landed after that one.
        let alone = before.is_some() && task.state().durable() == before;
        if !alone && !self.journal_task(&task).await {
            return Err(JournalError::Write("whose token it has is not certain".into()).into());
        }
        Ok(Some(Begun { task, token }))
    }

    async fn audit_permit(
        &self,
        request: &BeginRequest,
        record: &TaskRecord,
        by: Option<(&PolicyVersion, &[String])>,
        permit: Option<&Permit>,
        reason: Option<&str>,
    ) -> Result<(), BeginError> {
        let event = Event {
            request_id: Some(&request.request_id),
            reason,
            task: Some(&record.id),
            label: record.label.as_deref(),
            spiffe_id: Some(&record.owner),
            proof: Some(record.proof),
            scope: Some(&record.ask.scope),
            params: Some(&record.ask.params),
            stated_reason: record.ask.reason.as_deref(),
            tier: Some(record.tier),
            policy_version: Some(&by.map_or(&record.policy_version, |(version, _)| version).0),
            rule_ids: by.map_or(&[], |(_, rule_ids)| rule_ids),
            digests: permit.map(Permit::digests),
            stale: permit.and_then(Permit::stale),
            deadline: Some(record.deadline),
            ..Event::new(self.now(), Kind::Decision, "permit")
        };
        Ok(self.parts.audit.record(&event).await?)
    }

    /// Counts and audits a refusal, and hands it on.
    pub(super) async fn refuse_begin(
        &self,
        request: &BeginRequest,
        caller: Option<&Caller>,
        error: BeginError,
    ) -> BeginError {
        self.parts.metrics.denied(&error);
        match &error {
            BeginError::TooMany => self.parts.metrics.limited(Limit::Tasks),
            BeginError::TooManyOfCaller => self.parts.metrics.limited(Limit::TasksPerCaller),
            _ => {}
        }
        let flaw = match &error {
            BeginError::Unauthenticated(error) => Some(error.kind()),
            _ => None,
        };
        // Trusted, and not one of ours.
        let stranger = match &error {
            BeginError::NotServed(spiffe_id) => Some(spiffe_id),
            _ => None,
        };
        let policy = self.parts.policy.current();
        let (rule_ids, digests) = match &error {
            BeginError::Denied(denial) => (denial.rule_ids.as_slice(), denial.digests.as_deref()),
            _ => (&[][..], None),
        };
        let event = Event {
            request_id: Some(&request.request_id),
            reason: Some(error.kind()),
            detail: Some(error.to_string()),
            spiffe_id: caller.map(Caller::spiffe_id).or(stranger),
            proof: caller.map(Caller::proof),
            flaw,
            scope: Some(&request.ask.scope),
            params: Some(&request.ask.params),
            stated_reason: request.ask.reason.as_deref(),
            policy_version: policy.as_ref().map(|policy| &*policy.version().0),
            rule_ids,
            digests,
            ..Event::new(self.now(), Kind::Decision, "deny")
        };
        match self.parts.audit.record(&event).await {
            Ok(()) => error,
            Err(audit) => audit.into(),
        }
    }
}

/// A place among the tasks for one that is being opened.
struct OpeningSlot<'a>(&'a AtomicUsize);

impl<'a> OpeningSlot<'a> {
    fn take(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for OpeningSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn new_record(
    request: &BeginRequest,
    caller: &Caller,
    permit: &Permit,
    parent: Option<&Task>,
    token: TokenHash,
    now: Timestamp,
) -> Result<TaskRecord, BeginError> {
    let life: Duration = request.ask.ttl.map_or(permit.caps().max_task, |ttl| ttl.min(permit.caps().max_task));
    let deadline = parent.map_or(Timestamp::MAX, Task::deadline).min(now + life);
    Ok(TaskRecord {
        id: TaskId::generate()?,
        owner: caller.spiffe_id().clone(),
        proof: caller.proof(),
        proved_until: caller.until(),
        // The policy's own text of the scope, which all its tasks share.
        ask: Ask { scope: permit.scope().clone(), ..request.ask.clone() },
        label: request.label.clone(),
        parent: parent.map(|task| task.id().clone()),
        hold: request.hold,
        token,
        idempotency: request.idempotency.clone().map(Box::new),
        tier: permit.tier(),
        policy_version: permit.policy_version().clone(),
        begun_at: now,
        deadline,
        ending: None,
    })
}
