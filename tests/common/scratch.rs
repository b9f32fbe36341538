//! A secretfs of its own in a folder below `/tmp`, to be broken: made once by the program itself, copied for each case.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use secretfs::clock::Clock;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_secretfs");
/// What begins the name of each of our folders.
const PREFIX: &str = "/tmp/secretfs-scratch-";
/// How long anything may take. A command that waits for a silent daemon gives up after 20 s.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A value that is in the store of each place, and must never be seen but in the output of `get`.
pub(crate) const CANARY: &str = "canary-Vx7\"\\/é+&q9Zt2Lw";
/// Somebody whom no rule names.
pub(crate) const STRANGER: u32 = 65_533;
/// Somebody whom a rule of the service `billing` names.
pub(crate) const READER: u32 = 61_001;

/// Whether the machine can do what the mounted half of a test needs. What it cannot is said, or is a failure.
pub(crate) fn can_mount() -> bool {
    if root() && Path::new("/dev/fuse").exists() {
        return true;
    }
    lacks("root and /dev/fuse")
}

/// Whether we are root. Most of what goes wrong with owners needs that.
pub(crate) fn is_root() -> bool {
    root() || lacks("root")
}

/// Whether a program is there.
pub(crate) fn has_program(name: &str) -> bool {
    let found = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    found
        .iter()
        .any(|folder| Path::new(folder).join(name).exists())
        || lacks(name)
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn lacks(what: &str) -> bool {
    eprintln!("SKIPPED: this machine lacks {what}");
    assert!(
        std::env::var_os("SECRETFS_REQUIRE_ALL").is_none_or(|all| all != "1"),
        "this machine lacks {what}, and SECRETFS_REQUIRE_ALL=1"
    );
    false
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; a signal is 128 and its number, as in a shell.
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// Runs a command to its end. `None` if that does not come in time.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Option<Ended> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Who does not read to the end has its reasons.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let out = collect(child.stdout.take().unwrap());
    let err = collect(child.stderr.take().unwrap());
    let Some(code) = wait(&mut child) else {
        let _ = child.kill();
        let _ = child.wait();
        return None;
    };
    drop(writer);
    Some(Ended {
        code,
        stdout: out.join().unwrap(),
        stderr: String::from_utf8_lossy(&err.join().unwrap()).into_owned(),
    })
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for the end of a child, and gives its code.
pub(crate) fn wait(child: &mut Child) -> Option<i32> {
    let mut ended = None;
    eventually(|| {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    ended.map(|status| status.code().unwrap_or(128 + status.signal().unwrap_or(0)))
}

/// Asks again and again, and says whether the answer was yes before the deadline.
pub(crate) fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let clock = Clock::default();
    let deadline = clock.now() + DEADLINE;
    while clock.now() < deadline {
        if done() {
            return true;
        }
        thread::sleep(Duration::from_millis(2));
    }
    false
}

/// A config, an identity and a store with two secrets, in a folder of their own, which goes with it.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
    daemon: Option<Child>,
}

impl Place {
    /// One that is as good as new.
    pub(crate) fn new() -> Self {
        let place = Self::empty();
        let template = template();
        let copied = Command::new("cp")
            .args(["-a", "--"])
            .arg(template.join("."))
            .arg(&place.root)
            .status();
        assert!(copied.unwrap().success());
        let config = fs::read_to_string(template.join("config.toml")).unwrap();
        let (from, to) = (template.to_str().unwrap(), place.root.to_str().unwrap());
        place.write("config.toml", config.replace(from, to));
        place
    }

    /// An empty folder.
    pub(crate) fn empty() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
        Self { root, daemon: None }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        fs::read(self.at(name)).unwrap()
    }

    pub(crate) fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn chmod(&self, name: impl AsRef<Path>, mode: u32) {
        fs::set_permissions(self.at(name), Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn chown(&self, name: impl AsRef<Path>, uid: u32) {
        chown(self.at(name), Some(uid), None).unwrap();
    }

    pub(crate) fn remove(&self, name: impl AsRef<Path>) {
        let path = self.at(name);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    /// Puts a folder in the place of a file.
    pub(crate) fn folder(&self, name: impl AsRef<Path>) {
        let path = self.at(name);
        let _ = fs::remove_file(&path);
        fs::create_dir_all(path).unwrap();
    }

    /// Puts a symbolic link in the place of a file.
    pub(crate) fn link(&self, name: impl AsRef<Path>, to: impl AsRef<Path>) {
        let path = self.at(name);
        let _ = fs::remove_file(&path);
        symlink(to, path).unwrap();
    }

    /// Keeps the first half of a file.
    pub(crate) fn truncate(&self, name: impl AsRef<Path>) {
        let half = self.read(&name);
        self.write(name, &half[..half.len() / 2]);
    }

    /// Flips a bit in the last quarter of a file.
    pub(crate) fn flip(&self, name: impl AsRef<Path>) {
        let mut bytes = self.read(&name);
        let at = bytes.len() - bytes.len() / 8 - 1;
        bytes[at] ^= 0x10;
        self.write(name, bytes);
    }

    /// Adds lines to the config.
    pub(crate) fn configure(&self, more: &str) {
        let text = String::from_utf8(self.read("config.toml")).unwrap();
        self.write("config.toml", format!("{text}\n{more}\n"));
    }

    /// Changes the first place in the config where `old` stands.
    pub(crate) fn reconfigure(&self, old: &str, new: &str) {
        let text = String::from_utf8(self.read("config.toml")).unwrap();
        assert!(text.contains(old), "the config has no {old:?}");
        self.write("config.toml", text.replacen(old, new, 1));
    }

    /// The file of the value that was put last of all.
    pub(crate) fn newest_value(&self) -> PathBuf {
        self.values().pop().unwrap()
    }

    /// The files of the values, the oldest first.
    pub(crate) fn values(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.at("store.d"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name().len() == "0123456789abcdef0123456789abcdef.age".len())
            .map(|entry| {
                let metadata = entry.metadata().unwrap();
                ((metadata.mtime(), metadata.mtime_nsec()), entry.path())
            })
            .collect();
        files.sort();
        files.into_iter().map(|(_, path)| path).collect()
    }

    /// The program with this config. Without a terminal, as in a cron job.
    pub(crate) fn command<W: AsRef<OsStr>>(&self, words: &[W]) -> Command {
        let mut command = self.bare();
        command
            .arg("--config")
            .arg(self.at("config.toml"))
            .args(words);
        command
    }

    /// The program alone.
    pub(crate) fn bare(&self) -> Command {
        let mut command = Command::new("/usr/bin/setsid");
        command
            .args(["--wait", PROGRAM])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.root())
            .current_dir("/");
        command
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, words: &[&str], input: &[u8]) -> Vec<u8> {
        let ended = run(&mut self.command(words), input).expect("it hangs");
        assert_eq!(ended.code, 0, "{words:?}: {}", ended.stderr);
        ended.stdout
    }

    /// Starts the daemon, whose words go to `daemon.log`, and waits until it serves.
    #[track_caller]
    pub(crate) fn serve(&mut self) {
        self.serve_with(&[]);
    }

    /// The same, with something in the environment.
    #[track_caller]
    pub(crate) fn serve_with(&mut self, environment: &[(&str, &str)]) {
        let log = fs::File::create(self.at("daemon.log")).unwrap();
        let mut command = self.command(&["mount"]);
        for (name, value) in environment {
            command.env(name, value);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let ready = eventually(|| {
            child.try_wait().unwrap().is_some()
                || run(&mut self.command(&["--json", "status"]), b"")
                    .is_some_and(|ended| String::from_utf8_lossy(&ended.stdout).contains("\"pid\""))
        });
        let ended = child.try_wait().unwrap();
        self.daemon = Some(child);
        let log = String::from_utf8_lossy(&self.read("daemon.log")).into_owned();
        assert!(ready && ended.is_none(), "the daemon does not serve: {log}");
    }

    /// The keeper's process id. (`setsid` becomes it.)
    pub(crate) fn keeper(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// The server's process id.
    pub(crate) fn server(&self) -> Option<u32> {
        let keeper = self.keeper();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Ends the daemon.
    pub(crate) fn end(&mut self) {
        let Some(mut child) = self.daemon.take() else {
            return;
        };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        if wait(&mut child).is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Everything below the folder but what is mounted there: what it is, whose, and what is in it.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Thing> {
        let mut things = BTreeMap::new();
        walk(&self.root, &self.root, &mut things);
        things
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end();
        // Whatever a case mounted.
        for name in ["secrets", "full"] {
            let _ = nix::mount::umount2(&self.at(name), nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// What one name in a folder stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Thing {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) content: Vec<u8>,
}

fn walk(root: &Path, folder: &Path, things: &mut BTreeMap<PathBuf, Thing>) {
    let device = fs::symlink_metadata(root).unwrap().dev();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            // A dead mount.
            continue;
        };
        if metadata.dev() != device {
            continue;
        }
        let content = if metadata.is_file() {
            fs::read(&path).unwrap()
        } else if metadata.is_symlink() {
            fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else {
            Vec::new()
        };
        let thing = Thing {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            content,
        };
        things.insert(path.strip_prefix(root).unwrap().to_owned(), thing);
        if metadata.is_dir() {
            walk(root, &path, things);
        }
    }
}

/// A place as `init` makes it, with a secret that is [`CANARY`] and one that has two versions.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        sweep();
        let place = Place::empty();
        let mut init = place.bare();
        init.arg("init").arg(place.root());
        let ended = run(&mut init, b"").unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let ours = nix::unistd::geteuid();
        place.configure(&format!(
            "[services.billing]\nsource = \"local:billing\"\nallow = [{{ uid = [{ours}, {READER}] }}]"
        ));
        place.ok(&["put", "billing/two"], b"one");
        place.ok(&["put", "billing/two"], b"two");
        place.ok(&["put", "billing/canary"], CANARY.as_bytes());
        place.ok(&["export", place.at("copy.age").to_str().unwrap()], b"");
        let root = place.root.clone();
        // It is swept away by the next run.
        std::mem::forget(place);
        root
    })
}

/// Removes what earlier runs left.
fn sweep() {
    for entry in fs::read_dir("/tmp").unwrap() {
        let path = entry.unwrap().path();
        let Some(rest) = path.to_str().and_then(|path| path.strip_prefix(PREFIX)) else {
            continue;
        };
        let pid = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(path);
        }
    }
}
