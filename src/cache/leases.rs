//! Leases: values that a backend made for us, and that end. Rule 12.
//!
//! To read such a place again makes another value. So it is not read again when a TTL is over, but when the lease that we
//! have is about to end. Until then the lease is renewed, if it can be and as long as anybody reads what it is for.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::legacy::{LeftLease, LeftPlace};
use crate::backend::{Lease, Reference};
use crate::clock::Moment;
use crate::secret::SecretPath;

/// How long a backend that could not be reached is left alone before a lease is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// No lease is longer: the clock does not go on forever.
const LONG: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Shorter by so much than at first is shorter: backends count in whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

/// A lease that we have.
#[derive(Debug)]
pub(super) struct Leased {
    /// The place that was read.
    pub(super) key: Arc<Reference>,
    id: Option<String>,
    /// For how long it was given at first.
    full: Duration,
    term: Mutex<Term>,
    /// Somebody was given its value since it began or was renewed.
    asked: AtomicBool,
}

/// How long it lasts, as was last said.
#[derive(Debug)]
struct Term {
    began: Instant,
    duration: Duration,
    renewable: bool,
    /// It will not last: to be replaced now.
    broken: bool,
    /// Not to be tried again before.
    again: Option<Instant>,
    /// The secrets that have shown its value, or for which it was made.
    made_for: BTreeSet<SecretPath>,
}

/// What is to be done with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Made to last longer.
    Renewal,
    /// Another one has to be there before it ends.
    Replacement,
}

impl Term {
    fn at(&self, percent: u32) -> Instant {
        self.began + self.duration.saturating_mul(percent) / 100
    }

    fn ends(&self) -> Instant {
        self.began + self.duration
    }

    /// At two thirds, which leaves time for a second try.
    fn renewal(&self) -> Option<Instant> {
        (self.renewable && !self.broken).then(|| self.began + self.duration.saturating_mul(2) / 3)
    }

    /// Not before two thirds of its life, as a new certificate costs its maker something.
    fn replacement(&self) -> Instant {
        match self.broken {
            true => self.began,
            false => self.at(85),
        }
    }
}

impl Leased {
    /// A lease that was given just now.
    pub(super) fn new(key: &Arc<Reference>, lease: Lease, now: Instant) -> Arc<Self> {
        let duration = lease.duration.min(LONG);
        Arc::new(Self {
            key: Arc::clone(key),
            full: duration,
            term: Mutex::new(Term {
                began: now,
                duration,
                renewable: lease.renewable && lease.id.is_some(),
                broken: false,
                again: None,
                made_for: BTreeSet::new(),
            }),
            id: lease.id,
            asked: AtomicBool::new(false),
        })
    }

    /// It, for the cache after this one.
    pub(super) fn left(&self, at: Moment, ending: bool) -> LeftLease {
        let term = self.term();
        LeftLease {
            place: LeftPlace::of(&self.key),
            id: self.id.clone(),
            full: self.full,
            began: at.wall(term.began),
            duration: term.duration,
            renewable: term.renewable,
            made_for: term.made_for.iter().cloned().collect(),
            ending,
        }
    }

    /// One that the cache before this one had.
    pub(super) fn inherited(key: &Arc<Reference>, left: &LeftLease, at: Moment) -> Arc<Self> {
        Arc::new(Self {
            key: Arc::clone(key),
            id: left.id.clone(),
            full: left.full.min(LONG),
            term: Mutex::new(Term {
                began: at.instant(left.began),
                duration: left.duration.min(LONG),
                renewable: left.renewable && left.id.is_some(),
                broken: false,
                again: None,
                made_for: left.made_for.iter().cloned().collect(),
            }),
            asked: AtomicBool::new(false),
        })
    }

    /// What the backend has to be told to renew or revoke it; `None` if it can only end.
    pub(super) fn lease(&self) -> Option<Lease> {
        Some(Lease {
            id: Some(self.id.clone()?),
            duration: self.full,
            renewable: self.term().renewable,
        })
    }

    /// Whether its value is served without asking for another one.
    pub(super) fn is_current(&self, now: Instant) -> bool {
        now < self.term().replacement()
    }

    /// From when on another one should have been in its place.
    pub(super) fn replacement(&self) -> Instant {
        self.term().replacement()
    }

    /// When it ends, unless it is renewed.
    pub(super) fn ends(&self) -> Instant {
        self.term().ends()
    }

    /// Whether its value is worth anything.
    pub(super) fn is_alive(&self, now: Instant) -> bool {
        now < self.term().ends()
    }

