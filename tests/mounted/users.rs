//! A daemon that a plain user starts, through fusermount3.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::{Need, needs};
use crate::common::probe::Who;
use crate::common::{DEADLINE, eventually};

const CONF: &str = "/etc/fuse.conf";
/// `daemon`, who is everywhere: fusermount3 wants an account, not only a number.
const USER: u32 = 1;
const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = [1, 4001] }]
"#;
const VALUE: &[u8] = b"canary of a plain user\n";

/// What udev opens to everyone, and a bare machine may not have opened.
const DEVICES: [&str; 2] = ["/dev/fuse", "/dev/null"];

/// `/etc/fuse.conf` and the modes of devices as a test wants them, and as they were when it ends.
#[derive(Debug)]
pub(crate) struct Machine {
    conf: Option<Vec<u8>>,
    modes: [u32; 2],
    _turn: std::sync::MutexGuard<'static, ()>,
}

impl Machine {
    pub(crate) fn with(conf: &str) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mode = |device| fs::metadata(device).unwrap().permissions().mode() & 0o7777;
        let machine = Self {
            conf: fs::read(CONF).ok(),
            modes: DEVICES.map(mode),
            _turn: turn,
        };
        fs::write(CONF, conf).unwrap();
        for device in DEVICES {
            fs::set_permissions(device, Permissions::from_mode(0o666)).unwrap();
        }
        machine
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        match &self.conf {
            Some(conf) => fs::write(CONF, conf).unwrap(),
            None => drop(fs::remove_file(CONF)),
        }
        for (device, mode) in DEVICES.into_iter().zip(self.modes) {
            fs::set_permissions(device, Permissions::from_mode(mode)).unwrap();
        }
    }
}

fn start() -> Daemon {
    let setup = Setup {
        services: SERVICES,
        values: &[("a/x", VALUE)],
        starter: Some(USER),
        ..Setup::default()
    };
    setup.start()
}

#[test]
fn without_user_allow_other_only_the_user_reads_and_the_daemon_says_so() {
    needs!(Need::Program("fusermount3"));
    let _machine = Machine::with("# user_allow_other\n");
    let mut daemon = start();
    let mut owner = daemon.probe(&Who::new(USER, USER, &[]));
    assert_eq!(owner.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    for who in [Who::uid(4001), Who::root()] {
        let mut other = daemon.probe(&who);
        assert_eq!(
            other.open(&daemon.path("a/x")),
            Err(Errno::EACCES),
            "{who:?}"
        );
        assert_eq!(
            other.list(&daemon.mountpoint()),
            Err(Errno::EACCES),
            "{who:?}"
        );
    }
    assert!(
        daemon.log().contains("user_allow_other"),
        "{}",
        daemon.log()
    );
    daemon.put("a/x", b"second");
    assert_eq!(owner.cat(&daemon.path("a/x")), Ok(b"second".to_vec()));
    daemon.stop();
}

#[test]
fn with_user_allow_other_the_rules_decide_who_reads() {
    needs!(Need::Program("fusermount3"));
    let _machine = Machine::with("user_allow_other\n");
    let mut daemon = start();
    let fds = fs::read_dir(
        Path::new("/proc")
            .join(daemon.keeper().to_string())
            .join("fd"),
    );
    let fds = fds.unwrap().count();
    for (who, allowed) in [
        (Who::new(USER, USER, &[]), true),
        (Who::uid(4001), true),
        (Who::uid(4009), false),
        (Who::root(), false),
    ] {
        let mut probe = daemon.probe(&who);
        let right = if allowed {
            Ok(VALUE.to_vec())
        } else {
            Err(Errno::EACCES)
        };
        assert_eq!(probe.cat(&daemon.path("a/x")), right, "{who:?}");
    }
    let server = daemon.server();
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(
            status.contains(&format!("{set}:\t0000000000000000")),
            "{status}"
        );
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    // A killed server comes back through fusermount3, too.
    kill(server, Signal::SIGKILL).unwrap();
    let mut reader = daemon.probe(&Who::uid(4001));
    let again = eventually(DEADLINE, || {
        reader.cat(&daemon.path("a/x")).as_deref() == Ok(VALUE)
    });
    assert!(again, "{}", daemon.log());
    let now = fs::read_dir(
        Path::new("/proc")
            .join(daemon.keeper().to_string())
            .join("fd"),
    );
    assert_eq!(now.unwrap().count(), fds, "the keeper leaks");
    // And a killed keeper's mount is healed at the next start.
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    assert_eq!(reader.open(&daemon.path("a/x")), Err(Errno::ENOTCONN));
    daemon.start_keeper();
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    let held = reader.open(&daemon.path("a/x")).unwrap();
    daemon.stop();
    assert!(reader.pread(held).is_err());
}
