//! What the cache holds, behind its one lock: rules 6, 7 and what decides over rule 9.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::watch;

use super::ask::Found;
use super::earlier::Held;
use super::flights::{Flight, Flights};
use super::names::{Folder, Listing};
use super::{BUDGET, Binding, Generation, Names};
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
    pub(super) flights: Flights,
    /// Generations that are not in `values` any more, or never were, and that somebody has.
    pub(super) held: Held,
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
    /// When somebody last asked for it.
    pub(super) asked: Instant,
    /// Each place that was asked for it announces its changes.
    pub(super) forever: bool,
}

#[derive(Debug)]
struct Shown {
    number: u64,
    version: Version,
    reference: Reference,
}

/// What becomes of what a flight brings.
#[derive(Debug)]
pub(super) enum Arrival {
    /// It is kept or, if it is a no, what was kept is dropped.
    Counts,
    /// Something changed while it was under way: it is for those who asked before.
    Forgotten,
    /// Another flight landed meanwhile with something else, and which is newer cannot be told: ask once more.
    Again(u64),
}

impl State {
    /// Nothing yet; the first number given is the one after `number`.
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            values: LruCache::unbounded(),
            bytes: 0,
            shown: HashMap::new(),
            flights: Flights::default(),
            held: Held::default(),
            lists: HashMap::new(),
            list_flights: HashMap::new(),
        }
    }

    /// A flight with the next number, and the other end of it.
    pub(super) fn begin<T>(&mut self) -> (Flight<T>, watch::Sender<Option<T>>) {
        let (land, landed) = watch::channel(None);
        let number = self.next_number();
        (Flight { number, landed }, land)
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Rule 1.
    pub(super) fn young(
        &mut self,
        path: &SecretPath,
        binding: &Binding,
        now: Instant,
        ttl: Duration,
    ) -> Option<Arc<Generation>> {
        let kept = self.values.get_mut(path)?;
        kept.asked = now;
        let young = kept.forever || now.saturating_duration_since(kept.fetched) < ttl;
        // Mostly it is the very same one.
        let same = std::ptr::eq(Arc::as_ptr(&kept.binding), binding)
            || kept.binding.references == binding.references;
        (young && same).then(|| Arc::clone(&kept.generation))
    }

    /// What becomes of what flight `number` found (rules 5 and 9).
    pub(super) fn arrive(&mut self, path: &SecretPath, number: u64, found: &Found) -> Arrival {
        let changes = match found {
            Ok(_) | Err(BackendError::Absent(_) | BackendError::Refused(_)) => true,
            Err(
                BackendError::Unreachable(_) | BackendError::Timeout(_) | BackendError::Unusable(_),
            ) => false,
        };
        match self.flights.crossed(path, number) {
            None => return Arrival::Forgotten,
            Some(true) if changes && !self.agrees(path, found) => {
                let again = self.next_number();
                self.flights.renew(path, number, again);
                return Arrival::Again(again);
            }
            Some(_) => {}
        }
        self.flights.remove(path, number);
        if changes {
            self.flights.cross(path);
        }
        Arrival::Counts
    }

    /// Whether this is what is kept already.
    fn agrees(&self, path: &SecretPath, found: &Found) -> bool {
        match (self.values.peek(path), found) {
            (Some(kept), Ok((reference, fetched))) => {
                let kept = &kept.generation;
                kept.version == fetched.version && kept.reference == *reference
            }
            (kept, found) => kept.is_none() && found.is_err(),
        }
    }

    /// The number under which this version is shown, if it is.
    fn shown(&self, path: &SecretPath, version: &Version, reference: &Reference) -> Option<u64> {
        let shown = self.shown.get(path)?;
        let same = shown.version == *version && shown.reference == *reference;
        same.then_some(shown.number)
    }

    /// The number under which this version is shown, else one that nothing has.
    pub(super) fn number_of(
        &mut self,
        path: &SecretPath,
        version: &Version,
        reference: &Reference,
    ) -> u64 {
        let shown = self.shown(path, version, reference);
        shown.unwrap_or_else(|| self.next_number())
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
        if let Some(shown) = self.shown(path, version, reference) {
            return shown;
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
            self.dropped(path, &old.generation);
        }
        while self.bytes > BUDGET && self.values.len() > 1 {
            if let Some((path, old)) = self.values.pop_lru() {
                self.dropped(&path, &old.generation);
            }
        }
    }

    pub(super) fn drop_value(&mut self, path: &SecretPath) {
        drop(self.take_value(path));
    }

    pub(super) fn take_value(&mut self, path: &SecretPath) -> Option<Kept> {
        let old = self.values.pop(path)?;
        self.dropped(path, &old.generation);
        Some(old)
    }

    pub(super) fn shown_paths(&self) -> impl Iterator<Item = &SecretPath> {
        self.shown.keys()
    }

    fn dropped(&mut self, path: &SecretPath, generation: &Arc<Generation>) {
        self.bytes -= generation.value.len();
        // Somebody has it open: who asks for this version gets the same generation (rule 10).
        if Arc::strong_count(generation) > 1 {
            self.held.remember(path, generation);
        }
    }

    /// Forgets everything but the last number: what a version was called before says nothing of what it is now.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.number);
    }
}
