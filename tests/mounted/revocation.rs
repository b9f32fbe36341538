//! What is taken away is gone: from new opens, from open handles, over restarts, until it is given back.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::common::daemon::Daemon;
use crate::common::machine::needs;
use crate::common::probe::{Probe, Who};
use crate::common::{DEADLINE, Output, eventually, run};

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = [4001, 4002] }]
manage = [{ uid = 4100 }]

[services.b]
source = "local:b"
allow = [{ uid = [4001, 4002] }]
"#;

const VALUE: &[u8] = b"canary of a revocation\n";

fn start() -> Daemon {
    Daemon::start(SERVICES, &[("a/x", VALUE), ("a/y", VALUE), ("b/x", VALUE)])
}

fn tell(daemon: &Daemon, words: &[&str]) {
    daemon.secretfs(words, b"").expect_ok();
}

/// The program as another user, who may not be able to reach it where it was built.
fn as_user(daemon: &Daemon, uid: u32, words: &[&str]) -> Output {
    let program = daemon.at("secretfs");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_secretfs"), &program).unwrap();
    }
    let config = daemon.at("config.toml");
    let mut all = vec![
        program.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
    ];
    all.extend(words);
    run(&mut Who::uid(uid).command(&all), b"")
}

/// What this user reads of `a/x`, `a/y` and `b/x`, as `+` and `-`.
fn reads(daemon: &Daemon, probe: &mut Probe) -> String {
    let read = |path: &str| match probe.cat(&daemon.path(path)) {
        Ok(value) if value == VALUE => '+',
        Err(Errno::EACCES) => '-',
        other => panic!("{path}: {other:?}"),
    };
    ["a/x", "a/y", "b/x"].map(read).iter().collect()
}

