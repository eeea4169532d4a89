//! Why there is no answer: [`Fault`]. Its texts hold nothing of a body, nothing of a header and no credential; whoever knows
//! the settings' names says in its own error what to do.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use rustix::io::Errno;
use rustls::{CertificateError, OtherError};

use crate::identity::x509_svid::X509SvidError;
use crate::identity::x509_svid::handshake::PeerError;

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
            Self::Proxy => "proxy gave no answer in time",
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
    #[error("the server's certificate is not for this host")]
    Name,
    /// No root that is trusted here issued it.
    #[error("no authority that is trusted here issued the server's certificate")]
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
    /// It is not the X.509-SVID that is expected.
    #[error("the server's X.509-SVID is refused: {0}")]
    Svid(X509SvidError),
    /// It is a good X.509-SVID, of somebody else.
    #[error("the server is another workload than the one that was expected")]
    OtherWorkload,
    /// What answers does not speak TLS.
    #[error("what answers there does not speak TLS")]
    NotTls,
    /// The server refused us.
    #[error("the server ended the TLS handshake: {0}")]
    Alert(String),
    /// Nothing in common, or a broken handshake.
    #[error("no TLS connection: {0}")]
    Protocol(String),
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The host has no address.
    #[error("the host's name cannot be looked up: {0}")]
    Resolve(String),
    /// Nobody accepts connections there.
    #[error("no connection: {}", io::Error::from(*.0).kind())]
    Connect(Errno),
    /// It took too long.
    #[error("{0}")]
    Slow(Stage),
    /// The proxy answered with this status instead of a tunnel.
    #[error("proxy opens no tunnel: HTTP {0}")]
    ProxyRefused(u16),
    /// The proxy closed the connection or speaks something else.
    #[error("proxy gives no answer of HTTP: {0}")]
    ProxyBroken(String),
    /// There is no SVID to present.
    #[error("the Workload API gives no usable SVID to present to the server")]
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
    /// The body ended before its end.
    #[error("the answer was cut off")]
    Truncated,
    /// The body is larger than the caller takes.
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

impl Fault {
    /// Whether nobody answers, or not now: nothing of it is wrong, and the same request may succeed later.
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::Slow(_)
            | Self::ProxyRefused(_)
            | Self::ProxyBroken(_)
            | Self::NoSvid
            | Self::Closed => true,
            Self::Tls(_) | Self::Protocol(_) | Self::HeadTooLarge | Self::Truncated | Self::TooLarge { .. } => false,
        }
    }

    /// Whether a kept connection that fails so may merely have been closed behind our back.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Self::Closed | Self::Slow(Stage::Answer) | Self::Tls(TlsFault::Alert(_)))
    }

    /// Why nobody accepted the connection.
    pub(super) fn of_connect(error: &io::Error) -> Self {
        // What the system did not refuse cannot be an address.
        Self::Connect(Errno::from_io_error(error).unwrap_or(Errno::INVAL))
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
            E::Other(OtherError(why)) => match why.downcast_ref::<PeerError>() {
                Some(PeerError::Svid(error)) => Self::Svid(*error),
                Some(PeerError::OtherWorkload) => Self::OtherWorkload,
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
