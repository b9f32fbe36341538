//! A daemon of the real program, in a folder of its own below `/tmp`, with a store that holds what the test wants.
//!
//! However a test ends, its daemon ends with it: what it mounted is aborted and unmounted, what it started is killed,
//! and then it is looked whether that was so. A test that takes too long is let go by aborting its mounts.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, mpsc};
use std::thread;
use std::time::Duration;

use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use secretfs::backend::store::identity::Identity;
use secretfs::backend::store::{NewValue, Store};
use secretfs::clock::Clock;
use secretfs::secret::{SecretBytes, SecretPath};

use super::machine::program;
use super::mounts::{Bind, Mounted, abort, children, clean, mounts, processes};
use super::probe::{Probe, SCRIPT, Who};
use super::{DEADLINE, Output, eventually, patience, run, wait};

/// What all our folders' names begin with.
const PREFIX: &str = "/tmp/secretfs-test-";
/// After this long a test's mounts are aborted, so that it fails instead of hanging.
const WATCHDOG: Duration = Duration::from_secs(100);

/// What a daemon is to be like.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup<'a> {
    /// Keys for the top of the config.
    pub(crate) top: &'a str,
    /// The sections after the backend's: `source = "local:…"`.
    pub(crate) services: &'a str,
    /// What the store holds at first.
    pub(crate) values: &'a [(&'a str, &'a [u8])],
    /// The names of its stores; one, `local`, where this is empty.
    pub(crate) stores: &'a [&'a str],
    /// The account that the server becomes.
    pub(crate) user: Option<&'a str>,
    /// The plain user who starts it, instead of root.
    pub(crate) starter: Option<u32>,
    /// What it has in its environment, beside a path to look for programs in.
    pub(crate) env: &'a [(&'a str, &'a str)],
    /// Words that the daemon is started through, such as `unshare --pid --fork`.
    pub(crate) wrapped: &'a [&'a str],
    /// It is started from a copy of the program, `secretfs` in its folder. A plain user's always is.
    pub(crate) copied: bool,
}

impl Setup<'_> {
    /// Makes folder, config and store, and starts the daemon.
    #[track_caller]
    pub(crate) fn start(&self) -> Daemon {
        let mut daemon = self.prepare();
        daemon.start_keeper();
        daemon
    }

    /// Makes folder, config and store.
    #[track_caller]
    pub(crate) fn prepare(&self) -> Daemon {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("{PREFIX}{}-{number}", std::process::id()));
        let mut daemon = Daemon {
            watchdog: watch(root.clone()),
            keeper: None,
            notify: None,
            starter: self.starter,
            copied: self.copied || self.starter.is_some(),
            env: self
                .env
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            wrapped: self.wrapped.iter().map(|&word| word.to_owned()).collect(),
            root,
            head: String::new(),
        };
        daemon.head = daemon.head(self);
        daemon.make(self);
        daemon
    }
}

/// A daemon, running or not, and everything that belongs to it.
#[derive(Debug)]
pub(crate) struct Daemon {
    root: PathBuf,
    /// The config, but for the services.
    head: String,
    keeper: Option<Child>,
    /// Where the daemon says how it is.
    notify: Option<UnixDatagram>,
    starter: Option<u32>,
    env: Vec<(String, String)>,
    copied: bool,
    wrapped: Vec<String>,
    watchdog: mpsc::Sender<()>,
}

impl Daemon {
    /// A daemon of root's with these sections in its config and these values in its store.
    #[track_caller]
    pub(crate) fn start(services: &str, values: &[(&str, &[u8])]) -> Self {
        let setup = Setup {
            services,
            values,
            ..Setup::default()
        };
        setup.start()
    }

