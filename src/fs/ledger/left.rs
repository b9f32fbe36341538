//! What the server before this one has left: lines of which none contradicts another.

use std::collections::hash_map::Entry as Place;
use std::collections::{HashMap, HashSet};

use super::lines::{
    ChangeLine, FileLine, FolderLine, GenerationLine, InodeLine, Line, Number, What,
};
use super::{Entry, Negotiated, Unfit};
use crate::fs::node::View;
use crate::fs::{Fh, Ino};

/// A line, and its place.
#[derive(Debug)]
pub(in crate::fs) struct Found<L> {
    pub(in crate::fs) line: L,
    numbers: [u64; Number::MOST],
    pub(in crate::fs) entry: Entry,
}

impl<L> Found<L> {
    pub(in crate::fs) fn number(&self, which: Number) -> u64 {
        self.numbers.get(which.index()).copied().unwrap_or_default()
    }
}

/// What the server before this one has left.
#[derive(Debug)]
pub struct Left {
    /// What it had agreed on with the kernel.
    pub negotiated: Negotiated,
    /// All inodes have lower numbers than this one.
    pub(in crate::fs) next: u64,
    pub(in crate::fs) inodes: HashMap<Ino, Found<InodeLine>>,
    /// By inode and number.
    pub(in crate::fs) generations: HashMap<(Ino, u64), Found<GenerationLine>>,
    pub(in crate::fs) files: Vec<Found<FileLine>>,
    pub(in crate::fs) folders: Vec<Found<FolderLine>>,
    pub(in crate::fs) changes: Vec<Found<ChangeLine>>,
}

impl Left {
    /// Of these lines.
    ///
    /// # Errors
    /// [`Unfit::Damaged`] if they contradict each other.
    pub(super) fn new(
        negotiated: Negotiated,
        next: u64,
        lines: Vec<(Line, [u64; Number::MOST], Entry)>,
    ) -> Result<Self, Unfit> {
        let mut left = Self {
            negotiated,
            next,
            inodes: HashMap::new(),
            generations: HashMap::new(),
            files: Vec::new(),
            folders: Vec::new(),
            changes: Vec::new(),
        };
        for (line, numbers, entry) in lines {
            left.add(line, numbers, entry)?;
        }
        // What the kernel cannot have heard of, and what it has given up: it holds the inode of what is open.
        let inodes = &left.inodes;
        let held = |ino: Ino| {
            let inode = inodes.get(&ino);
            inode.is_none_or(|inode| inode.number(Number::Lookups) != 0)
        };
        left.files
            .retain(|file| held(file.line.ino) && file.number(Number::Given) != 0);
        left.folders
            .retain(|open| held(open.line.ino) && open.number(Number::Given) != 0);
        left.inodes
            .retain(|_, inode| inode.number(Number::Lookups) != 0 || inode.line.is_current());
        // Those of an inode may go a little later than its own.
        let inodes = &left.inodes;
        left.generations
            .retain(|(ino, _), _| inodes.contains_key(ino));
        left.check_inodes()?;
        left.check_handles()?;
        Ok(left)
    }

    fn add(&mut self, line: Line, numbers: [u64; Number::MOST], entry: Entry) -> Result<(), Unfit> {
        match line {
            Line::Inode(line) => {
                return self.add_inode(Found {
                    line,
                    numbers,
                    entry,
                });
            }
            Line::Generation(line) => {
                let key = (line.ino, line.number);
                let found = Found {
                    line,
                    numbers,
                    entry,
                };
                if self.generations.insert(key, found).is_some() {
                    return Err(Unfit::Damaged("a generation is there twice"));
                }
            }
            Line::File(line) => self.files.push(Found {
                line,
                numbers,
                entry,
            }),
            Line::Folder(line) => self.folders.push(Found {
                line,
                numbers,
                entry,
            }),
            Line::Change(line) => self.changes.push(Found {
                line,
                numbers,
                entry,
            }),
        }
        Ok(())
    }

    /// Of each inode the line counts that was written last: who is killed while it writes one leaves the one before, too.
    fn add_inode(&mut self, found: Found<InodeLine>) -> Result<(), Unfit> {
        let turn = found.line.facts.turn;
        match self.inodes.entry(found.line.ino) {
            Place::Vacant(place) => drop(place.insert(found)),
            Place::Occupied(mut place) => match place.get().line.facts.turn {
                other if other == turn => {
                    return Err(Unfit::Damaged("an inode is there twice"));
                }
                other if other < turn => drop(place.insert(found)),
                _ => {}
            },
        }
        Ok(())
    }

    fn check_inodes(&self) -> Result<(), Unfit> {
        let mut names = HashSet::new();
        for Found { line, .. } in self.inodes.values() {
            if line.ino <= Ino::ROOT || line.ino.0 >= self.next {
                return Err(Unfit::Damaged("an inode has a number that was never given"));
            }
            // Another has its name, or none.
            let nameless =
                matches!(line.what, What::Secret(_, View::Current)) && !line.is_current();
            if !nameless && !names.insert(&line.what) {
                return Err(Unfit::Damaged("one name leads to two inodes"));
            }
            let shown = line.facts.shown;
            if shown.is_some_and(|shown| !self.generations.contains_key(&(line.ino, shown))) {
                return Err(Unfit::Damaged("an inode shows what is not there"));
            }
        }
        Ok(())
    }

    fn check_handles(&self) -> Result<(), Unfit> {
        let mut numbers: HashSet<Fh> = HashSet::new();
        for Found { line, .. } in &self.files {
            let generation = self.generations.get(&(line.ino, line.number));
            if generation.is_none() || !self.is_secret(line.ino) {
                return Err(Unfit::Damaged("a file is open that is not there"));
            }
            if !numbers.insert(line.fh) {
                return Err(TWICE);
            }
        }
        for Found { line, .. } in &self.folders {
            let is_folder = self.inodes.contains_key(&line.ino) && !self.is_secret(line.ino);
            if line.ino != Ino::ROOT && !is_folder {
                return Err(Unfit::Damaged("a folder is open that is not there"));
            }
            if !numbers.insert(line.fh) {
                return Err(TWICE);
            }
        }
        Ok(())
    }

    fn is_secret(&self, ino: Ino) -> bool {
        let found = self.inodes.get(&ino);
        found.is_some_and(|found| matches!(found.line.what, What::Secret(..)))
    }
}

const TWICE: Unfit = Unfit::Damaged("two handles have one number");
