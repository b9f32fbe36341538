//! read and release: one handle is one generation.

use secretfs::fs::{Fh, FsError, MAX_READ, Opened};

use crate::faulty::Weather;
use crate::world;

#[tokio::test]
async fn a_handle_keeps_its_generation_until_it_is_closed() {
    let world = world();
    let mut held = Vec::new();
    for round in 0..20 {
        let value = format!("{round}-").repeat(round + 1);
        world.put("a:app/plain", &value).await;
        let ino = world.ino("app/plain").await;
        held.push((world.open(1, ino).await.unwrap(), value));
    }
    world.a.remove("app/plain");
    world.a.weather(Weather::Down);
    world.later(100_000);
    for (opened, value) in &held {
        assert_eq!(world.read(1, *opened).unwrap(), *value);
        assert_eq!(world.read(2, *opened).unwrap(), *value);
    }
    assert_eq!(world.tree.figures().handles, 20);
    for (opened, _) in held {
        world.tree.release(opened.fh);
        assert_eq!(world.read(1, opened).unwrap_err(), FsError::BadHandle);
    }
    assert_eq!(world.tree.figures().handles, 0);
    let unknown = Opened {
        fh: Fh(1 << 40),
        direct: true,
        keep_pages: false,
        tell: None,
    };
    assert_eq!(world.read(1, unknown).unwrap_err(), FsError::BadHandle);
    world.tree.release(unknown.fh);
}

#[tokio::test]
async fn a_read_gives_what_is_there_and_no_more() {
    let world = world();
    let opened = world.open(1, world.ino("app/plain").await).await.unwrap();
    let table = [
        (0, 100, "plain"),
        (0, 2, "pl"),
        (3, 2, "in"),
        (4, 100, "n"),
        (5, 1, ""),
        (u64::MAX, u32::MAX, ""),
        (2, 0, ""),
    ];
    for (offset, size, expected) in table {
        let part = world.read_part(1, opened, offset, size, false);
        assert_eq!(part.unwrap(), expected, "{offset} {size}");
    }
}

#[tokio::test]
async fn each_read_is_checked_unless_reads_are_cached() {
    let world = world();
    let checked = world.open(1, world.ino("app/plain").await).await.unwrap();
    let cached = world.open(1, world.ino("app/cached").await).await.unwrap();
    assert!(checked.direct && !cached.direct);
    for uid in [0, 9] {
        // A descriptor that was passed on.
        assert_eq!(world.read(uid, checked).unwrap_err(), FsError::Denied);
        assert_eq!(world.read(uid, cached).unwrap(), "cached");
    }
    assert_eq!(world.read(2, checked).unwrap(), "plain");
    let denied: Vec<_> = world.log.lines();
    let expected = [
        "0 read app/plain denied",
        "1 open app/cached allowed",
        "1 open app/plain allowed",
        "9 read app/plain denied",
    ];
    assert_eq!(denied, expected);
}

#[tokio::test]
async fn pages_are_kept_only_of_the_very_same_generation() {
    let world = world();
    let ino = world.ino("app/cached").await;
    let open = async || world.open(1, ino).await.unwrap();
    let first = open().await;
    assert!(!first.direct && !first.keep_pages);
    let second = open().await;
    assert!(!second.direct && second.keep_pages);
    world.tree.release(first.fh);
    world.tree.release(second.fh);
    // Superseded: past the page cache, now and from now on.
    world.put("a:app/cached", "another").await;
    for _ in 0..3 {
        let later = open().await;
        assert!(later.direct && !later.keep_pages);
        assert_eq!(world.read(9, later).unwrap(), "another");
        world.tree.release(later.fh);
    }
    // The new inode begins anew.
    let ino = world.ino("app/cached").await;
    for keep_pages in [false, true] {
        let opened = world.open(1, ino).await.unwrap();
        assert_eq!((opened.direct, opened.keep_pages), (false, keep_pages));
        world.tree.release(opened.fh);
    }
    // So it does where nothing was announced.
    world.a.put("app/cached", "a third");
    world.later(61);
    let found_out = world.open(1, ino).await.unwrap();
    assert!(found_out.direct && !found_out.keep_pages);
    assert_eq!(world.kernel.names().last().unwrap(), "cached");
    assert_ne!(world.ino("app/cached").await, ino);
}

#[tokio::test]
async fn a_page_of_a_newer_value_is_an_error_while_an_older_one_is_open() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let old = world.open(1, ino).await.unwrap();
    world.put("a:app/plain", "newest").await;
    let new = world.open(1, ino).await.unwrap();
    let page = |opened| world.read_part(1, opened, 0, 4096, true);
    assert_eq!(page(old).unwrap(), "plain");
    assert_eq!(page(new).unwrap_err(), FsError::Mixed);
    assert_eq!(world.read(1, new).unwrap(), "newest");
    world.tree.release(old.fh);
    assert_eq!(page(new).unwrap(), "newest");
}

/// There is one size and one set of pages for all handles of an inode. Grown under a handle that reads through the page
/// cache, it would show the older value with zeros at its end; and who comes by `sendfile` finds the older value's pages.
#[tokio::test]
async fn no_value_is_opened_on_an_inode_whose_older_value_is_read_through_the_page_cache() {
    for value in ["longer than before", "as six", "xs"] {
        let world = world();
        let ino = world.ino("app/cached").await;
        let old = world.open(1, ino).await.unwrap();
        world.put("a:app/cached", value).await;
        assert_eq!(world.open(1, ino).await.unwrap_err(), FsError::Superseded);
        assert_eq!(world.size(9, ino).await, 6);
        assert_eq!(world.read(1, old).unwrap(), "cached");
        // By path the kernel comes again by itself, and to another inode.
        let current = world.ino("app/cached").await;
        assert_ne!(current, ino);
        let new = world.open(1, current).await.unwrap();
        assert_eq!(world.read(1, new).unwrap(), value);
        // And the old inode is free as soon as nobody reads the old value.
        world.tree.release(old.fh);
        let bound = world.open(1, ino).await.unwrap();
        assert!(bound.direct);
        assert_eq!(world.read(1, bound).unwrap(), value);
    }
}

#[tokio::test]
async fn a_value_whose_memory_was_damaged_is_an_error_and_comes_back_with_the_next_open() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let opened = world.open(1, ino).await.unwrap();
    assert_eq!(world.read(1, opened).unwrap(), "plain");
    for range in world.memory.held().unwrap() {
        world.memory.wipe(range).unwrap();
    }
    assert_eq!(world.read(1, opened).unwrap_err(), FsError::Broken);
    assert_eq!(FsError::Broken.errno(), libc::EIO);
    let asked = world.asked();
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "plain");
    // Whoever holds the damaged one has no more of it, and nobody else is the worse for that.
    assert_eq!(world.read(1, opened).unwrap_err(), FsError::Broken);
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "plain");
    assert_eq!(world.asked().0, asked.0 + 1);
}

#[tokio::test]
async fn a_read_gives_no_more_at_once_than_the_kernel_asks_for() {
    let world = world();
    let value = "0123456789abcdef".repeat(MAX_READ / 16 * 2);
    world.put("a:app/plain", &value).await;
    let opened = world.open(1, world.ino("app/plain").await).await.unwrap();
    for offset in [0, 1, MAX_READ - 1, MAX_READ] {
        let part = world.read_part(1, opened, u64::try_from(offset).unwrap(), u32::MAX, false);
        assert!(
            part.unwrap() == value[offset..offset + MAX_READ],
            "{offset}"
        );
    }
}
