//! What can go wrong with a store. Each text is one line that names the file and the mend; none quotes a value.

use std::io;
use std::path::{Path, PathBuf};

use super::identity::IdentityError;
use crate::backend::{BackendError, Version};
use crate::secret::{MAX_VALUE, SecretPath};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such secret, or no such version of it.
    #[error("no such secret: {0}: see `secretfs ls`")]
    Absent(String),
    /// The value has more than [`MAX_VALUE`] bytes.
    #[error(
        "{0}: the value has more than {MAX_VALUE} bytes: keep what is that large elsewhere, and its key here"
    )]
    TooLarge(SecretPath),
    /// The description is too long or has control characters.
    #[error("{0}: the description must be one line of at most {max} bytes", max = super::MAX_DESCRIPTION)]
    Description(SecretPath),
    /// There is no store.
    #[error("{}: there is no store: run `secretfs init`", .0.display())]
    Missing(PathBuf),
    /// Something is there already that must not be overwritten.
    #[error("{}: is there already: name another file, or move it away", .0.display())]
    Exists(PathBuf),
    /// The store has secrets, and `restore` was not told to replace them.
    #[error("{}: the store is not empty: `restore --replace` removes what it holds first", .0.display())]
    NotEmpty(PathBuf),
    /// The identity could not be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The file is sealed to somebody else.
    #[error("{}: this identity does not open it: use the one that it was made for; if this is it, the file is damaged: run `secretfs doctor --repair`", .0.display())]
    WrongIdentity(PathBuf),
    /// A file is not what it was when it was written.
    #[error("{}: damaged: {what}: run `secretfs doctor --repair`, or restore an export", .file.display())]
    Damaged {
        /// Which one.
        file: PathBuf,
        /// What is wrong with it, and what it holds.
        what: String,
    },
    /// The index was written by another version of secretfs.
    #[error("{}: its format is {found}, this secretfs knows {known}: use the secretfs that wrote it", .file.display(), known = super::index::FORMAT)]
    Format {
        /// The index.
        file: PathBuf,
        /// Its format number.
        found: u64,
    },
    /// Another process has the store.
    #[error("{}: another process uses the store: try again when it is done, or see `secretfs status`", .0.display())]
    Locked(PathBuf),
    /// An export cannot be read back.
    #[error("the export cannot be restored: {0}")]
    Archive(String),
    /// An export is sealed with a passphrase, and none was given.
    #[error("the export is sealed with a passphrase: give it when asked")]
    NeedsPassphrase,
    /// An export could not be written.
    #[error("the export cannot be written: {0}: {mend}", mend = mend(.0))]
    Export(io::Error),
    /// The system said no.
    #[error("{}: cannot {step}: {source}: {}", .file.display(), mend(.source))]
    Io {
        /// What was tried.
        step: &'static str,
        /// On which file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system gave no random numbers.
    #[error("the system gives no random numbers: try again")]
    Random,
}

impl StoreError {
    pub(super) fn io(step: &'static str, file: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            step,
            file: file.to_owned(),
            source: source.into(),
        }
    }

    pub(super) fn damaged(file: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            file: file.to_owned(),
            what: what.into(),
        }
    }

    pub(super) fn absent(path: &SecretPath, version: Option<&Version>) -> Self {
        Self::Absent(match version {
            Some(version) => format!("{path}@{version}"),
            None => path.to_string(),
        })
    }
}

impl From<StoreError> for BackendError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Absent(what) => Self::Absent(what),
            StoreError::Identity(_) | StoreError::WrongIdentity(_) => Self::Refused(text),
            StoreError::TooLarge(_)
            | StoreError::Description(_)
            | StoreError::Exists(_)
            | StoreError::NotEmpty(_)
            | StoreError::Damaged { .. }
            | StoreError::Format { .. }
            | StoreError::NeedsPassphrase
            | StoreError::Archive(_) => Self::Unusable(text),
            StoreError::Missing(_)
            | StoreError::Locked(_)
            | StoreError::Io { .. }
            | StoreError::Export(_)
            | StoreError::Random => Self::Unreachable(text),
        }
    }
}

/// What to do about an error of the system.
fn mend(error: &io::Error) -> &'static str {
    use io::ErrorKind;
    let kind = error.kind();
    if kind == ErrorKind::PermissionDenied {
        "run it as the store's owner, or as root"
    } else if kind == ErrorKind::StorageFull || kind == ErrorKind::QuotaExceeded {
        "make room on the disk"
    } else if kind == ErrorKind::ReadOnlyFilesystem {
        "mount the disk writable"
    } else if kind == ErrorKind::NotFound {
        "make the folder, or correct the path"
    } else {
        "see `secretfs doctor`"
    }
}
