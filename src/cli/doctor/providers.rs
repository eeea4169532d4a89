//! Which providers are looked at: those that the configuration names or the policy grants something at. Where neither is known,
//! those that are there without configuration.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::app;
use crate::check::Check;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::exchange::{Exchange, Provider};
use crate::identity::SpiffeId;
use crate::identity::workload_api::{Identities, JwtSvid, WorkloadApi, WorkloadApiError};
use crate::task::ProviderSet;

const PROVIDERS: &str = "providers";

/// The providers to look at, and what is wrong with the rest. `granted` is where the policy grants something, where that is known.
pub(super) fn to_examine(
    config: &Config,
    clock: &SharedClock,
    granted: Option<ProviderSet>,
) -> (Vec<Arc<dyn Exchange>>, Vec<Check>) {
    let exchanges = match app::exchanges(config, Arc::new(NoWorkloadApi), clock) {
        Ok(exchanges) => exchanges,
        Err(error) => return (Vec::new(), vec![Check::fail(PROVIDERS, error.to_string(), "fix this first")]),
    };
    let there = exchanges.iter().map(|(provider, exchange)| (*provider, exchange.is_configured()));
    let wanted = wanted(there, granted);
    let missing = granted.into_iter().flat_map(ProviderSet::iter).filter(|granted| !exchanges.contains_key(granted));
    let missing = missing.map(|provider| {
        let detail = format!("the policy grants something at {provider}, which is not configured");
        // A fleet shares its policy: this sidecar may serve other scopes alone.
        let fix = format!(
            "configure it ([{provider}]), or leave its scopes out of policy.scopes; it gives no credential here"
        );
        Check::warn(PROVIDERS, detail, fix)
    });
    let missing = missing.collect();
    (exchanges.into_iter().filter(|(provider, _)| wanted.contains(*provider)).map(|(_, one)| one).collect(), missing)
}

/// Of the providers that are `there`, each with whether the configuration says anything of it, those to look at.
fn wanted(there: impl Iterator<Item = (Provider, bool)> + Clone, granted: Option<ProviderSet>) -> ProviderSet {
    let is_granted = |provider| granted.is_some_and(|granted| granted.contains(provider));
    let named = |&(provider, is_configured): &(Provider, bool)| is_configured || is_granted(provider);
    let wanted: ProviderSet = there.clone().filter(named).map(|(provider, _)| provider).collect();
    match wanted.is_empty() && granted.is_none() {
        true => there.map(|(provider, _)| provider).collect(),
        false => wanted,
    }
}

/// Nothing is minted here.
#[derive(Debug)]
pub(super) struct NoWorkloadApi;

#[async_trait]
impl WorkloadApi for NoWorkloadApi {
    fn identities(&self) -> Arc<Identities> {
        Arc::default()
    }

    fn watch(&self) -> watch::Receiver<Arc<Identities>> {
        watch::channel(Arc::default()).1
    }

    async fn fetch_jwt_svid(&self, _: &SpiffeId, _: &str, _: Duration) -> Result<JwtSvid, WorkloadApiError> {
        Err(WorkloadApiError::Unavailable("doctor mints nothing".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examines_providers_that_are_configured_or_granted() {
        use Provider::{Aws, Vault};
        let set = |providers: &[Provider]| providers.iter().copied().collect::<ProviderSet>();
        for (there, granted, expected) in [
            (vec![(Aws, false)], None, set(&[Aws])),
            (vec![(Aws, true)], None, set(&[Aws])),
            (vec![(Aws, false), (Vault, true)], None, set(&[Vault])),
            (vec![(Aws, true), (Vault, true)], None, set(&[Aws, Vault])),
            (vec![(Aws, false), (Vault, true)], Some(set(&[Vault])), set(&[Vault])),
            (vec![(Aws, false), (Vault, true)], Some(set(&[Aws])), set(&[Aws, Vault])),
            (vec![(Aws, false)], Some(set(&[Vault])), set(&[])),
        ] {
            assert_eq!(wanted(there.iter().copied(), granted), expected, "{there:?} {granted:?}");
        }
    }
}
