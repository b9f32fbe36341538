//! `.fresh`, `.previous` and `.versions`: other values of a secret, for who may read it.

use std::ffi::OsStr;

use secretfs::backend::Reference;
use secretfs::fs::{Change, FsError, Ino, Kind, Waiter};

use crate::callers::caller;
use crate::world;

#[tokio::test]
async fn earlier_and_fresher_values_are_found_by_name_and_in_no_listing() {
    let world = world();
    world.put("a:app/plain", "second").await;
    world.put("a:app/plain", "third").await;
    for (path, value) in [
        ("app/plain", "third"),
        ("app/.fresh/plain", "third"),
        ("app/.previous/plain", "second"),
        ("app/.versions/3/plain", "third"),
        ("app/.versions/1/plain", "plain"),
        ("app/.fresh/pass", "s3"),
        ("app/.versions/1/pass", "s3"),
        ("free/.fresh/one", "1"),
    ] {
        assert_eq!(world.cat(1, path).await.as_deref(), Ok(value), "{path}");
    }
    for (path, error) in [
        ("app/.versions/9/plain", FsError::Absent),
        ("app/.previous/pass", FsError::Absent),
        ("app/.previous/lost", FsError::Absent),
    ] {
        assert_eq!(world.cat(1, path).await, Err(error), "{path}");
    }
    let listed = world.ls(1, "app").await.unwrap();
    assert!(
        listed.iter().all(|name| !name.starts_with('.')),
        "{listed:?}"
    );
    for folder in [
        "app/.fresh",
        "app/.previous",
        "app/.versions",
        "app/.versions/1",
    ] {
        assert_eq!(world.ls(1, folder).await.unwrap(), [""; 0], "{folder}");
    }
}

#[tokio::test]
async fn what_cannot_be_in_a_hidden_folder_is_not_there() {
    let world = world();
    for path in [
        "app/.fresh/none",
        "app/.versions/1/none",
        "app/.versions/.fresh",
        "app/.fresh/.previous",
        "app/.previous/.fresh",
        ".fresh",
        "app/.current",
    ] {
        let found = world.look_up(&caller(1), path).await;
        assert_eq!(found.unwrap_err(), FsError::Absent, "{path}");
    }
    let folder = world.ino("app/.fresh").await;
    let attr = world.tree.getattr(caller(9), folder).wait().await.unwrap();
    assert_eq!((attr.kind, attr.mode), (Kind::Directory, 0o555));
    let opened = world.tree.open(caller(1), folder, false).wait().await;
    assert_eq!(opened.unwrap_err(), FsError::IsDirectory);
    let version = world.tree.lookup(
        caller(1),
        world.ino("app/.versions").await,
        OsStr::new("\n"),
    );
    assert_eq!(version.wait().await.unwrap_err(), FsError::Absent);
}

#[tokio::test]
async fn who_may_not_read_the_secret_gets_nothing_of_it_and_no_backend_is_asked() {
    let world = world();
    let paths = [
        "app/.fresh/narrow",
        "app/.previous/narrow",
        "app/.versions/1/narrow",
    ];
    let mut inos = Vec::new();
    for path in paths {
        inos.push(world.ino(path).await);
    }
    let asked = world.asked().0;
    for (ino, path) in inos.into_iter().zip(paths) {
        assert_eq!(
            world.open(1, ino).await.unwrap_err(),
            FsError::Denied,
            "{path}"
        );
        assert_eq!(world.size(1, ino).await, 0, "{path}");
        let stranger = world.look_up(&caller(9), path).await;
        assert_eq!(stranger.unwrap_err(), FsError::Denied, "{path}");
    }
    assert_eq!(world.asked().0, asked);
    let denied = ["open-fresh", "open-previous", "open-version"];
    let denied = denied.map(|action| format!("1 {action} app/narrow denied"));
    assert_eq!(world.log.lines(), denied);
}

