//! Mutual TLS: TLS 1.3 alone, both sides by X.509-SVID, nothing that outlives a connection.
//!
//! - The peer is judged by [`crate::identity::x509_svid`] and nothing else; the TLS library checks that it holds the key.
//! - No tickets, no resumption, no early data: each connection proves both sides anew.
//! - A connection ends at once when the peer's SVID or ours expires, when the peer's would no longer be accepted (its
//!   trust bundle or our trust domains changed), and when our identity is withdrawn (`Session::over`); and after the request
//!   under way when another policy is in force than at its beginning (`Session::outdated`).
//! - Whatever token or JWT-SVID a request brings must be of the same SPIFFE ID as the peer (`brings_foreign`).

pub(crate) mod metrics;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::{CertificateError, OtherError, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::metrics::Metrics;
use super::dialect::Presented;
use crate::audit::{Event, Kind};
use crate::broker::Broker;
use crate::clock::{SharedClock, Timestamp, within};
use crate::config::MtlsSettings;
use crate::identity::workload_api::{Identities, SvidKey};
use crate::identity::x509_svid::handshake::{PeerError, ShownSvid, SvidVerifier};
use crate::identity::x509_svid::{PeerSvid, X509SvidError};
use crate::identity::{SpiffeId, TrustDomain};
use crate::policy::{Policy, PolicyVersion};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How often a connection looks at the wall clock, which others can set.
const LOOK: Duration = Duration::from_secs(5);

/// Why there is no connection, or no more.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The Workload API gives us no SVID to show, or not the configured one, or it has expired.
    #[error("the Workload API gives this sidecar no usable SVID to show")]
    NoSvid,
    /// Our own SVID, which we have shown, has expired.
    #[error("the SVID that this sidecar has shown has expired")]
    OwnExpired,
    /// It took longer than five seconds.
    #[error("the handshake took too long")]
    TimedOut,
    /// It made room for another connection before it was done.
    #[error("it made room for another connection")]
    NoRoom,
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoClientCertificate,
    /// The peer's certificate is refused.
    #[error("the peer's certificate is refused: {0}")]
    Svid(X509SvidError),
    /// The peer does not hold the key of its certificate.
    #[error("the peer's signature in the handshake does not verify")]
    Proof,
    /// The peer and we have no version, cipher or protocol in common: TLS 1.3 and HTTP/1.1 are all there is.
    #[error("nothing in common with the peer, who needs TLS 1.3 and HTTP/1.1: {0}")]
    Incompatible(String),
    /// The peer refused us.
    #[error("the peer refused: {0}")]
    Alert(String),
    /// The peer does not speak TLS as it should.
    #[error("not a TLS handshake: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::ErrorKind),
}

impl HandshakeError {
    /// The words of [`HandshakeError::kind`] beside those of [`X509SvidError::KINDS`].
    pub const KINDS: [&'static str; 10] = [
        "no_svid",
        "own_expired",
        "timed_out",
        "no_room",
        "no_client_certificate",
        "proof",
        "incompatible",
        "alert",
        "protocol",
        "broken",
    ];

    /// A stable word of a closed set, for metrics and audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoSvid => "no_svid",
            Self::OwnExpired => "own_expired",
            Self::TimedOut => "timed_out",
            Self::NoRoom => "no_room",
            Self::NoClientCertificate => "no_client_certificate",
            Self::Svid(error) => error.kind(),
            Self::Proof => "proof",
            Self::Incompatible(_) => "incompatible",
            Self::Alert(_) => "alert",
            Self::Protocol(_) => "protocol",
            Self::Broken(_) => "broken",
        }
    }

    /// The word of [`ENDINGS`] for a connection that this ended.
    fn ending(&self) -> &'static str {
        match self {
            Self::Svid(X509SvidError::Expired) => "peer_expired",
            Self::OwnExpired | Self::NoSvid => "own_svid",
            _ => "bundle",
        }
    }

    fn of(error: &io::Error) -> Self {
        use rustls::Error as E;
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<E>()) else {
            return Self::Broken(error.kind());
        };
        match tls {
            E::NoCertificatesPresented => Self::NoClientCertificate,
            E::InvalidCertificate(CertificateError::Other(OtherError(why))) => match why.downcast_ref() {
                Some(PeerError::Svid(why)) => Self::Svid(*why),
                _ => Self::Protocol(tls.to_string()),
            },
            E::InvalidCertificate(_) => Self::Proof,
            E::PeerIncompatible(_) | E::NoApplicationProtocol => Self::Incompatible(tls.to_string()),
            E::AlertReceived(_) => Self::Alert(tls.to_string()),
            _ => Self::Protocol(tls.to_string()),
        }
    }
}

