//! The embedded world behind `sidemint demo` and `sidemint dev`: a SPIFFE authority and a cloud that really check what
//! they are given, so that the sidecar beside them is the very same `sidemint serve` that runs elsewhere.
//!
//! - [`authority`]: a Workload API on a Unix socket, with X.509- and JWT-SVIDs of the trust domain `dev.test`.
//! - [`cloud`]: an STS and an object store that verify and enforce, by code of their own: nothing that the sidecar uses
//!   to decide is used here to check it.
//! - [`world`]: both of them, with something to read and the policy to read it; [`sidecar`]: `sidemint serve` beside them.
//! - [`probe`]: a small HTTP client for looking at the wire; [`bucket`]: one for S3, on the AWS SDK's signer.
//!
//! Only the commands `demo` and `dev` lead here; `serve` does not, and the sidecar's image is built without feature `dev`.

pub mod authority;
pub mod bucket;
pub mod cloud;
pub mod probe;
pub mod sidecar;
pub mod world;

use tokio::task::JoinHandle;

/// A server that runs in the background until this is dropped.
#[derive(Debug)]
pub struct Running(JoinHandle<()>);

impl Running {
    /// Takes charge of a background task.
    pub(crate) fn new(task: JoinHandle<()>) -> Self {
        Self(task)
    }

    /// Stops it and returns once it and its connections are gone.
    pub async fn stop(mut self) {
        self.0.abort();
        // An aborted task ends with an error by design.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}
