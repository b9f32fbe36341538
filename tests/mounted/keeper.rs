//! The keeper's promises: the mount goes when the daemon goes, the server comes back when it dies, nobody hangs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::needs;
use crate::common::mounts::{abort, connection, mounts};
use crate::common::probe::{Probe, Who};
use crate::common::{DEADLINE, eventually, run};

pub(crate) const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]
"#;

pub(crate) const VALUE: &[u8] = b"canary of the keeper\n";
pub(crate) const VALUES: [(&str, &[u8]); 1] = [("a/x", VALUE)];

pub(crate) fn start() -> Daemon {
    Daemon::start(SERVICES, &VALUES)
}

/// Reads until it works, which must be soon.
#[track_caller]
pub(crate) fn reads_again(probe: &mut Probe, path: &Path) {
    let again = eventually(Duration::from_secs(8), || {
        probe.cat(path).as_deref() == Ok(VALUE)
    });
    assert!(again, "no read works: {:?}", probe.cat(path));
}

fn gone(pid: Pid) -> bool {
    kill(pid, None) == Err(Errno::ESRCH)
}

#[test]
fn each_signal_that_ends_unmounts_also_under_open_handles() {
    needs!();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT] {
        let mut daemon = start();
        let mut reader = daemon.probe(&Who::uid(4001));
        let fd = reader.open(&daemon.path("a/x")).unwrap();
        reader.os("chdir", json!([daemon.path("a")])).unwrap();
        assert_eq!(reader.pread(fd), Ok(VALUE.to_vec()));
        let server = daemon.server();
        daemon.signal(signal);
        let status = daemon.ended();
        assert!(status.success(), "{signal}: {status}: {}", daemon.log());
        assert_eq!(daemon.mounts(), [], "{signal}");
        assert!(gone(server), "{signal}: the server is left");
        assert!(
            !daemon.log().contains("did not end in time"),
            "{signal}: {}",
            daemon.log()
        );
        // Whoever still holds something of it gets an answer.
        assert!(reader.pread(fd).is_err(), "{signal}");
        assert_eq!(
            reader.list(&daemon.mountpoint()),
            Ok(Vec::new()),
            "{signal}"
        );
        assert!(!daemon.at("run/control.sock").exists(), "{signal}");
    }
}

#[test]
fn ctrl_c_in_the_foreground_group_ends_both_in_order() {
    needs!();
    let mut daemon = start();
    // A terminal sends the signal to both at once.
    let server = daemon.server();
    kill(server, Signal::SIGINT).unwrap();
    daemon.signal(Signal::SIGINT);
    let status = daemon.ended();
    assert!(status.success(), "{status}: {}", daemon.log());
    assert_eq!(daemon.mounts(), []);
    assert!(gone(server));
}

#[test]
fn ctrl_z_does_not_stop_the_server_and_with_it_every_reader() {
    needs!();
    let daemon = start();
    kill(daemon.server(), Signal::SIGTSTP).unwrap();
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
}

#[test]
fn unmount_ends_both() {
    needs!();
    let mut daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let _open = reader.open(&daemon.path("a/x")).unwrap();
    let server = daemon.server();
    daemon.secretfs(&["unmount"], b"").expect_ok();
    assert_eq!(daemon.mounts(), []);
    assert!(daemon.ended().success(), "{}", daemon.log());
    assert!(gone(server));
}

#[test]
fn a_killed_server_is_started_again_and_reads_work() {
    needs!();
    let mut daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    for round in 0..3 {
        let fd = reader.open(&daemon.path("a/x")).unwrap();
        let server = daemon.server();
        kill(server, Signal::SIGKILL).unwrap();
        reads_again(&mut reader, &daemon.path("a/x"));
        assert_eq!(
            reader.pread(fd),
            Ok(VALUE.to_vec()),
            "{round}: a handle of the dead server"
        );
        reader.close(fd);
        assert_ne!(daemon.server(), server);
        assert_eq!(daemon.mounts().len(), 1, "{round}");
    }
    daemon.put("a/x", b"after");
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(b"after".to_vec()));
    daemon.stop();
}

#[test]
fn a_server_that_cannot_be_started_again_is_as_soon_as_it_can() {
    needs!();
    let mut daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let (identity, away) = (daemon.at("identity.txt"), daemon.at("away.txt"));
    fs::rename(&identity, &away).unwrap();
    kill(daemon.server(), Signal::SIGKILL).unwrap();
    // For a while whoever reads waits for it, and then there is no mount without a server.
    let gone = eventually(DEADLINE, || daemon.mounts().is_empty());
    assert!(gone, "{}", daemon.log());
    let failed = || daemon.log().matches("not started again").count();
    assert!(failed() > 1, "{}", daemon.log());
    assert_eq!(reader.open(&daemon.path("a/x")), Err(Errno::ENOENT));
    fs::rename(&away, &identity).unwrap();
    reads_again(&mut reader, &daemon.path("a/x"));
    // Whoever wants an end does not wait for the pause.
    fs::rename(&identity, &away).unwrap();
    kill(daemon.server(), Signal::SIGKILL).unwrap();
    let before = failed();
    let said = eventually(DEADLINE, || failed() > before + 1);
    assert!(said, "{}", daemon.log());
    daemon.stop();
    assert!(!daemon.at("run/control.sock").exists());
}

