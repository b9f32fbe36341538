//! The few things that the store asks of a file system, so that tests can fail each of them in turn.
//!
//! [`Disk`] does them for real: every file is reached from the opened folder and never through a link, is made 0600,
//! and belongs to whom the store belongs, also when root works on it.

use std::fmt;
use std::fs::File as StdFile;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, linkat, unlinkat};

use super::error::StoreError;
use super::index::ValueFile;

#[cfg(test)]
pub(super) mod fake;

/// How many indexes before the current one are kept, for `doctor --repair`.
pub(super) const KEPT: u8 = 3;

/// How long another process may hold the lock before we give up.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// The lock file's name in the folder of values.
const LOCK: &str = "lock";

/// A file of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum File {
    /// The index.
    Index,
    /// The index that is about to become current.
    NewIndex,
    /// An index from before: 1 is the newest.
    Kept(u8),
    /// One version of one secret.
    Value(ValueFile),
    /// A value that `doctor --repair` could not place. Nothing but people removes it.
    Lost(ValueFile),
}

/// A folder of the store, as a thing to fsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Folder {
    /// Where the indexes stand.
    Indexes,
    /// Where the values stand.
    Values,
}

impl File {
    pub(super) fn folder(self) -> Folder {
        match self {
            Self::Index | Self::NewIndex | Self::Kept(_) => Folder::Indexes,
            Self::Value(_) | Self::Lost(_) => Folder::Values,
        }
    }
}

/// What the store asks of a file system.
pub(super) trait Storage: fmt::Debug + Send + Sync {
    /// The whole file, if it has no more than `limit` bytes.
    fn read(&self, file: File, limit: usize) -> io::Result<Vec<u8>>;

    /// Makes a file that was not there, with these bytes, and brings the bytes (not the name) to the disk. Leaves nothing
    /// behind if it fails.
    fn create(&self, file: File, bytes: &[u8]) -> io::Result<()>;

    /// Gives a file a second name, in the same folder.
    fn link(&self, from: File, to: File) -> io::Result<()>;

    /// Gives a file another name in the same folder, atomically, in place of what had that name.
    fn rename(&self, from: File, to: File) -> io::Result<()>;

    /// Takes a file away.
    fn remove(&self, file: File) -> io::Result<()>;

    /// The files in the folder of values that are called like values.
    fn values(&self) -> io::Result<Vec<ValueFile>>;

    /// Brings the names in a folder to the disk.
    fn sync(&self, folder: Folder) -> io::Result<()>;

    /// What people call the file.
    fn path(&self, file: File) -> PathBuf;
}

/// A store on a disk, locked as long as this lives.
#[derive(Debug)]
pub(super) struct Disk {
    index: PathBuf,
    index_name: String,
    values: PathBuf,
    index_folder: OwnedFd,
    value_folder: OwnedFd,
    /// Whom new files are given to, where that is not us.
    owner: Option<(Uid, Gid)>,
    _lock: Flock<OwnedFd>,
}

impl Disk {
    /// Opens what stands at `index`, and waits for its lock.
    pub(super) fn open(index: &Path) -> Result<Self, StoreError> {
        let parts = Parts::of(index)?;
        let there = |name: &str| match fstatat(&parts.folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(StoreError::io("look for", index, errno)),
        };
        if !there(&parts.values_name)? {
            return Err(if there(&parts.name)? {
                StoreError::damaged(&parts.values, "the folder of values is missing")
            } else {
                StoreError::Missing(index.to_owned())
            });
        }
        parts.lock()
    }

    /// Like [`Disk::open`], but makes the folder of values if there is none.
    pub(super) fn create(index: &Path) -> Result<Self, StoreError> {
        let parts = Parts::of(index)?;
        match mkdirat(&parts.folder, parts.values_name.as_str(), Mode::S_IRWXU) {
            Ok(()) => {
                let folder = parts.value_folder()?;
                parts
                    .owner
                    .map_or(Ok(()), |(uid, gid)| fchown(&folder, Some(uid), Some(gid)))
                    .and_then(|()| nix::unistd::fsync(&parts.folder))
                    .map_err(|errno| StoreError::io("make", &parts.values, errno))?;
            }
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(StoreError::io("make", &parts.values, errno)),
        }
        parts.lock()
    }

