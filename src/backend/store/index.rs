//! The index: which secrets there are, which file holds which version, and what that file must be.
//!
//! It is a JSON document, sealed as a whole. Value files have random names, so that nothing outside of it tells what a
//! service or a secret is called, and their hashes are of the sealed files: once a value's file is gone, an index that
//! was kept tells nothing about the value, not even to who guesses it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::error::StoreError;
use super::seal::Recipient;
use crate::backend::Version;
use crate::secret::{MAX_VALUE, Name, SecretBytes, SecretPath};

/// The format that this program reads and writes.
pub(super) const FORMAT: u64 = 1;

/// No version has a larger number. Exports have a smaller limit, which leaves room for more versions than there will be.
const MAX_NUMBER: u64 = 1 << 63;

/// How many versions of a secret are kept.
pub(super) const KEPT_VERSIONS: usize = 10;

/// The whole content of `store.age`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    format: u64,
    /// The key of the audit log's chain.
    audit_key: Key,
    /// Whom the index and every value are sealed to.
    pub(super) recipients: Vec<Recipient>,
    /// Each change makes an index of its own, which shares the secrets that stay as they are.
    pub(super) services: BTreeMap<Name, BTreeMap<Name, Arc<Secret>>>,
}

/// One secret. Without versions it is what remains of a removed one, so that its numbers are never used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Secret {
    /// The number of the next version.
    pub(super) next: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// Oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) versions: Vec<Record>,
}

/// One version of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) version: u64,
    pub(super) file: ValueFile,
    /// Of the value, in bytes.
    pub(super) size: usize,
    /// Of the sealed file.
    pub(super) sha256: Sha256,
    pub(super) created: Timestamp,
}

/// Why some bytes are not an [`Index`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    Format(u64),
    Content(&'static str),
}

impl Index {
    pub(super) fn new(recipients: Vec<Recipient>) -> Result<Self, StoreError> {
        let mut key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(key.as_mut_slice()).map_err(|_| StoreError::Random)?;
        Ok(Self {
            format: FORMAT,
            audit_key: Key(key),
            recipients,
            services: BTreeMap::new(),
        })
    }

    /// Reads the document and checks what the rest of the store relies on.
    pub(super) fn parse(document: &SecretBytes) -> Result<Self, Invalid> {
        #[derive(Deserialize)]
        struct Only {
            format: u64,
        }
        let Only { format } = serde_json::from_slice(document.expose())
            .map_err(|_| Invalid::Content("it is not an index"))?;
        if format != FORMAT {
            return Err(Invalid::Format(format));
        }
        let index: Self = serde_json::from_slice(document.expose())
            .map_err(|_| Invalid::Content("a part of it is missing, unknown or out of range"))?;
        index.check().map(|()| index).map_err(Invalid::Content)
    }

