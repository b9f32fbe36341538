//! What the kernel knows of us, in memory that the next server gets: the ledger.
//!
//! 1. The keeper holds the memory, one for each mount. While it also holds `/dev/fuse`, a server that is killed takes nothing
//!    with it: the next one reads here which inodes and handles there are, and goes on.
//! 2. There is a [`Line`] for each inode that the kernel has looked up, for each generation that one shows or has open, for
//!    each open file and folder, and for each change of a name that is under way. Never a value: a file's line names the
//!    sealed one.
//! 3. A line is there before the reply that makes the kernel know of it, and goes after the kernel has given the thing up. So
//!    the ledger may have more than the kernel knows, and never less.
//! 4. Lines stand in slots of a few sizes, so that none has to be moved and nothing has to be compacted. Its first word is
//!    written last and wiped first: who is killed in between has written nothing.
//! 5. What changes often is a few numbers in each line, each a word with its own check: see [`Number`].
//! 6. A line is changed by another one that has a higher turn; then the first goes.
//! 7. A line with a wrong check, another layout, lines that contradict each other: then nothing of it is believed, and the
//!    keeper mounts afresh. So it does while there is no room for a line, which is written down in the head.
//! 8. To write a line or to take it out costs no system call and waits for nobody but who does the same.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::SharedMemory;

mod left;
pub(super) mod lines;
mod words;

#[cfg(test)]
mod kills;
#[cfg(test)]
mod tests;

pub(super) use left::Found;
pub use left::Left;
use lines::{Line, Number};
use words::{check, checked, number};

/// What the memory begins with. Another layout needs another one.
const LAYOUT: [u8; 64] = *b"secretfs: what the kernel knows, layout 1                       ";

/// Slots of one size stand together in so many bytes.
const SLAB: usize = 64 << 10;
/// How long slots are. Each size divides [`SLAB`].
const SIZES: [usize; 7] = [128, 256, 512, 1024, 2048, 4096, 8192];
/// The first slab is the head: the layout, a few words, and a word for each slab that says how long its slots are.
const TABLE: usize = 4 << 10;
const MISSING: usize = 64;
const MINOR: usize = 72;
const FLAGS: [usize; 2] = [80, 88];
const NEXT: usize = 96;
const FALLS: usize = 104;

/// So many servers may die right after they had begun, one after the other.
const IN_A_ROW: u64 = 5;

/// What comes before the text of a line: its length with a mark, the check, its numbers.
const HEAD: usize = (2 + Number::MOST) * SharedMemory::WORD;
/// Marks the first word of a line.
const MARK: u64 = 0x5ec4 << 48;

/// What the kernel and the first server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// The kernel's minor version of the protocol.
    pub minor: u32,
    /// What the kernel can do.
    pub flags: u64,
}

