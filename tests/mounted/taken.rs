//! What is taken away is gone from open files too: read, mapped, spliced, passed on, in both ways to read.

use nix::errno::Errno;
use serde_json::json;

use crate::common::daemon::Daemon;
use crate::common::machine::needs;
use crate::common::probe::{Probe, Who};
use crate::common::{DEADLINE, eventually};

const OWNER: u32 = 4001;
const OTHER: u32 = 4002;
const MODES: [&str; 2] = ["checked", "cached"];

fn services(allow: &str) -> String {
    format!(
        r#"
[services.a]
source = "local:a"
allow = [{allow}]
secrets.cached = {{ reads = "cached" }}
"#
    )
}

fn value() -> Vec<u8> {
    b"canary of what is taken\n".repeat(500)
}

fn start() -> Daemon {
    let services = services("{ uid = [4001, 4002] }");
    let value = value();
    Daemon::start(&services, &[("a/checked", &value), ("a/cached", &value)])
}

/// An open file of somebody's who has read it and mapped it.
#[derive(Debug)]
struct Held {
    fd: i64,
    mapping: usize,
}

/// `mapping`: how many this process has mapped before.
fn hold(probe: &mut Probe, daemon: &Daemon, secret: &str, mapping: usize) -> Held {
    let fd = probe.open(&daemon.path(secret)).unwrap();
    assert_eq!(probe.pread(fd), Ok(value()), "{secret}");
    assert_eq!(probe.map(fd, value().len()), Ok(value()), "{secret}");
    Held { fd, mapping }
}

/// What can still be got out of it: by read(2), from the mapping, by splice(2).
fn got(probe: &mut Probe, held: &Held) -> [bool; 3] {
    let mapped = probe.ask("mapped_if_there", json!([held.mapping]));
    [
        probe.pread(held.fd).is_ok(),
        mapped == Ok(json!(true)),
        probe.splice(held.fd).is_ok_and(|bytes| !bytes.is_empty()),
    ]
}

const NOTHING: [bool; 3] = [false; 3];
const EVERYTHING: [bool; 3] = [true; 3];

#[test]
fn a_revoked_secret_is_gone_from_handles_mappings_and_the_page_cache() {
    needs!();
    for (words, lift) in [
        (&["revoke", "a/checked"][..], &["unrevoke", "a/checked"][..]),
        (&["revoke", "a/cached"], &["unrevoke", "a/cached"]),
        (&["revoke", "a"], &["unrevoke", "a"]),
        (&["revoke", "--uid", "4001"], &["unrevoke", "--uid", "4001"]),
        (&["revoke", "--all"], &["unrevoke", "--all"]),
    ] {
        let daemon = start();
        let mut owner = daemon.probe(&Who::uid(OWNER));
        let mut other = daemon.probe(&Who::uid(OTHER));
        let held: Vec<(usize, Held)> = MODES
            .iter()
            .enumerate()
            .map(|(at, mode)| (at, hold(&mut owner, &daemon, &format!("a/{mode}"), at)))
            .collect();
        let passed: Vec<i64> = held
            .iter()
            .map(|(at, held)| owner.give(held.fd, &mut other, &daemon.door(&format!("{at}"))))
            .collect();
        daemon.secretfs(words, b"").expect_ok();
        for (at, held) in &held {
            let what = format!("{words:?}: {}", MODES[*at]);
            let spared = words[1].starts_with("a/") && words[1] != format!("a/{}", MODES[*at]);
            let right = if spared { EVERYTHING } else { NOTHING };
            assert_eq!(got(&mut owner, held), right, "{what}");
            if !spared {
                // Nor does whoever it was passed to find anything there.
                assert_eq!(other.pread(passed[*at]), Err(Errno::EACCES), "{what}");
                assert!(other.splice(passed[*at]).is_err(), "{what}");
                let path = daemon.path("a").join(MODES[*at]);
                assert_eq!(owner.open(&path), Err(Errno::EACCES), "{what}");
            }
        }
        daemon.secretfs(lift, b"").expect_ok();
        for (at, held) in &held {
            let what = format!("{lift:?}: {}", MODES[*at]);
            let path = daemon.path("a").join(MODES[*at]);
            assert_eq!(owner.cat(&path), Ok(value()), "{what}");
            let spared = words[1].starts_with("a/") && words[1] != format!("a/{}", MODES[*at]);
            if !spared {
                assert_eq!(
                    owner.pread(held.fd),
                    Err(Errno::EACCES),
                    "{what}: it was taken"
                );
            }
        }
    }
}

