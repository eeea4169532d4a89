//! One request to Vault, and its whole answer: one connection each, no proxy, no redirect, every wait and body bounded.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::SettingsError;
use super::fault::{Fault, Remedy, Step};
use crate::clock::{Clock, within};
use crate::secret::{Secret, SecretBytes};

/// The longest answer that is read, in bytes. Real ones have less than 4 KiB.
pub const MAX_ANSWER: usize = 64 * 1024;
/// The most bytes of an answer's head.
const MAX_HEAD: usize = 32 * 1024;
const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Vault's agents and proxies may insist on it (API documentation, "The X-Vault-Request Header").
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// Where Vault is, and how it is reached.
pub(super) struct Client {
    host: String,
    port: u16,
    authority: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("authority", &self.authority).field("tls", &self.tls.is_some()).finish()
    }
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) step: Step,
    pub(super) method: Method,
    /// Below `/v1/`; of characters that need no escape.
    pub(super) path: &'a str,
    pub(super) token: Option<&'a Secret>,
    pub(super) namespace: Option<&'a str>,
    /// JSON.
    pub(super) body: Option<SecretBytes>,
}

/// A success.
pub(super) struct Reply {
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Client {
    /// Reads the address and the roots; nothing is called yet.
    pub(super) fn new(address: &str, ca: Option<&Path>) -> Result<Self, SettingsError> {
        let uri: Uri = address.parse().map_err(|_| SettingsError::Address)?;
        let authority = uri.authority().ok_or(SettingsError::Address)?;
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !address.contains(['#', '@']);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if !bare || host.is_empty() {
            return Err(SettingsError::Address);
        }
        let (tls, default_port) = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| SettingsError::Address)?;
                (Some((TlsConnector::from(Arc::new(config(ca)?)), name)), 443)
            }
            Some("http") if is_loopback(&host) => (None, 80),
            Some("http") => return Err(SettingsError::PlainHttp),
            _ => return Err(SettingsError::Address),
        };
        let port = authority.port_u16().unwrap_or(default_port);
        let authority = HeaderValue::from_str(authority.as_str()).map_err(|_| SettingsError::Address)?;
        Ok(Self { host, port, authority, tls })
    }

    /// Sends `call` and reads the answer within `limit`; a success is any status from 200 to 299.
    pub(super) async fn send(&self, clock: &dyn Clock, call: Call<'_>, limit: Duration) -> Result<Reply, Fault> {
        let step = call.step;
        let request = self.request(call)?;
        within(clock, limit, self.exchange(step, request))
            .await
            .unwrap_or_else(|| Err(Fault::new(Remedy::Retry, "Vault did not answer in time")))
    }

    fn request(&self, call: Call<'_>) -> Result<Request<Full<bytes::Bytes>>, Fault> {
        let unusable = |_| Fault::nonsense(call.step, "the request could not be made");
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("/v1/{}", call.path))
            .header(HOST, self.authority.clone())
            .header(REQUEST, HeaderValue::from_static("true"));
        if let Some(token) = call.token {
            // exposed: the token is what Vault is to judge
            let mut value = HeaderValue::from_str(token.expose()).map_err(|e| unusable(e.into()))?;
            value.set_sensitive(true);
            request = request.header(TOKEN, value);
        }
        if let Some(namespace) = call.namespace {
            request = request.header(NAMESPACE, namespace);
        }
        let body = match call.body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                body.into_body()
            }
            None => bytes::Bytes::new(),
        };
        request.body(Full::new(body)).map_err(unusable)
    }

    async fn exchange(&self, step: Step, request: Request<Full<bytes::Bytes>>) -> Result<Reply, Fault> {
        let no_way = || Fault::new(Remedy::Retry, "no connection to Vault (network, DNS or TLS)");
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|_| no_way())?;
        match &self.tls {
            None => talk(step, stream, request).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await.map_err(|_| no_way())?;
                talk(step, stream, request).await
            }
        }
    }
}

async fn talk(
    step: Step,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<bytes::Bytes>>,
) -> Result<Reply, Fault> {
    let broken = || Fault::new(Remedy::Retry, "the connection to Vault broke");
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await.map_err(|_| broken())?;
    let work = async {
        let (head, mut body) = sender.send_request(request).await.map_err(|_| broken())?.into_parts();
        if !head.status.is_success() {
            return Err(Fault::answered(step, head.status.as_u16(), retry_after(&head.headers)));
        }
        // Made as large as it can become: a buffer that grows is moved, and left behind unwiped.
        let length = body.size_hint().upper().and_then(|length| usize::try_from(length).ok()).unwrap_or(MAX_ANSWER);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length.min(MAX_ANSWER)));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| broken())?;
            let Some(data) = frame.data_ref() else { continue };
            if bytes.len() + data.len() > MAX_ANSWER {
                return Err(Fault::nonsense(step, "an answer longer than 64 KiB"));
            }
            bytes.extend_from_slice(data);
        }
        Ok(Reply { body: bytes })
    };
    // The connection is driven here and dropped with the answer: nothing outlives the call.
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => done,
        _ = connection => work.await,
    }
}

/// Whole seconds: Vault writes nothing else.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u32 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// TLS that trusts the certificates in the file `ca`, or the machine's roots.
fn config(ca: Option<&Path>) -> Result<ClientConfig, SettingsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let unusable = || SettingsError::Ca(file.display().to_string());
            for certificate in CertificateDer::pem_file_iter(file).map_err(|_| unusable())? {
                roots.add(certificate.map_err(|_| unusable())?).map_err(|_| unusable())?;
            }
            if roots.is_empty() {
                return Err(unusable());
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SettingsError::Tls(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_https_or_loopback_and_nothing_more() {
        for good in
            ["https://vault.example.org", "https://vault.example.org:8200/", "http://127.0.0.1:8200", "http://[::1]:1"]
        {
            assert!(Client::new(good, None).is_ok(), "{good}");
        }
        for (wrong, plain) in [
            ("http://vault.example.org", true),
            ("vault:8200", false),
            ("https://u@v", false),
            ("https://v/v1", false),
            ("https://v?x", false),
            ("", false),
            ("ftp://127.0.0.1", false),
            ("https://", false),
        ] {
            let error = Client::new(wrong, None).unwrap_err();
            assert_eq!(error == SettingsError::PlainHttp, plain, "{wrong}: {error}");
        }
        let missing = Client::new("https://v", Some(Path::new("/nonexistent/ca.pem"))).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/ca.pem"));
    }
}
