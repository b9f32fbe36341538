//! The moment in which a value changes: that in which the kernel gives its name to another inode.

use std::sync::Arc;
use std::time::Duration;

use secretfs::backend::Reference;
use secretfs::caller::Caller;
use secretfs::fs::{Change, FsError, Ino, Reply};
use secretfs::sys::{Gid, Tid, Uid};
use tokio::task::JoinHandle;

use crate::callers::caller;
use crate::world;
use crate::world::World;

/// Puts a value, and has the kernel asked for the change that it does not make yet.
async fn begin(world: &World, value: &str) -> JoinHandle<()> {
    world.a.put("app/plain", value);
    changed(world).await
}

async fn changed(world: &World) -> JoinHandle<()> {
    let reference: Reference = "a:app/plain".parse().unwrap();
    let change = world.tree.changed([&reference], Change::Written);
    let change = tokio::spawn(change);
    tokio::time::sleep(Duration::from_millis(20)).await;
    change
}

/// What a new handle on this inode reads.
async fn read(world: &World, ino: Ino) -> Reply<String> {
    let opened = world.open(1, ino).await?;
    let text = world.read(1, opened);
    world.tree.release(opened.fh);
    text
}

#[tokio::test]
async fn until_the_name_has_moved_every_open_gets_the_old_value_and_then_every_one_the_new() {
    let world = world();
    let older = world.ino("app/plain").await;
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "plain");
    world.put("a:app/plain", "first").await;
    let old = world.ino("app/plain").await;
    let held = world.open(1, old).await.unwrap();
    world.kernel.hold();
    let change = begin(&world, "second").await;
    assert!(!change.is_finished());
    for ino in [old, older] {
        assert_eq!(read(&world, ino).await.unwrap(), "first");
    }
    assert_eq!(world.ino("app/plain").await, old);
    world.kernel.let_go();
    change.await.unwrap();
    let new = world.ino("app/plain").await;
    assert_ne!(new, old);
    for ino in [new, old, older] {
        assert_eq!(read(&world, ino).await.unwrap(), "second");
    }
    assert_eq!(world.read(1, held).unwrap(), "first");
}

#[tokio::test]
async fn a_change_is_not_over_before_the_one_that_is_under_way() {
    let world = world();
    world.cat(1, "app/plain").await.unwrap();
    let old = world.ino("app/plain").await;
    world.kernel.hold();
    let (first, second) = (begin(&world, "first").await, begin(&world, "second").await);
    let same = changed(&world).await;
    let all = [first, second, same];
    assert!(all.iter().all(|change| !change.is_finished()));
    world.kernel.let_go();
    for change in all {
        change.await.unwrap();
    }
    let new = world.ino("app/plain").await;
    assert_ne!(new, old);
    assert_eq!(world.size(9, new).await, 6);
    assert_eq!(read(&world, new).await.unwrap(), "second");
}

#[tokio::test]
async fn nor_before_the_one_that_a_reader_has_found_out() {
    let world = world();
    world.cat(1, "app/plain").await.unwrap();
    let old = world.ino("app/plain").await;
    world.kernel.hold();
    world.a.put("app/plain", "found");
    world.later(61);
    let found = world.get(1, "app/plain").await.unwrap();
    assert_eq!(found.generation.value.open().unwrap().expose(), b"found");
    // Once for this name, and once for the other that comes from the same place, which nobody has asked for yet.
    let change = changed(&world).await;
    assert!(!change.is_finished());
    world.kernel.let_go();
    change.await.unwrap();
    assert_ne!(world.ino("app/plain").await, old);
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_does_not_move_the_name_holds_nothing_back_for_longer_than_a_second() {
    let world = world();
    world.cat(1, "app/plain").await.unwrap();
    let old = world.ino("app/plain").await;
    let held = world.open(1, old).await.unwrap();
    world.kernel.hold();
    let change = begin(&world, "longer than it was").await;
    assert_eq!(read(&world, old).await.unwrap(), "plain");
    tokio::time::timeout(Duration::from_millis(1100), change)
        .await
        .expect("a deadline")
        .unwrap();
    assert_eq!(read(&world, old).await.unwrap(), "longer than it was");
    assert_eq!(world.read(1, held).unwrap(), "plain");
    world.kernel.let_go();
    let new = world.ino("app/plain").await;
    assert_ne!(new, old);
    assert_eq!(read(&world, new).await.unwrap(), "longer than it was");
}

#[tokio::test]
async fn who_comes_to_an_inode_of_an_older_value_is_sent_to_the_name_first() {
    let world = world();
    let old = world.ino("app/plain").await;
    let held = world.open(1, old).await.unwrap();
    world.put("a:app/plain", "the next").await;
    let tree = Arc::clone(&world.tree);
    let open = async |uid, ino| tree.open(caller(uid), ino, false).wait().await;
    // By path: it finds its way.
    assert_eq!(open(1, old).await.unwrap_err(), FsError::Superseded);
    let new = world.ino("app/plain").await;
    let opened = open(1, new).await.unwrap();
    assert_eq!(world.read(1, opened).unwrap(), "the next");
    // By the inode: it comes back to it, and shares it with the older handle.
    assert_eq!(open(2, old).await.unwrap_err(), FsError::Superseded);
    let opened = open(2, old).await.unwrap();
    assert_eq!(world.read(2, opened).unwrap(), "the next");
    assert_eq!(world.read(1, held).unwrap(), "plain");
    // Nothing of that is an access of its own.
    let lines = world.log.lines();
    let expected = [
        "1 open app/plain allowed",
        "1 open app/plain allowed",
        "2 open app/plain allowed",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn however_many_come_to_an_older_inode_at_once_each_is_known_when_he_comes_back() {
    let world = world();
    let old = world.ino("app/plain").await;
    world.cat(1, "app/plain").await.unwrap();
    world.put("a:app/plain", "the next").await;
    let thread = |tid| Caller::new(Uid(1), Gid(1), Tid(tid));
    let open = |tid| world.tree.open(thread(tid), old, false).wait();
    for tid in 1..=1000 {
        assert_eq!(open(tid).await.unwrap_err(), FsError::Superseded);
    }
    for tid in 1..=1000 {
        let opened = open(tid).await.unwrap();
        world.tree.release(opened.fh);
    }
}

#[tokio::test]
async fn nobody_gets_the_old_value_once_somebody_got_the_new_one() {
    let world = world();
    world.cat(1, "app/plain").await.unwrap();
    let ino = world.ino("app/plain").await;
    world.kernel.hold();
    world.a.put("app/plain", "second");
    let reference: Reference = "a:app/plain".parse().unwrap();
    // Nobody has begun with it yet.
    let change = world.tree.changed([&reference], Change::Written);
    assert_eq!(read(&world, ino).await.unwrap(), "second");
    let change = tokio::spawn(change);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!change.is_finished());
    assert_eq!(read(&world, ino).await.unwrap(), "second");
    world.kernel.let_go();
    change.await.unwrap();
}
