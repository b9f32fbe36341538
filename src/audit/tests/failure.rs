//! Full disks, vanished folders, killed writers: nothing is lost that is not counted.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

/// Runs one test again in a process of its own.
fn again(test: &str, before: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("audit::tests::failure::{test}"),
            "--nocapture",
        ])
        .env(CHILD, "1");
    command
}

const CHILD: &str = "SECRETFS_TEST_AUDIT_CHILD";

fn chattr(flag: &str, path: &Path) -> bool {
    let mut command = Command::new("chattr");
    command.arg(flag).arg(path).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Under a limit on the size of files, which acts like a full disk: a short write, then an error.
#[test]
fn a_full_disk_tears_nothing_that_is_not_named() {
    if std::env::var_os(CHILD).is_some() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        for flag in ["-a", "+a"] {
            let log = Log::new(1 << 30);
            let audit = log.start();
            // What cannot be cut off again stays as a torn line. Where files have no such flag, this is the first round.
            let append_only = chattr(flag, &log.path()) && flag == "+a";
            let mut events = 0;
            while audit.ready().is_ok() {
                audit.record(log.event(&format!("billing/s{events}")));
                events += 1;
            }
            setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
            until("writing again", || audit.ready().is_ok());
            audit.close(DEADLINE).unwrap();
            setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
            chattr("-a", &log.path());
            let (lines, report) = log.read();
            assert_eq!(report.broken, None);
            assert_eq!(report.torn, u64::from(append_only));
            let told = total(&lines) + report.lost;
            assert!(
                told == events || (append_only && told > events),
                "{told} {events}"
            );
        }
        return;
    }
    let limits = "trap '' XFSZ; ulimit -S -f 40;";
    let output = again("a_full_disk_tears_nothing_that_is_not_named", limits)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
fn a_killed_writer_leaves_a_sound_log_with_every_command_that_was_acknowledged() {
    const FOLDER: &str = "SECRETFS_TEST_AUDIT_FOLDER";
    let mut log = Log::new(2000);
    if let Some(folder) = std::env::var_os(FOLDER) {
        log.config.target = AuditTarget::File(Path::new(&folder).join("audit.jsonl"));
        let audit = log.start();
        for number in 0_u64.. {
            audit.record(log.event(&format!("billing/s{number}")));
            audit.record_now(log.event("billing/command")).unwrap();
            println!("\nacknowledged");
        }
    }
    let mut acknowledged = 0;
    for kill_after in [1, 2, 3, 5, 8, 13, 21, 34] {
        let mut child = again(
            "a_killed_writer_leaves_a_sound_log_with_every_command_that_was_acknowledged",
            "",
        )
        .env(FOLDER, log.folder())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = || {
            lines
                .next()
                .is_some_and(|line| line.unwrap() == "acknowledged")
        };
        let mut here = 0;
        while here < kill_after {
            here += u64::from(said());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let rest = lines.filter(|line| line.as_deref().is_ok_and(|line| line == "acknowledged"));
        acknowledged += here + u64::try_from(rest.count()).unwrap();
    }
    let (lines, report) = log.read();
    assert_eq!(report.broken, None);
    let commands = entries(&lines)
        .iter()
        .filter(|entry| entry.event.path.as_deref() == Some("billing/command"))
        .count();
    // The last one of each life may have been written and not been said.
    let commands = u64::try_from(commands).unwrap();
    assert!(
        (acknowledged..=acknowledged + 8).contains(&commands),
        "{acknowledged} {commands}"
    );
}

#[test]
fn opens_are_denied_while_the_log_cannot_be_written_and_no_longer() {
    let log = Log::new(1 << 30);
    let audit = log.start();
    audit.record_now(log.event("billing/before")).unwrap();
    let away = log.folder.path().join("away");
    fs::rename(log.folder(), &away).unwrap();

    let error = audit.record_now(log.event("billing/command")).unwrap_err();
    assert!(error.to_string().contains("audit.jsonl"), "{error}");
    assert_eq!(audit.ready(), Err(Trouble::Unwritable));
    assert_eq!(audit.failure(), Some(error));
    const EVENTS: u64 = 30_000;
    for number in 0..EVENTS {
        audit.record(log.event(&format!("billing/s{number}")));
    }
    assert_eq!(audit.ready(), Err(Trouble::Unwritable));

    fs::rename(&away, log.folder()).unwrap();
    until("writing again", || audit.ready().is_ok());
    audit.record_now(log.event("billing/after")).unwrap();
    audit.close(DEADLINE).unwrap();
    let (lines, report) = log.read();
    assert_eq!(report.broken, None);
    assert!(report.lost > 0);
    // Before, after, and each of the others either written or counted as lost.
    assert_eq!(total(&lines) + report.lost, EVENTS + 2);
}

#[test]
fn with_warn_opens_go_on() {
    let mut log = Log::new(1 << 30);
    log.config.on_failure = OnFailure::Warn;
    let audit = log.start();
    fs::rename(log.folder(), log.folder.path().join("away")).unwrap();
    audit.record_now(log.event("billing/command")).unwrap_err();
    assert_eq!(
        (audit.ready(), audit.healthy()),
        (Ok(()), Err(Trouble::Unwritable))
    );
}

#[test]
fn a_removed_log_begins_again_where_the_chain_was() {
    let log = Log::new(1 << 20);
    let audit = log.start();
    audit.record_now(log.event("billing/one")).unwrap();
    fs::remove_file(log.path()).unwrap();
    audit.record_now(log.event("billing/two")).unwrap();
    let (lines, report) = log.read();
    assert_eq!((total(&lines), report.first, report.broken), (1, 3, None));
}

#[test]
fn a_flood_from_many_threads_is_told_in_full() {
    const THREADS: u64 = 4;
    const EACH: u64 = 10_000;
    let log = Log::new(1 << 30);
    let audit = Audit::start(&log.config, &key(), Clock::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (audit, log) = (&audit, &log);
            scope.spawn(move || {
                for number in 0..EACH {
                    let path = match number % 2 {
                        0 => "billing/same".to_owned(),
                        _ => format!("billing/s{thread}-{number}"),
                    };
                    audit.record(log.event(&path));
                }
            });
        }
    });
    until("the queue is empty again", || audit.ready().is_ok());
    audit.close(DEADLINE).unwrap();
    let (lines, report) = log.read();
    assert_eq!(report.broken, None);
    assert_eq!(total(&lines) + report.lost, THREADS * EACH);
}
