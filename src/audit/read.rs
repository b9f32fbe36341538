//! Reading the log: the rotated files, oldest first, then the living one; or a stream, as `journalctl` gives it.
//!
//! A log may have been tampered with by whoever it accuses: lines are read up to a limit, nothing in them is trusted
//! before the chain was checked, and the reader never stops at a bad one.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::chain::Key;
use super::line::{Body, MAX_LINE, Record};
use super::verify::{Check, Line, Report};
use super::{AuditError, Outcome};
use crate::secret::SecretBytes;
use crate::sys::Uid;

/// Which lines are wanted: all that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this secret, or of this service and its secrets.
    pub secret: Option<String>,
    /// By this user.
    pub uid: Option<Uid>,
    /// From then on.
    pub since: Option<Timestamp>,
    /// Only what somebody was refused: denied, refused by the backend, revoked.
    pub denied: bool,
}

impl Filter {
    /// True if the line is wanted. What the log says about itself is about no secret and nobody.
    #[must_use]
    pub fn wants(&self, record: &Record) -> bool {
        if self.since.is_some_and(|since| record.time() < since) {
            return false;
        }
        let event = match &record.body {
            Body::Note(_) => return self.secret.is_none() && self.uid.is_none() && !self.denied,
            Body::Entry(entry) => &entry.event,
        };
        let refused = match event.outcome {
            Outcome::Denied | Outcome::Refused | Outcome::Revoked => true,
            Outcome::Allowed
            | Outcome::Absent
            | Outcome::Unreachable
            | Outcome::Stale
            | Outcome::Error => false,
        };
        let below = |wanted: &String| {
            let wanted = wanted.trim_end_matches('/');
            let rest = event.path.as_deref().and_then(|p| p.strip_prefix(wanted));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        (!self.denied || refused)
            && self.uid.is_none_or(|uid| uid == event.uid)
            && self.secret.as_ref().is_none_or(below)
    }
}

/// Reads a log and follows its chain.
pub struct Reader {
    source: Source,
    check: Check,
    partial: Partial,
}

enum Source {
    Files {
        path: PathBuf,
        current: Option<Current>,
    },
    Stream(Box<dyn BufRead + Send>),
}

struct Current {
    input: BufReader<File>,
    id: FileId,
    /// True if a newer file was seen after which this one was read to its end once more.
    left: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

/// The start of a line whose end has not been read yet.
#[derive(Default)]
struct Partial {
    /// Not more than a line may have.
    bytes: Vec<u8>,
    len: u64,
}

impl Reader {
    /// Reads the log at `path` with what was rotated from it. Without a key nothing is verified but form and numbers.
    ///
    /// # Errors
    /// [`AuditError::Key`] for a key that is none.
    pub fn files(path: &Path, key: Option<&SecretBytes>) -> Result<Self, AuditError> {
        let source = Source::Files {
            path: path.to_owned(),
            current: None,
        };
        Self::new(source, key)
    }

    /// Reads lines from anywhere, as from `journalctl -t secretfs -o cat`.
    ///
    /// # Errors
    /// [`AuditError::Key`] for a key that is none.
    pub fn stream(
        input: impl BufRead + Send + 'static,
        key: Option<&SecretBytes>,
    ) -> Result<Self, AuditError> {
        Self::new(Source::Stream(Box::new(input)), key)
    }

    fn new(source: Source, key: Option<&SecretBytes>) -> Result<Self, AuditError> {
        let key = key
            .map(|key| Key::new(key).ok_or(AuditError::Key))
            .transpose()?;
        Ok(Self {
            check: Check::new(key, matches!(source, Source::Stream(_))),
            source,
            partial: Partial::default(),
        })
    }

