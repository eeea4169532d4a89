//! What an answer of Vault that is no success means: one table, from the step and the HTTP status to what to do.

use std::time::Duration;

pub(super) use crate::exchange::fault::{Fault, Remedy};
use crate::http_client;

/// What is being done when an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Login,
    Read,
    Shorten,
    Renew,
    Revoke,
    Confirm,
    DropToken,
    Health,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "the login",
            Self::Read => "reading the secret",
            Self::Shorten => "shortening its life",
            Self::Renew => "renewing it",
            Self::Revoke => "revoking the lease",
            Self::Confirm => "looking for the lease",
            Self::DropToken => "revoking the token",
            Self::Health => "asking how it does",
        }
    }
}

impl Fault {
    /// An HTTP answer of Vault that is no success.
    pub(super) fn answered(step: Step, status: u16, retry_after: Option<Duration>) -> Self {
        let detail = format!("{}: HTTP {status}", step.as_str());
        Self { retry_after, status: Some(status), ..Self::new(remedy(step, status), detail) }
    }

    /// No HTTP answer, or none that can be read.
    pub(super) fn unanswered(step: Step, fault: &http_client::Fault) -> Self {
        use http_client::Fault as F;
        let detail = match fault {
            F::TooLarge { .. } => return Self::nonsense(step, "an answer longer than 64 KiB"),
            F::Slow(_) => "Vault did not answer in time",
            F::Resolve(_) | F::Connect(_) | F::ProxyRefused(_) | F::ProxyBroken(_) | F::NoSvid | F::Tls(_) => {
                "no connection to Vault (network, DNS or TLS)"
            }
            F::Closed | F::Protocol(_) | F::HeadTooLarge | F::Truncated => "the connection to Vault broke",
        };
        Self::new(Remedy::Retry, detail)
    }

    /// Something that is not what Vault answers at this step.
    pub(super) fn nonsense(step: Step, what: &str) -> Self {
        Self::new(Remedy::Distrust, format!("{}: {what}", step.as_str()))
    }
}

/// The table (Vault and OpenBao API documentation, "HTTP status codes"; 472 and 473 are Vault's standbys, 412 its
/// eventual consistency).
fn remedy(step: Step, status: u16) -> Remedy {
    match (status, step) {
        (412 | 429, _) => Remedy::Throttled,
        (408 | 472 | 473, _) => Remedy::Retry,
        (501, _) => Remedy::Refuse,
        (500.., _) => Remedy::Retry,
        // A redirect: the token goes to the configured address or nowhere.
        (..400, _) => Remedy::Distrust,
        (400 | 401 | 403, Step::Login) => Remedy::FreshSvid,
        (400 | 404 | 405, Step::Login | Step::Read) => Remedy::Fix,
        // Nothing that Vault says when it takes something back: what said so is not it, or not yet.
        (404 | 405, _) => Remedy::Retry,
        _ => Remedy::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_only_failures_of_vault_or_its_network_as_outages() {
        let answered = |status| Fault::answered(Step::Login, status, None).is_outage();
        assert!([302, 408, 473, 500, 502, 503].into_iter().all(answered));
        assert!(![400, 403, 404, 412, 429, 501].into_iter().any(answered));
        assert!(Fault::nonsense(Step::Read, "x").is_outage() && Fault::new(Remedy::Retry, "no answer").is_outage());
    }

    #[test]
    fn each_status_has_one_meaning_at_each_step() {
        let rows = [
            (Step::Login, 400, Remedy::FreshSvid),
            (Step::Login, 403, Remedy::FreshSvid),
            (Step::Login, 404, Remedy::Fix),
            (Step::Read, 400, Remedy::Fix),
            (Step::Read, 403, Remedy::Refuse),
            (Step::Read, 404, Remedy::Fix),
            (Step::Renew, 400, Remedy::Refuse),
            (Step::Renew, 403, Remedy::Refuse),
            (Step::Revoke, 403, Remedy::Refuse),
            (Step::Revoke, 404, Remedy::Retry),
        ];
        for (step, status, expected) in rows {
            assert_eq!(remedy(step, status), expected, "{step:?} {status}");
        }
        for step in [Step::Login, Step::Read, Step::Shorten, Step::Renew, Step::Revoke, Step::Confirm, Step::DropToken]
        {
            for status in [408, 472, 473, 500, 502, 503, 504] {
                assert_eq!(remedy(step, status), Remedy::Retry, "{step:?} {status}");
            }
            for status in [412, 429] {
                assert_eq!(remedy(step, status), Remedy::Throttled, "{step:?} {status}");
            }
            for status in [301, 302, 307, 308] {
                assert_eq!(remedy(step, status), Remedy::Distrust, "{step:?} {status}");
            }
            assert_eq!(remedy(step, 501), Remedy::Refuse);
        }
    }
}
