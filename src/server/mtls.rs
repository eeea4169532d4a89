//! Mutual TLS: TLS 1.3 alone, both sides by X.509-SVID, nothing that outlives a connection.
//!
//! - The peer is judged by [`crate::identity::x509_svid`] and nothing else; the TLS library checks that it holds the key.
//! - No tickets, no resumption, no early data: each connection proves both sides anew.
//! - A connection ends at once when the peer's SVID or ours expires, when the peer's would no longer be accepted (its
//!   trust bundle or our trust domains changed), and when our identity is withdrawn (`Session::over`).
//! - Whatever token or JWT-SVID a request brings must be of the same SPIFFE ID as the peer (`brings_foreign`).

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Request;
use http::header::AUTHORIZATION;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::audit::{Event, Kind};
use crate::broker::Broker;
use crate::clock::{SharedClock, Timestamp, within};
use crate::config::MtlsSettings;
use crate::identity::task_token::{PREFIX, TokenHash};
use crate::identity::workload_api::{Identities, SvidKey};
use crate::identity::x509_svid::{PeerSvid, X509SvidError};
use crate::identity::{Evidence, SpiffeId, TrustDomain};
use crate::secret::Secret;

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
    /// It took longer than five seconds.
    #[error("the handshake took too long")]
    TimedOut,
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
    pub const KINDS: [&'static str; 8] =
        ["no_svid", "timed_out", "no_client_certificate", "proof", "incompatible", "alert", "protocol", "broken"];

    /// A stable word of a closed set, for metrics and audit.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoSvid => "no_svid",
            Self::TimedOut => "timed_out",
            Self::NoClientCertificate => "no_client_certificate",
            Self::Svid(error) => error.kind(),
            Self::Proof => "proof",
            Self::Incompatible(_) => "incompatible",
            Self::Alert(_) => "alert",
            Self::Protocol(_) => "protocol",
            Self::Broken(_) => "broken",
        }
    }

    fn of(error: &io::Error) -> Self {
        use rustls::Error as E;
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<E>()) else {
            return Self::Broken(error.kind());
        };
        match tls {
            E::NoCertificatesPresented => Self::NoClientCertificate,
            E::InvalidCertificate(CertificateError::Other(OtherError(why))) => why
                .downcast_ref::<X509SvidError>()
                .map_or_else(|| Self::Protocol(tls.to_string()), |why| Self::Svid(*why)),
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

/// Makes connections of mutual TLS.
pub struct Mtls {
    broker: Arc<Broker>,
    provider: Arc<CryptoProvider>,
    spiffe_id: Option<SpiffeId>,
    federated: Arc<BTreeSet<TrustDomain>>,
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
            broker,
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            spiffe_id: settings.spiffe_id.clone(),
            federated: Arc::new(settings.federated.clone()),
        }
    }

    /// Shakes hands with the peer at `address`, counts how that went and audits a refusal.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Option<(TlsStream<TcpStream>, Session)> {
        let parts = self.broker.parts();
        let shaken = within(&*parts.clock, HANDSHAKE, self.shake_hands(stream)).await;
        match shaken.unwrap_or(Err(HandshakeError::TimedOut)) {
            Ok(connection) => {
                parts.metrics.tls_handshake("ok");
                Some(connection)
            }
            Err(error) => {
                parts.metrics.tls_handshake(error.kind());
                parts.audit.note(&Event {
                    reason: Some(error.kind()),
                    detail: Some(format!("TLS handshake with {address}: {error}")),
                    ..Event::new(self.broker.now(), Kind::Refusal, "refused")
                });
                None
            }
        }
    }

    async fn shake_hands(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, Session), HandshakeError> {
        let clock = &self.broker.parts().clock;
        // subscribed before anything is looked at, so that no change is missed
        let mut changes = self.broker.parts().workload_api.watch();
        let identities = changes.borrow_and_update().clone();
        let key = self.key(&identities).ok_or(HandshakeError::NoSvid)?;
        let peer = Arc::new(OnceLock::new());
        let verifier = SvidVerifier {
            identities,
            federated: Arc::clone(&self.federated),
            clock: Arc::clone(clock),
            provider: Arc::clone(&self.provider),
            peer: Arc::clone(&peer),
        };
        let config = self.config(verifier, &key.1).map_err(|error| HandshakeError::Protocol(error.to_string()))?;
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        let stream = accepted.map_err(|error| HandshakeError::of(&error))?;
        let peer = peer.get().cloned().ok_or(HandshakeError::NoClientCertificate)?;
        let (now, boot) = (clock.now(), clock.boot());
        let until = peer.claims().expires_at().min(key.1.expires_at());
        let session = Session {
            own: key.0,
            federated: Arc::clone(&self.federated),
            clock: Arc::clone(clock),
            until,
            until_boot: boot.saturating_add(until.since(now)),
            peer,
            changes,
        };
        // what has changed while hands were shaken
        session.check()?;
        Ok((stream, session))
    }

    /// The SVID that we show: the configured one, else the default one.
    fn key(&self, identities: &Identities) -> Option<(SpiffeId, Arc<SvidKey>)> {
        let own = match &self.spiffe_id {
            Some(spiffe_id) => spiffe_id,
            None => &identities.svids.first()?.spiffe_id,
        };
        let now = self.broker.now();
        identities.svid(own, now)?;
        let key = identities.keys.get(own).filter(|key| key.expires_at() > now)?;
        Some((own.clone(), Arc::clone(key)))
    }

    /// The library's settings for one connection: the verifier keeps what it saw, so it serves only one.
    fn config(&self, verifier: SvidVerifier, key: &SvidKey) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(Shown(Arc::clone(key.certified()))));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Shows one certificate, whatever name the client asks for: an SVID is no DNS name's.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Judges the peer's chain in one handshake, and keeps it.
