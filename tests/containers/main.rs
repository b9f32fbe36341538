//! Containers: the real daemon's secrets, bound into real containers in every way that people bind them.
//!
//! Podman needs no registry for this, and runs a folder with busybox in it. All that it makes lies below the test's folder.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends where it is wrong"
)]

#[path = "../common/mod.rs"]
mod common;

mod binds;
mod podman;
