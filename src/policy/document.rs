//! The TOML files of a policy repository, parsed into types that cannot hold nonsense.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::{Caps, DocumentError, GrantId, MAX_PARAM_LENGTH, ParamName, ParamSpec, ParamType, Tier, kind};
use crate::clock::Timestamp;
use crate::names::is_segment;
use crate::provider::{GrantTemplate, Outlives, Outliving};
use crate::toml_file::{duration, end_of_day, instant, read, text};

/// SHA-256 over the exact bytes of a policy file, written `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
        Self(hash)
    }

    /// The 64 hex digits alone.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DocumentError;

    fn from_str(text: &str) -> Result<Self, DocumentError> {
        let wrong = || DocumentError::invalid("a digest is 'sha256:' and 64 lower-case hex digits");
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        let bytes = HEXLOWER.decode(digits.as_bytes()).map_err(|_| wrong())?;
        bytes.try_into().map(Self).map_err(|_| wrong())
    }
}

/// What sort of access a decision is about; governance reviews each its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A workload of our own, talking to a cloud.
    Machine,
    /// An AI agent.
    Agent,
    /// A workload that somebody else runs or manages.
    Vendor,
    /// A deviation, with an end.
    Exception,
}

impl Kind {
    /// The label in files and rules.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Agent => "agent",
            Self::Vendor => "vendor",
            Self::Exception => "exception",
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// The shortest life that a credential may be asked for (docs/architecture.md#the-law-of-life).
pub const MIN_RESIDUAL: Duration = Duration::from_secs(30);
/// The longest life of one credential: STS's own limit on a role session (43,200 s).
pub const MAX_RESIDUAL: Duration = Duration::from_secs(12 * 3600);
/// The longest task that a decision may allow.
pub const MAX_TASK: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a decision goes on past its `review_by` where it names no `review_grace`.
pub const DEFAULT_REVIEW_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The longest `review_grace`.
pub const MAX_REVIEW_GRACE: Duration = Duration::from_secs(90 * 24 * 3600);
/// A grant's `max_session` where it names none (docs/architecture.md#the-law-of-life).
pub const DEFAULT_SESSION: Duration = HOUR;
/// The most parameters of one scope.
pub const MAX_PARAMS: usize = 16;
/// The most grants of one decision.
pub const MAX_GRANTS: usize = 8;

/// `decisions/S.toml`: governance's decision on one scope.
#[derive(Debug, Clone)]
pub struct Decision {
    /// How much ceremony it asks for.
    pub tier: Tier,
    /// What sort of access it is.
    pub kind: Kind,
    /// Who in governance answers for it.
    pub decision_owner: String,
    /// The last day on which it holds without a new review, with its grace added: the instant at which it stops, UTC.
    pub review_until: Timestamp,
    /// The end of the day `review_by`, UTC, without the grace.
    pub review_by: Timestamp,
    /// When it ends for good, where it says so; an exception always does.
    pub expires_at: Option<Timestamp>,
    /// Its limits on time.
    pub caps: Caps,
    /// Accepts access that lives longer than `max_residual`: that of a provider whose credentials cannot be made to live so
    /// briefly, and what the actions of a session policy leave behind (docs/policy.md).
    pub accept_residual: bool,
    /// The digest of the scope file decided on; `None` while nobody decided.
    pub scope: Option<Digest>,
    /// The grants decided on in order, each with the digest of its file; `None` while nobody decided.
    pub grants: Box<[(GrantId, Option<Digest>)]>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDecision {
    #[serde(rename = "schema")]
    _schema: i64,
    tier: Tier,
    kind: Kind,
    decision_owner: String,
    review_by: toml::value::Datetime,
    review_grace: Option<String>,
    expires_at: Option<toml::value::Datetime>,
    max_task: String,
    max_residual: String,
    idle: Option<String>,
    #[serde(default)]
    accept_residual: bool,
    #[serde(default)]
    scope: String,
    grants: BTreeMap<GrantId, String>,
}

impl Decision {
    /// Reads the bytes of a decision file.
    ///
    /// # Errors
    /// Anything unknown, missing or out of its range.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawDecision = read(bytes)?;
        let review_by = end_of_day("review_by", raw.review_by)?;
        let grace = match &raw.review_grace {
            Some(text) => duration("review_grace", text, Duration::ZERO, MAX_REVIEW_GRACE)?,
            None => DEFAULT_REVIEW_GRACE,
        };
        let expires_at = raw.expires_at.map(|at| instant("expires_at", at)).transpose()?;
        if raw.kind == Kind::Exception && expires_at.is_none() {
            return Err(DocumentError::invalid("an exception must end: add expires_at = 2027-01-31"));
        }
        let max_task = duration("max_task", &raw.max_task, Duration::from_secs(1), MAX_TASK)?;
        let idle = raw.idle.as_deref().map(|text| duration("idle", text, Duration::from_secs(1), max_task));
        let max_residual = duration("max_residual", &raw.max_residual, MIN_RESIDUAL, MAX_RESIDUAL)?;
        if raw.grants.is_empty() {
            return Err(DocumentError::invalid("names no grant: add grants = { NAME = \"\" }, then decide on it"));
        }
        if raw.grants.len() > MAX_GRANTS {
            return Err(DocumentError::invalid(format!("names more than {MAX_GRANTS} grants")));
        }
        let digest = |text: &str| if text.is_empty() { Ok(None) } else { text.parse().map(Some) };
        let grants = raw.grants.iter().map(|(id, text)| Ok((id.clone(), digest(text)?)));
        Ok(Self {
            tier: raw.tier,
            kind: raw.kind,
            decision_owner: owner("decision_owner", raw.decision_owner)?,
            review_until: review_by + grace,
            review_by,
            expires_at,
            caps: Caps { max_task, max_residual, idle: idle.transpose()? },
            accept_residual: raw.accept_residual,
            scope: digest(&raw.scope)?,
            grants: grants.collect::<Result<_, DocumentError>>()?,
        })
    }

