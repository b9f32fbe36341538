//! A server is killed, and the next one goes on where it was: with what the kernel knows, and with every open file.

use std::time::Duration;

use nix::unistd::dup;
use secretfs::fs::{FsError, Ino, Kind, Unfit, Waiter};
use secretfs::sys::SharedMemory;

use super::{SERVICES, world};
use crate::callers::caller;
use crate::world::{World, request};

async fn killed(world: World) -> World {
    world.killed(SERVICES).await.unwrap()
}

#[tokio::test]
async fn inodes_and_handles_are_the_same_and_no_number_is_given_twice() {
    let world = world();
    let (plain, one) = (world.ino("app/plain").await, world.ino("free/one").await);
    let hidden = world.ino("app/.versions/1/plain").await;
    let (first, second) = (
        world.open(1, plain).await.unwrap(),
        world.open(1, one).await.unwrap(),
    );
    let size = world.size(1, plain).await;
    let reads = world.asked().0;
    let world = killed(world).await;
    assert_eq!(world.read(1, first).as_deref(), Ok("plain"));
    assert_eq!(world.read(1, second).as_deref(), Ok("1"));
    assert_eq!(world.asked().0, reads, "nothing had to be fetched");
    assert_eq!(world.ino("app/plain").await, plain);
    assert_eq!(world.ino("free/one").await, one);
    assert_eq!(world.ino("app/.versions/1/plain").await, hidden);
    assert_eq!(world.size(1, plain).await, size);
    // Nobody hears of a change, because there is none.
    assert_eq!(world.kernel.names(), [""; 0]);
    let again = world.open(1, plain).await.unwrap();
    let tell = again.tell.unwrap();
    assert!(
        !tell.grown,
        "the kernel knows its size, and drops its pages"
    );
    assert!(![first.fh, second.fh].contains(&again.fh));
    let fresh = world.ino("app/narrow").await;
    assert!(![plain, one, hidden].contains(&fresh));
    assert!(!world.tree.poll(first.fh, None).unwrap().outdated);
    for opened in [first, second, again] {
        world.tree.release(opened.fh);
    }
}

#[tokio::test]
async fn who_is_killed_before_anybody_came_leaves_nothing() {
    let world = killed(killed(world()).await).await;
    let ino = world.ino("app/plain").await;
    assert!(ino > Ino::ROOT);
    assert_eq!(world.cat(1, "app/plain").await.as_deref(), Ok("plain"));
}

#[tokio::test]
async fn a_reader_is_checked_as_before_and_what_was_taken_stays_taken() {
    let world = world();
    let (plain, cached) = (world.ino("app/plain").await, world.ino("app/cached").await);
    let read = world.open(2, plain).await.unwrap();
    let mapped = world.open(2, cached).await.unwrap();
    let kept = world.open(1, cached).await.unwrap();
    // By a group, which was asked for when it was opened.
    let grouped = world.open(3, cached).await.unwrap();
    let only_one = SERVICES.replace("uid = [1, 2]", "uid = 1");
    let world = world.killed(&only_one).await.unwrap();
    assert_eq!(world.read(2, read), Err(FsError::Denied));
    assert_eq!(world.read(2, mapped), Err(FsError::Denied));
    assert_eq!(world.read(1, kept).as_deref(), Ok("cached"));
    assert_eq!(world.read(3, grouped).as_deref(), Ok("cached"));
    // The rule comes back, the handle does not.
    let world = killed(world).await;
    assert_eq!(world.read(2, mapped), Err(FsError::Denied));
    assert_eq!(world.cat(2, "app/cached").await.as_deref(), Ok("cached"));
}

#[tokio::test]
async fn who_was_taken_a_handle_away_sees_no_page_that_comes_later() {
    let world = world();
    let cached = world.ino("app/cached").await;
    let mapped = world.open(2, cached).await.unwrap();
    let kept = world.open(1, cached).await.unwrap();
    let page = |world: &World| world.read_part(1, kept, 0, 6, true);
    assert_eq!(page(&world).as_deref(), Ok("cached"));
    // The server dies before the kernel has given the name to an inode that the other one does not hold.
    world.kernel.hold();
    world.reload(&SERVICES.replace("uid = [1, 2]", "uid = 1"));
    let _ = tokio::time::timeout(Duration::from_millis(50), world.tree.enforce()).await;
    assert_eq!(world.read(2, mapped), Err(FsError::Denied));
    world.kernel.lose();
    let world = killed(world).await;
    assert_eq!(page(&world), Err(FsError::Superseded));
    assert_eq!(world.read(1, kept).as_deref(), Ok("cached"));
    assert!(world.kernel.names().contains(&"cached".to_owned()));
    assert_ne!(world.ino("app/cached").await, cached);
    assert_eq!(world.cat(1, "app/cached").await.as_deref(), Ok("cached"));
}

