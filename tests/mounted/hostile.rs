//! What a local user does who means harm: nobody else may notice.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::common::daemon::{Daemon, Setup};
use crate::common::ears::Ears;
use crate::common::machine::{Need, needs};
use crate::common::mounts::Bind;
use crate::common::probe::{Probe, Who};
use crate::common::{DEADLINE, eventually};
use crate::users::Machine;

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = [4001, 4003] }]

[services.b]
source = "local:b"
allow = [{ uid = 4001 }]
"#;
const VALUE: &[u8] = b"canary of the hostile\n";
const VALUES: [(&str, &[u8]); 2] = [("a/x", VALUE), ("b/x", VALUE)];

/// Memory that is never there: a page of a file system whose server stands still. `who` is given one to borrow.
#[derive(Debug)]
struct Tar(Daemon);

impl Tar {
    fn new() -> Self {
        let services = r#"
[services.tar]
source = "local:tar"
allow = [{ uid = [4001, 4002, 4003] }]
"#;
        Self(Daemon::start(services, &[("tar/pit", VALUE)]))
    }

    /// A process of `who` that lists `directory` of `daemon` into that memory, for as long as this lives.
    fn lister(&self, daemon: &Daemon, who: u32, directory: &str) -> Probe {
        let mut lister = daemon.probe(&Who::uid(who));
        lister
            .ask("borrow", json!([self.0.path("tar/pit")]))
            .unwrap();
        kill(self.0.server(), Signal::SIGSTOP).unwrap();
        lister.begin("list_into", json!([daemon.path(directory)]));
        lister
    }

    fn waiting(&self) -> bool {
        let connection = self.0.mounts()[0].device;
        let count = format!("/sys/fs/fuse/connections/{connection}/waiting");
        fs::read_to_string(count).is_ok_and(|count| count.trim() != "0")
    }
}

impl Drop for Tar {
    fn drop(&mut self) {
        let _ = kill(self.0.server(), Signal::SIGCONT);
    }
}

#[test]
fn who_may_read_nothing_cannot_hold_a_directory_by_listing_it_for_ever() {
    needs!();
    let daemon = Daemon::start(SERVICES, &VALUES);
    let tar = Tar::new();
    let mut stranger = tar.lister(&daemon, 4002, "a");
    assert_eq!(stranger.answer("list_into"), Ok(json!(0)));
}

#[test]
fn who_holds_a_directory_by_listing_it_for_ever_holds_up_no_other_service() {
    needs!();
    let daemon = Daemon::start(SERVICES, &VALUES);
    let tar = Tar::new();
    let _insider = tar.lister(&daemon, 4003, "a");
    assert!(eventually(DEADLINE, || tar.waiting()), "nothing is held");
    // The kernel is to forget the old name, which takes the lock of the directory that is held.
    daemon.put("a/x", b"another");
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("b/x")), Ok(VALUE.to_vec()));
    daemon.put("b/x", b"longer than it was before");
    assert_eq!(
        reader.cat(&daemon.path("b/x")),
        Ok(b"longer than it was before".to_vec())
    );
}

#[test]
fn who_holds_a_directory_for_ever_holds_up_no_other_services_watchers() {
    needs!();
    let daemon = Daemon::start(SERVICES, &VALUES);
    let mut held = Ears::on(&daemon.path("a"));
    let mut other = Ears::on(&daemon.path("b"));
    let tar = Tar::new();
    let insider = tar.lister(&daemon, 4003, "a");
    assert!(eventually(DEADLINE, || tar.waiting()), "nothing is held");
    let mut reader = daemon.probe(&Who::uid(4001));
    let fd = reader.open(&daemon.path("a/x")).unwrap();
    reader
        .ask("watch", json!([daemon.path("a/x"), "poll"]))
        .unwrap();
    for turn in 0..3 {
        // The folder's lock is not to be had, so the new inode of this one has to wait, but nothing else has.
        let value = format!("value {turn}");
        reader.begin("wake", json!([]));
        daemon.put("a/x", value.as_bytes());
        assert_eq!(reader.answer("wake"), Ok(json!({"read": value, "more": 0})));
        daemon.put("b/x", value.as_bytes());
        assert_eq!(other.so_far(), ["MOVED_FROM .next", "MOVED_TO x"]);
        assert_eq!(reader.cat(&daemon.path("b/x")), Ok(value.into_bytes()));
    }
    assert_eq!(held.so_far(), [""; 0]);
    assert_eq!(reader.pread(fd), Ok(VALUE.to_vec()));
    drop((tar, insider));
    // What was held up is heard of in the end, as one: whoever wakes reads the last of them.
    assert_eq!(held.hear("MOVED_TO x"), ["MOVED_FROM .next", "MOVED_TO x"]);
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(b"value 2".to_vec()));
    daemon.put("a/x", b"and so on");
    assert_eq!(held.so_far(), ["MOVED_FROM .next", "MOVED_TO x"]);
}

#[test]
fn a_server_that_the_kernel_keeps_is_not_waited_for() {
    needs!();
    let mut daemon = Daemon::start(SERVICES, &VALUES);
    let tar = Tar::new();
    let _insider = tar.lister(&daemon, 4003, "a");
    assert!(eventually(DEADLINE, || tar.waiting()), "nothing is held");
    // The thread that has the name forgotten waits for the directory, and cannot be killed.
    daemon.put("a/x", b"another");
    let mut reader = daemon.probe(&Who::uid(4001));
    let fd = reader.open(&daemon.path("b/x")).unwrap();
    // Also while others mount and unmount things all the time, which the keeper hears of.
    let (end, place) = (AtomicBool::new(false), daemon.at("doors"));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::SeqCst) {
                let none = None::<&str>;
                mount(Some(&place), &place, none, MsFlags::MS_BIND, none).unwrap();
                drop(Bind::at(place.clone()));
                thread::sleep(Duration::from_millis(100));
            }
        });
        kill(daemon.server(), Signal::SIGKILL).unwrap();
        let answer = catch_unwind(AssertUnwindSafe(|| reader.cat(&daemon.path("b/x"))));
        end.store(true, Ordering::SeqCst);
        assert_eq!(answer.unwrap(), Ok(VALUE.to_vec()), "{}", daemon.log());
    });
    // On the same mount, and with the same store, whose lock the dead one does not keep.
    assert_eq!(reader.pread(fd), Ok(VALUE.to_vec()), "{}", daemon.log());
    daemon.put("b/x", b"another");
    assert_eq!(reader.cat(&daemon.path("b/x")), Ok(b"another".to_vec()));
    daemon.signal(Signal::SIGTERM);
    daemon.ended();
    assert_eq!(daemon.mounts(), []);
    daemon.start_keeper();
    assert_eq!(reader.cat(&daemon.path("b/x")), Ok(b"another".to_vec()));
}

#[test]
fn no_time_that_somebody_gives_a_file_ends_a_plain_users_server() {
    needs!(Need::Program("fusermount3"));
    let _machine = Machine::with("user_allow_other\n");
    let setup = Setup {
        services: SERVICES,
        values: &VALUES,
        starter: Some(1),
        ..Setup::default()
    };
    let daemon = setup.start();
    let server = daemon.server();
    let mut stranger = daemon.probe(&Who::uid(4002));
    for seconds in [i64::MIN, i64::MIN + 1, i64::MAX] {
        for path in [daemon.mountpoint(), daemon.path("a")] {
            let done = stranger.ask("utime", json!([path, seconds]));
            assert_eq!(done, Err(Errno::EROFS), "{seconds}");
        }
    }
    assert_eq!(daemon.server(), server, "{}", daemon.log());
}
