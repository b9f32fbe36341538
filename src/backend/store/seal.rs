//! Sealing to recipients or a passphrase, and opening again: all that the store asks of the age format.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use age::secrecy::SecretString;
use age::stream::{StreamReader, StreamWriter};
use age::{DecryptError, Decryptor, Encryptor};

use super::identity::Identity;
use crate::secret::SecretBytes;

/// The largest scrypt work factor that is accepted: 2^20, which takes a gigabyte and some seconds. The format goes up to 2^63.
pub const MAX_WORK_FACTOR: u8 = 20;

/// The work factor of what we seal ourselves, as in age's own command.
const WORK_FACTOR: u8 = if cfg!(test) { 4 } else { 18 };

/// Who can open what is sealed to them: the public half of an X25519 age identity, `age1…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(age::x25519::Recipient);

impl Recipient {
    pub(super) fn of(key: &age::x25519::Identity) -> Self {
        Self(key.to_public())
    }
}

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        text.parse().map(Self).map_err(|_| RecipientError)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for Recipient {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Recipient {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a [`Recipient`]. It does not quote the text, which may be a secret key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an age recipient: write the public key of an X25519 identity, age1…, as `age-keygen -y` prints it"
)]
pub struct RecipientError;

/// To whom something is sealed.
#[derive(Debug, Clone, Copy)]
pub enum SealTo<'a> {
    /// To any one of these.
    Recipients(&'a [Recipient]),
    /// To who knows the passphrase, which must be text.
    Passphrase(&'a SecretBytes),
}

/// What opens something sealed.
#[derive(Debug, Clone, Copy)]
pub enum OpenWith<'a> {
    /// Any key of an identity.
    Identity(&'a Identity),
    /// A passphrase.
    Passphrase(&'a SecretBytes),
}

/// Why something sealed did not open.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// It is sealed to other keys.
    WrongKey,
    /// It is sealed with a passphrase, and none was given.
    NeedsPassphrase,
    /// It is sealed with another passphrase.
    WrongPassphrase,
    /// Its work factor is above [`MAX_WORK_FACTOR`].
    WorkFactor(u8),
    /// It is no age file, or not as it was written.
    Damaged,
    /// An age plugin failed.
    Plugin(String),
}

/// A writer that seals what is written into `output`. It must be finished.
pub(super) fn writer<W: Write>(to: SealTo<'_>, output: W) -> io::Result<StreamWriter<W>> {
    let encryptor = match to {
        SealTo::Recipients(recipients) => {
            let recipients = recipients
                .iter()
                .map(|recipient| -> &dyn age::Recipient { &recipient.0 });
            Encryptor::with_recipients(recipients)
        }
        SealTo::Passphrase(passphrase) => {
            let mut recipient = age::scrypt::Recipient::new(text(passphrase)?);
            recipient.set_work_factor(WORK_FACTOR);
            let recipient: &dyn age::Recipient = &recipient;
            Encryptor::with_recipients(std::iter::once(recipient))
        }
    };
    encryptor
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "no recipients"))?
        .wrap_output(output)
}

/// What `write` writes, sealed.
pub(super) fn seal(
    to: SealTo<'_>,
    capacity: usize,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    let mut sealed = Vec::with_capacity(capacity.saturating_add(1024));
    let mut writer = writer(to, &mut sealed)?;
    write(&mut writer)?;
    writer.finish()?;
    Ok(sealed)
}

/// A reader of the content of what is sealed. What it gives can be trusted once it has come to its end.
pub(super) fn reader<R: Read>(
    with: OpenWith<'_>,
    sealed: R,
) -> Result<StreamReader<R>, Unreadable> {
    let decryptor = Decryptor::new(sealed).map_err(|error| unreadable(&error))?;
    match (with, decryptor.is_scrypt()) {
        (OpenWith::Identity(_), true) => Err(Unreadable::NeedsPassphrase),
        (OpenWith::Identity(identity), false) => {
            let keys = identity
                .keys()
                .iter()
                .map(|key| -> &dyn age::Identity { key });
            decryptor.decrypt(keys).map_err(|error| unreadable(&error))
        }
        (OpenWith::Passphrase(_), false) => Err(Unreadable::WrongKey),
        (OpenWith::Passphrase(passphrase), true) => {
            let passphrase = text(passphrase).map_err(|_| Unreadable::WrongPassphrase)?;
            let mut identity = age::scrypt::Identity::new(passphrase);
            identity.set_max_work_factor(MAX_WORK_FACTOR);
            let key: &dyn age::Identity = &identity;
            decryptor.decrypt(std::iter::once(key)).map_err(|error| {
                if matches!(error, DecryptError::DecryptionFailed) {
                    Unreadable::WrongPassphrase
                } else {
                    unreadable(&error)
                }
            })
        }
    }
}

/// The content of what is sealed, if it has no more than `limit` bytes.
pub(super) fn open(
    with: OpenWith<'_>,
    sealed: &[u8],
    limit: usize,
) -> Result<SecretBytes, Unreadable> {
    let mut reader = reader(with, sealed)?;
    SecretBytes::read_from(&mut reader, limit).map_err(|_| Unreadable::Damaged)
}

pub(super) fn unreadable(error: &DecryptError) -> Unreadable {
    if let DecryptError::ExcessiveWork { required, .. } = error {
        Unreadable::WorkFactor(*required)
    } else if matches!(error, DecryptError::NoMatchingKeys) {
        Unreadable::WrongKey
    } else if let DecryptError::Plugin(errors) = error {
        let text = errors.iter().map(|error| one_line(&error.to_string()));
        Unreadable::Plugin(text.collect::<Vec<_>>().join("; "))
    } else if let DecryptError::PluginResolve(error) = error {
        Unreadable::Plugin(one_line(&error.to_string()))
    } else {
        Unreadable::Damaged
    }
}

/// The start of a foreign text, fit for an error message.
fn one_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A passphrase in the form that age takes.
pub(super) fn text(passphrase: &SecretBytes) -> io::Result<SecretString> {
    std::str::from_utf8(passphrase.expose())
        .map(SecretString::from)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the passphrase is not text"))
}
