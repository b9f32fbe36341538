//! The runtime folder, and what stands in it. It is judged: who could replace the control socket there would be given the
//! values of every `put`, and who could replace the lock would keep the daemon down.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::clock::Clock;
use crate::config::Config;
use crate::control;
use crate::keeper::KeeperError;
use crate::sys::Uid;

/// The daemon's lock, below the runtime folder. Who holds it may change what belongs to the config.
pub const LOCK: &str = "lock";

/// How long a command that holds the lock may keep us from starting.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);

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
    match judge_file(runtime) {
        Err(Suspect { why, .. }) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        judged => judged.map_err(|Suspect { path, why }| refused(&path, why)),
    }
}

/// A file or folder that others could have put there.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .path.display())]
pub(super) struct Suspect {
    path: PathBuf,
    why: io::Error,
}

/// The same of any file or folder, which must be there.
///
/// # Errors
/// [`Suspect`]
pub(super) fn judge_file(path: &Path) -> Result<(), Suspect> {
    let suspect = |path: &Path, why: io::Error| Suspect {
        path: path.to_owned(),
        why,
    };
    let real = path.canonicalize().map_err(|why| suspect(path, why))?;
    for folder in real.ancestors() {
        let found = fs::metadata(folder).map_err(|why| suspect(folder, why))?;
        let (owner, mode) = (Uid(found.uid()), found.mode());
        if owner != Uid::ROOT && owner != Uid::effective() {
            let why = "belongs to somebody else, who could stand in for the daemon: chown root it";
            return Err(suspect(folder, io::Error::other(why)));
        }
        let sticky = folder != real && mode & libc::S_ISVTX != 0 && owner == Uid::ROOT;
        if mode & (libc::S_IWGRP | libc::S_IWOTH) != 0 && !sticky {
            let why = "can be written by others, who could stand in for the daemon: chmod go-w it";
            return Err(suspect(folder, io::Error::other(why)));
        }
    }
    Ok(())
}

/// Makes the runtime folder if it is not there yet, and judges it.
///
/// # Errors
/// [`KeeperError::File`]
pub(super) fn prepare(config: &Config) -> Result<(), KeeperError> {
    make_folder(&config.runtime, "runtime", 0o755, None)?;
    judge(&config.runtime)
}

/// Makes the state folder if it is not there yet.
///
/// # Errors
/// [`KeeperError::File`]
pub(super) fn make_state(config: &Config) -> Result<(), KeeperError> {
    let owner = config.user.as_ref().map(|user| user.uid);
    make_folder(&config.state, "state", 0o700, owner)
}

/// Whether somebody holds the lock of a config.
///
/// # Errors
/// [`KeeperError::File`]
pub(super) fn is_locked(runtime: &Path) -> Result<bool, KeeperError> {
    let path = runtime.join(LOCK);
    let fails = |why: io::Error| KeeperError::File {
        path: path.clone(),
        key: "runtime",
        why,
    };
    let file = match File::open(&path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(fails)?,
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(fails(errno.into())),
    }
}

/// Takes the lock of a config, waiting as long as a command may take.
///
/// # Errors
/// [`KeeperError::Locked`], [`KeeperError::File`].
pub fn lock(runtime: &Path, clock: &Clock) -> Result<Flock<File>, KeeperError> {
    let path = runtime.join(LOCK);
    let fails = |why: io::Error| KeeperError::File {
        path: path.clone(),
        key: "runtime",
        why,
    };
    // Nobody else may open it: any descriptor, even one for reading, could hold the lock and keep the daemon down.
    let open = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let mut file = open.map_err(fails)?;
    let deadline = clock.now() + LOCK_DEADLINE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, errno)) if errno != Errno::EWOULDBLOCK => return Err(fails(errno.into())),
            Err(_) if clock.now() >= deadline => return Err(KeeperError::Locked(path)),
            Err((back, _)) => file = back,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Goes on holding a lock that another release of this program has taken.
///
/// # Errors
/// [`KeeperError::System`] if it has not.
pub(super) fn hold(lock: File) -> Result<Flock<File>, KeeperError> {
    let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock);
    held.map_err(|(_, errno)| errno.into())
}

/// Binds the control socket. Everyone may connect: who may do what is asked of the kernel's word on the peer.
pub(super) fn listen(runtime: &Path) -> Result<UnixListener, KeeperError> {
    let path = runtime.join(control::SOCKET);
    let fails = |why: io::Error| KeeperError::File {
        path: path.clone(),
        key: "runtime",
        why,
    };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fails(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path).map_err(fails)?;
    fs::set_permissions(&path, Permissions::from_mode(0o666)).map_err(fails)?;
    Ok(listener)
}

/// Makes a folder that is not there, for `owner`.
fn make_folder(
    path: &Path,
    key: &'static str,
    mode: u32,
    owner: Option<Uid>,
) -> Result<(), KeeperError> {
    let fails = |why: io::Error| KeeperError::File {
        path: path.to_owned(),
        key,
        why,
    };
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fails)?;
    }
    DirBuilder::new().mode(mode).create(path).map_err(fails)?;
    // Whatever the umask has left of it: a runtime folder that only root can enter keeps everyone else's commands out.
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(fails)?;
    if Uid::effective() == Uid::ROOT
        && let Some(owner) = owner
    {
        std::os::unix::fs::chown(path, Some(owner.0), None).map_err(fails)?;
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
