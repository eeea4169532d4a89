//! Why a file could not be had over HTTP: [`HttpFault`].

use std::time::Duration;

use super::super::fetch::FetchError;
use crate::http_client::{Fault, Stage, TlsFault};

/// Why a file could not be had over HTTP. Its texts hold nothing of a body, nothing of a header and no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpFault {
    /// The caller asked for something that cannot be a file's name.
    #[error("is no name of a file")]
    Name,
    /// No answer, or none that can be read.
    #[error("{key}{fault}{fix}", key = key(.0), fault = .0, fix = fix(.0))]
    Client(#[from] Fault),
    /// A redirect.
    #[error("HTTP {0}: no redirect is followed; point policy.repository to where the files are")]
    Redirect(u16),
    /// The server is too busy.
    #[error("HTTP {status}: the server is too busy")]
    Busy {
        /// 429 or 503.
        status: u16,
        /// When it may be asked again, at most [`MAX_RETRY_AFTER`](super::super::schedule::MAX_RETRY_AFTER) from now.
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
}

/// The section of the key that the text of `fault` begins with, where it begins with one.
fn key(fault: &Fault) -> &'static str {
    match fault {
        Fault::ProxyRefused(_) | Fault::ProxyBroken(_) | Fault::Slow(Stage::Proxy) => "policy.",
        _ => "",
    }
}

/// What to do about `fault`, where a setting may be wrong.
fn fix(fault: &Fault) -> &'static str {
    match fault {
        Fault::NoSvid => " (policy.client)",
        Fault::Tls(TlsFault::Name) => ": compare the host of policy.repository with its names",
        Fault::Tls(TlsFault::Issuer) => ": name its authority with policy.ca",
        Fault::Tls(TlsFault::OtherWorkload) => " (policy.server_id)",
        Fault::Tls(TlsFault::NotTls) => ": should policy.repository be another port?",
        Fault::Tls(TlsFault::Alert(_)) => "; does it ask for a client certificate (policy.client)?",
        _ => "",
    }
}

impl HttpFault {
    /// As the seam says it: is nobody there, or somebody who does not give the file?
    pub(super) fn into_fetch_error(self, name: &str) -> FetchError {
        let name = name.to_owned();
        match self {
            Self::Client(Fault::TooLarge { limit }) => FetchError::TooLarge { name, limit },
            Self::Busy { .. } => FetchError::Unreachable { name, why: self.to_string() },
            Self::Client(ref fault) if fault.is_passing() => FetchError::Unreachable { name, why: self.to_string() },
            _ => FetchError::Refused { name, why: self.to_string() },
        }
    }
}
