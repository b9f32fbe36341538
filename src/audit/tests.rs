//! The log as a whole: what was recorded can be read again, whatever happened between.

mod failure;
mod read;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::config::{AuditTarget, OnFailure};

const DEADLINE: Duration = Duration::from_secs(20);

struct Log {
    folder: TempDir,
    config: AuditConfig,
    clock: Clock,
}

impl Log {
    fn new(max_size: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let config = AuditConfig {
            target: AuditTarget::File(folder.path().join("log/audit.jsonl")),
            on_failure: OnFailure::Deny,
            max_size,
            keep: 1000,
            full_detail: false,
        };
        fs::create_dir(folder.path().join("log")).unwrap();
        let clock = Clock::manual();
        Self {
            folder,
            config,
            clock,
        }
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn path(&self) -> PathBuf {
        self.folder().join("audit.jsonl")
    }

    fn start(&self) -> Audit {
        Audit::start(&self.config, &key(), self.clock.clone()).unwrap()
    }

    fn event(&self, path: &str) -> Event {
        Event {
            time: self.clock.timestamp(),
            action: Arc::from("open"),
            uid: Uid(1000),
            gid: Gid(100),
            tid: Tid(42),
            path: Some(Arc::from(path)),
            version: Some(Version::new("3")),
            rule: Some(Arc::from("services.billing.allow[0]")),
            outcome: Outcome::Allowed,
            micros: 7,
            comm: None,
            unit: None,
            container: None,
        }
    }

    /// Some lines, closed.
    fn fill(&self, lines: usize) {
        let audit = self.start();
        for number in 0..lines {
            audit.record(self.event(&format!("billing/s{number}")));
        }
        audit.close(DEADLINE).unwrap();
    }

    fn read(&self) -> (Vec<Line>, Report) {
        drain(&mut Reader::files(&self.path(), Some(&key())).unwrap())
    }
}

fn key() -> SecretBytes {
    SecretBytes::new(vec![7; 32])
}

fn drain(reader: &mut Reader) -> (Vec<Line>, Report) {
    let lines = std::iter::from_fn(|| reader.read().unwrap()).collect();
    (lines, reader.report())
}

fn entries(lines: &[Line]) -> Vec<&Entry> {
    lines
        .iter()
        .filter_map(|line| match &line.record.body {
            Body::Entry(entry) => Some(entry),
            Body::Note(_) => None,
        })
        .collect()
}

fn total(lines: &[Line]) -> u64 {
    entries(lines).iter().map(|entry| entry.count).sum()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain: {what}");
}

#[test]
fn what_is_counted_is_written_out_before_its_time_and_the_log_goes_on() {
    let log = Log::new(1 << 20);
    let audit = log.start();
    for _ in 0..5 {
        audit.record(log.event("billing/x"));
    }
    // The clock stands still: nothing else would write the repeats.
    audit.flush(DEADLINE).unwrap();
    assert_eq!(total(&log.read().0), 5);
    assert_eq!(audit.ready(), Ok(()));
    audit.record(log.event("billing/y"));
    audit.close(DEADLINE).unwrap();
    assert_eq!(total(&log.read().0), 6);
}

#[test]
fn what_was_recorded_is_read_and_verified() {
    let log = Log::new(1 << 20);
    log.fill(3);
    let audit = log.start();
    audit.record_now(log.event("billing/put")).unwrap();
    // Not closed: a command's line is there when the command is told so.
    let (lines, report) = log.read();
    assert_eq!(entries(&lines).len(), 4);
    assert!(lines.iter().all(|line| line.verified));
    assert_eq!(*entries(&lines)[3], Entry::single(log.event("billing/put")));
    assert_eq!((report.first, report.last, report.chains), (1, 5, 1));
    assert_eq!(report.to_string(), "lines 1 to 5: the chain is whole");
    assert_eq!((report.broken, audit.last_line()), (None, 5));

    let (lines, report) = drain(&mut Reader::files(&log.path(), None).unwrap());
    assert!(lines.iter().all(|line| !line.verified));
    assert_eq!((report.keyed, report.broken), (false, None));

    let other = SecretBytes::new(vec![8; 32]);
    let (_, report) = drain(&mut Reader::files(&log.path(), Some(&other)).unwrap());
    let said = report.to_string();
    assert!(said.contains("audit.jsonl, line 1: the line"), "{said}");
    assert_eq!(report.broken.unwrap().fault, Fault::Altered);
}

#[test]
fn a_log_whose_first_line_is_torn_begins_again() {
    let log = Log::new(1 << 20);
    fs::write(log.path(), "{\"seq\":1,\"ti").unwrap();
    fs::set_permissions(log.path(), fs::Permissions::from_mode(0o600)).unwrap();
    log.fill(1);
    let (lines, report) = log.read();
    assert_eq!((total(&lines), report.first, report.broken), (1, 1, None));
}

#[test]
fn the_end_of_a_huge_log_is_found_from_its_end() {
    let log = Log::new(u64::MAX);
    log.fill(1);
    let line = fs::read(log.path()).unwrap();
    fs::File::create(log.path())
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    OpenOptions::new()
        .append(true)
        .open(log.path())
        .unwrap()
        .write_all(&[b"\n", &line[..]].concat())
        .unwrap();
    assert_eq!(log.start().last_line(), 2);
}

#[test]
fn what_is_no_log_of_ours_is_refused_in_one_line() {
    type Prepare = fn(&Path);
    let table: [(&str, Prepare); 5] = [
        ("not that of an audit log", |path| {
            fs::write(path, "canary-7f3a\n").unwrap()
        }),
        ("not a regular file", |path| {
            symlink("/dev/null", path).unwrap()
        }),
        ("not a regular file", |path| {
            fs::write(path, "").unwrap();
            fs::hard_link(path, path.with_extension("link")).unwrap();
        }),
        ("chmod 0640", |path| {
            fs::write(path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("Is a directory", |path| fs::create_dir(path).unwrap()),
    ];
    for (expected, prepare) in table {
        let log = Log::new(1 << 20);
        prepare(&log.path());
        // Not through the link: the machine's /dev/null is not ours to close.
        if expected.starts_with("not") && !log.path().is_symlink() {
            let _ = fs::set_permissions(log.path(), fs::Permissions::from_mode(0o600));
        }
        let error = Audit::start(&log.config, &key(), Clock::manual())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(&log.path().display().to_string()), "{error}");
        assert!(
            !error.contains("canary") && !error.contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn the_folder_owner_keeps_the_log_that_root_makes() {
    if Uid::effective() != Uid::ROOT {
        return;
    }
    let log = Log::new(600);
    chown(log.folder(), Some(12_345), Some(12_346)).unwrap();
    log.fill(1);
    fs::set_permissions(log.path(), fs::Permissions::from_mode(0o640)).unwrap();
    log.fill(3);
    assert!(log.folder().join("audit.jsonl.1").exists());
    for file in fs::read_dir(log.folder()).unwrap() {
        let metadata = file.unwrap().metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (12_345, 12_346));
        assert_eq!(metadata.mode() & 0o7777, 0o640);
    }
}

#[test]
fn repeats_leave_as_one_line_when_their_second_is_over() {
    let log = Log::new(1 << 20);
    let audit = log.start();
    for micros in [5, 9, 2] {
        audit.record(Event {
            micros,
            tid: Tid(50),
            ..log.event("billing/db")
        });
    }
    audit.record(Event {
        version: Some(Version::new("4")),
        ..log.event("billing/db")
    });
    until("the first of each", || total(&log.read().0) == 2);
    log.clock.advance(Duration::from_secs(2));
    until("the repeats", || total(&log.read().0) == 4);
    let (lines, _) = log.read();
    let counts: Vec<_> = entries(&lines)
        .iter()
        .map(|entry| (entry.count, entry.event.micros, entry.first.is_some()))
        .collect();
    assert_eq!(counts, [(1, 5, false), (1, 7, false), (2, 9, true)]);
}

#[test]
fn the_journal_gets_one_message_a_line() {
    let mut log = Log::new(1 << 20);
    log.config.target = AuditTarget::Journal;
    let socket = log.folder.path().join("socket");
    let journald = UnixDatagram::bind(&socket).unwrap();
    journald.set_read_timeout(Some(DEADLINE)).unwrap();
    for _start in 0..2 {
        let audit = handle::Handle::start_with(&log.config, &key(), log.clock.clone(), &socket);
        audit.unwrap().record_now(log.event("billing/db")).unwrap();
    }
    let mut stream = Vec::new();
    let mut message = vec![0; 4096];
    for _line in 0..4 {
        let length = journald.recv(&mut message).unwrap();
        let text = std::str::from_utf8(&message[..length]).unwrap();
        let fields: Vec<&str> = text.lines().collect();
        assert_eq!(fields[..2], ["SYSLOG_IDENTIFIER=secretfs", "PRIORITY=6"]);
        assert_eq!(fields.len(), 3);
        stream.extend_from_slice(fields[2].strip_prefix("MESSAGE=").unwrap().as_bytes());
        stream.push(b'\n');
    }
    let input = std::io::Cursor::new(stream);
    let (lines, report) = drain(&mut Reader::stream(input, Some(&key())).unwrap());
    assert_eq!((total(&lines), report.chains, report.broken), (2, 2, None));
}

#[test]
fn hostile_names_stay_inside_their_line() {
    let log = Log::new(1 << 20);
    let comm = "x\n{\"seq\":9}\u{1b}[2J\u{202e}\"";
    let audit = log.start();
    audit.record(Event {
        comm: Some(comm.to_owned()),
        unit: Some("u".repeat(1 << 20)),
        ..log.event("billing/db")
    });
    audit.close(DEADLINE).unwrap();
    let (lines, report) = log.read();
    assert_eq!((lines.len(), report.broken), (2, None));
    assert_eq!(entries(&lines)[0].event.comm.as_deref(), Some(comm));
    let shown = lines[1].record.to_string();
    assert!(
        shown.contains(r#"comm x\n{"seq":9}\u{1b}[2J\u{202e}""#),
        "{shown}"
    );
    assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'));
}

#[test]
fn no_more_files_are_kept_than_asked_for() {
    let mut log = Log::new(600);
    log.config.keep = 2;
    log.fill(20);
    assert_eq!(fs::read_dir(log.folder()).unwrap().count(), 3);
    let (_, report) = log.read();
    assert!(report.first > 1);
    assert_eq!(
        (report.last, report.broken.is_none()),
        (log.start().last_line(), true)
    );
}

/// Not a test of anything: prints what a repeat costs its caller, and a line the writer.
/// `cargo test --release --lib -- --ignored --nocapture cost_of`
#[test]
#[ignore = "a measurement"]
fn cost_of_a_repeat() {
    let log = Log::new(1 << 30);
    let audit = Audit::start(&log.config, &key(), Clock::default()).unwrap();
    let event = log.event("billing/db-password");
    let clock = Clock::default();
    const ROUNDS: u32 = 1_000_000;
    let start = clock.now();
    for _ in 0..ROUNDS {
        std::hint::black_box(event.clone());
    }
    let cloning = clock.now() - start;
    let start = clock.now();
    for _ in 0..ROUNDS {
        audit.record(event.clone());
    }
    println!(
        "record: {:?} each",
        (clock.now() - start - cloning) / ROUNDS
    );
    const LINES: u32 = 100_000;
    let start = clock.now();
    for number in 0..LINES {
        audit.record(log.event(&format!("billing/s{number}")));
        while audit.healthy().is_err() {
            std::thread::yield_now();
        }
    }
    audit.close(DEADLINE).unwrap();
    println!("written: {:?} a line", (clock.now() - start) / LINES);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_event_is_counted_once(steps in proptest::collection::vec((0_u8..6, 0_u16..700), 1..200)) {
        let log = Log::new(1500);
        let audit = log.start();
        for (secret, millis) in &steps {
            log.clock.advance(Duration::from_millis((*millis).into()));
            audit.record(log.event(&format!("billing/s{secret}")));
        }
        audit.close(DEADLINE).unwrap();
        let (lines, report) = log.read();
        prop_assert_eq!(report.broken, None);
        prop_assert_eq!(total(&lines), u64::try_from(steps.len()).unwrap());
    }
}
