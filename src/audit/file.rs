//! The log as a file: opened with suspicion, continued where it ends, rotated by size.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::AuditError;
use super::chain::{Head, Sealed};
use super::line::{MAX_LINE, Numbered};
use crate::config::AuditConfig;
use crate::sys::Uid;

/// An open log file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// How long the file is, as far as we wrote it.
    len: u64,
    /// How much of it is the note that it begins with.
    begun: u64,
    rotate_at: u64,
    max_size: u64,
    keep: usize,
}

/// What an existing log ends with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tail {
    /// The last whole line.
    pub(super) head: Head,
    /// How many bytes stand behind it that are not a line.
    pub(super) torn: u64,
    /// True if the file holds no line yet.
    pub(super) fresh: bool,
}

impl LogFile {
    /// Opens the log, or makes it.
    pub(super) fn open(path: &Path, config: &AuditConfig) -> Result<(Self, Tail), AuditError> {
        let (file, metadata) = open_checked(path)?;
        let mut log = Self {
            path: path.to_owned(),
            file,
            len: metadata.len(),
            begun: 0,
            rotate_at: config.max_size,
            max_size: config.max_size,
            keep: config.keep,
        };
        let tail = log.end().map_err(|why| {
            if why.kind() == io::ErrorKind::InvalidData {
                AuditError::Foreign(path.to_owned())
            } else {
                unusable(path, &why)
            }
        })?;
        Ok((log, tail))
    }

    /// True if writing `more` bytes behind those that are `buffered` makes a rotation due. A line longer than the limit
    /// is written nevertheless, into a file of its own.
    pub(super) fn is_full(&self, buffered: usize, more: usize) -> bool {
        let buffered = u64::try_from(buffered).unwrap_or(u64::MAX);
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        let len = self.len.saturating_add(buffered);
        len > self.begun && len.saturating_add(more) > self.rotate_at
    }

    /// Marks what was written until now as the note that the file begins with.
    pub(super) fn has_begun(&mut self) {
        self.begun = self.len;
    }

    /// Ends a last line that has no newline.
    pub(super) fn end_line(&mut self) -> io::Result<()> {
        let mut last = *b"\n";
        if let Some(at) = self.len.checked_sub(1) {
            self.file.read_exact_at(&mut last, at)?;
        }
        if last == *b"\n" {
            return Ok(());
        }
        self.append(b"\n")
    }

    /// True if the path does not lead to this file any more: somebody moved or removed it.
    pub(super) fn was_moved(&self) -> bool {
        let ours = self.file.metadata();
        let named = fs::symlink_metadata(&self.path);
        match (ours, named) {
            (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) != (named.dev(), named.ino()),
            (Ok(_) | Err(_), Err(_)) | (Err(_), Ok(_)) => true,
        }
    }

