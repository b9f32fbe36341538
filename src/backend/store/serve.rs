//! The store as a [`Backend`]: a reference's path is `service/name`, its version one of the store's numbers.

use futures_util::future::BoxFuture;

use super::storage::File;
use super::{Store, StoreError, files};
use crate::backend::{Backend, BackendError, Fetched, Reference, Version};
use crate::secret::{Name, SecretPath};

impl Backend for Store {
    fn kind(&self) -> &'static str {
        "store"
    }

    fn announces_changes(&self) -> bool {
        true
    }

    fn read<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Fetched, BackendError>> {
        Box::pin(async move {
            let path = place(reference)?;
            let (store, version) = (self.clone(), reference.version.clone());
            blocking(move || Ok(store.get(&path, version.as_ref())?)).await
        })
    }

    fn previous<'a>(
        &'a self,
        reference: &'a Reference,
        current: &'a Version,
    ) -> BoxFuture<'a, Result<Fetched, BackendError>> {
        Box::pin(async move {
            let path = place(reference)?;
            if reference.version.is_some() {
                return Err(BackendError::Absent(format!(
                    "a version before {reference}"
                )));
            }
            let (store, current) = (self.clone(), current.clone());
            blocking(move || Ok(store.get_before(&path, &current)?)).await
        })
    }

    fn version<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Option<Version>, BackendError>> {
        Box::pin(async move {
            let path = place(reference)?;
            let kept = self.history(&path)?;
            let version = match &reference.version {
                None => kept.first(),
                Some(named) => kept.iter().find(|kept| kept.version == *named),
            };
            match version {
                Some(found) => Ok(Some(found.version.clone())),
                None => Err(BackendError::Absent(reference.to_string())),
            }
        })
    }

    fn list<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<Name>, BackendError>> {
        Box::pin(async move {
            let names = folder.parse().map(|service| self.names(&service));
            match names {
                Ok(names) if !names.is_empty() => Ok(names),
                Ok(_) | Err(_) => Err(BackendError::Absent(folder.to_owned())),
            }
        })
    }

    fn folders(&self) -> BoxFuture<'_, Result<Vec<Name>, BackendError>> {
        Box::pin(async move { Ok(self.services()) })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            let store = self.clone();
            blocking(move || match files::exists(store.storage(), File::Index)? {
                true => Ok(()),
                false => Err(StoreError::damaged(&store.path(), "the index is missing").into()),
            })
            .await
        })
    }
}

/// The secret that a reference means.
fn place(reference: &Reference) -> Result<SecretPath, BackendError> {
    if !reference.query.is_empty() {
        let text = format!("{reference}: the store takes no ?query: remove it");
        return Err(BackendError::Unusable(text));
    }
    reference
        .path
        .parse()
        .map_err(|error| BackendError::Unusable(format!("{reference}: {error}")))
}

/// Runs what waits for the disk where it keeps no task waiting.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, BackendError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        BackendError::Unreachable("the store's thread ended early: try again".into())
    })?
}
