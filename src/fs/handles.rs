//! Open files and directories. A file handle holds the one generation that it will ever read, until it is closed or
//! taken away.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::cache::Generation;
use crate::caller::Caller;
use crate::config::Reads;
use crate::fs::DirEntry;
use crate::fs::node::SecretNode;

/// A handle's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) pin: Arc<Pin>,
    pub(super) generation: Arc<Generation>,
    pub(super) reads: Reads,
    /// Who opened it, with what was found out then.
    pub(super) opener: Caller,
    /// Opened while another generation of the same inode was open.
    pub(super) superseding: bool,
}

/// What keeps an inode's generation open.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) node: Arc<SecretNode>,
    pub(super) number: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.node.unpin(self.number);
    }
}

#[derive(Debug)]
enum Open {
    File(Arc<OpenFile>),
    /// A file that was taken away. Its value is gone; the descriptor is not.
    Taken(Arc<Pin>),
    Directory(Arc<Vec<DirEntry>>),
}

/// What a file's handle leads to.
#[derive(Debug)]
pub(super) enum Held {
    File(Arc<OpenFile>),
    Taken(Arc<Pin>),
}

impl Held {
    pub(super) fn pin(&self) -> &Arc<Pin> {
        match self {
            Self::File(file) => &file.pin,
            Self::Taken(pin) => pin,
        }
    }
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

    pub(super) fn file(&self, fh: Fh) -> Option<Held> {
        match self.table().get(&fh) {
            Some(Open::File(file)) => Some(Held::File(Arc::clone(file))),
            Some(Open::Taken(pin)) => Some(Held::Taken(Arc::clone(pin))),
            Some(Open::Directory(_)) | None => None,
        }
    }

    pub(super) fn directory(&self, fh: Fh) -> Option<Arc<Vec<DirEntry>>> {
        match self.table().get(&fh) {
            Some(Open::Directory(entries)) => Some(Arc::clone(entries)),
            Some(Open::File(_) | Open::Taken(_)) | None => None,
        }
    }

    /// Every open file.
    pub(super) fn files(&self) -> Vec<(Fh, Arc<OpenFile>)> {
        let open = self.table();
        let files = open.iter().filter_map(|(fh, open)| match open {
            Open::File(file) => Some((*fh, Arc::clone(file))),
            Open::Taken(_) | Open::Directory(_) => None,
        });
        files.collect()
    }

    /// Takes a file away from whoever holds it. What reads it at this moment has its answer; then the value is wiped,
    /// unless others have it.
    pub(super) fn take(&self, fh: Fh) {
        let mut open = self.table_mut();
        let taken = match open.get(&fh) {
            Some(Open::File(file)) => Open::Taken(Arc::clone(&file.pin)),
            Some(Open::Taken(_) | Open::Directory(_)) | None => return,
        };
        let file = open.insert(fh, taken);
        drop(open);
        drop(file);
    }

    pub(super) fn remove(&self, fh: Fh) {
        let removed = self.table_mut().remove(&fh);
        let pin = match &removed {
            Some(Open::File(file)) => Some(&file.pin),
            Some(Open::Taken(pin)) => Some(pin),
            Some(Open::Directory(_)) | None => None,
        };
        if let Some(pin) = pin {
            pin.node.secret.forget(fh);
        }
        // Wiping the value, if this was its last holder, is not done under the lock.
        drop(removed);
    }

    pub(super) fn len(&self) -> usize {
        self.table().len()
    }

    fn add(&self, open: Open) -> Fh {
        let fh = Fh(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.table_mut().insert(fh, open);
        fh
    }

    fn table(&self) -> RwLockReadGuard<'_, HashMap<Fh, Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, HashMap<Fh, Open>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}