#[tokio::test]
async fn fresh_asks_whatever_the_ttl_tells_everyone_and_is_limited_for_each_uid() {
    let world = world();
    let old = world.ino("app/plain").await;
    let held = world.open(1, old).await.unwrap();
    world.a.put("app/plain", "changed behind our back");
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "plain");
    let fresh = world.cat(1, "app/.fresh/plain").await.unwrap();
    assert_eq!(fresh, "changed behind our back");
    // From here on it is the current one, for all, and whoever watches has heard of it.
    assert_eq!(world.cat(2, "app/plain").await.unwrap(), fresh);
    assert!(world.kernel.names().contains(&"plain".to_owned()));
    assert!(world.tree.poll(held.fh, None).unwrap().outdated);
    let mut given = 1;
    while world.cat(1, "app/.fresh/plain").await.is_ok() {
        given += 1;
    }
    assert_eq!(given, 10);
    assert_eq!(world.cat(1, "app/.fresh/plain").await, Err(FsError::Denied));
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), fresh, "as ever");
    assert!(
        world.cat(2, "app/.fresh/plain").await.is_ok(),
        "another uid"
    );
    world.later(1);
    assert!(
        world.cat(1, "app/.fresh/plain").await.is_ok(),
        "a second later"
    );
}

#[tokio::test]
async fn who_polls_below_fresh_hears_of_a_name_that_was_gone_meanwhile() {
    let world = world();
    let ino = world.ino("app/.fresh/plain").await;
    world.open(1, ino).await.unwrap();
    world.a.remove("app/plain");
    let reference: Reference = "a:app/plain".parse().unwrap();
    world.tree.changed([&reference], Change::Perhaps).await;
    world.put("a:app/plain", "again").await;
    // By what the kernel holds of it.
    let held = world.open(1, ino).await.unwrap();
    let waits = world.tree.poll(held.fh, Some(Waiter(7))).unwrap();
    assert!(!waits.outdated);
    world.ino("app/plain").await;
    world.cat(1, "app/plain").await.unwrap();
    world.put("a:app/plain", "and again").await;
    assert_eq!(world.kernel.woken(), [Waiter(7)]);
    assert!(world.tree.poll(held.fh, None).unwrap().outdated);
}

#[tokio::test]
async fn an_earlier_value_is_one_generation_and_never_outdated() {
    let world = world();
    world.put("a:app/plain", "second").await;
    let ino = world.ino("app/.versions/1/plain").await;
    let one = world.open(1, ino).await.unwrap();
    let other = world.open(2, ino).await.unwrap();
    assert_eq!(world.size(9, ino).await, 5);
    // Its pages are one value's, so both may be mapped.
    for handle in [one, other] {
        assert!(handle.direct);
        let page = world.read_part(1, handle, 0, 4096, true);
        assert_eq!(page.as_deref(), Ok("plain"));
    }
    world.put("a:app/plain", "third").await;
    assert!(!world.tree.poll(one.fh, None).unwrap().outdated);
    // What was before is another value by now, of the same inode.
    let previous = world.ino("app/.previous/plain").await;
    let before = world.open(1, previous).await.unwrap();
    assert_eq!(world.read(1, before).unwrap(), "second");
    world.put("a:app/plain", "fourth").await;
    let after = world.open(1, previous).await.unwrap();
    assert_eq!(world.read(1, after).unwrap(), "third");
    assert_eq!(world.read(1, before).unwrap(), "second");
    let generation = OsStr::new("user.secretfs.generation");
    let unknown = world.tree.getxattr(caller(1), ino, generation).wait().await;
    assert_eq!(unknown.unwrap_err(), FsError::NoAttribute);
    let version = OsStr::new("user.secretfs.version");
    let version = world.tree.getxattr(caller(1), ino, version).wait().await;
    assert_eq!(version.unwrap(), b"1");
}

#[tokio::test]
async fn folders_of_versions_leave_nothing_behind() {
    let world = world();
    world.ino("app/plain").await;
    let before = world.tree.figures().inodes;
    for version in 0..1000 {
        let mut inos = vec![Ino::ROOT];
        for part in ["app", ".versions", &version.to_string(), "plain"] {
            let parent = *inos.last().unwrap();
            let found = world.tree.lookup(caller(1), parent, OsStr::new(part));
            let ino = found.wait().await.unwrap().ino;
            world.tree.looked_up(ino);
            inos.push(ino);
        }
        for ino in inos.into_iter().skip(1) {
            world.tree.forget(ino, 1);
        }
    }
    assert!(world.tree.figures().inodes <= before + 1);
}
