//! An embedded SPIFFE authority: it names workloads, signs their SVIDs and serves them over a real Workload API.
//!
//! - [`x509`]: the X.509 authority and its SVIDs.
//! - [`jwt`]: the JWT authority and its SVIDs.
//! - [`workload_api`]: the gRPC service on a Unix socket.
//!
//! It attests nobody: whoever reaches the socket may have every identity, which is why the socket belongs in a folder of
//! mode 0700 and this authority in no production. Everything else is as the standards say.

pub mod jwt;
pub mod workload_api;
pub mod x509;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{SharedClock, Timestamp};
use crate::identity::{SpiffeId, TrustDomain};
use crate::secret::Secret;

/// What an [`Authority`] is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The trust domain that it speaks for.
    pub trust_domain: TrustDomain,
    /// The identities that it gives, the default one first. All must belong to the trust domain.
    pub identities: Vec<SpiffeId>,
    /// The `iss` of its JWT-SVIDs.
    pub issuer: String,
    /// The life of an X.509-SVID; renewed at half of it.
    pub x509_ttl: Duration,
    /// The life of a JWT-SVID.
    pub jwt_ttl: Duration,
}

impl Settings {
    /// The life of an X.509-SVID where nothing else is said: that of SPIRE.
    pub const X509_TTL: Duration = Duration::from_secs(3600);
    /// The life of a JWT-SVID where nothing else is said: that of SPIRE.
    pub const JWT_TTL: Duration = Duration::from_secs(300);
}

/// Why the authority could not be made or could not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Cryptography refused; only a broken system does this.
    #[error("cannot sign: {0}")]
    Crypto(String),
    /// An identity of the settings is of another trust domain.
    #[error("{0} is not in the authority's trust domain")]
    ForeignIdentity(SpiffeId),
    /// The socket cannot be bound.
    #[error("cannot listen on {path}: {source}")]
    Socket {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Signs SVIDs and holds what the Workload API says. Shared as `Arc`.
pub struct Authority {
    settings: Settings,
    clock: SharedClock,
    state: Mutex<State>,
    published: watch::Sender<Arc<Published>>,
}

struct State {
    ca: x509::CertificateAuthority,
    /// The first one signs; all are published.
    jwt_keys: Vec<jwt::SigningKey>,
    withdrawn: BTreeSet<SpiffeId>,
    renew_at: Timestamp,
}

/// Everything that the Workload API says now; each change replaces the whole (Workload API §4.4).
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) svids: Vec<x509::Svid>,
    pub(crate) x509_bundle: Vec<u8>,
    pub(crate) jwks: Vec<u8>,
}

impl Authority {
    /// A new authority with new keys and an SVID for each identity.
    ///
    /// # Errors
    /// When an identity is of another trust domain, or the system's cryptography fails.
    pub fn new(settings: Settings, clock: SharedClock) -> Result<Arc<Self>, AuthorityError> {
        if let Some(foreign) = settings.identities.iter().find(|id| *id.trust_domain() != settings.trust_domain) {
            return Err(AuthorityError::ForeignIdentity(foreign.clone()));
        }
        let ca = x509::CertificateAuthority::new(&settings.trust_domain, clock.now())?;
        let state = State {
            ca,
            jwt_keys: vec![jwt::SigningKey::generate()?],
            withdrawn: BTreeSet::new(),
            renew_at: Timestamp::default(),
        };
        let authority =
            Self { settings, clock, state: Mutex::new(state), published: watch::Sender::new(Arc::default()) };
        authority.renew()?;
        Ok(Arc::new(authority))
    }

    /// The trust domain that it speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.settings.trust_domain
    }

    /// The identities that it gives now, the default one first.
    pub fn identities(&self) -> Vec<SpiffeId> {
        let state = self.state();
        self.settings.identities.iter().filter(|id| !state.withdrawn.contains(*id)).cloned().collect()
    }

    /// The public keys of its JWT-SVIDs, as a JWK Set: what an OIDC provider would publish.
    pub fn jwks(&self) -> Vec<u8> {
        self.published.borrow().jwks.clone()
    }

    /// Signs a JWT-SVID of `spiffe_id` for `audience`, as [`workload_api`] does when asked; `None` when it gives no such
    /// identity now.
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn jwt_svid(&self, spiffe_id: &SpiffeId, audience: &[String]) -> Result<Option<Secret>, AuthorityError> {
        let state = self.state();
        if !self.settings.identities.contains(spiffe_id) || state.withdrawn.contains(spiffe_id) {
            return Ok(None);
        }
        let Some(key) = state.jwt_keys.first() else {
            return Err(AuthorityError::Crypto("no signing key".into()));
        };
        let now = self.clock.now();
        let claims = jwt::Claims {
            sub: spiffe_id.as_str(),
            aud: audience,
            exp: (now + self.settings.jwt_ttl).as_secs(),
            iat: now.as_secs(),
            iss: &self.settings.issuer,
        };
        key.sign(&claims).map(Some)
    }

    /// Takes `spiffe_id` away, as deleting its registration entry would.
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn withdraw(&self, spiffe_id: &SpiffeId) -> Result<(), AuthorityError> {
        self.state().withdrawn.insert(spiffe_id.clone());
        self.renew()
    }

    /// Gives `spiffe_id` again after [`Authority::withdraw`].
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn restore(&self, spiffe_id: &SpiffeId) -> Result<(), AuthorityError> {
        self.state().withdrawn.remove(spiffe_id);
        self.renew()
    }

    /// Signs JWT-SVIDs with a new key from now on. The old keys stay published, unless `forget_old` says that they are
    /// revoked.
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn rotate_jwt_key(&self, forget_old: bool) -> Result<(), AuthorityError> {
        let key = jwt::SigningKey::generate()?;
        {
            let mut state = self.state();
            if forget_old {
                state.jwt_keys.clear();
            }
            state.jwt_keys.insert(0, key);
        }
        self.renew()
    }

    /// Signs every X.509-SVID anew and tells all streams.
    ///
    /// # Errors
    /// When the system's cryptography fails.
    pub fn renew(&self) -> Result<(), AuthorityError> {
        let mut state = self.state();
        let now = self.clock.now();
        let svids = self
            .settings
            .identities
            .iter()
            .filter(|id| !state.withdrawn.contains(*id))
            .map(|id| state.ca.issue(id, now, now + self.settings.x509_ttl))
            .collect::<Result<Vec<_>, _>>()?;
        let x509_bundle = state.ca.certificate().to_vec();
        let jwks = jwt::key_set(&state.jwt_keys);
        state.renew_at = now + self.settings.x509_ttl / 2;
        // Sent under the lock, so that the newest state is the one that stays.
        self.published.send_replace(Arc::new(Published { svids, x509_bundle, jwks }));
        Ok(())
    }

    /// Renews at half of the SVIDs' life, for ever.
    pub(crate) async fn keep_renewing(&self) {
        loop {
            let wait = self.state().renew_at.since(self.clock.now());
            if !wait.is_zero() {
                self.clock.sleep(wait).await;
                continue;
            }
            if let Err(error) = self.renew() {
                tracing::error!(%error, "the embedded authority cannot renew its SVIDs");
                self.clock.sleep(Duration::from_secs(1)).await;
            }
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.published.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock half-changed, so the state behind a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