    /// The next line; `None` at the end, after which more may come: to follow the log, ask again in a while. A rotation
    /// meanwhile loses nothing.
    ///
    /// # Errors
    /// What reading fails with; [`io::ErrorKind::NotFound`] where there is no log.
    pub fn read(&mut self) -> io::Result<Option<Line>> {
        loop {
            let whole = match &mut self.source {
                Source::Stream(input) => self.partial.fill(input)?,
                Source::Files {
                    current: Some(open),
                    ..
                } => self.partial.fill(&mut open.input)?,
                Source::Files { current: None, .. } => false,
            };
            if !whole && !self.go_on()? {
                return Ok(None);
            }
            let line = match whole || self.is_stream() {
                true => self.partial.take(),
                false => continue,
            };
            if let Some(line) = self.check.line(&line.bytes, line.len) {
                return Ok(Some(line));
            }
        }
    }

    /// At the end of what there was to read: false if there is no more for now.
    fn go_on(&mut self) -> io::Result<bool> {
        let Source::Files { path, current } = &mut self.source else {
            // A stream's last line may lack its newline.
            return Ok(self.partial.len > 0);
        };
        let next = successor(path, current.as_ref().map(|open| open.id))?;
        match (current.as_mut(), next) {
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
            (Some(_), None) => return Ok(false),
            // It may have been written to between our reading and its renaming.
            (Some(open), Some(_)) if !open.left => open.left = true,
            (_, Some(next)) => {
                let rest = self.partial.take();
                if rest.len > 0 {
                    self.check.line(&rest.bytes, rest.len);
                }
                *current = Some(enter(&next, &mut self.check)?);
            }
        }
        Ok(true)
    }

    fn is_stream(&self) -> bool {
        matches!(self.source, Source::Stream(_))
    }

    /// What is known of the lines that were read until now.
    #[must_use]
    pub fn report(&self) -> Report {
        self.check.report(self.partial.len)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Partial {
    /// Reads on; true once the line is whole. Its newline is not kept.
    fn fill(&mut self, input: &mut impl BufRead) -> io::Result<bool> {
        loop {
            let available = match input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Ok(false);
            }
            let newline = available.iter().position(|byte| *byte == b'\n');
            let more = newline.unwrap_or(available.len());
            let room = MAX_LINE.saturating_sub(self.bytes.len()).min(more);
            self.bytes
                .extend_from_slice(available.get(..room).unwrap_or_default());
            self.len = self
                .len
                .saturating_add(u64::try_from(more).unwrap_or(u64::MAX));
            input.consume(more + usize::from(newline.is_some()));
            if newline.is_some() {
                return Ok(true);
            }
        }
    }

    fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// The file that comes after `current`, or the oldest one.
fn successor(path: &Path, current: Option<FileId>) -> io::Result<Option<PathBuf>> {
    let files = files(path)?;
    let Some(current) = current else {
        return Ok(files.into_iter().next());
    };
    let mut seen = false;
    let mut next = None;
    for file in &files {
        let id = match fs::metadata(file) {
            Ok(metadata) => FileId(metadata.dev(), metadata.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if seen && next.is_none() {
            next = Some(file.clone());
        }
        seen |= id == current;
    }
    // One that is gone was the oldest: go on with the oldest that is there.
    Ok(if seen { next } else { files.into_iter().next() })
}

/// The files of a log that exist, oldest first.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let other = entry?.file_name();
        let other = other.to_string_lossy();
        let number = match other.strip_prefix(&*name) {
            Some("") => Some(0),
            Some(rest) => rest
                .strip_prefix('.')
                .filter(|digits| !digits.starts_with(['0', '+']))
                .and_then(|digits| digits.parse().ok()),
            None => None,
        };
        found.extend(number);
    }
    found.sort_unstable_by(|one: &usize, other| other.cmp(one));
    let named = |number| match number {
        0 => path.to_owned(),
        _ => super::file::rotated(path, number),
    };
    Ok(found.into_iter().map(named).collect())
}

fn enter(path: &Path, check: &mut Check) -> io::Result<Current> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    check.enter(path.to_owned());
    Ok(Current {
        input: BufReader::new(file),
        id: FileId(metadata.dev(), metadata.ino()),
        left: false,
    })
}