    fn place(&self, file: File) -> (&OwnedFd, String) {
        match file {
            File::Index => (&self.index_folder, self.index_name.clone()),
            File::NewIndex => (&self.index_folder, format!("{}.new", self.index_name)),
            File::Kept(age) => (&self.index_folder, format!("{}.{age}", self.index_name)),
            File::Value(value) => (&self.value_folder, value.to_string()),
            File::Lost(value) => (&self.value_folder, format!("{value}.lost")),
        }
    }
}

impl Storage for Disk {
    fn read(&self, file: File, limit: usize) -> io::Result<Vec<u8>> {
        let (folder, name) = self.place(file);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let opened = StdFile::from(openat(folder, name.as_str(), flags, Mode::empty())?);
        let metadata = opened.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0).min(limit));
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        opened.take(most).read_to_end(&mut bytes)?;
        if bytes.len() > limit {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        Ok(bytes)
    }

    fn create(&self, file: File, bytes: &[u8]) -> io::Result<()> {
        let (folder, name) = self.place(file);
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut opened = StdFile::from(openat(folder, name.as_str(), flags, PRIVATE)?);
        let written = give(&opened, self.owner)
            .and_then(|()| opened.write_all(bytes))
            .and_then(|()| opened.sync_all());
        if written.is_err() {
            // The first error is the one to tell; what stays behind is swept at the next open.
            let _ = unlinkat(folder, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        written
    }

    fn link(&self, from: File, to: File) -> io::Result<()> {
        let ((folder, from), (_, to)) = (self.place(from), self.place(to));
        Ok(linkat(
            folder,
            from.as_str(),
            folder,
            to.as_str(),
            AtFlags::empty(),
        )?)
    }

    fn rename(&self, from: File, to: File) -> io::Result<()> {
        let ((folder, from), (_, to)) = (self.place(from), self.place(to));
        Ok(renameat(folder, from.as_str(), folder, to.as_str())?)
    }

    fn remove(&self, file: File) -> io::Result<()> {
        let (folder, name) = self.place(file);
        Ok(unlinkat(folder, name.as_str(), UnlinkatFlags::NoRemoveDir)?)
    }

    fn values(&self) -> io::Result<Vec<ValueFile>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut folder = nix::dir::Dir::openat(&self.value_folder, ".", flags, Mode::empty())?;
        let mut values = Vec::new();
        for entry in folder.iter() {
            let entry = entry?;
            if let Some(value) = entry.file_name().to_str().ok().and_then(ValueFile::parse) {
                values.push(value);
            }
        }
        Ok(values)
    }

    fn sync(&self, folder: Folder) -> io::Result<()> {
        let folder = match folder {
            Folder::Indexes => &self.index_folder,
            Folder::Values => &self.value_folder,
        };
        Ok(nix::unistd::fsync(folder)?)
    }

    fn path(&self, file: File) -> PathBuf {
        match file.folder() {
            Folder::Indexes => self.index.with_file_name(self.place(file).1),
            Folder::Values => self.values.join(self.place(file).1),
        }
    }
}

/// Where the parts of a store stand, before its lock is held.
struct Parts {
    index: PathBuf,
    name: String,
    values: PathBuf,
    values_name: String,
    folder: OwnedFd,
    owner: Option<(Uid, Gid)>,
}

impl Parts {
    fn of(index: &Path) -> Result<Self, StoreError> {
        let name = index
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| StoreError::io("open", index, Errno::EINVAL))?
            .to_owned();
        let values = index.with_extension("d");
        let values_name = values
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|values| *values != name)
            .ok_or_else(|| StoreError::io("open", index, Errno::EINVAL))?
            .to_owned();
        let folder = open_folder(folder_of(index)).map_err(|errno| {
            if errno == Errno::ENOENT {
                StoreError::Missing(index.to_owned())
            } else {
                StoreError::io("open the folder of", index, errno)
            }
        })?;
        let owner = fstatat(&folder, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .or_else(|_| fstat(&folder))
            .map_err(|errno| StoreError::io("look at", index, errno))
            .map(|stat| (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)))?;
        Ok(Self {
            index: index.to_owned(),
            name,
            values,
            values_name,
            folder,
            owner: geteuid().is_root().then_some(owner),
        })
    }

    fn value_folder(&self) -> Result<OwnedFd, StoreError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(
            &self.folder,
            self.values_name.as_str(),
            flags,
            Mode::empty(),
        )
        .map_err(|errno| StoreError::io("open", &self.values, errno))
    }

    fn lock(self) -> Result<Disk, StoreError> {
        let value_folder = self.value_folder()?;
        let file = self.values.join(LOCK);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut lock = openat(&value_folder, LOCK, flags, PRIVATE)
            .map_err(|errno| StoreError::io("open", &file, errno))?;
        give(&lock, self.owner).map_err(|error| StoreError::io("make", &file, error))?;
        let tries = LOCK_WAIT.as_millis() / LOCK_POLL.as_millis().max(1);
        for _ in 0..tries {
            match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
                Ok(held) => {
                    return Ok(Disk {
                        index: self.index,
                        index_name: self.name,
                        values: self.values,
                        index_folder: self.folder,
                        value_folder,
                        owner: self.owner,
                        _lock: held,
                    });
                }
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => lock = back,
                Err((_, errno)) => return Err(StoreError::io("lock", &file, errno)),
            }
            std::thread::sleep(LOCK_POLL);
        }
        Err(StoreError::Locked(self.index))
    }
}

