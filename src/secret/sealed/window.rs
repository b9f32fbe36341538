//! Where a value is in the clear while it is shown.

use std::cell::Cell;
use std::sync::Once;

use zeroize::Zeroize;

use super::Broken;
use super::entry::{CHUNK, TAG};
use crate::sys::LockedBuffer;

thread_local! {
    /// Each thread that shows values has one, so that none is made, and nothing is asked of the kernel, for a read.
    static BUFFER: Cell<Option<LockedBuffer>> = const { Cell::new(None) };
}

/// The first bytes of this thread's buffer. They are wiped when this is dropped.
pub(super) struct Window {
    /// There until then.
    buffer: Option<LockedBuffer>,
    length: usize,
}

impl Window {
    /// How much is shown at once.
    pub(super) const MAX_SHOWN: usize = 128 << 10;
    /// How much fits: that, and a chunk with its tag, because it may begin and end within one.
    pub(super) const SIZE: usize = Self::MAX_SHOWN + CHUNK + TAG;

    /// A window of so many bytes, all 0.
    ///
    /// # Errors
    /// [`Broken`] if there is no such memory.
    pub(super) fn open(length: usize) -> Result<Self, Broken> {
        let buffer = match BUFFER.take() {
            Some(buffer) => buffer,
            None => fresh()?,
        };
        Ok(Self {
            buffer: Some(buffer),
            length: length.min(Self::SIZE),
        })
    }

    /// Its bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let bytes = self.buffer.as_mut().map(LockedBuffer::bytes);
        bytes
            .and_then(|bytes| bytes.get_mut(..self.length))
            .unwrap_or_default()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.bytes().zeroize();
        BUFFER.set(self.buffer.take());
    }
}

fn fresh() -> Result<LockedBuffer, Broken> {
    static SAID: Once = Once::new();
    let (buffer, locked) = LockedBuffer::new(Window::SIZE).map_err(|_| Broken)?;
    if let Err(error) = locked {
        SAID.call_once(|| {
            tracing::warn!(
                "values that are shown may be swapped for a moment, because so much memory cannot be locked: {error}: \
                 raise RLIMIT_MEMLOCK (LimitMEMLOCK= of the unit)"
            );
        });
    }
    Ok(buffer)
}