#[tokio::test]
async fn who_is_not_known_for_a_while_loses_no_handle_that_is_checked_at_each_read() {
    let world = world();
    let plain = world.ino("app/plain").await;
    let opened = world.open(1, plain).await.unwrap();
    let nobody = r#"uid = [1, 2] }, { uid = "not-known-yet""#;
    let closed = SERVICES.replace("uid = [1, 2]", nobody);
    let world = world.killed(&closed).await.unwrap();
    assert_eq!(world.read(1, opened), Err(FsError::Denied));
    let world = killed(world).await;
    assert_eq!(world.read(1, opened).as_deref(), Ok("plain"));
}

#[tokio::test]
async fn other_views_than_the_current_one_make_nothing_old() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let current = world.open(1, ino).await.unwrap();
    let version = world.ino("app/.versions/1/plain").await;
    let earlier = world.open(1, version).await.unwrap();
    // The kernel holds this one alone.
    let fresh = world.ino("app/.fresh/cached").await;
    let newest = world.open(1, fresh).await.unwrap();
    let world = killed(world).await;
    for opened in [current, earlier, newest] {
        assert!(!world.tree.poll(opened.fh, None).unwrap().outdated);
    }
    assert_eq!(world.kernel.names(), [""; 0]);
    assert_eq!(world.ino("app/plain").await, ino);
    assert_eq!(world.read(1, earlier).as_deref(), Ok("plain"));
    assert_eq!(world.read(1, newest).as_deref(), Ok("cached"));
}

#[tokio::test]
async fn a_handle_keeps_its_value_and_its_watcher_hears_of_what_was_changed_and_not_told() {
    let world = world();
    let ino = world.ino("free/one").await;
    let opened = world.open(1, ino).await.unwrap();
    world.tree.poll(opened.fh, Some(Waiter(7))).unwrap();
    // The store has it, and nobody was told.
    world.b.put("free/one", "later");
    let world = killed(world).await;
    assert_eq!(world.kernel.woken(), [Waiter(7)]);
    assert_eq!(world.kernel.names(), ["one"]);
    assert_eq!(world.read(1, opened).as_deref(), Ok("1"));
    assert!(world.tree.poll(opened.fh, None).unwrap().outdated);
    assert_eq!(world.cat(1, "free/one").await.as_deref(), Ok("later"));
    assert_ne!(world.ino("free/one").await, ino);
}

#[tokio::test]
async fn a_change_under_way_is_made_by_the_next_server() {
    let world = world();
    world.ino("free/two").await;
    world.kernel.hold();
    let changed = world.put("b:free/two", "2222");
    let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
    assert_eq!(world.kernel.held(), 1);
    world.kernel.lose();
    let world = killed(world).await;
    assert!(world.kernel.names().contains(&"two".to_owned()));
    assert_eq!(world.cat(1, "free/two").await.as_deref(), Ok("2222"));
}

#[tokio::test]
async fn a_change_that_the_kernel_asked_for_and_got_no_answer_is_answered_by_the_next_server() {
    let world = world();
    let (folder, before) = (world.ino("free").await, world.ino("free/two").await);
    world.kernel.hold();
    let changed = world.put("b:free/two", "2222");
    let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
    // As the kernel does for the thread that renames.
    let hidden = world.kernel.hidden().unwrap();
    let after = world.tree.own_lookup(folder, &hidden).unwrap().ino;
    world.tree.looked_up(after);
    let (asked, other) = (request(), request());
    let made = world.tree.own_rename(folder, &hidden, "two", asked);
    assert_eq!(made, Ok(()));
    world.kernel.lose();
    world.kernel.hold();
    let world = killed(world).await;
    assert!(world.tree.has_made(asked));
    assert!(!world.tree.has_made(other));
    assert_eq!(world.ino("free/two").await, after);
    assert_ne!(after, before);
    assert_eq!(world.cat(1, "free/two").await.as_deref(), Ok("2222"));
}

