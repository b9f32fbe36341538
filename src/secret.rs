//! What a secret is called, and the one type that holds its bytes.
//!
//! [`SecretBytes`] is the only place a decrypted value lives in. It cannot be cloned, printed or serialised; whoever
//! needs the bytes says so with [`SecretBytes::expose`], which is easy to search for. What is kept is [`Sealed`].

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::Arc;

use zeroize::Zeroizing;

mod sealed;

pub use sealed::{Broken, Full, Kind, Sealed, SealedMemory, Survivors};

/// The largest value that secretfs stores or shows, in bytes.
pub const MAX_VALUE: usize = 1 << 20;

/// A secret's bytes: any bytes, wiped when dropped.
///
/// There is no `Clone`, `Display` or `Serialize`, and `Debug` shows nothing, not even the length.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes over the bytes. The vector must not have grown by reallocation while it held the secret, or copies stay
    /// behind: use [`SecretBytes::read_from`] for input of unknown length.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads to the end of `input` and leaves no copy behind.
    ///
    /// # Errors
    /// What `input` fails with; [`io::ErrorKind::FileTooLarge`] when there are more than `limit` bytes.
    pub fn read_from(input: &mut impl Read, limit: usize) -> io::Result<Self> {
        let mut bytes = Zeroizing::new(Vec::new());
        let mut chunk = Zeroizing::new([0_u8; 8192]);
        loop {
            let read = match input.read(chunk.as_mut_slice()) {
                Ok(0) => return Ok(Self(bytes)),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if bytes.len() + read > limit {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("more than {limit} bytes"),
                ));
            }
            if bytes.capacity() < bytes.len() + read {
                // Vec's own growth would free the old buffer unwiped. No more room than is needed at first: most values are
                // small, and are kept as they are.
                let capacity = (2 * bytes.capacity()).max(bytes.len() + read);
                let mut grown = Zeroizing::new(Vec::with_capacity(capacity));
                grown.extend_from_slice(&bytes);
                bytes = grown;
            }
            bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
        }
    }

    /// The bytes themselves. Do not copy them into anything that outlives the call and is not wiped.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True for a value of no bytes, which is a value like any other.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(redacted)")
    }
}

/// A service's or a secret's name: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`.
///
/// No slash, no leading dot, nothing that a shell or a terminal would take for something else. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The longest name, in bytes.
    pub const MAX: usize = 128;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a backend is called where this service is signed in to it as itself: no name that anybody can write.
    #[must_use]
    pub fn of_service(&self, service: &Self) -> Self {
        Self(Arc::from(format!("{self}@{service}")))
    }

    /// The backend's name in the config, whoever is signed in to it.
    #[must_use]
    pub fn in_config(&self) -> &str {
        self.0.split_once('@').map_or(&*self.0, |(name, _)| name)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let starts_well = text
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric);
        if starts_well && text.len() <= Self::MAX && text.as_bytes().iter().all(allowed) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(NameError(printable(text)))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: use 1 to 128 letters, digits, '.', '_' or '-', a letter or digit first"
)]
pub struct NameError(String);

/// Where a secret stands in the tree: `service/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretPath {
    /// The workload that the secret belongs to.
    pub service: Name,
    /// The secret's own name.
    pub name: Name,
}

impl FromStr for SecretPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let (service, name) = text
            .split_once('/')
            .ok_or_else(|| PathError::Shape(printable(text)))?;
        if name.contains('/') {
            return Err(PathError::Shape(printable(text)));
        }
        Ok(Self {
            service: service.parse()?,
            name: name.parse()?,
        })
    }
}

impl fmt::Display for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.name)
    }
}

impl serde::Serialize for SecretPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SecretPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a [`SecretPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not two parts with one slash between them.
    #[error("{0:?} is not a secret: write SERVICE/NAME, as in billing/db-password")]
    Shape(String),
    /// One of the parts is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The start of `text`, for an error message: enough to recognise a slip of the pen, too little for a pasted secret.
fn printable(text: &str) -> String {
    const SHOWN: usize = 40;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn debug_shows_neither_bytes_nor_length() {
        let value = SecretBytes::new(b"canary-7f3a".to_vec());
        assert_eq!(format!("{value:?}"), "SecretBytes(redacted)");
    }

    #[test]
    fn reading_stops_at_the_limit() {
        assert_eq!(
            SecretBytes::read_from(&mut &[7_u8; 100][..], 100)
                .unwrap()
                .len(),
            100
        );
        let error = SecretBytes::read_from(&mut &[7_u8; 101][..], 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn names_are_what_the_design_says() {
        for good in ["a", "0", "db-password", "A.b_c-9", &"x".repeat(128)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".x",
            "-x",
            "_x",
            "a/b",
            "a b",
            "a\0",
            "a\n",
            "ä",
            "a%2fb",
            &"x".repeat(129),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_shows_only_the_start_of_a_long_text() {
        let pasted = format!("{} canary-7f3a", "k".repeat(40));
        assert!(
            !pasted
                .parse::<Name>()
                .unwrap_err()
                .to_string()
                .contains("canary")
        );
    }

    proptest! {
        #[test]
        fn a_path_prints_as_it_was_read(service in "[A-Za-z0-9][A-Za-z0-9._-]{0,20}", name in "[A-Za-z0-9][A-Za-z0-9._-]{0,20}") {
            let text = format!("{service}/{name}");
            prop_assert_eq!(text.parse::<SecretPath>().unwrap().to_string(), text);
        }

        #[test]
        fn reading_keeps_every_byte(bytes in proptest::collection::vec(any::<u8>(), 0..40_000)) {
            let value = SecretBytes::read_from(&mut &bytes[..], MAX_VALUE).unwrap();
            prop_assert_eq!(value.expose(), &bytes[..]);
        }
    }
}
