//! Records: what a backend gave as a whole. The secrets that are bound to it, or to a field of it, are cut from it.
//!
//! So all fields of a record are of one version and grow old at the same moment, whichever was asked for first. Where a
//! backend gives another version, no secret goes on to show the one before beside it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use super::flights::Flight;
use super::leases::Leased;
use crate::backend::{BackendError, Reference, Version};
use crate::secret::{Sealed, SecretPath};

/// How long it is remembered that nothing is at a place, if no TTL is shorter: a loop of opens asks no more often, and what
/// is put there is soon seen.
const ABSENT: Duration = Duration::from_secs(5);

/// What is at one place, as it was when a backend was asked.
#[derive(Debug)]
pub(super) struct Record {
    /// The place: a reference without its field.
    pub(super) key: Arc<Reference>,
    /// The last flight that brought this.
    pub(super) began: u64,
    /// When it landed.
    pub(super) fetched: Instant,
    /// Its backend announces changes.
    pub(super) forever: bool,
    /// For how many thousandths of the TTL it is young.
    pub(super) share: u32,
    /// What is there, or in which words the backend said that there is nothing.
    pub(super) content: Result<Content, String>,
    /// How long it lives, if the backend made it for us.
    pub(super) lease: Option<Arc<Leased>>,
}

/// What is in a record.
#[derive(Debug)]
pub(super) struct Content {
    /// Shared with the generations that show all of it.
    pub(super) value: Arc<Sealed>,
    pub(super) version: Version,
    pub(super) modified: Timestamp,
    pub(super) description: Option<String>,
}

/// What a flight brings.
pub(super) type Answer = Result<Arc<Record>, BackendError>;

/// Which records answer a question.
#[derive(Debug, Clone, Copy)]
pub(super) enum Since {
    /// Any that is young, or on its way.
    Young,
    /// One that was asked for after this flight began (rule 9).
    After(u64),
}

impl Record {
    /// Rules 1, 12 and 13, for records.
    pub(super) fn is_young(&self, now: Instant, ttl: Duration) -> bool {
        let age = now.saturating_duration_since(self.fetched);
        match (&self.content, &self.lease) {
            (Err(_), _) => age < ttl.min(ABSENT),
            (Ok(_), Some(lease)) => lease.is_current(now),
            (Ok(_), None) => self.forever || age < self.ttl(ttl),
        }
    }

    /// Rule 15: its own part of the TTL.
    pub(super) fn ttl(&self, ttl: Duration) -> Duration {
        ttl.saturating_mul(self.share) / 1000
    }

    /// Whether the same is there. What is leased is not made twice.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        match (&self.lease, &other.lease) {
            (Some(ours), Some(theirs)) => return Arc::ptr_eq(ours, theirs),
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => return false,
        }
        match (&self.content, &other.content) {
            (Ok(ours), Ok(theirs)) => {
                ours.version == theirs.version && ours.value.same(&theirs.value)
            }
            (Err(_), Err(_)) => true,
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        }
    }

    fn len(&self) -> usize {
        self.content
            .as_ref()
            .map_or(0, |content| content.value.len())
    }
}

/// Every record that is held or on its way.
#[derive(Debug, Default)]
pub(super) struct Records {
    table: HashMap<Arc<Reference>, Held>,
    /// Those of the table that no secret is cut from (yet).
    unused: HashSet<Arc<Reference>>,
    /// How many were unused when they were last looked through.
    swept: usize,
    flights: HashMap<Arc<Reference>, Vec<UnderWay>>,
    /// Flights whose answer nobody may have any more: a lease that they bring is revoked.
    revoked: HashSet<u64>,
    /// The bytes in the table.
    pub(super) bytes: usize,
    /// Those that are dropped when the lock is released.
    pub(super) dropped: Vec<Arc<Record>>,
}

#[derive(Debug)]
struct Held {
    record: Arc<Record>,
    /// The secrets whose kept value was cut from it.
    users: Vec<SecretPath>,
}

#[derive(Debug)]
struct UnderWay {
    flight: Flight<Answer>,
    /// Another one landed meanwhile: which of the two saw the newer record, nobody can tell.
    crossed: bool,
    /// The secrets that it is for.
    wanted_by: Vec<SecretPath>,
    /// Those of them of whom somebody waits for it.
    waiting: Vec<SecretPath>,
}

