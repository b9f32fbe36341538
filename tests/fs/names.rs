//! lookup, readdir, access, and everything that would change the tree.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use secretfs::fs::{DirEntry, Fh, FsError, Ino, Kind, Reply};

use crate::callers::caller;
use crate::faulty::Weather;
use crate::world;
use crate::world::World;

const APP: [&str; 7] = [
    "cached", "either", "lost", "narrow", "never", "pass", "plain",
];

/// What an open folder lists.
async fn listed(world: &World, fh: Fh) -> Reply<Arc<Vec<DirEntry>>> {
    world.tree.readdir(caller(1), fh).wait().await
}

#[tokio::test]
async fn names_cost_one_list_and_never_a_value() {
    let world = world();
    assert_eq!(world.ls(1, "").await.unwrap(), ["app", "bare", "free"]);
    for _ in 0..100 {
        assert_eq!(world.ls(1, "app").await.unwrap(), APP);
        for name in APP {
            let ino = world
                .look_up(&caller(1), &format!("app/{name}"))
                .await
                .unwrap();
            assert!(ino > Ino::ROOT);
        }
    }
    assert_eq!(world.ls(1, "free").await.unwrap(), ["one", "second", "two"]);
    world.look_up(&caller(1), "free/two").await.unwrap();
    // The folders of b, and the names of a:app and b:free.
    assert_eq!(world.asked(), (0, 3));
    assert!(world.log.lines().is_empty());
}

#[tokio::test]
async fn who_may_read_nothing_sees_nothing_and_no_backend_is_asked() {
    let world = world();
    let ino = world.ino("app").await;
    let before = world.asked();
    for uid in [0, 9] {
        assert!(world.ls(uid, "app").await.unwrap().is_empty(), "{uid}");
    }
    for name in ["plain", "pass", "nothing", &"x".repeat(300)] {
        let found = world.tree.lookup(caller(9), ino, OsStr::new(name));
        assert_eq!(found.wait().await.unwrap_err(), FsError::Denied, "{name}");
    }
    // Which folders there are is for those who may read in them.
    assert_eq!(world.ls(9, "").await.unwrap(), ["app", "bare"]);
    assert_eq!(
        world.look_up(&caller(9), "free").await,
        Err(FsError::Denied)
    );
    assert_eq!(
        world.look_up(&caller(9), "none").await,
        Err(FsError::Denied)
    );
    assert_eq!(world.asked(), before);
    // A rule on the only secret counts for the listing as well.
    let in_unit = |unit| secretfs::caller::Caller {
        cgroup: Some(secretfs::caller::Cgroup {
            unit: Some(unit),
            container: None,
        }),
        ..caller(5)
    };
    let bare = world.ino("bare").await;
    for (unit, count) in [("x.service", 1), ("y.service", 0)] {
        let fh = world
            .tree
            .opendir(in_unit(unit.to_owned()), bare)
            .wait()
            .await
            .unwrap();
        assert_eq!(listed(&world, fh).await.unwrap().len(), count);
    }
}

#[tokio::test]
async fn root_looks_up_and_stats_but_opens_nothing_without_a_rule() {
    let world = world();
    for path in ["app/plain", "app/narrow", "bare/only", "free/one"] {
        let ino = world.ino(path).await;
        assert_eq!(world.size(0, ino).await, 0);
        assert_eq!(world.open(0, ino).await.unwrap_err(), FsError::Denied);
    }
    assert_eq!(world.asked().0, 0);
}

#[tokio::test]
async fn a_name_that_cannot_be_is_not_there() {
    let world = world();
    let app = world.ino("app").await;
    let file = world.ino("app/plain").await;
    let long = "x".repeat(129);
    let table = [
        (Ino::ROOT, "none", FsError::Absent),
        (app, "none", FsError::Absent),
        (app, ".next-7", FsError::Absent),
        (app, ".hidden", FsError::Absent),
        (app, "..", FsError::Absent),
        (app, "a/b", FsError::Absent),
        (app, "", FsError::Absent),
        (app, &long, FsError::NameTooLong),
        (Ino::ROOT, &long, FsError::NameTooLong),
        (file, "x", FsError::NotDirectory),
        (Ino(1 << 40), "x", FsError::Superseded),
    ];
    for (parent, name, error) in table {
        let found = world.tree.lookup(caller(1), parent, OsStr::new(name));
        assert_eq!(found.wait().await.unwrap_err(), error, "{name}");
    }
    let bytes = world
        .tree
        .lookup(caller(1), app, OsStr::from_bytes(b"\xff"));
    assert_eq!(bytes.wait().await.unwrap_err(), FsError::Absent);
}

