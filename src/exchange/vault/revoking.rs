//! Revokes leases: look, revoke, look again, then the token.

use std::time::Duration;

use serde::Serialize;

use super::answer::Login;
use super::fault::{Fault, Remedy, Step};
use super::{CLEAN_UP, Held, LeaseHandle, MAX_HELD, Place, Vault};
use crate::exchange::{ExchangeError, RevokeOrder, RevokeOutcome};
use crate::secret::Secret;

/// What became of a lease that was to be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// Vault revoked it.
    Revoked,
    /// Vault did not know it, or nobody could see that it did.
    Unknown,
    /// The policy of the token does not allow it to be revoked.
    Forbidden,
}

#[derive(Serialize)]
struct RevokeBody<'a> {
    lease_id: &'a str,
    sync: bool,
}

impl Vault {
    /// Revokes a lease that nobody was told of; says whether Vault did. Bounded by itself.
    pub(super) async fn revoke_fresh(&self, id: &str, token: &Secret, namespace: Option<&str>) -> bool {
        let body = RevokeBody { lease_id: id, sync: true };
        let revoked =
            self.call((Step::Revoke, "sys/leases/revoke"), (Some(token), namespace), Some(&body), CLEAN_UP).await;
        if let Err(fault) = &revoked {
            tracing::warn!(detail = fault.detail, "a lease of Vault was not revoked and ends by itself");
        }
        revoked.is_ok()
    }

    /// Whether Vault knows the lease of `handle`; `None` where the token may not look.
    async fn is_there(&self, handle: &LeaseHandle, token: &Secret, limit: Duration) -> Result<Option<bool>, Fault> {
        #[derive(Serialize)]
        struct Look<'a> {
            lease_id: &'a str,
        }
        let auth = (Some(token), handle.namespace.as_deref());
        let look = Look { lease_id: &handle.lease };
        match self.call((Step::Confirm, "sys/leases/lookup"), auth, Some(&look), limit).await {
            Ok(_) => Ok(Some(true)),
            Err(fault) if fault.status == Some(400) => Ok(Some(false)),
            Err(fault) if fault.status == Some(403) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Takes the lease of `handle`, which `order` is about, back by `token`, which is the one that read it where `own`.
    async fn revoke_lease(
        &self,
        (handle, order): (&LeaseHandle, &RevokeOrder),
        (token, own): (&Secret, bool),
        deadline: Duration,
    ) -> Result<Gone, Fault> {
        let remaining = || self.context.remaining(deadline);
        let there = self.is_there(handle, token, remaining()).await?;
        let dead_by_itself = self.context.clock.now() >= order.usable_until;
        if there == Some(false) && !dead_by_itself && self.ordered().contains(handle) {
            // The answer to an earlier try was lost.
            return Ok(Gone::Revoked);
        }
        if there == Some(true) {
            let mut ordered = self.ordered();
            // Whoever is forgotten here is not called revoked, should its answer be lost.
            if ordered.len() >= MAX_HELD {
                ordered.clear();
            }
            ordered.insert(handle.clone());
        }
        let auth = (Some(token), handle.namespace.as_deref());
        let body = RevokeBody { lease_id: &handle.lease, sync: true };
        match self.call((Step::Revoke, "sys/leases/revoke"), auth, Some(&body), remaining()).await {
            Ok(_) => {}
            Err(fault) if fault.status == Some(403) => return Ok(Gone::Forbidden),
            Err(fault) => return Err(fault),
        }
        match there {
            Some(false) => Ok(Gone::Unknown),
            // A Vault that knows the token is the one that leased: then its word stands.
            None => Ok(if own { Gone::Revoked } else { Gone::Unknown }),
            Some(true) => match self.is_there(handle, token, remaining()).await? {
                Some(true) => {
                    Err(Fault::new(Remedy::Retry, "Vault said that it revoked the lease, and it is still there"))
                }
                Some(false) | None => Ok(Gone::Revoked),
            },
        }
    }

    /// By the token that read it; `None` where Vault does not know that token any more.
    pub(super) async fn revoke_held(
        &self,
        (handle, order): (&LeaseHandle, &RevokeOrder),
        held: &Held,
        deadline: Duration,
    ) -> Result<Option<RevokeOutcome>, Fault> {
        let lease_gone = held.known().lease_gone;
        let gone = match lease_gone {
            true => Gone::Revoked,
            false => self.revoke_lease((handle, order), (&held.token, true), deadline).await?,
        };
        held.known().lease_gone = gone == Gone::Revoked;
        let auth = (Some(&held.token), handle.namespace.as_deref());
        let limit = self.context.remaining(deadline);
        match self.call((Step::DropToken, "auth/token/revoke-self"), auth, None::<&()>, limit).await {
            Ok(_) => {}
            Err(fault) if fault.status == Some(403) => match gone {
                // The answer to an earlier try was lost: the token is no longer known.
                Gone::Revoked => {}
                // It was known a moment ago: what it says stands.
                Gone::Unknown => {}
                Gone::Forbidden => return Ok(None),
            },
            Err(fault) => return Err(fault),
        }
        Ok(Some(match gone {
            Gone::Revoked => RevokeOutcome::Revoked,
            // Where the policy says no, Vault revokes the lease because of its token, some time soon.
            Gone::Unknown | Gone::Forbidden => RevokeOutcome::Requested,
        }))
    }

    /// By a new login, since the token is lost.
    pub(super) async fn revoke_anew(
        &self,
        order: &RevokeOrder,
        handle: &LeaseHandle,
        deadline: Duration,
    ) -> Result<RevokeOutcome, ExchangeError> {
        let remaining = || self.context.remaining(deadline);
        let place = Place {
            mount: &handle.mount,
            role: &handle.role,
            namespace: handle.namespace.as_deref(),
            audience: &handle.audience,
            caller: &order.caller,
        };
        let svid = self.context.svid(place.caller, place.audience, remaining()).await?;
        let login = self.login(place, &svid, remaining()).await?;
        let outcome = self.revoke_logged_in((handle, order), &login, deadline).await;
        self.drop_token(&login.token, place.namespace, CLEAN_UP).await;
        Ok(outcome?)
    }

    async fn revoke_logged_in(
        &self,
        (handle, order): (&LeaseHandle, &RevokeOrder),
        login: &Login,
        deadline: Duration,
    ) -> Result<RevokeOutcome, Fault> {
        #[derive(Serialize)]
        struct Body<'a> {
            accessor: &'a str,
        }
        let revoked = self.revoke_lease((handle, order), (&login.token, false), deadline).await;
        let auth = (Some(&login.token), handle.namespace.as_deref());
        let body = Body { accessor: &handle.accessor };
        // The lost token ends by itself and nobody has it; where the policy allows, it ends now.
        let limit = self.context.remaining(deadline);
        let accessor = self.call((Step::DropToken, "auth/token/revoke-accessor"), auth, Some(&body), limit).await;
        match (revoked?, accessor) {
            (Gone::Revoked, _) => Ok(RevokeOutcome::Revoked),
            (Gone::Unknown, _) | (Gone::Forbidden, Ok(_)) => Ok(RevokeOutcome::Requested),
            (Gone::Forbidden, Err(_)) => {
                let detail = "the role's policy lacks update on sys/leases/revoke";
                Err(Fault::new(Remedy::Refuse, detail))
            }
        }
    }
}
