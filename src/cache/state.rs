//! What the cache holds, behind its one lock: rules 6, 7 and what decides over rule 9.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::{Notify, watch};

use super::ask::Cut;
use super::earlier::Held;
use super::flights::{Flight, Flights};
use super::leases::{Leased, Leases};
use super::legacy::{Inherited, Revision};
use super::names::{Folder, Listing};
use super::records::{Record, Records};
use super::{BUDGET, Binding, Generation, Names};
use crate::backend::{BackendError, Reference, Version};
use crate::secret::SecretPath;

#[derive(Debug)]
pub(super) struct State {
    /// The last number given.
    number: u64,
    /// Values, the one used last first.
    pub(super) values: LruCache<SecretPath, Kept>,
    /// The bytes in `values` that are not shared with a record.
    own_bytes: usize,
    /// What the values were cut from.
    pub(super) records: Records,
    /// What backends made for us.
    pub(super) leases: Leases,
    /// What the cache before this one left.
    pub(super) inherited: Inherited,
    /// Counts what changes of it.
    pub(super) revision: watch::Sender<Revision>,
    /// Wakes who tends the leases.
    tending: Arc<Notify>,
    /// Values that are dropped when the lock is released.
    dropped: Vec<Kept>,
    /// Secrets whose value went because of a record that came for another one.
    pub(super) overtaken: HashSet<SecretPath>,
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
    /// What it was cut from. As long as this is kept, so is the record.
    pub(super) record: Arc<Record>,
    /// When the oldest of the answers was given that it rests on.
    pub(super) fetched: Instant,
    /// When somebody last asked for it.
    pub(super) asked: Instant,
    /// Each place that was asked for it announces its changes.
    pub(super) forever: bool,
}

impl Kept {
    /// Whether its value was made under this lease.
    pub(super) fn is_of(&self, lease: &Arc<Leased>) -> bool {
        let ours = self.record.lease.as_ref();
        ours.is_some_and(|ours| Arc::ptr_eq(ours, lease))
    }

    /// Rules 4 and 12: whether it may stand in for a backend that cannot be reached. A lease that has ended is not old
    /// but dead.
    pub(super) fn may_be_stale(&self, now: Instant, ttl: Duration, stale: Duration) -> bool {
        match &self.record.lease {
            Some(lease) => lease.is_alive(now),
            None => {
                let longest = self.record.ttl(ttl).saturating_add(stale);
                now.saturating_duration_since(self.fetched) < longest
            }
        }
    }

