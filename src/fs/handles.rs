//! Open files and directories. A file handle holds the one generation that it will ever read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::cache::Generation;
use crate::config::Reads;
use crate::fs::DirEntry;
use crate::fs::inodes::SecretNode;

/// A handle's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) node: Arc<SecretNode>,
    pub(super) generation: Arc<Generation>,
    pub(super) reads: Reads,
    /// Opened while another generation of the same inode was open.
    pub(super) superseding: bool,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.node.unpin(self.generation.number);
    }
}

#[derive(Debug)]
enum Open {
    File(Arc<OpenFile>),
    Directory(Arc<Vec<DirEntry>>),
}

/// All handles.
#[derive(Debug, Default)]
pub(super) struct Handles {
    last: AtomicU64,
    open: RwLock<HashMap<Fh, Open>>,
}

impl Handles {
    pub(super) fn add_file(&self, file: OpenFile) -> Fh {
        self.add(Open::File(Arc::new(file)))
    }

    pub(super) fn add_directory(&self, entries: Arc<Vec<DirEntry>>) -> Fh {
        self.add(Open::Directory(entries))
    }

    pub(super) fn file(&self, fh: Fh) -> Option<Arc<OpenFile>> {
        match self
            .open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&fh)
        {
            Some(Open::File(file)) => Some(Arc::clone(file)),
            Some(Open::Directory(_)) | None => None,
        }
    }

    pub(super) fn directory(&self, fh: Fh) -> Option<Arc<Vec<DirEntry>>> {
        match self
            .open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&fh)
        {
            Some(Open::Directory(entries)) => Some(Arc::clone(entries)),
            Some(Open::File(_)) | None => None,
        }
    }

    pub(super) fn remove(&self, fh: Fh) {
        let removed = self
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&fh);
        // Wiping the value, if this was its last holder, is not done under the lock.
        drop(removed);
    }

    pub(super) fn len(&self) -> usize {
        self.open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn add(&self, open: Open) -> Fh {
        let fh = Fh(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(fh, open);
        fh
    }
}
