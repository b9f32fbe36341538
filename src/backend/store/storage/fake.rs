//! A file system in memory that fails or loses power at any chosen step, and then shows every state that a real one
//! could be found in: what was fsynced is there; of the rest, any part.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{File, Folder, Storage};
use crate::backend::store::index::ValueFile;

/// Clones share the same files, as descriptors do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Disk>>);

#[derive(Debug, Clone, Default)]
struct Disk {
    /// What a running process sees.
    names: BTreeMap<File, usize>,
    /// What is sure to be there after a crash.
    durable: BTreeMap<File, usize>,
    /// Changes of names since the last fsync of their folder.
    pending: Vec<Change>,
    inodes: Vec<Inode>,
    steps: usize,
    fault: Option<Fault>,
    crashed: bool,
}

#[derive(Debug, Clone)]
struct Inode {
    bytes: Vec<u8>,
    synced: bool,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Set(File, usize),
    Move(File, File, usize),
    Unset(File),
}

/// What goes wrong, at which step, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// That step fails, the others do not.
    Error(usize),
    /// The power goes at that step.
    Crash(usize),
}

impl Change {
    fn folder(self) -> Folder {
        match self {
            Self::Set(file, _) | Self::Move(file, _, _) | Self::Unset(file) => file.folder(),
        }
    }

    fn apply(self, names: &mut BTreeMap<File, usize>) {
        match self {
            Self::Set(file, inode) => {
                names.insert(file, inode);
            }
            Self::Move(from, to, inode) => {
                names.insert(to, inode);
                if names.get(&from) == Some(&inode) {
                    names.remove(&from);
                }
            }
            Self::Unset(file) => {
                names.remove(&file);
            }
        }
    }
}

impl Fake {
    /// The same files, no longer shared, with a fault to come.
    pub(crate) fn copy(&self, fault: Option<Fault>) -> Self {
        let mut disk = self.disk().clone();
        (disk.steps, disk.fault, disk.crashed) = (0, fault, false);
        Self(Arc::new(Mutex::new(disk)))
    }

    /// Lets a fault come, counted from here.
    pub(crate) fn set_fault(self, fault: Fault) -> Self {
        {
            let mut disk = self.disk();
            (disk.steps, disk.fault) = (0, Some(fault));
        }
        self
    }

    /// True if the fault has struck.
    pub(crate) fn struck(&self) -> bool {
        let disk = self.disk();
        match disk.fault {
            Some(Fault::Error(step) | Fault::Crash(step)) => disk.steps > step,
            None => false,
        }
    }

    /// Changes a file behind the store's back.
    pub(crate) fn tamper(&self, file: File, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.disk();
        let inode = disk.names[&file];
        let mut bytes = disk.inodes[inode].bytes.clone();
        change(&mut bytes);
        disk.inodes.push(Inode {
            bytes,
            synced: true,
        });
        let inode = disk.inodes.len() - 1;
        disk.names.insert(file, inode);
        disk.durable.insert(file, inode);
    }

    /// Every file there is.
    pub(crate) fn files(&self) -> Vec<File> {
        self.disk().names.keys().copied().collect()
    }

    /// Every state in which the files can be found when the power is back.
    pub(crate) fn after_crash(&self) -> Vec<Self> {
        let disk = self.disk();
        let pending = &disk.pending;
        let count = pending.len();
        // Any subset of the changes may have come to the disk. Where those are too many: each start of the row, alone and
        // with one hole in it.
        let subsets: BTreeSet<Vec<usize>> = if count <= 6 {
            let chosen = |set: usize| (0..count).filter(|i| set >> i & 1 == 1).collect();
            (0..1_usize << count).map(chosen).collect()
        } else {
            let holes = 0..=count;
            let with_hole = |hole| {
                (0..=count).map(move |end| (0..end).filter(|i| *i != hole).collect::<Vec<_>>())
            };
            holes.flat_map(with_hole).collect()
        };
        let mut seen = BTreeSet::new();
        let mut states = Vec::new();
        for subset in subsets {
            let mut names = disk.durable.clone();
            for change in subset {
                pending[change].apply(&mut names);
            }
            for remains in [0, 1, 2, 3] {
                let files: BTreeMap<File, Vec<u8>> = names
                    .iter()
                    .map(|(file, inode)| (*file, disk.inodes[*inode].found(remains)))
                    .collect();
                if seen.insert(files.clone()) {
                    states.push(Self::of(files));
                }
            }
        }
        states
    }