/// Every word of `sidemint_tls_handshakes_total{outcome}`.
pub fn outcomes() -> impl Iterator<Item = &'static str> {
    HandshakeError::KINDS.into_iter().chain(X509SvidError::KINDS).chain(["ok"])
}

/// Every word of `sidemint_connections_ended_total{reason}`.
pub const ENDINGS: [&str; 4] = ["peer_expired", "own_svid", "bundle", POLICY];
/// The word for a connection that is older than the policy in force.
const POLICY: &str = "policy";

/// Makes connections of mutual TLS.
pub struct Mtls {
    broker: Arc<Broker>,
    provider: Arc<CryptoProvider>,
    spiffe_id: Option<SpiffeId>,
    federated: Arc<BTreeSet<TrustDomain>>,
    metrics: Metrics,
}

impl fmt::Debug for Mtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spiffe_id, federated, .. } = self;
        f.debug_struct("Mtls").field("spiffe_id", spiffe_id).field("federated", federated).finish_non_exhaustive()
    }
}

impl Mtls {
    /// For `broker`'s identities and clock, with its metrics and audit log.
    pub fn new(broker: Arc<Broker>, settings: &MtlsSettings) -> Self {
        Self {
            metrics: Metrics::new(broker.parts().metrics.registry()),
            broker,
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            spiffe_id: settings.spiffe_id.clone(),
            federated: Arc::new(settings.federated.clone()),
        }
    }

    /// Shakes hands with the peer at `address` until it is `evicted`, counts how that went and audits a refusal.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        evicted: impl Future<Output = ()>,
    ) -> Option<(TlsStream<TcpStream>, Session)> {
        let parts = self.broker.parts();
        let shaken = tokio::select! {
            shaken = within(&*parts.clock, HANDSHAKE, self.shake_hands(stream, address)) => shaken,
            () = evicted => Some(Err(HandshakeError::NoRoom)),
        };
        match shaken.unwrap_or(Err(HandshakeError::TimedOut)) {
            Ok(connection) => {
                self.metrics.handshake("ok");
                Some(connection)
            }
            Err(error) => {
                self.metrics.handshake(error.kind());
                parts.audit.note(&Event {
                    reason: Some(error.kind()),
                    detail: Some(format!("TLS handshake with {address}: {error}")),
                    ..Event::new(self.broker.now(), Kind::Refusal, "refused")
                });
                None
            }
        }
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, Session), HandshakeError> {
        let clock = &self.broker.parts().clock;
        // subscribed before anything is looked at, so that no change is missed
        let mut changes = self.broker.parts().workload_api.watch();
        let policies = self.broker.parts().policy.subscribe();
        let policy = version(policies.borrow().as_deref());
        let identities = changes.borrow_and_update().clone();
        let key = identities.shown(self.spiffe_id.as_ref(), self.broker.now()).ok_or(HandshakeError::NoSvid)?;
        let verifier = self.verifier(identities);
        let peer = verifier.peer();
        let config = self.config(verifier, &key.1).map_err(|error| HandshakeError::Protocol(error.to_string()))?;
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        let stream = accepted.map_err(|error| HandshakeError::of(&error))?;
        let peer = peer.get().cloned().ok_or(HandshakeError::NoClientCertificate)?;
        let (now, boot) = (clock.now(), clock.boot());
        let own_until = key.1.expires_at();
        let until = peer.claims().expires_at().min(own_until);
        let session = Session {
            broker: Arc::clone(&self.broker),
            metrics: self.metrics.clone(),
            address,
            own: key.0,
            own_until,
            federated: Arc::clone(&self.federated),
            clock: Arc::clone(clock),
            until,
            until_boot: boot.saturating_add(until.since(now)),
            peer,
            changes,
            policies,
            policy,
        };
        // what has changed while hands were shaken
        session.check()?;
        Ok((stream, session))
    }

    /// The peer is any workload of our trust domains.
    fn verifier(&self, identities: Arc<Identities>) -> SvidVerifier {
        let (federated, clock) = (Arc::clone(&self.federated), Arc::clone(&self.broker.parts().clock));
        SvidVerifier::new(&self.provider, move |chain| {
            let now = clock.now();
            let accepted = identities.accepted(&federated, now);
            Ok(PeerSvid::verify(chain, &identities.x509_bundles, &accepted, now)?)
        })
    }

    /// The library's settings for one connection: the verifier keeps what it saw, so it serves only one.
    fn config(&self, verifier: SvidVerifier, key: &SvidKey) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(ShownSvid::new(key.certified()));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// One connection of mutual TLS: who is at the other end, and when it expires.
