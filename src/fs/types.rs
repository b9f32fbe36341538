//! What the file system's calls reply with.

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::cache::Figures;
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
}

impl Xattr {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Version,
        Self::Generation,
        Self::Reference,
        Self::Description,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "user.secretfs.version",
            Self::Generation => "user.secretfs.generation",
            Self::Reference => "user.secretfs.reference",
            Self::Description => "user.secretfs.description",
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

/// What the kernel holds of our names, seen from here. The adapter implements it.
pub trait Kernel: Send + Sync + std::fmt::Debug {
    /// Makes the kernel look `name` up again, then answers `done`. Must return at once.
    fn forget_name(&self, parent: Ino, name: &Name, done: oneshot::Sender<()>);
}
