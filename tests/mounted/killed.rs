//! The server is killed under load, and no reader notices.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use secretfs::clock::Clock;
use secretfs::keeper::mountpoint::{self, Mountpoint};
use secretfs::sys;
use serde_json::json;

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::needs;
use crate::common::mounts::{children, connection};
use crate::common::probe::{Probe, Who};
use crate::common::{eventually, patience};

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]
[services.a.secrets]
cached = { reads = "cached" }
"#;

const X: &[u8] = b"canary of who is killed\n";
const CACHED: &[u8] = b"canary of who is mapped\n";
const VALUES: [(&str, &[u8]); 3] = [("a/x", X), ("a/cached", CACHED), ("a/other", b"1")];

/// How long nobody may wait longer.
const LONGEST: Duration = Duration::from_secs(2);

fn start() -> Daemon {
    Daemon::start(SERVICES, &VALUES)
}

fn reader(daemon: &Daemon) -> Probe {
    daemon.probe(&Who::uid(4001))
}

/// Kills the server, and waits until there is another one.
#[track_caller]
fn kill_server(daemon: &Daemon) {
    let server = daemon.server();
    kill(server, Signal::SIGKILL).unwrap();
    let another = eventually(LONGEST, || {
        let servers = children(daemon.keeper());
        servers.len() == 1 && servers[0] != server
    });
    assert!(another, "{}", daemon.log());
}

/// What a reader does again and again, and what is wrong with the answer.
type Turn = Box<dyn FnMut(&mut Probe) -> Result<(), String> + Send>;

fn same(got: Result<Vec<u8>, Errno>, value: &[u8]) -> Result<(), String> {
    match got {
        Ok(got) if got == value => Ok(()),
        got => Err(format!("{got:?}")),
    }
}

fn turns(daemon: &Daemon, bound: PathBuf, folder: PathBuf) -> Vec<Turn> {
    let (x, cached, root) = (
        daemon.path("a/x"),
        daemon.path("a/cached"),
        daemon.mountpoint(),
    );
    let (path, service) = (x.clone(), daemon.path("a"));
    let (mut held, mut mapped) = (None, None);
    let again = path.clone();
    vec![
        Box::new(move |probe| same(probe.cat(&path), X)),
        Box::new(move |probe| same(probe.cat(&bound), X)),
        Box::new(move |probe| same(probe.cat(&folder), X)),
        Box::new({
            let cached = cached.clone();
            move |probe| same(probe.cat(&cached), CACHED)
        }),
        Box::new(move |probe| {
            let fd = *held.get_or_insert_with(|| probe.open(&again).unwrap());
            same(probe.pread(fd), X)
        }),
        Box::new(move |probe| {
            let fd = *mapped.get_or_insert_with(|| {
                let fd = probe.open(&cached).unwrap();
                probe.map(fd, CACHED.len()).unwrap();
                fd
            });
            same(probe.bytes("mapped", json!([0])), CACHED)?;
            same(probe.sendfile(fd), CACHED)
        }),
        Box::new(move |probe| {
            let names = probe.list(&service).map_err(|error| error.to_string())?;
            match names.len() {
                3 => probe
                    .list(&root)
                    .map(drop)
                    .map_err(|error| error.to_string()),
                _ => Err(format!("{names:?}")),
            }
        }),
        Box::new(move |probe| {
            let size = probe.stat(&x).map_err(|error| error.to_string())?;
            let version = probe.getxattr(&x, "user.secretfs.version");
            same(version, b"1").map_err(|error| format!("{error} {size:?}"))
        }),
    ]
}