/// Of an empty file the kernel would answer a read through the page cache itself, with nothing: it would never ask.
#[test]
fn a_revoked_empty_value_is_refused_and_not_read_as_empty() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(OWNER));
    for mode in MODES {
        daemon.put(&format!("a/{mode}"), b"");
        let fd = owner.open(&daemon.path("a").join(mode)).unwrap();
        assert_eq!(owner.pread(fd), Ok(Vec::new()), "{mode}");
        daemon.secretfs(&["revoke", "a"], b"").expect_ok();
        assert_eq!(owner.pread(fd), Err(Errno::EACCES), "{mode}");
        daemon.secretfs(&["unrevoke", "a"], b"").expect_ok();
    }
}

/// The other's pages must not become the revoked one's: who still holds a descriptor could splice them.
#[test]
fn what_others_read_does_not_come_back_to_whom_it_was_taken_from() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(OWNER));
    let mut other = daemon.probe(&Who::uid(OTHER));
    for (at, mode) in MODES.into_iter().enumerate() {
        let path = daemon.path("a").join(mode);
        let bind = daemon.bind(&path, &format!("bound-{mode}"));
        let held = hold(&mut owner, &daemon, &format!("a/{mode}"), at);
        let before = other.open(&path).unwrap();
        daemon
            .secretfs(&["revoke", "--uid", "4001"], b"")
            .expect_ok();
        // The other reads on, by path, by the bind mount, and from what he has open as far as that is safe.
        assert_eq!(other.cat(&path), Ok(value()), "{mode}");
        assert_eq!(other.cat(bind.path()), Ok(value()), "{mode}: by the bind");
        let by_bind = other.open(bind.path()).unwrap();
        let _ = other.splice(by_bind);
        let _ = other.pread(before);
        let _ = other.splice(before);
        assert_eq!(got(&mut owner, &held), NOTHING, "{mode}");
        let by_path = other.open(&path).unwrap();
        assert_eq!(other.map(by_path, value().len()), Ok(value()), "{mode}");
        assert_eq!(got(&mut owner, &held), NOTHING, "{mode}");
        // With the last descriptor gone the inode is like any other.
        other.close(before);
        other.close(by_bind);
        owner.ask("unmap", json!([held.mapping])).unwrap();
        owner.close(held.fd);
        let mapped = eventually(DEADLINE, || {
            let fd = other.open(bind.path()).unwrap();
            let read = other.sendfile(fd);
            other.close(fd);
            read == Ok(value())
        });
        assert!(mapped, "{mode}");
        daemon
            .secretfs(&["unrevoke", "--uid", "4001"], b"")
            .expect_ok();
    }
}

#[test]
fn one_leaked_version_is_taken_out_of_open_files_and_the_current_one_stays() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(OWNER));
    for (at, mode) in MODES.into_iter().enumerate() {
        let path = daemon.path("a").join(mode);
        let secret = format!("a/{mode}");
        let old = hold(&mut owner, &daemon, &secret, 2 * at);
        let version = |version: &str| daemon.path("a/.versions").join(version).join(mode);
        let previous = daemon.path("a/.previous").join(mode);
        daemon.put(&secret, b"the second");
        assert_eq!(owner.cat(&previous), Ok(value()), "{mode}");
        let early = owner.open(&version("1")).unwrap();
        let new = owner.open(&path).unwrap();
        let refused = daemon.secretfs(&["revoke", &secret, "--version", "2"], b"");
        assert_eq!(refused.code(), 2, "the current one: {refused:?}");
        let refused = daemon.secretfs(&["revoke", &secret, "--version", "11"], b"");
        assert_eq!(refused.code(), 3, "no such version: {refused:?}");
        daemon
            .secretfs(&["revoke", &secret, "--version", "1"], b"")
            .expect_ok();
        assert_eq!(got(&mut owner, &old), NOTHING, "{mode}");
        assert_eq!(owner.pread(early), Err(Errno::EACCES), "{mode}");
        for path in [&previous, &version("1")] {
            assert_eq!(owner.open(path), Err(Errno::EACCES), "{}", path.display());
        }
        assert_eq!(owner.pread(new), Ok(b"the second".to_vec()), "{mode}");
        assert_eq!(owner.cat(&path), Ok(b"the second".to_vec()), "{mode}");
        assert_eq!(
            owner.cat(&version("2")),
            Ok(b"the second".to_vec()),
            "{mode}"
        );
        let got = daemon.secretfs(&["get", &secret, "--version", "1"], b"");
        assert_eq!(got.code(), 4, "{got:?}");
        owner.map(new, 10).unwrap();
    }
}

