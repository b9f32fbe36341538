//! Values that are not the current one: rule 10.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Weak};

use super::ask::Earlier;
use super::{Answer, Binding, Cache, Fetch, Generation, Served, given_up, too_late};
use crate::backend::{BackendError, Fetched, Reference, Version};
use crate::secret::SecretPath;

impl Cache {
    /// This version of `path`, whether or not it is the current one.
    pub fn version(
        self: &Arc<Self>,
        path: &SecretPath,
        binding: &Arc<Binding>,
        version: &Version,
    ) -> Answer<Fetch> {
        let (cache, binding, version) = (Arc::clone(self), Arc::clone(binding), version.clone());
        self.earlier(
            path,
            async move { cache.find_version(&binding, &version).await },
        )
    }

    /// The value of `path` before the current one, at the place that the current one comes from.
    pub fn previous(self: &Arc<Self>, path: &SecretPath, binding: &Arc<Binding>) -> Answer<Fetch> {
        let cache = Arc::clone(self);
        let current = self.get(path, binding);
        self.earlier(path, async move {
            let current = current.wait().await?.generation;
            cache
                .find_before(&current.reference, &current.version)
                .await
        })
    }

    /// Waits for `asking` until the deadline, in a task of its own: a backend that panics is one that gave no answer.
    fn earlier(
        self: &Arc<Self>,
        path: &SecretPath,
        asking: impl Future<Output = Earlier> + Send + 'static,
    ) -> Answer<Fetch> {
        let (cache, path, timeout) = (Arc::clone(self), path.clone(), self.times().timeout);
        Answer::Pending(Box::pin(async move {
            let asking = tokio::spawn(tokio::time::timeout(timeout, asking));
            let (reference, fetched) = match asking.await {
                Ok(Ok(found)) => found?,
                Ok(Err(_)) => return Err(too_late(timeout)),
                Err(_) => return Err(given_up()),
            };
            Ok(Served {
                generation: cache.one(&path, reference, fetched)?,
                stale: false,
            })
        }))
    }

    /// The generation of what was fetched: the very one that somebody has, if there is one.
    fn one(
        &self,
        path: &SecretPath,
        reference: Reference,
        fetched: Fetched,
    ) -> Result<Arc<Generation>, BackendError> {
        let value = self.seal(&reference, &fetched.value)?;
        let mut state = self.state();
        let kept = state.values.peek(path).map(|kept| &kept.generation);
        let held = state.held.find(path, &fetched.version, &reference);
        let same = kept
            .filter(|kept| kept.version == fetched.version && kept.reference == reference)
            .cloned();
        let known = || same.iter().chain(&held);
        // A version that was destroyed and made again may have other bytes; then it is another generation.
        if let Some(one) = known().find(|one| one.value.same(&value)) {
            return Ok(Arc::clone(one));
        }
        let number = match known().next() {
            Some(_) => state.next_number(),
            None => state.number_of(path, &fetched.version, &reference),
        };
        let generation = Arc::new(Generation {
            number,
            version: fetched.version,
            reference,
            value,
            description: fetched.description,
            modified: fetched.modified.unwrap_or_else(|| self.clock.timestamp()),
        });
        state.held.remember(path, &generation);
        Ok(generation)
    }
}

/// Generations that are not kept, for as long as somebody has them.
#[derive(Debug, Default)]
pub(super) struct Held {
    table: HashMap<(SecretPath, Version, Reference), Weak<Generation>>,
    /// How long the table was when all in it were last seen to be held.
    swept: usize,
}

impl Held {
    /// The table is swept when it has doubled, but not below this length.
    const SMALL: usize = 64;

    fn find(
        &self,
        path: &SecretPath,
        version: &Version,
        reference: &Reference,
    ) -> Option<Arc<Generation>> {
        let key = (path.clone(), version.clone(), reference.clone());
        self.table.get(&key)?.upgrade()
    }

    /// Remembers it, without keeping it.
    pub(super) fn remember(&mut self, path: &SecretPath, generation: &Arc<Generation>) {
        if self.table.len() >= Self::SMALL.max(self.swept.saturating_mul(2)) {
            self.table.retain(|_, held| held.strong_count() > 0);
            self.swept = self.table.len();
        }
        let (version, reference) = (generation.version.clone(), generation.reference.clone());
        let key = (path.clone(), version, reference);
        self.table.insert(key, Arc::downgrade(generation));
    }

    /// Forgets it: whoever has it has nothing of it.
    pub(super) fn forget(&mut self, path: &SecretPath, generation: &Arc<Generation>) {
        let ours = Arc::as_ptr(generation);
        self.table
            .retain(|(of, ..), held| of != path || !std::ptr::eq(held.as_ptr(), ours));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}
