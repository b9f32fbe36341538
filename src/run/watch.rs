//! Notices that the config file has changed (`watch = true`).
//!
//! Editors and `secretfs allow` rename a new file over the old one, and Kubernetes swaps a link on the way to it. So the
//! folder of the file and that of each link on the way are watched for these very names, and the file itself for being
//! written in place. What happens beside them in the same folder wakes nobody for long. Where the kernel does not let us
//! watch, we look each second.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::open::steps;
use crate::sys::{self, Notices};

/// A file is read when nothing has happened to it for so long: it may be written in several steps.
const QUIET: Duration = Duration::from_millis(100);
/// But after this long in any case.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the file is looked at where it cannot be watched.
const LOOK: Duration = Duration::from_secs(1);

/// What tells a file from what it was before. Of a file that cannot be seen it is the same as of another such.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Print(Option<[i64; 7]>);

impl Print {
    pub(super) fn of(path: &Path) -> Self {
        let number = |n: u64| i64::from_ne_bytes(n.to_ne_bytes());
        Self(fs::metadata(path).ok().map(|file| {
            [
                number(file.dev()),
                number(file.ino()),
                number(file.size()),
                file.mtime(),
                file.mtime_nsec(),
                file.ctime(),
                file.ctime_nsec(),
            ]
        }))
    }
}

/// Calls `look` whenever something may have happened to the file at `path`, as long as it is `wanted`. Ends when nobody
/// can want it any more.
pub(super) async fn run<F: Future<Output = ()>>(
    path: &Path,
    mut wanted: watch::Receiver<bool>,
    look: impl Fn() -> F,
) {
    let mut trouble = None;
    loop {
        if !*wanted.borrow_and_update() {
            match wanted.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        // Anew each time: the links may lead elsewhere now. Watched first and looked at then, nothing is missed.
        let eye = match Eye::on(path) {
            Ok(eye) => {
                trouble = None;
                Some(eye)
            }
            Err(new) => {
                if trouble.as_ref() != Some(&new) {
                    tracing::warn!("{new}: looking at the config once a second instead");
                    trouble = Some(new);
                }
                None
            }
        };
        look().await;
        let stirred = async {
            match &eye {
                Some(eye) => eye.stirred().await,
                None => sleep(LOOK).await,
            }
        };
        tokio::select! {
            ended = wanted.changed() => if ended.is_err() { return },
            () = stirred => {}
        }
    }
}

/// The kernel's watch over a file and the way to it.
#[derive(Debug)]
struct Eye {
    inotify: AsyncFd<Notices>,
    names: BTreeSet<OsString>,
}

impl Eye {
    fn on(path: &Path) -> Result<Self, String> {
        let start = |why: io::Error| format!("inotify: {why}");
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| start(errno.into()))?;
        let add = |watched: &Path, mask| {
            inotify.add_watch(watched, mask).map_err(|errno| {
                format!("{} cannot be watched: {}", watched.display(), errno.desc())
            })
        };
        let around = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let written = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MOVE_SELF;
        let steps = steps(path);
        for step in &steps {
            add(step.parent().unwrap_or(Path::new("/")), around)?;
        }
        if let Some(file) = steps.last().filter(|file| file.exists()) {
            add(file, written)?;
        }
        let name = |step: &PathBuf| step.file_name().map(ToOwned::to_owned);
        Ok(Self {
            names: steps.iter().filter_map(name).collect(),
            inotify: sys::await_notices(inotify).map_err(start)?,
        })
    }

    /// Waits until something has happened to the file, and is over.
    async fn stirred(&self) {
        self.event().await;
        let settled = async { while timeout(QUIET, self.event()).await.is_ok() {} };
        let _ = timeout(PATIENCE, settled).await;
    }

    /// Waits for an event of one of the names, or of the file itself.
    async fn event(&self) {
        loop {
            let read = match self.inotify.readable().await {
                Ok(mut ready) => ready.try_io(|fd| fd.get_ref().read()),
                Err(error) => Ok(Err(error)),
            };
            match read {
                // What has no name is about the file or a folder as a whole, or says that events were lost.
                Ok(Ok(events)) => {
                    let ours = |name: &OsString| self.names.contains(name);
                    if events
                        .iter()
                        .any(|event| event.name.as_ref().is_none_or(ours))
                    {
                        return;
                    }
                }
                // A descriptor that cannot be read any more must not keep a processor busy.
                Ok(Err(error)) if error.kind() != io::ErrorKind::Interrupted => {
                    return sleep(LOOK).await;
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
}
