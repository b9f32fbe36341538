//! The one thread that speaks to the kernel without being asked.
//!
//! It holds no lock of ours, and nothing waits for it but the request whose answer it carries: from inside a handler
//! these calls can deadlock, because the kernel takes the inode's or the directory's lock for them.

use std::ffi::OsStr;
use std::sync::mpsc;
use std::thread;

use fuser::{INodeNo, Notifier};
use tokio::sync::oneshot;

use crate::fs::{Ino, Kernel, Tell};
use crate::secret::Name;

enum Notice {
    Size {
        tell: Tell,
        due: Box<dyn FnOnce() -> bool + Send>,
        then: Box<dyn FnOnce() + Send>,
    },
    Name {
        parent: Ino,
        name: Name,
        done: oneshot::Sender<()>,
    },
}

/// Where notices are handed in.
#[derive(Debug, Clone)]
pub(super) struct Notices(mpsc::Sender<Notice>);

/// Notices before there is a session to send them to.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Receiver<Notice>);

impl Notices {
    pub(super) fn new() -> (Self, Queue) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), Queue(receiver))
    }

    /// Tells the kernel an inode's size if that is still `due` by then, and calls `then`, which answers the open.
    pub(super) fn size(
        &self,
        tell: Tell,
        due: impl FnOnce() -> bool + Send + 'static,
        then: impl FnOnce() + Send + 'static,
    ) {
        if let Err(mpsc::SendError(Notice::Size { then, .. })) = self.0.send(Notice::Size {
            tell,
            due: Box::new(due),
            then: Box::new(then),
        }) {
            then();
        }
    }
}

impl Kernel for Notices {
    fn forget_name(&self, parent: Ino, name: &Name, done: oneshot::Sender<()>) {
        // If the thread is gone so is the session, and dropping `done` says so.
        let _ = self.0.send(Notice::Name {
            parent,
            name: name.clone(),
            done,
        });
    }
}

impl Queue {
    /// Starts the thread. It ends when the last [`Notices`] is dropped.
    pub(super) fn run(self, notifier: Notifier) -> std::io::Result<()> {
        let work = move || {
            for notice in self.0 {
                carry_out(&notifier, notice);
            }
        };
        thread::Builder::new()
            .name("notify".to_owned())
            .spawn(work)
            .map(drop)
    }
}

fn carry_out(notifier: &Notifier, notice: Notice) {
    match notice {
        Notice::Size { tell, due, then } => {
            if due()
                && let Err(error) = tell_size(notifier, tell)
            {
                tracing::warn!(%error, "the kernel was not told a size; sendfile(2) may see an old one until the next stat");
            }
            then();
        }
        Notice::Name { parent, name, done } => {
            if let Err(error) = notifier.inval_entry(INodeNo(parent.0), OsStr::new(name.as_str())) {
                tracing::debug!(%error, "the kernel did not hold a name that changed");
            }
            let _ = done.send(());
        }
    }
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
