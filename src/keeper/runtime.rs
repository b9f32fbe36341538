//! The runtime folder, judged: who could replace the control socket there would be given the values of every `put`, and
//! who could replace the lock would keep the daemon down.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::keeper::KeeperError;
use crate::sys::Uid;

/// Makes sure that nobody but root and we ourselves can have put something there: neither into the folder nor, by
/// replacing one of those above it, in its place. (Root's sticky folders, such as `/tmp`, may be above it.) A folder that
/// is not there is nobody's.
///
/// # Errors
/// [`KeeperError::File`]
pub fn judge(runtime: &Path) -> Result<(), KeeperError> {
    let refused = |path: &Path, why: io::Error| KeeperError::File {
        path: path.to_owned(),
        key: "runtime",
        why,
    };
    let real = match runtime.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(runtime, error)),
    };
    for folder in real.ancestors() {
        let found = fs::metadata(folder).map_err(|error| refused(folder, error))?;
        let (owner, mode) = (Uid(found.uid()), found.mode());
        if owner != Uid::ROOT && owner != Uid::effective() {
            let why = "belongs to somebody else, who could stand in for the daemon: chown root it";
            return Err(refused(folder, io::Error::other(why)));
        }
        let sticky = folder != real && mode & libc::S_ISVTX != 0 && owner == Uid::ROOT;
        if mode & (libc::S_IWGRP | libc::S_IWOTH) != 0 && !sticky {
            let why = "can be written by others, who could stand in for the daemon: chmod go-w it";
            return Err(refused(folder, io::Error::other(why)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[test]
    fn a_folder_that_others_can_write_or_own_is_refused_also_above() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("a/run");
        assert!(judge(&run).is_ok(), "not there yet");
        fs::create_dir_all(&run).unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let (above, link) = (folder.path().join("a"), folder.path().join("link"));
        symlink(&run, &link).unwrap();
        mode(&above, 0o755);
        mode(&run, 0o755);
        assert!(judge(&run).is_ok());
        assert!(judge(&link).is_ok());
        for (path, bits) in [(&run, 0o775), (&run, 0o1777), (&above, 0o757)] {
            mode(path, bits);
            for asked in [&run, &link] {
                let error = judge(asked).unwrap_err().to_string();
                assert!(error.contains("chmod go-w"), "{bits:o}: {error}");
            }
            mode(path, 0o755);
        }
        if Uid::effective() != Uid::ROOT {
            return;
        }
        mode(&above, 0o1777);
        assert!(judge(&run).is_ok(), "as in /tmp");
        for path in [&run, &above] {
            chown(path, Some(4001), None).unwrap();
            let error = judge(&run).unwrap_err().to_string();
            assert!(error.contains("chown root"), "{error}");
            chown(path, Some(0), None).unwrap();
        }
    }
}
