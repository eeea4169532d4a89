//! `[identity]`: who we are, and whom we trust.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::section::{Environment, Invalid, Section};
use super::values;
use crate::identity::TrustDomain;
use crate::identity::jwt_svid::is_cloud_audience;

/// `[identity]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySettings {
    /// `unix:///path` or `tcp://ip:port`.
    pub workload_api: String,
    /// The user whom its agent runs as, where that is not plain from its socket.
    pub workload_api_uid: Option<u32>,
    /// The only audience of JWT-SVIDs presented to us.
    pub audience: String,
    /// Trust domains whose JWT-SVIDs are trusted too, beside those of our own SVIDs.
    pub federated: BTreeSet<TrustDomain>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct IdentitySection {
    workload_api: Option<String>,
    workload_api_uid: Option<u32>,
    audience: Option<String>,
    #[serde(deserialize_with = "values::each")]
    federated: BTreeSet<TrustDomain>,
}

impl Section for IdentitySection {
    type Settings = IdentitySettings;

    fn validate(self, environment: &Environment) -> Result<Self::Settings, Invalid> {
        let fallback = || environment.get("SPIFFE_ENDPOINT_SOCKET").filter(|text| !text.is_empty()).cloned();
        let workload_api = self.workload_api.or_else(fallback).ok_or_else(|| {
            Invalid::new("workload_api", "no Workload API: set SPIFFE_ENDPOINT_SOCKET=unix:///path/of/its.sock")
        })?;
        let audience = self.audience.unwrap_or_else(|| "sidemint".to_owned());
        if is_cloud_audience(&audience) {
            return Err(Invalid::new("audience", "a cloud's audience would let its tokens be replayed here"));
        }
        let Self { workload_api_uid, federated, .. } = self;
        Ok(IdentitySettings { workload_api, workload_api_uid, audience, federated })
    }
}