/// Why a ledger is of no use: a fresh mount has to be made.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The memory is not one that a keeper made.
    #[error("its memory: {0}")]
    Memory(#[from] io::Error),
    /// It was written by another release.
    #[error("another release has written it")]
    Layout,
    /// One server after the other has died of what it found.
    #[error("too many servers in a row have died right after they had begun with it")]
    Deadly,
    /// There was no room for everything.
    #[error("not everything had room in it")]
    Incomplete,
    /// It is not as it was written, or contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// The ledger of a mount.
#[derive(Debug)]
pub struct Ledger {
    /// `None` where nobody comes after us.
    memory: Option<SharedMemory>,
    free: Mutex<Free>,
}

/// Where lines can be written.
#[derive(Debug, Default)]
struct Free {
    /// For each size.
    slots: [Vec<usize>; SIZES.len()],
    /// How many slabs have a size, the head among them.
    slabs: usize,
    /// How many lines have no room. While there are any the ledger is worth nothing.
    missing: u64,
    /// That was said.
    warned: bool,
}

/// A slot with a line in it.
#[derive(Debug)]
struct Written {
    slot: Slot,
    text: Vec<u8>,
    numbers: [u64; Number::MOST],
}

/// Where a line stands.
#[derive(Debug, Clone, Copy)]
struct Slot {
    at: usize,
    /// Which of the sizes it has.
    size: usize,
}

impl Ledger {
    /// One that nothing is written to, because nobody comes after us.
    #[must_use]
    pub fn nowhere() -> Arc<Self> {
        Self::over(None, Free::default())
    }

    /// The ledger of a mount, in memory that the keeper made, and what stands in it: `None` if the mount is fresh.
    ///
    /// # Errors
    /// [`Unfit`]
    pub fn open(memory: OwnedFd) -> Result<(Arc<Self>, Option<Left>), Unfit> {
        let memory = SharedMemory::map(memory)?;
        let none = || Unfit::Damaged("its memory ends too soon");
        let mut layout = [0; LAYOUT.len()];
        memory.read(0, &mut layout).ok_or_else(none)?;
        if layout == [0; LAYOUT.len()] {
            memory.write(0, &LAYOUT).ok_or_else(none)?;
            let free = Free {
                slabs: 1,
                ..Free::default()
            };
            return Ok((Self::over(Some(memory), free), None));
        }
        if layout != LAYOUT {
            return Err(Unfit::Layout);
        }
        let head = |at| match word(&memory, at).ok_or_else(none)? {
            0 => Ok(0),
            word => number(at, word).ok_or(Unfit::Damaged("its head is not as it was written")),
        };
        if head(MISSING)? != 0 {
            return Err(Unfit::Incomplete);
        }
        let negotiated = negotiated(&memory)?;
        let next = head(NEXT)?;
        let (free, written) = slots(&memory)?;
        let ledger = Self::over(Some(memory), free);
        let lines = written.into_iter().map(|written| {
            let entry = Entry {
                ledger: Arc::clone(&ledger),
                slot: Some(written.slot),
            };
            let line = Line::read(&written.text);
            let line = line.ok_or(Unfit::Damaged("a line says what no line says"))?;
            Ok((line, written.numbers, entry))
        });
        let left = Left::new(negotiated, next, lines.collect::<Result<_, Unfit>>()?)?;
        Ok((ledger, Some(left)))
    }

    /// Whether what stands in this memory could be read by this release.
    #[must_use]
    pub fn is_of_this_release(memory: &OwnedFd) -> bool {
        let memory = memory.try_clone().and_then(SharedMemory::map);
        memory.is_ok_and(|memory| {
            let mut layout = [0; LAYOUT.len()];
            memory.read(0, &mut layout).is_some() && layout == LAYOUT
        })
    }

    /// What the memory of this release begins with. Another release that says the same can go on with it.
    #[must_use]
    pub fn layout() -> &'static str {
        std::str::from_utf8(&LAYOUT).unwrap_or_default().trim_end()
    }

    fn over(memory: Option<SharedMemory>, free: Free) -> Arc<Self> {
        Arc::new(Self {
            memory,
            free: Mutex::new(free),
        })
    }

    /// True if somebody may come after us.
    pub(super) fn is_kept(&self) -> bool {
        self.memory.is_some()
    }

    /// From now on the next server can take the connection over.
    pub fn agreed(&self, negotiated: Negotiated) {
        let [low, high] = halves(negotiated.flags);
        let [first, second] = FLAGS;
        // The last one says that the others are there.
        for (at, number) in [(first, low), (second, high), (MINOR, negotiated.minor)] {
            self.put(at, checked(at, number.into()));
        }
    }

    /// Whether another server may go on with it, where nobody else counts.
    ///
    /// # Errors
    /// [`Unfit::Deadly`] if too many after one another have got as far as to [`Ledger::begins`], and not to
    /// [`Ledger::goes_well`].
    pub fn may_be_followed(&self) -> Result<(), Unfit> {
        match self.falls() > IN_A_ROW {
            true => Err(Unfit::Deadly),
            false => Ok(()),
        }
    }

    /// Counts a server that begins to serve.
    pub fn begins(&self) {
        self.put(FALLS, checked(FALLS, self.falls() + 1));
    }

    fn falls(&self) -> u64 {
        let falls = self.memory.as_ref().and_then(|memory| word(memory, FALLS));
        let falls = falls.and_then(|falls| number(FALLS, falls));
        falls.unwrap_or_default()
    }

    /// This server has come further than to what the one before may have died of.
    pub fn goes_well(&self) {
        self.put(FALLS, checked(FALLS, 0));
    }

    /// What was agreed on with the kernel, if that is so far.
    #[must_use]
    pub fn agreed_on(&self) -> Option<Negotiated> {
        negotiated(self.memory.as_ref()?).ok()
    }

    /// All inodes so far have lower numbers.
    pub(super) fn count(&self, next: u64) {
        self.put(NEXT, checked(NEXT, next));
    }

    /// Writes a line, which stays until it is dropped. `None` where nothing is kept.
    pub(super) fn write(
        self: &Arc<Self>,
        line: &Line,
        numbers: [u64; Number::MOST],
    ) -> Option<Entry> {
        let memory = self.memory.as_ref()?;
        let text = line.text();
        let slot = self.place(memory, text.len());
        if let Some(Slot { at, .. }) = slot {
            let head = head(text.len());
            let mut words = [0; 1 + Number::MOST];
            let [sum, rest @ ..] = &mut words;
            *sum = check(head, at, &text);
            *rest = numbers.map(|number| checked(at, number));
            let words = words.map(u64::to_ne_bytes);
            let written = memory
                .write(at + SharedMemory::WORD, words.as_flattened())
                .and_then(|()| memory.write(at + HEAD, &text));
            debug_assert!(written.is_some());
            self.put(at, head);
        }
        Some(Entry {
            ledger: Arc::clone(self),
            slot,
        })
    }

    fn put(&self, at: usize, word: u64) {
        if let Some(memory) = &self.memory {
            let written = memory.write(at, &word.to_ne_bytes());
            debug_assert!(written.is_some());
            #[cfg(test)]
            kills::word_was_written(memory);
        }
    }

    /// A free slot for so many bytes. Without one that is written down.
    fn place(&self, memory: &SharedMemory, length: usize) -> Option<Slot> {
        let mut free = self.free();
        let slot = free.slot(memory, HEAD + length);
        if slot.is_none() {
            free.missing += 1;
            self.put(MISSING, checked(MISSING, free.missing));
            if !std::mem::replace(&mut free.warned, true) {
                tracing::warn!(
                    "there is no more room to write down which files are open: if the server died now they would have to be opened anew"
                );
            }
        }
        slot
    }

    /// Nothing panics while it holds the lock, and nothing waits.
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    /// The smallest that is left.
    fn slot(&mut self, memory: &SharedMemory, length: usize) -> Option<Slot> {
        let fit = SIZES.iter().position(|size| length <= *size)?;
        if self.slots.get(fit)?.is_empty() {
            self.divide(memory, fit);
        }
        let mut larger = self.slots.iter_mut().enumerate().skip(fit);
        larger.find_map(|(size, slots)| {
            Some(Slot {
                at: slots.pop()?,
                size,
            })
        })
    }

    /// Makes slots of this size of the next slab, if there is one.
    fn divide(&mut self, memory: &SharedMemory, size: usize) -> Option<()> {
        let start = self.slabs * SLAB;
        if start + SLAB > SharedMemory::SIZE {
            return None;
        }
        let at = TABLE + self.slabs * SharedMemory::WORD;
        let word = checked(at, u64::try_from(size).ok()? + 1);
        memory.write(at, &word.to_ne_bytes())?;
        self.slabs += 1;
        let all = (start..start + SLAB).step_by(*SIZES.get(size)?);
        self.slots.get_mut(size)?.extend(all.rev());
        Some(())
    }
}

