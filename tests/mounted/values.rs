//! Values: whole, of any bytes, by every way to read them, and never torn or old.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::thread;

use nix::errno::Errno;
use serde_json::json;

use crate::common::daemon::{Daemon, tool};
use crate::common::ears::Ears;
use crate::common::machine::{Need, needs};
use crate::common::probe::{Got, Who};
use crate::common::run;

const MODES: [&str; 2] = ["checked", "cached"];

/// Every kind of value, each under a name of its own for every way to read it, so that each way meets a file that was
/// never fetched.
fn each_value_for(ways: &[&str]) -> (Daemon, Vec<(&'static str, Vec<u8>)>) {
    let all: Vec<u8> = (0..4096_usize)
        .map(|n| u8::try_from(n % 256).unwrap())
        .collect();
    let mib: Vec<u8> = (0..1_usize << 20)
        .map(|n| u8::try_from((n / 7 + n / 4099) % 256).unwrap())
        .collect();
    let values = vec![
        ("all", all),
        ("empty", Vec::new()),
        ("mib", mib),
        ("line", b"password\n".to_vec()),
        ("page", vec![b'p'; 4096]),
    ];
    let mut services = "[services.v]\nallow = [{ uid = 4001 }]\n".to_owned();
    for way in ways {
        for mode in MODES {
            for (name, _) in &values {
                services.push_str(&format!(
                    "secrets.{mode}-{name}-{way} = {{ from = \"local:v/{name}\", reads = \"{mode}\" }}\n"
                ));
            }
        }
    }
    let kept: Vec<(String, Vec<u8>)> = values
        .iter()
        .map(|(name, value)| (format!("v/{name}"), value.clone()))
        .collect();
    let kept: Vec<(&str, &[u8])> = kept
        .iter()
        .map(|(p, v)| (p.as_str(), v.as_slice()))
        .collect();
    (Daemon::start(&services, &kept), values)
}

#[test]
fn every_program_reads_the_whole_value_from_a_file_that_was_never_fetched() {
    needs!(Need::Program("busybox"), Need::Program("dd"));
    // `$0` is the secret; what is printed is the value.
    let ways = [
        ("cat", "cat \"$0\""),
        ("busybox", "busybox cat \"$0\""),
        ("cp", "cp \"$0\" \"$1\" && cat \"$1\" && rm \"$1\""),
        ("dd", "dd if=\"$0\" bs=777 status=none"),
        ("shell", "cat < \"$0\""),
        ("tail", "tail -c +1 \"$0\""),
        ("head", "head -c 2000000 \"$0\""),
        (
            "install",
            "install -m 600 \"$0\" \"$1\" && cat \"$1\" && rm \"$1\"",
        ),
        (
            "twice",
            "cat \"$0\" > \"$1\" && rm \"$1\" && busybox cat \"$0\"",
        ),
        (
            "stat",
            "stat \"$0\" > \"$1\" && rm \"$1\" && busybox cat \"$0\"",
        ),
    ];
    let (daemon, values) = each_value_for(&ways.map(|(way, _)| way));
    let who = Who::uid(4001);
    for (way, script) in ways {
        for mode in MODES {
            for (name, value) in &values {
                let secret = daemon.path("v").join(format!("{mode}-{name}-{way}"));
                let copy = daemon.door(&format!("{mode}-{name}-{way}"));
                let words = [
                    "sh",
                    "-c",
                    script,
                    secret.to_str().unwrap(),
                    copy.to_str().unwrap(),
                ];
                let read = run(&mut who.command(&words), b"").expect_ok();
                assert!(
                    read == *value,
                    "{way} {mode} {name}: {} bytes of {}",
                    read.len(),
                    value.len()
                );
            }
        }
    }
}

#[test]
fn every_call_reads_the_whole_value_from_a_file_that_was_never_fetched() {
    needs!();
    let ways = ["read", "fstat", "stat", "map", "sendfile", "splice"];
    let (daemon, values) = each_value_for(&ways);
    let mut probe = daemon.probe(&Who::uid(4001));
    for mode in MODES {
        for (name, value) in &values {
            let path = |way: &str| daemon.path("v").join(format!("{mode}-{name}-{way}"));
            let length = u64::try_from(value.len()).unwrap();
            let what = format!("{mode} {name}");
            assert!(probe.cat(&path("read")).as_ref() == Ok(value), "{what}");
            // A stat by who may read it fetches, so that the length is true at once.
            assert_eq!(probe.stat(&path("stat")).unwrap().size, length, "{what}");
            let fd = probe.open(&path("fstat")).unwrap();
            assert_eq!(probe.fstat(fd).unwrap().size, length, "{what}");
            probe.close(fd);
            let fd = probe.open(&path("map")).unwrap();
            if !value.is_empty() {
                assert!(probe.map(fd, value.len()).as_ref() == Ok(value), "{what}");
            }
            probe.close(fd);
            for way in ["sendfile", "splice"] {
                let fd = probe.open(&path(way)).unwrap();
                let got = probe.ask(way, json!([fd]));
                let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                assert!(got == Ok(json!(hex)), "{what} {way}");
                probe.close(fd);
            }
        }
    }
}

#[test]
fn test_s_tells_an_empty_value_from_one_that_was_never_fetched() {
    needs!();
    let (daemon, values) = each_value_for(&["test"]);
    for mode in MODES {
        for (name, value) in &values {
            let path = daemon.path("v").join(format!("{mode}-{name}-test"));
            let tested = run(
                &mut Who::uid(4001).command(&[&tool("test"), "-s", path.to_str().unwrap()]),
                b"",
            );
            assert_eq!(tested.code() == 0, !value.is_empty(), "{mode} {name}");
        }
    }
}

#[test]
fn a_listing_shows_lengths_of_what_was_fetched_and_fetches_nothing() {
    needs!();
    let (daemon, _) = each_value_for(&["ls"]);
    let mut probe = daemon.probe(&Who::uid(4001));
    assert_eq!(
        probe.cat(&daemon.path("v/checked-line-ls")),
        Ok(b"password\n".to_vec())
    );
    let opens = |daemon: &Daemon| {
        fs::read_to_string(daemon.at("log/audit.jsonl"))
            .unwrap()
            .lines()
            .count()
    };
    let before = opens(&daemon);
    let listed = run(
        &mut Who::uid(4001).command(&["ls", "-l", daemon.path("v").to_str().unwrap()]),
        b"",
    );
    let listed = String::from_utf8(listed.expect_ok()).unwrap();
    assert_eq!(listed.lines().count(), 1 + 10, "{listed}");
    let line = listed
        .lines()
        .find(|line| line.ends_with("checked-line-ls"))
        .unwrap();
    assert!(line.contains(" 9 "), "{line}");
    thread::sleep(std::time::Duration::from_millis(1200));
    assert_eq!(opens(&daemon), before, "a listing was taken for an access");
}

/// What an open of an old inode may give: the new value. In the cached mode it is ESTALE instead while somebody still
/// reads a shorter value there through the page cache; see docs/semantics.md.
fn new_or_busy(mode: &str, got: &Got<Vec<u8>>, value: &Vec<u8>) -> bool {
    match got {
        Ok(read) => read == value,
        Err(errno) => mode == "cached" && *errno == Errno::ESTALE,
    }
}

#[test]
fn a_value_replaced_under_open_handles_is_new_for_each_open_and_old_for_each_handle() {
    needs!();
    let services = r#"
[services.a]
source = "local:a"
allow = [{ uid = [0, 4001] }]
secrets.cached = { reads = "cached" }
"#;
    let first = b"the first value".to_vec();
    let daemon = Daemon::start(services, &[("a/checked", &first), ("a/cached", &first)]);
    let mut reader = daemon.probe(&Who::uid(4001));
    for mode in MODES {
        let path = daemon.path("a").join(mode);
        let bind = daemon.bind(&path, &format!("bound-{mode}"));
        // Of growing and shrinking lengths, also past a page.
        let lengths = [9, 5000, 3, 4096, 0, 70_000, 1];
        let mut held = vec![(reader.open(&path).unwrap(), first.clone())];
        for (turn, length) in lengths.into_iter().enumerate() {
            let letter = b'a' + u8::try_from(turn).unwrap();
            let value = vec![letter; length];
            daemon.put(&format!("a/{mode}"), &value);
            let what = format!("{mode}, {length} bytes");
            assert_eq!(reader.cat(&path).as_ref(), Ok(&value), "{what}: by path");
            let bound = reader.cat(bind.path());
            assert!(
                new_or_busy(mode, &bound, &value),
                "{what}: by a bind mount: {bound:?}"
            );
            for (fd, _) in &held {
                let reopened = PathBuf::from(format!("/proc/self/fd/{fd}"));
                let again = reader.cat(&reopened);
                assert!(
                    new_or_busy(mode, &again, &value),
                    "{what}: reopened: {again:?}"
                );
            }
            let fd = reader.open(&path).unwrap();
            let size = u64::try_from(length).unwrap();
            assert_eq!(reader.fstat(fd).unwrap().size, size, "{what}: size");
            assert_eq!(
                reader.stat(&path).unwrap().size,
                size,
                "{what}: size by path"
            );
            held.push((fd, value));
            if let Ok(bound) = reader.open(bind.path()) {
                held.push((bound, vec![letter; length]));
            }
            for (fd, value) in &held {
                let read = reader.pread(*fd);
                assert!(
                    read.as_ref() == Ok(value),
                    "{what}: an open handle changed: {read:?}"
                );
            }
        }
        // With the last old handle gone, the bound inode is the current value's alone, its size too.
        for (fd, _) in held {
            reader.close(fd);
        }
        daemon.put(&format!("a/{mode}"), b"the last");
        assert_eq!(reader.cat(bind.path()), Ok(b"the last".to_vec()), "{mode}");
        let fd = reader.open(bind.path()).unwrap();
        assert_eq!(reader.fstat(fd).unwrap().size, 8, "{mode}");
        assert_eq!(reader.sendfile(fd), Ok(b"the last".to_vec()), "{mode}");
    }
}

#[test]
fn a_mapping_keeps_its_value_while_others_are_put() {
    needs!();
    let services = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]
secrets.cached = { reads = "cached" }
"#;
    let first = vec![b'1'; 10_000];
    let daemon = Daemon::start(services, &[("a/checked", &first), ("a/cached", &first)]);
    let mut reader = daemon.probe(&Who::uid(4001));
    for (index, mode) in MODES.into_iter().enumerate() {
        let path = daemon.path("a").join(mode);
        let bind = daemon.bind(&path, &format!("bound-{mode}"));
        let fd = reader.open(&path).unwrap();
        assert_eq!(reader.map(fd, first.len()).as_ref(), Ok(&first));
        for length in [100, 20_000] {
            let value = vec![b'2'; length];
            daemon.put(&format!("a/{mode}"), &value);
            let bound = reader.cat(bind.path());
            assert!(new_or_busy(mode, &bound, &value), "{mode}");
            assert_eq!(reader.cat(&path).as_ref(), Ok(&value), "{mode}");
            let mapped = reader.ask("mapped", json!([index])).unwrap();
            assert!(
                mapped == json!("31".repeat(first.len())),
                "{mode}: the mapping changed"
            );
        }
    }
}

