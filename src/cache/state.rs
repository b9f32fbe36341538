//! What the cache holds, behind its one lock: rules 6 and 7.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::watch;

use super::names::{Folder, Listing};
use super::{BUDGET, Binding, Fetch, Generation, Names};
use crate::backend::{BackendError, Reference, Version};
use crate::secret::SecretPath;

#[derive(Debug)]
pub(super) struct State {
    /// The last number given.
    number: u64,
    /// Values, the one used last first.
    pub(super) values: LruCache<SecretPath, Kept>,
    /// The bytes in `values`.
    pub(super) bytes: usize,
    /// What was last shown of each secret, also after its value was dropped.
    shown: HashMap<SecretPath, Shown>,
    /// Fetches under way.
    pub(super) flights: HashMap<SecretPath, (Arc<Binding>, Flight<Fetch>)>,
    /// Lists of names.
    pub(super) lists: HashMap<Folder, Listing>,
    /// Lists under way.
    pub(super) list_flights: HashMap<Folder, Flight<Result<Names, BackendError>>>,
}

/// A value, as it was fetched.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) generation: Arc<Generation>,
    pub(super) binding: Arc<Binding>,
    pub(super) fetched: Instant,
    /// Each place that was asked for it announces its changes.
    pub(super) forever: bool,
}

#[derive(Debug)]
struct Shown {
    number: u64,
    version: Version,
    reference: Reference,
}

/// A question that is under way, and where its answer will be.
#[derive(Debug)]
pub(super) struct Flight<T> {
    pub(super) number: u64,
    landed: watch::Receiver<Option<T>>,
}

impl<T> Flight<T> {
    /// Where to wait for it; `None` if its task died without an answer, so that another one has to begin.
    pub(super) fn join(&self) -> Option<watch::Receiver<Option<T>>> {
        self.landed
            .has_changed()
            .is_ok()
            .then(|| self.landed.clone())
    }
}

impl State {
    /// Nothing yet; the first number given is the one after `number`.
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            values: LruCache::unbounded(),
            bytes: 0,
            shown: HashMap::new(),
            flights: HashMap::new(),
            lists: HashMap::new(),
            list_flights: HashMap::new(),
        }
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// A flight with the next number, and the other end of it.
    pub(super) fn begin<T>(&mut self) -> (Flight<T>, watch::Sender<Option<T>>) {
        let (land, landed) = watch::channel(None);
        let number = self.next_number();
        (Flight { number, landed }, land)
    }

    /// Rule 1.
    pub(super) fn young(
        &mut self,
        path: &SecretPath,
        binding: &Binding,
        now: Instant,
        ttl: Duration,
    ) -> Option<Arc<Generation>> {
        let kept = self.values.get(path)?;
        let young = kept.forever || now.saturating_duration_since(kept.fetched) < ttl;
        // Mostly it is the very same one.
        let same = std::ptr::eq(Arc::as_ptr(&kept.binding), binding)
            || kept.binding.references == binding.references;
        (young && same).then(|| Arc::clone(&kept.generation))
    }

    /// Rule 6: the number of what flight `number` brought. Only what will be kept (`ours`) counts as shown.
    pub(super) fn shown_number(
        &mut self,
        path: &SecretPath,
        version: &Version,
        reference: &Reference,
        number: u64,
        ours: bool,
    ) -> u64 {
        if let Some(shown) = self.shown.get(path)
            && shown.version == *version
            && shown.reference == *reference
        {
            return shown.number;
        }
        if ours {
            let shown = Shown {
                number,
                version: version.clone(),
                reference: reference.clone(),
            };
            self.shown.insert(path.clone(), shown);
        }
        number
    }

    /// Rule 7.
    pub(super) fn keep(&mut self, path: &SecretPath, kept: Kept) {
        self.bytes += kept.generation.value.len();
        if let Some(old) = self.values.put(path.clone(), kept) {
            self.bytes -= old.generation.value.len();
        }
        while self.bytes > BUDGET && self.values.len() > 1 {
            if let Some((_, dropped)) = self.values.pop_lru() {
                self.bytes -= dropped.generation.value.len();
            }
        }
    }

    pub(super) fn drop_value(&mut self, path: &SecretPath) {
        drop(self.take_value(path));
    }

    pub(super) fn take_value(&mut self, path: &SecretPath) -> Option<Kept> {
        let old = self.values.pop(path)?;
        self.bytes -= old.generation.value.len();
        Some(old)
    }

    pub(super) fn shown_paths(&self) -> impl Iterator<Item = &SecretPath> {
        self.shown.keys()
    }

    /// Forgets everything but the last number: what a version was called before says nothing of what it is now.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.number);
    }
}
