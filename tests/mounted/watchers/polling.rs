//! poll(2) and its kin on an open file, and fanotify(7).

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::select::{FdSet, select};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{bind, start};
use crate::common::machine::needs;
use crate::common::{DEADLINE, eventually};

/// What poll(2) says of everything.
fn polled(file: &File, wait: PollTimeout) -> PollFlags {
    let all = PollFlags::POLLIN | PollFlags::POLLRDNORM | PollFlags::POLLPRI | PollFlags::POLLOUT;
    polled_for(file, all, wait)
}

fn polled_for(file: &File, events: PollFlags, wait: PollTimeout) -> PollFlags {
    let mut fds = [PollFd::new(file.as_fd(), events)];
    poll(&mut fds, wait).unwrap();
    fds[0].revents().unwrap()
}

const READABLE: PollFlags = PollFlags::POLLIN.union(PollFlags::POLLRDNORM);

fn seconds() -> PollTimeout {
    PollTimeout::try_from(DEADLINE).unwrap()
}

#[test]
fn poll_says_pri_once_a_handle_is_outdated_and_nothing_before() {
    needs!();
    let daemon = start();
    let (folder, single) = (bind(&daemon, "a", "folder"), bind(&daemon, "a/x", "single"));
    for path in [
        daemon.path("a/x"),
        daemon.path("a/cached"),
        folder.path().join("x"),
        single.path().to_owned(),
    ] {
        let place = path.display();
        let secret = if path.ends_with("cached") {
            "a/cached"
        } else {
            "a/x"
        };
        for turn in 0..3 {
            let mut file = File::open(&path).unwrap();
            let pri = PollFlags::POLLPRI;
            assert_eq!(polled(&file, PollTimeout::ZERO), READABLE, "{place}");
            let quiet = polled_for(&file, pri, PollTimeout::from(50_u8));
            assert_eq!(quiet, PollFlags::empty(), "{place}");
            daemon.put("a/still", b"another secret's");
            assert_eq!(polled(&file, PollTimeout::ZERO), READABLE, "{place}");
            let value = format!("turn {turn} of {place}");
            thread::scope(|scope| {
                let waiting = scope.spawn(|| polled_for(&file, pri, seconds()));
                thread::sleep(Duration::from_millis(20));
                daemon.put(secret, value.as_bytes());
                assert_eq!(waiting.join().unwrap(), pri, "{place}");
            });
            // For as long as the handle is open, and however often it is asked or read.
            for _ in 0..3 {
                assert_eq!(polled(&file, PollTimeout::ZERO), READABLE | pri, "{place}");
                file.read_to_end(&mut Vec::new()).unwrap();
            }
            let new = File::open(&path).unwrap();
            assert_eq!(polled(&new, PollTimeout::ZERO), READABLE, "{place}");
            let mut read = String::new();
            (&new).read_to_string(&mut read).unwrap();
            assert_eq!(read, value);
        }
    }
}

#[test]
fn epoll_and_select_wake_likewise() {
    needs!();
    let daemon = start();
    let path = daemon.path("a/x");
    let pri = EpollFlags::EPOLLPRI;
    for turn in 0..3 {
        let file = File::open(&path).unwrap();
        let level = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let edge = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        level.add(&file, EpollEvent::new(pri, 7)).unwrap();
        edge.add(&file, EpollEvent::new(pri | EpollFlags::EPOLLET, 7))
            .unwrap();
        let woken = |epoll: &Epoll, wait: EpollTimeout| {
            let mut events = [EpollEvent::empty(); 4];
            let count = epoll.wait(&mut events, wait).unwrap();
            events[..count]
                .iter()
                .map(EpollEvent::events)
                .collect::<Vec<_>>()
        };
        let excepted = |wait: i64| {
            let (mut set, mut wait) = (FdSet::new(), TimeVal::milliseconds(wait));
            set.insert(file.as_fd());
            select(None, None, None, &mut set, &mut wait).unwrap()
        };
        assert_eq!(woken(&level, EpollTimeout::from(30_u8)), []);
        assert_eq!(woken(&edge, EpollTimeout::ZERO), []);
        assert_eq!(excepted(30), 0);
        let long = EpollTimeout::try_from(DEADLINE).unwrap();
        let very_long = i64::try_from(DEADLINE.as_millis()).unwrap();
        thread::scope(|scope| {
            let by_level = scope.spawn(|| woken(&level, long));
            let by_edge = scope.spawn(|| woken(&edge, long));
            let by_select = scope.spawn(|| excepted(very_long));
            thread::sleep(Duration::from_millis(20));
            daemon.put("a/x", format!("turn {turn}").as_bytes());
            assert_eq!(by_level.join().unwrap(), [pri]);
            assert_eq!(by_edge.join().unwrap(), [pri]);
            assert_eq!(by_select.join().unwrap(), 1);
        });
        // Level-triggered: for as long as it is open.
        assert_eq!(woken(&level, EpollTimeout::ZERO), [pri]);
        assert_eq!(excepted(0), 1);
    }
}

