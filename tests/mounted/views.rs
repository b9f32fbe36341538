//! `.fresh`, `.previous` and `.versions` on a real mount.

use nix::errno::Errno;
use serde_json::json;

use crate::common::daemon::{Daemon, tool};
use crate::common::machine::needs;
use crate::common::probe::Who;
use crate::common::run;

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]
secrets.cached = { reads = "cached" }
"#;

fn start() -> Daemon {
    let daemon = Daemon::start(SERVICES, &[("a/x", b"first"), ("a/cached", b"first")]);
    for value in ["the second one", "third"] {
        daemon.put("a/x", value.as_bytes());
        daemon.put("a/cached", value.as_bytes());
    }
    daemon
}

#[test]
fn a_program_finds_the_value_before_an_older_one_and_the_newest_by_their_paths() {
    needs!();
    let daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    for name in ["x", "cached"] {
        for (folder, value) in [
            (".fresh", "third"),
            (".previous", "the second one"),
            (".versions/1", "first"),
            (".versions/2", "the second one"),
            (".versions/3", "third"),
        ] {
            let path = daemon.path("a").join(folder).join(name);
            let value = value.as_bytes().to_vec();
            let what = path.display();
            assert_eq!(reader.cat(&path), Ok(value.clone()), "{what}");
            let size = u64::try_from(value.len()).unwrap();
            assert_eq!(reader.stat(&path).unwrap().size, size, "{what}");
            let fd = reader.open(&path).unwrap();
            assert_eq!(reader.sendfile(fd), Ok(value.clone()), "{what}");
            assert_eq!(reader.map(fd, value.len()), Ok(value), "{what}");
            let busy = run(
                &mut Who::uid(4001).command(&[&tool("cat"), path.to_str().unwrap()]),
                b"",
            );
            assert_eq!(busy.code(), 0, "{what}");
        }
    }
    // No listing shows them, and what is in them is known by name only.
    let all = run(
        &mut Who::uid(4001).command(&[&tool("ls"), "-a", daemon.path("a").to_str().unwrap()]),
        b"",
    );
    assert_eq!(
        String::from_utf8(all.expect_ok()).unwrap(),
        ".\n..\ncached\nx\n"
    );
    for folder in ["a/.fresh", "a/.previous", "a/.versions", "a/.versions/1"] {
        assert_eq!(
            reader.list(&daemon.path(folder)),
            Ok(Vec::new()),
            "{folder}"
        );
    }
}

#[test]
fn a_stranger_gets_nothing_by_any_of_these_paths_and_nobody_changes_anything_there() {
    needs!();
    let daemon = start();
    let mut owner = daemon.probe(&Who::uid(4001));
    let mut stranger = daemon.probe(&Who::uid(4009));
    let mut root = daemon.probe(&Who::root());
    for path in ["a/.fresh/x", "a/.previous/x", "a/.versions/1/x"] {
        let path = daemon.path(path);
        let fd = owner.open(&path).unwrap();
        assert_eq!(
            stranger.open(&path),
            Err(Errno::EACCES),
            "{}",
            path.display()
        );
        assert_eq!(root.open(&path), Err(Errno::EACCES), "{}", path.display());
        let door = format!("{}", path.parent().unwrap().file_name().unwrap().display());
        let passed = owner.give(fd, &mut stranger, &daemon.door(&door));
        assert_eq!(
            stranger.pread(passed),
            Err(Errno::EACCES),
            "{}",
            path.display()
        );
        let written = owner.open_with(&path, libc::O_WRONLY);
        assert_eq!(written, Err(Errno::EROFS), "{}", path.display());
        let moved = owner.os("rename", json!([path, daemon.path("a/.fresh/y")]));
        assert_eq!(moved, Err(Errno::EROFS), "{}", path.display());
    }
}

#[test]
fn a_value_that_was_destroyed_is_gone_from_the_earlier_ones() {
    needs!();
    let daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let second = daemon.path("a/.versions/2/x");
    assert_eq!(reader.cat(&second), Ok(b"the second one".to_vec()));
    daemon
        .secretfs(&["rm", "a/x", "--version", "2"], b"")
        .expect_ok();
    assert_eq!(reader.open(&second), Err(Errno::ENOENT));
    assert_eq!(
        reader.cat(&daemon.path("a/.previous/x")),
        Ok(b"first".to_vec())
    );
    daemon.secretfs(&["rm", "a/x"], b"").expect_ok();
    for path in ["a/.versions/1/x", "a/.previous/x", "a/.fresh/x"] {
        assert_eq!(
            reader.open(&daemon.path(path)),
            Err(Errno::ENOENT),
            "{path}"
        );
    }
}

#[test]
fn who_asks_for_the_newest_too_often_is_denied_and_the_audit_log_says_why() {
    needs!();
    let daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let path = daemon.path("a/.fresh/x");
    let ended: Vec<_> = (0..40).map(|_| reader.cat(&path)).collect();
    let given = ended.iter().filter(|read| read.is_ok()).count();
    assert!((10..40).contains(&given), "{given}");
    assert!(ended[..10].iter().all(Result::is_ok));
    assert!(ended.contains(&Err(Errno::EACCES)));
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(b"third".to_vec()));
    let denied = daemon
        .secretfs(&["--json", "audit", "--denied"], b"")
        .expect_ok();
    let denied = String::from_utf8(denied).unwrap();
    assert!(
        denied.contains("open-fresh") && denied.contains("fresh values"),
        "{denied}"
    );
}
