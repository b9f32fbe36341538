//! What was fetched, for as long as it may be shown.
//!
//! The rules. The tests of each are called `rule_<number>_…`, and one sees to it that none is without:
//!
//! | rule | about | rule | about |
//! |---|---|---|---|
//! | 1 | the TTL | 9 | a refresh |
//! | 2 | single flight | 10 | earlier values |
//! | 3 | the deadline | 11 | records and their fields |
//! | 4 | stale values, and when there are none | 12 | leases |
//! | 5 | invalidations and revocations | 13 | absence |
//! | 6 | the numbers of generations | 14 | outages |
//! | 7 | the budget of memory | 15 | jitter |
//! | 8 | several references | 16 | how much a backend is asked at once |
//! | 17 | what a server leaves to the next | 18 | what it leaves for long |
//!
//! 1. A value is served without asking for the TTL; from a backend that announces its changes, until it does.
//! 2. Any number of readers of one cold secret cause one fetch (single flight).
//! 3. A fetch has a deadline. Who waits for it gets [`BackendError::Timeout`] when it passes.
//! 4. After the TTL an old value is served only if the backend cannot be reached or is too slow, for at most the secret's
//!    `stale`, and said to be stale. After "absent" or "refused" it is gone.
//! 5. An invalidation is final: no fetch that began before it can answer a reader who came after it. So is a revocation,
//!    which wipes values that may not be read any more.
//! 6. A generation's number only grows, and stays while version and reference behind it do. A fetch takes its number when
//!    it begins, so that one that was overtaken cannot make an older value look newer.
//! 7. The values of what was used longest ago are dropped when all together pass [`BUDGET`] bytes, or when the sealed memory
//!    that they are in is full; their numbers stay.
//! 8. Of a binding's references the first that is found counts; only "absent" falls through.
//! 9. A refresh asks now, whatever the TTL: it joins no fetch that began before it, and no old value stands in for the
//!    answer. What it brings is kept, and no fetch that was under way at the same time puts another value in its place:
//!    which of the two is newer nobody could tell, so the one that lands later asks once more. What a refresh fails to
//!    bring leaves the others what they have, but for rule 4.
//! 10. An earlier value, a version by its name or the one before the current one, is asked for each time and not kept, so
//!     that destroying it is final. While somebody has it, it is one generation for all.
//! 11. What a backend gave at one place is one record, and the fields of it that secrets show are of one fetch and one
//!     version, whichever was asked for first: they grow old at the same moment, and when the record is found changed for
//!     one of them, the others do not show the one before any longer. For records, too, rules 2, 5, 7 and 9 hold.
//! 12. A leased value, one that a backend made for us and that ends, is served whatever the TTL and never asked for just to
//!     see whether it changed. At two thirds of its time its lease is renewed, if somebody has asked for it since or has it
//!     open. At 85 % of it, where it cannot be renewed or does not get its whole time any more, another one takes its
//!     place, which is a new generation: the next reader asks for it, or [`Cache::tend`] does where it is in use. While the backend
//!     cannot be reached it is served until its lease ends, and not after. What was superseded ends by itself; when all
//!     secrets that have shown it are taken away, or the daemon stops for good ([`Cache::end`]), it is revoked.
//! 13. That nothing is at a place is remembered for 5 seconds, or for the TTL if that is shorter; not of a backend that
//!     announces its changes, and a refusal never is. Rules 5 and 9 go past it.
//! 14. A backend that could not be reached, or did not answer in time, five times in a row is left alone for a second, then for
//!     twice as long each time up to 30 seconds, but never for longer than the TTL; after that one question finds out
//!     whether it is back. Meanwhile whatever would ask it fails at once, a refresh too. While a backend is known to be
//!     down, an old value that may stand in (rule 4) is given at once, and nobody waits for the question that is asked.
//! 15. TTLs vary by a tenth from place to place, so that what was fetched at the same moment, by this machine or by a fleet of
//!     them, is not asked for again at the same moment ([`Cache::with_jitter`]).
//! 16. A backend is asked at most [`SLOTS`] questions at the same time. Others wait for their turn, within their deadline, and if
//!     it passes that is no failure of the backend's.
//! 17. What a server had fetched is there for the one that is started in its place ([`Cache::inherit`]): each secret is shown
//!     what it was shown, as old as it is, as long as it is bound to that place; leases go on, and those that were to be
//!     revoked are. All other rules hold of it. What announces its changes is asked anew, as nobody listened meanwhile.
//! 18. What is kept for longer, while the machine may be off, is an old value from the start: it stands in for a backend that
//!     cannot be reached (rule 4) and nothing else. Leased values are not kept so, nor those of secrets whose `stale` is 0.
//!
//! Lists of names follow rules 1, 2, 3, 5, 14 and 16. While a backend cannot be reached the list that it last gave stands in,
//! however old: it shows no value, and without it nobody would come as far as rule 4.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, watch};

use crate::backend::{Backend, BackendError, Reference, Version};
use crate::clock::Clock;
use crate::events::Events;
use crate::secret::{Name, Sealed, SealedMemory, SecretPath};
use crate::sys::SharedMemory;

