//! Asking the backends that a binding names: rule 8.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::leases::Leased;
use super::reading::too_large;
use super::records::{Record, Since};
use super::{Binding, Cache, Generation};
use crate::backend::{self, Backend, BackendError, Fetched, Reference, Version};
use crate::secret::{MAX_VALUE, Sealed, SecretPath};

/// What was found for a secret, and all that it depends on.
#[derive(Debug)]
pub(super) struct Found {
    /// The records that were looked at, in the order of the binding.
    pub(super) consulted: Vec<Arc<Record>>,
    /// What is shown of the last of them.
    pub(super) cut: Result<Cut, BackendError>,
}

/// What a secret shows of a record.
#[derive(Debug)]
pub(super) struct Cut {
    /// The reference of the binding that it was found at.
    pub(super) reference: Reference,
    pub(super) version: Version,
    pub(super) record: Arc<Record>,
    value: Arc<Sealed>,
    description: Option<String>,
    modified: Timestamp,
}

impl Cut {
    /// The same, cut from a record that says the same.
    pub(super) fn on_same(mut self, record: Arc<Record>) -> Self {
        if let (None, Ok(content)) = (&self.reference.field, &record.content) {
            self.value = Arc::clone(&content.value);
        }
        self.record = record;
        self
    }

    /// As the generation that readers see.
    pub(super) fn generation(self, number: u64) -> Arc<Generation> {
        Arc::new(Generation {
            number,
            version: self.version,
            reference: self.reference,
            value: self.value,
            description: self.description,
            modified: self.modified,
        })
    }
}

impl Found {
    fn error(consulted: Vec<Arc<Record>>, error: BackendError) -> Self {
        Self {
            consulted,
            cut: Err(error),
        }
    }

    /// When the oldest of the answers was given that this rests on.
    pub(super) fn since(&self) -> Option<Instant> {
        self.consulted.iter().map(|record| record.fetched).min()
    }
}

/// A value of another time, and the reference of the binding that it was found at.
pub(super) type Earlier = Result<(Reference, Fetched), BackendError>;

impl Cache {
    /// What is found first, of records that answer the question.
    pub(super) async fn find(
        self: &Arc<Self>,
        path: &SecretPath,
        binding: &Binding,
        since: Since,
    ) -> Found {
        let mut consulted = Vec::new();
        let mut absent = BackendError::Absent("the binding names nothing like it".to_owned());
        for reference in &binding.references {
            let record = match self.record(reference, since, path).await {
                Ok(record) => record,
                Err(error) => return Found::error(consulted, error),
            };
            consulted.push(Arc::clone(&record));
            match self.cut(reference, record) {
                Ok(cut) => {
                    let cut = Ok(cut);
                    return Found { consulted, cut };
                }
                Err(error @ BackendError::Absent(_)) => absent = error,
                Err(error) => return Found::error(consulted, error),
            }
        }
        Found::error(consulted, absent)
    }

    /// The part of a record that is shown. Not to be called by who holds the state.
    pub(super) fn cut(
        &self,
        reference: &Reference,
        record: Arc<Record>,
    ) -> Result<Cut, BackendError> {
        let content = record.content.as_ref();
        let content = content.map_err(|why| BackendError::Absent(why.clone()))?;
        let value = match &reference.field {
            Some(field) => {
                let whole = content.value.open();
                let whole = whole.map_err(|broken| self.unopened(reference, broken))?;
                self.seal(reference, &backend::field(&whole, field)?)?
            }
            None => Arc::clone(&content.value),
        };
        Ok(Cut {
            reference: reference.clone(),
            version: content.version.clone(),
            value,
            description: content.description.clone(),
            modified: content.modified,
            record,
        })
    }

    /// The version that was asked for, where it is found first.
    pub(super) async fn find_version(&self, binding: &Binding, version: &Version) -> Earlier {
        let mut absent = BackendError::Absent("the binding names nothing like it".to_owned());
        for reference in &binding.references {
            let Some(asked) = with(reference, version) else {
                continue;
            };
            let backend = self.backend(&asked)?;
            let found = self.ask_in_time(&asked.backend, || backend.read(&asked));
            let found = found.await;
            match found.and_then(|fetched| self.fit(&asked, fetched)) {
                Ok(fetched) => return Ok((reference.clone(), fetched)),
                Err(error @ BackendError::Absent(_)) => absent = error,
                Err(error) => return Err(error),
            }
        }
        Err(absent)
    }

    /// What was at `reference` before `current`.
    pub(super) async fn find_before(&self, reference: &Reference, current: &Version) -> Earlier {
        let backend = self.backend(reference)?;
        let reading = || backend.previous(reference, current);
        let fetched = self.ask_in_time(&reference.backend, reading).await?;
        Ok((reference.clone(), self.fit(reference, fetched)?))
    }

    /// The part of an earlier value that is shown, if it may be. What is leased has none: one that is made anew for the
    /// question is ended at once.
    fn fit(&self, reference: &Reference, fetched: Fetched) -> Result<Fetched, BackendError> {
        if let Some(lease) = fetched.lease {
            let lease = Leased::new(&Arc::new(reference.clone()), lease, self.clock.now());
            self.state().leases.revoke(lease);
            self.tending.notify_one();
            return Err(BackendError::Absent(reference.to_string()));
        }
        if fetched.value.len() > MAX_VALUE {
            return Err(too_large(reference));
        }
        match &reference.field {
            Some(field) => Ok(Fetched {
                value: backend::field(&fetched.value, field)?,
                ..fetched
            }),
            None => Ok(fetched),
        }
    }

    pub(super) fn backend(&self, reference: &Reference) -> Result<&Arc<dyn Backend>, BackendError> {
        self.backends.get(&reference.backend).ok_or_else(|| {
            let name = reference.backend.as_str();
            BackendError::Unusable(format!("no backend {name:?} is running"))
        })
    }

    /// Whether one of the backends that could be asked is elsewhere: what announces its changes is here.
    #[must_use]
    pub fn asks_elsewhere(&self, binding: &Binding) -> bool {
        let mut references = binding.references.iter();
        references.any(|reference| {
            let backend = self.backends.get(&reference.backend);
            backend.is_some_and(|backend| !backend.announces_changes())
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
fn with<'a>(reference: &'a Reference, version: &Version) -> Option<Cow<'a, Reference>> {
    match &reference.version {
        Some(named) => (version == named).then_some(Cow::Borrowed(reference)),
        None => Some(Cow::Owned(Reference {
            version: Some(version.clone()),
            ..reference.clone()
        })),
    }
}
