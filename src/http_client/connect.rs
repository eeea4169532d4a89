//! One connection: whom to, TCP, the proxy's tunnel, TLS, HTTP/1.1 upon them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::header::HeaderValue;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use super::fault::{Fault, MAX_HEAD, MAX_HEADERS, Stage};
use super::tls::{Session, Tls};
use super::{Budget, HttpClient, Target};
use crate::clock::within;

/// The most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// A host and a port to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// A name or a literal address, the latter without brackets.
    host: String,
    port: u16,
}

impl HostPort {
    /// `host` may be a literal IPv6 address in brackets.
    pub fn new(host: &str, port: u16) -> Self {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        Self { host: bare.to_owned(), port }
    }

    /// The host and port of `uri`, or `port` where it names none. `None` where one of them cannot be.
    pub(super) fn of(uri: &Uri, port: u16) -> Option<Self> {
        let host = uri.host().filter(|host| !host.is_empty())?;
        // `port_u16` is also `None` for a port that is no number up to 65535.
        let port = uri.port().map_or(port, |port| port.as_u16());
        (port != 0).then(|| Self::new(host, port))
    }

    /// `host:port`, IPv6 in brackets.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Connects to the first address that accepts; each gets its part of the time, so that one that swallows packets
    /// does not hide the others.
    pub(super) async fn connect(&self, budget: &Budget) -> Result<Stream, Fault> {
        let addresses = budget.step(Stage::Connect, self.addresses()).await??;
        let count = u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let each = budget.limits.step / count;
        let mut last = Fault::Slow(Stage::Connect);
        for address in addresses {
            match within(&*budget.clock, each.min(budget.left(0)), TcpStream::connect(address)).await {
                Some(Ok(stream)) => {
                    // Requests are one packet each.
                    let _ = stream.set_nodelay(true);
                    return Ok(Box::new(stream));
                }
                Some(Err(error)) => last = Fault::of_connect(&error),
                None => last = Fault::Slow(Stage::Connect),
            }
        }
        Err(last)
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, Fault> {
        let known = match self.host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => loopback_addresses(&self.host),
        };
        if !known.is_empty() {
            return Ok(known.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect());
        }
        let failed = |error: io::Error| Fault::Resolve(error.to_string());
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(failed)?;
        let found: Vec<_> = found.take(MAX_ADDRESSES).collect();
        if found.is_empty() { Err(Fault::Resolve("it has no address".to_owned())) } else { Ok(found) }
    }
}

/// A scheme, a host and a port (RFC 9110 §4.3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub(super) host_port: HostPort,
    /// How the server's certificate must name the host; `None` for plain `http`.
    pub(super) name: Option<ServerName<'static>>,
    /// As it was written, for the `Host` header.
    authority: HeaderValue,
}

/// A text is no origin that can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginError {
    /// Not `https://HOST[:PORT]` or `http://HOST[:PORT]`, or more than that.
    Form,
    /// Plain `http` to another host.
    PlainHttp,
}

impl Origin {
    /// Reads `https://HOST[:PORT]` with nothing behind it; plain `http` for loopback alone.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        let uri: Uri = text.parse().map_err(|_| OriginError::Form)?;
        let origin = Self::of(&uri)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            return Err(OriginError::Form);
        }
        if origin.is_secure() || origin.is_loopback() { Ok(origin) } else { Err(OriginError::PlainHttp) }
    }

    /// The origin of `uri`, whatever else that names.
    ///
    /// # Errors
    /// [`OriginError::Form`]: another scheme, no host, a user, or a port that is none.
    pub fn of(uri: &Uri) -> Result<Self, OriginError> {
        let plain = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = plain.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let authority = authority.ok_or(OriginError::Form)?;
        let (secure, default_port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(OriginError::Form),
        };
        let host_port = HostPort::of(uri, default_port).ok_or(OriginError::Form)?;
        let name = ServerName::try_from(host_port.host.clone()).ok().filter(|_| secure);
        if secure && name.is_none() {
            return Err(OriginError::Form);
        }
        Ok(Self { host_port, name, authority })
    }

    /// Whether it is asked by TLS.
    pub fn is_secure(&self) -> bool {
        self.name.is_some()
    }

    /// Whether it can only be this machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host_port.host)
    }

    /// What the `Host` header says.
    pub fn authority(&self) -> &HeaderValue {
        &self.authority
    }
}

