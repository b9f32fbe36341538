//! The store's files, read and written in the order that makes a change safe.

use std::collections::BTreeSet;
use std::io;

use super::error::StoreError;
use super::identity::Identity;
use super::index::{Index, Invalid, Record, Sealed, Sha256, ValueFile};
use super::seal::{self, OpenWith, Recipient, SealTo, Unreadable};
use super::storage::{File, Folder, KEPT, Storage};
use crate::secret::{MAX_VALUE, SecretBytes, SecretPath};

/// No index is larger than this many bytes.
const MAX_INDEX: usize = 1 << 28;

/// No value's file is larger than this many bytes: the value, what age adds to it, and room for a thousand recipients.
const MAX_FILE: usize = MAX_VALUE + (1 << 18);

/// Values that are on the disk and that no index names yet. They go again unless they are kept.
pub(super) struct Staged<'a> {
    storage: &'a dyn Storage,
    files: Vec<ValueFile>,
}

impl<'a> Staged<'a> {
    pub(super) fn new(storage: &'a dyn Storage) -> Self {
        Self {
            storage,
            files: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn add(
        &mut self,
        recipients: &[Recipient],
        value: &SecretBytes,
    ) -> Result<Sealed, StoreError> {
        let file = ValueFile::random()?;
        let path = || self.storage.path(File::Value(file));
        let bytes = seal::seal(SealTo::Recipients(recipients), value.len(), |writer| {
            writer.write_all(value.expose())
        })
        .and_then(|bytes| readable(bytes, MAX_FILE))
        .map_err(|error| StoreError::io("seal", &path(), error))?;
        self.storage
            .create(File::Value(file), &bytes)
            .map_err(|error| StoreError::io("write", &path(), error))?;
        self.files.push(file);
        Ok(Sealed {
            file,
            size: value.len(),
            sha256: Sha256::of(&bytes),
        })
    }

    pub(super) fn keep(mut self) {
        self.files.clear();
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        for file in &self.files {
            sweep_away(self.storage, File::Value(*file));
        }
    }
}

/// What becomes of the index that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// It is kept, and so are the two before it.
    Keep,
    /// It goes, and the ones before it stay as they are: it is damaged, and one of them is what there is.
    Leave,
    /// It goes, and so do the ones before it: what opened them shall open nothing any more.
    Forget,
}

/// Puts an index in the place of the current one. If it fails, the current one is still the old one.
pub(super) fn write_index(
    storage: &dyn Storage,
    index: &Index,
    before: Before,
) -> Result<(), StoreError> {
    let new = storage.path(File::NewIndex);
    let io = |step: &'static str| {
        let new = new.clone();
        move |error: io::Error| StoreError::io(step, &new, error)
    };
    let room = index.records().count().saturating_mul(256);
    let bytes = seal::seal(SealTo::Recipients(&index.recipients), room, |writer| {
        index.write(writer)
    })
    .and_then(|bytes| readable(bytes, MAX_INDEX))
    .map_err(io("seal"))?;
    remove(storage, File::NewIndex)?;
    storage
        .create(File::NewIndex, &bytes)
        .map_err(io("write"))?;
    let placed = set_aside(storage, before).and_then(|()| {
        storage
            .rename(File::NewIndex, File::Index)
            .map_err(io("rename"))
    });
    if placed.is_err() {
        sweep_away(storage, File::NewIndex);
    }
    placed
}

fn set_aside(storage: &dyn Storage, before: Before) -> Result<(), StoreError> {
    match before {
        Before::Keep => {
            for age in (1..KEPT).rev() {
                let (from, to) = (File::Kept(age), File::Kept(age + 1));
                let renamed = unless_missing(storage.rename(from, to));
                renamed.map_err(|error| StoreError::io("rename", &storage.path(from), error))?;
            }
            unless_missing(storage.link(File::Index, File::Kept(1)))
                .map_err(|error| StoreError::io("make", &storage.path(File::Kept(1)), error))
        }
        Before::Leave => Ok(()),
        Before::Forget => (1..=KEPT).try_for_each(|age| remove(storage, File::Kept(age))),
    }
}