mod answer;
mod ask;
mod earlier;
mod fetching;
mod flights;
mod health;
mod leases;
pub mod legacy;
mod locked;
mod names;
mod reading;
mod records;
mod sealing;
mod state;
mod tending;
mod used;

#[cfg(test)]
pub(crate) mod tests;

pub use answer::Answer;
pub use names::Names;
pub use used::Cached;

use health::Health;
use locked::Locked;
use names::Folder;
use state::{Kept, State};

/// How many bytes of values are kept: 128 MiB. The other half of the memory is for those that only open files have, and for
/// what sealing adds.
pub const BUDGET: usize = SharedMemory::SIZE / 2;

/// How many questions a backend is asked at the same time.
pub const SLOTS: usize = 64;

/// One value of a secret as it is shown: immutable, shared by all who have it open.
#[derive(Debug)]
pub struct Generation {
    /// Our own number: it only grows.
    pub number: u64,
    /// The backend's word for it.
    pub version: Version,
    /// Where it was found.
    pub reference: Reference,
    /// The bytes, which it may share with others that show the same record.
    pub value: Arc<Sealed>,
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
    /// Where the values are.
    memory: Arc<SealedMemory>,
    state: Mutex<State>,
    health: Health,
    /// How many questions each backend may be asked at the same time (rule 16).
    slots: HashMap<Name, Semaphore>,
    /// What the jitter of TTLs comes from; none without it.
    jitter: Option<u64>,
    /// Wakes who waits for secrets that were overtaken.
    overtaken: Notify,
    /// Wakes who tends the leases.
    tending: Arc<Notify>,
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
    /// Leases that have not ended.
    pub leases: usize,
}

impl Cache {
    /// An empty cache over `backends`, which keeps values in this memory. The first generation's number is above `epoch << 32`: with an epoch that grows
    /// at each start, so do the numbers.
    #[must_use]
    pub fn new(
        backends: HashMap<Name, Arc<dyn Backend>>,
        times: Times,
        epoch: u32,
        memory: Arc<SealedMemory>,
        clock: Clock,
    ) -> Self {
        let slot = |backend: &Name| (backend.clone(), Semaphore::new(SLOTS));
        let slots = backends.keys().map(slot).collect();
        let tending = Arc::new(Notify::new());
        let state = State::new(u64::from(epoch) << 32, Arc::clone(&tending));
        Self {
            backends,
            times: Mutex::new(times),
            clock,
            memory,
            state: Mutex::new(state),
            health: Health::default(),
            slots,
            jitter: None,
            overtaken: Notify::new(),
            tending,
        }
    }

    /// The same, telling on this bus of backends that go and come.
    #[must_use]
    pub fn with_events(mut self, events: Events) -> Self {
        self.health.events = events;
        self
    }

    /// The same, with the TTL of each record up to a tenth longer or shorter (rule 15). Which it is comes from the `seed` and from
    /// where the record is: with a seed of its own each machine of a fleet asks at other moments.
    #[must_use]
    pub fn with_jitter(mut self, seed: u64) -> Self {
        self.jitter = Some(seed);
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
        // Whom nobody would ask need not be waited for, nor who is down and being asked already.
        let now = self.clock.now();
        let asked = self.state().flights.join(path, binding).is_some();
        let gone = |backend: &Name| {
            self.health.is_alone(backend, now) || (asked && self.health.is_down(backend))
        };
        if let Some(generation) = self.stands_in(path, binding, gone) {
            return Answer::Ready(Ok(Served {
                generation,
                stale: true,
            }));
        }
        let (cache, path, binding) = (Arc::clone(self), path.clone(), Arc::clone(binding));
        Answer::Pending(Box::pin(async move { cache.fetch(path, binding).await }))
    }

    /// The newest value of `path`, asked for now (rule 9).
    pub fn refresh(self: &Arc<Self>, path: &SecretPath, binding: &Arc<Binding>) -> Answer<Fetch> {
        let (cache, path, binding) = (Arc::clone(self), path.clone(), Arc::clone(binding));
        Answer::Pending(Box::pin(async move {
            let landed = cache.begin(cache.state(), &path, &binding, true);
            wait(landed, cache.times().timeout).await
        }))
    }

    /// The generation that would be served without asking a backend, if there is one.
    #[must_use]
    pub fn fresh(&self, path: &SecretPath, binding: &Arc<Binding>) -> Option<Arc<Generation>> {
        let ttl = self.times().ttl;
        let mut state = self.state();
        if state.inherited.is_for(path) {
            drop(state);
            self.claim(path, binding);
            state = self.state();
        }
        state.young(path, binding, self.clock.now(), ttl)
    }

