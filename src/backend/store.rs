//! The embedded store: an index and one age file for each value, beside each other on a disk.
//!
//! ```text
//! store.age            the index, sealed: names, versions, which file holds which   store.age.{1,2,3}  the ones before
//! store.d/<random>.age one version of one secret, sealed                            store.d/lock       held while in use
//! ```
//!
//! What makes a change safe, in this order: the new values are on the disk before any index names them; the new index
//! takes the place of the old one by one rename; only then goes what nobody names any more. So a crash leaves the old
//! state or the new one, and perhaps files that no index names, which the next open sweeps away, but only after it has
//! read the current index whole. The indexes kept from before are for [`Store::repair`], and never used silently.
//!
//! Everything here blocks, for as long as a disk takes. Reads hold no lock while they wait for it, so they go on while a
//! change is being written.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::backend::{Fetched, Version};
use crate::clock::Clock;
use crate::secret::{MAX_VALUE, Name, SecretBytes, SecretPath};

mod archive;
mod error;
pub mod identity;
mod index;
mod rekey;
mod repair;
mod seal;
mod serve;
mod storage;
#[cfg(test)]
mod tests;

pub use error::StoreError;
pub use identity::{Identity, IdentityError, Prompt, Protection};
pub use repair::{Damage, Repaired, Report};
pub use seal::{MAX_WORK_FACTOR, OpenWith, Recipient, RecipientError, SealTo};
pub use storage::{write_whole, write_whole_with};

use index::{Index, Invalid, Record, ValueFile};
use seal::Unreadable;
use storage::{Disk, File, Folder, KEPT, Storage};

/// The longest description, in bytes.
pub const MAX_DESCRIPTION: usize = 1024;

/// No index is larger than this many bytes.
const MAX_INDEX: usize = 1 << 28;

/// No value's file is larger than this many bytes: the value, what age adds to it, and room for a thousand recipients.
const MAX_FILE: usize = MAX_VALUE + (1 << 18);

/// Told how far something long has come: done, and of how many where that is known.
pub type Progress<'a> = &'a mut dyn FnMut(usize, Option<usize>);

/// An opened store. Cheap to clone; the lock is held until the last clone is gone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    storage: Box<dyn Storage>,
    clock: Clock,
    /// Held by whoever changes the store, for the whole change.
    changing: Mutex<()>,
    /// What every read starts from. Held for no longer than it takes to copy or replace the pointer.
    current: Mutex<Arc<State>>,
}

/// An index that is on the disk, and what opens the values that it names.
#[derive(Debug)]
struct State {
    index: Index,
    identity: Identity,
}

/// A secret to be written by [`Store::put_all`].
#[derive(Debug, Clone, Copy)]
pub struct NewValue<'a> {
    /// What it is called.
    pub path: &'a SecretPath,
    /// Its bytes.
    pub value: &'a SecretBytes,
    /// What to say about it; `None` leaves what is said, an empty text removes it.
    pub description: Option<&'a str>,
}

/// One version of a secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct VersionInfo {
    /// Its number.
    pub version: Version,
    /// The value's length in bytes.
    pub size: usize,
    /// When it was made.
    pub created: Timestamp,
}

impl Store {
    /// Makes an empty store whose index is at `path`, sealed to every key of `identity`, and opens it.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is one, or remains of one; [`StoreError::Locked`], [`StoreError::Io`].
    pub fn create(path: &Path, identity: &Identity, clock: Clock) -> Result<Self, StoreError> {
        Self::create_in(Box::new(Disk::create(path)?), identity, clock)
    }

    /// Opens the store whose index is at `path`. Waits up to 5 s for another process to let go of it.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Locked`], [`StoreError::WrongIdentity`], [`StoreError::Damaged`],
    /// [`StoreError::Format`], [`StoreError::Io`].
    pub fn open(path: &Path, identity: Identity, clock: Clock) -> Result<Self, StoreError> {
        Self::open_in(Box::new(Disk::open(path)?), identity, clock)
    }

