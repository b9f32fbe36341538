//! What the kernel knows of a test: its mounts, its FUSE connections and its processes, to look at and to clean away.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// A mount of a test's, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Bind(PathBuf);

impl Bind {
    /// Takes over a mount.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A mount as mountinfo lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) at: PathBuf,
    pub(crate) kind: String,
    pub(crate) options: String,
    /// The number of the device, which for FUSE is that of the connection.
    pub(crate) device: u32,
}

/// All mounts at or below a place, the topmost last.
pub(crate) fn mounts(below: &Path) -> Vec<Mounted> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounted = |line: &str| {
        let (first, second) = line.split_once(" - ")?;
        let fields: Vec<&str> = first.split(' ').collect();
        Some(Mounted {
            at: PathBuf::from(fields[4]),
            kind: second.split(' ').next()?.to_owned(),
            options: fields[5].to_owned(),
            device: fields[2].split_once(':')?.1.parse().ok()?,
        })
    };
    mountinfo
        .lines()
        .filter_map(mounted)
        .filter(|mounted| mounted.at.starts_with(below))
        .collect()
}

/// A process's children.
pub(crate) fn children(of: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

/// Lets everybody go who waits for a FUSE mount at or below a place.
pub(crate) fn abort(below: &Path) {
    for mounted in mounts(below) {
        if mounted.kind == "fuse" || mounted.kind.starts_with("fuse.") {
            let _ = fs::write(connection(mounted.device).join("abort"), "1");
        }
    }
}

/// Where the kernel shows a FUSE connection. Nobody but systemd mounts that, so we may have to.
pub(crate) fn connection(number: u32) -> PathBuf {
    static MOUNT: Once = Once::new();
    let connections = Path::new("/sys/fs/fuse/connections");
    MOUNT.call_once(|| {
        if mounts(connections).is_empty() {
            let (none, flags) = (None::<&str>, MsFlags::empty());
            nix::mount::mount(none, connections, Some("fusectl"), flags, none).unwrap();
        }
    });
    connections.join(number.to_string())
}

/// The processes that were started with this folder's name in their command line, but for us.
pub(crate) fn processes(root: &Path) -> Vec<i32> {
    let wanted = format!("{}/", root.display());
    let named = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(wanted.len())
            .any(|part| part == wanted.as_bytes())
    };
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| i64::from(*pid) != i64::from(std::process::id()))
        .filter(named)
        .collect()
}

/// Ends and unmounts whatever is left at or below a place.
pub(crate) fn clean(root: &Path) {
    abort(root);
    for pid in processes(root) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for mounted in mounts(root).iter().rev() {
        let _ = nix::mount::umount2(&mounted.at, MntFlags::MNT_DETACH);
    }
    eventually(Duration::from_secs(5), || processes(root).is_empty());
}