#[test]
fn no_reader_notices_that_the_server_is_killed() {
    needs!();
    let mut daemon = start();
    let (bound, folder) = (
        daemon.bind(&daemon.path("a/x"), "file"),
        daemon.bind(&daemon.path("a"), "folder"),
    );
    let before = daemon.mounts();
    let clock = Clock::default();
    let end = AtomicBool::new(false);
    let turns = || turns(&daemon, bound.path().to_owned(), folder.path().join("x"));
    let (turns, once_more) = (turns(), turns());
    thread::scope(|scope| {
        let readers: Vec<_> = turns
            .into_iter()
            .chain(once_more)
            .enumerate()
            .map(|(number, mut turn)| {
                let (mut probe, clock, end) = (reader(&daemon), &clock, &end);
                scope.spawn(move || {
                    let (mut longest, mut count) = (Duration::ZERO, 0);
                    while !end.load(Ordering::SeqCst) {
                        let began = clock.now();
                        if let Err(wrong) = turn(&mut probe) {
                            return Err(format!("{number}: {wrong} after {count}"));
                        }
                        longest = longest.max(clock.now().duration_since(began));
                        count += 1;
                    }
                    Ok((longest, count))
                })
            })
            .collect();
        let pauses = [
            700, 41, 5, 333, 0, 17, 900, 120, 66, 2, 501, 250, 33, 88, 610,
        ];
        for pause in (0..patience()).flat_map(|_| pauses) {
            // At another moment of what goes on each time, also while the next one is starting.
            thread::sleep(Duration::from_millis(pause));
            kill_server(&daemon);
            thread::sleep(Duration::from_millis(400));
        }
        end.store(true, Ordering::SeqCst);
        for reader in readers {
            let (longest, count) = reader.join().unwrap().unwrap_or_else(|wrong| {
                panic!("{wrong}");
            });
            assert!(count > 20, "only {count} turns");
            assert!(longest < LONGEST, "{longest:?}: {}", daemon.log());
        }
    });
    assert_eq!(daemon.mounts(), before, "the mount is the same");
    // What was there is all in order, and nothing is left behind.
    daemon.put("a/x", b"another");
    assert_eq!(
        reader(&daemon).cat(&daemon.path("a/x")),
        Ok(b"another".to_vec())
    );
    assert_eq!(
        fs::read_to_string(bound.path()).unwrap_err().kind(),
        std::io::ErrorKind::PermissionDenied
    );
    assert_eq!(reader(&daemon).cat(bound.path()), Ok(b"another".to_vec()));
    drop((bound, folder));
    daemon.stop();
}

#[test]
fn a_handle_outlives_the_server_with_its_value_its_reader_s_rules_and_its_poll() {
    needs!();
    let daemon = start();
    let mut owner = reader(&daemon);
    let mut stranger = daemon.probe(&Who::uid(4002));
    let fd = owner.open(&daemon.path("a/x")).unwrap();
    daemon.put("a/x", b"new");
    let newer = owner.open(&daemon.path("a/x")).unwrap();
    owner.begin("poll", json!([newer, 20_000]));
    thread::sleep(Duration::from_millis(50));
    kill_server(&daemon);
    // Who polls sleeps on, and hears of the next change.
    daemon.put("a/x", b"newest");
    let events = owner.answer("poll").unwrap().as_i64().unwrap();
    assert!(events & i64::from(libc::POLLPRI) != 0, "{events:x}");
    assert!(events & i64::from(libc::POLLERR) == 0, "{events:x}");
    assert_eq!(owner.pread(fd), Ok(X.to_vec()));
    assert_eq!(owner.pread(newer), Ok(b"new".to_vec()));
    assert_eq!(owner.cat(&daemon.path("a/x")), Ok(b"newest".to_vec()));
    let given = owner.give(fd, &mut stranger, &daemon.door("given"));
    assert_eq!(stranger.pread(given), Err(Errno::EACCES));
    assert_eq!(stranger.open(&daemon.path("a/x")), Err(Errno::EACCES));
}

