//! What the machine must have: policy files, free ports, a private directory for the journal.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::net::TcpListener;

use crate::app::trust_anchor;
use crate::check::Check;
use crate::cli::client::Sidecar;
use crate::clock::SharedClock;
use crate::config::RepositorySettings;
use crate::policy::repository::DirectorySource;
use crate::policy::repository::store::Store;
use crate::policy::repository::trusted::Roots;
use crate::policy::{LoadOptions, Policy, ScopeId};
use crate::task::ProviderSet;

const POLICY: &str = "policy";
const STATE: &str = "state directory";

/// Whether the policy loads, and what is suspended; and where it grants something, once it has loaded. As the sidecar does, it
/// loads only `scopes`, or all where none is named.
pub(super) fn policy(directory: &Path, scopes: &[ScopeId]) -> (Check, Option<ProviderSet>) {
    let files = match DirectorySource::new(directory).read() {
        Ok(files) => files,
        Err(error) => {
            return (Check::fail(POLICY, error.to_string(), "check policy.directory and its permissions"), None);
        }
    };
    let lint = format!("`sidemint policy lint --policy {}` tells more", directory.display());
    let options = LoadOptions { scopes: scopes.iter().cloned().collect(), without_warnings: true };
    let policy = match Policy::load_with(&files, &options) {
        Ok(policy) => policy,
        Err(error) => {
            let first = error.problems.first().map(|problem| format!("; {}: {}", problem.file, problem.message));
            return (Check::fail(POLICY, format!("{error}{}", first.unwrap_or_default()), lint), None);
        }
    };
    let (active, suspended) = (policy.active(), policy.suspended().len());
    let scopes = if active == 1 { "scope" } else { "scopes" };
    let detail = format!("{}: {active} {scopes} active, {suspended} suspended", directory.display());
    let check = if active == 0 {
        Check::fail(POLICY, detail, lint)
    } else if suspended > 0 || !policy.stray().is_empty() {
        Check::warn(POLICY, detail, lint)
    } else {
        Check::ok(POLICY, detail)
    };
    (check, Some(policy.providers().collect()))
}

/// Whether the signed repository's trust anchor is one, and whether it is trusted here. The repository itself is the
/// sidecar's to look at: two readers would not share one state.
pub(super) fn repository(settings: &RepositorySettings, state: &Path) -> Check {
    let fix = "ask the policy's publishers for the root.json to trust, and name it in policy.root";
    let anchor = match trust_anchor(&settings.root).map(|bytes| Roots::anchor(&bytes)) {
        Err(why) => return Check::fail(POLICY, why, fix),
        Ok(Err(fault)) => return Check::fail(POLICY, format!("{}: {fault}", settings.root.display()), fix),
        Ok(Ok(anchor)) => anchor,
    };
    let detail = format!("signed; trusts {} (root {})", settings.root.display(), anchor.mark().version);
    if settings.minimum_version.is_none() && !Store::is_begun(state) {
        let fix = "run `sidemint policy trust`, or set policy.minimum_version where the state directory does not last";
        return Check::fail(POLICY, format!("{detail}; not trusted in {} yet", state.display()), fix);
    }
    Check::ok(POLICY, detail)
}

/// Whether the sidecar could listen there, or one does already.
pub(super) async fn port(name: &'static str, address: SocketAddr, clock: &SharedClock) -> Check {
    match TcpListener::bind(address).await {
        Ok(_) => Check::ok(name, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_sidecar(address, clock).await {
                Check::ok(name, format!("{address} is served by a sidecar"))
            } else {
                let fix = "stop the other program, or set server.http or admin.http";
                Check::fail(name, format!("{address} is taken by another program"), fix)
            }
        }
        Err(error) => Check::fail(name, format!("{address}: {error}"), "set server.http or admin.http"),
    }
}

/// Whether a sidecar answers there: each of its answers has a request id (docs/openapi.yaml).
async fn is_sidecar(address: SocketAddr, clock: &SharedClock) -> bool {
    let address = match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port()),
        _ => address,
    };
    match address.to_string().parse() {
        Ok(address) => Sidecar::new(address, clock.clone()).is_there().await,
        // Not on loopback, where the client never goes.
        Err(_) => false,
    }
}

/// Whether the journal can be kept, and is nobody else's to read.
pub(super) fn state(directory: &Path) -> Check {
    let place = directory.display();
    let make = format!("install -d -m 0700 {place}, as the sidecar's user");
    let metadata = match std::fs::metadata(directory) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::warn(STATE, format!("{place} is not there yet; serve creates it where it may"), make);
        }
        Err(error) => return Check::fail(STATE, format!("{place}: {error}"), make),
    };
    if !metadata.is_dir() {
        return Check::fail(STATE, format!("{place} is no directory"), make);
    }
    if let Err(error) = tempfile::tempfile_in(directory) {
        return Check::fail(STATE, format!("{place} cannot be written: {error}"), make);
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let fix = format!("chmod 0700 {place}");
        return Check::warn(STATE, format!("{place} has mode {mode:04o}: others may look into it"), fix);
    }
    Check::ok(STATE, format!("{place}, mode {mode:04o}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::check::Level;
    use crate::clock::SystemClock;

    #[test]
    fn the_state_directory_must_be_writable_and_private() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("state");
        assert_eq!(state(&path).level, Level::Warn);
        std::fs::write(&path, "").unwrap();
        assert_eq!(state(&path).level, Level::Fail);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let open = state(&path);
        assert!(open.level == Level::Warn && open.detail.contains("0755"), "{open:?}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(state(&path).level, Level::Ok);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "the check leaves nothing behind");
    }

    #[test]
    fn a_policy_without_an_active_scope_fails() {
        let base = tempfile::tempdir().unwrap();
        assert_eq!(policy(&base.path().join("none"), &[]).0.level, Level::Fail);
        assert_eq!(policy(base.path(), &[]).0.level, Level::Fail);
    }

    #[tokio::test]
    async fn distinguishes_a_free_port_from_one_of_another_process() {
        let clock: SharedClock = Arc::new(SystemClock);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // A stranger that answers, and no sidecar.
        let stranger = std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
        });
        let taken = port("p", address, &clock).await;
        assert!(taken.level == Level::Fail && taken.detail.contains("another program"), "{taken:?}");
        stranger.join().unwrap();
        assert_eq!(port("p", address, &clock).await.level, Level::Ok);
    }
}