    /// Its value is given to somebody. True if that is why something has to be done now.
    pub(super) fn ask(&self, now: Instant) -> bool {
        let first = !self.asked.swap(true, Ordering::Relaxed);
        first && self.due(now, true).is_some()
    }

    /// It is for `path`.
    pub(super) fn make_for(&self, path: &SecretPath) {
        self.term().made_for.insert(path.clone());
    }

    /// The secrets that it is for.
    pub(super) fn made_for(&self) -> Vec<SecretPath> {
        self.term().made_for.iter().cloned().collect()
    }

    /// These secrets are taken away. True if they are all that it is for.
    pub(super) fn forget_for(&self, which: impl Fn(&SecretPath) -> bool) -> bool {
        let mut term = self.term();
        let before = term.made_for.len();
        term.made_for.retain(|path| !which(path));
        before > 0 && term.made_for.is_empty()
    }

    /// What has to be done now, if it is in use: it was asked for lately, or is `open`.
    pub(super) fn due(&self, now: Instant, open: bool) -> Option<Due> {
        if !open && !self.asked.load(Ordering::Relaxed) {
            return None;
        }
        let term = self.term();
        if term.again.is_some_and(|again| now < again) {
            return None;
        }
        if now >= term.replacement() {
            return Some(Due::Replacement);
        }
        (now >= term.renewal()?).then_some(Due::Renewal)
    }

    /// When there may be something to do next.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let term = self.term();
        let times = [term.renewal(), Some(term.replacement()), term.again];
        let times = times.into_iter().flatten().filter(|time| *time > now);
        times.min().unwrap_or_else(|| term.ends())
    }

    /// It was renewed. One that does not get its whole time any more will not get more.
    pub(super) fn renewed(&self, lease: &Lease, now: Instant) {
        self.asked.store(false, Ordering::Relaxed);
        let mut term = self.term();
        let whole = lease.duration.saturating_add(ROUNDING) >= self.full
            && lease.duration >= self.full.saturating_mul(9) / 10;
        term.began = now;
        term.duration = lease.duration.min(LONG);
        term.renewable = lease.renewable && whole;
        term.again = None;
    }

    /// It cannot be renewed.
    pub(super) fn broke(&self) {
        let mut term = self.term();
        term.broken = true;
        term.again = None;
    }

    /// The backend could not be reached.
    pub(super) fn put_off(&self, now: Instant) {
        self.term().again = Some(now + PAUSE.min(self.full / 20));
    }

    fn term(&self) -> MutexGuard<'_, Term> {
        self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every lease that has not ended.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Also those that were superseded: who has their values open uses them.
    held: Vec<Arc<Leased>>,
    /// To be revoked.
    ending: Vec<Arc<Leased>>,
}

impl Leases {
    pub(super) fn add(&mut self, lease: Arc<Leased>) {
        self.held.push(lease);
    }

    /// Whom it is for was taken everything away.
    pub(super) fn revoke(&mut self, lease: Arc<Leased>) {
        self.held.retain(|held| !Arc::ptr_eq(held, &lease));
        if lease.id.is_some() {
            self.ending.push(lease);
        }
    }

    /// These secrets are taken away. True if leases have to be revoked.
    pub(super) fn forget_for(&mut self, which: impl Fn(&SecretPath) -> bool) -> bool {
        let (gone, held) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|lease| lease.forget_for(&which));
        self.held = held;
        for lease in gone {
            self.revoke(lease);
        }
        !self.ending.is_empty()
    }

    /// Those that are held.
    pub(super) fn held(&self) -> &[Arc<Leased>] {
        &self.held
    }

    /// Forgets those that have ended.
    pub(super) fn let_end(&mut self, now: Instant) {
        self.held.retain(|lease| lease.is_alive(now));
    }

    /// True if some are to be revoked.
    pub(super) fn is_ending(&self) -> bool {
        !self.ending.is_empty()
    }

    /// Takes those that are to be revoked.
    pub(super) fn take_ending(&mut self) -> Vec<Arc<Leased>> {
        std::mem::take(&mut self.ending)
    }

    /// All, and whether each is to be revoked.
    pub(super) fn all(&self) -> Vec<(Arc<Leased>, bool)> {
        let held = self.held.iter().map(|lease| (Arc::clone(lease), false));
        let ending = self.ending.iter().map(|lease| (Arc::clone(lease), true));
        held.chain(ending).collect()
    }

    /// Takes all.
    pub(super) fn take_all(&mut self) -> Vec<Arc<Leased>> {
        let mut all = self.take_ending();
        all.append(&mut self.held);
        all
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}
