//! Whom TLS trusts and what it shows: roots, our X.509-SVID, and the settings of one connection.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use super::fault::{Fault, TlsFault};
use crate::clock::SharedClock;
use crate::identity::workload_api::{Identities, SvidKey, WorkloadApi};
use crate::identity::x509_svid::PeerSvid;
use crate::identity::x509_svid::handshake::{PeerError, ShownSvid, SvidVerifier};
use crate::identity::{SpiffeId, TrustDomain};

/// The largest file of roots, in bytes.
const MAX_PEM: u64 = 1 << 20;

/// Whom to trust and what to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// By what the server is known to be who it is.
    pub roots: Roots,
    /// What is presented to the server.
    pub client: Option<ClientSvid>,
}

/// By what the server is known to be who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The machine's roots.
    System,
    /// The roots in this PEM file, and no others; it is read again for each connection.
    Pem(PathBuf),
    /// The server is this workload, by the bundle of its trust domain (SPIFFE X509-SVID §5), whatever its host's name.
    Spiffe(SpiffeId),
}

/// Which of our X.509-SVIDs is presented. A rotated one is used from the next connection on, and ends the kept one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientSvid {
    /// The Workload API's default one.
    Default,
    /// That of this SPIFFE ID.
    Named(SpiffeId),
}

/// Why there can be no TLS with these settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The machine has no root that can be used.
    #[error("the system's roots: {0}")]
    SystemRoots(String),
    /// The file has none, or something else in it.
    #[error("{file}: {why}", file = .0.display(), why = .1)]
    PemRoots(PathBuf, String),
    /// SVIDs without a Workload API.
    #[error("SVIDs need the Workload API")]
    NoWorkloadApi,
}

/// Whom to trust and what to show, with what that is read from.
pub(super) struct Tls {
    roots: TrustedRoots,
    client: Option<ClientSvid>,
    workload_api: Option<Arc<dyn WorkloadApi>>,
    clock: SharedClock,
    provider: Arc<CryptoProvider>,
}

enum TrustedRoots {
    /// The machine's roots, read once.
    System(Arc<WebPkiServerVerifier>),
    /// A file's roots, read again for each connection: a mounted secret rotates.
    Pem { path: PathBuf, last: Mutex<(Vec<u8>, Arc<WebPkiServerVerifier>)> },
    /// The trust bundle of the server's SPIFFE ID.
    Spiffe(SpiffeId),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots = match &self.roots {
            TrustedRoots::System(_) => "system".to_owned(),
            TrustedRoots::Pem { path, .. } => path.display().to_string(),
            TrustedRoots::Spiffe(id) => id.to_string(),
        };
        f.debug_struct("Tls").field("roots", &roots).field("client", &self.client).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the roots.
    ///
    /// # Errors
    /// When there are none, or a Workload API is needed and not there.
    pub(super) fn new(
        settings: &TlsSettings,
        clock: SharedClock,
        workload_api: Option<Arc<dyn WorkloadApi>>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = match &settings.roots {
            Roots::System => TrustedRoots::System(verifier(system_roots()?, &provider).map_err(TlsError::SystemRoots)?),
            Roots::Pem(path) => {
                let pem = read_pem(path)?;
                let verifier = pem_verifier(path, &pem, &provider)?;
                TrustedRoots::Pem { path: path.clone(), last: Mutex::new((pem, verifier)) }
            }
            Roots::Spiffe(id) => TrustedRoots::Spiffe(id.clone()),
        };
        let needs_it = settings.client.is_some() || matches!(roots, TrustedRoots::Spiffe(_));
        if needs_it && workload_api.is_none() {
            return Err(TlsError::NoWorkloadApi);
        }
        Ok(Self { roots, client: settings.client.clone(), workload_api, clock, provider })
    }

