//! The revocations in the state folder: what was taken away stays away when the daemon starts again.

use std::fs;
use std::io;
use std::path::Path;

use crate::backend::store::write_whole;
use crate::policy::revocation::Revocations;
use crate::run::RunError;

const FILE: &str = "revocations.json";

/// What was kept in this state folder. A file that cannot be read is an error: to go on without it would give back what
/// was taken away.
///
/// # Errors
/// [`RunError::File`]
pub fn read(state: &Path) -> Result<Revocations, RunError> {
    let path = state.join(FILE);
    let fails = |why: io::Error| RunError::File {
        path: path.clone(),
        why,
    };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Revocations::default()),
        Err(error) => return Err(fails(error)),
    };
    serde_json::from_slice(&text).map_err(|error| {
        fails(io::Error::other(format!(
            "is damaged (line {}, column {}), so what was revoked is not known: restore it from a copy, or remove it and revoke again",
            error.line(),
            error.column()
        )))
    })
}

/// Keeps them, or fails and keeps what was there before.
pub(super) fn write(state: &Path, revocations: &Revocations) -> Result<(), RunError> {
    let path = state.join(FILE);
    let mut text = serde_json::to_vec(revocations).map_err(|error| RunError::File {
        path: path.clone(),
        why: error.into(),
    })?;
    text.push(b'\n');
    Ok(write_whole(&path, &text, true)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::policy::revocation::{Revocation, Target};
    use crate::sys::Uid;

    fn list() -> Revocations {
        let revocation = |target| Revocation {
            target,
            since: "2026-11-25T16:00:00Z".parse().unwrap(),
            until: None,
            by: Uid(0),
        };
        let secret = Target::Secret("billing/db-password".parse().unwrap());
        [Target::All, secret].map(revocation).into_iter().collect()
    }

    #[test]
    fn what_was_kept_is_read_again_and_is_for_nobody_else() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(read(state.path()).unwrap(), Revocations::default());
        write(state.path(), &list()).unwrap();
        assert_eq!(read(state.path()).unwrap(), list());
        let meta = fs::metadata(state.path().join(FILE)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        write(state.path(), &Revocations::default()).unwrap();
        assert_eq!(read(state.path()).unwrap(), Revocations::default());
    }

    #[test]
    fn what_cannot_be_kept_leaves_what_was_there() {
        let state = tempfile::tempdir().unwrap();
        assert!(write(&state.path().join("gone"), &list()).is_err());
        let path = state.path().join(FILE);
        fs::create_dir(&path).unwrap();
        assert!(write(state.path(), &list()).is_err());
        assert!(path.is_dir());
    }

    #[test]
    fn a_damaged_list_is_an_error_that_names_file_and_mend() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE);
        write(state.path(), &list()).unwrap();
        let whole = fs::read(&path).unwrap();
        let torn = whole.split_at(whole.len() / 2).0.to_vec();
        for damaged in [Vec::new(), b"{}".to_vec(), b"\0\xff".to_vec(), torn] {
            fs::write(&path, damaged).unwrap();
            let error = read(state.path()).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()), "{error}");
            assert!(error.contains("restore it from a copy"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read(state.path()).is_err());
    }
}