/// What becomes of what a flight brought.
#[derive(Debug)]
pub(super) enum Landing {
    /// It is the answer.
    Taken {
        answer: Answer,
        /// The secrets that show something else.
        outdated: Vec<SecretPath>,
        /// Those of whom somebody waits for it, and will see.
        waiting: Vec<SecretPath>,
    },
    /// It crossed another one that brought something else: ask once more.
    Again,
}

impl Records {
    /// The table is looked through for unused records when these have doubled, but not below this.
    const SMALL: usize = 64;

    /// A record that answers the question without asking a backend.
    pub(super) fn find(
        &self,
        key: &Reference,
        since: Since,
        now: Instant,
        ttl: Duration,
    ) -> Option<Arc<Record>> {
        let record = &self.table.get(key)?.record;
        let answers = match since {
            Since::Young => record.is_young(now, ttl),
            Since::After(number) => record.began > number,
        };
        answers.then(|| Arc::clone(record))
    }

    /// Joins the flight that began last, if what it brings answers the question.
    pub(super) fn join(
        &mut self,
        key: &Reference,
        since: Since,
        path: &SecretPath,
    ) -> Option<watch::Receiver<Option<Answer>>> {
        let last = self.flights.get_mut(key)?.last_mut()?;
        let answers = match since {
            Since::Young => true,
            Since::After(number) => last.flight.number > number,
        };
        let landed = answers.then(|| last.flight.join()).flatten()?;
        for paths in [&mut last.wanted_by, &mut last.waiting] {
            if !paths.contains(path) {
                paths.push(path.clone());
            }
        }
        Some(landed)
    }

    /// The flight that began last.
    pub(super) fn under_way(&self, key: &Reference) -> Option<watch::Receiver<Option<Answer>>> {
        self.flights.get(key)?.last()?.flight.join()
    }

    /// Adds a flight that begins now, for these secrets. Those whose task died are gone.
    pub(super) fn add(
        &mut self,
        key: &Arc<Reference>,
        flight: Flight<Answer>,
        paths: &[SecretPath],
        waiting: bool,
    ) {
        let flights = self.flights.entry(Arc::clone(key)).or_default();
        flights.retain(|other| other.flight.join().is_some());
        flights.push(UnderWay {
            flight,
            crossed: false,
            wanted_by: paths.to_vec(),
            waiting: match waiting {
                true => paths.to_vec(),
                false => Vec::new(),
            },
        });
    }

    /// Takes out a flight that brings nothing any more.
    pub(super) fn remove(&mut self, key: &Reference, number: u64) {
        self.take_flight(key, number);
        self.revoked.remove(&number);
    }

    /// Has a flight begin again, as number `again`.
    pub(super) fn renew(&mut self, key: &Reference, number: u64, again: u64) {
        let flights = self.flights.get_mut(key).into_iter().flatten();
        for under_way in flights.filter(|other| other.flight.number == number) {
            under_way.flight.number = again;
            under_way.crossed = false;
        }
    }

    /// Takes what flight `number` brought, unless it is forgotten: then it is for those who asked before.
    pub(super) fn land(&mut self, key: &Arc<Reference>, number: u64, answer: Answer) -> Landing {
        let flights = self.flights.get(key);
        let mut flights = flights.into_iter().flatten();
        let ours = flights.find(|other| other.flight.number == number);
        if let (Some(ours), Ok(record)) = (ours, &answer)
            && let Some(lease) = &record.lease
        {
            ours.wanted_by.iter().for_each(|path| lease.make_for(path));
        }
        let changes = match &answer {
            Ok(_) | Err(BackendError::Absent(_) | BackendError::Refused(_)) => true,
            Err(
                BackendError::Unreachable(_) | BackendError::Timeout(_) | BackendError::Unusable(_),
            ) => false,
        };
        let counts = changes && ours.is_some();
        // Of two leases both are good, and it is known which was asked for later.
        if let (true, Some(held)) = (counts, self.table.get(key))
            && let (Some(_), Ok(record)) = (&held.record.lease, &answer)
            && record.lease.is_some()
        {
            if held.record.began > number {
                let answer = Ok(Arc::clone(&held.record));
                let waiting = self.take_flight(key, number);
                return Landing::Taken {
                    answer,
                    outdated: Vec::new(),
                    waiting,
                };
            }
        } else if counts && ours.is_some_and(|ours| ours.crossed) && !self.is_held(key, &answer) {
            return Landing::Again;
        }
        let waiting = self.take_flight(key, number);
        if !counts {
            return Landing::Taken {
                answer,
                outdated: Vec::new(),
                waiting,
            };
        }
        for other in self.flights.get_mut(key).into_iter().flatten() {
            other.crossed = true;
        }
        let (answer, outdated) = match answer {
            Ok(record) => {
                let (record, outdated) = self.put(record);
                (Ok(record), outdated)
            }
            Err(error) => (Err(error), self.take(key)),
        };
        Landing::Taken {
            answer,
            outdated,
            waiting,
        }
    }

