//! The mounted truth: the real daemon on a real mount, and real users who come to read.
//!
//! Runs as root, because it becomes other users and mounts. Each test has a daemon of its own and promises what its
//! name says; where the machine lacks something a test says so and is skipped, or fails with `SECRETFS_REQUIRE_ALL=1`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends where it is wrong"
)]

#[path = "../common/callers.rs"]
mod callers;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/faulty.rs"]
mod faulty;
#[path = "../common/log.rs"]
mod log;
#[path = "../common/served.rs"]
mod served;
#[path = "../common/world.rs"]
mod world;

mod audit;
mod deadlocks;
mod descriptors;
mod hostile;
mod keeper;
mod killed;
mod matrix;
mod namespaces;
mod reload;
mod revocation;
mod sealed;
mod server;
mod taken;
mod trouble;
mod units;
mod upgrade;
mod users;
mod values;
mod views;
mod watchers;
mod watching;
