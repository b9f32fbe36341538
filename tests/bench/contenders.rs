//! Who is compared: tmpfs, the bare file system, and the real daemon. Each is gone when it is dropped.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secretfs::backend::store::{Identity, NewValue, Store};
use secretfs::clock::Clock;
use secretfs::control::answers::Status;
use secretfs::control::client::{Client, Upload};
use secretfs::control::protocol::{Failure, Request};
use secretfs::control::{Answer, SOCKET};
use secretfs::secret::{SecretBytes, SecretPath};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::tree::{Service, value};

const DEADLINE: Duration = Duration::from_secs(30);

/// A tree below `root`, and the process that serves it.
pub(crate) struct Contender {
    pub(crate) root: PathBuf,
    pub(crate) server: Option<u32>,
}

/// Files in memory, with nobody in between.
pub(crate) struct Tmpfs(TempDir);

impl Tmpfs {
    pub(crate) fn new(many: usize) -> Self {
        let folder = TempDir::new_in("/dev/shm").expect("/dev/shm");
        for service in Service::ALL {
            let place = folder.path().join(service.name());
            fs::create_dir(&place).expect("a folder");
            for (name, size) in service.secrets(many) {
                fs::write(place.join(name), value(size)).expect("a file");
            }
        }
        Self(folder)
    }

    pub(crate) fn contender(&self) -> Contender {
        Contender {
            root: self.0.path().to_owned(),
            server: None,
        }
    }
}

/// See [`crate::bare`].
pub(crate) struct Bare {
    child: Child,
    root: PathBuf,
}

impl Bare {
    pub(crate) fn start(folder: &Path, many: usize, clock: &Clock) -> Self {
        let root = folder.join("bare");
        fs::create_dir(&root).expect("a folder");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--bare").arg(&root);
        command.arg("--secrets").arg(many.to_string());
        // A group of its own, so that Ctrl-C leaves it the time to unmount.
        let child = command.process_group(0).stdin(Stdio::piped()).spawn();
        let bare = Self {
            child: child.expect("starts"),
            root,
        };
        wait_for("the bare file system", clock, || {
            bare.root.join(Service::Many.name()).exists()
        });
        bare
    }

    pub(crate) fn contender(&self) -> Contender {
        Contender {
            root: self.root.clone(),
            server: Some(self.child.id()),
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The daemon: the real program, its store and its audit log on the disk.
pub(crate) struct Daemon {
    child: Child,
    folder: PathBuf,
    runtime: Runtime,
}

impl Daemon {
    /// Makes a store in `folder` and serves it, and what `more` of a config says.
    pub(crate) fn start(folder: &Path, many: usize, more: &str, clock: &Clock) -> Self {
        make_store(folder, many, clock);
        fs::write(folder.join("config.toml"), config(folder) + more).expect("a config");
        fs::create_dir(folder.join("secrets")).expect("a mountpoint");
        // Told to end when this program does, however it ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", env!("CARGO_BIN_EXE_secretfs")])
            .arg("--config")
            .arg(folder.join("config.toml"))
            .arg("mount");
        let child = command.stdin(Stdio::null()).spawn().expect("starts");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let daemon = Self {
            child,
            folder: folder.to_owned(),
            runtime: runtime.expect("a runtime"),
        };
        wait_for("the daemon", clock, || {
            daemon.root().join(Service::Many.name()).exists()
                && daemon.ask(&Request::Status {}, Upload::Empty).is_ok()
        });
        daemon
    }

    pub(crate) fn contender(&self) -> Contender {
        let server = self.status().daemon.expect("a daemon").pid;
        Contender {
            root: self.root(),
            server: Some(server),
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    /// One command through the control socket, on a connection of its own, as the command line does it.
    pub(crate) fn ask(&self, request: &Request, upload: Upload) -> Result<Answer, Failure> {
        let socket = self.folder.join("run").join(SOCKET);
        self.runtime.block_on(async {
            let client = Client::connect(&socket).await?;
            let mut client = client.ok_or_else(|| Failure::failed("nobody listens"))?;
            client.call(request, upload, &mut |_| Ok(())).await
        })
    }

    /// Runs the program, as people do.
    pub(crate) fn command(&self, words: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_secretfs"));
        command
            .arg("--config")
            .arg(self.folder.join("config.toml"))
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let status = command.status().expect("starts");
        assert!(status.success(), "secretfs {}", words.join(" "));
    }

    pub(crate) fn status(&self) -> Status {
        let answer = self
            .ask(&Request::Status {}, Upload::Empty)
            .expect("status");
        serde_json::from_value(answer.json).expect("a status")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Made in memory and then copied, because the disk would be asked to keep each of the values at once.
fn make_store(folder: &Path, many: usize, clock: &Clock) {
    let identity = Identity::generate();
    let place = folder.join("identity.txt");
    fs::write(&place, identity.to_text(clock.timestamp()).expose()).expect("an identity");
    fs::set_permissions(&place, Permissions::from_mode(0o600)).expect("chmod");
    let memory = TempDir::new_in("/dev/shm").expect("/dev/shm");
    let made = Store::create(&memory.path().join("store.age"), &identity, clock.clone());
    let store = made.expect("a store");
    let mut secrets = Vec::new();
    for service in Service::ALL {
        for (name, size) in service.secrets(many) {
            let path: SecretPath = format!("{}/{name}", service.name())
                .parse()
                .expect("a path");
            secrets.push((path, SecretBytes::new(value(size))));
        }
    }
    let new = secrets.iter().map(|(path, value)| NewValue {
        path,
        value,
        description: None,
    });
    store
        .put_all(&new.collect::<Vec<_>>(), &mut |_, _| {})
        .expect("written");
    drop(store);
    let mut copy = Command::new("cp");
    copy.arg("-a");
    copy.args(["store.age", "store.d"].map(|name| memory.path().join(name)));
    assert!(copy.arg(folder).status().expect("cp").success());
}

fn config(folder: &Path) -> String {
    let folder = folder.display();
    let services = Service::ALL.map(|service| {
        let name = service.name();
        let secrets = match service {
            Service::Paged => {
                format!(
                    "[services.{name}.secrets]\nsmall = {{ from = \"local:{name}/small\", reads = \"cached\" }}\n\
                     kilo = {{ from = \"local:{name}/kilo\", reads = \"cached\" }}\n"
                )
            }
            Service::Warm | Service::Many => String::new(),
        };
        format!(
            "[services.{name}]\nsource = \"local:{name}\"\nallow = [{{ uid = 0 }}]\n{secrets}\n"
        )
    });
    format!(
        "mount = \"{folder}/secrets\"\nruntime = \"{folder}/run\"\nstate = \"{folder}/state\"\n\n\
         [backends.local]\ntype = \"store\"\npath = \"{folder}/store.age\"\n\
         identity = {{ file = \"{folder}/identity.txt\" }}\n\n{}[audit]\npath = \"{folder}/audit.jsonl\"\n",
        services.concat()
    )
}

pub(crate) fn wait_for(who: &str, clock: &Clock, mut ready: impl FnMut() -> bool) {
    let deadline = clock.now() + DEADLINE;
    while !ready() {
        assert!(clock.now() < deadline, "{who} did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A field of `/proc/PID/status`, in KiB.
pub(crate) fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::File::open(format!("/proc/{pid}/status")).expect("a process");
    let lines = BufReader::new(status).lines().map_while(Result::ok);
    let line = lines.into_iter().find(|line| line.starts_with(field));
    let line = line.expect("a field");
    let number = line.split_whitespace().nth(1).expect("a number");
    number.parse().expect("a number")
}
