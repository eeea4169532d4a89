//! Full handshakes of mutual TLS, beside bare rustls with the same certificates.

use std::error::Error;
use std::io::{self, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, StreamOwned,
};
use serde_json::{Value, json};
use sidemint::identity::workload_api::client::X509Material;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;

use crate::report::Outcome;
use crate::serving::{BareServer, Side, in_turns, on_cpu};
use crate::stage::{Sidecar, Stage, cores};
use crate::{median, over_rounds};

/// What makes this program be the bare server.
pub(crate) const BARE: &str = "--bare-rustls";
/// So many shake hands at a time: enough that the server never waits for one of them.
const CLIENTS: usize = 16;
const ROUND: Duration = Duration::from_millis(500);
const WARM_UP: Duration = Duration::from_millis(100);
const COUNTED: &str = "sidemint_tls_handshakes_total{outcome=\"ok\"}";

type Fallible<T> = Result<T, Box<dyn Error>>;
/// Handshakes per second, and the server's own time on a core for each, in microseconds.
type Figures = (f64, f64);

/// The sidecar's listener of mutual TLS and the bare server; both on the same core, one resting while the other works.
struct Pair {
    sidecar: Sidecar,
    bare: BareServer,
    client: Arc<ClientConfig>,
    shaken: AtomicU64,
    _stage: Stage,
}

pub(crate) fn mutual() -> Outcome {
    let stage = Stage::new(100)?;
    let svid = stage.x509_svid()?;
    let (core, _) = cores();
    let sidecar = Sidecar::start(&stage, core)?;
    let bare = BareServer::start(core, BARE, to_json(&svid).to_string().as_bytes())?;
    let pair = Pair { sidecar, bare, client: Arc::new(client(&svid)?), shaken: AtomicU64::new(0), _stage: stage };
    let rounds = in_turns(|side| pair.round(side))?;
    // A client of TLS 1.3 is done before the server has judged it.
    let (counted, shaken) = (pair.sidecar.counted(COUNTED)?, pair.shaken.load(Ordering::Relaxed) as f64);
    if counted < shaken {
        return Err(format!("the sidecar accepted {counted} of {shaken} handshakes").into());
    }
    let of = |pick: fn(&(Figures, Figures)) -> f64| median(rounds.iter().map(pick).collect());
    let note = format!(
        "{:.0}/s beside {:.0}/s; on the core {:.1} µs beside {:.1} µs each",
        of(|round| round.0.0),
        of(|round| round.1.0),
        of(|round| round.0.1),
        of(|round| round.1.1),
    );
    over_rounds(rounds.iter().map(|(sidecar, bare)| sidecar.0 / bare.0).collect(), note)
}

impl Pair {
    fn round(&self, side: Side) -> io::Result<Figures> {
        let (address, pid) = match side {
            Side::Sidecar => (self.sidecar.mtls, self.sidecar.pid()),
            Side::Bare => (self.bare.address, self.bare.pid()),
        };
        let warmed = shake_hands(address, &self.client, WARM_UP)?;
        let (before, began) = (on_cpu(pid), Instant::now());
        let count = shake_hands(address, &self.client, ROUND)?;
        let (spent, took) = (on_cpu(pid) - before, began.elapsed());
        if matches!(side, Side::Sidecar) {
            self.shaken.fetch_add(warmed + count, Ordering::Relaxed);
        }
        Ok((count as f64 / took.as_secs_f64(), spent * 1e6 / count as f64))
    }
}

/// Many clients for `duration`, each one connection after the other; how many handshakes that were.
fn shake_hands(address: SocketAddr, config: &Arc<ClientConfig>, duration: Duration) -> io::Result<u64> {
    let began = Instant::now();
    let one_after_the_other = || {
        let mut count = 0;
        while began.elapsed() < duration {
            shake(address, config)?;
            count += 1;
        }
        Ok(count)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(one_after_the_other)).collect();
        clients.into_iter().map(|client| client.join().unwrap_or_else(|_| Err(io::Error::other("a crash")))).sum()
    })
}

/// One handshake and a farewell, which the server answers once it has accepted the client.
fn shake(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<()> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let name = ServerName::try_from("sidemint.invalid").map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    stream.conn.send_close_notify();
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut stream.sock)?;
    }
    stream.sock.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0; 16]) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Ok(_) => Err(io::Error::other("the server spoke unasked")),
        Err(error) => Err(error),
    }
}

fn client(svid: &X509Material) -> Fallible<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)))
        .with_client_auth_cert(chain(&svid.chain), key(svid.private_key.as_ref()))?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Trusts every server: what a client costs is not what is measured.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn chain(ders: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    ders.iter().cloned().map(CertificateDer::from).collect()
}

fn key(pkcs8: &[u8]) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(pkcs8.to_vec()).into()
}

fn to_json(svid: &X509Material) -> Value {
    let encoded = |ders: &[Vec<u8>]| ders.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>();
    let key = STANDARD.encode(svid.private_key.as_ref());
    json!({ "chain": encoded(&svid.chain), "roots": encoded(&svid.bundle), "key": key })
}

/// Is bare rustls: the SVID comes on standard input, the address goes to standard output.
pub(crate) fn bare(input: Vec<u8>) -> Fallible<()> {
    let told: Value = serde_json::from_slice(&input)?;
    let decode = |value: &Value| Ok::<_, Box<dyn Error>>(STANDARD.decode(value.as_str().unwrap_or_default())?);
    let all = |name: &str| {
        let list = told.get(name).and_then(Value::as_array).ok_or("no such list")?;
        list.iter().map(decode).collect::<Fallible<Vec<_>>>()
    };
    let mut roots = RootCertStore::empty();
    for root in chain(&all("roots")?) {
        roots.add(root)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(&all("chain")?), key(&decode(told.get("key").unwrap_or_default())?))?;
    // As the sidecar's: every handshake is a full one, and nothing is sent after it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // The sidecar's runtime, see `Cli::runtime`.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(accept_all(TlsAcceptor::from(Arc::new(config))))
}

async fn accept_all(acceptor: TlsAcceptor) -> Fallible<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut stream = acceptor.accept(stream).await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            stream.shutdown().await
        });
    }
}
