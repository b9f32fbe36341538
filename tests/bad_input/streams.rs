//! Standard streams that are closed, full, or that nobody reads any more.

use std::process::{Command, Stdio};

use crate::{CANARY, PROGRAM, Place, is_root, run};

/// Runs a line of shell, in which `secretfs` stands for the program with the place's config.
fn shell(place: &Place, line: &str) -> (i32, String, String) {
    let program = format!("{PROGRAM} --config {}", place.at("config.toml").display());
    let mut command = Command::new("setsid");
    command
        .args(["--wait", "bash", "-c"])
        .arg(line.replace("secretfs", &program))
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    let ended = run(&mut command, b"").unwrap_or_else(|| panic!("{line}: it hangs"));
    let stdout = String::from_utf8_lossy(&ended.stdout).into_owned();
    (ended.code, stdout, ended.stderr)
}

#[test]
fn a_reader_who_has_had_enough_is_no_failure() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    for number in 0..50 {
        place.ok(&["put", &format!("many/secret-{number}")], b"x");
    }
    for line in [
        "secretfs ls | head -0; echo ${PIPESTATUS[0]}",
        "secretfs ls | head -1 >&2; echo ${PIPESTATUS[0]}",
        "secretfs audit | true; echo ${PIPESTATUS[0]}",
        "secretfs get billing/two | true; echo ${PIPESTATUS[0]}",
        "secretfs --help | true; echo ${PIPESTATUS[0]}",
        "secretfs man | true; echo ${PIPESTATUS[0]}",
        "secretfs completions bash | true; echo ${PIPESTATUS[0]}",
        "secretfs --json status | true; echo ${PIPESTATUS[0]}",
    ] {
        let (_, stdout, stderr) = shell(&place, line);
        assert!(
            ["0\n", "1\n"].contains(&stdout.as_str()),
            "{line}: {stdout}"
        );
        assert!(!stderr.contains("secretfs: "), "{line}: {stderr}");
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");
    }
}

#[test]
fn a_full_stdout_is_a_failure_in_a_line() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    for line in [
        "secretfs ls > /dev/full",
        "secretfs get billing/two > /dev/full",
        "secretfs get --json billing/two > /dev/full",
        "secretfs status > /dev/full",
        "secretfs history billing/two > /dev/full",
        "secretfs audit > /dev/full",
        "secretfs doctor > /dev/full",
        "secretfs man > /dev/full",
        "secretfs completions bash > /dev/full",
        "secretfs --help > /dev/full",
        "secretfs --version > /dev/full",
    ] {
        let (code, _, stderr) = shell(&place, line);
        assert_eq!(code, 1, "{line}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{line}: {stderr}");
        assert!(
            stderr.starts_with("secretfs: stdout cannot be written"),
            "{line}: {stderr}"
        );
    }
}

#[test]
fn closed_streams_are_survived() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let files = || place.snapshot();
    for (line, code) in [
        ("secretfs get billing/two 0<&-", 0),
        ("secretfs get billing/none 0<&- 1>&- 2>&-", 3),
        ("secretfs ls 0<&- 1>&- 2>&-", 0),
        ("secretfs get billing/canary 1>&-", 0),
        ("secretfs get billing/none 2>&-", 3),
        ("secretfs nonsense 0<&- 1>&- 2>&-", 2),
        ("secretfs nonsense 2> /dev/full", 2),
    ] {
        let before = files();
        let (got, stdout, stderr) = shell(&place, line);
        assert_eq!(got, code, "{line}: {stdout}{stderr}");
        // What is meant for a stream never lands in a file that got its number instead.
        for (path, thing) in files() {
            let text = String::from_utf8_lossy(&thing.content).into_owned();
            assert!(!text.contains(CANARY), "{line}: {path:?}");
            let ours = path.ends_with("config.toml");
            assert!(ours || !text.contains("secretfs: "), "{line}: {path:?}");
            if path.starts_with("store.d") || path.ends_with("store.age") {
                assert_eq!(before.get(&path), Some(&thing), "{line}: {path:?}");
            }
        }
    }
}

#[test]
fn an_empty_stdin_is_an_empty_value_and_said() {
    if !is_root() {
        return;
    }
    for line in [
        "secretfs put billing/two 0<&-",
        "secretfs put billing/two < /dev/null",
    ] {
        let place = Place::new();
        let (code, stdout, stderr) = shell(&place, line);
        assert_eq!(code, 0, "{line}: {stdout}{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{line}: {stderr}");
        assert!(stderr.contains("secretfs rollback"), "{line}: {stderr}");
        assert_eq!(place.ok(&["get", "billing/two"], b""), b"", "{line}");
    }
}

#[test]
fn a_socket_without_a_daemon_is_nobody() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    drop(std::os::unix::net::UnixListener::bind(place.at("run/control.sock")).unwrap());
    assert_eq!(place.ok(&["get", "billing/two"], b""), b"two");
}

#[test]
fn the_terminal_is_never_a_place_for_a_value_that_nobody_asked_for() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    // `script` gives the command a terminal and types nothing.
    let line = format!(
        "{PROGRAM} --config {} get billing/canary",
        place.at("config.toml").display()
    );
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::null());
    let ended = run(&mut command, b"\n").expect("it hangs");
    let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(ended.code, 1, "{shown}");
    assert!(shown.contains("--force"), "{shown}");
    assert!(!shown.contains(CANARY), "{shown}");
}
