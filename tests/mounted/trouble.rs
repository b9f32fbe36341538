//! A backend in trouble, and a daemon that plain users start.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use secretfs::clock::Clock;
use serde_json::Value;

use crate::common::daemon::{Daemon, Setup};
use crate::common::machine::needs;
use crate::common::probe::Who;

const SERVICES: &str = r#"
[services.a]
source = "local:a"
allow = [{ uid = 4001 }]
[cache]
ttl = "60s"
timeout = "2s"
"#;

const VALUE: &[u8] = b"canary of trouble\n";

/// The files of the values, each with its length, which tells them apart here.
fn files(daemon: &Daemon) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(daemon.at("data/local.d")).unwrap();
    let mut files: Vec<(PathBuf, u64)> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.path(), entry.metadata().unwrap().len())
        })
        .filter(|(path, _)| path.extension().is_some_and(|kind| kind == "age"))
        .collect();
    files.sort_by_key(|(_, length)| *length);
    files
}

#[test]
fn a_value_whose_file_is_gone_or_damaged_is_an_error_at_once_and_the_others_are_not() {
    needs!();
    let (long, longer) = (vec![b'x'; 2000], vec![b'y'; 4000]);
    let mut daemon = Daemon::start(
        SERVICES,
        &[("a/x", VALUE), ("a/long", &long), ("a/longer", &longer)],
    );
    let files = files(&daemon);
    assert_eq!(files.len(), 3, "{files:?}");
    fs::remove_file(&files[1].0).unwrap();
    let mut damaged = fs::read(&files[2].0).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&files[2].0, damaged).unwrap();
    let mut reader = daemon.probe(&Who::uid(4001));
    let clock = Clock::default();
    let started = clock.now();
    for secret in ["a/long", "a/longer"] {
        for _ in 0..3 {
            assert_eq!(
                reader.open(&daemon.path(secret)),
                Err(Errno::EIO),
                "{secret}"
            );
        }
        // It is there all the same, and a stat does not hang on it either.
        assert_eq!(
            reader.stat(&daemon.path(secret)).unwrap().size,
            0,
            "{secret}"
        );
    }
    assert!(
        clock.now() - started < Duration::from_secs(10),
        "it takes too long"
    );
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    // A new version mends it.
    daemon.put("a/long", b"mended");
    assert_eq!(reader.cat(&daemon.path("a/long")), Ok(b"mended".to_vec()));
    drop(reader);
    daemon.stop();
    let log = fs::read_to_string(daemon.at("log/audit.jsonl")).unwrap();
    let errors: u64 = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["outcome"] == "error" && line["action"] == "open")
        .map(|line| line["count"].as_u64().unwrap_or(1))
        .sum();
    assert_eq!(errors, 6, "{log}");
}

#[test]
fn an_absent_secret_is_enoent_for_who_may_read_it_and_eacces_for_others() {
    needs!();
    let daemon = Daemon::start(
        "[services.a]\nallow = [{ uid = 4001 }]\nsecrets.lost = \"local:a/lost\"\n",
        &[("b/x", VALUE)],
    );
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.open(&daemon.path("a/lost")), Err(Errno::ENOENT));
    assert_eq!(reader.list(&daemon.path("a")), Ok(vec!["lost".to_owned()]));
    let mut stranger = daemon.probe(&Who::uid(4009));
    assert_eq!(stranger.open(&daemon.path("a/lost")), Err(Errno::EACCES));
    daemon.put("a/lost", b"found");
    assert_eq!(reader.cat(&daemon.path("a/lost")), Ok(b"found".to_vec()));
}

#[test]
fn a_daemon_may_be_named_through_links() {
    needs!();
    let mut daemon = Setup {
        services: SERVICES,
        values: &[("a/x", VALUE)],
        ..Setup::default()
    }
    .prepare();
    std::os::unix::fs::symlink(daemon.at(""), daemon.at("link")).unwrap();
    let config = fs::read_to_string(daemon.at("config.toml")).unwrap();
    let named = format!("mount = \"{}/", daemon.at("link").display());
    let config = config.replace(&format!("mount = \"{}", daemon.at("").display()), &named);
    assert!(config.contains(&named), "{config}");
    fs::write(daemon.at("config.toml"), config).unwrap();
    daemon.start_keeper();
    let mut reader = daemon.probe(&Who::uid(4001));
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    assert_eq!(
        reader.cat(&daemon.at("link/secrets/a/x")),
        Ok(VALUE.to_vec())
    );
    // A dead mount there is found again and healed.
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    daemon.ended();
    daemon.start_keeper();
    assert_eq!(daemon.mounts().len(), 1);
    assert_eq!(reader.cat(&daemon.path("a/x")), Ok(VALUE.to_vec()));
    daemon.stop();
}
