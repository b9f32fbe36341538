//! What was fetched, for as long as it may be shown.
//!
//! The rules, each with its test below:
//!
//! 1. A value is served without asking for the TTL; from a backend that announces its changes, until it does.
//! 2. Any number of readers of one cold secret cause one fetch (single flight).
//! 3. A fetch has a deadline. Who waits for it gets [`BackendError::Timeout`] when it passes.
//! 4. After the TTL an old value is served only if the backend cannot be reached or is too slow, for at most the secret's
//!    `stale`, and said to be stale. After "absent" or "refused" it is gone.
//! 5. An invalidation is final: no fetch that began before it can answer a reader who came after it.
//! 6. A generation's number only grows, and stays while version and reference behind it do. A fetch takes its number when
//!    it begins, so that one that was overtaken cannot make an older value look newer.
//! 7. The values of what was used longest ago are dropped when all together pass [`BUDGET`] bytes; their numbers stay.
//! 8. Of a binding's references the first that is found counts; only "absent" falls through.
//!
//! Lists of names follow rules 1, 2, 3 and 5. While a backend cannot be reached the list that it last gave stands in,
//! however old: it shows no value, and without it nobody would come as far as rule 4.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::backend::{self, Backend, BackendError, Reference, Version};
use crate::clock::Clock;
use crate::events::Events;
use crate::secret::{MAX_VALUE, Name, SecretBytes, SecretPath};

mod answer;
mod health;
mod names;
mod state;

#[cfg(test)]
pub(crate) mod tests;

pub use answer::Answer;
pub use names::Names;

use health::Health;
use names::Folder;
use state::{Kept, State};

/// How many bytes of values are kept.
pub const BUDGET: usize = 128 << 20;

/// One value of a secret as it is shown: immutable, shared by all who have it open.
#[derive(Debug)]
pub struct Generation {
    /// Our own number: it only grows.
    pub number: u64,
    /// The backend's word for it.
    pub version: Version,
    /// Where it was found.
    pub reference: Reference,
    /// The bytes.
    pub value: SecretBytes,
    /// For people.
    pub description: Option<String>,
    /// When it was made, else when it was fetched.
    pub modified: Timestamp,
}

/// A generation as it is given to a reader.
#[derive(Debug, Clone)]
pub struct Served {
    /// What is shown.
    pub generation: Arc<Generation>,
    /// True if it is older than it should be, because the backend cannot be reached.
    pub stale: bool,
}

/// Where a secret is found, and how long it may be stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The references, in order.
    pub references: Vec<Reference>,
    /// How long past the TTL it is served while the backend cannot be reached.
    pub stale: Duration,
}

/// The times that hold for all secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long a value is served without asking again.
    pub ttl: Duration,
    /// How long a reader waits for a backend.
    pub timeout: Duration,
}

/// A fetched value, or why there is none.
pub type Fetch = Result<Served, BackendError>;

/// The cache.
#[derive(Debug)]
pub struct Cache {
    backends: HashMap<Name, Arc<dyn Backend>>,
    times: Mutex<Times>,
    clock: Clock,
    state: Mutex<State>,
    health: Health,
}

/// Figures for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    /// Values held.
    pub values: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Fetches under way.
    pub flights: usize,
}

impl Cache {
    /// An empty cache over `backends`. The first generation's number is above `epoch << 32`: with an epoch that grows
    /// at each start, so do the numbers.
    #[must_use]
    pub fn new(
        backends: HashMap<Name, Arc<dyn Backend>>,
        times: Times,
        epoch: u32,
        clock: Clock,
    ) -> Self {
        Self {
            backends,
            times: Mutex::new(times),
            clock,
            state: Mutex::new(State::new(u64::from(epoch) << 32)),
            health: Health::default(),
        }
    }

    /// The same, telling on this bus of backends that go and come.
    #[must_use]
    pub fn with_events(mut self, events: Events) -> Self {
        self.health.events = events;
        self
    }

