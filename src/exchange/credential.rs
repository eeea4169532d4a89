//! A credential, and the answer in which the clients of its own provider read it. One line per provider.

use std::time::Duration;

use super::Provider;
use super::aws::AwsCredential;
use super::vault::VaultSecret;
use crate::clock::Timestamp;
use crate::secret::SecretBytes;

/// A credential in its provider's own terms.
#[derive(Debug)]
pub enum Credential {
    /// AWS session credentials.
    Aws(AwsCredential),
    /// A dynamic secret.
    Vault(VaultSecret),
}

/// For how long a workload is told that it may use a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The advertised expiry, UTC, whole seconds.
    pub expires_at: Timestamp,
    /// The time until then, at the moment of the answer.
    pub left: Duration,
}

/// A credential as JSON (`application/json`), in the shape that its provider's own API answers.
#[derive(Debug)]
pub enum NativeAnswer {
    /// The same bytes for the whole life of the credential.
    Constant(SecretBytes),
    /// It tells the time that is left: right at this moment only.
    Momentary(SecretBytes),
}

impl Credential {
    /// Who gave it.
    pub const fn provider(&self) -> Provider {
        match self {
            Self::Aws(_) => Provider::Aws,
            Self::Vault(_) => Provider::Vault,
        }
    }

    /// The answer that serves it; `None` where too little of it is left for the provider's clients to be told.
    pub fn native_answer(&self, validity: Validity) -> Option<NativeAnswer> {
        match self {
            Self::Aws(credential) => Some(NativeAnswer::Constant(credential.answer(validity))),
            Self::Vault(secret) => secret.answer(validity).map(NativeAnswer::Momentary),
        }
    }
}
