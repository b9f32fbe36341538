//! Whoever watches a secret wakes when it is put, by whatever way it watches, and reads the new value at once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::common::daemon::{Daemon, Setup};
use crate::common::ears::Ears;
use crate::common::machine::{Need, needs};
use crate::common::mounts::Bind;
use crate::common::patience;
use crate::common::probe::{Probe, Who};
use crate::users::Machine;

mod deaths;
mod polling;
mod programs;
mod systemd;

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = [0, 1, 4001] }]
secrets.cached = { reads = "cached" }
"#;
const VALUES: [(&str, &[u8]); 3] = [
    ("a/x", b"canary of a watcher\n"),
    ("a/cached", b"canary of a watcher\n"),
    ("a/still", b"canary of a watcher\n"),
];
/// What a folder's watchers hear of a put.
const RENAMED: [&str; 2] = ["MOVED_FROM .next", "MOVED_TO x"];
/// What a file's watchers hear of it, if nobody holds the file.
const REPLACED: [&str; 3] = ["ATTRIB", "DELETE_SELF", "IGNORED"];

fn start() -> Daemon {
    Daemon::start(SERVICES, &VALUES)
}

/// The same again, read-only: of a folder or of a file.
fn bind(daemon: &Daemon, path: &str, name: &str) -> Bind {
    use nix::mount::{MsFlags, mount};
    let bind = daemon.bind(&daemon.path(path), name);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, bind.path(), None::<&str>, flags, None::<&str>).unwrap();
    bind
}

#[test]
fn whoever_watches_a_folder_hears_of_each_put_also_through_a_bind() {
    needs!();
    let daemon = start();
    let (folder, tree) = (bind(&daemon, "a", "folder"), bind(&daemon, "", "tree"));
    let places = [
        daemon.path("a"),
        folder.path().to_owned(),
        tree.path().join("a"),
    ];
    let mut ears = places.each_ref().map(|place| Ears::on(place));
    // At first nobody has opened it.
    for value in ["second", "third", "a longer one, the fourth"] {
        daemon.put("a/x", value.as_bytes());
        for (place, ears) in places.iter().zip(&mut ears) {
            assert_eq!(ears.hear("MOVED_TO x"), RENAMED, "{}", place.display());
            assert_eq!(fs::read(place.join("x")).unwrap(), value.as_bytes());
        }
    }
}

#[test]
fn whoever_watches_a_file_hears_of_the_next_put_and_then_watches_the_new_one() {
    needs!();
    let daemon = start();
    let (folder, tree) = (bind(&daemon, "a", "folder"), bind(&daemon, "", "tree"));
    for name in ["x", "cached"] {
        let places = [
            daemon.path("a").join(name),
            folder.path().join(name),
            tree.path().join("a").join(name),
        ];
        for value in ["second", "third", "a longer one, the fourth"] {
            let mut ears = places.each_ref().map(|place| Ears::on(place));
            let mut other = Ears::on(&daemon.path("a/still"));
            daemon.put(&format!("a/{name}"), value.as_bytes());
            for (place, ears) in places.iter().zip(&mut ears) {
                assert_eq!(ears.hear("IGNORED"), REPLACED, "{}", place.display());
                assert_eq!(fs::read(place).unwrap(), value.as_bytes());
            }
            assert_eq!(other.so_far(), [""; 0]);
        }
    }
}

#[test]
fn whoever_watches_the_bind_of_a_file_hears_of_one_put_only() {
    needs!();
    let daemon = start();
    let bind = bind(&daemon, "a/x", "file");
    let mut ears = Ears::on(bind.path());
    daemon.put("a/x", b"second");
    assert_eq!(ears.hear("ATTRIB"), ["ATTRIB"]);
    assert_eq!(fs::read(bind.path()).unwrap(), b"second");
    // The bind stays on the inode that it was made of, which nothing is renamed over any more.
    let mut again = Ears::on(bind.path());
    daemon.put("a/x", b"third");
    assert_eq!(fs::read(bind.path()).unwrap(), b"third");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(again.so_far(), [""; 0]);
    assert_eq!(ears.so_far(), [""; 0]);
    // When the bind goes so does the inode.
    drop(bind);
    assert_eq!(ears.hear("IGNORED"), ["DELETE_SELF", "IGNORED"]);
}

#[test]
fn who_holds_a_file_open_hears_at_once_and_again_when_it_is_closed() {
    needs!();
    let daemon = start();
    for name in ["x", "cached"] {
        let path = daemon.path("a").join(name);
        let mut ears = Ears::on(&path);
        let (held, another) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        daemon.put(&format!("a/{name}"), b"second");
        assert_eq!(ears.hear("ATTRIB"), ["ATTRIB"]);
        drop(held);
        // A later put is none of the old file's business.
        daemon.put(&format!("a/{name}"), b"third");
        assert_eq!(ears.so_far(), [""; 0]);
        drop(another);
        assert_eq!(ears.hear("IGNORED"), ["DELETE_SELF", "IGNORED"]);
    }
}