#[test]
fn a_reload_takes_what_the_new_rules_do_not_allow_from_open_files() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(OWNER));
    let mut other = daemon.probe(&Who::uid(OTHER));
    let held: Vec<Held> = MODES
        .iter()
        .enumerate()
        .map(|(at, mode)| hold(&mut owner, &daemon, &format!("a/{mode}"), at))
        .collect();
    let spared: Vec<Held> = MODES
        .iter()
        .enumerate()
        .map(|(at, mode)| hold(&mut other, &daemon, &format!("a/{mode}"), at))
        .collect();
    // A reload that changes nothing takes nothing.
    daemon.secretfs(&["reload"], b"").expect_ok();
    for held in &held {
        assert_eq!(got(&mut owner, held), EVERYTHING);
    }
    daemon.configure(&services("{ uid = 4002 }"));
    daemon.secretfs(&["reload"], b"").expect_ok();
    for (held, mode) in held.iter().zip(MODES) {
        assert_eq!(got(&mut owner, held), NOTHING, "{mode}");
    }
    // Who is allowed as before reads on in the checked mode; in the other he opens the file again, because the one who is
    // not allowed any more could see what came into the page cache.
    assert_eq!(other.pread(spared[0].fd), Ok(value()));
    assert_eq!(other.pread(spared[1].fd), Err(Errno::ESTALE));
    for mode in MODES {
        assert_eq!(
            other.cat(&daemon.path("a").join(mode)),
            Ok(value()),
            "{mode}"
        );
    }
    // Given back, the rules hold for new opens.
    daemon.configure(&services("{ uid = [4001, 4002] }"));
    daemon.secretfs(&["reload"], b"").expect_ok();
    for (held, mode) in held.iter().zip(MODES) {
        assert_eq!(owner.pread(held.fd), Err(Errno::EACCES), "{mode}");
        assert_eq!(
            owner.cat(&daemon.path("a").join(mode)),
            Ok(value()),
            "{mode}"
        );
    }
}

/// Who opened it in the right unit could be allowed still, so the file stays his; but pages are looked at unasked.
#[test]
fn what_others_map_does_not_come_to_whom_the_new_rules_have_yet_to_ask() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(OWNER));
    let mut other = daemon.probe(&Who::uid(OTHER));
    for (at, mode) in MODES.into_iter().enumerate() {
        let path = daemon.path("a").join(mode);
        let held = hold(&mut owner, &daemon, &format!("a/{mode}"), at);
        let before = other.open(&path).unwrap();
        daemon.configure(&services(
            r#"{ uid = 4001, unit = "none.service" }, { uid = 4002 }"#,
        ));
        daemon.secretfs(&["reload"], b"").expect_ok();
        let _ = other.splice(before);
        assert_eq!(got(&mut owner, &held), NOTHING, "{mode}");
        let by_path = other.open(&path).unwrap();
        assert_eq!(other.map(by_path, value().len()), Ok(value()), "{mode}");
        assert_eq!(got(&mut owner, &held), NOTHING, "{mode}");
        daemon.configure(&services("{ uid = [4001, 4002] }"));
        daemon.secretfs(&["reload"], b"").expect_ok();
    }
}

#[test]
fn who_polls_what_is_taken_away_hears_of_it() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(OWNER));
    let fd = owner.open(&daemon.path("a/checked")).unwrap();
    assert_eq!(owner.ask("poll", json!([fd, 0])), Ok(json!(0)));
    owner.begin("poll", json!([fd, 20_000]));
    daemon.secretfs(&["revoke", "a"], b"").expect_ok();
    let events = owner.answer("poll").unwrap().as_i64().unwrap();
    let expected = i64::from(libc::POLLPRI | libc::POLLERR);
    assert_eq!(events & expected, expected, "{events:x}");
}
