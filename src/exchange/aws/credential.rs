//! AWS session credentials, and how AWS SDKs read them.

use serde::Serialize;

use crate::exchange::credential::Validity;
use crate::secret::{Secret, SecretBytes};

/// AWS session credentials.
#[derive(Debug)]
pub struct AwsCredential {
    /// `AccessKeyId`: no secret by itself, but kept with the rest.
    pub access_key_id: Secret,
    /// `SecretAccessKey`.
    pub secret_access_key: Secret,
    /// `SessionToken`.
    pub session_token: Secret,
    /// The account of the assumed role, where its ARN tells.
    pub account_id: Option<String>,
}

/// The SDKs' own names. `Token` and `Expiration` are required by botocore, JavaScript and Rust.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Wire<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    /// UTC with a literal `Z`, whole seconds: the one form that every SDK reads.
    expiration: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
}

impl AwsCredential {
    /// The answer of AWS's container-credentials endpoint.
    pub(in crate::exchange) fn answer(&self, validity: Validity) -> SecretBytes {
        SecretBytes::of_json(&Wire {
            // exposed: this is the answer to the task that owns the credential
            access_key_id: self.access_key_id.expose(),
            secret_access_key: self.secret_access_key.expose(),
            token: self.session_token.expose(),
            expiration: validity.expires_at.to_string(),
            account_id: self.account_id.as_deref(),
        })
    }
}