    /// The bytes that are not its record's.
    fn own_bytes(&self) -> usize {
        match self.generation.reference.field {
            Some(_) => self.generation.value.len(),
            None => 0,
        }
    }
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
    pub(super) fn new(number: u64, tending: Arc<Notify>) -> Self {
        Self {
            number,
            values: LruCache::unbounded(),
            own_bytes: 0,
            records: Records::default(),
            leases: Leases::default(),
            inherited: Inherited::default(),
            revision: watch::Sender::default(),
            tending,
            dropped: Vec::new(),
            overtaken: HashSet::new(),
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

    /// Rules 1 and 12.
    pub(super) fn young(
        &mut self,
        path: &SecretPath,
        binding: &Arc<Binding>,
        now: Instant,
        ttl: Duration,
    ) -> Option<Arc<Generation>> {
        let kept = self.values.get_mut(path)?;
        kept.asked = now;
        let young = match &kept.record.lease {
            None => {
                let age = now.saturating_duration_since(kept.fetched);
                kept.forever || age < kept.record.ttl(ttl)
            }
            Some(lease) => {
                if lease.ask(now) {
                    self.tending.notify_one();
                }
                lease.is_current(now)
            }
        };
        // Mostly it is the very same one.
        let same =
            Arc::ptr_eq(&kept.binding, binding) || kept.binding.references == binding.references;
        (young && same).then(|| Arc::clone(&kept.generation))
    }

    /// What becomes of what flight `number` found (rules 5 and 9).
    pub(super) fn arrive(
        &mut self,
        path: &SecretPath,
        number: u64,
        found: &Result<Cut, BackendError>,
    ) -> Arrival {
        let changes = match found {
            Ok(_) | Err(BackendError::Absent(_) | BackendError::Refused(_)) => true,
            Err(
                BackendError::Unreachable(_) | BackendError::Timeout(_) | BackendError::Unusable(_),
            ) => false,
        };
        match self.flights.crossed(path, number) {
            None => return Arrival::Forgotten,
            // What is leased came from the newest question: that is seen to where records land.
            Some(true) if changes && !is_leased(found) && !self.agrees(path, found) => {
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
    fn agrees(&self, path: &SecretPath, found: &Result<Cut, BackendError>) -> bool {
        match (self.values.peek(path), found) {
            (Some(kept), Ok(cut)) => {
                let kept = &kept.generation;
                kept.version == cut.version && kept.reference == cut.reference
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

    /// The bytes that are held.
    pub(super) fn bytes(&self) -> usize {
        self.own_bytes + self.records.bytes
    }

    /// Rule 7.
    pub(super) fn keep(&mut self, path: &SecretPath, kept: Kept) {
        if let Some(lease) = &kept.record.lease {
            lease.make_for(path);
            lease.ask(kept.fetched);
        }
        self.own_bytes += kept.own_bytes();
        self.records.used(&kept.record, path);
        let key = Arc::clone(&kept.record.key);
        // What announces its changes is not left to the next cache.
        let mut leaves = !kept.record.forever;
        if let Some(record) = self.inherited.take(path) {
            leaves = true;
            if record.key != key {
                self.records.unused(&record, path);
            }
        }
        if let Some(old) = self.values.put(path.clone(), kept) {
            leaves |= !old.record.forever;
            let left = old.record.key != key;
            self.dropped(path, old, left);
        }
        if leaves {
            self.changed();
        }
        while self.bytes() > BUDGET && self.values.len() > 1 {
            self.make_room();
        }
    }

    /// Drops what a secret is shown, or would be of what was inherited.
    pub(super) fn drop_value(&mut self, path: &SecretPath) {
        let (kept, inherited) = (self.values.pop(path), self.inherited.take(path));
        let left = kept.as_ref().is_some_and(|kept| !kept.record.forever);
        if left || inherited.is_some() {
            self.gone();
        }
        if let Some(old) = kept {
            self.dropped(path, old, true);
        }
        if let Some(record) = inherited {
            self.records.unused(&record, path);
            self.records.dropped.push(record);
        }
    }

    pub(super) fn shown_paths(&self) -> impl Iterator<Item = &SecretPath> {
        self.shown.keys()
    }

    /// `left` if no other value for the same secret is cut from the same record.
    pub(super) fn dropped(&mut self, path: &SecretPath, old: Kept, left: bool) {
        self.own_bytes -= old.own_bytes();
        if left {
            self.records.unused(&old.record, path);
        }
        // Somebody has it open: who asks for this version gets the same generation (rule 10).
        if Arc::strong_count(&old.generation) > 1 {
            self.held.remember(path, &old.generation);
        }
        self.dropped.push(old);
    }

    /// What was dropped since this was last asked. Wiping it takes its time, and readers of other secrets wait for the lock.
    pub(super) fn take_dropped(&mut self) -> (Vec<Kept>, Vec<Arc<Record>>) {
        let records = std::mem::take(&mut self.records.dropped);
        (std::mem::take(&mut self.dropped), records)
    }

    /// Forgets records that are for these secrets alone, or for none.
    pub(super) fn forget_records_for(&mut self, which: impl Fn(&SecretPath) -> bool) {
        self.records.forget_for(which);
    }

    /// Drops records that nobody needs.
    pub(super) fn sweep(&mut self, now: Instant, ttl: Duration) {
        self.records.sweep(now, ttl);
    }

    /// Forgets everything but leases and the last number: what a version was called before says nothing of what it is now.
    /// What is forgotten is the caller's to drop.
    pub(super) fn clear(&mut self) -> Self {
        let leases = std::mem::take(&mut self.leases);
        let revision = std::mem::take(&mut self.revision);
        let empty = Self {
            leases,
            revision,
            ..Self::new(self.number, Arc::clone(&self.tending))
        };
        let forgotten = std::mem::replace(self, empty);
        self.gone();
        forgotten
    }
}

fn is_leased(found: &Result<Cut, BackendError>) -> bool {
    found.as_ref().is_ok_and(|cut| cut.record.lease.is_some())
}
