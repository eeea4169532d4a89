//! Sidemint: a sidecar that mints just-enough cloud credentials.

pub mod cli;
pub mod clock;
pub mod exchange;
pub mod identity;
pub mod policy;
pub mod secret;
