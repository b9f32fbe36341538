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
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::backend::{Fetched, Version};
use crate::clock::Clock;
use crate::secret::{MAX_VALUE, Name, SecretBytes, SecretPath};

mod apart;
mod archive;
mod error;
mod files;
pub mod identity;
mod index;
mod rekey;
mod repair;
mod seal;
mod serve;
mod storage;
#[cfg(test)]
mod tests;

pub use apart::ApartError;
pub use error::StoreError;
pub use identity::{Identity, IdentityError, Prompt, Protection};
pub use repair::{Damage, Repaired, Report};
pub use seal::{MAX_WORK_FACTOR, OpenWith, Recipient, RecipientError, SealTo};
pub use storage::{write_whole, write_whole_with};

use files::{Before, Staged};
use index::{Index, Record, ValueFile};
use storage::{Disk, File, Folder, KEPT, Storage};

/// The longest description, in bytes.
pub const MAX_DESCRIPTION: usize = 1024;

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
        let kept = (1..=KEPT).map(File::Kept);
        for file in std::iter::once(File::Index).chain(kept) {
            if files::exists(storage.as_ref(), file)? {
                return Err(StoreError::Exists(storage.path(file)));
            }
        }
        if let Some(value) = files::values(storage.as_ref())?.first() {
            return Err(StoreError::Exists(storage.path(File::Value(*value))));
        }
        let state = State {
            index: Index::new(identity.recipients())?,
            identity: identity.clone(),
        };
        files::write_index(storage.as_ref(), &state.index, Before::Keep)?;
        files::sync(storage.as_ref(), Folder::Indexes)?;
        Ok(Self::over(storage, state, clock))
    }

    fn open_in(
        storage: Box<dyn Storage>,
        identity: Identity,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let index = files::read_index(storage.as_ref(), File::Index, &identity)?;
        files::sweep(storage.as_ref(), &index);
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
        let new = NewValue {
            path,
            value,
            description,
        };
        only(self.put_all(&[new], &mut |_, _| {})?, path)
    }

    /// Writes a new version of each: all of them or, if it fails, none. The versions come in the same order.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_all(
        &self,
        new: &[NewValue<'_>],
        progress: Progress<'_>,
    ) -> Result<Vec<Version>, StoreError> {
        for new in new {
            if new.value.len() > MAX_VALUE {
                return Err(StoreError::TooLarge(new.path.clone()));
            }
            if !fit_description(new.description.unwrap_or_default()) {
                return Err(StoreError::Description(new.path.clone()));
            }
        }
        self.put_while(&self.changing(), new, progress)
    }

    fn put_while(
        &self,
        _changing: &MutexGuard<'_, ()>,
        new: &[NewValue<'_>],
        progress: Progress<'_>,
    ) -> Result<Vec<Version>, StoreError> {
        let state = self.state();
        let mut index = state.index.clone();
        let mut staged = self.stage();
        let (mut versions, mut pruned) = (Vec::new(), Vec::new());
        let all = new.len();
        for new in new {
            let sealed = staged.add(&index.recipients, new.value)?;
            let created = self.0.clock.timestamp();
            let (version, too_many) = index.add(new.path, sealed, created, new.description);
            versions.push(Version::new(version.to_string()));
            pruned.extend(too_many);
            progress(versions.len(), Some(all));
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
        self.read_record(path, |index| index.record(path, version))
    }

    /// The newest version that is older than `current`, which itself need not be kept any more.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn get_before(&self, path: &SecretPath, current: &Version) -> Result<Fetched, StoreError> {
        self.read_record(path, |index| index.record_before(path, current))
    }

    fn read_record(
        &self,
        path: &SecretPath,
        choose: impl Fn(&Index) -> Result<&Record, StoreError>,
    ) -> Result<Fetched, StoreError> {
        let mut state = self.state();
        loop {
            let record = choose(&state.index)?;
            let error = match files::read_value(self.storage(), &state.identity, record) {
                Ok(value) => {
                    return Ok(Fetched {
                        value,
                        version: record.version(),
                        modified: Some(record.created),
                        description: state.index.secret(path)?.description.clone(),
                        lease: None,
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
            files::remove(self.storage(), File::Value(file))?;
        }
        files::sync(self.storage(), Folder::Values)
    }

    /// Makes the value of an earlier version the current one, as a new version.
    ///
    /// # Errors
    /// As [`Store::get`] and [`Store::put`].
    pub fn rollback(&self, path: &SecretPath, to: &Version) -> Result<Version, StoreError> {
        // Were the value read before nobody else can change the store, it could come back after it was destroyed.
        let changing = self.changing();
        let new = NewValue {
            path,
            value: &self.get(path, Some(to))?.value,
            description: None,
        };
        only(self.put_while(&changing, &[new], &mut |_, _| {})?, path)
    }

    /// The key of the audit log's chain, which never changes.
    #[must_use]
    pub fn audit_key(&self) -> SecretBytes {
        self.state().index.audit_key()
    }

    /// What opens the store: an export of it, too.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.state().identity.clone()
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
        Staged::new(self.storage())
    }

    /// Makes `index` the current one, with the values that were staged for it.
    fn switch(
        &self,
        index: Index,
        identity: Identity,
        staged: Staged<'_>,
        before: Before,
    ) -> Result<(), StoreError> {
        if !staged.is_empty() {
            files::sync(self.storage(), Folder::Values)?;
        }
        files::write_index(self.storage(), &index, before)?;
        // From here on the new index is what a process finds that opens the store, also if the fsync below fails.
        staged.keep();
        *self
            .0
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(State { index, identity });
        files::sync(self.storage(), Folder::Indexes)
    }

    /// Removes files that no index names any more. What stays behind is swept at the next open.
    fn drop_values(&self, files: &[ValueFile]) {
        for file in files {
            files::sweep_away(self.storage(), File::Value(*file));
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.path()).finish()
    }
}

/// The version that came out where one value went in.
fn only(mut versions: Vec<Version>, path: &SecretPath) -> Result<Version, StoreError> {
    versions.pop().ok_or_else(|| StoreError::absent(path, None))
}

fn fit_description(text: &str) -> bool {
    text.len() <= MAX_DESCRIPTION && !text.chars().any(char::is_control)
}