    /// Starts the daemon and waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn start_keeper(&mut self) {
        self.try_start()
            .unwrap_or_else(|status| panic!("the daemon ended with {status}: {}", self.log()));
    }

    /// Starts the daemon and waits until it is ready or has ended.
    #[track_caller]
    pub(crate) fn try_start(&mut self) -> Result<(), ExitStatus> {
        let place = self.at("notify");
        let _ = fs::remove_file(&place);
        let notify = UnixDatagram::bind(&place).unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o777)).unwrap();
        notify.set_nonblocking(true).unwrap();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.at("daemon.log"))
            .unwrap();
        let mut keeper = self
            .command(&["mount"])
            .env("NOTIFY_SOCKET", &place)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let (mut ready, mut ended) = (false, None);
        let settled = eventually(DEADLINE, || {
            let mut message = [0_u8; 256];
            if let Ok(length) = notify.recv(&mut message) {
                ready |= message[..length]
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"READY=1");
            }
            ended = keeper.try_wait().unwrap();
            ready || ended.is_some()
        });
        self.keeper = Some(keeper);
        self.notify = Some(notify);
        assert!(settled, "the daemon is not ready: {}", self.log());
        match ended {
            Some(status) if !ready => {
                self.keeper = None;
                Err(status)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The program with this config, as whoever starts it.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let (program, config) = (self.program(), self.at("config.toml"));
        let mut all: Vec<&str> = self.wrapped.iter().map(String::as_str).collect();
        all.extend([
            program.to_str().unwrap(),
            "--config",
            config.to_str().unwrap(),
        ]);
        all.extend(words);
        match self.starter {
            Some(uid) => Who::new(uid, uid, &[]).command(&all),
            None => {
                let mut command = Command::new(all[0]);
                command
                    .args(&all[1..])
                    .env_clear()
                    .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                    .envs(self.env.iter().map(|(key, value)| (key, value)))
                    .current_dir("/");
                command
            }
        }
    }

    /// Runs a command of the program with this config.
    #[track_caller]
    pub(crate) fn secretfs(&self, words: &[&str], input: &[u8]) -> Output {
        run(&mut self.command(words), input)
    }

    /// A new version of a secret. When it returns, the daemon has acknowledged it.
    #[track_caller]
    pub(crate) fn put(&self, path: &str, value: &[u8]) {
        self.secretfs(&["put", path], value).expect_ok();
    }

    /// Something of this daemon's folder.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Something below the mountpoint.
    pub(crate) fn path(&self, secret: &str) -> PathBuf {
        self.mountpoint().join(secret)
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.at("secrets")
    }

    /// A process of somebody's to make calls with.
    #[track_caller]
    pub(crate) fn probe(&self, who: &Who) -> Probe {
        Probe::start(who, &self.at("probe.py"))
    }

    /// A place where anybody can make a socket.
    pub(crate) fn door(&self, name: &str) -> PathBuf {
        self.at("doors").join(name)
    }

    /// What the daemon has said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.at("daemon.log")).unwrap_or_default()
    }

    /// The keeper; where it is started through another program, that program's child.
    #[track_caller]
    pub(crate) fn keeper(&self) -> Pid {
        let child = self.keeper.as_ref().expect("the daemon runs");
        let child = Pid::from_raw(i32::try_from(child.id()).unwrap());
        if self.wrapped.is_empty() {
            return child;
        }
        children(child).first().copied().unwrap_or(child)
    }

    /// The server, which is the keeper's only child.
    #[track_caller]
    pub(crate) fn server(&self) -> Pid {
        let children = children(self.keeper());
        assert_eq!(children.len(), 1, "the keeper's children: {children:?}");
        children[0]
    }

    /// Sends the keeper a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.keeper(), signal).unwrap();
    }

    /// Waits for the keeper's end.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut keeper = self.keeper.take().unwrap();
        let status = wait(&mut keeper, DEADLINE);
        if status.is_none() {
            self.keeper = Some(keeper);
        }
        status.unwrap_or_else(|| panic!("the daemon does not end: {}", self.log()))
    }

    /// Ends the daemon in order.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.log());
        assert_eq!(mounts(&self.mountpoint()), Vec::<Mounted>::new());
    }

    /// The mounts at the mountpoint.
    pub(crate) fn mounts(&self) -> Vec<Mounted> {
        mounts(&self.mountpoint())
            .into_iter()
            .filter(|mounted| mounted.at == self.mountpoint())
            .collect()
    }

    /// Mounts a part of the tree, or anything, at another place; gone when dropped.
    #[track_caller]
    pub(crate) fn bind(&self, from: &Path, name: &str) -> Bind {
        let to = self.at(name);
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
        } else {
            File::create(&to).unwrap();
        }
        nix::mount::mount(
            Some(from),
            &to,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        Bind::at(to)
    }

    /// The program, where whoever starts it can find it.
    fn program(&self) -> PathBuf {
        match self.copied {
            true => self.at("secretfs"),
            false => PathBuf::from(env!("CARGO_BIN_EXE_secretfs")),
        }
    }

    /// Puts another file in the place of its copy of the program, as a package manager does.
    #[track_caller]
    pub(crate) fn install(&self, from: &Path) {
        // By another process: what another test starts at this moment would have it open for writing, and then nobody could
        // execute it.
        let new = self.at("secretfs.new");
        run(Command::new("cp").arg(from).arg(&new), b"").expect_ok();
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, self.at("secretfs")).unwrap();
    }

    fn make(&self, setup: &Setup<'_>) {
        let folder = |name: &str, mode: u32| {
            let path = self.at(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        };
        let owner = |name: &str, uid: u32| chown(self.at(name), Some(uid), Some(uid)).unwrap();
        folder("", 0o711);
        for (name, mode) in [
            ("secrets", 0o755),
            ("run", 0o755),
            ("state", 0o700),
            ("data", 0o700),
            ("log", 0o700),
            ("doors", 0o1777),
        ] {
            folder(name, mode);
        }
        fs::write(self.at("probe.py"), SCRIPT).unwrap();
        self.configure(setup.services);
        let clock = Clock::default();
        let identity = Identity::generate();
        let text = identity.to_text(clock.timestamp());
        fs::write(self.at("identity.txt"), text.expose()).unwrap();
        fs::set_permissions(self.at("identity.txt"), Permissions::from_mode(0o600)).unwrap();
        let create = |name: &str| {
            let path = self.at(&format!("data/{name}.age"));
            Store::create(&path, &identity, clock.clone()).unwrap()
        };
        let stores: Vec<Store> = names(setup).iter().map(|name| create(name)).collect();
        let values: Vec<(SecretPath, SecretBytes)> = setup
            .values
            .iter()
            .map(|(path, value)| (path.parse().unwrap(), SecretBytes::new(value.to_vec())))
            .collect();
        let new: Vec<NewValue<'_>> = values
            .iter()
            .map(|(path, value)| NewValue {
                path,
                value,
                description: None,
            })
            .collect();
        stores[0].put_all(&new, &mut |_, _| {}).unwrap();
        drop(stores);
        if self.copied {
            self.install(Path::new(env!("CARGO_BIN_EXE_secretfs")));
        }
        if let Some(uid) = setup.starter {
            for name in [
                "secrets",
                "run",
                "state",
                "log",
                "identity.txt",
                "config.toml",
                "",
            ] {
                owner(name, uid);
            }
            own(&self.at("data"), uid);
        }
        if let Some(user) = setup.user {
            let user = nix::unistd::User::from_name(user).unwrap().unwrap();
            for name in ["state", "log"] {
                owner(name, user.uid.as_raw());
            }
            own(&self.at("data"), user.uid.as_raw());
        }
    }

    /// Writes the config, with these sections at its end.
    pub(crate) fn configure(&self, services: &str) {
        let path = self.at("config.toml");
        fs::write(&path, format!("{}\n{services}\n", self.head)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    }

    fn head(&self, setup: &Setup<'_>) -> String {
        let root = self.root.display();
        let user = setup.user.map(|user| format!("user = \"{user}\"\n"));
        let (user, top) = (user.unwrap_or_default(), setup.top);
        let mut head = format!(
            r#"mount = "{root}/secrets"
runtime = "{root}/run"
state = "{root}/state"
{user}{top}
[audit]
path = "{root}/log/audit.jsonl"
"#
        );
        for name in names(setup) {
            head.push_str(&format!(
                r#"
[backends.{name}]
type = "store"
path = "{root}/data/{name}.age"
identity = {{ file = "{root}/identity.txt" }}
"#
            ));
        }
        head
    }
}

fn names<'a>(setup: &Setup<'a>) -> Vec<&'a str> {
    match setup.stores {
        [] => vec!["local"],
        stores => stores.to_vec(),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.watchdog.send(());
        if self.keeper.is_some() {
            let _ = kill(self.keeper(), Signal::SIGTERM);
        }
        if let Some(mut keeper) = self.keeper.take()
            && wait(&mut keeper, Duration::from_secs(8)).is_none()
        {
            eprintln!("the daemon of {} does not end", self.root.display());
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        let left = (mounts(&self.root), processes(&self.root));
        clean(&self.root);
        let stays = (mounts(&self.root), processes(&self.root));
        if thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        } else {
            assert_eq!(left, Default::default(), "the test left this behind");
        }
        let _ = fs::remove_dir_all(&self.root);
        if !thread::panicking() {
            assert_eq!(stays, Default::default(), "this cannot be cleaned away");
        }
    }
}

/// Cleans up after runs that were killed.
fn sweep() {
    let Ok(entries) = fs::read_dir("/tmp") else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let owner = path
            .to_str()
            .and_then(|path| path.strip_prefix(PREFIX))
            .and_then(|rest| rest.split_once('-'));
        if let Some((pid, _)) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            clean(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Aborts the mounts below a folder if nobody calls it off in time.
fn watch(root: PathBuf) -> mpsc::Sender<()> {
    let (calm, alarm) = mpsc::channel::<()>();
    thread::spawn(move || {
        if alarm.recv_timeout(WATCHDOG * patience()) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{} hangs: aborting its mounts", root.display());
            abort(&root);
        }
    });
    calm
}

fn own(folder: &Path, uid: u32) {
    let each = |path: PathBuf| -> io::Result<()> {
        if path.is_dir() {
            own(&path, uid);
        }
        chown(&path, Some(uid), Some(uid))
    };
    for entry in fs::read_dir(folder).unwrap() {
        each(entry.unwrap().path()).unwrap();
    }
    chown(folder, Some(uid), Some(uid)).unwrap();
}

/// The program `name`, for a command line.
pub(crate) fn tool(name: &str) -> String {
    program(name).unwrap().to_str().unwrap().to_owned()
}
