//! A Debian of its own, booted by systemd in a container without a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::cgroups::Cgroups;
use crate::common::daemon::tool;
use crate::common::folder::Folder;
use crate::common::kept::Kept;
use crate::common::machine::made_by;
use crate::common::{Output, eventually, run, run_within};

/// How long it may take to boot. Mostly it is a second.
const BOOT: Duration = Duration::from_secs(60);

/// Runs a program in the cgroups that are named before it, where all that it starts stays.
const IN_CGROUPS: &str = r#"
while [ "$1" != -- ]; do
    echo $$ >"$1/cgroup.procs" || exit
    shift
done
shift
exec "$@"
"#;

/// Gone when dropped.
#[derive(Debug)]
pub(crate) struct Host {
    /// Ends first, then whoever is left of it, then its files go.
    container: Kept,
    _cgroups: Cgroups,
    _folder: Folder,
    /// There is one at a time.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

/// What this script builds, which takes as long as a release does. Nothing is booted meanwhile: readers there must not wait long,
/// and a compiler takes the whole machine.
#[track_caller]
pub(crate) fn build(script: &str) -> PathBuf {
    let _turn = turn();
    made_by(script, &[])
}

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What it is booted with. Systemd's word for it is that it has a unit of its own already.
const NSPAWN: [&str; 7] = [
    "--quiet",
    "--boot",
    "--register=no",
    "--keep-unit",
    "--private-network",
    "--bind=/dev/fuse",
    // As a machine has them.
    "--capability=CAP_SYS_ADMIN,CAP_IPC_LOCK",
];

impl Host {
    /// Boots one that has each of these files at its place.
    #[track_caller]
    pub(crate) fn boot(files: &[(&Path, &str)]) -> Self {
        let turn = turn();
        let folder = Folder::new();
        let root = folder.at("root");
        fs::create_dir(&root).unwrap();
        let mut unpack = Command::new(tool("tar"));
        unpack.arg("--extract").arg("--file");
        unpack.arg(made_by("tests/packages/debian", &[]));
        unpack.arg("--directory").arg(&root);
        run_within(BOOT, &mut unpack, b"").expect_ok();
        for (file, place) in files {
            let place = root.join(place.trim_start_matches('/'));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(file, place).unwrap();
        }
        let cgroups = Cgroups::make("host");
        let mut words = ["sh", "-c", IN_CGROUPS, "sh"].map(str::to_owned).to_vec();
        let paths = cgroups.paths();
        words.extend(paths.iter().map(|path| path.display().to_string()));
        words.extend(["--", &tool("systemd-nspawn")].map(str::to_owned));
        words.extend(NSPAWN.map(str::to_owned));
        words.push(format!("--machine={}", cgroups.name()));
        words.push(format!("--directory={}", root.display()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let host = Self {
            // Killed, it would leave what it has booted running.
            container: Kept::start(&folder, Signal::SIGTERM, None, &words),
            _cgroups: cgroups,
            _folder: folder,
            _turn: turn,
        };
        let booted = eventually(BOOT, || {
            let state = host.shell("systemctl is-system-running");
            state.is_some_and(|output| output.stdout == b"running\n")
        });
        if !booted {
            let failed = host.shell("systemctl is-system-running; systemctl --failed");
            let log = fs::read_to_string(host._folder.at("server.log"));
            panic!("it does not boot: {failed:?}\n{log:?}");
        }
        host
    }

    /// What a script prints on either stream, if none of its commands fails.
    #[track_caller]
    pub(crate) fn does(&self, script: &str) -> String {
        let output = self.shell(&format!("set -e; exec 2>&1; {script}"));
        let output = output.expect("it has booted");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}: {said}");
        said
    }

    /// The same, without the end of its last line.
    #[track_caller]
    pub(crate) fn says(&self, script: &str) -> String {
        self.does(script).trim_end_matches('\n').to_owned()
    }

    /// Runs a script in it; nothing while there is nothing to run it in.
    #[track_caller]
    fn shell(&self, script: &str) -> Option<Output> {
        let nspawn = self.container.pid();
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children"));
        let init = children.ok()?.split_whitespace().next()?.to_owned();
        // Before it is the first of processes of its own it has this machine's files.
        let status = fs::read_to_string(format!("/proc/{init}/status")).ok()?;
        let numbers = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        (numbers.len() > 1 && numbers.ends_with(&["1"])).then_some(())?;
        let mut command = Command::new(tool("nsenter"));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(["--all", "--target", &init])
            .args(["bash", "-c", script]);
        Some(run(&mut command, b""))
    }
}
