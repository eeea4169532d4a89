//! One connection to the repository's host: TCP, the proxy's tunnel, TLS, HTTP/1.1 upon them.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Request, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::fault::{HttpFault, MAX_HEAD, MAX_HEADERS, Stage};
use super::trust::{Session, Trust};
use super::{Pace, USER_AGENT_TEXT};
use crate::clock::within;
use crate::secret::Secret;

/// The most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// A host and port to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// A name or a literal address, the latter without brackets.
    host: String,
    port: u16,
}

impl Place {
    /// The host and port of `uri`, or `port` where it names none.
    pub(super) fn of(uri: &Uri, port: u16) -> Option<Self> {
        let host = uri.host().filter(|host| !host.is_empty())?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        // `port_u16` is also `None` for a port that is no number up to 65535.
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            None => port,
        };
        (port != 0).then(|| Self { host: bare.to_owned(), port })
    }

    /// Whether it can only be this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.host.parse::<IpAddr>().map_or(self.host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
    }

    /// `host:port`, IPv6 in brackets.
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Connects to the first address that accepts; each gets its part of the time, so that one that swallows packets
    /// does not hide the others.
    async fn connect(&self, pace: &Pace<'_>) -> Result<TcpStream, HttpFault> {
        let addresses = pace.within(Stage::Connect, self.addresses()).await??;
        let count = u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let each = pace.stage() / count;
        let mut last = HttpFault::Slow(Stage::Connect);
        for address in addresses {
            match within(pace.clock, each.min(pace.left(0)), TcpStream::connect(address)).await {
                Some(Ok(stream)) => {
                    // Questions are one packet each.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Some(Err(error)) => last = HttpFault::Connect(error.kind().to_string()),
                None => last = HttpFault::Slow(Stage::Connect),
            }
        }
        Err(last)
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, HttpFault> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let failed = |error: io::Error| HttpFault::Resolve(error.to_string());
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(failed)?;
        let found: Vec<_> = found.take(MAX_ADDRESSES).collect();
        if found.is_empty() { Err(HttpFault::Resolve("it has no address".to_owned())) } else { Ok(found) }
    }
}

/// An HTTP proxy that opens tunnels (`CONNECT`, RFC 9110 §9.3.6): `http://[USER:PASSWORD@]HOST:PORT`.
#[derive(Clone)]
pub struct Proxy {
    place: Place,
    /// `USER:PASSWORD`, decoded.
    credentials: Option<Arc<Secret>>,
}

/// A text is no proxy's address. It quotes nothing of it, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a proxy is http://[USER:PASSWORD@]HOST:PORT, without a path")]
pub struct ProxyError;

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("place", &self.place).finish_non_exhaustive()
    }
}

impl PartialEq for Proxy {
    fn eq(&self, other: &Self) -> bool {
        let credentials = match (&self.credentials, &other.credentials) {
            // exposed: compared with its own kind, in constant time
            (Some(one), Some(other)) => one.matches(other.expose()),
            (one, other) => one.is_none() && other.is_none(),
        };
        credentials && self.place == other.place
    }
}

impl Eq for Proxy {}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let rest = text.strip_prefix("http://").ok_or(ProxyError)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| ProxyError)?;
        if authority.contains(['/', '?', '#']) || uri.port_u16().is_none() {
            return Err(ProxyError);
        }
        let credentials = user.map(percent_decoded).transpose()?.map(|user| Arc::new(Secret::new(user)));
        Ok(Self { place: Place::of(&uri, 80).ok_or(ProxyError)?, credentials })
    }
}

