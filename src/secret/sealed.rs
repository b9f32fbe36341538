//! Values that are kept: sealed in memory that outlives the process, under a key that lies elsewhere.
//!
//! The memory is one that a server leaves to the next by a descriptor, and it may be swapped. What stands in it is sealed
//! with ChaCha20-Poly1305; the key is in [`SecretMemory`], and is fetched from there for each call. A value is in the clear
//! only while somebody opens it.
//!
//! What a server leaves that dies, at whatever moment, is either whole or not there: the first word of an entry is written
//! last and wiped first. The numbers that the nonces are made of are counted beside the key, so that nothing that becomes
//! of the memory can bring one back.
//!
//! Whether two hold the same bytes is asked under locks, so it is seen without opening them, by fingerprints that the process
//! keeps for itself. They are made with a key that comes from that key: without it, nobody can see whether a guess is right.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io, iter};

use zeroize::Zeroizing;

use super::SecretBytes;
use crate::sys::{SecretMemory, SharedMemory};

mod entry;
mod fingerprint;
mod runs;
mod window;

#[cfg(test)]
mod tests;

use entry::{BLOCK, CHUNK, Cipher, Entry, TAG};
use fingerprint::{Fingerprint, Fingerprints};
use runs::Runs;
use window::Window;

/// What the memory begins with. Another layout needs another one.
const LAYOUT: [u8; BLOCK] = *b"secretfs: sealed values, layout 1                               ";

/// Memory for sealed bytes, and the key to them.
#[derive(Debug)]
pub struct SealedMemory {
    memory: SharedMemory,
    key: SecretMemory,
    free: Mutex<Runs>,
    page: usize,
}

/// What is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A secret's value.
    Value,
    /// What is known of values, which it names by their numbers.
    Note,
}

/// There is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memory for sealed values is full")]
pub struct Full;

/// It does not open: its memory was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed value does not open")]
pub struct Broken;

/// What a dead server left, each of it whole.
pub type Survivors = Vec<(Kind, Sealed)>;

impl SealedMemory {
    /// Fresh memory and a fresh key, of which no other process knows.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Arc<Self>> {
        let (memory, _) = Self::over(SharedMemory::new()?, SecretMemory::new()?)?;
        Ok(memory)
    }

    /// Takes over what a dead server left, and says what that is. What is not whole, or was not sealed with the key, is
    /// wiped. Memory of another layout, or without a key, is made afresh.
    ///
    /// # Errors
    /// What the kernel says, also of descriptors that [`SharedMemory::create`] and [`SecretMemory::new`] did not make.
    pub fn take_over(memory: OwnedFd, key: OwnedFd) -> io::Result<(Arc<Self>, Survivors)> {
        Self::over(SharedMemory::map(memory)?, SecretMemory::map(key)?)
    }

    fn over(memory: SharedMemory, key: SecretMemory) -> io::Result<(Arc<Self>, Survivors)> {
        let cipher = match Cipher::new(&key).filter(|_| is_ours(&memory)) {
            Some(cipher) => cipher,
            None => begin(&memory, &key)?,
        };
        let entries = survivors(&memory, &cipher)?;
        let mut free = Runs::default();
        let mut from = BLOCK;
        let ends = entries.iter().map(|(entry, _)| entry.range());
        for taken in ends.chain(iter::once(SharedMemory::SIZE..SharedMemory::SIZE)) {
            if from < taken.start {
                memory.give_back(from..taken.start)?;
                free.put(from..taken.start);
            }
            from = taken.end;
        }
        let memory = Arc::new(Self {
            memory,
            key,
            free: Mutex::new(free),
            page: SharedMemory::page(),
        });
        let sealed = |(entry, fingerprint): (Entry, Fingerprint)| {
            let memory = Arc::clone(&memory);
            let sealed = Sealed {
                memory,
                entry,
                fingerprint,
            };
            (entry.kind, sealed)
        };
        let survivors = entries.into_iter().map(sealed).collect();
        Ok((memory, survivors))
    }

    /// Seals these bytes, which stay the caller's to wipe.
    ///
    /// # Errors
    /// [`Full`]: when something was dropped it may fit.
    pub fn seal(self: &Arc<Self>, kind: Kind, bytes: &[u8]) -> Result<Sealed, Full> {
        let room = Entry::room(bytes.len()).ok_or(Full)?;
        let cipher = Cipher::new(&self.key).ok_or(Full)?;
        let place = self.free().take(room).ok_or(Full)?;
        let mut sealed = Sealed {
            memory: Arc::clone(self),
            entry: Entry {
                kind,
                number: self.key.next_number(),
                place,
                length: bytes.len(),
            },
            fingerprint: Fingerprint::default(),
        };
        let written = sealed.entry.seal(&self.memory, &cipher, bytes);
        sealed.fingerprint = written.ok_or(Full)?;
        Ok(sealed)
    }

    /// Wipes all of it behind the back of those whose values are in it.
    #[cfg(test)]
    pub(crate) fn damage(&self) {
        for range in self.memory.held().unwrap() {
            self.wipe(range);
        }
    }

    /// Wipes an entry, and gives the pages back that nothing is left on.
    fn drop_entry(&self, entry: &Entry) {
        let range = entry.range();
        self.wipe(range.start..range.start + SharedMemory::WORD);
        let pages = range.start / self.page * self.page..range.end.next_multiple_of(self.page);
        // Nobody else takes what is on these pages before the kernel has them: what came in between would be lost.
        let ours = self.free().take_around(range.clone(), pages);
        let whole = ours.start.next_multiple_of(self.page)..ours.end / self.page * self.page;
        if !whole.is_empty() && self.memory.give_back(whole.clone()).is_ok() {
            self.wipe(range.start..whole.start.max(range.start));
            self.wipe(whole.end.min(range.end)..range.end);
        } else {
            self.wipe(range);
        }
        self.free().put(ours);
    }

    fn wipe(&self, range: Range<usize>) {
        let wiped = self.memory.wipe(range);
        debug_assert!(wiped.is_some());
    }

    /// Nothing panics while it holds the lock, and nothing waits.
    fn free(&self) -> MutexGuard<'_, Runs> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it was left by a server that had the same layout.
