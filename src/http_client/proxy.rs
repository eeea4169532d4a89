//! An HTTP proxy that opens tunnels.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Request, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use zeroize::Zeroizing;

use super::connect::{Driver, HostPort, Stream, handshake};
use super::{Budget, Fault, Stage};
use crate::secret::Secret;

/// An HTTP proxy that opens tunnels (`CONNECT`, RFC 9110 §9.3.6): `http://[USER:PASSWORD@]HOST:PORT`.
#[derive(Clone)]
pub struct Proxy {
    host_port: HostPort,
    /// `USER:PASSWORD`, decoded.
    credentials: Option<Arc<Secret>>,
}

/// A text is no proxy's address. It quotes nothing of it, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a proxy is http://[USER:PASSWORD@]HOST:PORT, without a path")]
pub struct ProxyError;

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("host_port", &self.host_port).finish_non_exhaustive()
    }
}

impl PartialEq for Proxy {
    fn eq(&self, other: &Self) -> bool {
        let credentials = match (&self.credentials, &other.credentials) {
            // exposed: compared with its own kind, in constant time
            (Some(one), Some(other)) => one.matches(other.expose()),
            (one, other) => one.is_none() && other.is_none(),
        };
        credentials && self.host_port == other.host_port
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
        Ok(Self { host_port: HostPort::of(&uri, 80).ok_or(ProxyError)?, credentials })
    }
}

impl Proxy {
    /// Asks for a tunnel to `target`.
    pub(super) async fn tunnel(&self, target: &HostPort, budget: &Budget) -> Result<Stream, Fault> {
        let stream = self.host_port.connect(budget).await?;
        let broken = |error: hyper::Error| Fault::ProxyBroken(error.to_string());
        let ask = async {
            let (mut sender, connection) = handshake(stream).await.map_err(broken)?;
            let _driver = Driver::new(connection.with_upgrades());
            let response = sender.send_request(self.request(target)?).await.map_err(broken)?;
            if !response.status().is_success() {
                return Err(Fault::ProxyRefused(response.status().as_u16()));
            }
            hyper::upgrade::on(response).await.map_err(broken)
        };
        let upgraded = budget.step(Stage::Proxy, ask).await??;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    fn request(&self, target: &HostPort) -> Result<Request<Full<Bytes>>, Fault> {
        let failed = |error: http::Error| Fault::ProxyBroken(error.to_string());
        let authority = target.authority();
        let mut request = Request::connect(&authority).header(HOST, &authority).header(USER_AGENT, super::USER_AGENT);
        if let Some(credentials) = &self.credentials {
            // exposed: the proxy asks for them
            let encoded = Zeroizing::new(STANDARD.encode(credentials.expose()));
            let text = Zeroizing::new(format!("Basic {}", *encoded));
            let mut value = HeaderValue::from_str(&text).map_err(|error| failed(error.into()))?;
            value.set_sensitive(true);
            request = request.header(PROXY_AUTHORIZATION, value);
        }
        request.body(Full::default()).map_err(failed)
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