    /// What the rest of the store relies on.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.recipients.is_empty() {
            return Err("it names no recipient");
        }
        let mut files = BTreeSet::new();
        for (_, secret) in self.secrets() {
            let mut last = 0;
            for record in &secret.versions {
                if record.version <= last {
                    return Err("the versions of a secret are not in order");
                }
                last = record.version;
                if record.size > MAX_VALUE {
                    return Err("a value is too large");
                }
                if !files.insert(record.file) {
                    return Err("two versions have one file");
                }
            }
            if secret.next > MAX_NUMBER {
                return Err("the number of a version is too large");
            }
            if secret.next <= last {
                return Err("the number of a secret's next version is in use");
            }
        }
        Ok(())
    }

    /// Writes the document.
    pub(super) fn write(&self, output: &mut dyn io::Write) -> io::Result<()> {
        let mut gathered = Gathered {
            bytes: Zeroizing::new(Vec::with_capacity(GATHERED)),
            output,
        };
        serde_json::to_writer(&mut gathered, self)?;
        io::Write::flush(&mut gathered)
    }

    pub(super) fn audit_key(&self) -> SecretBytes {
        SecretBytes::new(self.audit_key.0.to_vec())
    }

    /// Every secret, removed ones too.
    pub(super) fn secrets(&self) -> impl Iterator<Item = (SecretPath, &Secret)> {
        self.services.iter().flat_map(|(service, secrets)| {
            secrets.iter().map(|(name, secret)| {
                let path = SecretPath {
                    service: service.clone(),
                    name: name.clone(),
                };
                (path, secret.as_ref())
            })
        })
    }

    /// Every version of every secret.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        let secrets = self.services.values().flat_map(BTreeMap::values);
        secrets.flat_map(|secret| &secret.versions)
    }

    /// A secret that has at least one version.
    pub(super) fn secret(&self, path: &SecretPath) -> Result<&Secret, StoreError> {
        self.services
            .get(&path.service)
            .and_then(|secrets| secrets.get(&path.name))
            .map(Arc::as_ref)
            .filter(|secret| !secret.versions.is_empty())
            .ok_or_else(|| StoreError::absent(path, None))
    }

    /// One version of a secret, or the newest.
    pub(super) fn record(
        &self,
        path: &SecretPath,
        version: Option<&Version>,
    ) -> Result<&Record, StoreError> {
        let versions = &self.secret(path)?.versions;
        match version {
            None => versions.last(),
            Some(version) => versions.iter().find(|record| record.is(version)),
        }
        .ok_or_else(|| StoreError::absent(path, version))
    }

    /// The newest version that is older than this one.
    pub(super) fn record_before(
        &self,
        path: &SecretPath,
        version: &Version,
    ) -> Result<&Record, StoreError> {
        let versions = self.secret(path)?.versions.iter().rev();
        let number: Option<u64> = version.as_str().parse().ok();
        number
            .and_then(|number| versions.into_iter().find(|record| record.version < number))
            .ok_or_else(|| StoreError::Absent(format!("{path} before version {version}")))
    }

    /// Adds a version and gives its number, and the files of the versions that are now too many.
    pub(super) fn add(
        &mut self,
        path: &SecretPath,
        value: Sealed,
        created: Timestamp,
        description: Option<&str>,
    ) -> (u64, Vec<ValueFile>) {
        let secret = self.entry(path);
        let version = secret.next;
        secret.next = version.saturating_add(1);
        secret.versions.push(value.record(version, created));
        if let Some(text) = description {
            secret.description = Some(text.to_owned()).filter(|text| !text.is_empty());
        }
        let too_many = secret.versions.len().saturating_sub(KEPT_VERSIONS);
        let pruned = secret.versions.drain(..too_many);
        (version, pruned.map(|record| record.file).collect())
    }

    /// The secret's place, whether or not there is or was such a secret.
    pub(super) fn entry(&mut self, path: &SecretPath) -> &mut Secret {
        let secrets = self.services.entry(path.service.clone()).or_default();
        Arc::make_mut(secrets.entry(path.name.clone()).or_insert_with(|| {
            Arc::new(Secret {
                next: 1,
                description: None,
                versions: Vec::new(),
            })
        }))
    }

    /// Takes out one version or all, and gives their files.
    pub(super) fn take(
        &mut self,
        path: &SecretPath,
        version: Option<&Version>,
    ) -> Result<Vec<ValueFile>, StoreError> {
        self.record(path, version)?;
        let secret = self.entry(path);
        let goes = |record: &Record| version.is_none_or(|version| record.is(version));
        let (gone, kept): (Vec<_>, Vec<_>) = secret.versions.iter().copied().partition(goes);
        secret.versions = kept;
        if secret.versions.is_empty() {
            secret.description = None;
        }
        Ok(gone.into_iter().map(|record| record.file).collect())
    }
}

impl Record {
    /// What the rest of the program calls this version.
    pub(super) fn version(&self) -> Version {
        Version::new(self.version.to_string())
    }

    fn is(&self, version: &Version) -> bool {
        self.version.to_string() == version.as_str()
    }
}

/// How many bytes are handed on at once: JSON comes in pieces of a few, and each has its price.
const GATHERED: usize = 1 << 14;

/// A buffered writer that is wiped, since the document holds a key and every name.
struct Gathered<'a> {
    bytes: Zeroizing<Vec<u8>>,
    output: &'a mut dyn io::Write,
}

impl io::Write for Gathered<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(piece.len()) > GATHERED {
            self.flush()?;
        }
        if piece.len() > GATHERED {
            self.output.write_all(piece)?;
        } else {
            self.bytes.extend_from_slice(piece);
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}

/// A value that has been sealed into a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed {
    pub(super) file: ValueFile,
    pub(super) size: usize,
    pub(super) sha256: Sha256,
}

impl Sealed {
    pub(super) fn record(self, version: u64, created: Timestamp) -> Record {
        Record {
            version,
            file: self.file,
            size: self.size,
            sha256: self.sha256,
            created,
        }
    }
}

/// The name of a value's file: random, and said of nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ValueFile(u128);

impl ValueFile {
    pub(super) fn random() -> Result<Self, StoreError> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StoreError::Random)?;
        Ok(Self(u128::from_be_bytes(bytes)))
    }

    /// Reads what [`ValueFile`] prints, and nothing else.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".age")?;
        let file = Self(u128::from_str_radix(digits, 16).ok()?);
        (file.to_string() == name).then_some(file)
    }
}

impl fmt::Display for ValueFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}.age", self.0)
    }
}

impl Serialize for ValueFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ValueFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&name).ok_or_else(|| serde::de::Error::custom("not a value's file"))
    }
}

/// A SHA-256 hash, in base64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Sha256([u8; 32]);

impl Sha256 {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
            *to = *from;
        }
        Self(hash)
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD_NO_PAD.encode(self.0))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; 43];
        let length = STANDARD_NO_PAD
            .encode_slice(self.0, &mut text)
            .map_err(serde::ser::Error::custom)?;
        let text = text.get(..length).unwrap_or_default();
        serializer.serialize_str(std::str::from_utf8(text).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        decode(deserializer).map(|bytes| Self(*bytes))
    }
}

