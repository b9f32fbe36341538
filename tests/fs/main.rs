//! The file system without a mount: what docs/semantics.md promises, call by call.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

#[path = "../common/callers.rs"]
mod callers;
#[path = "../common/faulty.rs"]
mod faulty;
#[path = "../common/log.rs"]
mod log;
#[path = "../common/world.rs"]
mod world;

mod attributes;
mod inodes;
mod killed;
mod live;
mod moving;
mod names;
mod opening;
mod polling;
mod reading;
mod revoked;
mod views;

use world::World;

/// Two backends' worth of secrets. uid 1 may read all of `app` but `narrow`, which is uid 2's alone; `[defaults]` is uid 1's.
fn world() -> World {
    let a = [
        ("app/plain", "plain"),
        ("app/narrow", "narrow"),
        ("app/cached", "cached"),
        ("x/record", r#"{"user":"bo","pass":"s3"}"#),
    ];
    let b = [
        ("free/second", "from b"),
        ("free/one", "1"),
        ("free/two", "22"),
    ];
    World::new(&a, &b, SERVICES)
}

const SERVICES: &str = r#"
[services.app]
source = "a:app"
allow = [{ uid = [1, 2] }, { gid = 103 }]
[services.app.secrets]
narrow = { allow = [{ uid = 2 }], mode = "0400", owner = 7, group = 8, description = "for one" }
cached = { reads = "cached" }
pass = "a:x/record#pass"
lost = "a:x/record#lost"
either = { from = ["a:x/first", "b:free/second"], stale = "1h" }
never = { from = "a:app/plain", stale = "0s" }
[services.bare]
allow = [{ uid = 5 }]
[services.bare.secrets]
only = { from = "b:free/one", allow = [{ uid = 5, unit = "x.service" }] }
[defaults]
source = "b"
allow = [{ uid = 1 }]
"#;
