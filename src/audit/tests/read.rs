//! What the reader finds, follows, picks, and does not fall over.

use std::collections::VecDeque;

use super::*;

#[test]
fn every_kind_of_tampering_is_found() {
    type Tamper = fn(&mut Vec<Vec<String>>);
    let table: [(&str, Tamper, &str, u64, Option<Fault>); 12] = [
        ("nothing", |_| {}, "", 0, None),
        (
            "the oldest file rotated away",
            |files| {
                files.remove(0);
            },
            "",
            0,
            None,
        ),
        (
            "a line changed",
            |files| files[1][2] = files[1][2].replace("\"uid\":1000", "\"uid\":1001"),
            ".1",
            3,
            Some(Fault::Altered),
        ),
        (
            "a line removed",
            |files| {
                files[1].remove(2);
            },
            ".1",
            3,
            Some(Fault::Removed(1)),
        ),
        (
            "two lines swapped",
            |files| files[1].swap(2, 3),
            ".1",
            3,
            Some(Fault::Removed(1)),
        ),
        (
            "a line repeated",
            |files| {
                let line = files[1][2].clone();
                files[1].insert(3, line);
            },
            ".1",
            4,
            Some(Fault::Order),
        ),
        (
            "something appended",
            |files| files[2].push("{}".to_owned()),
            "",
            0,
            Some(Fault::Form),
        ),
        (
            "a forged line appended",
            |files| {
                let line = files[2].last().unwrap().replace("billing", "payroll");
                files[2].push(line);
            },
            "",
            0,
            Some(Fault::Order),
        ),
        (
            "the front of the oldest file cut",
            |files| {
                files[0].remove(0);
            },
            ".2",
            1,
            Some(Fault::Front),
        ),
        (
            "the front of a later file cut",
            |files| {
                files[1].remove(0);
            },
            ".1",
            1,
            Some(Fault::Front),
        ),
        (
            "a file between removed",
            |files| files[1].clear(),
            "",
            1,
            Some(Fault::Removed(0)),
        ),
        (
            "a line cut in its middle",
            |files| {
                let half = files[1][2].len() / 2;
                files[1][2].truncate(half);
            },
            ".1",
            3,
            Some(Fault::Form),
        ),
    ];
    let log = Log::new(2500);
    log.fill(22);
    let names = [".2", ".1", ""].map(|end| format!("{}{end}", log.path().display()));
    let original = names.clone().map(|name| fs::read_to_string(name).unwrap());
    for (what, tamper, end, line, fault) in table {
        let mut files: Vec<Vec<String>> = original
            .iter()
            .map(|text| text.lines().map(str::to_owned).collect())
            .collect();
        tamper(&mut files);
        for name in &names {
            let _ = fs::remove_file(name);
        }
        for (name, lines) in names.iter().rev().zip(files.iter().rev()) {
            if !lines.is_empty() {
                fs::write(name, lines.join("\n") + "\n").unwrap();
            }
        }
        let (_, report) = log.read();
        let broken = report.broken;
        match (&broken, fault) {
            (None, None) => {}
            // How many lines a file held is not the point here.
            (Some(found), Some(Fault::Removed(_))) => {
                assert!(matches!(found.fault, Fault::Removed(_)), "{what}: {found}");
            }
            _ => assert_eq!(broken.as_ref().map(|found| found.fault), fault, "{what}"),
        }
        if let Some(found) = broken
            && line > 0
        {
            let file = format!("{}{end}", log.path().display());
            assert_eq!(
                (found.file, found.line),
                (PathBuf::from(file), line),
                "{what}"
            );
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let log = Log::new(1500);
    log.fill(6);
    for name in [log.path(), log.folder().join("audit.jsonl.1")] {
        let original = fs::read(&name).unwrap();
        for at in (0..original.len()).step_by(5) {
            let mut bytes = original.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&name, &bytes).unwrap();
            let (_, report) = log.read();
            assert!(report.broken.is_some(), "byte {at} of {}", name.display());
        }
        fs::write(&name, &original).unwrap();
    }
    assert_eq!(log.read().1.broken, None);
}

#[test]
fn one_torn_line_is_tolerated_and_named() {
    let log = Log::new(1 << 20);
    log.fill(3);
    let whole = fs::read(log.path()).unwrap();
    let last = whole.len()
        - 1
        - whole[..whole.len() - 1]
            .iter()
            .rposition(|b| *b == b'\n')
            .unwrap();
    for cut in 1..=last {
        fs::write(log.path(), &whole[..whole.len() - cut]).unwrap();
        let unfinished = log.read().1;
        assert_eq!(unfinished.broken, None, "{cut}");
        log.fill(1);
        let (lines, report) = log.read();
        assert_eq!(report.broken, None, "{cut}");
        // Without its newline alone, or cut off whole, nothing is torn.
        let torn = u64::from(cut != 1 && cut != last);
        assert_eq!(report.torn, torn, "{cut}");
        assert_eq!(total(&lines), if cut == 1 { 4 } else { 3 }, "{cut}");
    }
    // What the note speaks of cannot be exchanged for something of another length, nor go unsaid.
    fs::write(log.path(), &whole[..whole.len() - 9]).unwrap();
    log.fill(1);
    let torn = fs::read(log.path()).unwrap();
    let at = whole.len() - 10;
    fs::write(log.path(), [&torn[..at], b"x", &torn[at..]].concat()).unwrap();
    assert_eq!(log.read().1.broken.unwrap().fault, Fault::Form);
}

#[test]
fn following_survives_rotation() {
    let log = Log::new(1000);
    let audit = log.start();
    let mut reader = Reader::files(&log.path(), Some(&key())).unwrap();
    let mut seen = VecDeque::new();
    for number in 0..40 {
        let path = format!("billing/s{number}");
        audit.record_now(log.event(&path)).unwrap();
        if number % 7 == 0 {
            seen.extend(drain(&mut reader).0);
        }
    }
    seen.extend(drain(&mut reader).0);
    assert_eq!(entries(seen.make_contiguous()).len(), 40);
    assert_eq!(reader.report().broken, None);
    assert!(log.folder().join("audit.jsonl.5").exists());
}

#[test]
fn filters_pick_lines() {
    let log = Log::new(1 << 20);
    let audit = log.start();
    audit.record_now(log.event("billing/db")).unwrap();
    let denied = Event {
        uid: Uid(7),
        outcome: Outcome::Denied,
        ..log.event("billing2/db")
    };
    log.clock.advance(Duration::from_secs(10));
    let later = log.clock.timestamp();
    audit
        .record_now(Event {
            time: later,
            ..denied
        })
        .unwrap();
    let all = Filter::default();
    let table = [
        (all.clone(), 3),
        (
            Filter {
                secret: Some("billing".to_owned()),
                ..all.clone()
            },
            1,
        ),
        (
            Filter {
                secret: Some("billing/".to_owned()),
                ..all.clone()
            },
            1,
        ),
        (
            Filter {
                secret: Some("billing2/db".to_owned()),
                ..all.clone()
            },
            1,
        ),
        (
            Filter {
                secret: Some("billing/d".to_owned()),
                ..all.clone()
            },
            0,
        ),
        (
            Filter {
                uid: Some(Uid(7)),
                ..all.clone()
            },
            1,
        ),
        (
            Filter {
                since: Some(later),
                ..all.clone()
            },
            1,
        ),
        (
            Filter {
                denied: true,
                ..all.clone()
            },
            1,
        ),
        (
            Filter {
                denied: true,
                uid: Some(Uid(1000)),
                ..all
            },
            0,
        ),
    ];
    let (lines, _) = log.read();
    for (filter, expected) in table {
        let wanted = lines
            .iter()
            .filter(|line| filter.wants(&line.record))
            .count();
        assert_eq!(wanted, expected, "{filter:?}");
    }
}

proptest! {
    #[test]
    fn hostile_logs_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let (_, report) = drain(&mut Reader::stream(std::io::Cursor::new(bytes.clone()), Some(&key())).unwrap());
        prop_assert_eq!(report.broken.is_some(), !bytes.is_empty());
        let log = Log::new(1 << 20);
        fs::write(log.path(), &bytes).unwrap();
        fs::set_permissions(log.path(), fs::Permissions::from_mode(0o600)).unwrap();
        prop_assert_eq!(Audit::start(&log.config, &key(), Clock::manual()).is_ok(), bytes.is_empty());
    }
}
