//! Pages that are mapped here, and the words in those that others map as well.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A mapping that can be read and written, for as long as this lives. No dump shows it.
#[derive(Debug)]
pub(super) struct Pages {
    start: NonNull<u8>,
    size: usize,
}

impl Pages {
    /// Maps the first `size` bytes of a file, which must be as long, or fresh memory of our own. `flags` are those of
    /// mmap(2).
    pub(super) fn map(file: Option<&OwnedFd>, size: usize, flags: i32) -> io::Result<Self> {
        let descriptor = file.map_or(-1, AsRawFd::as_raw_fd);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, descriptor, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping was just made and is this long. What cannot be excluded from dumps (secret memory is by
        // itself) is no worse than any other memory of this process, which leaves no dumps.
        unsafe { libc::madvise(start, size, libc::MADV_DONTDUMP) };
        let start = NonNull::new(start.cast());
        let start = start.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(Self { start, size })
    }

    /// Keeps them out of swap.
    ///
    /// # Errors
    /// What mlock(2) fails with: mostly that the process may not lock as much.
    pub(super) fn lock(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours and this long.
        match unsafe { libc::mlock(self.start.as_ptr().cast(), self.size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Their bytes, where nobody else maps them.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is this long and lives as long as the borrow, which is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

// SAFETY: a mapping belongs to the process, not to a thread, and nothing here writes to it through a shared reference.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// Pages of a file that other threads and processes may write at any time: read and written word by word, so that a word
/// is never torn, and what is read is bytes and nothing else.
#[derive(Debug)]
pub(super) struct Words(Pages);

impl Words {
    /// How long a word is, in bytes. Offsets are multiples of it.
    pub(super) const WORD: usize = size_of::<u64>();

    /// The words of pages that are handed over, so that nobody can have their bytes any more.
    pub(super) fn of(pages: Pages) -> Self {
        Self(pages)
    }

    /// Locks the pages.
    ///
    /// # Errors
    /// [`Pages::lock`]
    pub(super) fn lock(&self) -> io::Result<()> {
        self.0.lock()
    }

    /// Copies out what is at `at`; `None` if it does not lie within.
    pub(super) fn read(&self, at: usize, bytes: &mut [u8]) -> Option<()> {
        let words = self.from(at, bytes.len())?;
        let (whole, rest) = bytes.as_chunks_mut();
        let mut words = words
            .iter()
            .map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        whole
            .iter_mut()
            .zip(&mut words)
            .for_each(|(to, word)| *to = word);
        rest.iter_mut()
            .zip(words.flatten())
            .for_each(|(to, byte)| *to = byte);
        Some(())
    }

    /// Copies in, after all that was written before. What is left of the last word becomes 0. `None`, and nothing is
    /// written, if it does not fit at `at`.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) -> Option<()> {
        let words = self.from(at, bytes.len())?;
        let (whole, rest) = bytes.as_chunks();
        let mut last = [0; Self::WORD];
        last.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
        let last = (!rest.is_empty()).then_some(&last);
        fence(Ordering::Release);
        for (word, bytes) in words.iter().zip(whole.iter().chain(last)) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        Some(())
    }

    /// Makes `length` bytes 0, after all that was written before, and the rest of the last word; `None` if they do not lie
    /// within.
    pub(super) fn wipe(&self, at: usize, length: usize) -> Option<()> {
        let words = self.from(at, length)?;
        fence(Ordering::Release);
        let words = words.iter().take(length.div_ceil(Self::WORD));
        words.for_each(|word| word.store(0, Ordering::Relaxed));
        Some(())
    }

    /// Adds one to the word at `at` and gives what it was before; `None` if it does not lie within.
    pub(super) fn count(&self, at: usize) -> Option<u64> {
        let word = self.from(at, Self::WORD)?.first()?;
        Some(word.fetch_add(1, Ordering::Relaxed))
    }

    /// The words from `at` on, if there are `length` bytes of them.
    fn from(&self, at: usize, length: usize) -> Option<&[AtomicU64]> {
        // SAFETY: pages are aligned to words and live as long as the borrow; here they are used in no other way.
        let words = unsafe {
            let start = self.0.start.as_ptr().cast::<AtomicU64>();
            std::slice::from_raw_parts(start, self.0.size / Self::WORD)
        };
        let words = words.get(at / Self::WORD..)?;
        (at.is_multiple_of(Self::WORD) && length.div_ceil(Self::WORD) <= words.len())
            .then_some(words)
    }
}
