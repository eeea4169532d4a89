//! X.509-SVIDs in a TLS handshake, on either side: how ours is shown ([`ShownSvid`]) and the peer's is judged
//! ([`SvidVerifier`]). TLS 1.3 alone: in TLS 1.2 a client's certificate crosses the wire in the clear.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};

use super::{PeerSvid, X509SvidError};

/// Why a peer is refused. It comes back out of the TLS library within an [`OtherError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It shows no X.509-SVID that is trusted here.
    #[error(transparent)]
    Svid(#[from] X509SvidError),
    /// It is another workload than the one that was expected.
    #[error("another workload than the one that was expected")]
    OtherWorkload,
}

/// Shows one certificate: to a server whichever authorities it hints at, to a client whatever name it asks for, since an SVID
/// is no DNS name's.
#[derive(Debug)]
pub struct ShownSvid(Arc<CertifiedKey>);

impl ShownSvid {
    /// Shows `certified`.
    pub fn new(certified: &Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self(Arc::clone(certified)))
    }
}

impl ResolvesClientCert for ShownSvid {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for ShownSvid {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// What judges a chain in DER, its leaf first.
type Judge = dyn Fn(Vec<Vec<u8>>) -> Result<PeerSvid, PeerError> + Send + Sync;

/// Judges the peer's chain in one handshake, and keeps it: it serves one connection.
pub struct SvidVerifier {
    judge: Box<Judge>,
    algorithms: WebPkiSupportedAlgorithms,
    peer: Arc<OnceLock<Arc<PeerSvid>>>,
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SvidVerifier")
    }
}

impl SvidVerifier {
    /// Asks `judge` about the chain; that the peer holds its key is checked by `provider`.
    pub fn new(
        provider: &CryptoProvider,
        judge: impl Fn(Vec<Vec<u8>>) -> Result<PeerSvid, PeerError> + Send + Sync + 'static,
    ) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { judge: Box::new(judge), algorithms, peer: Arc::default() }
    }

    /// Where the peer's SVID is once it is accepted.
    pub fn peer(&self) -> Arc<OnceLock<Arc<PeerSvid>>> {
        Arc::clone(&self.peer)
    }

    fn verify(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|certificate| certificate.to_vec()).collect();
        let refused = |error| rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))));
        let peer = (self.judge)(chain).map_err(refused)?;
        let second = |_| rustls::Error::General("a second certificate in one handshake".into());
        self.peer.set(Arc::new(peer)).map_err(second)
    }
}

/// The methods that both traits of the library have.
macro_rules! signatures_of_tls13 {
    () => {
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
            verify_tls13_signature(message, leaf, signed, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, intermediates).map(|()| ServerCertVerified::assertion())
    }

    signatures_of_tls13!();
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
        self.verify(leaf, intermediates).map(|()| ClientCertVerified::assertion())
    }

    signatures_of_tls13!();
}
