//! The keyed chain: what makes an altered, removed or reordered line show.
//!
//! Each line carries an HMAC-SHA256 over the one of the line before and over its own text without it. A line's text is
//! never parsed for this: its last 74 bytes are always `,"mac":"<64 hexadecimal digits>"}`.

use std::fmt;

use aws_lc_rs::hmac;
use serde::de::Error as _;

use super::line::{Body, Record};
use crate::secret::SecretBytes;

const MAC: usize = 32;
const BEFORE: &[u8] = b",\"mac\":\"";
const AFTER: &[u8] = b"\"}";

/// A line's HMAC. That of "the line before the first" is all zeros.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mac([u8; MAC]);

impl Mac {
    fn from_hex(hex: &[u8]) -> Option<Self> {
        let (pairs, []) = hex.as_chunks::<2>() else {
            return None;
        };
        let mut mac = [0; MAC];
        if pairs.len() != MAC {
            return None;
        }
        for (byte, [high, low]) in mac.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(mac))
    }
}

fn digit(hex: u8) -> Option<u8> {
    match hex {
        b'0'..=b'9' => Some(hex - b'0'),
        b'a'..=b'f' => Some(hex - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl serde::Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(text.as_bytes()).ok_or_else(|| D::Error::custom("not a chain value"))
    }
}

/// The end of a chain: what its next line continues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The number of the last line; 0 where there is none.
    pub(super) seq: u64,
    /// Its HMAC.
    pub(super) mac: Mac,
}

/// The key.
#[derive(Debug)]
pub(super) struct Key(hmac::Key);

impl Key {
    /// The shortest key, in bytes.
    pub(super) const MIN: usize = 32;

    pub(super) fn new(key: &SecretBytes) -> Option<Self> {
        (key.len() >= Self::MIN).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, key.expose())))
    }

    fn mac(&self, previous: &Mac, text: &[u8]) -> Mac {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&previous.0);
        context.update(text);
        let tag = context.sign();
        let mut mac = Mac::default();
        for (to, from) in mac.0.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        mac
    }

    /// Appends the line that follows `head` to `buffer`, and returns the new head.
    pub(super) fn seal(
        &self,
        head: Head,
        body: &Body,
        buffer: &mut Vec<u8>,
    ) -> Result<Head, serde_json::Error> {
        let seq = head.seq.saturating_add(1);
        let mut text = serde_json::to_vec(&Record::borrowed(seq, body))?;
        text.pop(); // the closing brace
        let mac = self.mac(&head.mac, &text);
        buffer.extend_from_slice(&text);
        buffer.extend_from_slice(BEFORE);
        buffer.extend_from_slice(mac.to_string().as_bytes());
        buffer.extend_from_slice(AFTER);
        buffer.push(b'\n');
        Ok(Head { seq, mac })
    }

    /// True if `line` was written after the line with the HMAC `previous`, and not changed since.
    pub(super) fn vouches(&self, previous: &Mac, line: &Sealed<'_>) -> bool {
        let expected = self.mac(previous, line.text);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected.0, &line.mac.0).is_ok()
    }
}

/// A line, taken apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed<'a> {
    text: &'a [u8],
    /// What it says its HMAC is.
    pub(super) mac: Mac,
}

impl<'a> Sealed<'a> {
    /// Takes a line without its newline apart; `None` if it has not the form of one.
    pub(super) fn split(line: &'a [u8]) -> Option<Self> {
        let rest = line.strip_suffix(AFTER)?;
        let (rest, hex) = rest.split_at_checked(rest.len().checked_sub(2 * MAC)?)?;
        let text = rest.strip_suffix(BEFORE)?;
        Some(Self {
            text,
            mac: Mac::from_hex(hex)?,
        })
    }
}
