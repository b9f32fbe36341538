//! The threads that change names, through a mount of our own.
//!
//! Only a rename or an unlink by way of a mount wakes whoever watches. It comes back to us as a request like anybody
//! else's, known by the thread that it comes from. A rename waits for its folder, whose lock any process that lists it
//! can keep for as long as it likes (getdents(2) into memory that somebody else's file system has yet to fill): so each
//! service has a thread of its own while it has something to do, and a [`Hand`], which hold no lock of ours, and nobody waits
//! for them without a deadline.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::unistd::{UnlinkatFlags, gettid, unlinkat};

use super::hand::Hand;
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

    fn enter(self) -> Here {
        let pid = u32::try_from(gettid().as_raw()).unwrap_or_default();
        let mut threads = self.0.write().unwrap_or_else(PoisonError::into_inner);
        threads.push(pid);
        drop(threads);
        Here { own: self, pid }
    }
}

/// This thread is one of ours until it ends.
struct Here {
    own: Own,
    pid: u32,
}

impl Drop for Here {
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
    /// The number by which it writes to the kernel.
    device: RawFd,
    own: Own,
    services: Mutex<HashMap<Name, mpsc::Sender<Renaming>>>,
}

impl Renames {
    /// `device` is the number by which `notifier` writes to the kernel.
    pub(super) fn new(
        writable: Option<OwnedFd>,
        (notifier, device): (Notifier, RawFd),
        own: Own,
    ) -> Arc<Self> {
        let services = Mutex::default();
        Arc::new(Self {
            writable,
            notifier,
            device,
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
        let started = self.hand().and_then(|hand| {
            let thread = thread::Builder::new().name("names".to_owned());
            thread.spawn(move || renames.work(&name, &work, &hand))
        });
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

    /// What comes to rename, and what the kernel may keep.
    fn hand(&self) -> io::Result<Hand> {
        let writable = self.writable.as_ref().map(AsRawFd::as_raw_fd);
        let descriptors = writable.into_iter().chain([self.device]).collect();
        let own = self.own.clone();
        Hand::start("renames", descriptors, || own.enter())
    }

    fn work(self: &Arc<Self>, service: &Name, work: &mpsc::Receiver<Renaming>, hand: &Hand) {
        loop {
            match work.recv_timeout(IDLE) {
                Ok(renaming) => self.carry_out(renaming, hand),
                Err(_) => {
                    let mut services = self.services();
                    // Something may have come meanwhile.
                    match work.try_recv() {
                        Ok(renaming) => {
                            drop(services);
                            self.carry_out(renaming, hand);
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

    fn carry_out(self: &Arc<Self>, mut renaming: Renaming, hand: &Hand) {
        if let Err(error) = self.change(&renaming, hand) {
            tracing::debug!(%error, ?renaming, "the kernel did not change a name, and is made to forget it");
            self.forget(&renaming, hand);
        }
        renaming.settle();
    }

    fn change(self: &Arc<Self>, renaming: &Renaming, hand: &Hand) -> io::Result<()> {
        let to = format!("{}/{}", renaming.service, renaming.name);
        let from = renaming.from.as_ref();
        let from = from.map(|from| format!("{}/{from}", renaming.service));
        let renames = Arc::clone(self);
        hand.call(move || {
            let writable = renames.writable.as_ref().ok_or(Errno::EROFS)?;
            Ok(match from {
                Some(from) => renameat(writable, from.as_str(), writable, to.as_str()),
                None => unlinkat(writable, to.as_str(), UnlinkatFlags::NoRemoveDir),
            }?)
        })
    }

    /// Before the name changes hands without the kernel: whoever came by it meanwhile would be sent to look it up again, and
    /// would have to wait for the folder as we do.
    fn forget(&self, renaming: &Renaming, hand: &Hand) {
        let folder = INodeNo(renaming.folder.0);
        let name = OsString::from(renaming.name.as_str());
        let notifier = self.notifier.clone();
        if let Err(error) = hand.call(move || notifier.inval_entry(folder, &name)) {
            tracing::debug!(%error, "the kernel did not hold a name that changed");
        }
    }

    fn services(&self) -> MutexGuard<'_, HashMap<Name, mpsc::Sender<Renaming>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
