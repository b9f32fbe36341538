//! A little memory for keys.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use zeroize::Zeroizing;

use super::pages::{Pages, Words};

/// A little memory that two processes share by a descriptor and that is never swapped, dumped or written anywhere.
#[derive(Debug)]
pub struct SecretMemory {
    words: Words,
    descriptor: OwnedFd,
}

impl SecretMemory {
    /// How many bytes fit.
    pub const CAPACITY: usize = Self::SIZE - 2 * Words::WORD;
    const SIZE: usize = 16 * 1024;
    /// Where it stands how many bytes there are, where they begin, and where the numbers are counted.
    const LENGTH: usize = 0;
    const BYTES: usize = Words::WORD;
    const COUNT: usize = Self::SIZE - Words::WORD;

    /// Fresh, empty memory: memfd_secret where the kernel has it, else a memory file that is locked while mapped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let number = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let descriptor = match i32::try_from(number) {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(number) if number >= 0 => unsafe { OwnedFd::from_raw_fd(number) },
            Ok(_) | Err(_) => nix::sys::memfd::memfd_create(
                c"secretfs-key",
                nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
            )?,
        };
        nix::unistd::ftruncate(&descriptor, 16 * 1024)?;
        Self::map(descriptor)
    }

    /// The memory behind a descriptor that another process made with [`SecretMemory::new`].
    ///
    /// # Errors
    /// What the kernel says, also of a descriptor of another kind or size.
    pub fn map(descriptor: OwnedFd) -> io::Result<Self> {
        if nix::sys::stat::fstat(&descriptor)?.st_size != 16 * 1024 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let words = Words::of(Pages::map(Some(&descriptor), Self::SIZE, libc::MAP_SHARED)?);
        // Secret memory is locked by itself. What cannot be locked otherwise is no worse than any other memory.
        let _ = words.lock();
        Ok(Self { words, descriptor })
    }

    /// The descriptor, to pass on.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Keeps these bytes instead of what was there.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] beyond [`SecretMemory::CAPACITY`].
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > Self::CAPACITY {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
        // Who dies on the way leaves it empty.
        let written = [
            self.words.wipe(Self::LENGTH, Words::WORD),
            self.words.write(Self::BYTES, bytes),
            self.words.write(Self::LENGTH, &length.to_ne_bytes()),
        ];
        debug_assert!(written.iter().all(Option::is_some));
        Ok(())
    }

    /// What was written last, here or in the other process; `None` if nothing was.
    #[must_use]
    pub fn read(&self) -> Option<Zeroizing<Vec<u8>>> {
        let mut bytes = Zeroizing::new(vec![0; self.len()?]);
        self.words.read(Self::BYTES, &mut bytes)?;
        Some(bytes)
    }

    /// The same, copied to a place that stays where it is: what is moved leaves copies behind. `None` if it is not just
    /// as long as `bytes`.
    #[must_use]
    pub fn read_into(&self, bytes: &mut [u8]) -> Option<()> {
        (self.len()? == bytes.len()).then_some(())?;
        self.words.read(Self::BYTES, bytes)
    }

    /// A number that was never given before by this memory, in any process. What is written beside it does not matter.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.words.count(Self::COUNT).unwrap_or_default()
    }

    fn len(&self) -> Option<usize> {
        let mut length = [0; Words::WORD];
        self.words.read(Self::LENGTH, &mut length)?;
        let length = usize::try_from(u64::from_ne_bytes(length)).ok();
        length.filter(|length| (1..=Self::CAPACITY).contains(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_memory_is_shared_by_its_descriptor() {
        let memory = SecretMemory::new().unwrap();
        assert_eq!(memory.read(), None);
        memory.write(b"canary-7f3a").unwrap();
        let other = SecretMemory::map(memory.descriptor().try_clone().unwrap()).unwrap();
        assert_eq!(other.read().unwrap().as_slice(), b"canary-7f3a");
        assert!(memory.write(&[0; SecretMemory::CAPACITY + 1]).is_err());
        let mut bytes = [0; 11];
        other.read_into(&mut bytes).unwrap();
        assert_eq!(bytes, *b"canary-7f3a");
        assert_eq!(other.read_into(&mut bytes[1..]), None);
    }

    #[test]
    fn no_number_is_given_twice() {
        let memory = SecretMemory::new().unwrap();
        let other = SecretMemory::map(memory.descriptor().try_clone().unwrap()).unwrap();
        let first = memory.next_number();
        memory.write(&[0xff; SecretMemory::CAPACITY]).unwrap();
        assert_eq!(
            [other.next_number(), memory.next_number()],
            [first + 1, first + 2]
        );
    }
}
