//! A value that can be recognised goes through everything that handles values, and is then looked for everywhere that
//! it must not be: what is printed, logged and audited, every file, core files, arguments and environments.
//!
//! Looking proves something only if it would find: before each search the value is planted in each of its forms, and
//! must be found.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "this is a test, and clippy sees only #[test] functions as such"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "../common/scratch.rs"]
mod scratch;
mod search;

use scratch::{CANARY, Place, READER, STRANGER, can_mount, eventually, is_root, run};
use search::{assert_none, search_tree};

/// What a command is fed, and what comes of it: 0 for done.
type Step<'a> = (&'a str, &'a [u8], i32);

/// Runs commands one after the other, and looks through what each says. `get` alone may show the value, on stdout.
#[track_caller]
fn walk(place: &Place, steps: &[Step<'_>], uid: Option<u32>) {
    for (line, input, code) in steps {
        let words: Vec<String> = line
            .split_whitespace()
            .map(|word| match word.strip_prefix('@') {
                Some(rest) => format!("{}{rest}", place.root().display()),
                None => word.replace("CANARY", CANARY),
            })
            .collect();
        let mut command = place.command(&words);
        command
            .current_dir(place.root())
            .env("SECRETFS_LOG", "trace")
            .env("RUST_BACKTRACE", "full");
        if let Some(uid) = uid {
            command.uid(uid).gid(uid).current_dir("/");
        }
        let ended = run(&mut command, input).unwrap_or_else(|| panic!("{line}: it hangs"));
        assert_eq!(ended.code, *code, "{line}: {}", ended.stderr);
        assert_none(&format!("stderr of {line}"), ended.stderr.as_bytes());
        if !line.starts_with("get ") {
            assert_none(&format!("stdout of {line}"), &ended.stdout);
        } else if *code == 0 {
            // What `get` prints proves that the value went through, and that a search of it would find it.
            assert!(!search::forms_in(&ended.stdout).is_empty(), "{line}");
        }
    }
}

/// Files to import from and to put, outside of what is searched.
fn origins() -> Place {
    let place = Place::empty();
    place.write("value", CANARY);
    place.write("large", [CANARY.as_bytes(), &vec![b'x'; 1 << 20]].concat());
    let json = serde_json::json!({ "one": CANARY, "two": { "inner": CANARY } });
    place.write("all.json", json.to_string());
    place.write("bad.json", format!("{{\"one\": {CANARY}"));
    place.write("all.env", format!("ONE='{CANARY}'\n"));
    place.write("bad.env", format!("ONE={CANARY}\n{CANARY}\n"));
    place.write("dir/one", CANARY);
    place.write("baddir/a b", CANARY);
    place
}

/// Everything that a value can go through, and the ways in which it can go wrong.
fn steps(origins: &Path) -> Vec<(String, Vec<u8>, i32)> {
    let canary = CANARY.as_bytes();
    let large = [canary, &vec![b'x'; 1 << 20]].concat();
    let record = serde_json::json!({ "user": "app", "key": CANARY }).to_string();
    let table: &[Step<'_>] = &[
        ("put billing/one", canary, 0),
        ("put billing/one --file #/value", b"", 0),
        ("put billing/record", record.as_bytes(), 0),
        ("put billing/text", canary, 0),
        ("put billing/one", &large, 1),
        ("put billing/one --file #/large", b"", 1),
        ("put billing/one CANARY", b"", 2),
        ("put CANARY", b"", 2),
        ("put billing/one --generate CANARY", b"", 2),
        ("put billing/CANARY", canary, 2),
        ("import web --json #/all.json", b"", 0),
        ("import web --env #/all.env", b"", 0),
        ("import web --dir #/dir", b"", 0),
        ("import web --json #/bad.json", b"", 1),
        ("import web --env #/bad.env", b"", 1),
        ("import web --dir #/baddir", b"", 1),
        ("get billing/one", b"", 0),
        ("get billing/one --json", b"", 0),
        ("get billing/one --version 1", b"", 0),
        ("get billing/one --version CANARY", b"", 3),
        ("get CANARY", b"", 2),
        ("get app/key", b"", 0),
        ("get app/none", b"", 3),
        ("get app/text", b"", 1),
        ("rollback billing/one --to 1", b"", 0),
        ("rollback billing/one --to 99", b"", 3),
        ("history billing/one", b"", 0),
        ("ls", b"", 0),
        ("status --json", b"", 0),
        ("explain billing/one", b"", 0),
        ("explain app/text --json", b"", 0),
        ("doctor", b"", 0),
        ("audit", b"", 0),
        ("audit --json", b"", 0),
        ("export @/once.age", b"", 0),
        ("rm billing/one --version 1", b"", 0),
        ("rekey", b"", 0),
        ("restore @/once.age", b"", 1),
        ("restore #/value --replace", canary, 1),
        ("export @/again.age", b"", 0),
        ("restore @/again.age --replace", b"", 0),
        ("allow billing --uid 61002", b"", 0),
        ("disallow billing --uid 61002", b"", 0),
        ("CANARY", b"", 2),
        ("--CANARY", b"", 2),
    ];
    let origins = origins.to_str().unwrap();
    table
        .iter()
        .map(|(line, input, code)| (line.replace('#', origins), input.to_vec(), *code))
        .collect()
}

fn take(place: &Place, steps: &[(String, Vec<u8>, i32)]) {
    for (line, input, code) in steps {
        walk(place, &[(line, input, *code)], None);
    }
}

/// A place with bindings to fields, good and bad.
fn place() -> Place {
    let place = Place::new();
    place.configure(
        "[services.app]\nallow = [{ uid = 0 }]\n[services.app.secrets]\nkey = \"local:billing/record#key\"\n\
         none = \"local:billing/record#none\"\ntext = \"local:billing/text#key\"",
    );
    place
}

#[test]
fn no_value_is_seen_without_a_daemon() {
    if !is_root() {
        return;
    }
    allow_cores();
    let (place, origins) = (place(), origins());
    take(&place, &steps(origins.root()));
    place.flip(place.newest_value());
    walk(&place, &[("export @/damaged.age", b"", 1)], None);
    search_tree(place.root());
}

#[test]
fn no_value_is_seen_with_a_daemon_that_says_everything() {
    if !can_mount() {
        return;
    }
    allow_cores();
    let (mut place, origins) = (place(), origins());
    place.serve_with(&[("SECRETFS_LOG", "trace"), ("RUST_BACKTRACE", "full")]);
    take(&place, &steps(origins.root()));

    walk(
        &place,
        &[
            ("get billing/canary", b"", 4),
            ("put billing/canary", CANARY.as_bytes(), 4),
            ("get app/key", b"", 4),
        ],
        Some(STRANGER),
    );
    let secret = place.at("secrets/billing/canary");
    for (uid, allowed) in [(0, true), (READER, true), (STRANGER, false)] {
        let ended = run(Command::new("cat").arg(&secret).uid(uid).gid(uid), b"").unwrap();
        assert_eq!(ended.code == 0, allowed, "{uid}: {}", ended.stderr);
        let given = if allowed { CANARY.as_bytes() } else { b"" };
        assert_eq!(ended.stdout, given, "{uid}");
        assert_none("what cat says", ended.stderr.as_bytes());
    }
    // A field of what is no JSON, and a value that is damaged behind the daemon's back.
    for name in ["app/text", "app/none"] {
        let ended = run(Command::new("cat").arg(place.at("secrets").join(name)), b"").unwrap();
        assert_eq!(ended.code, 1, "{name}");
        assert_none(name, ended.stderr.as_bytes());
    }
    walk(&place, &[("put billing/fresh", CANARY.as_bytes(), 0)], None);
    place.flip(place.newest_value());
    walk(&place, &[("get billing/fresh", b"", 1)], None);
    let ended = run(
        Command::new("cat").arg(place.at("secrets/billing/fresh")),
        b"",
    )
    .unwrap();
    assert_eq!(ended.code, 1);
    search_processes(&place);
    search_sealed(&place);
    search_tree(place.root());

    crash(&place);
    place.end();
    search_tree(place.root());
}

/// Looks through the memory in which the server leaves what it has fetched, and what the kernel knows, for its successor.
fn search_sealed(place: &Place) {
    let keeper = place.keeper();
    let descriptors = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
    let is_ours = |path: &std::path::PathBuf| {
        let target = fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().contains("secretfs-memory")
    };
    let paths = descriptors.map(|entry| entry.unwrap().path());
    let (mut held, mut part) = (Vec::new(), vec![0; 1 << 20]);
    for path in paths.filter(is_ours) {
        let mut memory = fs::File::open(path).unwrap();
        while memory.read(&mut part).unwrap() > 0 {
            if part.iter().any(|byte| *byte != 0) {
                held.extend_from_slice(&part);
            }
        }
    }
    for known in [&b"sealed 1"[..], b"secretfs: what the kernel knows"] {
        let found = memchr::memmem::find(&held, known);
        assert!(found.is_some(), "no {}", known.escape_ascii());
    }
    assert_none("the memory for the next server", &held);
}

/// Kills the server in the middle of its work, as a mistake in it would.
fn crash(place: &Place) {
    for signal in [Signal::SIGSEGV, Signal::SIGABRT] {
        let mut pid = None;
        let served = || {
            let ended = run(
                Command::new("cat").arg(place.at("secrets/billing/canary")),
                b"",
            );
            ended.is_some_and(|ended| ended.stdout == CANARY.as_bytes())
        };
        assert!(eventually(served), "the daemon does not come back");
        assert!(eventually(|| {
            pid = place.server();
            pid.is_some()
        }));
        let pid = pid.unwrap();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file"));
        let core: Vec<&str> = core.unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "the server may leave a core");
        // Rust's own handler of SIGSEGV lets the first one pass that no fault belongs to.
        assert!(eventually(|| {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
            place.server() != Some(pid)
        }));
    }
}

