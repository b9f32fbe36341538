//! What stands in the ledger of a secret's inode, and an inode as it was written there.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::{Pins, Secret, SecretNode, SecretState, Shown};
use crate::cache::Generation;
use crate::fs::ledger::lines::{Facts, FileLine, GenerationLine, InodeLine, Line, Number, What};
use crate::fs::ledger::{Entry, Found, Ledger};
use crate::fs::node::View;
use crate::secret::SecretPath;

/// The lines of an inode. They go with it.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// That of the inode, what it says, and its second number.
    inode: Option<(Facts, u64, Entry)>,
    /// Those of the generation that it showed last and of those that are open, by their numbers.
    generations: Vec<(u64, Option<Entry>)>,
    /// How many look-ups the kernel holds.
    lookups: u64,
    /// How many lines of the inode there were.
    turn: u64,
}

impl SecretNode {
    /// The kernel holds so many look-ups: before it hears of one, there is a line of the inode.
    pub(in crate::fs) fn held(&self, lookups: u64) {
        let mut state = self.state();
        state.written.lookups = lookups;
        match &state.written.inode {
            Some((_, _, entry)) => entry.set(Number::Lookups, lookups),
            None => self.write(&mut state),
        }
    }

    /// Has the line say what is true, if there is one.
    pub(super) fn keep_written(&self, state: &mut SecretState) {
        let (told, turn) = (state.told_number(), state.written.turn);
        let facts = state.facts(turn);
        let Some((before, said, entry)) = &mut state.written.inode else {
            return;
        };
        if *said != told {
            entry.set(Number::Told, told);
            *said = told;
        }
        if (Facts { turn, ..*before }) != facts {
            self.write(state);
        }
    }

    /// The same, of an inode that shows this generation to somebody or has it open.
    pub(super) fn keep_generation(&self, state: &mut SecretState, generation: &Generation) {
        if !self.ledger.is_kept() {
            return;
        }
        let number = generation.number;
        if !state
            .written
            .generations
            .iter()
            .any(|(other, _)| *other == number)
        {
            let line = GenerationLine {
                ino: self.ino,
                number,
                version: generation.version.clone(),
                reference: generation.reference.clone(),
                description: generation.description.clone(),
                modified: generation.modified,
            };
            let entry = self.ledger.write(&Line::Generation(line), [0; 3]);
            state.written.generations.push((number, entry));
        }
        if state.written.inode.is_none() && !state.open.is_empty() {
            self.write(state);
        }
        self.keep_written(state);
        state.keep_generations();
    }

    /// A generation is shown or open no longer.
    pub(super) fn drop_generations(&self, state: &mut SecretState) {
        self.keep_written(state);
        state.keep_generations();
    }

    /// Writes the line anew, then the one before goes.
    fn write(&self, state: &mut SecretState) {
        let (facts, told) = (state.facts(state.written.turn), state.told_number());
        let line = InodeLine {
            ino: self.ino,
            what: What::Secret(self.path.clone(), self.view.clone()),
            facts,
        };
        let numbers = [state.written.lookups, told, 0];
        let entry = self.ledger.write(&Line::Inode(line), numbers);
        state.written.turn += 1;
        state.written.inode = entry.map(|entry| (facts, told, entry));
    }

    /// An inode as a server before this one has written it down.
    pub(in crate::fs) fn restored(
        found: Found<InodeLine>,
        (path, view): (SecretPath, View),
        secret: Arc<Secret>,
        ledger: Arc<Ledger>,
    ) -> Arc<Self> {
        let [lookups, told] = [Number::Lookups, Number::Told].map(|which| found.number(which));
        let InodeLine { ino, facts, .. } = found.line;
        let state = SecretState {
            size: facts.size,
            told: told.checked_sub(1),
            first: facts.first,
            barred: facts.barred,
            superseded: !facts.named,
            // Nobody knows what is in the page cache, so it is dropped before it is used for anything.
            pages: facts.shown.map(|_| 0),
            unsure: facts.shown.is_some(),
            written: Written {
                inode: Some((facts, told, found.entry)),
                generations: Vec::new(),
                lookups,
                turn: facts.turn.saturating_add(1),
            },
            ..SecretState::default()
        };
        Arc::new(Self {
            ino,
            path,
            view,
            secret,
            ledger,
            inherited: !facts.named,
            state: Mutex::new(state),
            moved: Notify::new(),
        })
    }

    /// A line of one of its generations; `shown` if it is the one that it showed last.
    pub(in crate::fs) fn restore_generation(
        &self,
        line: &GenerationLine,
        entry: Entry,
        shown: bool,
    ) {
        let mut state = self.state();
        if shown {
            state.shown = Some(Shown {
                number: line.number,
                modified: line.modified,
            });
        }
        state.written.generations.push((line.number, Some(entry)));
    }

    /// A handle that was open on this generation; without a value if that is lost or was taken away.
    pub(in crate::fs) fn restore_pin(&self, line: &FileLine, generation: Option<&Arc<Generation>>) {
        let FileLine { number, paged, .. } = *line;
        let mut state = self.state();
        // As when it was taken, and whoever cannot read it is not asked when it is taken later: who has it could see what
        // comes into the page cache.
        state.barred |= generation.is_none();
        let weak = generation.map(Arc::downgrade).unwrap_or_default();
        match state.open.iter_mut().find(|pins| pins.number == number) {
            Some(pins) => {
                pins.count += 1;
                pins.paged |= paged;
                if generation.is_some() {
                    pins.generation = weak;
                }
            }
            None => state.open.push(Pins {
                number,
                generation: weak,
                count: 1,
                paged,
            }),
        }
    }

    /// What is there is there: lines of generations that nobody has open any more go.
    pub(in crate::fs) fn settle_restored(&self) {
        let mut state = self.state();
        state.barred &= !state.open.is_empty();
        self.drop_generations(&mut state);
    }
}

impl SecretState {
    /// What its line has to say.
    fn facts(&self, turn: u64) -> Facts {
        Facts {
            turn,
            size: self.size,
            first: self.first,
            shown: self.shown.as_ref().map(|shown| shown.number),
            named: !(self.superseded || self.nameless),
            barred: self.barred,
        }
    }

    /// One more than the size that the kernel was told.
    fn told_number(&self) -> u64 {
        self.told.map_or(0, |told| told.saturating_add(1))
    }

    fn keep_generations(&mut self) {
        let Self {
            written,
            open,
            shown,
            ..
        } = self;
        let shown = shown.as_ref().map(|shown| shown.number);
        written.generations.retain(|(number, _)| {
            Some(*number) == shown || open.iter().any(|pins| pins.number == *number)
        });
    }
}
