//! A folder of a server's that a test starts, below `/tmp`: gone when dropped, or with the next run if this one is killed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mounts::clean;

/// What all these folders' names begin with.
const PREFIX: &str = "/tmp/secretfs-server-";

#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes an empty one that everybody can go through and only we can list.
    #[track_caller]
    pub(crate) fn new() -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o711)).unwrap();
        Self(root)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Something in it.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same, for a command line or a config.
    pub(crate) fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        clean(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Cleans up after runs that were killed, and so could not.
fn sweep() {
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let path = entry.path();
        let owner = path
            .to_str()
            .and_then(|path| path.strip_prefix(PREFIX))
            .and_then(|rest| rest.split_once('-'));
        if let Some((pid, _)) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            clean(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }
}