    /// Changes the times, for every fetch from now on.
    pub fn set_times(&self, times: Times) {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner) = times;
    }

    /// The value of `path`, which `binding` says where to find.
    pub fn get(self: &Arc<Self>, path: &SecretPath, binding: &Arc<Binding>) -> Answer<Fetch> {
        if let Some(generation) = self.fresh(path, binding) {
            return Answer::Ready(Ok(Served {
                generation,
                stale: false,
            }));
        }
        let (cache, path, binding) = (Arc::clone(self), path.clone(), Arc::clone(binding));
        Answer::Pending(Box::pin(async move { cache.fetch(path, binding).await }))
    }

    /// The generation that would be served without asking a backend, if there is one.
    #[must_use]
    pub fn fresh(&self, path: &SecretPath, binding: &Binding) -> Option<Arc<Generation>> {
        let ttl = self.times().ttl;
        self.state().young(path, binding, self.clock.now(), ttl)
    }

    /// Forgets everything that was fetched from this reference's place, and the lists of its backend.
    pub fn invalidate(&self, changed: &Reference) {
        let same = |r: &Reference| r.backend == changed.backend && r.path == changed.path;
        let mut state = self.state();
        let elsewhere = |folder: &Folder| folder.backend != changed.backend;
        state.lists.retain(|folder, _| elsewhere(folder));
        state.list_flights.retain(|folder, _| elsewhere(folder));
        state
            .flights
            .retain(|_, (binding, _)| !binding.references.iter().any(same));
        let gone = |(path, kept): (&SecretPath, &Kept)| {
            kept.binding
                .references
                .iter()
                .any(same)
                .then(|| path.clone())
        };
        let paths: Vec<SecretPath> = state.values.iter().filter_map(gone).collect();
        for path in paths {
            state.drop_value(&path);
        }
    }

    /// Forgets everything, also which generations were shown: a store that was replaced may use a version's number for
    /// another value.
    pub fn invalidate_all(&self) {
        self.state().clear();
    }

    /// How much is held.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let state = self.state();
        Figures {
            values: state.values.len(),
            bytes: state.bytes,
            flights: state.flights.len(),
        }
    }

    /// The backends, for `status` and `doctor`.
    #[must_use]
    pub fn backends(&self) -> &HashMap<Name, Arc<dyn Backend>> {
        &self.backends
    }

    /// Joins the fetch that is under way, or begins one, and waits for it until the deadline.
    async fn fetch(self: Arc<Self>, path: SecretPath, binding: Arc<Binding>) -> Fetch {
        let landed = match self.join(&path, &binding) {
            Joined::Young(generation) => {
                return Ok(Served {
                    generation,
                    stale: false,
                });
            }
            Joined::Flight(landed) => landed,
        };
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
        if let Some((towards, flight)) = state.flights.get(path)
            && towards.references == binding.references
            && let Some(landed) = flight.join()
        {
            return Joined::Flight(landed);
        }
        let (flight, land) = state.begin();
        let (number, landed) = (flight.number, land.subscribe());
        state
            .flights
            .insert(path.clone(), (Arc::clone(binding), flight));
        drop(state);
        let (cache, path, binding) = (Arc::clone(self), path.clone(), Arc::clone(binding));
        // A task of its own, so that one reader's deadline or death does not take the others' answer away.
        tokio::spawn(async move {
            let timeout = cache.times().timeout;
            let mut asked = None;
            let finding = cache.find(&binding, &mut asked);
            let found = match tokio::time::timeout(timeout, finding).await {
                Ok(found) => found,
                Err(_) => {
                    let error = too_late(timeout);
                    if let Some(backend) = asked {
                        cache.health.down(&backend, &error);
                    }
                    Err(error)
                }
            };
            let fetch = cache.land(&path, &binding, number, found);
            land.send_replace(Some(fetch));
        });
        Joined::Flight(landed)
    }

    /// Rule 8. Whom it waits for is in `asked`.
    async fn find(
        &self,
        binding: &Binding,
        asked: &mut Option<Name>,
    ) -> Result<(Reference, backend::Fetched), BackendError> {
        let mut absent = BackendError::Absent("the binding names no reference".to_owned());
        for reference in &binding.references {
            let Some(backend) = self.backends.get(&reference.backend) else {
                return Err(BackendError::Unusable(format!(
                    "no backend {:?} is running",
                    reference.backend.as_str()
                )));
            };
            *asked = Some(reference.backend.clone());
            let read = backend.read(reference).await;
            self.health.heard(&reference.backend, &read);
            let found = read.and_then(|fetched| {
                if fetched.value.len() > MAX_VALUE {
                    return Err(BackendError::Unusable(format!(
                        "{reference}: more than {MAX_VALUE} bytes"
                    )));
                }
                match &reference.field {
                    Some(field) => Ok(backend::Fetched {
                        value: backend::field(&fetched.value, field)?,
                        ..fetched
                    }),
                    None => Ok(fetched),
                }
            });
            match found {
                Ok(fetched) => return Ok((reference.clone(), fetched)),
                Err(error @ BackendError::Absent(_)) => absent = error,
                Err(error) => return Err(error),
            }
        }
        Err(absent)
    }

    /// Takes what a flight brought, unless something changed while it was under way.
    fn land(
        &self,
        path: &SecretPath,
        binding: &Arc<Binding>,
        number: u64,
        found: Result<(Reference, backend::Fetched), BackendError>,
    ) -> Fetch {
        let now = self.clock.now();
        let mut state = self.state();
        let ours = state
            .flights
            .get(path)
            .is_some_and(|(_, flight)| flight.number == number);
        if ours {
            state.flights.remove(path);
        }
        let (reference, fetched) = match found {
            Ok(found) => found,
            Err(error) => {
                if ours && matches!(error, BackendError::Absent(_) | BackendError::Refused(_)) {
                    state.drop_value(path);
                }
                return Err(error);
            }
        };
        let number = state.shown_number(path, &fetched.version, &reference, number, ours);
        let forever = self.is_announced(binding, &reference);
        let generation = Arc::new(Generation {
            number,
            version: fetched.version,
            reference,
            value: fetched.value,
            description: fetched.description,
            modified: fetched.modified.unwrap_or_else(|| self.clock.timestamp()),
        });
        // Who asked before the invalidation may have this value; it must not stay for those who come after (rule 5).
        if ours {
            let kept = Kept {
                generation: Arc::clone(&generation),
                binding: Arc::clone(binding),
                fetched: now,
                forever,
            };
            state.keep(path, kept);
        }
        Ok(Served {
            generation,
            stale: false,
        })
    }

    fn stale(&self, path: &SecretPath, binding: &Binding) -> Option<Arc<Generation>> {
        let ttl = self.times().ttl;
        let state = self.state();
        let kept = state
            .values
            .peek(path)
            .filter(|kept| kept.binding.references == binding.references)?;
        let age = self.clock.now().saturating_duration_since(kept.fetched);
        (age < ttl.saturating_add(binding.stale)).then(|| Arc::clone(&kept.generation))
    }

    /// True if every place that was asked until `found` says when it changes: also those that had nothing yet.
    fn is_announced(&self, binding: &Binding, found: &Reference) -> bool {
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

    /// How long a value is served without asking again.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.times().ttl
    }

    fn times(&self) -> Times {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reader finds who has to be given a value.
enum Joined {
    /// It is there by now.
    Young(Arc<Generation>),
    /// It is on its way.
    Flight(watch::Receiver<Option<Fetch>>),
}

/// Waits for what is under way, until the deadline (rule 3).
async fn wait<T: Clone>(
    mut landed: watch::Receiver<Option<Result<T, BackendError>>>,
    timeout: Duration,
) -> Result<T, BackendError> {
    // Without its sender the task is gone without an answer: it panicked, or the runtime is shutting down.
    let given_up = || BackendError::Unreachable("the fetch was given up".to_owned());
    match tokio::time::timeout(timeout, landed.wait_for(Option::is_some)).await {
        Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Err(given_up())),
        Ok(Err(_)) => Err(given_up()),
        Err(_) => Err(too_late(timeout)),
    }
}

fn too_late(timeout: Duration) -> BackendError {
    BackendError::Timeout(format!("{timeout:?} ([cache] timeout)"))
}
