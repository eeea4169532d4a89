//! What is believed of the server and shown to it: roots, our X.509-SVID, and the settings of one TLS connection.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};

use super::fault::{HttpFault, TlsFault};
use super::{ClientSvid, HttpError, HttpSettings, Roots};
use crate::clock::{SharedClock, Timestamp};
use crate::identity::SpiffeId;
use crate::identity::workload_api::{Identities, SvidKey, WorkloadApi};
use crate::identity::x509_svid::PeerSvid;

/// The largest file of roots, in bytes.
const MAX_PEM: u64 = 1 << 20;

/// What is believed and shown.
pub(super) struct Trust {
    roots: Believed,
    client: Option<ClientSvid>,
    workload_api: Option<Arc<dyn WorkloadApi>>,
    clock: SharedClock,
    provider: Arc<CryptoProvider>,
}

enum Believed {
    /// The machine's roots, read once.
    System(Arc<WebPkiServerVerifier>),
    /// A file's roots, read again for each connection: a mounted secret rotates.
    Pem { path: PathBuf, last: Mutex<(Vec<u8>, Arc<WebPkiServerVerifier>)> },
    /// The trust bundle of the server's SPIFFE ID.
    Spiffe(SpiffeId),
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots = match &self.roots {
            Believed::System(_) => "system".to_owned(),
            Believed::Pem { path, .. } => path.display().to_string(),
            Believed::Spiffe(id) => id.to_string(),
        };
        f.debug_struct("Trust").field("roots", &roots).field("client", &self.client).finish_non_exhaustive()
    }
}

impl Trust {
    /// Reads the roots.
    ///
    /// # Errors
    /// When there are none, or a Workload API is needed and not there.
    pub(super) fn new(
        settings: &HttpSettings,
        clock: SharedClock,
        workload_api: Option<Arc<dyn WorkloadApi>>,
    ) -> Result<Self, HttpError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = match &settings.roots {
            Roots::System => Believed::System(verifier(system_roots()?, &provider)?),
            Roots::Pem(path) => {
                let pem = read_pem(path)?;
                let verifier = verifier(parse_pem(path, &pem)?, &provider)?;
                Believed::Pem { path: path.clone(), last: Mutex::new((pem, verifier)) }
            }
            Roots::Spiffe(id) => Believed::Spiffe(id.clone()),
        };
        let needs_it = settings.client.is_some() || matches!(roots, Believed::Spiffe(_));
        if needs_it && workload_api.is_none() {
            return Err(HttpError::NoWorkloadApi);
        }
        Ok(Self { roots, client: settings.client.clone(), workload_api, clock, provider })
    }

    /// The settings for one new connection and what it will rest on. May read a file: not for the runtime's threads.
    pub(super) fn offer(&self) -> Result<(ClientConfig, Session), HttpFault> {
        let identities = self.workload_api.as_ref().map(|api| api.identities());
        let own = match &self.client {
            Some(client) => Some(self.own(client, identities.as_deref()).ok_or(HttpFault::NoSvid)?),
            None => None,
        };
        let peer = Arc::new(OnceLock::new());
        let with_svids = own.is_some() || matches!(self.roots, Believed::Spiffe(_));
        // In TLS 1.2 our certificate would be shown to the wire, and the server's judged by other rules.
        const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        let versions = if with_svids { TLS13 } else { rustls::DEFAULT_VERSIONS };
        let time = Arc::new(Time(Arc::clone(&self.clock)));
        let protocol = |error: rustls::Error| HttpFault::Tls(TlsFault::Protocol(error.to_string()));
        let builder = ClientConfig::builder_with_details(Arc::clone(&self.provider), time)
            .with_protocol_versions(versions)
            .map_err(protocol)?;
        let builder = match (&self.roots, identities) {
            (Believed::System(verifier), _) => builder.with_webpki_verifier(Arc::clone(verifier)),
            (Believed::Pem { path, last }, _) => builder.with_webpki_verifier(self.reread(path, last)),
            (Believed::Spiffe(id), identities) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(SvidVerifier {
                    id: id.clone(),
                    identities: identities.unwrap_or_default(),
                    clock: Arc::clone(&self.clock),
                    provider: Arc::clone(&self.provider),
                    peer: Arc::clone(&peer),
                }))
            }
        };
        let mut config = match &own {
            Some((_, key)) => builder.with_client_cert_resolver(Arc::new(Shown(Arc::clone(key.certified())))),
            None => builder.with_no_client_auth(),
        };
        // Each connection proves both sides anew.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok((config, Session { own, peer }))
    }

    /// Whether what `session` rests on would still be shown and believed.
    pub(super) fn still_holds(&self, session: &Session) -> bool {
        let Some(api) = &self.workload_api else { return true };
        let (identities, now) = (api.identities(), self.clock.now());
        let own = match (&session.own, &self.client) {
            (Some((id, key)), Some(client)) => self
                .own(client, Some(&identities))
                .is_some_and(|(now_id, now_key)| now_id == *id && Arc::ptr_eq(&now_key, key)),
            _ => true,
        };
        let peer = match (session.peer.get(), &self.roots) {
            (Some(peer), Believed::Spiffe(id)) => {
                peer.still_holds(&identities.x509_bundles, &accepted(id), now).is_ok()
            }
            _ => true,
        };
        own && peer
    }

    /// The SVID that we show.
    fn own(&self, client: &ClientSvid, identities: Option<&Identities>) -> Option<(SpiffeId, Arc<SvidKey>)> {
        let identities = identities?;
        let id = match client {
            ClientSvid::Default => &identities.svids.first()?.spiffe_id,
            ClientSvid::Named(id) => id,
        };
        let now: Timestamp = self.clock.now();
        identities.svid(id, now)?;
        let key = identities.keys.get(id).filter(|key| key.expires_at() > now)?;
        Some((id.clone(), Arc::clone(key)))
    }

    /// The verifier of the file's roots as they are now. A file that is broken in the middle of its rotation changes
    /// nothing.
    fn reread(&self, path: &Path, last: &Mutex<(Vec<u8>, Arc<WebPkiServerVerifier>)>) -> Arc<WebPkiServerVerifier> {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = read_pem(path).and_then(|pem| {
            if pem == last.0 {
                return Ok(None);
            }
            let verifier = verifier(parse_pem(path, &pem)?, &self.provider)?;
            Ok(Some((pem, verifier)))
        });
        match fresh {
            Ok(Some(fresh)) => *last = fresh,
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the roots that were read before are used"),
        }
        Arc::clone(&last.1)
    }
}

