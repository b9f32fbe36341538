//! Fetches of values that are under way, and what becomes of those that cross.
//!
//! Mostly there is one for a secret, which everybody joins. A refresh begins another, and then the order in which they
//! land says nothing of the order in which the backend answered them.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Binding, Fetch};
use crate::backend::Reference;
use crate::secret::SecretPath;

/// A question that is under way, and where its answer will be.
#[derive(Debug)]
pub(super) struct Flight<T> {
    pub(super) number: u64,
    pub(super) landed: watch::Receiver<Option<T>>,
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

/// The fetches whose answer may still be kept, for each secret in the order in which they began.
#[derive(Debug, Default)]
pub(super) struct Flights(HashMap<SecretPath, Vec<UnderWay>>);

#[derive(Debug)]
struct UnderWay {
    binding: Arc<Binding>,
    flight: Flight<Fetch>,
    /// Another one landed meanwhile: which of the two saw the newer value, nobody can tell.
    crossed: bool,
}

impl Flights {
    /// The one that began last, if it is on its way to the same places.
    pub(super) fn join(
        &self,
        path: &SecretPath,
        binding: &Binding,
    ) -> Option<watch::Receiver<Option<Fetch>>> {
        let last = self.0.get(path)?.last()?;
        let same = last.binding.references == binding.references;
        same.then(|| last.flight.join()).flatten()
    }

    /// Adds one that begins now. Those on their way to other places are forgotten, as are those that died.
    pub(super) fn add(&mut self, path: &SecretPath, binding: &Arc<Binding>, flight: Flight<Fetch>) {
        let flights = self.0.entry(path.clone()).or_default();
        flights.retain(|other| {
            other.binding.references == binding.references && other.flight.join().is_some()
        });
        flights.push(UnderWay {
            binding: Arc::clone(binding),
            flight,
            crossed: false,
        });
    }

    /// Whether another one landed since this one began; `None` if this one is forgotten.
    pub(super) fn crossed(&self, path: &SecretPath, number: u64) -> Option<bool> {
        let mut flights = self.0.get(path)?.iter();
        let ours = flights.find(|other| other.flight.number == number)?;
        Some(ours.crossed)
    }

    /// Has this one begin again, as number `again`.
    pub(super) fn renew(&mut self, path: &SecretPath, number: u64, again: u64) {
        let flights = self.0.get_mut(path).into_iter().flatten();
        for flight in flights.filter(|other| other.flight.number == number) {
            flight.flight.number = again;
            flight.crossed = false;
        }
    }

    /// Takes out one that has landed.
    pub(super) fn remove(&mut self, path: &SecretPath, number: u64) {
        if let Some(flights) = self.0.get_mut(path) {
            flights.retain(|other| other.flight.number != number);
            if flights.is_empty() {
                self.0.remove(path);
            }
        }
    }

    /// One has landed with something to be kept or dropped: all others have crossed it.
    pub(super) fn cross(&mut self, path: &SecretPath) {
        for other in self.0.get_mut(path).into_iter().flatten() {
            other.crossed = true;
        }
    }

    /// Forgets those that ask at such a place: what they bring may be from before.
    pub(super) fn forget(&mut self, same: impl Fn(&Reference) -> bool) {
        self.0.retain(|_, flights| {
            flights.retain(|other| !other.binding.references.iter().any(&same));
            !flights.is_empty()
        });
    }

    /// Forgets those for these secrets.
    pub(super) fn forget_for(&mut self, which: impl Fn(&SecretPath) -> bool) {
        self.0.retain(|path, _| !which(path));
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}
