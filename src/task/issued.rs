//! A credential that may be served, and its expiry.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{Deadline, Moment, Timestamp};
use crate::exchange::credential::{NativeAnswer, Validity};
use crate::exchange::{Credential, Minted};
use crate::id::LeaseId;
use crate::journal::Receipt;

/// A credential that may be served: it is journalled, and its task was still permitted after the exchange.
pub struct Issued {
    lease: LeaseId,
    /// Shared with what it was before it was renewed: a secret is never copied.
    credential: Arc<Credential>,
    issued_at: Timestamp,
    usable_until: Deadline,
    advertised_expiry: Deadline,
    /// The answer that serves it, where it stays the same.
    answer: OnceLock<Bytes>,
}

/// When a credential comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// When it stops working at its provider, UTC.
    pub usable_until: Timestamp,
    /// When its task must end, UTC.
    pub deadline: Timestamp,
}

/// The margin between the expiry told and the real one is at most this.
const MARGIN: Duration = Duration::from_secs(15);
/// Lives this long or longer are minted again at a fixed distance from their end, shorter ones at half their life.
const LONG_LIFE: Duration = Duration::from_secs(12 * 60);
/// That distance: just over botocore's mandatory window of 10 minutes, so that its callers never block on a refresh.
const REMINT_BEFORE: Duration = Duration::from_secs(10 * 60 + 30);

impl Issued {
    /// The one way from a minted credential to one that may be served: its `issued` record is durable. The clocks show `at`,
    /// and its task must end at `deadline`, UTC.
    pub fn new(lease: LeaseId, minted: Minted, deadline: Timestamp, at: Moment, _durable: &Receipt) -> Self {
        let ends = Ends { usable_until: minted.usable_until, deadline };
        Self::until(lease, Arc::new(minted.credential), ends, at)
    }

    /// The same credential once it was renewed: that it lives until `ends` is durable, too.
    pub fn renewed(&self, ends: Ends, at: Moment, _durable: &Receipt) -> Self {
        Self::until(self.lease.clone(), Arc::clone(&self.credential), ends, at)
    }

    fn until(lease: LeaseId, credential: Arc<Credential>, ends: Ends, Moment { now, boot }: Moment) -> Self {
        let Ends { usable_until, deadline } = ends;
        let end = usable_until.min(deadline);
        let life = end.since(now);
        Self {
            lease,
            credential,
            issued_at: now,
            usable_until: Deadline::fix(usable_until, now, boot),
            advertised_expiry: Deadline::fix((end - MARGIN.min(life / 10)).floor_to_second(), now, boot),
            answer: OnceLock::new(),
        }
    }

    /// The lease it belongs to.
    pub fn lease(&self) -> &LeaseId {
        &self.lease
    }

    /// The secret itself.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// When it stops working at its provider, UTC.
    pub fn usable_until(&self) -> Timestamp {
        self.usable_until.wall()
    }

    /// The expiry to tell the workload, UTC, whole seconds: the earliest of the provider's, the cut and the task's end,
    /// less min(15 s, a tenth of its life). From this moment on it is not served.
    pub fn advertised_expiry(&self) -> Timestamp {
        self.advertised_expiry.wall()
    }

    /// Whether it may still be served: its end has come on neither clock.
    pub fn is_live(&self, now: Timestamp, boot: Duration) -> bool {
        !self.advertised_expiry.has_come(now, boot)
    }

    /// For how long it may still be served.
    pub fn advertised_life(&self, now: Timestamp, boot: Duration) -> Duration {
        self.advertised_expiry.left(now, boot)
    }

    /// Whether it is time to renew it, or to mint its successor, in the background.
    pub fn is_due(&self, now: Timestamp, boot: Duration) -> bool {
        let life = self.usable_until.wall().since(self.issued_at);
        let left = self.usable_until.left(now, boot);
        if life >= LONG_LIFE { left < REMINT_BEFORE } else { left < life / 2 }
    }

    /// Whether so little of it is left that whoever cannot renew it now should mint its successor instead.
    pub fn is_pressing(&self, now: Timestamp, boot: Duration) -> bool {
        let life = self.usable_until.wall().since(self.issued_at).min(2 * REMINT_BEFORE);
        self.usable_until.left(now, boot) < life / 4
    }

    /// The answer that serves it, as `application/json` in the shape of its provider's own API, when the clocks show `now` and
    /// `boot`. Written on first use and then shared, unless it tells the time that is left. `None` when too little is left.
    pub fn native_answer(&self, now: Timestamp, boot: Duration) -> Option<Bytes> {
        if let Some(answer) = self.answer.get() {
            return Some(answer.clone());
        }
        let validity = Validity { expires_at: self.advertised_expiry(), left: self.advertised_life(now, boot) };
        match self.credential.native_answer(validity)? {
            NativeAnswer::Constant(bytes) => Some(self.answer.get_or_init(|| bytes.into_body()).clone()),
            NativeAnswer::Momentary(bytes) => Some(bytes.into_body()),
        }
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("lease", &self.lease)
            .field("advertised_expiry", &self.advertised_expiry())
            .finish()
    }
}
