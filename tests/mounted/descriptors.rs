//! Descriptors that travel: over a socket, through a setuid program, through `/proc`. In the checked mode it counts who
//! reads, not who opened.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;

use crate::common::daemon::Daemon;
use crate::common::machine::{Need, needs, program};
use crate::common::probe::{PYTHON, Who};

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]
secrets.hot = { reads = "cached" }

[services.for-root]
source = "local:for-root"
allow = [{ uid = 0 }]
"#;

const VALUE: &[u8] = b"canary of a descriptor\n";

fn start() -> Daemon {
    Daemon::start(
        SERVICES,
        &[
            ("a/plain", VALUE),
            ("a/hot", VALUE),
            ("for-root/plain", VALUE),
        ],
    )
}

#[test]
fn a_descriptor_passed_to_another_uid_reads_nothing() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(4001));
    let fd = owner.open(&daemon.path("a/plain")).unwrap();
    for (name, who) in [("stranger", Who::uid(4009)), ("root", Who::root())] {
        let mut other = daemon.probe(&who);
        let passed = owner.give(fd, &mut other, &daemon.door(name));
        assert_eq!(other.pread(passed), Err(Errno::EACCES), "{name}");
        assert_eq!(other.sendfile(passed), Err(Errno::EACCES), "{name}");
        let size = u64::try_from(VALUE.len()).unwrap();
        assert_eq!(other.fstat(passed).unwrap().size, size, "{name}");
    }
    assert_eq!(owner.pread(fd), Ok(VALUE.to_vec()), "its owner still reads");
}

#[test]
fn a_descriptor_passed_to_another_allowed_uid_reads() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(4001));
    let mut same = daemon.probe(&Who::new(4001, 7, &[8]));
    let fd = owner.open(&daemon.path("a/plain")).unwrap();
    let passed = owner.give(fd, &mut same, &daemon.door("same"));
    drop(owner);
    assert_eq!(same.pread(passed), Ok(VALUE.to_vec()));
}

/// What the docs say of `reads = "cached"`: the open was the check, and the descriptor is worth the value.
#[test]
fn in_the_cached_mode_a_passed_descriptor_is_worth_the_value() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(4001));
    let mut other = daemon.probe(&Who::uid(4009));
    let fd = owner.open(&daemon.path("a/hot")).unwrap();
    let passed = owner.give(fd, &mut other, &daemon.door("other"));
    assert_eq!(other.pread(passed), Ok(VALUE.to_vec()));
    assert_eq!(other.open(&daemon.path("a/hot")), Err(Errno::EACCES));
}

/// The documented exception: pages that the owner itself mapped are in the page cache.
#[test]
fn what_the_owner_mapped_can_be_spliced_by_whom_it_gave_the_descriptor_and_not_read() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(4001));
    let mut other = daemon.probe(&Who::uid(4009));
    let fd = owner.open(&daemon.path("a/plain")).unwrap();
    let passed = owner.give(fd, &mut other, &daemon.door("other"));
    assert_eq!(
        other.splice(passed),
        Err(Errno::EACCES),
        "nothing is in the page cache yet"
    );
    assert_eq!(owner.map(fd, VALUE.len()), Ok(VALUE.to_vec()));
    assert_eq!(other.pread(passed), Err(Errno::EACCES));
    assert_eq!(
        other.splice(passed),
        Ok(VALUE.to_vec()),
        "docs/security.md names this exception"
    );
}

#[test]
fn a_descriptor_reopened_through_proc_is_a_new_open_by_whoever_does_it() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(4001));
    let mut other = daemon.probe(&Who::uid(4009));
    let mut root = daemon.probe(&Who::root());
    let by_number = |fd: i64| std::path::PathBuf::from(format!("/proc/self/fd/{fd}"));
    for secret in ["a/plain", "a/hot"] {
        let fd = owner.open(&daemon.path(secret)).unwrap();
        assert_eq!(owner.cat(&by_number(fd)), Ok(VALUE.to_vec()), "{secret}");
        let passed = owner.give(fd, &mut other, &daemon.door(&secret.replace('/', "-")));
        assert_eq!(
            other.open(&by_number(passed)),
            Err(Errno::EACCES),
            "{secret}"
        );
        // Root may follow the link of any process, and is asked all the same.
        let link = format!("/proc/{}/fd/{fd}", owner.pid());
        assert_eq!(root.open(link.as_ref()), Err(Errno::EACCES), "{secret}");
        assert!(root.stat(link.as_ref()).is_ok(), "{secret}");

        let named = owner.open_with(&daemon.path(secret), libc::O_PATH).unwrap();
        assert_eq!(owner.cat(&by_number(named)), Ok(VALUE.to_vec()), "{secret}");
        let passed = owner.give(named, &mut other, &daemon.door(&secret.replace('/', "+")));
        assert_eq!(other.pread(passed), Err(Errno::EBADF), "{secret}");
        assert_eq!(
            other.open(&by_number(passed)),
            Err(Errno::EACCES),
            "{secret}"
        );
    }
}

#[test]
fn a_program_that_changes_its_uid_reads_as_whom_it_became() {
    needs!();
    let daemon = start();
    // A setuid program: whoever runs it is root to the kernel, and root has a rule for one service only.
    let setuid = daemon.at("setuid-python");
    fs::copy(program(PYTHON).unwrap(), &setuid).unwrap();
    fs::set_permissions(&setuid, Permissions::from_mode(0o4755)).unwrap();
    let mut owner = daemon.probe(&Who::uid(4001));
    let fd = owner.open(&daemon.path("a/plain")).unwrap();
    let script = daemon.at("probe.py");
    let words = [
        setuid.to_str().unwrap(),
        "-I",
        script.to_str().unwrap(),
        "read",
        &fd.to_string(),
    ]
    .map(str::to_owned);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(
        owner.run(&words, &[fd]),
        (i64::from(libc::EACCES), Vec::new())
    );
    // The same program without the bit reads: it is the uid that counts.
    let plain = program(PYTHON).unwrap();
    let mut words = words;
    words[0] = plain.to_str().unwrap();
    let (code, printed) = owner.run(&words, &[fd]);
    assert_eq!((code, printed.is_empty()), (0, false));

    let mut became = daemon.probe(&Who::uid(4009).interpreter(&setuid));
    assert_eq!(
        became.cat(&daemon.path("for-root/plain")),
        Ok(VALUE.to_vec())
    );
    assert_eq!(became.open(&daemon.path("a/plain")), Err(Errno::EACCES));
}

#[test]
fn a_child_reads_through_an_inherited_descriptor_as_long_as_it_is_the_same_user() {
    needs!(Need::Program("setpriv"));
    let daemon = start();
    let mut root = daemon.probe(&Who::root());
    let fd = root.open(&daemon.path("for-root/plain")).unwrap();
    let script = daemon.at("probe.py");
    let (python, number) = (program(PYTHON).unwrap(), fd.to_string());
    let read = [
        python.to_str().unwrap(),
        "-I",
        script.to_str().unwrap(),
        "read",
        &number,
    ];
    let (code, printed) = root.run(&read, &[fd]);
    assert_eq!((code, printed.is_empty()), (0, false));
    let dropped = [
        "setpriv",
        "--reuid",
        "4009",
        "--regid",
        "4009",
        "--clear-groups",
        "--",
    ];
    let words: Vec<&str> = dropped.iter().chain(&read).copied().collect();
    assert_eq!(
        root.run(&words, &[fd]),
        (i64::from(libc::EACCES), Vec::new())
    );
}
