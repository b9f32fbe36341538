//! Files apart from the store that are sealed as it is: only who can open the store can read one, or make one that is
//! believed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::hmac;

use super::seal::{self, OpenWith, SealTo, Unreadable};
use super::{Store, StoreError, write_whole_with};
use crate::secret::SecretBytes;

/// Sets the marks of these files apart from all else that the key is for.
const PURPOSE: &[u8] = b"secretfs: a file apart from the store";

/// The length of a mark, in bytes.
const MARK: usize = 32;

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ApartError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is sealed to somebody else.
    #[error("is sealed to another identity than the store")]
    Foreign,
    /// It is not what was written.
    #[error("is damaged, or somebody else has written it")]
    Damaged,
}

impl Store {
    /// Writes what `write` writes into a file, sealed, as a whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn write_apart(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let (recipients, key) = (self.recipients(), self.mark());
        write_whole_with(path, true, |file| {
            let seal = || {
                let mut file = io::BufWriter::new(file);
                let mut marked = Marked {
                    output: seal::writer(SealTo::Recipients(&recipients), &mut file)?,
                    mark: hmac::Context::with_key(&key),
                };
                write(&mut marked)?;
                let Marked { mut output, mark } = marked;
                output.write_all(mark.sign().as_ref())?;
                output.finish()?.flush()
            };
            seal().map_err(|error| StoreError::io("write", path, error))
        })
    }

    /// Reads such a file; `None` if there is none. Nothing is given before all of it is known to be as it was written.
    ///
    /// # Errors
    /// [`ApartError`]; more than `limit` bytes are [`ApartError::Damaged`].
    pub fn read_apart(&self, path: &Path, limit: usize) -> Result<Option<SecretBytes>, ApartError> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = match file {
            Ok(file) if file.metadata()?.is_file() => file,
            Ok(_) => return Err(ApartError::Damaged),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let identity = self.identity();
        let opened = seal::reader(OpenWith::Identity(&identity), io::BufReader::new(file));
        let mut opened = opened.map_err(|why| match why {
            Unreadable::WrongKey => ApartError::Foreign,
            Unreadable::NeedsPassphrase
            | Unreadable::WrongPassphrase
            | Unreadable::WorkFactor(_)
            | Unreadable::Damaged
            | Unreadable::Plugin(_) => ApartError::Damaged,
        })?;
        let bytes = SecretBytes::read_from(&mut opened, limit.saturating_add(MARK));
        let bytes = bytes.map_err(|_| ApartError::Damaged)?;
        let (content, mark) = bytes
            .expose()
            .split_last_chunk::<MARK>()
            .ok_or(ApartError::Damaged)?;
        hmac::verify(&self.mark(), content, mark).map_err(|_| ApartError::Damaged)?;
        let mut content = content;
        Ok(Some(SecretBytes::read_from(&mut content, limit)?))
    }

    /// Takes such a file away; it is no error if there is none.
    ///
    /// # Errors
    /// What unlink(2) says.
    pub fn remove_apart(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What the mark of such a file is made with. The key for the audit log stands in the index, which nobody else can read.
    fn mark(&self) -> hmac::Key {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.audit_key().expose());
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, PURPOSE).as_ref())
    }
}

/// Passes on what is written, and marks it.
struct Marked<W: Write> {
    output: age::stream::StreamWriter<W>,
    mark: hmac::Context,
}

impl<W: Write> Write for Marked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.mark.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
