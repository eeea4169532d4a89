//! The concurrency model of {mint, serve, end, reload, expire}: every order in which they can meet, on the product itself.
//!
//! [`orders`] runs the real broker on one thread and holds it at each seam: a write to the journal, an exchange, a refresh of the
//! policy, the passing of time. What is let go next is the explorer's choice, and it makes every choice there is: all
//! interleavings at the points where the broker waits, by replaying each prefix. The five operations together have tens of
//! thousands of orders; the sets of [`orders::SETS`] are explored whole, the five by a sample, and whole with `MODEL=all`.
//!
//! [`late`] lets one write land after a later one. [`threads`] is for what happens between two such points: real threads at the mutexes.
//!
//! Why neither loom nor shuttle: both replace the primitives they schedule. The broker stands on tokio's `Mutex`, `Notify`,
//! `watch` and `spawn` and on `std`'s locks, the policy on `spawn_blocking`, so its code would have to be built against
//! other types throughout, or be written a second time for the model, which then would prove nothing about the first. A task's
//! state is behind one lock that is never held across an await; so between two awaits one operation is whole, and the orders
//! of the awaits are the orders there are.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test ends by its first surprise; the lints see only #[test] functions as tests, not their helpers"
)]

mod late;
mod orders;
mod seams;
mod threads;
