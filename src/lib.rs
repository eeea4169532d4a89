//! Sidemint: a sidecar that mints just-enough cloud credentials.

pub mod app;
pub mod audit;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod exchange;
pub mod id;
pub mod identity;
pub mod lease;
pub mod metrics;
pub mod pod_task;
pub mod policy;
pub mod secret;
pub mod server;
pub mod task;