#[test]
fn what_comes_and_goes_is_heard_by_who_watches_the_folder_and_the_file() {
    needs!();
    let daemon = start();
    let bound = bind(&daemon, "a", "folder");
    let places = [daemon.path("a"), bound.path().to_owned()];
    let mut ears = places.each_ref().map(|place| Ears::on(place));
    let hear = |ears: &mut [Ears; 2], last: &str, all: &[&str]| {
        for ears in ears {
            assert_eq!(ears.hear(last), all);
        }
    };
    daemon.put("a/new", b"first");
    hear(
        &mut ears,
        "MOVED_TO new",
        &["MOVED_FROM .next", "MOVED_TO new"],
    );
    assert_eq!(fs::read(bound.path().join("new")).unwrap(), b"first");
    let mut file = Ears::on(&daemon.path("a/new"));
    daemon
        .secretfs(&["rm", "--force", "a/new"], b"")
        .expect_ok();
    hear(&mut ears, "DELETE new", &["DELETE new"]);
    assert_eq!(file.hear("IGNORED"), REPLACED);
    assert!(!daemon.path("a/new").exists());
    // Who holds it knows at once, and its inode is gone with the last handle.
    let mut file = Ears::on(&daemon.path("a/x"));
    let held = File::open(daemon.path("a/x")).unwrap();
    daemon.secretfs(&["rm", "--force", "a/x"], b"").expect_ok();
    hear(&mut ears, "DELETE x", &["DELETE x"]);
    assert_eq!(file.hear("ATTRIB"), ["ATTRIB"]);
    drop(held);
    assert_eq!(file.hear("IGNORED"), ["DELETE_SELF", "IGNORED"]);
    // One that nobody has ever looked up is gone for the folder's watchers like any other.
    daemon
        .secretfs(&["rm", "--force", "a/still"], b"")
        .expect_ok();
    hear(&mut ears, "DELETE still", &["DELETE still"]);
    // And it comes back.
    daemon.put("a/x", b"back");
    hear(&mut ears, "MOVED_TO x", &RENAMED);
}

#[test]
fn two_hundred_puts_in_a_row_wake_everybody_once_each_who_reads_the_new_value_at_once() {
    needs!();
    let daemon = start();
    let bound = bind(&daemon, "a", "folder");
    let ways: [(&str, PathBuf); 6] = [
        ("folder", daemon.path("a/x")),
        ("folder", bound.path().join("x")),
        ("file", daemon.path("a/x")),
        ("file", bound.path().join("x")),
        ("poll", daemon.path("a/x")),
        ("epoll", bound.path().join("x")),
    ];
    let mut watchers = ways.map(|(way, path)| watcher(&daemon, &Who::uid(4001), &path, way));
    for number in 0..200 * patience() {
        all_wake(&daemon, &mut watchers, &format!("value {number}"));
    }
}

/// A process that watches this secret in this way.
fn watcher(daemon: &Daemon, who: &Who, path: &Path, way: &str) -> (String, Probe) {
    let mut watcher = daemon.probe(who);
    watcher.ask("watch", json!([path, way])).unwrap();
    (format!("{way} of {}", path.display()), watcher)
}

/// Puts `a/x`: each of them wakes once, and reads the new value at once.
#[track_caller]
fn all_wake(daemon: &Daemon, watchers: &mut [(String, Probe)], value: &str) {
    for (_, watcher) in &mut *watchers {
        watcher.begin("wake", json!([]));
    }
    daemon.put("a/x", value.as_bytes());
    for (what, watcher) in watchers {
        let right = json!({"read": value, "more": 0});
        assert_eq!(watcher.answer("wake"), Ok(right), "{what}");
    }
}

#[test]
fn a_plain_users_own_mount_wakes_its_watchers() {
    needs!(Need::Program("fusermount3"));
    let _machine = Machine::with("# user_allow_other\n");
    let daemon = plain_users();
    assert!(
        !daemon.log().contains("will not be woken"),
        "{}",
        daemon.log()
    );
    let mut watchers = ["folder", "file", "poll"]
        .map(|way| watcher(&daemon, &Who::new(1, 1, &[]), &daemon.path("a/x"), way));
    for value in ["second", "third", "a longer one, the fourth"] {
        all_wake(&daemon, &mut watchers, value);
    }
}

#[test]
fn a_plain_users_mount_for_others_wakes_who_polls_and_says_that_it_wakes_no_others() {
    needs!(Need::Program("fusermount3"));
    let _machine = Machine::with("user_allow_other\n");
    let daemon = plain_users();
    assert!(
        daemon.log().contains("will not be woken"),
        "{}",
        daemon.log()
    );
    let mut folder = Ears::on(&daemon.path("a"));
    let mut file = Ears::on(&daemon.path("a/x"));
    let path = daemon.path("a/x");
    let mut pollers = [watcher(&daemon, &Who::uid(4001), &path, "poll")];
    all_wake(&daemon, &mut pollers, "second");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(folder.so_far(), [""; 0]);
    // Who looks at the old file in time lets the kernel know that it is gone.
    let heard = file.so_far();
    assert!(
        heard.is_empty() || heard == ["DELETE_SELF", "IGNORED"],
        "{heard:?}"
    );
}

fn plain_users() -> Daemon {
    let setup = Setup {
        services: SERVICES,
        values: &VALUES,
        starter: Some(1),
        ..Setup::default()
    };
    setup.start()
}