    fn create_in(
        storage: Box<dyn Storage>,
        identity: &Identity,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let taken = [File::Index, File::Kept(1), File::Kept(2), File::Kept(3)];
        for file in taken {
            if exists(storage.as_ref(), file)? {
                return Err(StoreError::Exists(storage.path(file)));
            }
        }
        if let Some(value) = values(storage.as_ref())?.first() {
            return Err(StoreError::Exists(storage.path(File::Value(*value))));
        }
        let state = State {
            index: Index::new(identity.recipients())?,
            identity: identity.clone(),
        };
        write_index(storage.as_ref(), &state.index, Before::Keep)?;
        sync(storage.as_ref(), Folder::Indexes)?;
        Ok(Self::over(storage, state, clock))
    }

    fn open_in(
        storage: Box<dyn Storage>,
        identity: Identity,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let index = read_index(storage.as_ref(), File::Index, &identity)?;
        sweep(storage.as_ref(), &index);
        Ok(Self::over(storage, State { index, identity }, clock))
    }

    fn over(storage: Box<dyn Storage>, state: State, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            storage,
            clock,
            changing: Mutex::new(()),
            current: Mutex::new(Arc::new(state)),
        }))
    }

    /// Writes a new version and makes it the current one. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::Description`], [`StoreError::Io`].
    pub fn put(
        &self,
        path: &SecretPath,
        value: &SecretBytes,
        description: Option<&str>,
    ) -> Result<Version, StoreError> {
        let mut versions = self.put_all(&[NewValue {
            path,
            value,
            description,
        }])?;
        // One value went in, so one version came out.
        versions.pop().ok_or_else(|| StoreError::absent(path, None))
    }

    /// Writes a new version of each: all of them or, if it fails, none. The versions come in the same order.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_all(&self, new: &[NewValue<'_>]) -> Result<Vec<Version>, StoreError> {
        for new in new {
            if new.value.len() > MAX_VALUE {
                return Err(StoreError::TooLarge(new.path.clone()));
            }
            if !fit_description(new.description.unwrap_or_default()) {
                return Err(StoreError::Description(new.path.clone()));
            }
        }
        let _changing = self.changing();
        let state = self.state();
        let mut index = state.index.clone();
        let mut staged = self.stage();
        let (mut versions, mut pruned) = (Vec::new(), Vec::new());
        for new in new {
            let sealed = staged.add(&index.recipients, new.value)?;
            let created = self.0.clock.timestamp();
            let (version, too_many) = index.add(new.path, sealed, created, new.description);
            versions.push(Version::new(version.to_string()));
            pruned.extend(too_many);
        }
        self.switch(index, state.identity.clone(), staged, Before::Keep)?;
        self.drop_values(&pruned);
        Ok(versions)
    }

    /// A version of a secret, or the current one. What it gives is exactly what was put.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Damaged`], [`StoreError::Io`].
    pub fn get(&self, path: &SecretPath, version: Option<&Version>) -> Result<Fetched, StoreError> {
        let mut state = self.state();
        loop {
            let record = state.index.record(path, version)?;
            let error = match read_value(self.storage(), &state.identity, record) {
                Ok(value) => {
                    return Ok(Fetched {
                        value,
                        version: record.version(),
                        modified: Some(record.created),
                        description: state.index.secret(path)?.description.clone(),
                    });
                }
                Err(error) => error,
            };
            // The file may be gone because the version is: then the index has changed since we looked.
            let now = self.state();
            if !error.gone() || Arc::ptr_eq(&now, &state) {
                return Err(error.of(self.storage(), path, record));
            }
            state = now;
        }
    }

    /// The services that have secrets.
    #[must_use]
    pub fn services(&self) -> Vec<Name> {
        let state = self.state();
        let services = state.index.services.iter();
        services
            .filter(|(_, secrets)| secrets.values().any(|secret| !secret.versions.is_empty()))
            .map(|(service, _)| service.clone())
            .collect()
    }

    /// The names of a service's secrets; none if there is no such service.
    #[must_use]
    pub fn names(&self, service: &Name) -> Vec<Name> {
        let state = self.state();
        let secrets = state.index.services.get(service).into_iter().flatten();
        secrets
            .filter(|(_, secret)| !secret.versions.is_empty())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The versions of a secret that are kept, the current one first.
    ///
    /// # Errors
    /// [`StoreError::Absent`].
    pub fn history(&self, path: &SecretPath) -> Result<Vec<VersionInfo>, StoreError> {
        let state = self.state();
        let versions = state.index.secret(path)?.versions.iter().rev();
        Ok(versions
            .map(|record| VersionInfo {
                version: record.version(),
                size: record.size,
                created: record.created,
            })
            .collect())
    }

    /// What is said about a secret.
    ///
    /// # Errors
    /// [`StoreError::Absent`].
    pub fn description(&self, path: &SecretPath) -> Result<Option<String>, StoreError> {
        Ok(self.state().index.secret(path)?.description.clone())
    }

    /// Destroys a version of a secret, or all of it: nothing that is kept brings the value back.
    ///
    /// # Errors
    /// [`StoreError::Absent`]; [`StoreError::Io`], also if the secret is gone but its file could not be removed.
    pub fn remove(&self, path: &SecretPath, version: Option<&Version>) -> Result<(), StoreError> {
        let _changing = self.changing();
        let state = self.state();
        let mut index = state.index.clone();
        let files = index.take(path, version)?;
        self.switch(index, state.identity.clone(), self.stage(), Before::Keep)?;
        for file in files {
            remove(self.storage(), File::Value(file))?;
        }
        sync(self.storage(), Folder::Values)
    }

    /// Makes the value of an earlier version the current one, as a new version.
    ///
    /// # Errors
    /// As [`Store::get`] and [`Store::put`].
    pub fn rollback(&self, path: &SecretPath, to: &Version) -> Result<Version, StoreError> {
        let value = self.get(path, Some(to))?.value;
        self.put(path, &value, None)
    }

    /// The key of the audit log's chain, which never changes.
    #[must_use]
    pub fn audit_key(&self) -> SecretBytes {
        self.state().index.audit_key()
    }

    /// Whom the store is sealed to.
    #[must_use]
    pub fn recipients(&self) -> Vec<Recipient> {
        self.state().index.recipients.clone()
    }

    /// How many secrets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let state = self.state();
        let secrets = state.index.secrets();
        secrets
            .filter(|(_, secret)| !secret.versions.is_empty())
            .count()
    }

    /// True if there is no secret.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the index is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.storage().path(File::Index)
    }

    fn storage(&self) -> &dyn Storage {
        self.0.storage.as_ref()
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // What a panicking thread left half done is on the disk under names that nobody knows.
        self.0
            .changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> Arc<State> {
        let current = self.0.current.lock();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    fn stage(&self) -> Staged<'_> {
        Staged {
            storage: self.storage(),
            files: Vec::new(),
        }
    }

    /// Makes `index` the current one, with the values that were staged for it.
    fn switch(
        &self,
        index: Index,
        identity: Identity,
        staged: Staged<'_>,
        before: Before,
    ) -> Result<(), StoreError> {
        if !staged.files.is_empty() {
            sync(self.storage(), Folder::Values)?;
        }
        write_index(self.storage(), &index, before)?;
        // From here on the new index is what a process finds that opens the store, also if the fsync below fails.
        staged.keep();
        *self
            .0
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(State { index, identity });
        sync(self.storage(), Folder::Indexes)
    }

    /// Removes files that no index names any more. What stays behind is swept at the next open.
    fn drop_values(&self, files: &[ValueFile]) {
        for file in files {
            sweep_away(self.storage(), File::Value(*file));
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.path()).finish()
    }
}