#[tokio::test]
async fn a_listing_stays_as_it_was_opened() {
    let world = world();
    let app = world.ino("app").await;
    let fh = world.tree.opendir(caller(1), app).wait().await.unwrap();
    world.put("a:app/new", "").await;
    assert_eq!(listed(&world, fh).await.unwrap().len(), APP.len());
    assert_eq!(world.ls(1, "app").await.unwrap().len(), APP.len() + 1);
    world.tree.release(fh);
    assert_eq!(listed(&world, fh).await.unwrap_err(), FsError::BadHandle);
    let entries = world
        .tree
        .opendir(caller(1), Ino::ROOT)
        .wait()
        .await
        .unwrap();
    let entries = listed(&world, entries).await.unwrap();
    assert!(entries.iter().all(|entry| entry.kind == Kind::Directory));
    let file = world.ino("app/plain").await;
    let wrong = world.tree.opendir(caller(1), file).wait().await;
    assert_eq!(wrong.unwrap_err(), FsError::NotDirectory);
}

#[tokio::test]
async fn a_listing_leads_where_its_names_lead_now() {
    let world = world();
    let plain = world.ino("app/plain").await;
    let first = world.open(1, plain).await.unwrap();
    // The value has grown old and the list of names is new, so that only the inode tells the listings apart.
    world.later(61);
    let before = world.ls(1, "app").await.unwrap();
    world.a.put("app/plain", "another");
    let second = world.open(1, plain).await.unwrap();
    assert_eq!(world.read(1, second).unwrap(), "another");
    let lists = world.asked().1;
    let app = world.ino("app").await;
    let fh = world.tree.opendir(caller(1), app).wait().await.unwrap();
    let listed = listed(&world, fh).await.unwrap();
    let line = listed.iter().find(|line| line.name.as_str() == "plain");
    assert_ne!(line.unwrap().ino, plain);
    assert_eq!(line.unwrap().ino, world.ino("app/plain").await);
    assert_eq!(listed.len(), before.len());
    assert_eq!(world.asked().1, lists);
    for fh in [first.fh, second.fh, fh] {
        world.tree.release(fh);
    }
}

#[tokio::test]
async fn names_outlast_a_backend_that_cannot_be_reached() {
    let world = world();
    world.ls(1, "app").await.unwrap();
    world.a.weather(Weather::Down);
    world.later(3600);
    assert_eq!(world.ls(1, "app").await.unwrap(), APP);
    world.look_up(&caller(1), "app/plain").await.unwrap();
    world.a.weather(Weather::Refusing);
    assert_eq!(world.ls(1, "app").await, Err(FsError::Refused));
    // What the config itself names is there whatever a backend says.
    world.look_up(&caller(1), "app/pass").await.unwrap();
}

#[tokio::test]
async fn access_answers_from_the_policy_alone() {
    let world = world();
    let (dir, file) = (world.ino("app").await, world.ino("app/plain").await);
    let (read, write, execute) = (
        (true, false, false),
        (false, true, false),
        (false, false, true),
    );
    let table = [
        (1, file, read, Ok(())),
        (9, file, read, Err(FsError::Denied)),
        (0, file, read, Err(FsError::Denied)),
        (9, file, (false, false, false), Ok(())),
        (1, file, write, Err(FsError::ReadOnly)),
        (9, dir, write, Err(FsError::ReadOnly)),
        (1, file, execute, Err(FsError::Denied)),
        (9, dir, execute, Ok(())),
        (9, Ino::ROOT, read, Ok(())),
        (1, Ino(1 << 40), read, Err(FsError::Superseded)),
    ];
    for (uid, ino, (read, write, execute), expected) in table {
        let answer = world
            .tree
            .access_mode(caller(uid), ino, read, write, execute);
        assert_eq!(answer, expected, "{uid} {ino:?} {read} {write} {execute}");
    }
    assert_eq!(world.asked().0, 0);
    assert!(world.log.lines().is_empty());
}
