//! Another release of the program takes over while everything goes on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::{Need, needs};
use crate::common::mounts::children;
use crate::common::probe::{Probe, Who};
use crate::common::{DEADLINE, eventually};
use crate::users::Machine;

const SERVICES: &str = "[services.a]\nsource = \"local:a\"\nallow = [{ uid = 4001 }]\n";
const X: &[u8] = b"canary of who is upgraded\n";
const VALUES: [(&str, &[u8]); 2] = [("a/x", X), ("a/other", b"1")];
/// How long nobody may wait longer.
const LONGEST: Duration = Duration::from_secs(2);

fn start(starter: Option<u32>) -> Daemon {
    let setup = Setup {
        services: SERVICES,
        values: &VALUES,
        copied: true,
        starter,
        ..Setup::default()
    };
    setup.start()
}

fn reader(daemon: &Daemon) -> Probe {
    daemon.probe(&Who::uid(4001))
}

/// Puts the program in its own place once more, and has that take over.
#[track_caller]
fn upgrade(daemon: &Daemon) {
    let (keeper, server) = (daemon.keeper(), daemon.server());
    daemon.install(Path::new(env!("CARGO_BIN_EXE_secretfs")));
    let said = daemon.secretfs(&["--json", "upgrade"], b"").expect_ok();
    let release = env!("CARGO_PKG_VERSION");
    let said: Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said, json!({ "before": release, "now": release }));
    assert_eq!(daemon.keeper(), keeper);
    assert_ne!(daemon.server(), server);
    let running = fs::read_link(format!("/proc/{keeper}/exe")).unwrap();
    assert_eq!(
        running,
        daemon.at("secretfs"),
        "it is the one that was installed"
    );
}

fn goes_on(daemon: &mut Daemon) {
    let mut owner = reader(daemon);
    let held = owner.open(&daemon.path("a/x")).unwrap();
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (mut probe, path, end) = (reader(daemon), daemon.path("a/x"), &end);
                scope.spawn(move || {
                    let mut count = 0;
                    while !end.load(Ordering::SeqCst) {
                        assert_eq!(probe.cat(&path), Ok(X.to_vec()), "after {count}");
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for _ in 0..3 {
            upgrade(daemon);
            thread::sleep(Duration::from_millis(200));
        }
        end.store(true, Ordering::SeqCst);
        for reader in readers {
            assert!(reader.join().unwrap() > 10);
        }
    });
    assert_eq!(owner.pread(held), Ok(X.to_vec()));
    // It keeps the mount as the first one did: a server that is killed is followed, a signal is heard, an end is one.
    let server = daemon.server();
    kill(server, Signal::SIGKILL).unwrap();
    let followed = || !children(daemon.keeper()).contains(&server);
    assert!(eventually(LONGEST, followed), "{}", daemon.log());
    assert_eq!(owner.pread(held), Ok(X.to_vec()));
    daemon.put("a/x", b"another");
    assert_eq!(owner.cat(&daemon.path("a/x")), Ok(b"another".to_vec()));
    daemon.configure(&SERVICES.replace("4001", "4002"));
    daemon.signal(Signal::SIGHUP);
    let refused = eventually(DEADLINE, || owner.cat(&daemon.path("a/x")).is_err());
    assert!(refused, "{}", daemon.log());
    assert_eq!(daemon.mounts().len(), 1);
    daemon.stop();
    assert_eq!(daemon.mounts(), []);
}

#[test]
fn another_release_takes_over_and_nobody_notices() {
    needs!();
    goes_on(&mut start(None));
}

#[test]
fn another_release_takes_over_a_plain_users_daemon() {
    needs!(Need::Program("fusermount3"));
    let _machine = Machine::with("user_allow_other\n");
    goes_on(&mut start(Some(1)));
}

#[test]
fn what_cannot_take_over_changes_nothing_and_says_why() {
    needs!();
    let daemon = start(None);
    let mut owner = reader(&daemon);
    let held = owner.open(&daemon.path("a/x")).unwrap();
    let server = daemon.server();
    let program = daemon.at("program");
    for (text, why) in [
        (
            "#!/bin/sh\necho 'of another kind' >&2\nexit 3\n",
            "of another kind",
        ),
        ("#!/bin/sh\nexit 0\n", "it cannot take over"),
        ("#!/bin/sh\nexec sleep 1000\n", "does not say in time"),
        ("no program at all", "does not start"),
    ] {
        fs::write(&program, text).unwrap();
        // Whoever asks runs the one that works.
        daemon.install(&program);
        let mut asking = std::process::Command::new(env!("CARGO_BIN_EXE_secretfs"));
        asking
            .arg("--config")
            .arg(daemon.at("config.toml"))
            .arg("upgrade");
        let said = crate::common::run(&mut asking, b"");
        assert_eq!(said.code(), 1, "{}", said.stderr);
        assert!(said.stderr.contains(why), "{}", said.stderr);
        assert_eq!(daemon.server(), server);
    }
    // One that others could have put there.
    daemon.install(Path::new(env!("CARGO_BIN_EXE_secretfs")));
    let anybodys = fs::Permissions::from_mode(0o777);
    fs::set_permissions(daemon.at("secretfs"), anybodys).unwrap();
    let said = daemon.secretfs(&["upgrade"], b"");
    assert_eq!(said.code(), 1, "{}", said.stderr);
    assert!(said.stderr.contains("chmod go-w"), "{}", said.stderr);
    // What a restart is needed for.
    daemon.install(Path::new(env!("CARGO_BIN_EXE_secretfs")));
    let config = fs::read_to_string(daemon.at("config.toml")).unwrap();
    let elsewhere = daemon.at("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let mount = daemon.mountpoint().display().to_string();
    let moved = config.replace(&mount, elsewhere.to_str().unwrap());
    fs::write(daemon.at("config.toml"), moved).unwrap();
    let said = daemon.secretfs(&["upgrade"], b"");
    assert_eq!(said.code(), 1, "{}", said.stderr);
    assert!(said.stderr.contains("`mount` is"), "{}", said.stderr);
    fs::write(daemon.at("config.toml"), config).unwrap();
    assert_eq!(daemon.server(), server);
    assert_eq!(owner.pread(held), Ok(X.to_vec()));
    assert_eq!(owner.cat(&daemon.path("a/x")), Ok(X.to_vec()));
}
