//! Rules that name a systemd unit or a container, against real cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::common::daemon::Daemon;
use crate::common::eventually;
use crate::common::machine::{Need, named_hierarchy, needs};
use crate::common::probe::Who;

const ID: &str = "3f4a9c1b2d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8";
const VALUE: &[u8] = b"canary of a unit\n";

/// A cgroup that is made with all above it, and removed when dropped.
#[derive(Debug)]
struct Cgroup {
    path: PathBuf,
    made: Vec<PathBuf>,
}

impl Cgroup {
    fn new(below: &Path, path: &str) -> Self {
        let (mut at, mut made) = (below.to_owned(), Vec::new());
        for part in path.split('/') {
            at.push(part);
            if !at.exists() {
                fs::create_dir(&at).unwrap();
                made.push(at.clone());
            }
        }
        Self { path: at, made }
    }

    fn enter(&self, pid: i64) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            // A cgroup that another test uses, too, stays for that one to remove.
            eventually(std::time::Duration::from_millis(200), || {
                fs::remove_dir(path).is_ok()
            });
        }
    }
}

/// Cgroups above ours are shared by the tests, so that these go one by one.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names that no other run uses.
fn unit(name: &str) -> String {
    format!("sfs{}-{name}.service", std::process::id())
}

fn daemon(rule: &str) -> Daemon {
    let services = format!(
        "[services.a]\nsource = \"local:a\"\nallow = [{{ uid = 4001, {rule} }}]\n\
         secrets.hot = {{ reads = \"cached\" }}\n"
    );
    Daemon::start(&services, &[("a/x", VALUE), ("a/hot", VALUE)])
}

/// Who stands in each of these cgroups reads, or does not.
fn table(rule: &str, rows: &[(&str, bool)]) {
    let daemon = daemon(rule);
    let hierarchy = named_hierarchy().unwrap();
    for (path, allowed) in rows {
        let cgroup = Cgroup::new(&hierarchy, path);
        let mut reader = daemon.probe(&Who::uid(4001).in_cgroup(&cgroup.path));
        let right = match allowed {
            true => Ok(VALUE.to_vec()),
            false => Err(Errno::EACCES),
        };
        for secret in ["a/x", "a/hot"] {
            assert_eq!(reader.cat(&daemon.path(secret)), right, "{path} {secret}");
        }
        let mut other = daemon.probe(&Who::uid(4009).in_cgroup(&cgroup.path));
        assert_eq!(
            other.cat(&daemon.path("a/x")),
            Err(Errno::EACCES),
            "{path}: another uid"
        );
        drop((reader, other));
    }
    let mut outside = daemon.probe(&Who::uid(4001));
    assert_eq!(
        outside.cat(&daemon.path("a/x")),
        Err(Errno::EACCES),
        "outside of any"
    );
}

#[test]
fn a_unit_rule_holds_in_the_unit_and_in_no_look_alike() {
    needs!(Need::Cgroups);
    let _turn = turn();
    let (good, evil) = (unit("foo"), unit("evil"));
    let rows = [
        (format!("system.slice/{good}"), true),
        (format!("system.slice/{good}/below"), true),
        (format!("system.slice/{good}/{evil}"), true),
        (format!("system.slice/deep.slice/{good}"), true),
        (format!("system.slice/{evil}"), false),
        // What is delegated to somebody may be called anything by him.
        (format!("system.slice/{evil}/system.slice/{good}"), false),
        (format!("system.slice/{evil}/{good}"), false),
        (
            format!("sfs{}/system.slice/{good}", std::process::id()),
            false,
        ),
        (format!("docker/{ID}/system.slice/{good}"), false),
        (format!("system.slice/x{good}"), false),
        (format!("system.slice/{good}x"), false),
        ("system.slice".to_owned(), false),
    ];
    let rows: Vec<(&str, bool)> = rows
        .iter()
        .map(|(path, yes)| (path.as_str(), *yes))
        .collect();
    table(&format!("unit = \"{good}\""), &rows);
}

#[test]
fn a_container_rule_holds_in_the_container_and_in_no_look_alike() {
    needs!(Need::Cgroups);
    let _turn = turn();
    let evil = unit("evil");
    let another = ID.replace('3', "4");
    let rows = [
        (format!("docker/{ID}"), true),
        (format!("docker/{ID}/below"), true),
        (format!("libpod_parent/libpod-{ID}"), true),
        (format!("system.slice/docker-{ID}.scope"), true),
        (format!("machine.slice/libpod-{ID}.scope/container"), true),
        (format!("docker/{another}"), false),
        (format!("docker/{another}/docker/{ID}"), false),
        (format!("docker/{}", &ID[..63]), false),
        (format!("system.slice/{evil}/docker/{ID}"), false),
        (format!("system.slice/{evil}/docker-{ID}.scope"), false),
        (format!("sfs{}/docker/{ID}", std::process::id()), false),
    ];
    let rows: Vec<(&str, bool)> = rows
        .iter()
        .map(|(path, yes)| (path.as_str(), *yes))
        .collect();
    table(&format!("container = \"{ID}\""), &rows);
}

#[test]
fn who_leaves_the_unit_reads_no_further_from_what_is_open() {
    needs!(Need::Cgroups);
    let _turn = turn();
    let (good, evil) = (unit("leave"), unit("left"));
    let hierarchy = named_hierarchy().unwrap();
    let inside = Cgroup::new(&hierarchy, &format!("system.slice/{good}"));
    let outside = Cgroup::new(&hierarchy, &format!("system.slice/{evil}"));
    let daemon = daemon(&format!("unit = \"{good}\""));
    let mut reader = daemon.probe(&Who::uid(4001).in_cgroup(&inside.path));
    let fd = reader.open(&daemon.path("a/x")).unwrap();
    assert_eq!(reader.pread(fd), Ok(VALUE.to_vec()));
    let pid = reader.pid();
    outside.enter(pid);
    assert_eq!(reader.pread(fd), Err(Errno::EACCES));
    assert_eq!(reader.open(&daemon.path("a/x")), Err(Errno::EACCES));
    inside.enter(pid);
    assert_eq!(reader.pread(fd), Ok(VALUE.to_vec()));
}

/// Where systemd has a hierarchy of its own, anybody may stand anywhere in the unified one.
#[test]
fn on_a_hybrid_machine_the_unified_hierarchy_proves_nothing() {
    needs!(Need::Cgroups);
    let _turn = turn();
    let unified = Path::new("/sys/fs/cgroup/unified");
    if named_hierarchy().unwrap() != Path::new("/sys/fs/cgroup/systemd") || !unified.exists() {
        eprintln!("not a hybrid machine: there is nothing to show");
        return;
    }
    let good = unit("hybrid");
    let daemon = daemon(&format!("unit = \"{good}\""));
    let cgroup = Cgroup::new(unified, &format!("system.slice/{good}"));
    let mut reader = daemon.probe(&Who::uid(4001).in_cgroup(&cgroup.path));
    assert_eq!(reader.cat(&daemon.path("a/x")), Err(Errno::EACCES));
}