impl Proxy {
    /// Asks for a tunnel to `target`.
    async fn tunnel(&self, target: &Place, pace: &Pace<'_>) -> Result<Stream, HttpFault> {
        let stream = self.place.connect(pace).await?;
        let broken = |error: hyper::Error| HttpFault::ProxyBroken(error.to_string());
        let ask = async {
            let (mut sender, connection) = handshake(Box::new(stream)).await.map_err(broken)?;
            let _connection = Spawned::new(async { connection.with_upgrades().await });
            let response = sender.send_request(self.question(target)?).await.map_err(broken)?;
            if !response.status().is_success() {
                return Err(HttpFault::ProxyRefused(response.status().as_u16()));
            }
            hyper::upgrade::on(response).await.map_err(broken)
        };
        let upgraded = pace.within(Stage::Proxy, ask).await??;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    fn question(&self, target: &Place) -> Result<Request<Empty<Bytes>>, HttpFault> {
        let failed = |error: http::Error| HttpFault::ProxyBroken(error.to_string());
        let authority = target.authority();
        let mut request = Request::connect(&authority).header(HOST, &authority).header(USER_AGENT, USER_AGENT_TEXT);
        if let Some(credentials) = &self.credentials {
            // exposed: the proxy asks for them
            let encoded = Zeroizing::new(STANDARD.encode(credentials.expose()));
            let text = Zeroizing::new(format!("Basic {}", *encoded));
            let mut value = HeaderValue::from_str(&text).map_err(|error| failed(error.into()))?;
            value.set_sensitive(true);
            request = request.header(PROXY_AUTHORIZATION, value);
        }
        request.body(Empty::new()).map_err(failed)
    }
}

/// Decodes `%40` and its kin.
fn percent_decoded(text: &str) -> Result<String, ProxyError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).ok_or(ProxyError);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).map_err(|_| ProxyError)?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| ProxyError)
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type Stream = Box<dyn Io>;

/// A background task that ends with its owner.
#[derive(Debug)]
pub(super) struct Spawned(AbortHandle);

impl Spawned {
    fn new<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Empty<Bytes>>,
    /// When it was opened and last used, by the clock that never goes back.
    pub(super) opened: Duration,
    pub(super) used: Duration,
    /// What its TLS rests on.
    pub(super) session: Option<Session>,
    _connection: Spawned,
}

type Driver = http1::Connection<TokioIo<Stream>, Empty<Bytes>>;

/// Limits what of an answer's head is held in memory.
async fn handshake(stream: Stream) -> hyper::Result<(http1::SendRequest<Empty<Bytes>>, Driver)> {
    http1::Builder::new().max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS).handshake(TokioIo::new(stream)).await
}

/// Opens a connection to `place`.
pub(super) async fn open(
    place: &Place,
    proxy: Option<&Proxy>,
    trust: Option<&Arc<Trust>>,
    pace: &Pace<'_>,
) -> Result<Connection, HttpFault> {
    let stream: Stream = match proxy {
        Some(proxy) => proxy.tunnel(place, pace).await?,
        None => Box::new(place.connect(pace).await?),
    };
    let (stream, session) = match trust {
        Some(trust) => {
            let (stream, session) = pace.within(Stage::Handshake, secure(stream, place, trust)).await??;
            (stream, Some(session))
        }
        None => (stream, None),
    };
    let (sender, connection) = handshake(stream).await.map_err(|error| HttpFault::of_head(&error))?;
    let now = pace.clock.boot();
    // Its error shows at the request that waits for it.
    Ok(Connection { sender, opened: now, used: now, session, _connection: Spawned::new(connection) })
}

async fn secure(stream: Stream, place: &Place, trust: &Arc<Trust>) -> Result<(Stream, Session), HttpFault> {
    let offering = Arc::clone(trust);
    let offer = tokio::task::spawn_blocking(move || offering.offer()).await;
    let (config, session) = offer.map_err(|_| HttpFault::Closed)??;
    let name = ServerName::try_from(place.host.clone())
        .map_err(|_| HttpFault::Resolve("it is no name that TLS knows".to_owned()))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok((Box::new(connected.map_err(|error| HttpFault::of_handshake(&error))?), session))
}