/// What could not be read again must not be written either.
fn readable(bytes: Vec<u8>, limit: usize) -> io::Result<Vec<u8>> {
    if bytes.len() > limit {
        let why = "too large with so many secrets or recipients";
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

pub(super) fn read_index(
    storage: &dyn Storage,
    file: File,
    identity: &Identity,
) -> Result<Index, StoreError> {
    let path = storage.path(file);
    let sealed = match storage.read(file, MAX_INDEX) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let remains = exists(storage, File::Kept(1))? || !values(storage)?.is_empty();
            return Err(if remains {
                StoreError::damaged(&path, "the index is missing")
            } else {
                StoreError::Missing(path)
            });
        }
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Err(StoreError::damaged(&path, "the index is far too large"));
        }
        Err(error) => return Err(StoreError::io("read", &path, error)),
    };
    let document = seal::open(OpenWith::Identity(identity), &sealed, MAX_INDEX);
    let document = document.map_err(|error| match error {
        Unreadable::WrongKey | Unreadable::NeedsPassphrase => {
            StoreError::WrongIdentity(path.clone())
        }
        Unreadable::WrongPassphrase
        | Unreadable::WorkFactor(_)
        | Unreadable::Damaged
        | Unreadable::Plugin(_) => StoreError::damaged(&path, "the index is not as it was written"),
    })?;
    let index = Index::parse(&document).map_err(|invalid| match invalid {
        Invalid::Format(found) => StoreError::Format {
            file: path.clone(),
            found,
        },
        Invalid::Content(what) => StoreError::damaged(&path, what),
    })?;
    let own = identity.recipients();
    if !index.recipients.iter().any(|one| own.contains(one)) {
        // What is put would be sealed to others alone.
        return Err(StoreError::damaged(
            &path,
            "its recipients lack this identity",
        ));
    }
    Ok(index)
}

/// Why a value could not be read.
#[derive(Debug)]
pub(super) enum ValueError {
    Io(io::Error),
    Damaged(&'static str),
}

impl ValueError {
    pub(super) fn gone(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// The same, with what people need to know.
    pub(super) fn of(
        self,
        storage: &dyn Storage,
        path: &SecretPath,
        record: &Record,
    ) -> StoreError {
        let file = storage.path(File::Value(record.file));
        let version = record.version;
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                StoreError::damaged(&file, format!("{path}@{version} is missing"))
            }
            Self::Io(error) => StoreError::io("read", &file, error),
            Self::Damaged(what) => StoreError::damaged(&file, format!("{path}@{version} {what}")),
        }
    }
}

pub(super) fn read_value(
    storage: &dyn Storage,
    identity: &Identity,
    record: &Record,
) -> Result<SecretBytes, ValueError> {
    let damaged = ValueError::Damaged("is not as it was written");
    let sealed = match storage.read(File::Value(record.file), MAX_FILE) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(damaged),
        Err(error) => return Err(ValueError::Io(error)),
    };
    if Sha256::of(&sealed) != record.sha256 {
        return Err(damaged);
    }
    match seal::open(OpenWith::Identity(identity), &sealed, record.size) {
        Ok(value) if value.len() == record.size => Ok(value),
        Ok(_) | Err(Unreadable::Damaged) => Err(damaged),
        Err(
            Unreadable::WrongKey
            | Unreadable::NeedsPassphrase
            | Unreadable::WrongPassphrase
            | Unreadable::WorkFactor(_)
            | Unreadable::Plugin(_),
        ) => Err(ValueError::Damaged("is sealed to another identity")),
    }
}

/// Removes what a crash left behind. `index` is the current one.
pub(super) fn sweep(storage: &dyn Storage, index: &Index) {
    let Ok(files) = storage.values() else {
        return;
    };
    let named: BTreeSet<_> = index.records().map(|record| record.file).collect();
    for file in files.into_iter().filter(|file| !named.contains(file)) {
        sweep_away(storage, File::Value(file));
    }
    sweep_away(storage, File::NewIndex);
}

/// Removes a file whose staying would do no harm.
pub(super) fn sweep_away(storage: &dyn Storage, file: File) {
    if let Err(error) = remove(storage, file) {
        tracing::warn!("{error}");
    }
}

pub(super) fn remove(storage: &dyn Storage, file: File) -> Result<(), StoreError> {
    unless_missing(storage.remove(file))
        .map_err(|error| StoreError::io("remove", &storage.path(file), error))
}

pub(super) fn sync(storage: &dyn Storage, folder: Folder) -> Result<(), StoreError> {
    let path = match folder {
        Folder::Indexes => storage.path(File::Index),
        Folder::Values => storage.path(File::Index).with_extension("d"),
    };
    storage
        .sync(folder)
        .map_err(|error| StoreError::io("write the folder of", &path, error))
}

pub(super) fn values(storage: &dyn Storage) -> Result<Vec<ValueFile>, StoreError> {
    storage.values().map_err(|error| {
        let folder = storage.path(File::Index).with_extension("d");
        StoreError::io("list", &folder, error)
    })
}

pub(super) fn exists(storage: &dyn Storage, file: File) -> Result<bool, StoreError> {
    match storage.read(file, 0) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("read", &storage.path(file), error)),
    }
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
