//! Words of the ledger that tell whether they are as they were written.

use super::MARK;
use super::lines::Number;
use crate::sys::SharedMemory;

/// How many bits a number may have.
const BITS: u32 = 48;
const MOST: u64 = Number::HIGHEST;
/// How many its check has. The bit above it is always set, so that no number is written as 0.
const CHECK_BITS: u32 = 15;
const SET: u64 = 1 << 63;
/// Odd, so that multiplying by it can be undone.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number with its check, which is another one in other places. What is higher than the highest becomes that: nobody counts
/// so far.
pub(super) fn checked(at: usize, number: u64) -> u64 {
    let number = number.min(MOST);
    SET | (fold(number) ^ fold(place(at))) << BITS | number
}

/// The number, if it is as it was written there.
pub(super) fn number(at: usize, word: u64) -> Option<u64> {
    let number = word & MOST;
    (checked(at, number) == word).then_some(number)
}

/// What tells a line that is not as it was written. Each step can be undone, so that no single word that differs is missed.
pub(super) fn check(head: u64, at: usize, text: &[u8]) -> u64 {
    let (words, rest) = text.as_chunks();
    let mut last = [0; SharedMemory::WORD];
    last.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
    let first = [head, place(at)];
    let words = words
        .iter()
        .chain([&last])
        .map(|word| u64::from_ne_bytes(*word));
    let add = |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(STEP);
    first.into_iter().chain(words).fold(MARK, add)
}

/// What stands for a place in a check.
fn place(at: usize) -> u64 {
    u64::try_from(at).unwrap_or_default().wrapping_mul(STEP)
}

/// Each bit in one of fewer.
fn fold(word: u64) -> u64 {
    let parts = (0..).map(|part| part * CHECK_BITS);
    let parts = parts.take_while(|shift| *shift < u64::BITS);
    parts.fold(0, |sum, shift| sum ^ word >> shift) & ((1 << CHECK_BITS) - 1)
}