/// The audit log's key.
#[derive(Clone)]
struct Key(Zeroizing<[u8; 32]>);

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(STANDARD_NO_PAD.encode(self.0.as_slice()));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        decode(deserializer).map(Self)
    }
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<[u8; 32]>, D::Error> {
    use serde::de::Error;
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    let mut bytes = Zeroizing::new([0; 32]);
    // The decoder wants room for what a text of this length could hold at most.
    let mut room = Zeroizing::new([0; 36]);
    let length = STANDARD_NO_PAD
        .decode_slice(text.as_bytes(), room.as_mut_slice())
        .map_err(|_| D::Error::custom("not 32 bytes in base64"))?;
    if length != bytes.len() {
        return Err(D::Error::custom("not 32 bytes in base64"));
    }
    for (to, from) in bytes.iter_mut().zip(room.iter()) {
        *to = *from;
    }
    Ok(bytes)
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("recipients", &self.recipients)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::identity::Identity;
    use super::*;

    fn document(index: &Index) -> SecretBytes {
        let mut text = Vec::new();
        index.write(&mut text).unwrap();
        SecretBytes::new(text)
    }

    fn empty() -> Index {
        Index::new(Identity::generate().recipients()).unwrap()
    }

    fn value(number: u128) -> Sealed {
        Sealed {
            file: ValueFile(number),
            size: 5,
            sha256: Sha256::of(&number.to_be_bytes()),
        }
    }

    proptest! {
        #[test]
        fn an_index_is_read_as_it_was_written(
            puts in proptest::collection::vec(("[a-c]", "[A-Za-z0-9][A-Za-z0-9._-]{0,4}", any::<u128>(), proptest::option::of("[^\\p{Cc}]{0,9}")), 0..40),
            removed in any::<prop::sample::Index>(),
            seconds in -62_135_596_800_i64..253_402_207_200,
        ) {
            let mut index = empty();
            let now = Timestamp::from_second(seconds).unwrap();
            let mut paths = Vec::new();
            for (service, name, number, description) in puts {
                let path = SecretPath { service: service.parse().unwrap(), name: name.parse().unwrap() };
                if index.records().all(|record| record.file != ValueFile(number)) {
                    index.add(&path, value(number), now, description.as_deref());
                    paths.push(path);
                }
            }
            if !paths.is_empty() {
                index.take(removed.get(&paths), None).unwrap();
            }
            let again = Index::parse(&document(&index)).unwrap();
            prop_assert_eq!(&again.services, &index.services);
            let (key, key_again) = (index.audit_key(), again.audit_key());
            prop_assert_eq!(key_again.expose(), key.expose());
            prop_assert_eq!(again.recipients, index.recipients);
        }

        #[test]
        fn any_text_is_an_index_or_an_error(text in "\\PC*") {
            let _ = Index::parse(&SecretBytes::new(text.into_bytes()));
        }
    }

    #[test]
    fn what_the_store_relies_on_is_checked() {
        let mut index = empty();
        let path: SecretPath = "a/x".parse().unwrap();
        for number in 1..=2 {
            index.add(&path, value(number), Timestamp::UNIX_EPOCH, None);
        }
        let good = String::from_utf8(document(&index).expose().to_vec()).unwrap();
        let file = |number: u128| ValueFile(number).to_string();
        let wrong = [
            ("\"next\":3", "\"next\":2".to_owned()),
            ("\"version\":2", "\"version\":1".to_owned()),
            ("\"version\":1", "\"version\":0".to_owned()),
            ("\"version\":1", "\"version\":-1".to_owned()),
            ("\"size\":5", format!("\"size\":{}", MAX_VALUE + 1)),
            (&file(2), file(1)),
            (&file(2), "../../etc/passwd".to_owned()),
            (&file(2), file(2).to_uppercase()),
            (
                "\"recipients\":[\"age1",
                "\"recipients\":[\"age2".to_owned(),
            ),
            ("{\"x\":", "{\"../x\":".to_owned()),
            ("\"services\"", "\"more\":1,\"services\"".to_owned()),
            ("\"audit_key\":\"", "\"audit_key\":\"AA".to_owned()),
            ("\"format\":1", "\"format\":2".to_owned()),
            ("\"format\":1,", String::new()),
        ];
        assert!(Index::parse(&SecretBytes::new(good.clone().into_bytes())).is_ok());
        for (from, to) in wrong {
            let text = good.replacen(from, &to, 1);
            assert_ne!(text, good, "{from}");
            assert!(
                Index::parse(&SecretBytes::new(text.into_bytes())).is_err(),
                "{from} as {to}"
            );
        }
        let none = good.replacen(&format!("[\"{}\"]", index.recipients[0]), "[]", 1);
        assert_eq!(
            Index::parse(&SecretBytes::new(none.into_bytes())).err(),
            Some(Invalid::Content("it names no recipient"))
        );
    }
}
