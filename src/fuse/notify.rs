//! What the kernel is told without having asked.
//!
//! Not from inside a handler: there these calls can deadlock, because the kernel takes the inode's pages or the folder's
//! lock for them. Sizes and pages have one thread and its [`Hand`], which hold no lock of ours and on which opens wait: pages are
//! only ever locked for reads that we answer, or the next server does. Names have [threads of their own](super::renames).

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use fuser::{INodeNo, Notifier, PollHandle};
use tokio::sync::oneshot;

use super::hand::Hand;
use super::renames::Renames;
use crate::fs::{Ino, Kernel, Renaming, Tell, Waiter};

/// What the thread does.
enum Notice {
    /// Tells a size, if that is still due, and then answers the open that waits for it.
    Size {
        tell: Tell,
        due: Box<dyn FnOnce() -> bool + Send>,
        then: Box<dyn FnOnce() + Send>,
    },
    /// Drops an inode's pages.
    Pages { ino: Ino, done: oneshot::Sender<()> },
    /// Wakes who polls.
    Wake(Waiter),
}

/// Where notices are handed in.
#[derive(Debug, Clone)]
pub(super) struct Notices {
    thread: mpsc::Sender<Notice>,
    /// Set when there is a session; before, the kernel has no name that could change.
    renames: Arc<OnceLock<Arc<Renames>>>,
}

/// Notices before there is a session to send them to.
#[derive(Debug)]
pub(super) struct Queue {
    notices: mpsc::Receiver<Notice>,
    renames: Arc<OnceLock<Arc<Renames>>>,
}

impl Notices {
    pub(super) fn new() -> (Self, Queue) {
        let (thread, notices) = mpsc::channel();
        let renames = Arc::<OnceLock<_>>::default();
        let queue = Queue {
            notices,
            renames: Arc::clone(&renames),
        };
        (Self { thread, renames }, queue)
    }

    /// Tells the kernel an inode's size if that is still `due` by then, and calls `then`, which answers the open.
    pub(super) fn size(
        &self,
        tell: Tell,
        due: impl FnOnce() -> bool + Send + 'static,
        then: impl FnOnce() + Send + 'static,
    ) {
        let (due, then) = (Box::new(due), Box::new(then));
        let notice = Notice::Size { tell, due, then };
        if let Err(mpsc::SendError(Notice::Size { then, .. })) = self.thread.send(notice) {
            then();
        }
    }
}

// If a thread is gone so is the session, and dropping what was handed in says so to who waits.
impl Kernel for Notices {
    fn rename(&self, mut renaming: Renaming) {
        match self.renames.get() {
            Some(renames) => renames.hand_in(renaming),
            None => {
                renaming.settle();
            }
        }
    }

    fn drop_pages(&self, ino: Ino, done: oneshot::Sender<()>) {
        let _ = self.thread.send(Notice::Pages { ino, done });
    }

    fn wake(&self, waiter: Waiter) {
        let _ = self.thread.send(Notice::Wake(waiter));
    }
}

impl Queue {
    /// Starts the thread, which ends when the last [`Notices`] is dropped. Names change by way of `renames`; `device` is the
    /// number by which `notifier` writes to the kernel.
    pub(super) fn run(
        self,
        (notifier, device): (Notifier, RawFd),
        renames: Arc<Renames>,
    ) -> io::Result<()> {
        let _ = self.renames.set(renames);
        let hand = Hand::start("pages", vec![device], || {})?;
        let notices = self.notices;
        let work = move || {
            notices
                .into_iter()
                .for_each(|notice| carry(&notifier, &hand, notice))
        };
        thread::Builder::new()
            .name("notices".to_owned())
            .spawn(work)
            .map(drop)
    }
}

fn carry(notifier: &Notifier, hand: &Hand, notice: Notice) {
    let told = notifier.clone();
    match notice {
        Notice::Size { tell, due, then } => {
            if due()
                && let Err(error) = hand.call(move || tell_size(&told, tell))
            {
                tracing::warn!(%error, "the kernel was not told a size; sendfile(2) may see an old one until the next stat");
            }
            then();
        }
        Notice::Pages { ino, done } => {
            if let Err(error) = hand.call(move || told.inval_inode(INodeNo(ino.0), 0, 0)) {
                tracing::warn!(%error, "the kernel did not drop the pages of a secret that was taken away");
            }
            drop(done);
        }
        // Who is gone by now need not be woken.
        Notice::Wake(Waiter(handle)) => {
            let _ = notifier.poll(PollHandle(handle));
        }
    }
}

fn tell_size(notifier: &Notifier, tell: Tell) -> io::Result<()> {
    let ino = INodeNo(tell.ino.0);
    if tell.grown && tell.size > 0 {
        // An invalidation alone refreshes the size only at the next stat, and sendfile does none. A byte stored at the
        // end moves the size at once; the invalidation drops the byte again.
        notifier.store(ino, tell.size - 1, &[0])?;
    }
    notifier.inval_inode(ino, 0, 0)
}
