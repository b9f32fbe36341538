//! User and pid namespaces: ids are the host's, whatever a caller calls itself, and who cannot be seen is denied.

use std::path::PathBuf;

use nix::errno::Errno;

use crate::common::daemon::{Daemon, Setup, tool};
use crate::common::machine::{Need, needs};
use crate::common::probe::Who;

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]

[services.by-gid]
source = "local:by-gid"
allow = [{ gid = 4100 }]

[services.for-root]
source = "local:for-root"
allow = [{ uid = 0 }]
"#;

const VALUE: &[u8] = b"canary of a namespace\n";
const VALUES: [(&str, &[u8]); 3] = [("a/x", VALUE), ("by-gid/x", VALUE), ("for-root/x", VALUE)];

fn yes() -> Result<Vec<u8>, Errno> {
    Ok(VALUE.to_vec())
}

fn no() -> Result<Vec<u8>, Errno> {
    Err(Errno::EACCES)
}

#[test]
fn in_a_user_namespace_a_caller_is_who_it_is_outside() {
    needs!(Need::Program("unshare"));
    let daemon = Daemon::start(SERVICES, &VALUES);
    let unshare = tool("unshare");
    let table: [(u32, &[&str], bool); 6] = [
        // Without a mapping, as root, and as somebody else: still uid 4001 on the host.
        (4001, &["-U"], true),
        (4001, &["-U", "-r"], true),
        (4001, &["-U", "--map-user=77"], true),
        // Whoever calls himself 4001 or root is not.
        (4009, &["-U", "--map-user=4001"], false),
        (4009, &["-U", "-r"], false),
        (0, &["-U", "--map-user=4001"], false),
    ];
    for (uid, options, allowed) in table {
        let mut words = vec![unshare.as_str()];
        words.extend(options);
        let mut probe = daemon.probe(&Who::uid(uid).wrapped(&words));
        let right = if allowed { yes() } else { no() };
        assert_eq!(probe.cat(&daemon.path("a/x")), right, "{uid} {options:?}");
        let right = if uid == 0 { yes() } else { no() };
        assert_eq!(
            probe.cat(&daemon.path("for-root/x")),
            right,
            "{uid} {options:?}"
        );
    }
}

#[test]
fn in_user_and_pid_namespaces_groups_are_still_found_out() {
    needs!(Need::Program("unshare"));
    let daemon = Daemon::start(SERVICES, &VALUES);
    let unshare = tool("unshare");
    for options in [
        &["-U", "-r", "--pid", "--fork"][..],
        &["-U", "-r", "--pid", "--fork", "--mount-proc"],
        &["-U"],
    ] {
        let mut words = vec![unshare.as_str()];
        words.extend(options);
        let mut member = daemon.probe(&Who::new(4009, 4009, &[4100]).wrapped(&words));
        assert_eq!(member.cat(&daemon.path("by-gid/x")), yes(), "{options:?}");
        let mut stranger = daemon.probe(&Who::new(4009, 4009, &[4101]).wrapped(&words));
        assert_eq!(stranger.cat(&daemon.path("by-gid/x")), no(), "{options:?}");
    }
}

/// A daemon in a pid namespace of its own, with a `/proc` and mounts of its own. Ended by its init's death.
fn inner(words: &[&str]) -> (Daemon, PathBuf, String) {
    let setup = Setup {
        services: SERVICES,
        values: &VALUES,
        wrapped: words,
        ..Setup::default()
    };
    let daemon = setup.start();
    let init = daemon.keeper();
    let view = PathBuf::from(format!(
        "/proc/{init}/root{}",
        daemon.mountpoint().display()
    ));
    (daemon, view, init.to_string())
}

#[test]
fn a_caller_that_the_daemon_cannot_see_is_denied() {
    needs!(Need::Program("unshare"), Need::Program("nsenter"));
    let unshare = tool("unshare");
    let (mut daemon, view, init) = inner(&[
        &unshare,
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
    ]);
    // Root outside of the namespace has thread id 0 for the daemon inside: rule or not.
    let outside = Who::root();
    assert_eq!(daemon.probe(&outside).cat(&view.join("for-root/x")), no());
    // So has root in another pid namespace beside it.
    let beside = Who::root().wrapped(&[&unshare, "--pid", "--fork", "--kill-child", "--"]);
    assert_eq!(daemon.probe(&beside).cat(&view.join("for-root/x")), no());
    // Root inside is seen.
    let nsenter = tool("nsenter");
    let inside = Who::root().wrapped(&[&nsenter, "-t", &init, "--pid", "--mount", "--"]);
    assert_eq!(daemon.probe(&inside).cat(&daemon.path("for-root/x")), yes());
    let below = Who::root().wrapped(&[
        &nsenter,
        "-t",
        &init,
        "--pid",
        "--mount",
        "--",
        &unshare,
        "--pid",
        "--fork",
        "--kill-child",
        "--",
    ]);
    assert_eq!(daemon.probe(&below).cat(&daemon.path("for-root/x")), yes());
    daemon.stop();
}

#[test]
fn a_daemon_whose_proc_is_of_another_pid_namespace_does_not_start() {
    needs!(Need::Program("unshare"));
    let unshare = tool("unshare");
    let setup = Setup {
        services: SERVICES,
        values: &VALUES,
        wrapped: &[&unshare, "--pid", "--fork", "--kill-child", "--"],
        ..Setup::default()
    };
    let mut daemon = setup.prepare();
    // Its /proc would name other processes by the numbers of the callers.
    let status = daemon.try_start().expect_err("it must not start");
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("/proc"), "{}", daemon.log());
    assert!(!daemon.log().trim_end().is_empty());
    assert_eq!(daemon.mounts(), []);
}
