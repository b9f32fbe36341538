//! Another identity, or further recipients.
//!
//! The identity's file and the store cannot change in one step. So whoever rekeys first writes an identity file with the
//! old and the new keys ([`Identity::with`], [`write_whole`](super::write_whole)), then calls [`Store::rekey`], then
//! writes the file with the new keys alone. Wherever that ends early, the identity file opens the store.

use std::sync::Arc;

use super::files::{self, Before, read_value};
use super::storage::{File, Folder};
use super::{Identity, Progress, Recipient, Store, StoreError};
use crate::secret::SecretPath;

impl Store {
    /// Seals everything anew, to the keys of `identity` and to `others`, and from then on uses `identity`. What was sealed
    /// before is removed, also the indexes kept from before.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a value cannot be read: then nothing has changed; [`StoreError::Io`].
    pub fn rekey(
        &self,
        identity: &Identity,
        others: &[Recipient],
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let _changing = self.changing();
        let state = self.state();
        let mut index = state.index.clone();
        index.recipients = identity.recipients();
        for other in others {
            if !index.recipients.contains(other) {
                index.recipients.push(other.clone());
            }
        }
        let recipients = index.recipients.clone();
        let total = index.records().count();
        let mut staged = self.stage();
        let mut old = Vec::with_capacity(total);
        let values = index.services.iter_mut().flat_map(|(service, secrets)| {
            let named = move |(name, secret)| (service, name, secret);
            secrets.iter_mut().map(named)
        });
        for (service, name, secret) in values {
            for record in &mut Arc::make_mut(secret).versions {
                let value =
                    read_value(self.storage(), &state.identity, record).map_err(|error| {
                        let path = SecretPath {
                            service: service.clone(),
                            name: name.clone(),
                        };
                        error.of(self.storage(), &path, record)
                    })?;
                let sealed = staged.add(&recipients, &value)?;
                old.push(record.file);
                (record.file, record.sha256) = (sealed.file, sealed.sha256);
                progress(old.len(), Some(total));
            }
        }
        self.switch(index, identity.clone(), staged, Before::Forget)?;
        for file in old {
            files::remove(self.storage(), File::Value(file))?;
        }
        files::sync(self.storage(), Folder::Values)
    }
}
