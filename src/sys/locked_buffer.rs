//! A buffer for values in the clear.

use std::io;

use zeroize::Zeroize;

use super::pages::Pages;

/// Bytes that no dump shows, that are not swapped where the process may lock that much, and that are wiped when it is
/// dropped. It is ordinary memory otherwise: the kernel does not read from secret memory.
#[derive(Debug)]
pub struct LockedBuffer(Pages);

impl LockedBuffer {
    /// So many bytes, all 0, and why they could not be locked.
    ///
    /// # Errors
    /// If there is no such memory.
    pub fn new(size: usize) -> io::Result<(Self, io::Result<()>)> {
        let pages = Pages::map(None, size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)?;
        let locked = pages.lock();
        Ok((Self(pages), locked))
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.0.bytes()
    }
}

impl Drop for LockedBuffer {
    fn drop(&mut self) {
        self.0.bytes().zeroize();
    }
}
