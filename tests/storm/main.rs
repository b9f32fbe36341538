//! The rotation storm: values that change a thousand times a second below 32 readers, who come in every way there is.
//!
//! Once the tree, its cache and a backend in memory are in this process, behind a real mount that it serves itself: so no
//! thread that serves ever touches the mount, and readers are processes. And once it is the real daemon with its store.
//! However a test ends, its mount is aborted and detached.
//! `SECRETFS_STORM_SECONDS` says how long it storms: 10 s where it is not set.

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

mod readers;
mod rotation;
mod store;
mod values;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One storm at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long it storms.
fn seconds() -> Duration {
    let seconds = std::env::var("SECRETFS_STORM_SECONDS");
    let seconds = seconds.map_or(10, |text| text.parse().expect("a number of seconds"));
    let most = 80 * u64::from(common::patience());
    assert!(
        seconds <= most,
        "for more than {most} s set SECRETFS_SOAK, too"
    );
    Duration::from_secs(seconds)
}
