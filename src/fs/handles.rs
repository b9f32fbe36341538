//! Open files and directories. A file handle holds the one generation that it will ever read, until it is closed or
//! taken away.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::backend::Version;
use crate::cache::Generation;
use crate::caller::Caller;
use crate::config::Reads;
use crate::fs::ledger::lines::{FileLine, FolderLine, Line, Number, mark};
use crate::fs::ledger::{Entry, Ledger};
use crate::fs::node::SecretNode;
use crate::fs::{DirEntry, Ino, Waiter};

/// A handle's number.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
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

/// What a handle leads to.
#[derive(Debug, Clone)]
pub(super) enum Open {
    File(Arc<OpenFile>),
    /// A file that was taken away. Its value is gone; the descriptor is not.
    Taken(Arc<Pin>),
    /// A file whose value has not outlived the server that opened it.
    Lost(Arc<Lost>),
    Directory(Arc<Vec<DirEntry>>),
    /// A directory that an earlier server opened: its listing is made each time it is asked for.
    Unlisted(Ino),
}

/// A file without its value.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) pin: Arc<Pin>,
    pub(super) reads: Reads,
    pub(super) version: Version,
}

impl Open {
    /// What a file has open.
    pub(super) fn pin(&self) -> Option<&Arc<Pin>> {
        match self {
            Self::File(file) => Some(&file.pin),
            Self::Taken(pin) => Some(pin),
            Self::Lost(lost) => Some(&lost.pin),
            Self::Directory(_) | Self::Unlisted(_) => None,
        }
    }
}

/// What is open, and the line in the ledger that says so, which goes first.
#[derive(Debug)]
struct Handle {
    entry: Option<Entry>,
    /// What an earlier server wrote down of the request that it answered with it.
    given: Option<u64>,
    open: Open,
}

/// Who is in more groups than this is not written down with them: a line has only so much room.
const GROUPS: usize = 1024;

/// All handles.
#[derive(Debug)]
pub(super) struct Handles {
    ledger: Arc<Ledger>,
    next: AtomicU64,
    /// Some are an earlier server's.
    restored: AtomicBool,
    open: RwLock<HashMap<Fh, Handle>>,
}

impl Handles {
    /// The first one gets this number, or a higher one.
    pub(super) fn new(ledger: Arc<Ledger>, first: u64) -> Self {
        Self {
            ledger,
            next: AtomicU64::new(first),
            restored: AtomicBool::default(),
            open: RwLock::default(),
        }
    }

    /// `paged` if its reads go through the page cache.
    pub(super) fn add_file(&self, file: OpenFile, paged: bool) -> Fh {
        let fh = self.number();
        let mut opener = file.opener.clone();
        opener.groups = opener.groups.filter(|groups| groups.len() <= GROUPS);
        let line = FileLine {
            fh,
            ino: file.pin.node.ino,
            number: file.pin.number,
            sealed: file.generation.value.number(),
            reads: file.reads,
            paged,
            superseding: file.superseding,
            opener,
        };
        let entry = self.ledger.write(&Line::File(line), [0; 3]);
        self.add(fh, entry, Open::File(Arc::new(file)))
    }

    pub(super) fn add_directory(&self, ino: Ino, entries: Arc<Vec<DirEntry>>) -> Fh {
        let fh = self.number();
        let line = FolderLine { fh, ino };
        let entry = self.ledger.write(&Line::Folder(line), [0; 3]);
        self.add(fh, entry, Open::Directory(entries))
    }

    pub(super) fn get(&self, fh: Fh) -> Option<Open> {
        self.table().get(&fh).map(|handle| handle.open.clone())
    }

    /// Every open file.
    pub(super) fn files(&self) -> Vec<(Fh, Arc<OpenFile>)> {
        let open = self.table();
        let files = open.iter().filter_map(|(fh, handle)| match &handle.open {
            Open::File(file) => Some((*fh, Arc::clone(file))),
            Open::Taken(_) | Open::Lost(_) | Open::Directory(_) | Open::Unlisted(_) => None,
        });
        files.collect()
    }

