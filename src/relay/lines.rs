//! Lines out of a stream, none of which takes more memory than it may.

/// The longest line, in bytes. A longer one is skipped.
pub(super) const MAX_LINE: usize = 1 << 20;

/// What is kept of a line that has not ended yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
    /// The line is too long.
    skipping: bool,
}

impl Lines {
    /// Takes what has come, and gives each whole line to `line`. True if one was too long.
    pub(super) fn take(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) -> bool {
        let mut skipped = false;
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (last, rest) = bytes.split_at(end);
            skipped |= self.add(last);
            if !std::mem::take(&mut self.skipping) {
                line(&self.begun);
            }
            self.begun.clear();
            bytes = rest.get(1..).unwrap_or_default();
        }
        // One long line must not hold its memory for ever.
        self.begun.shrink_to(MAX_LINE / 16);
        skipped | self.add(bytes)
    }

    /// Forgets a line that has begun.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn add(&mut self, bytes: &[u8]) -> bool {
        if self.skipping {
            return false;
        }
        if self.begun.len() + bytes.len() >= MAX_LINE {
            self.begun = Vec::new();
            self.skipping = true;
            return true;
        }
        self.begun.extend_from_slice(bytes);
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_no_other() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        let long = vec![b'x'; MAX_LINE];
        let mut take = |bytes: &[u8]| lines.take(bytes, |line| seen.push(line.to_vec()));
        assert!(!take(b"a\nb"));
        assert!(take(&long));
        assert!(!take(&long));
        assert!(!take(b"\nc\n\n"));
        assert_eq!(seen, [b"a".to_vec(), b"c".to_vec(), b"".to_vec()]);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_come(bytes in "[ab\n]{0,60}", cut in 0_usize..60) {
            let bytes = bytes.as_bytes();
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut seen = Vec::new();
            let mut lines = Lines::default();
            for part in [first, second] {
                lines.take(part, |line| seen.push(line.to_vec()));
            }
            let mut expected: Vec<_> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            expected.pop();
            prop_assert_eq!(seen, expected);
        }
    }
}
