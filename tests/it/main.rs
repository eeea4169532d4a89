//! The main path as workloads and operators meet it: the real server on loopback, the real journal, the real policy files,
//! and an in-process fake behind each seam to the outside. A module per behaviour; [`world`] is what they share.
//!
//! Nothing here waits for time to pass: tests move the clock and wait for what they want to see.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

mod fake_vault;
mod fakes;
mod http;
mod policy_files;
mod sts;
mod world;

mod aws;
mod begin;
mod clock;
mod corpus;
mod end;
mod exchange;
mod expiry;
mod journal;
mod kill;
mod leaks;
mod limits;
mod lookalikes;
mod metrics;
mod mint;
mod pod_task;
mod refusals;
mod restart;
mod slow;
mod triggers;
mod uncertain;
mod vault;