/// Value number `number`: its length and every byte of it follow from the number.
fn numbered(number: usize) -> Vec<u8> {
    let length = 16 + (number * 7919) % 50_000;
    let mut value = format!("{number:016}").into_bytes();
    let mut state = u32::try_from(number).unwrap().wrapping_mul(2_654_435_761) | 1;
    while value.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        value.extend(state.to_le_bytes());
    }
    value.truncate(length);
    value
}

#[test]
fn a_handle_reads_the_same_bytes_in_pieces_of_any_size() {
    needs!();
    let value = numbered(6);
    let daemon = Daemon::start(
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 0 }]\nsecrets.cached = { reads = \"cached\" }\n",
        &[("a/checked", &value), ("a/cached", &value)],
    );
    for mode in MODES {
        let file = File::open(daemon.path("a").join(mode)).unwrap();
        for size in [1, 3, 511, 4095, 4096, 4097, 1 << 20] {
            for offset in [0, 1, 4095, value.len() - 1, value.len(), value.len() + 5000] {
                let mut piece = vec![0; size];
                let count = file
                    .read_at(&mut piece, u64::try_from(offset).unwrap())
                    .unwrap();
                let end = (offset + size).min(value.len());
                let right = value.get(offset.min(end)..end).unwrap_or_default();
                assert!(piece[..count] == *right, "{mode}: {size} at {offset}");
            }
        }
    }
}

