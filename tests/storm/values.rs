//! Values that show what they are: torn, mixed and stale ones can be told from the bytes alone.

/// The value of a generation: its number, repeated, and a checksum. Its length follows from the number: never nothing,
/// often just below or above the end of a page.
pub(crate) fn value(number: u64) -> Vec<u8> {
    let line = format!("{number},").into_bytes();
    let mut value: Vec<u8> = line.iter().copied().cycle().take(length(number)).collect();
    let sum = adler32(&value);
    value.extend(format!("{sum:08x}").into_bytes());
    value
}

/// Of the body, without the checksum.
fn length(number: u64) -> usize {
    let spread = usize::try_from(number.wrapping_mul(2_654_435_761) >> 7).unwrap();
    match spread % 4 {
        // A line and a bit.
        0 => 24 + spread % 200,
        // Around the ends of the first four pages; with the checksum some end exactly there.
        1 => (1 + spread / 4 % 4) * 4096 - 12 + spread / 16 % 9,
        2 => 24 + spread % 4000,
        _ => 24 + spread % 20_000,
    }
}

/// As zlib's, which the readers have.
fn adler32(bytes: &[u8]) -> u32 {
    const PRIME: u32 = 65_521;
    let (mut one, mut two) = (1, 0);
    // So many need no remainder in between.
    for part in bytes.chunks(5552) {
        for byte in part {
            one += u32::from(*byte);
            two += one;
        }
        one %= PRIME;
        two %= PRIME;
    }
    two << 16 | one
}

#[test]
fn lengths_are_around_the_ends_of_pages_and_never_nothing() {
    let lengths: Vec<usize> = (1..2000).map(|number| value(number).len()).collect();
    assert!(lengths.iter().all(|length| *length > 8));
    for pages in 1..5 {
        for beside in [-1, 0, 1] {
            let wanted = usize::try_from(pages * 4096 + beside).unwrap();
            assert!(lengths.contains(&wanted), "{wanted}");
        }
    }
    assert_eq!(adler32(b"Wikipedia"), 0x11E6_0398);
}
