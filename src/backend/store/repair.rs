//! For `doctor`: what is damaged, and the way back from it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::files::{Before, read_index, read_value, sync, values, write_index};
use super::index::Index;
use super::storage::{Disk, File, Folder, KEPT, Storage};
use super::{Identity, Progress, Store, StoreError};
use crate::backend::Version;
use crate::secret::SecretPath;

/// What [`Store::verify`] found.
#[derive(Debug)]
pub struct Report {
    /// How many values were read whole.
    pub sound: usize,
    /// The others.
    pub damaged: Vec<Damage>,
}

/// A value that cannot be read.
#[derive(Debug)]
pub struct Damage {
    /// Whose it is.
    pub path: SecretPath,
    /// Which version.
    pub version: Version,
    /// What is wrong with which file.
    pub error: StoreError,
}

/// What [`Store::repair`] did.
#[derive(Debug)]
pub struct Repaired {
    /// The index that the store now goes by, if the current one could not be read: everything that was changed since it
    /// was current is lost.
    pub from: Option<PathBuf>,
    /// The versions that are no longer in the store.
    pub lost: Vec<Damage>,
    /// Sealed values that no index names. They are kept under these names; the identity opens them.
    pub unnamed: Vec<PathBuf>,
}

impl Store {
    /// Reads every version of every secret.
    pub fn verify(&self, progress: Progress<'_>) -> Report {
        let state = self.state();
        let (sound, damaged) = examine(self.storage(), &state.index, &state.identity, progress);
        // What was removed in the meantime is not damaged.
        let now = self.state();
        let still_there = |damage: &Damage| {
            now.index
                .record(&damage.path, Some(&damage.version))
                .is_ok()
        };
        Report {
            sound,
            damaged: damaged.into_iter().filter(still_there).collect(),
        }
    }

    /// Makes a store usable again whose index or values are damaged: goes by the newest index that can be read, and takes
    /// out of it what cannot. The store must not be in use. Does nothing to a store that is sound.
    ///
    /// # Errors
    /// [`StoreError::WrongIdentity`] or [`StoreError::Damaged`] if no index can be read; [`StoreError::Missing`],
    /// [`StoreError::Locked`], [`StoreError::Io`].
    pub fn repair(
        path: &Path,
        identity: &Identity,
        progress: Progress<'_>,
    ) -> Result<Repaired, StoreError> {
        repair_in(&Disk::open(path)?, identity, progress)
    }
}

pub(super) fn repair_in(
    storage: &dyn Storage,
    identity: &Identity,
    progress: Progress<'_>,
) -> Result<Repaired, StoreError> {
    let (mut index, from) = match read_index(storage, File::Index, identity) {
        Ok(index) => (index, None),
        Err(first @ (StoreError::Damaged { .. } | StoreError::WrongIdentity(_))) => {
            let kept = (1..=KEPT).map(File::Kept);
            let newest = kept
                .filter_map(|file| Some((read_index(storage, file, identity).ok()?, file)))
                .next();
            let (index, file) = newest.ok_or(first)?;
            (index, Some(file))
        }
        // A format that we do not know, or a disk that does not answer, is no reason to go back in time.
        Err(other) => return Err(other),
    };
    let (_, lost) = examine(storage, &index, identity, progress);
    for damage in &lost {
        index.take(&damage.path, Some(&damage.version))?;
    }
    let named: BTreeSet<_> = index.records().map(|record| record.file).collect();
    let mut unnamed = Vec::new();
    if from.is_some() || !lost.is_empty() {
        for file in values(storage)? {
            if !named.contains(&file) {
                let lost = File::Lost(file);
                storage.rename(File::Value(file), lost).map_err(|error| {
                    StoreError::io("rename", &storage.path(File::Value(file)), error)
                })?;
                unnamed.push(storage.path(lost));
            }
        }
        sync(storage, Folder::Values)?;
        write_index(storage, &index, Before::Leave)?;
        sync(storage, Folder::Indexes)?;
    }
    Ok(Repaired {
        from: from.map(|file| storage.path(file)),
        lost,
        unnamed,
    })
}

fn examine(
    storage: &dyn Storage,
    index: &Index,
    identity: &Identity,
    progress: Progress<'_>,
) -> (usize, Vec<Damage>) {
    let total = index.records().count();
    let (mut sound, mut damaged) = (0_usize, Vec::new());
    for (path, secret) in index.secrets() {
        for record in &secret.versions {
            match read_value(storage, identity, record) {
                Ok(_) => sound = sound.saturating_add(1),
                Err(error) => damaged.push(Damage {
                    error: error.of(storage, &path, record),
                    path: path.clone(),
                    version: record.version(),
                }),
            }
            progress(sound.saturating_add(damaged.len()), Some(total));
        }
    }
    (sound, damaged)
}
