//! The two threads that speak to the kernel without being asked.
//!
//! They hold no lock of ours: from inside a handler these calls can deadlock, because the kernel takes the inode's pages
//! or the directory's lock for them. Sizes have a thread of their own, because opens wait for them, and because pages
//! are only ever locked for reads that we answer. A name waits for its directory, whose lock any process that lists it
//! can keep for as long as it likes (getdents(2) into memory that somebody else's file system has yet to fill), so
//! nothing but the change itself waits for a name, and that not for long.

use std::ffi::OsStr;
use std::sync::mpsc;
use std::thread;

use fuser::{INodeNo, Notifier};
use tokio::sync::oneshot;

use crate::fs::{Ino, Kernel, Tell};
use crate::secret::Name;

/// What an open waits for.
struct Size {
    tell: Tell,
    due: Box<dyn FnOnce() -> bool + Send>,
    then: Box<dyn FnOnce() + Send>,
}

struct Gone {
    parent: Ino,
    name: Name,
    done: oneshot::Sender<()>,
}

/// Where notices are handed in.
#[derive(Debug, Clone)]
pub(super) struct Notices {
    sizes: mpsc::Sender<Size>,
    names: mpsc::Sender<Gone>,
}

/// Notices before there is a session to send them to.
#[derive(Debug)]
pub(super) struct Queue {
    sizes: mpsc::Receiver<Size>,
    names: mpsc::Receiver<Gone>,
}

impl Notices {
    pub(super) fn new() -> (Self, Queue) {
        let (to_sizes, sizes) = mpsc::channel();
        let (to_names, names) = mpsc::channel();
        let notices = Self {
            sizes: to_sizes,
            names: to_names,
        };
        (notices, Queue { sizes, names })
    }

    /// Tells the kernel an inode's size if that is still `due` by then, and calls `then`, which answers the open.
    pub(super) fn size(
        &self,
        tell: Tell,
        due: impl FnOnce() -> bool + Send + 'static,
        then: impl FnOnce() + Send + 'static,
    ) {
        let (due, then) = (Box::new(due), Box::new(then));
        if let Err(mpsc::SendError(Size { then, .. })) = self.sizes.send(Size { tell, due, then }) {
            then();
        }
    }
}

impl Kernel for Notices {
    fn forget_name(&self, parent: Ino, name: &Name, done: oneshot::Sender<()>) {
        // If the thread is gone so is the session, and dropping `done` says so.
        let _ = self.names.send(Gone {
            parent,
            name: name.clone(),
            done,
        });
    }
}

impl Queue {
    /// Starts the threads. They end when the last [`Notices`] is dropped.
    pub(super) fn run(self, notifier: &Notifier) -> std::io::Result<()> {
        let (to_size, to_name) = (notifier.clone(), notifier.clone());
        spawn("sizes", self.sizes, move |size| carry_size(&to_size, size))?;
        spawn("names", self.names, move |gone| carry_name(&to_name, gone))
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    notices: mpsc::Receiver<T>,
    carry: impl Fn(T) + Send + 'static,
) -> std::io::Result<()> {
    let work = move || notices.into_iter().for_each(carry);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
}

fn carry_size(notifier: &Notifier, Size { tell, due, then }: Size) {
    if due()
        && let Err(error) = tell_size(notifier, tell)
    {
        tracing::warn!(%error, "the kernel was not told a size; sendfile(2) may see an old one until the next stat");
    }
    then();
}

fn carry_name(notifier: &Notifier, Gone { parent, name, done }: Gone) {
    if let Err(error) = notifier.inval_entry(INodeNo(parent.0), OsStr::new(name.as_str())) {
        tracing::debug!(%error, "the kernel did not hold a name that changed");
    }
    let _ = done.send(());
}

fn tell_size(notifier: &Notifier, tell: Tell) -> std::io::Result<()> {
    let ino = INodeNo(tell.ino.0);
    if tell.grown && tell.size > 0 {
        // An invalidation alone refreshes the size only at the next stat, and sendfile does none. A byte stored at the
        // end moves the size at once; the invalidation drops the byte again.
        notifier.store(ino, tell.size - 1, &[0])?;
    }
    notifier.inval_inode(ino, 0, 0)
}
