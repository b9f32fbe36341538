//! How one entry lies in the memory: whole blocks, a header, then chunks, each with its tag.

use std::ops::Range;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::fingerprint::{Fingerprint, Fingerprints};
use super::{Broken, Kind};
use crate::sys::{SecretMemory, SharedMemory};

/// Entries begin at multiples of this, and are as long.
pub(super) const BLOCK: usize = 64;
/// How much is sealed at once: to read a byte, that much has to be opened.
pub(super) const CHUNK: usize = 16 << 10;
/// How much longer a chunk is when it is sealed.
pub(super) const TAG: usize = 16;
const HEADER: usize = 32;
/// What a header begins with, when the rest of the entry is there.
const MAGIC: [u8; 8] = *b"sealed 1";

/// Where an entry is, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// No other was or will be sealed under it with the same key.
    pub(super) number: u64,
    pub(super) place: usize,
    /// Of what is sealed in it.
    pub(super) length: usize,
}

impl Entry {
    /// How much room is taken by so many bytes; `None` if no entry can be as long.
    pub(super) fn room(length: usize) -> Option<usize> {
        u32::try_from(length).ok()?;
        let tags = chunks(length).checked_mul(TAG)?;
        let all = length.checked_add(tags)?.checked_add(HEADER)?;
        all.checked_next_multiple_of(BLOCK)
    }

    /// What it takes of the memory.
    pub(super) fn range(&self) -> Range<usize> {
        let room = Self::room(self.length).unwrap_or(BLOCK);
        self.place..self.place.saturating_add(room)
    }

    /// Seals `bytes`, which are as long as the entry, at its place. It counts as there with the last word that is written.
    pub(super) fn seal(
        &self,
        memory: &SharedMemory,
        cipher: &Cipher,
        bytes: &[u8],
    ) -> Option<Fingerprint> {
        let fingerprints = Fingerprints::new(cipher)?;
        let mut fingerprint = Fingerprint::default();
        let header = self.header();
        let (magic, rest) = header.split_at_checked(MAGIC.len())?;
        memory.write(self.place + MAGIC.len(), rest)?;
        let longest = CHUNK.min(bytes.len()) + TAG;
        let mut buffer = Zeroizing::new(Vec::with_capacity(longest));
        for index in self.chunks() {
            buffer.clear();
            buffer.extend_from_slice(bytes.get(self.chunk(index))?);
            fingerprints.add(&mut fingerprint, index, &buffer)?;
            let nonce = self.nonce(index)?;
            let sealed = cipher
                .0
                .seal_in_place_append_tag(nonce, Aad::from(&header), &mut *buffer);
            sealed.ok()?;
            memory.write(self.at(index), &buffer)?;
        }
        memory.write(self.place, magic)?;
        Some(fingerprint)
    }

    /// What stands for its bytes, if all of it opens. The buffer is for a chunk and its tag.
    pub(super) fn verify(
        &self,
        memory: &SharedMemory,
        cipher: &Cipher,
        fingerprints: &Fingerprints,
        buffer: &mut [u8],
    ) -> Option<Fingerprint> {
        let mut fingerprint = Fingerprint::default();
        for index in self.chunks() {
            self.open(memory, cipher, index, buffer).ok()?;
            let chunk = buffer.get(..self.chunk(index).len())?;
            fingerprints.add(&mut fingerprint, index, chunk)?;
        }
        Some(fingerprint)
    }

    /// Opens a chunk into the first bytes of `buffer`, and gives these. It must be longer by [`TAG`].
    pub(super) fn open<'b>(
        &self,
        memory: &SharedMemory,
        cipher: &Cipher,
        index: usize,
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], Broken> {
        let length = self.chunk(index).len() + TAG;
        let sealed = buffer.get_mut(..length).ok_or(Broken)?;
        memory.read(self.at(index), sealed).ok_or(Broken)?;
        let nonce = self.nonce(index).ok_or(Broken)?;
        let opened = cipher
            .0
            .open_in_place(nonce, Aad::from(&self.header()), sealed);
        opened.map_err(|_| Broken)
    }

    /// Which of the bytes are in a chunk.
    pub(super) fn chunk(&self, index: usize) -> Range<usize> {
        let start = index.saturating_mul(CHUNK).min(self.length);
        start..start.saturating_add(CHUNK).min(self.length)
    }

    /// The chunks. Also of no bytes there is one, which says so.
    pub(super) fn chunks(&self) -> Range<usize> {
        0..chunks(self.length)
    }

    /// The entry that the header at `place` speaks of, if one is there. Nothing says yet that it is true.
    pub(super) fn find(memory: &SharedMemory, place: usize) -> Option<Self> {
        let mut header = [0; HEADER];
        memory.read(place, &mut header)?;
        let (magic, rest) = header.split_first_chunk()?;
        (*magic == MAGIC).then_some(())?;
        let ([kind, length, ..], _) = rest.as_chunks() else {
            return None;
        };
        let number = header.last_chunk()?;
        let entry = Self {
            kind: Kind::from_code(u32::from_ne_bytes(*kind))?,
            number: u64::from_ne_bytes(*number),
            place,
            length: usize::try_from(u32::from_ne_bytes(*length)).ok()?,
        };
        let fits = entry.header() == header && entry.range().end <= SharedMemory::SIZE;
        fits.then_some(entry)
    }

    /// What stands before the chunks, and is authenticated with each of them.
    pub(super) fn header(&self) -> [u8; HEADER] {
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        let place = u64::try_from(self.place).unwrap_or(u64::MAX);
        let parts: [&[u8]; 5] = [
            &MAGIC,
            &self.kind.code().to_ne_bytes(),
            &length.to_ne_bytes(),
            &place.to_ne_bytes(),
            &self.number.to_ne_bytes(),
        ];
        let mut header = [0; HEADER];
        let bytes = parts.iter().copied().flatten();
        header
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, byte)| *to = *byte);
        header
    }

    /// Where a chunk is.
    fn at(&self, index: usize) -> usize {
        self.place + HEADER + index * (CHUNK + TAG)
    }

    fn nonce(&self, index: usize) -> Option<Nonce> {
        nonce(self.number, index).map(Nonce::assume_unique_for_key)
    }
}

/// That of a chunk of the entry with this number.
pub(super) fn nonce(number: u64, index: usize) -> Option<[u8; NONCE_LEN]> {
    let index = u32::try_from(index).ok()?;
    let mut nonce = [0; NONCE_LEN];
    let (first, rest) = nonce.split_first_chunk_mut()?;
    *first = number.to_ne_bytes();
    rest.copy_from_slice(&index.to_ne_bytes());
    Some(nonce)
}

fn chunks(length: usize) -> usize {
    length.div_ceil(CHUNK).max(1)
}

/// The key, out of its memory for as long as one call takes. The library wipes what it frees, so nothing of it stays.
pub(super) struct Cipher(LessSafeKey);

impl Cipher {
    /// `None` if there is no key.
    pub(super) fn new(key: &SecretMemory) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        key.read_into(bytes.as_mut_slice())?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes.as_slice()).ok()?;
        Some(Self(LessSafeKey::new(key)))
    }

    /// Another key, which this one gives again and again and which says nothing of it: what becomes of zeros under the number
    /// that no entry comes to.
    pub(super) fn another(&self) -> Option<Zeroizing<[u8; 32]>> {
        let mut key = Zeroizing::new([0; 32]);
        let nonce = Nonce::assume_unique_for_key(nonce(u64::MAX, 0)?);
        let sealed = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::empty(), key.as_mut_slice());
        sealed.ok().map(|_| key)
    }
}
