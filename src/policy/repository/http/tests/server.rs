//! A server that says exactly what a test tells it to, and remembers what it was asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::clock::{Clock as _, ManualClock, Timestamp};
use crate::http_client::tls::Time;

/// One thing that the server does.
#[derive(Clone)]
pub(super) enum Act {
    Send(Vec<u8>),
    /// One byte every so often.
    Drip(Vec<u8>, Duration),
    /// The same again and again, until the client has gone.
    Flood(&'static [u8]),
    /// Nothing, until the client has gone.
    Stall,
    Close,
}

pub(super) fn send(text: impl AsRef<[u8]>) -> Act {
    Act::Send(text.as_ref().to_vec())
}

/// A whole answer with `Content-Length`.
pub(super) fn reply(status: &str, headers: &str, body: &str) -> Vec<Act> {
    vec![send(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()))]
}

#[derive(Default)]
struct State {
    /// For each coming connection what is done before anything is read; then for each coming question its answer.
    greetings: VecDeque<Vec<Act>>,
    answers: VecDeque<Vec<Act>>,
    questions: Vec<String>,
    /// The client's certificate of each connection, where there was one.
    peers: Vec<Option<Vec<u8>>>,
}

/// It ends with its value.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    pub(super) async fn start(clock: &ManualClock, tls: Option<ServerConfig>) -> Self {
        Self::at("127.0.0.1:0", clock, tls).await
    }

    pub(super) async fn at(address: &str, clock: &ManualClock, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(State::default())));
        let (shared, clock) = (Arc::clone(&state), clock.clone());
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Else the kernel holds a second small write back, for a time that no test's clock knows.
                stream.set_nodelay(true).unwrap();
                let (state, clock, acceptor) = (Arc::clone(&shared), clock.clone(), acceptor.clone());
                connections.spawn(async move {
                    let Some(acceptor) = acceptor else { return talk(stream, None, &state, &clock).await };
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let peer = stream.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec());
                    talk(stream, peer, &state, &clock).await;
                });
            }
        });
        Self { address, state, accepting }
    }

    /// What the next question is answered with; 404 where nothing is said.
    pub(super) fn answer(&self, acts: Vec<Act>) -> &Self {
        self.state.lock().unwrap().answers.push_back(acts);
        self
    }

    /// What the next connection is met with, before anything is read.
    pub(super) fn greet(&self, acts: Vec<Act>) -> &Self {
        self.state.lock().unwrap().greetings.push_back(acts);
        self
    }

    pub(super) fn questions(&self) -> Vec<String> {
        self.state.lock().unwrap().questions.clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.state.lock().unwrap().peers.len()
    }

    pub(super) fn peers(&self) -> Vec<Option<Vec<u8>>> {
        self.state.lock().unwrap().peers.clone()
    }
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Option<Vec<u8>>,
    state: &Mutex<State>,
    clock: &ManualClock,
) {
    let greeting = {
        let mut state = state.lock().unwrap();
        state.peers.push(peer);
        state.greetings.pop_front().unwrap_or_default()
    };
    if !act(&mut stream, greeting, clock).await {
        return;
    }
    while let Some(question) = read_head(&mut stream).await {
        let answer = {
            let mut state = state.lock().unwrap();
            state.questions.push(question);
            state.answers.pop_front().unwrap_or_else(|| reply("404 Not Found", "", "no such file"))
        };
        if !act(&mut stream, answer, clock).await {
            return;
        }
    }
}

/// Whether the connection goes on.
async fn act(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), acts: Vec<Act>, clock: &ManualClock) -> bool {
    for act in acts {
        let written = match act {
            Act::Send(bytes) => stream.write_all(&bytes).await,
            Act::Drip(bytes, every) => {
                for byte in bytes {
                    clock.sleep(every).await;
                    if stream.write_all(&[byte]).await.is_err() {
                        return false;
                    }
                }
                Ok(())
            }
            Act::Flood(bytes) => {
                while stream.write_all(bytes).await.is_ok() {}
                return false;
            }
            Act::Stall => {
                while stream.read_u8().await.is_ok() {}
                return false;
            }
            Act::Close => {
                // Already gone is just as well.
                let _ = stream.shutdown().await;
                return false;
            }
        };
        if written.is_err() || stream.flush().await.is_err() {
            return false;
        }
    }
    true
}

pub(super) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// An authority of the usual kind, for names of hosts.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new(now: Timestamp) -> Self {
        let mut params = valid(now - DAY, now + DAY);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        params.distinguished_name.push(DnType::CommonName, format!("Roots {:?}", &key.public_key_raw()[1..5]));
        let der = STANDARD.encode(params.self_signed(&key).unwrap().der());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n");
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server's settings with a certificate for `127.0.0.1`, `::1` and `policy.example`.
    pub(super) fn server(&self, from: Timestamp, until: Timestamp) -> ServerConfig {
        let mut params = valid(from, until);
        params.subject_alt_names = vec![
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()),
            SanType::DnsName("policy.example".try_into().unwrap()),
        ];
        self.serve(params)
    }

    /// The same for another host alone.
    pub(super) fn other_server(&self, now: Timestamp) -> ServerConfig {
        let mut params = valid(now - DAY, now + DAY);
        params.subject_alt_names = vec![SanType::DnsName("other.example".try_into().unwrap())];
        self.serve(params)
    }

    fn serve(&self, params: CertificateParams) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let builder = server_config(&ManualClock::at(Timestamp::default())).with_no_client_auth();
        builder.with_single_cert(vec![leaf.der().clone()], pkcs8(&key.serialize_der())).unwrap()
    }
}

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn server_config(clock: &ManualClock) -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_details(provider, Arc::new(Time(Arc::new(clock.clone()))))
        .with_safe_default_protocol_versions()
        .unwrap()
}

pub(super) fn pkcs8(der: &[u8]) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.to_vec()))
}

pub(super) fn chain(svid: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    svid.iter().cloned().map(CertificateDer::from).collect()
}

fn valid(from: Timestamp, until: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from.as_secs());
    params.not_after = epoch + Duration::from_secs(until.as_secs());
    params
}

/// A proxy that opens the tunnel it is asked for to `target`, whatever its name, and remembers the question.
pub(super) struct TunnelProxy {
    pub(super) address: SocketAddr,
    pub(super) heads: Arc<Mutex<Vec<String>>>,
    accepting: JoinHandle<()>,
}

impl Drop for TunnelProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl TunnelProxy {
    pub(super) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&heads);
        let accepting = tokio::spawn(async move {
            let mut tunnels = tokio::task::JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let seen = Arc::clone(&seen);
                tunnels.spawn(async move {
                    let Some(head) = read_head(&mut stream).await else { return };
                    seen.lock().unwrap().push(head);
                    let mut onward = TcpStream::connect(target).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
                });
            }
        });
        Self { address, heads, accepting }
    }
}
