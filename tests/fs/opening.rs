//! open: what it answers, and what the audit log says of it.

use std::time::Duration;

use secretfs::access::DISTINCT;
use secretfs::caller::Caller;
use secretfs::fs::{FsError, Ino};
use secretfs::sys::{Gid, Tid, Uid};

use crate::callers::caller;
use crate::faulty::Weather;
use crate::world;

#[tokio::test(start_paused = true)]
async fn each_end_of_an_open_has_its_errno_and_its_outcome() {
    let table = [
        ("plain", Weather::Fine, None, "allowed"),
        ("pass", Weather::Fine, None, "allowed"),
        ("either", Weather::Fine, None, "allowed"),
        ("lost", Weather::Fine, Some(libc::ENOENT), "absent"),
        ("plain", Weather::Refusing, Some(libc::EACCES), "refused"),
        ("plain", Weather::Down, Some(libc::EIO), "unreachable"),
        (
            "plain",
            Weather::Silent,
            Some(libc::ETIMEDOUT),
            "unreachable",
        ),
        ("plain", Weather::Garbled, Some(libc::EIO), "error"),
        ("either", Weather::Down, Some(libc::EIO), "unreachable"),
    ];
    for (name, weather, errno, outcome) in table {
        let world = world();
        let ino = world.ino(&format!("app/{name}")).await;
        world.a.weather(weather);
        let opened = world.open(1, ino).await;
        let found = opened.err().map(FsError::errno);
        assert_eq!(found, errno, "{name} {weather:?}");
        let line = format!("1 open app/{name} {outcome}");
        assert_eq!(world.log.lines(), [line], "{weather:?}");
    }
}

#[tokio::test]
async fn a_secret_that_was_removed_is_absent() {
    let world = world();
    let ino = world.ino("app/plain").await;
    world.a.remove("app/plain");
    assert_eq!(world.open(1, ino).await.unwrap_err(), FsError::Absent);
    assert_eq!(world.log.lines(), ["1 open app/plain absent"]);
}

#[tokio::test]
async fn an_old_value_is_served_and_said_to_be_stale() {
    let world = world();
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "plain");
    assert_eq!(world.cat(1, "app/never").await.unwrap(), "plain");
    world.a.weather(Weather::Down);
    world.later(61);
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "plain");
    assert_eq!(
        world.cat(1, "app/never").await.unwrap_err(),
        FsError::Unreachable
    );
    world.later(600);
    assert_eq!(
        world.cat(1, "app/plain").await.unwrap_err(),
        FsError::Unreachable
    );
    let expected = [
        "1 open app/never allowed",
        "1 open app/never unreachable",
        "1 open app/plain allowed",
        "1 open app/plain stale",
        "1 open app/plain unreachable",
    ];
    assert_eq!(world.log.lines(), expected);
}

#[tokio::test]
async fn who_is_denied_is_denied_at_once_and_no_backend_is_asked() {
    let world = world();
    let paths = ["app/plain", "app/narrow", "bare/only", "free/one"];
    let mut inos = Vec::new();
    for path in paths {
        inos.push(world.ino(path).await);
    }
    let asked = world.asked();
    for weather in [Weather::Fine, Weather::Silent] {
        world.a.weather(weather);
        world.b.weather(weather);
        for ino in &inos {
            for uid in [0, 9] {
                let answer = world.tree.open(caller(uid), *ino, false);
                let secretfs::fs::Answer::Ready(answer) = answer else {
                    panic!("a no that waits");
                };
                assert_eq!(answer.unwrap_err(), FsError::Denied);
            }
        }
        let hidden = Caller::new(Uid(1), Gid(1), Tid(0));
        let answer = world.tree.open(hidden, inos[0], false).wait().await;
        assert_eq!(answer.unwrap_err(), FsError::Denied);
    }
    // Its own rules narrow the service's.
    assert_eq!(world.open(1, inos[1]).await.unwrap_err(), FsError::Denied);
    assert_eq!(world.asked(), asked);
    let lines = world.log.lines();
    assert_eq!(lines.len(), 2 * (2 * paths.len() + 1) + 1);
    assert!(lines.iter().all(|line| line.ends_with(" denied")));
}