#[derive(Debug)]
pub(super) struct Session {
    broker: Arc<Broker>,
    metrics: Metrics,
    address: SocketAddr,
    peer: Arc<PeerSvid>,
    own: SpiffeId,
    own_until: Timestamp,
    federated: Arc<BTreeSet<TrustDomain>>,
    clock: SharedClock,
    /// The earlier of the ends of both SVIDs, on the wall clock and on the one that nobody can set.
    until: Timestamp,
    until_boot: Duration,
    changes: watch::Receiver<Arc<Identities>>,
    policies: watch::Receiver<Option<Arc<Policy>>>,
    /// What was in force at the handshake.
    policy: Option<PolicyVersion>,
}

fn version(policy: Option<&Policy>) -> Option<PolicyVersion> {
    policy.map(|policy| policy.version().clone())
}

impl Session {
    /// Who is at the other end.
    pub(super) fn peer(&self) -> &Arc<PeerSvid> {
        &self.peer
    }

    /// Returns once the connection must end at once; that is counted and audited.
    pub(super) async fn over(mut self) {
        let why = self.why_over().await;
        tell_ended(&self.broker, &self.metrics, &self.peer, self.address, why.ending(), why.kind(), &why.to_string());
    }

    /// Returns once another policy is in force than when it began, if ever; that is counted and audited.
    pub(super) fn outdated(&self) -> impl Future<Output = ()> + use<> {
        let (broker, peer, address) = (Arc::clone(&self.broker), Arc::clone(&self.peer), self.address);
        let (mut policies, then) = (self.policies.clone(), self.policy.clone());
        let metrics = self.metrics.clone();
        async move {
            if policies.wait_for(|now| version(now.as_deref()) != then).await.is_err() {
                // There will be no other.
                return std::future::pending().await;
            }
            let detail = "another policy is in force than at its beginning";
            tell_ended(&broker, &metrics, &peer, address, POLICY, "policy_changed", detail);
        }
    }

    async fn why_over(&mut self) -> HandshakeError {
        loop {
            if let Err(why) = self.check() {
                return why;
            }
            let left = self.until_boot.saturating_sub(self.clock.boot()).min(self.until.since(self.clock.now()));
            tokio::select! {
                () = self.clock.sleep(left.min(LOOK)) => {}
                changed = self.changes.changed() => if changed.is_err() {
                    return HandshakeError::NoSvid;
                }
            }
        }
    }

    /// Whether both sides would be accepted now.
    fn check(&self) -> Result<(), HandshakeError> {
        let (now, identities) = (self.clock.now(), Arc::clone(&self.changes.borrow()));
        if now >= self.until || self.clock.boot() >= self.until_boot {
            return Err(match self.peer.claims().expires_at() <= self.own_until {
                true => HandshakeError::Svid(X509SvidError::Expired),
                false => HandshakeError::OwnExpired,
            });
        }
        if identities.svid(&self.own, now).is_none() {
            return Err(HandshakeError::NoSvid);
        }
        let accepted = identities.accepted(&self.federated, now);
        self.peer.still_holds(&identities.x509_bundles, &accepted, now).map_err(HandshakeError::Svid)
    }
}

/// Counts a connection that is ended for `ending`, a word of [`ENDINGS`], and notes it in the audit log.
fn tell_ended(
    broker: &Broker,
    metrics: &Metrics,
    peer: &PeerSvid,
    address: SocketAddr,
    ending: &'static str,
    reason: &'static str,
    why: &str,
) {
    tracing::info!(reason, %address, "a connection of mutual TLS is over");
    metrics.connection_ended(ending);
    broker.parts().audit.note(&Event {
        reason: Some(reason),
        detail: Some(format!("connection from {address}: {why}")),
        spiffe_id: Some(peer.claims().spiffe_id()),
        ..Event::new(broker.now(), Kind::Connection, "ended")
    });
}

/// Who is at the other end of the request's connection, by mutual TLS.
pub(super) fn peer(extensions: &Extensions) -> Option<&Arc<PeerSvid>> {
    extensions.get()
}

/// Whether a request of `peer` brings a token or JWT-SVID of another workload, or what nobody can judge: a connection of
/// one workload never serves another's.
pub(super) fn brings_foreign(broker: &Broker, peer: &PeerSvid, presented: &Presented) -> bool {
    let own = peer.claims().spiffe_id();
    match presented {
        Presented::Nothing => false,
        Presented::Unusable => true,
        // a token of no task is refused as such later
        Presented::Token(token) => broker.tasks().by_token(token).is_some_and(|task| task.owner() != own),
        Presented::Svid(evidence) => broker.caller(evidence).is_ok_and(|caller| caller.spiffe_id() != own),
    }
}

#[cfg(test)]
mod tests;
