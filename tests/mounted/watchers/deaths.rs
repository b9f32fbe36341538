//! The server dies in the middle of it: a put is whole or has not happened, and whoever watches hears of it.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use super::start;
use crate::common::ears::Ears;
use crate::common::machine::needs;
use crate::common::probe::Who;
use crate::common::{DEADLINE, eventually};

#[test]
fn a_put_under_way_when_the_server_dies_is_whole_or_has_not_happened_and_watchers_hear() {
    needs!();
    let daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let mut last = b"before\n".to_vec();
    daemon.put("a/x", &last);
    let fd = reader.open(&daemon.path("a/x")).unwrap();
    for turn in 0..8_u64 {
        let value = format!("value {turn}\n").repeat(100).into_bytes();
        std::fs::write(daemon.at("value"), &value).unwrap();
        assert_eq!(reader.cat(&daemon.path("a/x")), Ok(last.clone()));
        // Who dies right after he began is not followed for ever.
        thread::sleep(Duration::from_millis(150));
        let mut ears = [daemon.path("a"), daemon.path("a/x")].map(|path| Ears::on(&path));
        let file = daemon.at("value");
        let mut putting = daemon
            .command(&["put", "--file", file.to_str().unwrap(), "a/x"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Earlier and later in what the put does.
        thread::sleep(Duration::from_millis(turn * 4));
        kill(daemon.server(), Signal::SIGKILL).unwrap();
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
    // All of it on the one mount.
    assert_eq!(reader.pread(fd), Ok(b"before\n".to_vec()));
}
