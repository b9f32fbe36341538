//! What can go wrong, and the one table that says which errno a program sees.

use crate::backend::BackendError;

/// Why a request failed. Each has one errno, and [`FsError::errno`] is the only place that says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsError {
    /// No such service, secret, version or field.
    Absent,
    /// The policy says no, or the caller could not be found out, or the audit log cannot be written.
    Denied,
    /// The backend says no.
    Refused,
    /// The backend cannot be reached, and nothing may stand in.
    Unreachable,
    /// The deadline passed.
    Timeout,
    /// What the backend gave must not be shown.
    Unusable,
    /// What is kept of a value does not open: its memory was damaged.
    Broken,
    /// Anything that would change the tree.
    ReadOnly,
    /// A file where a directory is needed.
    NotDirectory,
    /// A directory where a file is needed.
    IsDirectory,
    /// A name that is longer than any can be.
    NameTooLong,
    /// An inode that we do not know any more: the kernel looks the path up again.
    Superseded,
    /// A handle that we never gave.
    BadHandle,
    /// The page cache asks for a page of a new value while pages of an old one may be mapped.
    Mixed,
    /// No such extended attribute.
    NoAttribute,
    /// The caller's buffer is too small for the extended attribute.
    TooSmall,
}

impl FsError {
    /// The errno for this error.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::Absent => libc::ENOENT,
            // EACCES and not EPERM: what open(2) says of a file whose mode forbids it.
            Self::Denied | Self::Refused => libc::EACCES,
            Self::Unreachable | Self::Unusable | Self::Broken | Self::Mixed => libc::EIO,
            Self::Timeout => libc::ETIMEDOUT,
            Self::ReadOnly => libc::EROFS,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::Superseded => libc::ESTALE,
            Self::BadHandle => libc::EBADF,
            Self::NoAttribute => libc::ENODATA,
            Self::TooSmall => libc::ERANGE,
        }
    }
}

impl From<&BackendError> for FsError {
    fn from(error: &BackendError) -> Self {
        match error {
            BackendError::Absent(_) => Self::Absent,
            BackendError::Refused(_) => Self::Refused,
            BackendError::Unreachable(_) => Self::Unreachable,
            BackendError::Timeout(_) => Self::Timeout,
            BackendError::Unusable(_) => Self::Unusable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_denied_unreachable_and_late_are_four_different_things() {
        let errnos = [
            FsError::Absent,
            FsError::Denied,
            FsError::Unreachable,
            FsError::Timeout,
        ]
        .map(FsError::errno);
        assert_eq!(
            errnos,
            [libc::ENOENT, libc::EACCES, libc::EIO, libc::ETIMEDOUT]
        );
    }

    #[test]
    fn each_backend_error_has_its_errno() {
        let why = || "why".to_owned();
        let table = [
            (BackendError::Absent(why()), libc::ENOENT),
            (BackendError::Refused(why()), libc::EACCES),
            (BackendError::Unreachable(why()), libc::EIO),
            (BackendError::Timeout(why()), libc::ETIMEDOUT),
            (BackendError::Unusable(why()), libc::EIO),
        ];
        for (error, errno) in table {
            assert_eq!(FsError::from(&error).errno(), errno, "{error}");
        }
    }
}
