//! Sidemint: a sidecar that mints just-enough cloud credentials.

pub mod cli;
pub mod clock;
#[cfg(feature = "dev")]
pub mod dev;
pub mod exchange;
pub mod identity;
pub mod policy;
pub mod secret;
