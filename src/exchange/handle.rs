//! What a provider calls a credential that it gave. One line per provider.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::Provider;
use super::aws::AssumedRole;
use super::vault::LeaseHandle;

/// A provider's name for one credential, in its own terms: for incident work, and to renew or revoke it where it can be. No secret.
///
/// The journal, the audit log and the answers hold it as the text that [`fmt::Display`] writes and [`Handle::read`] reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handle {
    /// A session of a role.
    Aws(AssumedRole),
    /// A lease.
    Vault(Arc<LeaseHandle>),
    /// A text that is none of the provider's: it is kept as it is, and nothing can be done by it.
    Unreadable(Provider, Box<str>),
}

impl Handle {
    /// Reads what [`fmt::Display`] wrote of a handle of `provider`.
    pub fn read(provider: Provider, text: &str) -> Self {
        let handle = match provider {
            Provider::Aws => AssumedRole::read(text).map(Self::Aws),
            Provider::Vault => LeaseHandle::read(text).map(|handle| Self::Vault(Arc::new(handle))),
        };
        handle.unwrap_or_else(|| Self::Unreadable(provider, text.into()))
    }

    /// Whose it is.
    pub const fn provider(&self) -> Provider {
        match self {
            Self::Aws(_) => Provider::Aws,
            Self::Vault(_) => Provider::Vault,
            Self::Unreadable(provider, _) => *provider,
        }
    }

    /// What is shown of it to those who may see its task, under the member of this name; `None` where it is of no use to them.
    pub fn shown(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Aws(session) => Some(("assumed_role", session.as_str())),
            Self::Vault(_) | Self::Unreadable(..) => None,
        }
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aws(session) => session.fmt(f),
            Self::Vault(handle) => handle.fmt(f),
            Self::Unreadable(_, text) => f.write_str(text),
        }
    }
}

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_any_handle_that_was_written() {
        let session = "arn:aws:sts::111122223333:assumed-role/ledger/report.ledger-read.t-1";
        let lease = r#"{"lease":"database/creds/ro/x1","accessor":"a","address":"https://v","mount":"jwt","role":"r","audience":"vault"}"#;
        for (provider, text, is_readable) in [
            (Provider::Aws, session, true),
            (Provider::Vault, lease, true),
            (Provider::Aws, lease, false),
            (Provider::Vault, session, false),
            (Provider::Aws, "", false),
            (Provider::Vault, "database/creds/ro/x1", false),
        ] {
            let handle = Handle::read(provider, text);
            assert_eq!((handle.to_string().as_str(), handle.provider()), (text, provider));
            assert_eq!(!matches!(handle, Handle::Unreadable(..)), is_readable, "{text}");
            assert_eq!(serde_json::to_value(&handle).unwrap(), text);
        }
    }

    #[test]
    fn a_session_is_shown_by_its_arn_and_a_lease_is_not() {
        let session = "arn:aws:sts::111122223333:assumed-role/ledger/s";
        assert_eq!(Handle::read(Provider::Aws, session).shown(), Some(("assumed_role", session)));
        assert_eq!(Handle::read(Provider::Vault, session).shown(), None);
    }
}
