//! stat and the extended attributes.

use std::ffi::OsStr;

use secretfs::fs::{DirEntry, FsError, Ino, Kind, Reply, Xattr};
use secretfs::sys::{Gid, Uid};

use crate::callers::caller;
use crate::faulty::Weather;
use crate::world;
use crate::world::World;

#[tokio::test]
async fn what_a_secret_looks_like_is_the_config_s_word_and_the_same_for_everyone() {
    let world = world();
    for (path, mode, uid, gid) in [("app/plain", 0o440, 0, 0), ("app/narrow", 0o400, 7, 8)] {
        let ino = world.ino(path).await;
        for asking in [0, 9, 1] {
            let attr = world
                .tree
                .getattr(caller(asking), ino)
                .wait()
                .await
                .unwrap();
            assert_eq!((attr.kind, attr.mode), (Kind::File, mode));
            assert_eq!((attr.uid, attr.gid), (Uid(uid), Gid(gid)));
        }
    }
    for ino in [Ino::ROOT, world.ino("app").await] {
        let attr = world.tree.getattr(caller(9), ino).wait().await.unwrap();
        assert_eq!(
            (attr.kind, attr.mode, attr.size),
            (Kind::Directory, 0o555, 0)
        );
    }
    let unknown = world.tree.getattr(caller(1), Ino(1 << 40)).wait().await;
    assert_eq!(unknown.unwrap_err(), FsError::Superseded);
}

#[tokio::test]
async fn the_size_is_nothing_until_the_value_was_fetched_and_then_its_length_for_all() {
    let world = world();
    let ino = world.ino("app/plain").await;
    for uid in [9, 0, 9] {
        assert_eq!(world.size(uid, ino).await, 0);
    }
    assert_eq!(world.asked().0, 0);
    // Who may read it makes it true, once.
    assert_eq!(world.size(1, ino).await, 5);
    assert_eq!(world.size(1, ino).await, 5);
    for uid in [9, 0] {
        assert_eq!(world.size(uid, ino).await, 5);
    }
    assert_eq!(world.asked().0, 1);
    // The time is the value's. What is in use is fetched again as soon as it changes, so that its new inode has its size.
    let before = world.tree.getattr(caller(9), ino).wait().await.unwrap();
    world.later(10);
    world.put("a:app/plain", "longer").await;
    let ino = world.ino("app/plain").await;
    let after = world.tree.getattr(caller(9), ino).wait().await.unwrap();
    assert_eq!((after.size, after.modified), (6, world.clock.timestamp()));
    assert!(before.modified < after.modified);
    assert_eq!(world.log.lines(), ["1 stat app/plain allowed"]);
}

#[tokio::test(start_paused = true)]
async fn a_stat_of_what_cannot_be_fetched() {
    let table = [
        (Weather::Refusing, Ok(0)),
        (Weather::Down, Ok(0)),
        (Weather::Silent, Ok(0)),
        (Weather::Garbled, Ok(0)),
    ];
    for (weather, expected) in table {
        let world = world();
        let ino = world.ino("app/plain").await;
        world.a.weather(weather);
        let attr = world.tree.getattr(caller(1), ino).wait().await;
        assert_eq!(attr.map(|attr| attr.size), expected, "{weather:?}");
    }
    let world = world();
    for (path, gone) in [("app/lost", "x/record"), ("app/plain", "app/plain")] {
        let ino = world.ino(path).await;
        world.a.remove(gone);
        let attr = world.tree.getattr(caller(1), ino).wait().await;
        assert_eq!(attr.unwrap_err(), FsError::Absent);
        assert_eq!(world.size(9, ino).await, 0);
    }
}

#[tokio::test]
async fn a_listing_s_lines_look_like_stat_and_fetch_nothing() {
    let world = world();
    world.cat(1, "app/plain").await.unwrap();
    let folder = world.ino("app").await;
    let fh = world.tree.opendir(caller(1), folder).wait().await.unwrap();
    for entry in &*world.tree.readdir(caller(1), fh).wait().await.unwrap() {
        let attr = world.tree.attr_of(folder, entry).unwrap();
        assert_eq!(attr.ino, entry.ino);
        let size = if entry.name.as_str() == "plain" { 5 } else { 0 };
        assert_eq!(attr.size, size, "{}", entry.name);
    }
    assert_eq!(world.asked().0, 1);
    let gone = DirEntry {
        ino: Ino(1 << 40),
        kind: Kind::File,
        name: "gone".parse().unwrap(),
    };
    assert_eq!(world.tree.attr_of(folder, &gone), None);
}