#[tokio::test]
async fn nothing_opens_for_writing_and_no_directory_opens() {
    let world = world();
    let (dir, file) = (world.ino("app").await, world.ino("app/plain").await);
    let table = [
        (1, file, true, FsError::ReadOnly),
        (9, file, true, FsError::ReadOnly),
        (0, file, true, FsError::ReadOnly),
        (1, dir, false, FsError::IsDirectory),
        (1, Ino::ROOT, true, FsError::IsDirectory),
        (1, Ino(1 << 40), false, FsError::Superseded),
    ];
    for (uid, ino, writing, error) in table {
        let answer = world.tree.open(caller(uid), ino, writing).wait().await;
        assert_eq!(answer.unwrap_err(), error);
    }
    assert_eq!(world.asked().0, 0);
    assert!(world.log.lines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_open_waits_longer_than_the_deadline() {
    let world = world();
    let ino = world.ino("app/plain").await;
    world.a.weather(Weather::Silent);
    let began = tokio::time::Instant::now();
    let opened = world.open(1, ino).await;
    assert_eq!(opened.unwrap_err(), FsError::Timeout);
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn an_open_that_nobody_waits_for_any_more_is_written_down() {
    let world = world();
    let ino = world.ino("app/plain").await;
    world.a.hold();
    drop(world.tree.open(caller(1), ino, false));
    assert_eq!(world.log.lines(), ["1 open app/plain error"]);
}

#[tokio::test]
async fn nothing_opens_while_the_log_cannot_be_written() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let opened = world.open(1, ino).await.unwrap();
    let mandate = world
        .access
        .open(caller(1), &"app/plain".parse().unwrap(), "x");
    drop(mandate);
    world.log.break_it(secretfs::audit::Event {
        time: world.clock.timestamp(),
        action: "test".into(),
        uid: Uid(1),
        gid: Gid(1),
        tid: Tid(1),
        path: None,
        version: None,
        rule: None,
        outcome: secretfs::audit::Outcome::Allowed,
        micros: 0,
        comm: None,
        unit: None,
        container: None,
    });
    assert_eq!(world.open(1, ino).await.unwrap_err(), FsError::Denied);
    // A stat tells no more than before, and what is open stays open.
    assert_eq!(world.size(1, ino).await, 5);
    assert_eq!(world.size(1, world.ino("app/pass").await).await, 0);
    assert_eq!(world.read(1, opened).unwrap(), "plain");
}

#[tokio::test]
async fn a_change_is_seen_by_every_open_after_it() {
    let world = world();
    for (path, place) in [
        ("app/plain", "a:app/plain"),
        ("app/never", "a:app/plain"),
        ("app/either", "b:free/second"),
        // Found nothing there until now.
        ("app/either", "a:x/first"),
        ("free/one", "b:free/one"),
    ] {
        world.cat(1, path).await.unwrap();
        let old = world.ino(path).await;
        world.kernel.names();
        let held = world.open(1, old).await.unwrap();
        let before = world.read(1, held).unwrap();
        let value = format!("{before}, and more");
        world.put(place, &value).await;
        let name = path.rsplit('/').next().unwrap();
        assert!(
            world
                .kernel
                .names()
                .iter()
                .any(|forgotten| forgotten == name),
            "{path}"
        );
        // By the name, and by an inode from before.
        assert_eq!(world.cat(1, path).await.unwrap(), value);
        let again = world.open(1, old).await.unwrap();
        assert_eq!(world.read(1, again).unwrap(), value);
        assert_eq!(world.read(1, held).unwrap(), before);
        assert_ne!(world.ino(path).await, old);
        world.tree.release(held.fh);
        world.tree.release(again.fh);
    }
    // After a restore everything may be another value.
    let old = world.ino("app/plain").await;
    world.a.put_version("app/plain", "restored", 2);
    world.tree.invalidate_all().await;
    assert_ne!(world.ino("app/plain").await, old);
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "restored");
}

#[tokio::test]
async fn a_change_during_a_fetch_is_seen_by_who_comes_after_it() {
    let world = world();
    let ino = world.ino("app/plain").await;
    world.a.hold();
    let tree = world.tree.clone();
    let open = move || tokio::spawn(tree.open(caller(1), ino, false).wait());
    let before = open();
    tokio::time::sleep(Duration::from_millis(1)).await;
    world.put("a:app/plain", "changed").await;
    let after = open();
    tokio::time::sleep(Duration::from_millis(1)).await;
    world.a.let_go(1);
    let after = after.await.unwrap().unwrap();
    assert_eq!(world.read(1, after).unwrap(), "changed");
    world.a.let_go(0);
    // Whoever came before it and was overtaken gets no older value than the inode has shown.
    let before = before.await.unwrap().unwrap();
    assert_eq!(world.read(1, before).unwrap(), "changed");
    world.a.stop_holding();
    assert_eq!(world.cat(1, "app/plain").await.unwrap(), "changed");
    // Who looks at the size sees the newest as well.
    let ino = world.ino("app/plain").await;
    assert_eq!(world.size(9, ino).await, 7);
}

#[tokio::test]
async fn a_reload_holds_from_the_next_call_on() {
    let world = world();
    let ino = world.ino("app/plain").await;
    let opened = world.open(1, ino).await.unwrap();
    let cached = world.open(1, world.ino("app/cached").await).await.unwrap();
    let other = crate::SERVICES.replace("uid = [1, 2]", "uid = 4");
    world.reload(&other);
    assert_eq!(world.open(1, ino).await.unwrap_err(), FsError::Denied);
    // Each read of an open file is checked, unless its reads are cached.
    assert_eq!(world.read(1, opened).unwrap_err(), FsError::Denied);
    assert_eq!(world.read(1, cached).unwrap(), "cached");
    assert_eq!(world.cat(4, "app/plain").await.unwrap(), "plain");
    let moved = crate::SERVICES.replace("a:x/record#pass", "a:x/record#user");
    world.cat(4, "app/pass").await.unwrap();
    world.reload(&moved);
    assert_eq!(world.cat(1, "app/pass").await.unwrap(), "bo");
}

#[tokio::test]
async fn a_uid_has_so_many_different_secrets_fetched_in_a_minute_and_reads_what_is_here() {
    let world = world();
    let name = |number: usize| format!("app/n{number}");
    for number in 0..=DISTINCT {
        world.a.put(&name(number), "value");
    }
    for number in 0..DISTINCT {
        assert_eq!(world.cat(1, &name(number)).await.unwrap(), "value");
    }
    let last = name(DISTINCT);
    let reads = world.a.reads();
    assert_eq!(world.cat(1, &last).await, Err(FsError::Denied));
    assert_eq!(world.a.reads(), reads, "nobody was asked");
    // What is here, another uid, and then what that one had fetched.
    assert!(world.cat(1, &name(0)).await.is_ok());
    assert!(world.cat(2, &last).await.is_ok());
    assert!(world.cat(1, &last).await.is_ok());
    world.later(60);
    assert!(world.cat(1, &name(1)).await.is_ok());
    let line = format!("1 open {last} denied");
    assert_eq!(
        world.log.lines().iter().filter(|one| **one == line).count(),
        1
    );
}
