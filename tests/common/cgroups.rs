//! Cgroups of a test's, in every hierarchy that the machine has, and the promise that they go with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DEADLINE, eventually};

const TOP: &str = "/sys/fs/cgroup";
/// The hierarchies that systemd goes by: on a machine with the first versions, with both, and with the second.
const NAMED: [&str; 3] = ["systemd", "unified", ""];

/// The cgroups of one name, right below the top, with all below them. Gone when dropped, and who is in them ended.
#[derive(Debug)]
pub(crate) struct Cgroups(String);

impl Cgroups {
    /// Claims a name that no other run uses: somebody else makes them.
    pub(crate) fn named(name: &str) -> Self {
        sweep();
        Self(format!("{}{name}", prefix(std::process::id())))
    }

    /// Makes them wherever systemd looks.
    #[track_caller]
    pub(crate) fn make(name: &str) -> Self {
        let cgroups = Self::named(name);
        for hierarchy in NAMED.map(|name| Path::new(TOP).join(name)) {
            if hierarchy.join("cgroup.procs").exists() {
                fs::create_dir(hierarchy.join(&cgroups.0)).unwrap();
            }
        }
        cgroups
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// Where they are.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let there = |hierarchy: PathBuf| Some(hierarchy.join(&self.0)).filter(|path| path.exists());
        hierarchies().into_iter().filter_map(there).collect()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in self.paths() {
            // Whoever was killed needs a moment to be gone.
            let gone = eventually(DEADLINE, || remove(&path).is_ok());
            assert!(gone || std::thread::panicking(), "{} stays", path.display());
        }
    }
}

fn prefix(process: u32) -> String {
    format!("sfs{process}-")
}

fn hierarchies() -> Vec<PathBuf> {
    let entries = fs::read_dir(TOP).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    all.retain(|path| path.join("cgroup.procs").exists());
    all.push(PathBuf::from(TOP));
    all
}

/// Ends who is in a cgroup, and removes it with all below.
fn remove(cgroup: &Path) -> io::Result<()> {
    for below in folders(cgroup) {
        remove(&below)?;
    }
    let processes = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    for process in processes.lines().filter_map(|line| line.parse().ok()) {
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
    fs::remove_dir(cgroup)
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.map(|entry| entry.path());
    folders.filter(|path| path.is_dir()).collect()
}

/// Cleans up after runs that were killed.
fn sweep() {
    let abandoned = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let process = name
            .and_then(|name| name.strip_prefix("sfs"))
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(process, _)| process.parse::<u32>().ok());
        process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists())
    };
    for hierarchy in hierarchies() {
        for cgroup in folders(&hierarchy).into_iter().filter(abandoned) {
            let _ = remove(&cgroup);
        }
    }
}
