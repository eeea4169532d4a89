//! Why a signed repository's files are not in force: [`Fault`], one of a closed set of kinds and how to fix it.

use super::PolicySourceError;
use super::fetch::FetchError;

/// What sort of fault it is; [`FaultKind::as_str`] is the stable label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The repository does not answer, or not with the file.
    Unreachable,
    /// Nobody said yet that this repository is to be trusted here.
    Untrusted,
    /// What was remembered of the repository is gone: a rollback could not be told.
    LostState,
    /// The state directory cannot be used or written.
    State,
    /// The repository, its root or the state is of another fleet.
    OtherFleet,
    /// Too few good signatures, or by keys that may not sign it.
    Signature,
    /// Older than what was seen before.
    Rollback,
    /// Other bytes than were signed, or than were seen before under the same version.
    Altered,
    /// A version that had lapsed before it was first seen here.
    Expired,
    /// Metadata that is invalid, or that breaks a rule of docs/publishing.md#repositorytoml.
    Malformed,
    /// A role or file that must be there is not.
    Missing,
    /// A file, or all of them, is over a limit of size or number.
    TooLarge,
    /// Below the deployment's `policy.minimum_version`.
    BelowMinimum,
}

impl FaultKind {
    /// Every kind, in the order of the variants.
    pub const ALL: [Self; 13] = [
        Self::Unreachable,
        Self::Untrusted,
        Self::LostState,
        Self::State,
        Self::OtherFleet,
        Self::Signature,
        Self::Rollback,
        Self::Altered,
        Self::Expired,
        Self::Malformed,
        Self::Missing,
        Self::TooLarge,
        Self::BelowMinimum,
    ];

    /// The stable label of the kind.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Untrusted => "untrusted",
            Self::LostState => "lost_state",
            Self::State => "state",
            Self::OtherFleet => "other_fleet",
            Self::Signature => "signature",
            Self::Rollback => "rollback",
            Self::Altered => "altered",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
            Self::Missing => "missing",
            Self::TooLarge => "too_large",
            Self::BelowMinimum => "below_minimum",
        }
    }
}

/// Why a version is not in force. What was in force before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", kind.as_str())]
pub struct Fault {
    kind: FaultKind,
    message: String,
}

impl Fault {
    /// A fault; the message says how to fix it.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What sort of fault it is.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// What happened and how to fix it.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Malformed, message)
    }

    /// What the verifier of metadata said about the role `role`.
    pub(super) fn of_tuf(role: &str, error: &sigstore_tuf::Error) -> Self {
        use sigstore_tuf::Error as E;
        let (kind, why) = match error {
            E::ThresholdNotMet { found, threshold, .. } => (
                FaultKind::Signature,
                format!("{found} of {threshold} signatures are good: its owners must sign it with keys that may"),
            ),
            E::DuplicateSignature { .. } => (FaultKind::Signature, "one key signed it twice".to_owned()),
            E::Rollback { trusted, new, .. } => {
                (FaultKind::Rollback, format!("version {new} is offered, {trusted} was seen"))
            }
            E::IntegrityMismatch(why) => (FaultKind::Altered, format!("{why}: it is not what was published")),
            E::Expired { expires, .. } => (FaultKind::Expired, format!("it ended at {expires}")),
            other => (FaultKind::Malformed, other.to_string()),
        };
        Self::new(kind, format!("{role}: {why}"))
    }
}

impl From<FetchError> for Fault {
    fn from(error: FetchError) -> Self {
        let kind = match &error {
            FetchError::Unreachable { .. } | FetchError::Refused { .. } => FaultKind::Unreachable,
            FetchError::TooLarge { .. } => FaultKind::TooLarge,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<Fault> for PolicySourceError {
    fn from(fault: Fault) -> Self {
        match fault.kind {
            FaultKind::Unreachable | FaultKind::State => Self::unavailable(fault.to_string()),
            _ => Self::refused(fault.to_string()),
        }
    }
}
