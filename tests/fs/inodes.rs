//! Inodes: what the kernel is told of them, and when they end.

use secretfs::fs::{FsError, Ino, Tell};

use crate::callers::caller;
use crate::world;

#[tokio::test]
async fn the_kernel_hears_of_a_length_before_the_open_is_answered() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let open = async || world.tree.open(caller(1), ino, false).wait().await.unwrap();
    let told = |size, grown| Some(Tell { ino, size, grown });
    // It knows 0 of what was never fetched.
    assert_eq!(open().await.tell, told(5, true));
    // Until it was told, each open has to.
    let second = open().await;
    assert_eq!(second.tell, told(5, true));
    world.tree.told(second.tell.unwrap());
    assert_eq!(open().await.tell, None);
    // What a stat says counts for nothing: a listing's older word may overtake it.
    let other = world.ino("app/pass").await;
    assert_eq!(world.size(1, other).await, 2);
    let opened = world.tree.open(caller(1), other, false).wait().await;
    let tell = opened.unwrap().tell.unwrap();
    assert_eq!((tell.size, tell.grown), (2, true));
    // An inode that was made for a value has had no other size.
    world.put("a:app/plain", "longer").await;
    let ino = world.ino("app/plain").await;
    assert_eq!(world.open(1, ino).await.unwrap().tell, None);
}

#[tokio::test]
async fn a_superseded_inode_is_taken_over_when_nobody_holds_it() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let first = world.open(1, ino).await.unwrap();
    world.tree.release(first.fh);
    for value in ["much longer", "xs", "as long as ever", ""] {
        world.put("a:app/plain", value).await;
        let opened = world.come(1, ino).await.unwrap();
        let tell = opened.tell.unwrap();
        assert_eq!(tell.size, u64::try_from(value.len()).unwrap());
        assert!(opened.direct && !opened.keep_pages);
        world.tree.told(tell);
        assert_eq!(world.size(9, ino).await, tell.size);
        assert_eq!(world.read(1, opened).unwrap(), value);
        world.tree.release(opened.fh);
    }
    // Another value of the same length is news too: pages of the old one have to go.
    world.put("a:app/plain", "12345").await;
    let opened = world.open(1, ino).await.unwrap();
    world.tree.release(opened.fh);
    world.put("a:app/plain", "67890").await;
    let opened = world.open(1, ino).await.unwrap();
    assert!(
        opened
            .tell
            .is_some_and(|tell| tell.size == 5 && !tell.grown)
    );
}

#[tokio::test]
async fn while_an_older_handle_lives_the_size_only_grows() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let old = world.open(1, ino).await.unwrap();
    for (value, size) in [("xs", 5), ("rather long", 11), ("", 11)] {
        world.put("a:app/plain", value).await;
        let opened = world.open(1, ino).await.unwrap();
        assert!(opened.direct);
        assert_eq!(world.size(9, ino).await, size, "{value}");
        assert_eq!(world.read(1, opened).unwrap(), value);
        world.tree.release(opened.fh);
    }
    assert_eq!(world.read(1, old).unwrap(), "plain");
    world.tree.release(old.fh);
    world.open(1, ino).await.unwrap();
    assert_eq!(world.size(9, ino).await, 0);
}

#[tokio::test]
async fn what_an_overtaken_fetch_brings_is_given_to_nobody_once_a_newer_value_was_shown() {
    let world = world();
    let ino = world.ino("app/cached").await;
    world.a.hold();
    let late = tokio::spawn(world.tree.open(caller(1), ino, false).wait());
    while world.a.held() == 0 {
        tokio::task::yield_now().await;
    }
    world.a.stop_holding();
    world.a.put("app/cached", "the newer one");
    // As an invalidation does that names nothing the tree knows.
    world.cache.invalidate(&"a:app/cached".parse().unwrap());
    let newer = world.open(1, ino).await.unwrap();
    world.kernel.names();
    world.a.let_go(0);
    let late = late.await.unwrap().unwrap();
    for opened in [newer, late] {
        assert!(!opened.direct);
        let page = world.read_part(1, opened, 0, 4096, true);
        assert_eq!(page.unwrap(), "the newer one");
    }
    assert_eq!(world.size(9, ino).await, 13);
    assert_eq!(world.ino("app/cached").await, ino);
    assert!(world.kernel.names().is_empty());
}

#[tokio::test]
async fn an_inode_lives_as_long_as_the_kernel_holds_a_look_up() {
    let world = world();
    let ino = world.ino("app/plain").await;
    assert_eq!(world.ino("app/plain").await, ino);
    world.put("a:app/plain", "two").await;
    let newer = world.ino("app/plain").await;
    assert_ne!(newer, ino);
    world.tree.forget(ino, 1);
    assert_eq!(world.size(9, ino).await, 0);
    world.tree.forget(ino, 1);
    let gone = world.tree.getattr(caller(9), ino).wait().await;
    assert_eq!(gone.unwrap_err(), FsError::Superseded);
    assert_eq!(world.open(1, ino).await.unwrap_err(), FsError::Superseded);
    // The one that the name leads to stays, and no number comes twice.
    world.tree.forget(newer, 1);
    assert_eq!(world.ino("app/plain").await, newer);
    world.tree.forget(Ino(1 << 40), 7);
    world.tree.forget(Ino::ROOT, 7);
    assert_eq!(world.ls(1, "").await.unwrap().len(), 3);
}

#[tokio::test]
async fn ten_thousand_rotations_leave_nothing_behind() {
    let world = world();
    let mut inos = Vec::new();
    let before = world.tree.figures();
    for round in 0..10_000_u32 {
        let ino = world.ino("app/plain").await;
        let opened = world.open(1, ino).await.unwrap();
        world.put("a:app/plain", &round.to_string()).await;
        world.tree.release(opened.fh);
        inos.push(ino);
        world.tree.forget(ino, 1);
    }
    let mut unique = inos.clone();
    unique.dedup();
    assert_eq!(unique.len(), 10_000);
    assert!(unique.is_sorted(), "no number is used twice");
    let after = world.tree.figures();
    // The folder, the secret, and another one that comes from the same place.
    assert!(after.inodes <= before.inodes + 3, "{after:?}");
    // The last one was fetched again, because it is in use.
    assert_eq!((after.handles, after.cache.values), (0, 1));
    assert_eq!(after.cache.flights, 0);
}
