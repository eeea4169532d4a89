//! The `sidemint` command.
fn main() {}