/// A line. It is taken out when this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    ledger: Arc<Ledger>,
    /// `None` if there was no room for it.
    slot: Option<Slot>,
}

impl Entry {
    /// Changes one of its numbers.
    pub(super) fn set(&self, which: Number, number: u64) {
        if let Some(Slot { at, .. }) = self.slot {
            let place = at + (2 + which.index()) * SharedMemory::WORD;
            self.ledger.put(place, checked(at, number));
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(Slot { at, size }) = self.slot {
            self.ledger.put(at, 0);
            if let Some(slots) = self.ledger.free().slots.get_mut(size) {
                slots.push(at);
            }
        } else {
            let mut free = self.ledger.free();
            free.missing = free.missing.saturating_sub(1);
            self.ledger.put(MISSING, checked(MISSING, free.missing));
        }
    }
}

impl Written {
    /// The line in a slot; `None` if the slot is free.
    fn read(memory: &SharedMemory, slot: Slot) -> Result<Option<Self>, Unfit> {
        const WRONG: Unfit = Unfit::Damaged("a line is not as it was written");
        let Slot { at, size } = slot;
        let read = |index: usize| word(memory, at + index * SharedMemory::WORD).ok_or(WRONG);
        let head = read(0)?;
        if head == 0 {
            return Ok(None);
        }
        let length = usize::try_from(head ^ MARK).map_err(|_| WRONG)?;
        let room = SIZES.get(size).map_or(0, |size| size.saturating_sub(HEAD));
        if length > room {
            return Err(WRONG);
        }
        let mut text = vec![0; length];
        memory.read(at + HEAD, &mut text).ok_or(WRONG)?;
        if read(1)? != check(head, at, &text) {
            return Err(WRONG);
        }
        let mut numbers = [0; Number::MOST];
        for (index, to) in numbers.iter_mut().enumerate() {
            *to = number(at, read(2 + index)?).ok_or(WRONG)?;
        }
        Ok(Some(Self {
            slot,
            text,
            numbers,
        }))
    }
}

/// All slots: the free ones, and those with lines in them.
fn slots(memory: &SharedMemory) -> Result<(Free, Vec<Written>), Unfit> {
    const WRONG: Unfit = Unfit::Damaged("the table of slots is not as it was written");
    let (mut free, mut all) = (Free::default(), Vec::new());
    free.slabs = 1;
    for slab in 1..SharedMemory::SIZE / SLAB {
        let at = TABLE + slab * SharedMemory::WORD;
        let size = match word(memory, at).ok_or(WRONG)? {
            0 => break,
            word => number(at, word).ok_or(WRONG)?,
        };
        let size = usize::try_from(size).map_err(|_| WRONG)?;
        let size = size.checked_sub(1).ok_or(WRONG)?;
        let length = *SIZES.get(size).ok_or(WRONG)?;
        free.slabs = slab + 1;
        let start = slab * SLAB;
        for at in (start..start + SLAB).step_by(length) {
            match Written::read(memory, Slot { at, size })? {
                Some(written) => all.push(written),
                None => free.slots.get_mut(size).ok_or(WRONG)?.push(at),
            }
        }
    }
    Ok((free, all))
}

fn negotiated(memory: &SharedMemory) -> Result<Negotiated, Unfit> {
    const NONE: Unfit = Unfit::Damaged("the kernel had not said its first word yet");
    let read = |at| {
        let number = word(memory, at).and_then(|word| number(at, word));
        number
            .and_then(|number| u32::try_from(number).ok())
            .ok_or(NONE)
    };
    let [low, high] = FLAGS.map(read);
    Ok(Negotiated {
        minor: read(MINOR)?,
        flags: u64::from(low?) | u64::from(high?) << u32::BITS,
    })
}

/// The lower half first.
fn halves(word: u64) -> [u32; 2] {
    let half = |shift| u32::try_from(word >> shift & u64::from(u32::MAX)).unwrap_or_default();
    [half(0), half(u32::BITS)]
}

fn word(memory: &SharedMemory, at: usize) -> Option<u64> {
    let mut bytes = [0; SharedMemory::WORD];
    memory.read(at, &mut bytes)?;
    Some(u64::from_ne_bytes(bytes))
}

/// The first word of a line. It is never 0.
fn head(length: usize) -> u64 {
    MARK | u64::try_from(length).unwrap_or_default()
}
