//! What stands in the ledger is what was written, or it is seen that it is not.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::lines::{
    ChangeLine, Facts, FileLine, FolderLine, GenerationLine, InodeLine, Line, Number, What,
};
use super::*;
use crate::backend::Version;
use crate::caller::{Caller, Cgroup};
use crate::config::Reads;
use crate::fs::inodes::Hidden;
use crate::fs::node::View;
use crate::fs::{Fh, Ino};
use crate::sys::{Gid, Tid, Uid};

const AGREED: Negotiated = Negotiated {
    minor: 45,
    flags: 0xf000_0081_0000_0003,
};

/// A ledger on which the kernel has said its first word, and the memory that the keeper holds.
fn ledger() -> (Arc<Ledger>, OwnedFd) {
    let memory = SharedMemory::create().unwrap();
    let (ledger, left) = Ledger::open(memory.try_clone().unwrap()).unwrap();
    assert!(left.is_none());
    ledger.agreed(AGREED);
    ledger.count(100);
    (ledger, memory)
}

/// What the next server finds. It takes nothing out.
fn opened(memory: &OwnedFd) -> Result<Kept, Unfit> {
    let memory = memory.as_fd().try_clone_to_owned().unwrap();
    let (_, left) = Ledger::open(memory)?;
    Ok(Kept(Some(left.unwrap())))
}

/// What was left, and stays.
#[derive(Debug)]
struct Kept(Option<Left>);

impl std::ops::Deref for Kept {
    type Target = Left;

