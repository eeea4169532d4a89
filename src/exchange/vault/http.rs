//! One request to Vault, and its whole answer: one connection each, no proxy, no redirect, every wait and body bounded.

use std::path::Path;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request};
use http_body_util::Full;
use zeroize::Zeroizing;

use super::SettingsError;
use super::fault::{Fault, Step};
use crate::clock::SharedClock;
use crate::http_client::{self, HttpClient, Limits, Origin, OriginError, Roots, TlsError, TlsSettings};
use crate::secret::{Secret, SecretBytes};

/// The longest answer that is read, in bytes. Real ones have less than 4 KiB.
pub const MAX_ANSWER: usize = 64 * 1024;
const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Vault's agents and proxies may insist on it (API documentation, "The X-Vault-Request Header").
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// Where Vault is, and how it is reached.
#[derive(Debug)]
pub(super) struct Client {
    http: HttpClient,
    host: HeaderValue,
    clock: SharedClock,
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
    pub(super) fn new(address: &str, ca: Option<&Path>, clock: SharedClock) -> Result<Self, SettingsError> {
        let origin = Origin::parse(address).map_err(|error| match error {
            OriginError::Form => SettingsError::Address,
            OriginError::PlainHttp => SettingsError::PlainHttp,
        })?;
        let roots = ca.map_or(Roots::System, |file| Roots::Pem(file.to_owned()));
        let http = HttpClient::new(&origin, &TlsSettings { roots, client: None }, clock.clone(), None);
        let http = http.map_err(|error| match error {
            TlsError::PemRoots(file, _) => SettingsError::Ca(file.display().to_string()),
            error => SettingsError::Roots(error.to_string()),
        })?;
        Ok(Self { http, host: origin.authority().clone(), clock })
    }

    /// Sends `call` and reads the answer within `limit`; a success is any status from 200 to 299.
    pub(super) async fn send(&self, call: Call<'_>, limit: Duration) -> Result<Reply, Fault> {
        let step = call.step;
        let failed = |fault| Fault::unanswered(step, &fault);
        let response = self.http.send(self.request(call)?, Limits::within(limit)).await.map_err(failed)?;
        if !response.status.is_success() {
            let wait = http_client::retry_after(&response.headers, self.clock.now());
            return Err(Fault::answered(step, response.status.as_u16(), wait));
        }
        Ok(Reply { body: response.body.read(MAX_ANSWER as u64).await.map_err(failed)? })
    }

    fn request(&self, call: Call<'_>) -> Result<Request<Full<bytes::Bytes>>, Fault> {
        let unusable = |_| Fault::nonsense(call.step, "the request could not be made");
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("/v1/{}", call.path))
            .header(HOST, self.host.clone())
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn rejects_an_address_or_roots_that_cannot_work() {
        let error = |address, ca| Client::new(address, ca, Arc::new(SystemClock)).unwrap_err();
        assert_eq!(error("http://vault.example.org", None), SettingsError::PlainHttp);
        assert_eq!(error("https://vault.example.org/v1", None), SettingsError::Address);
        let missing = error("https://v", Some(Path::new("/nonexistent/ca.pem")));
        assert!(missing.to_string().contains("/nonexistent/ca.pem"));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(error("https://v", Some(empty.path())), SettingsError::Ca(_)));
    }
}
