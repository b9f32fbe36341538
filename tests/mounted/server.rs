//! The server: what it may do, and what it has open.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::needs;
use crate::common::probe::Who;
use crate::common::{DEADLINE, eventually};
use crate::keeper::{SERVICES, VALUE, VALUES, reads_again, start};

/// The fields of a process's status.
fn status(pid: Pid) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

#[track_caller]
fn is_powerless(server: Pid) {
    let status = status(server);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(
        status["SigBlk"], "0000000000000000",
        "it hears every signal"
    );
    let limits = fs::read_to_string(format!("/proc/{server}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    for task in fs::read_dir(format!("/proc/{server}/task")).unwrap() {
        let task = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(task.contains("CapEff:\t0000000000000000"), "{task}");
        assert!(task.contains("NoNewPrivs:\t1"), "{task}");
    }
}

#[test]
fn the_server_has_no_power() {
    needs!();
    let daemon = start();
    is_powerless(daemon.server());
}

#[test]
fn with_user_the_server_is_somebody_else_whom_nobody_of_that_uid_can_trace() {
    needs!();
    let user = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let setup = Setup {
        services: SERVICES,
        values: &VALUES,
        user: Some("nobody"),
        ..Setup::default()
    };
    let mut daemon = setup.start();
    let server = daemon.server();
    is_powerless(server);
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let status = status(server);
    assert_eq!(
        status["Uid"].split_whitespace().collect::<Vec<_>>(),
        [uid.as_str(); 4]
    );
    assert_eq!(
        status["Gid"].split_whitespace().collect::<Vec<_>>(),
        [gid.as_str(); 4]
    );
    assert!(
        !status["Groups"]
            .split_whitespace()
            .any(|group| group == "0"),
        "{}",
        status["Groups"]
    );
    let mut same = daemon.probe(&Who::new(user.uid.as_raw(), user.gid.as_raw(), &[]));
    for file in ["environ", "maps", "mem"] {
        let path = format!("/proc/{server}/{file}");
        assert_eq!(same.open(path.as_ref()), Err(Errno::EACCES), "{file}");
    }
    assert_eq!(
        same.list(format!("/proc/{server}/fd").as_ref()),
        Err(Errno::EACCES)
    );
    assert_eq!(
        same.open(&daemon.path("a/x")),
        Err(Errno::EACCES),
        "no rule, no value"
    );

    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    daemon.put("a/x", b"second");
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(b"second".to_vec()));
    kill(server, Signal::SIGKILL).unwrap();
    let again = eventually(Duration::from_secs(8), || {
        reader.cat(&daemon.path("a/x")) == Ok(b"second".to_vec())
    });
    assert!(again, "{}", daemon.log());
    daemon.stop();
}

#[test]
fn the_server_holds_the_descriptors_that_it_needs_and_no_others() {
    needs!();
    let mut daemon = start();
    let kinds = |daemon: &Daemon| -> BTreeMap<String, usize> {
        let folder = format!("/proc/{}/fd", daemon.server());
        let mut kinds = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap() {
            let Ok(target) = fs::read_link(entry.unwrap().path()) else {
                continue;
            };
            let target = target.to_string_lossy().into_owned();
            let kind = target.split(':').next().unwrap().to_owned();
            *kinds.entry(kind).or_insert(0) += 1;
        }
        kinds
    };
    let mut reader = daemon.probe(&Who::uid(4001));
    let before = kinds(&daemon);
    let allowed = [
        "/dev/fuse",
        "/dev/null",
        "socket",
        "anon_inode",
        "pipe",
        "/proc",
    ];
    let root = daemon.at("");
    for kind in before.keys() {
        // The mount that it renames in stands nowhere in the tree, and so is called by its top.
        let known = kind == "/"
            || allowed.iter().any(|known| kind.starts_with(known))
            || Path::new(kind).starts_with(&root)
            || kind.contains("secretmem")
            || kind.contains("memfd");
        assert!(known, "{kind}: {before:?}");
        assert!(
            !kind.contains("identity.txt"),
            "the identity stays open: {before:?}"
        );
        assert!(
            !kind.ends_with("config.toml"),
            "the config stays open: {before:?}"
        );
    }
    for round in 0..30 {
        let fd = reader.open(&daemon.path("a/x")).unwrap();
        assert!(reader.pread(fd).is_ok());
        reader.close(fd);
        reader.list(&daemon.path("a")).unwrap();
        if round % 10 == 0 {
            daemon.put("a/x", VALUE);
            daemon.secretfs(&["status"], b"").expect_ok();
        }
    }
    let same = eventually(DEADLINE, || kinds(&daemon) == before);
    assert!(
        same,
        "descriptors leak: {before:?} became {:?}",
        kinds(&daemon)
    );
    // The keeper leaks none over restarts either.
    let count = |pid: Pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let keeper = count(daemon.keeper());
    for _ in 0..2 {
        kill(daemon.server(), Signal::SIGKILL).unwrap();
        reads_again(&mut reader, &daemon.path("a/x"));
    }
    assert_eq!(count(daemon.keeper()), keeper);
    daemon.stop();
}
