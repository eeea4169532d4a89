//! Vault or OpenBao: a role of the JWT auth method, and the dynamic secret to read with it.
//!
//! - `secret_path`: the path of that secret, with the scope's parameters.

mod secret_path;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use self::secret_path::SecretPath;
pub(crate) use self::secret_path::is_plain_path;
use super::{DocumentError, GrantKind, ParamName, ParamSpec, Params, ProviderGrant, check_role_scope, is_visible};
use crate::toml_file::read;

/// `provider = "vault"`: a grant as its file writes it.
#[derive(Debug, Clone)]
pub struct VaultTemplate {
    /// Which Vault, where the grant says so: it must be the one that the sidecar is configured for.
    pub address: Option<String>,
    /// Where the JWT auth method is mounted.
    pub mount: String,
    /// The role to log in to.
    pub role: String,
    /// The namespace, where the grant names one.
    pub namespace: Option<String>,
    /// The JWT-SVID's audience.
    pub audience: String,
    /// The dynamic secret to read.
    pub read: SecretPath,
}

/// A login and what is read with it, parameters filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultGrant {
    /// Which Vault, where the grant says so.
    pub address: Option<String>,
    /// Where the JWT auth method is mounted.
    pub mount: String,
    /// The role to log in to.
    pub role: String,
    /// The namespace, where the grant names one; else the configured one.
    pub namespace: Option<String>,
    /// The audience of the JWT-SVID.
    pub audience: String,
    /// The path of the secret, parameters substituted.
    pub read: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant {
    #[serde(rename = "schema")]
    _schema: i64,
    #[serde(rename = "provider")]
    _provider: String,
    address: Option<String>,
    mount: Option<String>,
    role: String,
    namespace: Option<String>,
    audience: String,
    read: String,
    #[serde(default)]
    accept_role_scope: bool,
    #[serde(rename = "max_session")]
    _max_session: Option<String>,
}

impl GrantKind for VaultTemplate {
    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawGrant = read(bytes)?;
        let path = |key: &str, text: String| match is_plain_path(&text) {
            true => Ok(text),
            false => Err(DocumentError::invalid(format!("{key} must be segments of A-Z a-z 0-9 . _ - joined by '/'"))),
        };
        if !is_plain_path(&raw.role) || raw.role.contains('/') {
            return Err(DocumentError::invalid("role must be A-Z a-z 0-9 . _ -"));
        }
        if raw.address.as_deref().is_some_and(|address| !is_visible(address)) {
            return Err(DocumentError::invalid(
                "address must be https://HOST[:PORT], as the sidecar's vault.address is",
            ));
        }
        if !is_visible(&raw.audience) {
            return Err(DocumentError::invalid("audience must be 1 to 255 visible ASCII characters"));
        }
        let read = SecretPath::parse(&raw.read)?;
        let (lacks, has) = ("read names no ${param.…}", "read names a ${param.…}");
        check_role_scope(!read.params().is_empty(), raw.accept_role_scope, lacks, has)?;
        Ok(Self {
            address: raw.address,
            mount: path("mount", raw.mount.unwrap_or_else(|| "jwt".to_owned()))?,
            role: raw.role,
            namespace: raw.namespace.map(|namespace| path("namespace", namespace)).transpose()?,
            audience: raw.audience,
            read,
        })
    }

    fn check_params(&self, declared: &BTreeMap<ParamName, ParamSpec>) -> Result<(), DocumentError> {
        self.read.check_params(declared)
    }

    fn resolve(&self, params: &Params) -> ProviderGrant {
        ProviderGrant::Vault(VaultGrant {
            address: self.address.clone(),
            mount: self.mount.clone(),
            role: self.role.clone(),
            namespace: self.namespace.clone(),
            audience: self.audience.clone(),
            read: self.read.fill(params),
        })
    }

    fn narrows(&self) -> bool {
        !self.read.params().is_empty()
    }

    fn summary(&self) -> Vec<String> {
        let mut summary = vec![
            format!("Vault role {} of auth/{}, with the audience {}", self.role, self.mount, self.audience),
            format!("reads {}", self.read.as_str()),
        ];
        summary.extend(self.address.as_ref().map(|address| format!("at {address}")));
        summary.extend(self.namespace.as_ref().map(|namespace| format!("in the namespace {namespace}")));
        summary
    }
}