#[test]
fn the_runtime_folder_can_be_entered_whatever_the_umask() {
    needs!();
    use std::os::unix::fs::PermissionsExt;
    let mut daemon = Setup {
        services: SERVICES,
        values: &VALUES,
        wrapped: &["/bin/sh", "-c", "umask 077; \"$0\" \"$@\"; exit $?"],
        ..Setup::default()
    }
    .prepare();
    fs::remove_dir(daemon.at("run")).unwrap();
    daemon.start_keeper();
    let mode = fs::metadata(daemon.at("run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn who_waits_for_a_server_that_dies_is_answered_by_the_next() {
    needs!();
    let daemon = start();
    let server = daemon.server();
    // A stopped server answers nobody: everybody waits.
    kill(server, Signal::SIGSTOP).unwrap();
    let mut waiting: Vec<Probe> = (0..4).map(|_| daemon.probe(&Who::uid(4001))).collect();
    for probe in &mut waiting {
        // It is there, and comes at once when it is asked to.
        probe.pid();
    }
    for probe in &mut waiting {
        probe.begin("cat", json!([daemon.path("a/x")]));
    }
    let count = connection(daemon.mounts()[0].device).join("waiting");
    let wait = eventually(DEADLINE, || {
        fs::read_to_string(&count).is_ok_and(|count| count.trim() != "0")
    });
    assert!(wait, "nobody waits");
    kill(server, Signal::SIGKILL).unwrap();
    for probe in &mut waiting {
        let got = probe.bytes_of("cat");
        assert_eq!(got, Ok(VALUE.to_vec()));
    }
}

#[test]
fn the_server_dies_with_its_keeper_and_the_next_start_heals() {
    needs!();
    let mut daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    let fd = reader.open(&daemon.path("a/x")).unwrap();
    let server = daemon.server();
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    assert!(
        eventually(DEADLINE, || gone(server)),
        "the server outlives its keeper"
    );
    assert_eq!(daemon.mounts().len(), 1, "a dead mount is left behind");
    assert!(matches!(
        reader.pread(fd),
        Err(Errno::ECONNABORTED | Errno::ENOTCONN)
    ));
    assert_eq!(reader.open(&daemon.path("a/x")), Err(Errno::ENOTCONN));
    daemon.start_keeper();
    assert_eq!(daemon.mounts().len(), 1);
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    // And once more, with `unmount` as the cure, at once.
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    daemon.secretfs(&["unmount"], b"").expect_ok();
    assert_eq!(daemon.mounts(), []);
    daemon.start_keeper();
    daemon.stop();
}

#[test]
fn a_second_daemon_of_the_same_config_is_refused_in_one_line() {
    needs!();
    let daemon = start();
    let second = daemon.secretfs(&["mount"], b"");
    assert_eq!(second.code(), 1, "{second:?}");
    assert_eq!(second.stderr.lines().count(), 1, "{second:?}");
    assert!(second.stderr.contains("another daemon"), "{second:?}");
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(
        reader.cat(&daemon.path("a/x")),
        Ok(VALUE.to_vec()),
        "the first goes on"
    );
    assert_eq!(daemon.mounts().len(), 1);
}

#[test]
fn two_daemons_of_two_configs_stand_side_by_side() {
    needs!();
    let (mut one, two) = (start(), start());
    let mut reader = one.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&one.path("a/x")), Ok(VALUE.to_vec()));
    two.put("a/x", b"two");
    assert_eq!(reader.cat(&two.path("a/x")), Ok(b"two".to_vec()));
    assert_eq!(reader.cat(&one.path("a/x")), Ok(VALUE.to_vec()));
    one.stop();
    assert_eq!(reader.cat(&two.path("a/x")), Ok(b"two".to_vec()));
}

/// A second daemon whose config names the mountpoint of `first`.
fn at_the_mountpoint_of(first: &Daemon) -> Daemon {
    let second = Setup {
        services: SERVICES,
        values: &VALUES,
        ..Setup::default()
    };
    let second = second.prepare();
    let config = fs::read_to_string(second.at("config.toml")).unwrap();
    let (own, other) = (second.mountpoint(), first.mountpoint());
    let config = config.replace(own.to_str().unwrap(), other.to_str().unwrap());
    fs::write(second.at("config.toml"), config).unwrap();
    second
}

