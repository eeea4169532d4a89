//! What of ended tasks can still be used, for operators: each credential stands there until it is revoked or has died by
//! itself, with what is in the way.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::Broker;
use crate::clock::Timestamp;
use crate::exchange::{ExchangeError, Provider, Revocation};
use crate::identity::SpiffeId;
use crate::lease::revoke::awaits_revocation;
use crate::lease::stranded::Stranded;
use crate::lease::{LeaseId, LeaseState};
use crate::policy::ScopeId;
use crate::task::TaskId;

/// A credential of an ended task that can still be used.
#[derive(Debug, Clone, Serialize)]
pub struct Outstanding {
    /// Its lease.
    pub id: LeaseId,
    /// Who gave it.
    pub provider: Provider,
    /// How it can be revoked.
    pub revocation: Revocation,
    /// Whether its revocation is still tried; else nothing more can be done, and it dies by itself.
    pub to_revoke: bool,
    /// The end of its residual access, UTC.
    pub usable_until: Timestamp,
    /// How often its revocation failed since the sidecar started.
    pub tries: u32,
    /// The status of its last failure ([`ExchangeError::kind`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<&'static str>,
    /// The same in full, for those who may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Its task, for those who may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Whose it was, for those who may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeId>,
    /// What for, for those who may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeId>,
}

impl Outstanding {
    /// Leaves out what only operators may know.
    pub fn hide(&mut self) {
        (self.detail, self.task, self.spiffe_id, self.scope) = (None, None, None, None);
    }
}

/// How tries to take leases back failed. Holds no more leases than are pending.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<LeaseId, Failure>>);

#[derive(Debug, Clone)]
struct Failure {
    tries: u32,
    kind: &'static str,
    detail: String,
}

impl Failures {
    fn all(&self) -> MutexGuard<'_, HashMap<LeaseId, Failure>> {
        // Only ever told to operators: a half-made entry could do no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more try failed.
    pub(super) fn note(&self, lease: &LeaseId, error: &ExchangeError) {
        let mut all = self.all();
        let tries = all.get(lease).map_or(0, |failure| failure.tries).saturating_add(1);
        all.insert(lease.clone(), Failure { tries, kind: error.kind(), detail: error.to_string() });
    }

    /// Forgets all but those that are `pending`.
    pub(super) fn keep(&self, pending: impl Fn(&LeaseId) -> bool) {
        self.all().retain(|id, _| pending(id));
    }
}

impl Broker {
    /// Every credential of an ended task that can still be used: what is to be revoked first, then what lives longest.
    pub fn outstanding(&self) -> Vec<Outstanding> {
        // A clock that was set forward hides nothing that can still be used.
        let earliest = self.parts.clock.earliest();
        let mut all = Vec::new();
        for task in self.tasks.all() {
            let state = task.state();
            if state.ending.is_none() {
                continue;
            }
            let over = |state: LeaseState| matches!(state, LeaseState::Revoked | LeaseState::Expired);
            let left =
                state.leases.iter().filter(|l| !over(l.state) && (awaits_revocation(l) || l.usable_until > earliest));
            all.extend(left.map(|lease| Outstanding {
                id: lease.id.clone(),
                provider: lease.provider,
                revocation: lease.revocation,
                to_revoke: awaits_revocation(lease),
                usable_until: lease.usable_until,
                tries: 0,
                last_error: None,
                detail: None,
                task: Some(task.id().clone()),
                spiffe_id: Some(task.owner().clone()),
                scope: Some(task.begun().ask.scope.clone()),
            }));
        }
        {
            let failures = self.failures.all();
            for lease in &mut all {
                if let Some(failure) = failures.get(&lease.id) {
                    lease.tries = failure.tries;
                    lease.last_error = Some(failure.kind);
                    lease.detail = Some(failure.detail.clone());
                }
            }
        }
        all.sort_by_key(|lease| (!lease.to_revoke, Reverse(lease.usable_until)));
        all
    }

    /// Writes into the audit log what the configuration leaves to die by itself (`state.abandon`).
    pub async fn tell_abandoned(self: &Arc<Self>, stranded: &[Stranded]) {
        for (provider, lease) in stranded.iter().flat_map(|s| s.leases.iter().map(move |lease| (s.provider, lease))) {
            let Some(task) = self.tasks.by_id(&lease.task) else { continue };
            let detail =
                format!("state.abandon leaves it to die by itself: no {provider} is configured that could revoke it");
            let error = ExchangeError::Inexpressible { detail };
            self.audit_revocation(&task, lease, "abandoned", Some(&error)).await;
        }
    }
}
