//! `[policy]`: where policy files are, and who vouches for them.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use serde::Deserialize;

use super::section::{Environment, Invalid, Section};
use super::values;
use crate::http_client::{Origin, Proxy};
use crate::identity::SpiffeId;
use crate::policy::ScopeId;

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySettings {
    /// Where the files are, and why they are trusted.
    pub place: PolicyPlace,
    /// Load only these scopes; empty for all.
    pub scopes: Vec<ScopeId>,
    /// How often the place is looked at.
    pub poll: Duration,
}

/// Where policy files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyPlace {
    /// In a directory: whoever can write there decides.
    Unsigned(PathBuf),
    /// In a signed repository.
    Signed(Box<RepositorySettings>),
}

/// The keys of `[policy]` that are about a signed repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositorySettings {
    /// Where it lies.
    pub repository: RepositoryPlace,
    /// The trust anchor, a `root.json`.
    pub root: PathBuf,
    /// The least snapshot version to trust.
    pub minimum_version: Option<u64>,
    /// PEM certificates that vouch for the server, in place of the system's.
    pub ca: Option<PathBuf>,
    /// An `http://` proxy; none unless it is named here.
    pub proxy: Option<Proxy>,
    /// Whether our X.509-SVID is shown to the server.
    pub client_svid: bool,
    /// The server's SPIFFE ID, verified by the trust bundle in place of `ca`.
    pub server_id: Option<SpiffeId>,
    /// How long one request may take.
    pub timeout: Duration,
}

/// Where a signed repository lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryPlace {
    /// Below a local directory.
    Directory(PathBuf),
    /// Below an `https://` URL, or an `http://` one on loopback.
    Http(Uri),
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PolicySection {
    directory: Option<PathBuf>,
    trust: Option<Trust>,
    repository: Option<String>,
    root: Option<PathBuf>,
    minimum_version: Option<u64>,
    ca: Option<PathBuf>,
    proxy: Option<String>,
    client: Option<Client>,
    server_id: Option<SpiffeId>,
    #[serde(deserialize_with = "values::duration::<_, 1000>")]
    timeout: Duration,
    scopes: Vec<ScopeId>,
    #[serde(deserialize_with = "values::optional_duration::<_, 100>")]
    poll: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Trust {
    Unsigned,
    Signed,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Client {
    Svid,
}

impl Default for PolicySection {
    fn default() -> Self {
        Self {
            directory: None,
            trust: None,
            repository: None,
            root: None,
            minimum_version: None,
            ca: None,
            proxy: None,
            client: None,
            server_id: None,
            timeout: Duration::from_secs(10),
            scopes: Vec::new(),
            poll: None,
        }
    }
}

impl Section for PolicySection {
    type Settings = PolicySettings;

    fn validate(mut self, _: &Environment) -> Result<Self::Settings, Invalid> {
        let (scopes, poll) = (std::mem::take(&mut self.scopes), self.poll);
        let (place, usual) = match (self.directory.take(), self.repository.take()) {
            (Some(directory), None) => (self.directory(directory)?, Duration::from_secs(2)),
            (None, Some(repository)) => (self.repository(&repository)?, Duration::from_secs(30)),
            (Some(_), Some(_)) => {
                return Err(Invalid::new("repository", "there is a policy.directory too: remove one of the two"));
            }
            (None, None) => {
                let what = "name the signed policy repository, or in policy.directory a directory of unsigned files";
                return Err(Invalid::new("repository", what));
            }
        };
        Ok(PolicySettings { place, scopes, poll: poll.unwrap_or(usual) })
    }
}

impl PolicySection {
    fn directory(self, directory: PathBuf) -> Result<PolicyPlace, Invalid> {
        match self.trust {
            Some(Trust::Unsigned) => {}
            Some(Trust::Signed) => {
                return Err(Invalid::new("trust", "the only trust in a directory is \"unsigned\""));
            }
            None => {
                let what = "a directory is not signed: if that is meant, say trust = \"unsigned\"";
                return Err(Invalid::new("trust", what));
            }
        }
        let of_signed = [("root", self.root.is_some()), ("minimum_version", self.minimum_version.is_some())];
        refuse_set(of_signed.into_iter().chain(self.of_https()), "is for a signed policy.repository: remove it")?;
        Ok(PolicyPlace::Unsigned(directory))
    }

    fn repository(self, repository: &str) -> Result<PolicyPlace, Invalid> {
        let repository = repository_place(repository)
            .ok_or_else(|| Invalid::new("repository", "write https://HOST/PATH or a path that begins with /"))?;
        if self.trust == Some(Trust::Unsigned) {
            return Err(Invalid::new("trust", "a repository is \"signed\"; for unsigned files use policy.directory"));
        }
        if matches!(repository, RepositoryPlace::Directory(_)) {
            refuse_set(self.of_https(), "is for a policy.repository with https://: remove it")?;
        }
        let Self { root, minimum_version, ca, proxy, client, server_id, timeout, .. } = self;
        let root = root.ok_or_else(|| {
            Invalid::new("root", "name the root.json that the deployment trusts; its publishers have it")
        })?;
        if minimum_version == Some(0) {
            return Err(Invalid::new("minimum_version", "at least 1"));
        }
        let proxy = proxy.map(|text| text.parse::<Proxy>()).transpose();
        let proxy = proxy.map_err(|error| Invalid::new("proxy", error.to_string()))?;
        if ca.is_some() && server_id.is_some() {
            let what = "the trust bundle verifies it in place of policy.ca: remove one";
            return Err(Invalid::new("server_id", what));
        }
        let client_svid = matches!(client, Some(Client::Svid));
        let settings =
            RepositorySettings { repository, root, minimum_version, ca, proxy, client_svid, server_id, timeout };
        Ok(PolicyPlace::Signed(Box::new(settings)))
    }

    /// The keys that only a repository over HTTPS has, and whether they are set.
    fn of_https(&self) -> [(&'static str, bool); 4] {
        [
            ("ca", self.ca.is_some()),
            ("proxy", self.proxy.is_some()),
            ("client", self.client.is_some()),
            ("server_id", self.server_id.is_some()),
        ]
    }
}

fn refuse_set(keys: impl IntoIterator<Item = (&'static str, bool)>, what: &str) -> Result<(), Invalid> {
    match keys.into_iter().find(|(_, is_set)| *is_set) {
        Some((key, _)) => Err(Invalid::new(key, what)),
        None => Ok(()),
    }
}

/// A signed repository's place as it is written: `https://HOST/PATH`, or a path from the root of the file system.
pub fn repository_place(text: &str) -> Option<RepositoryPlace> {
    if text.starts_with('/') {
        return Some(RepositoryPlace::Directory(text.into()));
    }
    let uri: Uri = text.parse().ok()?;
    // It has no password, which would be told in every error.
    let origin = Origin::of(&uri).ok()?;
    let local_or_secure = origin.is_secure() || origin.is_loopback();
    (local_or_secure && uri.query().is_none() && !text.contains('#')).then_some(RepositoryPlace::Http(uri))
}
