//! Where the Workload API is (SPIFFE Workload Endpoint §4): checked by us, so that a wrong setting gets a clear answer
//! and no general URL parser repairs it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The environment variable that every Workload API client must fall back to (SPIFFE Workload Endpoint §4).
pub const ENVIRONMENT: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Why a text is not the address of a Workload API; each says how to fix it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Another scheme or none.
    #[error("a Workload API address begins with unix:/// or tcp://, e.g. unix:///run/spire/agent/api.sock")]
    Scheme,
    /// `unix:` without an absolute path, or with a host.
    #[error("after unix: comes an absolute path and nothing else, e.g. unix:///run/spire/agent/api.sock")]
    Path,
    /// `tcp:` with anything but an IP address and a port.
    #[error("after tcp:// comes an IP address and a port and nothing else, e.g. tcp://127.0.0.1:8000")]
    Socket,
}

/// The address of a Workload API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///run/spire/agent/api.sock`
    Unix(PathBuf),
    /// `tcp://127.0.0.1:8000`; plain, so only for addresses that nobody else can listen in on.
    Tcp(SocketAddr),
}

impl Endpoint {
    pub(super) fn to_spiffe(&self) -> spiffe::transport::Endpoint {
        match self {
            Self::Unix(path) => spiffe::transport::Endpoint::Unix(path.clone()),
            Self::Tcp(address) => spiffe::transport::Endpoint::Tcp { host: address.ip(), port: address.port() },
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if let Some(rest) = text.strip_prefix("unix:") {
            // RFC 3986 §3.3: `///path` is an empty authority and a path, `/path` a path alone; `//host/path` has a host
            let path = rest.strip_prefix("//").unwrap_or(rest);
            let plain = |c: char| !matches!(c, '%' | '?' | '#' | '\0') && !c.is_control();
            if !path.starts_with('/') || path.starts_with("//") || path.ends_with('/') || !path.chars().all(plain) {
                return Err(EndpointError::Path);
            }
            return Ok(Self::Unix(path.into()));
        }
        let Some(rest) = text.strip_prefix("tcp://") else {
            return Err(EndpointError::Scheme);
        };
        let address: SocketAddr = rest.parse().map_err(|_| EndpointError::Socket)?;
        if address.port() == 0 {
            return Err(EndpointError::Socket);
        }
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_forms_of_the_specification() {
        for text in ["unix:///run/spire/agent/api.sock", "tcp://127.0.0.1:8000", "tcp://[::1]:8000"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("unix:/run/api.sock".parse::<Endpoint>().unwrap().to_string(), "unix:///run/api.sock");
    }

    #[test]
    fn rejects_everything_else_and_says_the_fix() {
        for (text, error) in [
            ("", EndpointError::Scheme),
            ("/run/api.sock", EndpointError::Scheme),
            ("http://127.0.0.1:80", EndpointError::Scheme),
            ("UNIX:///run/api.sock", EndpointError::Scheme),
            ("tcp:127.0.0.1:8000", EndpointError::Scheme),
            ("unix:", EndpointError::Path),
            ("unix:///", EndpointError::Path),
            ("unix://run/api.sock", EndpointError::Path),
            ("unix:run/api.sock", EndpointError::Path),
            ("unix:////run/api.sock", EndpointError::Path),
            ("unix:///run/api.sock?x", EndpointError::Path),
            ("unix:///run/api.sock#x", EndpointError::Path),
            ("unix:///run/api%2esock", EndpointError::Path),
            ("unix:///run/api.sock\n", EndpointError::Path),
            ("tcp://localhost:8000", EndpointError::Socket),
            ("tcp://127.0.0.1", EndpointError::Socket),
            ("tcp://127.0.0.1:0", EndpointError::Socket),
            ("tcp://127.0.0.1:8000/", EndpointError::Socket),
            ("tcp://user@127.0.0.1:8000", EndpointError::Socket),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_in_one_form(text in "(unix:|tcp:)?/{0,4}[a-z0-9.:/%?#\\[\\]]{0,24}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
            }
        }
    }
}
