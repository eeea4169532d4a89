//! Why a task may not begin, or may no longer run.

use std::sync::Arc;

use super::Digests;

/// Why a task may not begin. [`DenialReason`] is the closed set of labels for metrics and audit; the detail is for the
/// audit log only and never reaches the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The kind of refusal.
    pub reason: DenialReason,
    /// The whole story, for the audit log.
    pub detail: String,
    /// The `@id`s of the rules that forbade, where a rule did.
    pub rule_ids: Vec<String>,
    /// What was decided on, where the scope could decide.
    pub digests: Option<Arc<Digests>>,
}

/// The closed set of reasons for which a task may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenialReason {
    /// No such scope.
    UnknownScope,
    /// The scope is there but suspended: a bad file, or a digest that does not match its decision.
    ScopeSuspended,
    /// No rule permits it.
    NotPermitted,
    /// A rule or boundary forbids it.
    Forbidden,
    /// A guardrail of the binary forbids it (overdue review, expired exception …).
    Guardrail,
    /// The tier needs an approval that was not given. Reported to the caller as `approval_required`.
    ApprovalRequired,
    /// Parameters missing, unknown, too long or with characters that are not allowed. Reported as `invalid_request`.
    InvalidParameters,
    /// A `ttl` over the decision's `max_task`. Reported as `invalid_request`.
    TtlTooLong,
    /// A rule failed to evaluate; an error in a decision is a denial.
    EvaluationError,
    /// Rules permit it, but a signer that it rests on has not spoken for longer than `max_staleness`.
    PolicyExpired,
    /// The kill list stops it. Reported as `denied`.
    Killed,
}

impl DenialReason {
    /// Every reason, for metrics that must exist before they first happen.
    pub const ALL: [Self; 11] = [
        Self::UnknownScope,
        Self::ScopeSuspended,
        Self::NotPermitted,
        Self::Forbidden,
        Self::Guardrail,
        Self::ApprovalRequired,
        Self::InvalidParameters,
        Self::TtlTooLong,
        Self::EvaluationError,
        Self::PolicyExpired,
        Self::Killed,
    ];

    /// The stable label for metrics and audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownScope => "unknown_scope",
            Self::ScopeSuspended => "scope_suspended",
            Self::NotPermitted => "not_permitted",
            Self::Forbidden => "forbidden",
            Self::Guardrail => "guardrail",
            Self::ApprovalRequired => "approval_required",
            Self::InvalidParameters => "invalid_parameters",
            Self::TtlTooLong => "ttl_too_long",
            Self::EvaluationError => "evaluation_error",
            Self::PolicyExpired => "policy_expired",
            Self::Killed => "killed",
        }
    }
}

impl Denial {
    pub(super) fn new(reason: DenialReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), rule_ids: Vec::new(), digests: None }
    }

    pub(super) fn by_rules(reason: DenialReason, rule_ids: Vec<String>) -> Self {
        Self { rule_ids: rule_ids.clone(), ..Self::new(reason, format!("forbidden by {}", rule_ids.join(", "))) }
    }

    pub(super) fn about(self, digests: &Arc<Digests>) -> Self {
        Self { digests: Some(Arc::clone(digests)), ..self }
    }
}