#[tokio::test]
async fn a_removed_secret_s_handle_is_outdated_and_reads_on() {
    let world = world();
    let ino = world.ino("free/one").await;
    let opened = world.open(1, ino).await.unwrap();
    world.b.remove("free/one");
    let changed = "b:free/one".parse().unwrap();
    world
        .tree
        .changed([&changed], secretfs::fs::Change::Perhaps)
        .await;
    let world = killed(world).await;
    assert_eq!(world.read(1, opened).as_deref(), Ok("1"));
    assert!(world.tree.poll(opened.fh, None).unwrap().outdated);
    assert_eq!(world.cat(1, "free/one").await, Err(FsError::Absent));
}

#[tokio::test]
async fn look_ups_are_counted_on_and_what_the_kernel_gave_up_is_gone() {
    let world = world();
    let ino = world.ino("app/.versions/1/plain").await;
    assert_eq!(world.ino("app/.versions/1/plain").await, ino);
    let other = world.ino("app/.versions/1/cached").await;
    world.tree.forget(other, 1);
    let world = killed(world).await;
    let gone = |world: &World, ino: Ino| world.tree.listxattr(caller(1), ino).is_err();
    assert!(gone(&world, other));
    world.tree.forget(ino, 1);
    let world = killed(world).await;
    assert!(!gone(&world, ino));
    world.tree.forget(ino, 1);
    assert!(gone(&world, ino));
}

#[tokio::test]
async fn a_listing_goes_on_with_the_names_that_there_are() {
    let world = world();
    let folder = world.ino("app").await;
    let open = |uid, ino| world.tree.opendir(caller(uid), ino);
    let (mine, none) = (open(1, folder).wait().await, open(9, folder).wait().await);
    let (few, all) = (
        open(9, Ino::ROOT).wait().await,
        open(1, Ino::ROOT).wait().await,
    );
    let handles = [(1, mine), (9, none), (9, few), (1, all)];
    let handles = handles.map(|(uid, fh)| (uid, fh.unwrap()));
    let mut before = Vec::new();
    for (uid, fh) in handles {
        world.tree.given(fh, request());
        before.push(world.tree.readdir(caller(uid), fh).wait().await.unwrap());
    }
    let world = killed(world).await;
    for ((uid, fh), before) in handles.into_iter().zip(before) {
        let after = world.tree.readdir(caller(uid), fh).wait().await.unwrap();
        let names = |lines: &[secretfs::fs::DirEntry]| -> Vec<(String, Kind)> {
            let line = |line: &secretfs::fs::DirEntry| (line.name.to_string(), line.kind);
            lines.iter().map(line).collect()
        };
        assert_eq!(names(&after), names(&before));
        world.tree.release(fh);
    }
}

#[tokio::test]
async fn a_listing_has_what_is_there_for_who_reads_it_by_the_rules_of_now() {
    let world = world();
    let folder = world.ino("app").await;
    let mut handles = Vec::new();
    for uid in [1, 2] {
        let fh = world
            .tree
            .opendir(caller(uid), folder)
            .wait()
            .await
            .unwrap();
        world.tree.given(fh, request());
        handles.push((uid, fh));
    }
    let only_one = SERVICES.replace("uid = [1, 2]", "uid = 1");
    let world = world.killed(&only_one).await.unwrap();
    let mut counts = Vec::new();
    for (uid, fh) in handles {
        let entries = world.tree.readdir(caller(uid), fh).wait().await.unwrap();
        counts.push(entries.len());
    }
    assert!(counts[0] > 0 && counts[1] == 0, "{counts:?}");
}

#[tokio::test]
async fn a_handle_that_nobody_got_goes_when_the_kernel_gives_its_inode_up() {
    let world = world();
    let folder = world.ino("app/.versions/1").await;
    let ino = world.ino("app/.versions/1/plain").await;
    world.open(1, ino).await.unwrap();
    // It died before its answer came through, and the kernel does not ask again.
    let world = killed(world).await;
    assert_eq!(world.tree.figures().handles, 1);
    world.tree.forget(ino, 1);
    assert_eq!(world.tree.figures().handles, 0);
    let world = killed(world).await;
    let again = world.ino("app/.versions/1/plain").await;
    assert_ne!(again, ino);
    world.open(1, again).await.unwrap();
    let world = killed(world).await;
    assert_eq!(world.tree.figures().handles, 1);
    assert_eq!(world.ino("app/.versions/1").await, folder);
}

