//! Much memory that one process leaves to the next.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::libc::off_t;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};

use super::pages::{Pages, Words};

/// Memory that one process leaves to the next by a descriptor. It may be swapped and read by whoever has the descriptor,
/// so nothing secret belongs into it in the clear. What nothing was written to takes no room.
#[derive(Debug)]
pub struct SharedMemory {
    words: Words,
    descriptor: OwnedFd,
}

impl SharedMemory {
    /// How long it is, in bytes.
    pub const SIZE: usize = if usize::BITS < 64 {
        64 << 20
    } else {
        256 << 20
    };
    /// Offsets are multiples of this.
    pub const WORD: usize = Words::WORD;
    const LENGTH: off_t = if usize::BITS < 64 {
        64 << 20
    } else {
        256 << 20
    };

    /// The descriptor of fresh memory, which is not mapped here.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create() -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let descriptor = memfd_create(c"secretfs-memory", flags)?;
        nix::unistd::ftruncate(&descriptor, Self::LENGTH)?;
        fcntl(&descriptor, FcntlArg::F_ADD_SEALS(Self::seals()))?;
        Ok(descriptor)
    }

    /// Fresh memory, all of it 0.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        Self::map(Self::create()?)
    }

    /// The memory behind a descriptor that another process made with [`SharedMemory::create`].
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` for a descriptor of another size, or of one that could change, so that using the
    /// memory could end the process.
    pub fn map(descriptor: OwnedFd) -> io::Result<Self> {
        let seals = fcntl(&descriptor, FcntlArg::F_GET_SEALS)?;
        let seals = SealFlag::from_bits_truncate(seals);
        let size = nix::sys::stat::fstat(&descriptor)?.st_size;
        if seals != Self::seals() || size != Self::LENGTH {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let words = Words::of(Pages::map(Some(&descriptor), Self::SIZE, flags)?);
        Ok(Self { words, descriptor })
    }

    /// The descriptor, to pass on.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Copies out what is at `at`, a multiple of [`SharedMemory::WORD`]; `None` if it does not lie within.
    #[must_use]
    pub fn read(&self, at: usize, bytes: &mut [u8]) -> Option<()> {
        self.words.read(at, bytes)
    }

    /// Copies in at `at`, a multiple of [`SharedMemory::WORD`]. Who dies between two calls has written nothing of the
    /// second one. What is left of the last word becomes 0. `None`, and nothing is written, if it does not fit.
    #[must_use]
    pub fn write(&self, at: usize, bytes: &[u8]) -> Option<()> {
        self.words.write(at, bytes)
    }

    /// Makes these bytes 0, and the rest of the last word; `None` if they do not lie within.
    #[must_use]
    pub fn wipe(&self, range: Range<usize>) -> Option<()> {
        self.words.wipe(range.start, range.len())
    }

    /// Gives whole pages back to the kernel and makes what is left of the range 0.
    ///
    /// # Errors
    /// What the kernel says, also of a range that does not lie within.
    pub fn give_back(&self, range: Range<usize>) -> io::Result<()> {
        let [start, length] = [range.start, range.len()].map(off_t::try_from);
        let (start, length) = (
            start.map_err(io::Error::other)?,
            length.map_err(io::Error::other)?,
        );
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.descriptor, flags, start, length)?)
    }

    /// What something was written to and that was not given back, in whole pages. To look for more would make it take
    /// room.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn held(&self) -> io::Result<Vec<Range<usize>>> {
        let mut held = Vec::new();
        let mut from = 0;
        while let Some(start) = seek(&self.descriptor, from, Whence::SeekData)? {
            let end = seek(&self.descriptor, start, Whence::SeekHole)?.unwrap_or(Self::LENGTH);
            let [first, last] =
                [start, end].map(|at| usize::try_from(at).map_err(io::Error::other));
            held.push(first?..last?);
            from = end;
        }
        Ok(held)
    }

    /// How long a page is, in bytes: what is given back has to be as long.
    #[must_use]
    pub fn page() -> usize {
        // SAFETY: the call takes no pointers.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).unwrap_or(Self::SIZE)
    }

    fn seals() -> SealFlag {
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
    }
}

/// Where what is looked for begins; `None` if there is no more of it.
fn seek(file: impl AsFd, from: off_t, whence: Whence) -> io::Result<Option<off_t>> {
    match lseek(file, from, whence) {
        Ok(at) => Ok(Some(at)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(memory: &SharedMemory) -> SharedMemory {
        SharedMemory::map(memory.descriptor().try_clone().unwrap()).unwrap()
    }

    fn held(memory: &SharedMemory) -> Vec<(usize, usize)> {
        let held = memory.held().unwrap();
        held.iter().map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn what_one_writes_the_other_reads() {
        let memory = SharedMemory::new().unwrap();
        memory.write(8, b"thirteen byte").unwrap();
        let mut bytes = [1; 24];
        other(&memory).read(0, &mut bytes).unwrap();
        assert_eq!(bytes, *b"\0\0\0\0\0\0\0\0thirteen byte\0\0\0");
        memory.wipe(16..18).unwrap();
        other(&memory).read(8, &mut bytes[..13]).unwrap();
        assert_eq!(bytes[..13], *b"thirteen\0\0\0\0\0");
    }

    #[test]
    fn nothing_is_written_or_read_beyond_its_ends() {
        let memory = SharedMemory::new().unwrap();
        let last = SharedMemory::SIZE - SharedMemory::WORD;
        assert!(memory.write(last, &[7; 8]).is_some());
        for (at, length) in [
            (last, 9),
            (last + 8, 1),
            (last + 16, 0),
            (usize::MAX - 7, 8),
            (4, 1),
        ] {
            assert_eq!(memory.write(at, &vec![9; length]), None, "{at} {length}");
            assert_eq!(memory.read(at, &mut vec![9; length]), None, "{at} {length}");
        }
        assert_eq!(memory.wipe(last..last + 9), None);
        let mut bytes = [0; 8];
        memory.read(last, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 8]);
    }

    #[test]
    fn what_is_given_back_takes_no_room_and_is_zero() {
        let memory = SharedMemory::new().unwrap();
        assert_eq!(held(&memory), []);
        let page = SharedMemory::page();
        memory.write(page, &vec![7; 4 * page]).unwrap();
        assert_eq!(held(&memory), [(page, 5 * page)]);
        memory.give_back(page + 64..4 * page + 64).unwrap();
        assert_eq!(held(&memory), [(page, 2 * page), (4 * page, 5 * page)]);
        let mut bytes = [1; 72];
        memory.read(page, &mut bytes).unwrap();
        assert_eq!((bytes[63], bytes[64]), (7, 0));
        memory.read(4 * page, &mut bytes).unwrap();
        assert_eq!((bytes[63], bytes[64]), (0, 7));
        memory.give_back(0..SharedMemory::SIZE).unwrap();
        assert_eq!(held(&memory), []);
    }

    #[test]
    fn only_memory_that_cannot_change_its_size_is_mapped() {
        let loose = memfd_create(c"loose", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&loose, SharedMemory::LENGTH).unwrap();
        let short = memfd_create(c"short", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        fcntl(&short, FcntlArg::F_ADD_SEALS(SharedMemory::seals())).unwrap();
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        for wrong in [loose, short, file] {
            assert!(SharedMemory::map(wrong).is_err());
        }
    }
}
