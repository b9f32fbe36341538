//! A container that runs a shell, and obeys.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::cgroups::Cgroups;
use crate::common::daemon::{Daemon, tool};
use crate::common::machine::Need;
use crate::common::speaker::Speaker;
use crate::common::{Output, run};

/// What these tests need besides a mount.
pub(crate) const PODMAN: [Need; 4] = [
    Need::Program("podman"),
    Need::Program("runc"),
    Need::Program("busybox"),
    Need::Program("inotifywait"),
];
/// What a container has of busybox.
const PROGRAMS: [&str; 5] = ["sh", "cat", "id", "ls", "wc"];

/// Gone when dropped, with everything that podman made for it.
#[derive(Debug)]
pub(crate) struct Container {
    shell: Option<Speaker>,
    folder: PathBuf,
    name: String,
    asked: u32,
    /// Where podman puts it. They can go when it is gone.
    _cgroups: Cgroups,
}

impl Container {
    /// A container of this user's with these volumes (`-v`).
    #[track_caller]
    pub(crate) fn start(daemon: &Daemon, uid: u32, volumes: &[String]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroups = Cgroups::named(&format!("container-{number}"));
        let name = cgroups.name().to_owned();
        // Podman takes no long name for this.
        let folder = daemon.at(&format!("pod-{number}"));
        let root = folder.join("rootfs");
        make_root(&root);
        // Without this its locks are shared memory that all of its users share, and that stays.
        fs::write(
            folder.join("containers.conf"),
            "[engine]\nlock_type = \"file\"\n",
        )
        .unwrap();
        let mut container = Self {
            shell: None,
            folder,
            name: name.clone(),
            asked: 0,
            _cgroups: cgroups,
        };
        let mut command = container.podman();
        command
            .args(["run", "--rm", "--interactive", "--name", &name])
            .args(["--cgroup-parent", &format!("/{name}")])
            .args([
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1024:1024",
            ])
            .args(["--network", "none", "--user", &uid.to_string()]);
        for volume in volumes {
            command.args(["--volume", volume]);
        }
        command.arg("--rootfs").arg(&root).arg("sh");
        container.shell = Some(Speaker::start(&mut command));
        container.shell("id -u");
        container
    }

    /// Runs a command in the container's shell, and says what it printed on either stream.
    #[track_caller]
    pub(crate) fn shell(&mut self, command: &str) -> String {
        self.asked += 1;
        let done = format!("done {}", self.asked);
        let shell = self.shell.as_mut().unwrap();
        shell.tell(&format!("{{ {command}\n}} 2>&1; echo; echo {done}"));
        let mut said = Vec::new();
        shell.until(|line| {
            said.push(line.to_owned());
            line == done
        });
        said.pop();
        // The line's end before the last line is ours.
        said.join("\n").trim_end_matches('\n').to_owned()
    }

    /// Lets inotifywait watch something for these events, and goes on when it does.
    #[track_caller]
    pub(crate) fn watch(&mut self, path: &str, events: &str) {
        let shell = self.shell.as_mut().unwrap();
        shell.tell(&format!(
            "/usr/bin/inotifywait -m --format '%w %e %f' -e {events} {path} &"
        ));
        shell.says("Watches established.");
    }

    /// Waits until the watches have heard all of this, and nothing else, in whatever order.
    #[track_caller]
    pub(crate) fn hears(&mut self, mut events: Vec<String>) {
        let shell = self.shell.as_mut().unwrap();
        shell.until(|said| {
            let at = events.iter().position(|event| event == said.trim_end());
            events.remove(at.unwrap_or_else(|| panic!("{said:?} is none of {events:?}")));
            events.is_empty()
        });
    }

    /// Runs a command as another user of the same container.
    #[track_caller]
    pub(crate) fn exec(&self, uid: u32, words: &[&str]) -> Output {
        let mut command = self.podman();
        command.args(["exec", "--user", &uid.to_string(), &self.name]);
        run(command.args(words), b"")
    }

    fn podman(&self) -> Command {
        let at = |name: &str| self.folder.join(name);
        let mut command = Command::new(tool("podman"));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", at("home"))
            .env("CONTAINERS_CONF", at("containers.conf"))
            .current_dir("/")
            .arg("--root")
            .arg(at("storage"))
            .arg("--runroot")
            .arg(at("run"))
            .arg("--tmpdir")
            .arg(at("tmp"))
            .args(["--storage-driver", "vfs", "--events-backend", "none"])
            .args(["--cgroup-manager", "cgroupfs"])
            .args(["--runtime", &tool("runc")])
            .args(["--runtime-flag", &format!("root={}", at("runc").display())]);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut remove = self.podman();
        remove.args(["rm", "--force", "--ignore", "--time", "0", &self.name]);
        let removed = run(&mut remove, b"");
        drop(self.shell.take());
        assert!(
            removed.status.success() || std::thread::panicking(),
            "{removed:?}"
        );
    }
}

/// Busybox, inotifywait (which Debian's busybox lacks) with its libraries, and places that volumes are mounted at.
fn make_root(root: &Path) {
    for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy(tool("busybox"), root.join("bin/busybox")).unwrap();
    for program in PROGRAMS {
        symlink("busybox", root.join("bin").join(program)).unwrap();
    }
    let inotifywait = tool("inotifywait");
    let needed = run(Command::new("ldd").arg(&inotifywait), b"").expect_ok();
    let needed = String::from_utf8(needed).unwrap();
    let files = needed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for file in files.chain([inotifywait.as_str()]) {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}