    /// The settings for one new connection and what it will rest on. May read a file: not for the runtime's threads.
    pub(super) fn offer(&self) -> Result<(ClientConfig, Session), Fault> {
        let identities = self.workload_api.as_ref().map(|api| api.identities());
        let own = match &self.client {
            Some(client) => Some(self.own(client, identities.as_deref()).ok_or(Fault::NoSvid)?),
            None => None,
        };
        let mut peer = Arc::default();
        let with_svids = own.is_some() || matches!(self.roots, TrustedRoots::Spiffe(_));
        // In TLS 1.2 our certificate would be shown to the wire, and the server's judged by other rules.
        const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        let versions = if with_svids { TLS13 } else { rustls::DEFAULT_VERSIONS };
        let time = Arc::new(Time(Arc::clone(&self.clock)));
        let protocol = |error: rustls::Error| Fault::Tls(TlsFault::Protocol(error.to_string()));
        let builder = ClientConfig::builder_with_details(Arc::clone(&self.provider), time)
            .with_protocol_versions(versions)
            .map_err(protocol)?;
        let builder = match (&self.roots, identities) {
            (TrustedRoots::System(verifier), _) => builder.with_webpki_verifier(Arc::clone(verifier)),
            (TrustedRoots::Pem { path, last }, _) => builder.with_webpki_verifier(self.reread(path, last)),
            (TrustedRoots::Spiffe(id), identities) => {
                let verifier = self.svid_verifier(id, identities.unwrap_or_default());
                peer = verifier.peer();
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut config = match &own {
            Some((_, key)) => builder.with_client_cert_resolver(ShownSvid::new(key.certified())),
            None => builder.with_no_client_auth(),
        };
        // Each connection proves both sides anew.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok((config, Session { own, peer }))
    }

    /// The server is the workload `id`.
    fn svid_verifier(&self, id: &SpiffeId, identities: Arc<Identities>) -> SvidVerifier {
        let (id, clock) = (id.clone(), Arc::clone(&self.clock));
        SvidVerifier::new(&self.provider, move |chain| {
            let peer = PeerSvid::verify(chain, &identities.x509_bundles, &accepted(&id), clock.now())?;
            if *peer.claims().spiffe_id() == id { Ok(peer) } else { Err(PeerError::OtherWorkload) }
        })
    }

    /// Whether what `session` rests on would still be shown and trusted.
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
            (Some(peer), TrustedRoots::Spiffe(id)) => {
                peer.still_holds(&identities.x509_bundles, &accepted(id), now).is_ok()
            }
            _ => true,
        };
        own && peer
    }

    /// The SVID that we show.
    fn own(&self, client: &ClientSvid, identities: Option<&Identities>) -> Option<(SpiffeId, Arc<SvidKey>)> {
        let named = match client {
            ClientSvid::Default => None,
            ClientSvid::Named(id) => Some(id),
        };
        identities?.shown(named, self.clock.now())
    }

    /// The verifier of the file's roots as they are now. A file that is broken in the middle of its rotation changes
    /// nothing.
    fn reread(&self, path: &Path, last: &Mutex<(Vec<u8>, Arc<WebPkiServerVerifier>)>) -> Arc<WebPkiServerVerifier> {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = read_pem(path).and_then(|pem| {
            if pem == last.0 {
                return Ok(None);
            }
            let verifier = pem_verifier(path, &pem, &self.provider)?;
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
    peer: Arc<OnceLock<Arc<PeerSvid>>>,
}

fn accepted(id: &SpiffeId) -> BTreeSet<TrustDomain> {
    BTreeSet::from([id.trust_domain().clone()])
}

fn verifier(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, String> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| error.to_string())
}

/// The machine's roots.
///
/// # Errors
/// There are none: without one nobody is trusted, and that is told before anybody is asked.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // One root in a strange form must not take the others with it, as the other clients of the machine see it too.
    let (added, _) = store.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(TlsError::SystemRoots(why));
    }
    Ok(store)
}

fn read_pem(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |why: String| TlsError::PemRoots(path.to_owned(), why);
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(MAX_PEM + 1).read_to_end(&mut pem).map_err(|error| failed(error.to_string()))?;
    if pem.len() as u64 > MAX_PEM { Err(failed(format!("larger than {MAX_PEM} bytes"))) } else { Ok(pem) }
}

/// Every certificate of a file that somebody named must be good: a typo there is a mistake to be told.
fn pem_verifier(
    path: &Path,
    pem: &[u8],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let failed = |why: String| TlsError::PemRoots(path.to_owned(), why);
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        store.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(failed("no CERTIFICATE in it".to_owned()));
    }
    verifier(store, provider).map_err(failed)
}

/// The clock of the rest of the sidecar, for the ends of certificates.
#[derive(Debug)]
pub(crate) struct Time(pub(crate) SharedClock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.0.now().as_millis())))
    }
}