#[test]
fn what_is_damaged_ends_in_a_fresh_mount_and_not_in_wrong_files() {
    needs!();
    let mut daemon = start();
    let mut owner = reader(&daemon);
    let fd = owner.open(&daemon.path("a/x")).unwrap();
    damage(&daemon);
    kill(daemon.server(), Signal::SIGKILL).unwrap();
    let mut said = None;
    let again = eventually(Duration::from_secs(8), || {
        said = Some(owner.cat(&daemon.path("a/x")));
        said == Some(Ok(X.to_vec()))
    });
    assert!(again, "{said:?}: {}", daemon.log());
    assert!(daemon.log().contains("damaged"), "{}", daemon.log());
    let lost = owner.pread(fd);
    assert!(
        matches!(lost, Err(Errno::ENOTCONN | Errno::ECONNABORTED)),
        "{lost:?}"
    );
    assert_eq!(daemon.mounts().len(), 1);
    // And that one is as good as the first.
    let fd = owner.open(&daemon.path("a/x")).unwrap();
    kill_server(&daemon);
    assert_eq!(owner.pread(fd), Ok(X.to_vec()));
    daemon.stop();
}

#[test]
fn what_the_next_server_lacks_for_a_moment_is_waited_for() {
    needs!();
    let daemon = start();
    let mut owner = reader(&daemon);
    let fd = owner.open(&daemon.path("a/x")).unwrap();
    let (config, away) = (daemon.at("config.toml"), daemon.at("config.away"));
    fs::rename(&config, &away).unwrap();
    kill(daemon.server(), Signal::SIGKILL).unwrap();
    owner.begin("cat", json!([daemon.path("a/other")]));
    // One or two of them do not start.
    let failed =
        || daemon.log().contains("the server died") && daemon.log().contains("config.toml");
    assert!(eventually(LONGEST, failed), "{}", daemon.log());
    fs::rename(&away, &config).unwrap();
    assert_eq!(owner.bytes_of("cat"), Ok(b"1".to_vec()));
    assert_eq!(owner.pread(fd), Ok(X.to_vec()));
}

#[test]
fn a_server_that_is_told_to_end_is_not_followed_on_its_mount() {
    needs!();
    let mut daemon = start();
    let mut owner = reader(&daemon);
    let fd = owner.open(&daemon.path("a/x")).unwrap();
    let server = daemon.server();
    kill(server, Signal::SIGTERM).unwrap();
    let again = eventually(Duration::from_secs(8), || {
        !children(daemon.keeper()).contains(&server)
            && owner.cat(&daemon.path("a/x")) == Ok(X.to_vec())
    });
    assert!(again, "{}", daemon.log());
    assert!(owner.pread(fd).is_err());
    assert_eq!(daemon.mounts().len(), 1);
    daemon.stop();
}

#[test]
fn a_connection_goes_on_by_another_descriptor_of_it_and_what_the_first_one_had_fails() {
    needs!();
    let folder = Setup::default().prepare();
    let place = Mountpoint::new(&folder.mountpoint(), &folder.at("config.toml"));
    let first = place.mount().unwrap().device;
    let second = OwnedFd::from(mountpoint::device().unwrap());
    sys::clone_connection(first.as_fd(), second.as_fd()).unwrap();
    // The kernel has said its first word, and waits for the answer to it.
    let mut word = vec![0; 1 << 20];
    assert!(nix::unistd::read(&first, &mut word).unwrap() > 40);
    let mut none = [PollFd::new(second.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut none, PollTimeout::ZERO), Ok(0));
    let waiting = connection(folder.mounts()[0].device).join("waiting");
    let waiting = || fs::read_to_string(&waiting).unwrap().trim().to_owned();
    assert_eq!(waiting(), "1");
    drop(first);
    assert!(eventually(LONGEST, || waiting() == "0"));
    place.detach().unwrap();
}

/// Changes the lines that say where a value was found, in what the keeper holds of what the kernel knows.
fn damage(daemon: &Daemon) {
    let folder = PathBuf::from(format!("/proc/{}/fd", daemon.keeper()));
    let mut damaged = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        if !target.to_string_lossy().contains("memfd") {
            continue;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut bytes = vec![0; 1 << 20];
        file.read_at(&mut bytes, 0).unwrap();
        if !bytes.starts_with(b"secretfs: what the kernel knows") {
            continue;
        }
        for at in 64 << 10..bytes.len() {
            if bytes[at..].starts_with(b"local:a/x") {
                file.write_at(b"L", u64::try_from(at).unwrap()).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0, "nothing was found to damage");
}
