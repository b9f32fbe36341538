//! What has been known to stop a FUSE file system for ever. Each test has the watchdog of its folder, which aborts the
//! connection: what hangs fails.

use std::fs::{self, File};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::common::daemon::Daemon;
use crate::common::ears::Ears;
use crate::common::machine::needs;
use crate::common::probe::{Probe, Who};
use crate::common::{DEADLINE, eventually, patience};
use crate::served::Served;

/// Of `a`, one name is known from the config, and for all others backend `b` has to be asked.
const WAITING: &str = r#"
[services.a]
source = "b:a"
allow = [{ uid = [0, 4001] }]
secrets.x = "a:a/x"

[services.other]
source = "a:other"
allow = [{ uid = [0, 4001] }]

[cache]
timeout = "60s"
"#;
const RENAMED: [&str; 2] = ["MOVED_FROM .next", "MOVED_TO x"];

/// Names change in a folder while 16 look-ups and 4 listings of the same folder wait for a backend.
fn names_change_while_lookups_wait(writable: bool) {
    let served = Served::start(
        &[("a/x", "first"), ("other/x", "first")],
        &[("a/y", "first")],
        WAITING,
        writable,
    );
    let who = Who::uid(4001);
    let (mut here, mut there) = (Ears::on(&served.path("a")), Ears::on(&served.path("other")));
    let mut reader = served.folder.probe(&who);
    let held = reader.open(&served.path("a/x")).unwrap();
    reader.cat(&served.path("other/x")).unwrap();
    served.world.b.hold();
    let mut lookers: Vec<Probe> = (0..20).map(|_| served.folder.probe(&who)).collect();
    for (number, looker) in lookers.iter_mut().enumerate() {
        match number {
            0..4 => looker.begin("list", json!([served.path("a")])),
            4 => looker.begin("stat", json!([served.path("a/y")])),
            _ => looker.begin("stat", json!([served.path(&format!("a/absent-{number}"))])),
        }
    }
    assert!(
        eventually(DEADLINE, || served.waiting() >= 20),
        "{}",
        served.waiting()
    );
    for turn in 0..3 {
        let value = format!("value {turn}");
        served.put("a:a/x", &value);
        assert_eq!(
            reader.cat(&served.path("a/x")),
            Ok(value.clone().into_bytes())
        );
        assert_eq!(reader.pread(held), Ok(b"first".to_vec()));
        served.put("a:other/x", &value);
        assert_eq!(reader.cat(&served.path("other/x")), Ok(value.into_bytes()));
        let heard: &[&str] = if writable { &RENAMED } else { &[] };
        assert_eq!(there.so_far(), heard);
    }
    assert!(served.waiting() >= 20, "{}", served.waiting());
    assert_eq!(here.so_far(), [""; 0]);
    served.world.b.stop_holding();
    for index in 0..served.world.b.held() {
        served.world.b.let_go(index);
    }
    for (number, looker) in lookers.iter_mut().enumerate() {
        match number {
            0..4 => assert_eq!(looker.answer("list"), Ok(json!(["x", "y"]))),
            4 => assert!(looker.answer("stat").is_ok()),
            _ => assert_eq!(looker.answer("stat"), Err(Errno::ENOENT)),
        }
    }
    if writable {
        assert_eq!(here.hear("MOVED_TO x"), RENAMED);
    }
    served.put("a:a/x", "the last");
    assert_eq!(reader.cat(&served.path("a/x")), Ok(b"the last".to_vec()));
}

#[test]
fn a_rename_waits_for_the_lookups_in_its_folder_and_nobody_waits_for_the_rename() {
    needs!();
    names_change_while_lookups_wait(true);
}

#[test]
fn forgetting_a_name_waits_for_the_lookups_in_its_folder_and_nobody_waits_for_that() {
    needs!();
    names_change_while_lookups_wait(false);
}

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = [0, 4001] }]
secrets.cached = { reads = "cached" }
secrets.large = { reads = "cached" }
"#;
const NAMES: [&str; 4] = ["x", "cached", "large", "gone"];

/// A value that is one word over and over, of a length that changes each time.
fn value(name: &str, turn: u32) -> Vec<u8> {
    let times = if name == "large" { 30_000 } else { 300 };
    let times = times + usize::try_from(turn * 7919 % 301).unwrap();
    vec![format!("{turn:07}"); times].join(" ").into_bytes()
}

fn start() -> Daemon {
    let values = NAMES.map(|name| (format!("a/{name}"), value(name, 0)));
    let values: Vec<(&str, &[u8])> = values
        .iter()
        .map(|(path, value)| (path.as_str(), value.as_slice()))
        .collect();
    Daemon::start(SERVICES, &values)
}

/// Processes that look up, list, open, read and map everything, until there is a file `end`.
fn churn(daemon: &Daemon, count: usize, bound: &[PathBuf]) -> Vec<Probe> {
    let begin = |_| {
        let mut probe = daemon.probe(&Who::uid(4001));
        let until = daemon.at("end");
        probe.begin("churn", json!([daemon.path("a"), NAMES, bound, until]));
        probe
    };
    (0..count).map(begin).collect()
}

#[test]
fn puts_go_on_while_16_processes_look_up_list_open_read_and_map_in_the_same_folder() {
    needs!();
    let daemon = start();
    let binds =
        ["x", "cached", "large"].map(|name| daemon.bind(&daemon.path("a").join(name), name));
    let bound = binds.each_ref().map(|bind| bind.path().to_owned());
    let mut churners = churn(&daemon, 16, &bound);
    let mut ears = Ears::on(&daemon.path("a"));
    for turn in 1..=12 * patience() {
        for name in NAMES {
            let (path, value) = (format!("a/{name}"), value(name, turn));
            if name == "gone" {
                daemon.secretfs(&["rm", "--force", &path], b"").expect_ok();
            }
            daemon.put(&path, &value);
            ears.hear(&format!("MOVED_TO {name}"));
            assert!(fs::read(daemon.path(&path)).unwrap() == value, "{name}");
        }
    }
    File::create(daemon.at("end")).unwrap();
    for churner in &mut churners {
        let answer = churner.answer("churn").unwrap();
        assert_eq!(answer["wrong"], json!([]));
        let done = answer["done"].as_object().unwrap();
        let often = |count: &Value| count.as_u64().unwrap() >= 3;
        assert!(done.len() == 9 && done.values().all(often), "{done:?}");
    }
}

#[test]
fn a_daemon_ends_and_lets_everyone_go_in_the_middle_of_it_all() {
    needs!();
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut daemon = start();
        let bind = daemon.bind(&daemon.path("a/cached"), "bound");
        let mut churners = churn(&daemon, 8, &[bind.path().to_owned()]);
        for turn in 1..4 {
            daemon.put("a/cached", &value("cached", turn));
        }
        // With a put under way.
        let mut putting = daemon
            .command(&["put", "--file", "/etc/passwd", "a/x"])
            .spawn()
            .unwrap();
        if end == Signal::SIGKILL {
            kill(daemon.server(), end).unwrap();
            // The next one goes on with the same mount.
            let mut reader = daemon.probe(&Who::uid(4001));
            let again = eventually(DEADLINE, || reader.cat(&daemon.path("a/x")).is_ok());
            assert!(again, "{}", daemon.log());
        } else {
            daemon.stop();
        }
        putting.wait().unwrap();
        File::create(daemon.at("end")).unwrap();
        for churner in &mut churners {
            // What they met on the way they met.
            churner.answer("churn").unwrap();
        }
    }
}
