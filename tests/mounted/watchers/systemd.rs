//! systemd's path units. A manager of one's own needs no machine that systemd has booted: it gets a `/run`, processes and
//! cgroups of its own, and all of that is gone with it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{bind, start};
use crate::common::cgroups::Cgroups;
use crate::common::daemon::Daemon;
use crate::common::machine::{Need, SYSTEMD, needs};
use crate::common::speaker::Speaker;
use crate::common::{DEADLINE, eventually};

/// A manager that runs every path unit in a folder.
#[derive(Debug)]
struct Manager {
    /// Before the cgroups that it is in.
    shell: Speaker,
    _cgroups: Cgroups,
}

/// What becomes the manager's neighbour and obeys us, in namespaces that are made already.
const SHELL: &str = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p -m 755 /run/systemd/system
mkdir -m 700 /run/user-manager
export HOME=/run XDG_RUNTIME_DIR=/run/user-manager XDG_CONFIG_HOME=/run SYSTEMD_UNIT_PATH="$1"
"$2" --user --log-target=console --log-level=warning &
until systemctl --user is-active default.target; do sleep 0.02; done
while read -r line; do eval "$line"; done
"#;

/// Moves itself into cgroups, which follow on `--`, and then into namespaces that end when it is killed.
const ENTER: &str = r#"
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done
shift
exec setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child --mount-proc "$@"
"#;

impl Manager {
    fn start(units: &Path) -> Self {
        let cgroups = Cgroups::make("manager.slice");
        let mut command = Command::new("/bin/sh");
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .args(["-c", ENTER, "sh"])
            .args(cgroups.paths())
            .args(["--", "/bin/sh", "-c", SHELL, "sh"])
            .arg(units)
            .arg(SYSTEMD);
        let mut shell = Speaker::start(&mut command);
        shell.until(|line| line == "active");
        Self {
            shell,
            _cgroups: cgroups,
        }
    }

    /// Waits until a path unit waits for a change: while its service runs it hears of none.
    fn waits(&mut self, unit: &str) {
        let ask = format!(
            "until systemctl --user show -p SubState {unit} | grep -qx SubState=waiting; do sleep 0.02; done; echo {unit} waits"
        );
        self.shell.tell(&ask);
        self.shell.says(&format!("{unit} waits"));
    }
}

/// A path unit and its service, which writes down what it reads.
fn write_units(daemon: &Daemon, units: &Path, name: &str, condition: &str, secret: &Path) {
    let alone = "[Unit]\nDefaultDependencies=no\n";
    let (secret, heard) = (secret.display(), daemon.at(name));
    let path = format!("{alone}[Path]\n{condition}={secret}\n");
    fs::write(units.join(format!("{name}.path")), path).unwrap();
    let heard = heard.display();
    let service = format!(
        "{alone}[Service]\nType=oneshot\nSlice=-.slice\nExecStart=/bin/sh -c 'cat {secret} >> {heard}; echo >> {heard}'\n"
    );
    fs::write(units.join(format!("{name}.service")), service).unwrap();
}

#[test]
fn systemd_s_path_units_start_their_services_also_through_a_bind() {
    needs!(Need::Systemd, Need::Cgroups, Need::Program("unshare"));
    let daemon = start();
    let bound = bind(&daemon, "a", "folder");
    let units = daemon.at("units");
    fs::create_dir(&units).unwrap();
    let (direct, through) = (daemon.path("a/x"), bound.path().join("x"));
    let all = [
        ("changed", "PathChanged", &direct),
        ("modified", "PathModified", &direct),
        ("changed-bind", "PathChanged", &through),
    ];
    let mut wants = String::from("[Unit]\nDefaultDependencies=no\n");
    for (name, condition, secret) in all {
        write_units(&daemon, &units, name, condition, secret);
        wants.push_str(&format!("Wants={name}.path\n"));
    }
    fs::write(units.join("default.target"), wants).unwrap();
    let mut manager = Manager::start(&units);
    let mut right = String::new();
    for value in ["second", "third", "a longer one, the fourth"] {
        for (name, _, _) in all {
            manager.waits(&format!("{name}.path"));
        }
        daemon.put("a/x", value.as_bytes());
        right.push_str(&format!("{value}\n"));
        for (name, _, _) in all {
            let read = || fs::read_to_string(daemon.at(name)).unwrap_or_default();
            eventually(DEADLINE, || read().len() >= right.len());
            assert_eq!(read(), right, "{name}");
        }
    }
    // Whoever put in vain would be told twice.
    std::thread::sleep(Duration::from_millis(100));
    for (name, _, _) in all {
        assert_eq!(
            fs::read_to_string(daemon.at(name)).unwrap(),
            right,
            "{name}"
        );
    }
}