#[test]
fn what_is_destroyed_is_gone_at_once_and_stays_readable_through_open_handles() {
    needs!();
    let daemon = Daemon::start(
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 4001 }]\n",
        &[("a/x", b"gone soon"), ("a/y", b"stays")],
    );
    let mut reader = daemon.probe(&Who::uid(4001));
    let fd = reader.open(&daemon.path("a/x")).unwrap();
    daemon.secretfs(&["rm", "--force", "a/x"], b"").expect_ok();
    assert_eq!(reader.open(&daemon.path("a/x")), Err(Errno::ENOENT));
    assert_eq!(reader.list(&daemon.path("a")), Ok(vec!["y".to_owned()]));
    assert_eq!(reader.pread(fd), Ok(b"gone soon".to_vec()));
    daemon.put("a/x", b"back");
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(b"back".to_vec()));
    assert_eq!(
        reader.list(&daemon.path("a")),
        Ok(vec!["x".to_owned(), "y".to_owned()])
    );
}

#[test]
fn what_a_put_makes_is_there_at_once() {
    needs!();
    let daemon = Daemon::start(
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 4001 }]\n",
        &[],
    );
    let mut reader = daemon.probe(&Who::uid(4001));
    for number in 0..20 {
        let name = format!("a/n{number}");
        assert_eq!(reader.open(&daemon.path(&name)), Err(Errno::ENOENT));
        daemon.put(&name, name.as_bytes());
        assert_eq!(reader.cat(&daemon.path(&name)), Ok(name.into_bytes()));
    }
    assert_eq!(reader.list(&daemon.path("a")).unwrap().len(), 20);
}

#[test]
fn a_listing_that_was_opened_before_a_put_has_every_name_and_each_leads_to_the_new_inode() {
    needs!();
    let daemon = Daemon::start(
        "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 0 }]\n",
        &[("a/held", b"old"), ("a/x", b"old"), ("a/y", b"stays")],
    );
    let held = File::open(daemon.path("a/held")).unwrap();
    let listing = fs::read_dir(daemon.path("a")).unwrap();
    daemon.put("a/x", b"new");
    daemon.put("a/held", b"new");
    // Only now the kernel asks for lines, and takes names from them.
    let mut names: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["held", "x", "y"]);
    let path = daemon.path("a/held");
    assert_ne!(
        fs::metadata(&path).unwrap().ino(),
        held.metadata().unwrap().ino()
    );
    let mut ears = Ears::on(&path);
    daemon.put("a/held", b"newest");
    assert_eq!(ears.hear("ATTRIB")[0], "ATTRIB");
    assert_eq!(fs::read(&path).unwrap(), b"newest");
}
