//! Asking the backends that a binding names: rule 8.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Binding, Cache};
use crate::backend::{self, Backend, BackendError, Fetched, Reference, Version};
use crate::secret::{MAX_VALUE, Name};

/// A value, and the reference of the binding that it was found at.
pub(super) type Found = Result<(Reference, Fetched), BackendError>;

impl Cache {
    /// What is found first: the newest, or the version that was asked for. Whom it waits for is in `waiting`.
    pub(super) async fn find(
        &self,
        binding: &Binding,
        version: Option<&Version>,
        waiting: &mut Option<Name>,
    ) -> Found {
        let mut absent = BackendError::Absent("the binding names nothing like it".to_owned());
        for reference in &binding.references {
            let Some(asked) = with(reference, version) else {
                continue;
            };
            let backend = self.backend(&asked)?;
            *waiting = Some(asked.backend.clone());
            let found = backend.read(&asked).await;
            self.health.heard(&asked.backend, &found);
            match found.and_then(|fetched| fit(&asked, fetched)) {
                Ok(fetched) => return Ok((reference.clone(), fetched)),
                Err(error @ BackendError::Absent(_)) => absent = error,
                Err(error) => return Err(error),
            }
        }
        Err(absent)
    }

    /// What was at `reference` before `current`.
    pub(super) async fn find_before(&self, reference: &Reference, current: &Version) -> Found {
        let fetched = self
            .backend(reference)?
            .previous(reference, current)
            .await?;
        Ok((reference.clone(), fit(reference, fetched)?))
    }

    pub(super) fn backend(&self, reference: &Reference) -> Result<&Arc<dyn Backend>, BackendError> {
        self.backends.get(&reference.backend).ok_or_else(|| {
            let name = reference.backend.as_str();
            BackendError::Unusable(format!("no backend {name:?} is running"))
        })
    }

    /// True if every place that was asked until `found` says when it changes: also those that had nothing yet.
    pub(super) fn is_announced(&self, binding: &Binding, found: &Reference) -> bool {
        let asked = binding.references.iter().position(|one| one == found);
        let mut asked = binding
            .references
            .iter()
            .take(asked.map_or(usize::MAX, |at| at + 1));
        asked.all(|reference| {
            self.backends
                .get(&reference.backend)
                .is_some_and(|backend| backend.announces_changes())
        })
    }
}

/// What to ask for at `reference`; nothing if it names another version: no other is this binding's.
fn with<'a>(reference: &'a Reference, version: Option<&Version>) -> Option<Cow<'a, Reference>> {
    match (version, &reference.version) {
        (None, _) => Some(Cow::Borrowed(reference)),
        (Some(version), Some(named)) => (version == named).then_some(Cow::Borrowed(reference)),
        (Some(version), None) => Some(Cow::Owned(Reference {
            version: Some(version.clone()),
            ..reference.clone()
        })),
    }
}

/// The part of what was fetched that is shown, if it may be.
fn fit(reference: &Reference, fetched: Fetched) -> Result<Fetched, BackendError> {
    if fetched.value.len() > MAX_VALUE {
        return Err(BackendError::Unusable(format!(
            "{reference}: more than {MAX_VALUE} bytes"
        )));
    }
    match &reference.field {
        Some(field) => Ok(Fetched {
            value: backend::field(&fetched.value, field)?,
            ..fetched
        }),
        None => Ok(fetched),
    }
}
