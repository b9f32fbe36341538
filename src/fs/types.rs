//! What the file system's calls reply with.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use crate::cache::Figures;
use crate::fs::ledger::Entry;
use crate::fs::{Fh, Ino, Tell};
use crate::secret::Name;
use crate::sys::{Gid, Uid};

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The root or a service.
    Directory,
    /// A secret.
    File,
}

/// What `stat` shows: the same for everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// File or directory.
    pub kind: Kind,
    /// How many names lead to it.
    pub links: u32,
    /// The length of the value last fetched, in bytes; 0 before.
    pub size: u64,
    /// The permission bits.
    pub mode: u16,
    /// The owner.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
    /// When the value shown was made; the mount's start before.
    pub modified: Timestamp,
}

/// An open file, as the kernel has to treat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub fh: Fh,
    /// Past the page cache, so that each read is checked.
    pub direct: bool,
    /// What the page cache holds is this very value.
    pub keep_pages: bool,
    /// What the kernel must be told before the open is answered; then call [`told`](super::Tree::told).
    pub tell: Option<Tell>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode.
    pub ino: Ino,
    /// File or directory.
    pub kind: Kind,
    /// The name.
    pub name: Name,
}

/// An extended attribute of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xattr {
    /// The backend's version.
    Version,
    /// Our generation's number.
    Generation,
    /// Where the value was found.
    Reference,
    /// For people.
    Description,
    /// Since when it is older than it should be, if the backend cannot be reached.
    StaleSince,
}

impl Xattr {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Version,
        Self::Generation,
        Self::Reference,
        Self::Description,
        Self::StaleSince,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "user.secretfs.version",
            Self::Generation => "user.secretfs.generation",
            Self::Reference => "user.secretfs.reference",
            Self::Description => "user.secretfs.description",
            Self::StaleSince => "user.secretfs.stale_since",
        }
    }
}

/// Figures for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TreeFigures {
    /// The cache.
    pub cache: Figures,
    /// Open files and directories.
    pub handles: usize,
    /// Inodes known.
    pub inodes: usize,
}

/// What `poll` says of an open file, beside that it can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// A newer value has taken the place of the one that it reads.
    pub outdated: bool,
    /// It was taken away.
    pub taken: bool,
}

/// Whoever waits in `poll`, as the kernel calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter(pub u64);

/// A change of a name that the kernel is asked to make, through the mount itself, so that whoever watches hears of it:
/// `from` is renamed to `name`, or `name` is unlinked where there is no `from`. Whoever waits for it waits until this is
/// dropped.
pub struct Renaming {
    /// The service, whose folder the name stands in.
    pub service: Name,
    /// The folder's inode.
    pub folder: Ino,
    /// What the new inode is called until then.
    pub from: Option<String>,
    /// The name.
    pub name: Name,
    pub(super) settle: Option<Box<dyn FnOnce() -> bool + Send>>,
    pub(super) _done: watch::Sender<()>,
    /// So that the next server makes the change if this one dies in the middle of it.
    pub(super) _line: Option<Arc<Entry>>,
}

impl Renaming {
    /// To be called when the kernel has been asked. True if it has not made the change: then the name changes hands without
    /// it, and who comes by the old inode is sent to look it up again.
    pub fn settle(&mut self) -> bool {
        self.settle.take().is_some_and(|settle| settle())
    }
}

impl fmt::Debug for Renaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renaming")
            .field("service", &self.service)
            .field("from", &self.from)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The kernel, as it has to hear of changes. The adapter implements it. All of it must return at once.
pub trait Kernel: Send + Sync + fmt::Debug {
    /// Changes a name.
    fn rename(&self, renaming: Renaming);

    /// Drops what the page cache holds of this inode, and unmaps it, then drops `done`.
    fn drop_pages(&self, ino: Ino, done: oneshot::Sender<()>);

    /// Wakes who waits in `poll`.
    fn wake(&self, waiter: Waiter);
}
