//! Fetching the value of one secret: joined by all who want it, and kept if nothing changed meanwhile.

use std::sync::Arc;

use tokio::sync::watch;

use super::ask::Found;
use super::locked::Locked;
use super::records::{self, Since};
use super::state::{Arrival, Kept};
use super::{Binding, Cache, Fetch, Generation, Served, too_late, wait};
use crate::backend::{BackendError, Reference};
use crate::secret::{Name, SecretPath};

impl Cache {
    /// Joins the fetch that is under way, or begins one, and waits for it until the deadline.
    pub(super) async fn fetch(self: Arc<Self>, path: SecretPath, binding: Arc<Binding>) -> Fetch {
        let (landed, begun) = match self.join(&path, &binding) {
            Joined::Young(generation) => {
                return Ok(Served {
                    generation,
                    stale: false,
                });
            }
            Joined::Flight(landed) => (landed, false),
            Joined::Begun(landed) => (landed, true),
        };
        // It is known to be down: to find out whether it is back is not for readers to wait for.
        let down = |backend: &Name| self.health.is_down(backend);
        if let Some(generation) = self.stands_in(&path, &binding, down) {
            if begun {
                self.await_news(landed, path, generation.number);
            }
            return Ok(Served {
                generation,
                stale: true,
            });
        }
        let fetched = wait(landed, self.times().timeout).await;
        match fetched {
            Err(BackendError::Unreachable(_) | BackendError::Timeout(_)) => {
                match self.stale(&path, &binding) {
                    Some(generation) => Ok(Served {
                        generation,
                        stale: true,
                    }),
                    None => fetched,
                }
            }
            Ok(_)
            | Err(BackendError::Absent(_) | BackendError::Refused(_) | BackendError::Unusable(_)) => {
                fetched
            }
        }
    }

    fn join(self: &Arc<Self>, path: &SecretPath, binding: &Arc<Binding>) -> Joined {
        let (ttl, now) = (self.times().ttl, self.clock.now());
        let mut state = self.state();
        // A flight may have landed since the reader was told to wait (rule 2).
        if let Some(generation) = state.young(path, binding, now, ttl) {
            return Joined::Young(generation);
        }
        match state.flights.join(path, binding) {
            Some(landed) => Joined::Flight(landed),
            None => Joined::Begun(self.begin(state, path, binding, false)),
        }
    }

    /// Begins a fetch, which all who come from now on may join. If it asks `anew`, no record will do that was asked for
    /// before.
    pub(super) fn begin(
        self: &Arc<Self>,
        mut state: Locked<'_>,
        path: &SecretPath,
        binding: &Arc<Binding>,
        anew: bool,
    ) -> watch::Receiver<Option<Fetch>> {
        let (flight, land) = state.begin();
        let (number, landed) = (flight.number, land.subscribe());
        state.flights.add(path, binding, flight);
        drop(state);
        let since = match anew {
            true => Since::After(number),
            false => Since::Young,
        };
        let (cache, path, binding) = (Arc::clone(self), path.clone(), Arc::clone(binding));
        // A task of its own, so that one reader's deadline or death does not take the others' answer away.
        tokio::spawn(async move {
            let fetch = cache.fly(&path, &binding, number, since).await;
            land.send_replace(Some(fetch));
        });
        landed
    }

    /// Asks until what was found can be taken, or the deadline passes.
    async fn fly(
        self: &Arc<Self>,
        path: &SecretPath,
        binding: &Arc<Binding>,
        mut number: u64,
        mut since: Since,
    ) -> Fetch {
        let timeout = self.times().timeout;
        let flying = async {
            loop {
                let found = self.find(path, binding, since).await;
                match self.land(path, binding, number, found) {
                    Ok(fetch) => return fetch,
                    Err(Again::Anew(as_number)) => {
                        number = as_number;
                        since = Since::After(number);
                    }
                    Err(Again::Overtaken) => {}
                }
            }
        };
        match tokio::time::timeout(timeout, flying).await {
            Ok(fetch) => fetch,
            Err(_) => {
                self.state().flights.remove(path, number);
                Err(too_late(timeout))
            }
        }
    }