#[tokio::test]
async fn who_polls_is_woken_by_a_change_that_two_servers_made() {
    let world = world();
    let ino = world.ino("free/two").await;
    let opened = world.open(1, ino).await.unwrap();
    world.kernel.hold();
    let changed = world.put("b:free/two", "2222");
    let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
    world.tree.poll(opened.fh, Some(Waiter(7))).unwrap();
    world.kernel.lose();
    let world = killed(world).await;
    // At once, to ask again; there is another value by then, or it is woken once more.
    assert!(world.kernel.woken().contains(&Waiter(7)));
    assert!(world.tree.poll(opened.fh, None).unwrap().outdated);
    assert_eq!(world.kernel.names(), ["two"]);
}

#[tokio::test]
async fn who_dies_while_a_store_gets_other_values_leaves_no_number_to_go_on_with() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let opened = world.open(1, ino).await.unwrap();
    std::mem::forget(world.tree.doubt(&"a".parse().unwrap()));
    let world = killed(world).await;
    // Whatever its version says, it is another generation.
    assert!(world.tree.poll(opened.fh, None).unwrap().outdated);
    assert_eq!(world.kernel.names(), ["plain"]);
    assert_eq!(world.cat(1, "app/plain").await.as_deref(), Ok("plain"));
    let world = killed(world).await;
    assert_eq!(world.kernel.names(), [""; 0]);
}

#[tokio::test]
async fn a_value_that_is_lost_is_an_error_for_who_had_it_open_and_for_nobody_else() {
    let mut world = world();
    let ino = world.ino("app/plain").await;
    let opened = world.open(1, ino).await.unwrap();
    world.memory = SharedMemory::new().unwrap();
    let world = killed(world).await;
    assert_eq!(world.read(1, opened), Err(FsError::Superseded));
    assert_eq!(world.read(4, opened), Err(FsError::Denied));
    assert_eq!(world.cat(1, "app/plain").await.as_deref(), Ok("plain"));
    world.tree.release(opened.fh);
}

#[tokio::test]
async fn an_open_that_comes_again_leaves_one_handle() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let (unheard, heard) = (
        world.open(1, ino).await.unwrap(),
        world.open(1, ino).await.unwrap(),
    );
    let folder = world.tree.opendir(caller(1), Ino::ROOT).wait().await;
    let asked = [request(), request(), request()];
    world.tree.given(unheard.fh, asked[0]);
    world.tree.given(heard.fh, asked[1]);
    world.tree.given(folder.unwrap(), asked[2]);
    // One of which the kernel cannot have heard, as the server died before it said so.
    world.tree.open(caller(1), ino, false).wait().await.unwrap();
    let world = killed(world).await;
    assert_eq!(world.tree.figures().handles, 3);
    world.tree.comes_again(asked[0]);
    world.tree.comes_again(asked[2]);
    assert_eq!(world.tree.figures().handles, 1);
    assert_eq!(world.read(1, heard).as_deref(), Ok("plain"));
    assert!(world.read(1, unheard).is_err());
    // What this server gives comes again to the next one only.
    world.tree.comes_again(request());
    assert_eq!(world.tree.figures().handles, 1);
}

#[tokio::test]
async fn what_was_damaged_is_not_believed() {
    let world = world();
    let ino = world.ino("app/plain").await;
    world.open(1, ino).await.unwrap();
    let ledger = SharedMemory::map(dup(&world.ledger).unwrap()).unwrap();
    for range in ledger.held().unwrap() {
        let mut bytes = vec![0; range.len()];
        ledger.read(range.start, &mut bytes).unwrap();
        if let Some(at) = bytes.windows(5).position(|five| five == b"plain") {
            bytes[at] ^= 1;
        }
        ledger.write(range.start, &bytes).unwrap();
    }
    let unfit = world.killed(SERVICES).await.map(drop).unwrap_err();
    assert!(matches!(unfit, Unfit::Damaged(_)), "{unfit}");
}
