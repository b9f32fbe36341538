//! A server may be killed after each word that it writes: whatever it was doing, the next one goes on with what stands there.

use std::cell::Cell;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::cache::Generation;
use crate::caller::Caller;
use crate::config::Reads;
use crate::fs::handles::{Handles, OpenFile, Pin};
use crate::fs::inodes::{Hidden, Inodes};
use crate::fs::node::{SecretNode, Sharing, View};
use crate::fs::{Fh, Ino, Waiter};
use crate::secret::{Kind, Name, SealedMemory, SecretPath};
use crate::sys::{Gid, Tid, Uid};

thread_local! {
    /// Each word that this thread writes is looked at.
    static LOOKS: Cell<bool> = const { Cell::new(false) };
}

/// Looks at the memory as the next server would that goes on from here.
pub(super) fn word_was_written(memory: &SharedMemory) {
    // What the next one wipes again is none of this.
    if !LOOKS.replace(false) {
        return;
    }
    let copy = SharedMemory::new().unwrap();
    for range in memory.held().unwrap() {
        let mut bytes = vec![0; range.len()];
        memory.read(range.start, &mut bytes).unwrap();
        copy.write(range.start, &bytes).unwrap();
    }
    let left = Ledger::open(copy.descriptor().try_clone().unwrap());
    assert!(left.unwrap().1.is_some());
    LOOKS.set(true);
}

/// A tree of one secret, and what the kernel holds of it.
struct Life {
    path: SecretPath,
    inodes: Inodes,
    handles: Handles,
    memory: Arc<SealedMemory>,
    /// The newest of them last.
    generations: Vec<Arc<Generation>>,
    folders: Vec<Ino>,
    files: Vec<Arc<SecretNode>>,
    open: Vec<(Fh, Ino)>,
    /// How many requests there were.
    requests: u64,
}

impl Life {
    fn new(ledger: Arc<Ledger>) -> Self {
        let mut life = Self {
            path: "app/x".parse().unwrap(),
            inodes: Inodes::new(Arc::clone(&ledger)),
            handles: Handles::new(ledger, 1),
            memory: SealedMemory::new().unwrap(),
            generations: Vec::new(),
            folders: Vec::new(),
            files: Vec::new(),
            open: Vec::new(),
            requests: 0,
        };
        life.rotate_generation();
        life
    }

    fn rotate_generation(&mut self) -> Arc<Generation> {
        let number = self.generations.len() + 1;
        let value = vec![b'v'; number];
        let generation = Arc::new(Generation {
            number: number.try_into().unwrap(),
            version: crate::backend::Version::new(number.to_string()),
            reference: "a:app/x".parse().unwrap(),
            value: Arc::new(self.memory.seal(Kind::Value, &value).unwrap()),
            description: None,
            modified: jiff::Timestamp::UNIX_EPOCH,
        });
        self.generations.push(Arc::clone(&generation));
        generation
    }

    fn request(&mut self) -> u64 {
        self.requests += 2;
        self.requests
    }

    fn look_up(&mut self, node: Arc<SecretNode>) {
        node.tell();
        self.inodes.looked_up(node.ino);
        self.files.push(node);
    }

    /// One of many things that happen, to one of those that are there.
    fn step(&mut self, what: u8, which: usize) {
        let file = self.files.get(which % self.files.len().max(1)).cloned();
        let open = self.open.get(which % self.open.len().max(1)).copied();
        let view = [View::Fresh, View::Previous][which % 2].clone();
        match (what, file, open) {
            (0, ..) => self.look_up(self.inodes.secret(&self.path)),
            (1, ..) => self.look_up(self.inodes.view(&self.path, view)),
            (2, ..) => {
                let service: &Name = &self.path.service;
                let folder = match which % 2 {
                    0 => self.inodes.service(service),
                    _ => self.inodes.hidden(service, Hidden::Of(view)),
                };
                self.inodes.looked_up(folder);
                self.folders.push(folder);
            }
            // It holds the inode of what is open.
            (3, Some(file), _) if self.open.iter().all(|(_, ino)| *ino != file.ino) => {
                self.files.retain(|other| other.ino != file.ino);
                let last = self.inodes.forget(file.ino, u64::MAX);
                assert!(last);
                self.handles.given_up(file.ino);
            }
            (4, ..) => {
                if let Some(folder) = self.folders.pop() {
                    self.inodes.forget(folder, 1);
                }
            }
            (5 | 6, Some(file), _) => self.open(&file, which),
            (7, ..) => {
                let fh = self.handles.add_directory(Ino::ROOT, Arc::default());
                let request = self.request();
                self.handles.given(fh, request);
                self.open.push((fh, Ino::ROOT));
            }
            (8, _, Some((fh, _))) => self.handles.polled(fh, Waiter(7)),
            (9, Some(file), Some((fh, _))) => {
                file.bar();
                self.handles.take(fh);
            }
            (10, _, Some((fh, _))) => {
                self.handles.remove(fh);
                self.open.retain(|(other, _)| *other != fh);
            }
            (11, Some(file), _) => file.told(which.try_into().unwrap()),
            (12, ..) => self.change(true, which),
            (13, ..) => self.change(false, which),
            _ => {}
        }
    }

    fn open(&mut self, file: &Arc<SecretNode>, which: usize) {
        // Mostly the newest.
        let all = &self.generations;
        let generation = Arc::clone(all.iter().rev().nth(which / 6).unwrap_or(&all[0]));
        let Ok(pinned) = file.pin(&generation, which.is_multiple_of(2), Sharing::Any) else {
            return;
        };
        let number = generation.number;
        let node = Arc::clone(file);
        let file = OpenFile {
            pin: Arc::new(Pin { node, number }),
            generation,
            reads: Reads::Cached,
            opener: Caller::new(Uid(1), Gid(2), Tid(3)),
            superseding: pinned.superseding,
        };
        let ino = file.pin.node.ino;
        let fh = self.handles.add_file(file, !pinned.direct);
        let request = self.request();
        self.handles.given(fh, request);
        self.open.push((fh, ino));
    }

    /// The name gets another inode, or none. Some of what was begun the kernel never asks for.
    fn change(&mut self, replace: bool, which: usize) {
        let generation = self.rotate_generation();
        let (pending, _done) = self.inodes.begin(&self.path, replace);
        if let (Some(hidden), Some(node)) = (pending.hidden(), &pending.replacement) {
            if which.is_multiple_of(2) {
                node.make_for(&generation);
            }
            let found = self.inodes.replacement(&self.path.service, &hidden);
            self.look_up(found.unwrap());
        }
        let request = (!which.is_multiple_of(4)).then(|| self.request());
        let number = pending.number;
        let wanted = |pending: &crate::fs::inodes::Pending| pending.number == number;
        assert!(self.inodes.commit(&self.path, request, wanted));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn who_is_killed_between_any_two_words_leaves_what_the_next_one_believes(
        steps in proptest::collection::vec((0..14_u8, 0..8_usize), 1..60),
    ) {
        let memory = SharedMemory::create().unwrap();
        let (ledger, _) = Ledger::open(memory).unwrap();
        ledger.agreed(Negotiated { minor: 45, flags: 0 });
        ledger.count(2);
        let mut life = Life::new(ledger);
        LOOKS.set(true);
        for (what, which) in steps {
            life.step(what, which);
        }
        drop(life);
        LOOKS.set(false);
    }
}
