//! The state of the Workload API, kept current by two streams: our X.509-SVIDs, and the JWT bundles.
//!
//! Each stream has a supervisor of its own:
//!
//! | what happens | what the supervisor does |
//! |---|---|
//! | a message | replaces the whole of its half of [`Identities`] (SPIFFE Workload API §4.4) |
//! | a message without its mandatory fields | reports and discards it (§4.5); the stream goes on |
//! | `PermissionDenied` | drops its half of [`Identities`] at once: we have no identity, or no more; asks again with backoff |
//! | `InvalidArgument`, `Unimplemented` | reports an error, keeps what it has, asks again every 30 s, in case an agent is upgraded |
//! | served by somebody who is not trusted | reports an error and says nothing to them; keeps what it has and tries again with backoff |
//! | anything else, or no connection | keeps what it has (an SVID counts until its own expiry) and asks again with backoff |
//!
//! A stream that says nothing for 10 s after it was asked for counts as no connection; later it may be silent as long as it
//! likes, since it tells only what changes.
//!
//! Backoff: at once, then 100 ms doubling to 5 s with jitter (the socket is this machine's own, and a token signed by a
//! new key is refused until the bundle is here); it begins anew after a message was used. A stream that ends
//! within a second of its beginning is not asked again at once.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_stream::{Stream, StreamExt as _};

use super::client::{Client, Trouble, X509State, describe};
use super::endpoint::{Endpoint, EndpointError};
use super::socket::{self, ClientError};
use super::{Identities, JwtSvid, WorkloadApi, WorkloadApiError};
use crate::clock::{SharedClock, within};
use crate::identity::jwt_svid::JwtBundle;
use crate::identity::{SpiffeId, TrustDomain};
use crate::retry::{Backoff, Jitter as _, SystemJitter, jittered};

/// The first wait between two attempts, after the one that is made at once.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two attempts.
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// The wait after a request that the Workload API does not know.
const REJECTED_WAIT: Duration = Duration::from_secs(30);
/// How long a connection, the opening of a stream and its first message may take together.
pub(super) const OPENING: Duration = Duration::from_secs(10);
/// A stream that ends sooner than this is not opened again at once.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How one stream does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamHealth {
    /// Whether the stream is open now.
    pub connected: bool,
    /// Whether the Workload API has answered on it since start, be it with a refusal.
    pub answered: bool,
    /// What went wrong last, since the last message that was used. One line, without secrets.
    pub last_error: Option<String>,
}

/// How the connection to the Workload API does, for readiness and `doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// The stream of our X.509-SVIDs.
    pub svids: StreamHealth,
    /// The stream of JWT bundles.
    pub jwt_bundles: StreamHealth,
}

impl Health {
    /// Whether both streams are open now.
    pub fn connected(&self) -> bool {
        self.svids.connected && self.jwt_bundles.connected
    }

    /// The last error of either stream.
    pub fn last_error(&self) -> Option<&str> {
        self.svids.last_error.as_deref().or(self.jwt_bundles.last_error.as_deref())
    }
}

/// The real Workload API. Dropping it ends its streams.
pub struct SpiffeWorkloadApi {
    shared: Arc<Shared>,
    client: Client,
    supervisors: [AbortHandle; 2],
}

impl fmt::Debug for SpiffeWorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeWorkloadApi").field("client", &self.client).finish_non_exhaustive()
    }
}

impl SpiffeWorkloadApi {
    /// Begins to follow the Workload API at `endpoint` (`unix:///path` or `tcp://ip:port`), which need not be there
    /// yet. [`socket`] says who may serve it, beside the user `agent`. Must be called on a Tokio runtime.
    ///
    /// # Errors
    /// Only for a text that is not an address.
    pub fn start(endpoint: &str, agent: Option<u32>, clock: SharedClock) -> Result<Arc<Self>, EndpointError> {
        let endpoint: Endpoint = endpoint.parse()?;
        let shared = Arc::new(Shared::default());
        let supervisors = [Profile::X509, Profile::Jwt].map(|profile| {
            let supervisor = Supervisor {
                profile,
                endpoint: endpoint.clone(),
                agent,
                clock: Arc::clone(&clock),
                shared: Arc::clone(&shared),
            };
            tokio::spawn(supervisor.run()).abort_handle()
        });
        Ok(Arc::new(Self { shared, client: Client::new(endpoint, agent, clock), supervisors }))
    }

