//! Those who follow what happens: `watch` and `wait` with the real daemon.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use secretfs::clock::Clock;
use serde_json::{Value, json};

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::needs;
use crate::common::probe::Who;
use crate::common::{DEADLINE, eventually, wait};

const READER: u32 = 4001;
const STRANGER: u32 = 4009;
/// Who manages service `a` and nothing else.
const MANAGER: u32 = 4010;
/// Who manage everything.
const MANAGERS: std::ops::RangeInclusive<u32> = 4020..=4023;

const TOP: &str = "manage = [{ uid = 0 }, { uid = \"4020-4023\" }]";
const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]
manage = [{ uid = 4010 }]
[services.b]
source = "local:b"
allow = [{ uid = 4001 }]
"#;

const VALUE: &[u8] = b"canary of those who watch";

/// How soon after something happened one who follows has heard of it, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(1);
/// Long enough for what should not happen.
const WHILE: Duration = Duration::from_millis(300);

fn daemon() -> Daemon {
    let setup = Setup {
        top: TOP,
        services: SERVICES,
        values: &[("a/x", VALUE), ("a/y", VALUE), ("b/x", VALUE)],
        ..Setup::default()
    };
    setup.start()
}

/// A command of the program that goes on, and the lines that it prints.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(daemon: &Daemon, uid: u32, words: &[&str]) -> Self {
        let mut command: Command = match uid {
            0 => daemon.command(words),
            uid => {
                let config = daemon.at("config.toml");
                let program = env!("CARGO_BIN_EXE_secretfs");
                let mut all = vec![program, "--config", config.to_str().unwrap()];
                all.extend(words);
                Who::uid(uid).command(&all)
            }
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Everyone's watches that see everything from now on.
    fn watch(daemon: &Daemon, who: &[(u32, &[&str])]) -> Vec<Self> {
        let before = logged(daemon, "watch", "allowed");
        let start = |(uid, words): &(u32, &[&str])| {
            let words: Vec<&str> = ["watch"].iter().chain(*words).copied().collect();
            Self::start(daemon, *uid, &words)
        };
        let started = who.iter().map(start).collect();
        // They listen before they are in the log.
        let all = eventually(DEADLINE, || {
            logged(daemon, "watch", "allowed") == before + who.len()
        });
        assert!(all, "{}", daemon.log());
        started
    }

    #[track_caller]
    fn event(&self, within: Duration) -> Value {
        let line = self.lines.recv_timeout(within).unwrap();
        assert!(!line.contains("canary"), "{line}");
        serde_json::from_str(&line).unwrap()
    }

    #[track_caller]
    fn silent(&self) {
        assert_eq!(
            self.lines.recv_timeout(WHILE),
            Err(RecvTimeoutError::Timeout)
        );
    }

    /// Its exit code, and what it said of it.
    #[track_caller]
    fn end(mut self, within: Duration) -> (Option<i32>, Vec<String>, String) {
        let status = wait(&mut self.child, within).expect("it goes on");
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        assert!(stderr.matches('\n').count() <= 1, "{stderr}");
        (status.code(), self.lines.iter().collect(), stderr)
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    #[track_caller]
    fn runs(&mut self) {
        thread::sleep(WHILE);
        assert!(!self.has_ended());
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many lines of the audit log say this.
fn logged(daemon: &Daemon, action: &str, outcome: &str) -> usize {
    let text = fs::read_to_string(daemon.at("log/audit.jsonl")).unwrap();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["action"] == action && line["outcome"] == outcome)
        .count()
}

fn generation(daemon: &Daemon, path: &str) -> u64 {
    let mut reader = daemon.probe(&Who::uid(READER));
    let name = "user.secretfs.generation";
    let number = reader.getxattr(&daemon.path(path), name).unwrap();
    String::from_utf8(number).unwrap().parse().unwrap()
}

#[test]
fn a_watch_sees_what_happens_at_once_and_ends_with_the_daemon() {
    needs!();
    let mut daemon = daemon();
    for uid in [READER, STRANGER] {
        let (code, lines, said) = Following::start(&daemon, uid, &["watch"]).end(DEADLINE);
        assert_eq!((code, lines.len()), (Some(4), 0), "{said}");
        assert!(said.contains("denied") && said.contains("manage"), "{said}");
    }
    assert_eq!(logged(&daemon, "watch", "denied"), 2);
    let watches = Following::watch(
        &daemon,
        &[
            (0, &[]),
            (MANAGER, &[]),
            (0, &["--path", "b", "--path", "a/y"]),
        ],
    );
    let [all, own, some] = &watches[..] else {
        panic!("{}", watches.len());
    };
    for (path, heard_by) in [
        ("a/x", vec![all, own]),
        ("b/x", vec![all, some]),
        ("a/y", vec![all, own, some]),
    ] {
        daemon.put(path, VALUE);
        for watch in heard_by {
            let event = watch.event(SOON);
            assert_eq!(
                (&event["event"], &event["path"]),
                (&json!("rotated"), &json!(path))
            );
            assert!(event["time"].is_string(), "{event}");
        }
    }
    // A name that the kernel holds, so that it is the open that is denied.
    let mut reader = daemon.probe(&Who::uid(READER));
    reader.open(&daemon.path("a/x")).unwrap();
    let mut stranger = daemon.probe(&Who::uid(STRANGER));
    assert_eq!(stranger.open(&daemon.path("a/x")), Err(Errno::EACCES));
    for watch in [all, own] {
        let event = watch.event(SOON);
        let (what, path) = (&event["event"], &event["path"]);
        assert_eq!((what, path), (&json!("denied"), &json!("a/x")), "{event}");
        assert_eq!(event["action"], "open");
        assert_eq!(
            (&event["uid"], &event["gid"]),
            (&json!(STRANGER), &json!(64_000))
        );
        assert!(
            event["rule"].as_str().unwrap().contains("no rule"),
            "{event}"
        );
    }
    drop((stranger, reader));
    for watch in [all, own, some] {
        watch.silent();
    }
    daemon.signal(Signal::SIGTERM);
    for watch in watches {
        let (code, lines, said) = watch.end(DEADLINE);
        assert_eq!((code, lines), (Some(1), Vec::new()), "{said}");
        assert!(said.contains("the daemon has ended"), "{said}");
    }
    assert!(daemon.ended().success());
}

#[test]
fn a_watch_hears_of_a_backend_that_goes_and_comes() {
    needs!();
    let mut daemon = daemon();
    let watches = Following::watch(&daemon, &[(0, &["--path", "b"]), (0, &[])]);
    // Without its capabilities not even root's server may read such files.
    let mode = |mode: u32| {
        for entry in fs::read_dir(daemon.at("data/local.d")).unwrap() {
            fs::set_permissions(entry.unwrap().path(), Permissions::from_mode(mode)).unwrap();
        }
    };
    let mut reader = daemon.probe(&Who::uid(READER));
    mode(0);
    for _ in 0..3 {
        assert_eq!(reader.open(&daemon.path("a/x")), Err(Errno::EIO));
    }
    let down = watches[1].event(SOON);
    assert_eq!(
        (&down["event"], &down["backend"]),
        (&json!("backend-down"), &json!("local"))
    );
    assert!(!down["why"].as_str().unwrap().is_empty(), "{down}");
    watches[1].silent();
    mode(0o600);
    assert_eq!(reader.cat(&daemon.path("a/x")).unwrap(), VALUE);
    let up = watches[1].event(SOON);
    assert_eq!(
        (&up["event"], &up["backend"]),
        (&json!("backend-up"), &json!("local"))
    );
    watches[0].silent();
    drop((watches, reader));
    daemon.stop();
}

#[test]
fn a_wait_returns_when_the_secret_changes() {
    needs!();
    let mut daemon = daemon();
    let first = generation(&daemon, "a/x");
    let after = first.to_string();
    let words = ["wait", "a/x", "--after", &after, "--timeout", "1m"];
    let mut waiting = Following::start(&daemon, READER, &words);
    daemon.put("b/x", VALUE);
    waiting.runs();
    daemon.put("a/x", b"canary two");
    let (code, lines, said) = waiting.end(SOON);
    let second = generation(&daemon, "a/x");
    assert_eq!((code, lines), (Some(0), vec![second.to_string()]), "{said}");
    assert!(second > first);
    // What changed before it came is not lost.
    let words = ["--json", "wait", "/secrets/a/x", "--after", &after];
    let words = words.map(|word| word.replace("/secrets", daemon.mountpoint().to_str().unwrap()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (code, lines, said) = Following::start(&daemon, READER, &words).end(DEADLINE);
    assert_eq!(code, Some(0), "{said}");
    let answer: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(
        answer,
        json!({ "path": "a/x", "generation": second, "version": "2" })
    );

    // From what is current when it comes.
    let mut waiting = Following::start(&daemon, READER, &["wait", "a/x"]);
    waiting.runs();
    let ended = eventually(DEADLINE, || {
        daemon.put("a/x", b"canary again");
        waiting.has_ended()
    });
    assert!(ended);
    assert_eq!(waiting.end(SOON).0, Some(0));
    // Each is a line in the log, and nothing else is.
    assert_eq!(logged(&daemon, "wait", "allowed"), 3);
    daemon.stop();
}

#[test]
fn a_wait_ends_without_a_change_too() {
    needs!();
    let mut daemon = daemon();
    let ends = |daemon: &Daemon, uid: u32, words: &[&str], code: i32, word: &str| {
        let (got, lines, said) = Following::start(daemon, uid, words).end(DEADLINE);
        assert_eq!((got, lines.len()), (Some(code), 0), "{words:?}: {said}");
        assert!(said.contains(word), "{words:?}: {said}");
    };
    let within = ["wait", "a/x", "--timeout", "300ms"];
    ends(&daemon, READER, &within, 1, "300ms");
    // The daemon hears that nobody waits any more.
    assert!(eventually(DEADLINE, || logged(&daemon, "wait", "allowed") == 1));
    ends(&daemon, READER, &["wait", "a/none"], 3, "a/none");
    ends(&daemon, STRANGER, &["wait", "a/x"], 4, "allow");
    // Who may change it may not read it.
    ends(&daemon, MANAGER, &["wait", "a/x"], 4, "allow");
    let logs = |outcome: &str| logged(&daemon, "wait", outcome);
    assert_eq!((logs("absent"), logs("denied")), (1, 2));

    let number = generation(&daemon, "a/y").to_string();
    let words = ["--json", "wait", "a/y", "--after", &number];
    let mut waiting = Following::start(&daemon, READER, &words);
    waiting.runs();
    daemon.secretfs(&["rm", "a/y"], b"").expect_ok();
    let (code, lines, said) = waiting.end(SOON);
    assert_eq!((code, said.as_str()), (Some(3), ""));
    let gone = r#"{"path":"a/y","removed":true}"#;
    assert_eq!(lines, [gone]);
    ends(&daemon, READER, &words[1..], 3, "removed");

    // Who may not read it any more when it changes does not hear of it.
    let number = generation(&daemon, "a/x").to_string();
    let words = ["wait", "a/x", "--after", &number];
    let mut waiting = Following::start(&daemon, READER, &words);
    waiting.runs();
    daemon.configure(&SERVICES.replace("4001", "4002"));
    daemon.secretfs(&["reload"], b"").expect_ok();
    daemon.put("a/x", VALUE);
    let (code, lines, said) = waiting.end(SOON);
    assert_eq!((code, lines.len()), (Some(4), 0), "{said}");
    daemon.configure(SERVICES);
    daemon.secretfs(&["reload"], b"").expect_ok();

    let before = logged(&daemon, "wait", "allowed");
    let number = generation(&daemon, "a/x").to_string();
    let words = ["wait", "a/x", "--after", &number];
    let mut waiting = Following::start(&daemon, READER, &words);
    waiting.runs();
    daemon.stop();
    let (code, lines, said) = waiting.end(DEADLINE);
    assert_eq!((code, lines.len()), (Some(1), 0), "{said}");
    assert!(said.contains("the daemon has ended"), "{said}");
    assert_eq!(logged(&daemon, "wait", "allowed"), before + 1);
    assert_eq!(logged(&daemon, "wait", "error"), 0);
}

#[test]
fn a_hundred_watchers_are_no_burden_and_leave_nothing_behind() {
    needs!();
    let mut daemon = daemon();
    let server = daemon.server();
    let count = |what: &str| {
        fs::read_dir(format!("/proc/{server}/{what}"))
            .unwrap()
            .count()
    };
    let descriptors = count("fd");
    let who: Vec<(u32, &[&str])> = (0..25)
        .flat_map(|_| MANAGERS.map(|uid| (uid, &[][..])))
        .collect();
    let watches = Following::watch(&daemon, &who);
    assert!(count("fd") >= descriptors + 100);
    let clock = Clock::default();
    let mut reader = daemon.probe(&Who::uid(READER));
    for n in 0..5_u8 {
        let started = clock.now();
        daemon.put("a/x", &[b'v', n]);
        let put = clock.now() - started;
        assert_eq!(reader.cat(&daemon.path("a/x")).unwrap(), [b'v', n]);
        let opened = clock.now() - started - put;
        assert!(put < 3 * SOON && opened < SOON, "{put:?}, {opened:?}");
    }
    for watch in &watches {
        for _ in 0..5 {
            let event = watch.event(DEADLINE);
            assert_eq!(
                (&event["event"], &event["path"]),
                (&json!("rotated"), &json!("a/x"))
            );
        }
    }
    // Each took a thread for the moment of its line in the audit log; idle ones end after ten seconds.
    assert!(
        eventually(DEADLINE, || count("task") < 32),
        "{} threads",
        count("task")
    );
    drop(watches);
    assert!(
        eventually(DEADLINE, || count("fd") <= descriptors + 2),
        "{} descriptors of {descriptors}",
        count("fd")
    );
    drop(reader);
    daemon.stop();
}

#[test]
fn one_user_cannot_wait_until_no_command_gets_through() {
    needs!();
    let mut daemon = daemon();
    let mut waits: Vec<Following> = (0..52)
        .map(|_| Following::start(&daemon, READER, &["wait", "a/x"]))
        .collect();
    let mut refused = Vec::new();
    let settled = eventually(DEADLINE, || {
        refused.extend(waits.extract_if(.., |wait| wait.has_ended()));
        refused.len() == 4
    });
    assert!(settled, "{} of 52 were refused", refused.len());
    for wait in refused {
        let (code, _, said) = wait.end(SOON);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("too many"), "{said}");
    }
    let mut got = Following::start(&daemon, READER, &["get", "a/x"]);
    assert!(wait(&mut got.child, DEADLINE).unwrap().success());
    let mut ended = Vec::new();
    assert!(eventually(DEADLINE, || {
        daemon.put("a/x", b"canary two");
        ended.extend(waits.extract_if(.., |wait| wait.has_ended()));
        waits.is_empty()
    }));
    for wait in ended {
        assert_eq!(wait.end(SOON).0, Some(0));
    }
    daemon.stop();
}
