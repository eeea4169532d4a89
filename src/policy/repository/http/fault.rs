//! Why a file could not be had over HTTP: [`HttpFault`]. Its texts hold nothing of a body, nothing of a header and no
//! credential.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use rustls::{CertificateError, OtherError};

use super::super::fetch::FetchError;
use crate::identity::x509_svid::X509SvidError;

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Looking the host up and opening the connection.
    Connect,
    /// The proxy's answer to `CONNECT`.
    Proxy,
    /// The TLS handshake.
    Handshake,
    /// The answer's head.
    Answer,
    /// The answer's body: silence within it, or fewer bytes a second than anybody should need.
    Body,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "no connection in time",
            Self::Proxy => "policy.proxy gave no answer in time",
            Self::Handshake => "no TLS handshake in time",
            Self::Answer => "connected, but no answer in time",
            Self::Body => "the answer began and did not end in time",
        })
    }
}

/// Why the TLS handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// The certificate is another host's.
    #[error("the server's certificate is not for this host: compare the host of policy.repository with its names")]
    Name,
    /// No root that is trusted here issued it.
    #[error("no authority that is trusted here issued the server's certificate: name its authority with policy.ca")]
    Issuer,
    /// It has expired.
    #[error("the server's certificate has expired: renew it, and compare the clocks")]
    Expired,
    /// It is not valid yet.
    #[error("the server's certificate is not valid yet: compare the clocks")]
    NotYetValid,
    /// It is refused for another reason.
    #[error("the server's certificate is refused: {0}")]
    Certificate(String),
    /// It is not the X.509-SVID of `policy.server_id`.
    #[error("the server's X.509-SVID is refused: {0}")]
    Svid(X509SvidError),
    /// It is a good X.509-SVID, of somebody else.
    #[error("the server is another workload than policy.server_id")]
    OtherWorkload,
    /// What answers does not speak TLS.
    #[error("what answers there does not speak TLS: should policy.repository be another port?")]
    NotTls,
    /// The server refused us.
    #[error("the server ended the TLS handshake: {0}; does it ask for a client certificate (policy.client)?")]
    Alert(String),
    /// Nothing in common, or a broken handshake.
    #[error("no TLS connection: {0}")]
    Protocol(String),
}

/// Why a file could not be had over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpFault {
    /// The caller asked for something that cannot be a file's name.
    #[error("is no name of a file")]
    Name,
    /// The host has no address.
    #[error("the host's name cannot be looked up: {0}")]
    Resolve(String),
    /// Nobody accepts connections there.
    #[error("no connection: {0}")]
    Connect(String),
    /// It took too long.
    #[error("{0}")]
    Slow(Stage),
    /// The proxy answered with this status instead of a tunnel.
    #[error("policy.proxy opens no tunnel: HTTP {0}")]
    ProxyRefused(u16),
    /// The proxy closed the connection or speaks something else.
    #[error("policy.proxy gives no answer of HTTP: {0}")]
    ProxyBroken(String),
    /// There is no SVID to present.
    #[error("the Workload API gives no usable SVID to present to the server (policy.client)")]
    NoSvid,
    /// TLS.
    #[error("{0}")]
    Tls(#[from] TlsFault),
    /// The connection ended before an answer.
    #[error("the server closed the connection without an answer")]
    Closed,
    /// Not HTTP/1.1.
    #[error("the answer is not HTTP/1.1: {0}")]
    Protocol(String),
    /// The head is longer than is read.
    #[error("the answer's head is longer than {MAX_HEAD} bytes, or has more than {MAX_HEADERS} headers")]
    HeadTooLarge,
    /// A redirect.
    #[error("HTTP {0}: no redirect is followed; point policy.repository to where the files are")]
    Redirect(u16),
    /// The server is too busy.
    #[error("HTTP {status}: the server is too busy")]
    Busy {
        /// 429 or 503.
        status: u16,
        /// How long it asks to be left alone, at most [`MAX_RETRY_AFTER`](super::super::schedule::MAX_RETRY_AFTER).
        retry_after: Option<Duration>,
    },
    /// Another status.
    #[error("HTTP {0}")]
    Status(u16),
    /// 304 without a condition.
    #[error("HTTP 304, though nothing was said of what is here")]
    NotAsked,
    /// A content coding, though none was accepted.
    #[error("the body is compressed or otherwise encoded, though only the plain file was asked for")]
    Encoded,
    /// Neither a length nor chunks: where it ends cannot be told from where it was cut.
    #[error("the answer has neither Content-Length nor chunks: it cannot be told from one that was cut off")]
    NoLength,
    /// The body ended before its end.
    #[error("the answer was cut off")]
    Truncated,
    /// Larger than the caller takes.
    #[error("larger than {limit} bytes")]
    TooLarge {
        /// The most, in bytes.
        limit: u64,
    },
}

/// The longest head of an answer that is read, in bytes.
pub const MAX_HEAD: usize = 32 * 1024;
/// The most headers of an answer.
pub const MAX_HEADERS: usize = 64;

