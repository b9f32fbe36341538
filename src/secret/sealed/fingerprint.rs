//! By what values are compared without being opened.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};

use super::entry::{Cipher, TAG, nonce};

/// Stands for the bytes of an entry: the same for the same bytes, another for others. Without the key it says nothing of
/// them, not even to who guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fingerprint([u8; TAG]);

/// What makes them. The key is there for as long as one call takes, as that of [`Cipher`] is.
pub(super) struct Fingerprints(LessSafeKey);

impl Fingerprints {
    /// `None` where there is no memory.
    pub(super) fn new(cipher: &Cipher) -> Option<Self> {
        let key = cipher.another()?;
        let key = UnboundKey::new(&AES_256_GCM_SIV, key.as_slice()).ok()?;
        Some(Self(LessSafeKey::new(key)))
    }

    /// Adds a chunk, which counts at its place. With SIV the tag of a chunk is a keyed hash, for which the same nonce may be
    /// taken again and again.
    pub(super) fn add(&self, to: &mut Fingerprint, index: usize, chunk: &[u8]) -> Option<()> {
        let nonce = Nonce::assume_unique_for_key(nonce(0, index)?);
        let sealed = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(chunk), &mut []);
        let tag = sealed.ok()?;
        let bytes = to.0.iter_mut().zip(tag.as_ref());
        bytes.for_each(|(to, byte)| *to ^= byte);
        Some(())
    }
}