    fn deref(&self) -> &Left {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

fn words(memory: &OwnedFd) -> SharedMemory {
    SharedMemory::map(memory.try_clone().unwrap()).unwrap()
}

/// A line of about so many bytes.
fn folder(ino: u64, length: usize) -> InodeLine {
    let version = View::Version(Version::new("v".repeat(length)));
    InodeLine {
        ino: Ino(ino),
        what: What::Hidden("app".parse().unwrap(), Hidden::Of(version)),
        facts: Facts::default(),
    }
}

fn service(ino: u64, name: &str) -> InodeLine {
    InodeLine {
        what: What::Service(name.parse().unwrap()),
        ..folder(ino, 0)
    }
}

fn secret(ino: u64, view: View, facts: Facts) -> InodeLine {
    InodeLine {
        what: What::Secret("app/x".parse().unwrap(), view),
        facts,
        ..folder(ino, 0)
    }
}

fn generation(ino: u64, number: u64) -> Line {
    Line::Generation(GenerationLine {
        ino: Ino(ino),
        number,
        version: Version::new("1"),
        reference: "a:app/x".parse().unwrap(),
        description: None,
        modified: jiff::Timestamp::UNIX_EPOCH,
    })
}

fn file(fh: u64, ino: u64, number: u64) -> FileLine {
    FileLine {
        fh: Fh(fh),
        ino: Ino(ino),
        number,
        sealed: 4,
        reads: Reads::Cached,
        paged: true,
        superseding: true,
        opener: Caller::new(Uid(1), Gid(2), Tid(3)),
    }
}

fn open_folder(fh: u64, ino: u64) -> Line {
    Line::Folder(FolderLine {
        fh: Fh(fh),
        ino: Ino(ino),
    })
}

/// Which inodes are there, with their numbers.
fn found(memory: &OwnedFd) -> Vec<(u64, u64, u64)> {
    let left = opened(memory).unwrap();
    let inodes = left.inodes.iter().map(|(ino, found)| {
        let numbers = [Number::Lookups, Number::Told].map(|which| found.number(which));
        (ino.0, numbers[0], numbers[1])
    });
    let mut inodes: Vec<_> = inodes.collect();
    inodes.sort_unstable();
    inodes
}

#[test]
fn what_was_written_is_there_and_what_was_taken_out_is_not() {
    const MOST: u64 = (1 << 48) - 1;
    let (ledger, memory) = ledger();
    let lengths = [0, 1, 8, 96, 97, 500, 8100];
    let lines = (2..).zip(lengths).map(|(ino, length)| folder(ino, length));
    let lines: Vec<_> = lines.collect();
    let write = |line: &InodeLine| ledger.write(&Line::Inode(line.clone()), [1, u64::MAX, 0]);
    let mut entries: Vec<_> = lines.iter().map(|line| write(line).unwrap()).collect();
    let left = opened(&memory).unwrap();
    for line in &lines {
        assert_eq!(left.inodes[&line.ino].line, *line);
    }
    assert_eq!((left.negotiated, left.next), (AGREED, 100));
    drop(left);
    assert_eq!(found(&memory).len(), lengths.len());
    assert_eq!(found(&memory)[0], (2, 1, MOST));
    assert_eq!(ledger.agreed_on(), Some(AGREED));
    entries.pop();
    entries.remove(0);
    let inos: Vec<_> = found(&memory).iter().map(|(ino, ..)| *ino).collect();
    assert_eq!(inos, [3, 4, 5, 6, 7]);
    let entry = &entries[0];
    entry.set(Number::Lookups, 5);
    entry.set(Number::Told, 0);
    assert_eq!(found(&memory)[0], (3, 5, 0));
    // What the next one does not take up goes with it.
    std::mem::forget(entries);
    drop(Ledger::open(memory.try_clone().unwrap()).unwrap());
    assert_eq!(found(&memory), []);
}

#[test]
fn who_dies_at_once_is_not_followed_for_ever() {
    let (first, memory) = ledger();
    let server = || Ledger::open(memory.try_clone().unwrap()).unwrap().0;
    for _ in 0..20 {
        let ledger = server();
        ledger.may_be_followed().unwrap();
        ledger.begins();
        ledger.goes_well();
    }
    for _ in 0..=IN_A_ROW {
        let ledger = server();
        ledger.may_be_followed().unwrap();
        ledger.begins();
    }
    assert!(matches!(server().may_be_followed(), Err(Unfit::Deadly)));
    drop(first);
}

#[test]
fn a_place_is_used_again() {
    let (ledger, memory) = ledger();
    let held = || {
        let held = words(&memory).held().unwrap();
        held.iter().map(ExactSizeIterator::len).sum::<usize>()
    };
    let write = || ledger.write(&generation(2, 1), [0; 3]).unwrap();
    drop(write());
    let before = held();
    for _ in 0..10_000 {
        drop(write());
    }
    assert_eq!(held(), before);
}

#[test]
fn a_line_that_was_not_written_to_its_end_is_none() {
    let (ledger, memory) = ledger();
    let write = |ino| ledger.write(&Line::Inode(folder(ino, 9)), [1, 0, 0]);
    let (kept, torn) = (write(2).unwrap(), write(3).unwrap());
    // Its first word is the last that is written.
    let at = torn.slot.unwrap().at;
    words(&memory).wipe(at..at + 8).unwrap();
    assert_eq!(found(&memory), [(2, 1, 0)]);
    drop((kept, torn));
}

#[test]
fn each_word_that_is_not_as_it_was_written_is_seen() {
    let (ledger, memory) = ledger();
    let line = Line::Inode(folder(3, 90));
    let length = line.text().len();
    let entry = ledger.write(&line, [4, 5, 0]).unwrap();
    let words = words(&memory);
    let at = entry.slot.unwrap().at;
    let bytes = at..at + HEAD + length;
    let agreed = FLAGS.into_iter().chain([MINOR]);
    let table = [TABLE + SharedMemory::WORD];
    for at in bytes.chain(agreed).chain(table) {
        for bit in [0, 7] {
            let (word, byte) = (at & !7, at & 7);
            let mut bytes = [0; 8];
            words.read(word, &mut bytes).unwrap();
            let before = bytes;
            bytes[byte] ^= 1 << bit;
            words.write(word, &bytes).unwrap();
            let unfit = opened(&memory);
            assert!(
                matches!(unfit, Err(Unfit::Damaged(_))),
                "{at} {bit}: {unfit:?}"
            );
            words.write(word, &before).unwrap();
        }
    }
    assert_eq!(found(&memory), [(3, 4, 5)]);
}

#[test]
fn a_line_that_was_moved_is_not_believed() {
    let (ledger, memory) = ledger();
    let write = |ino| ledger.write(&Line::Inode(folder(ino, 9)), [1, 0, 0]);
    let (one, other) = (write(2).unwrap(), write(3).unwrap());
    let words = words(&memory);
    let mut bytes = [0; SIZES[0]];
    words.read(one.slot.unwrap().at, &mut bytes).unwrap();
    words.write(other.slot.unwrap().at, &bytes).unwrap();
    assert!(matches!(opened(&memory), Err(Unfit::Damaged(_))));
}

#[test]
fn another_layout_and_one_without_a_first_word_are_refused() {
    let memory = SharedMemory::create().unwrap();
    drop(Ledger::open(memory.try_clone().unwrap()).unwrap());
    assert!(matches!(opened(&memory), Err(Unfit::Damaged(_))));
    let (_, memory) = ledger();
    words(&memory).write(0, b"secretfs").unwrap();
    assert!(opened(&memory).is_ok());
    words(&memory).write(40, b"layout 2").unwrap();
    assert!(matches!(opened(&memory), Err(Unfit::Layout)));
}

#[test]
fn while_a_line_has_no_room_nothing_is_believed() {
    let (ledger, memory) = ledger();
    let _kept = ledger.write(&Line::Inode(folder(2, 9)), [1, 0, 0]);
    let long = ledger.write(&Line::Inode(folder(3, 8200)), [1, 0, 0]);
    let longer = ledger.write(&Line::Inode(folder(4, 9000)), [1, 0, 0]);
    assert!(matches!(opened(&memory), Err(Unfit::Incomplete)));
    drop(long);
    assert!(matches!(opened(&memory), Err(Unfit::Incomplete)));
    drop(longer);
    assert_eq!(found(&memory), [(2, 1, 0)]);
}

#[test]
fn what_is_short_takes_a_place_for_what_is_long_where_there_is_no_other() {
    let (ledger, memory) = ledger();
    let count = (SharedMemory::SIZE / SLAB - 1) * (SLAB / 8192);
    let mut lines = Vec::new();
    for ino in (2..).take(count) {
        lines.push(ledger.write(&Line::Inode(folder(ino, 8000)), [1, 0, 0]));
    }
    let short = |ino| ledger.write(&Line::Inode(service(ino, "short")), [1, 0, 0]);
    let none = short(1);
    assert!(matches!(opened(&memory), Err(Unfit::Incomplete)));
    drop(none);
    lines.clear();
    let _short = short(2);
    assert_eq!(found(&memory), [(2, 1, 0)]);
}

#[test]
fn where_nobody_comes_after_us_nothing_is_written() {
    let ledger = Ledger::nowhere();
    assert!(ledger.write(&generation(2, 1), [0; 3]).is_none());
    assert!(!ledger.is_kept());
    ledger.agreed(AGREED);
    assert_eq!(ledger.agreed_on(), None);
}

#[test]
fn who_opened_a_file_is_known_with_everything_that_was_found_out() {
    let bare = Caller::new(Uid(1), Gid(2), Tid(3));
    let known = Caller {
        groups: Some(vec![Gid(0), Gid(u32::MAX)]),
        cgroup: Some(Cgroup {
            unit: Some("ü.service".to_owned()),
            container: None,
        }),
        ..bare.clone()
    };
    let none = Caller {
        groups: Some(Vec::new()),
        ..bare.clone()
    };
    for opener in [bare, known, none] {
        let line = Line::File(FileLine {
            opener,
            ..file(1 << 40, 2, 3)
        });
        assert_eq!(Line::read(&line.text()), Some(line));
    }
}

#[test]
fn a_reference_says_who_is_signed_in() {
    let Line::Generation(line) = generation(2, 1) else {
        unreachable!();
    };
    let mut reference = line.reference.clone();
    reference.backend = reference.backend.of_service(&"app".parse().unwrap());
    reference.field = Some("a#b".to_owned());
    let line = Line::Generation(GenerationLine { reference, ..line });
    assert_eq!(Line::read(&line.text()), Some(line));
}

/// Another release may read them: what has changed here needs another [`LAYOUT`].
#[test]
fn lines_look_as_this_layout_says() {
    let facts = Facts {
        turn: 1,
        size: 300,
        first: Some(2),
        shown: None,
        named: true,
        barred: false,
    };
    let views = [
        View::Current,
        View::Fresh,
        View::Previous,
        View::Version(Version::new("v")),
    ];
    let mut lines = vec![Line::Inode(service(2, "app"))];
    let hidden = |hidden| What::Hidden("app".parse().unwrap(), hidden);
    lines.push(Line::Inode(InodeLine {
        what: hidden(Hidden::Versions),
        ..folder(3, 0)
    }));
    lines.push(Line::Inode(folder(4, 1)));
    lines.extend(views.map(|view| Line::Inode(secret(5, view, facts))));
    let opener = Caller {
        groups: Some(vec![Gid(4)]),
        cgroup: Some(Cgroup {
            unit: None,
            container: Some("c".to_owned()),
        }),
        ..Caller::new(Uid(1), Gid(2), Tid(3))
    };
    lines.extend([
        generation(5, 1 << 40),
        Line::File(file(1, 5, 1 << 40)),
        Line::File(FileLine {
            reads: Reads::Checked,
            opener,
            ..file(1, 5, 7)
        }),
    ]);
    lines.extend([open_folder(2, 1), {
        let path = "app/x".parse().unwrap();
        Line::Change(ChangeLine { path })
    }]);
    let text = lines.iter().map(|line| {
        let bytes = line.text().into_iter();
        bytes.map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    let text: Vec<String> = text.collect();
    assert_eq!(text, LAYOUT_1);
}

const LAYOUT_1: [&str; 12] = [
    "00020003617070000000000000",
    "0003010361707000000000000000",
    "0004010361707001030176000000000000",
    "000502056170702f780001ac020102000100",
    "000502056170702f780101ac020102000100",
    "000502056170702f780201ac020102000100",
    "000502056170702f7803017601ac020102000100",
    "01058080808080200131016107613a6170702f780014313937302d30312d30315430303a30303a30305a",
    "020105808080808020040101010102030000",
    "02010507040001010102030101040100010163",
    "030201",
    "04056170702f78",
];

proptest::proptest! {
    #[test]
    fn no_bytes_at_all_are_more_than_no_line(bytes in proptest::collection::vec(0_u8.., 0..300)) {
        // Most begin like a line.
        let kinds = (0..5).map(|kind| [&[kind], bytes.as_slice()].concat());
        for bytes in kinds.chain([bytes.clone()]) {
            if let Some(line) = Line::read(&bytes) {
                assert_eq!(Line::read(&line.text()), Some(line));
            }
        }
    }
}

#[test]
fn a_line_that_says_too_little_or_too_much_or_what_no_line_says_is_none() {
    let mut whole = Line::File(file(1, 2, 3)).text();
    for end in 0..whole.len() {
        assert_eq!(Line::read(&whole[..end]), None, "{end}");
    }
    whole.push(0);
    assert_eq!(Line::read(&whole), None);
    assert_eq!(Line::read(&[99, 1, 2, 3]), None);
}

#[test]
fn of_two_lines_of_an_inode_the_later_one_is_true_and_what_the_kernel_cannot_know_is_not_there() {
    let (ledger, memory) = ledger();
    let turn = |turn| {
        let facts = Facts {
            turn,
            size: turn,
            named: true,
            ..Facts::default()
        };
        Line::Inode(secret(2, View::Current, facts))
    };
    let given = [2, 0, 0];
    let lines = [
        (turn(5), [1, 0, 0]),
        (turn(6), [1, 0, 0]),
        (turn(4), [1, 0, 0]),
        (generation(2, 7), [0; 3]),
        // Its inode is gone already.
        (generation(9, 7), [0; 3]),
        (Line::File(file(1, 2, 7)), given),
        (Line::File(file(2, 2, 7)), [0, 1, 0]),
        (open_folder(3, 1), given),
        (open_folder(4, 1), [0; 3]),
    ];
    let _entries = lines.map(|(line, numbers)| ledger.write(&line, numbers));
    let left = opened(&memory).unwrap();
    assert_eq!(left.inodes[&Ino(2)].line.facts.size, 6);
    assert_eq!(left.generations.len(), 1);
    let files: Vec<_> = left.files.iter().map(|found| found.line.fh).collect();
    let folders: Vec<_> = left.folders.iter().map(|found| found.line.fh).collect();
    assert_eq!((files, folders), (vec![Fh(1)], vec![Fh(3)]));
}

#[test]
fn lines_that_contradict_each_other_are_damage() {
    let named = Facts {
        named: true,
        ..Facts::default()
    };
    let shows = Facts {
        shown: Some(7),
        ..named
    };
    let inode = Line::Inode;
    let change = ChangeLine {
        path: "app/x".parse().unwrap(),
    };
    let sound = || {
        vec![
            inode(service(2, "app")),
            inode(secret(3, View::Current, shows)),
            inode(secret(4, View::Fresh, named)),
            // One that has lost the name.
            inode(secret(5, View::Current, Facts::default())),
            generation(3, 7),
            Line::File(file(1, 3, 7)),
            open_folder(2, 2),
            open_folder(3, 1),
            Line::Change(change.clone()),
            Line::Change(change.clone()),
        ]
    };
    let read = |lines: &[Line]| {
        let (ledger, memory) = ledger();
        let entries: Vec<_> = lines
            .iter()
            .map(|line| ledger.write(line, [2, 0, 0]))
            .collect();
        let left = opened(&memory).map(drop);
        std::mem::forget(entries);
        left
    };
    assert!(read(&sound()).is_ok());
    for contradiction in [
        inode(service(1, "root")),
        inode(service(100, "never-given")),
        inode(service(2, "other")),
        inode(service(6, "app")),
        inode(secret(6, View::Current, named)),
        inode(secret(6, View::Fresh, named)),
        inode(secret(6, View::Previous, shows)),
        generation(3, 7),
        Line::File(file(9, 3, 8)),
        Line::File(file(9, 4, 7)),
        Line::File(file(9, 2, 7)),
        Line::File(file(1, 3, 7)),
        Line::File(file(2, 3, 7)),
        open_folder(9, 3),
        open_folder(9, 8),
        open_folder(1, 1),
    ] {
        let mut lines = sound();
        lines.push(contradiction.clone());
        let unfit = read(&lines);
        assert!(matches!(unfit, Err(Unfit::Damaged(_))), "{contradiction:?}");
    }
}