fn is_ours(memory: &SharedMemory) -> bool {
    let mut layout = [0; BLOCK];
    memory.read(0, &mut layout).is_some() && layout == LAYOUT
}

/// Wipes all that is there and makes a key that never was.
fn begin(memory: &SharedMemory, key: &SecretMemory) -> io::Result<Cipher> {
    memory.give_back(0..SharedMemory::SIZE)?;
    let mut fresh = Zeroizing::new([0; 32]);
    let none = || io::Error::other("there is no randomness");
    aws_lc_rs::rand::fill(fresh.as_mut_slice()).map_err(|_| none())?;
    key.write(fresh.as_slice())?;
    let cipher = Cipher::new(key);
    let written = memory.write(0, &LAYOUT);
    written
        .and(cipher)
        .ok_or_else(|| io::Error::other("there is no memory"))
}

/// The entries that are whole and were sealed with this key, by their places.
fn survivors(memory: &SharedMemory, cipher: &Cipher) -> io::Result<Vec<(Entry, Fingerprint)>> {
    let none = || io::Error::other("there is no memory");
    let fingerprints = Fingerprints::new(cipher).ok_or_else(none)?;
    let mut buffer = Zeroizing::new(vec![0; CHUNK + TAG]);
    let mut whole = |entry: Entry| {
        let fingerprint = entry.verify(memory, cipher, &fingerprints, &mut buffer)?;
        Some((entry, fingerprint))
    };
    let mut entries = Vec::new();
    let mut place = BLOCK;
    for Range { start, end } in memory.held()? {
        place = place.max(start);
        while place < end {
            match Entry::find(memory, place).and_then(&mut whole) {
                Some(found) => {
                    place = found.0.range().end;
                    entries.push(found);
                }
                None => place += BLOCK,
            }
        }
    }
    Ok(entries)
}

/// Bytes that are sealed, and wiped when this is dropped. No `Clone`, and `Debug` shows nothing of them.
pub struct Sealed {
    memory: Arc<SealedMemory>,
    entry: Entry,
    fingerprint: Fingerprint,
}

impl Sealed {
    /// The number of the entry, by which a note can name it. No other has it, nor will have it while the key lives.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.entry.number
    }

    /// How many bytes are sealed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entry.length
    }

    /// True for a value of no bytes, which is a value like any other.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it, in the clear.
    ///
    /// # Errors
    /// [`Broken`]
    pub fn open(&self) -> Result<SecretBytes, Broken> {
        let mut bytes = Zeroizing::new(vec![0; self.len() + TAG]);
        self.open_chunks(self.entry.chunks(), &mut bytes)?;
        bytes.truncate(self.len());
        Ok(SecretBytes(bytes))
    }

    /// Passes at most `size` bytes from `offset` on to `give`, without a copy that outlives the call: they are in locked
    /// memory of this thread, which is wiped then. Fewer if there are no more, or if it is more than
    /// [`Sealed::MAX_SHOWN`].
    ///
    /// # Errors
    /// [`Broken`], also where there is no memory to open into.
    pub fn show<T>(
        &self,
        offset: usize,
        size: usize,
        give: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Broken> {
        let start = offset.min(self.len());
        let size = size.min(Self::MAX_SHOWN);
        let end = start.saturating_add(size).min(self.len());
        if start == end {
            return Ok(give(&[]));
        }
        let chunks = start / CHUNK..end.div_ceil(CHUNK);
        let before = chunks.start * CHUNK;
        let mut window = Window::open(chunks.len() * CHUNK + TAG)?;
        self.open_chunks(chunks, window.bytes())?;
        let shown = window.bytes().get(start - before..end - before);
        shown.map(give).ok_or(Broken)
    }

    /// How much is shown at once, in bytes.
    pub const MAX_SHOWN: usize = Window::MAX_SHOWN;

    /// Whether the same bytes were sealed in both, in the same memory. Neither is opened.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
            && self.len() == other.len()
            && self.fingerprint == other.fingerprint
    }

    /// Opens these chunks into `bytes`, one after the other. It must be longer by [`TAG`].
    fn open_chunks(&self, chunks: Range<usize>, bytes: &mut [u8]) -> Result<(), Broken> {
        let cipher = Cipher::new(&self.memory.key).ok_or(Broken)?;
        let mut left = bytes;
        for index in chunks {
            let opened = self
                .entry
                .open(&self.memory.memory, &cipher, index, left)?
                .len();
            left = left.get_mut(opened..).ok_or(Broken)?;
        }
        Ok(())
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        self.memory.drop_entry(&self.entry);
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(redacted)")
    }
}

impl Kind {
    fn code(self) -> u32 {
        match self {
            Self::Value => 1,
            Self::Note => 2,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Value, Self::Note]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}