    /// Forgets everything that was fetched from this reference's place. The lists of its backend are asked for again.
    pub fn invalidate(&self, changed: &Reference) {
        let same = |r: &Reference| r.same_place(changed);
        let mut state = self.state();
        let elsewhere = |folder: &Folder| folder.backend.in_config() != changed.backend.in_config();
        let lists = state.lists.iter_mut();
        for (_, listing) in lists.filter(|(folder, _)| !elsewhere(folder)) {
            listing.outdated = true;
        }
        state.list_flights.retain(|folder, _| elsewhere(folder));
        state.flights.forget(same);
        state.records.invalidate(same);
        let gone = |(path, kept): (&SecretPath, &Kept)| {
            kept.binding
                .references
                .iter()
                .any(same)
                .then(|| path.clone())
        };
        let mut paths: Vec<SecretPath> = state.values.iter().filter_map(gone).collect();
        let inherited = state.inherited.iter();
        paths.extend(
            inherited
                .filter(|(_, place)| same(place))
                .map(|(path, _)| path.clone()),
        );
        for path in paths {
            state.drop_value(&path);
        }
        state.gone();
    }

    /// A value that `path` was shown does not open any more: who comes next has it fetched anew.
    pub fn broke(&self, path: &SecretPath, generation: &Arc<Generation>) {
        let mut state = self.state();
        state.held.forget(path, generation);
        let kept = state.values.peek(path);
        let current = kept.is_some_and(|kept| Arc::ptr_eq(&kept.generation, generation));
        drop(state);
        // Of one that was superseded nothing is kept, however often somebody tries to read it.
        if current {
            self.invalidate(&generation.reference);
        }
    }

    /// Wipes the values of these secrets from memory, because they were taken away. What is on its way for them goes to
    /// who waits for it, and does not come back into the cache.
    pub fn forget(&self, which: impl Fn(&SecretPath) -> bool) {
        let mut state = self.state();
        state.flights.forget_for(&which);
        let values = state.values.iter().map(|(path, _)| path);
        let inherited = state.inherited.iter().map(|(path, _)| path);
        let paths = values.chain(inherited).filter(|path| which(path));
        for path in paths.cloned().collect::<Vec<_>>() {
            state.drop_value(&path);
        }
        state.forget_records_for(&which);
        state.gone();
        if state.leases.forget_for(&which) {
            self.tending.notify_one();
        }
    }

    /// True if a value of one of these secrets was fetched, however long ago: it may be open somewhere.
    #[must_use]
    pub fn has_shown(&self, which: impl Fn(&SecretPath) -> bool) -> bool {
        self.state().shown_paths().any(which)
    }

    /// Forgets everything, also which generations were shown: a store that was replaced may use a version's number for
    /// another value.
    pub fn invalidate_all(&self) {
        let gone = self.state().clear();
        // Wiping takes its time.
        drop(gone);
    }

    /// A number above that of every generation so far: for the moment in which a secret ceased to be.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.state().next_number()
    }

    /// An earlier server has shown this under that number, so it keeps it (rule 6). What was inherited and is older, because the
    /// other died before it could leave what came last, is not shown any more.
    pub fn go_on_showing(
        &self,
        path: &SecretPath,
        version: (&Version, Timestamp),
        reference: &Reference,
        number: u64,
    ) {
        let mut state = self.state();
        if state.inherited.is_before(path, reference, version) {
            state.drop_value(path);
        }
        state.shown_number(path, version.0, reference, number, true);
    }

    /// How much is held.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let state = self.state();
        Figures {
            values: state.values.len(),
            bytes: state.bytes(),
            flights: state.flights.len(),
            leases: state.leases.len(),
        }
    }

    /// How many leases of a backend have not ended, and how soon the next of them does unless it is renewed.
    #[must_use]
    pub fn leases(&self, backend: &Name) -> (usize, Option<Duration>) {
        let now = self.clock.now();
        let state = self.state();
        let held = state.leases.held().iter();
        let ends: Vec<_> = held
            .filter(|lease| lease.key.backend == *backend && lease.is_alive(now))
            .map(|lease| lease.ends())
            .collect();
        let next = ends.iter().min();
        let soon = next.map(|next| next.saturating_duration_since(now));
        (ends.len(), soon)
    }

    /// The backends, for `status` and `doctor`.
    #[must_use]
    pub fn backends(&self) -> &HashMap<Name, Arc<dyn Backend>> {
        &self.backends
    }

    /// How long a value is served without asking again.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.times().ttl
    }

    fn times(&self) -> Times {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> Locked<'_> {
        Locked::lock(&self.state)
    }
}

/// Waits for what is under way, until the deadline (rule 3).
async fn wait<T: Clone>(
    mut landed: watch::Receiver<Option<Result<T, BackendError>>>,
    timeout: Duration,
) -> Result<T, BackendError> {
    match tokio::time::timeout(timeout, landed.wait_for(Option::is_some)).await {
        Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Err(given_up())),
        Ok(Err(_)) => Err(given_up()),
        Err(_) => Err(too_late(timeout)),
    }
}

/// A task that is gone without an answer: it panicked, or the runtime is shutting down.
fn given_up() -> BackendError {
    BackendError::Unreachable("the fetch was given up".to_owned())
}

fn too_late(timeout: Duration) -> BackendError {
    BackendError::Timeout(format!("{timeout:?} ([cache] timeout)"))
}