    fn of(files: BTreeMap<File, Vec<u8>>) -> Self {
        let mut disk = Disk::default();
        for (file, bytes) in files {
            disk.names.insert(file, disk.inodes.len());
            disk.inodes.push(Inode {
                bytes,
                synced: true,
            });
        }
        disk.durable = disk.names.clone();
        Self(Arc::new(Mutex::new(disk)))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    fn step(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk();
        let now = disk.steps;
        disk.steps += 1;
        if disk.fault == Some(Fault::Crash(now)) {
            disk.crashed = true;
        }
        if disk.crashed || disk.fault == Some(Fault::Error(now)) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        Ok(disk)
    }
}

impl Inode {
    /// What is found of it after a crash: nothing, half, all, or only its length.
    fn found(&self, remains: u8) -> Vec<u8> {
        match (self.synced, remains) {
            (true, _) | (false, 2) => self.bytes.clone(),
            (false, 0) => Vec::new(),
            (false, 1) => self.bytes[..self.bytes.len() / 2].to_vec(),
            (false, _) => vec![0; self.bytes.len()],
        }
    }
}

impl Disk {
    fn inode(&self, file: File) -> io::Result<usize> {
        let found = self.names.get(&file).copied();
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }
}

impl Storage for Fake {
    fn read(&self, file: File, limit: usize) -> io::Result<Vec<u8>> {
        let disk = self.disk();
        if disk.crashed {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        let bytes = &disk.inodes[disk.inode(file)?].bytes;
        if bytes.len() > limit {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        Ok(bytes.clone())
    }

    fn create(&self, file: File, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.step()?;
        if disk.names.contains_key(&file) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Inode {
            bytes: Vec::new(),
            synced: false,
        });
        disk.change(Change::Set(file, inode));
        drop(disk);
        for part in [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..], &[]] {
            let written = self.step().map(|mut disk| {
                disk.inodes[inode].bytes.extend_from_slice(part);
                disk.inodes[inode].synced = part.is_empty();
            });
            if let Err(error) = written {
                let mut disk = self.disk();
                if !disk.crashed {
                    disk.change(Change::Unset(file));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn link(&self, from: File, to: File) -> io::Result<()> {
        let mut disk = self.step()?;
        let inode = disk.inode(from)?;
        if disk.names.contains_key(&to) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        disk.change(Change::Set(to, inode));
        Ok(())
    }

    fn rename(&self, from: File, to: File) -> io::Result<()> {
        let mut disk = self.step()?;
        let inode = disk.inode(from)?;
        disk.change(Change::Move(from, to, inode));
        Ok(())
    }

    fn remove(&self, file: File) -> io::Result<()> {
        let mut disk = self.step()?;
        disk.inode(file)?;
        disk.change(Change::Unset(file));
        Ok(())
    }

    fn values(&self) -> io::Result<Vec<ValueFile>> {
        let disk = self.step()?;
        let value = |file: &File| match file {
            File::Value(value) => Some(*value),
            File::Index | File::NewIndex | File::Kept(_) | File::Lost(_) => None,
        };
        Ok(disk.names.keys().filter_map(value).collect())
    }

    fn sync(&self, folder: Folder) -> io::Result<()> {
        let mut disk = self.step()?;
        let (now, later) = disk
            .pending
            .iter()
            .copied()
            .partition(|change: &Change| change.folder() == folder);
        disk.pending = later;
        let changes: Vec<Change> = now;
        for change in changes {
            change.apply(&mut disk.durable);
        }
        Ok(())
    }

    fn path(&self, file: File) -> PathBuf {
        PathBuf::from(match file {
            File::Index => "/fake/store.age".to_owned(),
            File::NewIndex => "/fake/store.age.new".to_owned(),
            File::Kept(age) => format!("/fake/store.age.{age}"),
            File::Value(value) => format!("/fake/store.d/{value}"),
            File::Lost(value) => format!("/fake/store.d/{value}.lost"),
        })
    }
}