#[test]
fn who_polls_hears_of_what_is_destroyed_and_of_what_comes_back() {
    needs!();
    let daemon = start();
    let file = File::open(daemon.path("a/x")).unwrap();
    let pri = PollFlags::POLLPRI;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| polled_for(&file, pri, seconds()));
        thread::sleep(Duration::from_millis(20));
        daemon.secretfs(&["rm", "--force", "a/x"], b"").expect_ok();
        assert_eq!(waiting.join().unwrap(), pri);
    });
    daemon.put("a/x", b"back");
    let new = File::open(daemon.path("a/x")).unwrap();
    assert_eq!(polled(&new, PollTimeout::ZERO), READABLE);
    assert_eq!(polled(&file, PollTimeout::ZERO), READABLE | pri);
}

#[test]
fn who_is_gone_while_it_polls_disturbs_nobody() {
    needs!();
    let daemon = start();
    let path = daemon.path("a/x");
    for turn in 0..20 {
        let (leaver, stayer) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        let pri = PollFlags::POLLPRI;
        // Asked once with somebody waiting, so that it is to be woken, and closed before that.
        assert_eq!(
            polled_for(&leaver, pri, PollTimeout::from(1_u8)),
            PollFlags::empty()
        );
        thread::scope(|scope| {
            let waiting = scope.spawn(|| polled_for(&stayer, pri, seconds()));
            drop(leaver);
            daemon.put("a/x", format!("turn {turn}").as_bytes());
            assert_eq!(waiting.join().unwrap(), pri);
        });
    }
}

#[test]
fn fanotify_marks_on_a_folder_and_on_a_file_wake() {
    needs!();
    let daemon = start();
    let bound = bind(&daemon, "a", "folder");
    let folder_mask = MaskFlags::FAN_MOVED_TO | MaskFlags::FAN_DELETE | MaskFlags::FAN_ONDIR;
    let file_mask = MaskFlags::FAN_ATTRIB | MaskFlags::FAN_DELETE_SELF;
    let mark = |path: &std::path::Path, mask: MaskFlags| {
        let flags = InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            // As for every file system that cannot be relied on for a descriptor.
            | InitFlags::from_bits_retain(libc::FAN_REPORT_FID);
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY).unwrap();
        group
            .mark(MarkFlags::FAN_MARK_ADD, mask, AT_FDCWD, Some(path))
            .unwrap();
        group
    };
    // A call may carry several of them as one.
    let heard = |group: &Fanotify, wanted: MaskFlags| {
        let mut all = MaskFlags::empty();
        let came = eventually(DEADLINE, || {
            let events = group.read_events().unwrap_or_default();
            all |= events.iter().map(|event| event.mask()).collect();
            all.contains(wanted)
        });
        assert!(came, "{all:?} and no {wanted:?}");
        all
    };
    let folders = [daemon.path("a"), bound.path().to_owned()];
    let folders = folders.map(|folder| mark(&folder, folder_mask));
    for turn in 0..3 {
        let files = [daemon.path("a/x"), bound.path().join("x")];
        let files = files.map(|file| mark(&file, file_mask));
        daemon.put("a/x", format!("turn {turn}").as_bytes());
        for group in &folders {
            assert_eq!(
                heard(group, MaskFlags::FAN_MOVED_TO),
                MaskFlags::FAN_MOVED_TO
            );
        }
        for group in &files {
            assert_eq!(heard(group, file_mask), file_mask);
        }
    }
    daemon.secretfs(&["rm", "--force", "a/x"], b"").expect_ok();
    for group in &folders {
        assert_eq!(heard(group, MaskFlags::FAN_DELETE), MaskFlags::FAN_DELETE);
    }
}