    /// How the streams do now.
    pub fn health(&self) -> Health {
        self.shared.health().clone()
    }
}

impl Drop for SpiffeWorkloadApi {
    fn drop(&mut self) {
        self.supervisors.iter().for_each(AbortHandle::abort);
    }
}

#[async_trait]
impl WorkloadApi for SpiffeWorkloadApi {
    fn identities(&self) -> Arc<Identities> {
        self.shared.identities.borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<Identities>> {
        self.shared.identities.subscribe()
    }

    async fn fetch_jwt_svid(
        &self,
        spiffe_id: &SpiffeId,
        audience: &str,
        limit: Duration,
    ) -> Result<JwtSvid, WorkloadApiError> {
        self.client.fetch_jwt_svid(Some(spiffe_id), audience, limit).await
    }
}

#[derive(Default)]
struct Shared {
    identities: watch::Sender<Arc<Identities>>,
    health: Mutex<Health>,
}

impl Shared {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, profile: Profile, change: impl FnOnce(&mut StreamHealth)) {
        let mut health = self.health();
        change(match profile {
            Profile::X509 => &mut health.svids,
            Profile::Jwt => &mut health.jwt_bundles,
        });
    }

    /// Replaces one half of the state. The other half stays as it is.
    fn replace(&self, update: Update) {
        let known = {
            let health = self.health();
            health.svids.answered && health.jwt_bundles.answered
        };
        self.identities.send_modify(|identities| {
            let mut next = Identities::clone(identities);
            match update {
                Update::X509(state) => {
                    next.svids = state.svids;
                    next.keys = state.keys;
                    next.x509_bundles = state.bundles;
                }
                Update::Bundles(bundles) => next.jwt_bundles = bundles,
            }
            next.known = next.known || known;
            *identities = Arc::new(next);
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    X509,
    Jwt,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X509 => "X.509-SVIDs",
            Self::Jwt => "JWT bundles",
        })
    }
}

/// A full replacement of one half of the state.
enum Update {
    X509(X509State),
    Bundles(BTreeMap<TrustDomain, Arc<JwtBundle>>),
}

type Updates = Pin<Box<dyn Stream<Item = Result<Update, ClientError>> + Send>>;

/// Why a stream is over.
struct End {
    trouble: Trouble,
    text: String,
    used_a_message: bool,
}

impl End {
    fn of(error: &ClientError, used_a_message: bool) -> Self {
        Self { trouble: Trouble::of(error), text: describe(error), used_a_message }
    }
}

struct Supervisor {
    profile: Profile,
    endpoint: Endpoint,
    agent: Option<u32>,
    clock: SharedClock,
    shared: Arc<Shared>,
}