    /// Whether an answer says what is held already.
    fn is_held(&self, key: &Reference, answer: &Answer) -> bool {
        match (self.table.get(key), answer) {
            (Some(held), Ok(record)) => held.record.agrees(record),
            (None, Ok(record)) => record.content.is_err(),
            (held, Err(_)) => held.is_none(),
        }
    }

    /// Holds this record instead of the one before. Returns it, sharing the bytes of that one if they are the same, and
    /// the users of that one if it is another.
    fn put(&mut self, record: Arc<Record>) -> (Arc<Record>, Vec<SecretPath>) {
        let key = Arc::clone(&record.key);
        if let Some(held) = self.table.get_mut(&key)
            && held.record.agrees(&record)
        {
            let same = same_bytes(&held.record, &record);
            self.dropped.push(record);
            held.record = Arc::clone(&same);
            return (same, Vec::new());
        }
        let users = self.take(&key);
        // Who announces changes is asked again: it costs little, and a word too late would be seen.
        if record.content.is_ok() || !record.forever {
            self.hold(&record);
        }
        (record, users)
    }

    /// Holds a record that the cache before this one had; `false` if there is another.
    pub(super) fn inherit(&mut self, record: &Arc<Record>) -> bool {
        let new = !self.table.contains_key(&record.key);
        if new {
            self.hold(record);
        }
        new
    }

    fn hold(&mut self, record: &Arc<Record>) {
        self.bytes += record.len();
        let held = Held {
            record: Arc::clone(record),
            users: Vec::new(),
        };
        self.table.insert(Arc::clone(&record.key), held);
        self.unused.insert(Arc::clone(&record.key));
    }

    /// Takes a record out, and says who used it.
    fn take(&mut self, key: &Reference) -> Vec<SecretPath> {
        self.unused.remove(key);
        let Some(held) = self.table.remove(key) else {
            return Vec::new();
        };
        self.bytes -= held.record.len();
        self.dropped.push(held.record);
        held.users
    }

    fn take_flight(&mut self, key: &Reference, number: u64) -> Vec<SecretPath> {
        let Some(flights) = self.flights.get_mut(key) else {
            return Vec::new();
        };
        let at = flights
            .iter()
            .position(|other| other.flight.number == number);
        let taken = at.map(|at| flights.remove(at));
        if flights.is_empty() {
            self.flights.remove(key);
        }
        taken.map_or_else(Vec::new, |taken| taken.waiting)
    }

    /// What is held where this record was found, if that is another one by now and says something else.
    pub(super) fn is_overtaken(&self, record: &Record) -> bool {
        let held = self.table.get(&record.key);
        held.is_some_and(|held| !held.record.agrees(record))
    }

    /// The record that is held where this one was found, if it says the same.
    pub(super) fn same(&self, record: &Record) -> Option<Arc<Record>> {
        let held = self.table.get(&record.key)?;
        held.record.agrees(record).then(|| Arc::clone(&held.record))
    }

    /// A value that was cut from this record is kept.
    pub(super) fn used(&mut self, record: &Arc<Record>, path: &SecretPath) {
        if !self.table.contains_key(&record.key) {
            self.hold(record);
        }
        if let Some(held) = self.table.get_mut(&record.key) {
            self.unused.remove(&record.key);
            if !held.users.contains(path) {
                held.users.push(path.clone());
            }
        }
    }

