//! The audit log after a run: what happened, no less and no more.

use std::collections::BTreeMap;
use std::fs;

use nix::errno::Errno;
use serde_json::Value;

use crate::common::daemon::Daemon;
use crate::common::machine::needs;
use crate::common::probe::Who;

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }, { gid = 4100 }]
secrets.hot = { reads = "cached" }
"#;

const CANARY: &[u8] = b"canary-of-the-audit-log";

/// How often each uid, path, action and outcome stands in the log.
type Counts = BTreeMap<(u64, String, String, String), u64>;

fn lines(daemon: &Daemon) -> Vec<Value> {
    let text = fs::read_to_string(daemon.at("log/audit.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn counts(daemon: &Daemon) -> Counts {
    let mut counts = Counts::new();
    for line in lines(daemon) {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let Some(uid) = line["uid"].as_u64() else {
            continue;
        };
        let key = (uid, text("path"), text("action"), text("outcome"));
        *counts.entry(key).or_default() += line["count"].as_u64().unwrap_or(1);
    }
    counts
}

#[test]
fn every_open_is_counted_with_how_it_ended_and_nothing_else_is() {
    needs!();
    let mut daemon = Daemon::start(SERVICES, &[("a/x", CANARY), ("a/hot", CANARY)]);
    let mut right = Counts::new();
    let mut expect = |uid: u32, path: &str, action: &str, outcome: &str, count: u64| {
        let key = (
            u64::from(uid),
            path.to_owned(),
            action.to_owned(),
            outcome.to_owned(),
        );
        *right.entry(key).or_default() += count;
    };
    let mut owner = daemon.probe(&Who::uid(4001));
    let mut member = daemon.probe(&Who::new(4002, 64_000, &[4100]));
    let mut stranger = daemon.probe(&Who::uid(4009));
    let mut root = daemon.probe(&Who::root());
    for secret in ["x", "hot"] {
        let path = daemon.path("a").join(secret);
        // Names and looks of things are no accesses.
        root.stat(&path).unwrap();
        for _ in 0..7 {
            owner.cat(&path).unwrap();
        }
        for _ in 0..5 {
            member.cat(&path).unwrap();
        }
        for _ in 0..3 {
            assert_eq!(stranger.open(&path), Err(Errno::EACCES));
        }
        assert_eq!(root.open(&path), Err(Errno::EACCES));
        owner.list(&daemon.path("a")).unwrap();
        owner.stat(&path).unwrap();
        owner.access(&path, libc::R_OK).unwrap();
        let name = format!("a/{secret}");
        expect(4001, &name, "open", "allowed", 7);
        expect(4002, &name, "open", "allowed", 5);
        expect(4009, &name, "open", "denied", 3);
        expect(0, &name, "open", "denied", 1);
    }
    // A descriptor in the wrong hands.
    let fd = owner.open(&daemon.path("a/x")).unwrap();
    let passed = owner.give(fd, &mut stranger, &daemon.door("audit"));
    assert_eq!(stranger.pread(passed), Err(Errno::EACCES));
    expect(4001, "a/x", "open", "allowed", 1);
    expect(4009, "a/x", "read", "denied", 1);
    // Commands.
    daemon.put("a/new", CANARY);
    expect(0, "a/new", "put", "allowed", 1);
    drop((owner, member, stranger, root));
    daemon.stop();

    let got = counts(&daemon);
    let got: Counts = got
        .into_iter()
        .filter(|((_, path, _, _), _)| !path.is_empty())
        .collect();
    assert_eq!(got, right);
    let text = fs::read(daemon.at("log/audit.jsonl")).unwrap();
    assert!(
        !text.windows(CANARY.len()).any(|part| part == CANARY),
        "a value in the log"
    );
    let verified = daemon.secretfs(&["audit", "--denied"], b"");
    let printed = String::from_utf8(verified.expect_ok()).unwrap();
    assert!(
        printed.contains("4009") && !printed.contains("4002"),
        "{printed}"
    );
}

#[test]
fn a_denied_open_says_who_and_from_where() {
    needs!();
    let mut daemon = Daemon::start(SERVICES, &[("a/x", CANARY)]);
    let mut stranger = daemon.probe(&Who::new(4009, 4010, &[4011]));
    let mut root = daemon.probe(&Who::root());
    root.stat(&daemon.path("a/x")).unwrap();
    stranger.open(&daemon.path("a/x")).unwrap_err();
    let pid = stranger.pid();
    drop((stranger, root));
    daemon.stop();
    let lines = lines(&daemon);
    let denied: Vec<&Value> = lines
        .iter()
        .filter(|line| line["outcome"] == "denied")
        .collect();
    assert_eq!(denied.len(), 1, "{denied:?}");
    assert_eq!(denied[0]["uid"], 4009);
    assert_eq!(denied[0]["gid"], 4010);
    assert_eq!(denied[0]["tid"], pid);
    assert!(
        denied[0]["comm"].as_str().unwrap().starts_with("python3"),
        "{denied:?}"
    );
    assert!(!denied[0]["rule"].as_str().unwrap().is_empty());
}

#[test]
fn nothing_opens_while_the_log_cannot_be_written() {
    needs!();
    let daemon = Daemon::start(SERVICES, &[("a/x", CANARY)]);
    let mut owner = daemon.probe(&Who::uid(4001));
    owner.cat(&daemon.path("a/x")).unwrap();
    // Its folder goes away under it, as a disk does.
    fs::rename(daemon.at("log"), daemon.at("log-gone")).unwrap();
    fs::write(daemon.at("log"), "not a folder").unwrap();
    let denied = crate::common::eventually(crate::common::DEADLINE, || {
        owner.cat(&daemon.path("a/x")) == Err(Errno::EACCES)
    });
    assert!(denied, "opens go on without a log");
    fs::remove_file(daemon.at("log")).unwrap();
    fs::rename(daemon.at("log-gone"), daemon.at("log")).unwrap();
    let again = crate::common::eventually(crate::common::DEADLINE, || {
        owner.cat(&daemon.path("a/x")).as_deref() == Ok(CANARY)
    });
    assert!(again, "opens do not go on with the log: {}", daemon.log());
}