async fn xattr(world: &World, uid: u32, ino: Ino, name: &str) -> Reply<String> {
    let value = world.tree.getxattr(caller(uid), ino, OsStr::new(name));
    value
        .wait()
        .await
        .map(|value| String::from_utf8(value).unwrap())
}

#[tokio::test]
async fn extended_attributes_are_for_those_who_may_read() {
    let world = world();
    let (plain, narrow) = (world.ino("app/plain").await, world.ino("app/narrow").await);
    let get = async |uid, ino, name: &str| xattr(&world, uid, ino, name).await;
    for uid in [0, 9] {
        for attribute in Xattr::ALL {
            assert_eq!(
                get(uid, plain, attribute.name()).await,
                Err(FsError::Denied)
            );
        }
        assert!(world.tree.listxattr(caller(uid), plain).unwrap().is_empty());
    }
    assert_eq!(world.asked().0, 0);
    assert_eq!(get(1, plain, "user.secretfs.version").await.unwrap(), "1");
    assert_eq!(
        get(1, plain, "user.secretfs.reference").await.unwrap(),
        "a:app/plain"
    );
    let none = get(1, plain, "user.secretfs.description").await;
    assert_eq!(none, Err(FsError::NoAttribute));
    assert_eq!(
        get(2, narrow, "user.secretfs.description").await.unwrap(),
        "for one"
    );
    for unknown in ["user.secretfs", "security.selinux", ""] {
        assert_eq!(get(1, plain, unknown).await, Err(FsError::NoAttribute));
    }
    for directory in [Ino::ROOT, world.ino("app").await] {
        assert_eq!(
            get(1, directory, "user.secretfs.version").await,
            Err(FsError::NoAttribute)
        );
        assert!(
            world
                .tree
                .listxattr(caller(1), directory)
                .unwrap()
                .is_empty()
        );
    }
    assert_eq!(
        world.tree.listxattr(caller(1), plain).unwrap(),
        Xattr::ALL[..3]
    );
    assert_eq!(
        world.tree.listxattr(caller(2), narrow).unwrap(),
        Xattr::ALL[..4]
    );
    let number = |text: Reply<String>| text.unwrap().parse::<u64>().unwrap();
    let before = number(get(1, plain, "user.secretfs.generation").await);
    world.put("a:app/plain", "two").await;
    world.a.describe("app/plain", "the backend's word");
    assert_eq!(get(1, plain, "user.secretfs.version").await.unwrap(), "2");
    let described = get(1, plain, "user.secretfs.description").await;
    assert_eq!(described.unwrap(), "the backend's word");
    assert_eq!(
        world.tree.listxattr(caller(1), plain).unwrap(),
        Xattr::ALL[..4]
    );
    assert!(number(get(1, plain, "user.secretfs.generation").await) > before);
    world.a.weather(Weather::Down);
    world.put("a:app/plain", "three").await;
    let down = get(1, plain, "user.secretfs.version").await;
    assert_eq!(down, Err(FsError::Unreachable));
}

#[tokio::test]
async fn a_value_that_stands_in_says_since_when_it_is_old() {
    const SINCE: &str = "user.secretfs.stale_since";
    let world = world();
    let plain = world.ino("app/plain").await;
    let get = || world.tree.getxattr(caller(1), plain, OsStr::new(SINCE));
    assert_eq!(get().wait().await.unwrap_err(), FsError::NoAttribute);
    let fetched = world.clock.timestamp();
    world.a.weather(Weather::Down);
    world.later(100);
    let since = String::from_utf8(get().wait().await.unwrap()).unwrap();
    let since: jiff::Timestamp = since.parse().unwrap();
    let ttl = since.as_second() - fetched.as_second();
    assert_eq!(ttl, 60, "the TTL");
    let listed = world.tree.listxattr(caller(1), plain).unwrap();
    assert!(listed.contains(&Xattr::StaleSince));
    let denied = world.tree.getxattr(caller(9), plain, OsStr::new(SINCE));
    assert_eq!(denied.wait().await.unwrap_err(), FsError::Denied);
    world.a.weather(Weather::Fine);
    world.later(10);
    // Nobody waits for it to be found back.
    let mut back = get().wait().await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
        back = get().wait().await;
    }
    assert_eq!(back.unwrap_err(), FsError::NoAttribute);
}
