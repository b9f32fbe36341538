//! User and pid namespaces: ids are the host's, whatever a caller calls itself, and who cannot be seen is denied.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;

use crate::common::daemon::{Daemon, Setup, tool};
use crate::common::machine::{Need, needs};
use crate::common::probe::Who;
use crate::common::{DEADLINE, eventually};

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

const MAPS: &str = r#"
[services.mapped]
source = "local:a"
allow = [{ uid_map = "boxes-4008" }]

[services.narrowed]
source = "local:a"
allow = [{ uid_map = "boxes-4008", uid = 100007 }]

[services.late]
source = "local:a"
allow = [{ uid_map = "late-4008" }]
"#;

/// What somebody reads who is `uid` in a user namespace with this map, as engines make one for a container.
#[track_caller]
fn read_in_container(daemon: &Daemon, map: &str, uid: u32, secret: &str) -> Vec<u8> {
    let (keeper, uid) = (daemon.keeper().to_string(), uid.to_string());
    let become_it = "read mapped && exec setpriv --reuid=$0 --regid=$0 --clear-groups cat \"$1\"";
    let mut container = Command::new(tool("nsenter"))
        .args(["-t", &keeper, "-m", "unshare", "-U", "--keep-caps"])
        .args(["sh", "-c", become_it, &uid])
        .arg(daemon.path(secret))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let place = PathBuf::from(format!("/proc/{}", container.id()));
    let own = |proc: &Path| fs::read_link(proc.join("ns/user")).ok();
    let outside = own(Path::new("/proc/self"));
    assert!(eventually(DEADLINE, || own(&place) != outside));
    for file in ["uid_map", "gid_map"] {
        fs::write(place.join(file), map).unwrap();
    }
    container.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = container.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() || said.starts_with("cat: "),
        "{said}"
    );
    output.stdout
}

#[test]
fn a_map_holds_of_the_uids_that_etc_subuid_delegates_in_every_namespace() {
    needs!(
        Need::Program("unshare"),
        Need::Program("nsenter"),
        Need::File("/etc/subuid")
    );
    let folder = tempfile::tempdir().unwrap();
    let delegated = folder.path().join("subuid");
    fs::write(&delegated, "boxes-4008:100000:10\n").unwrap();
    // The machine's own file stays as it is: the daemon sees another in its place.
    let script = format!(
        "mount --bind {} /etc/subuid && exec \"$@\"",
        delegated.display()
    );
    let unshare = tool("unshare");
    let setup = Setup {
        services: MAPS,
        values: &VALUES,
        wrapped: &[&unshare, "-m", "--fork", "sh", "-c", &script, "sh"],
        ..Setup::default()
    };
    let mut daemon = setup.start();
    let reads = |map: &str, uid: u32, secret: &str| {
        let read = read_in_container(&daemon, map, uid, secret);
        assert!(read.is_empty() || read == VALUE, "{map}: {read:?}");
        !read.is_empty()
    };
    let box_of = "0 100000 10";
    let table = [
        (box_of, 0, "mapped/x", true),
        (box_of, 9, "mapped/x", true),
        (box_of, 7, "narrowed/x", true),
        (box_of, 8, "narrowed/x", false),
        // Somebody else's container, the machine's own root, and who calls himself by a delegated number.
        ("0 100010 10", 0, "mapped/x", false),
        ("0 0 10", 0, "mapped/x", false),
        ("100000 200000 10", 100_007, "narrowed/x", false),
        // Outside of a container it is the same uid.
        ("0 0 200000", 100_009, "mapped/x", true),
        ("0 0 200000", 4008, "mapped/x", false),
    ];
    for (map, uid, secret, allowed) in table {
        assert_eq!(reads(map, uid, secret), allowed, "{map}: {uid} {secret}");
    }

    // Delegated later: without a reload.
    let said = |words: &[&str]| {
        let output = daemon.secretfs(words, b"");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mend = "/etc/subuid delegates no uids to \"late-4008\": `usermod --add-subuids";
    for command in ["status", "doctor"] {
        assert!(said(&[command]).contains(mend), "{}", said(&[command]));
    }
    assert!(!reads("0 200000 10", 5, "late/x"));
    let both = "boxes-4008:100000:10\nlate-4008:200000:10\n";
    fs::write(&delegated, both).unwrap();
    let opened = eventually(DEADLINE, || reads("0 200000 10", 5, "late/x"));
    assert!(opened, "{}", daemon.log());
    assert!(!daemon.log().contains("read again"), "{}", daemon.log());

    // Delegated to somebody else, or by nobody knows whom: with the next reload.
    let moved = both.replace("100000", "300000");
    fs::write(&delegated, moved).unwrap();
    said(&["reload"]);
    assert!(!reads(box_of, 7, "mapped/x"));
    assert!(reads("0 300000 10", 7, "mapped/x"));
    let why = said(&["explain", "mapped/x", "--uid", "300007", "--gid", "5"]);
    assert!(why.contains("services.mapped.allow[0]"), "{why}");
    fs::set_permissions(&delegated, Permissions::from_mode(0o666)).unwrap();
    let reloaded = said(&["reload"]);
    for told in [&reloaded, &said(&["doctor"])] {
        assert!(told.contains("chmod go-w /etc/subuid"), "{told}");
    }
    assert!(!reads("0 300000 10", 7, "mapped/x"));
    daemon.stop();
}
