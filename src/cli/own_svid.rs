//! The JWT-SVID of whoever runs the command: its own identity, from the Workload API, for the broker alone.

use std::time::Duration;

use spiffe::WorkloadApiClient;
use spiffe::workload_api::error::WorkloadApiError;

use super::{CliError, Exit, setting};
use crate::clock::{Clock, within};
use crate::identity::SpiffeId;
use crate::secret::Secret;

/// The environment variable that names the Workload API (SPIFFE Workload Endpoint §4).
pub const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
/// How long the Workload API may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Flags of commands that prove themselves by their own SVID.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Which of one's own SPIFFE IDs to use, where there are several [default: the Workload API's first]
    #[arg(long, value_name = "ID")]
    pub spiffe_id: Option<SpiffeId>,
    /// The audience that the sidecar expects [env: SIDEMINT_AUDIENCE] [default: sidemint]
    #[arg(long, value_name = "NAME")]
    pub audience: Option<String>,
    /// Where the Workload API is [env: SPIFFE_ENDPOINT_SOCKET]
    #[arg(long, value_name = "URI")]
    pub workload_api: Option<String>,
}

impl Args {
    /// Fetches the JWT-SVID that these flags and the environment name.
    ///
    /// # Errors
    /// Usage where the endpoint is missing or malformed, denied where the Workload API gives this process no such
    /// identity, unavailable where it does not answer in 5 s, failed where its answer is nonsense.
    pub async fn fetch(&self, clock: &dyn Clock) -> Result<Secret, CliError> {
        let endpoint = setting(self.workload_api.as_deref(), SOCKET_VARIABLE, "");
        let audience = setting(self.audience.as_deref(), "SIDEMINT_AUDIENCE", "sidemint");
        if endpoint.is_empty() {
            return Err(explain(&WorkloadApiError::MissingEndpointSocket));
        }
        let spiffe_id = match &self.spiffe_id {
            Some(id) => Some(id.as_str().parse::<spiffe::SpiffeId>().map_err(|error| explain(&error.into()))?),
            None => None,
        };
        let fetch = async {
            let client = WorkloadApiClient::connect_to(&endpoint).await?;
            client.fetch_jwt_token([&audience], spiffe_id.as_ref()).await.map(Secret::new)
        };
        match within(clock, LIMIT, fetch).await {
            Some(result) => result.map_err(|error| explain(&error)),
            None => {
                let text =
                    format!("the Workload API at {endpoint} did not answer in 5 s; is the SPIFFE agent healthy?");
                Err(CliError::new(Exit::Unavailable, text))
            }
        }
    }
}

/// What an error of the Workload API means for a command, and what mends it. The crate's errors hold no token.
pub(crate) fn explain(error: &WorkloadApiError) -> CliError {
    let (exit, mend) = match error {
        WorkloadApiError::MissingEndpointSocket
        | WorkloadApiError::NotUnicodeEndpointSocket(_)
        | WorkloadApiError::Endpoint(_)
        | WorkloadApiError::SpiffeId(_) => {
            (Exit::Usage, "set SPIFFE_ENDPOINT_SOCKET to the agent's socket, e.g. unix:///run/spire/agent.sock")
        }
        WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_) => (
            Exit::Denied,
            "register an entry whose selectors match this process (and this SPIFFE ID) at the SPIFFE server",
        ),
        WorkloadApiError::Transport(_) | WorkloadApiError::EmptyResponse => {
            (Exit::Unavailable, "is the SPIFFE agent running, and may this user open its socket?")
        }
        _ => (Exit::Failed, "check the SPIFFE agent"),
    };
    CliError::new(exit, format!("no SVID from the Workload API: {}; {mend}", with_causes(error)))
}

/// An error and what caused it, joined by colons; causes that repeat what was said are left out.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
