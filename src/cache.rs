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
//! 6. A generation's number only grows, and changes only with the version or the reference behind it. A fetch takes its
//!    number when it begins, so that one that was overtaken cannot make an older value look newer.
//! 7. The values of what was used longest ago are dropped when all together pass [`BUDGET`] bytes; their numbers stay.
//! 8. Of a binding's references the first that is found counts; only "absent" falls through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use lru::LruCache;
use tokio::sync::watch;

use crate::backend::{self, Backend, BackendError, Reference, Version};
use crate::clock::Clock;
use crate::secret::{MAX_VALUE, Name, SecretBytes, SecretPath};

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

/// An answer at once, or one that has to be waited for.
pub enum Answer<T> {
    /// At once.
    Ready(T),
    /// From a task.
    Pending(BoxFuture<'static, T>),
}

impl<T: Send + 'static> Answer<T> {
    /// The same answer, turned into something else.
    pub fn map<U>(self, change: impl FnOnce(T) -> U + Send + 'static) -> Answer<U> {
        match self {
            Self::Ready(value) => Answer::Ready(change(value)),
            Self::Pending(future) => Answer::Pending(Box::pin(async move { change(future.await) })),
        }
    }

    /// Waits for it.
    pub async fn wait(self) -> T {
        match self {
            Self::Ready(value) => value,
            Self::Pending(future) => future.await,
        }
    }
}

impl<T> std::fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready(..)",
            Self::Pending(_) => "Pending(..)",
        })
    }
}

/// A fetched value, or why there is none.
pub type Fetch = Result<Served, BackendError>;

/// A folder's names, sorted.
pub type Names = Arc<Vec<Name>>;

/// The cache.
#[derive(Debug)]
pub struct Cache {
    backends: HashMap<Name, Arc<dyn Backend>>,
    times: Mutex<Times>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The last number given.
    number: u64,
    /// Values, the one used last first.
    values: LruCache<SecretPath, Kept>,
    /// The bytes in `values`.
    bytes: usize,
    /// What was last shown of each secret, also after its value was dropped.
    shown: HashMap<SecretPath, Shown>,
    /// Fetches under way.
    flights: HashMap<SecretPath, Flight>,
    /// Folder lists; the folder `None` is the list of folders.
    names: HashMap<(Name, Option<String>), (Names, Instant)>,
    /// Counts invalidations; see rule 5.
    epoch: u64,
}

#[derive(Debug)]
struct Kept {
    generation: Arc<Generation>,
    binding: Arc<Binding>,
    fetched: Instant,
    forever: bool,
}

#[derive(Debug)]
struct Shown {
    number: u64,
    version: Version,
    reference: Reference,
}

