//! The server dies in the middle of it: a put is whole or has not happened, and whoever watches hears of it.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secretfs::clock::Clock;

use super::start;
use crate::common::ears::Ears;
use crate::common::machine::needs;
use crate::common::probe::Who;
use crate::common::{DEADLINE, eventually};

/// So many puts, and in each the server is killed after this wait.
#[track_caller]
fn put_and_die(turns: u64, wait: impl Fn(u64, Pid)) {
    let daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut last = b"before\n".to_vec();
    daemon.put("a/x", &last);
    let fd = reader.open(&daemon.path("a/x")).unwrap();
    for turn in 0..turns {
        let value = format!("value {turn}\n").repeat(100).into_bytes();
        fs::write(daemon.at("value"), &value).unwrap();
        assert_eq!(reader.cat(&daemon.path("a/x")), Ok(last.clone()));
        // Who dies right after he began is not followed for ever.
        thread::sleep(Duration::from_millis(150));
        let mut ears = [daemon.path("a"), daemon.path("a/x")].map(|path| Ears::on(&path));
        let (file, server) = (daemon.at("value"), daemon.server());
        let mut putting = daemon
            .command(&["put", "--file", file.to_str().unwrap(), "a/x"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait(turn, server);
        kill(server, Signal::SIGKILL).unwrap();
        let acknowledged = putting.wait().unwrap().success();
        let mut read = None;
        let again = eventually(DEADLINE, || {
            read = reader.cat(&daemon.path("a/x")).ok();
            read.is_some()
        });
        assert!(again, "{turn}: {}", daemon.log());
        let read = read.unwrap();
        let whole = read == value || (read == last && !acknowledged);
        assert!(whole, "{turn}: {acknowledged} {}", read.escape_ascii());
        if read != last {
            // From the server that died or from the next one.
            let [folder, file] = &mut ears;
            folder.hear("MOVED_TO x");
            file.hear("ATTRIB");
        }
        last = read;
    }
    eprintln!(
        "KEPT {} of {turns}",
        daemon.log().matches("keeps a thread").count()
    );
    // All of it on the one mount.
    assert_eq!(reader.pread(fd), Ok(b"before\n".to_vec()));
}

#[test]
fn a_put_under_way_when_the_server_dies_is_whole_or_has_not_happened_and_watchers_hear() {
    needs!();
    // Earlier and later in what the put does.
    put_and_die(8, |turn, _| thread::sleep(Duration::from_millis(turn * 4)));
}

/// The kernel keeps such a server, until the next one answers.
#[test]
fn a_server_that_dies_while_it_waits_for_an_answer_of_its_own_is_followed_and_watchers_hear() {
    needs!();
    put_and_die(12, |turn, server| {
        waits_for_itself(server);
        let clock = Clock::default();
        let until = clock.now() + Duration::from_micros(turn % 4 * 20);
        while clock.now() < until {}
    });
}

/// Waits until the thread of this process that renames waits for an answer. Some have it too soon to be seen.
fn waits_for_itself(server: Pid) {
    let clock = Clock::default();
    let until = clock.now() + Duration::from_millis(500);
    let mut place = None;
    while clock.now() < until {
        let Some(place) = &place else {
            place = renaming(server);
            continue;
        };
        let at = fs::read_to_string(place).unwrap_or_default();
        if at.contains("request_wait_answer") {
            return;
        }
    }
}

/// Says where in the kernel the thread is that renames, if there is one.
fn renaming(server: Pid) -> Option<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{server}/task")).ok()?;
    let mut threads = threads.flatten().map(|thread| thread.path());
    let named = |name: String| name.trim_end() == "renames";
    let thread = threads.find(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(named))?;
    Some(thread.join("wchan"))
}