#[test]
fn a_command_that_crashes_with_a_value_in_hand_leaves_no_core() {
    if !is_root() {
        return;
    }
    allow_cores();
    let place = place();
    if !cores_are_left(&place) {
        eprintln!("SKIPPED: this machine leaves no core files (core_pattern)");
        return;
    }
    for words in [
        &["put", "billing/one"][..],
        &["import", "web", "--json", "/dev/stdin"],
    ] {
        let mut child = waiting(&place, words);
        for file in ["cmdline", "environ"] {
            let content = fs::read(format!("/proc/{}/{file}", child.id())).unwrap();
            assert!(!content.is_empty());
            assert_none(file, &content);
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGABRT).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(6), "{words:?}");
        assert!(!status.core_dumped(), "{words:?}");
    }
    search_tree(place.root());
}

/// A command that has read the value and waits for more of it.
fn waiting(place: &Place, words: &[&str]) -> Child {
    let mut child = place
        .command(words)
        .current_dir(place.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(CANARY.as_bytes()).unwrap();
    // It waits for more once it has taken what there is.
    let taken = || {
        let mut left: i32 = 0;
        let fd = std::os::fd::AsRawFd::as_raw_fd(stdin);
        unread(fd, &mut left) && left == 0
    };
    assert!(eventually(taken), "{words:?}: it does not read");
    child
}

/// How many bytes nobody has taken out of a pipe.
fn unread(pipe: i32, left: &mut i32) -> bool {
    // The other end's process reads in chunks; an empty pipe can be written to its full size.
    let path = format!("/proc/self/fd/{pipe}");
    let Ok(file) = fs::File::options().read(true).open(path) else {
        return false;
    };
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut wanted = [PollFd::new(
        std::os::fd::AsFd::as_fd(&file),
        PollFlags::POLLIN,
    )];
    *left = poll(&mut wanted, PollTimeout::ZERO).unwrap();
    true
}

/// Whether a program that crashes here leaves a core file where we would find it.
fn cores_are_left(place: &Place) -> bool {
    let mut control = Command::new("sh");
    control
        .args(["-c", "CANARY=$(cat); kill -ABRT $$"])
        .current_dir(place.root())
        .stdin(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = control.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(CANARY.as_bytes()).unwrap();
    drop(stdin);
    if !child.wait().unwrap().core_dumped() {
        return false;
    }
    // The control's core holds the value, and is found; then it goes.
    let core = fs::read_dir(place.root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("core")
        });
    let Some(core) = core else {
        return false;
    };
    assert!(!search::forms_in(&fs::read(&core).unwrap()).is_empty());
    fs::remove_file(core).unwrap();
    true
}

fn allow_cores() {
    setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY).unwrap();
}

/// The arguments and environments of the keeper and the server.
fn search_processes(place: &Place) {
    for pid in [place.keeper(), place.server().unwrap()] {
        for file in ["cmdline", "environ"] {
            let content = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!content.is_empty(), "{pid}: {file}");
            assert_none(&format!("{file} of {pid}"), &content);
        }
    }
}