/// Whether `host`, a literal address or a name, can only be this machine: a loopback address, or `localhost`, which is
/// never looked up.
pub fn is_loopback(host: &str) -> bool {
    !loopback_addresses(host).is_empty()
}

/// The addresses of a host that can only be this machine, in the order to try them; none of any other.
pub fn loopback_addresses(host: &str) -> Vec<IpAddr> {
    if host.eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    let ip = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => host.parse(),
    };
    ip.into_iter().filter(IpAddr::is_loopback).collect()
}

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
pub(super) type Stream = Box<dyn Io>;

/// The background work of a connection, which ends with its owner.
#[derive(Debug)]
pub(super) struct Driver(AbortHandle);

impl Driver {
    pub(super) fn new<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Full<Bytes>>,
    /// When it was opened and last used, by the clock that never goes back.
    pub(super) opened: Duration,
    pub(super) used: Duration,
    /// What its TLS rests on.
    pub(super) session: Option<Session>,
    _driver: Driver,
}

/// Limits what of an answer's head is held in memory.
pub(super) async fn handshake(
    stream: Stream,
) -> hyper::Result<(http1::SendRequest<Full<Bytes>>, http1::Connection<TokioIo<Stream>, Full<Bytes>>)> {
    http1::Builder::new().max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS).handshake(TokioIo::new(stream)).await
}

impl HttpClient {
    /// Opens a connection.
    pub(super) async fn open(&self, budget: &Budget) -> Result<Connection, Fault> {
        let stream = match (&self.target, &self.proxy) {
            (Target::Unix(path), _) => {
                let stream = budget.step(Stage::Connect, UnixStream::connect(path)).await?;
                Box::new(stream.map_err(|error| Fault::of_connect(&error))?)
            }
            (Target::Tcp(host_port), None) => host_port.connect(budget).await?,
            (Target::Tcp(host_port), Some(proxy)) => proxy.tunnel(host_port, budget).await?,
        };
        let (stream, session) = match &self.tls {
            None => (stream, None),
            Some((name, tls)) => {
                let secured = secure(stream, name.clone(), Arc::clone(tls));
                let (stream, session) = budget.step(Stage::Handshake, secured).await??;
                (stream, Some(session))
            }
        };
        let (sender, connection) = handshake(stream).await.map_err(|error| Fault::of_head(&error))?;
        let now = budget.clock.boot();
        // Its error shows at the request that waits for it.
        Ok(Connection { sender, opened: now, used: now, session, _driver: Driver::new(connection) })
    }
}

async fn secure(stream: Stream, name: ServerName<'static>, tls: Arc<Tls>) -> Result<(Stream, Session), Fault> {
    let offer = tokio::task::spawn_blocking(move || tls.offer()).await;
    let (config, session) = offer.map_err(|_| Fault::Closed)??;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok((Box::new(connected.map_err(|error| Fault::of_handshake(&error))?), session))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_https_or_loopback_and_nothing_more() {
        for good in [
            "https://vault.example.org",
            "https://vault.example.org:8200/",
            "http://127.0.0.1:8200",
            "http://[::1]:1",
            "http://localhost",
        ] {
            assert!(Origin::parse(good).is_ok(), "{good}");
        }
        for (wrong, error) in [
            ("http://vault.example.org", OriginError::PlainHttp),
            ("http://127.0.0.1.example.org", OriginError::PlainHttp),
            ("vault:8200", OriginError::Form),
            ("https://u@v", OriginError::Form),
            ("https://v/v1", OriginError::Form),
            ("https://v?x", OriginError::Form),
            ("https://v#x", OriginError::Form),
            ("https://v:0", OriginError::Form),
            ("", OriginError::Form),
            ("ftp://127.0.0.1", OriginError::Form),
            ("https://", OriginError::Form),
        ] {
            assert_eq!(Origin::parse(wrong), Err(error), "{wrong}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LocalHost"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "0.0.0.0", "::", "localhost.", "localhost.example", "10.0.0.1", "[127.0.0.1]", "127.1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
