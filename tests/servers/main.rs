//! Against real servers: a HashiCorp Vault and a PostgreSQL behind it, slow, broken or gone.
//!
//! Where the machine lacks one of them a test says so and is skipped, or fails with `SECRETFS_REQUIRE_ALL=1`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test ends where it is wrong"
)]

#[path = "../common/mod.rs"]
mod common;

mod asking;
mod changing;
mod commands;
mod contract;
mod dynamic;
mod faults;
mod handover;
mod harness;
mod hvac;
mod identities;
mod leases;
mod methods;
mod network;
mod offline;
mod openbao;
mod reading;
mod relay;
mod signals;
mod signing;
mod trust;