    /// Takes what a flight brought, unless something changed while it was under way.
    fn land(
        &self,
        path: &SecretPath,
        binding: &Arc<Binding>,
        number: u64,
        found: Found,
    ) -> Result<Fetch, Again> {
        let mut state = self.state();
        let overtaken = |record| state.records.is_overtaken(record);
        if state.flights.crossed(path, number).is_some()
            && found.consulted.iter().any(|record| overtaken(record))
        {
            return Err(Again::Overtaken);
        }
        let ours = match state.arrive(path, number, &found.cut) {
            Arrival::Counts => true,
            Arrival::Forgotten => false,
            Arrival::Again(as_number) => return Err(Again::Anew(as_number)),
        };
        let since = found.since();
        let mut cut = match found.cut {
            Ok(cut) => cut,
            Err(error) => {
                if ours && matches!(error, BackendError::Absent(_) | BackendError::Refused(_)) {
                    state.drop_value(path);
                }
                return Ok(Err(error));
            }
        };
        let number = state.shown_number(path, &cut.version, &cut.reference, number, ours);
        let forever = self.is_announced(binding, &cut.reference);
        if ours && let Some(record) = state.records.same(&cut.record) {
            cut = cut.on_same(record);
        }
        let record = Arc::clone(&cut.record);
        let generation = cut.generation(number);
        // Who asked before the invalidation may have this value; it must not stay for those who come after (rule 5).
        if ours {
            let kept = Kept {
                generation: Arc::clone(&generation),
                binding: Arc::clone(binding),
                fetched: since.unwrap_or(record.fetched),
                asked: self.clock.now(),
                record,
                forever,
            };
            state.keep(path, kept);
        }
        Ok(Ok(Served {
            generation,
            stale: false,
        }))
    }

    fn stale(&self, path: &SecretPath, binding: &Binding) -> Option<Arc<Generation>> {
        let ttl = self.times().ttl;
        let state = self.state();
        let kept = state
            .values
            .peek(path)
            .filter(|kept| kept.binding.references == binding.references)?;
        kept.may_be_stale(self.clock.now(), ttl, binding.stale)
            .then(|| Arc::clone(&kept.generation))
    }

    /// The old value that is given at once where one of those who would be asked for a new one is `gone` (rule 14).
    pub(super) fn stands_in(
        &self,
        path: &SecretPath,
        binding: &Binding,
        gone: impl Fn(&Name) -> bool,
    ) -> Option<Arc<Generation>> {
        let generation = self.stale(path, binding)?;
        let references = &binding.references;
        let last = references
            .iter()
            .position(|one| *one == generation.reference)?;
        let (ttl, now) = (self.times().ttl, self.clock.now());
        let state = self.state();
        // What another secret had fetched lately is there.
        let asked = |reference: &&Reference| {
            let key = records::key(reference);
            state.records.find(&key, Since::Young, now, ttl).is_none()
        };
        let mut asked = references.iter().take(last + 1).filter(asked);
        asked
            .any(|reference| gone(&reference.backend))
            .then_some(generation)
    }

    /// Whether an old value is given at present, because a backend cannot be reached.
    #[must_use]
    pub fn has_stand_in(&self, path: &SecretPath, binding: &Binding) -> bool {
        let down = |backend: &Name| self.health.is_down(backend);
        self.stands_in(path, binding, down).is_some()
    }

    /// Nobody waits for what is on its way. If it is another generation than `shown`, or none, that is told.
    fn await_news(
        self: &Arc<Self>,
        landed: watch::Receiver<Option<Fetch>>,
        path: SecretPath,
        shown: u64,
    ) {
        let cache = Arc::clone(self);
        tokio::spawn(async move {
            let news = match wait(landed, cache.times().timeout).await {
                Ok(served) => served.generation.number != shown,
                Err(error) => matches!(error, BackendError::Absent(_)),
            };
            if news {
                cache.state().overtaken.insert(path);
                cache.overtaken.notify_one();
            }
        });
    }
}

/// What a reader finds who has to be given a value.
enum Joined {
    /// It is there by now.
    Young(Arc<Generation>),
    /// It is on its way.
    Flight(watch::Receiver<Option<Fetch>>),
    /// It is on its way from now on.
    Begun(watch::Receiver<Option<Fetch>>),
}

/// What was found is not to be taken.
enum Again {
    /// Ask once more, as this number.
    Anew(u64),
    /// There is a newer record by now.
    Overtaken,
}