/// What one connection rests on.
#[derive(Debug)]
pub(super) struct Session {
    own: Option<(SpiffeId, Arc<SvidKey>)>,
    peer: Arc<OnceLock<PeerSvid>>,
}

fn accepted(id: &SpiffeId) -> BTreeSet<crate::identity::TrustDomain> {
    BTreeSet::from([id.trust_domain().clone()])
}

fn verifier(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, HttpError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| HttpError::Roots(error.to_string()))
}

fn system_roots() -> Result<RootCertStore, HttpError> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // One root in a strange form must not take the others with it, as the other clients of the machine see it too.
    let (added, _) = store.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(HttpError::Roots(format!("the system's roots: {why}; name a file of roots with policy.ca")));
    }
    Ok(store)
}

fn read_pem(path: &Path) -> Result<Vec<u8>, HttpError> {
    let failed = |error: std::io::Error| HttpError::Roots(format!("{}: {error}", path.display()));
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_PEM + 1).read_to_end(&mut pem).map_err(failed)?;
    if pem.len() as u64 > MAX_PEM {
        return Err(HttpError::Roots(format!("{}: larger than {MAX_PEM} bytes", path.display())));
    }
    Ok(pem)
}

/// Every certificate of a file that somebody named must be good: a typo there is a mistake to be told.
fn parse_pem(path: &Path, pem: &[u8]) -> Result<RootCertStore, HttpError> {
    let failed = |why: String| HttpError::Roots(format!("{}: {why}", path.display()));
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        store.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(failed("no CERTIFICATE in it".to_owned()));
    }
    Ok(store)
}

/// The clock of the rest of the sidecar, for the ends of certificates.
#[derive(Debug)]
pub(super) struct Time(pub(super) SharedClock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.0.now().as_millis())))
    }
}

/// Shows one certificate, whichever authorities the server hints at.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Judges the server's chain as the X.509-SVID of one workload, and keeps it. It serves one connection.
struct SvidVerifier {
    id: SpiffeId,
    identities: Arc<Identities>,
    clock: SharedClock,
    provider: Arc<CryptoProvider>,
    peer: Arc<OnceLock<PeerSvid>>,
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SvidVerifier({})", self.id)
    }
}

impl SvidVerifier {
    fn judge(&self, chain: Vec<Vec<u8>>) -> Result<PeerSvid, TlsFault> {
        let bundles = &self.identities.x509_bundles;
        let peer = PeerSvid::verify(chain, bundles, &accepted(&self.id), self.clock.now()).map_err(TlsFault::Svid)?;
        if *peer.claims().spiffe_id() == self.id { Ok(peer) } else { Err(TlsFault::OtherWorkload) }
    }
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
        let chain = std::iter::once(leaf).chain(intermediates).map(|certificate| certificate.to_vec()).collect();
        let refused = |error| rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))));
        let peer = self.judge(chain).map_err(refused)?;
        match self.peer.set(peer) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
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
