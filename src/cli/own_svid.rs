//! The JWT-SVID of whoever runs the command: its own identity, from the Workload API, for the broker alone.

use std::time::Duration;

use super::{CliError, Exit, setting};
use crate::clock::SharedClock;
use crate::identity::SpiffeId;
use crate::identity::workload_api::client::Client;
use crate::identity::workload_api::endpoint::ENVIRONMENT;
use crate::identity::workload_api::{JwtSvid, WorkloadApiError};

/// How long the Workload API may take to answer.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

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
    /// The user whom the SPIFFE agent runs as, where Sidemint cannot tell from its socket
    #[arg(long, env = "SIDEMINT_IDENTITY_WORKLOAD_API_UID", value_name = "UID")]
    pub workload_api_uid: Option<u32>,
}

impl Args {
    /// Fetches the JWT-SVID that these flags and the environment name.
    ///
    /// # Errors
    /// Usage where the endpoint is missing or malformed, denied where the Workload API gives this process no such
    /// identity, unavailable where it does not answer in 5 s, failed where its answer is nonsense or somebody else than
    /// the agent seems to serve it.
    pub async fn fetch(&self, clock: SharedClock) -> Result<JwtSvid, CliError> {
        let endpoint = setting(self.workload_api.as_deref(), ENVIRONMENT, "");
        let audience = setting(self.audience.as_deref(), "SIDEMINT_AUDIENCE", "sidemint");
        let endpoint = match endpoint.parse() {
            Ok(endpoint) => endpoint,
            Err(error) => return Err(CliError::new(Exit::Usage, format!("{ENVIRONMENT}={endpoint:?}: {error}"))),
        };
        let client = Client::new(endpoint, self.workload_api_uid, clock);
        client.fetch_jwt_svid(self.spiffe_id.as_ref(), &audience, LIMIT).await.map_err(|error| explain(&error))
    }
}

fn explain(error: &WorkloadApiError) -> CliError {
    let exit = match error {
        WorkloadApiError::Unavailable(_) => Exit::Unavailable,
        WorkloadApiError::Denied(_) => Exit::Denied,
        WorkloadApiError::Untrusted(_) | WorkloadApiError::Invalid(_) => Exit::Failed,
    };
    CliError::new(exit, format!("{error}; {}", fix(error)))
}

/// What fixes an error of the Workload API.
pub(super) fn fix(error: &WorkloadApiError) -> &'static str {
    match error {
        WorkloadApiError::Unavailable(_) => "is the SPIFFE agent running, and may this user open its socket?",
        WorkloadApiError::Denied(_) => {
            "register an entry whose selectors match this process (and this SPIFFE ID) at the SPIFFE server"
        }
        WorkloadApiError::Untrusted(_) => "check who listens there, and who can write to its directory",
        WorkloadApiError::Invalid(_) => "check the SPIFFE agent and its version",
    }
}