impl Supervisor {
    async fn run(self) {
        let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MOST);
        let mut at_once = true;
        loop {
            let began = self.clock.boot();
            let end = self.follow().await;
            self.react(&end);
            if end.used_a_message {
                let lived = self.clock.boot().saturating_sub(began);
                backoff.reset();
                at_once = lived >= SHORT_LIFE;
            }
            let wait = match end.trouble {
                Trouble::Rejected => REJECTED_WAIT,
                _ if std::mem::take(&mut at_once) => continue,
                _ => backoff.next_wait(),
            };
            // So that many sidecars of one agent do not ask in step.
            self.clock.sleep(jittered(wait, SystemJitter.fraction())).await;
        }
    }

    /// Opens the stream and applies its messages until it ends.
    async fn follow(&self) -> End {
        let opening = async {
            let mut updates = self.open().await?;
            self.shared.note(self.profile, |health| health.connected = true);
            tracing::info!(stream = %self.profile, "following the Workload API");
            let first = updates.next().await;
            Ok::<_, ClientError>((updates, first))
        };
        let (mut updates, mut next) = match within(&*self.clock, OPENING, opening).await {
            Some(Ok(opened)) => opened,
            Some(Err(error)) => return End::of(&error, false),
            None => {
                return End { trouble: Trouble::Unavailable, text: "no answer in time".into(), used_a_message: false };
            }
        };
        let mut used_a_message = false;
        while let Some(update) = next {
            match update {
                Ok(update) => {
                    self.shared.note(self.profile, |health| {
                        health.answered = true;
                        health.last_error = None;
                    });
                    self.shared.replace(update);
                    used_a_message = true;
                }
                Err(error) if Trouble::of(&error) == Trouble::BadMessage => {
                    let text = describe(&error);
                    tracing::error!(stream = %self.profile, error = text, "a message of the Workload API was discarded");
                    self.shared.note(self.profile, |health| health.last_error = Some(text));
                }
                Err(error) => return End::of(&error, used_a_message),
            }
            next = updates.next().await;
        }
        End { trouble: Trouble::Unavailable, text: "the Workload API closed the stream".into(), used_a_message }
    }

    async fn open(&self) -> Result<Updates, ClientError> {
        let client = socket::client(&self.endpoint, self.agent).await?;
        Ok(match self.profile {
            Profile::X509 => Box::pin(client.stream_x509_contexts().await?.map(|context| {
                let context = context?;
                Ok(Update::X509(X509State::of(&context)))
            })),
            Profile::Jwt => Box::pin(client.stream_jwt_bundles().await?.map(|set| {
                let set = set?;
                Ok(Update::Bundles(bundles(&set)))
            })),
        })
    }

    fn react(&self, end: &End) {
        let denied = end.trouble == Trouble::Denied;
        self.shared.note(self.profile, |health| {
            health.connected = false;
            health.answered |= denied;
            health.last_error = Some(end.text.clone());
        });
        match end.trouble {
            Trouble::Denied => {
                tracing::warn!(stream = %self.profile, error = end.text, "the Workload API gives this process no identity");
                self.shared.replace(match self.profile {
                    Profile::X509 => Update::X509(X509State::default()),
                    Profile::Jwt => Update::Bundles(BTreeMap::new()),
                });
            }
            Trouble::Rejected => {
                tracing::error!(stream = %self.profile, error = end.text, "the Workload API refuses the request itself: check its version and address");
            }
            Trouble::Untrusted => {
                tracing::error!(stream = %self.profile, error = end.text, "the Workload API is not trusted");
            }
            Trouble::Unavailable | Trouble::BadMessage => {
                tracing::warn!(stream = %self.profile, error = end.text, "the Workload API is not there; asking again");
            }
        }
    }
}

/// The JWT bundles by trust domain. A trust domain that our grammar refuses, or whose bundle is too large, is left out:
/// nothing of it verifies.
fn bundles(set: &spiffe::JwtBundleSet) -> BTreeMap<TrustDomain, Arc<JwtBundle>> {
    let mut kept = BTreeMap::new();
    for (name, bundle) in set.iter() {
        let trust_domain: TrustDomain = match name.as_str().parse() {
            Ok(trust_domain) => trust_domain,
            Err(error) => {
                tracing::error!(%error, "the Workload API gave a JWT bundle for a trust domain that is not canonical: left out");
                continue;
            }
        };
        match JwtBundle::from_jwks(bundle.jwt_authorities().map(|authority| authority.jwk_json())) {
            Ok(bundle) => {
                if bundle.is_empty() {
                    tracing::warn!(%trust_domain, ignored = bundle.ignored(), "the JWT bundle has no usable key: no token of this trust domain is trusted");
                }
                kept.insert(trust_domain, Arc::new(bundle));
            }
            Err(error) => {
                tracing::error!(%error, %trust_domain, "the JWT bundle is refused: no token of this trust domain is trusted");
            }
        }
    }
    kept
}
