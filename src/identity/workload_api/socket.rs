//! The connection to the Workload API, and who serves it.
//!
//! What comes out of that socket says who we are and who is trusted, so it has to be the agent's and not that of whoever got
//! hold of the path. The standards leave this to the client, and the mode says nothing: any workload may connect, so agents
//! set 0777. But the kernel tells under which user the other side began to listen (unix(7), `SO_PEERCRED`). Trusted are:
//!
//! - root, and this very user: they could do as they like anyway;
//! - the user of `identity.workload_api_uid`;
//! - the user who owns the socket's directory, where only they, root and we can write it and all above it: who gave them that
//!   directory meant them to serve there. So an agent with a user of its own needs no setting.
//!
//! Of a `tcp://` address nothing is known.

use std::fs;
use std::future::{Ready, ready};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use spiffe::WorkloadApiClient;
use spiffe::transport::TransportError;
use tokio::net::UnixStream;
use tonic::codegen::Service;
use tonic::transport::Uri;

use super::endpoint::Endpoint;

const ROOT: u32 = 0;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Somebody listens who is not trusted.
    #[error(
        "its socket is served by uid {0}, which is neither root, nor this user, nor alone in writing to its directory; if that is the agent's user, set identity.workload_api_uid = {0}"
    )]
    Stranger(u32),
    /// Nobody listens, or not for us.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Connects to the socket at `path`, where one of those who are trusted, or the user `agent`, serves it.
///
/// # Errors
/// `Stranger` where somebody else does: nothing was sent to them.
pub async fn connect(path: &Path, agent: Option<u32>) -> Result<UnixStream, ConnectError> {
    let (stream, uid) = dial(path).await?;
    let own = rustix::process::geteuid().as_raw();
    if [ROOT, own].contains(&uid) || agent == Some(uid) {
        return Ok(stream);
    }
    // Once more by the path that has no symbolic links: what was looked at is then what is used.
    let path = fs::canonicalize(path)?;
    let read = |path: &Path| fs::metadata(path).map(|is| Directory { owner: is.uid(), mode: is.mode() });
    let directories = path.ancestors().skip(1).map(read);
    if keeper(&directories.collect::<io::Result<Vec<_>>>()?, own) == Some(uid) {
        let (stream, now) = dial(&path).await?;
        if now == uid {
            return Ok(stream);
        }
    }
    Err(ConnectError::Stranger(uid))
}

async fn dial(path: &Path) -> io::Result<(UnixStream, u32)> {
    let stream = UnixStream::connect(path).await?;
    let uid = stream.peer_cred()?.uid();
    Ok((stream, uid))
}

/// Who may write to a directory.
#[derive(Debug, Clone)]
struct Directory {
    owner: u32,
    mode: u32,
}

/// The owner of the first of these directories, each of which is in the next, where nobody else but root and we can write
/// any of them.
fn keeper(directories: &[Directory], own: u32) -> Option<u32> {
    let owner = directories.first()?.owner;
    let kept = |of: &Directory| [ROOT, own, owner].contains(&of.owner) && of.mode & 0o022 == 0;
    directories.iter().all(kept).then_some(owner)
}

/// A client over a connection that was looked at. It never makes another by itself.
pub(super) async fn client(endpoint: &Endpoint, agent: Option<u32>) -> Result<WorkloadApiClient, ClientError> {
    let Endpoint::Unix(path) = endpoint else {
        return Ok(WorkloadApiClient::connect(endpoint.to_spiffe()).await?);
    };
    let stream = match connect(path, agent).await {
        Ok(stream) => stream,
        Err(ConnectError::Io(error)) => return Err(failed(error)),
        Err(error) => return Err(ClientError::Untrusted(error)),
    };
    // the name is never looked up: gRPC over a Unix socket must have one
    let name = tonic::transport::Endpoint::from_static("http://localhost");
    let channel = name.connect_with_connector(Once(Some(stream))).await.map_err(failed)?;
    Ok(WorkloadApiClient::new_with_channel(endpoint.to_spiffe(), channel))
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    ClientError::Api(TransportError::connect(error).into())
}

/// Why there is no client, or what it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Somebody who is not trusted serves the socket.
    #[error(transparent)]
    Untrusted(ConnectError),
    /// Everything else.
    #[error(transparent)]
    Api(#[from] spiffe::WorkloadApiError),
}

/// Gives its stream away, once.
struct Once(Option<UnixStream>);

impl Service<Uri> for Once {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusts_a_directory_only_when_no_other_user_can_write_to_it_or_its_parents() {
        const AGENT: u32 = 1000;
        const OWN: u32 = 10001;
        for (directories, kept_by) in [
            // /run/spire/agent, of a user of its own; a CSI volume; a user namespace that does not know the agent's user
            (vec![(AGENT, 0o755), (ROOT, 0o755), (ROOT, 0o755), (ROOT, 0o755)], Some(AGENT)),
            (vec![(AGENT, 0o40_755), (ROOT, 0o40_755)], Some(AGENT)),
            (vec![(65534, 0o700), (ROOT, 0o755)], Some(65534)),
            (vec![(AGENT, 0o750), (OWN, 0o700), (ROOT, 0o755)], Some(AGENT)),
            (vec![(ROOT, 0o755), (ROOT, 0o755)], Some(ROOT)),
            // below /tmp anybody may have been first
            (vec![(AGENT, 0o755), (ROOT, 0o1777), (ROOT, 0o755)], None),
            (vec![(ROOT, 0o1777), (ROOT, 0o755)], None),
            (vec![(AGENT, 0o755), (1001, 0o755), (ROOT, 0o755)], None),
            (vec![(AGENT, 0o775), (ROOT, 0o755)], None),
            (vec![(AGENT, 0o757), (ROOT, 0o755)], None),
            (vec![(AGENT, 0o755), (ROOT, 0o775)], None),
            (vec![], None),
        ] {
            let directories: Vec<_> = directories.into_iter().map(|(owner, mode)| Directory { owner, mode }).collect();
            assert_eq!(keeper(&directories, OWN), kept_by, "{directories:?}");
        }
    }

    #[tokio::test]
    async fn trusts_a_socket_that_the_same_user_serves() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        assert!(matches!(connect(&path, None).await, Err(ConnectError::Io(_))));
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        assert!(connect(&path, None).await.is_ok());
    }
}