    /// It is not kept any more. The record goes with its last user.
    pub(super) fn unused(&mut self, record: &Record, path: &SecretPath) {
        if let Some(held) = self.table.get_mut(&record.key) {
            let Some(at) = held.users.iter().position(|user| user == path) else {
                return;
            };
            held.users.swap_remove(at);
            if held.users.is_empty() {
                self.take(&record.key);
            }
        }
    }

    /// Drops a record that no secret is cut from; `false` if there is none.
    pub(super) fn drop_unused(&mut self) -> bool {
        let Some(key) = self.unused.iter().next().map(Arc::clone) else {
            return false;
        };
        self.take(&key);
        true
    }

    /// Drops those that no secret is cut from and that have grown old, when there are many.
    pub(super) fn sweep(&mut self, now: Instant, ttl: Duration) {
        if self.unused.len() < Self::SMALL.max(self.swept.saturating_mul(2)) {
            return;
        }
        let table = &self.table;
        let old = |key: &&Arc<Reference>| {
            let held = table.get(*key);
            let old = |held: &Held| held.record.forever || !held.record.is_young(now, ttl);
            held.is_none_or(old)
        };
        let old: Vec<_> = self.unused.iter().filter(old).map(Arc::clone).collect();
        for key in old {
            self.take(&key);
        }
        self.swept = self.unused.len();
    }

    /// Forgets what was, or is being, fetched from such a place (rule 5). Its users are the caller's part.
    pub(super) fn invalidate(&mut self, same: impl Fn(&Reference) -> bool) {
        self.flights.retain(|key, _| !same(key));
        let gone = self.table.keys().filter(|key| same(key));
        for key in gone.map(Arc::clone).collect::<Vec<_>>() {
            self.take(&key);
        }
    }

    /// Forgets flights that are for none but these secrets, and records that no secret is cut from.
    pub(super) fn forget_for(&mut self, which: impl Fn(&SecretPath) -> bool) {
        let revoked = &mut self.revoked;
        self.flights.retain(|_, flights| {
            flights.retain_mut(|under_way| {
                under_way.wanted_by.retain(|path| !which(path));
                if under_way.wanted_by.is_empty() {
                    revoked.insert(under_way.flight.number);
                }
                !under_way.wanted_by.is_empty()
            });
            !flights.is_empty()
        });
        for key in self.unused.iter().map(Arc::clone).collect::<Vec<_>>() {
            self.take(&key);
        }
    }

    /// Whether the answer of this flight is one that nobody may have. To be asked once, when it has landed.
    pub(super) fn was_revoked(&mut self, number: u64) -> bool {
        self.revoked.remove(&number)
    }

    /// Whether this lease is that of a record that is held.
    pub(super) fn has_lease(&self, lease: &Arc<Leased>) -> bool {
        let held = self.table.get(&lease.key);
        let ours = held.and_then(|held| held.record.lease.as_ref());
        ours.is_some_and(|ours| Arc::ptr_eq(ours, lease))
    }

    /// Takes out the records whose lease has ended, and says who used them.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<SecretPath> {
        let ended = self.table.values().filter_map(|held| {
            let lease = held.record.lease.as_ref()?;
            (!lease.is_alive(now)).then(|| Arc::clone(&held.record.key))
        });
        let ended: Vec<_> = ended.collect();
        ended.iter().flat_map(|key| self.take(key)).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

/// Under which name the record is held that `reference` is about.
pub(super) fn key(reference: &Reference) -> Reference {
    Reference {
        field: None,
        ..reference.clone()
    }
}

/// `new` with the bytes of `old`, which are the same.
fn same_bytes(old: &Record, new: &Arc<Record>) -> Arc<Record> {
    match (&old.content, &new.content) {
        (Ok(ours), Ok(theirs)) => Arc::new(Record {
            key: Arc::clone(&old.key),
            began: old.began.max(new.began),
            fetched: new.fetched,
            forever: new.forever,
            share: new.share,
            content: Ok(Content {
                value: Arc::clone(&ours.value),
                version: theirs.version.clone(),
                modified: theirs.modified,
                description: theirs.description.clone(),
            }),
            lease: None,
        }),
        _ => Arc::clone(new),
    }
}
