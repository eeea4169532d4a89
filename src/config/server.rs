//! `[server]` and `[admin]`: the listeners of workloads and of operators.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

use super::section::complete_as_read;
use super::values;

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// A loopback address.
    #[serde(deserialize_with = "values::loopback")]
    pub http: SocketAddr,
    /// A Unix socket as well.
    pub unix_socket: Option<PathBuf>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { http: (Ipv4Addr::LOCALHOST, 9870).into(), unix_socket: None }
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// Any address; what identifies workloads is never shown there.
    #[serde(deserialize_with = "values::address")]
    pub http: SocketAddr,
    /// The operator's Unix socket, mode 0600.
    pub unix_socket: Option<PathBuf>,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { http: (Ipv4Addr::LOCALHOST, 9871).into(), unix_socket: None }
    }
}

complete_as_read!(ServerSettings, AdminSettings);