    /// The kernel is about to be given this handle, in answer to this request.
    pub(super) fn given(&self, fh: Fh, request: u64) {
        self.note(fh, Number::Given, mark(request));
    }

    /// The kernel is told by this number when something becomes of an open file.
    pub(super) fn polled(&self, fh: Fh, waiter: Waiter) {
        self.note(fh, Number::Waiter, waiter.0);
    }

    fn note(&self, fh: Fh, which: Number, number: u64) {
        let open = self.table();
        let entry = open.get(&fh).and_then(|handle| handle.entry.as_ref());
        if let Some(entry) = entry {
            entry.set(which, number);
        }
    }

    /// Takes a file away from whoever holds it. What reads it at this moment has its answer; then the value is wiped,
    /// unless others have it.
    pub(super) fn take(&self, fh: Fh) {
        let mut open = self.table_mut();
        let Some(handle) = open.get_mut(&fh) else {
            return;
        };
        let Open::File(file) = &handle.open else {
            return;
        };
        if let Some(entry) = &handle.entry {
            entry.set(Number::Taken, 1);
        }
        let taken = Open::Taken(Arc::clone(&file.pin));
        let file = std::mem::replace(&mut handle.open, taken);
        drop(open);
        drop(file);
    }

    pub(super) fn remove(&self, fh: Fh) {
        let removed = self.table_mut().remove(&fh);
        if let Some(pin) = removed.as_ref().and_then(|handle| handle.open.pin()) {
            pin.node.secret.forget(fh);
        }
        // Wiping the value, if this was its last holder, is not done under the lock.
        drop(removed);
    }

    /// The kernel has given this inode up, so it has nothing of it open: what is left of an earlier server's handles goes. Who
    /// was to get them had an error.
    pub(super) fn given_up(&self, ino: Ino) {
        if !self.restored.load(Ordering::Relaxed) {
            return;
        }
        let of_ino = |open: &Open| {
            let folder = matches!(open, Open::Unlisted(folder) if *folder == ino);
            folder || open.pin().is_some_and(|pin| pin.node.ino == ino)
        };
        let of_file = |handle: &Handle| handle.given.is_some() && of_ino(&handle.open);
        let all: Vec<Fh> = {
            let all = self.table();
            let all = all.iter().filter(|(_, handle)| of_file(handle));
            all.map(|(fh, _)| *fh).collect()
        };
        all.into_iter().for_each(|fh| self.remove(fh));
    }

    pub(super) fn len(&self) -> usize {
        self.table().len()
    }

    /// One that an earlier server gave.
    pub(super) fn restore(&self, fh: Fh, entry: Entry, given: u64, open: Open) {
        self.restored.store(true, Ordering::Relaxed);
        self.next
            .fetch_max(fh.0.saturating_add(1), Ordering::Relaxed);
        let handle = Handle {
            entry: Some(entry),
            given: Some(given),
            open,
        };
        self.table_mut().insert(fh, handle);
    }

    /// A request comes again: the kernel has not got the handle that an earlier server made for it.
    pub(super) fn comes_again(&self, request: u64) {
        let all = self.table();
        let mut answers = all
            .iter()
            .filter(|(_, one)| one.given == Some(mark(request)));
        let answer = answers.next().map(|(fh, _)| *fh);
        drop(answers);
        drop(all);
        if let Some(fh) = answer {
            self.remove(fh);
        }
    }

    fn number(&self) -> Fh {
        Fh(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn add(&self, fh: Fh, entry: Option<Entry>, open: Open) -> Fh {
        let handle = Handle {
            entry,
            given: None,
            open,
        };
        self.table_mut().insert(fh, handle);
        fh
    }

    fn table(&self) -> RwLockReadGuard<'_, HashMap<Fh, Handle>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, HashMap<Fh, Handle>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}