impl HttpFault {
    /// Every word that [`HttpFault::kind`] can be.
    pub const KINDS: [&'static str; 32] = [
        "name",
        "resolve",
        "connect",
        "slow_connect",
        "slow_proxy",
        "slow_handshake",
        "slow_answer",
        "slow_body",
        "proxy_refused",
        "proxy_broken",
        "no_svid",
        "tls_name",
        "tls_issuer",
        "tls_expired",
        "tls_not_yet_valid",
        "tls_certificate",
        "tls_svid",
        "tls_other_workload",
        "tls_not_tls",
        "tls_alert",
        "tls_protocol",
        "closed",
        "protocol",
        "head_too_large",
        "redirect",
        "busy",
        "status",
        "not_asked",
        "encoded",
        "no_length",
        "truncated",
        "too_large",
    ];

    /// A stable word of a closed set.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Resolve(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::Slow(Stage::Connect) => "slow_connect",
            Self::Slow(Stage::Proxy) => "slow_proxy",
            Self::Slow(Stage::Handshake) => "slow_handshake",
            Self::Slow(Stage::Answer) => "slow_answer",
            Self::Slow(Stage::Body) => "slow_body",
            Self::ProxyRefused(_) => "proxy_refused",
            Self::ProxyBroken(_) => "proxy_broken",
            Self::NoSvid => "no_svid",
            Self::Tls(TlsFault::Name) => "tls_name",
            Self::Tls(TlsFault::Issuer) => "tls_issuer",
            Self::Tls(TlsFault::Expired) => "tls_expired",
            Self::Tls(TlsFault::NotYetValid) => "tls_not_yet_valid",
            Self::Tls(TlsFault::Certificate(_)) => "tls_certificate",
            Self::Tls(TlsFault::Svid(_)) => "tls_svid",
            Self::Tls(TlsFault::OtherWorkload) => "tls_other_workload",
            Self::Tls(TlsFault::NotTls) => "tls_not_tls",
            Self::Tls(TlsFault::Alert(_)) => "tls_alert",
            Self::Tls(TlsFault::Protocol(_)) => "tls_protocol",
            Self::Closed => "closed",
            Self::Protocol(_) => "protocol",
            Self::HeadTooLarge => "head_too_large",
            Self::Redirect(_) => "redirect",
            Self::Busy { .. } => "busy",
            Self::Status(_) => "status",
            Self::NotAsked => "not_asked",
            Self::Encoded => "encoded",
            Self::NoLength => "no_length",
            Self::Truncated => "truncated",
            Self::TooLarge { .. } => "too_large",
        }
    }

    /// Whether a kept connection that fails so may merely have been closed behind our back.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Self::Closed | Self::Slow(Stage::Answer) | Self::Tls(TlsFault::Alert(_)))
    }

    /// As the seam says it: is nobody there, or somebody who does not give the file?
    pub(super) fn into_fetch_error(self, name: &str) -> FetchError {
        let name = name.to_owned();
        match self {
            Self::TooLarge { limit } => FetchError::TooLarge { name, limit },
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::Slow(_)
            | Self::ProxyRefused(_)
            | Self::ProxyBroken(_)
            | Self::NoSvid
            | Self::Closed
            | Self::Busy { .. } => FetchError::Unreachable { name, why: self.to_string() },
            Self::Name
            | Self::Tls(_)
            | Self::Protocol(_)
            | Self::HeadTooLarge
            | Self::Redirect(_)
            | Self::Status(_)
            | Self::NotAsked
            | Self::Encoded
            | Self::NoLength
            | Self::Truncated => FetchError::Refused { name, why: self.to_string() },
        }
    }

    /// What a failed handshake means.
    pub(super) fn of_handshake(error: &io::Error) -> Self {
        match tls_error(error) {
            Some(tls) => Self::Tls(TlsFault::of(tls)),
            None => Self::Closed,
        }
    }

    /// What it means that no head came.
    pub(super) fn of_head(error: &hyper::Error) -> Self {
        if let Some(tls) = tls_error(error) {
            return Self::Tls(TlsFault::of(tls));
        }
        if error.is_parse_too_large() {
            return Self::HeadTooLarge;
        }
        if error.is_parse() {
            return Self::Protocol(error.to_string());
        }
        Self::Closed
    }

    /// What it means that the body did not end.
    pub(super) fn of_body(error: &hyper::Error) -> Self {
        if error.is_parse_too_large() { Self::HeadTooLarge } else { Self::Truncated }
    }
}

impl TlsFault {
    fn of(error: &rustls::Error) -> Self {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(why) => Self::of_certificate(why),
            E::InvalidMessage(_) => Self::NotTls,
            E::AlertReceived(alert) => Self::Alert(format!("{alert:?}")),
            _ => Self::Protocol(error.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as E;
        match error {
            E::NotValidForName | E::NotValidForNameContext { .. } => Self::Name,
            E::UnknownIssuer => Self::Issuer,
            E::Expired | E::ExpiredContext { .. } => Self::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => Self::NotYetValid,
            E::Other(OtherError(why)) => match why.downcast_ref::<TlsFault>() {
                Some(fault) => fault.clone(),
                None => Self::Certificate(error.to_string()),
            },
            _ => Self::Certificate(error.to_string()),
        }
    }
}

/// The TLS library's error somewhere below `error`. An `io::Error` shows what it wraps by `get_ref`, not as a source.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