const PRIVATE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Writes `bytes` to `path` as a whole or not at all, 0600. A file that is replaced keeps its owner; a new one is ours.
/// To replace one, the caller must be the only one who does at the time.
///
/// # Errors
/// [`StoreError::Exists`] if there is such a file and it is not to be replaced; [`StoreError::Io`].
pub fn write_whole(path: &Path, bytes: &[u8], replace: bool) -> Result<(), StoreError> {
    write_whole_with(path, replace, |file| {
        file.write_all(bytes)
            .map_err(|error| StoreError::io("write", path, error))
    })
}

/// Like [`write_whole`], for what is too large to be held in memory.
///
/// # Errors
/// As [`write_whole`], and what `write` fails with.
pub fn write_whole_with(
    path: &Path,
    replace: bool,
    write: impl FnOnce(&mut dyn Write) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let io = |step: &'static str| move |error: Errno| StoreError::io(step, path, error);
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| io("write")(Errno::EINVAL))?;
    let folder = open_folder(folder_of(path)).map_err(io("open the folder of"))?;
    let before = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    if let Ok(stat) = &before {
        if !replace {
            return Err(StoreError::Exists(path.to_owned()));
        }
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(io("replace")(Errno::EINVAL));
        }
    }
    // What is new is ours, whoever owns the folder: an identity must not become another's by where it is written.
    let owner = before
        .ok()
        .map(|stat| (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)))
        .filter(|_| geteuid().is_root());
    let temporary = if replace {
        // What a crash left behind may be a key that has been replaced since.
        let left = format!(".{name}.new");
        match unlinkat(&folder, left.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => left,
            Err(errno) => return Err(io("write beside")(errno)),
        }
    } else {
        format!(".{name}.{}", ValueFile::random()?)
    };
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mut file = StdFile::from(
        openat(&folder, temporary.as_str(), flags, PRIVATE).map_err(io("write beside"))?,
    );
    let result = give(&file, owner)
        .map_err(|error| StoreError::io("write", path, error))
        .and_then(|()| write(&mut file))
        .and_then(|()| {
            file.sync_all()
                .map_err(|error| StoreError::io("write", path, error))
        })
        .and_then(|()| {
            if replace {
                return renameat(&folder, temporary.as_str(), &folder, name).map_err(io("replace"));
            }
            // A link, unlike a rename, never replaces what came there in the meantime.
            linkat(&folder, temporary.as_str(), &folder, name, AtFlags::empty()).map_err(|errno| {
                if errno == Errno::EEXIST {
                    StoreError::Exists(path.to_owned())
                } else {
                    io("write")(errno)
                }
            })
        });
    if result.is_err() || !replace {
        // Nobody but us knows this name; that it stays is no reason to hide how the writing itself went.
        let _ = unlinkat(&folder, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
    }
    result?;
    nix::unistd::fsync(&folder).map_err(io("write the folder of"))
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn open_folder(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// Gives an opened file to `owner`, if it is not theirs.
fn give(file: &impl AsFd, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    if let Some((uid, gid)) = owner {
        let stat = fstat(file)?;
        if (stat.st_uid, stat.st_gid) != (uid.as_raw(), gid.as_raw()) {
            // Whoever owns the folder may have linked a file of root's here.
            if stat.st_nlink > 1 {
                return Err(Errno::EMLINK.into());
            }
            fchown(file, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}