    /// The longest that one credential of `grant` may live so that it, and all that it may leave behind, is dead within
    /// `max_residual`; `None` where the law of life cannot be kept so, or need not, for `accept_residual`.
    pub fn session_within_the_law(&self, grant: &Grant) -> Option<Duration> {
        if self.accept_residual { None } else { grant.outlives.leave(self.caps.max_residual, MIN_RESIDUAL) }
    }

    /// Whether `grant` keeps the law of life under this decision, or the decision accepts that it does not.
    ///
    /// # Errors
    /// Names the actions by which access would outlive `max_residual`.
    pub fn check_residual(&self, grant: &Grant) -> Result<(), DocumentError> {
        if self.accept_residual || self.session_within_the_law(grant).is_some() {
            return Ok(());
        }
        let actions = grant.template.kind().outliving();
        let breaking = |known: &&Outliving| known.alone().leave(self.caps.max_residual, MIN_RESIDUAL).is_none();
        let left: Vec<_> =
            actions.iter().filter(breaking).map(|known| format!("{} leaves {}", known.action, known.leaves)).collect();
        Err(DocumentError {
            kind: kind::RESIDUAL,
            message: format!(
                "lets access outlive the decision's max_residual of {}: {}; name only the actions that are needed, raise \
                 max_residual, or say accept_residual = true in the decision",
                humantime::format_duration(self.caps.max_residual),
                left.join("; ")
            ),
        })
    }
}

/// `scopes/S.toml`: the business owner's reason for one scope.
#[derive(Debug, Clone)]
pub struct Scope {
    /// What the access is for.
    pub purpose: String,
    /// Who in the business answers for it.
    pub business_owner: String,
    /// Why it is needed.
    pub justification: String,
    /// Where the justification is recorded, e.g. a change number.
    pub evidence: Option<String>,
    /// The parameters that every ask of this scope must give.
    pub params: BTreeMap<ParamName, ParamSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScope {
    #[serde(rename = "schema")]
    _schema: i64,
    purpose: String,
    business_owner: String,
    justification: String,
    evidence: Option<String>,
    #[serde(default)]
    params: BTreeMap<ParamName, RawParam>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParam {
    r#type: ParamType,
    max: u16,
}

impl Scope {
    /// Reads the bytes of a scope file.
    ///
    /// # Errors
    /// Anything unknown, missing or out of its range.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawScope = read(bytes)?;
        if raw.params.len() > MAX_PARAMS {
            return Err(DocumentError::invalid(format!("has more than {MAX_PARAMS} parameters")));
        }
        let spec = |(name, raw): (ParamName, RawParam)| {
            if raw.max == 0 || raw.max > MAX_PARAM_LENGTH {
                return Err(DocumentError::invalid(format!("params.{name}.max must be 1 to {MAX_PARAM_LENGTH}")));
            }
            Ok((name, ParamSpec { kind: raw.r#type, max: raw.max }))
        };
        Ok(Self {
            purpose: text("purpose", raw.purpose)?,
            business_owner: owner("business_owner", raw.business_owner)?,
            justification: text("justification", raw.justification)?,
            evidence: raw.evidence.map(|evidence| text("evidence", evidence)).transpose()?,
            params: raw.params.into_iter().map(spec).collect::<Result<_, _>>()?,
        })
    }
}

/// `grants/G.toml`: how one provider implements a scope.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The longest single credential.
    pub max_session: Duration,
    /// What its credentials may leave behind.
    pub outlives: Outlives,
    /// The provider's own part, parameters not yet filled in.
    pub template: GrantTemplate,
}

impl Grant {
    /// Reads the bytes of a grant file. That its parameters are those of a scope is checked per scope, see
    /// [`GrantKind::check_params`](crate::provider::GrantKind::check_params).
    ///
    /// # Errors
    /// Anything unknown, missing, out of its range, or not expressible at the provider.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        /// What is the same whoever the provider is. The provider refuses unknown members.
        #[derive(Deserialize)]
        struct Head {
            provider: String,
            max_session: Option<String>,
        }
        let head: Head = read(bytes)?;
        let template = GrantTemplate::parse(&head.provider, bytes)?;
        let max_session = match &head.max_session {
            Some(text) => duration("max_session", text, MIN_RESIDUAL, MAX_RESIDUAL)?,
            None => DEFAULT_SESSION,
        };
        Ok(Self { max_session, outlives: Outlives::of(&template.kind().outliving()), template })
    }
}

/// Who answers for something: an id, as the charter will name it.
fn owner(key: &str, id: String) -> Result<String, DocumentError> {
    if is_segment(&id, 64) {
        Ok(id)
    } else {
        Err(DocumentError::invalid(format!("{key} must be an id of a-z 0-9 - _, at most 64 characters")))
    }
}

#[cfg(test)]
mod tests;