fn fit_description(text: &str) -> bool {
    text.len() <= MAX_DESCRIPTION && !text.chars().any(char::is_control)
}

/// Values that are on the disk and that no index names yet. They go again unless they are kept.
struct Staged<'a> {
    storage: &'a dyn Storage,
    files: Vec<ValueFile>,
}

impl Staged<'_> {
    fn add(
        &mut self,
        recipients: &[Recipient],
        value: &SecretBytes,
    ) -> Result<index::Sealed, StoreError> {
        let file = ValueFile::random()?;
        let path = || self.storage.path(File::Value(file));
        let bytes = seal::seal(SealTo::Recipients(recipients), value.len(), |writer| {
            writer.write_all(value.expose())
        })
        .map_err(|error| StoreError::io("seal", &path(), error))?;
        self.storage
            .create(File::Value(file), &bytes)
            .map_err(|error| StoreError::io("write", &path(), error))?;
        self.files.push(file);
        Ok(index::Sealed {
            file,
            size: value.len(),
            sha256: index::Sha256::of(&bytes),
        })
    }

    fn keep(mut self) {
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
enum Before {
    /// It is kept, and so are the two before it.
    Keep,
    /// It goes, and the ones before it stay as they are: it is damaged, and one of them is what there is.
    Leave,
    /// It goes, and so do the ones before it: what opened them shall open nothing any more.
    Forget,
}

/// Puts an index in the place of the current one. If it fails, the current one is still the old one.
fn write_index(storage: &dyn Storage, index: &Index, before: Before) -> Result<(), StoreError> {
    let new = storage.path(File::NewIndex);
    let io = |step: &'static str| {
        let new = new.clone();
        move |error: io::Error| StoreError::io(step, &new, error)
    };
    let room = index.records().count().saturating_mul(256);
    let bytes = seal::seal(SealTo::Recipients(&index.recipients), room, |writer| {
        index.write(writer)
    })
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

fn read_index(storage: &dyn Storage, file: File, identity: &Identity) -> Result<Index, StoreError> {
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
    Index::parse(&document).map_err(|invalid| match invalid {
        Invalid::Format(found) => StoreError::Format { file: path, found },
        Invalid::Content(what) => StoreError::damaged(&path, what),
    })
}

/// Why a value could not be read.
#[derive(Debug)]
enum ValueError {
    Io(io::Error),
    Damaged(&'static str),
}

impl ValueError {
    fn gone(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// The same, with what people need to know.
    fn of(self, storage: &dyn Storage, path: &SecretPath, record: &Record) -> StoreError {
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

fn read_value(
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
    if index::Sha256::of(&sealed) != record.sha256 {
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
fn sweep(storage: &dyn Storage, index: &Index) {
    let Ok(files) = storage.values() else {
        return;
    };
    let named: std::collections::BTreeSet<_> = index.records().map(|record| record.file).collect();
    for file in files.into_iter().filter(|file| !named.contains(file)) {
        sweep_away(storage, File::Value(file));
    }
    sweep_away(storage, File::NewIndex);
}

/// Removes a file whose staying would do no harm.
fn sweep_away(storage: &dyn Storage, file: File) {
    if let Err(error) = remove(storage, file) {
        tracing::warn!("{error}");
    }
}

fn remove(storage: &dyn Storage, file: File) -> Result<(), StoreError> {
    unless_missing(storage.remove(file))
        .map_err(|error| StoreError::io("remove", &storage.path(file), error))
}

fn sync(storage: &dyn Storage, folder: Folder) -> Result<(), StoreError> {
    let path = match folder {
        Folder::Indexes => storage.path(File::Index),
        Folder::Values => storage.path(File::Index).with_extension("d"),
    };
    storage
        .sync(folder)
        .map_err(|error| StoreError::io("write the folder of", &path, error))
}

fn values(storage: &dyn Storage) -> Result<Vec<ValueFile>, StoreError> {
    storage.values().map_err(|error| {
        let folder = storage.path(File::Index).with_extension("d");
        StoreError::io("list", &folder, error)
    })
}

fn exists(storage: &dyn Storage, file: File) -> Result<bool, StoreError> {
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
