//! The threads that change names, through a mount of our own.
//!
//! Only a rename or an unlink by way of a mount wakes whoever watches. It comes back to us as a request like anybody
//! else's, known by the thread that it comes from. A rename waits for its folder, whose lock any process that lists it
//! can keep for as long as it likes (getdents(2) into memory that somebody else's file system has yet to fill): so each
//! service has a thread of its own while it has something to do, which holds no lock of ours, and nobody waits for it
//! without a deadline.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::unistd::{UnlinkatFlags, gettid, unlinkat};

use crate::fs::Renaming;
use crate::secret::Name;

/// How long a thread waits for more to do.
const IDLE: Duration = Duration::from_secs(10);

/// Our own threads, by the numbers that the kernel calls them.
#[derive(Debug, Clone, Default)]
pub(super) struct Own(Arc<RwLock<Vec<u32>>>);

impl Own {
    /// Whether a request comes from one of them. No other process can have the number while the thread lives.
    pub(super) fn is_one(&self, pid: u32) -> bool {
        let threads = self.0.read().unwrap_or_else(PoisonError::into_inner);
        threads.contains(&pid)
    }

    fn enter(&self) -> Here<'_> {
        let pid = u32::try_from(gettid().as_raw()).unwrap_or_default();
        let mut threads = self.0.write().unwrap_or_else(PoisonError::into_inner);
        threads.push(pid);
        Here { own: self, pid }
    }
}

/// This thread is one of ours until it ends.
struct Here<'a> {
    own: &'a Own,
    pid: u32,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        let mut threads = self.own.0.write().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|pid| *pid != self.pid);
    }
}

/// Where changes of names are handed in.
#[derive(Debug)]
pub(super) struct Renames {
    /// The top of a mount that can be written to. Without one the kernel forgets the names instead, and nobody wakes.
    writable: Option<OwnedFd>,
    notifier: Notifier,
    own: Own,
    services: Mutex<HashMap<Name, mpsc::Sender<Renaming>>>,
}

impl Renames {
    pub(super) fn new(writable: Option<OwnedFd>, notifier: Notifier, own: Own) -> Arc<Self> {
        let services = Mutex::default();
        Arc::new(Self {
            writable,
            notifier,
            own,
            services,
        })
    }

    /// Hands one in, and returns at once.
    pub(super) fn hand_in(self: &Arc<Self>, renaming: Renaming) {
        let mut services = self.services();
        let service = renaming.service.clone();
        let renaming = match services.get(&service) {
            Some(thread) => match thread.send(renaming) {
                Ok(()) => return,
                Err(mpsc::SendError(renaming)) => renaming,
            },
            None => renaming,
        };
        let (to_thread, work) = mpsc::channel();
        let (renames, name) = (Arc::clone(self), service.clone());
        let started = thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || renames.work(&name, &work));
        match started {
            Ok(_) => {
                // The thread is there, so this cannot fail.
                let _ = to_thread.send(renaming);
                services.insert(service, to_thread);
            }
            Err(error) => {
                drop(services);
                tracing::warn!(%error, "no thread for a change of names: who watches is not told of it");
                let mut renaming = renaming;
                renaming.settle();
            }
        }
    }

    fn work(&self, service: &Name, work: &mpsc::Receiver<Renaming>) {
        let _here = self.own.enter();
        loop {
            match work.recv_timeout(IDLE) {
                Ok(renaming) => self.carry_out(renaming),
                Err(_) => {
                    let mut services = self.services();
                    // Something may have come meanwhile.
                    match work.try_recv() {
                        Ok(renaming) => {
                            drop(services);
                            self.carry_out(renaming);
                        }
                        Err(_) => {
                            services.remove(service);
                            return;
                        }
                    }
                }
            }
        }
    }

    fn carry_out(&self, mut renaming: Renaming) {
        if let Err(error) = self.change(&renaming) {
            tracing::debug!(%error, ?renaming, "the kernel did not change a name, and is made to forget it");
            self.forget(&renaming);
        }
        renaming.settle();
    }

    fn change(&self, renaming: &Renaming) -> nix::Result<()> {
        let writable = self.writable.as_ref().ok_or(Errno::EROFS)?;
        let to = format!("{}/{}", renaming.service, renaming.name);
        match &renaming.from {
            Some(from) => {
                let from = format!("{}/{from}", renaming.service);
                renameat(writable, from.as_str(), writable, to.as_str())
            }
            None => unlinkat(writable, to.as_str(), UnlinkatFlags::NoRemoveDir),
        }
    }

    /// Before the name changes hands without the kernel: whoever came by it meanwhile would be sent to look it up again, and
    /// would have to wait for the folder as we do.
    fn forget(&self, renaming: &Renaming) {
        let (folder, name) = (
            INodeNo(renaming.folder.0),
            OsStr::new(renaming.name.as_str()),
        );
        if let Err(error) = self.notifier.inval_entry(folder, name) {
            tracing::debug!(%error, "the kernel did not hold a name that changed");
        }
    }

    fn services(&self) -> MutexGuard<'_, HashMap<Name, mpsc::Sender<Renaming>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