#[test]
fn the_mount_of_another_daemon_is_not_taken_away() {
    needs!();
    let mut first = start();
    let mut second = at_the_mountpoint_of(&first);
    let refused = second.try_start().expect_err("both at one place");
    assert_eq!(refused.code(), Some(1));
    assert!(
        second.log().contains("holds a mount of"),
        "{}",
        second.log()
    );
    let refused = second.secretfs(&["unmount"], b"");
    assert_eq!(refused.code(), 1, "{refused:?}");
    // Nor when it is dead.
    first.signal(Signal::SIGKILL);
    first.ended();
    second
        .try_start()
        .expect_err("a dead mount of somebody else's");
    assert_eq!(first.mounts().len(), 1);
    first.start_keeper();
    first.stop();
}

#[test]
fn what_somebody_else_mounted_at_the_mountpoint_stays() {
    needs!();
    let mut daemon = Setup {
        services: SERVICES,
        values: &VALUES,
        ..Setup::default()
    }
    .prepare();
    let flags = nix::mount::MsFlags::empty();
    let place = daemon.mountpoint();
    let tmpfs = || {
        nix::mount::mount(
            Some("tmpfs"),
            &place,
            Some("tmpfs"),
            flags,
            Some("size=64k"),
        )
        .unwrap()
    };
    let kinds = |daemon: &Daemon| -> Vec<String> {
        daemon
            .mounts()
            .into_iter()
            .map(|mounted| mounted.kind)
            .collect()
    };
    // Below ours.
    tmpfs();
    daemon.start_keeper();
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    // Somebody takes ours away: it comes back, and his own stays.
    let umount = run(
        std::process::Command::new("umount")
            .args(["-l"])
            .arg(&place),
        b"",
    );
    umount.expect_ok();
    reads_again(&mut reader, &daemon.path("a/x"));
    assert_eq!(kinds(&daemon), ["tmpfs", "fuse.secretfs"]);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success(), "{}", daemon.log());
    assert_eq!(kinds(&daemon), ["tmpfs"]);
    nix::mount::umount(&place).unwrap();

    // On top of ours: what is ours goes, what is not stays.
    daemon.start_keeper();
    tmpfs();
    daemon.signal(Signal::SIGTERM);
    daemon.ended();
    assert!(
        kinds(&daemon).contains(&"tmpfs".to_owned()),
        "{:?}",
        daemon.mounts()
    );
    nix::mount::umount(&place).unwrap();
    let _ = nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH);
}

#[test]
fn hup_has_the_config_read_again() {
    needs!();
    let daemon = start();
    let mut other = daemon.probe(&Who::uid(4002));
    assert_eq!(other.open(&daemon.path("a/x")), Err(Errno::EACCES));
    let config = fs::read_to_string(daemon.at("config.toml")).unwrap();
    fs::write(
        daemon.at("config.toml"),
        config.replace("uid = 4001", "uid = 4002"),
    )
    .unwrap();
    daemon.signal(Signal::SIGHUP);
    let changed = eventually(DEADLINE, || {
        other.cat(&daemon.path("a/x")) == Ok(VALUE.to_vec())
    });
    assert!(changed, "{}", daemon.log());
    let mut before = daemon.probe(&Who::uid(4001));
    assert_eq!(before.open(&daemon.path("a/x")), Err(Errno::EACCES));
    // A wrong config changes nothing.
    fs::write(daemon.at("config.toml"), "mount = 7\n").unwrap();
    let refused = daemon.secretfs(&["reload"], b"");
    assert_ne!(refused.code(), 0);
    assert_eq!(other.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
}

#[test]
fn a_start_that_fails_leaves_no_mount() {
    needs!();
    let mut daemon = Setup {
        services: SERVICES,
        values: &VALUES,
        ..Setup::default()
    }
    .prepare();
    let index = daemon.at("data/local.age");
    let kept = fs::read(&index).unwrap();
    fs::write(&index, b"damaged").unwrap();
    daemon.try_start().expect_err("a damaged store");
    assert_eq!(daemon.mounts(), []);
    assert!(daemon.log().contains("local.age"), "{}", daemon.log());
    fs::write(&index, kept).unwrap();
    fs::remove_dir(daemon.mountpoint()).unwrap();
    daemon.try_start().expect_err("no mountpoint");
    assert!(daemon.log().contains("mkdir -p"), "{}", daemon.log());
    fs::create_dir(daemon.mountpoint()).unwrap();
    daemon.start_keeper();
    assert_eq!(mounts(&daemon.mountpoint()).len(), 1);
    daemon.stop();
}

#[test]
fn an_aborted_connection_is_mounted_afresh() {
    needs!();
    let daemon = start();
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    abort(&daemon.mountpoint());
    reads_again(&mut reader, &daemon.path("a/x"));
    assert_eq!(daemon.mounts().len(), 1);
}
