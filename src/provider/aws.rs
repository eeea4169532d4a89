//! AWS: a role, narrowed by a session policy.
//!
//! - `arn`: roles and their sessions, by ARN; regions.
//! - [`session_policy`]: what narrows a role, from the grant file to the text that STS gets.
//! - `outliving`: the actions by which access outlives a session.
//! - `deny`: the policy that stops sessions which are already out.

pub(crate) mod arn;
pub(crate) mod deny;
mod outliving;
pub mod session_policy;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use self::arn::{Role, is_region};
use self::outliving::outliving_actions;
use self::session_policy::SessionPolicy;
use super::{
    Difference, DocumentError, GrantKind, Outliving, ParamName, ParamSpec, Params, ProviderGrant, check_role_scope,
    is_visible,
};
use crate::toml_file::read;

/// `provider = "aws"`: a grant as its file writes it.
#[derive(Debug, Clone)]
pub struct AwsTemplate {
    /// The role to assume.
    pub role_arn: String,
    /// What narrows the role; `None` only with `accept_role_scope = true`.
    pub session_policy: Option<SessionPolicy>,
    /// Whose STS to ask.
    pub region: Option<String>,
    /// The JWT-SVID's audience.
    pub audience: Option<String>,
}

/// A role and what narrows it, parameters filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsGrant {
    /// The role to assume.
    pub role_arn: String,
    /// The session policy, parameters substituted; `None` only where the grant says `accept_role_scope = true`.
    pub session_policy: Option<Value>,
    /// The region whose STS is asked, where the grant names one.
    pub region: Option<String>,
    /// The audience of the JWT-SVID, where the grant names one; else the configured one (`sts.amazonaws.com`).
    pub audience: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant {
    #[serde(rename = "schema")]
    _schema: i64,
    #[serde(rename = "provider")]
    _provider: String,
    role_arn: String,
    session_policy: Option<toml::Table>,
    #[serde(default)]
    accept_role_scope: bool,
    #[serde(rename = "max_session")]
    _max_session: Option<String>,
    region: Option<String>,
    audience: Option<String>,
}

impl GrantKind for AwsTemplate {
    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawGrant = read(bytes)?;
        if Role::parse(&raw.role_arn).is_none() {
            return Err(DocumentError::invalid("role_arn must be arn:PARTITION:iam::ACCOUNT:role/NAME"));
        }
        if raw.region.as_deref().is_some_and(|region| !is_region(region)) {
            return Err(DocumentError::invalid("region must be a region's name, e.g. eu-central-1"));
        }
        if raw.audience.as_deref().is_some_and(|audience| !is_visible(audience)) {
            return Err(DocumentError::invalid("audience must be 1 to 255 visible ASCII characters"));
        }
        let session_policy = raw.session_policy.map(SessionPolicy::parse).transpose()?;
        let (lacks, has) = ("has no session_policy", "has a session_policy");
        check_role_scope(session_policy.is_some(), raw.accept_role_scope, lacks, has)?;
        Ok(Self { role_arn: raw.role_arn, session_policy, region: raw.region, audience: raw.audience })
    }

    fn differences(key: &str, old: Option<&toml::Value>, new: Option<&toml::Value>) -> Option<Vec<Difference>> {
        (key == "session_policy").then(|| session_policy::differences(old, new))
    }

    fn check_params(&self, declared: &BTreeMap<ParamName, ParamSpec>) -> Result<(), DocumentError> {
        self.session_policy.as_ref().map_or(Ok(()), |policy| policy.check_params(declared))
    }

    fn resolve(&self, params: &Params) -> ProviderGrant {
        ProviderGrant::Aws(AwsGrant {
            role_arn: self.role_arn.clone(),
            session_policy: self.session_policy.as_ref().map(|policy| policy.fill(params)),
            region: self.region.clone(),
            audience: self.audience.clone(),
        })
    }

    fn narrows(&self) -> bool {
        self.session_policy.is_some()
    }

    fn outliving(&self) -> Vec<Outliving> {
        self.session_policy.as_ref().map(|policy| outliving_actions(&policy.template())).unwrap_or_default()
    }

    fn warnings(&self) -> Vec<String> {
        let outliving = self.outliving().into_iter().map(|known| {
            let (action, leaves) = (known.action, known.leaves);
            format!("{action} lets access outlive the task: it leaves {leaves}, which is not cut")
        });
        let allows = self.session_policy.iter().flat_map(SessionPolicy::allows);
        outliving.chain(allows.flat_map(|statement| of_statement(&statement))).collect()
    }

    fn summary(&self) -> Vec<String> {
        let mut summary = vec![format!("AWS role {}", self.role_arn)];
        summary.extend(self.region.as_ref().map(|region| format!("asked at the STS of {region}")));
        summary.extend(self.audience.as_ref().map(|audience| format!("with the audience {audience}")));
        // The policy itself: a paraphrase could leave out what matters.
        let statements = self.session_policy.iter().flat_map(SessionPolicy::statements);
        summary.extend(statements.map(|statement| format!("narrowed by {}", Value::Object(statement))));
        summary
    }
}

/// What is wide in a statement that allows.
fn of_statement(statement: &Map<String, Value>) -> Vec<String> {
    let mut messages = Vec::new();
    for member in ["NotAction", "NotResource"] {
        if statement.contains_key(member) {
            messages.push(format!("allows by {member}, which is everything else"));
        }
    }
    for action in texts(statement, "Action") {
        if action.ends_with('*') {
            messages.push(format!("allows the actions {action}; name those that are needed"));
        }
    }
    for resource in texts(statement, "Resource") {
        if resource == "*" || resource.ends_with(":::*") {
            messages.push(format!("allows the resource {resource}, narrowed by the role alone"));
        }
        if resource.contains("}*") {
            messages
                .push(format!("{resource}: a parameter followed by * also matches longer values, c-4 matches c-42"));
        }
    }
    messages
}

fn texts<'a>(statement: &'a Map<String, Value>, member: &str) -> Vec<&'a str> {
    match statement.get(member) {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}
