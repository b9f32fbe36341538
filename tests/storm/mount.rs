//! A tree of this process behind a real mount, in a folder of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use secretfs::clock::Clock;
use secretfs::fs::{Tree, TreeFigures};
use secretfs::fuse::Session;
use secretfs::keeper::mountpoint::{Mounted, Mountpoint};
use tokio::runtime::Runtime;

use crate::common::mounts::{Bind, abort, clean};
use crate::common::{DEADLINE, eventually};
use crate::faulty::Faulty;
use crate::world::World;

/// What is served, and by whom.
pub(crate) struct Mount {
    root: PathBuf,
    world: Option<World>,
    session: Option<Session>,
    runtime: Option<Runtime>,
    watchdog: mpsc::Sender<()>,
    /// The threads that were there before.
    threads: usize,
}

impl Mount {
    /// Serves backend `b`, which holds these values and announces its changes. After `patience` it is aborted.
    pub(crate) fn serve(values: &[(&str, &str)], services: &str, patience: Duration) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!(
            "/tmp/secretfs-storm-{}-{number}",
            std::process::id()
        ));
        fs::create_dir(&root).unwrap();
        let threads = threads();
        let mut mount = Self {
            watchdog: watch(root.clone(), patience),
            root,
            world: None,
            session: None,
            runtime: None,
            threads,
        };
        fs::create_dir(mount.top()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let world = World::unattached(&[], values, services, Clock::default());
        let Mounted { device, writable } = mount.mountpoint().mount().unwrap();
        assert!(writable.is_some(), "nothing could be renamed");
        let tree = Arc::clone(&world.tree);
        let session = Session::start(tree, device, writable, runtime.handle().clone());
        mount.world = Some(world);
        mount.runtime = Some(runtime);
        mount.session = Some(session.unwrap());
        mount
    }

    fn mountpoint(&self) -> Mountpoint {
        Mountpoint::new(&self.top(), Path::new("storm"))
    }

    /// Something in this mount's folder, not below the mount.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The mountpoint.
    pub(crate) fn top(&self) -> PathBuf {
        self.at("secrets")
    }

    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.world.as_ref().unwrap().tree
    }

    pub(crate) fn backend(&self) -> &Arc<Faulty> {
        &self.world.as_ref().unwrap().b
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    pub(crate) fn figures(&self) -> TreeFigures {
        self.tree().figures()
    }

    /// Shows a folder or a file of the mount at another place. Its look-ups are made by a thread of ours: they need none
    /// but those that serve.
    pub(crate) fn bind(&self, from: &Path, name: &str) -> Bind {
        let to = self.at(name);
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
        } else {
            File::create(&to).unwrap();
        }
        let (none, flags) = (None::<&str>, MsFlags::MS_BIND);
        nix::mount::mount(Some(from), &to, none, flags, none).unwrap();
        Bind::at(to)
    }

    /// Has the kernel forget whatever it can, until there are as few handles and inodes as this.
    #[track_caller]
    pub(crate) fn settles_at(&self, handles: usize, inodes: usize) {
        let settled = eventually(DEADLINE, || {
            // Names and inodes that nobody uses.
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            let figures = self.figures();
            figures.handles <= handles && figures.inodes <= inodes
        });
        assert!(
            settled,
            "not {handles} handles and {inodes} inodes: {:?}",
            self.figures()
        );
    }

    /// Ends in order: no thread is left.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.take_down();
        // The thread that changes names waits a while for more to do.
        let left = || threads() - self.threads;
        assert!(
            eventually(DEADLINE, || left() == 0),
            "{} threads are left",
            left()
        );
    }

    fn take_down(&mut self) {
        // A mount of our own besides, that names are changed by, keeps the connection: it does not end with the mount.
        abort(&self.root);
        let _ = self.mountpoint().detach();
        let _ = nix::mount::umount2(&self.top(), MntFlags::MNT_DETACH);
        if let Some(session) = self.session.take() {
            let (ended, end) = mpsc::channel();
            thread::spawn(move || {
                let _ = session.wait();
                let _ = ended.send(());
            });
            assert!(
                end.recv_timeout(DEADLINE).is_ok() || thread::panicking(),
                "the session goes on"
            );
        }
        self.world = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        let _ = self.watchdog.send(());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.take_down();
        clean(&self.root);
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Aborts what is mounted below a folder if nobody calls it off in time.
fn watch(root: PathBuf, patience: Duration) -> mpsc::Sender<()> {
    let (calm, alarm) = mpsc::channel::<()>();
    thread::spawn(move || {
        if alarm.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{} hangs: aborting it", root.display());
            abort(&root);
        }
    });
    calm
}

/// How many threads this process has.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}