fn outcomes(daemon: &Daemon, action: &str, path: &str) -> Vec<String> {
    let text = fs::read_to_string(daemon.at("log/audit.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["action"] == action && line["path"] == path)
        .map(|line| line["outcome"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_revoked_secret_is_neither_opened_nor_read_from_what_is_open_until_it_is_unrevoked() {
    needs!();
    let mut daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let held = reader.open(&daemon.path("a/x")).unwrap();
    assert_eq!(reader.pread(held), Ok(VALUE.to_vec()));
    tell(&daemon, &["revoke", "a/x"]);
    assert_eq!(reader.pread(held), Err(Errno::EACCES));
    assert_eq!(reader.open(&daemon.path("a/x")), Err(Errno::EACCES));
    assert_eq!(
        reader.access(&daemon.path("a/x"), libc::R_OK),
        Err(Errno::EACCES)
    );
    assert_eq!(reads(&daemon, &mut reader), "-++");
    // Its name is no secret to who may list, and its manager replaces the value meanwhile.
    assert_eq!(
        reader.list(&daemon.path("a")),
        Ok(vec!["x".into(), "y".into()])
    );
    let got = as_user(&daemon, 4001, &["get", "a/x"]);
    assert_eq!(got.code(), 4, "{got:?}");
    assert!(got.stderr.contains("secretfs unrevoke a/x"), "{got:?}");
    let status = daemon.secretfs(&["status"], b"").expect_ok();
    assert!(String::from_utf8(status).unwrap().contains("a/x: since"));
    tell(&daemon, &["unrevoke", "a/x"]);
    assert_eq!(reads(&daemon, &mut reader), "+++");
    daemon.stop();
    assert!(outcomes(&daemon, "open", "a/x").contains(&"revoked".to_owned()));
    assert_eq!(outcomes(&daemon, "read", "a/x"), ["revoked"]);
    assert_eq!(outcomes(&daemon, "get", "a/x"), ["revoked"]);
    assert_eq!(outcomes(&daemon, "revoke", "a/x"), ["allowed"]);
    assert_eq!(outcomes(&daemon, "unrevoke", "a/x"), ["allowed"]);
}

#[test]
fn a_revocation_outlives_a_killed_server_and_a_restart_of_the_daemon() {
    needs!();
    let mut daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reads(&daemon, &mut reader), "+++");
    tell(&daemon, &["revoke", "a/x"]);
    kill(daemon.server(), Signal::SIGKILL).unwrap();
    // Not one success between.
    let back = eventually(DEADLINE, || {
        match reader.cat(&daemon.path("a/x")) {
            Err(Errno::EACCES) => {}
            Err(_) => return false,
            Ok(_) => panic!("read while revoked"),
        }
        reader.cat(&daemon.path("a/y")).as_deref() == Ok(VALUE)
    });
    assert!(back, "{}", daemon.log());
    tell(&daemon, &["revoke", "b"]);
    daemon.stop();
    daemon.start_keeper();
    assert_eq!(reads(&daemon, &mut reader), "-+-");
    tell(&daemon, &["unrevoke", "a/x"]);
    daemon.stop();
    // A list that cannot be read gives nothing back.
    let list = daemon.at("state/revocations.json");
    let whole = fs::read(&list).unwrap();
    fs::write(&list, &whole[..whole.len() / 2]).unwrap();
    daemon.try_start().unwrap_err();
    assert!(
        daemon.log().contains("state/revocations.json"),
        "{}",
        daemon.log()
    );
    fs::write(&list, &whole).unwrap();
    daemon.start_keeper();
    assert_eq!(reads(&daemon, &mut reader), "++-");
    daemon.stop();
}

#[test]
fn a_revocation_for_a_time_ends_by_itself() {
    needs!();
    let daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    tell(&daemon, &["revoke", "a", "--for", "2s"]);
    assert_eq!(reads(&daemon, &mut reader), "--+");
    thread::sleep(Duration::from_millis(2100));
    assert_eq!(reads(&daemon, &mut reader), "+++");
    let status = daemon.secretfs(&["--json", "status"], b"").expect_ok();
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["revoked"], Value::Array(Vec::new()));
}

#[test]
fn a_user_and_everything_can_be_revoked_each_for_itself() {
    needs!();
    let daemon = start();
    let mut one = daemon.probe(&Who::uid(4001));
    let mut two = daemon.probe(&Who::uid(4002));
    let held = two.open(&daemon.path("a/x")).unwrap();
    tell(&daemon, &["revoke", "--uid", "4001"]);
    assert_eq!(reads(&daemon, &mut one), "---");
    assert_eq!(reads(&daemon, &mut two), "+++");
    tell(&daemon, &["revoke", "--all"]);
    assert_eq!(reads(&daemon, &mut two), "---");
    assert_eq!(two.pread(held), Err(Errno::EACCES));
    // It gives back what it took, and says what it did not.
    let said = daemon.secretfs(&["unrevoke", "--all"], b"").expect_ok();
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("user 4001"), "{said}");
    assert_eq!(reads(&daemon, &mut one), "---");
    assert_eq!(reads(&daemon, &mut two), "+++");
    tell(&daemon, &["unrevoke", "--uid", "4001"]);
    assert_eq!(reads(&daemon, &mut one), "+++");
}

#[test]
fn who_manages_one_service_takes_away_nothing_of_another() {
    needs!();
    let daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    for words in [
        &["revoke", "b"][..],
        &["revoke", "b/x"],
        &["revoke", "b/x", "--version", "1"],
        &["revoke", "--uid", "4001"],
        &["revoke", "--all"],
    ] {
        for uid in [4100, 4001] {
            let ended = as_user(&daemon, uid, words);
            assert_eq!(ended.code(), 4, "{uid} {words:?}: {ended:?}");
        }
    }
    assert_eq!(reads(&daemon, &mut reader), "+++");
    let ended = as_user(&daemon, 4100, &["revoke", "a"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(reads(&daemon, &mut reader), "--+");
    let ended = as_user(&daemon, 4100, &["unrevoke", "a"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(reads(&daemon, &mut reader), "+++");
}