#[derive(Debug, Clone)]
struct Flight {
    number: u64,
    binding: Arc<Binding>,
    landed: watch::Receiver<Option<Fetch>>,
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
        let state = State {
            number: u64::from(epoch) << 32,
            values: LruCache::unbounded(),
            bytes: 0,
            shown: HashMap::new(),
            flights: HashMap::new(),
            names: HashMap::new(),
            epoch: 0,
        };
        Self {
            backends,
            times: Mutex::new(times),
            clock,
            state: Mutex::new(state),
        }
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
        let mut state = self.state();
        let kept = state.values.get(path)?;
        let young = kept.forever || self.clock.now().saturating_duration_since(kept.fetched) < ttl;
        (young && *kept.binding == *binding).then(|| Arc::clone(&kept.generation))
    }

    /// The names of the secrets in a backend's folder.
    pub fn names(
        self: &Arc<Self>,
        backend: &Name,
        folder: &str,
    ) -> Answer<Result<Names, BackendError>> {
        self.list(backend, Some(folder.to_owned()))
    }

    /// The names of a backend's folders.
    pub fn folders(self: &Arc<Self>, backend: &Name) -> Answer<Result<Names, BackendError>> {
        self.list(backend, None)
    }

    /// Forgets everything that was fetched from this reference's place, and the lists of its backend.
    pub fn invalidate(&self, changed: &Reference) {
        let same = |r: &Reference| r.backend == changed.backend && r.path == changed.path;
        let mut state = self.state();
        state.epoch += 1;
        state
            .names
            .retain(|(backend, _), _| *backend != changed.backend);
        state
            .flights
            .retain(|_, flight| !flight.binding.references.iter().any(same));
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

    /// Forgets everything.
    pub fn invalidate_all(&self) {
        let mut state = self.state();
        state.epoch += 1;
        state.names.clear();
        state.flights.clear();
        state.values.clear();
        state.bytes = 0;
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
        let timeout = self.times().timeout;
        let mut landed = self.join(&path, &binding);
        let fetched = match tokio::time::timeout(timeout, landed.wait_for(Option::is_some)).await {
            Ok(Ok(fetch)) => fetch
                .clone()
                .unwrap_or_else(|| Err(BackendError::Unreachable("no answer".to_owned()))),
            // The task that fetched is gone without an answer: it panicked, or the runtime is shutting down.
            Ok(Err(_)) => Err(BackendError::Unreachable(
                "the fetch was given up".to_owned(),
            )),
            Err(_) => Err(BackendError::Timeout(format!(
                "{timeout:?} ([cache] timeout)"
            ))),
        };
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

    fn join(
        self: &Arc<Self>,
        path: &SecretPath,
        binding: &Arc<Binding>,
    ) -> watch::Receiver<Option<Fetch>> {
        let mut state = self.state();
        // A flight whose task died without landing has a closed channel, and is replaced.
        if let Some(flight) = state.flights.get(path)
            && flight.binding == *binding
            && flight.landed.has_changed().is_ok()
        {
            return flight.landed.clone();
        }
        let (land, landed) = watch::channel(None);
        state.number += 1;
        let number = state.number;
        let flight = Flight {
            number,
            binding: Arc::clone(binding),
            landed: landed.clone(),
        };
        state.flights.insert(path.clone(), flight);
        drop(state);
        let (cache, path, binding) = (Arc::clone(self), path.clone(), Arc::clone(binding));
        // A task of its own, so that one reader's deadline or death does not take the others' answer away.
        tokio::spawn(async move {
            let timeout = cache.times().timeout;
            let found = match tokio::time::timeout(timeout, cache.find(&binding)).await {
                Ok(found) => found,
                Err(_) => Err(BackendError::Timeout(format!(
                    "{timeout:?} ([cache] timeout)"
                ))),
            };
            let fetch = cache.land(&path, &binding, number, found);
            land.send_replace(Some(fetch));
        });
        landed
    }

    /// Rule 8.
    async fn find(&self, binding: &Binding) -> Result<(Reference, backend::Fetched), BackendError> {
        let mut absent = BackendError::Absent("the binding names no reference".to_owned());
        for reference in &binding.references {
            let Some(backend) = self.backends.get(&reference.backend) else {
                return Err(BackendError::Unusable(format!(
                    "no backend {:?} is running",
                    reference.backend.as_str()
                )));
            };
            let found = backend.read(reference).await.and_then(|fetched| {
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
            .is_some_and(|flight| flight.number == number);
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
        let number = state.shown_number(path, &fetched.version, &reference, number);
        let forever = self
            .backends
            .get(&reference.backend)
            .is_some_and(|backend| backend.announces_changes());
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
            .filter(|kept| *kept.binding == *binding)?;
        let age = self.clock.now().saturating_duration_since(kept.fetched);
        (age < ttl.saturating_add(binding.stale)).then(|| Arc::clone(&kept.generation))
    }

    fn list(
        self: &Arc<Self>,
        backend: &Name,
        folder: Option<String>,
    ) -> Answer<Result<Names, BackendError>> {
        let times = self.times();
        let Some(source) = self.backends.get(backend).map(Arc::clone) else {
            let error =
                BackendError::Unusable(format!("no backend {:?} is running", backend.as_str()));
            return Answer::Ready(Err(error));
        };
        let key = (backend.clone(), folder);
        let state = self.state();
        let young = |fetched| {
            source.announces_changes()
                || self.clock.now().saturating_duration_since(fetched) < times.ttl
        };
        if let Some((names, fetched)) = state.names.get(&key)
            && young(*fetched)
        {
            return Answer::Ready(Ok(Arc::clone(names)));
        }
        let epoch = state.epoch;
        drop(state);
        let cache = Arc::clone(self);
        Answer::Pending(Box::pin(async move {
            let asked = async {
                match &key.1 {
                    Some(folder) => source.list(folder).await,
                    None => source.folders().await,
                }
            };
            let listed = match tokio::time::timeout(times.timeout, asked).await {
                Ok(Ok(mut names)) => {
                    names.sort_unstable();
                    names.dedup();
                    Arc::new(names)
                }
                // A folder that is not there yet is an empty one.
                Ok(Err(BackendError::Absent(_))) => Arc::default(),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    return Err(BackendError::Timeout(format!(
                        "{:?} ([cache] timeout)",
                        times.timeout
                    )));
                }
            };
            let now = cache.clock.now();
            let mut state = cache.state();
            if state.epoch == epoch {
                state.names.insert(key, (Arc::clone(&listed), now));
            }
            Ok(listed)
        }))
    }

    fn times(&self) -> Times {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Rule 6. `number` is the one that the fetch took when it began.
    fn shown_number(
        &mut self,
        path: &SecretPath,
        version: &Version,
        reference: &Reference,
        number: u64,
    ) -> u64 {
        if let Some(shown) = self.shown.get(path) {
            if shown.version == *version && shown.reference == *reference {
                return shown.number;
            }
            if shown.number > number {
                return number;
            }
        }
        let shown = Shown {
            number,
            version: version.clone(),
            reference: reference.clone(),
        };
        self.shown.insert(path.clone(), shown);
        number
    }

    /// Rule 7.
    fn keep(&mut self, path: &SecretPath, kept: Kept) {
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

    fn drop_value(&mut self, path: &SecretPath) {
        if let Some(old) = self.values.pop(path) {
            self.bytes -= old.generation.value.len();
        }
    }
}