struct SvidVerifier {
    identities: Arc<Identities>,
    federated: Arc<BTreeSet<TrustDomain>>,
    clock: SharedClock,
    provider: Arc<CryptoProvider>,
    peer: Arc<OnceLock<Arc<PeerSvid>>>,
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SvidVerifier")
    }
}

impl SvidVerifier {
    fn judge(&self, chain: Vec<Vec<u8>>) -> Result<PeerSvid, X509SvidError> {
        let now = self.clock.now();
        PeerSvid::verify(chain, &self.identities.x509_bundles, &self.identities.accepted(&self.federated, now), now)
    }
}

impl ClientCertVerifier for SvidVerifier {
    /// None: which authorities we trust is no matter of the client's.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|certificate| certificate.to_vec()).collect();
        let refused = |error| rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))));
        let peer = self.judge(chain).map_err(refused)?;
        match self.peer.set(Arc::new(peer)) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(_) => Err(rustls::Error::General("a second certificate in one handshake".into())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// One connection of mutual TLS: who is at the other end, and until when.
#[derive(Debug)]
pub(super) struct Session {
    peer: Arc<PeerSvid>,
    own: SpiffeId,
    federated: Arc<BTreeSet<TrustDomain>>,
    clock: SharedClock,
    /// The earlier of the ends of both SVIDs, on the wall clock and on the one that nobody can set.
    until: Timestamp,
    until_boot: Duration,
    changes: watch::Receiver<Arc<Identities>>,
}

impl Session {
    /// Who is at the other end.
    pub(super) fn peer(&self) -> &Arc<PeerSvid> {
        &self.peer
    }

    /// Returns, with the reason, once the connection must end.
    pub(super) async fn over(mut self) -> HandshakeError {
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
            return Err(HandshakeError::Svid(X509SvidError::Expired));
        }
        if identities.svid(&self.own, now).is_none() {
            return Err(HandshakeError::NoSvid);
        }
        let accepted = identities.accepted(&self.federated, now);
        self.peer.still_holds(&identities.x509_bundles, &accepted, now).map_err(HandshakeError::Svid)
    }
}

/// Who is at the other end of the request's connection, by mutual TLS.
pub(super) fn peer<B>(request: &Request<B>) -> Option<&Arc<PeerSvid>> {
    request.extensions().get()
}

/// Whether the request came by mutual TLS and brings a token or JWT-SVID of another workload than its peer: a
/// connection of one workload never serves another's.
pub(super) fn brings_foreign<B>(broker: &Broker, request: &Request<B>) -> bool {
    let Some(peer) = peer(request) else { return false };
    let own = peer.claims().spiffe_id();
    request.headers().get_all(AUTHORIZATION).iter().any(|value| {
        let Ok(text) = value.to_str() else { return true };
        let text = match text.split_once(' ') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest,
            _ => text,
        };
        if text.starts_with(PREFIX) {
            // a token of no task is refused as such later
            let task = TokenHash::of(text).and_then(|token| broker.tasks().by_token(&token));
            return task.is_some_and(|task| task.owner() != own);
        }
        let evidence = Evidence::JwtSvid(Secret::new(text.to_owned()));
        broker.caller(&evidence).is_ok_and(|caller| caller.spiffe_id() != own)
    })
}

#[cfg(test)]
mod tests;
