//! `[mtls]`: the workloads' mutual TLS listener.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::Deserialize;

use super::section::{Environment, Invalid, Section};
use super::values;
use crate::identity::{SpiffeId, TrustDomain};

/// `[mtls]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MtlsSettings {
    /// Any address.
    pub address: SocketAddr,
    /// The identity that it shows; the sidecar's default SVID where none is named.
    pub spiffe_id: Option<SpiffeId>,
    /// The trust domains whose workloads may connect, beside our own.
    pub federated: BTreeSet<TrustDomain>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MtlsSection {
    address: Option<String>,
    spiffe_id: Option<SpiffeId>,
    #[serde(deserialize_with = "values::each")]
    federated: BTreeSet<TrustDomain>,
}

impl Section for MtlsSection {
    type Settings = Option<MtlsSettings>;

    fn validate(self, _: &Environment) -> Result<Self::Settings, Invalid> {
        let Self { address, spiffe_id, federated } = self;
        let Some(address) = address else {
            if spiffe_id.is_none() && federated.is_empty() {
                return Ok(None);
            }
            let what = "write an address like 0.0.0.0:9872, or remove the other keys of [mtls]";
            return Err(Invalid::new("address", what));
        };
        let address = address.parse().map_err(|_| Invalid::new("address", "write an address like 0.0.0.0:9872"))?;
        Ok(Some(MtlsSettings { address, spiffe_id, federated }))
    }
}
