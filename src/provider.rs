//! Who gives credentials, and what policy must know of each provider. Pure: no I/O, no clock, nothing of policy itself.
//!
//! - One leaf each, a module of the provider's name. It implements [`GrantKind`] on the form that its grant has in a file.
//! - [`Provider`], [`GrantTemplate`], [`ProviderGrant`]: the closed set, all made from the one list below.
//! - [`Outlives`]: what a credential may leave behind.
//! - [`Difference`]: what changed between two versions of a file.
//!
//! To add a provider, write its leaf and add one line to that list.

pub mod aws;
mod difference;
mod outlives;
pub mod vault;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::names::ParamName;
pub use crate::params::{ParamSpec, Params};
pub use crate::toml_file::DocumentError;
use crate::toml_file::kind;
pub use difference::{Difference, Direction};
pub(crate) use difference::{difference, one_line};
pub use outlives::{Outlives, Outliving};

/// What policy must know of one provider's grants. Implemented on the form that a grant has in its file.
pub trait GrantKind {
    /// Reads the whole grant file: the members of this provider and those that all grants have.
    ///
    /// # Errors
    /// Anything unknown, missing, out of its range, or not expressible at the provider.
    fn parse(bytes: &[u8]) -> Result<Self, DocumentError>
    where
        Self: Sized;

    /// What changed in the member `key`, where this provider can say more than "was X, is Y"; `None` where it cannot.
    fn differences(_key: &str, _old: Option<&toml::Value>, _new: Option<&toml::Value>) -> Option<Vec<Difference>>
    where
        Self: Sized,
    {
        None
    }

    /// Checks that a scope declares every parameter that the grant uses, and that the grant fits its provider with each
    /// parameter at its longest.
    ///
    /// # Errors
    /// Says what to shorten or declare.
    fn check_params(&self, declared: &BTreeMap<ParamName, ParamSpec>) -> Result<(), DocumentError>;

    /// The grant with `params` filled in, which were accepted by their [`ParamSpec`] before.
    fn resolve(&self, params: &Params) -> ProviderGrant;

    /// Whether it narrows its role, so that a task gets less than all of it.
    fn narrows(&self) -> bool;

    /// Each thing by which access may outlive the grant's credentials.
    fn outliving(&self) -> Vec<Outliving> {
        Vec::new()
    }

    /// What is allowed and still worth a second look, beside that it may not narrow its role.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// What the grant says, a line each, for whoever decides on it.
    fn summary(&self) -> Vec<String>;
}

/// The one list of providers: variant, name in files, form in a grant file, form with parameters filled in.
macro_rules! providers {
    ($($(#[$doc:meta])* $name:ident = $label:literal: $template:ty => $grant:ty;)+) => {
        /// Who gives credentials.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Provider {
            $($(#[$doc])* #[serde(rename = $label)] $name,)+
        }

        impl Provider {
            /// Every provider.
            pub const ALL: [Self; [$($label),+].len()] = [$(Self::$name),+];

            /// Its name in policy files, metrics and audit.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }

            fn template(self, bytes: &[u8]) -> Result<GrantTemplate, DocumentError> {
                match self {
                    $(Self::$name => <$template>::parse(bytes).map(GrantTemplate::$name),)+
                }
            }

            fn differences(
                self,
                key: &str,
                old: Option<&toml::Value>,
                new: Option<&toml::Value>,
            ) -> Option<Vec<Difference>> {
                match self {
                    $(Self::$name => <$template>::differences(key, old, new),)+
                }
            }
        }

        /// The provider's part of a grant file, parameters not yet filled in.
        #[derive(Debug, Clone)]
        pub enum GrantTemplate {
            $($(#[$doc])* $name($template),)+
        }

        impl GrantTemplate {
            /// Whose grant it is.
            pub const fn provider(&self) -> Provider {
                match self {
                    $(Self::$name(_) => Provider::$name,)+
                }
            }

            /// What is to be known of it, whoever's it is.
            pub fn kind(&self) -> &dyn GrantKind {
                match self {
                    $(Self::$name(template) => template,)+
                }
            }
        }

        /// The provider's part of a grant, parameters filled in: what an exchange is to ask for.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum ProviderGrant {
            $($(#[$doc])* $name($grant),)+
        }

        impl ProviderGrant {
            /// Who is to be asked.
            pub const fn provider(&self) -> Provider {
                match self {
                    $(Self::$name(_) => Provider::$name,)+
                }
            }
        }
    };
}

providers! {
    /// AWS STS, or something that speaks its protocol.
    Aws = "aws": aws::AwsTemplate => aws::AwsGrant;
    /// HashiCorp Vault or OpenBao.
    Vault = "vault": vault::VaultTemplate => vault::VaultGrant;
}

impl Provider {
    /// The provider that `name` names; `None` where this version knows none.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| provider.as_str() == name)
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl GrantTemplate {
    /// Reads the bytes of a grant file whose member `provider` is `name`. That its parameters are those of a scope is
    /// checked per scope, see [`GrantKind::check_params`].
    ///
    /// # Errors
    /// Anything unknown, missing, out of its range, or not expressible at the provider.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, DocumentError> {
        match Provider::parse(name) {
            Some(provider) => provider.template(bytes),
            None => {
                let known = Provider::ALL.map(Provider::as_str).join(", ");
                let message = format!("unsupported provider; this version knows: {known}");
                Err(DocumentError { kind: kind::PROVIDER, message })
            }
        }
    }

    /// What changed in the member `key` of a grant file, as the provider that knows it puts it; `None` where no
    /// provider says more than "was X, is Y".
    pub fn differences(key: &str, old: Option<&toml::Value>, new: Option<&toml::Value>) -> Option<Vec<Difference>> {
        Provider::ALL.into_iter().find_map(|provider| provider.differences(key, old, new))
    }
}

/// A grant narrows its role by a member of its own, or says that it does not, never both. `lacks` and `has` say of the
/// member that it is missing and that it is there.
fn check_role_scope(narrows: bool, accepts: bool, lacks: &str, has: &str) -> Result<(), DocumentError> {
    match (narrows, accepts) {
        (false, false) => Err(DocumentError::invalid(format!(
            "{lacks}, so every task would get all of the role: add one, or say accept_role_scope = true"
        ))),
        (true, true) => Err(DocumentError::invalid(format!(
            "{has} and accept_role_scope = true: the second is only for grants without the first"
        ))),
        _ => Ok(()),
    }
}

/// An audience or address: 1 to 255 visible ASCII characters. IAM's limit on an OIDC provider's client id is 255.
fn is_visible(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_is_found_by_its_name_and_serialises_as_it() {
        for provider in Provider::ALL {
            assert_eq!(Provider::parse(provider.as_str()), Some(provider));
            assert_eq!(serde_json::to_value(provider).unwrap(), provider.as_str());
        }
        assert_eq!((Provider::parse("AWS"), Provider::parse("")), (None, None));
        let error = GrantTemplate::parse("mars", b"schema = 1").unwrap_err();
        assert_eq!((error.kind, error.message.contains("knows: aws, ")), (kind::PROVIDER, true));
    }
}