    /// Writes whole lines. After an error the file is as it was before, where the file system lets us.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.len += u64::try_from(lines.len()).unwrap_or_default();
                Ok(())
            }
            Err(error) => {
                // What this cannot undo (an append-only file) is found as a torn tail when the file is opened again.
                let _ = self.file.set_len(self.len);
                Err(error)
            }
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Moves the file to `path.1`, that one to `path.2` and so on, and starts a new one with the same owner and mode.
    pub(super) fn rotate(&mut self) -> Result<(), AuditError> {
        self.file
            .sync_data()
            .and_then(|()| self.shift())
            .map_err(|why| unusable(&self.path, &why))?;
        let before = self.file.metadata();
        let (file, created) = open_checked(&self.path)?;
        if let Ok(before) = before {
            // A log that its reader's group may read stays so. Only root can, and need, give it away.
            let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
            let _ = file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o640));
        }
        self.file = file;
        self.len = created.len();
        self.begun = 0;
        self.rotate_at = self.max_size;
        if let Some(folder) = folder(&self.path) {
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }

    /// A rotation that is not possible must not end the log: the file grows on, and it is tried again later.
    pub(super) fn put_rotation_off(&mut self) {
        self.rotate_at = self.len.saturating_add(self.max_size / 8).saturating_add(1);
    }

    fn shift(&self) -> io::Result<()> {
        if self.keep == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (1..self.keep).rev() {
            let from = rotated(&self.path, number);
            match fs::rename(&from, rotated(&self.path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        fs::rename(&self.path, rotated(&self.path, 1))
    }

    /// Finds the end of the chain; in the file before, where this one holds none.
    fn end(&mut self) -> io::Result<Tail> {
        match tail(&self.file, self.len)? {
            Some(found) => Ok(found),
            None => {
                // At most the torn first line of a new file: nothing was ever acknowledged in it.
                self.file.set_len(0)?;
                self.len = 0;
                let before = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
                    .open(rotated(&self.path, 1));
                let head = match before {
                    Ok(before) => {
                        let len = before.metadata()?.len();
                        tail(&before, len)?.map_or(Head::default(), |found| found.head)
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Head::default(),
                    Err(error) => return Err(error),
                };
                Ok(Tail {
                    head,
                    torn: 0,
                    fresh: true,
                })
            }
        }
    }
}

/// The name of the `number`-th rotated file.
pub(super) fn rotated(path: &Path, number: usize) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The last whole line of a log of `len` bytes, found from its end; `None` if it holds none yet.
///
/// [`io::ErrorKind::InvalidData`] if it is something else than a log.
fn tail(file: &File, len: u64) -> io::Result<Option<Tail>> {
    // A torn line behind a whole one, each as long as can be; then what a power cut may leave as zeros.
    for window in [2 * (MAX_LINE + 1), 16 << 20] {
        let from = len.saturating_sub(u64::try_from(window).unwrap_or_default());
        let mut bytes = vec![0; usize::try_from(len - from).unwrap_or(window)];
        file.read_exact_at(&mut bytes, from)?;
        let found = last_line(&bytes);
        if found.is_some() {
            return Ok(found);
        }
        if from == 0 {
            const START: &[u8] = b"{\"seq\":";
            let compared = bytes.len().min(START.len());
            return match bytes.get(..compared) == START.get(..compared) {
                true => Ok(None),
                false => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn last_line(bytes: &[u8]) -> Option<Tail> {
    let mut end = bytes.len();
    while let Some(rest) = bytes.get(..end).filter(|rest| !rest.is_empty()) {
        let text = rest.strip_suffix(b"\n").unwrap_or(rest);
        let start = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let line = text.get(start..).unwrap_or_default();
        if let Some(sealed) = Sealed::split(line)
            && let Ok(Numbered { seq }) = serde_json::from_slice(line)
        {
            let torn = bytes.get(end..).unwrap_or_default();
            let torn = torn.strip_suffix(b"\n").unwrap_or(torn);
            return Some(Tail {
                head: Head {
                    seq,
                    mac: sealed.mac,
                },
                torn: u64::try_from(torn.len()).unwrap_or(u64::MAX),
                fresh: false,
            });
        }
        end = start;
    }
    None
}

/// Opens or makes the file and judges what was opened, not what the path said before.
fn open_checked(path: &Path) -> Result<(File, Metadata), AuditError> {
    let failed = |why: io::Error| unusable(path, &why);
    let mut options = OpenOptions::new();
    options
        .read(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
    let owner = folder(path)
        .and_then(|folder| fs::metadata(folder).ok())
        .map(|folder| (folder.uid(), folder.gid()));
    let file = match options.clone().create_new(true).open(path) {
        Ok(file) => {
            if let Some((uid, gid)) = owner
                && Uid::effective() == Uid::ROOT
                && uid != 0
            {
                fchown(&file, Some(uid), Some(gid)).map_err(failed)?;
            }
            file
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options.open(path).map_err(|why| {
                if why.raw_os_error() == Some(libc::ELOOP) {
                    AuditError::Kind(path.to_owned())
                } else {
                    failed(why)
                }
            })?
        }
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.nlink() > 1 {
        return Err(AuditError::Kind(path.to_owned()));
    }
    let known = [Some(0), Some(Uid::effective().0), owner.map(|(uid, _)| uid)];
    if !known.contains(&Some(metadata.uid())) {
        return Err(AuditError::Owner {
            path: path.to_owned(),
            uid: Uid(metadata.uid()),
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & !0o640 != 0 {
        return Err(AuditError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    Ok((file, metadata))
}

fn folder(path: &Path) -> Option<&Path> {
    path.parent()
        .map(|folder| match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        })
}

fn unusable(path: &Path, why: &io::Error) -> AuditError {
    AuditError::Unusable {
        target: path.display().to_string(),
        why: why.to_string(),
    }
}
